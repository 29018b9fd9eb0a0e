//! One side of a comparison, in a process of its own: a server, its stand-in for CouchDB, and its
//! clients. It reads orders as lines of JSON from its standard input and answers each with one
//! line.

use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::attacks::Attack;
use super::clients::{Fleet, Plan};
use super::couchdb::CouchDb;
use super::dialogue::{Speech, Subscribed};
use super::lines::{self, Lines};
use super::process::{self, Kernel, Usage};
use super::server::{Server, Target};

/// Time within which all effects of earlier steps have happened.
const A_MOMENT: Duration = Duration::from_millis(500);

/// The setup of a side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    pub target: Target,
    pub speech: Speech,
    pub subscribed: Subscribed,
    pub clients: usize,
    pub tls: bool,
    /// Further options of the server.
    pub options: Vec<String>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Changes of the shared database. Each round waits until all clients are notified.
    FanOut { rounds: u64 },
    /// Changes at a steady pace, each of one client's database.
    Pace { changes: usize, per_second: usize },
    /// The same during an attack.
    Attack { attack: Attack, changes: usize, per_second: usize },
    /// Changes of all clients' own databases at once.
    Burst { changes: usize },
    /// One change of each database of a single client, all at once.
    Many { databases: usize },
    /// No changes until each client has received `pings` pings.
    Rest { pings: u64 },
    /// Lines about databases without subscribers, as fast as the server reads them.
    Feed { lines: usize },
}

/// Measurements of the setup.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Started {
    pub listened_after_ms: f64,
    /// Resident bytes when the server listened, and when it followed the feed before any client
    /// came.
    pub listening_bytes: u64,
    pub empty_bytes: u64,
    /// Resident bytes that all clients together added.
    pub resident_bytes: u64,
    /// Kernel bytes added per socket. A connection has one at the client and one at the server.
    pub socket_bytes: f64,
    /// CPU time and duration of connecting all clients.
    pub connect_ns: u64,
    pub connect_seconds: f64,
}

/// The result of an order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Took {
    pub ns: u64,
    pub user: u64,
    pub system: u64,
    pub seconds: f64,
    /// Number of notifications received.
    pub notified: u64,
    /// Number of reads that returned data.
    pub reads: u64,
    /// Number of writes of the server, if they could be counted.
    pub writes: Option<u64>,
    /// Time from the write to the feed to the first and last notification of each round, in
    /// milliseconds.
    pub first_ms: Vec<f64>,
    pub last_ms: Vec<f64>,
    /// Latency of each notification, in nanoseconds.
    pub latencies: Vec<u64>,
}

/// A server, its clients, and the source of its changes.
pub struct Side {
    pub server: Server,
    pub setup: Setup,
    pub fleet: Fleet,
    pub couchdb: CouchDb,
    /// The connection that carries lines to the yardstick in place of a feed.
    pub wire: Option<TcpStream>,
    pub lines: Lines,
    /// The revisions of the shared database and of each client's database.
    pub shared: u32,
    pub own: Vec<u32>,
}

/// Carries out orders until the standard input ends.
pub fn run(setup: Setup) {
    let (mut side, started) = Side::start(setup);
    answer(&started);
    let (sender, orders) = mpsc::channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let order: Order = serde_json::from_str(&line).expect("the parent wrote the order");
            if sender.send(order).is_err() {
                return;
            }
        }
    });
    loop {
        match orders.try_recv() {
            Ok(order) => {
                side.fleet.ping();
                side.fleet.run_for(Duration::from_millis(50));
                let took = side.carry_out(&order);
                answer(&took);
            }
            // Clients answer pings meanwhile.
            Err(TryRecvError::Empty) => side.fleet.run_for(Duration::from_millis(20)),
            Err(TryRecvError::Disconnected) => return,
        }
    }
}

fn answer(value: &impl Serialize) {
    let line = serde_json::to_string(value).expect("the value is plain data");
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("the parent reads");
}

