//! Access control: which user may subscribe to which database.
//!
//! The machine reads the `_security` object of each watched database once for all clients. It keeps
//! the object while there are subscribers, and reads it again every minute and when the database is
//! created or deleted.
//!
//! ```text
//!  subscribe ──▶ Queued ──▶ Asked ──▶ Known(security | missing) ──▶ decided
//!                  ▲  ▲       │              │ a minute, or a line `created` or `deleted`
//!                  │  └───────┼──────────────┘
//!                  └─ Backoff ◀ no valid reply; only while a request or a subscriber needs it
//! ```
//!
//! Users may subscribe to a database that does not exist. After a line `created` or `deleted` a
//! database is in doubt, since it may be another one. Until its `_security` was read again, no
//! subscriber is notified, and replies show the database as it was before. So a reply does not
//! reveal whether an undecided database exists.
//!
//! Lookups are queued by session and served in turn. A session and a user may have a limited number
//! of them waiting. After a new verdict the subscriptions that it concerns are decided again step
//! by step ([`Access::next_step`]).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};

use crate::state::fair_queue::FairQueue;
use crate::state::jitter::Jitter;
use crate::state::positions::Named;
use crate::state::security_memory::SecurityMemory;
use crate::state::session::Reply;
use crate::state::subscriptions::{DatabaseId, SessionIndex, Subscriptions};
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::database_name;
use crate::wire::positions::Position;
use crate::wire::security::{Refusal, Security, is_server_admin, is_system};

/// Users that may subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every user, to every database.
    Open,
    /// Users that may read the database.
    Members,
}

/// Age at which a verdict is read again, in milliseconds, so that the reply is there within a
/// minute.
const REFRESH: Millis = 50_000;
/// First wait after a lookup without a valid reply, in milliseconds. It doubles with each failure.
const FIRST_RETRY: Millis = 1_000;
/// Longest such wait, in milliseconds.
const LONGEST_RETRY: Millis = 60_000;
/// Time after which an undecided `subscribe` fails, in milliseconds.
const DECIDE_WITHIN: Millis = 5_000;
/// Most lookups in flight.
pub const MAX_QUESTIONS: usize = 4;
/// Most databases for which the requests of one user wait, over all sessions.
pub const MAX_WAITING_OF_USER: usize = 20_000;
/// Most databases for which all requests wait. One user gets at most as many as there is room left
/// for others.
pub const MAX_WAITING: usize = 200_000;
/// Most refreshes, retries and late names per turn.
const EXPIRED_A_TURN: usize = 1_000;
/// Approximate number of names of cancelled requests that are released per turn.
const SWEPT_A_TURN: usize = 2_000;
/// Most queued lookups beyond those that a request waits for.
const MAX_STALE: usize = 256;

/// State of a database, as CouchDB reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It exists, with these permissions.
    Security(Box<Security>),
    /// Its `_security` is too long to read, so only server admins may watch it.
    TooLarge,
    /// Its `_security` is not kept because all objects take too much memory, so only server admins
    /// may watch it.
    NoRoom,
    /// It does not exist.
    Missing,
}

impl Verdict {
    /// Returns its bytes beside the entry.
    fn bytes(&self) -> usize {
        match self {
            Self::Security(security) => security.bytes(),
            Self::TooLarge | Self::NoRoom | Self::Missing => 0,
        }
    }
}

/// Decision whether a user may subscribe to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The user may subscribe.
    Allowed,
    /// The user may not subscribe.
    Forbidden(Refusal),
    /// CouchDB has to be asked.
    Unknown,
}

/// A step of deciding subscriptions again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Decide again whether a session may subscribe to a database.
    Decide(SessionIndex, DatabaseId),
    /// Notify the subscribers of a database: all of them may read it.
    Notify(DatabaseId, ChangeKind),
    /// The subscriptions of a session are decided: write to it again.
    Resume(Key),
}

/// A `subscribe` that waits for decisions.
#[derive(Debug)]
pub struct Undecided {
    /// Session that subscribes.
    pub session: Key,
    /// Form of the reply.
    pub reply: Reply,
    /// Databases of the request.
    pub names: Named,
    /// Epoch of the positions of these databases.
    pub epoch: Option<Box<str>>,
    /// Group of the list that it is a part of.
    pub group: Option<Key>,
    /// Databases whose verdict it waits for.
    awaits: HashSet<DatabaseId>,
    stage: Stage,
}

/// Stage of a `subscribe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Some of its databases are undecided.
    Waiting,
    /// All are decided.
    Ready,
    /// It was cancelled; its holds have to be released.
    Cancelled,
}

/// State of the lookup of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Question {
    /// There is none.
    #[default]
    None,
    /// It is queued.
    Queued,
    /// It is queued among the databases in doubt.
    Urgent,
    /// It is in flight.
    Asked,
    /// It is queued again at this time.
    Backoff(Millis),
}

/// Knowledge about a database, which is held once for it.
#[derive(Debug, Default)]
struct Entry {
    verdict: Option<Verdict>,
    question: Question,
    /// Number of consecutive lookups without a valid reply.
    failures: u8,
    /// Last event since the lookup began; the reply may be older.
    since: Option<ChangeKind>,
    /// Requests that wait for it, including some that no longer wait.
    waiting: Vec<Key>,
    /// Number of requests that wait for it.
    waiters: u32,
    /// Whether it may be another database since the last verdict.
    in_doubt: bool,
    /// Change of which its subscribers are notified once they are decided.
    untold: Option<ChangeKind>,
    /// Position before it came into doubt.
    stood_at: Option<Position>,
    /// Number of subscribers left to decide again, during that pass.
    left: Option<usize>,
    /// Time of the next refresh.
    refresh: Option<Millis>,
}

impl Entry {
    fn is_there(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Security(_) | Verdict::TooLarge | Verdict::NoRoom))
    }

    /// Replaces the verdict.
    fn set_verdict(&mut self, database: DatabaseId, verdict: Option<Verdict>, memory: &mut SecurityMemory) {
        let bytes = |verdict: &Option<Verdict>| verdict.as_ref().map_or(0, Verdict::bytes);
        memory.remove(database, bytes(&self.verdict));
        memory.insert(database, bytes(&verdict));
        self.verdict = verdict;
    }

    /// Notes an event of the database.
    fn note(&mut self, kind: ChangeKind) {
        let earlier = self.since.filter(|_| kind == ChangeKind::Updated);
        self.since = (self.question == Question::Asked).then_some(earlier.unwrap_or(kind));
    }

    /// Returns whether a reply may be older than an event that changes it. An update only shows
    /// that the database exists. If updates invalidated replies, a busy database would never get a
    /// verdict.
    fn is_from_before(&self, verdict: &Verdict) -> bool {
        match self.since {
            None => false,
            Some(ChangeKind::Updated) => *verdict == Verdict::Missing,
            Some(ChangeKind::Created | ChangeKind::Deleted) => true,
        }
    }
}

/// Queued lookups. Databases in doubt, refreshes, and requests of clients take turns, and among the
/// last ones the sessions do.
#[derive(Debug, Default)]
struct Questions {
    doubts: VecDeque<DatabaseId>,
    refreshes: VecDeque<DatabaseId>,
    of_sessions: FairQueue<Key, DatabaseId>,
    /// Number of the queue that was served last.
    turn: u8,
    /// Number of lookups in flight.
    asking: usize,
}

