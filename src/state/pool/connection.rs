//! A connection of the pool, and the request that it carries.

use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::http::Response;
use crate::wire::response::ResponseReader;

#[derive(Debug)]
pub(super) enum Connection {
    Closed,
    Dialing,
    /// It carries no request.
    Idle {
        /// Whether it has carried an answer.
        used: bool,
        /// Since when.
        since: Millis,
        /// Whether no request was there for it when its last one was answered. Else it has just proved itself.
        rested: bool,
    },
    Busy(Box<Exchange>),
}

/// A request that was sent.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) ticket: Key,
    pub(super) sent: Millis,
    /// Whether the connection had carried an answer before.
    pub(super) used: bool,
    /// When the connection is taken for dead unless the answer begins; None for one that is known to live.
    pub(super) suspect_at: Option<Millis>,
    /// Whether the connection is closed behind the answer.
    pub(super) is_last: bool,
    pub(super) reader: ResponseReader,
    pub(super) head: Option<Response>,
    pub(super) body: Vec<u8>,
}

impl Exchange {
    /// When the connection is taken for dead.
    pub(super) fn suspicion(&self) -> Millis {
        self.suspect_at.filter(|_| self.reader.is_untouched() && self.head.is_none()).unwrap_or(Millis::MAX)
    }
}
