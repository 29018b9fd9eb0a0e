//! Requests of the pool, from submission to answer.

use std::net::IpAddr;

use crate::state::network::network;
use crate::state::timers::Millis;
use crate::wire::secret::Secret;

/// The client that a request is for. The pool serves owners in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The server itself. A queue that has only this owner is served in the order of submission.
    Server,
    /// A network, see [`network()`]: for clients that have not logged in.
    Network(IpAddr),
    /// The checks whether sessions are still logged in. Together they are one owner: there is one of each session, and
    /// other requests are not to wait for all of them.
    SessionChecks,
}

impl Owner {
    /// Returns the owner of a request of a client at an address.
    pub fn at(address: IpAddr) -> Self {
        Self::Network(network(address))
    }
}

/// A request to be queued.
#[derive(Debug)]
pub struct Submission<P> {
    /// The client that it is for.
    pub owner: Owner,
    /// The request as it is written.
    pub request: Vec<u8>,
    /// What it is for.
    pub purpose: P,
    /// When the client began to wait for it. Deadlines count from here.
    pub since: Millis,
    /// Whether it may be sent again when a connection ends without an answer to it. CouchDB may have carried it out.
    pub repeatable: bool,
}

/// Why a request is not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Too many requests wait, in total or of this owner.
    Full,
    /// Its deadline is over.
    Late,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The request was never sent.
    NotSent,
    /// The request was sent. CouchDB may have carried it out, or may yet.
    Sent,
    /// The connection ended before the answer, and the request is not repeatable.
    Lost {
        /// Whether the connection had carried answers before. Such a connection most likely was closed while idle.
        used: bool,
    },
}

/// What the pool wants done. `usize` is the number of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum PoolAction<P> {
    /// Connect to CouchDB.
    Dial(usize),
    /// Write this to the connection.
    Send(usize, Vec<u8>),
    /// Give the connection up.
    HangUp(usize),
    /// A request is over.
    Done(P, Result<Answer, NoAnswer>),
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The `AuthSession` cookie that was set.
    pub auth_cookie: Option<Secret>,
    /// The `Date`, in seconds since 1970.
    pub date: Option<u64>,
    /// The body; empty when it is too long.
    pub body: Vec<u8>,
    /// Whether the body is longer than the pool takes.
    pub is_too_long: bool,
}
