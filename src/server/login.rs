//! Logins, and checks of sessions that are logged in.
//!
//! ```text
//! log_in ──▶ limits (sessions/logins.rs) ──▶ too many wrong passwords: rejected
//!              │ may go          └──▶ others are being tried: waits, serve_logins
//!              ▼
//!            queue (upstream/requests.rs) ──▶ CouchDB ──▶ handle_login ──▶ end_login
//! ```

use super::Server;
use super::ids::Queue;
use super::purpose::Login;
use crate::state::login_limits::{Admission, Kind, Rejection};
use crate::state::pool::{self, Answer, MAX_ATTEMPTS, NoAnswer};
use crate::state::session::{PendingLogin, Session};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::{self, Credentials, Identity, LoginError};
use crate::wire::secret::Secret;

/// A login that is rejected since too many others wait may be retried after this long, in
/// milliseconds, plus up to as long again.
const RETRY_AFTER: Millis = 5_000;
/// Logins that waited for others and go on, or are rejected, in one turn.
const LOGINS_A_TURN: usize = 128;

impl Server {
    /// Logs a session in.
    pub(super) fn log_in(&mut self, key: Key, credentials: &Credentials, now: Millis) {
        // A client that connects again gets no answer about its former credentials.
        self.abandon_login(key, now);
        let is_new = self.sessions.get(key).is_some_and(|session| session.stage().is_some());
        if is_new && self.connections.memory_rejection(&mut self.context).is_some() {
            return self.end_login(key, credentials, Err(LoginError::Overloaded), now);
        }
        let (client, credentials) = (self.client_of(key), credentials.clone());
        self.try_login(Login { session: key, client, credentials, since: now, tries: 0 }, now);
    }

    /// Sends a login to CouchDB, unless too many failed before.
    fn try_login(&mut self, login: Login, now: Millis) {
        let by_name = self.upstream.counts_by_name();
        let kind = match &login.credentials {
            Credentials::Password { username, password } => {
                if let Err(error) = self.check_admin_password(&login, username, password, now) {
                    return self.end_login(login.session, &Credentials::Unusable, Err(error), now);
                }
                Kind::Password { name: username, password: password.reveal(), by_name }
            }
            Credentials::Cookie(_) | Credentials::Token(_) => Kind::Cookie,
            Credentials::TooLong | Credentials::Unusable | Credentials::UnusableToken => {
                let error = login.credentials.error();
                return self.end_login(login.session, &Credentials::Unusable, Err(error), now);
            }
        };
        match self.sessions.admit_login(&login, kind, now) {
            Admission::Ask(attempt) => self.send_login(login, attempt, now),
            Admission::Reject(rejection) => self.reject_login(&login, rejection, now),
            Admission::Wait(attempt) => {
                self.sessions.set_pending_login(login.session, PendingLogin::Waits(attempt));
            }
        }
    }

    /// Compares a password for the server's own admin here. CouchDB would lock the admin out after
    /// wrong ones, which anybody may send, and with it this server.
    fn check_admin_password(
        &mut self,
        login: &Login,
        name: &str,
        password: &Secret,
        now: Millis,
    ) -> Result<(), LoginError> {
        let Some(is_right) = self.upstream.is_own_password(name, password.reveal()) else { return Ok(()) };
        if let Err(wait) = self.sessions.count_compared(login.client, is_right, now) {
            self.context.metrics.throttled_logins += 1;
            return Err(LoginError::AddressLimit(wait));
        }
        if is_right { Ok(()) } else { Err(LoginError::NotAuthenticated) }
    }

    fn send_login(&mut self, login: Login, attempt: Key, now: Millis) {
        let (key, since) = (login.session, login.since);
        match self.upstream.ask_login(login, attempt, now) {
            Ok(ticket) => {
                self.sessions.set_pending_login(key, PendingLogin::Queued(ticket));
                self.perform_queue_actions(Queue::Logins, now);
            }
            Err(rejection) => {
                self.sessions.finish_unsent(attempt, now);
                let is_silent = rejection == pool::Rejection::Late && now < since + pool::LONGEST_WAIT;
                let error = if is_silent { LoginError::Unavailable } else { LoginError::Overloaded };
                self.end_login(key, &Credentials::Unusable, Err(error), now);
            }
        }
    }

    fn reject_login(&mut self, login: &Login, rejection: Rejection, now: Millis) {
        let error = match rejection {
            Rejection::Address(wait) => LoginError::AddressLimit(wait),
            Rejection::Name(wait) => LoginError::NameLimit(wait),
            Rejection::Unanswered => LoginError::Unavailable,
            Rejection::Overloaded => LoginError::Overloaded,
        };
        if let Some(wait) = error.retry_after() {
            log::debug!("A login of {} is rejected: too many wrong passwords, {wait} ms to wait.", login.client);
            self.context.metrics.throttled_logins += 1;
        }
        self.end_login(login.session, &Credentials::Unusable, Err(error), now);
    }

