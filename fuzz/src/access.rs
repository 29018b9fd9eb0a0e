//! Permissions as the server drives them, without a server. A script stands for clients, CouchDB,
//! the feed and the clock, and a naive model knows which client may be notified of which database.
//!
//! A script consists of lines; a line that is no operation is skipped. `N` is the digit of a
//! session (0 to 5: users `u`, `v` and `w`, two sessions each), `name` one of a few databases:
//!
//! ```text
//! N>a,b     subscribes               N/a,b     unsubscribes          N#5     subscribes to 500 names that are missing
//! N-        leaves                   N=rs      its user has the roles r and s from here on (A: server admin)
//! @+a       a database is created, for admins      @-a   deleted     @=a     written to
//! @*a       everyone may read it     @ua       the user u may        @ra     the role r may
//! !a        CouchDB stops or resumes saying who may read a database
//! _2        the second line under way arrives
//! ?a        the position of a database is looked up
//! $1        CouchDB processes the second request          )1          its response arrives
//! ~1234     time passes, in milliseconds
//! &…        an operation, and the turn goes on with one step of the reconsidering
//! ```

use std::collections::{BTreeMap, BTreeSet, HashSet};

use couchdb_howler::state::access::{Access, Decision, MAX_LOOKUPS, Policy, Step, Undecided, Verdict};
use couchdb_howler::state::jitter::Jitter;
use couchdb_howler::state::session::Reply;
use couchdb_howler::state::subscriptions::{DatabaseId, Subscriptions};
use couchdb_howler::state::table::Key;
use couchdb_howler::state::timers::Millis;
use couchdb_howler::wire::couchdb::{ChangeKind, Revision};
use couchdb_howler::wire::positions::Given;
use couchdb_howler::wire::security::Security;

const SESSIONS: u32 = 6;
const USERS: [&str; 3] = ["u", "v", "w"];
/// The last two are a system database, and an impossible name.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "_users", ".."];
/// Longest time of a script, in milliseconds.
const MAX_OPERATIONS: usize = 300;
/// Longest wait of a `subscribe`, in milliseconds.
const ANSWER_WITHIN: Millis = 5_000;

/// Readers of a database: `*` for every user, small letters for users and roles.
type Members = BTreeSet<char>;

/// A database in CouchDB.
#[derive(Clone, Debug, Default)]
struct Truth {
    members: Option<Members>,
    counts: [u32; 3],
    is_silent: bool,
    /// Number of the last event that subscribers must be notified of.
    changed: u64,
}

/// The state of a database according to responses and lines.
#[derive(Clone, Debug, Default)]
struct Known {
    /// None before the first response; then the members, or that the database is missing.
    verdict: Option<Option<Members>>,
    in_doubt: bool,
    /// Kinds of the lines that arrived since the pending request was sent.
    since: Vec<ChangeKind>,
}

struct Question {
    database: DatabaseId,
    name: String,
    /// Result when CouchDB processed the request; None if it does not say.
    found: Option<Option<Option<Members>>>,
}

#[derive(Default)]
struct Session {
    roles: Vec<Box<str>>,
    /// Databases, each with the number of events at the time of its subscription.
    subscribed: BTreeMap<String, u64>,
    /// Last notification of each database, as the number of events then.
    notified: BTreeMap<String, u64>,
    /// Times at which the waiting requests began, by their number.
    asked: BTreeMap<u64, Millis>,
    generation: u32,
}

struct World {
    access: Access,
    subscriptions: Subscriptions,
    jitter: Jitter,
    now: Millis,
    truth: BTreeMap<&'static str, Truth>,
    known: BTreeMap<String, Known>,
    lines: Vec<(&'static str, ChangeKind, u32)>,
    questions: Vec<Question>,
    sessions: Vec<Session>,
    events: u64,
    requests: u64,
    bulk: u64,
}

/// Runs a script.
pub fn run(script: &str) {
    let mut world = World::new();
    for line in script.lines().take(MAX_OPERATIONS) {
        let (goes_on, line) = line.strip_prefix('&').map_or((false, line), |rest| (true, rest));
        world.operate(line);
        world.end_turn(if goes_on { 1 } else { usize::MAX });
    }
    world.finish();
}

fn known_name(text: &str) -> Option<&'static str> {
    NAMES.into_iter().find(|name| *name == text)
}

fn number(text: &str) -> Option<usize> {
    text.parse().ok()
}

