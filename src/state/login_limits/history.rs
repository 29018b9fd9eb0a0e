//! Who logged in before: what tells those who know a password from those who guess.

use std::collections::HashMap;

use super::Hash;

/// Entries of a generation. Two of them are kept.
const GENERATION: usize = 250_000;

/// What is remembered of right passwords.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Names and addresses together from which a login was right.
    good: Recent<()>,
    /// Names under which a login was right, with the password; None when that has become wrong.
    names: Recent<Option<Hash>>,
}

impl History {
    /// Returns whether somebody has logged in under a name from an address.
    pub(super) fn is_good(&self, pair: Hash) -> bool {
        self.good.get(pair).is_some()
    }

    /// Returns whether somebody has logged in under a name.
    pub(super) fn knows(&self, name: Hash) -> bool {
        self.names.get(name).is_some()
    }

    /// Returns the password that was right last, unless it was refused since. Two hashes are compared in constant time.
    pub(super) fn right_password(&self, name: Hash) -> Option<Hash> {
        self.names.get(name).flatten()
    }

    /// Takes note of a right password; returns whether anything is different.
    pub(super) fn handle_right(&mut self, pair: Hash, name: Hash, password: Hash) -> bool {
        let is_same = self.is_good(pair) && self.right_password(name) == Some(password);
        self.good.insert(pair, ());
        self.names.insert(name, Some(password));
        !is_same
    }

    /// Takes note of a wrong password; returns whether it was the right one before.
    pub(super) fn handle_wrong(&mut self, name: Hash, password: Hash) -> bool {
        let was_right = self.right_password(name) == Some(password);
        if was_right {
            self.names.insert(name, None);
        }
        was_right
    }
}

/// A table that forgets the entries that were written longest ago when it is full.
#[derive(Debug)]
struct Recent<V> {
    now: HashMap<Hash, V>,
    before: HashMap<Hash, V>,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { now: HashMap::new(), before: HashMap::new() }
    }
}

impl<V: Copy> Recent<V> {
    fn get(&self, key: Hash) -> Option<V> {
        self.now.get(&key).or_else(|| self.before.get(&key)).copied()
    }

    fn insert(&mut self, key: Hash, value: V) {
        if self.now.len() >= GENERATION && !self.now.contains_key(&key) {
            self.before = std::mem::take(&mut self.now);
        }
        self.now.insert(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_is_forgotten_and_what_is_written_is_there() {
        let mut recent = Recent::default();
        for key in 0..=2 * GENERATION as u64 {
            recent.insert(key, key);
        }
        assert_eq!((recent.get(0), recent.get(GENERATION as u64)), (None, Some(GENERATION as u64)));
        assert_eq!(recent.get(2 * GENERATION as u64), Some(2 * GENERATION as u64));
        assert_eq!(recent.now.len() + recent.before.len(), GENERATION + 1);
    }
}
