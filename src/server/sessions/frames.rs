//! The frames of this turn's notifications: each is encoded once, and its bytes go to every
//! subscriber.

use std::collections::HashMap;
use std::ops::Range;

use crate::state::session::Dialect;
use crate::state::subscriptions::DatabaseId;
use crate::wire::couchdb::ChangeKind;
use crate::wire::websocket;

/// Capacity for frames that is kept from turn to turn, in bytes.
const KEPT_FRAMES: usize = 256 * 1024;

/// The encoded frames, and the buffer in which the bytes for one session are assembled.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    ranges: HashMap<FrameKey, Range<usize>>,
    /// The frame of the last call: mostly the next session gets the same.
    last: Option<(FrameKey, Range<usize>)>,
    message: Vec<u8>,
    assembly: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum FrameKey {
    SocketIo(DatabaseId),
    Json(DatabaseId, u8),
}

impl Frames {
    /// Returns where the frame of a notification is. `write` writes its message if it is not
    /// encoded yet.
    pub(crate) fn range(
        &mut self,
        database: DatabaseId,
        kind: ChangeKind,
        dialect: Dialect,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Range<usize> {
        let key = match dialect {
            Dialect::SocketIo(_) => FrameKey::SocketIo(database),
            Dialect::Json => FrameKey::Json(database, kind as u8),
        };
        if let Some((last, range)) = &self.last
            && *last == key
        {
            return range.clone();
        }
        let range = self.ranges.get(&key).cloned().unwrap_or_else(|| {
            self.message.clear();
            write(&mut self.message);
            let start = self.bytes.len();
            websocket::write_text(&mut self.bytes, &self.message);
            let range = start..self.bytes.len();
            self.ranges.insert(key, range.clone());
            range
        });
        self.last = Some((key, range.clone()));
        range
    }

    /// Returns the bytes of a frame.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.bytes[range]
    }

    /// Takes the assembly buffer out, emptied.
    pub(crate) fn take_assembly(&mut self) -> Vec<u8> {
        let mut assembly = std::mem::take(&mut self.assembly);
        assembly.clear();
        assembly
    }

    /// Puts the assembly buffer back, so that its capacity is used again.
    pub(crate) fn put_assembly(&mut self, assembly: Vec<u8>) {
        self.assembly = assembly;
    }

    /// Forgets the frames at the end of a turn.
    pub(super) fn clear(&mut self) {
        self.last = None;
        self.ranges.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_FRAMES {
            self.bytes = Vec::new();
            self.ranges = HashMap::new();
        }
    }
}
