//! Looks the positions of databases up, in batches, and puts `subscribe` requests aside until the positions that they
//! are to be compared with are known.
//!
//! ```text
//!  subscribe {a: "29.1.0"} ──▶ waits for a ──┐
//!  subscribe {a: null, b: …} ──▶ waits ──────┤    one look-up of a, whoever asks
//!                                            ▼
//!     wanted: a b … ──▶ batches ──▶ _all_docs ──▶ what is known of a  ◀── lines of the feed
//!                                            │
//!                                            └──▶ compare and subscribe, in one step
//! ```
//!
//! A database that is waited for is kept from then on, so that the feed's lines about it count; who waits is subscribed
//! at the moment of the answer and not before. So a change is either in the position that is compared, or comes after
//! the answer.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::state::fair_queue::FairQueue;
use crate::state::jitter::{Backoff, Jitter};
use crate::state::session::Reply;
use crate::state::subscriptions::{DatabaseId, SessionIndex, Subscriptions};
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::database_name;
use crate::wire::positions::{self, Given, MAX_NAMES};

/// Fewer deadlines than this are not swept.
const FEW: usize = 64;
/// Most look-ups at once.
pub const MAX_BATCHES: usize = 2;
/// A `subscribe` is answered after this long without the positions that are not known by then, in milliseconds.
const ANSWER_WITHIN: Millis = 5_000;
/// The position of a database is kept for this long after its last subscriber left, in milliseconds.
const LINGER: Millis = 60_000;
/// Most databases that are kept without subscribers.
const MAX_LINGERING: usize = 100_000;
/// Most databases that wait to be looked up; beyond, positions are not known.
const MAX_WANTED: usize = 200_000;
/// The same for one session.
const MAX_WANTED_OF_SESSION: usize = 20_000;
/// A session that wants no more than this gets its turn although [`MAX_WANTED`] is reached.
const ALWAYS_WANTED: usize = 1_000;
/// Databases that are taken from the queue in one turn; those that nobody needs any more are dropped.
const TAKEN_A_TURN: usize = 4 * MAX_NAMES;

/// Databases of cancelled requests that are released in one turn, and databases that are looked at after a doubt.
const SWEPT_A_TURN: usize = 2_000;

/// The databases of a request, each once and held once, with the position that the client gave.
pub type Named = Vec<(DatabaseId, Given)>;

/// A `subscribe` whose answer waits, or is due.
#[derive(Debug)]
pub struct Pending {
    /// Who is to be subscribed.
    pub session: Key,
    /// How to answer.
    pub reply: Reply,
    /// To what.
    pub names: Named,
    /// The epoch of the positions that the client knows, where it says so.
    pub epoch: Option<Box<str>>,
    /// The list that it is a part of.
    pub group: Option<Key>,
    /// The databases whose positions it waits for.
    awaits: HashSet<DatabaseId>,
    /// Whether its answer is due.
    is_ready: bool,
}

impl Pending {
    /// A `subscribe` that waits for nothing yet.
    pub fn new(session: Key, reply: Reply, names: Named, epoch: Option<Box<str>>) -> Self {
        Self { session, reply, names, epoch, group: None, awaits: HashSet::new(), is_ready: false }
    }

    /// It was answered, or is not to be.
    pub fn release(self, subscriptions: &mut Subscriptions) {
        for (database, _) in self.names {
            subscriptions.release(database);
        }
    }

    /// Withdraws databases from it.
    fn withdraw(&mut self, databases: &HashSet<DatabaseId>, subscriptions: &mut Subscriptions) {
        self.names.retain(|(database, _)| {
            let stays = !databases.contains(database);
            if !stays {
                self.awaits.remove(database);
                subscriptions.release(*database);
            }
            stays
        });
    }
}

/// Databases that are looked up together.
#[derive(Debug)]
pub struct Batch {
    /// The databases, each held once.
    pub databases: Vec<DatabaseId>,
    /// On whose turn each was taken.
    owners: Vec<Owner>,
    /// What is found out before the feed started anew says nothing about what came before it started.
    era: u32,
}

