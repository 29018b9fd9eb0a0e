//! Subscriptions and positions as the server drives them, without a server. A script stands for the
//! clients, CouchDB, the feed, the lookups and the clock, and a naive model knows which
//! notifications each client must receive.
//!
//! A script consists of lines; a line that is no operation is skipped. `N` is the digit of a client
//! (0 to 2 speak `howler.v1`, the others Socket.IO: they subscribe at once and without positions),
//! `name` one of a few databases:
//!
//! ```text
//! N+         opens a session         N-         it ends, whatever is under way
//! N>a,b      subscribes, with the positions that the client remembers
//! N<a,b      subscribes without positions
//! N=a:1.2.3  subscribes with a made-up position
//! N/a,b      unsubscribes            N#1        subscribes to 1500 names
//! N~         another user logs in    N.         reads at once from here on, or stops
//! @=a        a database changes: + is created, - deleted, = updated
//! @!a        a database changes, and CouchDB stops before it has recorded that
//! _2         the second line under way arrives             ?2   and its revision is malformed
//! "2         the second of the last lines arrives again
//! |          of the lines of one document under way, the last one counts
//! $1         CouchDB processes the second lookup           )1   its response arrives
//! (1         it fails                                      [1   its response is cut off
//! P          the start of the feed becomes known           O    the feed is opened
//! C          the feed breaks    D    CouchDB stops         G    the feed cannot be resumed where it broke
//! S          a line is skipped  E    _global_changes is created again (E0: by a CouchDB without an epoch)
//! e          CouchDB says what the epoch is
//! ~1234      time passes, in milliseconds
//! R          CouchDB restarts silently, and loses nothing
//! U          the server learns when CouchDB started
//! &…         an operation, and the turn goes on
//! ```
//!
//! The first line may hold `H` (CouchDB does not say when it started) and `W` (changes of a
//! database are merged for a while).
//!
//! Events lost before the first stream are no loss to the feed: D, E and @! do nothing then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use couchdb_howler::state::jitter::Jitter;
use couchdb_howler::state::merge_window::Admission;
use couchdb_howler::state::positions::{Batch, MAX_BATCHES, Pending, Positions, RequestedDatabases};
use couchdb_howler::state::session::Reply;
use couchdb_howler::state::subscriptions::{DatabaseId, SessionIndex, Subscriptions};
use couchdb_howler::state::table::Key;
use couchdb_howler::state::timers::Millis;
use couchdb_howler::wire::couchdb::lookup::MAX_NAMES;
use couchdb_howler::wire::couchdb::{ChangeKind, Revision};
use couchdb_howler::wire::nodes::Starts;
use couchdb_howler::wire::positions::{Given, Position};

const CLIENTS: u32 = 5;
/// First client that speaks Socket.IO.
const SOCKET_IO: u32 = 3;
/// Longest time of a script, in milliseconds.
const MAX_OPERATIONS: usize = 300;
const MAX_BULK: usize = 1;
/// Longest wait of a `subscribe` for positions, in milliseconds.
const ANSWER_WITHIN: Millis = 5_000;
/// Time that a database is kept without subscribers, in milliseconds.
const LINGER: Millis = 60_000;
/// Time in which changes are merged, in milliseconds.
const MERGE_WINDOW: Millis = 800;
/// The last one is an impossible name.
const NAMES: [&str; 6] = ["a", "b", "c", "d/e", "f", "\u{fc}"];

/// The history of a database in CouchDB.
#[derive(Clone, Debug, Default)]
struct Truth {
    counts: [u32; 3],
    /// Step of the last event, recorded or not.
    changed: u64,
}

#[derive(Clone, Debug)]
struct Line {
    name: &'static str,
    kind: ChangeKind,
    number: u32,
}

struct Flight {
    batch: Batch,
    names: Vec<String>,
    /// Result when CouchDB processed the lookup.
    body: Option<Vec<u8>>,
}

/// The knowledge of a client about a database.
#[derive(Clone, Debug, Default)]
struct Knowledge {
    /// Last position that the client received.
    position: Option<String>,
    /// The client has read everything before this step.
    synced: u64,
}

