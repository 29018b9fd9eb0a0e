//! Inputs of a session besides the message itself, and the actions that it returns.

use super::rules::Rules;
use crate::state::metrics::CloseReason;
use crate::state::timers::Millis;
use crate::wire::couchdb::Credentials;
use crate::wire::howler_v1::RequestId;
use crate::wire::name_list::NameList;

/// Context of an input.
#[derive(Debug)]
pub struct SessionContext<'a> {
    /// Current time.
    pub now: Millis,
    /// Limits of the session.
    pub rules: &'a Rules,
    /// Actions for the server, in order.
    pub actions: &'a mut Vec<Action>,
}

/// Request of a session to the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask CouchDB to check these credentials. The reply goes to [`super::Session::handle_login`].
    LogIn(Credentials),
    /// Subscribe to names, each with the position that the client knows, and with the epoch of
    /// these positions if the client gave one. The reply goes to
    /// [`super::Session::answer_subscribed`] or [`super::Session::answer_error`].
    Subscribe(Reply, NameList, Option<Box<str>>),
    /// Unsubscribe from names. The reply goes to [`super::Session::answer_ok`].
    Unsubscribe(Reply, NameList),
    /// Pass this deferred message to [`super::Session::handle_message`] again, after all actions
    /// before this one.
    Resume(Box<str>),
    /// End all subscriptions.
    Leave,
    /// Confirm CONNECT with a new id: [`super::Session::confirm_connect`].
    Connect,
    /// Send a WebSocket ping.
    Ping,
    /// Ask CouchDB whether the user is still logged in. The reply goes to
    /// [`super::Session::handle_check`].
    Check(Credentials),
    /// The user's roles have changed: decide again what the user may read.
    Reconsider,
    /// Write the outgoing messages, then close the transport.
    Close(CloseReason),
}

/// Form of the reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// No reply: a Socket.IO event without an id.
    Silent,
    /// A Socket.IO acknowledgement.
    Ack(u64),
    /// A `howler.v1` reply.
    Json(RequestId),
}
