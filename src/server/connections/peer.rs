//! A connection and its state.

use std::net::IpAddr;

use super::exchange::{Parked, Post};
use crate::net::connection::Connection;
use crate::server::ids::UpstreamId;
use crate::state::table::Key;
use crate::state::timers::{Alarm, Deadline};
use crate::wire::websocket::Decoder;

/// A connection and what it is used for.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) connection: Connection,
    pub(crate) protocol: Protocol,
    pub(crate) address: IpAddr,
    pub(crate) seat: Seat,
    /// When to give it up; never while its session, or the feed or the pool, sees to that.
    pub(crate) deadline: Deadline,
    pub(crate) alarm: Alarm,
    /// Whether there may be input that was not read: no event will tell of it.
    pub(crate) unread: bool,
    /// Whether it brought a request of somebody who is logged in; of CouchDB, whether it brought anything.
    pub(crate) known: bool,
    /// Whether it is to be read in the next turn.
    pub(crate) postponed: bool,
    /// Whether a request came before the one in front of it was answered, and was not looked at yet.
    pub(crate) early: bool,
    /// Whether it is among the unauthenticated clients.
    pub(crate) listed: bool,
    /// Whether a trusted proxy opened it.
    pub(crate) proxied: bool,
}

/// How a connection counts among those that there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    /// Not at all: it leads to CouchDB, or is over.
    None,
    /// Not at all: an operator came in by the port for those.
    Operator,
    /// As a client, and not at its address.
    Taken,
    /// As a client, and as one of its address.
    OfAddress,
}

/// What a connection is used for.
#[derive(Debug)]
pub(crate) enum Protocol {
    /// A client's TLS is being set up.
    Handshake,
    /// A client's requests.
    Http(Http),
    /// It carries a session.
    WebSocket(Key, Decoder),
    /// It is to take over a session that polls.
    Probing(Key, Decoder),
    /// The last bytes are on their way out. What comes in is ignored until the peer closes; `received` counts it.
    Lingering { shut_down: bool, received: usize },
    /// It leads to CouchDB, and stands or not yet.
    Upstream { owner: UpstreamId, connected: bool },
    /// It is over.
    Closed,
}

/// Where a connection stands with its requests.
#[derive(Debug)]
pub(crate) enum Http {
    /// A head is awaited.
    Head,
    /// The body of a POST comes in.
    Body(Box<Post>),
    /// The answer to a GET waits for something to tell.
    Parked(Box<Parked>),
}
