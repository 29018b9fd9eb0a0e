//! Names of connections, sessions and request queues, by which the owners refer to each other's
//! entries.

use mio::Token;

use crate::state::table::Key;

/// A connection or a session: the owner of a deadline, or an unauthenticated client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Handle {
    Connection(Key),
    Session(Key),
}

/// A connection to CouchDB: that of the feed, or one of a pool, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpstreamId {
    Feed,
    Pool(Queue, usize),
}

/// A queue of requests to CouchDB, with a pool of connections of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    Logins,
    Lookups,
    Checks,
}

impl Queue {
    pub(super) const ALL: [Self; 3] = [Self::Logins, Self::Lookups, Self::Checks];

    /// Returns the name of the queue in log lines.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Logins => "logins",
            Self::Lookups => "lookups",
            Self::Checks => "checks",
        }
    }

    /// Returns the name of the queue as the value of a metric's label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Logins => "log_ins",
            Self::Lookups => "look_ups",
            Self::Checks => "checks",
        }
    }
}

/// Returns the token under which the poll reports the events of a connection.
pub(super) fn token_of(key: Key) -> Token {
    Token((key.generation as usize) << 32 | key.index as usize)
}

/// Returns the connection of a token.
pub(super) fn key_of(token: Token) -> Key {
    let low = |number: usize| u32::try_from(number & 0xffff_ffff).expect("masked");
    Key { index: low(token.0), generation: low(token.0 >> 32) }
}
