//! What the feed logs: each cause has a throttle of its own, and a problem that goes on is logged once.

use std::mem::{Discriminant, discriminant};

use super::problem::Problem;
use crate::state::log_throttle::{LogThrottles, MINUTE, Suppressed};
use crate::state::timers::Millis;

/// What a log line is about. Each has a throttle of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogCause {
    LongLine,
    BrokenLine,
    Creation,
    Problem(Discriminant<Problem>),
}

/// The log of the feed.
#[derive(Debug)]
pub(super) struct FeedLog {
    throttles: LogThrottles<LogCause>,
    /// The last problem; None once the feed proved itself, with a change or by standing for a while.
    problem: Option<Problem>,
    /// Whether the last problem was logged, and not suppressed by its throttle.
    is_logged: bool,
    /// Whether it was logged that the feed is followed, since there was something else to log.
    announced: bool,
}

impl Default for FeedLog {
    fn default() -> Self {
        Self { throttles: LogThrottles::new(MINUTE), problem: None, is_logged: false, announced: false }
    }
}

impl FeedLog {
    /// Returns the last problem.
    pub(super) fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    /// Forgets the last problem: the feed proved itself.
    pub(super) fn clear_problem(&mut self) {
        self.problem = None;
    }

    /// Logs that the feed is followed, once.
    pub(super) fn announce(&mut self) {
        if !std::mem::replace(&mut self.announced, true) {
            log::info!("Following the changes feed of CouchDB.");
        }
    }

    /// Decides about one line of a cause: returns what to append to it, or `None` if it is to be suppressed.
    pub(super) fn pass(&mut self, cause: LogCause, now: Millis) -> Option<Suppressed> {
        self.throttles.of(cause).pass(now)
    }

    /// Logs a problem unless it was logged already, or another one of its kind shortly before.
    pub(super) fn handle_problem(&mut self, problem: Problem, wait: Millis, now: Millis) {
        let again = self.is_logged && self.problem.as_ref() == Some(&problem);
        let due = if again { None } else { self.pass(LogCause::Problem(discriminant(&problem)), now) };
        match due {
            Some(more) => {
                log::log!(problem.level(), "{problem}{more}");
                self.announced = false;
            }
            None => log::debug!("{problem} Next try in {wait} ms."),
        }
        self.is_logged = again || due.is_some();
        self.problem = Some(problem);
    }
}
