//! Failures that an address is allowed: a token bucket, and the logins that wait for the outcome of
//! earlier ones.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::state::table::Key;
use crate::state::timers::Millis;

/// Key of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum BudgetKey {
    /// Passwords from an address (IPv6: a /64 network).
    Address(IpAddr),
    /// Passwords from a /48 network, which one customer of a provider may have.
    Site(u64),
    /// Cookies and tokens from an address.
    Cookies(IpAddr),
}

/// Most failures at once, and the time until one more is allowed, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u64,
    interval: Millis,
}

/// Cost of a password that is compared here instead of at CouchDB.
pub(super) const COMPARISON_COST: u64 = 5;

impl BudgetKey {
    /// Returns the keys for wrong passwords from an address.
    pub(super) fn of_passwords(address: IpAddr) -> impl Iterator<Item = Self> {
        let site = match address {
            IpAddr::V6(six) => Some(Self::Site(u64::try_from(six.to_bits() >> 80).expect("48 bits"))),
            IpAddr::V4(_) => None,
        };
        std::iter::once(Self::Address(address)).chain(site)
    }

    /// Returns the rate. Each budget is full again after at most a minute.
    fn rate(self) -> Rate {
        match self {
            Self::Address(_) => Rate { burst: 30, interval: 2_000 },
            Self::Site(_) => Rate { burst: 600, interval: 100 },
            Self::Cookies(_) => Rate { burst: 500, interval: 50 },
        }
    }
}

/// Token bucket of failures.
#[derive(Debug)]
pub(super) struct Budget {
    rate: Rate,
    /// Time at which the bucket is full again.
    full_at: Millis,
    /// Logins that have passed the budget and have no outcome yet.
    pub(super) asked: u64,
    waiting: VecDeque<Key>,
    /// Whether the budget is in the list of ready steps.
    pub(super) ready: bool,
    /// Whether the budget is in the list of budgets to forget.
    listed: bool,
}

impl Budget {
    pub(super) fn new(budget_key: BudgetKey) -> Self {
        let rate = budget_key.rate();
        Self { rate, full_at: 0, asked: 0, waiting: VecDeque::new(), ready: false, listed: false }
    }

    /// Returns the number of failures that still count.
    fn taken(&self, now: Millis) -> u64 {
        self.full_at.saturating_sub(now).div_ceil(self.rate.interval)
    }

    /// Returns the time until one more failure is allowed, in milliseconds; None if it is allowed
    /// now.
    pub(super) fn wait(&self, now: Millis) -> Option<Millis> {
        self.wait_for(1, now)
    }

    /// Returns the time until `cost` more failures are allowed, in milliseconds; None if they are
    /// allowed now.
    pub(super) fn wait_for(&self, cost: u64, now: Millis) -> Option<Millis> {
        let Rate { burst, interval } = self.rate;
        let taken = self.full_at.saturating_sub(now);
        (self.taken(now) + cost > burst).then(|| taken.saturating_sub((burst - cost) * interval).max(1))
    }

    /// Returns whether the bucket is empty if all logins in flight fail.
    pub(super) fn is_taken(&self, now: Millis) -> bool {
        self.taken(now) + self.asked >= self.rate.burst
    }

    /// Charges failures; the debt is at most what comes back within a minute. Returns when the
    /// budget may be forgotten, for a budget that is not in the list yet.
    pub(super) fn charge(&mut self, cost: u64, now: Millis) -> Option<Millis> {
        let Rate { burst, interval } = self.rate;
        self.full_at = (self.full_at.max(now) + cost * interval).min(now + burst * interval);
        (!std::mem::replace(&mut self.listed, true)).then_some(self.full_at)
    }

    /// Queues a login.
    pub(super) fn queue(&mut self, key: Key) {
        self.waiting.push_back(key);
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes the next login that may proceed or has to be rejected.
    pub(super) fn pop(&mut self, now: Millis) -> Option<Key> {
        if self.is_taken(now) && self.wait(now).is_none() {
            return None;
        }
        self.waiting.pop_front()
    }

    pub(super) fn is_unmarked(&self) -> bool {
        self.has_waiting() && !self.ready
    }

    /// Returns when to check again whether the budget may be forgotten.
    pub(super) fn ends_later(&self, now: Millis) -> Option<Millis> {
        (now < self.full_at).then_some(self.full_at)
    }

    pub(super) fn unlist(&mut self) {
        self.listed = false;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.asked == 0 && self.waiting.is_empty()
    }

    /// Returns whether the budget has nothing to remember and is in no list.
    pub(super) fn is_over(&self, now: Millis) -> bool {
        self.is_idle() && !self.listed && self.full_at <= now
    }
}
