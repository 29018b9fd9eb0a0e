//! What sessions ask for, carried out.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};

use super::exchange::Exchange;
use super::polling::sid_of;
use super::{Login, Purpose, Queue, Requests, Server, Sessions, Timer};
use crate::state::departures::Memory;
use crate::state::login_limits::{Admission, Kind, Outcome, Rejection};
use crate::state::metrics::CloseReason;
use crate::state::pool::{self, Answer, MAX_ATTEMPTS, NoAnswer, Owner, Submission};
use crate::state::session::{
    Action, Opening, PendingLogin, Polling, Session, SessionContext, TAG, Transport, messages,
};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::{self, Credentials, Identity, LoginError};
use crate::wire::engine_io::{SID_LENGTH, Sid, Version};
use crate::wire::secret::Secret;
use crate::wire::websocket;

/// A log-in that too many others are before is to be tried again after this long, in milliseconds, and up to as long again.
const LOG_IN_AFTER: Millis = 5_000;
/// Logins that waited for others and go on, or are rejected, in one turn.
const LOGINS_A_TURN: usize = 128;
/// A proxy says that CouchDB did not answer in time.
const GATEWAY_TIMEOUT: u16 = 504;

impl Server {
    pub(super) fn open_json(&mut self, connection: Key, now: Millis) {
        let mut turn = SessionContext { now, rules: &self.sessions.rules, actions: &mut self.sessions.actions };
        let epoch = self.databases.positions.epoch();
        let session = self.sessions.table.insert(Session::open_json(connection, epoch, &mut turn));
        self.carry(connection, session, now);
    }

    /// Opens a session on the WebSocket that a connection has become, or by polling, with the request that is to be
    /// answered.
    pub(super) fn open_socket_io(
        &mut self,
        connection: Key,
        version: Version,
        credentials: Credentials,
        polling: Option<(Exchange, bool)>,
        now: Millis,
    ) {
        let Some(client) = self.connections.peers.get(connection).map(|peer| peer.address) else { return };
        let mut tag = [0; TAG];
        if let Err(error) = crate::net::tls::random_bytes(&mut tag) {
            let (level, more) = self.sessions.randomness_log.level(log::Level::Error, now);
            log::log!(level, "No session can be opened: {error}{more}");
            return self.close_peer(connection, CloseReason::ShuttingDown, now);
        }
        let transport = match polling {
            None => Transport::WebSocket(connection),
            Some(_) => Transport::Polling(Box::new(Polling::new(client))),
        };
        let Sessions { table: sessions, rules, actions, .. } = &mut self.sessions;
        let opened = sessions.try_insert_with(|key| {
            let opening = Opening { version, sid: sid_of(key, tag), tag, credentials, transport };
            Ok::<_, Infallible>(Session::open_socket_io(opening, &mut SessionContext { now, rules, actions }))
        });
        let session = opened.unwrap_or_else(|never| match never {});
        match polling {
            None => self.carry(connection, session, now),
            Some((mut exchange, counts_at_address)) => {
                if !self.connections.peers.get(connection).is_some_and(|peer| peer.proxied) {
                    self.connections.openings.insert(session, connection);
                }
                if let Some(polling) = self.sessions.table.get_mut(session).and_then(Session::polling) {
                    polling.counts_at_address = counts_at_address;
                }
                exchange.sid = Some(sid_of(session, tag));
                self.answer_opening(connection, session, exchange, now);
            }
        }
        self.perform(session, now);
        self.note_session(session);
    }

