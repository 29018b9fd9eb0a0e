//! The memory of the process against `--max_memory`.
//!
//! What counts is the resident memory that the system reports: it is what an operator's limit of a container or unit
//! counts, and includes what no table here knows of, such as TLS and the allocator. It is read a few times a second, in
//! turns that take place anyway.

use super::Server;
use super::operation::resident_memory;
use crate::state::timers::Millis;

/// Time between two looks at the memory, in milliseconds: each takes some 30 microseconds.
const MEMORY_CHECK: Millis = 200;
/// Unauthenticated clients that are evicted at each look above the limit.
const EVICTED: usize = 256;
/// A rejected client is asked to come back after this long, in milliseconds, and up to as long again.
const RETRY_AFTER: Millis = 5_000;

/// How the memory stands.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The limit in bytes; None for none.
    limit: Option<u64>,
    next_check: Millis,
    /// Whether there was more than the limit at the last look.
    full: bool,
}

impl Memory {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { limit, next_check: 0, full: false }
    }

    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    /// When to look again: while the memory is full nothing else may wake the loop.
    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        self.full.then_some(self.next_check)
    }
}

impl Server {
    /// Looks at the memory when it is time, and evicts unauthenticated clients above the limit.
    pub(super) fn check_memory(&mut self, now: Millis) {
        let Some(limit) = self.connections.memory.limit.filter(|_| self.connections.memory.next_check <= now) else {
            return;
        };
        self.connections.memory.next_check = now + MEMORY_CHECK;
        self.connections.memory.full = resident_memory().is_some_and(|resident| resident > limit);
        if !self.connections.memory.full {
            return;
        }
        if let Some(more) = self.connections.memory_log.pass(now) {
            let mebibytes = limit / (1024 * 1024);
            log::warn!("More memory is used than --max_memory, {mebibytes} MiB: new clients are rejected{more}.");
        }
        self.evict_for_memory(EVICTED, now);
    }

    /// Returns when a client that is rejected for want of memory is to come back, in milliseconds; None if it is served.
    pub(super) fn memory_rejection(&mut self) -> Option<Millis> {
        if !self.connections.memory.full {
            return None;
        }
        self.context.metrics.memory_rejections += 1;
        Some(RETRY_AFTER + self.context.jitter.below(RETRY_AFTER))
    }
}
