//! What can be made to go wrong, and how the feed is cut into pieces.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// A way for open feeds to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedFault {
    /// The connection is reset (RST): the stand-in closes it with a byte of the request unread.
    Reset,
    /// The connection ends between two chunks, without the zero chunk, as when CouchDB stops.
    Cut,
    /// The connection ends in the middle of a chunk and of a line.
    CutMidChunk,
    /// The feed ends as it should, with `last_seq` and the zero chunk; the connection stays.
    CleanEnd,
    /// A whole second response where a chunk size was due; then nothing, and the connection stays.
    Garbage,
    /// A chunk size that is none; then nothing, and the connection stays.
    BadChunkSize,
    /// Nothing is ever sent again; the connection stays.
    Silence,
    /// A line that is no JSON; the feed goes on.
    BrokenJson,
    /// So many lines at once that are no JSON; the feed goes on.
    BrokenLines(usize),
    /// One correct line of so many bytes; the feed goes on.
    HugeLine(usize),
    /// The next line breaks off in its middle and is no JSON; the feed goes on.
    SpoilNextLine,
    /// The next line has so many bytes more; the feed goes on.
    PadNextLine(usize),
}

/// How a feed is refused whose `since` CouchDB does not take any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinceRefusal {
    /// With a status; one of 300 to 399 leads elsewhere.
    Status(u16),
    /// The connection is closed without an answer.
    Close,
}

/// How the bytes of feeds are cut into chunks and TCP writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Chunking {
    /// As CouchDB does: a chunk holds whole lines, those of one batch together.
    #[default]
    Normal,
    /// Each byte of the body is a chunk, and each byte on the wire is a TCP write: about 1,200
    /// writes for a line.
    OneByte,
    /// Chunks and TCP writes of this many bytes, whatever they hold.
    SplitEvery(usize),
    /// All lines there are to send go in one chunk.
    Merge,
}

/// Faults that are switched on.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) login_delay: Duration,
    pub(super) login_status: Option<u16>,
    /// Whether requests about sessions are carried out and not answered.
    pub(super) lose_login_answers: bool,
    /// Whether something in front of CouchDB answers requests about sessions, with 403.
    pub(super) forbid_logins: bool,
    pub(super) access_delay: Duration,
    pub(super) access_status: Option<u16>,
    /// Answers about access wait until this is over.
    pub(super) access_held: bool,
    /// What `GET /{db}/_security` answers in place of the truth: a status and a body.
    pub(super) security_answers: HashMap<String, (u16, String)>,
    pub(super) lookup_delay: Duration,
    pub(super) lookup_status: Option<u16>,
    pub(super) config_status: Option<u16>,
    /// Answer so many more feed requests with this status.
    pub(super) feed_refusals: Option<(u16, usize)>,
    /// Refuse continuous feeds, but for those that start where a feed was pinned since.
    pub(super) since_refusal: Option<SinceRefusal>,
    /// Where feeds were pinned since.
    pub(super) pinned: Vec<String>,
    /// Feeds end cleanly after each batch of lines, as those of a node in maintenance mode.
    pub(super) maintenance: bool,
    /// Each is for one feed that will be opened.
    pub(super) next_feeds: VecDeque<FeedFault>,
    pub(super) chunking: Chunking,
    /// Events are not recorded.
    pub(super) losing: bool,
}

impl Faults {
    /// The status to refuse this feed request with, if it is to be refused.
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

/// The response that CouchDB in maintenance mode writes into an open body.
pub(super) const SECOND_RESPONSE: &str = "HTTP/1.1 500 Internal Server Error\r\n\
    Content-Type: application/json\r\nContent-Length: 54\r\n\r\n\
    {\"error\":\"nodedown\",\"reason\":\"progress not possible\"}\n";
