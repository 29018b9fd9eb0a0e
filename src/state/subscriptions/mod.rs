//! The inverted index from database name to subscribers, and the pending notifications of each
//! subscriber.
//!
//! Both sides point at each other, so that a change reaches its subscribers in O(subscribers), and
//! a subscription ends in O(1):
//!
//! ```text
//! names: "db1" ─▶ Database ─▶ subscribers: [ (session 7, entry 0), (session 9, entry 2), … ]
//!                                                │ ▲
//! sessions[7]: entries: [ (database, position in its subscribers, pending change), … ]
//! ```
//!
//! A database is kept while it has subscribers or holds, together with its position.
//!
//! Pending notifications are stored in the session's own entries. So marking allocates nothing, a
//! database is pending once however often it changed, and the memory is bounded by the session's
//! subscriptions.

mod session_subscriptions;

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;
use session_subscriptions::{Entry, SessionSubscriptions, index};

use crate::state::limits::Limits;
use crate::state::merge_window::{Admission, MergeWindow};
use crate::state::small_list::SmallList;
use crate::state::timers::Millis;
use crate::state::tracked_position::TrackedPosition;
use crate::wire::couchdb::ChangeKind;
use crate::wire::nodes::Starts;
use crate::wire::positions::Position;

/// Number of databases below which the tables are not shrunk.
const KEPT: usize = 64;

/// Id of a database with subscribers or holds, valid until the last of them ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseId(u32);

/// Index of a session's slot. The owner of the sessions checks its generation.
pub type SessionIndex = u32;

/// The session has reached its limit of subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManySubscriptions;

/// Index of databases, sessions and subscriptions.
#[derive(Debug)]
pub struct Subscriptions {
    /// Most databases to which one session may subscribe.
    max_per_session: usize,
    /// Databases by name; the names are stored in the databases.
    names: HashTable<u32>,
    hasher: RandomState,
    databases: Vec<Database>,
    free: Vec<u32>,
    /// Number of databases below which the tables shrink.
    shrink_below: usize,
    sessions: Vec<SessionSubscriptions>,
    /// Number of subscriptions of all sessions.
    total: usize,
    /// Number of databases with a subscriber.
    watched: usize,
    /// Number of holds of all databases.
    held: usize,
    /// Whether databases without subscribers are kept for [`Subscriptions::take_orphans`].
    pub keeps_orphans: bool,
    orphans: Vec<DatabaseId>,
    /// Number that distinguishes positions from equal ones before CouchDB may have lost events; 0
    /// if it never did.
    doubt: u32,
    /// Start times of CouchDB's nodes, if they are known.
    pub starts: Option<Starts>,
}

#[derive(Debug)]
struct Database {
    name: Box<str>,
    subscribers: SmallList<Subscriber>,
    position: TrackedPosition,
    window: MergeWindow,
    /// Number of holds, and [`LINGERS`]. Every database has both, so they share one number.
    holds: u32,
}

/// Flag in [`Database::holds`]: the database is kept for a while after its last subscriber left.
const LINGERS: u32 = 1 << 31;

#[derive(Clone, Copy, Debug)]
struct Subscriber {
    session: SessionIndex,
    /// Number of the subscription among the session's entries.
    entry: u32,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self::new(Limits::default().subscriptions)
    }
}

impl Subscriptions {
    /// Creates an empty index with the limit of a session.
    pub fn new(max_per_session: usize) -> Self {
        Self {
            max_per_session,
            names: HashTable::new(),
            hasher: RandomState::new(),
            databases: Vec::new(),
            free: Vec::new(),
            shrink_below: 0,
            sessions: Vec::new(),
            total: 0,
            watched: 0,
            held: 0,
            keeps_orphans: false,
            orphans: Vec::new(),
            doubt: 0,
            starts: None,
        }
    }

    /// Subscribes a session to a kept database. Returns false if it was subscribed already.
    ///
    /// # Errors
    /// [`TooManySubscriptions`] if the session is at its limit; nothing changes.
    pub fn subscribe(&mut self, session: SessionIndex, database: DatabaseId) -> Result<bool, TooManySubscriptions> {
        let slot = session as usize;
        if slot >= self.sessions.len() {
            self.sessions.resize_with(slot + 1, SessionSubscriptions::default);
        }
        let DatabaseId(database) = database;
        let entries = &self.sessions[slot];
        if entries.find(database).is_some() {
            return Ok(false);
        }
        if entries.len() >= self.max_per_session {
            return Err(TooManySubscriptions);
        }
        let subscribers = &mut self.databases[database as usize].subscribers;
        let position = index(subscribers.len());
        self.watched += usize::from(position == 0);
        let entry = self.sessions[slot].add(database, position);
        subscribers.push(Subscriber { session, entry });
        self.total += 1;
        Ok(true)
    }

