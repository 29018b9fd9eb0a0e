//! Requests of polling sessions: any connection may bring the next one.

use std::net::IpAddr;

use super::{Sessions, sid_of};
use crate::state::session::{Dialect, Polling, Session, Transport};
use crate::state::table::Key;
use crate::wire::engine_io::Sid;

impl Sessions {
    /// Returns the session with an id.
    pub(crate) fn find(&self, sid: Sid) -> Option<Key> {
        let number = |from: usize| u32::from_be_bytes(sid.0[from..from + 4].try_into().expect("four bytes"));
        let key = Key { index: number(0), generation: number(4) };
        // `howler.v1` sessions have no id, and nothing random in place of one.
        let is_named = |session: &&Session| session.dialect() != Dialect::Json && sid_of(key, session.tag) == sid;
        self.table.get(key).filter(is_named).map(|_| key)
    }

    /// Returns the id of a session.
    pub(crate) fn sid(&self, key: Key) -> Option<Sid> {
        self.table.get(key).map(|session| sid_of(key, session.tag))
    }

    /// Returns the requests of a polling session.
    pub(crate) fn polling(&mut self, key: Key) -> Option<&mut Polling> {
        self.table.get_mut(key).and_then(Session::polling)
    }

    /// Returns the address of a polling session that counts at it, which it does no longer.
    pub(crate) fn leave_address(&mut self, key: Key) -> Option<IpAddr> {
        let polling = self.polling(key)?;
        std::mem::take(&mut polling.counts_at_address).then_some(polling.client)
    }

    /// Takes note that a connection with a request of a polling session is closed.
    pub(crate) fn forget_connection(&mut self, key: Key, connection: Key) {
        let Some(polling) = self.polling(key) else { return };
        for place in [&mut polling.parked, &mut polling.posting, &mut polling.probing] {
            if *place == Some(connection) {
                *place = None;
            }
        }
        polling.probed &= polling.probing.is_some();
    }

    /// Has a WebSocket carry a session that polled.
    pub(crate) fn move_to_websocket(&mut self, key: Key, connection: Key) {
        if let Some(session) = self.table.get_mut(key) {
            session.transport = Transport::WebSocket(connection);
        }
    }
}
