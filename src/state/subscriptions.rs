//! The inverted index from database name to subscribers, and what each subscriber has not been told.
//!
//! Both sides point at each other, so that a change reaches its subscribers in O(subscribers), and a
//! subscription ends in O(1):
//!
//! ```text
//! names: "db1" ─▶ Database ─▶ subscribers: [ (session 7, entry 0), (session 9, entry 2), … ]
//!                                                │ ▲
//! sessions[7]: entries: [ (database, position in its subscribers), … ]
//!                   chain of the entries that are dirty: first ─▶ … ─▶ last
//! ```
//!
//! What a session has not been told is a chain through its own entries: marking allocates nothing, a
//! database is in it once however often it changed, and it is bounded by the session's subscriptions.

use std::collections::HashMap;

use crate::wire::couchdb::ChangeKind;

/// Most databases that one session may subscribe to.
pub const MAX_SUBSCRIPTIONS: usize = 10_000;
/// Longest name of a database, in bytes. CouchDB's own end near 238.
pub const MAX_NAME: usize = 256;

/// Sessions with more subscriptions than this look theirs up by hash.
const LOOKUP_FROM: usize = 32;
/// No entry: the end of a chain.
const NONE: u32 = u32::MAX;

/// A database that someone subscribes to: valid until its last subscriber leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatabaseId(u32);

/// The index of a session's slot; the session's own generation is its owner's affair.
pub type SessionIndex = u32;

/// A session has [`MAX_SUBSCRIPTIONS`] already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManySubscriptions;

/// The index.
#[derive(Debug, Default)]
pub struct Subscriptions {
    names: HashMap<Box<str>, u32>,
    databases: Vec<Database>,
    free: Vec<u32>,
    sessions: Vec<Interests>,
    /// Subscriptions of all sessions together.
    total: usize,
}

#[derive(Debug)]
struct Database {
    name: Box<str>,
    subscribers: Vec<Subscriber>,
}

#[derive(Clone, Copy, Debug)]
struct Subscriber {
    session: SessionIndex,
    /// Where in the session's entries this subscription stands.
    entry: u32,
}

/// Database to entry.
type Lookup = HashMap<u32, u32>;

/// One session's side.
#[derive(Debug)]
struct Interests {
    entries: Vec<Entry>,
    /// Database to entry, where there are many.
    lookup: Option<Box<Lookup>>,
    /// The chain of dirty entries, oldest first.
    first: u32,
    last: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    database: u32,
    /// Where in the database's subscribers this subscription stands.
    position: u32,
    /// Neighbours in the chain of dirty entries; meaningless while not dirty.
    previous: u32,
    next: u32,
    /// What the session has not been told.
    dirty: Option<ChangeKind>,
}

impl Default for Interests {
    fn default() -> Self {
        Self { entries: Vec::new(), lookup: None, first: NONE, last: NONE }
    }
}

impl Subscriptions {
    /// Subscribes a session; false when it was subscribed already.
    ///
    /// # Errors
    /// [`TooManySubscriptions`] when the session is at its limit; nothing changes.
    pub fn subscribe(&mut self, session: SessionIndex, name: &str) -> Result<bool, TooManySubscriptions> {
        let slot = session as usize;
        if slot >= self.sessions.len() {
            self.sessions.resize_with(slot + 1, Interests::default);
        }
        let known = self.names.get(name).copied();
        let interests = &self.sessions[slot];
        if known.is_some_and(|database| interests.find(database).is_some()) {
            return Ok(false);
        }
        if interests.entries.len() >= MAX_SUBSCRIPTIONS {
            return Err(TooManySubscriptions);
        }
        let database = known.unwrap_or_else(|| self.add_database(name));
        let subscribers = &mut self.databases[database as usize].subscribers;
        let position = index(subscribers.len());
        let entry = self.sessions[slot].add(database, position);
        subscribers.push(Subscriber { session, entry });
        self.total += 1;
        Ok(true)
    }

    /// Ends a subscription, with what the session was not told of it; false when there was none.
    pub fn unsubscribe(&mut self, session: SessionIndex, name: &str) -> bool {
        let Some(&database) = self.names.get(name) else { return false };
        let Some(interests) = self.sessions.get_mut(session as usize) else { return false };
        let Some(entry) = interests.find(database) else { return false };
        let removed = interests.remove(entry);
        // The last entry took the place of the removed one.
        if let Some(moved) = interests.entries.get(entry as usize) {
            self.databases[moved.database as usize].subscribers[moved.position as usize].entry = entry;
        }
        self.leave(removed);
        true
    }

    /// Ends all subscriptions of a session.
    pub fn remove_session(&mut self, session: SessionIndex) {
        let Some(interests) = self.sessions.get_mut(session as usize) else { return };
        let entries = std::mem::take(interests).entries;
        for entry in entries {
            self.leave(entry);
        }
    }

