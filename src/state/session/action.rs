//! What a session is given, and what it wants done.

use super::rules::Rules;
use crate::state::metrics::CloseReason;
use crate::state::timers::Millis;
use crate::wire::couchdb::Credentials;
use crate::wire::howler_v1::RequestId;
use crate::wire::names::NameList;

/// What every input comes with.
#[derive(Debug)]
pub struct Turn<'a> {
    /// The time.
    pub now: Millis,
    /// The limits.
    pub rules: &'a Rules,
    /// What is to be done, in order.
    pub actions: &'a mut Vec<Action>,
}

/// What a session wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask CouchDB who this is; the answer goes to [`super::Session::handle_log_in`].
    LogIn(Credentials),
    /// Subscribe to names, each with the position that the client knows, and the epoch that these are of where it
    /// says so; the answer goes to [`super::Session::answer_subscribed`] or [`super::Session::answer_error`].
    Subscribe(Reply, NameList, Option<Box<str>>),
    /// Unsubscribe from names; the answer goes to [`super::Session::answer_ok`].
    Unsubscribe(Reply, NameList),
    /// Hand this message, which was put aside, to [`super::Session::handle_message`] again, once all actions
    /// before this one are carried out.
    Resume(Box<str>),
    /// End all subscriptions.
    Leave,
    /// Confirm CONNECT with an id of its own: [`super::Session::confirm_connect`].
    Connect,
    /// Ask the client whether it is there: a WebSocket ping.
    Ping,
    /// Ask CouchDB whether the user is still logged in; the answer goes to [`super::Session::handle_check`].
    Check(Credentials),
    /// The user's roles are others: what it may read is to be decided anew.
    Reconsider,
    /// Write what is outgoing, then close the transport.
    Close(CloseReason),
}

/// How a request wants to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Not at all: a Socket.IO event without an id.
    Silent,
    /// By a Socket.IO acknowledgement.
    Ack(u64),
    /// By a `howler.v1` answer.
    Json(RequestId),
}
