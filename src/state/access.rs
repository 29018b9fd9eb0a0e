//! Who may subscribe to what: the `_security` of each watched database, read once for all, kept while someone
//! subscribes, and read again every minute and when the database is made or deleted.
//!
//! ```text
//!  subscribe ──▶ Asked ──▶ Known(security | missing) ──▶ decided
//!                 ▲              │ a minute, or a line `created` or `deleted`
//!                 └──────────────┘ asked again; what was known counts meanwhile
//! ```
//!
//! A database that does not exist may be subscribed to, and nobody is told of its making before it was asked who may
//! read it.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::state::positions::Named;
use crate::state::session::Reply;
use crate::state::subscriptions::{DatabaseId, Subscriptions};
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::database_name;
use crate::wire::security::{Refusal, Security, is_server_admin, is_system};

/// Who may subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Whoever logged in, to everything.
    Open,
    /// Those who may read a database.
    Members,
}

/// What is known is asked again after so long, in milliseconds: the answer is there within a minute.
const REFRESH: Millis = 50_000;
/// A question that was not answered is asked again after this long, in milliseconds.
const RETRY: Millis = 1_000;
/// A `subscribe` fails when it is not decided after this long, in milliseconds.
const DECIDE_WITHIN: Millis = 5_000;
/// Most questions at once.
pub const MAX_QUESTIONS: usize = 4;
/// Most databases of which something is known or asked.
const MAX_ENTRIES: usize = 500_000;

/// What CouchDB says of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Who may read it.
    Security(Security),
    /// Its `_security` is too long to be read: only server admins may watch it.
    TooLarge,
    /// It does not exist.
    Missing,
}

/// Whether someone may subscribe to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allowed,
    /// No.
    Forbidden(Refusal),
    /// CouchDB has to be asked.
    Unknown,
}

/// A `subscribe` that waits for decisions.
#[derive(Debug)]
pub struct Undecided {
    /// Who subscribes.
    pub session: Key,
    /// How to answer.
    pub reply: Reply,
    /// To what.
    pub names: Named,
    /// The epoch of the positions beside the names.
    pub epoch: Option<Box<str>>,
    missing: usize,
}

impl Undecided {
    /// It is not to be answered any more, or was refused.
    pub fn release(self, subscriptions: &mut Subscriptions) {
        for (database, _) in self.names {
            subscriptions.release(database);
        }
    }
}

/// What is known of a database, which is held once for that.
#[derive(Debug, Default)]
struct Entry {
    verdict: Option<Verdict>,
    /// Whether a question waits or is under way.
    asked: bool,
    /// What happened since the question under way was asked: its answer may be from before that.
    since: Option<ChangeKind>,
    waiting: Vec<Key>,
    /// What is to be told once it is decided to whom.
    untold: Option<ChangeKind>,
    /// Whether it is in the queue of those to be asked again.
    queued: bool,
}

impl Entry {
    /// Something happens to the database.
    fn note(&mut self, kind: ChangeKind) {
        let earlier = self.since.filter(|_| kind == ChangeKind::Updated);
        self.since = self.asked.then_some(earlier.unwrap_or(kind));
    }

