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

mod changes;
mod entry;
mod lookups;
mod reconsider;
mod request;
mod step;
mod verdict;
mod waiting;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};

use entry::{Entry, LookupState, before_creation};
use lookups::LookupQueue;
pub use request::Undecided;
use request::{Share, Stage};
use step::Pass;
pub use step::Step;
pub use verdict::{Decision, Policy, Verdict};

use crate::state::security_memory::SecurityMemory;
use crate::state::subscriptions::{DatabaseId, Subscriptions};
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::database_name;
use crate::wire::positions::Position;
use crate::wire::security::{Refusal, is_server_admin, is_system};

/// Most lookups in flight.
pub const MAX_LOOKUPS: usize = 4;
/// Most databases for which the requests of one user wait, over all sessions.
pub const MAX_WAITING_OF_USER: usize = 20_000;
/// Most databases for which all requests wait. One user gets at most as many as there is room left
/// for others.
pub const MAX_WAITING: usize = 200_000;
/// Most refreshes, retries and late names per turn.
const EXPIRED_A_TURN: usize = 1_000;

/// Verdicts, lookups and waiting requests.
#[derive(Debug)]
pub struct Access {
    policy: Policy,
    entries: HashMap<DatabaseId, Entry>,
    memory: SecurityMemory,
    /// Number of `_security` objects that were dropped for lack of memory, since
    /// [`Access::take_evictions`].
    evictions: u64,
    lookups: LookupQueue,
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
            lookups: LookupQueue::default(),
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
    pub fn queued_lookups(&self) -> usize {
        self.lookups.len()
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
    pub fn visible_position(&self, database: DatabaseId, subscriptions: &Subscriptions) -> Option<Position> {
        let position = subscriptions.known(database);
        let Some(entry) = self.entries.get(&database) else { return position };
        let is_new = !entry.is_there() && position.is_some_and(|position| position.is_there());
        if entry.in_doubt || is_new { entry.position_before.or(position.map(before_creation)) } else { position }
    }

    /// Returns the position for notifications, with the same rule.
    pub fn notified_position(&self, database: DatabaseId, subscriptions: &Subscriptions) -> Option<Position> {
        match self.entries.get(&database) {
            Some(entry) if entry.in_doubt => {
                entry.position_before.or(subscriptions.notified(database).map(before_creation))
            }
            _ => subscriptions.notified(database),
        }
    }

    /// Releases a hold. A database that is not needed otherwise is forgotten.
    pub fn release(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        subscriptions.release(database);
        self.drop_unused(database, subscriptions);
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
    pub fn queue_lookup(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        self.enter(database, subscriptions);
        self.queue_urgent(database);
    }

    fn queue_urgent(&mut self, database: DatabaseId) {
        let Some(entry) = self.entries.get_mut(&database) else { return };
        if matches!(entry.lookup, LookupState::None | LookupState::Queued) {
            entry.lookup = LookupState::Urgent;
            self.lookups.urgent.push_back(database);
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
        if !is_used && is_worthless && entry.lookup != LookupState::InFlight {
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
    pub fn next_lookup(&mut self, subscriptions: &mut Subscriptions) -> Option<DatabaseId> {
        while self.lookups.in_flight < MAX_LOOKUPS {
            let database = self.lookups.pop()?;
            let Some(entry) = self.entries.get_mut(&database) else { continue };
            if !matches!(entry.lookup, LookupState::Queued | LookupState::Urgent) {
                continue;
            }
            if entry.waiters == 0 && !subscriptions.has_subscribers(database) {
                self.forget(database, subscriptions);
                continue;
            }
            entry.lookup = LookupState::InFlight;
            entry.since = None;
            self.lookups.in_flight += 1;
            return Some(database);
        }
        None
    }

    /// Returns whether there are steps to take or requests to answer now.
    pub fn has_work(&self) -> bool {
        let sweeps = !self.cancelled.is_empty();
        sweeps || !self.passes.is_empty() || !self.ready.is_empty() || !self.late.is_empty()
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
            if let Some(undecided) = self.take_late(key, subscriptions) {
                budget = budget.saturating_sub(undecided.names.len());
                let session = undecided.session;
                self.late.push_back(undecided);
                self.drop_stale_lookups(session);
            }
        }
        let mut budget = EXPIRED_A_TURN;
        while let Some(Reverse((at, database))) = self.retries.peek().copied()
            && at <= now
            && budget > 0
        {
            budget -= 1;
            self.retries.pop();
            if self.entries.get(&database).is_some_and(|entry| entry.lookup == LookupState::Backoff(at)) {
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
        entry.lookup = LookupState::None;
        if subscriptions.has_subscribers(database) {
            return self.queue_urgent(database);
        }
        for key in &entry.waiting {
            let waits = |one: &&Undecided| one.stage == Stage::Waiting && one.awaits.contains(&database);
            if let Some(undecided) = self.undecided.get(*key).filter(waits) {
                entry.lookup = LookupState::Queued;
                self.lookups.of_sessions.push(undecided.session, database);
            }
        }
        if entry.lookup == LookupState::None {
            self.forget(database, subscriptions);
        }
    }

    fn refresh(&mut self, database: DatabaseId, at: Millis, subscriptions: &mut Subscriptions) {
        let Some(entry) = self.entries.get_mut(&database).filter(|entry| entry.refresh == Some(at)) else { return };
        entry.refresh = None;
        if subscriptions.has_subscribers(database) {
            if entry.lookup == LookupState::None {
                entry.lookup = LookupState::Queued;
                self.lookups.refreshes.push_back(database);
            }
        } else if entry.waiters == 0 && entry.lookup != LookupState::InFlight {
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

#[cfg(test)]
mod tests;
