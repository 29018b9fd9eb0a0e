//! Names of connections, sessions and request queues, by which the owners refer to each other's entries.

use crate::state::table::Key;

/// A connection or a session: the owner of a deadline, or an unauthenticated client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Timer {
    Peer(Key),
    Session(Key),
}

/// A connection to CouchDB: that of the feed, or one of a pool, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpstreamId {
    Feed,
    Pool(Queue, usize),
}

/// A queue of requests to CouchDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    Logins,
    Lookups,
    Checks,
}

impl Queue {
    pub(super) const ALL: [Self; 3] = [Self::Logins, Self::Lookups, Self::Checks];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Logins => "log-ins",
            Self::Lookups => "look-ups",
            Self::Checks => "checks",
        }
    }

    /// The same as the value of a label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Logins => "log_ins",
            Self::Lookups => "look_ups",
            Self::Checks => "checks",
        }
    }
}
