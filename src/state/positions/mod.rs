//! Looks up the positions of databases in batches, and lets `subscribe` requests wait for the
//! positions with which the client's ones are compared.
//!
//! ```text
//!  subscribe {a: "29.1.0"} ──▶ waits for a ──┐
//!  subscribe {a: null, b: …} ──▶ waits ──────┤    one lookup of a for all requests
//!                                            ▼
//!     queue: a b …  ──▶ batches ──▶ _all_docs ──▶ position of a  ◀── lines of the feed
//!                                            │
//!                                            └──▶ compare and subscribe, in one step
//! ```
//!
//! A database is held from the start of the wait, so that the feed's lines about it count. The
//! session is subscribed at the moment of the reply, not before. So a change is either in the
//! compared position, or comes after the reply.

mod batch;
mod pending;
mod waiting;

use std::collections::{HashMap, HashSet, VecDeque};

use crate::state::fair_queue::FairQueue;
use crate::state::jitter::{Backoff, Jitter};
use crate::state::subscriptions::{DatabaseId, SessionIndex, Subscriptions};
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::couchdb::lookup::{self, MAX_NAMES};
use crate::wire::database_name;

pub use batch::Batch;
use batch::Owner;
pub use pending::{Pending, RequestedDatabases};

/// Most lookups in flight.
pub const MAX_BATCHES: usize = 2;
/// Time for which the position of a database without subscribers is kept, in milliseconds.
const LINGER: Millis = 60_000;
/// Most databases that are kept without subscribers.
const MAX_LINGERING: usize = 100_000;
/// Most databases in the queue. Beyond that, positions stay unknown.
const MAX_QUEUED: usize = 200_000;
/// Most databases in the queue for one session.
const MAX_QUEUED_OF_SESSION: usize = 20_000;
/// Databases that a session may always queue, even at [`MAX_QUEUED`].
const ALWAYS_QUEUED: usize = 1_000;
/// Most databases that are taken from the queue per turn, including those that are no longer
/// needed.
const TAKEN_A_TURN: usize = 4 * MAX_NAMES;

/// Most databases of cancelled requests that are released per turn, and most databases that are
/// checked after a doubt.
const SWEPT_A_TURN: usize = 2_000;
/// Most late requests that become due per turn, and most databases whose time without subscribers
/// ends.
const EXPIRED_A_TURN: usize = 2_000;

/// Availability of positions.
#[derive(Debug, PartialEq, Eq)]
enum Epoch {
    /// The feed has no positions.
    Never,
    /// The epoch is not known yet.
    Awaited,
    Known(Box<str>),
}

/// Queue of lookups, and waiting requests.
#[derive(Debug)]
pub struct Positions {
    epoch: Epoch,
    era: u32,
    /// Databases to look up, by session in turn; each is held once. A database that several
    /// sessions wait for is queued for each of them. It is dropped if another session's turn came
    /// first.
    queue: FairQueue<Owner, DatabaseId>,
    /// Whether the last turn left databases to drop.
    unswept: bool,
    batches: usize,
    /// Databases of all batches in flight.
    in_flight: HashSet<DatabaseId>,
    pending: Table<Pending>,
    waiting_for: HashMap<DatabaseId, Vec<Key>>,
    pending_of: HashMap<Key, Vec<Key>>,
    deadlines: VecDeque<(Millis, Key)>,
    /// Databases without subscribers, each held once, and until when.
    lingering: VecDeque<(Millis, DatabaseId)>,
    retry_at: Option<Millis>,
    backoff: Backoff,
    /// Requests whose reply is due, including some that were cancelled.
    ready: VecDeque<Key>,
    /// Slot from which databases without a position are still to be queued.
    unchecked_from: Option<u32>,
    /// Databases whose session no longer wants them; others may.
    unowned: VecDeque<DatabaseId>,
}

