//! The database `_global_changes`: one document for each database and kind of event, a log of their
//! writes, and opaque positions in the log.
//!
//! CouchDB keeps this database in two shards, and a position is a pair of positions. Here each
//! document belongs to one of two lanes, and a replay runs through one lane after the other. So a
//! replay is not in the order of the writes, and yet a reader may resume after any of its lines
//! without missing one.

use std::collections::HashMap;
use std::sync::Arc;

use super::http::{from_base64, to_base64url};

/// `_global_changes` from its creation to its deletion.
#[derive(Debug)]
pub(super) struct GlobalChanges {
    /// `instance_start_time`, which differs for each creation.
    pub(super) incarnation: u32,
    ids: HashMap<Arc<str>, u32>,
    documents: Vec<EventDocument>,
    log: Vec<Entry>,
    batch: u32,
}

#[derive(Debug)]
struct EventDocument {
    id: Arc<str>,
    revision: u32,
    /// Index in the log of the last write. A replay skips older ones.
    latest: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    document: u32,
    revision: u32,
    /// Number of the batch. The entries of a batch are sent in one chunk.
    batch: u32,
}

/// A line of a feed before it is encoded.
#[derive(Debug)]
pub(super) struct Event<'a> {
    pub(super) id: &'a str,
    pub(super) revision: u32,
    pub(super) seq: String,
    /// The batch; None in a replay.
    pub(super) batch: Option<u32>,
}

impl GlobalChanges {
    pub(super) fn new(incarnation: u32) -> Self {
        Self { incarnation, ids: HashMap::new(), documents: Vec::new(), log: Vec::new(), batch: 0 }
    }

    /// Writes these event documents as one batch, each with the next revision.
    pub(super) fn record<S: AsRef<str>>(&mut self, ids: impl IntoIterator<Item = S>) {
        self.batch = self.batch.wrapping_add(1);
        for id in ids {
            self.record_one(id.as_ref());
        }
    }

    fn record_one(&mut self, id: &str) {
        let number = self.ids.get(id).copied().unwrap_or_else(|| {
            let number = u32::try_from(self.documents.len()).expect("fewer than 2^32 documents");
            let id: Arc<str> = id.into();
            self.documents.push(EventDocument { id: Arc::clone(&id), revision: 0, latest: 0 });
            self.ids.insert(id, number);
            number
        });
        let document = &mut self.documents[number as usize];
        document.revision += 1;
        document.latest = self.log.len();
        self.log.push(Entry { document: number, revision: document.revision, batch: self.batch });
    }

    /// Returns the revision of an event document.
    pub(super) fn revision(&self, id: &str) -> Option<u32> {
        let number = *self.ids.get(id)?;
        Some(self.documents[number as usize].revision)
    }

    /// Returns all ids, sorted.
    pub(super) fn ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self.ids.keys().map(AsRef::as_ref).collect();
        ids.sort_unstable();
        ids
    }

    /// Returns the end of the log.
    pub(super) fn end(&self) -> usize {
        self.log.len()
    }

    /// Returns the position after all writes so far.
    pub(super) fn last_seq(&self) -> String {
        encode_seq(self.incarnation, [self.end(); 2])
    }

    /// Parses a `since`; None if CouchDB could not decode it.
    pub(super) fn cursor(&self, since: &str) -> Option<Cursor> {
        let end = self.end();
        let lanes = match since {
            "now" => [end; 2],
            "0" => [0; 2],
            _ => match decode_seq(since)? {
                (incarnation, lanes) if incarnation == self.incarnation => lanes.map(|lane| lane.min(end)),
                // CouchDB accepts a position of a database that was deleted since, and replays
                // everything.
                _ => [0; 2],
            },
        };
        Some(Cursor { incarnation: self.incarnation, lanes, live_from: end })
    }
}

