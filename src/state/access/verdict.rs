//! Verdicts about databases, and decisions about users.

use crate::wire::security::{Refusal, Security};

/// Users that may subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every user, to every database.
    Open,
    /// Users that may read the database.
    Members,
}

/// State of a database, as CouchDB reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It exists, with these permissions.
    Security(Box<Security>),
    /// Its `_security` is too long to read, so only server admins may watch it.
    TooLarge,
    /// Its `_security` is not kept because all objects take too much memory, so only server admins
    /// may watch it.
    NoRoom,
    /// It does not exist.
    Missing,
}

impl Verdict {
    /// Returns its bytes beside the entry.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Security(security) => security.bytes(),
            Self::TooLarge | Self::NoRoom | Self::Missing => 0,
        }
    }
}

/// Decision whether a user may subscribe to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The user may subscribe.
    Allowed,
    /// The user may not subscribe.
    Forbidden(Refusal),
    /// CouchDB has to be asked.
    Unknown,
}
