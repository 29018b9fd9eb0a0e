//! Limits failed logins before they reach CouchDB, which locks an account for minutes after five
//! wrong passwords. No client can lock out another one, or try passwords without end.
//!
//! ```text
//!  login with a password ─▶ account ─▶ address ─▶ site (IPv6) ─▶ CouchDB
//!  login with a cookie or token ─────▶ cookies of the address ─▶ CouchDB
//!
//!  at each step:  failures exceed the limit                 ──▶ reject
//!                 failures and logins in flight would do so ──▶ wait for the outcome of those
//! ```
//!
//! CouchDB counts wrong passwords per account. An account is a name and an address, or a name alone
//! where all clients have the same address for CouchDB. A login in flight counts as a failure at
//! every step until CouchDB answers.
//!
//! The limits know no sockets and no sessions: `W` is the caller's data for a login that waits.

mod account;
mod attempt;
mod budget;
mod history;
#[cfg(test)]
mod model;
mod outcome;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;

use account::{Account, Decision, Priority};
use attempt::{Attempt, Password, Step};
use budget::{Budget, BudgetKey, COMPARISON_COST};
use history::{Hash, History, Secret};
pub use outcome::{Admission, Kind, Outcome, Rejection};

use crate::state::network::network;
use crate::state::pool::LONGEST_WAIT;
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;

/// Most accounts with failures or logins in flight. Beyond that, a thousand addresses guess at
/// once, and forgetting accounts would let clients lock them.
const MAX_ACCOUNTS: usize = 200_000;
/// Most addresses and sites with failures. The oldest are forgotten first.
const MAX_BUDGETS: usize = 200_000;

/// Outcome of taking a login through its steps.
enum Progress {
    Ask,
    Wait,
    Reject(Rejection),
}

/// Limits of logins. `W` is the caller's data for a login that waits.
#[derive(Debug)]
pub struct LoginLimits<W> {
    hasher: RandomState,
    accounts: HashMap<Hash, Account>,
    budgets: HashMap<BudgetKey, Budget>,
    history: History,
    attempts: Table<Attempt<W>>,
    /// Steps at which a login may have to proceed or be rejected.
    ready: VecDeque<Step>,
    /// Waiting logins, the oldest first, including some that no longer wait.
    order: VecDeque<(Millis, Key)>,
    /// Times at which accounts and budgets may be forgotten.
    account_ends: VecDeque<(Millis, Hash)>,
    budget_ends: VecDeque<(Millis, BudgetKey)>,
    /// Number of waiting logins, per address and in total.
    waiting_of: HashMap<IpAddr, usize>,
    waiting: usize,
    max_waiting: usize,
}

