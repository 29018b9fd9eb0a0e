//! Nothing is lost: many clients, two servers and a CouchDB to which all that can go wrong happens, at random.
//!
//! The truth is how often each database was written. A client that is told of a database syncs: it takes note of
//! that number. The faults come in rounds of some seconds. When those of a round have stopped, each client's number
//! of each of its databases must be the true one: it was told of every database whose last change it had not seen.
//! What is written moves through the databases, so that the last change of each is at any moment of a round.
//!
//! The run is set by environment variables, for long ones by hand:
//!
//! | variable | default | |
//! |---|---|---|
//! | `HOWLER_CHAOS_SEED` | the clock | what happens when; it is printed at the start. Threads and sockets have their own time, so a seed gives the same schedule, not the same run |
//! | `HOWLER_CHAOS_SECONDS` | 40 | how long faults happen, at least |
//! | `HOWLER_CHAOS_CHANGES` | 80000 | how many writes there are, at least; they are spread over the time |
//!
//! ```sh
//! HOWLER_CHAOS_CHANGES=1000000 HOWLER_CHAOS_SECONDS=150 cargo test --test tests chaos:: -- --nocapture
//! ```
//!
//! # What CouchDB loses
//!
//! An event that CouchDB itself loses when it stops is in no feed and in no position. A server knows of it because
//! CouchDB says when it started, and positions carry that start. So events are lost, and servers killed, at any time
//! and in any order, while the clients come and go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use couchdb_howler::demo::{Chunking, FeedFault, StandIn};
use couchdb_howler::state::jitter::Jitter;

use crate::support::device::{Device, Gone, Told};
use crate::support::howler::{Howler, lasting_port};
use crate::support::{SOON, couchdb};

const CLIENTS: usize = 200;
const DATABASES: usize = 500;
const SERVERS: usize = 2;
/// A client hears of everything within this, once the faults have stopped; a machine may be slow.
const TOLD_WITHIN: Duration = Duration::from_secs(40);
/// How long faults happen before all is compared.
const ROUND: Duration = Duration::from_secs(6);
/// How often the writer writes.
const BEAT: Duration = Duration::from_millis(20);
/// How many databases are written to at a time.
const HOT: usize = 60;
const OPTIONS: [&str; 2] = ["--feed_heartbeat", "300"];

/// What is to happen.
struct Plan {
    seed: u64,
    during: Duration,
    changes: u64,
    faults: &'static [Fault],
    /// Whether a client throws a notification away, once the faults have stopped: the switch that makes the check fail.
    drops_one: bool,
    told_within: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Many clients lose their connections at once; besides, each does now and then by itself.
    ClientsReset,
    /// The feed breaks in this way, for both servers.
    Feed(FeedFault),
    /// The feed breaks, and is refused for some tries.
    FeedRefused,
    /// What is read is cut into other pieces.
    Chunks(Chunking),
    /// CouchDB does not answer look-ups for a while, or late.
    NoLookUps,
    /// CouchDB is away for a while, and loses nothing.
    Away,
    /// CouchDB restarts, and what happened last is in its databases and not in its feed.
    AwayWithLoss,
    /// A server is killed and started again.
    Kill,
    /// The same while CouchDB is away.
    KillWhileAway,
    /// A server is killed, CouchDB restarts and loses what happened last, and the server starts again.
    KillWithLoss,
}

/// All that the task is about; each happens before one happens again.
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
    Fault::Chunks(Chunking::SplitEvery(100)),
    Fault::Chunks(Chunking::Merge),
    Fault::NoLookUps,
    Fault::Away,
    Fault::AwayWithLoss,
    Fault::Kill,
    Fault::KillWhileAway,
    Fault::KillWithLoss,
];

/// Those that make no server tell its clients to sync anew: nothing covers a loss up.
const QUIET: &[Fault] =
    &[Fault::ClientsReset, Fault::Feed(FeedFault::Cut), Fault::Feed(FeedFault::CleanEnd), Fault::Kill];

