//! The parts of the benchmark: the setup for each figure, and its calculation from the
//! measurements.

use super::attacks::Attack;
use super::dialogue::{Speech, Subscribed};
use super::options::Options;
use super::process::Usage;
use super::remote::Remote;
use super::report::Goal::{self, AtLeast, AtMost};
use super::report::{Report, median, quantile};
use super::server::Target;
use super::side::{Order, Setup, Took};

/// The amount of work of each part.
struct Sizes {
    /// Number of measurements of each compared figure.
    turns: usize,
    /// Approximate number of notifications in each turn.
    notifications: usize,
    paced_changes: usize,
    per_second: usize,
    feed_lines: usize,
    tls_clients: usize,
    databases_of_one: usize,
    starts: usize,
    attacked_clients: usize,
    attacked_changes: usize,
}

const FULL: Sizes = Sizes {
    turns: 7,
    notifications: 60_000,
    paced_changes: 1_500,
    per_second: 1_000,
    feed_lines: 2_000_000,
    tls_clients: 2_000,
    databases_of_one: 1_000,
    starts: 15,
    attacked_clients: 200,
    attacked_changes: 1_000,
};

const QUICK: Sizes = Sizes {
    turns: 2,
    notifications: 200,
    paced_changes: 50,
    per_second: 200,
    feed_lines: 20_000,
    tls_clients: 20,
    databases_of_one: 200,
    starts: 3,
    attacked_clients: 50,
    attacked_changes: 50,
};

/// Changes per second during an attack. Each client has at most one every half second.
const ATTACKED_PER_SECOND: usize = 100;

/// Figures that every run reports for each number of clients.
const FOR_EACH: [&str; 19] = [
    NOTIFY,
    "… ÷ a bare write loop's",
    "… in user mode",
    "… in the kernel",
    "… of a bare write loop",
    "first client notified after",
    "last client notified after",
    "latency, median",
    "latency, 99 %",
    "latency, 99.9 %",
    "latency of a bare loop, 99 %",
    BURST,
    "memory, howler.v1, one database each",
    "memory, howler.v1, one for all",
    KERNEL,
    "memory, Socket.IO",
    "memory, Socket.IO polling",
    STORM,
    "logins",
];

/// Figures that every run reports once.
const ONCE: [&str; 7] = [
    "memory, TLS",
    "unsubscribed line",
    "unsubscribed lines",
    "reads, 1,000 databases of one client",
    "start to listening",
    "memory at the start",
    "binary",
];

const KERNEL: &str = "memory of the kernel for a socket";
const NOTIFY: &str = "notification";
const BURST: &str = "change in a burst";
const STORM: &str = "connect, log in, subscribe";

struct Bench<'a> {
    options: &'a Options,
    sizes: &'static Sizes,
    report: Report,
}

/// Runs the requested parts.
pub fn run(options: &Options) -> Report {
    let sizes = if options.quick { &QUICK } else { &FULL };
    let mut bench = Bench { options, sizes, report: Report::default() };
    for &clients in &options.clients {
        eprintln!("{clients} clients");
        bench.with_clients(clients);
    }
    eprintln!("once");
    bench.once();
    bench.report
}

/// Panics if a figure is missing.
pub fn assert_complete(report: &Report, options: &Options) {
    let count = |name: &str| report.names().find(|(of, _)| *of == name).map_or(0, |(_, count)| count);
    for name in FOR_EACH {
        assert_eq!(count(name), options.clients.len(), "{name}");
    }
    for name in ONCE {
        assert_eq!(count(name), 1, "{name}");
    }
    for name in Attack::ALL.into_iter().flat_map(Attack::rows) {
        assert_eq!(count(name), 1, "{name}");
    }
}