    /// The database of a name, when someone subscribes to it.
    pub fn find(&self, name: &str) -> Option<DatabaseId> {
        self.names.get(name).copied().map(DatabaseId)
    }

    /// The name of a database.
    pub fn name(&self, database: DatabaseId) -> &str {
        &self.databases[database.0 as usize].name
    }

    /// Notes for each subscriber of a database that it changed. Sessions that had nothing noted before are
    /// appended to `woken`.
    pub fn mark(&mut self, database: DatabaseId, kind: ChangeKind, woken: &mut Vec<SessionIndex>) {
        for subscriber in &self.databases[database.0 as usize].subscribers {
            let interests = &mut self.sessions[subscriber.session as usize];
            let idle = interests.first == NONE;
            interests.mark(subscriber.entry, kind);
            if idle {
                woken.push(subscriber.session);
            }
        }
    }

    /// Takes the database that has been waiting longest to be told to a session.
    pub fn take_dirty(&mut self, session: SessionIndex) -> Option<(DatabaseId, ChangeKind)> {
        let interests = self.sessions.get_mut(session as usize)?;
        let entry = interests.first;
        if entry == NONE {
            return None;
        }
        let kind = interests.unmark(entry).expect("what is in the chain is dirty");
        Some((DatabaseId(interests.entries[entry as usize].database), kind))
    }

    /// Whether a session has not been told everything.
    pub fn is_dirty(&self, session: SessionIndex) -> bool {
        self.sessions.get(session as usize).is_some_and(|interests| interests.first != NONE)
    }

    /// How many databases a session subscribes to.
    pub fn count(&self, session: SessionIndex) -> usize {
        self.sessions.get(session as usize).map_or(0, |interests| interests.entries.len())
    }

    /// How many databases someone subscribes to.
    pub fn databases(&self) -> usize {
        self.names.len()
    }

    /// How many subscriptions there are.
    pub fn total(&self) -> usize {
        self.total
    }

    fn add_database(&mut self, name: &str) -> u32 {
        let database = Database { name: name.into(), subscribers: Vec::new() };
        let slot = if let Some(slot) = self.free.pop() {
            self.databases[slot as usize] = database;
            slot
        } else {
            self.databases.push(database);
            index(self.databases.len() - 1)
        };
        self.names.insert(name.into(), slot);
        slot
    }

    /// Takes a subscription out of its database's side.
    fn leave(&mut self, entry: Entry) {
        let database = &mut self.databases[entry.database as usize];
        database.subscribers.swap_remove(entry.position as usize);
        // The last subscriber took the place of the one that left. It is another session's: a session
        // subscribes to a database once.
        if let Some(moved) = database.subscribers.get(entry.position as usize) {
            self.sessions[moved.session as usize].entries[moved.entry as usize].position = entry.position;
        }
        self.total -= 1;
        if database.subscribers.is_empty() {
            database.subscribers = Vec::new();
            let name = std::mem::take(&mut database.name);
            self.names.remove(&name);
            self.free.push(entry.database);
        }
    }
}

impl Interests {
    fn find(&self, database: u32) -> Option<u32> {
        match &self.lookup {
            Some(lookup) => lookup.get(&database).copied(),
            None => self.entries.iter().position(|entry| entry.database == database).map(index),
        }
    }

    fn add(&mut self, database: u32, position: u32) -> u32 {
        // Most sessions have one or two: room for exactly those.
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(self.entries.len().max(1));
        }
        let entry = index(self.entries.len());
        self.entries.push(Entry { database, position, previous: NONE, next: NONE, dirty: None });
        if let Some(lookup) = &mut self.lookup {
            lookup.insert(database, entry);
        } else if self.entries.len() > LOOKUP_FROM {
            self.lookup = Some(Box::new(self.entries.iter().map(|e| e.database).zip(0..).collect()));
        }
        entry
    }

    /// Takes an entry out; the last one takes its place.
    fn remove(&mut self, entry: u32) -> Entry {
        self.unmark(entry);
        let removed = self.entries.swap_remove(entry as usize);
        if let Some(moved) = self.entries.get(entry as usize).copied() {
            if moved.dirty.is_some() {
                self.link(moved.previous, entry);
                self.link(entry, moved.next);
            }
            if let Some(lookup) = &mut self.lookup {
                lookup.insert(moved.database, entry);
            }
        }
        if let Some(lookup) = &mut self.lookup {
            lookup.remove(&removed.database);
        }
        if self.entries.is_empty() {
            *self = Self::default();
        }
        removed
    }

    fn mark(&mut self, entry: u32, kind: ChangeKind) {
        let its = &mut self.entries[entry as usize];
        if let Some(earlier) = its.dirty {
            its.dirty = Some(earlier.merge(kind));
            return;
        }
        its.dirty = Some(kind);
        let last = self.last;
        self.link(last, entry);
        self.link(entry, NONE);
    }

    /// Takes an entry out of the chain; what it had to tell, if anything.
    fn unmark(&mut self, entry: u32) -> Option<ChangeKind> {
        let its = &mut self.entries[entry as usize];
        let kind = its.dirty.take()?;
        let (previous, next) = (its.previous, its.next);
        self.link(previous, next);
        Some(kind)
    }

    /// Makes two entries neighbours in the chain; [`NONE`] stands for its ends.
    fn link(&mut self, before: u32, after: u32) {
        match self.entries.get_mut(before as usize) {
            Some(entry) => entry.next = after,
            None => self.first = after,
        }
        match self.entries.get_mut(after as usize) {
            Some(entry) => entry.previous = before,
            None => self.last = before,
        }
    }
}

