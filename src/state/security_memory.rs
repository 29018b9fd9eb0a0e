//! The memory that kept `_security` objects take: how much there is, and which object goes first when there is too much.
//!
//! Objects of at most [`SMALL_SECURITY`] bytes are counted and never evicted: each takes about as much as the rest of
//! what is kept of a database, and it is they that other users depend on. All larger ones together take at most
//! [`MAX_SECURITY_MEMORY`] bytes. Those that no request and no subscription needs are evicted first, the one that has
//! been idle for longest before the others, and after them the largest.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::state::subscriptions::DatabaseId;

/// Most bytes that all `_security` objects larger than [`SMALL_SECURITY`] may take together.
pub const MAX_SECURITY_MEMORY: usize = 64 * 1024 * 1024;
/// Up to so many bytes an object does not count towards [`MAX_SECURITY_MEMORY`].
pub const SMALL_SECURITY: usize = 1024;

/// A kept object that is not small.
#[derive(Clone, Copy, Debug)]
struct Kept {
    bytes: usize,
    /// Its place among the idle objects, if it is one.
    idle: Option<u64>,
}

/// The table of what is kept.
#[derive(Debug, Default)]
pub struct SecurityMemory {
    /// Bytes of small objects.
    small: usize,
    /// Bytes of the others.
    large: usize,
    kept: HashMap<DatabaseId, Kept>,
    by_size: BTreeSet<(usize, DatabaseId)>,
    /// Objects that nobody needed when that was last looked at, by the order in which they became idle.
    idle: BTreeMap<u64, DatabaseId>,
    next_place: u64,
}

impl SecurityMemory {
    /// Returns how many bytes all kept objects take.
    pub fn bytes(&self) -> usize {
        self.small + self.large
    }

    /// Returns whether there is room for an object of that many bytes in place of what is kept of a database.
    pub fn has_room(&self, database: DatabaseId, bytes: usize) -> bool {
        let before = self.kept.get(&database).map_or(0, |kept| kept.bytes);
        bytes <= SMALL_SECURITY || self.large - before + bytes <= MAX_SECURITY_MEMORY
    }

    /// Takes note that the object of a database is kept.
    pub fn insert(&mut self, database: DatabaseId, bytes: usize) {
        if bytes <= SMALL_SECURITY {
            self.small += bytes;
            return;
        }
        self.large += bytes;
        self.kept.insert(database, Kept { bytes, idle: None });
        self.by_size.insert((bytes, database));
    }

    /// Takes note that the object of a database, which has that many bytes, is not kept any more.
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

    /// Takes note that nobody needs the object of a database at the moment.
    pub fn set_idle(&mut self, database: DatabaseId) {
        if let Some(kept) = self.kept.get_mut(&database).filter(|kept| kept.idle.is_none()) {
            kept.idle = Some(self.next_place);
            self.idle.insert(self.next_place, database);
            self.next_place += 1;
        }
    }

    /// Takes note that the object of a database is needed.
    pub fn set_in_use(&mut self, database: DatabaseId) {
        if let Some(place) = self.kept.get_mut(&database).and_then(|kept| kept.idle.take()) {
            self.idle.remove(&place);
        }
    }

    /// Returns the database whose object has been idle for longest.
    pub fn longest_idle(&self) -> Option<DatabaseId> {
        self.idle.first_key_value().map(|(_, database)| *database)
    }

    /// Returns the largest object that is not small: its bytes and its database.
    pub fn largest(&self) -> Option<(usize, DatabaseId)> {
        self.by_size.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::subscriptions::Subscriptions;

    #[test]
    fn the_longest_idle_goes_first_and_small_objects_do_not_count() {
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
