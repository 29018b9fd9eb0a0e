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
const CLASSES: usize = 6;

/// Priority of a login of an account; logins that are more likely to be right come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
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

impl Class {
    const ALL: [Self; CLASSES] =
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
    waiting: Option<Box<[FairQueue<IpAddr, Key>; CLASSES]>>,
    /// Whether the account is in the list of ready steps.
    pub(super) woken: bool,
}

impl Account {
    pub(super) fn new(name: Hash, by_name: bool) -> Self {
        Self { name, by_name, failures: Vec::new(), asked: 0, waiting: None, woken: false }
    }

    /// Decides about a login of a priority.
    pub(super) fn decide(&self, class: Class, history: &History, now: Millis) -> Decision {
        if class == Class::Unanswered {
            return Decision::Reject(None);
        }
        let limit = self.limit(class, history);
        let right = history.right_password(self.name).filter(|_| class.has_password());
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
        if class == Class::Freed {
            return if self.asked < MAX_FREED { Decision::Ask } else { Decision::Wait };
        }
        let one_by_one = self.asked > 0 && live().any(is_own);
        // While CouchDB is silent, one failure is reserved for the time when it answers again.
        let is_last = self.asked > 0 && count + self.asked + 1 >= MAX_FAILURES;
        if count + self.asked >= limit || one_by_one || is_last { Decision::Wait } else { Decision::Ask }
    }

    /// Returns how many failures are allowed for a login of a priority. The reserved rest ensures
    /// that users who know the password get in, whatever passwords other clients try.
    fn limit(&self, class: Class, history: &History) -> usize {
        let known = history.knows(self.name);
        let proven = usize::from(history.right_password(self.name).is_some());
        match class {
            Class::Unanswered | Class::Freed | Class::Proven => MAX_FAILURES,
            Class::Stranger if self.by_name && known => MAX_FAILURES - 2,
            Class::Roaming | Class::Known | Class::Stranger => MAX_FAILURES - proven,
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
    pub(super) fn wait(&mut self, class: Class, address: IpAddr, key: Key) {
        self.waiting.get_or_insert_default()[class as usize].push(address, key);
    }

    pub(super) fn has_waiting(&self, class: Class) -> bool {
        self.waiting.as_ref().is_some_and(|queues| !queues[class as usize].is_empty())
    }

    /// Takes the next login that may proceed or has to be rejected.
    pub(super) fn pop(&mut self, history: &History, now: Millis) -> Option<(Class, Key)> {
        let class = Class::ALL
            .into_iter()
            .find(|class| self.has_waiting(*class) && self.decide(*class, history, now) != Decision::Wait)?;
        let queues = self.waiting.as_mut()?;
        let key = queues[class as usize].pop().map(|(_, key)| key);
        if queues.iter().all(FairQueue::is_empty) {
            self.waiting = None;
        }
        key.map(|key| (class, key))
    }

    /// Moves logins with the right password to the front.
    pub(super) fn free(&mut self) {
        let Some(queues) = &mut self.waiting else { return };
        for class in [Class::Proven, Class::Roaming] {
            while let Some((address, key)) = queues[class as usize].pop() {
                queues[Class::Freed as usize].push(address, key);
            }
        }
    }

    /// Marks all waiting logins for rejection: they have waited as long as the login that CouchDB
    /// did not answer.
    pub(super) fn give_up(&mut self) {
        let Some(queues) = &mut self.waiting else { return };
        for class in Class::ALL.into_iter().filter(|class| *class != Class::Unanswered) {
            while let Some((address, key)) = queues[class as usize].pop() {
                queues[Class::Unanswered as usize].push(address, key);
            }
        }
    }

    /// Takes all waiting logins, in their order.
    pub(super) fn take_waiting(&mut self) -> impl Iterator<Item = Key> + use<> {
        let queues = self.waiting.take().map(|queues| *queues).into_iter().flatten();
        queues.flat_map(|mut queue| std::iter::from_fn(move || queue.pop())).map(|(_, key)| key)
    }

    pub(super) fn is_to_be_woken(&self) -> bool {
        self.waiting.is_some() && !self.woken
    }

    /// Returns whether the account has nothing to remember.
    pub(super) fn is_over(&mut self, now: Millis) -> bool {
        self.failures.retain(|failure| now < failure.at + WINDOW);
        self.asked == 0 && self.waiting.is_none() && self.failures.is_empty()
    }
}