impl Positions {
    /// Creates the machine for a feed whose lines have revisions, or do not.
    pub fn new(with_revisions: bool) -> Self {
        Self {
            epoch: if with_revisions { Epoch::Awaited } else { Epoch::Never },
            era: 0,
            queue: FairQueue::default(),
            unswept: false,
            batches: 0,
            in_flight: HashSet::new(),
            pending: Table::default(),
            waiting_for: HashMap::new(),
            pending_of: HashMap::new(),
            deadlines: VecDeque::new(),
            lingering: VecDeque::new(),
            retry_at: None,
            backoff: Backoff::default(),
            ready: VecDeque::new(),
            unchecked_from: None,
            unowned: VecDeque::new(),
        }
    }

    /// Returns whether there are positions, now or later.
    pub fn are_available(&self) -> bool {
        self.epoch != Epoch::Never
    }

    /// Returns the epoch, if it is known.
    pub fn epoch(&self) -> Option<&str> {
        match &self.epoch {
            Epoch::Known(epoch) => Some(epoch),
            _ => None,
        }
    }

    /// Handles the epoch that CouchDB reported. Returns whether another one was known before.
    pub fn handle_epoch(&mut self, epoch: Option<Box<str>>, subscriptions: &mut Subscriptions) -> bool {
        let epoch = epoch.map_or(Epoch::Never, Epoch::Known);
        if epoch == self.epoch {
            return false;
        }
        let other = self.epoch != Epoch::Awaited;
        self.epoch = epoch;
        subscriptions.keeps_orphans = self.are_available();
        // Earlier lines may belong to an earlier epoch.
        self.era += 1;
        subscriptions.for_each_tracked(|_, _, tracked| tracked.forget());
        // Without positions `next_ready` answers all requests, and `sweep` drops their lookups.
        self.unchecked_from = self.are_available().then_some(0);
        other
    }

    /// Queues lookups of unknown positions with subscribers, a limited number per turn.
    fn queue_unknown(&mut self, subscriptions: &mut Subscriptions) {
        let Some(from) = self.unchecked_from.filter(|_| self.are_available()) else { return };
        let mut next = Some(from);
        for _ in 0..SWEPT_A_TURN {
            let Some((slot, database)) = next.and_then(|slot| subscriptions.next_from(slot)) else {
                self.unchecked_from = None;
                return;
            };
            next = Some(slot + 1);
            let needed = subscriptions.has_subscribers(database) || self.is_awaited(database);
            if !needed {
                // No subscriber is notified of earlier changes, so a later lookup finds no news
                // either.
                subscriptions.tracked_mut(database).forget();
            } else if subscriptions.tracked(database).known().is_none() {
                self.queue_lookup(database, None, subscriptions);
            }
        }
        self.unchecked_from = next;
    }

    /// Handles a possible loss of lines after `followed_until`: all positions are looked up again,
    /// and subscribers are notified of differences. Returns the databases with subscribers but
    /// without a position to compare with.
    pub fn handle_doubt(&mut self, followed_until: Millis, subscriptions: &mut Subscriptions) -> Vec<DatabaseId> {
        self.era += 1;
        let mut unknown = Vec::new();
        subscriptions.for_each_tracked(|database, is_subscribed, tracked| {
            unknown.extend((is_subscribed && tracked.awaits_lines(followed_until)).then_some(database));
            tracked.doubt();
        });
        self.unchecked_from = self.are_available().then_some(0);
        unknown
    }

    /// Queues a lookup of a database's position for a session unless it is already known or queued.
    pub fn queue_lookup(&mut self, database: DatabaseId, owner: Owner, subscriptions: &mut Subscriptions) {
        if !self.are_available() || subscriptions.tracked(database).known().is_some() {
            return;
        }
        if !database_name::is_possible(subscriptions.name(database)) {
            return subscriptions.tracked_mut(database).set_certain();
        }
        if self.is_full(owner) {
            return;
        }
        let tracked = subscriptions.tracked_mut(database);
        if !std::mem::replace(&mut tracked.lookup_pending, true) {
            subscriptions.hold_id(database);
            self.queue.push(owner, database);
        }
    }

