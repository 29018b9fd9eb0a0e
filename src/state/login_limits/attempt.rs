//! A login on its way through the limits.

use std::collections::HashMap;
use std::net::IpAddr;

use super::account::{Account, Priority};
use super::budget::{Budget, BudgetKey, COMPARISON_COST};
use super::history::{Hash, History, Secret};
use crate::state::timers::Millis;

/// A login that waits or is in flight.
#[derive(Debug)]
pub(super) struct Attempt<W> {
    /// The caller's data, for a login that waits; None once it is in flight.
    pub(super) waiting: Option<W>,
    pub(super) address: IpAddr,
    pub(super) password: Option<Password>,
    /// Whether the limits of the address and the site do not apply.
    pub(super) exempt: bool,
    /// Number of steps that it has passed. It counts at each of them.
    pub(super) passed: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Password {
    pub(super) account: Hash,
    pub(super) by_name: bool,
    pub(super) name: Hash,
    /// Hash of the name and the address together.
    pub(super) pair: Hash,
    pub(super) secret: Secret,
    pub(super) priority: Priority,
    /// Whether it differs from the last right password.
    pub(super) differs: bool,
    /// Time until it can be compared with the last right password, in milliseconds; None if that is
    /// possible now.
    pub(super) comparable_in: Option<Millis>,
}

/// A step on the way to CouchDB.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Account(Hash),
    Budget(BudgetKey),
}

impl<W> Attempt<W> {
    /// Returns a step by its number.
    pub(super) fn step(&self, number: usize) -> Option<Step> {
        let Some(password) = self.password else {
            return (number == 0).then_some(Step::Budget(BudgetKey::Cookies(self.address)));
        };
        match number {
            0 => Some(Step::Account(password.account)),
            _ if self.exempt => None,
            _ => BudgetKey::of_passwords(self.address).nth(number - 1).map(Step::Budget),
        }
    }

    /// Sets the priority, and whether the failures of other clients at the address matter.
    pub(super) fn prioritize(&mut self, history: &History, budgets: &HashMap<BudgetKey, Budget>, now: Millis) {
        let Some(password) = &mut self.password else { return };
        let is_good = history.has_logged_in(password.pair);
        self.exempt = is_good;
        password.priority = if is_good { Priority::Known } else { Priority::Stranger };
        password.differs = false;
        password.comparable_in = None;
        let Some(right) = history.right_password(password.name).filter(|_| is_good || password.by_name) else { return };
        // Comparing without a limit would allow a client to try many passwords.
        let budget_keys = BudgetKey::of_passwords(self.address).filter_map(|budget_key| budgets.get(&budget_key));
        password.comparable_in = budget_keys.filter_map(|budget| budget.wait_for(COMPARISON_COST, now)).max();
        if password.comparable_in.is_none() {
            match (right == password.secret, is_good) {
                (true, true) => password.priority = Priority::Proven,
                (true, false) => password.priority = Priority::Roaming,
                (false, _) => password.differs = true,
            }
        }
    }
}

impl Password {
    pub(super) fn new_account(&self) -> Account {
        Account::new(self.name, self.by_name)
    }
}
