//! Tables that every owner uses, passed in with each event.

use super::ids::Handle;
use crate::state::jitter::Jitter;
use crate::state::limits::Limits;
use crate::state::metrics::Metrics;
use crate::state::timers::Timers;

/// Tables that belong to no owner.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) metrics: Metrics,
    /// Deadlines of connections and sessions.
    pub(super) timers: Timers<Handle>,
    pub(super) jitter: Jitter,
    pub(super) limits: Limits,
}