    /// Hands an input to a session, and does what it asks for.
    pub(super) fn with_session(
        &mut self,
        key: Key,
        now: Millis,
        input: impl FnOnce(&mut Session, &mut SessionContext<'_>),
    ) {
        let Some(session) = self.sessions.table.get_mut(key) else { return };
        input(session, &mut SessionContext { now, rules: &self.sessions.rules, actions: &mut self.sessions.actions });
        self.perform(key, now);
        if self.sessions.table.get(key).is_some_and(|session| !session.outgoing.is_empty()) {
            self.sessions.dirty.push(key);
        }
        self.note_session(key);
        self.arm_session(key, now);
    }

    pub(super) fn session_timeout(&mut self, key: Key, bucket: Millis, now: Millis) {
        let Some(session) = self.sessions.table.get_mut(key) else { return };
        if session.alarm.fired(bucket) {
            self.with_session(key, now, Session::handle_timeout);
        }
    }

    /// Carries out the actions of the session at hand, in order.
    fn perform(&mut self, key: Key, now: Millis) {
        let mut actions = std::mem::take(&mut self.sessions.actions);
        for action in actions.drain(..) {
            match action {
                Action::LogIn(credentials) => self.log_in(key, &credentials, now),
                Action::Subscribe(reply, names, epoch) => self.subscribe(key, reply, names, epoch, now),
                Action::Unsubscribe(reply, names) => self.unsubscribe(key, reply, names),
                Action::Resume(text) => self.hand_message(key, &text, now),
                Action::Leave => self.leave(key),
                Action::Connect => self.confirm_connect(key),
                Action::Ping => self.ping(key),
                Action::Check(credentials) => self.check_session(key, &credentials, now),
                Action::Reconsider => self.databases.access.reconsider_session(key, &self.databases.subscriptions),
                Action::Close(reason) => self.close_session(key, reason, now),
            }
        }
        // Its room is used again, unless carrying an action out made actions of its own.
        if self.sessions.actions.is_empty() {
            self.sessions.actions = actions;
        }
    }

    fn log_in(&mut self, key: Key, credentials: &Credentials, now: Millis) {
        // The client may have connected again: the answer to who it was before is not its any more.
        self.abandon_login(key, now);
        let is_new = self.sessions.table.get(key).is_some_and(|session| session.stage().is_some());
        if is_new && self.memory_rejection().is_some() {
            return self.logged_in(key, credentials, Err(LoginError::Overloaded), now);
        }
        let (client, credentials) = (self.client_of(key), credentials.clone());
        self.try_log_in(Login { session: key, client, credentials, since: now, tries: 0 }, now);
    }

    /// Asks CouchDB who this is, unless too many logins failed before.
    fn try_log_in(&mut self, login: Login, now: Millis) {
        let by_name = self.upstream.forwarding.counts_by_name();
        let kind = match &login.credentials {
            Credentials::Password { username, password } => {
                if let Err(error) = self.compare_own(login.client, username, password, now) {
                    return self.logged_in(login.session, &Credentials::Unusable, Err(error), now);
                }
                Kind::Password { name: username, password: password.reveal(), by_name }
            }
            Credentials::Cookie(_) | Credentials::Token(_) => Kind::Cookie,
            Credentials::TooLong | Credentials::Unusable | Credentials::UnusableToken => {
                let refusal = Err(login.credentials.error());
                return self.logged_in(login.session, &Credentials::Unusable, refusal, now);
            }
        };
        match self.sessions.login_limits.admit(login.client, kind, login.since, || login.clone(), now) {
            Admission::Ask(attempt) => self.ask_login(login, attempt, now),
            Admission::Reject(rejection) => self.reject_login(&login, rejection, now),
            Admission::Wait(attempt) => {
                if let Some(session) = self.sessions.table.get_mut(login.session) {
                    session.login = Some(PendingLogin::Waits(attempt));
                }
            }
        }
    }

    /// Compares a password for the server's own admin here: a wrong one, sent by anybody, would have CouchDB lock the
    /// admin out, and with it this server.
    fn compare_own(&mut self, client: IpAddr, name: &str, password: &Secret, now: Millis) -> Result<(), LoginError> {
        let Some(is_right) = self.upstream.requests.is_own_password(name, password.reveal()) else { return Ok(()) };
        if let Err(wait) = self.sessions.login_limits.count_compared(client, is_right, now) {
            self.context.metrics.throttled_logins += 1;
            return Err(LoginError::AddressLimit(wait));
        }
        if is_right { Ok(()) } else { Err(LoginError::NotAuthenticated) }
    }

    fn ask_login(&mut self, login: Login, attempt: Key, now: Millis) {
        let (key, client, since) = (login.session, login.client, login.since);
        let request = self.upstream.requests.log_in(&login.credentials, client).unwrap_or_default();
        // CouchDB counts a wrong password each time.
        let repeatable = !matches!(login.credentials, Credentials::Password { .. });
        let purpose = Purpose::LogIn(login, attempt);
        let submission = Submission { owner: Owner::at(client), request, purpose, since, repeatable };
        let Requests { pool, actions, .. } = &mut self.upstream.queues[Queue::Logins as usize];
        match pool.submit(submission, now, actions) {
            Ok(ticket) => {
                if let Some(session) = self.sessions.table.get_mut(key) {
                    session.login = Some(PendingLogin::Queued(ticket));
                }
                self.perform_pool_actions(Queue::Logins, now);
            }
            Err(rejection) => {
                self.sessions.login_limits.finish(attempt, Outcome::NotAsked, now);
                let silent = rejection == pool::Rejection::Late && now < since + pool::LONGEST_WAIT;
                let error = if silent { LoginError::Unavailable } else { LoginError::Overloaded };
                self.logged_in(key, &Credentials::Unusable, Err(error), now);
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
        self.logged_in(login.session, &Credentials::Unusable, Err(error), now);
    }

    /// Goes on with logins that waited for the answers to others.
    pub(super) fn serve_logins(&mut self, now: Millis) {
        for _ in 0..LOGINS_A_TURN {
            match self.sessions.login_limits.next(now) {
                None => return,
                Some((login, Ok(attempt))) => self.ask_login(login, attempt, now),
                Some((login, Err(rejection))) => self.reject_login(&login, rejection, now),
            }
        }
    }

    /// Nobody waits for the answer to a session's login any more. One that CouchDB has counts all the same: the password
    /// may be wrong.
    fn abandon_login(&mut self, key: Key, now: Millis) {
        let ticket = match self.sessions.table.get_mut(key).and_then(|session| session.login.take()) {
            None => return,
            Some(PendingLogin::Waits(attempt)) => return self.sessions.login_limits.cancel(attempt, now),
            Some(PendingLogin::Queued(ticket)) => ticket,
        };
        let pool = &mut self.upstream.queues[Queue::Logins as usize].pool;
        let sent = pool.is_sent(ticket);
        let Some(purpose) = pool.purpose(ticket) else { return };
        let Purpose::LogIn(login, attempt) = purpose else { return };
        let attempt = *attempt;
        if sent {
            *purpose = Purpose::Abandoned(attempt, std::mem::take(&mut login.credentials));
        } else {
            pool.cancel(ticket);
            self.sessions.login_limits.finish(attempt, Outcome::NotAsked, now);
        }
    }

    /// CouchDB answered a login, or did not.
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
                // CouchDB may have counted it, so it comes in again.
                self.sessions.login_limits.finish(attempt, Outcome::Unanswered, now);
                return self.try_log_in(login, now);
            }
        }
        let outcome = self.read_login(attempt, &login.credentials, answer, now);
        self.logged_in(login.session, &login.credentials, outcome, now);
    }

