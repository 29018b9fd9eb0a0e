//! Clients that load the server on purpose, at full rate, while the others are measured.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::couchdb::{CROWDED, Feed, USERS};
use super::dialogue::Speech;
use super::frames::masked;
use super::lines::{self, Lines};
use super::side::{Side, Took};

/// Attackers at once.
const ATTACKERS: usize = 2;
/// Names of a long list: as many as fit into a message.
const MANY: usize = 4_000;
/// Subscribers of a database that is deleted again and again.
const SUBSCRIBERS: usize = 2_000;
/// The same where few changes are measured.
const FEW_SUBSCRIBERS: usize = 100;
/// Longest wait for an answer, or for the server to read.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the attackers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attack {
    /// Polling handshakes, pipelined, without a login.
    Handshakes,
    /// A list is withdrawn again and again while another one waits.
    Withdraw,
    /// Fresh names whose permissions have to be asked for, and are withdrawn at once.
    Permissions,
    /// Sessions that break, most of them short, and are remembered.
    Breaks,
    /// Long lists are subscribed to and unsubscribed from.
    Lists,
    /// A database with many subscribers and a long list of members is deleted again and again.
    Members,
}

impl Attack {
    pub const ALL: [Self; 6] =
        [Self::Handshakes, Self::Withdraw, Self::Permissions, Self::Breaks, Self::Lists, Self::Members];

    /// The rows of the report: the 99th percentile and the longest delay.
    pub fn rows(self) -> [&'static str; 2] {
        match self {
            Self::Handshakes => ["attack by handshakes, 99 %", "attack by handshakes, longest"],
            Self::Withdraw => ["attack by withdrawing, 99 %", "attack by withdrawing, longest"],
            Self::Permissions => ["attack by permissions, 99 %", "attack by permissions, longest"],
            Self::Breaks => ["attack by broken sessions, 99 %", "attack by broken sessions, longest"],
            Self::Lists => ["attack by long lists, 99 %", "attack by long lists, longest"],
            Self::Members => ["attack by many members, 99 %", "attack by many members, longest"],
        }
    }

    /// Options that the server needs to be open to it.
    pub fn options(self) -> Vec<String> {
        let options: &[&str] = match self {
            Self::Permissions | Self::Members => &["--access", "members"],
            Self::Breaks => &["--catch_up_sessions", "2"],
            Self::Handshakes | Self::Withdraw | Self::Lists => &[],
        };
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    /// Attacks over one connection until it ends, or everything is to end; `None` when the connection did.
    fn run(self, address: SocketAddr, number: usize, round: usize, over: &AtomicBool) -> Option<()> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        let goes_on = || !over.load(Ordering::Relaxed);
        match self {
            Self::Handshakes => {
                let requests = "GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: a\r\n\r\n".repeat(500);
                while goes_on() {
                    stream.write_all(requests.as_bytes()).ok()?;
                }
            }
            Self::Breaks => {
                stream.write_all(&Speech::SocketIo4.opening(USERS + number)).ok()?;
                stream.write_all(&masked("40")).ok()?;
                let count = if round.is_multiple_of(50) { MANY } else { 1 };
                wait_for(&mut stream, "authenticated")?;
                stream.write_all(&masked(&format!("421{}", json!(["subscribe", names("break", count)])))).ok()?;
                wait_for(&mut stream, "431[")?;
            }
            Self::Withdraw | Self::Permissions | Self::Lists => {
                stream.write_all(&Speech::Json.opening(USERS + number)).ok()?;
                let user = format!("user-{:05}", USERS + number);
                let log_in = json!({"id": 1, "op": "log-in", "username": user, "password": "zq7"});
                stream.write_all(&masked(&log_in.to_string())).ok()?;
                wait_for(&mut stream, "\"username\"")?;
                let mut answers = stream.try_clone().ok()?;
                let reader = thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
                self.flood(&mut stream, number, round, goes_on);
                let _ = stream.shutdown(std::net::Shutdown::Both);
                let _ = reader.join();
            }
            Self::Members => unreachable!("the feed drives it: `delete`"),
        }
        Some(())
    }