/// The session that wants a position; None when the feed made it necessary.
type Owner = Option<Key>;

/// Whether positions mean anything.
#[derive(Debug, PartialEq, Eq)]
enum Epoch {
    /// The feed has none.
    Never,
    /// Not known yet.
    Awaited,
    Known(Box<str>),
}

/// The machine.
#[derive(Debug)]
pub struct Positions {
    epoch: Epoch,
    era: u32,
    /// To be looked up, sessions in turn; each is held once. One that several sessions wait for is in it for each of
    /// them, and is dropped when it was taken for another.
    wanted: FairQueue<Owner, DatabaseId>,
    /// Whether the last turn did not come to the end of those to be dropped.
    unswept: bool,
    batches: usize,
    /// Those of all batches.
    in_flight: HashSet<DatabaseId>,
    pending: Table<Pending>,
    waiting_for: HashMap<DatabaseId, Vec<Key>>,
    pending_of: HashMap<Key, Vec<Key>>,
    deadlines: VecDeque<(Millis, Key)>,
    /// Databases without subscribers, each held once, until when.
    lingering: VecDeque<(Millis, DatabaseId)>,
    retry_at: Option<Millis>,
    backoff: Backoff,
    /// Requests whose answer is due; some of them were taken back.
    ready: VecDeque<Key>,
    /// From which slot on databases are still to be looked up that are not known.
    unchecked_from: Option<u32>,
    /// Databases that sessions wanted which do not any more; somebody else may.
    unowned: VecDeque<DatabaseId>,
}

