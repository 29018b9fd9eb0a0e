//! Purposes of requests to CouchDB.

use std::net::IpAddr;

use crate::state::admin_access::AdminUse;
use crate::state::positions::Batch;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::Credentials;

/// The purpose of a request to CouchDB.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A login, and its key in the limits of logins.
    Login(Login, Key),
    /// A login that no session waits for any more, with its key and credentials.
    Abandoned(Key, Credentials),
    /// The `_security` object of a database.
    Security(DatabaseId),
    /// A check that a session is still logged in: the session, the number of its login, and the
    /// credentials.
    Check(Key, u32, Credentials),
    /// Positions of databases.
    Lookup(Batch),
    /// The epoch of positions.
    Epoch,
    /// The start of CouchDB's nodes.
    Restarts,
    /// A check that CouchDB records changes.
    Recording,
    /// A check that CouchDB accepts the server's own credentials again.
    Admin,
}

impl Purpose {
    /// Returns the use of the server's own credentials; None where the request carries those of a
    /// user.
    pub(super) fn admin_use(&self) -> Option<AdminUse> {
        match self {
            Self::Login(..) | Self::Abandoned(..) | Self::Check(..) => None,
            Self::Security(_) => Some(AdminUse::Security),
            Self::Lookup(_) | Self::Epoch | Self::Restarts | Self::Recording | Self::Admin => Some(AdminUse::Lookup),
        }
    }

    /// Returns whether hosts and proxies may forbid the request although they accept the
    /// credentials.
    pub(super) fn may_be_forbidden(&self) -> bool {
        matches!(self, Self::Restarts | Self::Recording)
    }
}

/// A login of a session that CouchDB has not answered yet.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) session: Key,
    /// Address of the client, as passed on to CouchDB.
    pub(super) client: IpAddr,
    pub(super) credentials: Credentials,
    /// Time at which the client began to wait.
    pub(super) since: Millis,
    /// Number of new connections that ended during this login.
    pub(super) tries: u8,
}
