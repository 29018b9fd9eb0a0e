//! Many clients in one thread: each is a socket in one epoll, a few bytes of state, and no buffer of its own.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::dialogue::{Speech, Step, Subscribed, Talk};
use super::frames::{self, Frame};

/// Longest wait for what is to come.
const SOON: Duration = Duration::from_secs(60);

/// How often clients ping that have to: every 25 s is expected of them.
const PING_AFTER: Duration = Duration::from_secs(10);

/// What all clients of a fleet have in common.
#[derive(Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub speech: Speech,
    pub subscribed: Subscribed,
    pub tls: Option<Arc<ClientConfig>>,
    /// Most clients that are on their way at once: less than may wait to be accepted.
    pub window: usize,
}

impl Plan {
    /// Towards one address of a server the system looks ever longer for a port that is free here: a few thousand clients go
    /// to each of several loopback addresses.
    fn address_for(&self, number: usize) -> SocketAddr {
        const OF_ONE_ADDRESS: usize = 2_000;
        let last = u8::try_from(1 + number / OF_ONE_ADDRESS % 250).expect("below 256");
        SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), self.address.port())
    }
}

/// The clients.
pub struct Fleet {
    poll: Poll,
    events: Events,
    buffer: Box<[u8]>,
    clients: Vec<Client>,
    plan: Plan,
    /// When all clients pinged last.
    pinged: Instant,
    pub tally: Tally,
}

/// What was received.
#[derive(Default)]
pub struct Tally {
    /// Clients that are subscribed.
    pub ready: usize,
    /// Notifications.
    pub told: u64,
    /// Pings, each of which was answered.
    pub pings: u64,
    /// Reads that gave something.
    pub reads: u64,
    pub first: Option<Instant>,
    pub last: Option<Instant>,
    pub stopwatch: Option<Stopwatch>,
    /// The last revision that each client is to be told of, and how many were.
    pub expected: Vec<u32>,
    pub arrived: usize,
}

/// Takes the time from when the feed told of a client's database until the client was told.
pub struct Stopwatch {
    pub start: Instant,
    /// By number of the client, in nanoseconds since the start.
    pub sent: Arc<[AtomicU64]>,
    pub nanoseconds: Vec<u64>,
}

struct Client {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    talk: Talk,
    /// The response to the upgrade has come.
    upgraded: bool,
    /// What came of a message that is not all there.
    begun: Vec<u8>,
}

impl Fleet {
    pub fn new(plan: Plan) -> Self {
        Self {
            poll: Poll::new().expect("epoll is there"),
            events: Events::with_capacity(1024),
            buffer: vec![0; 64 * 1024].into(),
            clients: Vec::new(),
            plan,
            pinged: Instant::now(),
            tally: Tally::default(),
        }
    }

    /// Connects so many clients and sees them through until they are subscribed.
    pub fn connect(&mut self, count: usize) {
        let deadline = Instant::now() + SOON * 4;
        while self.tally.ready < count {
            while self.clients.len() < count && self.clients.len() - self.tally.ready < self.plan.window {
                self.open();
                if self.clients.len().is_multiple_of(16) {
                    self.turn(Some(Duration::ZERO));
                }
            }
            self.turn(Some(Duration::from_millis(100)));
            self.ping();
            assert!(Instant::now() < deadline, "only {} of {count} clients are subscribed", self.tally.ready);
        }
    }

    fn open(&mut self) {
        let number = self.clients.len();
        let socket = std::net::TcpStream::connect(self.plan.address_for(number)).expect("the server listens");
        socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(true)).expect("a fresh socket");
        let mut socket = TcpStream::from_std(socket);
        self.poll.registry().register(&mut socket, Token(number), Interest::READABLE).expect("a fresh socket");
        let tls = self.plan.tls.as_ref().map(|config| {
            let name = ServerName::try_from("localhost").expect("a name");
            Box::new(ClientConnection::new(Arc::clone(config), name).expect("a session"))
        });
        let upgraded = !self.plan.speech.upgrades();
        let mut client = Client { socket, tls, talk: Talk::default(), upgraded, begun: Vec::new() };
        client.send(&self.plan.speech.opening(number));
        self.clients.push(client);
    }

    /// Receives until something holds.
    pub fn run_until(&mut self, what: &str, mut holds: impl FnMut(&Tally) -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds(&self.tally) {
            self.turn(Some(Duration::from_millis(100)));
            assert!(
                Instant::now() < deadline,
                "{what} did not come: {} notifications, {} arrived",
                self.tally.told,
                self.tally.arrived
            );
        }
    }

    /// Receives for so long, whatever comes.
    pub fn run_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.turn(Some(left));
            self.ping();
        }
    }

    /// Keeps sessions alive whose clients are to ping; never while something is measured.
    pub fn ping(&mut self) {
        if self.plan.speech == Speech::SocketIo3 && self.pinged.elapsed() > PING_AFTER {
            self.pinged = Instant::now();
            for client in self.clients.iter_mut().filter(|client| client.upgraded) {
                client.send(&frames::masked("2"));
            }
        }
    }

    fn turn(&mut self, timeout: Option<Duration>) {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return,
            polled => polled.expect("epoll is there"),
        }
        for event in &self.events {
            let number = event.token().0;
            let client = &mut self.clients[number];
            while let Some(read) = client.read(&mut self.buffer) {
                assert!(read > 0, "the server closed the connection of client {number}");
                self.tally.reads += 1;
                client.receive(&self.buffer[..read], number, &self.plan, &mut self.tally);
                // A short read has emptied the socket.
                if read < self.buffer.len() && client.tls.is_none() {
                    break;
                }
            }
        }
    }
}