impl Questions {
    fn pop(&mut self) -> Option<DatabaseId> {
        for _ in 0..3 {
            self.turn = (self.turn + 1) % 3;
            let next = match self.turn {
                0 => self.doubts.pop_front(),
                1 => self.refreshes.pop_front(),
                _ => self.of_sessions.pop().map(|(_, database)| database),
            };
            if next.is_some() {
                return next;
            }
        }
        None
    }

    fn len(&self) -> usize {
        self.doubts.len() + self.refreshes.len() + self.of_sessions.len()
    }
}

/// Waiting requests of a session.
#[derive(Debug, Default)]
struct Share {
    user: Box<str>,
    requests: Vec<Key>,
    /// Number of databases that its requests wait for.
    awaits: usize,
}

/// Subscriptions to decide again.
#[derive(Clone, Copy, Debug)]
enum Pass {
    Database(DatabaseId),
    /// A session, and the number of its subscriptions that are left.
    Session(Key, usize),
}

/// Verdicts, lookups and waiting requests.
#[derive(Debug)]
pub struct Access {
    policy: Policy,
    entries: HashMap<DatabaseId, Entry>,
    memory: SecurityMemory,
    /// Number of `_security` objects that were dropped for lack of memory, since
    /// [`Access::take_evictions`].
    evictions: u64,
    questions: Questions,
    undecided: Table<Undecided>,
    shares: HashMap<Key, Share>,
    /// Number of databases that the requests of each user wait for.
    awaited_by: HashMap<Box<str>, usize>,
    /// Number of databases that all requests wait for.
    awaited: usize,
    deadlines: VecDeque<(Millis, Key)>,
    /// Times of refreshes and retries, soonest first. Some are obsolete: the entries have the valid
    /// time.
    refreshes: VecDeque<(Millis, DatabaseId)>,
    retries: BinaryHeap<Reverse<(Millis, DatabaseId)>>,
    passes: VecDeque<Pass>,
    /// Sessions that are not written to until their subscriptions are decided again.
    withheld: HashSet<Key>,
    /// Decided requests, including some that were cancelled.
    ready: VecDeque<Key>,
    late: VecDeque<Undecided>,
    cancelled: VecDeque<Key>,
}

