//! Accepting clients.
//!
//! ```text
//! accept ──▶ all places taken? ──▶ evict an unauthenticated client; without one: 503, as text
//!              │ no
//!              ▼
//!            address full? ──▶ 429, as text       (behind a trusted proxy: by its first request)
//!              │ no
//!              ▼
//!            too many unauthenticated? ──▶ some are evicted at the end of the turn
//! ```

use std::io::Write as _;
use std::net::{IpAddr, Shutdown};

use mio::net::TcpStream;

use super::Connections;
use super::listeners::Port;
use super::peer::{Http, Protocol};
use crate::net::listener::Accepted;
use crate::net::stream::Stream;
use crate::server::context::Context;
use crate::server::ids::Handle;
use crate::state::metrics::CloseReason;
use crate::state::timers::{Deadline, Millis};
use crate::wire::http;

/// Most clients that are accepted at a port in one turn.
const ACCEPT_BATCH: usize = 256;
/// Most clients that are accepted in one turn while others are evicted for them: descriptors of
/// evicted clients are free only at the end of the turn.
const FULL_BATCH: usize = 32;
/// Pause of accepting after descriptors ran out, in milliseconds.
const ACCEPT_PAUSE: Millis = 500;

impl Connections {
    /// Returns how many clients to accept at a port in this turn.
    pub(crate) fn accept_batch(&self, context: &Context) -> usize {
        let is_full = context.limits.connections.is_some_and(|limit| self.clients + ACCEPT_BATCH > limit);
        if is_full { FULL_BATCH } else { ACCEPT_BATCH }
    }

    /// Accepts the next client at a port. Pauses accepting when descriptors have run out.
    pub(crate) fn accept_next(
        &mut self,
        port: Port,
        context: &mut Context,
        now: Millis,
    ) -> Option<(TcpStream, IpAddr)> {
        if self.accept_from.is_some() {
            return None;
        }
        match self.listeners.accept(port) {
            Accepted::Client(socket, address) => Some((socket, address.ip())),
            Accepted::Nobody => None,
            Accepted::Exhausted(error) => {
                context.metrics.accept_pauses += 1;
                let (level, more) = self.accept_pause_log.level(log::Level::Warn, now);
                log::log!(level, "No more clients can be accepted for the moment: {error}{more}");
                self.accept_from = Some(now + ACCEPT_PAUSE);
                None
            }
        }
    }

    /// Marks whether clients may be left to accept, which no further event announces.
    pub(crate) fn set_accept_pending(&mut self, is_pending: bool) {
        self.accept_pending = is_pending;
    }

    pub(crate) fn is_accept_pending(&self) -> bool {
        self.accept_pending
    }

    /// Ends the pause of accepting if its time has come. Returns whether it did.
    pub(crate) fn resume_accept(&mut self, now: Millis) -> bool {
        let is_due = self.accept_from.is_some_and(|at| at <= now);
        if is_due {
            self.accept_from = None;
        }
        is_due
    }

    /// Closes the ports for clients, for good.
    pub(crate) fn stop_accepting(&mut self) {
        self.listeners.close();
        self.accept_pending = false;
        self.accept_from = None;
    }

    /// Reads the certificate again. Returns false when there is none.
    pub(crate) fn reload_certificate(&mut self) -> bool {
        self.listeners.reload()
    }

    /// Returns whether there are as many clients as there may be.
    pub(crate) fn is_full(&self, context: &Context) -> bool {
        context.limits.connections.is_some_and(|limit| self.clients >= limit)
    }

    /// Adds an accepted client, unless its address has too many connections.
    pub(crate) fn add_client(
        &mut self,
        socket: TcpStream,
        port: Port,
        address: IpAddr,
        context: &mut Context,
        now: Millis,
    ) {
        let Some(quota) = self.take_quota(address, context) else {
            return self.reject(socket, port, address, CloseReason::TooManyOfAddress, context, now);
        };
        // Notifications are small and must not wait for the acknowledgement of the one before.
        let _ = socket.set_nodelay(true);
        let stream = match (port, self.listeners.identity()) {
            (Port::Tls, Some(identity)) => {
                Stream::tls_server(socket, identity.config().clone()).map(|stream| (stream, Protocol::Handshake))
            }
            _ => Ok((Stream::plain(socket), Protocol::Http(Http::Head))),
        };
        // The time for the first request includes the handshake.
        let deadline = Deadline::at(now + context.limits.request_within);
        match stream.and_then(|(stream, protocol)| self.add(stream, protocol, address, deadline, context, now)) {
            Ok(key) => {
                self.clients += 1;
                let proxied = self.trusted_proxies.contains(address);
                if let Some(peer) = self.peers.get_mut(key) {
                    peer.quota = quota;
                    peer.proxied = proxied;
                }
                self.changed.push(Handle::Connection(key));
            }
            Err(error) => {
                self.return_quota(quota, address);
                let (level, more) = self.registration_log.level(log::Level::Warn, now);
                log::log!(level, "A client could not be registered: {error}{more}");
            }
        }
    }

    /// Closes a connection that was just accepted. Its response may get lost with the input that is
    /// not read: nothing is kept for it.
    pub(crate) fn reject(
        &mut self,
        mut socket: TcpStream,
        port: Port,
        address: IpAddr,
        reason: CloseReason,
        context: &mut Context,
        now: Millis,
    ) {
        let status = if reason == CloseReason::TooManyOfAddress { 429 } else { 503 };
        context.metrics.count_close(reason);
        let (level, more) = self.rejection_log.level(log::Level::Warn, now);
        log::log!(level, "A client at {address} is rejected: {}{more}.", reason.text());
        if port == Port::Plain {
            let fields = [("Content-Type", "text/plain; charset=utf-8"), ("Retry-After", "5")];
            let body = format!("{}\n", reason.text());
            let mut out = Vec::new();
            let answer =
                http::Answer { status, fields: &fields, body: body.as_bytes(), head_only: false, keep_alive: false };
            http::write_response(&mut out, &answer);
            let _ = socket.write(&out);
        }
        let _ = socket.shutdown(Shutdown::Both);
    }
}