impl Client {
    /// Plain bytes; None when there are no more.
    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let Some(tls) = &mut self.tls else { return would_block(self.socket.read(buffer)) };
        loop {
            if let Some(read) = would_block(tls.reader().read(buffer)) {
                return Some(read);
            }
            match would_block(tls.read_tls(&mut self.socket))? {
                0 => return Some(0),
                _ => drop(tls.process_new_packets().expect("the server speaks TLS")),
            }
            while tls.wants_write() {
                tls.write_tls(&mut self.socket).expect("the server reads");
            }
        }
    }

    /// Sends a few bytes, for which there always is room.
    fn send(&mut self, bytes: &[u8]) {
        let Some(tls) = &mut self.tls else { return self.socket.write_all(bytes).expect("the server reads") };
        tls.writer().write_all(bytes).expect("there is room");
        while tls.wants_write() {
            tls.write_tls(&mut self.socket).expect("the server reads");
        }
    }

    fn receive(&mut self, bytes: &[u8], number: usize, plan: &Plan, tally: &mut Tally) {
        if self.begun.is_empty() {
            let used = self.digest(bytes, number, plan, tally);
            if used < bytes.len() {
                self.begun.extend_from_slice(&bytes[used..]);
            }
        } else {
            let mut begun = std::mem::take(&mut self.begun);
            begun.extend_from_slice(bytes);
            let used = self.digest(&begun, number, plan, tally);
            if used < begun.len() {
                begun.drain(..used);
                self.begun = begun;
            }
        }
    }

    /// Takes the messages that are all there; how long they are.
    fn digest(&mut self, bytes: &[u8], number: usize, plan: &Plan, tally: &mut Tally) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            let rest = &bytes[used..];
            if !self.upgraded {
                let Some((head, _)) = response(rest, true) else { break };
                self.upgraded = true;
                used += head;
            } else if plan.speech.polls() {
                let Some((length, body)) = response(rest, false) else { break };
                used += length;
                self.hear(body, number, plan, tally);
            } else {
                let Some((length, frame)) = frames::first(rest) else { break };
                used += length;
                match frame {
                    Frame::Text(text) => self.hear(text, number, plan, tally),
                    Frame::Ping => {
                        tally.pings += 1;
                        self.send(&frames::pong());
                    }
                    Frame::Close => panic!("the server sent client {number} away"),
                }
            }
        }
        used
    }

    fn hear(&mut self, message: &[u8], number: usize, plan: &Plan, tally: &mut Tally) {
        match plan.speech.hear(&mut self.talk, number, plan.subscribed, message) {
            Step::Wait => {}
            Step::Send(bytes) => self.send(&bytes),
            Step::Ready => tally.ready += 1,
            Step::SendAndReady(bytes) => {
                self.send(&bytes);
                tally.ready += 1;
            }
            Step::Change => tally.handle_change(number, message),
            Step::Wrong => panic!("client {number} was told: {}", String::from_utf8_lossy(message)),
        }
    }
}

impl Tally {
    fn handle_change(&mut self, number: usize, message: &[u8]) {
        let now = Instant::now();
        self.told += 1;
        self.first.get_or_insert(now);
        self.last = Some(now);
        if let Some(stopwatch) = &mut self.stopwatch {
            let since_start = u64::try_from((now - stopwatch.start).as_nanos()).expect("not that long");
            stopwatch.nanoseconds.push(since_start - stopwatch.sent[number].load(Ordering::Acquire));
        }
        if let Some(expected) = self.expected.get(number)
            && revision(message) == *expected
        {
            self.arrived += 1;
        }
    }
}

/// The number of updates in the position of a notification: `…"position":"32.1.0"}`.
fn revision(message: &[u8]) -> u32 {
    let text = std::str::from_utf8(message).expect("text is UTF-8");
    let position = text.rsplit('"').nth(1).expect("a position comes last");
    position.split('.').next().and_then(|number| number.parse().ok()).expect("a number comes first")
}

fn would_block(read: std::io::Result<usize>) -> Option<usize> {
    match read {
        Ok(read) => Some(read),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("a connection is lost: {error}"),
    }
}

/// The first response of HTTP in the bytes: how long it is, and its body; None while it is not all there.
fn response(bytes: &[u8], upgrade: bool) -> Option<(usize, &[u8])> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(start) = head.parse(bytes).expect("the server speaks HTTP") else { return None };
    let wanted = if upgrade { 101 } else { 200 };
    assert_eq!(head.code, Some(wanted), "{}", String::from_utf8_lossy(bytes));
    if upgrade {
        return Some((start, b""));
    }
    let length = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
    let length = std::str::from_utf8(length.expect("a length").value).ok().and_then(|length| length.parse().ok());
    let end = start + length.unwrap_or(0);
    Some((end, bytes.get(start..end)?))
}
