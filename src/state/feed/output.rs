//! What the feed wants done, and what it says of the stream.

use std::borrow::Cow;

use crate::wire::couchdb::ChangeKind;
use crate::wire::positions::Revision;

/// What the feed wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedAction {
    /// Connect to CouchDB; the answer is [`super::Feed::handle_connected`] or [`super::Feed::handle_lost`].
    Dial,
    /// Write this to the connection.
    Send(Vec<u8>),
    /// Give the connection up.
    HangUp,
    /// From here on no change is missed, since the start of the next stream is known.
    Pinned,
    /// Changes are being followed; what may have happened since they were before.
    Opened(Continuity),
    /// CouchDB refused the credentials (401).
    Refused,
}

/// What lies between a stream of changes and the one before, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Continuity {
    /// Every change that CouchDB recorded comes in one of the two.
    Whole,
    /// There is a gap: this one starts from now. Positions tell what changed in it.
    Gap,
    /// CouchDB was away: what changed in the last half second before it stopped may not be recorded.
    Doubtful,
    /// `_global_changes` was missing meanwhile: changes were not recorded.
    Unrecorded,
}

/// What the next bytes of the connection are.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedPart<'a> {
    /// Lines, or parts of them, for [`super::Feed::next_line`].
    Content(&'a [u8]),
    /// Nothing for anybody else.
    Nothing,
    /// All input was used, or the connection is of no use any more.
    Done,
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// A database changed.
    Change(Cow<'a, str>, ChangeKind, Option<Revision>),
    /// Nothing for anybody else.
    Nothing,
    /// A line was passed over: it was too long.
    Skipped,
    /// A line is no JSON: for [`super::Feed::handle_broken_line`].
    Broken,
    /// The content is used up, or the connection is of no use any more.
    Done,
}