    fn is_full(&self, owner: Owner) -> bool {
        let its = self.queue.len_of(owner);
        owner.is_some() && its >= MAX_QUEUED_OF_SESSION || self.queue.len() >= MAX_QUEUED && its >= ALWAYS_QUEUED
    }

    /// Continues work that takes more than a turn. Returns databases that are no longer wanted,
    /// each of which may be gone.
    pub fn sweep(&mut self, subscriptions: &mut Subscriptions) -> Vec<DatabaseId> {
        let mut dropped = Vec::new();
        self.queue_unknown(subscriptions);
        for _ in 0..SWEPT_A_TURN {
            // Without positions there are no lookups.
            if self.are_available() {
                break;
            }
            let Some((_, database)) = self.queue.pop() else { break };
            self.drop_queued(database, subscriptions);
        }
        for _ in 0..SWEPT_A_TURN {
            let Some(database) = self.unowned.pop_front() else { break };
            if self.are_available() && self.is_needed(database, subscriptions) {
                self.queue.push(None, database);
            } else {
                self.drop_queued(database, subscriptions);
                dropped.push(database);
            }
        }
        dropped
    }

    /// Returns whether a queued lookup is needed by a request or by subscribers.
    fn is_needed(&self, database: DatabaseId, subscriptions: &Subscriptions) -> bool {
        let queued = subscriptions.tracked(database).lookup_pending && !self.in_flight.contains(&database);
        queued && (subscriptions.has_subscribers(database) || self.is_awaited(database))
    }

    /// Drops a database from the queue that is not needed, or was taken before for another session.
    fn drop_queued(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        if !self.in_flight.contains(&database) && subscriptions.tracked(database).lookup_pending {
            self.waiting_for.remove(&database);
            subscriptions.tracked_mut(database).forget();
            subscriptions.tracked_mut(database).lookup_pending = false;
        }
        subscriptions.release(database);
    }

    /// Returns whether a reply is due, or work to sweep.
    pub fn has_work(&self) -> bool {
        let drops = !self.are_available() && !self.queue.is_empty();
        let sweeps = drops || self.unchecked_from.is_some() || !self.unowned.is_empty();
        sweeps || !self.ready.is_empty() || !self.are_available() && !self.deadlines.is_empty()
    }

    /// Returns the next databases to look up together, unless enough lookups are in flight.
    pub fn next_batch(&mut self, subscriptions: &mut Subscriptions) -> Option<Batch> {
        let may = self.epoch().is_some() && self.retry_at.is_none() && self.batches < MAX_BATCHES;
        let (mut databases, mut owners) = (Vec::new(), Vec::new());
        let mut taken = 0;
        while may && databases.len() < MAX_NAMES && taken < TAKEN_A_TURN {
            let Some((owner, database)) = self.queue.pop() else { break };
            taken += 1;
            if self.is_needed(database, subscriptions) {
                subscriptions.tracked_mut(database).lookup_outdated = false;
                self.in_flight.insert(database);
                databases.push(database);
                owners.push(owner);
            } else {
                self.drop_queued(database, subscriptions);
            }
        }
        self.unswept = taken == TAKEN_A_TURN;
        self.batches += usize::from(!databases.is_empty());
        (!databases.is_empty()).then_some(Batch { databases, owners, era: self.era })
    }

    /// Handles CouchDB's reply to a batch; None if there was none. Sessions to notify of changes
    /// are appended to `newly_dirty`. Returns whether the reply was valid; otherwise the lookup is
    /// repeated.
    pub fn handle_lookup(
        &mut self,
        batch: Batch,
        body: Option<&[u8]>,
        times: (Millis, &mut Jitter),
        subscriptions: &mut Subscriptions,
        newly_dirty: &mut Vec<SessionIndex>,
    ) -> bool {
        self.handle_lookup_if(batch, body, times, subscriptions, newly_dirty, |_, _, _| true)
    }