impl World {
    fn new() -> Self {
        Self {
            access: Access::new(Policy::Members),
            subscriptions: Subscriptions::default(),
            jitter: Jitter::new(1),
            now: 0,
            truth: NAMES.into_iter().map(|name| (name, Truth::default())).collect(),
            known: BTreeMap::new(),
            lines: Vec::new(),
            questions: Vec::new(),
            sessions: (0..SESSIONS).map(|_| Session::default()).collect(),
            events: 0,
            requests: 0,
            bulk: 0,
        }
    }

    fn operate(&mut self, line: &str) {
        let mut letters = line.chars();
        let (Some(first), rest) = (letters.next(), letters.as_str()) else { return };
        match first {
            '0'..='5' => self.client(first as u32 - '0' as u32, rest),
            '@' => self.couchdb(rest),
            '!' => {
                if let Some(truth) = known_name(rest).and_then(|name| self.truth.get_mut(name)) {
                    truth.is_silent = !truth.is_silent;
                }
            }
            '_' => {
                if let Some(number) = number(rest).filter(|number| *number < self.lines.len()) {
                    let (name, kind, revision) = self.lines.remove(number);
                    self.line(name, kind, revision);
                }
            }
            '?' => self.look_up(rest),
            '$' => self.work(number(rest)),
            ')' => self.answer(number(rest)),
            '~' => {
                if let Some(time) = number(rest).filter(|time| *time <= 100_000) {
                    self.pass(time as Millis);
                }
            }
            _ => {}
        }
    }

    fn key(&self, session: u32) -> Key {
        Key { index: session, generation: self.sessions[session as usize].generation }
    }