impl Positions {
    /// For a feed whose lines have revisions, or one whose lines do not.
    pub fn new(with_revisions: bool) -> Self {
        Self {
            epoch: if with_revisions { Epoch::Awaited } else { Epoch::Never },
            era: 0,
            wanted: FairQueue::default(),
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

    /// Whether there are positions, now or later.
    pub fn are_kept(&self) -> bool {
        self.epoch != Epoch::Never
    }

    /// What positions are good in.
    pub fn epoch(&self) -> Option<&str> {
        match &self.epoch {
            Epoch::Known(epoch) => Some(epoch),
            _ => None,
        }
    }

    /// How many `subscribe` requests wait for positions.
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// To how many names a session is about to be subscribed.
    pub fn pending_names(&self, session: Key) -> usize {
        self.pending_of(session).map(|pending| pending.names.len()).sum()
    }

    /// How many requests of a session wait, not counting parts of lists.
    pub fn pending_requests(&self, session: Key) -> usize {
        self.pending_of(session).filter(|pending| pending.group.is_none()).count()
    }

    fn pending_of(&self, session: Key) -> impl Iterator<Item = &Pending> {
        self.pending_of.get(&session).into_iter().flatten().filter_map(|key| self.pending.get(*key))
    }

    /// Takes what CouchDB says about the epoch; whether another one was known before.
    pub fn handle_epoch(&mut self, epoch: Option<Box<str>>, subscriptions: &mut Subscriptions) -> bool {
        let epoch = epoch.map_or(Epoch::Never, Epoch::Known);
        if epoch == self.epoch {
            return false;
        }
        let other = self.epoch != Epoch::Awaited;
        self.epoch = epoch;
        subscriptions.keeps_orphans = self.are_kept();
        // Lines that came before the first one was known may be of an earlier one, too.
        self.era += 1;
        subscriptions.for_each_watch(|_, _, watch| watch.forget());
        if self.epoch == Epoch::Never {
            self.answer_all();
            self.waiting_for.clear();
            self.unchecked_from = None;
        } else {
            self.unchecked_from = Some(0);
        }
        other
    }

    /// Has what someone subscribes to looked up that is not known: in one turn some of it.
    fn want_unknown(&mut self, subscriptions: &mut Subscriptions) {
        let Some(from) = self.unchecked_from.filter(|_| self.are_kept()) else { return };
        let mut next = Some(from);
        for _ in 0..SWEPT_A_TURN {
            let Some((slot, database)) = next.and_then(|slot| subscriptions.next_from(slot)) else {
                self.unchecked_from = None;
                return;
            };
            next = Some(slot + 1);
            let needed = subscriptions.has_subscribers(database) || self.is_awaited(database);
            if !needed {
                // Nobody is told of what comes, so what a later look-up finds is no news either.
                subscriptions.watch_mut(database).forget();
            } else if subscriptions.watch(database).known().is_none() {
                self.want(database, None, subscriptions);
            }
        }
        self.unchecked_from = next;
    }

    /// Lines of the feed may have been missed, all up to a moment having come: all positions are looked up anew, and what
    /// moved meanwhile is told. Returns the databases with subscribers of which no position was known to compare with.
    pub fn handle_doubt(&mut self, followed_until: Millis, subscriptions: &mut Subscriptions) -> Vec<DatabaseId> {
        self.era += 1;
        let mut unknown = Vec::new();
        subscriptions.for_each_watch(|database, is_subscribed, watch| {
            unknown.extend((is_subscribed && watch.awaits_lines(followed_until)).then_some(database));
            watch.doubt();
        });
        self.unchecked_from = self.are_kept().then_some(0);
        unknown
    }

    /// Queues a lookup of a database's position for a session unless it is already known or queued.
    pub fn want(&mut self, database: DatabaseId, owner: Owner, subscriptions: &mut Subscriptions) {
        if !self.are_kept() || subscriptions.watch(database).known().is_some() {
            return;
        }
        if !database_name::is_possible(subscriptions.name(database)) {
            return subscriptions.watch_mut(database).assume();
        }
        if self.is_full(owner) {
            return;
        }
        let watch = subscriptions.watch_mut(database);
        if !std::mem::replace(&mut watch.wanted, true) {
            subscriptions.hold_id(database);
            self.wanted.push(owner, database);
        }
    }

    fn is_full(&self, owner: Owner) -> bool {
        let its = self.wanted.len_of(owner);
        owner.is_some() && its >= MAX_WANTED_OF_SESSION || self.wanted.len() >= MAX_WANTED && its >= ALWAYS_WANTED
    }

    /// Takes a `subscribe` that is to be compared: its answer is due when all positions are known, or its time is over.
    pub fn wait(&mut self, mut pending: Pending, now: Millis, subscriptions: &mut Subscriptions) {
        let (mut awaited, session) = (Vec::new(), pending.session);
        for (database, _) in &pending.names {
            let queued = subscriptions.watch(*database).wanted;
            self.want(*database, Some(session), subscriptions);
            if subscriptions.watch(*database).wanted {
                awaited.push(*database);
                // It may stand far behind in the queue of another session.
                if queued && !self.in_flight.contains(database) && !self.is_full(Some(session)) {
                    subscriptions.hold_id(*database);
                    self.wanted.push(Some(session), *database);
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
                // Those who do not wait any more make room first.
                waiting.retain(|key| self.pending.get(*key).is_some());
            }
            waiting.push(key);
        }
        self.deadlines.push_back((now + ANSWER_WITHIN, key));
        if self.deadlines.len() > 2 * self.pending.len() + FEW {
            // Most requests were taken back before their time.
            let pending = &self.pending;
            self.deadlines.retain(|(_, key)| pending.get(*key).is_some());
        }
    }

    /// Withdraws databases from the requests of a session, in time linear in both. A request that waits for nothing
    /// else is due.
    pub fn withdraw(&mut self, session: Key, databases: &HashSet<DatabaseId>, subscriptions: &mut Subscriptions) {
        let mut due = Vec::new();
        for key in self.pending_of.get(&session).into_iter().flatten() {
            if let Some(pending) = self.pending.get_mut(*key) {
                pending.withdraw(databases, subscriptions);
                due.extend(pending.awaits.is_empty().then_some(*key));
            }
        }
        for key in due {
            self.answer(key);
        }
    }

    /// Takes all requests of a session back. Returns how each wanted to be answered, and the databases that they held,
    /// for the caller to release. What the session wanted is dropped in [`Positions::sweep`].
    pub fn cancel(&mut self, session: Key) -> (Vec<Reply>, Vec<DatabaseId>) {
        let (mut replies, mut held) = (Vec::new(), Vec::new());
        for key in self.pending_of.remove(&session).unwrap_or_default() {
            if let Some(pending) = self.pending.remove(key) {
                replies.push(pending.reply);
                held.extend(pending.names.into_iter().map(|(database, _)| database));
            }
        }
        self.unowned.append(&mut self.wanted.remove_owner(Some(session)));
        (replies, held)
    }

    /// Goes on with what takes more than a turn: in one turn some of it. Returns databases that are not wanted any more,
    /// each of which may be gone.
    pub fn sweep(&mut self, subscriptions: &mut Subscriptions) -> Vec<DatabaseId> {
        let mut dropped = Vec::new();
        self.want_unknown(subscriptions);
        for _ in 0..SWEPT_A_TURN {
            // Where there are no positions, nothing is looked up any more.
            if self.are_kept() {
                break;
            }
            let Some((_, database)) = self.wanted.pop() else { break };
            self.drop_wanted(database, subscriptions);
        }
        for _ in 0..SWEPT_A_TURN {
            let Some(database) = self.unowned.pop_front() else { break };
            if self.are_kept() && self.is_needed(database, subscriptions) {
                self.wanted.push(None, database);
            } else {
                self.drop_wanted(database, subscriptions);
                dropped.push(database);
            }
        }
        dropped
    }

    /// Whether somebody waits for the position of a database, or is told of it with changes.
    fn is_needed(&self, database: DatabaseId, subscriptions: &Subscriptions) -> bool {
        let queued = subscriptions.watch(database).wanted && !self.in_flight.contains(&database);
        queued && (subscriptions.has_subscribers(database) || self.is_awaited(database))
    }

    /// Drops a database that was taken from the queue and is not needed, or was taken before for another session.
    fn drop_wanted(&mut self, database: DatabaseId, subscriptions: &mut Subscriptions) {
        if !self.in_flight.contains(&database) && subscriptions.watch(database).wanted {
            self.waiting_for.remove(&database);
            subscriptions.watch_mut(database).forget();
            subscriptions.watch_mut(database).wanted = false;
        }
        subscriptions.release(database);
    }

    /// The next answer that is due: its session is subscribed and told in one step. It is to be released then.
    pub fn next_ready(&mut self) -> Option<Pending> {
        while let Some(key) = self.ready.pop_front() {
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

    /// Returns whether an answer is due, or something to be swept.
    pub fn has_work(&self) -> bool {
        let drops = !self.are_kept() && !self.wanted.is_empty();
        let sweeps = drops || self.unchecked_from.is_some() || !self.unowned.is_empty();
        sweeps || !self.ready.is_empty()
    }

    /// The next databases to look up together, unless enough are being looked up.
    pub fn next_batch(&mut self, subscriptions: &mut Subscriptions) -> Option<Batch> {
        let may = self.epoch().is_some() && self.retry_at.is_none() && self.batches < MAX_BATCHES;
        let (mut databases, mut owners) = (Vec::new(), Vec::new());
        let mut taken = 0;
        while may && databases.len() < MAX_NAMES && taken < TAKEN_A_TURN {
            let Some((owner, database)) = self.wanted.pop() else { break };
            taken += 1;
            if self.is_needed(database, subscriptions) {
                subscriptions.watch_mut(database).outrun = false;
                self.in_flight.insert(database);
                databases.push(database);
                owners.push(owner);
            } else {
                self.drop_wanted(database, subscriptions);
            }
        }
        self.unswept = taken == TAKEN_A_TURN;
        self.batches += usize::from(!databases.is_empty());
        (!databases.is_empty()).then_some(Batch { databases, owners, era: self.era })
    }

    fn is_awaited(&self, database: DatabaseId) -> bool {
        let waiting = self.waiting_for.get(&database);
        let awaits = |key: &Key| self.pending.get(*key).is_some_and(|pending| pending.awaits.contains(&database));
        waiting.is_some_and(|waiting| waiting.iter().any(awaits))
    }

    /// Takes CouchDB's answer to a batch, None when there is none. `woken` gets the sessions that are to be told of
    /// changes. Returns whether the answer was one; else it is asked again.
    pub fn handle_lookup(
        &mut self,
        batch: Batch,
        body: Option<&[u8]>,
        times: (Millis, &mut Jitter),
        subscriptions: &mut Subscriptions,
        woken: &mut Vec<SessionIndex>,
    ) -> bool {
        self.handle_lookup_if(batch, body, times, subscriptions, woken, |_, _, _| true)
    }

    /// The same where not every change may be told at once: `may_tell` says which, and sees to the others.
    pub fn handle_lookup_if(
        &mut self,
        batch: Batch,
        body: Option<&[u8]>,
        (now, jitter): (Millis, &mut Jitter),
        subscriptions: &mut Subscriptions,
        woken: &mut Vec<SessionIndex>,
        mut may_tell: impl FnMut(DatabaseId, ChangeKind, &Subscriptions) -> bool,
    ) -> bool {
        self.batches -= 1;
        let names = batch.databases.iter().map(|database| subscriptions.name(*database));
        let rows = body.and_then(|body| positions::read_rows(body, names));
        let found = rows.is_some();
        let Some(rows) = rows.filter(|_| batch.era == self.era) else {
            if !found {
                self.retry_at = Some(now + self.backoff.wait(jitter));
            }
            for (database, owner) in batch.databases.into_iter().zip(batch.owners).rev() {
                self.in_flight.remove(&database);
                self.wanted.push_front(owner, database);
            }
            return found;
        };
        self.backoff.reset();
        for ((database, owner), revisions) in batch.databases.into_iter().zip(batch.owners).zip(rows) {
            self.in_flight.remove(&database);
            let subscribed = subscriptions.has_subscribers(database);
            let watch = subscriptions.watch_mut(database);
            if watch.outrun {
                self.wanted.push(owner, database);
                continue;
            }
            watch.wanted = false;
            for kind in watch.handle_lookup(revisions, subscribed, now) {
                if may_tell(database, kind, subscriptions) {
                    subscriptions.mark(database, kind, woken);
                }
            }
            self.found(database);
            subscriptions.release(database);
        }
        true
    }

    /// A position that was waited for is known.
    fn found(&mut self, database: DatabaseId) {
        let Some(waiting) = self.waiting_for.remove(&database) else { return };
        for key in waiting {
            let Some(pending) = self.pending.get_mut(key) else { continue };
            if pending.awaits.remove(&database) && pending.awaits.is_empty() {
                self.answer(key);
            }
        }
    }

    fn answer(&mut self, key: Key) {
        if let Some(pending) = self.pending.get_mut(key)
            && !std::mem::replace(&mut pending.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }

    fn answer_all(&mut self) {
        for key in self.pending.keys().collect::<Vec<_>>() {
            self.answer(key);
        }
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

    /// When [`Positions::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let retry = self.retry_at.filter(|_| !self.wanted.is_empty());
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let linger = self.lingering.front().map(|(at, _)| *at);
        let sweep = self.unswept.then_some(0);
        [retry, deadline, linger, sweep].into_iter().flatten().min()
    }

    /// Does what the time asks for.
    pub fn handle_timeout(&mut self, now: Millis, subscriptions: &mut Subscriptions) {
        self.retry_at = self.retry_at.filter(|at| now < *at);
        while self.deadlines.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.deadlines.pop_front() {
                self.answer(key);
            }
        }
        while self.lingering.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, database)) = self.lingering.pop_front() {
                subscriptions.release_orphan(database);
            }
        }
        self.give_back();
    }

    /// Gives back the room of a crowd that is through.
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
