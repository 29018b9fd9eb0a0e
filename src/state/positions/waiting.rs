//! Requests that wait for positions: their wait, and its end.

use std::collections::HashSet;

use super::Positions;
use super::pending::Pending;
use crate::state::session::Reply;
use crate::state::subscriptions::{DatabaseId, Subscriptions};
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Number of deadlines below which they are not swept.
const MIN_SWEPT: usize = 64;
/// Time after which a `subscribe` is answered without the positions that are still unknown, in
/// milliseconds.
pub(super) const REPLY_TIMEOUT: Millis = 5_000;

impl Positions {
    /// Returns the number of waiting `subscribe` requests.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// Returns the number of names in the waiting requests of a session.
    pub fn pending_names(&self, session: Key) -> usize {
        self.pending_of(session).map(|pending| pending.names.len()).sum()
    }

    /// Returns the number of waiting requests of a session, without parts of lists.
    pub fn pending_requests(&self, session: Key) -> usize {
        self.pending_of(session).filter(|pending| pending.group.is_none()).count()
    }

    fn pending_of(&self, session: Key) -> impl Iterator<Item = &Pending> {
        self.pending_of.get(&session).into_iter().flatten().filter_map(|key| self.pending.get(*key))
    }

    /// Lets a `subscribe` wait. Its reply is due when all positions are known, or after its
    /// timeout.
    pub fn wait(&mut self, mut pending: Pending, now: Millis, subscriptions: &mut Subscriptions) {
        let (mut awaited, session) = (Vec::new(), pending.session);
        for (database, _) in &pending.names {
            let queued = subscriptions.tracked(*database).lookup_pending;
            self.queue_lookup(*database, Some(session), subscriptions);
            if subscriptions.tracked(*database).lookup_pending {
                awaited.push(*database);
                // It may be far behind in the queue of another session.
                if queued && !self.in_flight.contains(database) && !self.is_full(Some(session)) {
                    subscriptions.hold_id(*database);
                    self.queue.push(Some(session), *database);
                }
            }
        }
        pending.awaits = awaited.iter().copied().collect();
        let is_due = awaited.is_empty();
        let key = self.pending.insert(pending);
        self.pending_of.entry(session).or_default().push(key);
        if is_due {
            return self.answer(key);
        }
        for database in awaited {
            let waiting = self.waiting_for.entry(database).or_default();
            if waiting.len() == waiting.capacity() {
                // Drop stale waiters before growing.
                waiting.retain(|key| self.pending.get(*key).is_some());
            }
            waiting.push(key);
        }
        self.deadlines.push_back((now + REPLY_TIMEOUT, key));
        if self.deadlines.len() > 2 * self.pending.len() + MIN_SWEPT {
            // Most requests were cancelled before their deadline.
            let pending = &self.pending;
            self.deadlines.retain(|(_, key)| pending.get(*key).is_some());
        }
    }

    /// Returns the waiting requests of a session, for [`Positions::withdraw_from`].
    pub fn requests_of(&self, session: Key) -> impl Iterator<Item = Key> {
        self.pending_of.get(&session).into_iter().flatten().copied()
    }

    /// Withdraws databases from the requests of a session, in time linear in both.
    pub fn withdraw(&mut self, session: Key, databases: &HashSet<DatabaseId>, subscriptions: &mut Subscriptions) {
        for key in self.requests_of(session).collect::<Vec<_>>() {
            self.withdraw_from(key, databases, subscriptions);
        }
    }

    /// Withdraws databases from a request, whose reply is due when it waits for no other database.
    /// Returns the number of names that the request had.
    pub fn withdraw_from(
        &mut self,
        key: Key,
        databases: &HashSet<DatabaseId>,
        subscriptions: &mut Subscriptions,
    ) -> usize {
        let Some(pending) = self.pending.get_mut(key) else { return 0 };
        let count = pending.names.len();
        pending.withdraw(databases, subscriptions);
        if pending.awaits.is_empty() {
            self.answer(key);
        }
        count
    }

    /// Cancels all requests of a session. Returns the form of their replies, and the databases that
    /// they held, for the caller to release. [`Positions::sweep`] drops the session's queue.
    pub fn cancel(&mut self, session: Key) -> (Vec<Reply>, Vec<DatabaseId>) {
        let (mut replies, mut held) = (Vec::new(), Vec::new());
        for key in self.pending_of.remove(&session).unwrap_or_default() {
            if let Some(pending) = self.pending.remove(key) {
                replies.push(pending.reply);
                held.extend(pending.names.into_iter().map(|(database, _)| database));
            }
        }
        self.unowned.append(&mut self.queue.remove_owner(Some(session)));
        (replies, held)
    }

    /// Returns the next due request; without positions all requests are due. The caller subscribes
    /// its session and answers in one step, and releases it.
    pub fn next_ready(&mut self) -> Option<Pending> {
        while let Some(key) = self.next_due() {
            let Some(pending) = self.pending.remove(key) else { continue };
            if let Some(keys) = self.pending_of.get_mut(&pending.session) {
                keys.retain(|other| *other != key);
                if keys.is_empty() {
                    self.pending_of.remove(&pending.session);
                }
            }
            return Some(pending);
        }
        None
    }

    fn next_due(&mut self) -> Option<Key> {
        self.ready.pop_front().or_else(|| {
            // Every request that waits has a deadline.
            if self.are_available() { None } else { self.deadlines.pop_front().map(|(_, key)| key) }
        })
    }

    pub(super) fn is_awaited(&self, database: DatabaseId) -> bool {
        let waiting = self.waiting_for.get(&database);
        let awaits = |key: &Key| self.pending.get(*key).is_some_and(|pending| pending.awaits.contains(&database));
        waiting.is_some_and(|waiting| waiting.iter().any(awaits))
    }

    /// Handles a position that has become known.
    pub(super) fn found(&mut self, database: DatabaseId) {
        let Some(waiting) = self.waiting_for.remove(&database) else { return };
        for key in waiting {
            let Some(pending) = self.pending.get_mut(key) else { continue };
            if pending.awaits.remove(&database) && pending.awaits.is_empty() {
                self.answer(key);
            }
        }
    }

    pub(super) fn answer(&mut self, key: Key) {
        if let Some(pending) = self.pending.get_mut(key)
            && !std::mem::replace(&mut pending.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }
}
