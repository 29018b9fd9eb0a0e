//! What sessions ask for, carried out.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};

use super::http_exchange::Exchange;
use super::polling::sid_of;
use super::{Purpose, Queue, Server, Timer};
use crate::state::log_in_limits::{Admission, Outcome};
use crate::state::metrics::CloseReason;
use crate::state::pool::{Answer, Owner};
use crate::state::session::{Action, Opening, Polling, Session, TAG, Transport, Turn, messages};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::{self, Credentials, Identity, LogInError};
use crate::wire::engine_io::{SID_LENGTH, Sid, Version};
use crate::wire::websocket;

/// A log-in that too many others are before is to be tried again after this long, in milliseconds, and up to as long again.
const LOG_IN_AFTER: Millis = 5_000;

impl Server {
    pub(super) fn open_json(&mut self, connection: Key, now: Millis) {
        let mut turn = Turn { now, rules: &self.rules, actions: &mut self.actions };
        let epoch = self.positions.epoch();
        let session = self.sessions.insert(Session::open_json(connection, epoch, &mut turn));
        self.carry(connection, session, now);
    }

    /// Opens a session on the WebSocket that a connection has become, or by polling, with the request that is to be
    /// answered.
    pub(super) fn open_socket_io(
        &mut self,
        connection: Key,
        version: Version,
        credentials: Credentials,
        polling: Option<Exchange>,
        now: Millis,
    ) {
        let Some(client) = self.peers.get(connection).map(|peer| peer.address) else { return };
        let mut tag = [0; TAG];
        if let Err(error) = crate::net::tls::random_bytes(&mut tag) {
            let (level, more) = self.randomness_log.level(log::Level::Error, now);
            log::log!(level, "No session can be opened: {error}{more}");
            return self.close_peer(connection, CloseReason::ShuttingDown, now);
        }
        let transport = match polling {
            None => Transport::WebSocket(connection),
            Some(_) => Transport::Polling(Box::new(Polling::new(client))),
        };
        let Self { sessions, rules, actions, .. } = self;
        let opened = sessions.try_insert_with(|key| {
            let opening = Opening { version, sid: sid_of(key, tag), tag, credentials, transport };
            Ok::<_, Infallible>(Session::open_socket_io(opening, &mut Turn { now, rules, actions }))
        });
        let session = opened.unwrap_or_else(|never| match never {});
        match polling {
            None => self.carry(connection, session, now),
            Some(mut exchange) => {
                self.admit_newcomer(Timer::Session(session), now);
                exchange.sid = Some(sid_of(session, tag));
                self.answer_opening(connection, session, exchange, now);
            }
        }
        self.perform(session, now);
    }

    /// Hands an input to a session, and does what it asks for.
    pub(super) fn with_session(&mut self, key: Key, now: Millis, input: impl FnOnce(&mut Session, &mut Turn<'_>)) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        input(session, &mut Turn { now, rules: &self.rules, actions: &mut self.actions });
        self.perform(key, now);
        if self.sessions.get(key).is_some_and(|session| !session.outgoing.is_empty()) {
            self.dirty.push(key);
        }
        self.arm_session(key, now);
    }

    pub(super) fn session_timeout(&mut self, key: Key, bucket: Millis, now: Millis) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.alarm.fired(bucket) {
            self.with_session(key, now, Session::handle_timeout);
        }
    }

