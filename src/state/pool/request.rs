//! Requests of the pool, from submission to reply.

use std::net::IpAddr;

use crate::state::network::network;
use crate::state::timers::Millis;
use crate::wire::secret::Secret;

/// Client on whose behalf a request is made. The pool serves owners in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The server itself. A queue that has only this owner is served in the order of submission.
    Server,
    /// A network (see [`network()`]), for clients that have not logged in.
    Network(IpAddr),
    /// The checks whether sessions are still logged in. They are one owner, so that other requests
    /// do not wait for the check of every session.
    SessionChecks,
}

impl Owner {
    /// Returns the owner for a client at an address.
    pub fn at(address: IpAddr) -> Self {
        Self::Network(network(address))
    }
}

/// A request to queue.
#[derive(Debug)]
pub struct Submission<P> {
    /// Client on whose behalf the request is made.
    pub owner: Owner,
    /// Bytes of the request.
    pub request: Vec<u8>,
    /// Purpose of the request, returned with its reply.
    pub purpose: P,
    /// Time at which the client began to wait. Deadlines count from here.
    pub since: Millis,
    /// Whether the request may be sent again after a connection ended without a reply. CouchDB may
    /// have executed it.
    pub repeatable: bool,
}

/// Reason for which the pool rejects a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Too many requests wait, in total or of this owner.
    Full,
    /// The deadline has passed.
    Late,
}

/// Reason for a missing reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The request was never sent.
    NotSent,
    /// The request was sent. CouchDB may have executed it, or may do so later.
    Sent,
    /// The connection ended before the reply, and the request is not repeatable.
    Lost {
        /// Whether the connection had carried replies before. Such a connection was most likely
        /// closed while idle.
        used: bool,
    },
}

/// Request of the pool to its owner. The `usize` is the number of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum PoolAction<P> {
    /// Connect to CouchDB.
    Dial(usize),
    /// Write these bytes to the connection.
    Send(usize, Vec<u8>),
    /// Close the connection.
    Close(usize),
    /// A request has ended.
    Done(P, Result<Answer, NoAnswer>),
}

/// A complete reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// `AuthSession` cookie, if CouchDB set one.
    pub auth_cookie: Option<Secret>,
    /// `Date`, in seconds since 1970.
    pub date: Option<u64>,
    /// Body; empty if it is too long.
    pub body: Vec<u8>,
    /// Whether the body is longer than the pool's limit.
    pub is_too_long: bool,
}
