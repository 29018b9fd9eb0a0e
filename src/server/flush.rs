//! What is written, and when: at the end of a turn sessions that have something to say are written to, each
//! once. A notification is encoded once for each dialect; its bytes go to every subscriber.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;

use super::{Protocol, Server, Timer};
use crate::net::connection::Flushed;
use crate::state::access::Access;
use crate::state::session::{Dialect, messages};
use crate::state::subscriptions::{DatabaseId, Subscriptions};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::{howler_v1, socket_io, websocket};

/// Bytes that are put together for one write. What a client does not take of it is held for that client;
/// all else stays in its set of changed databases.
const MAX_WRITE: usize = 16 * 1024;
/// Sessions that are written to in one turn at least, if there are so many: some milliseconds.
const FLUSHED_A_TURN: usize = 512;
/// Sessions whose slots are nearer than this came to be together.
const NEAR: u32 = 1_024;
/// Room for frames that is kept from turn to turn, in bytes.
const KEPT_FRAMES: usize = 256 * 1024;

/// The frames of this turn's notifications.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    places: HashMap<FrameKey, Range<usize>>,
    /// The frame asked for last: mostly the next session is told the same.
    last: Option<(FrameKey, Range<usize>)>,
    message: Vec<u8>,
    /// Where what goes to one session is put together.
    assembly: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FrameKey {
    SocketIo(DatabaseId),
    Json(DatabaseId, u8),
}

impl Frames {
    /// The frame that tells of a change in a dialect.
    fn place(
        &mut self,
        subscriptions: &Subscriptions,
        access: &Access,
        database: DatabaseId,
        kind: ChangeKind,
        dialect: Dialect,
    ) -> Range<usize> {
        let key = match dialect {
            Dialect::SocketIo(_) => FrameKey::SocketIo(database),
            Dialect::Json => FrameKey::Json(database, kind as u8),
        };
        if let Some((last, place)) = &self.last
            && *last == key
        {
            return place.clone();
        }
        let place = self.places.get(&key).cloned().unwrap_or_else(|| {
            let name = subscriptions.name(database);
            self.message.clear();
            match dialect {
                Dialect::SocketIo(_) => socket_io::write_change(&mut self.message, name),
                Dialect::Json => {
                    howler_v1::write_change(&mut self.message, name, kind, access.told(database, subscriptions));
                }
            }
            let start = self.bytes.len();
            websocket::write_text(&mut self.bytes, &self.message);
            let place = start..self.bytes.len();
            self.places.insert(key, place.clone());
            place
        });
        self.last = Some((key, place.clone()));
        place
    }

    fn clear(&mut self) {
        self.last = None;
        self.places.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_FRAMES {
            self.bytes = Vec::new();
            self.places = HashMap::new();
        }
    }
}

/// Puts sessions in the order in which they are written to, the first at the end. Who came to be together lies together,
/// here and in the kernel: those who are far apart from their neighbours are put in that order, the others keep theirs.
fn put_in_order(keys: &mut Vec<Key>) {
    let far = keys.windows(2).filter(|pair| pair[0].index.abs_diff(pair[1].index) > NEAR).count();
    if far > keys.len() / 4 {
        keys.sort_unstable_by_key(|key| Reverse(key.index));
        keys.dedup();
    } else {
        keys.reverse();
    }
}

impl Server {
    /// Writes to sessions that have something to say. Of a crowd a share has its turn: what else happens does not wait for
    /// all of them, and what changes again before its subscriber is written to is told once. Who comes meanwhile waits for
    /// the end of the crowd.
    pub fn flush_dirty(&mut self, now: Millis) {
        // More than come in a turn, or they would wait ever longer.
        let share = FLUSHED_A_TURN.max((self.sessions.dirty.len() + self.sessions.flushing.len()) / 8);
        for _ in 0..share {
            if self.sessions.flushing.is_empty() {
                std::mem::swap(&mut self.sessions.flushing, &mut self.sessions.dirty);
                put_in_order(&mut self.sessions.flushing);
            }
            let Some(key) = self.sessions.flushing.pop() else { break };
            self.flush_session(key, now);
        }
        self.sessions.frames.clear();
    }

    fn flush_session(&mut self, key: Key, now: Millis) {
        if self.is_withheld(key) {
            return;
        }
        let Some(session) = self.sessions.table.get_mut(key) else { return };
        let Some(connection) = session.websocket() else { return self.flush_polling(key, now) };
        let Some(peer) = self.connections.peers.get_mut(connection) else { return };
        if !matches!(peer.protocol, Protocol::WebSocket(..)) || peer.connection.is_blocked() {
            return;
        }
        let dialect = session.dialect();
        loop {
            let frames = &mut self.sessions.frames;
            let mut assembly = std::mem::take(&mut frames.assembly);
            assembly.clear();
            if !session.outgoing.is_empty() {
                for message in messages(&session.outgoing.take()) {
                    websocket::write_text(&mut assembly, message);
                }
                if session.requests_receipt() {
                    websocket::write_ping(&mut assembly);
                }
            }
            // One notification alone is written from where it was encoded.
            let mut single = None;
            while assembly.len() < MAX_WRITE {
                let Some((database, kind)) = self.databases.subscriptions.take_dirty(key.index) else { break };
                self.context.metrics.notifications += 1;
                session.notifications = session.notifications.saturating_add(1);
                let place =
                    frames.place(&self.databases.subscriptions, &self.databases.access, database, kind, dialect);
                if assembly.is_empty() && !self.databases.subscriptions.is_dirty(key.index) {
                    single = Some(place);
                    break;
                }
                assembly.extend_from_slice(&frames.bytes[place]);
            }
            let bytes = single.map_or(&*assembly, |place| &frames.bytes[place]);
            let idle = bytes.is_empty() && !peer.connection.has_unsent();
            let written = if idle { Ok(Flushed::All) } else { peer.connection.write(bytes) };
            frames.assembly = assembly;
            match written {
                Ok(Flushed::All) if !idle && self.databases.subscriptions.is_dirty(key.index) => {}
                Ok(Flushed::All) => break,
                Ok(Flushed::Blocked) => return self.wait_for_reader(connection, now),
                Err(error) => return self.lost(connection, Some(&error), now),
            }
        }
        if std::mem::take(&mut peer.unread) {
            self.connections.unfinished.push(connection);
        }
        if peer.listed {
            self.connections.changed.push(Timer::Peer(connection));
        }
        // What it waited for may have left with an earlier write that was blocked.
        if session.handle_flushed(now) {
            self.arm_session(key, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(indices: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut keys = indices.map(|index| Key { index, generation: 0 }).collect();
        put_in_order(&mut keys);
        keys.into_iter().rev().map(|key| key.index).collect()
    }

    #[test]
    fn the_scattered_are_put_in_order_and_the_others_keep_theirs() {
        assert_eq!(written([7, 3, 3, 5].into_iter()), [7, 3, 3, 5]);
        assert_eq!(written([].into_iter()), [0; 0]);
        let scattered = || (0..15_000).map(|number| number * 7_919 % 15_000);
        assert_eq!(written(scattered().chain(scattered())), (0..15_000).collect::<Vec<_>>(), "each once");
    }
}