impl Access {
    /// Creates the machine for a policy.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            entries: HashMap::new(),
            memory: SecurityMemory::default(),
            evictions: 0,
            questions: Questions::default(),
            undecided: Table::default(),
            shares: HashMap::new(),
            awaited_by: HashMap::new(),
            awaited: 0,
            deadlines: VecDeque::new(),
            refreshes: VecDeque::new(),
            retries: BinaryHeap::new(),
            passes: VecDeque::new(),
            withheld: HashSet::new(),
            ready: VecDeque::new(),
            late: VecDeque::new(),
            cancelled: VecDeque::new(),
        }
    }

    /// Returns whether the policy restricts access.
    pub fn is_restricted(&self) -> bool {
        self.policy == Policy::Members
    }

    /// Returns the number of databases with an entry.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether no database has an entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the bytes of all kept `_security` objects.
    pub fn security_bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Returns the number of needed `_security` objects that were dropped for lack of memory since
    /// the last call.
    pub fn take_evictions(&mut self) -> u64 {
        std::mem::take(&mut self.evictions)
    }

    /// Returns the number of queued lookups.
    pub fn waiting_questions(&self) -> usize {
        self.questions.len()
    }

    /// Decides whether a user may subscribe to a database, as far as that is known.
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
        match self.entries.get(&database).and_then(|entry| entry.verdict.as_ref()) {
            // CouchDB cannot have a database of this name, so no lookup is needed.
            None if !database_name::is_possible(name) => Decision::Allowed,
            None => Decision::Unknown,
            Some(Verdict::Missing) => Decision::Allowed,
            Some(Verdict::Security(security)) if security.may_read(user, roles) => Decision::Allowed,
            Some(Verdict::Security(_)) => Decision::Forbidden(Refusal::NotReader),
            Some(Verdict::TooLarge) => Decision::Forbidden(Refusal::TooLarge),
            Some(Verdict::NoRoom) => Decision::Forbidden(Refusal::NoRoom),
        }
    }

    /// Returns the position of a database as clients may see it. For a database in doubt it is the
    /// position before the doubt.
    pub fn shown(&self, database: DatabaseId, subscriptions: &Subscriptions) -> Option<Position> {
        let position = subscriptions.known(database);
        let Some(entry) = self.entries.get(&database) else { return position };
        let is_new = !entry.is_there() && position.is_some_and(|position| position.is_there());
        if entry.in_doubt || is_new { entry.stood_at.or(position.map(before_creation)) } else { position }
    }

    /// Returns the position for notifications, with the same rule.
    pub fn told(&self, database: DatabaseId, subscriptions: &Subscriptions) -> Option<Position> {
        match self.entries.get(&database) {
            Some(entry) if entry.in_doubt => entry.stood_at.or(subscriptions.told(database).map(before_creation)),
            _ => subscriptions.told(database),
        }
    }

    /// Returns whether a user may wait for so many more databases.
    pub fn has_room(&self, user: &str, more: usize) -> bool {
        let own = self.awaited_by.get(user).copied().unwrap_or(0) + more;
        own <= MAX_WAITING_OF_USER && own <= MAX_WAITING.saturating_sub(self.awaited)
    }

    /// Returns the number of databases that all requests wait for, reservations included.
    pub fn awaited(&self) -> usize {
        self.awaited
    }

    /// Reserves room for databases that a long list of a user will wait for.
    pub fn reserve(&mut self, user: &str, count: usize) {
        if count > 0 {
            *self.awaited_by.entry(user.into()).or_default() += count;
            self.awaited += count;
        }
    }

    /// Returns the room of [`Access::reserve`].
    pub fn give_up_reserve(&mut self, user: &str, count: usize) {
        let Some(awaited) = self.awaited_by.get_mut(user) else { return };
        *awaited -= count;
        self.awaited -= count;
        if *awaited == 0 {
            self.awaited_by.remove(user);
        }
    }

    /// Lets a `subscribe` of a user wait until all its databases are decided.
    pub fn wait(
        &mut self,
        undecided: Undecided,
        unknown: &[DatabaseId],
        user: &str,
        now: Millis,
        subscriptions: &mut Subscriptions,
    ) {
        let session = undecided.session;
        let awaits: HashSet<DatabaseId> = unknown.iter().copied().collect();
        let count = awaits.len();
        let key = self.undecided.insert(Undecided { awaits, ..undecided });
        let share = self.shares.entry(session).or_insert_with(|| Share { user: user.into(), ..Share::default() });
        share.requests.push(key);
        share.awaits += count;
        *self.awaited_by.entry(share.user.clone()).or_default() += count;
        self.awaited += count;
        for database in unknown {
            self.enter(*database, subscriptions);
            let Some(entry) = self.entries.get_mut(database) else { continue };
            if entry.waiting.len() == entry.waiting.capacity() {
                let undecided = &self.undecided;
                entry.waiting.retain(|key| undecided.get(*key).is_some_and(|one| one.awaits.contains(database)));
            }
            entry.waiting.push(key);
            entry.waiters += 1;
            if matches!(entry.question, Question::None | Question::Queued) {
                entry.question = Question::Queued;
                self.questions.of_sessions.push(session, *database);
            }
        }
        self.deadlines.push_back((now + DECIDE_WITHIN, key));
    }

    /// Creates a waiting `subscribe`, for [`Access::wait`].
    pub fn undecided(session: Key, reply: Reply, names: Named, epoch: Option<Box<str>>) -> Undecided {
        Undecided { session, reply, names, epoch, group: None, awaits: HashSet::new(), stage: Stage::Waiting }
    }

    fn requests_of(&self, session: Key) -> impl Iterator<Item = Key> {
        self.shares.get(&session).into_iter().flat_map(|share| share.requests.iter().copied())
    }

    /// Returns the number of names in the waiting requests of a session.
    pub fn pending_names(&self, session: Key) -> usize {
        let requests = self.requests_of(session).filter_map(|key| self.undecided.get(key));
        requests.map(|undecided| undecided.names.len()).sum()
    }

    /// Returns the number of waiting requests of a session, without parts of lists.
    pub fn pending_requests(&self, session: Key) -> usize {
        let requests = self.requests_of(session).filter_map(|key| self.undecided.get(key));
        requests.filter(|undecided| undecided.group.is_none()).count()
    }

    /// Withdraws databases from the requests of a session, in time linear in both. A request that
    /// waits for no other database becomes ready.
    pub fn withdraw(&mut self, session: Key, databases: &HashSet<DatabaseId>, subscriptions: &mut Subscriptions) {
        for key in self.requests_of(session).collect::<Vec<_>>() {
            let Some(undecided) = self.undecided.get_mut(key) else { continue };
            let (mut withdrawn, mut awaited) = (Vec::new(), Vec::new());
            undecided.names.retain(|(database, _)| {
                let stays = !databases.contains(database);
                if !stays {
                    withdrawn.push(*database);
                    awaited.extend(undecided.awaits.remove(database).then_some(*database));
                }
                stays
            });
            let is_ready = undecided.awaits.is_empty();
            self.stop_waiting(session, &awaited, subscriptions);
            for database in withdrawn {
                self.release(database, subscriptions);
            }
            if is_ready {
                self.make_ready(key);
            }
        }
        self.drop_stale_questions(session);
    }

    /// Cancels all requests of a session. Returns the form of their replies. [`Access::sweep`]
    /// releases their holds.
    pub fn cancel(&mut self, session: Key, subscriptions: &mut Subscriptions) -> Vec<Reply> {
        let mut over = Vec::new();
        if self.late.iter().any(|undecided| undecided.session == session) {
            let (cancelled, others): (VecDeque<_>, _) =
                self.late.drain(..).partition(|undecided| undecided.session == session);
            self.late = others;
            over.extend(cancelled);
        }
        for undecided in over {
            self.end(undecided, subscriptions);
        }
        self.withheld.remove(&session);
        let mut replies = Vec::new();
        if let Some(awaits) = self.shares.get(&session).map(|share| share.awaits) {
            for key in self.requests_of(session).collect::<Vec<_>>() {
                if let Some(undecided) = self.undecided.get_mut(key) {
                    undecided.stage = Stage::Cancelled;
                    replies.push(undecided.reply.clone());
                    self.cancelled.push_back(key);
                }
            }
            self.uncount(session, awaits);
            self.shares.remove(&session);
        }
        self.questions.of_sessions.remove_owner(session);
        replies
    }

    /// Releases the holds of cancelled requests, a limited number per turn.
    pub fn sweep(&mut self, subscriptions: &mut Subscriptions) {
        let mut budget = SWEPT_A_TURN;
        while budget > 0
            && let Some(key) = self.cancelled.pop_front()
        {
            let Some(undecided) = self.undecided.remove(key) else { continue };
            budget = budget.saturating_sub(undecided.names.len().max(1));
            self.forget_waiter(undecided.awaits.iter().copied(), subscriptions);
            self.end(undecided, subscriptions);
        }
    }

    /// Releases the holds of a request that is not answered, or was rejected.
    pub fn end(&mut self, undecided: Undecided, subscriptions: &mut Subscriptions) {
        for (database, _) in undecided.names {
            self.release(database, subscriptions);
        }
    }

    /// Releases a hold. A database that is not needed otherwise is forgotten.
    pub fn release(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        subscriptions.release(database);
        self.drop_unused(database, subscriptions);
    }

    /// Makes a request ready. It can still be cancelled.
    fn make_ready(&mut self, key: Key) {
        if let Some(undecided) = self.undecided.get_mut(key)
            && undecided.stage == Stage::Waiting
        {
            undecided.stage = Stage::Ready;
            self.ready.push_back(key);
        }
    }

    /// Takes out a request that is undecided.
    fn give_up(&mut self, key: Key, subscriptions: &mut Subscriptions) -> Option<Undecided> {
        let awaited: Vec<DatabaseId> = self.undecided.get_mut(key)?.awaits.drain().collect();
        let session = self.undecided.get(key)?.session;
        self.stop_waiting(session, &awaited, subscriptions);
        self.take_undecided(key)
    }

    /// Removes databases from those that a session waits for.
    fn stop_waiting(&mut self, session: Key, databases: &[DatabaseId], subscriptions: &mut Subscriptions) {
        self.uncount(session, databases.len());
        self.forget_waiter(databases.iter().copied(), subscriptions);
    }

    /// Reduces the number of waiting requests of each of these databases.
    fn forget_waiter(&mut self, databases: impl Iterator<Item = DatabaseId>, subscriptions: &mut Subscriptions) {
        for database in databases {
            if let Some(entry) = self.entries.get_mut(&database) {
                entry.waiters = entry.waiters.saturating_sub(1);
            }
            self.drop_unused(database, subscriptions);
        }
    }

    fn uncount(&mut self, session: Key, count: usize) {
        let Some(share) = self.shares.get_mut(&session) else { return };
        share.awaits -= count;
        let user = share.user.clone();
        if share.requests.is_empty() {
            self.shares.remove(&session);
        }
        self.give_up_reserve(&user, count);
    }

    /// Removes a request from the tables.
    fn take_undecided(&mut self, key: Key) -> Option<Undecided> {
        let undecided = self.undecided.remove(key)?;
        let session = undecided.session;
        if let Some(share) = self.shares.get_mut(&session) {
            share.requests.retain(|other| *other != key);
        }
        self.uncount(session, undecided.awaits.len());
        Some(undecided)
    }

    /// Removes the lookups from a session's queue that it no longer waits for, once there are many.
    fn drop_stale_questions(&mut self, session: Key) {
        let awaits = self.shares.get(&session).map_or(0, |share| share.awaits);
        let queue = &mut self.questions.of_sessions;
        if queue.len_of(session) <= 2 * awaits + MAX_STALE {
            return;
        }
        let mut wanted: HashSet<DatabaseId> = HashSet::with_capacity(awaits);
        for key in self.shares.get(&session).into_iter().flat_map(|share| &share.requests) {
            wanted.extend(self.undecided.get(*key).into_iter().flat_map(|undecided| &undecided.awaits));
        }
        for database in queue.remove_owner(session) {
            if wanted.remove(&database) {
                queue.push(session, database);
            }
        }
    }

    /// Returns the next request whose databases are all decided.
    pub fn next_ready(&mut self) -> Option<Undecided> {
        while let Some(key) = self.ready.pop_front() {
            if self.undecided.get(key).is_none_or(|undecided| undecided.stage != Stage::Ready) {
                continue;
            }
            if let Some(undecided) = self.take_undecided(key) {
                return Some(undecided);
            }
        }
        None
    }

    /// Returns the next request that could not be decided in time.
    pub fn next_late(&mut self) -> Option<Undecided> {
        self.late.pop_front()
    }

    /// Creates the entry of a database, and holds the database.
    fn enter(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        self.entries.entry(database).or_insert_with(|| {
            subscriptions.hold_id(database);
            Entry::default()
        });
    }

    /// Queues a lookup of a database with subscribers but without a verdict. No subscriber is
    /// notified until it is known which users may read it.
    pub fn ask(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        self.enter(database, subscriptions);
        self.queue_doubt(database);
    }

    fn queue_doubt(&mut self, database: DatabaseId) {
        let Some(entry) = self.entries.get_mut(&database) else { return };
        if matches!(entry.question, Question::None | Question::Queued) {
            entry.question = Question::Urgent;
            self.questions.doubts.push_back(database);
        }
    }

    /// Forgets a database without waiting requests and subscribers, unless its verdict is worth
    /// keeping until the refresh. That a database is missing is not worth keeping, since there are
    /// any number of names.
    pub fn drop_unused(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        let Some(entry) = self.entries.get(&database) else { return };
        let is_used = entry.waiters > 0 || subscriptions.has_subscribers(database);
        let is_awaited = subscriptions.is_awaited(database);
        let is_worthless = match entry.verdict {
            None => true,
            Some(Verdict::Missing) => !is_awaited,
            Some(_) => entry.in_doubt && !is_awaited,
        };
        if !is_used && is_worthless && entry.question != Question::Asked {
            self.forget(database, subscriptions);
        } else if !is_used && !is_awaited {
            self.memory.set_idle(database);
        }
    }

    fn forget(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        if let Some(mut entry) = self.entries.remove(&database) {
            entry.set_verdict(database, None, &mut self.memory);
            subscriptions.release(database);
            if self.entries.len() < self.entries.capacity() / 8 {
                self.entries.shrink_to(2 * self.entries.len());
            }
        }
    }

    /// Returns the next database to look up, unless enough lookups are in flight. It is kept until
    /// the reply. Lookups that are no longer needed are dropped.
    pub fn next_question(&mut self, subscriptions: &mut Subscriptions) -> Option<DatabaseId> {
        while self.questions.asking < MAX_QUESTIONS {
            let database = self.questions.pop()?;
            let Some(entry) = self.entries.get_mut(&database) else { continue };
            if !matches!(entry.question, Question::Queued | Question::Urgent) {
                continue;
            }
            if entry.waiters == 0 && !subscriptions.has_subscribers(database) {
                self.forget(database, subscriptions);
                continue;
            }
            entry.question = Question::Asked;
            entry.since = None;
            self.questions.asking += 1;
            return Some(database);
        }
        None
    }

    /// Handles a change of a database, from a line of the feed or a position. Returns whether to
    /// notify its subscribers now. If not, they are notified once it is known which of them may
    /// read it. Changes that are no news were notified before, or are in the replies to later
    /// subscribers. `before` is the position before the line, if it is known.
    pub fn handle_line(
        &mut self,
        database: DatabaseId,
        kind: ChangeKind,
        is_news: bool,
        before: Option<Position>,
        subscriptions: &Subscriptions,
    ) -> bool {
        if !self.is_restricted() {
            return is_news;
        }
        let Some(entry) = self.entries.get_mut(&database) else {
            // A database without an entry has only server admins as subscribers, or has a name that
            // CouchDB cannot have.
            return is_news && database_name::is_possible(subscriptions.name(database));
        };
        let was_there = entry.is_there();
        let is_held_back = entry.in_doubt || entry.left.is_some() || !was_there;
        if kind == ChangeKind::Updated && was_there && !entry.in_doubt {
            if is_held_back && is_news {
                entry.untold = Some(entry.untold.map_or(kind, |earlier| earlier.merge(kind)));
            }
            return is_news && !is_held_back;
        }
        let tells_now = is_news && !is_held_back && kind == ChangeKind::Deleted;
        if !entry.in_doubt {
            entry.in_doubt = true;
            entry.stood_at = if was_there {
                before.or(entry.stood_at)
            } else {
                let missing = before.filter(|position| !position.is_there());
                missing.or(entry.stood_at).or(before.map(before_creation))
            };
        }
        if kind == ChangeKind::Deleted {
            let now = subscriptions.known(database).or(subscriptions.told(database));
            entry.stood_at = now.map(before_creation).or(entry.stood_at);
            if is_news {
                // A new subscription is answered as if the database were missing, as it may be.
                entry.set_verdict(database, Some(Verdict::Missing), &mut self.memory);
                entry.left = None;
            }
        }
        // No subscriber was notified of a database that did not exist.
        if !tells_now && (is_news || !was_there) {
            entry.untold = Some(entry.untold.map_or(kind, |earlier| earlier.merge(kind)));
        }
        entry.note(kind);
        self.queue_doubt(database);
        tells_now
    }

    /// Handles CouchDB's reply about a database; None if it was not valid. Returns the change of
    /// which to notify subscribers now. If they have to be decided before, [`Access::next_step`]
    /// returns it. The database may be forgotten.
    pub fn handle_verdict(
        &mut self,
        database: DatabaseId,
        verdict: Option<Verdict>,
        (now, jitter): (Millis, &mut Jitter),
        subscriptions: &mut Subscriptions,
    ) -> Option<ChangeKind> {
        self.questions.asking -= 1;
        let entry = self.entries.get_mut(&database)?;
        let Some(verdict) = verdict else {
            let span = (FIRST_RETRY << entry.failures.min(6)).min(LONGEST_RETRY);
            let at = now + jitter.around(span).max(FIRST_RETRY / 2);
            entry.failures = entry.failures.saturating_add(1);
            entry.question = Question::Backoff(at);
            self.retries.push(Reverse((at, database)));
            self.drop_unused(database, subscriptions);
            return None;
        };
        entry.failures = 0;
        if entry.is_from_before(&verdict) {
            entry.question = Question::None;
            self.queue_doubt(database);
            return None;
        }
        let has_subscribers = subscriptions.has_subscribers(database);
        let is_other = entry.verdict.as_ref() != Some(&verdict);
        let verdict = if is_other { self.admit(database, verdict, subscriptions) } else { verdict };
        let entry = self.entries.get_mut(&database)?;
        // The replacement can be the same if there is still no room.
        let is_other = entry.verdict.as_ref() != Some(&verdict);
        entry.question = Question::None;
        if is_other {
            entry.set_verdict(database, Some(verdict), &mut self.memory);
        }
        entry.in_doubt = false;
        let is_there = entry.is_there();
        entry.stood_at = subscriptions.known(database).filter(|position| is_there || !position.is_there());
        if is_other && has_subscribers {
            entry.left = Some(subscriptions.subscriber_count(database));
            self.passes.push_back(Pass::Database(database));
        }
        let tells_now = if entry.left.is_none() { entry.untold.take() } else { None };
        let waiting = std::mem::take(&mut entry.waiting);
        let at = now + REFRESH;
        entry.refresh = Some(at);
        entry.waiters = 0;
        self.refreshes.push_back((at, database));
        for key in waiting {
            let Some(undecided) = self.undecided.get_mut(key) else { continue };
            if undecided.awaits.remove(&database) {
                if undecided.stage == Stage::Cancelled {
                    continue;
                }
                let (session, is_ready) = (undecided.session, undecided.awaits.is_empty());
                self.uncount(session, 1);
                if is_ready {
                    self.make_ready(key);
                }
            }
        }
        self.drop_unused(database, subscriptions);
        tells_now
    }

    /// Makes room for a verdict. Returns the verdict that is kept.
    fn admit(&mut self, database: DatabaseId, verdict: Verdict, subscriptions: &mut Subscriptions) -> Verdict {
        let bytes = verdict.bytes();
        while !self.memory.has_room(database, bytes) {
            if let Some(idle) = self.memory.longest_idle() {
                self.drop_idle(idle, database, subscriptions);
                continue;
            }
            match self.memory.largest() {
                Some((largest, other)) if largest > bytes && other != database => self.evict(other, subscriptions),
                _ => {
                    self.evictions += 1;
                    return Verdict::NoRoom;
                }
            }
        }
        verdict
    }

    /// Forgets an idle database, unless it is needed now.
    fn drop_idle(&mut self, idle: DatabaseId, answered: DatabaseId, subscriptions: &mut Subscriptions) {
        self.memory.set_in_use(idle);
        let Some(entry) = self.entries.get(&idle) else { return };
        let is_needed = entry.waiters > 0 || entry.question == Question::Asked || idle == answered;
        if !is_needed && !subscriptions.has_subscribers(idle) && !subscriptions.is_awaited(idle) {
            self.forget(idle, subscriptions);
        }
    }

    /// Drops the `_security` of a database that takes too much memory. Its subscriptions are
    /// decided again.
    fn evict(&mut self, database: DatabaseId, subscriptions: &Subscriptions) {
        let Some(entry) = self.entries.get_mut(&database) else { return };
        entry.set_verdict(database, Some(Verdict::NoRoom), &mut self.memory);
        self.evictions += 1;
        if subscriptions.has_subscribers(database) {
            entry.left = Some(subscriptions.subscriber_count(database));
            self.passes.push_back(Pass::Database(database));
        }
    }

    /// Starts to decide all subscriptions of a session again, because its user's roles have
    /// changed. The session is not written to until that is done.
    pub fn reconsider_session(&mut self, session: Key, subscriptions: &Subscriptions) {
        if self.is_restricted() && self.withheld.insert(session) {
            self.passes.push_back(Pass::Session(session, subscriptions.count(session.index)));
        } else if self.withheld.contains(&session) {
            // The roles have changed again during the pass.
            for pass in &mut self.passes {
                if let Pass::Session(one, left) = pass
                    && *one == session
                {
                    *left = subscriptions.count(session.index);
                }
            }
        }
    }

    /// Returns whether a session must not be written to yet.
    pub fn is_withheld(&self, session: Key) -> bool {
        !self.withheld.is_empty() && self.withheld.contains(&session)
    }

    /// Returns whether there are steps to take or requests to answer now.
    pub fn has_work(&self) -> bool {
        let sweeps = !self.cancelled.is_empty();
        sweeps || !self.passes.is_empty() || !self.ready.is_empty() || !self.late.is_empty()
    }

    /// Returns the next step of deciding subscriptions again. Between two steps subscribers may
    /// come and go: every one of the start is decided, since the last one takes the place of one
    /// that goes.
    pub fn next_step(&mut self, subscriptions: &Subscriptions) -> Option<Step> {
        while let Some(pass) = self.passes.front_mut() {
            match pass {
                Pass::Database(database) => {
                    let database = *database;
                    let step = self.entries.get_mut(&database).and_then(|entry| {
                        let left = entry.left?.min(subscriptions.subscriber_count(database));
                        entry.left = left.checked_sub(1);
                        match entry.left {
                            Some(next) => Some(Step::Decide(subscriptions.subscriber_at(database, next)?, database)),
                            // A database that came into doubt meanwhile waits for its next verdict.
                            None if entry.in_doubt => None,
                            None => entry.untold.take().map(|kind| Step::Notify(database, kind)),
                        }
                    });
                    let goes_on = self.entries.get(&database).is_some_and(|entry| entry.left.is_some());
                    if !goes_on {
                        self.passes.pop_front();
                    }
                    if step.is_some() {
                        return step;
                    }
                }
                Pass::Session(session, left) => {
                    let session = *session;
                    *left = (*left).min(subscriptions.count(session.index));
                    if let Some(next) = left.checked_sub(1) {
                        *left = next;
                        if let Some(database) = subscriptions.subscription_at(session.index, next) {
                            return Some(Step::Decide(session.index, database));
                        }
                        continue;
                    }
                    self.passes.pop_front();
                    if self.withheld.remove(&session) {
                        return Some(Step::Resume(session));
                    }
                }
            }
        }
        None
    }

    /// Returns when [`Access::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let refresh = self.refreshes.front().map(|(at, _)| *at);
        let retry = self.retries.peek().map(|Reverse((at, _))| *at);
        [deadline, refresh, retry].into_iter().flatten().min()
    }

    /// Handles a timeout, a limited part per turn.
    pub fn handle_timeout(&mut self, now: Millis, subscriptions: &mut Subscriptions) {
        let mut budget = EXPIRED_A_TURN;
        while let Some((at, key)) = self.deadlines.front().copied()
            && at <= now
            && budget > 0
        {
            self.deadlines.pop_front();
            if self.undecided.get(key).is_some_and(|undecided| undecided.stage != Stage::Waiting) {
                continue;
            }
            if let Some(undecided) = self.give_up(key, subscriptions) {
                budget = budget.saturating_sub(undecided.names.len());
                let session = undecided.session;
                self.late.push_back(undecided);
                self.drop_stale_questions(session);
            }
        }
        let mut budget = EXPIRED_A_TURN;
        while let Some(Reverse((at, database))) = self.retries.peek().copied()
            && at <= now
            && budget > 0
        {
            budget -= 1;
            self.retries.pop();
            if self.entries.get(&database).is_some_and(|entry| entry.question == Question::Backoff(at)) {
                self.retry(database, subscriptions);
            }
        }
        let mut budget = EXPIRED_A_TURN;
        while let Some((at, database)) = self.refreshes.front().copied()
            && at <= now
            && budget > 0
        {
            budget -= 1;
            self.refreshes.pop_front();
            self.refresh(database, at, subscriptions);
        }
        self.give_back();
    }

    /// Queues the next lookup of a database after one without a valid reply.
    fn retry(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        let Some(entry) = self.entries.get_mut(&database) else { return };
        entry.question = Question::None;
        if subscriptions.has_subscribers(database) {
            return self.queue_doubt(database);
        }
        for key in &entry.waiting {
            let waits = |one: &&Undecided| one.stage == Stage::Waiting && one.awaits.contains(&database);
            if let Some(undecided) = self.undecided.get(*key).filter(waits) {
                entry.question = Question::Queued;
                self.questions.of_sessions.push(undecided.session, database);
            }
        }
        if entry.question == Question::None {
            self.forget(database, subscriptions);
        }
    }

    fn refresh(&mut self, database: DatabaseId, at: Millis, subscriptions: &mut Subscriptions) {
        let Some(entry) = self.entries.get_mut(&database).filter(|entry| entry.refresh == Some(at)) else { return };
        entry.refresh = None;
        if subscriptions.has_subscribers(database) {
            if entry.question == Question::None {
                entry.question = Question::Queued;
                self.questions.refreshes.push_back(database);
            }
        } else if entry.waiters == 0 && entry.question != Question::Asked {
            self.forget(database, subscriptions);
        }
    }

    /// Shrinks the tables after many requests.
    fn give_back(&mut self) {
        let room = |length: usize, capacity: usize| (length < capacity / 8).then_some(2 * length);
        if let Some(room) = room(self.deadlines.len(), self.deadlines.capacity()) {
            self.deadlines.shrink_to(room);
        }
        if let Some(room) = room(self.refreshes.len(), self.refreshes.capacity()) {
            self.refreshes.shrink_to(room);
        }
        if let Some(room) = room(self.retries.len(), self.retries.capacity()) {
            self.retries.shrink_to(room);
        }
    }
}