impl<W> LoginLimits<W> {
    /// Creates limits under which at most `max_waiting` logins wait for the outcome of others.
    pub fn new(max_waiting: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            accounts: HashMap::new(),
            budgets: HashMap::new(),
            history: History::default(),
            attempts: Table::default(),
            ready: VecDeque::new(),
            order: VecDeque::new(),
            account_ends: VecDeque::new(),
            budget_ends: VecDeque::new(),
            waiting_of: HashMap::new(),
            waiting: 0,
            max_waiting,
        }
    }

    /// Decides whether CouchDB may be asked about credentials. If the login has to wait,
    /// [`LoginLimits::next`] returns `waiting`. `since` is the time at which the client began to
    /// wait.
    pub fn admit(
        &mut self,
        address: IpAddr,
        kind: Kind<'_>,
        since: Millis,
        waiting: impl FnOnce() -> W,
        now: Millis,
    ) -> Admission {
        self.forget(now);
        let address = network(address);
        let password = match kind {
            Kind::Password { name, password, by_name } => Some(self.password(address, name, password, by_name)),
            Kind::Cookie => None,
        };
        if password.is_some_and(|it| !self.accounts.contains_key(&it.account)) && self.accounts.len() >= MAX_ACCOUNTS {
            return Admission::Reject(Rejection::Overloaded);
        }
        let mut attempt = Attempt { waiting: None, address, password, exempt: false, passed: 0 };
        attempt.prioritize(&self.history, &self.budgets, now);
        let key = self.attempts.insert(attempt);
        let progress = self.advance(key, false, now);
        let room = self.max_waiting.saturating_sub(self.waiting);
        match progress {
            Progress::Ask => Admission::Ask(key),
            // An address leaves room for others.
            Progress::Wait if room > 0 && self.waiting_of.get(&address).is_none_or(|own| *own <= room) => {
                self.attempts.get_mut(key).expect("it was just inserted").waiting = Some(waiting());
                self.waiting += 1;
                *self.waiting_of.entry(address).or_default() += 1;
                self.order.push_back((since, key));
                Admission::Wait(key)
            }
            Progress::Wait => {
                self.remove(key, now);
                Admission::Reject(Rejection::Overloaded)
            }
            Progress::Reject(rejection) => {
                self.remove(key, now);
                Admission::Reject(rejection)
            }
        }
    }

    /// Handles the outcome of an admitted login.
    pub fn finish(&mut self, key: Key, outcome: Outcome, now: Millis) {
        let Some(attempt) = self.remove(key, now) else { return };
        let failed = matches!(outcome, Outcome::Wrong | Outcome::Locked);
        let Some(password) = attempt.password else {
            if failed {
                self.charge(BudgetKey::Cookies(attempt.address), 1, now);
            }
            return;
        };
        if failed {
            self.charge_failure(attempt.address, 1, now);
        }
        let mut changed = false;
        let account = self.accounts.entry(password.account).or_insert_with(|| password.new_account());
        let ends = match outcome {
            Outcome::Right => {
                account.forgive(password.secret);
                changed = self.history.handle_right(password.pair, password.name, password.secret);
                None
            }
            Outcome::Wrong => {
                changed = self.history.handle_wrong(password.name, password.secret);
                Some(account.fail(password.secret, true, now))
            }
            Outcome::Unanswered => {
                account.reject_waiting();
                Some(account.fail(password.secret, false, now))
            }
            Outcome::Locked | Outcome::NotAsked => None,
        };
        self.account_ends.extend(ends.map(|at| (at, password.account)));
        if changed {
            self.prioritize_waiting(password.account, now);
        }
        if let (Outcome::Right, Some(account)) = (outcome, self.accounts.get_mut(&password.account)) {
            account.promote_proven();
        }
        self.forget_account(password.account, now);
    }

    /// Cancels a login.
    pub fn cancel(&mut self, key: Key, now: Millis) {
        self.remove(key, now);
    }

    /// Counts a password that the caller has compared with the right one.
    ///
    /// # Errors
    /// Too many logins from the address have failed. Contains the wait until the next one, in
    /// milliseconds. The client must not learn whether the password is right.
    pub fn count_compared(&mut self, address: IpAddr, right: bool, now: Millis) -> Result<(), Millis> {
        self.forget(now);
        let address = network(address);
        let budgets = BudgetKey::of_passwords(address).filter_map(|budget_key| self.budgets.get(&budget_key));
        if let Some(wait) = budgets.filter_map(|budget| budget.wait(now)).max() {
            return Err(wait);
        }
        if !right {
            self.charge_failure(address, 1, now);
        }
        Ok(())
    }

    /// Takes the next login out of the waiting ones. CouchDB may be asked about it, or it is
    /// rejected.
    pub fn next(&mut self, now: Millis) -> Option<(W, Result<Key, Rejection>)> {
        while let Some(&(since, key)) = self.order.front() {
            let waits = self.attempts.get(key).is_some_and(|attempt| attempt.waiting.is_some());
            if waits && now < since + LONGEST_WAIT {
                break;
            }
            self.order.pop_front();
            if waits && let Some(waiting) = self.remove(key, now).and_then(|attempt| attempt.waiting) {
                return Some((waiting, Err(Rejection::Overloaded)));
            }
        }
        while let Some(&step) = self.ready.front() {
            let Some(key) = self.next_at(step, now) else {
                self.ready.pop_front();
                self.set_ready(step, false);
                self.forget_step(step, now);
                continue;
            };
            match self.advance(key, true, now) {
                Progress::Wait => {}
                Progress::Ask => {
                    let waiting = self.take_waiting(key).expect("only logins that wait are taken out");
                    return Some((waiting, Ok(key)));
                }
                Progress::Reject(rejection) => {
                    let waiting = self.remove(key, now).and_then(|attempt| attempt.waiting);
                    return Some((waiting.expect("only logins that wait are taken out"), Err(rejection)));
                }
            }
        }
        None
    }

    /// Returns when [`LoginLimits::next`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        if self.ready.is_empty() { self.order.front().map(|(since, _)| since + LONGEST_WAIT) } else { Some(0) }
    }

    /// Returns the number of waiting logins.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    fn password(&self, address: IpAddr, name: &str, password: &str, by_name: bool) -> Password {
        let pair = self.hasher.hash_one((address, name));
        let only_name = self.hasher.hash_one(name);
        Password {
            account: if by_name { only_name } else { pair },
            by_name,
            name: only_name,
            pair,
            secret: Secret::new(self.hasher.hash_one((name, password))),
            priority: Priority::Stranger,
            differs: false,
            comparable_in: None,
        }
    }

    /// Takes a login through its steps as far as possible. `called` says that it is its turn at the
    /// first of them.
    fn advance(&mut self, key: Key, mut called: bool, now: Millis) -> Progress {
        let Self { accounts, budgets, history, attempts, .. } = self;
        let attempt = attempts.get_mut(key).expect("the caller has found the attempt");
        while let Some(step) = attempt.step(attempt.passed) {
            match step {
                Step::Account(id) => {
                    let Some(password) = attempt.password else { break };
                    let account = accounts.entry(id).or_insert_with(|| password.new_account());
                    let queued = !called && account.has_waiting(password.priority);
                    match account.decide(password.priority, history, now) {
                        Decision::Ask if !queued => account.asked += 1,
                        Decision::Ask | Decision::Wait => {
                            account.wait(password.priority, attempt.address, key);
                            return Progress::Wait;
                        }
                        Decision::Reject(wait) => {
                            let (address, differs) = (attempt.address, password.differs);
                            if differs {
                                // Guessing here must not cost less than guessing at CouchDB.
                                self.charge_failure(address, COMPARISON_COST, now);
                            }
                            let wait = wait.map(|wait| password.comparable_in.map_or(wait, |sooner| wait.min(sooner)));
                            return Progress::Reject(match wait {
                                None => Rejection::Unanswered,
                                Some(wait) if password.by_name => Rejection::Name(wait),
                                Some(wait) => Rejection::Address(wait),
                            });
                        }
                    }
                }
                Step::Budget(budget_key) => {
                    let budget = budgets.entry(budget_key).or_insert_with(|| Budget::new(budget_key));
                    if let Some(wait) = budget.wait(now) {
                        return Progress::Reject(Rejection::Address(wait));
                    }
                    if budget.is_taken(now) || !called && budget.has_waiting() {
                        budget.queue(key);
                        return Progress::Wait;
                    }
                    budget.asked += 1;
                }
            }
            attempt.passed += 1;
            called = false;
        }
        Progress::Ask
    }

    /// Returns the next login of a step that may proceed or has to be rejected.
    fn next_at(&mut self, step: Step, now: Millis) -> Option<Key> {
        let Self { accounts, budgets, history, attempts, .. } = self;
        let waits = |key: &Key| attempts.get(*key).is_some_and(|attempt| attempt.waiting.is_some());
        match step {
            Step::Account(id) => {
                let account = accounts.get_mut(&id)?;
                let (priority, key) = std::iter::from_fn(|| account.pop(history, now)).find(|(_, key)| waits(key))?;
                if let Some(password) = attempts.get_mut(key).and_then(|attempt| attempt.password.as_mut()) {
                    password.priority = priority;
                }
                Some(key)
            }
            Step::Budget(budget_key) => {
                let budget = budgets.get_mut(&budget_key)?;
                std::iter::from_fn(|| budget.pop(now)).find(waits)
            }
        }
    }

    /// Removes a login from all its steps.
    fn remove(&mut self, key: Key, now: Millis) -> Option<Attempt<W>> {
        let waiting = self.take_waiting(key);
        let attempt = self.attempts.remove(key)?;
        for step in (0..attempt.passed).filter_map(|number| attempt.step(number)) {
            match step {
                Step::Account(id) => {
                    if let Some(account) = self.accounts.get_mut(&id) {
                        account.asked -= 1;
                    }
                }
                Step::Budget(budget_key) => {
                    if let Some(budget) = self.budgets.get_mut(&budget_key) {
                        budget.asked -= 1;
                    }
                }
            }
            self.mark_ready(step);
            self.forget_step(step, now);
        }
        if let (Some(_), Some(step)) = (&waiting, attempt.step(attempt.passed)) {
            // Logins behind it may have waited for this one alone.
            self.mark_ready(step);
        }
        if let Some(step) = attempt.step(attempt.passed) {
            self.forget_step(step, now);
        }
        Some(Attempt { waiting, ..attempt })
    }

    fn take_waiting(&mut self, key: Key) -> Option<W> {
        let attempt = self.attempts.get_mut(key)?;
        let waiting = attempt.waiting.take()?;
        self.waiting -= 1;
        if let Some(count) = self.waiting_of.get_mut(&attempt.address) {
            *count -= 1;
            if *count == 0 {
                self.waiting_of.remove(&attempt.address);
            }
        }
        Some(waiting)
    }

    /// Marks a step as ready for [`LoginLimits::next`] if logins wait at it.
    fn mark_ready(&mut self, step: Step) {
        let waited_at = match step {
            Step::Account(id) => self.accounts.get(&id).is_some_and(Account::is_unmarked),
            Step::Budget(budget_key) => self.budgets.get(&budget_key).is_some_and(Budget::is_unmarked),
        };
        if waited_at {
            self.set_ready(step, true);
            self.ready.push_back(step);
        }
    }

    fn set_ready(&mut self, step: Step, ready: bool) {
        match step {
            Step::Account(id) => {
                if let Some(account) = self.accounts.get_mut(&id) {
                    account.ready = ready;
                }
            }
            Step::Budget(budget_key) => {
                if let Some(budget) = self.budgets.get_mut(&budget_key) {
                    budget.ready = ready;
                }
            }
        }
    }

    /// Queues the waiting logins of an account again by their current priorities.
    fn prioritize_waiting(&mut self, id: Hash, now: Millis) {
        let Some(account) = self.accounts.get_mut(&id) else { return };
        for key in account.take_waiting() {
            let Some(attempt) = self.attempts.get_mut(key).filter(|attempt| attempt.waiting.is_some()) else {
                continue;
            };
            attempt.prioritize(&self.history, &self.budgets, now);
            if let Some(password) = attempt.password {
                account.wait(password.priority, attempt.address, key);
            }
        }
        self.mark_ready(Step::Account(id));
    }

    /// Charges failures to the password budgets of an address.
    fn charge_failure(&mut self, address: IpAddr, cost: u64, now: Millis) {
        for budget_key in BudgetKey::of_passwords(address) {
            self.charge(budget_key, cost, now);
        }
    }

    fn charge(&mut self, budget_key: BudgetKey, cost: u64, now: Millis) {
        let budget = self.budgets.entry(budget_key).or_insert_with(|| Budget::new(budget_key));
        if let Some(at) = budget.charge(cost, now) {
            self.budget_ends.push_back((at, budget_key));
        }
    }

    fn forget_step(&mut self, step: Step, now: Millis) {
        match step {
            Step::Account(id) => self.forget_account(id, now),
            Step::Budget(budget_key) => {
                if self.budgets.get(&budget_key).is_some_and(|budget| budget.is_over(now)) {
                    self.budgets.remove(&budget_key);
                }
            }
        }
    }

    fn forget_account(&mut self, id: Hash, now: Millis) {
        if self.accounts.get_mut(&id).is_some_and(|account| account.is_over(now)) {
            self.accounts.remove(&id);
        }
    }

    /// Forgets failures that no longer count.
    fn forget(&mut self, now: Millis) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(&(at, id)) = self.account_ends.front() else { break };
            if now < at {
                break;
            }
            self.account_ends.pop_front();
            self.forget_account(id, now);
        }
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some(&(at, budget_key)) = self.budget_ends.front() else { break };
            let too_many = self.budgets.len() > MAX_BUDGETS;
            if now < at && !too_many {
                break;
            }
            self.budget_ends.pop_front();
            let Some(budget) = self.budgets.get_mut(&budget_key) else { continue };
            if let Some(later) = budget.ends_later(now).filter(|_| !too_many) {
                self.budget_ends.push_back((later, budget_key));
                continue;
            }
            budget.unlist();
            if budget.is_idle() {
                self.budgets.remove(&budget_key);
            }
        }
    }
}

/// Most entries that are forgotten per call. Amortized, none of the past remains.
const FORGOTTEN_AT_ONCE: usize = 1_000;

#[cfg(test)]
mod tests;
