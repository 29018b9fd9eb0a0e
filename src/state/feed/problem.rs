//! Problems that interrupt the feed.

use std::fmt;

use crate::state::timers::Millis;

/// Reason for an interruption. Displays as a log line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    Connection(String),
    Silent(Millis),
    Cut,
    Ended,
    Framing(String),
    MalformedLine,
    Unauthorized,
    Locked,
    Missing(bool),
    SinceRefused(u16),
    Status(u16),
    NoSequence,
}

impl Problem {
    /// Returns the log level: error for problems that an operator must solve, else warning or
    /// lower.
    pub(super) fn level(&self) -> log::Level {
        match self {
            Self::Missing(_) => log::Level::Error,
            Self::Ended => log::Level::Info,
            // The owner of the credentials logs these, whichever request fails first.
            Self::Unauthorized | Self::Locked => log::Level::Debug,
            _ => log::Level::Warn,
        }
    }

    /// Returns whether another start of the stream might help.
    pub(super) fn may_be_the_start(&self) -> bool {
        !matches!(self, Self::Unauthorized | Self::Locked | Self::Missing(_) | Self::SinceRefused(_))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => write!(f, "The changes feed is not connected: {error}. Trying again."),
            Self::Silent(ms) => write!(
                f,
                "CouchDB was silent for {ms} ms: opening the changes feed again. If this goes on, run `couchdb-howler \
                 check`: a proxy in front of CouchDB may hold the feed back.",
            ),
            Self::Cut => f.write_str("CouchDB cut the changes feed: resuming it."),
            Self::Ended => f.write_str("CouchDB ended the changes feed: resuming it."),
            Self::Framing(error) => write!(f, "The changes feed is broken: {error}. Resuming it."),
            Self::MalformedLine => f.write_str("A line of the changes feed is not JSON: reading it again."),
            Self::Unauthorized => f.write_str("CouchDB refuses the changes feed (401)."),
            Self::Locked => f.write_str("CouchDB refuses the changes feed (403)."),
            Self::Missing(false) => f.write_str(
                "CouchDB has no _global_changes database (404): create it with PUT /_global_changes, or start with \
                 --create_global_changes. Trying again.",
            ),
            Self::Missing(true) => f.write_str(
                "CouchDB answers 404 although --create_global_changes is set: check the path in --couchdb_url. \
                 Trying again.",
            ),
            Self::SinceRefused(status) => write!(
                f,
                "CouchDB does not know the sequence to resume from ({status}): following the feed from now on; \
                 changes may have been missed.",
            ),
            Self::Status(status) => write!(f, "CouchDB answers the changes feed with status {status}: trying again."),
            Self::NoSequence => f.write_str(
                "The reply to the changes feed is not from CouchDB (no last_seq): check the address and path in \
                 --couchdb_url. Trying again.",
            ),
        }
    }
}