/// The position of one reader.
#[derive(Debug, Clone)]
pub(super) struct Cursor {
    pub(super) incarnation: u32,
    /// The reader has the entries of even documents before the first index, and those of odd
    /// documents before the second one.
    lanes: [usize; 2],
    /// End of the log at the start of the feed. Earlier entries are replayed once per document,
    /// later ones are sent line by line.
    live_from: usize,
}

impl Cursor {
    /// Returns the next line before `end` of the log.
    pub(super) fn next<'a>(&mut self, changes: &'a GlobalChanges, end: usize) -> Option<Event<'a>> {
        for lane in 0..2 {
            while self.lanes[lane] < self.live_from {
                let place = self.lanes[lane];
                self.lanes[lane] += 1;
                let entry = changes.log[place];
                let document = &changes.documents[entry.document as usize];
                if entry.document as usize % 2 == lane && document.latest == place {
                    return Some(self.event(changes, entry, None));
                }
            }
        }
        let place = self.lanes[0];
        if place >= end {
            return None;
        }
        let entry = *changes.log.get(place)?;
        self.lanes = [place + 1; 2];
        Some(self.event(changes, entry, Some(entry.batch)))
    }

    fn event<'a>(&self, changes: &'a GlobalChanges, entry: Entry, batch: Option<u32>) -> Event<'a> {
        Event { id: &changes.documents[entry.document as usize].id, revision: entry.revision, seq: self.seq(), batch }
    }

    /// Returns whether the next line belongs to this batch.
    pub(super) fn continues(&self, changes: &GlobalChanges, batch: Option<u32>) -> bool {
        batch.is_some()
            && changes.log.get(self.lanes[0]).map(|entry| entry.batch) == batch
            && self.lanes[0] == self.lanes[1]
    }

    /// Returns whether the reader has everything before this index of the log.
    pub(super) fn reached(&self, place: usize) -> bool {
        self.lanes.iter().all(|lane| *lane >= place)
    }

    /// This position in CouchDB's notation.
    pub(super) fn seq(&self) -> String {
        encode_seq(self.incarnation, self.lanes)
    }
}

/// Returns the revision of the `count`th write. For a document without content it depends on
/// nothing else, so the first one is the same for all event documents.
pub(super) fn revision(count: u32) -> String {
    if count == 1 {
        return "1-967a00dff5e02add41819138abb3284d".to_owned();
    }
    let high = mix(u64::from(count));
    format!("{count}-{high:016x}{:016x}", mix(high))
}

macro_rules! alphabet {
    () => {
        "OPqrsTUVWabCDeFGhiJKlmNoXYZ0123456789-_ABcdEfgHIjkLMnpQRStuvwxyz"
    };
}
const PADDING: &str = concat!(alphabet!(), alphabet!(), alphabet!());
const PADDING_LENGTH: usize = 84;
const PREFIX: &str = "g1AAAACb";
const CODE_LENGTH: usize = 32;

fn encode_seq(incarnation: u32, lanes: [usize; 2]) -> String {
    let mut code = Vec::with_capacity(24);
    code.extend_from_slice(&incarnation.to_be_bytes());
    for lane in lanes {
        code.extend_from_slice(&(lane as u64).to_be_bytes());
    }
    let check = checksum(&code);
    code.extend_from_slice(&check.to_be_bytes());
    let written = (lanes[0] + lanes[1]).div_ceil(2);
    // Neighbours are swapped, so that the number sometimes goes backwards.
    let shown = if written == 0 { 0 } else { (written + 1) ^ 1 };
    let start = written % 64;
    let padding = &PADDING[start..start + PADDING_LENGTH];
    format!("{shown}-{PREFIX}{}{padding}", to_base64url(&code))
}

