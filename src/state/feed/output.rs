//! Actions of the feed, and what it reads from the stream.

use std::borrow::Cow;

use crate::wire::couchdb::ChangeKind;
use crate::wire::couchdb::Revision;

/// Request of the feed to its owner.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedAction {
    /// Connect to CouchDB. The outcome goes to [`super::Feed::handle_connected`] or
    /// [`super::Feed::handle_lost`].
    Dial,
    /// Write these bytes to the connection.
    Send(Vec<u8>),
    /// Close the connection.
    Close,
    /// The start of the next stream is known: no later change is missed.
    Pinned,
    /// Changes are being followed, with this continuity to the stream before.
    Opened(Continuity),
    /// CouchDB has refused the credentials (401).
    Refused,
}

/// Completeness of the changes between two streams, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Continuity {
    /// Every change that CouchDB recorded comes in one of the two streams.
    Whole,
    /// There is a gap: the stream starts from now. Positions show what changed in the gap.
    Gap,
    /// CouchDB was away, and may not have recorded the changes of the last half second before it
    /// stopped.
    Doubtful,
    /// `_global_changes` was missing, so CouchDB recorded no changes.
    Unrecorded,
}

/// Part of the bytes that the connection received.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedPart<'a> {
    /// Lines, or parts of them, for [`super::Feed::next_line`].
    Content(&'a [u8]),
    /// Bytes that concern only the feed.
    Nothing,
    /// All bytes are used, or the connection is of no further use.
    Done,
}

/// Content of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedEvent<'a> {
    /// A change of a database.
    Change(Cow<'a, str>, ChangeKind, Option<Revision>),
    /// A line that concerns only the feed.
    Nothing,
    /// A line that was skipped because it is too long.
    Skipped,
    /// A line that is not JSON, for [`super::Feed::handle_malformed_line`].
    Malformed,
    /// The content is used up, or the connection is of no further use.
    Done,
}
