//! A connection of the pool, and the request that it carries.

use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::http::Response;
use crate::wire::http::ResponseReader;

#[derive(Debug)]
pub(super) enum Connection {
    Closed,
    Dialing,
    /// Open, without a request.
    Idle {
        /// Whether it has carried a reply.
        used: bool,
        /// Start of the idle time.
        since: Millis,
        /// Whether no request was waiting after its last reply. Otherwise the connection has just
        /// proved that it works.
        was_idle: bool,
    },
    Busy(Box<Exchange>),
}

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) ticket: Key,
    pub(super) sent: Millis,
    /// Whether the connection has carried a reply before.
    pub(super) used: bool,
    /// Time at which the connection counts as dead unless the reply has begun; None if it is known
    /// to work.
    pub(super) suspect_at: Option<Millis>,
    /// Whether the connection is closed after the reply.
    pub(super) is_last: bool,
    pub(super) reader: ResponseReader,
    pub(super) head: Option<Response>,
    pub(super) body: Vec<u8>,
}

impl Exchange {
    /// Returns when the connection counts as dead.
    pub(super) fn suspect_time(&self) -> Millis {
        self.suspect_at.filter(|_| self.reader.is_untouched() && self.head.is_none()).unwrap_or(Millis::MAX)
    }
}
