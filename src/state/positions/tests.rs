//! Tests all orders of changes, lines of the feed, lookups and a client, one after the other. In
//! the end the client has always been notified of the last change of each of its databases.

use std::collections::VecDeque;

use super::waiting::REPLY_TIMEOUT;
use super::*;
use crate::state::session::Reply;
use crate::wire::couchdb::ChangeKind::Updated;
use crate::wire::couchdb::Revision;
use crate::wire::positions::Given;

const CLIENT: Key = Key { index: 0, generation: 0 };
/// Another subscriber, which knows no positions.
const OTHER: SessionIndex = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A database changes; its line is in flight.
    Write(usize),
    /// The next line arrives.
    Line,
    /// CouchDB reads the revisions of a lookup.
    Snapshot,
    /// The reply arrives.
    Answer,
    /// The lookup fails.
    Refusal,
    Subscribe,
    Unsubscribe(usize),
    /// The client leaves, to come back later.
    Leave,
    /// The other subscriber subscribes to all databases.
    Other,
    /// The feed starts from now: lines in flight never arrive.
    Gap,
    /// Time passes until waiting requests are answered.
    Wait,
}

/// How often each step may occur, and the total number of steps.
struct Bounds {
    databases: usize,
    steps: usize,
    most: &'static [(Step, usize)],
}

/// One run. Each decision is made by the next number of a list; at its end the first choice is
/// taken.
struct Run<'a> {
    bounds: &'a Bounds,
    positions: Positions,
    subscriptions: Subscriptions,
    jitter: Jitter,
    now: Millis,
    /// Number of writes of each database.
    writes: Vec<u32>,
    lines: VecDeque<(usize, u32)>,
    batch: Option<(Batch, Option<Vec<u8>>)>,
    /// Knowledge of the client, and the write up to which it has synced.
    known: Vec<Option<Box<str>>>,
    synced: Vec<u32>,
    wishes: Vec<bool>,
    connected: bool,
    taken: Vec<Step>,
}

fn name(database: usize) -> String {
    format!("db-{database}")
}

fn revision(number: u32) -> String {
    format!("{number}-{:x}", number * 7919)
}

impl<'a> Run<'a> {
    /// Creates a run whose client knows the position of each database after its first write.
    fn new(bounds: &'a Bounds) -> Self {
        let mut run = Self {
            bounds,
            positions: Positions::new(true),
            subscriptions: Subscriptions::default(),
            jitter: Jitter::new(1),
            now: 0,
            writes: vec![1; bounds.databases],
            lines: VecDeque::new(),
            batch: None,
            known: vec![Some("1.0.0".into()); bounds.databases],
            synced: vec![1; bounds.databases],
            wishes: vec![false; bounds.databases],
            connected: false,
            taken: Vec::new(),
        };
        assert!(!run.positions.handle_epoch(Some("e".into()), &mut run.subscriptions));
        run
    }

    /// Returns the steps that are possible next.
    fn choices(&self) -> Vec<Step> {
        use Step::{Answer, Gap, Leave, Line, Other, Refusal, Snapshot, Subscribe, Unsubscribe, Wait, Write};
        let all = (0..self.bounds.databases).flat_map(|database| [Write(database), Unsubscribe(database)]);
        let all = all.chain([Line, Snapshot, Answer, Refusal, Subscribe, Leave, Other, Gap, Wait]);
        let waits = self.positions.waiting() > 0;
        let can = |step: &Step| match step {
            Write(_) | Gap | Other => true,
            Line => !self.lines.is_empty(),
            Snapshot => matches!(self.batch, Some((_, None))),
            Answer => matches!(self.batch, Some((_, Some(_)))),
            Refusal => self.batch.is_some(),
            Subscribe => !waits && self.wishes.contains(&false),
            Unsubscribe(database) => self.wishes[*database],
            Leave => self.connected,
            Wait => waits,
        };
        let often = |step: &Step| self.taken.iter().filter(|taken| *taken == step).count();
        let most = |step: &Step| {
            let found =
                self.bounds.most.iter().find(|(of, _)| std::mem::discriminant(of) == std::mem::discriminant(step));
            found.map_or(usize::MAX, |(_, most)| *most)
        };
        all.filter(|step| can(step) && often(step) < most(step)).collect()
    }