#[derive(Default)]
struct Client {
    session: Option<Session>,
    generation: u32,
    /// The memory of a client, which outlives sessions.
    memory: Memory,
}

/// Positions, and their epoch.
type Memory = (Option<String>, BTreeMap<String, Knowledge>);

#[derive(Default)]
struct Session {
    reads: bool,
    subscribed: BTreeMap<String, Knowledge>,
    asked: BTreeMap<u64, Asked>,
}

struct Asked {
    names: BTreeMap<String, Option<Knowledge>>,
    at: Millis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lost {
    Nothing,
    /// Lost lines, which positions reveal.
    Lines,
    /// Lost events, which nothing reveals.
    Events,
}

struct World {
    now: Millis,
    step: u64,
    positions: Positions,
    subscriptions: Subscriptions,
    jitter: Jitter,
    newly_dirty: Vec<SessionIndex>,
    clients: Vec<Client>,
    requests: u64,
    bulk: usize,
    doubts: u32,
    truth: BTreeMap<&'static str, Truth>,
    /// Epoch of CouchDB, and whether it has one.
    epoch: (u32, bool),
    lines: VecDeque<Line>,
    came: VecDeque<Line>,
    flights: Vec<Flight>,
    epoch_asks: usize,
    /// Start of CouchDB in seconds, and whether CouchDB says so.
    start: u32,
    says_start: bool,
    /// Pending requests for the start.
    start_asks: usize,
    /// Start when the feed was first followed.
    first_start: Option<u32>,
    /// Time in which changes are merged, and the databases with held back changes.
    window: Millis,
    held: Vec<(Millis, DatabaseId)>,
    pinned: bool,
    followed: bool,
    streaming: bool,
    followed_until: u64,
    lost: Lost,
    /// Greatest number of each database and kind in a delivered line, and in a line or a response.
    came_to: BTreeMap<&'static str, [u32; 3]>,
    seen: BTreeMap<&'static str, [u32; 3]>,
    /// Databases for which notifications without a need are allowed.
    restless: BTreeSet<String>,
}

/// Runs a script to its end, and on until everything has arrived and all clients have left.
pub fn run(script: &str) {
    let mut world = World::new();
    let options = script.lines().next().unwrap_or("");
    world.says_start = !options.contains('H');
    world.window = if options.contains('W') { MERGE_WINDOW } else { 0 };
    for line in script.lines().take(MAX_OPERATIONS) {
        let (goes_on, operation) = line.strip_prefix('&').map_or((false, line), |rest| (true, rest));
        world.step += 1;
        world.operate(operation);
        if !goes_on {
            world.end_turn();
        }
    }
    world.settle();
    world.part();
}

impl World {
    fn new() -> Self {
        Self {
            now: 1_000_000,
            step: 0,
            positions: Positions::new(true),
            subscriptions: Subscriptions::default(),
            jitter: Jitter::new(7),
            newly_dirty: Vec::new(),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            requests: 0,
            bulk: 0,
            doubts: 0,
            truth: NAMES.iter().map(|name| (*name, Truth::default())).collect(),
            epoch: (1, true),
            lines: VecDeque::new(),
            came: VecDeque::new(),
            flights: Vec::new(),
            epoch_asks: 0,
            start: 1_000,
            says_start: true,
            start_asks: 0,
            first_start: None,
            window: 0,
            held: Vec::new(),
            pinned: false,
            followed: false,
            streaming: false,
            followed_until: 0,
            lost: Lost::Nothing,
            came_to: BTreeMap::new(),
            seen: BTreeMap::new(),
            restless: BTreeSet::new(),
        }
    }

