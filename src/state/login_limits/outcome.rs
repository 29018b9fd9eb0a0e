//! Inputs and decisions of the login limits.

use crate::state::table::Key;
use crate::state::timers::Millis;

/// Credentials, as far as the limits need them.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// A user name and a password.
    Password {
        /// User name.
        name: &'a str,
        /// Password.
        password: &'a str,
        /// Whether CouchDB counts wrong passwords for the name alone, whatever the client's
        /// address.
        by_name: bool,
    },
    /// A cookie or a token. A wrong one locks no account.
    Cookie,
}

/// Decision about a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Ask CouchDB. The outcome goes to [`super::LoginLimits::finish`].
    Ask(Key),
    /// The login waits, and [`super::LoginLimits::next`] returns it.
    Wait(Key),
    /// The login fails.
    Reject(Rejection),
}

/// Reason for which a login fails without a request to CouchDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Too many logins from the address have failed. Contains the wait until the next one, in
    /// milliseconds.
    Address(Millis),
    /// Too many logins under the name have failed, from any address. Contains the wait until the
    /// next one, in milliseconds.
    Name(Millis),
    /// CouchDB did not answer earlier logins, and may have counted each of them as a failure.
    Unanswered,
    /// Too many logins wait, or this one waited too long.
    Overloaded,
}

/// Outcome of an admitted login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The credentials are right.
    Right,
    /// The credentials are wrong.
    Wrong,
    /// The account is locked. CouchDB counts no failure.
    Locked,
    /// No reply came. CouchDB may have counted a failure, or may do so later.
    Unanswered,
    /// CouchDB did not receive the credentials.
    NotAsked,
}
