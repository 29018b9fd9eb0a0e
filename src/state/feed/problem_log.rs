//! Log of the feed: each cause is throttled on its own, and a lasting problem is logged once.

use std::mem::{Discriminant, discriminant};

use super::problem::Problem;
use crate::state::log_throttle::{LogThrottles, MINUTE, Suppressed};
use crate::state::timers::Millis;

/// Cause of a log line. Each has a throttle of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogCause {
    LongLine,
    MalformedLine,
    Creation,
    Problem(Discriminant<Problem>),
}

/// Throttles of the feed's log lines, and the last problem.
#[derive(Debug)]
pub(super) struct FeedLog {
    throttles: LogThrottles<LogCause>,
    /// Last problem; None after a change, or after a stream that lasted.
    problem: Option<Problem>,
    /// Whether the last problem was logged, and not suppressed by its throttle.
    is_logged: bool,
    /// Whether the log says that the feed is followed.
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

    /// Forgets the last problem: the feed works.
    pub(super) fn clear_problem(&mut self) {
        self.problem = None;
    }

    /// Logs once that the feed is followed.
    pub(super) fn announce(&mut self) {
        if !std::mem::replace(&mut self.announced, true) {
            log::info!("Following the changes feed of CouchDB.");
        }
    }

    /// Decides about one line of a cause: returns what to append to it, or `None` to suppress it.
    pub(super) fn pass(&mut self, cause: LogCause, now: Millis) -> Option<Suppressed> {
        self.throttles.of(cause).pass(now)
    }

    /// Logs a problem unless it was logged already, or another one of its kind was logged shortly
    /// before.
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