    fn operate(&mut self, line: &str) {
        let mut characters = line.chars();
        let Some(first) = characters.next() else { return };
        let rest = characters.as_str();
        if let Some(slot) = first.to_digit(CLIENTS) {
            return self.operate_client(slot, rest);
        }
        let number = rest.parse().unwrap_or(0_usize);
        match first {
            '@' => self.change(rest),
            '_' => self.deliver(number, true),
            '?' => self.deliver(number, false),
            '"' if self.streaming => {
                if let Some(line) = self.came.get(number).cloned() {
                    self.take_line(&line, true);
                }
            }
            '|' => self.supersede(),
            '$' => self.work_on(number),
            ')' => self.answer(number, true),
            '[' => self.answer(number, false),
            '(' if number < self.flights.len() => self.land(number, None),
            'P' if !self.pinned => self.pin(),
            'O' => self.open(),
            'C' => self.streaming = false,
            'D' if self.followed => self.stop(),
            'R' => self.start += 100,
            'U' if self.start_asks > 0 => self.learn_start(),
            'G' if self.followed => {
                self.lines.clear();
                self.disconnect(Lost::Lines);
            }
            'G' => self.pinned = false,
            'S' if self.streaming && self.lines.pop_front().is_some() => self.gap(),
            'E' if self.followed => self.recreate(!rest.starts_with('0')),
            'e' if self.epoch_asks > 0 && self.knows_start() => self.report_epoch(),
            '~' => self.advance(number as Millis % 100_000),
            _ => {}
        }
    }

    fn operate_client(&mut self, slot: u32, rest: &str) {
        let Some(operation) = rest.chars().next() else { return };
        let names = &rest[operation.len_utf8()..];
        let client = &mut self.clients[slot as usize];
        let Some(session) = &mut client.session else {
            if operation == '+' {
                client.session = Some(Session { reads: true, ..Session::default() });
            }
            return;
        };
        match operation {
            '-' => self.end(slot),
            '~' => self.leave(slot),
            '.' => session.reads ^= true,
            '>' => self.subscribe_remembered(slot, names),
            '<' => self.subscribe(slot, names_in(names).map(|name| (name.to_owned(), None)).collect(), None),
            '=' => {
                let (name, position) = names.split_once(':').unwrap_or((names, "1.0.0"));
                let made_up = Knowledge { position: Some(position.to_owned()), synced: u64::MAX };
                self.subscribe(slot, names_in(name).map(|name| (name.into(), Some(made_up.clone()))).collect(), None);
            }
            '#' if self.bulk < MAX_BULK => {
                self.bulk += 1;
                let first = names.parse::<u32>().unwrap_or(0) % 4 * 1_000;
                self.subscribe(slot, (first..first + 1_500).map(|n| (format!("n{n}"), None)).collect(), None);
            }
            '/' => names_in(names).for_each(|name| self.unsubscribe(slot, name)),
            _ => {}
        }
    }

    // CouchDB.

    fn change(&mut self, what: &str) {
        let (kind, name) = what.split_at(what.chars().next().map_or(0, char::len_utf8));
        let Some(name) = NAMES[..NAMES.len() - 1].iter().copied().find(|other| *other == name) else { return };
        let truth = self.truth.get_mut(name).expect("all names are there");
        let kind = match kind {
            "=" => ChangeKind::Updated,
            "+" => ChangeKind::Created,
            "-" => ChangeKind::Deleted,
            "!" if self.followed => {
                truth.changed = self.step;
                return self.stop();
            }
            _ => return,
        };
        truth.changed = self.step;
        truth.counts[kind.index()] += 1;
        self.lines.push_back(Line { name, kind, number: truth.counts[kind.index()] });
    }

    fn supersede(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        let later =
            |i: usize, line: &Line| lines.iter().skip(i + 1).any(|it| it.name == line.name && it.kind == line.kind);
        self.lines = lines.iter().enumerate().filter(|(i, line)| !later(*i, line)).map(|(_, it)| it.clone()).collect();
    }