    fn take(&mut self, step: Step) {
        self.taken.push(step);
        match step {
            Step::Write(database) => {
                self.writes[database] += 1;
                self.lines.push_back((database, self.writes[database]));
            }
            Step::Line => self.line(),
            Step::Snapshot => self.snapshot(),
            Step::Answer | Step::Refusal => self.answer(step == Step::Answer),
            Step::Subscribe => self.subscribe(),
            Step::Unsubscribe(database) => {
                self.wishes[database] = false;
                if let Some(database) = self.subscriptions.find(&name(database)) {
                    self.positions.withdraw(CLIENT, &[database].into(), &mut self.subscriptions);
                    self.subscriptions.unsubscribe(CLIENT.index, database);
                }
            }
            Step::Leave => {
                self.connected = false;
                self.wishes.fill(false);
                for database in self.positions.cancel(CLIENT).1 {
                    self.subscriptions.release(database);
                }
                self.positions.sweep(&mut self.subscriptions);
                self.subscriptions.remove_session(CLIENT.index);
            }
            Step::Other => {
                for database in 0..self.bounds.databases {
                    let id = self.subscriptions.hold(&name(database));
                    self.subscriptions.subscribe(OTHER, id).expect("few");
                    self.positions.queue_lookup(id, None, &mut self.subscriptions);
                    self.subscriptions.release(id);
                }
            }
            Step::Gap => {
                self.lines.clear();
                for database in self.positions.handle_doubt(self.now, &mut self.subscriptions) {
                    self.subscriptions.mark(database, Updated, &mut Vec::new());
                }
            }
            Step::Wait => {
                self.now += REPLY_TIMEOUT;
                self.positions.handle_timeout(self.now, &mut self.subscriptions);
            }
        }
        self.end_turn();
    }

    fn line(&mut self) {
        let Some((database, number)) = self.lines.pop_front() else { return };
        let Some(id) = self.subscriptions.find(&name(database)) else { return };
        let revision = Revision::parse(&revision(number));
        if self.subscriptions.tracked_mut(id).handle_line(Updated, revision, self.now) {
            self.subscriptions.mark(id, Updated, &mut Vec::new());
        }
    }

