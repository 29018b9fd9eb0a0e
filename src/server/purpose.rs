//! Purposes of requests to CouchDB.

use std::net::IpAddr;

use crate::state::positions::Batch;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::Credentials;

/// What a request to CouchDB is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A login, and its key in the login limits.
    LogIn(Login, Key),
    /// A login that nobody waits for any more.
    Abandoned(Key, Credentials),
    Security(DatabaseId),
    /// A session, the number of its login, and what that is good with.
    Check(Key, u32, Credentials),
    Lookup(Batch),
    Epoch,
    Restarts,
    /// Whether CouchDB records changes.
    Recording,
    /// Whether CouchDB accepts the server's own credentials again.
    Admin,
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
