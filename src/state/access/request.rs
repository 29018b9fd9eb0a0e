//! `subscribe` requests that wait for verdicts.

use std::collections::HashSet;

use crate::state::positions::RequestedDatabases;
use crate::state::session::Reply;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;

/// A `subscribe` that waits for decisions.
#[derive(Debug)]
pub struct Undecided {
    /// Session that subscribes.
    pub session: Key,
    /// Form of the reply.
    pub reply: Reply,
    /// Databases of the request.
    pub names: RequestedDatabases,
    /// Epoch of the positions of these databases.
    pub epoch: Option<Box<str>>,
    /// Group of the list that it is a part of.
    pub group: Option<Key>,
    /// Databases whose verdict it waits for.
    pub(super) awaits: HashSet<DatabaseId>,
    pub(super) stage: Stage,
}

/// Stage of a `subscribe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Some of its databases are undecided.
    Waiting,
    /// All are decided.
    Ready,
    /// It was cancelled; its holds have to be released.
    Cancelled,
}

/// Waiting requests of a session.
#[derive(Debug, Default)]
pub(super) struct Share {
    pub(super) user: Box<str>,
    pub(super) requests: Vec<Key>,
    /// Number of databases that its requests wait for.
    pub(super) awaits: usize,
}