    /// Ends a subscription and drops its pending notification. Returns false if there was none.
    pub fn unsubscribe(&mut self, session: SessionIndex, database: DatabaseId) -> bool {
        let Some(entries) = self.sessions.get_mut(session as usize) else { return false };
        let Some(entry) = entries.find(database.0) else { return false };
        let removed = entries.remove(entry);
        // The last entry took the place of the removed one.
        if let Some(moved) = entries.get(entry) {
            self.databases[moved.database as usize].subscribers[moved.position as usize].entry = entry;
        }
        self.leave(removed);
        true
    }

    /// Ends all subscriptions of a session.
    pub fn remove_session(&mut self, session: SessionIndex) {
        let Some(entries) = self.sessions.get_mut(session as usize) else { return };
        for entry in std::mem::take(entries).iter() {
            self.leave(entry);
        }
    }

    /// Ends the last subscription of a session. Returns None if there is none.
    pub fn drop_last(&mut self, session: SessionIndex) -> Option<DatabaseId> {
        let entries = self.sessions.get_mut(session as usize)?;
        let removed = entries.remove(index(entries.len()).checked_sub(1)?);
        self.leave(removed);
        Some(DatabaseId(removed.database))
    }

    /// Returns whether a session subscribes to a database.
    pub fn has(&self, session: SessionIndex, database: DatabaseId) -> bool {
        self.sessions.get(session as usize).is_some_and(|entries| entries.find(database.0).is_some())
    }

    /// Returns the database of a name and holds it until [`Subscriptions::release`].
    pub fn hold(&mut self, name: &str) -> DatabaseId {
        let database = DatabaseId(self.slot(name).unwrap_or_else(|| self.add_database(name)));
        self.hold_id(database);
        database
    }

    /// Adds a hold of a database.
    pub fn hold_id(&mut self, database: DatabaseId) {
        self.databases[database.0 as usize].holds += 1;
        self.held += 1;
    }

    /// Ends a hold.
    pub fn release(&mut self, database: DatabaseId) {
        self.databases[database.0 as usize].holds -= 1;
        self.held -= 1;
        self.drop_unused(database.0);
    }

    /// Ends the hold of a database that [`Subscriptions::take_orphans`] returned.
    pub fn release_orphan(&mut self, database: DatabaseId) {
        self.databases[database.0 as usize].holds &= !LINGERS;
        self.held -= 1;
        self.drop_unused(database.0);
    }

    /// Returns the number of holds of all databases, which is 0 when no work is left.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes the databases whose last subscriber has left. Each is held once until
    /// [`Subscriptions::release_orphan`].
    pub fn take_orphans(&mut self) -> Vec<DatabaseId> {
        std::mem::take(&mut self.orphans)
    }

    /// Returns the tracked position of a database.
    pub fn tracked(&self, database: DatabaseId) -> &TrackedPosition {
        &self.databases[database.0 as usize].position
    }

    /// Returns the tracked position of a database.
    pub fn tracked_mut(&mut self, database: DatabaseId) -> &mut TrackedPosition {
        &mut self.databases[database.0 as usize].position
    }

    /// Returns the position of a database in the form for clients, if it is certain.
    pub fn known(&self, database: DatabaseId) -> Option<Position> {
        let tracked = self.tracked(database);
        tracked.known().map(|position| self.with_doubt(position, tracked))
    }

    /// Returns the position up to which subscribers of a database were notified, in the form for
    /// clients.
    pub fn notified(&self, database: DatabaseId) -> Option<Position> {
        let tracked = self.tracked(database);
        tracked.notified().map(|position| self.with_doubt(position, tracked))
    }

    fn with_doubt(&self, position: Position, tracked: &TrackedPosition) -> Position {
        let doubt = if tracked.is_settled() { 0 } else { self.doubt };
        Position { doubt, start: self.starts.map_or(0, |starts| starts.latest), ..position }
    }

    /// Handles a possible loss of events in CouchDB: clients with an older position are notified
    /// even if it is still the same. `doubt` is a number that was not used before.
    pub fn doubt(&mut self, doubt: u32) {
        self.doubt = doubt.max(1);
        for database in &mut self.databases {
            database.position.unsettle();
        }
    }

    /// Returns whether a database has subscribers.
    pub fn has_subscribers(&self, database: DatabaseId) -> bool {
        !self.databases[database.0 as usize].subscribers.is_empty()
    }

    /// Returns the number of sessions that subscribe to a database.
    pub fn subscriber_count(&self, database: DatabaseId) -> usize {
        self.databases[database.0 as usize].subscribers.len()
    }

    /// Returns one of the sessions that subscribe to a database. When one leaves, the last takes
    /// its place.
    pub fn subscriber_at(&self, database: DatabaseId, place: usize) -> Option<SessionIndex> {
        self.databases[database.0 as usize].subscribers.get(place).map(|subscriber| subscriber.session)
    }

