//! The only readings of the clock in the stand-in.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A monotonic clock that also knows the date.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    epoch: Duration,
}

impl Clock {
    /// Reads the date once; later readings are offsets from it.
    #[allow(
        clippy::disallowed_methods,
        reason = "the stand-in is a server of its own, with threads of its own; this is its only reading"
    )]
    pub(super) fn start() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), epoch }
    }

    /// Returns the time since 1970.
    pub(super) fn now(&self) -> Duration {
        self.epoch + self.started.elapsed()
    }

    /// Returns the time since this clock was started.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
