//! The stand-in's one look at the clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A clock that never goes backwards and still knows the date.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    epoch: Duration,
}

impl Clock {
    /// Reads date and clock once; every later reading is an offset from here.
    #[allow(
        clippy::disallowed_methods,
        reason = "the stand-in is a server of its own, with threads of its own; this is its only reading"
    )]
    pub(super) fn start() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), epoch }
    }

    /// Time since 1970.
    pub(super) fn now(&self) -> Duration {
        self.epoch + self.started.elapsed()
    }

    /// Time since this clock was started.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