    /// Carries out the actions of the session at hand, in order.
    fn perform(&mut self, key: Key, now: Millis) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::LogIn(credentials) => self.log_in(key, &credentials, now),
                Action::Subscribe(reply, names, epoch) => self.subscribe(key, reply, &names, epoch, now),
                Action::Unsubscribe(reply, names) => self.unsubscribe(key, &reply, &names),
                Action::Resume(text) => {
                    self.with_session(key, now, |session, turn| session.handle_message(&text, turn));
                }
                Action::Leave => self.leave(key),
                Action::Connect => self.confirm_connect(key),
                Action::Ping => self.ping(key),
                Action::Check(credentials) => self.check_session(key, &credentials, now),
                Action::Reconsider => self.reconsider_all(key),
                Action::Close(reason) => self.close_session(key, reason, now),
            }
        }
        // Its room is used again, unless carrying an action out made actions of its own.
        if self.actions.is_empty() {
            self.actions = actions;
        }
    }

    fn log_in(&mut self, key: Key, credentials: &Credentials, now: Millis) {
        // The client may have connected anew: the answer to who it was before is not its any more.
        self.abandon_log_in(key, now);
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.attempt = session.attempt.wrapping_add(1);
        self.try_log_in(key, credentials, now);
    }

    /// Asks CouchDB who this is, unless too many wrong passwords came before.
    fn try_log_in(&mut self, key: Key, credentials: &Credentials, now: Millis) {
        let Some(attempt) = self.sessions.get(key).map(|session| session.attempt) else { return };
        let client = self.client_of(key);
        if let Credentials::Password { username, .. } = credentials {
            let waiting = || (key, attempt, credentials.clone());
            let refusal = match self.log_in_limits.admit(client, username, waiting, now) {
                Admission::Ask => None,
                Admission::Waits => return,
                Admission::Refused(wait) => {
                    log::debug!("A log-in of {client} is not tried: too many wrong passwords, {wait} ms to wait.");
                    self.metrics.slowed_log_ins += 1;
                    Some(LogInError::Locked)
                }
                Admission::Overloaded => Some(LogInError::Overloaded),
            };
            if let Some(error) = refusal {
                return self.logged_in(key, credentials, Err(error), now);
            }
        }
        let Some(request) = self.couchdb.requests.log_in(credentials, client) else {
            return self.logged_in(key, credentials, Err(LogInError::NotAuthenticated), now);
        };
        let purpose = Purpose::LogIn(key, client, credentials.clone());
        let Some(ticket) = self.ask_couchdb(Queue::LogIns, Owner::at(client), request, purpose, now) else {
            self.drop_password(client, credentials, now);
            return self.logged_in(key, credentials, Err(LogInError::Overloaded), now);
        };
        if let Some(session) = self.sessions.get_mut(key) {
            session.log_in = Some(ticket);
        }
        self.perform_pool_actions(Queue::LogIns, now);
    }

    /// Nobody waits for the answer to a session's log-in any more. One that CouchDB has counts all the same: the password
    /// may be wrong.
    fn abandon_log_in(&mut self, key: Key, now: Millis) {
        let Some(ticket) = self.sessions.get_mut(key).and_then(|session| session.log_in.take()) else { return };
        let pool = &mut self.couchdb.queues[Queue::LogIns as usize].pool;
        let sent = pool.is_sent(ticket);
        let Some(purpose) = pool.purpose(ticket) else { return };
        let Purpose::LogIn(_, client, credentials) = purpose else { return };
        let (client, credentials) = (*client, std::mem::take(credentials));
        if sent {
            *purpose = Purpose::Abandoned(client, credentials);
        } else {
            pool.cancel(ticket);
            self.drop_password(client, &credentials, now);
        }
    }

    /// CouchDB answered a log-in, or did not.
    pub(super) fn handle_log_in(
        &mut self,
        key: Key,
        client: IpAddr,
        credentials: &Credentials,
        answer: Option<Answer>,
        now: Millis,
    ) {
        let outcome = self.read_log_in(client, credentials, answer, now);
        self.logged_in(key, credentials, outcome, now);
    }

    /// What CouchDB says of credentials.
    pub(super) fn read_log_in(
        &mut self,
        client: IpAddr,
        credentials: &Credentials,
        answer: Option<Answer>,
        now: Millis,
    ) -> Result<Identity, LogInError> {
        let outcome = match answer {
            Some(answer) => couchdb::read_log_in(credentials, answer.status, answer.auth_cookie, &answer.body),
            // Its time was over while others were being answered, or before it came to the front.
            None if self.couchdb.queues[Queue::LogIns as usize].pool.is_waiting() => Err(LogInError::Overloaded),
            None => Err(LogInError::Unavailable),
        };
        let counts = match &outcome {
            Ok(_) => Outcome::Right,
            Err(LogInError::NotAuthenticated | LogInError::Locked) => Outcome::Wrong,
            Err(LogInError::Unavailable | LogInError::Overloaded) => Outcome::Unknown,
        };
        let error = outcome.as_ref().err().filter(|_| counts == Outcome::Unknown).copied();
        for (key, credentials) in self.count_password(client, credentials, counts, now) {
            // What CouchDB did not say after all this time it will not say soon: those who waited have waited as long.
            match error {
                Some(error) => self.logged_in(key, &credentials, Err(error), now),
                None => self.try_log_in(key, &credentials, now),
            }
        }
        outcome
    }

    /// What came of a password: the log-ins that waited for it.
    fn count_password(
        &mut self,
        client: IpAddr,
        credentials: &Credentials,
        outcome: Outcome,
        now: Millis,
    ) -> Vec<(Key, Credentials)> {
        let Credentials::Password { username, .. } = credentials else { return Vec::new() };
        let waited = self.log_in_limits.handle_answer(client, username, outcome, now).into_iter();
        let goes_on = |key: Key, attempt| self.sessions.get(key).is_some_and(|session| session.attempt == attempt);
        waited.filter(|(key, attempt, _)| goes_on(*key, *attempt)).map(|(key, _, its)| (key, its)).collect()
    }

    /// A password is not tried after all: those that waited for it are.
    fn drop_password(&mut self, client: IpAddr, credentials: &Credentials, now: Millis) {
        for (key, credentials) in self.count_password(client, credentials, Outcome::Unknown, now) {
            self.try_log_in(key, &credentials, now);
        }
    }

    fn logged_in(&mut self, key: Key, credentials: &Credentials, outcome: Result<Identity, LogInError>, now: Millis) {
        match &outcome {
            Ok(_) => self.metrics.log_ins += 1,
            Err(error) => {
                self.metrics.failed_log_ins += 1;
                self.metrics.overloaded_log_ins += u64::from(*error == LogInError::Overloaded);
                log::debug!("A log-in failed: {}", error.name());
            }
        }
        let retry_after = LOG_IN_AFTER + self.jitter.below(LOG_IN_AFTER);
        let next_check = outcome.as_ref().ok().and_then(|_| self.next_check(now));
        self.with_session(key, now, |session, turn| {
            session.handle_log_in(outcome, retry_after, turn);
            session.keep_token(credentials);
            if let Some(at) = next_check {
                session.check_at(at);
            }
        });
    }

    /// Where the client of a session is, as CouchDB is told.
    pub(super) fn client_of(&self, key: Key) -> IpAddr {
        let address = match self.sessions.get(key).map(|session| &session.transport) {
            Some(Transport::Polling(polling)) => Some(polling.client),
            Some(Transport::WebSocket(connection)) => self.peers.get(*connection).map(|peer| peer.address),
            None => None,
        };
        // Of who is gone nobody asks.
        address.unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    fn confirm_connect(&mut self, key: Key) {
        let mut id = [0; SID_LENGTH];
        // Where the system has no randomness, this id, which nothing is found by, can do without.
        let _ = crate::net::tls::random_bytes(&mut id);
        if let Some(session) = self.sessions.get_mut(key) {
            session.confirm_connect(Sid(id));
        }
    }

    fn ping(&mut self, key: Key) {
        let connection = self.sessions.get(key).and_then(Session::websocket);
        if let Some(peer) = connection.and_then(|connection| self.peers.get_mut(connection)) {
            websocket::write_ping(peer.connection.queue());
            self.dirty.push(key);
        }
    }

    /// Ends a session whose client is still there: what it has to say leaves, then the transport is closed.
    pub(super) fn close_session(&mut self, key: Key, reason: CloseReason, now: Millis) {
        self.remember(key, now);
        self.log_session_end(key, "closed", reason, now);
        let Some(session) = self.sessions.get_mut(key) else { return };
        self.metrics.count_close(reason);
        match session.websocket() {
            None => self.close_polling(key, reason, now),
            Some(connection) => {
                let outgoing = session.outgoing.take();
                if let Some(peer) = self.peers.get_mut(connection) {
                    let out = peer.connection.queue();
                    for message in messages(&outgoing) {
                        websocket::write_text(out, message);
                    }
                    websocket::write_close(out, reason.close_code(), reason.text());
                    self.linger(connection, now);
                }
            }
        }
        self.remove_session(key, now);
    }

    pub(super) fn remove_session(&mut self, key: Key, now: Millis) {
        self.abandon_log_in(key, now);
        if self.sessions.remove(key).is_none() {
            return;
        }
        self.access.cancel(key, &mut self.subscriptions);
        self.positions.cancel(key, &mut self.subscriptions);
        self.subscriptions.remove_session(key.index);
    }
}
