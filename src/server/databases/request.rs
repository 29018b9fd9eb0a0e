//! A `subscribe` request on its way through access and positions.

use crate::state::positions::RequestedDatabases;
use crate::state::session::Reply;
use crate::state::table::Key;

/// A `subscribe`, or a part of a long one.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) session: Key,
    pub(crate) reply: Reply,
    /// The databases, each once and held once, with the positions that the client gave.
    pub(crate) names: RequestedDatabases,
    /// The epoch of these positions.
    pub(crate) epoch: Option<Box<str>>,
    /// The list that this is a part of.
    pub(crate) group: Option<Key>,
}
