//! Numbers that only the metrics need.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::state::monitoring::SessionCounts;
use crate::state::timers::Millis;

/// Time for which a count of all sessions is reused, in milliseconds: anyone may ask, and there are
/// many sessions.
const COUNTED_FOR: Millis = 1_000;

/// The start of the process, the log's counter, and the last count of sessions.
#[derive(Debug)]
pub(super) struct Reporting {
    /// Start of the process, in seconds since 1970.
    started: u64,
    /// Counter of the lines that the log dropped.
    dropped_log_lines: &'static AtomicU64,
    /// The last count of sessions, and its time.
    counted: Option<(Millis, SessionCounts)>,
}

impl Reporting {
    pub(super) fn new(started: u64, dropped_log_lines: &'static AtomicU64) -> Self {
        Self { started, dropped_log_lines, counted: None }
    }

    /// Returns the start of the process, in seconds since 1970.
    pub(super) fn started(&self) -> u64 {
        self.started
    }

    pub(super) fn dropped_log_lines(&self) -> u64 {
        self.dropped_log_lines.load(Ordering::Relaxed)
    }

    /// Returns the count of sessions, made by `count` unless the last one is recent.
    pub(super) fn sessions(&mut self, count: impl FnOnce() -> SessionCounts, now: Millis) -> &SessionCounts {
        if self.counted.as_ref().is_none_or(|(at, _)| *at + COUNTED_FOR <= now) {
            self.counted = Some((now, count()));
        }
        let (_, counts) = self.counted.as_ref().expect("counted above");
        counts
    }
}