/// What all threads share.
struct World {
    couchdb: StandIn,
    names: Vec<String>,
    /// The truth: how often each database was written.
    writes: Vec<AtomicU64>,
    written: AtomicU64,
    /// Held while something is written; true while CouchDB is away and nothing can be.
    away: Mutex<bool>,
    ports: [u16; SERVERS],
    /// Clients stay connected.
    calm: AtomicBool,
    over: AtomicBool,
    /// One client is to throw its next notification away.
    drops: AtomicBool,
    /// And waits for that.
    about_to_drop: AtomicBool,
    /// How often many clients were reset.
    resets: AtomicUsize,
    told: Counts,
}

#[derive(Default)]
struct Counts {
    rounds: AtomicU64,
    connections: AtomicU64,
    refusals: AtomicU64,
    compared: AtomicU64,
    changes: AtomicU64,
    resyncs: AtomicU64,
}

/// What is known of a client from outside.
struct View {
    /// Databases, each with how often it was written when the client synced it last.
    synced: BTreeMap<usize, AtomicU64>,
    /// What it threw away.
    dropped: Mutex<Option<String>>,
}

/// A database that a client was not told of: client, name, how often it was written when it synced, and now.
#[derive(Debug, PartialEq, Eq)]
struct Missed(usize, String, u64, u64);

/// What came of a run.
struct Report {
    missed: Vec<Missed>,
    dropped: Option<String>,
    happened: BTreeMap<String, usize>,
}