    /// Continues logins that waited for others.
    pub(super) fn serve_logins(&mut self, now: Millis) {
        for _ in 0..LOGINS_A_TURN {
            match self.sessions.next_login(now) {
                None => return,
                Some((login, Ok(attempt))) => self.send_login(login, attempt, now),
                Some((login, Err(rejection))) => self.reject_login(&login, rejection, now),
            }
        }
    }

    /// Abandons the login of a session. Once CouchDB has it, it still counts, since the password
    /// may be wrong.
    pub(super) fn abandon_login(&mut self, key: Key, now: Millis) {
        let Some(ticket) = self.sessions.take_pending_login(key, now) else { return };
        if let Some(attempt) = self.upstream.abandon_login(ticket) {
            self.sessions.finish_unsent(attempt, now);
        }
    }

    /// Handles CouchDB's answer to a login.
    pub(super) fn handle_login(
        &mut self,
        mut login: Login,
        attempt: Key,
        answer: Result<Answer, NoAnswer>,
        now: Millis,
    ) {
        if let Err(NoAnswer::Lost { used }) = answer {
            login.tries += u8::from(!used);
            if login.tries < MAX_ATTEMPTS {
                // CouchDB may have counted it, so it is admitted again.
                self.sessions.finish_unanswered(attempt, now);
                return self.try_login(login, now);
            }
        }
        let has_waiting = self.upstream.has_waiting_logins();
        let outcome = self.sessions.finish_login(attempt, &login.credentials, answer, has_waiting, now);
        self.end_login(login.session, &login.credentials, outcome, now);
    }

    /// Handles the answer to a login that its session does not wait for any more.
    pub(super) fn handle_abandoned(
        &mut self,
        attempt: Key,
        credentials: &Credentials,
        answer: Result<Answer, NoAnswer>,
        now: Millis,
    ) {
        let has_waiting = self.upstream.has_waiting_logins();
        let _ = self.sessions.finish_login(attempt, credentials, answer, has_waiting, now);
    }

    /// Hands the outcome of a login to its session.
    fn end_login(&mut self, key: Key, credentials: &Credentials, outcome: Result<Identity, LoginError>, now: Millis) {
        match &outcome {
            Ok(_) => self.context.metrics.logins += 1,
            Err(error) => {
                self.context.metrics.failed_logins += 1;
                self.context.metrics.overloaded_logins += u64::from(*error == LoginError::Overloaded);
                log::debug!("A login failed: {}", error.name());
            }
        }
        let retry_after = RETRY_AFTER + self.context.jitter.below(RETRY_AFTER);
        let identity = outcome.as_ref().ok();
        let next_check =
            identity.and_then(|identity| self.sessions.next_check(Some(identity), 0, &mut self.context, now));
        self.with_session(key, now, |session, turn| {
            session.handle_login(outcome, retry_after, turn);
            session.keep_token(credentials);
            if let Some(at) = next_check {
                session.check_at(at);
            }
        });
    }

    /// Asks CouchDB whether a session is still logged in.
    pub(super) fn check_session(&mut self, key: Key, credentials: &Credentials, now: Millis) {
        let client = self.client_of(key);
        let Some(attempt) = self.sessions.get(key).map(Session::attempt) else { return };
        match self.upstream.ask_check(key, attempt, credentials, client, now) {
            None => {}
            Some(true) => self.perform_queue_actions(Queue::Checks, now),
            Some(false) => self.handle_check(key, attempt, credentials, None, now),
        }
    }

    /// Handles CouchDB's answer to a check; None without an answer.
    pub(super) fn handle_check(
        &mut self,
        key: Key,
        attempt: u32,
        credentials: &Credentials,
        answer: Option<Answer>,
        now: Millis,
    ) {
        // After another login of the session the answer says nothing about it.
        let Some(session) = self.sessions.get(key).filter(|session| session.attempt() == attempt) else { return };
        let age = session.age(now);
        let outcome = match answer {
            Some(answer) => couchdb::read_login(credentials, answer.status, answer.auth_cookie, &answer.body),
            None => Err(LoginError::Unavailable),
        };
        if outcome.as_ref().is_err_and(|error| error.is_refusal() || *error == LoginError::Locked) {
            self.context.metrics.ended_sessions += 1;
        }
        let next = self.sessions.next_check(outcome.as_ref().ok(), age, &mut self.context, now);
        self.with_session(key, now, |session, turn| {
            session.handle_check(attempt, outcome, turn);
            if let Some(at) = next {
                session.check_at(at);
            }
        });
    }
}
