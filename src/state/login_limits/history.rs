//! Who logged in before: what tells those who know a password from those who guess.

use std::mem::take;
use std::num::NonZeroU32;

use hashbrown::HashTable;

/// A hash that is keyed at random in each process. A password is kept as nothing else.
pub(super) type Hash = u64;

/// Entries of a generation. Two of them are kept.
const GENERATION: usize = 250_000;

/// What is remembered of right passwords.
///
/// There is an entry of both kinds for each user, and for longer than its session: so keys and passwords are kept in
/// part. That another name has the same 40 bits among 500,000 entries happens once in two million lookups, and nobody
/// can look for it: the hashes are keyed.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Names and addresses together from which a login was right.
    good: Recent,
    /// Names under which a login was right, with the password; 0 when that has become wrong.
    names: Recent,
}

/// What is kept of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Secret(NonZeroU32);

impl Secret {
    /// Keeps a part of the hash of a name and a password.
    pub(super) fn new(hash: Hash) -> Self {
        // A division leaves out one value, which means that there is no password.
        let kept = u32::try_from(hash % VALUE).expect("it has 24 bits");
        Self(NonZeroU32::MIN.saturating_add(kept))
    }
}

impl History {
    /// Returns whether somebody has logged in under a name from an address.
    pub(super) fn is_good(&self, pair: Hash) -> bool {
        self.good.find(pair).is_some()
    }

    /// Returns whether somebody has logged in under a name.
    pub(super) fn knows(&self, name: Hash) -> bool {
        self.names.find(name).is_some()
    }

    /// Returns the password that was right last, unless it was refused since. Two numbers are compared in constant time.
    pub(super) fn right_password(&self, name: Hash) -> Option<Secret> {
        self.names.find(name).and_then(NonZeroU32::new).map(Secret)
    }

    /// Takes note of a right password; returns whether anything is different.
    pub(super) fn handle_right(&mut self, pair: Hash, name: Hash, password: Secret) -> bool {
        let is_same = self.is_good(pair) && self.right_password(name) == Some(password);
        self.good.insert(pair, 0);
        self.names.insert(name, password.0.get());
        !is_same
    }

    /// Takes note of a wrong password; returns whether it was the right one before.
    pub(super) fn handle_wrong(&mut self, name: Hash, password: Secret) -> bool {
        let was_right = self.right_password(name) == Some(password);
        if was_right {
            self.names.insert(name, 0);
        }
        was_right
    }
}

/// A table that forgets the entries that were written longest ago when it is full. An entry is 40 bits of its key, and
/// 24 of its value behind them.
#[derive(Debug, Default)]
struct Recent {
    now: HashTable<u64>,
    before: HashTable<u64>,
}

impl Recent {
    fn find(&self, key: Hash) -> Option<u32> {
        let is_its = |entry: &u64| part(*entry) == part(key);
        let entry = self.now.find(part(key), is_its).or_else(|| self.before.find(part(key), is_its))?;
        Some(u32::try_from(entry & VALUE).expect("it has 24 bits"))
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

/// How many bits of an entry are its value.
const VALUE_BITS: u32 = 24;
/// The bits of an entry that are its value.
const VALUE: u64 = (1 << VALUE_BITS) - 1;

/// Returns the part of a key that is kept, spread over all bits: the table looks at the highest and the lowest.
fn part(key: Hash) -> u64 {
    let key = key >> VALUE_BITS;
    key << VALUE_BITS | key & VALUE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash as a keyed function would make it of a number.
    fn hash(number: usize) -> Hash {
        (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn what_is_old_is_forgotten_and_what_is_written_is_there() {
        let mut recent = Recent::default();
        for number in 0..=2 * GENERATION {
            recent.insert(hash(number), 1);
        }
        assert_eq!((recent.find(hash(0)), recent.find(hash(GENERATION))), (None, Some(1)));
        assert_eq!(recent.find(hash(2 * GENERATION)), Some(1));
        assert_eq!(recent.now.len() + recent.before.len(), GENERATION + 1);
    }

    #[test]
    fn a_password_is_right_until_it_was_refused() {
        let mut history = History::default();
        let [pair, name] = [1, 2].map(hash);
        let [right, other] = [0, VALUE - 1].map(Secret::new);
        assert_eq!(history.right_password(name), None);
        assert!(history.handle_right(pair, name, other) && history.handle_right(pair, name, right));
        assert!(!history.handle_right(pair, name, right));
        assert_eq!(history.right_password(name), Some(right));
        assert!(!history.handle_wrong(name, other) && history.handle_wrong(name, right));
        assert_eq!((history.right_password(name), history.knows(name), history.is_good(pair)), (None, true, true));
    }
}
