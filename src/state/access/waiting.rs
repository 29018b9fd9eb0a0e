//! Requests that wait for verdicts: their limits, their wait, and its end.

use std::collections::{HashSet, VecDeque};

use super::entry::LookupState;
use super::request::{Share, Stage, Undecided};
use super::{Access, MAX_WAITING, MAX_WAITING_OF_USER};
use crate::state::positions::RequestedDatabases;
use crate::state::session::Reply;
use crate::state::subscriptions::{DatabaseId, Subscriptions};
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Time after which an undecided `subscribe` fails, in milliseconds.
pub(super) const DECISION_TIMEOUT: Millis = 5_000;
/// Approximate number of names of cancelled requests that are released per turn.
const SWEPT_A_TURN: usize = 2_000;
/// Most queued lookups beyond those that a request waits for.
pub(super) const MAX_STALE: usize = 256;

impl Access {
    /// Returns whether a user may wait for `more` further databases.
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
    pub fn release_reserved(&mut self, user: &str, count: usize) {
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
            if matches!(entry.lookup, LookupState::None | LookupState::Queued) {
                entry.lookup = LookupState::Queued;
                self.lookups.of_sessions.push(session, *database);
            }
        }
        self.deadlines.push_back((now + DECISION_TIMEOUT, key));
    }

    /// Creates a waiting `subscribe`, for [`Access::wait`].
    pub fn undecided(session: Key, reply: Reply, names: RequestedDatabases, epoch: Option<Box<str>>) -> Undecided {
        Undecided { session, reply, names, epoch, group: None, awaits: HashSet::new(), stage: Stage::Waiting }
    }

    /// Returns the waiting requests of a session, for [`Access::withdraw_from`].
    pub fn requests_of(&self, session: Key) -> impl Iterator<Item = Key> {
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

    /// Withdraws databases from the requests of a session, in time linear in both.
    pub fn withdraw(&mut self, session: Key, databases: &HashSet<DatabaseId>, subscriptions: &mut Subscriptions) {
        for key in self.requests_of(session).collect::<Vec<_>>() {
            self.withdraw_from(key, databases, subscriptions);
        }
        self.drop_stale_lookups(session);
    }

    /// Withdraws databases from a request, which becomes ready when it waits for no other database.
    /// The caller drops stale lookups after the last request. Returns the number of names that the
    /// request had.
    pub fn withdraw_from(
        &mut self,
        key: Key,
        databases: &HashSet<DatabaseId>,
        subscriptions: &mut Subscriptions,
    ) -> usize {
        let Some(undecided) = self.undecided.get_mut(key) else { return 0 };
        let (session, count) = (undecided.session, undecided.names.len());
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
        count
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
        self.lookups.of_sessions.remove_owner(session);
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

    /// Makes a request ready. It can still be cancelled.
    pub(super) fn make_ready(&mut self, key: Key) {
        if let Some(undecided) = self.undecided.get_mut(key)
            && undecided.stage == Stage::Waiting
        {
            undecided.stage = Stage::Ready;
            self.ready.push_back(key);
        }
    }

    /// Takes out a request that is undecided.
    pub(super) fn take_late(&mut self, key: Key, subscriptions: &mut Subscriptions) -> Option<Undecided> {
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

    pub(super) fn uncount(&mut self, session: Key, count: usize) {
        let Some(share) = self.shares.get_mut(&session) else { return };
        share.awaits -= count;
        let user = share.user.clone();
        if share.requests.is_empty() {
            self.shares.remove(&session);
        }
        self.release_reserved(&user, count);
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
    pub fn drop_stale_lookups(&mut self, session: Key) {
        let awaits = self.shares.get(&session).map_or(0, |share| share.awaits);
        let queue = &mut self.lookups.of_sessions;
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
}