    fn user(session: u32) -> &'static str {
        USERS[(session / 2) as usize]
    }

    fn client(&mut self, session: u32, rest: &str) {
        let mut letters = rest.chars();
        let (operation, rest) = (letters.next(), letters.as_str());
        let names = rest.split(',').filter_map(known_name).map(str::to_owned).collect::<BTreeSet<_>>();
        match operation {
            Some('>') if !names.is_empty() => self.subscribe(session, names.into_iter().collect()),
            Some('#') => {
                let count = number(rest).unwrap_or(0).min(5) * 100;
                self.bulk += 1;
                let names: Vec<String> = (0..count).map(|name| format!("bulk-{}-{name}", self.bulk)).collect();
                if count > 0 {
                    self.subscribe(session, names);
                }
            }
            Some('/') => self.unsubscribe(session, &names),
            Some('-') => self.leave(session),
            Some('=') => {
                let roles = rest.chars().filter(|role| "rsA".contains(*role));
                let named = |role: char| if role == 'A' { "_admin".into() } else { role.to_string().into() };
                let roles: Vec<Box<str>> = roles.map(named).collect();
                if self.sessions[session as usize].roles != roles {
                    self.sessions[session as usize].roles = roles;
                    self.access.reconsider_session(self.key(session), &self.subscriptions);
                }
            }
            _ => {}
        }
    }

    fn couchdb(&mut self, rest: &str) {
        let mut letters = rest.chars();
        let (Some(operation), Some(name)) = (letters.next(), known_name(letters.as_str())) else { return };
        // CouchDB has no database with an impossible name.
        let Some(truth) = self.truth.get_mut(name).filter(|_| name != "..") else { return };
        let kind = match (operation, &mut truth.members) {
            ('+', members @ None) => {
                *members = Some(Members::new());
                ChangeKind::Created
            }
            ('-', members @ Some(_)) => {
                *members = None;
                ChangeKind::Deleted
            }
            ('=', Some(_)) => ChangeKind::Updated,
            ('*' | 'u' | 'v' | 'w' | 'r' | 's', Some(members)) => {
                *members = Members::from([operation]);
                return;
            }
            _ => return,
        };
        self.events += 1;
        truth.changed = self.events;
        truth.counts[kind.index()] += 1;
        self.lines.push((name, kind, truth.counts[kind.index()]));
    }

    fn decide(&self, session: u32, database: DatabaseId) -> Decision {
        self.access.decide(database, Self::user(session), &self.sessions[session as usize].roles, &self.subscriptions)
    }

    fn subscribe(&mut self, session: u32, names: Vec<String>) {
        let names: Vec<_> = names.iter().map(|name| self.subscriptions.hold(name)).collect();
        let unknown: Vec<_> =
            names.iter().copied().filter(|name| self.decide(session, *name) == Decision::Unknown).collect();
        self.requests += 1;
        let named = names.into_iter().map(|name| (name, Given::Nothing)).collect();
        let undecided = Access::undecided(self.key(session), Reply::Ack(self.requests), named, None);
        if unknown.is_empty() {
            return self.complete(undecided);
        }
        let user = Self::user(session);
        if !self.access.has_room(user, unknown.len()) {
            return self.access.end(undecided, &mut self.subscriptions);
        }
        self.sessions[session as usize].asked.insert(self.requests, self.now);
        self.access.wait(undecided, &unknown, user, self.now, &mut self.subscriptions);
    }

    /// Subscribes to the databases that the user may read.
    fn complete(&mut self, undecided: Undecided) {
        let session = undecided.session.index;
        assert_eq!(undecided.session, self.key(session), "a session that has left subscribes to nothing");
        for (database, _) in &undecided.names {
            let name = self.subscriptions.name(*database).to_owned();
            match self.decide(session, *database) {
                Decision::Forbidden(_) => continue,
                Decision::Unknown => self.access.queue_lookup(*database, &mut self.subscriptions),
                Decision::Allowed => {}
            }
            // A database that is not known to exist looks like a missing one.
            let hidden = self.known.get(&name).is_none_or(|known| known.verdict == Some(None));
            let shown = self.access.visible_position(*database, &self.subscriptions);
            let is_admin = self.sessions[session as usize].roles.iter().any(|role| **role == *"_admin");
            assert!(!hidden || is_admin || shown.is_none_or(|position| !position.is_there()), "{name} is there");
            if self.subscriptions.subscribe(session, *database).expect("within the limit") {
                self.sessions[session as usize].subscribed.insert(name, self.events);
            }
        }
        self.access.end(undecided, &mut self.subscriptions);
    }

    fn unsubscribe(&mut self, session: u32, names: &BTreeSet<String>) {
        let ids: HashSet<_> = names.iter().filter_map(|name| self.subscriptions.find(name)).collect();
        for database in &ids {
            self.subscriptions.unsubscribe(session, *database);
        }
        self.access.withdraw(self.key(session), &ids, &mut self.subscriptions);
        for database in &ids {
            self.access.drop_unused(*database, &mut self.subscriptions);
        }
        self.sessions[session as usize].subscribed.retain(|name, _| !names.contains(name));
    }

    fn leave(&mut self, session: u32) {
        let cancelled = self.access.cancel(self.key(session), &mut self.subscriptions);
        let databases: Vec<_> = self.subscriptions.of_session(session).map(|(database, _)| database).collect();
        self.subscriptions.remove_session(session);
        for database in databases {
            self.access.drop_unused(database, &mut self.subscriptions);
        }
        let its = &mut self.sessions[session as usize];
        let waited: BTreeSet<_> = its.asked.keys().map(|number| format!("{:?}", Reply::Ack(*number))).collect();
        assert!(cancelled.iter().all(|reply| waited.contains(&format!("{reply:?}"))));
        *its = Session { generation: its.generation + 1, ..Session::default() };
    }

    fn line(&mut self, name: &'static str, kind: ChangeKind, revision: u32) {
        let Some(database) = self.subscriptions.find(name) else { return };
        let before = self.subscriptions.notified(database);
        let revision = Revision::parse(&format!("{revision}-{revision}")).expect("a revision");
        let is_news = self.subscriptions.tracked_mut(database).handle_line(kind, Some(revision), self.now);
        self.notify(database, name, kind, is_news, before);
    }

    fn notify(
        &mut self,
        database: DatabaseId,
        name: &str,
        kind: ChangeKind,
        is_news: bool,
        before: Option<couchdb_howler::wire::positions::Position>,
    ) {
        let notifies = self.access.handle_line(database, kind, is_news, before, &self.subscriptions);
        let known = self.known.entry(name.to_owned()).or_default();
        if notifies {
            // Users who could read the database until then are notified of its deletion.
            Self::check(&self.subscriptions, &self.access, &self.sessions, known, database);
        }
        known.since.push(kind);
        known.in_doubt |= kind != ChangeKind::Updated || !matches!(known.verdict, Some(Some(_)));
        if kind == ChangeKind::Deleted && is_news {
            known.verdict = Some(None);
        }
        if notifies {
            self.mark(database, kind);
        }
    }

    /// Asserts that no session is notified of a database in doubt, or of one that it may not read.
    fn check(
        subscriptions: &Subscriptions,
        access: &Access,
        sessions: &[Session],
        known: &Known,
        database: DatabaseId,
    ) {
        for place in 0..subscriptions.subscriber_count(database) {
            let index = subscriptions.subscriber_at(database, place).expect("it is there");
            let session = &sessions[index as usize];
            let is_admin = session.roles.iter().any(|role| **role == *"_admin");
            if is_admin || access.is_withheld(Key { index, generation: session.generation }) {
                continue;
            }
            assert!(!known.in_doubt, "{} is in doubt", subscriptions.name(database));
            let may = match &known.verdict {
                None => false,
                Some(None) => true,
                Some(Some(members)) => may_read(members, Self::user(index), &session.roles),
            };
            assert!(may, "session {index} may not read {}", subscriptions.name(database));
        }
    }

    fn mark(&mut self, database: DatabaseId, kind: ChangeKind) {
        self.subscriptions.mark(database, kind, &mut Vec::new());
    }

    fn look_up(&mut self, name: &str) {
        let Some(database) = self.subscriptions.find(name) else { return };
        let Some(truth) = self.truth.get(name) else { return };
        let rows = truth.counts.map(|count| match count {
            0 => Revision::default(),
            count => Revision::parse(&format!("{count}-{count}")).expect("a revision"),
        });
        let subscribed = self.subscriptions.has_subscribers(database);
        let kinds = self.subscriptions.tracked_mut(database).handle_lookup(rows, subscribed, self.now);
        for kind in kinds.collect::<Vec<_>>() {
            self.notify(database, name, kind, true, None);
        }
    }

    fn work(&mut self, number: Option<usize>) {
        let Some(question) = number.and_then(|number| self.questions.get_mut(number)) else { return };
        if question.found.is_none() {
            let truth = self.truth.get(&*question.name).cloned().unwrap_or_default();
            question.found = Some((!truth.is_silent).then_some(truth.members));
        }
    }

    fn answer(&mut self, number: Option<usize>) {
        let Some(number) = number.filter(|number| *number < self.questions.len()) else { return };
        self.work(Some(number));
        let Question { database, name, found } = self.questions.remove(number);
        let found = found.expect("worked on");
        let verdict = found.as_ref().map(|members| match members {
            None => Verdict::Missing,
            Some(members) => security(members),
        });
        let known = self.known.entry(name.clone()).or_default();
        let is_old = known.since.iter().any(|kind| *kind != ChangeKind::Updated);
        let is_old = is_old || (!known.since.is_empty() && found == Some(None));
        if let Some(members) = found.filter(|_| !is_old) {
            (known.verdict, known.in_doubt) = (Some(members), false);
        }
        let times = (self.now, &mut self.jitter);
        self.subscriptions.hold_id(database);
        if let Some(kind) = self.access.handle_verdict(database, verdict, times, &mut self.subscriptions) {
            let known = &self.known[&name];
            Self::check(&self.subscriptions, &self.access, &self.sessions, known, database);
            self.mark(database, kind);
        }
        self.access.release(database, &mut self.subscriptions);
    }

    fn pass(&mut self, time: Millis) {
        let until = self.now + time;
        while self.now < until {
            let due = self.access.poll_timeout().unwrap_or(until);
            self.now = due.clamp(self.now, until);
            self.access.handle_timeout(self.now, &mut self.subscriptions);
            self.end_turn(usize::MAX);
            if due > until {
                break;
            }
        }
        self.now = until;
    }

    fn end_turn(&mut self, steps: usize) {
        self.access.sweep(&mut self.subscriptions);
        for _ in 0..steps {
            match self.access.next_step(&self.subscriptions) {
                None => break,
                Some(Step::Decide(session, database)) => self.reconsider(session, database),
                Some(Step::Notify(database, kind)) => {
                    let name = self.subscriptions.name(database).to_owned();
                    let known = self.known.entry(name).or_default();
                    Self::check(&self.subscriptions, &self.access, &self.sessions, known, database);
                    self.mark(database, kind);
                }
                Some(Step::Resume(_)) => {}
            }
        }
        while let Some(undecided) = self.access.next_ready() {
            self.answered(&undecided);
            self.complete(undecided);
        }
        while let Some(undecided) = self.access.next_late() {
            self.answered(&undecided);
            self.access.end(undecided, &mut self.subscriptions);
        }
        while let Some(database) = self.access.next_lookup(&mut self.subscriptions) {
            let name = self.subscriptions.name(database).to_owned();
            assert!(name != ".." && name != "_users", "{name} is never asked about");
            assert!(self.questions.iter().all(|question| question.name != name), "{name} is asked about twice");
            self.known.entry(name.clone()).or_default().since.clear();
            self.questions.push(Question { database, name, found: None });
        }
        assert!(self.questions.len() <= MAX_LOOKUPS);
        for session in 0..SESSIONS {
            if self.access.is_withheld(self.key(session)) {
                continue;
            }
            while let Some((database, _)) = self.subscriptions.take_dirty(session) {
                let name = self.subscriptions.name(database).to_owned();
                self.sessions[session as usize].notified.insert(name, self.events);
            }
        }
    }

    fn answered(&mut self, undecided: &Undecided) {
        let Reply::Ack(number) = undecided.reply else { unreachable!("all have a number") };
        let asked = self.sessions[undecided.session.index as usize].asked.remove(&number);
        let at = asked.expect("each request is answered once");
        assert!(self.now <= at + ANSWER_WITHIN, "in time");
    }

    fn reconsider(&mut self, session: u32, database: DatabaseId) {
        match self.decide(session, database) {
            Decision::Allowed => {}
            Decision::Unknown => self.access.queue_lookup(database, &mut self.subscriptions),
            Decision::Forbidden(_) => {
                let name = self.subscriptions.name(database).to_owned();
                if self.subscriptions.unsubscribe(session, database) {
                    self.sessions[session as usize].subscribed.remove(&name);
                }
            }
        }
    }

    /// Delivers everything under way, then ends all sessions.
    fn finish(&mut self) {
        for truth in self.truth.values_mut() {
            truth.is_silent = false;
        }
        self.end_turn(usize::MAX);
        while !self.lines.is_empty() {
            self.operate("_0");
            self.end_turn(usize::MAX);
        }
        // Two refreshes, and the longest time until a request is repeated.
        for _ in 0..40 {
            while !self.questions.is_empty() {
                self.answer(Some(0));
                self.end_turn(usize::MAX);
            }
            self.pass(5_000);
        }
        for (index, session) in self.sessions.iter().enumerate() {
            let user = Self::user(u32::try_from(index).expect("few"));
            assert!(session.asked.is_empty());
            for (name, since) in &session.subscribed {
                let Some(truth) = self.truth.get(&**name) else { continue };
                let is_admin = session.roles.iter().any(|role| **role == *"_admin");
                let may = truth.members.as_ref().is_none_or(|members| may_read(members, user, &session.roles));
                assert!(is_admin || may || *name == "..", "{user} is still subscribed to {name}");
                assert!(is_admin || name != "_users");
                let notified = session.notified.get(name).copied().unwrap_or(0);
                assert!(truth.changed <= *since || notified > 0 || *name == "..", "{user} was not notified of {name}");
            }
        }
        for session in 0..SESSIONS {
            self.leave(session);
        }
        self.end_turn(usize::MAX);
        while !self.questions.is_empty() {
            self.answer(Some(0));
            self.end_turn(usize::MAX);
        }
        self.pass(100_000);
        assert!(self.questions.is_empty() && self.access.is_empty() && !self.access.has_work());
        assert_eq!((self.access.queued_lookups(), self.subscriptions.held()), (0, 0), "nothing is left behind");
    }
}

fn may_read(members: &Members, user: &str, roles: &[Box<str>]) -> bool {
    let listed = |name: &str| name.len() == 1 && members.contains(&name.chars().next().expect("one letter"));
    members.contains(&'*') || listed(user) || roles.iter().any(|role| listed(role))
}

fn security(members: &Members) -> Verdict {
    let list = |letters: &str| -> Vec<String> {
        members.iter().filter(|member| letters.contains(**member)).map(|member| format!("\"{member}\"")).collect()
    };
    let (names, roles) = (list("uvw").join(","), list("rs").join(","));
    let text = match (members.contains(&'*'), members.is_empty()) {
        (true, _) => "{}".to_owned(),
        (_, true) => r#"{"members":{"roles":["_admin"]}}"#.to_owned(),
        _ => format!(r#"{{"members":{{"names":[{names}],"roles":[{roles}]}}}}"#),
    };
    Verdict::Security(Box::new(Security::parse(text.as_bytes()).expect("an object")))
}
