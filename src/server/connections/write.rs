//! Writing to connections, waiting for slow readers, and closing in order.

use std::io;

use super::Connections;
use super::peer::{Peer, Protocol};
use crate::net::connection::{Connection, Flushed};
use crate::server::context::Context;
use crate::server::ids::{Handle, token_of};
use crate::state::metrics::CloseReason;
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};

/// Time for a peer to take the last bytes and to close, in milliseconds.
const LINGER: Millis = 3_000;

impl Connections {
    /// Returns the connection of a WebSocket that takes bytes; None while it is blocked.
    pub(crate) fn writable_websocket(&mut self, key: Key) -> Option<&mut Connection> {
        let peer = self.peers.get_mut(key)?;
        let takes = matches!(peer.protocol, Protocol::WebSocket(..)) && !peer.connection.is_blocked();
        takes.then_some(&mut peer.connection)
    }

    /// Takes note that everything was written to a WebSocket: input that was held back is read
    /// next.
    pub(crate) fn handle_written(&mut self, key: Key) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if std::mem::take(&mut peer.unread) {
            self.unfinished.push(key);
        }
        if peer.listed {
            self.changed.push(Handle::Connection(key));
        }
    }

    /// Has bytes added to those that leave on a connection.
    pub(crate) fn queue(&mut self, key: Key, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(peer) = self.peers.get_mut(key) {
            write(peer.connection.queue());
        }
    }

    /// Writes what is queued on a connection.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) fn flush(&mut self, key: Key) -> io::Result<()> {
        let Some(peer) = self.peers.get_mut(key) else { return Ok(()) };
        match peer.connection.flush()? {
            Flushed::All => Ok(()),
            Flushed::Blocked => self.update_interest(key),
        }
    }

    /// Writes on after the socket became writable. Returns the session that may have more to send.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) fn write_more(&mut self, key: Key, context: &mut Context, now: Millis) -> io::Result<Option<Key>> {
        let Some(peer) = self.peers.get_mut(key) else { return Ok(None) };
        peer.connection.handle_writable();
        if matches!(peer.protocol, Protocol::WebSocket(..)) {
            // The client has taken something.
            peer.deadline = Deadline::NEVER;
        }
        self.changed.push(Handle::Connection(key));
        if peer.connection.flush()? == Flushed::Blocked {
            self.wait_for_reader(key, context, now)?;
            return Ok(None);
        }
        if std::mem::take(&mut peer.unread) {
            self.unfinished.push(key);
        }
        let mut session = None;
        match &peer.protocol {
            Protocol::WebSocket(carried, _) => session = Some(*carried),
            Protocol::Lingering { .. } => self.shut_down_write(key, context, now),
            _ => {}
        }
        self.update_interest(key)?;
        Ok(session)
    }

    /// Gives a client that does not take what is written a deadline, which is lifted whenever it
    /// takes some.
    ///
    /// # Errors
    /// When the connection is lost.
    pub(crate) fn wait_for_reader(&mut self, key: Key, context: &mut Context, now: Millis) -> io::Result<()> {
        if let Some(peer) = self.peers.get_mut(key)
            && matches!(peer.protocol, Protocol::WebSocket(..))
            && peer.deadline.is_never()
        {
            peer.deadline = Deadline::at(now + context.limits.slow);
            self.arm(key, context, now);
        }
        self.update_interest(key)
    }

    /// Registers the events of a connection that matter now with the poll.
    ///
    /// # Errors
    /// When the poll rejects the socket.
    pub(crate) fn update_interest(&mut self, key: Key) -> io::Result<()> {
        let Some(peer) = self.peers.get_mut(key) else { return Ok(()) };
        peer.connection.update_interest(&self.registry, token_of(key))
    }

    /// Updates the interest in a connection that carries no session; closes it if that fails.
    pub(super) fn watch(&mut self, key: Key, context: &mut Context) {
        if self.update_interest(key).is_err() {
            self.close(key, CloseReason::ClientVanished, context);
        }
    }

    /// Has the queued bytes leave, then shuts the sending side down, then waits for the peer to
    /// close. Closing at once could destroy bytes on their way.
    pub(crate) fn linger(&mut self, key: Key, context: &mut Context, now: Millis) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        peer.protocol = Protocol::Lingering { shut_down: false, received: 0 };
        peer.deadline = Deadline::at(now + LINGER);
        peer.connection.take_inbox();
        self.changed.push(Handle::Connection(key));
        match peer.connection.flush() {
            Ok(Flushed::All) => self.shut_down_write(key, context, now),
            Ok(Flushed::Blocked) => self.watch(key, context),
            Err(_) => {
                self.close(key, CloseReason::ClientVanished, context);
                return;
            }
        }
        self.arm(key, context, now);
        // Input that came before the peer noticed must be read, or the close becomes a reset.
        self.unfinished.push(key);
    }

    fn shut_down_write(&mut self, key: Key, context: &mut Context, now: Millis) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if let Protocol::Lingering { shut_down, .. } = &mut peer.protocol
            && !std::mem::replace(shut_down, true)
        {
            peer.connection.stream().shut_down_write();
        }
        self.arm(key, context, now);
    }

    /// Confirms that the client closes the connection, where its protocol wants that.
    pub(super) fn confirm_end(peer: &mut Peer) {
        if peer.connection.stream().is_tls() {
            // Without a reply a TLS client cannot distinguish the end from a cut.
            peer.connection.stream().shut_down_write();
        }
    }
}
