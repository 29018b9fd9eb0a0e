//! Quota of subscriptions per user, over all of its sessions.
//!
//! Most users have few databases and must cost nothing here. So a session counts only if it has
//! more than a thousandth of the quota.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use crate::state::table::Key;

/// Subscriptions of the users whose sessions count.
#[derive(Debug)]
pub struct UserQuotas {
    limit: Option<usize>,
    hasher: RandomState,
    /// Totals by the hash of the user's name.
    totals: HashMap<u64, usize>,
    sessions: HashMap<Key, Counted>,
}

/// Share of a session in the total of its user.
#[derive(Debug)]
struct Counted {
    user: u64,
    count: usize,
}

impl UserQuotas {
    /// Creates an empty table with the quota of one user; None for no quota.
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, hasher: RandomState::new(), totals: HashMap::new(), sessions: HashMap::new() }
    }

    /// Returns the quota if a session of a user would exceed it with `count` subscriptions.
    pub fn exceeded(&self, session: Key, user: &str, count: usize) -> Option<usize> {
        let limit = self.limit?;
        let user = self.hasher.hash_one(user);
        let counted = self.sessions.get(&session).filter(|counted| counted.user == user);
        let own = counted.map_or(0, |counted| counted.count);
        let others = self.totals.get(&user).map_or(0, |total| total - own);
        (others + count > limit).then_some(limit)
    }

    /// Updates the number of subscriptions of a session. `user` is None for a session that ends.
    pub fn update(&mut self, session: Key, user: Option<&str>, count: usize) {
        let Some(limit) = self.limit else { return };
        let count = if count > limit / 1_000 { count } else { 0 };
        if let Some(before) = self.sessions.remove(&session)
            && let Some(total) = self.totals.get_mut(&before.user)
        {
            *total -= before.count;
            if *total == 0 {
                self.totals.remove(&before.user);
            }
        }
        if let (Some(user), 1..) = (user, count) {
            let user = self.hasher.hash_one(user);
            *self.totals.entry(user).or_default() += count;
            self.sessions.insert(session, Counted { user, count });
        } else if self.sessions.is_empty() {
            self.totals.shrink_to_fit();
            self.sessions.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [Key; 3] {
        [0, 1, 2].map(|index| Key { index, generation: 0 })
    }

    #[test]
    fn the_quota_of_a_user_covers_all_sessions() {
        let mut totals = UserQuotas::new(Some(10));
        let [first, second, other] = keys();
        assert_eq!(totals.exceeded(first, "u", 10), None);
        assert_eq!(totals.exceeded(first, "u", 11), Some(10));
        totals.update(first, Some("u"), 6);
        assert_eq!(totals.exceeded(second, "u", 4), None);
        assert_eq!(totals.exceeded(second, "u", 5), Some(10));
        assert_eq!(totals.exceeded(first, "u", 10), None, "its own are not counted twice");
        assert_eq!(totals.exceeded(second, "v", 10), None);
        totals.update(second, Some("u"), 4);
        totals.update(first, Some("u"), 5);
        assert_eq!(totals.exceeded(second, "u", 5), None);
        // The session logs in as another user.
        totals.update(second, Some("v"), 2);
        totals.update(other, Some("v"), 8);
        assert_eq!(totals.exceeded(second, "v", 3), Some(10));
        for session in keys() {
            totals.update(session, Some("u"), 0);
            assert!(!totals.sessions.contains_key(&session));
        }
        assert!(totals.totals.is_empty());
    }

    #[test]
    fn sessions_with_few_subscriptions_take_no_memory() {
        let mut totals = UserQuotas::new(Some(100_000));
        let [session, ..] = keys();
        totals.update(session, Some("u"), 100);
        assert!(totals.sessions.is_empty() && totals.totals.is_empty());
        totals.update(session, Some("u"), 101);
        assert!(totals.sessions.contains_key(&session));
        let mut unlimited = UserQuotas::new(None);
        unlimited.update(session, Some("u"), 1_000_000);
        assert_eq!(unlimited.exceeded(session, "u", usize::MAX), None);
    }
}
