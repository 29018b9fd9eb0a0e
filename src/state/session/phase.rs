//! The phases of a session.

use super::action::Reply;
use crate::state::metrics::CloseReason;
use crate::state::timers::Millis;
use crate::wire::couchdb::{Credentials, Identity, LogInError};

/// Where a session stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// `howler.v1`: nobody has logged in; until then.
    Anonymous(Millis),
    /// Socket.IO: the client's CONNECT is awaited.
    Awaiting(Box<Awaited>),
    /// CouchDB is asked.
    LoggingIn(Box<Reply>),
    /// Socket.IO: CouchDB's answer waits until CONNECT is old enough.
    Answering(Box<Result<Identity, LogInError>>),
    /// Logged in.
    Active,
    /// Socket.IO: the refusal was told; DISCONNECT is to follow.
    Refused,
    /// The session is over. Socket.IO: DISCONNECT was said by either side, and the client may close
    /// the transport by itself.
    Ended(CloseReason),
}

/// A CONNECT that is due.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) until: Millis,
    /// Why the session ends when it does not come.
    pub(super) otherwise: CloseReason,
    /// Who logs in, when CONNECT does not say.
    pub(super) credentials: Credentials,
}