    fn body(&self, names: &[String]) -> Vec<u8> {
        let mut body = String::from(r#"{"total_rows":1,"offset":0,"rows":["#);
        for (i, name) in names.iter().enumerate() {
            for kind in ChangeKind::ALL {
                let number = self.truth.get(&**name).map_or(0, |truth| truth.counts[kind.index()]);
                let key = serde_json::Value::from(format!("{}:{name}", kind.text()));
                let comma = if i + kind.index() > 0 { "," } else { "" };
                let _ = match number {
                    0 => write!(body, r#"{comma}{{"key":{key},"error":"not_found"}}"#),
                    _ => {
                        let revision = self.revision(number);
                        write!(body, r#"{comma}{{"id":{key},"key":{key},"value":{{"rev":"{revision}"}}}}"#)
                    }
                };
            }
        }
        body.push_str("]}");
        body.into_bytes()
    }

    /// Returns a revision. Revisions of one document in several epochs share only their numbers.
    fn revision(&self, number: u32) -> String {
        format!("{number}-{:x}", number * 31 + self.epoch.0)
    }

    fn recreate(&mut self, with_epoch: bool) {
        self.epoch = (self.epoch.0 + 1, with_epoch);
        for truth in self.truth.values_mut() {
            // The event documents are gone, but the databases are not.
            truth.counts = [0; 3];
        }
        self.lines.clear();
        self.came.clear();
        self.came_to.clear();
        self.seen.clear();
        self.disconnect(Lost::Events);
    }

    fn epoch(&self) -> Option<String> {
        self.epoch.1.then(|| format!("epoch {}", self.epoch.0))
    }

    // The feed.

    /// Restarts CouchDB. If CouchDB does not say so, the server notices the outage.
    fn stop(&mut self) {
        self.start += 100;
        self.disconnect(if self.says_start { Lost::Nothing } else { Lost::Events });
    }

    /// Returns whether the server knows the start of CouchDB, or that CouchDB does not say it.
    fn knows_start(&self) -> bool {
        !self.says_start || self.subscriptions.starts.is_some()
    }

    /// Does what `Server::handle_finding` does with a finding about a single node.
    fn learn_start(&mut self) {
        self.start_asks -= 1;
        let starts = Starts { earliest: self.start, latest: self.start, is_single: true };
        let before = self.subscriptions.starts.replace(starts).map(|before| before.latest).or(self.first_start);
        if before.is_some_and(|before| before != self.start) {
            self.report_resync();
        }
    }

    fn disconnect(&mut self, lost: Lost) {
        if std::mem::take(&mut self.streaming) {
            self.followed_until = self.now;
        }
        self.lost = self.lost.max(lost);
    }

    fn pin(&mut self) {
        self.pinned = true;
        self.lines.clear();
        if !self.followed {
            for database in self.positions.handle_doubt(0, &mut self.subscriptions) {
                self.subscriptions.mark(database, ChangeKind::Updated, &mut self.newly_dirty);
            }
            self.all_restless();
        }
    }

    fn open(&mut self) {
        if !self.pinned || self.streaming {
            return;
        }
        self.streaming = true;
        self.epoch_asks += 1;
        self.start_asks += usize::from(self.says_start);
        self.first_start.get_or_insert(self.start);
        let lost = std::mem::replace(&mut self.lost, Lost::Nothing);
        if lost != Lost::Nothing {
            self.gap();
        }
        if lost == Lost::Events {
            self.doubts += 1;
            self.subscriptions.doubt(self.doubts);
            self.report_resync();
        }
        self.followed = true;
    }

    fn gap(&mut self) {
        let unknown = self.positions.handle_doubt(self.followed_until, &mut self.subscriptions);
        self.all_restless();
        if !self.positions.are_available() {
            return self.report_resync();
        }
        for database in unknown {
            self.subscriptions.mark(database, ChangeKind::Updated, &mut self.newly_dirty);
        }
    }

    fn deliver(&mut self, number: usize, readable: bool) {
        if !self.streaming || number >= self.lines.len() {
            return;
        }
        let line = self.lines.remove(number).expect("checked above");
        self.take_line(&line, readable);
        if readable {
            self.came.push_front(line);
            self.came.truncate(8);
        }
    }

    fn take_line(&mut self, line: &Line, readable: bool) {
        let revision = Revision::parse(&self.revision(line.number)).filter(|_| readable);
        if readable {
            let at = line.kind.index();
            let [seen, came_to] = [&mut self.seen, &mut self.came_to].map(|of| of.entry(line.name).or_default());
            if line.number < seen[at] {
                self.restless.insert(line.name.to_owned());
            }
            seen[at] = seen[at].max(line.number);
            came_to[at] = came_to[at].max(line.number);
        } else {
            self.restless.insert(line.name.to_owned());
        }
        let Some(database) = self.subscriptions.find(line.name) else { return };
        if self.subscriptions.tracked_mut(database).handle_line(line.kind, revision, self.now) {
            match self.subscriptions.admit(database, line.kind, self.window, self.now) {
                Admission::Notify(kind) => {
                    self.subscriptions.mark(database, kind, &mut self.newly_dirty);
                }
                Admission::Hold(until) => {
                    // A client that subscribes meanwhile has the position already.
                    self.restless.insert(line.name.to_owned());
                    self.held.extend(until.map(|until| (until, database)));
                }
            }
            if revision.is_none() {
                self.positions.queue_lookup(database, None, &mut self.subscriptions);
            }
        }
    }

    fn report_epoch(&mut self) {
        self.epoch_asks -= 1;
        let epoch = self.epoch().map(String::into_boxed_str);
        let other = self.positions.handle_epoch(epoch, &mut self.subscriptions);
        self.answer_ready();
        if other {
            self.all_restless();
            for knowledge in self.clients.iter_mut().filter_map(|client| client.session.as_mut()) {
                knowledge.subscribed.values_mut().for_each(|known| known.position = None);
            }
            self.report_resync();
        }
    }

    // Lookups.

    fn work_on(&mut self, number: usize) {
        let Some(names) = self.flights.get(number).map(|flight| flight.names.clone()) else { return };
        let body = self.body(&names);
        self.flights[number].body.get_or_insert(body);
    }

    fn answer(&mut self, number: usize, whole: bool) {
        self.work_on(number);
        let Some(flight) = self.flights.get_mut(number) else { return };
        let mut body = flight.body.take().expect("it was worked on");
        if !whole {
            body.pop();
        }
        self.land(number, Some(body));
    }

    fn land(&mut self, number: usize, body: Option<Vec<u8>>) {
        let Flight { batch, names, .. } = self.flights.remove(number);
        let Self { positions, subscriptions, jitter, newly_dirty, now, .. } = self;
        let found = positions.handle_lookup(batch, body.as_deref(), (*now, jitter), subscriptions, newly_dirty);
        let whole = body.as_ref().is_some_and(|body| body.ends_with(b"]}"));
        assert_eq!(found, whole);
        for name in names.iter().filter_map(|name| NAMES.iter().copied().find(|it| it == name)) {
            // CouchDB has at least what it found.
            let seen = self.seen.entry(name).or_default();
            for (seen, count) in seen.iter_mut().zip(self.truth[name].counts) {
                *seen = count.max(*seen);
            }
        }
        self.answer_ready();
    }

    /// Marks held back changes when they are due.
    fn release_held(&mut self) {
        let now = self.now;
        for (_, database) in self.held.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            if let Some(kind) = self.subscriptions.release_held(database, now) {
                self.subscriptions.mark(database, kind, &mut self.newly_dirty);
            }
        }
    }

    fn advance(&mut self, millis: Millis) {
        let end = self.now + millis;
        let next = |world: &Self| {
            let held = world.held.iter().map(|(at, _)| *at).min();
            [world.positions.poll_timeout(), held].into_iter().flatten().min().filter(|at| *at <= end)
        };
        while let Some(at) = next(self) {
            self.now = self.now.max(at);
            self.release_held();
            self.positions.handle_timeout(self.now, &mut self.subscriptions);
            self.answer_ready();
            assert!(self.positions.poll_timeout().is_none_or(|at| at > self.now), "a timeout that does not pass");
            self.end_turn();
        }
        self.now = end;
    }

    /// Ends a turn as the server does: it sends lookups, then writes to clients.
    fn end_turn(&mut self) {
        self.positions.sweep(&mut self.subscriptions);
        self.positions.linger(self.now, &mut self.subscriptions);
        while let Some(batch) = self.positions.next_batch(&mut self.subscriptions) {
            let names = batch.databases.iter().map(|database| self.subscriptions.name(*database).to_owned()).collect();
            self.flights.push(Flight { batch, names, body: None });
            assert!(self.flights.len() <= MAX_BATCHES);
            let mut asked = BTreeSet::new();
            for flight in &self.flights {
                assert!((1..=MAX_NAMES).contains(&flight.names.len()));
                assert!(flight.names.iter().all(|name| asked.insert(name)), "asked for twice at once");
            }
        }
        for index in std::mem::take(&mut self.newly_dirty) {
            if self.clients[index as usize].session.as_ref().is_some_and(|session| session.reads) {
                self.flush(index);
            }
        }
        for slot in 0..CLIENTS {
            self.check(slot);
        }
    }

    fn check(&mut self, slot: u32) {
        let client = &self.clients[slot as usize];
        let subscribed = client.session.as_ref().map_or(0, |session| session.subscribed.len());
        assert_eq!(self.subscriptions.count(slot), subscribed);
        let pending = self.positions.pending_names(key(slot, client.generation));
        let Some(session) = &client.session else { return assert_eq!(pending, 0) };
        let asked: usize = session.asked.values().map(|asked| asked.names.len()).sum();
        assert_eq!(pending, asked);
        assert!(session.asked.values().all(|asked| self.now < asked.at + ANSWER_WITHIN), "answered too late");
        if session.reads {
            // A client that did not read before gets its notifications as soon as it reads.
            self.flush(slot);
        }
    }

    /// Writes the pending notifications of a client.
    fn flush(&mut self, slot: u32) {
        let Self { clients, subscriptions, positions, restless, .. } = self;
        let client = &mut clients[slot as usize];
        let Some(session) = &mut client.session else { return };
        while let Some((database, kind)) = subscriptions.take_dirty(slot) {
            let name = subscriptions.name(database);
            let notified = subscriptions.notified(database).map(|position| position.to_string());
            let known = session.subscribed.get_mut(name).expect("subscribed to it");
            let needed = known.position.is_none() || known.position != notified;
            assert!(needed || restless.contains(name), "{name}: {kind:?} without need");
            *known = Knowledge { position: notified, synced: self.step };
            remember(&mut client.memory, name, known, positions.epoch());
        }
    }

    // Clients.

    fn subscribe_remembered(&mut self, slot: u32, names: &str) {
        let (epoch, memory) = &self.clients[slot as usize].memory;
        let remembered = |name: &str| memory.get(name).filter(|known| known.position.is_some()).cloned();
        let names = names_in(names).map(|name| (name.to_owned(), remembered(name))).collect();
        self.subscribe(slot, names, epoch.clone());
    }

    /// Does what `Server::subscribe` does, for clients with and without positions.
    fn subscribe(&mut self, slot: u32, names: BTreeMap<String, Option<Knowledge>>, epoch: Option<String>) {
        self.requests += 1;
        let (id, now) = (self.requests, self.now);
        let key = key(slot, self.clients[slot as usize].generation);
        let Some(session) = &mut self.clients[slot as usize].session else { return };
        let json = slot < SOCKET_IO;
        let named: RequestedDatabases = names
            .iter()
            .map(|(name, known)| {
                let known = known.as_ref().filter(|_| json).and_then(|known| known.position.as_deref());
                (self.subscriptions.hold(name), Given::of(known))
            })
            .collect();
        session.asked.insert(id, Asked { names, at: now });
        let pending = Pending::new(key, Reply::Ack(id), named, epoch.map(String::into_boxed_str));
        if json {
            self.positions.wait(pending, now, &mut self.subscriptions);
            self.answer_ready();
        } else {
            self.complete(&pending);
            pending.release(&mut self.subscriptions);
        }
    }

    fn answer_ready(&mut self) {
        while let Some(pending) = self.positions.next_ready() {
            self.complete(&pending);
            self.newly_dirty.push(pending.session.index);
            pending.release(&mut self.subscriptions);
        }
    }

    /// Does what `Server::complete_subscription` does, and updates the client.
    fn complete(&mut self, pending: &Pending) {
        let Pending { session: key, reply, names, epoch, .. } = pending;
        let client = &self.clients[key.index as usize];
        assert!(client.session.is_some() && client.generation == key.generation, "an answer to nobody");
        for (database, _) in names {
            self.subscriptions.subscribe(key.index, *database).expect("within the limit");
        }
        let foreign = epoch.is_some() && epoch.as_deref() != self.positions.epoch();
        let mut answer = Vec::new();
        for (database, given) in names {
            self.positions.queue_lookup(*database, Some(*key), &mut self.subscriptions);
            let position = self.subscriptions.known(*database);
            let changed = given.is_given() && (foreign || given.differs(position, self.subscriptions.starts));
            let name = self.subscriptions.name(*database).to_owned();
            self.check_position(&name, position);
            answer.push((name, position, given.is_given(), changed));
        }
        let Reply::Ack(id) = reply else { panic!("asked otherwise") };
        self.take_answer(key.index, *id, &answer);
    }

    /// Asserts that a position covers every delivered line, and only events that happened.
    fn check_position(&mut self, name: &str, position: Option<Position>) {
        let Some(position) = position else {
            self.restless.insert(name.to_owned());
            return;
        };
        let truth = self.truth.get(name).map_or([0; 3], |truth| truth.counts);
        let came_to = self.came_to.get(name).copied().unwrap_or_default();
        // Until the server knows the new _global_changes, its positions are mixed.
        if self.positions.epoch() == self.epoch().as_deref() {
            for (at, count) in position.counts.into_iter().enumerate() {
                assert!(count <= truth[at], "{name}: {position} is ahead of {truth:?}");
                assert!(count >= came_to[at], "{name}: {position} is behind {came_to:?}");
            }
        }
    }

    fn take_answer(&mut self, slot: u32, id: u64, answer: &[(String, Option<Position>, bool, bool)]) {
        let (step, epoch) = (self.step, self.positions.epoch());
        let client = &mut self.clients[slot as usize];
        let session = client.session.as_mut().expect("somebody is there");
        let asked = session.asked.remove(&id).expect("asked, and not answered before");
        let names: BTreeSet<&String> = answer.iter().map(|(name, ..)| name).collect();
        assert!(names.len() == answer.len() && names.into_iter().eq(asked.names.keys()), "answered for what was asked");
        let notified_later = self.subscriptions.is_dirty(slot);
        for (name, position, given, changed) in answer {
            if notified_later && session.subscribed.contains_key(name) {
                // The reply lists the database as changed again.
                self.restless.insert(name.to_owned());
            }
            let notified = position.map(|position| position.to_string());
            let before = session.subscribed.get(name).map_or(0, |known| known.synced);
            let synced = match &asked.names[name] {
                // Nothing changed since the client read it all.
                Some(known) if *given && !changed && known.synced < u64::MAX => known.synced.max(before),
                _ => step,
            };
            let known = Knowledge { position: notified, synced };
            remember(&mut client.memory, name, &known, epoch);
            session.subscribed.insert(name.to_owned(), known);
        }
    }

    fn unsubscribe(&mut self, slot: u32, name: &str) {
        let client = &mut self.clients[slot as usize];
        let Some(session) = &mut client.session else { return };
        for asked in session.asked.values_mut() {
            asked.names.remove(name);
        }
        let subscribed = session.subscribed.remove(name).is_some();
        let Some(database) = self.subscriptions.find(name) else { return assert!(!subscribed) };
        let key = key(slot, client.generation);
        assert_eq!(self.subscriptions.unsubscribe(slot, database), subscribed);
        self.positions.withdraw(key, &[database].into(), &mut self.subscriptions);
        self.answer_ready();
    }

    /// Ends all subscriptions of a session, including those under way.
    fn leave(&mut self, slot: u32) {
        let client = &mut self.clients[slot as usize];
        let (given_back, held) = self.positions.cancel(key(slot, client.generation));
        for database in held {
            self.subscriptions.release(database);
        }
        self.subscriptions.remove_session(slot);
        let Some(session) = &mut client.session else { return };
        let ids: BTreeSet<u64> = given_back
            .iter()
            .map(|reply| if let Reply::Ack(id) = reply { *id } else { panic!("asked otherwise") })
            .collect();
        assert!(ids.len() == given_back.len() && ids.iter().eq(session.asked.keys()));
        session.asked.clear();
        session.subscribed.clear();
    }

    fn end(&mut self, slot: u32) {
        self.leave(slot);
        let client = &mut self.clients[slot as usize];
        client.session = None;
        client.generation += 1;
    }

    /// Makes every client read everything again.
    fn report_resync(&mut self) {
        self.all_restless();
        let epoch = self.positions.epoch();
        for (slot, client) in (0..).zip(&mut self.clients) {
            let Some(session) = &mut client.session else { continue };
            if slot >= SOCKET_IO {
                self.subscriptions.mark_all(slot);
                self.newly_dirty.push(slot);
                continue;
            }
            for (name, known) in &mut session.subscribed {
                known.synced = self.step;
                remember(&mut client.memory, name, known, epoch);
            }
        }
    }

    fn all_restless(&mut self) {
        self.restless.extend(NAMES.iter().map(|name| (*name).to_owned()));
    }

    // The end.

    /// Delivers everything under way.
    fn settle(&mut self) {
        for client in &mut self.clients {
            if let Some(session) = &mut client.session {
                session.reads = true;
            }
        }
        if !self.pinned {
            self.pin();
        }
        self.open();
        // The server reads the start again after a while, whatever the feed does.
        self.start_asks += usize::from(self.says_start);
        while self.start_asks > 0 {
            self.learn_start();
        }
        while self.epoch_asks > 0 {
            self.report_epoch();
        }
        while !self.lines.is_empty() {
            self.deliver(0, true);
        }
        self.end_turn();
        self.advance(MERGE_WINDOW);
        for _ in 0..1_000 {
            if !self.flights.is_empty() {
                self.step += 1;
                self.answer(0, true);
                self.end_turn();
            } else if self.clients.iter().flat_map(|client| &client.session).all(|session| session.asked.is_empty())
                && self.all_known()
            {
                break;
            } else {
                self.advance(1_000);
            }
        }
        for (slot, client) in self.clients.iter().enumerate() {
            let Some(session) = &client.session else { continue };
            assert!(session.asked.is_empty(), "not answered");
            for (name, known) in &session.subscribed {
                self.check_notified(slot, name, known);
            }
        }
    }

    fn all_known(&self) -> bool {
        !self.positions.are_available()
            || kept(&self.subscriptions).all(|database| {
                !self.subscriptions.has_subscribers(database) || self.subscriptions.known(database).is_some()
            })
    }

    fn check_notified(&self, slot: usize, name: &str, known: &Knowledge) {
        let truth = self.truth.get(name).cloned().unwrap_or_default();
        assert!(known.synced >= truth.changed, "{slot} was not notified of {name}: {known:?}, {truth:?}");
        let database = self.subscriptions.find(name).expect("subscribed");
        if !self.positions.are_available() {
            return;
        }
        let position = self.subscriptions.known(database).expect("looked up");
        assert_eq!(position.counts, truth.counts, "{name}");
        if let Some(notified) = &known.position {
            let counts = notified.split(['-', '@']).next().expect("the counts");
            let stands = truth.counts.map(|count| count.to_string()).join(".");
            assert_eq!(counts, stands, "what {slot} was notified of {name}");
        }
    }

    /// Ends all sessions, and asserts that nothing is kept.
    fn part(&mut self) {
        for slot in 0..CLIENTS {
            self.end(slot);
        }
        self.end_turn();
        for _ in 0..1_000 {
            if self.flights.is_empty() {
                break;
            }
            self.answer(0, true);
            self.end_turn();
        }
        self.advance(LINGER);
        let (s, p) = (&self.subscriptions, &self.positions);
        assert_eq!((s.databases(), s.total(), s.watched(), s.held(), p.waiting()), (0, 0, 0, 0, 0), "everyone left");
        assert_eq!(p.poll_timeout(), None);
    }
}

/// Remembers the positions of a client when its session ends, if they have one epoch.
fn remember(memory: &mut Memory, name: &str, known: &Knowledge, epoch: Option<&str>) {
    if memory.0.as_deref() != epoch {
        *memory = (epoch.map(str::to_owned), BTreeMap::new());
    }
    memory.1.insert(name.to_owned(), known.clone());
}

fn names_in(names: &str) -> impl Iterator<Item = &'static str> {
    names.split(',').filter_map(|name| NAMES.iter().copied().find(|other| *other == name))
}

fn key(slot: u32, generation: u32) -> Key {
    Key { index: slot, generation }
}

/// Returns the databases that are kept.
fn kept(subscriptions: &Subscriptions) -> impl Iterator<Item = DatabaseId> {
    let first = subscriptions.next_from(0);
    std::iter::successors(first, |(slot, _)| subscriptions.next_from(slot + 1)).map(|(_, database)| database)
}