fn run(plan: &Plan) -> Report {
    println!("chaos: seed {}, {} s, {} changes", plan.seed, plan.during.as_secs(), plan.changes);
    let began = Instant::now();
    let mut jitter = Jitter::new(plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let world = Arc::new(World::new());
    let mut servers: Vec<Option<Howler>> =
        world.ports.iter().map(|port| Some(Howler::start_on(*port, &world.couchdb, &OPTIONS))).collect();
    let views: Vec<_> = (0..CLIENTS).map(|number| Arc::new(View::new(number, &mut jitter))).collect();
    let mut threads: Vec<_> = views
        .iter()
        .enumerate()
        .map(|(number, view)| start_client(number, view, &world, jitter.below(u64::MAX)))
        .collect();
    threads.push(start_writer(plan, &world, jitter.below(u64::MAX)));
    let mut happened = BTreeMap::new();
    let (mut bag, mut missed) = (Vec::new(), Vec::new());
    while missed.is_empty() && (began.elapsed() < plan.during || world.written.load(SeqCst) < plan.changes) {
        world.calm.store(false, SeqCst);
        let round = Instant::now();
        while round.elapsed() < ROUND.min(plan.during) {
            if bag.is_empty() {
                bag = plan.faults.to_vec();
            }
            let which = usize::try_from(jitter.below(bag.len() as u64)).expect("small");
            let fault = bag.swap_remove(which);
            *happened.entry(format!("{fault:?}")).or_default() += 1;
            world.pause(jitter.below(400));
            world.suffer(fault, &mut servers, &mut jitter);
        }
        world.settle(&servers);
        missed = world.wait_until_told(&views, plan.told_within);
        world.told.rounds.fetch_add(1, SeqCst);
    }
    let took = began.elapsed();
    let mut dropped = None;
    if plan.drops_one && missed.is_empty() {
        world.drops.store(true, SeqCst);
        let deadline = Instant::now() + SOON;
        while !world.about_to_drop.load(SeqCst) {
            assert!(Instant::now() < deadline, "the client is connected");
            world.pause(5);
        }
        world.write(&(0..DATABASES).collect::<Vec<_>>());
        missed = world.wait_until_told(&views, plan.told_within);
        dropped.clone_from(&views[0].dropped.lock().expect("nobody panics with it"));
    }
    world.over.store(true, SeqCst);
    for thread in threads {
        thread.join().expect("no client is sent what it must not be");
    }
    world.print_figures(plan.seed, took, &missed, &happened);
    Report { missed, dropped, happened }
}

impl World {
    fn new() -> Self {
        let couchdb = couchdb();
        // Names of all kinds that CouchDB allows.
        let names = (0..DATABASES).map(|number| format!("{}{number}", ["db-", "user/", "a+b$", "x()_"][number % 4]));
        Self {
            couchdb,
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
            told: Counts::default(),
        }
    }

    /// Writes to databases, unless CouchDB is away.
    fn write(&self, databases: &[usize]) {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        if *away {
            return;
        }
        // First the write, then its event.
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
        // What is recorded is of no use here, and would fill the memory.
        self.couchdb.forget_requests();
        thread::sleep(Duration::from_millis(milliseconds));
    }

    fn suffer(&self, fault: Fault, servers: &mut [Option<Howler>], jitter: &mut Jitter) {
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
            Fault::Chunks(chunking) => {
                self.couchdb.set_chunking(chunking);
                self.pause(a_while);
                self.couchdb.set_chunking(Chunking::Normal);
            }
            Fault::NoLookUps => {
                self.couchdb.fail_look_ups(a_while.is_multiple_of(2).then_some(503));
                self.couchdb.set_look_up_delay(Duration::from_millis(a_while));
                self.resets.fetch_add(1, SeqCst);
                self.pause(2 * a_while);
                self.couchdb.fail_look_ups(None);
                self.couchdb.set_look_up_delay(Duration::ZERO);
            }
            Fault::Away => {
                self.set_away(true);
                self.pause(a_while);
                self.set_away(false);
            }
            Fault::AwayWithLoss => self.lose(a_while, jitter),
            Fault::Kill => {
                servers[which] = None;
                self.pause(a_while);
                servers[which] = Some(Howler::start_on(self.ports[which], &self.couchdb, &OPTIONS));
            }
            Fault::KillWhileAway => {
                self.set_away(true);
                servers[which] = None;
                self.pause(a_while);
                self.set_away(false);
                servers[which] = Some(Howler::start_on(self.ports[which], &self.couchdb, &OPTIONS));
            }
            Fault::KillWithLoss => {
                servers[which] = None;
                self.lose(a_while, jitter);
                servers[which] = Some(Howler::start_on(self.ports[which], &self.couchdb, &OPTIONS));
            }
        }
    }

    /// CouchDB restarts, at once or after a while, and what happened just before is in no feed.
    fn lose(&self, a_while: u64, jitter: &mut Jitter) {
        self.couchdb.lose_next_events(true);
        self.write(&(0..DATABASES).filter(|_| jitter.below(2) == 0).collect::<Vec<_>>());
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        *away = true;
        self.couchdb.lose_next_events(false);
        if jitter.below(2) == 0 {
            self.couchdb.refuse();
            self.pause(a_while);
        }
        self.couchdb.restart(true).expect("the port is the stand-in's");
        *away = false;
    }

    /// The faults stop: all servers run, all clients come back and stay, nothing is written any more.
    fn settle(&self, servers: &[Option<Howler>]) {
        assert!(servers.iter().all(Option::is_some), "all servers run");
        self.calm.store(true, SeqCst);
        assert!(self.couchdb.wait_for_feeds(SERVERS, 3 * SOON), "both servers follow CouchDB");
    }

    /// Waits until every client has synced what was written last; what it did not, when the time is over.
    fn wait_until_told(&self, views: &[Arc<View>], within: Duration) -> Vec<Missed> {
        self.wait_until_synced(views, &self.writes, within)
    }

    /// Waits until every client has synced all of its databases when they had been written so often, or later.
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

    fn print_figures(&self, seed: u64, took: Duration, missed: &[Missed], happened: &BTreeMap<String, usize>) {
        let Counts { rounds, connections, refusals, compared, changes, resyncs } = &self.told;
        let load = |counter: &AtomicU64| counter.load(SeqCst);
        println!(
            "chaos: seed {seed}: {} changes of {DATABASES} databases in {} rounds and {:.0} s, {CLIENTS} clients connected {} times \
             ({} tries in vain); told of databases {} times by events, {} times when they came back, {} times to sync \
             anew; faults: {happened:?}; losses: {}",
            load(&self.written),
            load(rounds),
            took.as_secs_f64(),
            load(connections),
            load(refusals),
            load(changes),
            load(compared),
            load(resyncs),
            missed.len(),
        );
    }
}

