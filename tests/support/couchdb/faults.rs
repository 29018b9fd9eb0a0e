//! Faults that tests can switch on, and ways to split the bytes of feeds.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// A fault of open feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedFault {
    /// The stand-in resets the connection (RST).
    Reset,
    /// The connection ends between two chunks without the zero chunk, as when CouchDB stops.
    Cut,
    /// The connection ends in the middle of a chunk and of a line.
    CutMidChunk,
    /// The feed ends regularly, with `last_seq` and the zero chunk. The connection stays open.
    CleanEnd,
    /// A second response takes the place of a chunk size. Then the feed is silent.
    Garbage,
    /// A chunk size that is no number. Then the feed is silent.
    BadChunkSize,
    /// The feed is silent. The connection stays open.
    Silence,
    /// A line that is not JSON. The feed continues.
    BrokenJson,
    /// This many lines at once that are not JSON. The feed continues.
    BrokenLines(usize),
    /// One valid line of this many bytes. The feed continues.
    HugeLine(usize),
    /// The next line is cut off in its middle. The feed continues.
    SpoilNextLine,
    /// The next line is longer by this many bytes. The feed continues.
    PadNextLine(usize),
}

/// The way in which CouchDB rejects a `since` that it no longer accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinceRefusal {
    /// With a status. Those of 300 to 399 redirect.
    Status(u16),
    /// The connection ends without a response.
    Close,
}

/// The way in which the bytes of feeds are split into chunks and TCP writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Chunking {
    /// As CouchDB does: a chunk holds all lines of a batch.
    #[default]
    Normal,
    /// One byte a chunk, and one byte a TCP write: about 1,200 writes for a line.
    OneByte,
    /// Chunks and TCP writes of this many bytes.
    SplitEvery(usize),
    /// One chunk for all pending lines.
    Merge,
}

/// The faults that are switched on.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) login_delay: Duration,
    pub(super) login_status: Option<u16>,
    /// Whether requests to `/_session` are carried out without a response.
    pub(super) lose_login_answers: bool,
    /// Whether a proxy in front of CouchDB rejects requests to `/_session` with 403.
    pub(super) forbid_logins: bool,
    pub(super) access_delay: Duration,
    pub(super) access_status: Option<u16>,
    /// Whether responses about access wait.
    pub(super) access_held: bool,
    /// Responses to `GET /{db}/_security` that take the place of the stored object: a status and a
    /// body.
    pub(super) security_answers: HashMap<String, (u16, String)>,
    pub(super) lookup_delay: Duration,
    pub(super) lookup_status: Option<u16>,
    pub(super) config_status: Option<u16>,
    /// A status, and how many more feed requests get it.
    pub(super) feed_refusals: Option<(u16, usize)>,
    /// How continuous feeds are rejected, except those that start at a position of `pinned`.
    pub(super) since_refusal: Option<SinceRefusal>,
    /// Positions that were read since then.
    pub(super) pinned: Vec<String>,
    /// Whether feeds end after each batch of lines, as those of a node in maintenance mode do.
    pub(super) maintenance: bool,
    /// Faults of the next feeds, one each.
    pub(super) next_feeds: VecDeque<FeedFault>,
    pub(super) chunking: Chunking,
    /// Whether events are lost.
    pub(super) losing: bool,
}

impl Faults {
    /// Returns the status to reject this feed request with, if there is one.
    pub(super) fn take_feed_refusal(&mut self) -> Option<u16> {
        let (status, left) = self.feed_refusals.as_mut()?;
        let status = *status;
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.feed_refusals = None;
        }
        Some(status)
    }
}

/// The response that CouchDB in maintenance mode writes into the body of a feed.
pub(super) const SECOND_RESPONSE: &str = "HTTP/1.1 500 Internal Server Error\r\n\
    Content-Type: application/json\r\nContent-Length: 54\r\n\r\n\
    {\"error\":\"nodedown\",\"reason\":\"progress not possible\"}\n";