    /// Whether an answer may be from before something that it depends on. An update says no more than that the database
    /// is there; if each of them made an answer worthless, a busy database would never have one.
    fn is_from_before(&self, verdict: Option<&Verdict>) -> bool {
        match self.since {
            None => false,
            Some(ChangeKind::Updated) => verdict == Some(&Verdict::Missing),
            Some(ChangeKind::Created | ChangeKind::Deleted) => true,
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Access {
    policy: Policy,
    entries: HashMap<DatabaseId, Entry>,
    /// Databases with an entry, as are those below.
    questions: VecDeque<DatabaseId>,
    asking: usize,
    undecided: Table<Undecided>,
    undecided_of: HashMap<Key, Vec<Key>>,
    deadlines: VecDeque<(Millis, Key)>,
    /// When to ask again, soonest first within each kind.
    refreshes: VecDeque<(Millis, DatabaseId)>,
    retries: VecDeque<(Millis, DatabaseId)>,
    ready: VecDeque<Undecided>,
    late: VecDeque<Undecided>,
}

impl Access {
    /// The machine for a policy.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            entries: HashMap::new(),
            questions: VecDeque::new(),
            asking: 0,
            undecided: Table::default(),
            undecided_of: HashMap::new(),
            deadlines: VecDeque::new(),
            refreshes: VecDeque::new(),
            retries: VecDeque::new(),
            ready: VecDeque::new(),
            late: VecDeque::new(),
        }
    }

    /// Whether anything is restricted.
    pub fn is_restricted(&self) -> bool {
        self.policy == Policy::Members
    }

    /// Whether CouchDB said of a database that it does not exist.
    pub fn is_missing(&self, database: DatabaseId) -> bool {
        self.entries.get(&database).is_some_and(|entry| entry.verdict == Some(Verdict::Missing))
    }

    /// Whether someone may subscribe to a database, as far as is known.
    pub fn decide(
        &self,
        database: DatabaseId,
        user: &str,
        roles: &[Box<str>],
        subscriptions: &Subscriptions,
    ) -> Decision {
        if !self.is_restricted() || is_server_admin(roles) {
            return Decision::Allowed;
        }
        let name = subscriptions.name(database);
        if is_system(name) {
            return Decision::Forbidden(Refusal::NotReader);
        }
        if !database_name::is_possible(name) {
            // CouchDB has no such database, and is not asked.
            return Decision::Allowed;
        }
        match self.entries.get(&database).and_then(|entry| entry.verdict.as_ref()) {
            None => Decision::Unknown,
            Some(Verdict::Missing) => Decision::Allowed,
            Some(Verdict::Security(security)) if security.may_read(user, roles) => Decision::Allowed,
            Some(Verdict::Security(_)) => Decision::Forbidden(Refusal::NotReader),
            Some(Verdict::TooLarge) => Decision::Forbidden(Refusal::TooLarge),
        }
    }

    /// Puts a `subscribe` aside until all its databases are decided.
    pub fn wait(
        &mut self,
        undecided: Undecided,
        unknown: &[DatabaseId],
        now: Millis,
        subscriptions: &mut Subscriptions,
    ) {
        let session = undecided.session;
        let key = self.undecided.insert(Undecided { missing: unknown.len(), ..undecided });
        self.undecided_of.entry(session).or_default().push(key);
        for database in unknown {
            self.ask(*database, subscriptions);
            if let Some(entry) = self.entries.get_mut(database) {
                if entry.waiting.len() == entry.waiting.capacity() {
                    let undecided = &self.undecided;
                    entry.waiting.retain(|key| undecided.get(*key).is_some());
                }
                entry.waiting.push(key);
            }
        }
        self.deadlines.push_back((now + DECIDE_WITHIN, key));
    }

    /// A `subscribe` that waits, for a request of one session and a name; see [`Access::wait`].
    pub fn undecided(session: Key, reply: Reply, names: Named, epoch: Option<Box<str>>) -> Undecided {
        Undecided { session, reply, names, epoch, missing: 0 }
    }

    /// To how many names a session is about to be subscribed once they are decided.
    pub fn pending_names(&self, session: Key) -> usize {
        let keys = self.undecided_of.get(&session).into_iter().flatten();
        keys.filter_map(|key| self.undecided.get(*key)).map(|undecided| undecided.names.len()).sum()
    }

    /// How many requests of a session wait.
    pub fn pending_requests(&self, session: Key) -> usize {
        self.undecided_of.get(&session).map_or(0, Vec::len)
    }

    /// Withdraws databases from the requests of a session, in time linear in both.
    pub fn withdraw(&mut self, session: Key, databases: &HashSet<DatabaseId>, subscriptions: &mut Subscriptions) {
        for key in self.undecided_of.get(&session).into_iter().flatten() {
            if let Some(undecided) = self.undecided.get_mut(*key) {
                undecided.names.retain(|(database, _)| {
                    let stays = !databases.contains(database);
                    if !stays {
                        subscriptions.release(*database);
                    }
                    stays
                });
            }
        }
    }

    /// Takes all requests of a session back: how each wanted to be answered.
    pub fn cancel(&mut self, session: Key, subscriptions: &mut Subscriptions) -> Vec<Reply> {
        for queue in [&mut self.ready, &mut self.late] {
            let (cancelled, others): (VecDeque<_>, _) =
                queue.drain(..).partition(|undecided| undecided.session == session);
            *queue = others;
            for undecided in cancelled {
                undecided.release(subscriptions);
            }
        }
        let mut replies = Vec::new();
        for key in self.undecided_of.remove(&session).unwrap_or_default() {
            if let Some(undecided) = self.undecided.remove(key) {
                replies.push(undecided.reply.clone());
                undecided.release(subscriptions);
            }
        }
        replies
    }

    /// A request does not wait any more.
    fn take_undecided(&mut self, key: Key) -> Option<Undecided> {
        let undecided = self.undecided.remove(key)?;
        if let Some(keys) = self.undecided_of.get_mut(&undecided.session) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.undecided_of.remove(&undecided.session);
            }
        }
        Some(undecided)
    }

    /// The next request all of whose databases are decided.
    pub fn next_ready(&mut self) -> Option<Undecided> {
        self.ready.pop_front()
    }

    /// The next request that could not be decided in time.
    pub fn next_late(&mut self) -> Option<Undecided> {
        self.late.pop_front()
    }

    /// Has CouchDB asked about a database. No subscriber is notified until it is known who may read it.
    pub fn ask(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        if !self.entries.contains_key(&database) {
            if self.entries.len() >= MAX_ENTRIES {
                return;
            }
            subscriptions.hold_id(database);
        }
        self.entries.entry(database).or_default();
        self.ask_again(database);
    }

    /// Has CouchDB asked about a database that has an entry.
    fn ask_again(&mut self, database: DatabaseId) {
        let Some(entry) = self.entries.get_mut(&database) else { return };
        if !std::mem::replace(&mut entry.asked, true) {
            self.questions.push_back(database);
        }
    }

    fn forget(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        if self.entries.remove(&database).is_some() {
            subscriptions.release(database);
        }
    }

    /// The next database to ask CouchDB about, unless enough is asked. It is kept until the answer.
    pub fn next_question(&mut self) -> Option<DatabaseId> {
        if self.asking >= MAX_QUESTIONS {
            return None;
        }
        let database = self.questions.pop_front()?;
        if let Some(entry) = self.entries.get_mut(&database) {
            entry.since = None;
        }
        self.asking += 1;
        Some(database)
    }

    /// A line of the feed, or a position, tells of a change of a database: whether its subscribers are to be told now. If
    /// they may not, they are when it is known who may. What is no news was told before, or is in the answers to those
    /// who subscribed since.
    pub fn handle_line(
        &mut self,
        database: DatabaseId,
        kind: ChangeKind,
        is_news: bool,
        subscriptions: &Subscriptions,
    ) -> bool {
        let is_restricted = self.is_restricted();
        let Some(entry) = self.entries.get_mut(&database) else {
            // One without an entry has no subscribers but server admins, or is one that CouchDB cannot have.
            return is_news && (!is_restricted || database_name::is_possible(subscriptions.name(database)));
        };
        let is_there = matches!(entry.verdict, Some(Verdict::Security(_) | Verdict::TooLarge));
        let in_doubt = !is_there || kind == ChangeKind::Created || entry.untold.is_some();
        // Of one that was not there nobody was told.
        if in_doubt && (is_news || !is_there) {
            entry.untold = Some(entry.untold.map_or(kind, |earlier| earlier.merge(kind)));
        }
        if in_doubt || kind == ChangeKind::Deleted {
            entry.note(kind);
            self.ask_again(database);
        }
        is_news && !in_doubt
    }

    /// CouchDB answered about a database; None when it could not say. Returns what is to be told now to those of its
    /// subscribers who may read it. The database may be kept no longer.
    pub fn handle_verdict(
        &mut self,
        database: DatabaseId,
        verdict: Option<Verdict>,
        now: Millis,
        subscriptions: &mut Subscriptions,
    ) -> Option<ChangeKind> {
        self.asking -= 1;
        let entry = self.entries.get_mut(&database)?;
        if verdict.is_none() {
            self.retries.push_back((now + RETRY, database));
            return None;
        }
        if entry.is_from_before(verdict.as_ref()) {
            self.questions.push_back(database);
            return None;
        }
        entry.asked = false;
        entry.verdict = verdict;
        let untold = entry.untold.take();
        let waiting = std::mem::take(&mut entry.waiting);
        if !subscriptions.has_subscribers(database) && waiting.is_empty() && !entry.queued {
            self.forget(database, subscriptions);
            return None;
        }
        if !std::mem::replace(&mut entry.queued, true) {
            self.refreshes.push_back((now + REFRESH, database));
        }
        for key in waiting {
            let Some(undecided) = self.undecided.get_mut(key) else { continue };
            undecided.missing -= 1;
            if undecided.missing == 0 {
                let undecided = self.take_undecided(key);
                self.ready.extend(undecided);
            }
        }
        untold
    }

    /// When [`Access::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let again = [&self.refreshes, &self.retries].map(|queue| queue.front().map(|(at, _)| *at));
        again.into_iter().chain([deadline]).flatten().min()
    }

    /// Does what the time asks for.
    pub fn handle_timeout(&mut self, now: Millis, subscriptions: &mut Subscriptions) {
        while self.deadlines.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.deadlines.pop_front() {
                let undecided = self.take_undecided(key);
                self.late.extend(undecided);
            }
        }
        while self.retries.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, database)) = self.retries.pop_front() {
                self.questions.push_back(database);
            }
        }
        while self.refreshes.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, database)) = self.refreshes.pop_front() else { break };
            let Some(entry) = self.entries.get_mut(&database) else { continue };
            entry.queued = false;
            if subscriptions.has_subscribers(database) || !entry.waiting.is_empty() {
                self.ask_again(database);
            } else if !entry.asked {
                self.forget(database, subscriptions);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::positions::Given;
    use ChangeKind::{Created, Deleted, Updated};

    const FIRST: Key = Key { index: 0, generation: 0 };
    const SECOND: Key = Key { index: 1, generation: 0 };

    fn security(json: &str) -> Option<Verdict> {
        Security::parse(json.as_bytes()).map(Verdict::Security)
    }

    fn of(user: &str) -> Option<Verdict> {
        security(&format!(r#"{{"members":{{"names":["{user}"]}}}}"#))
    }

    /// The machine beside the table of names.
    struct Asked {
        access: Access,
        subscriptions: Subscriptions,
    }

    impl std::ops::Deref for Asked {
        type Target = Access;

        fn deref(&self) -> &Access {
            &self.access
        }
    }

    impl Asked {
        fn new(policy: Policy) -> Self {
            Self { access: Access::new(policy), subscriptions: Subscriptions::default() }
        }

        /// The database of a name, kept for the rest of the test.
        fn id(&mut self, name: &str) -> DatabaseId {
            self.subscriptions.hold(name)
        }

        /// Somebody subscribes to a database, or nobody does any more.
        fn watch(&mut self, name: &str, subscribed: bool) {
            let database = self.id(name);
            if subscribed {
                self.subscriptions.subscribe(0, database).expect("few");
            } else {
                self.subscriptions.unsubscribe(0, database);
            }
        }

        fn decide(&mut self, name: &str, user: &str, roles: &[Box<str>]) -> Decision {
            let database = self.id(name);
            self.access.decide(database, user, roles, &self.subscriptions)
        }

        fn is_missing(&mut self, name: &str) -> bool {
            let database = self.id(name);
            self.access.is_missing(database)
        }

        fn handle_line(&mut self, name: &str, kind: ChangeKind, is_news: bool) -> bool {
            let database = self.id(name);
            self.access.handle_line(database, kind, is_news, &self.subscriptions)
        }

        fn handle_verdict(
            &mut self,
            name: &str,
            verdict: Option<Verdict>,
            wanted: bool,
            now: Millis,
        ) -> Option<ChangeKind> {
            self.watch(name, wanted);
            let database = self.id(name);
            self.access.handle_verdict(database, verdict, now, &mut self.subscriptions)
        }

        fn handle_timeout(&mut self, now: Millis, wanted: bool) {
            self.watch("db", wanted);
            self.access.handle_timeout(now, &mut self.subscriptions);
        }

        fn withdraw(&mut self, session: Key, name: &str) {
            let database = self.id(name);
            self.access.withdraw(session, &[database].into(), &mut self.subscriptions);
        }

        fn cancel(&mut self, session: Key) -> Vec<Reply> {
            self.access.cancel(session, &mut self.subscriptions)
        }
    }

    fn subscribe(asked: &mut Asked, session: Key, names: &[&str], now: Millis) {
        let unknown: Vec<DatabaseId> = names.iter().map(|name| asked.id(name)).collect();
        let wanted = unknown.iter().map(|database| (*database, Given::Nothing)).collect();
        let undecided = Access::undecided(session, Reply::Silent, wanted, None);
        asked.access.wait(undecided, &unknown, now, &mut asked.subscriptions);
    }

    fn ready(asked: &mut Asked) -> Vec<Key> {
        std::iter::from_fn(|| asked.access.next_ready()).map(|undecided| undecided.session).collect()
    }

    fn questions(asked: &mut Asked) -> Vec<String> {
        let Asked { access, subscriptions } = asked;
        std::iter::from_fn(|| access.next_question()).map(|database| subscriptions.name(database).to_owned()).collect()
    }

    /// A machine that knows one database, which someone subscribes to.
    fn knows(verdict: Option<Verdict>) -> Asked {
        let mut access = Asked::new(Policy::Members);
        subscribe(&mut access, FIRST, &["db"], 0);
        assert_eq!(questions(&mut access), ["db"]);
        assert_eq!(access.handle_verdict("db", verdict, true, 0), None);
        assert_eq!(ready(&mut access), [FIRST]);
        access
    }

    #[test]
    fn a_database_is_asked_about_once_for_all_who_wait() {
        let mut access = Asked::new(Policy::Members);
        subscribe(&mut access, FIRST, &["a", "b"], 0);
        subscribe(&mut access, SECOND, &["b"], 0);
        assert_eq!((access.pending_names(FIRST), access.pending_requests(FIRST)), (2, 1));
        assert_eq!(questions(&mut access), ["a", "b"]);
        access.handle_verdict("b", of("u"), false, 0);
        assert_eq!(ready(&mut access), [SECOND]);
        access.handle_verdict("a", Some(Verdict::Missing), false, 0);
        assert_eq!(ready(&mut access), [FIRST]);
        assert_eq!((access.pending_names(FIRST), access.pending_requests(FIRST)), (0, 0));
        assert_eq!(access.decide("a", "u", &[]), Decision::Allowed, "it does not exist");
        assert_eq!(access.decide("b", "u", &[]), Decision::Allowed);
        assert_eq!(access.decide("b", "v", &[]), Decision::Forbidden(Refusal::NotReader));
        assert_eq!(access.decide("b", "v", &["_admin".into()]), Decision::Allowed);
        assert_eq!(access.decide("_users", "u", &[]), Decision::Forbidden(Refusal::NotReader));
        assert_eq!(access.decide("c", "u", &[]), Decision::Unknown);
        assert_eq!(Asked::new(Policy::Open).decide("_users", "u", &[]), Decision::Allowed);
    }

    #[test]
    fn few_questions_are_under_way_at_once() {
        let mut access = Asked::new(Policy::Members);
        let names: Vec<String> = (0..10).map(|number| format!("db-{number}")).collect();
        subscribe(&mut access, FIRST, &names.iter().map(String::as_str).collect::<Vec<_>>(), 0);
        assert_eq!(questions(&mut access).len(), MAX_QUESTIONS);
        access.handle_verdict("db-0", of("u"), false, 0);
        assert_eq!(questions(&mut access), ["db-4"]);
    }

    #[test]
    fn who_may_read_is_asked_again_within_each_minute_while_someone_subscribes() {
        let mut access = knows(of("u"));
        let (mut answered, mut now) = (0, 0);
        while now < 600_000 {
            now = access.poll_timeout().expect("it is watched");
            access.handle_timeout(now, true);
            assert_eq!(access.decide("db", "u", &[]), Decision::Allowed, "what was known counts meanwhile");
            if questions(&mut access).is_empty() {
                continue;
            }
            now += 5_000;
            assert!(now - answered <= 60_000, "{answered} to {now}");
            answered = now;
            access.handle_verdict("db", of("u"), true, now);
        }
        access.handle_timeout(now + REFRESH, true);
        assert_eq!(questions(&mut access), ["db"]);
        access.handle_verdict("db", of("v"), true, now);
        assert_eq!(access.decide("db", "u", &[]), Decision::Forbidden(Refusal::NotReader));
        access.handle_timeout(now + REFRESH, false);
        assert!(access.entries.is_empty() && access.poll_timeout().is_none(), "nobody subscribes any more");
    }

    #[test]
    fn what_is_not_there_is_told_to_nobody_before_it_was_asked_about() {
        let mut access = knows(Some(Verdict::Missing));
        assert!(access.is_missing("db"));
        assert!(!access.handle_line("db", Created, true) && !access.handle_line("db", Updated, true));
        assert_eq!(questions(&mut access), ["db"]);
        assert_eq!(access.handle_verdict("db", None, true, 0), None);
        assert!(!access.handle_line("db", Updated, true), "CouchDB did not say");
        assert_eq!(questions(&mut access), [] as [&str; 0]);
        access.handle_timeout(RETRY, true);
        assert_eq!(questions(&mut access), ["db"]);
        assert_eq!(access.handle_verdict("db", of("u"), true, RETRY), Some(Created));
        assert!(access.handle_line("db", Updated, true));
        // A position told of it before the line.
        let mut access = knows(Some(Verdict::Missing));
        assert!(!access.handle_line("db", Created, false));
        assert_eq!(questions(&mut access), ["db"]);
        assert_eq!(access.handle_verdict("db", of("u"), true, 0), Some(Created), "nobody was told of it");
    }

    #[test]
    fn a_database_that_is_deleted_or_made_anew_is_asked_about() {
        let mut access = knows(of("u"));
        assert!(access.handle_line("db", Updated, true) && !access.handle_line("db", Updated, false));
        assert_eq!(questions(&mut access), [] as [&str; 0]);
        assert!(access.handle_line("db", Deleted, true), "those who could read it are told");
        assert_eq!(questions(&mut access), ["db"]);
        assert!(!access.handle_line("db", Created, true));
        assert_eq!(access.handle_verdict("db", Some(Verdict::Missing), true, 0), None, "from in between, maybe");
        assert!(!access.is_missing("db"));
        assert_eq!(questions(&mut access), ["db"]);
        assert_eq!(access.handle_verdict("db", of("v"), true, 0), Some(Created));
        assert_eq!(access.decide("db", "u", &[]), Decision::Forbidden(Refusal::NotReader));
        assert!(!access.handle_line("db", Created, false));
        assert_eq!(questions(&mut access), ["db"], "it is asked about, too, when it was told of before");
        assert_eq!(access.handle_verdict("db", of("v"), true, 0), None);
    }

    #[test]
    fn a_busy_database_gets_its_answer() {
        let mut access = knows(Some(Verdict::Missing));
        assert!(!access.handle_line("db", Created, true));
        assert_eq!(questions(&mut access), ["db"]);
        assert!(!access.handle_line("db", Updated, true));
        assert_eq!(access.handle_verdict("db", Some(Verdict::Missing), true, 0), None, "it was there by then");
        assert_eq!(questions(&mut access), ["db"]);
        assert!(!access.handle_line("db", Updated, true));
        assert!(access.handle_verdict("db", of("u"), true, 0).is_some());
        // One that was deleted at once is missing for good.
        let mut access = knows(Some(Verdict::Missing));
        assert!(!access.handle_line("db", Created, true) && !access.handle_line("db", Deleted, true));
        assert_eq!(questions(&mut access), ["db"]);
        assert!(access.handle_verdict("db", Some(Verdict::Missing), true, 0).is_some());
        assert_eq!(questions(&mut access), [] as [&str; 0]);
    }

    #[test]
    fn who_cannot_be_decided_about_in_time_is_told_so() {
        let mut access = Asked::new(Policy::Members);
        subscribe(&mut access, FIRST, &["a"], 0);
        subscribe(&mut access, SECOND, &["a", "b"], 0);
        assert_eq!(questions(&mut access), ["a", "b"]);
        access.withdraw(SECOND, "a");
        assert_eq!(access.pending_names(SECOND), 1);
        assert_eq!(access.cancel(SECOND).len(), 1);
        access.handle_verdict("a", None, false, 0);
        access.handle_timeout(DECIDE_WITHIN, false);
        let late: Vec<Key> =
            std::iter::from_fn(|| access.access.next_late()).map(|undecided| undecided.session).collect();
        assert_eq!(late, [FIRST]);
        assert_eq!(access.pending_requests(FIRST), 0);
        // The answers come all the same, and nothing stays.
        access.handle_verdict("b", of("u"), false, DECIDE_WITHIN);
        assert_eq!(questions(&mut access), ["a"]);
        access.handle_verdict("a", of("u"), false, DECIDE_WITHIN);
        access.handle_timeout(DECIDE_WITHIN + REFRESH, false);
        assert!(access.entries.is_empty() && access.undecided_of.is_empty() && ready(&mut access).is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut access = Asked::new(Policy::Members);
        for number in 0..=MAX_ENTRIES {
            let database = access.id(&format!("db-{number}"));
            access.access.ask(database, &mut access.subscriptions);
        }
        assert_eq!((access.entries.len(), access.questions.len()), (MAX_ENTRIES, MAX_ENTRIES));
        subscribe(&mut access, FIRST, &["one-more"], 0);
        access.handle_timeout(DECIDE_WITHIN, true);
        assert!(access.access.next_late().is_some(), "it is told, if late");
    }
}
