//! Clients that load the server on purpose at full rate while other clients are measured.

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

/// Number of concurrent attackers.
const ATTACKERS: usize = 2;
/// Names in a long list: as many as fit into one message.
const MANY: usize = 4_000;
/// Subscribers of the database that is deleted repeatedly.
const SUBSCRIBERS: usize = 2_000;
/// Subscribers of that database when few changes are measured.
const FEW_SUBSCRIBERS: usize = 100;
/// Longest wait for a reply, or for the server to read.
const PATIENCE: Duration = Duration::from_millis(500);

/// One kind of attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attack {
    /// Pipelined polling handshakes without a login.
    Handshakes,
    /// Unsubscribes from a list repeatedly while another list waits.
    Withdraw,
    /// Subscribes to fresh names, which need permission lookups, and unsubscribes at once.
    Permissions,
    /// Breaks sessions, most of them with a short list, that the server keeps for catching up.
    Breaks,
    /// Subscribes to long lists and unsubscribes again.
    Lists,
    /// Repeatedly deletes a database with many subscribers and a long list of members.
    Members,
}

impl Attack {
    pub const ALL: [Self; 6] =
        [Self::Handshakes, Self::Withdraw, Self::Permissions, Self::Breaks, Self::Lists, Self::Members];

    /// Returns the rows of the report: the 99th percentile and the longest delay.
    pub fn rows(self) -> [&'static str; 2] {
        match self {
            Self::Handshakes => ["attack by handshakes, 99 %", "attack by handshakes, longest"],
            Self::Withdraw => ["attack by unsubscribing, 99 %", "attack by unsubscribing, longest"],
            Self::Permissions => ["attack by permissions, 99 %", "attack by permissions, longest"],
            Self::Breaks => ["attack by broken sessions, 99 %", "attack by broken sessions, longest"],
            Self::Lists => ["attack by long lists, 99 %", "attack by long lists, longest"],
            Self::Members => ["attack by many members, 99 %", "attack by many members, longest"],
        }
    }

    /// Returns the options that expose the server to this attack.
    pub fn options(self) -> Vec<String> {
        let options: &[&str] = match self {
            Self::Permissions | Self::Members => &["--access", "members"],
            Self::Breaks => &["--catch_up_sessions", "2"],
            Self::Handshakes | Self::Withdraw | Self::Lists => &[],
        };
        options.iter().map(|option| (*option).to_owned()).collect()
    }

    /// Attacks over one connection until `over` is set or the connection ends. Returns `None` if
    /// the connection ended.
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
            Self::Members => unreachable!("`delete` drives it through the feed"),
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
    /// Measures like [`Side::pace`] during an attack.
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

/// Connects subscribers of a database that only its members may read.
fn crowd(address: SocketAddr, changes: usize) -> Vec<TcpStream> {
    let count = if changes < FEW_SUBSCRIBERS { FEW_SUBSCRIBERS } else { SUBSCRIBERS };
    let subscribers = (0..count).map(|number| {
        let mut stream = TcpStream::connect(address).expect("the server accepts the connection");
        stream.set_read_timeout(Some(10 * PATIENCE)).expect("the socket is open");
        let user = format!("user-{:05}", USERS + number);
        let log_in = json!({"id": 1, "op": "log-in", "username": user, "password": "zq7"});
        let subscribe = json!({"id": 2, "op": "subscribe", "dbs": [CROWDED]});
        stream.write_all(&Speech::Json.opening(USERS + number)).expect("the server reads");
        for (request, answer) in [(log_in, "\"username\""), (subscribe, "\"changed\"")] {
            stream.write_all(&masked(&request.to_string())).expect("the server reads");
            wait_for(&mut stream, answer).expect("the server answers a member");
        }
        stream.set_nonblocking(true).expect("the socket is open");
        stream
    });
    subscribers.collect()
}

/// Repeatedly reports the crowded database as deleted, and discards the notifications of its
/// subscribers.
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

/// Reads until the text arrives. Returns `None` if it does not.
fn wait_for(stream: &mut TcpStream, text: &str) -> Option<()> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while !all.windows(text.len()).any(|window| window == text.as_bytes()) {
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        all.extend_from_slice(&buffer[..read]);
    }
    Some(())
}