    fn snapshot(&mut self) {
        let Some((batch, body)) = &mut self.batch else { return };
        let mut rows = Vec::new();
        for id in &batch.databases {
            let name = self.subscriptions.name(*id);
            let writes = self.writes[name["db-".len()..].parse::<usize>().expect("a number")];
            let revision = revision(writes);
            rows.push(format!(r#"{{"id":"updated:{name}","key":"updated:{name}","value":{{"rev":"{revision}"}}}}"#));
            rows.extend(["created", "deleted"].map(|kind| format!(r#"{{"key":"{kind}:{name}","error":"not_found"}}"#)));
        }
        *body = Some(format!(r#"{{"rows":[{}]}}"#, rows.join(",")).into_bytes());
    }

    fn answer(&mut self, answers: bool) {
        let Some((batch, body)) = self.batch.take() else { return };
        let body = body.filter(|_| answers);
        let times = (self.now, &mut self.jitter);
        let found =
            self.positions.handle_lookup(batch, body.as_deref(), times, &mut self.subscriptions, &mut Vec::new());
        assert_eq!(found, answers);
    }

    fn subscribe(&mut self) {
        self.connected = true;
        self.wishes.fill(true);
        let names = self
            .known
            .iter()
            .enumerate()
            .map(|(database, known)| (self.subscriptions.hold(&name(database)), Given::of(known.as_deref())));
        let pending = Pending::new(CLIENT, Reply::Silent, names.collect(), None);
        self.positions.wait(pending, self.now, &mut self.subscriptions);
    }

    /// Does what the server does after each step: answers, notifies, looks up.
    fn end_turn(&mut self) {
        while let Some(pending) = self.positions.next_ready() {
            for (id, given) in &pending.names {
                self.subscriptions.subscribe(CLIENT.index, *id).expect("few");
                self.positions.queue_lookup(*id, Some(CLIENT), &mut self.subscriptions);
                let position = self.subscriptions.known(*id);
                let same = given.is_given() && !given.differs(position, None);
                let database = self.subscriptions.name(*id)["db-".len()..].parse().expect("a number");
                self.take_position(database, position.map(|it| it.to_string()), !same);
            }
            pending.release(&mut self.subscriptions);
        }
        while let Some((id, _)) = self.subscriptions.take_dirty(CLIENT.index) {
            let database = self.subscriptions.name(id)["db-".len()..].parse().expect("a number");
            self.take_position(database, self.subscriptions.notified(id).map(|position| position.to_string()), true);
        }
        while self.subscriptions.take_dirty(OTHER).is_some() {}
        self.positions.sweep(&mut self.subscriptions);
        self.positions.linger(self.now, &mut self.subscriptions);
        if self.batch.is_none() {
            self.batch = self.positions.next_batch(&mut self.subscriptions).map(|batch| (batch, None));
        }
    }

    /// Gives the client a position. It syncs if the database counts as changed.
    fn take_position(&mut self, database: usize, position: Option<String>, changed: bool) {
        if let Some(position) = position {
            self.known[database] = Some(position.into());
        }
        if changed {
            self.synced[database] = self.writes[database];
        }
    }

    /// Delivers everything in flight while the client is connected.
    fn come_to_rest(&mut self) {
        let taken = self.taken.len();
        for _ in 0..50 {
            let step = match &self.batch {
                _ if !self.lines.is_empty() => Step::Line,
                Some((_, None)) => Step::Snapshot,
                Some((_, Some(_))) => Step::Answer,
                None if self.positions.waiting() == 0 && self.wishes.contains(&false) => Step::Subscribe,
                None => match self.positions.poll_timeout().filter(|at| *at < LINGER) {
                    // Failed lookups are repeated.
                    Some(at) => {
                        self.now = self.now.max(at);
                        self.positions.handle_timeout(self.now, &mut self.subscriptions);
                        self.end_turn();
                        continue;
                    }
                    None => break,
                },
            };
            self.take(step);
        }
        let (before, after) = self.taken.split_at(taken);
        assert_eq!(self.synced, self.writes, "not notified of a change: {before:?}, then {after:?}");
        assert!(self.wishes.iter().all(|wish| *wish) && self.positions.waiting() == 0, "{before:?}, then {after:?}");
    }
}

/// Runs every sequence of steps. Returns their number.
fn every_run(bounds: &Bounds) -> usize {
    // The choice of each step of the run, and the number of choices.
    let mut path: Vec<(usize, usize)> = Vec::new();
    let mut runs = 0;
    loop {
        let mut run = Run::new(bounds);
        for step in 0..bounds.steps {
            let choices = run.choices();
            if step == path.len() {
                path.push((0, choices.len()));
            }
            run.take(choices[path[step].0]);
        }
        run.come_to_rest();
        runs += 1;
        while let Some((choice, count)) = path.pop() {
            if choice + 1 < count {
                path.push((choice + 1, count));
                break;
            }
        }
        if path.is_empty() {
            return runs;
        }
    }
}

#[test]
fn one_database_in_every_order() {
    use Step::{Gap, Leave, Other, Refusal, Subscribe, Unsubscribe, Wait, Write};
    let most = &[
        (Write(0), 3),
        (Subscribe, 2),
        (Unsubscribe(0), 1),
        (Leave, 1),
        (Other, 1),
        (Gap, 1),
        (Wait, 1),
        (Refusal, 1),
    ];
    let runs = every_run(&Bounds { databases: 1, steps: 7, most });
    assert!(runs > 50_000, "{runs}");
}

#[test]
fn one_database_in_every_order_of_common_steps() {
    use Step::{Gap, Leave, Other, Refusal, Subscribe, Unsubscribe, Wait, Write};
    let most = &[
        (Write(0), 4),
        (Subscribe, 2),
        (Unsubscribe(0), 1),
        (Leave, 1),
        (Other, 0),
        (Gap, 0),
        (Wait, 0),
        (Refusal, 0),
    ];
    let runs = every_run(&Bounds { databases: 1, steps: 10, most });
    assert!(runs > 50_000, "{runs}");
}

#[test]
fn two_databases_in_every_order() {
    use Step::{Gap, Leave, Other, Refusal, Subscribe, Unsubscribe, Wait, Write};
    let most = &[
        (Write(0), 2),
        (Subscribe, 2),
        (Unsubscribe(0), 1),
        (Leave, 1),
        (Other, 0),
        (Gap, 1),
        (Wait, 0),
        (Refusal, 0),
    ];
    let runs = every_run(&Bounds { databases: 2, steps: 7, most });
    assert!(runs > 50_000, "{runs}");
}

/// Subscribes a session to a database that is not kept yet.
fn subscribed(subscriptions: &mut Subscriptions, name: &str) -> DatabaseId {
    let database = subscriptions.hold(name);
    assert_eq!(subscriptions.subscribe(0, database), Ok(true));
    subscriptions.release(database);
    database
}

#[test]
fn no_database_is_kept_when_there_are_no_positions() {
    let (mut positions, mut subscriptions) = (Positions::new(true), Subscriptions::default());
    positions.handle_epoch(Some("1".into()), &mut subscriptions);
    let want = |name: &str, positions: &mut Positions, subscriptions: &mut Subscriptions| {
        let database = subscribed(subscriptions, name);
        positions.queue_lookup(database, None, subscriptions);
    };
    want("a", &mut positions, &mut subscriptions);
    let batch = positions.next_batch(&mut subscriptions).expect("a");
    want("b", &mut positions, &mut subscriptions);
    positions.handle_epoch(None, &mut subscriptions);
    subscriptions.remove_session(0);
    let answer = (0, &mut Jitter::new(7));
    positions.handle_lookup(batch, None, answer, &mut subscriptions, &mut Vec::new());
    positions.sweep(&mut subscriptions);
    assert!(positions.next_batch(&mut subscriptions).is_none() && !positions.has_work());
    assert_eq!(subscriptions.databases(), 0, "without positions no database lingers");
}

#[test]
fn lines_before_the_epoch_is_known_are_ignored() {
    let (mut positions, mut subscriptions) = (Positions::new(true), Subscriptions::default());
    let database = subscribed(&mut subscriptions, "a");
    let line = Revision::parse("7-a");
    assert!(subscriptions.tracked_mut(database).handle_line(Updated, line, 0), "subscribers are notified nevertheless");
    assert!(!positions.handle_epoch(Some("created again since".into()), &mut subscriptions));
    positions.sweep(&mut subscriptions);
    let batch = positions.next_batch(&mut subscriptions).expect("a");
    let body = br#"{"rows":[{"key":"updated:a","value":{"rev":"1-b"}},{"key":"created:a","error":"not_found"},
        {"key":"deleted:a","error":"not_found"}]}"#;
    let answer = (0, &mut Jitter::new(7));
    assert!(positions.handle_lookup(batch, Some(body), answer, &mut subscriptions, &mut Vec::new()));
    assert_eq!(subscriptions.known(database).expect("looked up").counts, [1, 0, 0]);
}

#[test]
fn a_line_without_a_revision_repeats_the_lookup_in_flight() {
    let (mut positions, mut subscriptions) = (Positions::new(true), Subscriptions::default());
    positions.handle_epoch(Some("e".into()), &mut subscriptions);
    let database = subscribed(&mut subscriptions, "a");
    let body = |number: u32| {
        format!(
            r#"{{"rows":[{{"key":"updated:a","value":{{"rev":"{number}-x"}}}},{{"key":"created:a","error":"not_found"}},
            {{"key":"deleted:a","error":"not_found"}}]}}"#
        )
    };
    for (number, outrun, known) in [(1, true, None), (2, false, Some(2)), (3, true, None), (4, false, Some(4))] {
        assert!(
            subscriptions.tracked_mut(database).handle_line(Updated, None, 0),
            "subscribers are notified nevertheless"
        );
        positions.queue_lookup(database, None, &mut subscriptions);
        let batch = positions.next_batch(&mut subscriptions).expect("a");
        if outrun {
            // CouchDB has read the revisions by now.
            assert!(subscriptions.tracked_mut(database).handle_line(Updated, None, 0));
        }
        let (body, answer, newly_dirty) = (body(number), (0, &mut Jitter::new(7)), &mut Vec::new());
        assert!(positions.handle_lookup(batch, Some(body.as_bytes()), answer, &mut subscriptions, newly_dirty));
        let position = subscriptions.known(database);
        assert_eq!(position.map(|position| position.counts), known.map(|number| [number, 0, 0]));
    }
}

#[test]
fn a_session_with_few_names_does_not_wait_for_one_with_many() {
    let (mut positions, mut subscriptions) = (Positions::new(true), Subscriptions::default());
    positions.handle_epoch(Some("e".into()), &mut subscriptions);
    let mut wait = |session: u32, names: std::ops::Range<u32>| {
        let session = Key { index: session, generation: 0 };
        let names = names.map(|name| (subscriptions.hold(&format!("db-{name}")), Given::Nothing)).collect();
        positions.wait(Pending::new(session, Reply::Silent, names, None), 0, &mut subscriptions);
    };
    for session in 0..20 {
        wait(session, session * 8_000..(session + 1) * 8_000);
    }
    // Its last name is far behind in the queue of another session.
    wait(20, 200_000..200_009);
    wait(21, 7_999..8_000);
    let batch = positions.next_batch(&mut subscriptions).expect("names");
    let names: HashSet<&str> = batch.databases.iter().map(|database| subscriptions.name(*database)).collect();
    assert_eq!(names.len(), MAX_NAMES);
    for name in (200_000..200_009).chain([7_999]) {
        assert!(names.contains(&*format!("db-{name}")), "{name}");
    }
    for session in 0..22 {
        for database in positions.cancel(Key { index: session, generation: 0 }).1 {
            subscriptions.release(database);
        }
    }
    while positions.has_work() {
        positions.sweep(&mut subscriptions);
    }
    assert!(positions.queue.is_empty() && positions.waiting() == 0);
    positions.handle_lookup(batch, None, (0, &mut Jitter::new(7)), &mut subscriptions, &mut Vec::new());
    positions.handle_timeout(60_000, &mut subscriptions);
    while positions.next_batch(&mut subscriptions).is_some() {}
    assert_eq!((subscriptions.held(), subscriptions.databases()), (0, 0));
    assert!(positions.in_flight.is_empty() && positions.waiting_for.is_empty());
}

#[test]
fn a_database_that_is_no_longer_needed_is_not_looked_up() {
    let (mut positions, mut subscriptions) = (Positions::new(true), Subscriptions::default());
    positions.handle_epoch(Some("e".into()), &mut subscriptions);
    for round in 0..3 {
        let names = (0..8_000).map(|name| subscriptions.hold(&format!("db-{round}-{name}")));
        let names: Vec<DatabaseId> = names.collect();
        let wanted = names.iter().map(|database| (*database, Given::Nothing)).collect();
        positions.wait(Pending::new(CLIENT, Reply::Silent, wanted, None), 0, &mut subscriptions);
        positions.withdraw(CLIENT, &names.into_iter().collect(), &mut subscriptions);
        let answered = positions.next_ready().expect("it waits for no database");
        assert!(answered.names.is_empty());
        answered.release(&mut subscriptions);
    }
    assert_eq!(positions.queue.len(), MAX_QUEUED_OF_SESSION, "the queue of one session is limited");
    let mut turns = 0;
    while positions.poll_timeout() == Some(0) || turns == 0 {
        assert!(positions.next_batch(&mut subscriptions).is_none());
        turns += 1;
    }
    assert_eq!(turns, 1 + MAX_QUEUED_OF_SESSION / TAKEN_A_TURN);
    assert_eq!((subscriptions.held(), subscriptions.databases()), (0, 0));
}

#[test]
fn after_a_doubt_databases_are_queued_over_several_turns() {
    let (mut positions, mut subscriptions) = (Positions::new(true), Subscriptions::new(100_000));
    positions.handle_epoch(Some("e".into()), &mut subscriptions);
    positions.sweep(&mut subscriptions);
    let count = 3 * SWEPT_A_TURN + 7;
    for name in 0..count {
        subscribed(&mut subscriptions, &format!("db-{name}"));
    }
    assert_eq!(positions.handle_doubt(0, &mut subscriptions).len(), count);
    let mut turns = 0;
    while positions.has_work() {
        let before = positions.queue.len();
        positions.sweep(&mut subscriptions);
        assert!(positions.queue.len() - before <= SWEPT_A_TURN);
        turns += 1;
    }
    assert_eq!((positions.queue.len(), turns), (count, 4));
    positions.handle_epoch(None, &mut subscriptions);
    subscriptions.remove_session(0);
    while positions.has_work() {
        positions.sweep(&mut subscriptions);
    }
    assert_eq!((subscriptions.databases(), subscriptions.held()), (0, 0));
}

/// Lets as many requests wait as `count` says, each for a database of its own.
fn waiting(count: usize) -> (Positions, Subscriptions) {
    let (mut positions, mut subscriptions) = (Positions::new(true), Subscriptions::default());
    positions.handle_epoch(Some("e".into()), &mut subscriptions);
    for name in 0..count {
        let names = vec![(subscriptions.hold(&format!("db-{name}")), Given::Nothing)];
        positions.wait(Pending::new(CLIENT, Reply::Ack(name as u64), names, None), 0, &mut subscriptions);
    }
    (positions, subscriptions)
}

#[test]
fn without_positions_waiting_requests_are_answered_one_by_one() {
    let (mut positions, mut subscriptions) = waiting(5_000);
    positions.handle_epoch(None, &mut subscriptions);
    assert!(positions.ready.is_empty() && positions.has_work(), "the number of requests does not matter yet");
    for number in 0..5_000 {
        let answered = positions.next_ready().expect("it waited");
        assert_eq!(answered.reply, Reply::Ack(number));
        answered.release(&mut subscriptions);
    }
    assert!(positions.next_ready().is_none());
    while positions.has_work() {
        positions.sweep(&mut subscriptions);
    }
    assert!(positions.waiting_for.is_empty() && positions.queue.is_empty());
    assert_eq!((positions.waiting(), subscriptions.held(), subscriptions.databases()), (0, 0, 0));
}

#[test]
fn late_requests_become_due_over_several_turns() {
    let (mut positions, mut subscriptions) = waiting(2 * EXPIRED_A_TURN + 1);
    for count in [EXPIRED_A_TURN, EXPIRED_A_TURN, 1] {
        assert_eq!(positions.poll_timeout(), Some(REPLY_TIMEOUT));
        positions.handle_timeout(REPLY_TIMEOUT, &mut subscriptions);
        assert_eq!(std::iter::from_fn(|| positions.next_ready()).count(), count);
    }
    assert_eq!((positions.waiting(), positions.poll_timeout()), (0, None));
}
