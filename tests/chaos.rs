//! Many clients, two servers, and a CouchDB with random faults: no change is lost.
//!
//! The truth is the number of writes of each database. A client that is notified of a database
//! reads that number, as a replication would. Faults come in rounds of some seconds. After each
//! round every client must know the true number of each of its databases, so it was notified of
//! every database whose last change it had not read. The writer moves through the databases, so the
//! last changes of the databases are spread over the round.
//!
//! One test runs against a single node, one against a cluster of three. The servers reach CouchDB
//! through a proxy that waits while CouchDB is away, so a restart shows only as the end of a
//! connection.
//!
//! Environment variables set the run:
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `HOWLER_CHAOS_SEED` | the clock | schedule of faults, printed by the test. Threads and sockets keep their own time, so a seed repeats the schedule and not the run |
//! | `HOWLER_CHAOS_SECONDS` | 40 | minimum time with faults |
//! | `HOWLER_CHAOS_CHANGES` | 120000 | minimum number of writes, spread over the time |
//!
//! ```sh
//! HOWLER_CHAOS_CHANGES=1000000 HOWLER_CHAOS_SECONDS=110 cargo test --test tests chaos:: -- --nocapture
//! ```
//!
//! # Events that CouchDB loses
//!
//! Events of the last tick before CouchDB stops are in no feed and in no position. A server detects
//! the loss because CouchDB reports its uptime, and positions carry the start. So events may be
//! lost and servers killed at any time and in any order, while clients come and go.
//!
//! # Useless notifications
//!
//! A notification is useless if the client has already read the database at its present number of
//! writes. Events count, and so do names in `changed` of a response. These do not count: a resync,
//! the first response to a client without positions, and `changed` after a restart that lost events
//! since the client's last response, which is the resync of a client that was away.
//!
//! The test prints the share of useless notifications in what was written (each write once for each
//! client of the database) and in the useful notifications. It fails if the first share exceeds its
//! target. Some useless notifications are unavoidable: a client reads what was written within the
//! current tick, and is notified of it at the end of the tick. On a cluster every node writes its
//! own event. A client that moves between a server that knows the start of CouchDB and one that
//! does not is notified of all its databases.
//!
//! # Differences from a real CouchDB
//!
//! Names are locked for two seconds instead of five minutes, so that clients return within the
//! round. A server sends rejected credentials at most four times in 300 s. After a lockout of their
//! own user the servers are restarted, as an operator would do: a second lockout would stop the
//! feed for minutes.
//!
//! Names and certificates have tests of their own, see `names.rs` and `certificates.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use couchdb_howler::state::jitter::Jitter;
use serde_json::json;

use crate::support::couchdb::{Chunking, FeedFault, Options, SinceRefusal, StandIn};
use crate::support::device::{Device, Gone, Notice};
use crate::support::howler::{BINARY, Howler, lasting_port};
use crate::support::http::Http;
use crate::support::proxy::Proxy;
use crate::support::{ADMIN, SOON, USER, couchdb_with};

const CLIENTS: usize = 200;
const DATABASES: usize = 500;
const SERVERS: usize = 2;
/// Longest time from the end of the faults to the last notification. Generous: machines are shared.
const NOTIFIED_WITHIN: Duration = Duration::from_secs(40);
/// Duration of a round of faults.
const ROUND: Duration = Duration::from_secs(6);
/// Time between two writes.
const BEAT: Duration = Duration::from_millis(20);
/// Number of neighboring databases that are written to at a time.
const HOT: usize = 60;
/// Time between two ticks of CouchDB. A restart loses the events of the last tick.
const TICK: Duration = Duration::from_millis(100);
/// Time after which all notifications of a write have arrived: ticks, echoes and the merge window.
const QUIET_AFTER: Duration = Duration::from_millis(2_500);
const OPTIONS: [&str; 2] = ["--feed_heartbeat", "300"];
/// Duration of a lockout.
const LOCKOUT: Duration = Duration::from_secs(2);
/// Lifetimes of cookies: CouchDB's default, and a short one.
const COOKIE_LIFE: [Duration; 2] = [Duration::from_secs(600), Duration::from_secs(2)];
/// Time from the opening of the feed after which an uptime shows a restart, in milliseconds.
const SHOWN_BY_UPTIME: u64 = 3_500;
/// Duration of silence, in milliseconds: longer than the three heartbeats that a feed may miss.
const SILENCE: u64 = 1_500;