/// Returns the position of a database before its creation, as far as it can be derived.
fn before_creation(position: Position) -> Position {
    if !position.is_there() {
        return position;
    }
    let [updated, created, deleted] = position.counts;
    Position { counts: [if created == 1 { 0 } else { updated }, deleted, deleted], ..position }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ChangeKind::{Created, Deleted, Updated};

    use crate::wire::positions::Given;

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    fn security(json: &str) -> Verdict {
        Verdict::Security(Box::new(Security::parse(json.as_bytes()).expect("an object")))
    }

    fn of(user: &str) -> Verdict {
        security(&format!(r#"{{"members":{{"names":["{user}"]}}}}"#))
    }

    const MISSING: Verdict = Verdict::Missing;

    /// The machine with the table of databases, and its results.
    struct Scene {
        access: Access,
        subscriptions: Subscriptions,
        jitter: Jitter,
        now: Millis,
    }

    impl Scene {
        fn new() -> Self {
            let (access, subscriptions) = (Access::new(Policy::Members), Subscriptions::default());
            Self { access, subscriptions, jitter: Jitter::new(7), now: 0 }
        }

        fn wait(&mut self, session: u32, user: &str, names: &[&str]) {
            let ids: Vec<_> = names.iter().map(|name| self.subscriptions.hold(name)).collect();
            let wanted = ids.iter().map(|id| (*id, Given::Nothing)).collect();
            let undecided = Access::undecided(key(session), Reply::Silent, wanted, None);
            self.access.wait(undecided, &ids, user, self.now, &mut self.subscriptions);
        }

        fn id(&self, name: &str) -> DatabaseId {
            self.subscriptions.find(name).expect("it is kept")
        }

        fn decide(&mut self, name: &str, user: &str, roles: &[&str]) -> Decision {
            let roles: Vec<Box<str>> = roles.iter().map(|role| (*role).into()).collect();
            let database = self.subscriptions.hold(name);
            let decision = self.access.decide(database, user, &roles, &self.subscriptions);
            self.subscriptions.release(database);
            decision
        }

        /// Starts the lookups that are possible now.
        fn questions(&mut self) -> Vec<String> {
            let Self { access, subscriptions, .. } = self;
            std::iter::from_fn(|| access.next_question(subscriptions).map(|id| subscriptions.name(id).to_owned()))
                .collect()
        }

        fn answer(&mut self, name: &str, verdict: impl Into<Option<Verdict>>) -> Option<ChangeKind> {
            let database = self.id(name);
            self.subscriptions.hold_id(database);
            let times = (self.now, &mut self.jitter);
            let untold = self.access.handle_verdict(database, verdict.into(), times, &mut self.subscriptions);
            self.access.release(database, &mut self.subscriptions);
            untold
        }

        fn line(&mut self, name: &str, kind: ChangeKind, is_news: bool) -> bool {
            self.access.handle_line(self.id(name), kind, is_news, None, &self.subscriptions)
        }

        /// Returns the sessions whose requests are decided; they are subscribed.
        fn ready(&mut self) -> Vec<u32> {
            let mut sessions = Vec::new();
            while let Some(undecided) = self.access.next_ready() {
                sessions.push(undecided.session.index);
                for (database, _) in &undecided.names {
                    self.subscriptions.subscribe(undecided.session.index, *database).expect("within the limit");
                }
                self.access.end(undecided, &mut self.subscriptions);
            }
            sessions
        }

        fn late(&mut self) -> Vec<u32> {
            let mut sessions = Vec::new();
            while let Some(undecided) = self.access.next_late() {
                sessions.push(undecided.session.index);
                self.access.end(undecided, &mut self.subscriptions);
            }
            sessions
        }

        fn cancel(&mut self, session: u32) -> usize {
            self.access.cancel(key(session), &mut self.subscriptions).len()
        }

        fn withdraw(&mut self, session: u32, names: &[&str]) {
            let ids = names.iter().filter_map(|name| self.subscriptions.find(name)).collect();
            self.access.withdraw(key(session), &ids, &mut self.subscriptions);
        }

        fn unsubscribe(&mut self, session: u32, name: &str) {
            let database = self.id(name);
            self.subscriptions.unsubscribe(session, database);
            self.access.drop_unused(database, &mut self.subscriptions);
        }

        fn pass(&mut self, time: Millis) {
            self.now += time;
            self.access.handle_timeout(self.now, &mut self.subscriptions);
        }

        fn steps(&mut self) -> Vec<Step> {
            std::iter::from_fn(|| self.access.next_step(&self.subscriptions)).collect()
        }

        fn assert_empty(&mut self) {
            while !self.access.cancelled.is_empty() {
                self.access.sweep(&mut self.subscriptions);
            }
            let access = &self.access;
            assert!(access.entries.is_empty() && access.shares.is_empty() && access.awaited_by.is_empty());
            assert_eq!((access.awaited, access.undecided.len(), self.subscriptions.held()), (0, 0, 0));
        }
    }

    /// Creates a scene with one database, to which session 0 subscribes.
    fn knows(verdict: Verdict) -> Scene {
        let mut scene = Scene::new();
        scene.wait(0, "u", &["db"]);
        assert_eq!(scene.questions(), ["db"]);
        assert_eq!(scene.answer("db", verdict), None);
        assert_eq!(scene.ready(), [0]);
        scene
    }

    const NONE: [&str; 0] = [];

    #[test]
    fn a_database_is_asked_about_once_for_all_who_wait() {
        let mut scene = Scene::new();
        scene.wait(0, "u", &["a", "b"]);
        scene.wait(1, "v", &["b"]);
        assert_eq!((scene.access.pending_names(key(0)), scene.access.pending_requests(key(0))), (2, 1));
        assert_eq!(scene.questions(), ["a", "b"]);
        scene.answer("b", of("u"));
        assert_eq!(scene.ready(), [1]);
        scene.answer("a", MISSING);
        assert_eq!(scene.ready(), [0]);
        assert_eq!((scene.access.pending_names(key(0)), scene.access.pending_requests(key(0))), (0, 0));
        assert_eq!(scene.decide("a", "u", &[]), Decision::Allowed, "it does not exist");
        assert_eq!(scene.decide("b", "u", &[]), Decision::Allowed);
        assert_eq!(scene.decide("b", "v", &[]), Decision::Forbidden(Refusal::NotReader));
        assert_eq!(scene.decide("b", "v", &["_admin"]), Decision::Allowed);
        assert_eq!(scene.decide("_users", "u", &[]), Decision::Forbidden(Refusal::NotReader));
        assert_eq!(scene.decide("c", "u", &[]), Decision::Unknown);
        assert_eq!(scene.decide("../c", "u", &[]), Decision::Allowed, "CouchDB cannot have it");
    }

    #[test]
    fn sessions_are_served_in_turn() {
        let mut scene = Scene::new();
        let names: Vec<String> = (0..1_000).map(|number| format!("db-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        scene.wait(0, "u", &names);
        scene.wait(1, "v", &["mine"]);
        // The last lookup of the first session too, which does not wait for that session's turn.
        scene.wait(2, "w", &["db-999"]);
        assert_eq!(scene.questions(), ["db-0", "mine", "db-999", "db-1"]);
        scene.answer("db-999", MISSING);
        assert_eq!(scene.questions(), ["db-2"]);
        assert_eq!(scene.ready(), [2]);
    }

    #[test]
    fn refreshes_and_new_questions_do_not_starve_each_other() {
        let mut scene = Scene::new();
        let names: Vec<String> = (0..500).map(|number| format!("db-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        scene.wait(0, "u", &names);
        loop {
            let questions = scene.questions();
            if questions.is_empty() {
                break;
            }
            for name in questions {
                scene.answer(&name, of("u"));
            }
        }
        assert_eq!(scene.ready(), [0]);
        scene.pass(REFRESH);
        let fresh: Vec<String> = (0..500).map(|number| format!("new-{number}")).collect();
        scene.wait(1, "v", &fresh.iter().map(String::as_str).collect::<Vec<_>>());
        scene.line("db-499", Created, true);
        let mut asked = Vec::new();
        while asked.len() < 20 {
            for name in scene.questions() {
                scene.answer(&name, of("u"));
                asked.push(name);
            }
        }
        let new = asked.iter().filter(|name| name.starts_with("new-")).count();
        assert!((8..=12).contains(&new) && asked[..4].contains(&"db-499".to_owned()), "{asked:?}");
    }

    #[test]
    fn a_question_that_nobody_waits_for_any_more_is_not_asked_and_takes_no_memory() {
        let mut scene = Scene::new();
        for round in 0..200 {
            let names: Vec<String> = (0..250).map(|number| format!("db-{round}-{number}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            scene.wait(0, "u", &names);
            scene.withdraw(0, &names);
            assert!(scene.access.len() <= 4 && scene.access.waiting_questions() <= MAX_STALE + 250);
            assert_eq!(scene.ready(), [0], "the request is answered");
        }
        scene.wait(1, "v", &["mine"]);
        assert_eq!(scene.questions(), ["mine"]);
        scene.answer("mine", MISSING);
        scene.ready();
        scene.unsubscribe(1, "mine");
        scene.assert_empty();
        // A lookup in flight is kept until its reply.
        scene.wait(0, "u", &["a"]);
        assert_eq!(scene.questions(), ["a"]);
        assert_eq!(scene.cancel(0), 1);
        assert_eq!(scene.access.len(), 1);
        scene.answer("a", None);
        scene.assert_empty();
    }

    #[test]
    fn a_session_that_leaves_takes_only_its_own_questions_away() {
        let mut scene = Scene::new();
        scene.wait(0, "u", &["a", "b"]);
        scene.wait(1, "v", &["b", "c"]);
        assert_eq!(scene.cancel(0), 1);
        assert_eq!(scene.questions(), ["b", "c"]);
        for name in ["b", "c"] {
            scene.answer(name, MISSING);
        }
        assert_eq!(scene.ready(), [1]);
    }

    #[test]
    fn a_user_has_so_many_databases_waiting_and_leaves_room_for_others() {
        let mut scene = Scene::new();
        let names: Vec<String> = (0..MAX_WAITING_OF_USER).map(|number| format!("db-{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for (session, part) in names.chunks(MAX_WAITING_OF_USER / 4).enumerate() {
            assert!(scene.access.has_room("u", part.len()));
            scene.wait(u32::try_from(session).expect("few"), "u", part);
        }
        assert!(!scene.access.has_room("u", 1) && scene.access.has_room("v", MAX_WAITING_OF_USER));
        assert_eq!(scene.cancel(0), 1);
        assert!(scene.access.has_room("u", MAX_WAITING_OF_USER / 4));
        for session in 1..4 {
            scene.cancel(session);
        }
        scene.assert_empty();
    }

    #[test]
    fn who_may_read_is_asked_again_within_each_minute_while_someone_subscribes() {
        let mut scene = knows(of("u"));
        scene.steps();
        let mut answered = 0;
        while scene.now < 600_000 {
            let due = scene.access.poll_timeout().expect("it is watched");
            scene.pass(due.saturating_sub(scene.now));
            assert_eq!(scene.decide("db", "u", &[]), Decision::Allowed, "what was known counts meanwhile");
            if scene.questions().is_empty() {
                continue;
            }
            scene.now += 5_000;
            assert!(scene.now - answered <= 60_000, "{answered} to {}", scene.now);
            answered = scene.now;
            assert_eq!(scene.answer("db", of("u")), None);
            assert_eq!(scene.steps(), [], "nothing is reconsidered when the verdict is the same");
        }
        scene.pass(REFRESH);
        assert_eq!(scene.questions(), ["db"]);
        scene.answer("db", of("v"));
        assert_eq!(scene.steps(), [Step::Decide(0, scene.id("db"))]);
        assert_eq!(scene.decide("db", "u", &[]), Decision::Forbidden(Refusal::NotReader));
        scene.unsubscribe(0, "db");
        assert_eq!(scene.access.len(), 1, "a database that is there is kept until its refresh");
        scene.pass(REFRESH);
        assert_eq!(scene.access.poll_timeout(), None);
        scene.assert_empty();
    }

    #[test]
    fn what_is_not_there_is_told_to_nobody_before_it_was_asked_about() {
        let mut scene = knows(MISSING);
        assert!(!scene.line("db", Created, true) && !scene.line("db", Updated, true));
        assert_eq!(scene.questions(), ["db"]);
        assert_eq!(scene.answer("db", None), None);
        assert!(!scene.line("db", Updated, true), "CouchDB did not say");
        assert_eq!(scene.questions(), NONE);
        scene.pass(FIRST_RETRY);
        assert_eq!(scene.questions(), ["db"]);
        assert_eq!(scene.answer("db", of("u")), None, "its subscribers are reconsidered first");
        assert!(!scene.line("db", Updated, true), "so long they are not notified");
        let id = scene.id("db");
        assert_eq!(scene.steps(), [Step::Decide(0, id), Step::Notify(id, Created)]);
        assert!(scene.line("db", Updated, true));
        // A position shows the change before the line does.
        let mut scene = knows(MISSING);
        assert!(!scene.line("db", Created, false));
        assert_eq!(scene.questions(), ["db"]);
        scene.answer("db", of("u"));
        assert_eq!(scene.steps().last(), Some(&Step::Notify(scene.id("db"), Created)), "nobody was notified of it");
    }

    #[test]
    fn a_database_that_is_deleted_is_in_doubt_until_it_was_asked_about() {
        let mut scene = knows(of("u"));
        scene.steps();
        assert!(scene.line("db", Updated, true) && !scene.line("db", Updated, false));
        assert_eq!(scene.questions(), NONE);
        assert!(scene.line("db", Deleted, true), "those who could read it are notified");
        assert_eq!(scene.questions(), ["db"]);
        assert_eq!(scene.answer("db", None), None);
        for kind in [Updated, Created, Updated, Deleted, Updated] {
            assert!(!scene.line("db", kind, true), "it may be another one: {kind:?}");
        }
        assert_eq!(scene.decide("db", "v", &[]), Decision::Allowed, "as of one that is missing");
        scene.pass(FIRST_RETRY);
        assert_eq!(scene.questions(), ["db"]);
        assert!(!scene.line("db", Created, true));
        assert_eq!(scene.answer("db", MISSING), None, "from in between, maybe");
        assert_eq!(scene.questions(), ["db"]);
        scene.answer("db", of("v"));
        let id = scene.id("db");
        assert_eq!(scene.steps(), [Step::Decide(0, id), Step::Notify(id, Created)]);
        assert_eq!(scene.decide("db", "u", &[]), Decision::Forbidden(Refusal::NotReader));
        assert!(!scene.line("db", Created, false));
        assert_eq!(scene.questions(), ["db"], "it is asked about, too, when it was told of before");
        assert_eq!(scene.answer("db", of("v")), None);
        assert_eq!(scene.steps(), []);
    }

    #[test]
    fn a_busy_database_gets_its_answer() {
        let mut scene = knows(MISSING);
        assert!(!scene.line("db", Created, true));
        assert_eq!(scene.questions(), ["db"]);
        assert!(!scene.line("db", Updated, true));
        assert_eq!(scene.answer("db", MISSING), None, "it was there by then");
        assert_eq!(scene.questions(), ["db"]);
        assert!(!scene.line("db", Updated, true));
        scene.answer("db", of("u"));
        assert!(matches!(scene.steps()[..], [Step::Decide(..), Step::Notify(..)]));
        // A database that was deleted at once stays missing.
        let mut scene = knows(MISSING);
        assert!(!scene.line("db", Created, true) && !scene.line("db", Deleted, true));
        assert_eq!(scene.questions(), ["db"]);
        assert!(scene.answer("db", MISSING).is_some());
        assert_eq!(scene.questions(), NONE);
    }

    #[test]
    fn a_database_in_doubt_is_shown_as_it_was() {
        let mut scene = knows(MISSING);
        let id = scene.id("db");
        let position = |counts| Position { counts, ..Position::default() };
        let look_up = |scene: &mut Scene, counts: [u32; 3]| {
            let rows = counts.map(|number| crate::wire::positions::Revision { number, mark: number });
            scene.subscriptions.watch_mut(id).handle_lookup(rows, false, 0).count();
        };
        look_up(&mut scene, [7, 1, 1]);
        assert_eq!(scene.access.shown(id, &scene.subscriptions), Some(position([7, 1, 1])));
        // A position shows the creation before any line does.
        look_up(&mut scene, [8, 2, 1]);
        assert_eq!(scene.access.shown(id, &scene.subscriptions), Some(position([8, 1, 1])));
        let before = Some(position([7, 1, 1]));
        scene.access.handle_line(id, Created, true, before, &scene.subscriptions);
        look_up(&mut scene, [9, 2, 1]);
        assert_eq!(scene.access.shown(id, &scene.subscriptions), before);
        assert_eq!(scene.access.told(id, &scene.subscriptions), before);
        assert_eq!(scene.questions(), ["db"]);
        scene.answer("db", of("u"));
        assert_eq!(scene.access.shown(id, &scene.subscriptions), Some(position([9, 2, 1])));
    }

    #[test]
    fn questions_without_an_answer_are_asked_again_ever_later_and_not_for_nobody() {
        let mut scene = knows(of("u"));
        scene.steps();
        scene.line("db", Deleted, true);
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(scene.questions(), ["db"]);
            scene.answer("db", None);
            let due = scene.access.retries.peek().expect("it is asked again").0.0;
            waits.push(due - scene.now);
            scene.pass(due - scene.now);
        }
        assert!(waits[0] <= FIRST_RETRY && waits[11] >= LONGEST_RETRY / 2, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LONGEST_RETRY), "{waits:?}");
        assert_eq!(scene.questions(), ["db"]);
        scene.unsubscribe(0, "db");
        scene.answer("db", None);
        scene.assert_empty();
        assert_eq!(scene.questions(), NONE);
    }

    #[test]
    fn what_cannot_be_decided_in_time_is_given_up() {
        let mut scene = Scene::new();
        scene.wait(0, "u", &["a"]);
        scene.wait(1, "v", &["a", "b"]);
        assert_eq!(scene.questions(), ["a", "b"]);
        scene.withdraw(1, &["a"]);
        assert_eq!(scene.access.pending_names(key(1)), 1);
        assert_eq!(scene.cancel(1), 1);
        scene.answer("a", None);
        scene.pass(DECIDE_WITHIN);
        assert_eq!(scene.late(), [0]);
        assert_eq!(scene.access.pending_requests(key(0)), 0);
        // The reply still comes, and nothing remains.
        scene.answer("b", MISSING);
        scene.assert_empty();
    }

    #[test]
    fn subscribers_that_come_and_go_meanwhile_are_all_reconsidered() {
        let mut scene = knows(of("u"));
        scene.steps();
        let id = scene.id("db");
        for session in 1..10 {
            scene.subscriptions.subscribe(session, id).expect("within the limit");
        }
        scene.line("db", Created, true);
        scene.questions();
        scene.answer("db", of("v"));
        let mut decided = HashSet::new();
        let mut gone = [9, 0, 5].into_iter();
        while let Some(step) = scene.access.next_step(&scene.subscriptions) {
            let Step::Decide(session, _) = step else {
                assert_eq!(step, Step::Notify(id, Created));
                break;
            };
            decided.insert(session);
            if let Some(session) = gone.next() {
                scene.subscriptions.unsubscribe(session, id);
            }
        }
        assert!((1..9).filter(|session| *session != 5).all(|session| decided.contains(&session)), "{decided:?}");
        // A session with new roles is not written to until all of its databases are decided.
        scene.access.reconsider_session(key(3), &scene.subscriptions);
        assert!(scene.access.is_withheld(key(3)) && !scene.access.is_withheld(key(4)));
        assert_eq!(scene.steps(), [Step::Decide(3, id), Step::Resume(key(3))]);
        assert!(!scene.access.is_withheld(key(3)) && !scene.access.has_work());
    }
}