impl View {
    /// Most clients have a few databases, some have all.
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
            // Bursts, and single writes.
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
    let device = Device::new(databases);
    thread::spawn(move || Actor { number, device, numbers, view, world, jitter: Jitter::new(seed) }.run())
}

/// A client at work.
struct Actor {
    number: usize,
    device: Device,
    numbers: BTreeMap<String, usize>,
    view: Arc<View>,
    world: Arc<World>,
    jitter: Jitter,
}

impl Actor {
    fn run(mut self) {
        while !self.world.over.load(SeqCst) {
            let server = usize::try_from(self.jitter.below(SERVERS as u64)).expect("small");
            let address = SocketAddr::from(([127, 0, 0, 1], self.world.ports[server]));
            let Err(Gone(reason)) = self.visit(address) else { continue };
            assert!(!reason.contains("TypeError") && !reason.contains("LimitError"), "{reason}");
            self.world.told.refusals.fetch_add(1, SeqCst);
            thread::sleep(Duration::from_millis(20 + self.jitter.below(200)));
        }
    }

    /// One connection, until it breaks or the client leaves.
    fn visit(&mut self, address: SocketAddr) -> Result<(), Gone> {
        self.device.begin_log_in(address)?;
        self.device.finish_log_in()?;
        let resets = self.world.resets.load(SeqCst);
        let told = self.device.subscribe()?;
        self.world.told.connections.fetch_add(1, SeqCst);
        self.world.told.compared.fetch_add(told.len() as u64, SeqCst);
        for name in &told {
            self.sync(name);
        }
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

    fn listen(&mut self) -> Result<(), Gone> {
        const LISTEN: Duration = Duration::from_millis(50);
        if self.number == 0 && self.world.drops.load(SeqCst) {
            self.world.about_to_drop.store(true, SeqCst);
            let dropped = self.device.drop_next_change(LISTEN)?;
            if dropped.is_some() {
                self.world.drops.store(false, SeqCst);
                *self.view.dropped.lock().expect("nobody panics with it") = dropped;
            }
            return Ok(());
        }
        match self.device.next(LISTEN)? {
            Told::Nothing => {}
            Told::Change(name) => {
                self.world.told.changes.fetch_add(1, SeqCst);
                self.sync(&name);
            }
            Told::Everything => {
                self.world.told.resyncs.fetch_add(1, SeqCst);
                for (database, synced) in &self.view.synced {
                    synced.store(self.world.writes[*database].load(SeqCst), SeqCst);
                }
            }
        }
        Ok(())
    }

    /// What the client does when it is told: it replicates, and has all that was written by then.
    fn sync(&self, name: &str) {
        let database = self.numbers[name];
        self.view.synced[&database].store(self.world.writes[database].load(SeqCst), SeqCst);
    }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is to be a number: {text:?}")))
}

fn seed() -> u64 {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    from_environment("HOWLER_CHAOS_SEED", u64::try_from(clock).expect("before the year 500 million") % 1_000_000)
}

#[test]
fn every_client_is_told_of_every_change() {
    let plan = Plan {
        seed: seed(),
        during: Duration::from_secs(from_environment("HOWLER_CHAOS_SECONDS", 40)),
        changes: from_environment("HOWLER_CHAOS_CHANGES", 80_000),
        faults: EVERYTHING,
        drops_one: false,
        told_within: TOLD_WITHIN,
    };
    let report = run(&plan);
    assert_eq!(report.missed, [], "seed {}", plan.seed);
    assert_eq!(report.happened.len(), EVERYTHING.len(), "each of the faults happened: {:?}", report.happened);
}

#[test]
fn one_notification_that_is_dropped_makes_the_check_fail() {
    let plan = Plan {
        seed: seed(),
        during: Duration::from_secs(4),
        changes: 4_000,
        faults: QUIET,
        drops_one: true,
        told_within: Duration::from_secs(8),
    };
    let report = run(&plan);
    let dropped = report.dropped.expect("the client was told of something, which it threw away");
    let missed: Vec<_> = report.missed.iter().map(|Missed(client, name, ..)| (*client, name.clone())).collect();
    assert_eq!(missed, [(0, dropped)], "the check finds what was dropped, and nothing else: seed {}", plan.seed);
}
