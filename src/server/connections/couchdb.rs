//! Connections to CouchDB: connecting, TLS, reading and sending.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mio::net::TcpStream;

use super::peer::Protocol;
use super::{Connections, READ_BUFFER};
use crate::net::connection::Flushed;
use crate::net::keep_alive;
use crate::net::stream::{Handshake, Stream};
use crate::net::tls;
use crate::server::context::Context;
use crate::server::ids::UpstreamId;
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};

/// Time for one address of CouchDB to accept a connection, and again for its TLS handshake, in
/// milliseconds.
const CONNECT_WITHIN: Millis = 3_000;

/// State of a connection after an event while it was being established.
#[derive(Debug)]
pub(crate) enum ConnectProgress {
    /// Still being established.
    Pending,
    Failed(String),
    /// Established, with the remote address and both ends of the socket.
    Established {
        id: UpstreamId,
        address: IpAddr,
        ends: Option<(IpAddr, IpAddr)>,
    },
}

/// Result of reading from CouchDB.
#[derive(Debug)]
pub(crate) enum UpstreamRead {
    /// Bytes, this many, in the scratch buffer; `is_last` when the socket has no more for now.
    Bytes { id: UpstreamId, length: usize, is_last: bool },
    /// Nothing for now.
    Nothing,
    /// The connection was closed, or failed.
    Lost(Option<String>),
}

impl Connections {
    /// Starts a connection to CouchDB; `tls` is the configuration and the host's name where its URL
    /// says `https`.
    ///
    /// # Errors
    /// When the connection cannot be started.
    pub(crate) fn connect_upstream(
        &mut self,
        id: UpstreamId,
        address: SocketAddr,
        tls: Option<(&Arc<rustls::ClientConfig>, &str)>,
        context: &mut Context,
        now: Millis,
    ) -> io::Result<Key> {
        let socket = TcpStream::connect(address)?;
        let _ = socket.set_nodelay(true);
        // Without keep-alive only heartbeats and deadlines reveal a dead connection.
        let _ = keep_alive::watch(&socket);
        let stream = match tls {
            Some((config, host)) => Stream::tls_client(socket, Arc::clone(config), tls::server_name(host)?)?,
            None => Stream::plain(socket),
        };
        let protocol = Protocol::Upstream { id, connected: false, has_answered: false };
        self.add(stream, protocol, address.ip(), Deadline::at(now + CONNECT_WITHIN), context, now)
    }

    /// Returns whether a connection leads to CouchDB.
    pub(crate) fn is_upstream(&self, key: Key) -> bool {
        self.upstream(key).is_some()
    }

    /// Returns the use of a connection to CouchDB, and whether it is established.
    pub(crate) fn upstream(&self, key: Key) -> Option<(UpstreamId, bool)> {
        match self.peers.get(key)?.protocol {
            Protocol::Upstream { id, connected, .. } => Some((id, connected)),
            _ => None,
        }
    }

    /// Returns the remote address of a connection to CouchDB, and whether CouchDB sent anything on
    /// it.
    pub(crate) fn upstream_address(&self, key: Key) -> Option<(IpAddr, bool)> {
        let peer = self.peers.get(key)?;
        match peer.protocol {
            Protocol::Upstream { has_answered, .. } => Some((peer.address, has_answered)),
            _ => None,
        }
    }

    /// Handles an event of a connection that was not established. Over TLS it is established after
    /// the handshake, so that an address whose certificate is rejected counts as failed.
    pub(crate) fn handle_connecting(&mut self, key: Key, context: &mut Context, now: Millis) -> ConnectProgress {
        let Some(peer) = self.peers.get_mut(key) else { return ConnectProgress::Pending };
        let Protocol::Upstream { id, .. } = peer.protocol else { return ConnectProgress::Pending };
        let socket = peer.connection.stream().socket();
        let error = match socket.take_error() {
            Ok(None) => match socket.peer_addr() {
                Ok(_) => None,
                // Another event will follow.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return ConnectProgress::Pending,
                Err(error) => Some(error),
            },
            Ok(error) => error,
            Err(error) => Some(error),
        };
        let reached = if let Some(error) = error {
            Err(error)
        } else {
            if peer.connection.is_blocked() {
                peer.connection.handle_writable();
                peer.deadline = Deadline::at(now + CONNECT_WITHIN);
                self.arm(key, context, now);
            }
            self.continue_handshake_upstream(key)
        };
        match reached {
            Ok(true) => {}
            Ok(false) => {
                return self
                    .update_interest(key)
                    .map_or_else(|error| ConnectProgress::Failed(error.to_string()), |()| ConnectProgress::Pending);
            }
            Err(error) => return ConnectProgress::Failed(error.to_string()),
        }
        let Some(peer) = self.peers.get_mut(key) else { return ConnectProgress::Pending };
        peer.protocol = Protocol::Upstream { id, connected: true, has_answered: false };
        peer.deadline = Deadline::NEVER;
        let socket = peer.connection.stream().socket();
        let ends = match (socket.local_addr(), socket.peer_addr()) {
            (Ok(local), Ok(remote)) => Some((local.ip(), remote.ip())),
            _ => None,
        };
        ConnectProgress::Established { id, address: peer.address, ends }
    }

    /// Continues the TLS handshake, if there is one. Returns whether it is complete.
    fn continue_handshake_upstream(&mut self, key: Key) -> io::Result<bool> {
        let Some(peer) = self.peers.get_mut(key) else { return Ok(false) };
        // The client sends the first message.
        peer.connection.flush()?;
        Ok(peer.connection.handshake()? == Handshake::Done)
    }

    /// Sends a request to CouchDB.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) fn send_upstream(&mut self, key: Key, request: &[u8]) -> io::Result<()> {
        let Some(peer) = self.peers.get_mut(key) else { return Ok(()) };
        match peer.connection.write(request)? {
            Flushed::All | Flushed::Blocked => self.update_interest(key),
        }
    }

    /// Reads bytes of CouchDB into the scratch buffer. `to_end` when the socket may also hold an
    /// end that no further event announces.
    pub(crate) fn read_upstream(&mut self, key: Key, to_end: bool) -> UpstreamRead {
        let Some(peer) = self.peers.get_mut(key) else { return UpstreamRead::Nothing };
        let Protocol::Upstream { id, has_answered, .. } = &mut peer.protocol else {
            return UpstreamRead::Nothing;
        };
        let id = *id;
        let stream = peer.connection.stream();
        let short_is_last = stream.short_read_is_last() && !to_end;
        match stream.read(&mut self.scratch) {
            Ok(0) => UpstreamRead::Lost(None),
            Ok(length) => {
                *has_answered = true;
                UpstreamRead::Bytes { id, length, is_last: length < READ_BUFFER && short_is_last }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Reading may have made TLS write.
                let flushed = peer.connection.flush().and_then(|_| self.update_interest(key));
                flushed.map_or_else(|error| UpstreamRead::Lost(Some(error.to_string())), |()| UpstreamRead::Nothing)
            }
            Err(error) => UpstreamRead::Lost(Some(error.to_string())),
        }
    }

    /// Takes the scratch buffer out while its bytes are handled.
    pub(crate) fn take_scratch(&mut self) -> Box<[u8]> {
        std::mem::take(&mut self.scratch)
    }

    pub(crate) fn put_scratch(&mut self, scratch: Box<[u8]>) {
        self.scratch = scratch;
    }

    /// Has a connection read on in the next turn.
    pub(crate) fn mark_unfinished(&mut self, key: Key) {
        self.unfinished.push(key);
    }
}
