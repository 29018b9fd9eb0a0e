//! Phases of a session.

use super::action::Reply;
use crate::state::metrics::CloseReason;
use crate::state::timers::Millis;
use crate::wire::couchdb::{Credentials, Identity, LoginError};

/// Phase of a session.
#[derive(Debug)]
pub(super) enum Phase {
    /// `howler.v1`: the login has to begin before this time.
    Anonymous(Millis),
    /// Socket.IO: CONNECT of the client has to come.
    AwaitingConnect(Box<PendingConnect>),
    /// CouchDB checks the credentials.
    LoggingIn(Box<Reply>),
    /// Socket.IO: CouchDB's reply waits until the client has handled CONNECT.
    AnswerPending(Box<Result<Identity, LoginError>>),
    /// Logged in.
    Active,
    /// Socket.IO: the refusal is sent; DISCONNECT follows.
    Refused,
    /// The session is over. Socket.IO: one side has sent DISCONNECT, and the client may close the
    /// transport by itself.
    Ended(CloseReason),
}

/// A CONNECT that has to come.
#[derive(Debug)]
pub(super) struct PendingConnect {
    pub(super) until: Millis,
    /// Reason for the end of the session if it does not come.
    pub(super) timeout_reason: CloseReason,
    /// Credentials if CONNECT carries none.
    pub(super) credentials: Credentials,
}
