//! Inputs of sessions, the actions that they return, and the end of sessions.

use std::net::{IpAddr, Ipv4Addr};

use super::Server;
use crate::state::metrics::CloseReason;
use crate::state::session::{Action, Dialect, Session, SessionContext, Transport, messages};
use crate::state::session_cleanup::RememberedSession;
use crate::state::table::Key;
use crate::state::timers::{Millis, seconds};
use crate::wire::couchdb::Credentials;
use crate::wire::engine_io::Version;
use crate::wire::websocket;

impl Server {
    /// Opens a `howler.v1` session on a connection that has become a WebSocket.
    pub(super) fn open_json(&mut self, connection: Key, now: Millis) {
        let session = self.sessions.open_json(connection, self.databases.epoch(), now);
        self.carry(connection, session, now);
    }

    /// Opens a Socket.IO session on a connection that has become a WebSocket.
    pub(super) fn open_websocket(&mut self, connection: Key, version: Version, credentials: Credentials, now: Millis) {
        let transport = Transport::WebSocket(connection);
        let Some(session) = self.sessions.open_socket_io(version, credentials, transport, now) else {
            return self.close_connection(connection, CloseReason::ShuttingDown, now);
        };
        self.carry(connection, session, now);
        self.perform_actions(session, now);
        self.review_session_later(session);
    }

    /// Has a WebSocket carry a session.
    pub(super) fn carry(&mut self, connection: Key, session: Key, now: Millis) {
        self.connections.carry(connection, session);
        self.sessions.mark_dirty(session);
        self.sessions.arm(session, &mut self.context, now);
    }

    /// Hands a message to a session, or queues it behind the work for earlier ones.
    pub(super) fn deliver_message(&mut self, key: Key, text: &str, now: Millis) {
        self.databases.count_message(text);
        if !self.databases.is_busy(key) {
            return self.with_session(key, now, |session, turn| session.handle_message(text, turn));
        }
        let rules = self.sessions.rules();
        if !self.databases.defer(key, text, rules.max_message + rules.max_payload) {
            self.close_session(key, CloseReason::TooMuchHeld, now);
        }
    }

    /// Hands an input to a session, and performs its actions.
    pub(super) fn with_session(
        &mut self,
        key: Key,
        now: Millis,
        input: impl FnOnce(&mut Session, &mut SessionContext<'_>),
    ) {
        if !self.sessions.input(key, now, input) {
            return;
        }
        self.perform_actions(key, now);
        if self.sessions.get(key).is_some_and(|session| !session.outgoing.is_empty()) {
            self.sessions.mark_dirty(key);
        }
        self.review_session_later(key);
        self.sessions.arm(key, &mut self.context, now);
    }

    /// Performs the actions of the session that took an input, in order.
    pub(super) fn perform_actions(&mut self, key: Key, now: Millis) {
        let mut actions = self.sessions.take_actions();
        for action in actions.drain(..) {
            match action {
                Action::LogIn(credentials) => self.log_in(key, &credentials, now),
                Action::Subscribe(reply, names, epoch) => self.subscribe(key, reply, names, epoch, now),
                Action::Unsubscribe(reply, names) => self.unsubscribe(key, reply, names),
                Action::Resume(text) => self.deliver_message(key, &text, now),
                Action::Leave => self.unsubscribe_all(key),
                Action::Connect => self.sessions.confirm_connect(key),
                Action::Ping => self.ping(key),
                Action::Check(credentials) => self.check_session(key, &credentials, now),
                Action::Reconsider => self.databases.reconsider_session(key),
                Action::Close(reason) => self.close_session(key, reason, now),
            }
        }
        self.sessions.put_actions(actions);
    }

    fn ping(&mut self, key: Key) {
        if let Some(connection) = self.sessions.get(key).and_then(Session::websocket) {
            self.connections.queue(connection, websocket::write_ping);
            self.sessions.mark_dirty(key);
        }
    }

    /// Returns the address of a session's client, as CouchDB gets it.
    pub(super) fn client_of(&self, key: Key) -> IpAddr {
        let address = match self.sessions.get(key).map(|session| &session.transport) {
            Some(Transport::Polling(polling)) => Some(polling.client),
            Some(Transport::WebSocket(connection)) => self.connections.address(*connection),
            None => None,
        };
        // The session has ended, so no address is needed.
        address.unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// Has the sessions written to that were notified.
    pub(super) fn mark_notified(&mut self) {
        let (few, bulk) = self.databases.notified();
        self.sessions.mark_notified(few, bulk);
    }

    /// Updates the total of a session's user.
    pub(super) fn recount_user(&mut self, key: Key) {
        self.sessions.recount_user(key, self.databases.count(key));
    }

    /// Closes a session whose client is connected: its answers leave, then its transport is closed.
    pub(super) fn close_session(&mut self, key: Key, reason: CloseReason, now: Millis) {
        self.log_session_end(key, "closed", reason, now);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let memory = self.databases.memory_of(session);
        self.context.metrics.count_close(reason);
        match session.websocket() {
            None => self.close_polling(key, reason, now),
            Some(connection) => {
                let outgoing = session.outgoing.take();
                self.connections.queue(connection, |out| {
                    for message in messages(&outgoing) {
                        websocket::write_text(out, message);
                    }
                    websocket::write_close(out, reason.close_code(), reason.text());
                });
                self.connections.linger(connection, &mut self.context, now);
            }
        }
        self.remove_session(key, memory, now);
    }

    /// Ends a session whose WebSocket is closed.
    pub(super) fn end_session(&mut self, key: Key, reason: CloseReason, now: Millis) {
        self.log_session_end(key, "ended", reason, now);
        let Some(session) = self.sessions.get(key) else { return };
        let memory = self.databases.memory_of(session);
        self.remove_session(key, memory, now);
    }

    fn remove_session(&mut self, key: Key, memory: Option<RememberedSession>, now: Millis) {
        self.abandon_login(key, now);
        self.unlist_session(key);
        self.end_polling(key);
        // Subscriptions that the session was about to end are not remembered.
        let leaves = self.databases.cancel_work(key);
        let memory = memory.filter(|_| !leaves);
        if !self.sessions.remove(key) {
            return;
        }
        self.databases.depart(key, memory);
        self.end_departed(now);
        self.sessions.uncount_user(key);
        self.databases.cancel_subscribes(key);
    }

    /// Continues to remove the subscriptions of sessions that have ended.
    pub(super) fn end_departed(&mut self, now: Millis) {
        while let Some(session) = self.databases.next_departed(now) {
            self.sessions.release(session);
        }
    }

    /// Logs the end of a session, at level `debug`: a busy server has very many. The user's name is
    /// the one that CouchDB confirmed, so that it cannot be a password in the wrong field.
    fn log_session_end(&self, key: Key, verb: &str, reason: CloseReason, now: Millis) {
        let Some(session) = self.sessions.get(key) else { return };
        let dialect = match session.dialect() {
            Dialect::Json => "howler.v1",
            Dialect::SocketIo(Version::V3) => "engine.io-3",
            Dialect::SocketIo(Version::V4) => "engine.io-4",
        };
        let transport = match session.transport {
            Transport::WebSocket(_) => "websocket",
            Transport::Polling(_) => "polling",
        };
        let (client, reason) = (self.client_of(key), reason.text());
        log::debug!(
            event = "session-end", client:% = client, user = session.user_name(), dialect = dialect,
            transport = transport, subscriptions = self.databases.count(key) as u64,
            notifications = session.notifications, duration_s = seconds(now).saturating_sub(session.opened), reason = reason;
            "Session of {client} {verb}: {reason}."
        );
    }
}