    /// Returns at most `most` databases of a session, the last first, each with whether the session
    /// has no pending notification of it. [`Subscriptions::drop_last`] ends them in this order.
    pub fn last_of_session(&self, session: SessionIndex, most: usize) -> impl Iterator<Item = (DatabaseId, bool)> {
        let entries = self.sessions.get(session as usize);
        let entries = entries.into_iter().flat_map(move |entries| {
            let numbers = (0..index(entries.len())).rev().take(most);
            numbers.filter_map(|number| entries.get(number))
        });
        entries.map(|entry| (DatabaseId(entry.database), entry.dirty.is_none()))
    }

    /// Returns one of the databases of a session. When one goes, the last takes its place.
    pub fn subscription_at(&self, session: SessionIndex, place: usize) -> Option<DatabaseId> {
        let entry = self.sessions.get(session as usize)?.get(index(place))?;
        Some(DatabaseId(entry.database))
    }

    /// Returns whether a database has a hold beside the caller's one, not counting that it lingers.
    pub fn is_awaited(&self, database: DatabaseId) -> bool {
        self.databases[database.0 as usize].holds & !LINGERS > 1
    }

    /// Visits the tracked position of each kept database, with whether it has subscribers, in the
    /// order of memory. 100,000 databases take about a millisecond.
    pub fn for_each_tracked(&mut self, mut visit: impl FnMut(DatabaseId, bool, &mut TrackedPosition)) {
        for (slot, database) in (0..).zip(&mut self.databases) {
            if database.holds > 0 || !database.subscribers.is_empty() {
                visit(DatabaseId(slot), !database.subscribers.is_empty(), &mut database.position);
            }
        }
    }

    /// Returns the first kept database in a slot from this one on, and its slot.
    pub fn next_from(&self, slot: u32) -> Option<(u32, DatabaseId)> {
        let is_used = |database: &Database| database.holds > 0 || !database.subscribers.is_empty();
        let rest = self.databases.get(slot as usize..)?;
        let found = slot + index(rest.iter().position(is_used)?);
        Some((found, DatabaseId(found)))
    }

    /// Returns the database of a name, if it is kept.
    pub fn find(&self, name: &str) -> Option<DatabaseId> {
        self.slot(name).map(DatabaseId)
    }

    fn slot(&self, name: &str) -> Option<u32> {
        let is_its = |slot: &u32| *self.databases[*slot as usize].name == *name;
        self.names.find(self.hasher.hash_one(name), is_its).copied()
    }

    /// Returns the name of a database.
    pub fn name(&self, database: DatabaseId) -> &str {
        &self.databases[database.0 as usize].name
    }

    /// Handles a change of a database: decides whether to notify now. `window` is the length of a
    /// merge window in milliseconds.
    pub fn admit(&mut self, database: DatabaseId, kind: ChangeKind, window: Millis, now: Millis) -> Admission {
        self.databases[database.0 as usize].window.admit(kind, window, now)
    }

    /// Takes the held change of a database. The id may refer to a removed or another database.
    pub fn release_held(&mut self, database: DatabaseId, now: Millis) -> Option<ChangeKind> {
        self.databases.get_mut(database.0 as usize)?.window.release(now)
    }

    /// Returns whether a change of a database is held.
    pub fn holds_back(&self, database: DatabaseId) -> bool {
        self.databases[database.0 as usize].window.holds_back()
    }

    /// Marks a change for each subscriber of a database. Sessions without pending notifications are
    /// appended to `newly_dirty`. Returns the number of subscribers for which the change was merged
    /// with a pending one.
    pub fn mark(&mut self, database: DatabaseId, kind: ChangeKind, newly_dirty: &mut Vec<SessionIndex>) -> u64 {
        let mut merged = 0;
        for subscriber in self.databases[database.0 as usize].subscribers.iter() {
            let entries = &mut self.sessions[subscriber.session as usize];
            let idle = !entries.is_dirty();
            merged += u64::from(!entries.mark(subscriber.entry, kind));
            if idle {
                newly_dirty.push(subscriber.session);
            }
        }
        merged
    }

    /// Marks a change of a database for one subscriber. Returns whether the session subscribes to
    /// it.
    pub fn mark_for(&mut self, session: SessionIndex, database: DatabaseId, kind: ChangeKind) -> bool {
        let Some(entries) = self.sessions.get_mut(session as usize) else { return false };
        let Some(entry) = entries.find(database.0) else { return false };
        entries.mark(entry, kind);
        true
    }

    /// Marks a change of each database of a session.
    pub fn mark_all(&mut self, session: SessionIndex) {
        let Some(entries) = self.sessions.get_mut(session as usize) else { return };
        for entry in 0..index(entries.len()) {
            entries.mark(entry, ChangeKind::Updated);
        }
    }

