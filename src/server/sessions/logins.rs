//! Limits of logins, and when the login of a session is checked again.

use std::net::IpAddr;

use super::Sessions;
use crate::server::context::Context;
use crate::server::purpose::Login;
use crate::state::login_limits::{Admission, Kind, Outcome, Rejection};
use crate::state::pool::{Answer, NoAnswer};
use crate::state::session::PendingLogin;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::{self, Credentials, Identity, LoginError};

/// A cookie is first checked after this long, in milliseconds, while no cookie of CouchDB has
/// stated its lifetime.
const FIRST_CHECK: Millis = 2_000;
/// Shortest time between checks of a session, in milliseconds.
const SOONEST_CHECK: Millis = 500;
/// Status with which a proxy says that CouchDB did not answer in time.
const GATEWAY_TIMEOUT: u16 = 504;

impl Sessions {
    /// Decides whether a login may go to CouchDB, has to wait for others, or is rejected.
    pub(crate) fn admit_login(&mut self, login: &Login, kind: Kind<'_>, now: Millis) -> Admission {
        self.login_limits.admit(login.client, kind, login.since, || login.clone(), now)
    }

    /// Counts a password for the server's own admin, which is compared here.
    ///
    /// # Errors
    /// The time to wait in milliseconds, after too many wrong passwords from the address.
    pub(crate) fn count_compared(&mut self, client: IpAddr, is_right: bool, now: Millis) -> Result<(), Millis> {
        self.login_limits.count_compared(client, is_right, now)
    }

    /// Takes note that a login is not sent to CouchDB after all.
    pub(crate) fn finish_unsent(&mut self, attempt: Key, now: Millis) {
        self.login_limits.finish(attempt, Outcome::NotAsked, now);
    }

    /// Takes note that CouchDB may have counted a login that it did not answer.
    pub(crate) fn finish_unanswered(&mut self, attempt: Key, now: Millis) {
        self.login_limits.finish(attempt, Outcome::Unanswered, now);
    }

    /// Returns the next login that waited for others: it goes on, or is rejected.
    pub(crate) fn next_login(&mut self, now: Millis) -> Option<(Login, Result<Key, Rejection>)> {
        self.login_limits.next(now)
    }

    /// Returns when [`Self::next_login`] is due.
    pub(crate) fn login_timeout(&self) -> Option<Millis> {
        self.login_limits.poll_timeout()
    }

    /// Returns how many logins wait for others.
    pub(crate) fn waiting_logins(&self) -> usize {
        self.login_limits.waiting()
    }

    /// Sets the login that a session waits for.
    pub(crate) fn set_pending_login(&mut self, key: Key, pending: PendingLogin) {
        if let Some(session) = self.table.get_mut(key) {
            session.login = Some(pending);
        }
    }

    /// Takes the ticket of the login that a session waits for; one that waits for others is
    /// cancelled.
    pub(crate) fn take_pending_login(&mut self, key: Key, now: Millis) -> Option<Key> {
        match self.table.get_mut(key)?.login.take()? {
            PendingLogin::Waits(attempt) => {
                self.login_limits.cancel(attempt, now);
                None
            }
            PendingLogin::Queued(ticket) => Some(ticket),
        }
    }

    /// Reads CouchDB's answer to a login and counts its outcome. `has_waiting` says whether other
    /// logins wait for CouchDB.
    ///
    /// # Errors
    /// When the credentials are wrong, or CouchDB did not say.
    pub(crate) fn finish_login(
        &mut self,
        attempt: Key,
        credentials: &Credentials,
        answer: Result<Answer, NoAnswer>,
        has_waiting: bool,
        now: Millis,
    ) -> Result<Identity, LoginError> {
        let (result, may_count) = match answer {
            Ok(answer) => {
                let result = couchdb::read_login(credentials, answer.status, answer.auth_cookie, &answer.body);
                (result, answer.status == GATEWAY_TIMEOUT)
            }
            Err(reason) => {
                // Its time ended while others were answered, or before it was sent.
                let error = if has_waiting { LoginError::Overloaded } else { LoginError::Unavailable };
                (Err(error), reason != NoAnswer::NotSent)
            }
        };
        let outcome = match &result {
            Ok(_) => Outcome::Right,
            Err(LoginError::NotAuthenticated | LoginError::BadToken) => Outcome::Wrong,
            Err(LoginError::Locked) => Outcome::Locked,
            Err(_) if may_count => Outcome::Unanswered,
            Err(_) => Outcome::NotAsked,
        };
        self.login_limits.finish(attempt, outcome, now);
        result
    }

    /// Returns when a session is to be checked again: before half of its cookie's lifetime is over.
    /// `identity` is CouchDB's answer of now, None without one; `age` is how long the client has
    /// been here, in milliseconds.
    ///
    /// CouchDB renews a cookie that is older than a tenth of its lifetime in any answer. A cookie
    /// that was not renewed has nine tenths left at least, and lives ten times as long as it has
    /// been here.
    pub(crate) fn next_check(
        &mut self,
        identity: Option<&Identity>,
        age: Millis,
        context: &mut Context,
        now: Millis,
    ) -> Option<Millis> {
        if self.session_check == 0 {
            return None;
        }
        let cookie = identity.and_then(|identity| identity.cookie.as_ref());
        let given = cookie.and_then(|cookie| couchdb::cookie_life(cookie.reveal()));
        self.cookie_life = given.or(self.cookie_life);
        let within = match (identity, cookie, self.cookie_life) {
            (Some(_), None, _) => None,
            (Some(_), _, Some(life)) if given.is_some() => Some(life / 2),
            (Some(_), _, Some(life)) => Some(life * 2 / 5),
            (None, _, Some(life)) => Some(life / 8),
            (_, _, None) => Some((age * 3).max(FIRST_CHECK)),
        };
        let within = within.unwrap_or(Millis::MAX).max(SOONEST_CHECK);
        Some(now + context.jitter.around(within.min(self.session_check)))
    }
}
