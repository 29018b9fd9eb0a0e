//! What an address may fail at: a bucket that fills by itself, and the logins that wait until those before are answered.

use std::collections::VecDeque;
use std::net::IpAddr;

use crate::state::table::Key;
use crate::state::timers::Millis;

/// What failures count for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Passwords from an address (IPv6: a network of 64 bits).
    Address(IpAddr),
    /// Passwords from a network of 48 bits, which one customer of a provider may have.
    Site(u64),
    /// Cookies and tokens from an address.
    Cookies(IpAddr),
}

/// How many failures there may be at once, and after how many milliseconds one more.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u64,
    interval: Millis,
}

/// What a password costs that is compared here and not asked of CouchDB.
pub(super) const COMPARED: u64 = 5;

impl Place {
    /// Returns what wrong passwords from an address count for.
    pub(super) fn of_passwords(address: IpAddr) -> impl Iterator<Item = Self> {
        let site = match address {
            IpAddr::V6(six) => Some(Self::Site(u64::try_from(six.to_bits() >> 80).expect("48 bits"))),
            IpAddr::V4(_) => None,
        };
        std::iter::once(Self::Address(address)).chain(site)
    }

    /// Each is full again after a minute at most.
    fn rate(self) -> Rate {
        match self {
            Self::Address(_) => Rate { burst: 30, interval: 2_000 },
            Self::Site(_) => Rate { burst: 600, interval: 100 },
            Self::Cookies(_) => Rate { burst: 500, interval: 50 },
        }
    }
}

/// A budget.
#[derive(Debug)]
pub(super) struct Budget {
    rate: Rate,
    /// When all of it has come back.
    full_at: Millis,
    /// Logins that CouchDB is asked about, or that have passed on their way there.
    pub(super) asked: u64,
    waiting: VecDeque<Key>,
    /// Whether it is in the list of those to be looked at.
    pub(super) woken: bool,
    /// Whether it is in the list of those to be forgotten.
    listed: bool,
}

impl Budget {
    pub(super) fn new(place: Place) -> Self {
        let rate = place.rate();
        Self { rate, full_at: 0, asked: 0, waiting: VecDeque::new(), woken: false, listed: false }
    }

    /// Returns how many failures have not come back.
    fn taken(&self, now: Millis) -> u64 {
        self.full_at.saturating_sub(now).div_ceil(self.rate.interval)
    }

    /// Returns how long until one more failure is allowed, where that is not now.
    pub(super) fn wait(&self, now: Millis) -> Option<Millis> {
        self.wait_for(1, now)
    }

    /// Returns how long until so many more failures are allowed, where that is not now.
    pub(super) fn wait_for(&self, cost: u64, now: Millis) -> Option<Millis> {
        let Rate { burst, interval } = self.rate;
        let taken = self.full_at.saturating_sub(now);
        (self.taken(now) + cost > burst).then(|| taken.saturating_sub((burst - cost) * interval).max(1))
    }

    /// Returns whether all of it is taken if those under way fail.
    pub(super) fn is_taken(&self, now: Millis) -> bool {
        self.taken(now) + self.asked >= self.rate.burst
    }

    /// Takes from it; the debt never grows beyond what comes back within a minute. Returns when the budget may be
    /// forgotten, if that is to be noted.
    pub(super) fn charge(&mut self, cost: u64, now: Millis) -> Option<Millis> {
        let Rate { burst, interval } = self.rate;
        self.full_at = (self.full_at.max(now) + cost * interval).min(now + burst * interval);
        (!std::mem::replace(&mut self.listed, true)).then_some(self.full_at)
    }

    /// Has a login wait for its turn.
    pub(super) fn queue(&mut self, key: Key) {
        self.waiting.push_back(key);
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes out the next login that may go on, or has to be rejected.
    pub(super) fn pop(&mut self, now: Millis) -> Option<Key> {
        if self.is_taken(now) && self.wait(now).is_none() {
            return None;
        }
        self.waiting.pop_front()
    }

    pub(super) fn is_to_be_woken(&self) -> bool {
        self.has_waiting() && !self.woken
    }

    /// Returns when to look again whether it may be forgotten.
    pub(super) fn ends_later(&self, now: Millis) -> Option<Millis> {
        (now < self.full_at).then_some(self.full_at)
    }

    pub(super) fn unlist(&mut self) {
        self.listed = false;
    }

    pub(super) fn is_idle(&self) -> bool {
        self.asked == 0 && self.waiting.is_empty()
    }

    /// Returns whether nothing is to be remembered of it, and no list has it.
    pub(super) fn is_over(&self, now: Millis) -> bool {
        self.is_idle() && !self.listed && self.full_at <= now
    }
}