    fn flood(self, stream: &mut TcpStream, number: usize, round: usize, goes_on: impl Fn() -> bool) {
        let message = |op: &str, names: &[String]| masked(&json!({"op": op, "dbs": names}).to_string());
        let (first, second) = (names(&format!("a{number}-"), MANY), names(&format!("b{number}-"), MANY));
        let (subscribe, unsubscribe) = (message("subscribe", &first), message("unsubscribe", &first));
        let others = message("unsubscribe", &second);
        if self == Self::Withdraw && stream.write_all(&subscribe).is_err() {
            return;
        }
        for turn in 0.. {
            let sent = match self {
                Self::Permissions => {
                    let fresh = names(&format!("{}{number}-{round}-{turn}-", "f".repeat(180)), 250);
                    let both = [message("subscribe", &fresh), message("unsubscribe", &fresh)].concat();
                    stream.write_all(&both)
                }
                Self::Withdraw => stream.write_all(&others),
                _ => stream.write_all(&subscribe).and_then(|()| stream.write_all(&unsubscribe)),
            };
            if sent.is_err() || !goes_on() {
                return;
            }
        }
    }
}

impl Side {
    /// The same as [`Side::pace`] while attackers do what they can.
    pub fn attack(&mut self, attack: Attack, changes: usize, per_second: usize) -> Took {
        let (over, address) = (AtomicBool::new(false), self.server.address);
        let crowd = if attack == Attack::Members { crowd(address, changes) } else { Vec::new() };
        thread::scope(|scope| {
            let over = &over;
            if attack == Attack::Members {
                let feed = self.couchdb.feed();
                scope.spawn(move || delete(crowd, &feed, over));
            }
            let attackers = if attack == Attack::Members { 0 } else { ATTACKERS };
            for number in 0..attackers {
                scope.spawn(move || {
                    for round in 0.. {
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                        if attack.run(address, number, round, over).is_none() {
                            thread::sleep(Duration::from_millis(1));
                        }
                    }
                });
            }
            let took = self.pace(changes, per_second);
            over.store(true, Ordering::Relaxed);
            took
        })
    }
}

/// Subscribers of a database that only its members may read.
fn crowd(address: SocketAddr, changes: usize) -> Vec<TcpStream> {
    let count = if changes < FEW_SUBSCRIBERS { FEW_SUBSCRIBERS } else { SUBSCRIBERS };
    let subscribers = (0..count).map(|number| {
        let mut stream = TcpStream::connect(address).expect("the server accepts it");
        stream.set_read_timeout(Some(10 * PATIENCE)).expect("a socket");
        let user = format!("user-{:05}", USERS + number);
        let log_in = json!({"id": 1, "op": "log-in", "username": user, "password": "zq7"});
        let subscribe = json!({"id": 2, "op": "subscribe", "dbs": [CROWDED]});
        stream.write_all(&Speech::Json.opening(USERS + number)).expect("the server reads");
        for (request, answer) in [(log_in, "\"username\""), (subscribe, "\"changed\"")] {
            stream.write_all(&masked(&request.to_string())).expect("the server reads");
            wait_for(&mut stream, answer).expect("a member is served");
        }
        stream.set_nonblocking(true).expect("a socket");
        stream
    });
    subscribers.collect()
}

/// Has the database of a crowd deleted again and again; what the subscribers are notified of is read.
fn delete(mut crowd: Vec<TcpStream>, feed: &Feed, over: &AtomicBool) {
    let (mut lines, mut buffer) = (Lines::default(), [0; 4096]);
    for number in 1.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let mut text = String::new();
        lines.write_kind(&mut text, "deleted", CROWDED, number);
        feed.push(&lines::chunked(&text));
        for subscriber in &mut crowd {
            let _ = subscriber.read(&mut buffer);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

/// Reads until a text came; None when it does not.
fn wait_for(stream: &mut TcpStream, text: &str) -> Option<()> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while !all.windows(text.len()).any(|window| window == text.as_bytes()) {
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        all.extend_from_slice(&buffer[..read]);
    }
    Some(())
}