    /// Returns the databases of a session, each with whether the session has no pending
    /// notification of it.
    pub fn of_session(&self, session: SessionIndex) -> impl Iterator<Item = (DatabaseId, bool)> + '_ {
        let entries = self.sessions.get(session as usize);
        entries
            .into_iter()
            .flat_map(SessionSubscriptions::iter)
            .map(|entry| (DatabaseId(entry.database), entry.dirty.is_none()))
    }

    /// Takes the longest pending notification of a session.
    pub fn take_dirty(&mut self, session: SessionIndex) -> Option<(DatabaseId, ChangeKind)> {
        let (database, kind) = self.sessions.get_mut(session as usize)?.take_dirty()?;
        Some((DatabaseId(database), kind))
    }

    /// Returns whether a session has pending notifications.
    pub fn is_dirty(&self, session: SessionIndex) -> bool {
        self.sessions.get(session as usize).is_some_and(SessionSubscriptions::is_dirty)
    }

    /// Returns the number of databases to which a session subscribes.
    pub fn count(&self, session: SessionIndex) -> usize {
        self.sessions.get(session as usize).map_or(0, SessionSubscriptions::len)
    }

    /// Returns the number of kept databases.
    pub fn databases(&self) -> usize {
        self.names.len()
    }

    /// Returns the number of databases with subscribers.
    pub fn watched(&self) -> usize {
        self.watched
    }

    /// Returns the number of subscriptions.
    pub fn total(&self) -> usize {
        self.total
    }

    fn add_database(&mut self, name: &str) -> u32 {
        let database = Database {
            name: name.into(),
            subscribers: SmallList::None,
            position: TrackedPosition::default(),
            window: MergeWindow::default(),
            holds: 0,
        };
        let slot = if let Some(slot) = self.free.pop() {
            self.databases[slot as usize] = database;
            slot
        } else {
            self.databases.push(database);
            self.shrink_below = self.databases.len() / 4;
            index(self.databases.len() - 1)
        };
        let Self { names, databases, hasher, .. } = self;
        names.insert_unique(hasher.hash_one(name), slot, |slot| hasher.hash_one(&*databases[*slot as usize].name));
        slot
    }

    /// Removes a subscription from its database.
    fn leave(&mut self, entry: Entry) {
        let database = &mut self.databases[entry.database as usize];
        database.subscribers.swap_remove(entry.position as usize);
        // The last subscriber took the place of the removed one. It is of another session, since a
        // session subscribes to a database once.
        if let Some(moved) = database.subscribers.get(entry.position as usize) {
            self.sessions[moved.session as usize].set_position(moved.entry, entry.position);
        }
        self.total -= 1;
        if database.subscribers.is_empty() {
            self.watched -= 1;
            if self.keeps_orphans && database.holds & LINGERS == 0 {
                database.holds |= LINGERS;
                self.held += 1;
                self.orphans.push(DatabaseId(entry.database));
            }
            self.drop_unused(entry.database);
        }
    }

    fn drop_unused(&mut self, database: u32) {
        let its = &mut self.databases[database as usize];
        if its.holds == 0 && its.subscribers.is_empty() {
            let name = std::mem::take(&mut its.name);
            // A timer of its window may be left.
            its.window = MergeWindow::default();
            if let Ok(entry) = self.names.find_entry(self.hasher.hash_one(&*name), |slot| *slot == database) {
                entry.remove();
            }
            self.free.push(database);
            if self.names.len() <= self.shrink_below && self.databases.len() > KEPT {
                self.shrink();
            }
        }
    }

    /// Drops the slots after the last database. If that one is far behind, the tables shrink again
    /// when half of the databases are gone.
    fn shrink(&mut self) {
        let is_used = |database: &Database| database.holds > 0 || !database.subscribers.is_empty();
        let used = self.databases.iter().rposition(is_used).map_or(0, |last| last + 1);
        self.databases.truncate(used);
        self.databases.shrink_to_fit();
        self.free.retain(|slot| (*slot as usize) < used);
        self.free.shrink_to_fit();
        let Self { names, databases, hasher, .. } = self;
        names.shrink_to_fit(|slot| hasher.hash_one(&*databases[*slot as usize].name));
        self.shrink_below = (self.names.len() / 2).min(self.databases.len() / 4);
    }
}

#[cfg(test)]
impl Subscriptions {
    /// Returns the bytes of a session's only subscription, to a database of its own.
    pub(crate) fn sizes() -> [(&'static str, usize); 3] {
        [
            ("subscription of the session", size_of::<SessionSubscriptions>()),
            ("database, its subscriber included", size_of::<Database>()),
            // A number and a control byte for each, at most half of them unused.
            ("place in the table of names", 2 * (size_of::<u32>() + 1)),
        ]
    }
}

#[cfg(test)]
mod tests;
