//! Many clients in one thread. Each is a socket in a shared epoll and a few bytes of state, without
//! a buffer of its own.

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

/// Longest wait for an expected event.
const SOON: Duration = Duration::from_secs(60);

/// Ping interval of Engine.IO 3 clients. The server expects a ping every 25 s.
const PING_AFTER: Duration = Duration::from_secs(10);

/// Properties that all clients of a fleet share.
#[derive(Clone)]
pub struct Plan {
    pub address: SocketAddr,
    pub speech: Speech,
    pub subscribed: Subscribed,
    pub tls: Option<Arc<ClientConfig>>,
    /// Most clients that connect at once. Must be below the backlog of the server's listener.
    pub window: usize,
}

impl Plan {
    /// Returns the address that a client connects to. The more connections go to one address, the
    /// longer the kernel searches for a free local port, so every 2,000 clients use another
    /// loopback address.
    fn address_for(&self, number: usize) -> SocketAddr {
        const OF_ONE_ADDRESS: usize = 2_000;
        let last = u8::try_from(1 + number / OF_ONE_ADDRESS % 250).expect("the number is below 256");
        SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), self.address.port())
    }
}

/// A set of clients.
pub struct Fleet {
    poll: Poll,
    events: Events,
    buffer: Box<[u8]>,
    clients: Vec<Client>,
    plan: Plan,
    /// Time of the last ping of all clients.
    pinged: Instant,
    pub tally: Tally,
}

/// Counts of received messages.
#[derive(Default)]
pub struct Tally {
    /// Number of subscribed clients.
    pub ready: usize,
    /// Number of notifications.
    pub notified: u64,
    /// Number of pings. Each was answered.
    pub pings: u64,
    /// Number of reads that returned data.
    pub reads: u64,
    pub first: Option<Instant>,
    pub last: Option<Instant>,
    pub stopwatch: Option<Stopwatch>,
    /// The last revision that each client must receive, and the number of clients that received it.
    pub expected: Vec<u32>,
    pub arrived: usize,
}

/// Measures the time from a line of the feed about a client's database to the notification.
pub struct Stopwatch {
    pub start: Instant,
    /// Time of the line for each client, in nanoseconds since `start`.
    pub sent: Arc<[AtomicU64]>,
    pub nanoseconds: Vec<u64>,
}

struct Client {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    talk: Talk,
    /// Whether the response to the upgrade has arrived.
    upgraded: bool,
    /// The beginning of an incomplete message.
    begun: Vec<u8>,
}

impl Fleet {
    pub fn new(plan: Plan) -> Self {
        Self {
            poll: Poll::new().expect("epoll is available"),
            events: Events::with_capacity(1024),
            buffer: vec![0; 64 * 1024].into(),
            clients: Vec::new(),
            plan,
            pinged: Instant::now(),
            tally: Tally::default(),
        }
    }

    /// Connects `count` clients and runs them until all are subscribed.
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
        socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(true)).expect("the socket is new");
        let mut socket = TcpStream::from_std(socket);
        self.poll.registry().register(&mut socket, Token(number), Interest::READABLE).expect("the socket is new");
        let tls = self.plan.tls.as_ref().map(|config| {
            let name = ServerName::try_from("localhost").expect("the name is valid");
            Box::new(ClientConnection::new(Arc::clone(config), name).expect("the TLS client starts"))
        });
        let upgraded = !self.plan.speech.upgrades();
        let mut client = Client { socket, tls, talk: Talk::default(), upgraded, begun: Vec::new() };
        client.send(&self.plan.speech.opening(number));
        self.clients.push(client);
    }

    /// Receives until the condition holds.
    pub fn run_until(&mut self, what: &str, mut holds: impl FnMut(&Tally) -> bool) {
        let deadline = Instant::now() + SOON;
        while !holds(&self.tally) {
            self.turn(Some(Duration::from_millis(100)));
            assert!(
                Instant::now() < deadline,
                "timeout waiting for {what}: {} notifications, {} clients have the last revision",
                self.tally.notified,
                self.tally.arrived
            );
        }
    }

    /// Receives for a fixed time.
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

    /// Pings for Engine.IO 3 clients, whose sessions would end otherwise. Not called during a
    /// measurement.
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
            polled => polled.expect("epoll is available"),
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
    /// Reads decrypted bytes. Returns `None` if there are no more.
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

    /// Sends a few bytes. The socket always has room for them.
    fn send(&mut self, bytes: &[u8]) {
        let Some(tls) = &mut self.tls else { return self.socket.write_all(bytes).expect("the server reads") };
        tls.writer().write_all(bytes).expect("the buffer has room");
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

    /// Handles the complete messages. Returns their length in bytes.
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
                    Frame::Close => panic!("the server closed the connection of client {number}"),
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
            Step::Wrong => panic!("client {number} received: {}", String::from_utf8_lossy(message)),
        }
    }
}

impl Tally {
    fn handle_change(&mut self, number: usize, message: &[u8]) {
        let now = Instant::now();
        self.notified += 1;
        self.first.get_or_insert(now);
        self.last = Some(now);
        if let Some(stopwatch) = &mut self.stopwatch {
            let since_start = u64::try_from((now - stopwatch.start).as_nanos()).expect("the run is short enough");
            stopwatch.nanoseconds.push(since_start - stopwatch.sent[number].load(Ordering::Acquire));
        }
        if let Some(expected) = self.expected.get(number)
            && revision(message) == *expected
        {
            self.arrived += 1;
        }
    }
}

/// Returns the number of updates in the position of a notification: `…"position":"32.1.0"}`.
fn revision(message: &[u8]) -> u32 {
    let text = std::str::from_utf8(message).expect("text is UTF-8");
    let position = text.rsplit('"').nth(1).expect("the last field is the position");
    position.split('.').next().and_then(|number| number.parse().ok()).expect("a position starts with a number")
}

fn would_block(read: std::io::Result<usize>) -> Option<usize> {
    match read {
        Ok(read) => Some(read),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("a connection failed: {error}"),
    }
}

/// Parses the first HTTP response. Returns its length and its body, or `None` if it is incomplete.
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
    let length = std::str::from_utf8(length.expect("the response has a length").value)
        .ok()
        .and_then(|length| length.parse().ok());
    let end = start + length.unwrap_or(0);
    Some((end, bytes.get(start..end)?))
}