    /// What CouchDB says of credentials.
    pub(super) fn read_login(
        &mut self,
        attempt: Key,
        credentials: &Credentials,
        answer: Result<Answer, NoAnswer>,
        now: Millis,
    ) -> Result<Identity, LoginError> {
        let (result, may_count) = match answer {
            Ok(answer) => {
                let result = couchdb::read_login(credentials, answer.status, answer.auth_cookie, &answer.body);
                (result, answer.status == GATEWAY_TIMEOUT)
            }
            Err(reason) => {
                // Its time was over while others were being answered, or before it came to the front.
                let waits = self.upstream.queues[Queue::Logins as usize].pool.is_waiting();
                let error = if waits { LoginError::Overloaded } else { LoginError::Unavailable };
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
        self.sessions.login_limits.finish(attempt, outcome, now);
        result
    }

    fn logged_in(&mut self, key: Key, credentials: &Credentials, outcome: Result<Identity, LoginError>, now: Millis) {
        match &outcome {
            Ok(_) => self.context.metrics.logins += 1,
            Err(error) => {
                self.context.metrics.failed_logins += 1;
                self.context.metrics.overloaded_logins += u64::from(*error == LoginError::Overloaded);
                log::debug!("A log-in failed: {}", error.name());
            }
        }
        let retry_after = LOG_IN_AFTER + self.context.jitter.below(LOG_IN_AFTER);
        let next_check = outcome.as_ref().ok().and_then(|identity| self.next_check(Some(identity), 0, now));
        self.with_session(key, now, |session, turn| {
            session.handle_login(outcome, retry_after, turn);
            session.keep_token(credentials);
            if let Some(at) = next_check {
                session.check_at(at);
            }
        });
    }

    /// Where the client of a session is, as CouchDB is told.
    pub(super) fn client_of(&self, key: Key) -> IpAddr {
        let address = match self.sessions.table.get(key).map(|session| &session.transport) {
            Some(Transport::Polling(polling)) => Some(polling.client),
            Some(Transport::WebSocket(connection)) => self.connections.peers.get(*connection).map(|peer| peer.address),
            None => None,
        };
        // Of who is gone nobody asks.
        address.unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    fn confirm_connect(&mut self, key: Key) {
        let mut id = [0; SID_LENGTH];
        // Where the system has no randomness, this id, which nothing is found by, can do without.
        let _ = crate::net::tls::random_bytes(&mut id);
        if let Some(session) = self.sessions.table.get_mut(key) {
            session.confirm_connect(Sid(id));
        }
    }

    fn ping(&mut self, key: Key) {
        let connection = self.sessions.table.get(key).and_then(Session::websocket);
        if let Some(peer) = connection.and_then(|connection| self.connections.peers.get_mut(connection)) {
            websocket::write_ping(peer.connection.queue());
            self.sessions.dirty.push(key);
        }
    }

    /// Ends a session whose client is still there: what it has to say leaves, then the transport is closed.
    pub(super) fn close_session(&mut self, key: Key, reason: CloseReason, now: Millis) {
        let memory = self.memory_of(key);
        self.log_session_end(key, "closed", reason, now);
        let Some(session) = self.sessions.table.get_mut(key) else { return };
        self.context.metrics.count_close(reason);
        match session.websocket() {
            None => self.close_polling(key, reason, now),
            Some(connection) => {
                let outgoing = session.outgoing.take();
                if let Some(peer) = self.connections.peers.get_mut(connection) {
                    let out = peer.connection.queue();
                    for message in messages(&outgoing) {
                        websocket::write_text(out, message);
                    }
                    websocket::write_close(out, reason.close_code(), reason.text());
                    self.linger(connection, now);
                }
            }
        }
        self.remove_session(key, memory, now);
    }

    pub(super) fn remove_session(&mut self, key: Key, memory: Option<Memory>, now: Millis) {
        self.abandon_login(key, now);
        self.delist(Timer::Session(key));
        self.leave_polling(key);
        // What it was about to end is not what broke.
        let cancelled = self.databases.name_lists.remove(key);
        self.give_up_reserves(&cancelled);
        let memory = memory.filter(|_| !cancelled.leaves);
        if !self.depart(key, memory, now) {
            return;
        }
        self.sessions.user_totals.recount(key, None, 0);
        self.cancel_subscribes(key);
    }
}