impl Bench<'_> {
    fn wants(&self, parts: &[&str]) -> bool {
        parts.iter().any(|part| self.options.wants(part))
    }

    fn start(&self, speech: Speech, subscribed: Subscribed, clients: usize, tls: bool) -> Remote {
        let target =
            if speech == Speech::Bare { Target::Yardstick } else { Target::Howler(self.options.binary.clone()) };
        Remote::start(&Setup { target, speech, subscribed, clients, tls, options: Vec::new() })
    }

    fn with_clients(&mut self, clients: usize) {
        let compares = self.wants(&["notify", "latency", "burst"]);
        let mut yardstick = compares.then(|| self.start(Speech::Bare, Subscribed::Own, clients, false));
        if self.wants(&["notify", "memory"]) {
            let mut shared = self.start(Speech::Json, Subscribed::Shared, clients, false);
            if let Some(yardstick) = yardstick.as_mut().filter(|_| self.options.wants("notify")) {
                self.notify(clients, &mut shared, yardstick);
            }
            if self.options.wants("memory") {
                self.memory("memory, howler.v1, one for all", AtMost(600.0), clients, &shared);
                self.report.add(KERNEL, "bytes", Goal::None, clients, shared.started.socket_bytes);
            }
        }
        if self.wants(&["latency", "burst", "memory", "storm"]) {
            let mut own = self.start(Speech::Json, Subscribed::Own, clients, false);
            if self.options.wants("storm") {
                let per_client = own.started.connect_ns as f64 / clients as f64 / 1e3;
                self.report.add(STORM, "µs CPU", AtMost(80.0), clients, per_client);
                self.report.add(
                    "logins",
                    "/s",
                    AtLeast(8_000.0),
                    clients,
                    clients as f64 / own.started.connect_seconds,
                );
            }
            if self.options.wants("memory") {
                self.memory("memory, howler.v1, one database each", AtMost(600.0), clients, &own);
            }
            if let Some(yardstick) = yardstick.as_mut().filter(|_| self.options.wants("latency")) {
                self.latency(clients, &mut own, yardstick);
            }
            if let Some(yardstick) = yardstick.as_mut().filter(|_| self.options.wants("burst")) {
                self.burst(clients, &mut own, yardstick);
            }
        }
        drop(yardstick);
        if self.options.node {
            self.beside_node(clients);
        }
        if self.options.wants("memory") {
            let socket_io = self.start(Speech::SocketIo4, Subscribed::Own, clients, false);
            self.memory("memory, Socket.IO", AtMost(600.0), clients, &socket_io);
            drop(socket_io);
            let polling = self.start(Speech::Polling, Subscribed::Own, clients, false);
            self.memory("memory, Socket.IO polling", Goal::None, clients, &polling);
        }
    }

    /// Measures the same clients with this server and with the obvious one.
    fn beside_node(&mut self, clients: usize) {
        let setup = Setup {
            target: Target::Howler(self.options.binary.clone()),
            speech: Speech::SocketIo3,
            subscribed: Subscribed::Shared,
            clients,
            tls: false,
            options: Vec::new(),
        };
        let mut ours = Remote::start(&setup);
        let mut theirs = Remote::start(&Setup { target: Target::Node, ..setup });
        self.memory("Socket.IO beside Node.js: memory", Goal::None, clients, &ours);
        self.memory("… Node.js: memory", Goal::None, clients, &theirs);
        let connect = [&ours, &theirs].map(|side| side.started.connect_ns as f64 / clients as f64 / 1e3);
        self.report.add(
            "Socket.IO beside Node.js: connect, log in, subscribe",
            "µs CPU",
            Goal::None,
            clients,
            connect[0],
        );
        self.report.add("… Node.js: connect, log in, subscribe", "µs CPU", Goal::None, clients, connect[1]);
        let rounds = (self.sizes.notifications / clients).max(2) as u64;
        let notifications = rounds * clients as u64;
        let (mut costs, mut last) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for _ in 0..self.sizes.turns {
            for (place, side) in [&mut ours, &mut theirs].into_iter().enumerate() {
                let took = side.order(&Order::FanOut { rounds });
                assert_eq!(took.notified, notifications, "each client is notified once of each change");
                costs[place].push(took.ns as f64 / notifications as f64 / 1e3);
                last[place].extend(took.last_ms);
            }
        }
        let [ours, theirs] = costs.map(median);
        self.report.add("Socket.IO beside Node.js: notification", "µs CPU", Goal::None, clients, ours);
        self.report.add("… Node.js: notification", "µs CPU", Goal::None, clients, theirs);
        let [ours, theirs] = last.map(median);
        self.report.add("Socket.IO beside Node.js: last client notified after", "ms", Goal::None, clients, ours);
        self.report.add("… Node.js: last client notified after", "ms", Goal::None, clients, theirs);
    }

    fn memory(&mut self, name: &'static str, goal: Goal, clients: usize, side: &Remote) {
        self.report.add(name, "bytes", goal, clients, side.started.resident_bytes as f64 / clients as f64);
    }

    /// Measures one change that all clients are notified of.
    fn notify(&mut self, clients: usize, server: &mut Remote, yardstick: &mut Remote) {
        let rounds = (self.sizes.notifications / clients).max(2) as u64;
        let notifications = rounds * clients as u64;
        let (mut costs, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut first, mut last, mut bare_last, mut sum) = (Vec::new(), Vec::new(), Vec::new(), Usage::default());
        for _ in 0..self.sizes.turns {
            let pair = [&mut *server, &mut *yardstick].map(|side| {
                let took = side.order(&Order::FanOut { rounds });
                assert_eq!(took.notified, notifications, "each client is notified once of each change");
                took
            });
            let [ours, theirs] = pair;
            let cost = |took: &Took| took.ns as f64 / notifications as f64 / 1e3;
            costs.push(cost(&ours));
            bare.push(cost(&theirs));
            ratios.push(ours.ns as f64 / theirs.ns as f64);
            sum += Usage { ns: ours.ns, user: ours.user, system: ours.system };
            first.extend(ours.first_ms);
            last.extend(ours.last_ms);
            bare_last.extend(theirs.last_ms);
        }
        let cost = median(costs);
        let in_user_mode = cost * sum.user as f64 / (sum.user + sum.system).max(1) as f64;
        self.report.add(NOTIFY, "µs CPU", Goal::None, clients, cost);
        self.report.add("… of a bare write loop", "µs CPU", Goal::None, clients, median(bare));
        self.report.add("… ÷ a bare write loop's", "", AtMost(1.05), clients, median(ratios));
        self.report.add("… in user mode", "µs CPU", Goal::None, clients, in_user_mode);
        self.report.add("… in the kernel", "µs CPU", Goal::None, clients, cost - in_user_mode);
        self.report.add("first client notified after", "ms", Goal::None, clients, median(first));
        self.report.add("last client notified after", "ms", Goal::None, clients, median(last));
        self.report.add("last client notified after, bare write loop", "ms", Goal::None, clients, median(bare_last));
    }

    /// Measures single changes, each for one client.
    fn latency(&mut self, clients: usize, server: &mut Remote, yardstick: &mut Remote) {
        let order = Order::Pace { changes: self.sizes.paced_changes, per_second: self.sizes.per_second };
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..self.sizes.turns.div_ceil(2) {
            for (side, all) in [(&mut *server, &mut ours), (&mut *yardstick, &mut bare)] {
                let took = side.order(&order);
                assert_eq!(took.notified, self.sizes.paced_changes as u64, "each client is notified of its changes");
                all.extend(took.latencies.iter().map(|ns| *ns as f64 / 1e6));
            }
        }
        let of = |all: &[f64], share| quantile(all.iter().copied(), share);
        self.report.add("latency, median", "ms", Goal::None, clients, of(&ours, 0.5));
        self.report.add("latency, 99 %", "ms", AtMost(0.2), clients, of(&ours, 0.99));
        self.report.add("latency, 99.9 %", "ms", Goal::None, clients, of(&ours, 0.999));
        self.report.add("latency of a bare loop, median", "ms", Goal::None, clients, of(&bare, 0.5));
        self.report.add("latency of a bare loop, 99 %", "ms", Goal::None, clients, of(&bare, 0.99));
        self.report.add("latency of a bare loop, 99.9 %", "ms", Goal::None, clients, of(&bare, 0.999));
    }

    /// Measures a burst of four changes for every three clients.
    fn burst(&mut self, clients: usize, server: &mut Remote, yardstick: &mut Remote) {
        let changes = clients * 4 / 3;
        let (mut costs, mut bare, mut seconds, mut notified) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.sizes.turns {
            let [ours, theirs] = [&mut *server, &mut *yardstick].map(|side| side.order(&Order::Burst { changes }));
            notified.push(ours.notified as f64 / changes as f64);
            let once_or_more = clients as u64..=changes as u64;
            assert!(
                once_or_more.contains(&ours.notified),
                "{} notifications of {changes} changes; each client gets the last one",
                ours.notified
            );
            assert_eq!(theirs.notified, changes as u64, "the yardstick does not coalesce");
            costs.push(ours.ns as f64 / changes as f64 / 1e3);
            bare.push(theirs.ns as f64 / changes as f64 / 1e3);
            seconds.push(ours.seconds * 1e3);
        }
        self.report.add(BURST, "µs CPU", AtMost(5.0), clients, median(costs));
        self.report.add("… notifications per change", "", Goal::None, clients, median(notified));
        self.report.add("… of a bare write loop, in a burst", "µs CPU", Goal::None, clients, median(bare));
        self.report.add("a burst, all clients notified after", "ms", Goal::None, clients, median(seconds));
    }
}

