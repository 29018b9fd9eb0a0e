//! What the limits are asked, and what they decide.

use crate::state::table::Key;
use crate::state::timers::Millis;

/// Credentials, as far as they matter here.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// A user name and a password.
    Password {
        /// The name.
        name: &'a str,
        /// The password.
        password: &'a str,
        /// Whether CouchDB counts wrong passwords for the name alone, whatever address the client has.
        by_name: bool,
    },
    /// A cookie or a token. A wrong one locks no account.
    Cookie,
}

/// What becomes of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// CouchDB is to be asked; the outcome goes to [`super::LoginLimits::finish`].
    Ask(Key),
    /// The login waits, and comes out of [`super::LoginLimits::next`].
    Wait(Key),
    /// The login fails.
    Reject(Rejection),
}

/// Why a login fails without a question to CouchDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Too many logins from the address failed; the next one may come after so many milliseconds.
    Address(Millis),
    /// Too many logins under the name failed, from any address; the next one may come after so many milliseconds.
    Name(Millis),
    /// CouchDB did not answer the logins before, each of which it may have counted as a failure.
    Unanswered,
    /// Too many logins wait, or this one did for too long.
    Overloaded,
}

/// The outcome of a login that CouchDB was to be asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The credentials are right.
    Right,
    /// The credentials are wrong.
    Wrong,
    /// The account is locked. CouchDB counts no failure.
    Locked,
    /// No answer came: CouchDB may have counted a failure, or may yet.
    Unanswered,
    /// CouchDB did not see the credentials.
    NotAsked,
}