    /// The same with a filter: changes for which `may_notify` returns false are left to it.
    pub fn handle_lookup_if(
        &mut self,
        batch: Batch,
        body: Option<&[u8]>,
        (now, jitter): (Millis, &mut Jitter),
        subscriptions: &mut Subscriptions,
        newly_dirty: &mut Vec<SessionIndex>,
        mut may_notify: impl FnMut(DatabaseId, ChangeKind, &Subscriptions) -> bool,
    ) -> bool {
        self.batches -= 1;
        let names = batch.databases.iter().map(|database| subscriptions.name(*database));
        let rows = body.and_then(|body| lookup::read_rows(body, names));
        let found = rows.is_some();
        let Some(rows) = rows.filter(|_| batch.era == self.era) else {
            if !found {
                self.retry_at = Some(now + self.backoff.wait(jitter));
            }
            for (database, owner) in batch.databases.into_iter().zip(batch.owners).rev() {
                self.in_flight.remove(&database);
                self.queue.push_front(owner, database);
            }
            return found;
        };
        self.backoff.reset();
        for ((database, owner), revisions) in batch.databases.into_iter().zip(batch.owners).zip(rows) {
            self.in_flight.remove(&database);
            let subscribed = subscriptions.has_subscribers(database);
            let tracked = subscriptions.tracked_mut(database);
            if tracked.lookup_outdated {
                self.queue.push(owner, database);
                continue;
            }
            tracked.lookup_pending = false;
            for kind in tracked.handle_lookup(revisions, subscribed, now) {
                if may_notify(database, kind, subscriptions) {
                    subscriptions.mark(database, kind, newly_dirty);
                }
            }
            self.found(database);
            subscriptions.release(database);
        }
        true
    }

    /// Keeps databases whose last subscriber has left for a while.
    pub fn linger(&mut self, now: Millis, subscriptions: &mut Subscriptions) {
        for database in subscriptions.take_orphans() {
            self.lingering.push_back((now + LINGER, database));
        }
        while self.lingering.len() > MAX_LINGERING {
            let Some((_, database)) = self.lingering.pop_front() else { break };
            subscriptions.release_orphan(database);
        }
    }

    /// Returns when [`Positions::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let retry = self.retry_at.filter(|_| !self.queue.is_empty());
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let linger = self.lingering.front().map(|(at, _)| *at);
        let sweep = self.unswept.then_some(0);
        [retry, deadline, linger, sweep].into_iter().flatten().min()
    }

    /// Handles a timeout, a limited part per turn.
    pub fn handle_timeout(&mut self, now: Millis, subscriptions: &mut Subscriptions) {
        self.retry_at = self.retry_at.filter(|at| now < *at);
        for _ in 0..EXPIRED_A_TURN {
            let Some((_, key)) = self.deadlines.front().copied().filter(|(at, _)| *at <= now) else { break };
            self.deadlines.pop_front();
            self.answer(key);
        }
        for _ in 0..EXPIRED_A_TURN {
            let Some((_, database)) = self.lingering.front().copied().filter(|(at, _)| *at <= now) else { break };
            self.lingering.pop_front();
            subscriptions.release_orphan(database);
        }
        self.give_back();
    }

    /// Shrinks the tables after many requests.
    fn give_back(&mut self) {
        let room = |length: usize, capacity: usize| (length < capacity / 8).then_some(2 * length);
        if let Some(room) = room(self.unowned.len(), self.unowned.capacity()) {
            self.unowned.shrink_to(room);
        }
        if let Some(room) = room(self.lingering.len(), self.lingering.capacity()) {
            self.lingering.shrink_to(room);
        }
        if let Some(room) = room(self.deadlines.len(), self.deadlines.capacity()) {
            self.deadlines.shrink_to(room);
        }
        if let Some(room) = room(self.waiting_for.len(), self.waiting_for.capacity()) {
            self.waiting_for.shrink_to(room);
        }
        if let Some(room) = room(self.pending_of.len(), self.pending_of.capacity()) {
            self.pending_of.shrink_to(room);
        }
    }
}

#[cfg(test)]
mod tests;