/// Parts that do not depend on the number of clients.
impl Bench<'_> {
    fn once(&mut self) {
        if self.options.wants("tls") {
            let clients = self.sizes.tls_clients;
            let side = self.start(Speech::Json, Subscribed::Own, clients, true);
            let bytes = side.started.resident_bytes as f64 / clients as f64;
            self.report.add_once("memory, TLS", "bytes", AtMost(12.0 * 1024.0), bytes);
            let per_client = side.started.connect_ns as f64 / clients as f64 / 1e3;
            self.report.add_once("connect, log in, subscribe, TLS", "µs CPU", Goal::None, per_client);
        }
        // Pings come every 25 s, too long for a quick run.
        if self.options.wants("idle") && !self.options.quick {
            self.idle();
        }
        if self.options.wants("feed") {
            self.feed();
        }
        if self.options.wants("many") {
            self.many();
        }
        if self.options.wants("start") {
            self.starts();
        }
        if self.options.wants("attack") {
            self.attacks();
        }
    }

    /// Measures the latency of other clients' notifications during each attack.
    fn attacks(&mut self) {
        let (clients, changes) = (self.sizes.attacked_clients, self.sizes.attacked_changes);
        for attack in Attack::ALL {
            let setup = Setup {
                target: Target::Howler(self.options.binary.clone()),
                speech: Speech::Json,
                subscribed: Subscribed::Own,
                clients,
                tls: false,
                options: attack.options(),
            };
            let took = Remote::start(&setup).order(&Order::Attack { attack, changes, per_second: ATTACKED_PER_SECOND });
            assert_eq!(took.notified, changes as u64, "each client is notified of its changes");
            let latencies = took.latencies.iter().map(|ns| *ns as f64 / 1e6);
            let [most, longest] = attack.rows();
            self.report.add_once(most, "ms", AtMost(5.0), quantile(latencies.clone(), 0.99));
            self.report.add_once(longest, "ms", AtMost(20.0), quantile(latencies, 1.0));
        }
    }

    fn idle(&mut self) {
        let clients = self.options.clients.iter().copied().max().expect("there is at least one number of clients");
        let mut side = self.start(Speech::Json, Subscribed::Own, clients, false);
        let ns = side.order(&Order::Rest { pings: 1 }).ns as f64;
        self.report.add(
            "ping of an idle client and its reply",
            "µs CPU",
            Goal::None,
            clients,
            ns / clients as f64 / 1e3,
        );
    }

    fn feed(&mut self) {
        let lines = self.sizes.feed_lines;
        let mut side = self.start(Speech::Json, Subscribed::Own, 1, false);
        let mut took = Vec::new();
        for _ in 0..self.sizes.turns.min(5) {
            took.push(side.order(&Order::Feed { lines }));
            assert_eq!(
                took.last().expect("an item was pushed").notified,
                1,
                "the client is notified of the change after all lines"
            );
        }
        let ns = median(took.iter().map(|took| took.ns as f64 / lines as f64));
        let share = |took: &Took| took.user as f64 / (took.user + took.system).max(1) as f64;
        let in_user_mode = ns * median(took.iter().map(share));
        let per_second = median(took.iter().map(|took| lines as f64 / took.seconds));
        self.report.add_once("unsubscribed line", "ns CPU", AtMost(200.0), ns);
        self.report.add_once("unsubscribed line, in user mode", "ns CPU", Goal::None, in_user_mode);
        self.report.add_once("unsubscribed lines", "/s", AtLeast(4e6), per_second);
    }

    fn many(&mut self) {
        let databases = self.sizes.databases_of_one;
        let mut side = self.start(Speech::Json, Subscribed::Many(databases), 1, false);
        // Retry if strace attached too late.
        let mut took = Took::default();
        for _ in 0..3 {
            took = side.order(&Order::Many { databases });
            assert_eq!(took.notified, databases as u64, "the client is notified once of each database");
            if took.writes.is_some() {
                break;
            }
        }
        if let Some(writes) = took.writes {
            self.report.add_once("writes, 1,000 databases of one client", "", AtMost(20.0), writes as f64);
        } else {
            eprintln!("  cannot count the writes of the server: is strace installed and permitted?");
        }
        self.report.add_once("reads, 1,000 databases of one client", "", Goal::None, took.reads as f64);
    }

    fn starts(&mut self) {
        let (mut milliseconds, mut bytes) = (Vec::new(), Vec::new());
        for _ in 0..self.sizes.starts {
            let side = self.start(Speech::Json, Subscribed::Own, 0, false);
            milliseconds.push(side.started.listened_after_ms);
            bytes.push(side.started.listening_bytes as f64);
        }
        self.report.add_once("start to listening", "ms", AtMost(5.0), median(milliseconds));
        self.report.add_once("memory at the start", "bytes", AtMost(3e6), median(bytes));
        let size = std::fs::metadata(&self.options.binary).expect("the binary exists").len();
        self.report.add_once("binary", "bytes", AtMost(3e6), size as f64);
    }
}
