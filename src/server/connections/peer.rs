//! A connection and its state.

use std::net::IpAddr;

use super::exchange::{Exchange, Post};
use crate::net::connection::Connection;
use crate::server::ids::UpstreamId;
use crate::state::table::Key;
use crate::state::timers::{Alarm, Deadline};
use crate::wire::websocket::Decoder;

/// A connection: its socket, the protocol that it speaks, and how it counts.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(super) connection: Connection,
    pub(super) protocol: Protocol,
    /// Address of the client, as trusted proxies forward it; of CouchDB on an upstream connection.
    pub(super) address: IpAddr,
    pub(super) quota: Quota,
    /// Time at which the connection is given up; never where its session, the feed or the pool has
    /// the deadline.
    pub(super) deadline: Deadline,
    pub(super) alarm: Alarm,
    /// Whether input may be left in the socket: no further event announces it.
    pub(super) unread: bool,
    /// Whether the last request on it belonged to a logged-in session.
    pub(super) is_authenticated: bool,
    /// Whether it is in the list of postponed connections.
    pub(super) postponed: bool,
    /// Whether the inbox holds a request that came before the response to the one in front of it.
    pub(super) pipelined: bool,
    /// Whether it is among the unauthenticated clients.
    pub(super) listed: bool,
    /// Whether a trusted proxy opened it.
    pub(super) proxied: bool,
}

impl Peer {
    pub(super) fn new(connection: Connection, protocol: Protocol, address: IpAddr, deadline: Deadline) -> Self {
        Self {
            connection,
            protocol,
            address,
            quota: Quota::None,
            deadline,
            alarm: Alarm::default(),
            unread: false,
            is_authenticated: false,
            postponed: false,
            pipelined: false,
            listed: false,
            proxied: false,
        }
    }
}

/// How a connection or a polling session counts toward the limits of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quota {
    /// Not at all: an upstream connection, or one that is closed.
    None,
    /// Not at all: a connection on the admin port.
    Operator,
    /// Toward the total only.
    Total,
    /// Toward the total and toward its address.
    Address,
}

/// The protocol that a connection speaks.
#[derive(Debug)]
pub(crate) enum Protocol {
    /// The TLS handshake of a client.
    Handshake,
    /// HTTP requests of a client.
    Http(Http),
    /// A WebSocket that carries a session.
    WebSocket(Key, Decoder),
    /// A WebSocket that is about to take over a polling session.
    Probing(Key, Decoder),
    /// The last bytes leave. Input is ignored until the peer closes; `received` counts it.
    Lingering { shut_down: bool, received: usize },
    /// A connection to CouchDB: whether it is established, and whether CouchDB sent anything on it.
    Upstream { id: UpstreamId, connected: bool, has_answered: bool },
    /// Closed; the slot is freed at the end of the turn.
    Closed,
}

/// State of a connection between and within HTTP requests.
#[derive(Debug)]
pub(crate) enum Http {
    /// Waits for the head of a request.
    Head,
    /// Receives the body of a POST.
    Body(Box<Post>),
    /// Holds a GET until its session has something to send.
    Parked(Key, Box<Exchange>),
}
