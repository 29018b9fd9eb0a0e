//! What carries a session, and how one over Socket.IO begins.

use std::net::IpAddr;

use crate::state::table::Key;
use crate::wire::couchdb::Credentials;
use crate::wire::engine_io::{Sid, Version};

/// Bytes of a session's id that are random.
pub const TAG: usize = 12;

/// What carries a session.
#[derive(Debug)]
pub enum Transport {
    /// A WebSocket, on this connection.
    WebSocket(Key),
    /// Requests on any number of connections.
    Polling(Box<Polling>),
}

/// The requests of a session that polls.
#[derive(Debug)]
pub struct Polling {
    /// Where the client is, as CouchDB is told.
    pub client: IpAddr,
    /// The connection whose GET waits for something to tell.
    pub parked: Option<Key>,
    /// The connection whose POST is coming in.
    pub posting: Option<Key>,
    /// The WebSocket that is to take over.
    pub probing: Option<Key>,
    /// Whether it has probed: parked GETs are freed from then on.
    pub probed: bool,
    /// Whether it counts as a connection of its client's address.
    pub counts_at_address: bool,
}

impl Polling {
    /// The requests of a client at an address; there are none yet.
    pub fn new(client: IpAddr) -> Self {
        Self { client, parked: None, posting: None, probing: None, probed: false, counts_at_address: false }
    }
}

/// How a session begins.
#[derive(Debug)]
pub struct Opening {
    /// The version of Engine.IO.
    pub version: Version,
    /// The session's id.
    pub sid: Sid,
    /// What of the id is random.
    pub tag: [u8; TAG],
    /// What the handshake's query carried.
    pub credentials: Credentials,
    /// What carries the session.
    pub transport: Transport,
}