fn decode_seq(seq: &str) -> Option<(u32, [usize; 2])> {
    let (number, opaque) = seq.split_once('-')?;
    number.parse::<u64>().ok()?;
    let opaque = opaque.strip_prefix(PREFIX)?;
    if opaque.len() != CODE_LENGTH + PADDING_LENGTH {
        return None;
    }
    let code = from_base64(opaque.get(..CODE_LENGTH)?)?;
    let (content, check) = code.split_last_chunk::<4>()?;
    if checksum(content).to_be_bytes() != *check {
        return None;
    }
    let (incarnation, content) = content.split_first_chunk::<4>()?;
    let (even, content) = content.split_first_chunk::<8>()?;
    let (odd, _) = content.split_first_chunk::<8>()?;
    let lane = |bytes: &[u8; 8]| usize::try_from(u64::from_be_bytes(*bytes)).ok();
    Some((u32::from_be_bytes(*incarnation), [lane(even)?, lane(odd)?]))
}

fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |sum: u32, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// One step of `splitmix64`: every bit depends on the whole input.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(cursor: &mut Cursor, changes: &GlobalChanges) -> Vec<(String, u32, String)> {
        let end = changes.end();
        std::iter::from_fn(|| {
            let event = cursor.next(changes, end)?;
            Some((event.id.to_owned(), event.revision, event.seq))
        })
        .collect()
    }

    #[test]
    fn replay_holds_each_document_once_and_resumes_anywhere() {
        let mut changes = GlobalChanges::new(7);
        for _ in 0..3 {
            changes.record(["updated:a", "updated:b", "updated:c"]);
            changes.record(["updated:a"]);
        }
        let all = rest(&mut changes.cursor("0").unwrap(), &changes);
        let names: Vec<_> = all.iter().map(|(id, rev, _)| (id.as_str(), *rev)).collect();
        let expected = [("updated:c", 3), ("updated:a", 6), ("updated:b", 3)];
        assert_eq!(names, expected);
        for (place, (_, _, seq)) in all.iter().enumerate() {
            let left = rest(&mut changes.cursor(seq).unwrap(), &changes);
            assert_eq!(left, all[place + 1..]);
        }
    }

    #[test]
    fn later_writes_are_sent_line_by_line() {
        let mut changes = GlobalChanges::new(7);
        changes.record(["updated:a"]);
        let mut cursor = changes.cursor("now").unwrap();
        changes.record(["updated:a"]);
        changes.record(["updated:a"]);
        let revisions: Vec<u32> = rest(&mut cursor, &changes).iter().map(|e| e.1).collect();
        assert_eq!(revisions, [2, 3]);
    }

    #[test]
    fn numbers_go_backwards_and_only_whole_positions_decode() {
        let mut changes = GlobalChanges::new(7);
        let mut numbers = Vec::new();
        for _ in 0..4 {
            changes.record(["updated:a"]);
            let seq = changes.last_seq();
            assert!((120..140).contains(&seq.len()), "{seq}");
            for end in 0..seq.len() {
                assert!(changes.cursor(&seq[..end]).is_none() || &seq[..end] == "0");
            }
            numbers.push(seq.split('-').next().unwrap().parse::<u64>().unwrap());
        }
        assert!(!numbers.is_sorted(), "{numbers:?}");
        for bogus in ["bogus", "", "1", "-1"] {
            assert!(changes.cursor(bogus).is_none(), "{bogus}");
        }
    }

    #[test]
    fn position_of_an_earlier_incarnation_replays_everything() {
        let mut changes = GlobalChanges::new(7);
        changes.record(["updated:a", "updated:b"]);
        let seq = changes.last_seq();
        let mut next = GlobalChanges::new(8);
        next.record(["updated:c"]);
        assert_eq!(rest(&mut next.cursor(&seq).unwrap(), &next).len(), 1);
    }

    #[test]
    fn revisions_are_a_count_and_32_hexadecimal_digits() {
        for count in [1, 2, 1_000_000] {
            let text = revision(count);
            let (number, hash) = text.split_once('-').unwrap();
            assert_eq!(number, count.to_string());
            assert_eq!(hash.len(), 32);
        }
    }
}
