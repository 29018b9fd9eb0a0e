//! Writing to sessions, at the end of a turn and each once: answers first, then notifications.

use super::Server;
use crate::net::connection::Flushed;
use crate::state::session::messages;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::websocket;

/// Bytes that are assembled for one write. Bytes that a client does not take are held for it; all
/// else stays in its set of changed databases.
const MAX_WRITE: usize = 16 * 1024;

impl Server {
    /// Writes to the dirty sessions, to a share of them in each turn if there are many: other
    /// events do not wait for all of them, and a database that changes again before its
    /// subscriber's turn is notified once.
    pub fn flush_dirty(&mut self, now: Millis) {
        self.sessions.begin_flush();
        while let Some(key) = self.sessions.next_dirty() {
            self.flush_session(key, now);
        }
        self.sessions.clear_frames();
    }

    fn flush_session(&mut self, key: Key, now: Millis) {
        if self.databases.is_withheld(key) {
            return;
        }
        let Some((session, frames)) = self.sessions.session_and_frames(key) else { return };
        let Some(carrier) = session.websocket() else { return self.flush_polling(key, now) };
        let Some(connection) = self.connections.writable_websocket(carrier) else { return };
        let dialect = session.dialect();
        loop {
            let mut assembly = frames.take_assembly();
            if !session.outgoing.is_empty() {
                for message in messages(&session.outgoing.take()) {
                    websocket::write_text(&mut assembly, message);
                }
                if session.requests_receipt() {
                    websocket::write_ping(&mut assembly);
                }
            }
            // A single notification is written from where it was encoded.
            let mut single = None;
            while assembly.len() < MAX_WRITE {
                let Some((database, kind)) = self.databases.next_notification(key.index) else { break };
                self.context.metrics.notifications += 1;
                session.notifications = session.notifications.saturating_add(1);
                let range = frames.range(database, kind, dialect, |out| {
                    self.databases.write_change(out, database, kind, dialect);
                });
                if assembly.is_empty() && !self.databases.has_notifications(key.index) {
                    single = Some(range);
                    break;
                }
                assembly.extend_from_slice(frames.bytes(range));
            }
            let bytes = single.map_or(&*assembly, |range| frames.bytes(range));
            let is_idle = bytes.is_empty() && !connection.has_unsent();
            let written = if is_idle { Ok(Flushed::All) } else { connection.write(bytes) };
            frames.put_assembly(assembly);
            match written {
                Ok(Flushed::All) if !is_idle && self.databases.has_notifications(key.index) => {}
                Ok(Flushed::All) => break,
                Ok(Flushed::Blocked) => return self.wait_for_reader(carrier, now),
                Err(error) => return self.connection_lost(carrier, Some(&error.to_string()), now),
            }
        }
        self.connections.handle_written(carrier);
        // Answers that the session waited for may have left with an earlier write that was blocked.
        if session.handle_flushed(now) {
            self.sessions.arm(key, &mut self.context, now);
        }
    }

    fn wait_for_reader(&mut self, connection: Key, now: Millis) {
        if let Err(error) = self.connections.wait_for_reader(connection, &mut self.context, now) {
            self.connection_lost(connection, Some(&error.to_string()), now);
        }
    }
}
