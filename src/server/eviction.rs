//! Unauthenticated clients: what they hold is reviewed at the end of each turn in which it changed.
//! Clients beyond the limits are evicted.

use super::Server;
use super::connections::Carried;
use super::ids::Handle;
use crate::state::metrics::CloseReason;
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Most clients that are evicted in one turn: some milliseconds.
const EVICTED_A_TURN: usize = 1_024;
/// Clients that are evicted at each reading of the memory above its limit.
const EVICTED_FOR_MEMORY: usize = 256;

impl Server {
    /// Has a session, or the WebSocket that carries it, reviewed at the end of the turn.
    pub(super) fn review_session_later(&mut self, key: Key) {
        let Some(session) = self.sessions.get(key) else { return };
        let handle = session.websocket().map_or(Handle::Session(key), Handle::Connection);
        self.connections.review_later(handle);
    }

    /// Reviews the clients that changed, and evicts those beyond the limits.
    pub fn review_clients(&mut self, now: Millis) {
        self.review_changed();
        for _ in 0..EVICTED_A_TURN {
            let Some(client) = self.connections.surplus() else { break };
            self.evict(client, now);
        }
    }

    /// Reads the memory when it is time; above the limit evicts unauthenticated clients, those that
    /// hold most first.
    pub(super) fn check_memory(&mut self, now: Millis) {
        if !self.connections.check_memory(now) {
            return;
        }
        self.review_changed();
        for _ in 0..EVICTED_FOR_MEMORY {
            let Some(client) = self.connections.largest() else { break };
            self.evict(client, now);
        }
    }

    /// Evicts an unauthenticated connection for a new one. Returns false when there is none.
    pub(super) fn evict_for_connection(&mut self, now: Millis) -> bool {
        self.review_changed();
        let Some(key) = self.connections.oldest_connection() else { return false };
        self.evict(Handle::Connection(key), now);
        // Its place is needed at once, whether its last bytes have left or not.
        self.close_connection(key, CloseReason::MadeWay, now);
        true
    }

    fn review_changed(&mut self) {
        let changed = self.connections.take_changed();
        for client in &changed {
            match *client {
                Handle::Connection(key) => {
                    let sessions = &self.sessions;
                    self.connections.review(key, |session| sessions.stage_and_bytes(session));
                }
                Handle::Session(key) => {
                    let Some((was_listed, holding)) = self.sessions.review(key) else { continue };
                    if holding.is_none() {
                        self.connections.note_session_settled(key);
                    }
                    self.connections.list(*client, was_listed, holding);
                }
            }
        }
        self.connections.put_changed(changed);
    }

    fn evict(&mut self, client: Handle, now: Millis) {
        let reason = CloseReason::MadeWay;
        let key = match client {
            Handle::Session(key) => return self.close_session(key, reason, now),
            Handle::Connection(key) => key,
        };
        self.connections.unlist(key);
        if let Some(session) = self.connections.carried_session(key) {
            return self.close_session(session, reason, now);
        }
        let Some(request) = self.connections.http_request(key) else {
            return self.close_connection(key, reason, now);
        };
        if let Carried::Request(session) = request {
            self.sessions.forget_connection(session, key);
        }
        self.connections.answer_and_close(key, 503, "Others need the place.\n", reason, &mut self.context, now);
    }

    /// Takes a session off the list of unauthenticated clients.
    pub(super) fn unlist_session(&mut self, key: Key) {
        if self.sessions.unlist(key) {
            self.connections.list(Handle::Session(key), true, None);
        }
    }
}