impl Side {
    fn start(setup: Setup) -> (Self, Started) {
        let couchdb = CouchDb::start();
        let server = Server::start(&setup.target, &couchdb, setup.tls, &setup.options);
        let listening = process::resident(server.id());
        let mut wire = None;
        if setup.target == Target::Yardstick {
            let mut stream = TcpStream::connect(server.address).expect("the yardstick listens");
            stream.set_nodelay(true).and_then(|()| stream.write_all(b"feed\n")).expect("the yardstick reads");
            wire = Some(stream);
        } else {
            couchdb.wait_for_feed();
        }
        let window = if setup.target == Target::Node { 300 } else { 500 };
        let plan = Plan {
            address: server.address,
            speech: setup.speech,
            subscribed: setup.subscribed,
            tls: server.tls.clone(),
            window,
        };
        let mut fleet = Fleet::new(plan);
        fleet.run_for(A_MOMENT);
        let (memory, usage) = (process::resident(server.id()), Usage::at_rest(server.id()));
        let kernel = Kernel::now();
        let began = Instant::now();
        fleet.connect(setup.clients);
        let connect_seconds = began.elapsed().as_secs_f64();
        fleet.run_for(A_MOMENT);
        let (after, used) = (process::resident(server.id()), Usage::at_rest(server.id()).since(usage));
        let started = Started {
            listened_after_ms: server.listened_after.as_secs_f64() * 1e3,
            listening_bytes: listening,
            empty_bytes: memory,
            resident_bytes: after.saturating_sub(memory),
            socket_bytes: Kernel::now().of_a_socket_since(kernel),
            connect_ns: used.ns,
            connect_seconds,
        };
        let own = vec![1; setup.clients];
        (Self { server, setup, fleet, couchdb, wire, lines: Lines::default(), shared: 1, own }, started)
    }

    fn carry_out(&mut self, order: &Order) -> Took {
        self.fleet.tally.notified = 0;
        self.fleet.tally.reads = 0;
        // Pings come at any time, so the server never idles for long.
        if let Order::Rest { pings } = *order {
            return self.rest(pings);
        }
        let before = Usage::at_rest(self.server.id());
        let began = Instant::now();
        let mut took = match *order {
            Order::FanOut { rounds } => self.fan_out(rounds),
            Order::Pace { changes, per_second } => self.pace(changes, per_second),
            Order::Attack { attack, changes, per_second } => self.attack(attack, changes, per_second),
            Order::Burst { changes } => self.burst(changes),
            Order::Many { databases } => self.many(databases),
            Order::Rest { .. } => unreachable!("handled above"),
            Order::Feed { lines } => self.feed(lines),
        };
        if took.seconds == 0.0 {
            took.seconds = began.elapsed().as_secs_f64();
        }
        let used = Usage::at_rest(self.server.id()).since(before);
        (took.ns, took.user, took.system) = (used.ns, used.user, used.system);
        // Count surplus notifications, too. The caller knows the right number.
        self.fleet.run_for(Duration::from_millis(50));
        (took.notified, took.reads) = (self.fleet.tally.notified, self.fleet.tally.reads);
        took
    }
}

/// Sending changes to the server.
impl Side {
    /// Returns a line for each item: the number of a client for its own database, `None` for the
    /// shared one.
    pub fn write_lines(&mut self, changed: impl Iterator<Item = Option<usize>>) -> Vec<u8> {
        let mut text = String::new();
        for who in changed {
            let (name, revision) = match who {
                Some(number) => (lines::own(number), &mut self.own[number]),
                None => (lines::SHARED.to_owned(), &mut self.shared),
            };
            *revision += 1;
            if self.wire.is_some() {
                let to = who.map_or("*".to_owned(), |number| number.to_string());
                let event = "{\"event\":\"change\",\"db\":";
                let _ = writeln!(text, "{to} {event}\"{name}\",\"kind\":\"updated\",\"position\":\"{revision}.0.0\"}}");
            } else {
                self.lines.write(&mut text, &name, *revision);
            }
        }
        if self.wire.is_some() { text.into() } else { lines::chunked(&text) }
    }

    /// Sends bytes to the server. Returns once the kernel has taken all of them.
    pub fn push(couchdb: &CouchDb, wire: &mut Option<TcpStream>, bytes: &[u8]) {
        match wire {
            Some(wire) => wire.write_all(bytes).expect("the yardstick reads"),
            None => couchdb.push(bytes),
        }
    }
}
