//! Memory of the kept `_security` objects, and the order in which they are evicted.
//!
//! Objects of at most [`SMALL_SECURITY`] bytes are counted but never evicted: each takes about as
//! much as the rest of a database's entry, and other users depend on them. All larger ones together
//! take at most [`MAX_SECURITY_MEMORY`] bytes. Objects that no request and no subscription needs
//! are evicted first, the longest idle one before the others, and then the largest ones.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::state::subscriptions::DatabaseId;

/// Most bytes of all `_security` objects larger than [`SMALL_SECURITY`].
pub const MAX_SECURITY_MEMORY: usize = 64 * 1024 * 1024;
/// Size up to which an object does not count towards [`MAX_SECURITY_MEMORY`], in bytes.
pub const SMALL_SECURITY: usize = 1024;

/// A kept object that is not small.
#[derive(Clone, Copy, Debug)]
struct Kept {
    bytes: usize,
    /// Its number among the idle objects, if it is idle.
    idle: Option<u64>,
}

/// Table of the kept objects.
#[derive(Debug, Default)]
pub struct SecurityMemory {
    /// Bytes of small objects.
    small: usize,
    /// Bytes of the other objects.
    large: usize,
    kept: HashMap<DatabaseId, Kept>,
    by_size: BTreeSet<(usize, DatabaseId)>,
    /// Objects without a user at the last check, in the order in which they became idle.
    idle: BTreeMap<u64, DatabaseId>,
    next_place: u64,
}

impl SecurityMemory {
    /// Returns the bytes of all kept objects.
    pub fn bytes(&self) -> usize {
        self.small + self.large
    }

    /// Returns whether an object of `bytes` bytes fits in place of the database's current one.
    pub fn has_room(&self, database: DatabaseId, bytes: usize) -> bool {
        let before = self.kept.get(&database).map_or(0, |kept| kept.bytes);
        bytes <= SMALL_SECURITY || self.large - before + bytes <= MAX_SECURITY_MEMORY
    }

    /// Adds the object of a database.
    pub fn insert(&mut self, database: DatabaseId, bytes: usize) {
        if bytes <= SMALL_SECURITY {
            self.small += bytes;
            return;
        }
        self.large += bytes;
        self.kept.insert(database, Kept { bytes, idle: None });
        self.by_size.insert((bytes, database));
    }

    /// Removes the object of a database; `bytes` is its size.
    pub fn remove(&mut self, database: DatabaseId, bytes: usize) {
        if bytes <= SMALL_SECURITY {
            self.small -= bytes;
            return;
        }
        self.set_in_use(database);
        if self.kept.remove(&database).is_some() {
            self.large -= bytes;
            self.by_size.remove(&(bytes, database));
        }
    }

    /// Marks the object of a database as idle.
    pub fn set_idle(&mut self, database: DatabaseId) {
        if let Some(kept) = self.kept.get_mut(&database).filter(|kept| kept.idle.is_none()) {
            kept.idle = Some(self.next_place);
            self.idle.insert(self.next_place, database);
            self.next_place += 1;
        }
    }

    /// Marks the object of a database as in use.
    pub fn set_in_use(&mut self, database: DatabaseId) {
        if let Some(place) = self.kept.get_mut(&database).and_then(|kept| kept.idle.take()) {
            self.idle.remove(&place);
        }
    }

    /// Returns the database with the longest idle object.
    pub fn longest_idle(&self) -> Option<DatabaseId> {
        self.idle.first_key_value().map(|(_, database)| *database)
    }

    /// Returns the bytes and the database of the largest object that is not small.
    pub fn largest(&self) -> Option<(usize, DatabaseId)> {
        self.by_size.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::subscriptions::Subscriptions;

    #[test]
    fn the_longest_idle_object_is_evicted_first_and_small_ones_do_not_count() {
        let mut subscriptions = Subscriptions::default();
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| subscriptions.hold(name));
        let mut memory = SecurityMemory::default();
        memory.insert(a, MAX_SECURITY_MEMORY - 5_000);
        memory.insert(b, 2_000);
        memory.insert(c, 3_000);
        memory.insert(d, SMALL_SECURITY);
        assert_eq!(memory.bytes(), MAX_SECURITY_MEMORY + SMALL_SECURITY);
        assert!(memory.has_room(d, SMALL_SECURITY) && !memory.has_room(d, SMALL_SECURITY + 1));
        assert!(memory.has_room(b, 2_000) && !memory.has_room(b, 2_001), "it replaces what is kept");
        assert_eq!((memory.longest_idle(), memory.largest()), (None, Some((MAX_SECURITY_MEMORY - 5_000, a))));
        for database in [d, c, b, c] {
            memory.set_idle(database);
        }
        assert_eq!(memory.longest_idle(), Some(c), "small objects are not evicted");
        memory.set_in_use(c);
        assert_eq!(memory.longest_idle(), Some(b));
        memory.remove(b, 2_000);
        assert_eq!(memory.longest_idle(), None);
        assert!(memory.has_room(d, 2_000) && !memory.has_room(d, 2_001));
        for (database, bytes) in [(a, MAX_SECURITY_MEMORY - 5_000), (c, 3_000), (d, SMALL_SECURITY)] {
            memory.remove(database, bytes);
        }
        assert_eq!((memory.bytes(), memory.largest(), memory.kept.len()), (0, None, 0));
    }
}