/// The schedule of a run.
struct Plan {
    seed: u64,
    during: Duration,
    changes: u64,
    /// Number of nodes of CouchDB.
    nodes: usize,
    faults: Vec<Fault>,
    /// Whether a client drops a notification after the faults, which must fail the check.
    drops_one: bool,
    notified_within: Duration,
}

impl Plan {
    /// Returns the names of the faults.
    fn kinds(&self) -> BTreeSet<String> {
        self.faults.iter().map(|fault| format!("{fault:?}")).collect()
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Half of the clients lose their connections at once.
    ClientsReset,
    /// The feeds of both servers break in this way.
    Feed(FeedFault),
    /// The feed breaks, and CouchDB rejects some attempts to open it.
    FeedRefused,
    /// CouchDB rejects requests to resume feeds for a while.
    SinceRefused(SinceRefusal),
    /// Feeds end cleanly after each batch for a while, as on a node in maintenance mode.
    Maintenance,
    /// The connections to CouchDB die silently, at CouchDB.
    SilentConnections,
    /// The connections to CouchDB die silently, at the proxy.
    SilentProxy,
    /// The proxy closes all connections.
    ProxyCut,
    /// The feed is cut into other chunks for a while.
    Chunks(Chunking),
    /// CouchDB rejects lookups for a while, or answers them late.
    NoLookups,
    /// CouchDB does not report its uptime for a while.
    NoUptime,
    /// A server starts while CouchDB does not report its uptime. CouchDB may restart meanwhile.
    StartUnknown,
    /// Cookies expire after two seconds for a while. CouchDB may be away meanwhile.
    ShortCookies,
    /// CouchDB locks the user of the clients.
    ClientsLocked,
    /// CouchDB locks the user of the servers.
    ServersLocked,
    /// CouchDB is away for a while and loses no events.
    Away,
    /// CouchDB restarts and loses the events of what was written just before.
    AwayWithLoss,
    /// CouchDB restarts during writes and loses events.
    RestartAtAnyTime,
    /// One node of the cluster restarts.
    RestartNode,
    /// One node of the cluster is down for a while.
    NodeDown,
    /// A server is killed and started again.
    Kill,
    /// A server is killed and started again while CouchDB is away.
    KillWhileAway,
    /// A server is killed, CouchDB restarts and loses events, and the server starts again.
    KillWithLoss,
    /// All servers are killed, CouchDB restarts and loses events, and the servers start again.
    KillAllWithLoss,
}

/// Faults of single nodes and clusters. Each happens before one happens again.
const EVERYTHING: &[Fault] = &[
    Fault::ClientsReset,
    Fault::Feed(FeedFault::Reset),
    Fault::Feed(FeedFault::Cut),
    Fault::Feed(FeedFault::CutMidChunk),
    Fault::Feed(FeedFault::CleanEnd),
    Fault::Feed(FeedFault::Garbage),
    Fault::Feed(FeedFault::BadChunkSize),
    Fault::Feed(FeedFault::Silence),
    Fault::Feed(FeedFault::BrokenJson),
    Fault::Feed(FeedFault::HugeLine(100_000)),
    Fault::FeedRefused,
    Fault::SinceRefused(SinceRefusal::Status(410)),
    Fault::SinceRefused(SinceRefusal::Status(413)),
    Fault::SinceRefused(SinceRefusal::Status(414)),
    Fault::SinceRefused(SinceRefusal::Status(422)),
    Fault::SinceRefused(SinceRefusal::Status(431)),
    Fault::SinceRefused(SinceRefusal::Status(500)),
    Fault::SinceRefused(SinceRefusal::Status(302)),
    Fault::SinceRefused(SinceRefusal::Close),
    Fault::Maintenance,
    Fault::SilentConnections,
    Fault::SilentProxy,
    Fault::ProxyCut,
    Fault::Chunks(Chunking::SplitEvery(100)),
    Fault::Chunks(Chunking::Merge),
    Fault::NoLookups,
    Fault::NoUptime,
    Fault::StartUnknown,
    Fault::ShortCookies,
    Fault::ClientsLocked,
    Fault::ServersLocked,
    Fault::Away,
    Fault::AwayWithLoss,
    Fault::RestartAtAnyTime,
    Fault::Kill,
    Fault::KillWhileAway,
    Fault::KillWithLoss,
    Fault::KillAllWithLoss,
];

/// Additional faults of clusters.
const CLUSTER: &[Fault] = &[Fault::RestartNode, Fault::RestartNode, Fault::NodeDown];

/// Faults that cause no resync, which would hide a lost notification.
const QUIET: &[Fault] =
    &[Fault::ClientsReset, Fault::Feed(FeedFault::Cut), Fault::Feed(FeedFault::CleanEnd), Fault::Kill];

/// State that all threads share.
struct World {
    couchdb: StandIn,
    /// Proxy between the servers and CouchDB.
    proxy: Proxy,
    nodes: usize,
    /// Number of restarts of CouchDB that lost events.
    losses: AtomicUsize,
    names: Vec<String>,
    /// Number of writes of each database: the truth.
    writes: Vec<AtomicU64>,
    written: AtomicU64,
    /// Whether CouchDB is away and takes no writes. Locked during a write.
    away: Mutex<bool>,
    ports: [u16; SERVERS],
    /// Whether clients stay connected and nothing is written.
    calm: AtomicBool,
    over: AtomicBool,
    /// Whether the first client drops its next notification.
    drops: AtomicBool,
    /// Whether the first client waits for that notification.
    about_to_drop: AtomicBool,
    /// Number of faults that reset half of the clients.
    resets: AtomicUsize,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    rounds: AtomicU64,
    connections: AtomicU64,
    refusals: AtomicU64,
    /// Number of names in `changed` of responses.
    compared: AtomicU64,
    /// Number of these after a restart that lost events.
    compared_after_loss: AtomicU64,
    changes: AtomicU64,
    useless_compared: AtomicU64,
    useless_changes: AtomicU64,
    resyncs: AtomicU64,
}

/// State of a client that the check reads.
struct View {
    /// Number of writes of each database when the client read it last.
    synced: BTreeMap<usize, AtomicU64>,
    /// Database of the notification that the client dropped.
    dropped: Mutex<Option<String>>,
}

/// A lost change: client, database, number of writes when the client read it last, and now.
#[derive(Debug, PartialEq, Eq)]
struct Missed(usize, String, u64, u64);

/// Result of a run.
struct Report {
    missed: Vec<Missed>,
    dropped: Option<String>,
    happened: BTreeMap<String, usize>,
    /// Useless notifications in percent of the writes for clients.
    useless_percent: f64,
}

fn run(plan: &Plan) -> Report {
    let Plan { seed, nodes, changes, .. } = plan;
    println!("chaos: seed {seed}, nodes {nodes}, {} s, {changes} changes", plan.during.as_secs());
    let began = Instant::now();
    let mut jitter = Jitter::new(plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let world = Arc::new(World::new(plan.nodes));
    let mut servers: Vec<Option<Howler>> = (0..SERVERS).map(|number| Some(world.start_server(number))).collect();
    let views: Vec<_> = (0..CLIENTS).map(|number| Arc::new(View::new(number, &mut jitter))).collect();
    let mut threads: Vec<_> = views
        .iter()
        .enumerate()
        .map(|(number, view)| start_client(number, view, &world, jitter.below(u64::MAX)))
        .collect();
    threads.push(start_writer(plan, &world, jitter.below(u64::MAX)));
    let mut happened = BTreeMap::new();
    let (mut bag, mut missed) = (Vec::new(), Vec::new());
    // Each fault happens at least once.
    let kinds = plan.kinds();
    while missed.is_empty()
        && (began.elapsed() < plan.during || world.written.load(SeqCst) < plan.changes || happened.len() < kinds.len())
    {
        world.calm.store(false, SeqCst);
        let round = Instant::now();
        while round.elapsed() < ROUND.min(plan.during) {
            if bag.is_empty() {
                bag.clone_from(&plan.faults);
            }
            let which = usize::try_from(jitter.below(bag.len() as u64)).expect("small");
            let fault = bag.swap_remove(which);
            *happened.entry(format!("{fault:?}")).or_default() += 1;
            world.pause(jitter.below(400));
            world.cause(fault, &mut servers, &mut jitter);
        }
        world.settle(&servers);
        missed = world.wait_until_notified(&views, plan.notified_within);
        world.counts.rounds.fetch_add(1, SeqCst);
    }
    let took = began.elapsed();
    world.pause(millis(QUIET_AFTER));
    let mut dropped = None;
    if plan.drops_one && missed.is_empty() {
        world.drops.store(true, SeqCst);
        let deadline = Instant::now() + SOON;
        while !world.about_to_drop.load(SeqCst) {
            assert!(Instant::now() < deadline, "the client is connected");
            world.pause(5);
        }
        world.write(&(0..DATABASES).collect::<Vec<_>>());
        missed = world.wait_until_notified(&views, plan.notified_within);
        dropped.clone_from(&views[0].dropped.lock().expect("no thread panics while it holds this"));
    }
    world.over.store(true, SeqCst);
    for thread in threads {
        thread.join().expect("the server keeps to the protocol");
    }
    let useless_percent = world.print_figures(plan, took, &views, &missed, &happened);
    Report { missed, dropped, happened, useless_percent }
}

impl World {
    fn new(nodes: usize) -> Self {
        let [cookie_life, _] = COOKIE_LIFE;
        let couchdb =
            couchdb_with(Options { nodes, tick: TICK, lockout: Some(LOCKOUT), cookie_life, ..Options::default() });
        let proxy = Proxy::retrying(couchdb.address());
        // Names with all characters that CouchDB allows.
        let names = (0..DATABASES).map(|number| format!("{}{number}", ["db-", "user/", "a+b$", "x()_"][number % 4]));
        Self {
            couchdb,
            proxy,
            nodes,
            losses: AtomicUsize::new(0),
            names: names.collect(),
            writes: (0..DATABASES).map(|_| AtomicU64::new(0)).collect(),
            written: AtomicU64::new(0),
            away: Mutex::new(false),
            ports: [lasting_port(), lasting_port()],
            calm: AtomicBool::new(false),
            over: AtomicBool::new(false),
            drops: AtomicBool::new(false),
            about_to_drop: AtomicBool::new(false),
            resets: AtomicUsize::new(0),
            counts: Counts::default(),
        }
    }

    /// Starts a server on its own port, and waits until it has opened its feed.
    fn start_server(&self, number: usize) -> Howler {
        // The number of open feeds may still include the feed of a server that was killed.
        let feeds = self.couchdb.counters().feed_requests;
        let url = self.proxy.url_of(&self.couchdb);
        let mut command = Command::new(BINARY);
        let howler = Howler::launch_command_on(self.ports[number], command.args(["--couchdb_url", &url]).args(OPTIONS));
        assert!(
            self.couchdb.wait_for(SOON, |seen| seen.feed_requests > feeds && seen.open_feeds > 0),
            "the server opens its feed"
        );
        howler
    }

    /// Writes to databases unless CouchDB is away.
    fn write(&self, databases: &[usize]) {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if *away {
            return;
        }
        // The write comes before its event.
        for database in databases {
            self.writes[*database].fetch_add(1, SeqCst);
        }
        let names: Vec<&str> = databases.iter().map(|database| &*self.names[*database]).collect();
        self.couchdb.update_many(&names);
        self.written.fetch_add(databases.len() as u64, SeqCst);
    }

    fn set_away(&self, away: bool) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = away;
        if away {
            self.couchdb.refuse();
        } else {
            self.couchdb.accept_again().expect("the port is the stand-in's");
        }
    }

    fn pause(&self, milliseconds: u64) {
        // Recorded requests are not needed here and would fill the memory.
        self.couchdb.forget_requests();
        thread::sleep(Duration::from_millis(milliseconds));
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each fault")]
    fn cause(&self, fault: Fault, servers: &mut [Option<Howler>], jitter: &mut Jitter) {
        let which = usize::try_from(jitter.below(SERVERS as u64)).expect("small");
        let a_while = jitter.below(1_200);
        match fault {
            Fault::ClientsReset => drop(self.resets.fetch_add(1, SeqCst)),
            Fault::Feed(fault) => {
                self.couchdb.break_feed(fault);
                if jitter.below(3) == 0 {
                    self.couchdb.break_next_feed(fault);
                }
            }
            Fault::FeedRefused => {
                self.couchdb.fail_feed(500, 3);
                self.couchdb.break_feed(FeedFault::Cut);
            }
            Fault::SinceRefused(refusal) => {
                self.couchdb.refuse_since(Some(refusal));
                self.couchdb.break_feed(FeedFault::Cut);
                self.pause(2 * a_while);
                self.couchdb.refuse_since(None);
            }
            Fault::Maintenance => {
                self.couchdb.set_maintenance(true);
                self.pause(a_while);
                self.couchdb.set_maintenance(false);
            }
            Fault::SilentConnections => {
                self.couchdb.silence_connections();
                self.pause(SILENCE);
            }
            Fault::SilentProxy => {
                self.proxy.silence();
                self.pause(SILENCE);
                self.proxy.end_silenced();
            }
            Fault::ProxyCut => self.proxy.cut(),
            Fault::Chunks(chunking) => {
                self.couchdb.set_chunking(chunking);
                self.pause(a_while);
                self.couchdb.set_chunking(Chunking::Normal);
            }
            Fault::NoLookups => {
                self.couchdb.fail_lookups(a_while.is_multiple_of(2).then_some(503));
                self.couchdb.set_lookup_delay(Duration::from_millis(a_while));
                self.resets.fetch_add(1, SeqCst);
                self.pause(2 * a_while);
                self.couchdb.fail_lookups(None);
                self.couchdb.set_lookup_delay(Duration::ZERO);
            }
            Fault::NoUptime => {
                self.couchdb.refuse_uptime(Some(403));
                self.couchdb.break_feed(FeedFault::CleanEnd);
                self.pause(a_while);
                self.couchdb.refuse_uptime(None);
            }
            Fault::StartUnknown => {
                servers[which] = None;
                self.couchdb.refuse_uptime(Some(403));
                servers[which] = Some(self.start_server(which));
                self.resets.fetch_add(1, SeqCst);
                self.pause(SHOWN_BY_UPTIME);
                if jitter.below(2) == 0 {
                    self.restart();
                    self.pause(a_while);
                }
                self.couchdb.refuse_uptime(None);
                self.couchdb.break_feed(FeedFault::CleanEnd);
            }
            Fault::ShortCookies => {
                let [long, short] = COOKIE_LIFE;
                self.couchdb.set_cookie_life(short);
                self.resets.fetch_add(1, SeqCst);
                self.pause(millis(short) + a_while);
                if jitter.below(2) == 0 {
                    self.set_away(true);
                    self.pause(millis(short) + 200);
                    self.set_away(false);
                }
                self.couchdb.set_cookie_life(long);
            }
            Fault::ClientsLocked => {
                self.lock_out(USER);
                self.resets.fetch_add(1, SeqCst);
                self.pause(a_while);
            }
            Fault::ServersLocked => {
                self.lock_out(ADMIN);
                self.couchdb.break_feed(FeedFault::Cut);
                self.pause(millis(LOCKOUT) + a_while);
                for (number, server) in servers.iter_mut().enumerate() {
                    *server = None;
                    *server = Some(self.start_server(number));
                }
            }
            Fault::Away => {
                self.set_away(true);
                self.pause(a_while);
                self.set_away(false);
            }
            Fault::AwayWithLoss => self.lose(a_while, jitter),
            Fault::RestartAtAnyTime => self.restart(),
            Fault::RestartNode => {
                let _away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
                let node = usize::try_from(jitter.below(self.nodes as u64)).expect("small");
                self.couchdb.restart_node(node).expect("the port is the stand-in's");
            }
            Fault::NodeDown => {
                let node = usize::try_from(jitter.below(self.nodes as u64)).expect("small");
                self.couchdb.set_node_up(node, false);
                self.couchdb.set_lines_of_writes(Some(2));
                self.proxy.cut();
                self.pause(a_while);
                self.couchdb.set_lines_of_writes(None);
                self.couchdb.set_node_up(node, true);
            }
            Fault::Kill => {
                servers[which] = None;
                self.pause(a_while);
                servers[which] = Some(self.start_server(which));
            }
            Fault::KillWhileAway => {
                self.set_away(true);
                servers[which] = None;
                self.pause(a_while);
                self.set_away(false);
                servers[which] = Some(self.start_server(which));
            }
            Fault::KillAllWithLoss => {
                servers.fill_with(|| None);
                self.lose(a_while, jitter);
                for (number, server) in servers.iter_mut().enumerate() {
                    *server = Some(self.start_server(number));
                }
            }
            Fault::KillWithLoss => {
                servers[which] = None;
                self.lose(a_while, jitter);
                servers[which] = Some(self.start_server(which));
            }
        }
    }

    /// Restarts CouchDB, which loses the events of the current tick.
    fn restart(&self) {
        let _away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        self.losses.fetch_add(1, SeqCst);
        self.couchdb.restart(true).expect("the port is the stand-in's");
    }

    /// Sends wrong passwords to CouchDB until it locks a user for all peers on this machine.
    fn lock_out(&self, name: &str) {
        let lockouts = self.couchdb.lockouts();
        let body = json!({"name": name, "password": "wrong"}).to_string();
        while self.couchdb.lockouts() == lockouts {
            let mut http = Http::connect(self.couchdb.address());
            http.ask("POST", "/_session", "Content-Type: application/json\r\n", body.as_bytes());
        }
    }

    /// Writes, and restarts CouchDB at once or after a while. The events of these writes are lost.
    fn lose(&self, a_while: u64, jitter: &mut Jitter) {
        self.couchdb.lose_next_events(true);
        self.write(&(0..DATABASES).filter(|_| jitter.below(2) == 0).collect::<Vec<_>>());
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        *away = true;
        self.losses.fetch_add(1, SeqCst);
        self.couchdb.lose_next_events(false);
        if jitter.below(2) == 0 {
            self.couchdb.refuse();
            self.pause(a_while);
        }
        self.couchdb.restart(true).expect("the port is the stand-in's");
        *away = false;
    }

    /// Ends the faults: all servers run, all clients return and stay, and nothing is written.
    fn settle(&self, servers: &[Option<Howler>]) {
        assert!(servers.iter().all(Option::is_some), "all servers run");
        self.calm.store(true, SeqCst);
        assert!(self.couchdb.wait_for_feeds(SERVERS, 3 * SOON), "both servers open their feeds");
    }

    /// Waits until every client has read the last writes. Returns those missing when the time is
    /// over.
    fn wait_until_notified(&self, views: &[Arc<View>], within: Duration) -> Vec<Missed> {
        self.wait_until_synced(views, &self.writes, within)
    }

    /// Waits until every client has read all of its databases at these numbers of writes, or later.
    fn wait_until_synced(&self, views: &[Arc<View>], truth: &[AtomicU64], within: Duration) -> Vec<Missed> {
        let deadline = Instant::now() + within;
        loop {
            let mut missed = Vec::new();
            for (client, view) in views.iter().enumerate() {
                for (database, synced) in &view.synced {
                    let (synced, truth) = (synced.load(SeqCst), truth[*database].load(SeqCst));
                    if synced < truth {
                        missed.push(Missed(client, self.names[*database].clone(), synced, truth));
                    }
                }
            }
            if missed.is_empty() || Instant::now() > deadline {
                return missed;
            }
            self.pause(20);
        }
    }

    /// Prints the figures. Returns the useless notifications in percent of the writes for clients.
    fn print_figures(
        &self,
        plan: &Plan,
        took: Duration,
        views: &[Arc<View>],
        missed: &[Missed],
        happened: &BTreeMap<String, usize>,
    ) -> f64 {
        let counts = &self.counts;
        let load = |counter: &AtomicU64| counter.load(SeqCst);
        let due: u64 = views.iter().flat_map(|view| view.synced.keys()).map(|number| load(&self.writes[*number])).sum();
        let useless = load(&counts.useless_changes) + load(&counts.useless_compared);
        let useful = load(&counts.changes) + load(&counts.compared) - useless;
        let percent = |of: u64| 100.0 * as_number(useless) / as_number(of.max(1));
        println!(
            "chaos: seed {}, nodes {}: {} changes of {DATABASES} databases in {} rounds and {:.0} s, {CLIENTS} clients \
             connected {} times ({} failed attempts); {} events, {} names in `changed` of replies ({} more after restarts \
             that lost events), {} resyncs; CouchDB restarted and lost events {} times; faults: {happened:?}",
            plan.seed,
            plan.nodes,
            load(&self.written),
            load(&counts.rounds),
            took.as_secs_f64(),
            load(&counts.connections),
            load(&counts.refusals),
            load(&counts.changes),
            load(&counts.compared),
            load(&counts.compared_after_loss),
            load(&counts.resyncs),
            self.losses.load(SeqCst),
        );
        println!(
            "chaos: seed {}, nodes {}: useless notifications: {useless} ({} events, {} in replies), {:.2} % of {due} \
             writes for clients, {:.2} % of {useful} useful notifications; losses: {}",
            plan.seed,
            plan.nodes,
            load(&counts.useless_changes),
            load(&counts.useless_compared),
            percent(due),
            percent(useful),
            missed.len(),
        );
        percent(due)
    }
}

impl View {
    /// Chooses databases: a few for most clients, all for some.
    fn new(number: usize, jitter: &mut Jitter) -> Self {
        let count = if number % 40 == 1 { DATABASES } else { 1 + usize::try_from(jitter.below(24)).expect("small") };
        let all = count == DATABASES;
        let pick = |i| if all { i } else { usize::try_from(jitter.below(DATABASES as u64)).expect("small") };
        let synced = (0..count).map(pick).map(|database| (database, AtomicU64::new(0))).collect();
        Self { synced, dropped: Mutex::default() }
    }
}

fn start_writer(plan: &Plan, world: &Arc<World>, seed: u64) -> JoinHandle<()> {
    let world = Arc::clone(world);
    let mut jitter = Jitter::new(seed);
    let beats = usize::try_from(plan.during.as_millis() / BEAT.as_millis()).expect("a while");
    let per_beat = usize::try_from(plan.changes).expect("fewer") / beats + 1;
    thread::spawn(move || {
        let mut below = move |bound: usize| usize::try_from(jitter.below(bound as u64)).expect("small");
        let mut hot = 0;
        while !world.over.load(SeqCst) {
            thread::sleep(BEAT);
            if world.calm.load(SeqCst) {
                continue;
            }
            if below(10) == 0 {
                hot = below(DATABASES);
            }
            // Bursts and single writes.
            let count = if below(4) == 0 { 1 } else { below(8 * per_beat / 3) + 1 };
            let databases = (0..count).map(|_| (hot + below(HOT)) % DATABASES);
            world.write(&databases.collect::<Vec<_>>());
        }
    })
}

fn start_client(number: usize, view: &Arc<View>, world: &Arc<World>, seed: u64) -> JoinHandle<()> {
    let (view, world) = (Arc::clone(view), Arc::clone(world));
    let databases: Vec<_> = view.synced.keys().map(|database| world.names[*database].clone()).collect();
    let numbers = databases.iter().cloned().zip(view.synced.keys().copied()).collect();
    let mut device = Device::new(databases);
    device.compares_again = number.is_multiple_of(2);
    thread::spawn(move || Actor { number, device, numbers, view, world, losses: 0, jitter: Jitter::new(seed) }.run())
}

/// A client in its thread.
struct Actor {
    number: usize,
    device: Device,
    numbers: BTreeMap<String, usize>,
    view: Arc<View>,
    world: Arc<World>,
    /// Number of restarts that lost events before the client's last `subscribe`.
    losses: usize,
    jitter: Jitter,
}

impl Actor {
    fn run(mut self) {
        while !self.world.over.load(SeqCst) {
            let server = usize::try_from(self.jitter.below(SERVERS as u64)).expect("small");
            let address = SocketAddr::from(([127, 0, 0, 1], self.world.ports[server]));
            let Err(Gone(reason)) = self.visit(address) else { continue };
            assert!(!reason.contains("TypeError") && !reason.contains("LimitError"), "{reason}");
            self.world.counts.refusals.fetch_add(1, SeqCst);
            thread::sleep(Duration::from_millis(20 + self.jitter.below(200)));
        }
    }

    /// Connects, and stays until the connection breaks or the client leaves.
    fn visit(&mut self, address: SocketAddr) -> Result<(), Gone> {
        self.device.begin_login(address)?;
        self.device.finish_login()?;
        let resets = self.world.resets.load(SeqCst);
        self.subscribe()?;
        let leaves = Instant::now() + Duration::from_millis(100 + self.jitter.below(6_000));
        loop {
            let calm = self.world.calm.load(SeqCst);
            if self.world.over.load(SeqCst) {
                return Ok(());
            }
            if !calm
                && (Instant::now() > leaves || self.world.resets.load(SeqCst) != resets && self.jitter.below(2) == 0)
            {
                self.device.leave();
                thread::sleep(Duration::from_millis(self.jitter.below(1_500)));
                return Ok(());
            }
            self.listen()?;
        }
    }

    fn subscribe(&mut self) -> Result<(), Gone> {
        let unknown: BTreeSet<String> =
            self.device.known.iter().filter(|(_, position)| position.is_none()).map(|(name, _)| name.clone()).collect();
        let resyncs = self.device.resyncs;
        let changed = self.device.subscribe()?;
        let losses = self.world.losses.load(SeqCst);
        let counts = &self.world.counts;
        counts.connections.fetch_add(1, SeqCst);
        let is_resync = losses != self.losses || resyncs != self.device.resyncs;
        self.losses = losses;
        for name in &changed {
            let is_useless = self.sync(name);
            if is_resync {
                counts.compared_after_loss.fetch_add(1, SeqCst);
            } else if !unknown.contains(name) {
                counts.compared.fetch_add(1, SeqCst);
                counts.useless_compared.fetch_add(u64::from(is_useless), SeqCst);
            }
        }
        Ok(())
    }

    fn listen(&mut self) -> Result<(), Gone> {
        const LISTEN: Duration = Duration::from_millis(50);
        if self.number == 0 && self.world.drops.load(SeqCst) {
            self.world.about_to_drop.store(true, SeqCst);
            let dropped = self.device.drop_next_change(LISTEN)?;
            if dropped.is_some() {
                self.world.drops.store(false, SeqCst);
                *self.view.dropped.lock().expect("no thread panics while it holds this") = dropped;
            }
            return Ok(());
        }
        match self.device.next(LISTEN)? {
            Notice::Nothing => {}
            Notice::Change(name) => {
                let is_useless = self.sync(&name);
                self.world.counts.changes.fetch_add(1, SeqCst);
                self.world.counts.useless_changes.fetch_add(u64::from(is_useless), SeqCst);
            }
            Notice::Everything => {
                self.world.counts.resyncs.fetch_add(1, SeqCst);
                for (database, synced) in &self.view.synced {
                    synced.store(self.world.writes[*database].load(SeqCst), SeqCst);
                }
            }
        }
        Ok(())
    }

    /// Reads a database, as a client does that is notified. Returns whether it had read it at this
    /// number of writes before.
    fn sync(&self, name: &str) -> bool {
        let database = self.numbers[name];
        let writes = self.world.writes[database].load(SeqCst);
        self.view.synced[&database].swap(writes, SeqCst) == writes
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("a while")
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn as_number(count: u64) -> f64 {
    count as f64
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is to be a number: {text:?}")))
}

fn seed() -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    from_environment("HOWLER_CHAOS_SEED", u64::try_from(clock).expect("before the year 500 million") % 1_000_000)
}

/// Runs all faults. Useless notifications may be at most `most_useless` percent of the writes.
fn run_everything(nodes: usize, faults: Vec<Fault>, most_useless: f64) {
    let plan = Plan {
        seed: seed(),
        during: Duration::from_secs(from_environment("HOWLER_CHAOS_SECONDS", 40)),
        changes: from_environment("HOWLER_CHAOS_CHANGES", 120_000),
        nodes,
        faults,
        drops_one: false,
        notified_within: NOTIFIED_WITHIN,
    };
    let report = run(&plan);
    assert_eq!(report.missed, [], "seed {}", plan.seed);
    assert_eq!(report.happened.len(), plan.kinds().len(), "each of the faults happened: {:?}", report.happened);
    assert!(report.useless_percent <= most_useless, "{} % of notifications are useless", report.useless_percent);
}

#[test]
fn every_client_is_notified_of_every_change() {
    run_everything(1, EVERYTHING.to_vec(), 2.0);
}

#[test]
fn every_client_of_a_cluster_is_notified_of_every_change() {
    run_everything(3, [EVERYTHING, CLUSTER].concat(), 60.0);
}

#[test]
fn one_notification_that_is_dropped_makes_the_check_fail() {
    let plan = Plan {
        seed: seed(),
        during: Duration::from_secs(4),
        changes: 4_000,
        nodes: 1,
        faults: QUIET.to_vec(),
        drops_one: true,
        notified_within: Duration::from_secs(8),
    };
    let report = run(&plan);
    let dropped = report.dropped.expect("the client dropped a notification");
    let missed: Vec<_> = report.missed.iter().map(|Missed(client, name, ..)| (*client, name.clone())).collect();
    assert_eq!(missed, [(0, dropped)], "the check finds exactly the dropped notification: seed {}", plan.seed);
}
