//! An account as CouchDB counts wrong passwords for it: its recent failures, and the logins that
//! wait.

use std::net::IpAddr;

use super::history::{Hash, History, Secret};
use crate::state::fair_queue::FairQueue;
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Most failures in any [`WINDOW`]. CouchDB locks an account at the fifth.
pub(super) const MAX_FAILURES: usize = 4;
/// Time for which a failure counts, in milliseconds. CouchDB's window begins with a failure and
/// takes 300 s; one more second covers different clocks.
const WINDOW: Millis = 301_000;
/// Longest delay with which CouchDB may still execute a login that was given up, in milliseconds.
const LATE: Millis = 30_000;
/// Most failures that are remembered per account.
const MAX_REMEMBERED: usize = 8;

/// Most logins in flight with a password that has proved right while they waited.
const MAX_FREED: usize = 16;
const PRIORITIES: usize = 6;

/// Priority of a login of an account; logins that are more likely to be right come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Priority {
    /// CouchDB did not answer a login that this one waited for.
    Unanswered,
    /// The password was right in a login that this one waited for.
    Freed,
    /// The password is the last right one, and the address has logged in under the name before.
    Proven,
    /// The password is the last right one. It may have changed since, and others may know the old
    /// one.
    Roaming,
    /// Another password, from an address that has logged in under the name before.
    Known,
    /// Any other login.
    Stranger,
}

impl Priority {
    const ALL: [Self; PRIORITIES] =
        [Self::Unanswered, Self::Freed, Self::Proven, Self::Roaming, Self::Known, Self::Stranger];

    /// Returns whether the password is the last right one.
    fn has_password(self) -> bool {
        matches!(self, Self::Freed | Self::Proven | Self::Roaming)
    }
}

/// Decision about a login at its account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Ask,
    /// Logins are in flight that may fail.
    Wait,
    /// There are too many recent failures, for this many milliseconds. None if CouchDB did not
    /// answer some of these logins.
    Reject(Option<Millis>),
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    at: Millis,
    password: Secret,
    /// Whether CouchDB reported it.
    certain: bool,
}

/// Failures and logins of one account.
#[derive(Debug)]
pub(super) struct Account {
    name: Hash,
    by_name: bool,
    failures: Vec<Failure>,
    /// Logins that have passed the account and have no outcome yet.
    pub(super) asked: usize,
    /// Waiting logins by priority; each queue serves addresses in turn.
    waiting: Option<Box<[FairQueue<IpAddr, Key>; PRIORITIES]>>,
    /// Whether the account is in the list of ready steps.
    pub(super) ready: bool,
}

impl Account {
    pub(super) fn new(name: Hash, by_name: bool) -> Self {
        Self { name, by_name, failures: Vec::new(), asked: 0, waiting: None, ready: false }
    }

    /// Decides about a login of a priority.
    pub(super) fn decide(&self, priority: Priority, history: &History, now: Millis) -> Decision {
        if priority == Priority::Unanswered {
            return Decision::Reject(None);
        }
        let limit = self.limit(priority, history);
        let right = history.right_password(self.name).filter(|_| priority.has_password());
        // A login whose reply was lost most likely had the usual outcome of its password.
        let is_own = |failure: &Failure| !failure.certain && Some(failure.password) == right;
        let live = || self.failures.iter().filter(move |failure| now < failure.at + WINDOW);
        let count = live().filter(|failure| !is_own(failure)).count();
        if count >= limit {
            if live().filter(|failure| failure.certain).count() < limit {
                return Decision::Reject(None);
            }
            let mut ends: Vec<Millis> = live().filter(|failure| !is_own(failure)).map(|it| it.at + WINDOW).collect();
            ends.sort_unstable();
            return Decision::Reject(Some(ends[count - limit] - now));
        }
        if priority == Priority::Freed {
            return if self.asked < MAX_FREED { Decision::Ask } else { Decision::Wait };
        }
        let one_by_one = self.asked > 0 && live().any(is_own);
        // While CouchDB is silent, one failure is reserved for the time when it answers again.
        let is_last = self.asked > 0 && count + self.asked + 1 >= MAX_FAILURES;
        if count + self.asked >= limit || one_by_one || is_last { Decision::Wait } else { Decision::Ask }
    }

