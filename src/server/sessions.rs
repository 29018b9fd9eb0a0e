//! What sessions ask for, carried out.

use super::{Protocol, Purpose, Server};
use crate::state::metrics::CloseReason;
use crate::state::pool::Answer;
use crate::state::session::{Action, Dialect, Reply, Session, Turn, messages};
use crate::state::subscriptions::{MAX_NAME, MAX_SUBSCRIPTIONS};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::{self, Credentials, Identity, LogInError};
use crate::wire::engine_io::Handshake;
use crate::wire::{howler_v1, websocket};

/// Bytes of randomness in a session id.
const SID_BYTES: usize = 15;
/// `goodbye` asks clients to come back after this long, in milliseconds, and up to as long again.
const RETRY_AFTER: u64 = 1_000;

impl Server {
    pub(super) fn open_json(&mut self, connection: Key, now: Millis) {
        let mut turn = Turn { now, rules: &self.rules, actions: &mut self.actions };
        let session = self.sessions.insert(Session::open_json(connection, &mut turn));
        self.carry(connection, session, now);
    }

    pub(super) fn open_socket_io(&mut self, connection: Key, handshake: Handshake, now: Millis) {
        let mut id = [0; SID_BYTES];
        if let Err(error) = crate::net::tls::random_bytes(&mut id) {
            log::error!("No session can be opened: {error}");
            return self.close_peer(connection, CloseReason::ShuttingDown);
        }
        let sid = data_encoding::BASE64URL_NOPAD.encode(&id);
        let mut turn = Turn { now, rules: &self.rules, actions: &mut self.actions };
        let session = Session::open_socket_io(&sid, handshake.credentials, connection, &mut turn);
        let session = self.sessions.insert(session);
        self.carry(connection, session, now);
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
                Action::LogIn(credentials) => self.log_in(key, credentials, now),
                Action::Subscribe(reply, names) => self.subscribe(key, &reply, &names),
                Action::Unsubscribe(reply, names) => self.unsubscribe(key, &reply, &names),
                Action::Resume(text) => {
                    self.with_session(key, now, |session, turn| session.handle_message(&text, turn));
                }
                Action::Leave => self.subscriptions.remove_session(key.index),
                Action::Ping => self.ping(key),
                Action::Close(reason) => self.close_session(key, reason, now),
            }
        }
        // Its room is used again, unless carrying an action out made actions of its own.
        if self.actions.is_empty() {
            self.actions = actions;
        }
    }

    fn log_in(&mut self, key: Key, credentials: Credentials, now: Millis) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Some(peer) = self.peers.get(session.connection) else { return };
        let Some(request) = self.couchdb.requests.log_in(&credentials, peer.address) else {
            return self.logged_in(key, Err(LogInError::NotAuthenticated), now);
        };
        let purpose = Purpose::LogIn(key, credentials);
        match self.pool.submit(request, purpose, now, &mut self.couchdb.pool_actions) {
            Some(ticket) => {
                session.log_in = Some(ticket);
                self.perform_pool_actions(now);
            }
            None => self.logged_in(key, Err(LogInError::Unavailable), now),
        }
    }

    /// CouchDB answered a log-in, or did not.
    pub(super) fn handle_log_in(&mut self, key: Key, credentials: &Credentials, answer: Option<Answer>, now: Millis) {
        let outcome = match answer {
            Some(answer) => couchdb::read_log_in(credentials, answer.status, answer.auth_cookie, &answer.body),
            None => Err(LogInError::Unavailable),
        };
        self.logged_in(key, outcome, now);
    }

    fn logged_in(&mut self, key: Key, outcome: Result<Identity, LogInError>, now: Millis) {
        match &outcome {
            Ok(_) => self.metrics.log_ins += 1,
            Err(error) => {
                self.metrics.failed_log_ins += 1;
                log::debug!("A log-in failed: {}", error.name());
            }
        }
        self.with_session(key, now, |session, turn| session.handle_log_in(outcome, turn));
    }

    fn subscribe(&mut self, key: Key, reply: &Reply, names: &[(Box<str>, Option<Box<str>>)]) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if names.iter().any(|(name, _)| name.len() > MAX_NAME) {
            let message = format!("a database name is longer than {MAX_NAME} bytes");
            return session.answer_error(reply, "LimitError", &message);
        }
        for (number, (name, _)) in names.iter().enumerate() {
            let Err(_full) = self.subscriptions.subscribe(key.index, name) else { continue };
            // All or nothing: those of this request that are new are taken back. One that was there before it
            // cannot be told from them by now, so only what is over the limit is left out.
            let message =
                format!("more than {MAX_SUBSCRIPTIONS} subscriptions; the first {number} names were subscribed");
            return session.answer_error(reply, "LimitError", &message);
        }
        // Where no position is known, a database that was known at one counts as changed.
        let changed: Vec<&str> = names.iter().filter(|(_, known)| known.is_some()).map(|(name, _)| &**name).collect();
        session.answer_subscribed(reply, &changed);
    }

    fn unsubscribe(&mut self, key: Key, reply: &Reply, names: &[Box<str>]) {
        for name in names {
            self.subscriptions.unsubscribe(key.index, name);
        }
        if let Some(session) = self.sessions.get_mut(key) {
            session.answer_ok(reply);
        }
    }

    fn ping(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if let Some(peer) = self.peers.get_mut(session.connection) {
            websocket::write_ping(peer.connection.queue());
            self.dirty.push(key);
        }
    }

    /// Ends a session whose client is still there: what it has to say leaves, then a close frame.
    pub(super) fn close_session(&mut self, key: Key, reason: CloseReason, now: Millis) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let connection = session.connection;
        let outgoing = session.outgoing.take();
        if let Some(peer) = self.peers.get_mut(connection) {
            let out = peer.connection.queue();
            for message in messages(&outgoing) {
                websocket::write_text(out, message);
            }
            websocket::write_close(out, reason.close_code(), reason.text());
            self.metrics.count_close(reason);
            log::debug!("Session of {} closed: {}.", peer.address, reason.text());
            peer.protocol = Protocol::Lingering { shut_down: false };
            self.linger(connection, now);
        }
        self.remove_session(key);
    }

    pub(super) fn remove_session(&mut self, key: Key) {
        let Some(session) = self.sessions.remove(key) else { return };
        self.subscriptions.remove_session(key.index);
        if let Some(ticket) = session.log_in {
            self.pool.cancel(ticket);
        }
    }

    /// The server stops: the client is told, and when to come back.
    pub(super) fn say_goodbye(&mut self, key: Key, now: Millis) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.dialect() == Dialect::Json {
            let retry_after = RETRY_AFTER + self.jitter.below(RETRY_AFTER);
            session.outgoing.push(|out| howler_v1::write_goodbye(out, retry_after));
        }
        self.close_session(key, CloseReason::ShuttingDown, now);
    }
}
