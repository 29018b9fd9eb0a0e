//! Past logins, which distinguish users who know a password from clients that guess.

use std::mem::take;
use std::num::NonZeroU32;

use hashbrown::HashTable;

/// A hash with a random key per process. Passwords are stored in no other form.
pub(super) type Hash = u64;

/// Entries of a generation. The table keeps two generations.
const GENERATION: usize = 250_000;

/// Memory of right passwords.
///
/// Each user has an entry of both kinds, for longer than its session lasts, so keys and passwords
/// are stored in part. Two names share the 40 bits among 500,000 entries once in two million
/// lookups. No client can search for such a name, since the hashes have a random key.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Pairs of name and address with a successful login.
    good: Recent,
    /// Names with a successful login, each with the password; 0 once that password is wrong.
    names: Recent,
}

/// The stored part of a password's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Secret(NonZeroU32);

impl Secret {
    /// Creates the part from the hash of a name and a password.
    pub(super) fn new(hash: Hash) -> Self {
        // The remainder leaves out one value, which stands for no password.
        let kept = u32::try_from(hash % VALUE).expect("the remainder has 24 bits");
        Self(NonZeroU32::MIN.saturating_add(kept))
    }
}

impl History {
    /// Returns whether a login under this name succeeded from this address.
    pub(super) fn has_logged_in(&self, pair: Hash) -> bool {
        self.good.find(pair).is_some()
    }

    /// Returns whether a login under this name succeeded.
    pub(super) fn knows(&self, name: Hash) -> bool {
        self.names.find(name).is_some()
    }

    /// Returns the last right password, unless CouchDB has refused it since. Comparing two numbers
    /// takes constant time.
    pub(super) fn right_password(&self, name: Hash) -> Option<Secret> {
        self.names.find(name).and_then(NonZeroU32::new).map(Secret)
    }

    /// Stores a right password. Returns whether that changes anything.
    pub(super) fn handle_right(&mut self, pair: Hash, name: Hash, password: Secret) -> bool {
        let is_same = self.has_logged_in(pair) && self.right_password(name) == Some(password);
        self.good.insert(pair, 0);
        self.names.insert(name, password.0.get());
        !is_same
    }

    /// Notes a wrong password. Returns whether it was the right one before.
    pub(super) fn handle_wrong(&mut self, name: Hash, password: Secret) -> bool {
        let was_right = self.right_password(name) == Some(password);
        if was_right {
            self.names.insert(name, 0);
        }
        was_right
    }
}

/// A table that drops its oldest generation of entries when it is full. An entry holds 40 bits of
/// its key and 24 bits of its value.
#[derive(Debug, Default)]
struct Recent {
    now: HashTable<u64>,
    before: HashTable<u64>,
}

impl Recent {
    fn find(&self, key: Hash) -> Option<u32> {
        let is_its = |entry: &u64| part(*entry) == part(key);
        let entry = self.now.find(part(key), is_its).or_else(|| self.before.find(part(key), is_its))?;
        Some(u32::try_from(entry & VALUE).expect("the remainder has 24 bits"))
    }

    fn insert(&mut self, key: Hash, value: u32) {
        let entry = key & !VALUE | u64::from(value);
        if let Some(its) = self.now.find_mut(part(key), |entry| part(*entry) == part(key)) {
            *its = entry;
            return;
        }
        if self.now.len() >= GENERATION {
            self.before = take(&mut self.now);
        }
        self.now.insert_unique(part(key), entry, |entry| part(*entry));
    }
}

/// Bits of an entry that hold its value.
const VALUE_BITS: u32 = 24;
/// Mask of these bits.
const VALUE: u64 = (1 << VALUE_BITS) - 1;

/// Returns the stored part of a key, spread over all bits, since the table looks at the highest and
/// the lowest ones.
fn part(key: Hash) -> u64 {
    let key = key >> VALUE_BITS;
    key << VALUE_BITS | key & VALUE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a hash like that of a keyed function.
    fn hash(number: usize) -> Hash {
        (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn old_generations_are_dropped_and_new_entries_are_kept() {
        let mut recent = Recent::default();
        for number in 0..=2 * GENERATION {
            recent.insert(hash(number), 1);
        }
        assert_eq!((recent.find(hash(0)), recent.find(hash(GENERATION))), (None, Some(1)));
        assert_eq!(recent.find(hash(2 * GENERATION)), Some(1));
        assert_eq!(recent.now.len() + recent.before.len(), GENERATION + 1);
    }

    #[test]
    fn a_password_is_right_until_couchdb_refuses_it() {
        let mut history = History::default();
        let [pair, name] = [1, 2].map(hash);
        let [right, other] = [0, VALUE - 1].map(Secret::new);
        assert_eq!(history.right_password(name), None);
        assert!(history.handle_right(pair, name, other) && history.handle_right(pair, name, right));
        assert!(!history.handle_right(pair, name, right));
        assert_eq!(history.right_password(name), Some(right));
        assert!(!history.handle_wrong(name, other) && history.handle_wrong(name, right));
        assert_eq!(
            (history.right_password(name), history.knows(name), history.has_logged_in(pair)),
            (None, true, true)
        );
    }
}
