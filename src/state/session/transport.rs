//! Transports of sessions.

use std::net::IpAddr;

use crate::state::table::Key;
use crate::wire::couchdb::Credentials;
use crate::wire::engine_io::{Sid, Version};

/// Length of the random part of a session's id, in bytes.
pub const TAG: usize = 12;

/// Connections that carry a session.
#[derive(Debug)]
pub enum Transport {
    /// A WebSocket, on this connection.
    WebSocket(Key),
    /// Requests on any number of connections.
    Polling(Box<Polling>),
}

/// Requests of a polling session.
#[derive(Debug)]
pub struct Polling {
    /// Address of the client, as CouchDB receives it.
    pub client: IpAddr,
    /// Connection whose GET waits for messages.
    pub parked: Option<Key>,
    /// Connection whose POST is being received.
    pub posting: Option<Key>,
    /// WebSocket that is to take over.
    pub probing: Option<Key>,
    /// Whether that WebSocket has probed: from then on a parked GET is answered.
    pub probed: bool,
    /// Whether the session counts as a connection of the client's address.
    pub counts_at_address: bool,
}

impl Polling {
    /// Creates a transport without requests for a client at an address.
    pub fn new(client: IpAddr) -> Self {
        Self { client, parked: None, posting: None, probing: None, probed: false, counts_at_address: false }
    }
}

/// Parameters of a new Socket.IO session.
#[derive(Debug)]
pub struct Opening {
    /// Version of Engine.IO.
    pub version: Version,
    /// Id of the session.
    pub sid: Sid,
    /// Random part of the id.
    pub tag: [u8; TAG],
    /// Credentials in the handshake.
    pub credentials: Credentials,
    /// Transport of the handshake.
    pub transport: Transport,
}
