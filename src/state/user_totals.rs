//! Subscriptions of each user, over all of its sessions.
//!
//! There are many users with a database or two, and they must cost nothing here: a session counts only when it has more
//! than a thousandth of what its user may have.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

/// The totals of the users whose sessions count.
#[derive(Debug)]
pub struct UserTotals {
    limit: Option<usize>,
    hasher: RandomState,
    /// By the hash of the user's name.
    totals: HashMap<u64, usize>,
}

/// What a session counts as in the total of its user; kept by the session.
#[derive(Debug)]
pub struct Counted {
    user: u64,
    count: usize,
}

impl UserTotals {
    /// Creates an empty table with the limit of one user; None for any number.
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, hasher: RandomState::new(), totals: HashMap::new() }
    }

    /// Returns the limit when a session of a user that would have `count` subscriptions exceeds it.
    pub fn exceeded(&self, user: &str, counted: Option<&Counted>, count: usize) -> Option<usize> {
        let limit = self.limit?;
        let user = self.hasher.hash_one(user);
        let own = counted.filter(|counted| counted.user == user).map_or(0, |counted| counted.count);
        let others = self.totals.get(&user).map_or(0, |total| total - own);
        (others + count > limit).then_some(limit)
    }

    /// Takes note of how many subscriptions a session of a user has now; none is that of a session that ends.
    pub fn recount(&mut self, user: Option<&str>, counted: &mut Option<Box<Counted>>, count: usize) {
        let Some(limit) = self.limit else { return };
        let count = if count > limit / 1_000 { count } else { 0 };
        if let Some(before) = counted.take()
            && let Some(total) = self.totals.get_mut(&before.user)
        {
            *total -= before.count;
            if *total == 0 {
                self.totals.remove(&before.user);
                if self.totals.is_empty() {
                    self.totals.shrink_to_fit();
                }
            }
        }
        if let (Some(user), 1..) = (user, count) {
            let user = self.hasher.hash_one(user);
            *self.totals.entry(user).or_default() += count;
            *counted = Some(Box::new(Counted { user, count }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_over_all_sessions() {
        let mut totals = UserTotals::new(Some(10));
        let (mut first, mut second, mut other) = (None, None, None);
        assert_eq!(totals.exceeded("u", None, 10), None);
        assert_eq!(totals.exceeded("u", None, 11), Some(10));
        totals.recount(Some("u"), &mut first, 6);
        assert_eq!(totals.exceeded("u", None, 4), None);
        assert_eq!(totals.exceeded("u", None, 5), Some(10));
        assert_eq!(totals.exceeded("u", first.as_deref(), 10), None, "its own are not counted twice");
        assert_eq!(totals.exceeded("v", None, 10), None);
        totals.recount(Some("u"), &mut second, 4);
        totals.recount(Some("u"), &mut first, 5);
        assert_eq!(totals.exceeded("u", second.as_deref(), 5), None);
        // The session logs in as somebody else.
        totals.recount(Some("v"), &mut second, 2);
        totals.recount(Some("v"), &mut other, 8);
        assert_eq!(totals.exceeded("v", second.as_deref(), 3), Some(10));
        for counted in [&mut first, &mut second, &mut other] {
            totals.recount(Some("u"), counted, 0);
            assert!(counted.is_none());
        }
        assert!(totals.totals.is_empty());
    }

    #[test]
    fn sessions_with_few_cost_nothing() {
        let mut totals = UserTotals::new(Some(100_000));
        let mut counted = None;
        totals.recount(Some("u"), &mut counted, 100);
        assert!(counted.is_none() && totals.totals.is_empty());
        totals.recount(Some("u"), &mut counted, 101);
        assert!(counted.is_some());
        let mut unlimited = UserTotals::new(None);
        unlimited.recount(Some("u"), &mut counted, 1_000_000);
        assert_eq!(unlimited.exceeded("u", None, usize::MAX), None);
    }
}
