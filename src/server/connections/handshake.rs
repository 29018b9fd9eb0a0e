//! TLS handshakes of clients, and clients that speak TLS to the plain port or plain HTTP to the TLS
//! port.

use super::Connections;
use super::peer::{Http, Protocol};
use crate::net::stream::Handshake;
use crate::server::context::Context;
use crate::state::metrics::CloseReason;
use crate::state::table::Key;
use crate::state::timers::Millis;

const PLAIN_ONLY: &str = "This port speaks plain HTTP and WebSockets, not TLS: use http:// and ws://";
const TLS_ONLY: &str = "This port speaks HTTPS and WebSockets over TLS, not plain HTTP: use https:// and wss://.\n";

impl Connections {
    /// Continues the handshake of a client. Returns whether it is complete, so that requests can be
    /// read.
    pub(super) fn continue_handshake(&mut self, key: Key, context: &mut Context, now: Millis) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        let address = peer.address;
        match peer.connection.handshake() {
            Ok(Handshake::Done) => {
                peer.protocol = Protocol::Http(Http::Head);
                self.watch(key, context);
                true
            }
            Ok(Handshake::Waiting) => {
                self.watch(key, context);
                false
            }
            Ok(Handshake::NotTls) => {
                let (level, more) = self.listeners.plain_log.level(log::Level::Warn, now);
                log::log!(
                    level,
                    "A client at {address} speaks plain HTTP to the port of TLS: it has to use https:// or \
                     wss://{more}."
                );
                self.answer_and_close(key, 400, TLS_ONLY, CloseReason::BadRequest, context, now);
                false
            }
            Err(error) => {
                log::debug!("No TLS with {address}: {error}.");
                context.metrics.count_close(CloseReason::HandshakeFailed);
                // The alert is to arrive.
                self.linger(key, context, now);
                false
            }
        }
    }

    /// Rejects a client that speaks TLS to the plain port.
    pub(super) fn reject_tls(&mut self, key: Key, context: &mut Context, now: Millis) {
        let Some(peer) = self.peers.get(key) else { return };
        let address = peer.address;
        let ((level, more), port) = (self.listeners.tls_log.level(log::Level::Warn, now), self.listeners.tls_port());
        let elsewhere = port.map_or(String::new(), |port| format!("; TLS is spoken on port {port}"));
        log::log!(
            level,
            "A client at {address} speaks TLS to the port of plain HTTP: it has to use http:// or \
             ws://{elsewhere}{more}."
        );
        let body = format!("{PLAIN_ONLY}{elsewhere}.\n");
        self.answer_and_close(key, 400, &body, CloseReason::BadRequest, context, now);
    }
}