    /// Returns how many failures are allowed for a login of a priority. The reserved rest ensures
    /// that users who know the password get in, whatever passwords other clients try.
    fn limit(&self, priority: Priority, history: &History) -> usize {
        let known = history.knows(self.name);
        let proven = usize::from(history.right_password(self.name).is_some());
        match priority {
            Priority::Unanswered | Priority::Freed | Priority::Proven => MAX_FAILURES,
            Priority::Stranger if self.by_name && known => MAX_FAILURES - 2,
            Priority::Roaming | Priority::Known | Priority::Stranger => MAX_FAILURES - proven,
        }
    }

    /// Adds a failure. Returns the time at which it no longer counts.
    pub(super) fn fail(&mut self, password: Secret, certain: bool, now: Millis) -> Millis {
        self.failures.retain(|failure| now < failure.at + WINDOW);
        if self.failures.len() >= MAX_REMEMBERED {
            self.failures.remove(0);
        }
        let at = if certain { now } else { now + LATE };
        self.failures.push(Failure { at, password, certain });
        at + WINDOW
    }

    /// Forgets unanswered logins with a password that has proved right.
    pub(super) fn forgive(&mut self, password: Secret) {
        self.failures.retain(|failure| failure.certain || failure.password != password);
    }

    /// Queues a login.
    pub(super) fn wait(&mut self, priority: Priority, address: IpAddr, key: Key) {
        self.waiting.get_or_insert_default()[priority as usize].push(address, key);
    }

    pub(super) fn has_waiting(&self, priority: Priority) -> bool {
        self.waiting.as_ref().is_some_and(|queues| !queues[priority as usize].is_empty())
    }

    /// Takes the next login that may proceed or has to be rejected.
    pub(super) fn pop(&mut self, history: &History, now: Millis) -> Option<(Priority, Key)> {
        let priority = Priority::ALL
            .into_iter()
            .find(|priority| self.has_waiting(*priority) && self.decide(*priority, history, now) != Decision::Wait)?;
        let queues = self.waiting.as_mut()?;
        let key = queues[priority as usize].pop().map(|(_, key)| key);
        if queues.iter().all(FairQueue::is_empty) {
            self.waiting = None;
        }
        key.map(|key| (priority, key))
    }

    /// Moves logins with the right password to the front.
    pub(super) fn promote_proven(&mut self) {
        let Some(queues) = &mut self.waiting else { return };
        for priority in [Priority::Proven, Priority::Roaming] {
            while let Some((address, key)) = queues[priority as usize].pop() {
                queues[Priority::Freed as usize].push(address, key);
            }
        }
    }

    /// Marks all waiting logins for rejection: they have waited as long as the login that CouchDB
    /// did not answer.
    pub(super) fn reject_waiting(&mut self) {
        let Some(queues) = &mut self.waiting else { return };
        for priority in Priority::ALL.into_iter().filter(|priority| *priority != Priority::Unanswered) {
            while let Some((address, key)) = queues[priority as usize].pop() {
                queues[Priority::Unanswered as usize].push(address, key);
            }
        }
    }

    /// Takes all waiting logins, in their order.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Key> + use<> {
        let queues = self.waiting.take().map(|queues| *queues).into_iter().flatten();
        queues.flat_map(|mut queue| std::iter::from_fn(move || queue.pop())).map(|(_, key)| key)
    }

    pub(super) fn is_unmarked(&self) -> bool {
        self.waiting.is_some() && !self.ready
    }

    /// Returns whether the account has nothing to remember.
    pub(super) fn is_over(&mut self, now: Millis) -> bool {
        self.failures.retain(|failure| now < failure.at + WINDOW);
        self.asked == 0 && self.waiting.is_none() && self.failures.is_empty()
    }
}
