//! What the log tells of clients, one event each with fields of its own: requests that were answered, sessions that
//! ended. All at level `debug`: a busy server has very many of them.
//!
//! Never the query, which may hold credentials. The user is named, by the name that CouchDB confirmed, so that it
//! cannot be a password that was typed into the wrong field.

use super::Server;
use super::exchange::Exchange;
use crate::state::metrics::CloseReason;
use crate::state::session::{Dialect, Transport};
use crate::state::table::Key;
use crate::state::timers::{Millis, seconds};
use crate::wire::engine_io::Version;

impl Server {
    /// A request was answered. Those that carry a session that polls are left out, unless they were refused: they are to
    /// it what frames are to a WebSocket.
    pub(super) fn log_answer(&self, key: Key, exchange: &Exchange, status: u16) {
        let (Some(asked), Some(peer)) = (&exchange.asked, self.connections.peers.get(key)) else { return };
        if status == 200 && exchange.sid.is_some() {
            return;
        }
        let (method, path) = (&*asked.method, &*asked.path);
        log::debug!(event = "request", client:% = peer.address, method = method, path = path, status = status;
            "{method} {path}: {status}");
    }

    /// What came was no request, and was answered as such.
    pub(super) fn log_refusal(&self, key: Key, status: u16) {
        let Some(peer) = self.connections.peers.get(key) else { return };
        log::debug!(event = "request", client:% = peer.address, status = status; "No request: {status}");
    }

    /// A session is about to be removed, closed by this server or ended by the client.
    pub(super) fn log_session_end(&self, key: Key, verb: &str, reason: CloseReason, now: Millis) {
        let Some(session) = self.sessions.table.get(key) else { return };
        let dialect = match session.dialect() {
            Dialect::Json => "howler.v1",
            Dialect::SocketIo(Version::V3) => "engine.io-3",
            Dialect::SocketIo(Version::V4) => "engine.io-4",
        };
        let transport = match session.transport {
            Transport::WebSocket(_) => "websocket",
            Transport::Polling(_) => "polling",
        };
        let (client, reason) = (self.client_of(key), reason.text());
        log::debug!(
            event = "session-end", client:% = client, user = session.user_name(), dialect = dialect,
            transport = transport, subscriptions = self.databases.subscriptions.count(key.index) as u64,
            notifications = session.notifications, duration_s = seconds(now).saturating_sub(session.opened), reason = reason;
            "Session of {client} {verb}: {reason}."
        );
    }
}