fn index(number: usize) -> u32 {
    u32::try_from(number).expect("limits keep all counts far below 2^32")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn told(subscriptions: &mut Subscriptions, session: SessionIndex) -> Vec<(String, ChangeKind)> {
        std::iter::from_fn(|| {
            let (database, kind) = subscriptions.take_dirty(session)?;
            Some((subscriptions.name(database).to_owned(), kind))
        })
        .collect()
    }

    fn change(subscriptions: &mut Subscriptions, name: &str) -> Vec<SessionIndex> {
        let mut woken = Vec::new();
        if let Some(database) = subscriptions.find(name) {
            subscriptions.mark(database, ChangeKind::Updated, &mut woken);
        }
        woken
    }

    #[test]
    fn tells_each_change_once_in_order() {
        let mut s = Subscriptions::default();
        for name in ["a", "b", "__proto__"] {
            assert_eq!(s.subscribe(3, name), Ok(true));
            assert_eq!(s.subscribe(3, name), Ok(false));
        }
        assert_eq!(change(&mut s, "__proto__"), [3]);
        assert!(change(&mut s, "a").is_empty(), "already woken");
        assert!(change(&mut s, "__proto__").is_empty());
        assert!(change(&mut s, "unknown").is_empty());
        let names: Vec<_> = told(&mut s, 3).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["__proto__", "a"]);
        assert!(!s.is_dirty(3));
        assert_eq!(change(&mut s, "b"), [3]);
        assert!(s.unsubscribe(3, "b"));
        assert!(!s.is_dirty(3), "what was not told of it is gone");
        assert!(!s.unsubscribe(3, "b"));
        s.remove_session(3);
        assert_eq!((s.databases(), s.total(), s.count(3)), (0, 0, 0));
    }

    #[test]
    fn is_limited() {
        let mut s = Subscriptions::default();
        for i in 0..MAX_SUBSCRIPTIONS {
            assert_eq!(s.subscribe(0, &i.to_string()), Ok(true));
        }
        assert_eq!(s.subscribe(0, "one more"), Err(TooManySubscriptions));
        assert_eq!(s.subscribe(0, "7"), Ok(false));
        assert_eq!(s.subscribe(1, "7"), Ok(true));
    }

    /// Random operations against maps and sets that do the same in the obvious way.
    #[test]
    fn agrees_with_a_naive_model() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            u32::try_from(seed % below).unwrap()
        };
        let mut s = Subscriptions::default();
        let mut model: BTreeMap<u32, BTreeMap<String, bool>> = BTreeMap::new();
        for step in 0..60_000 {
            let (session, name) = (random(6), format!("db{}", random(80)));
            let its = model.entry(session).or_default();
            match random(100) {
                0..35 => assert_eq!(
                    s.subscribe(session, &name).unwrap(),
                    its.insert(name.clone(), its.get(&name) == Some(&true)).is_none()
                ),
                35..55 => assert_eq!(s.unsubscribe(session, &name), its.remove(&name).is_some()),
                55..90 => {
                    change(&mut s, &name);
                    for dirty in model.values_mut().filter_map(|its| its.get_mut(&name)) {
                        *dirty = true;
                    }
                }
                90..98 => {
                    let names: BTreeSet<_> = told(&mut s, session).into_iter().map(|(name, _)| name).collect();
                    let expected: BTreeSet<_> =
                        its.iter().filter(|(_, dirty)| **dirty).map(|(name, _)| name.clone()).collect();
                    assert_eq!(names, expected, "step {step}");
                    for dirty in its.values_mut() {
                        *dirty = false;
                    }
                }
                _ => {
                    s.remove_session(session);
                    its.clear();
                }
            }
            assert_eq!(s.total(), model.values().map(BTreeMap::len).sum::<usize>());
        }
        for session in 0..6 {
            s.remove_session(session);
        }
        assert_eq!((s.databases(), s.total()), (0, 0));
    }
}
