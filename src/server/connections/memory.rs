//! The memory of the process against `--max_memory`.
//!
//! The measure is the resident memory that the system reports. An operator's limit of a container
//! or unit counts the same, and it includes TLS and the allocator, which no table here knows of. It
//! is read a few times a second, in turns that take place anyway.

use std::io::Read as _;

use crate::state::log_throttle::{LogThrottle, TEN_MINUTES};
use crate::state::monitoring;
use crate::state::timers::Millis;

/// Time between two readings, in milliseconds: each takes about 30 microseconds.
const MEMORY_CHECK: Millis = 200;

/// The resident memory and its limit.
#[derive(Debug)]
pub(super) struct Memory {
    /// The limit in bytes; None without one.
    limit: Option<u64>,
    next_check: Millis,
    /// Whether the last reading was above the limit.
    is_full: bool,
    /// Throttles the line about memory above the limit.
    log: LogThrottle,
}

impl Memory {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { limit, next_check: 0, is_full: false, log: LogThrottle::new(TEN_MINUTES) }
    }

    /// Returns when to read again: while the memory is full nothing else may wake the loop.
    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        self.is_full.then_some(self.next_check)
    }

    /// Reads the memory if it is time. Returns whether it was read and is above the limit.
    pub(super) fn check(&mut self, now: Millis) -> bool {
        let Some(limit) = self.limit.filter(|_| self.next_check <= now) else { return false };
        self.next_check = now + MEMORY_CHECK;
        self.is_full = resident_memory().is_some_and(|resident| resident > limit);
        if self.is_full
            && let Some(more) = self.log.pass(now)
        {
            let mebibytes = limit / (1024 * 1024);
            log::warn!("More memory is used than --max_memory, {mebibytes} MiB: new clients are rejected{more}.");
        }
        self.is_full
    }

    /// Returns whether the last reading was above the limit.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }
}

/// Returns the resident memory of the process in bytes. Linux keeps the file in memory, so that
/// reading does not block.
pub(crate) fn resident_memory() -> Option<u64> {
    let mut status = [0; 2048];
    let read = std::fs::File::open("/proc/self/status").ok()?.read(&mut status).ok()?;
    monitoring::resident_memory(&status[..read])
}
