//! Sessions over HTTP long polling: parked GETs, POSTs, and the WebSocket that takes over.
//!
//! Connections and sessions are independent here: any connection may bring a session's next
//! request, and waits for another request after the response.

use super::Server;
use super::connections::Quota;
use super::connections::exchange::{Exchange, Post};
use super::connections::respond::{HTML, Response, TEXT};
use crate::state::limits::UNAUTHENTICATED_MESSAGE;
use crate::state::metrics::CloseReason;
use crate::state::routes::{self, PostFormat};
use crate::state::session::{Dialect, Polling, Session, Transport, messages};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::state::unauthenticated::Stage;
use crate::wire::couchdb::Credentials;
use crate::wire::engine_io::{self, MAX_PAYLOAD, Refusal, Sid, Version};
use crate::wire::http::BodyDecoder;
use crate::wire::{payload, websocket};

/// Most bytes of answers that wait for a client to poll.
const MAX_OUTGOING: usize = 64 * 1024;

impl Server {
    /// Opens a polling session, unless its connection or its address has too many.
    pub(super) fn open_polling(
        &mut self,
        key: Key,
        version: Version,
        credentials: Credentials,
        mut exchange: Exchange,
        now: Millis,
    ) {
        let Some(client) = self.connections.address(key) else { return };
        let Some(quota) = self.connections.take_quota(client, &self.context) else {
            // The connection stays open: that of a proxy carries other clients, too.
            self.context.metrics.count_close(CloseReason::TooManyOfAddress);
            return self.respond_answer(key, &exchange, &routes::TOO_MANY_OF_ADDRESS, now);
        };
        if !self.connections.may_open_session(key) {
            self.connections.return_quota(quota, client);
            exchange.keep_alive = false;
            exchange.closed_for = CloseReason::TooManySessions;
            return self.respond_answer(key, &exchange, &routes::TOO_MANY_SESSIONS, now);
        }
        let mut polling = Polling::new(client);
        polling.counts_at_address = quota == Quota::Address;
        let transport = Transport::Polling(Box::new(polling));
        let Some(session) = self.sessions.open_socket_io(version, credentials, transport, now) else {
            self.connections.return_quota(quota, client);
            return self.close_connection(key, CloseReason::ShuttingDown, now);
        };
        self.connections.note_session_opened(key, session);
        exchange.session = Some(session);
        if let Some(polling) = self.sessions.polling(session) {
            polling.parked = Some(key);
        }
        self.connections.park(key, session, exchange);
        self.sessions.arm(session, &mut self.context, now);
        self.sessions.mark_dirty(session);
        self.perform_actions(session, now);
        self.review_session_later(session);
    }

    /// Handles that a session no longer polls: it counts neither at its connection nor at its
    /// address.
    pub(super) fn end_polling(&mut self, key: Key) {
        self.connections.note_session_settled(key);
        if let Some(client) = self.sessions.leave_address(key) {
            self.connections.return_quota(Quota::Address, client);
        }
    }

    /// Parks a GET of a session.
    pub(super) fn poll_session(&mut self, key: Key, sid: Sid, mut exchange: Exchange, now: Millis) {
        let Some(session) = self.sessions.find(sid) else {
            return self.respond_rejection(key, &exchange, Refusal::SessionId, now);
        };
        exchange.session = Some(session);
        match self.sessions.polling(session) {
            None => self.respond_rejection(key, &exchange, Refusal::Request, now),
            Some(Polling { parked: Some(_), .. }) => {
                self.respond_rejection(key, &exchange, Refusal::Request, now);
                self.close_session(session, CloseReason::Overlap, now);
            }
            Some(polling) => {
                polling.parked = Some(key);
                self.note_request(key, session);
                self.connections.park(key, session, exchange);
                // Answered at the end of the turn if the session has something to send.
                self.sessions.mark_dirty(session);
            }
        }
    }

    /// Marks a connection that brought a request of a session as known while the session is logged
    /// in.
    fn note_request(&mut self, key: Key, session: Key) {
        let is_authenticated = self.sessions.get(session).is_some_and(Session::is_active);
        self.connections.set_authenticated(key, is_authenticated);
    }

    /// Answers the parked GET of a session with what it has to send, if it has both.
    pub(super) fn flush_polling(&mut self, key: Key, now: Millis) {
        let is_withheld = self.databases.is_withheld(key);
        let Some(session) = self.sessions.get_mut(key) else { return };
        let dialect = session.dialect();
        let Dialect::SocketIo(version) = dialect else { return };
        let Some(polling) = session.polling() else { return };
        let is_freed = polling.probed;
        let Some(connection) = polling.parked else { return };
        let has_answers = !session.outgoing.is_empty();
        if !has_answers && !self.databases.has_notifications(key.index) && !is_freed {
            return;
        }
        let mut out = Vec::new();
        for message in messages(&session.outgoing.take()) {
            payload::write_packet(&mut out, message, version);
        }
        let mut message = Vec::new();
        while out.len() < MAX_PAYLOAD / 2 && !is_withheld {
            let Some((database, kind)) = self.databases.next_notification(key.index) else { break };
            self.context.metrics.notifications += 1;
            session.notifications = session.notifications.saturating_add(1);
            message.clear();
            self.databases.write_change(&mut message, database, kind, dialect);
            payload::write_packet(&mut out, &message, version);
        }
        if out.is_empty() {
            payload::write_packet(&mut out, b"6", version);
        }
        self.answer_parked(connection, 200, &out, now);
        self.review_session_later(key);
        if has_answers && self.sessions.get_mut(key).is_some_and(|session| session.handle_flushed(now)) {
            self.sessions.arm(key, &mut self.context, now);
        }
    }

    /// Answers a parked GET; its connection waits for the next request.
    fn answer_parked(&mut self, connection: Key, status: u16, content: &[u8], now: Millis) {
        let Some((session, exchange)) = self.connections.take_parked(connection) else { return };
        if let Some(polling) = self.sessions.polling(session) {
            polling.parked = None;
        }
        let exchange = &exchange;
        match exchange.jsonp {
            Some(callback) => {
                let script = payload::wrap_jsonp(content, callback);
                let response = Response::new(status, "text/javascript; charset=UTF-8", &script);
                self.respond(connection, exchange, response, now);
            }
            None => self.respond(connection, exchange, Response::new(status, TEXT, content), now),
        }
    }

    /// Answers the parked GET of a session that ends. A client that is to come back, and would not
    /// after a close packet, gets a status instead.
    pub(super) fn close_polling(&mut self, key: Key, reason: CloseReason, now: Millis) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let Dialect::SocketIo(version) = session.dialect() else { return };
        let outgoing = session.outgoing.take();
        let Some(polling) = session.polling() else { return };
        let (parked, probing) = (polling.parked, polling.probing);
        let mut out = Vec::new();
        for message in messages(&outgoing) {
            payload::write_packet(&mut out, message, version);
        }
        payload::write_packet(&mut out, b"1", version);
        if let Some(connection) = parked {
            let is_stopping = reason == CloseReason::ShuttingDown;
            let mut close_is_final = false;
            if let Some(exchange) = self.connections.parked_mut(connection) {
                close_is_final = exchange.close_is_final;
                exchange.keep_alive &= !is_stopping;
            }
            if is_stopping && close_is_final {
                self.answer_parked(connection, 503, b"The server stops.\n", now);
            } else {
                self.answer_parked(connection, 200, &out, now);
            }
        }
        if let Some(connection) = probing {
            self.close_connection(connection, CloseReason::ClientVanished, now);
        }
    }

    /// Starts to receive the body of a POST.
    pub(super) fn begin_post(
        &mut self,
        key: Key,
        sid: Sid,
        format: PostFormat,
        decoder: BodyDecoder,
        mut exchange: Exchange,
        now: Millis,
    ) {
        // The body is on its way, whatever the response: only the last branch leaves the connection
        // open.
        let Some(session) = self.sessions.find(sid) else {
            exchange.keep_alive = false;
            return self.respond_rejection(key, &exchange, Refusal::SessionId, now);
        };
        exchange.session = Some(session);
        let limit = self.max_post(session).unwrap_or_default() as u64;
        match self.sessions.polling(session) {
            None => {
                exchange.keep_alive = false;
                self.respond_rejection(key, &exchange, Refusal::Request, now);
            }
            Some(Polling { posting: Some(_), .. }) => {
                exchange.keep_alive = false;
                self.respond_rejection(key, &exchange, Refusal::Request, now);
                self.close_session(session, CloseReason::Overlap, now);
            }
            Some(_) if matches!(decoder, BodyDecoder::Length(length) if length > limit) => {
                self.reject_payload(key, exchange, now);
            }
            Some(polling) => {
                polling.posting = Some(key);
                let post = Post::new(exchange, session, format, decoder);
                self.connections.begin_post(key, post, &mut self.context, now);
                // An empty body is complete already.
                self.handle_body(key, &[], now);
            }
        }
    }

    /// Returns the longest body of a POST that a session takes now.
    pub(super) fn max_post(&self, key: Key) -> Option<usize> {
        self.sessions.get(key).map(|session| session.max_payload(self.sessions.rules()))
    }

    /// Rejects a POST whose body is too long.
    pub(super) fn reject_payload(&mut self, key: Key, mut exchange: Exchange, now: Millis) {
        exchange.keep_alive = false;
        exchange.closed_for = CloseReason::BodyTooLarge;
        self.respond(key, &exchange, Response::new(413, TEXT, b"The body is too long.\n"), now);
    }

    /// Rejects a POST that is no sequence of packets, and closes its session.
    pub(super) fn reject_post(&mut self, key: Key, post: &Post, now: Millis) {
        self.respond_rejection(key, &post.exchange, Refusal::Request, now);
        self.close_session(post.session, CloseReason::BrokenPacket, now);
    }

    /// Handles the packets of a POST whose body is complete.
    pub(super) fn finish_post(&mut self, key: Key, post: &Post, now: Millis) {
        let Some(session) = self.sessions.get(post.session) else {
            return self.respond_rejection(key, &post.exchange, Refusal::SessionId, now);
        };
        let Dialect::SocketIo(version) = session.dialect() else { return };
        if post.format == PostFormat::Binary && version == Version::V4 {
            return self.reject_post(key, post, now);
        }
        let unwrapped;
        let packets = match (post.format, std::str::from_utf8(&post.body)) {
            (PostFormat::Binary, _) => payload::split_binary(&post.body),
            (_, Err(_)) => None,
            (PostFormat::Text, Ok(text)) => payload::split(text, version),
            (PostFormat::Form, Ok(text)) => {
                unwrapped = payload::unwrap_jsonp(text);
                unwrapped.as_deref().and_then(|text| payload::split(text, version))
            }
        };
        let whole = packets.filter(|packets| packets.iter().all(|packet| engine_io::parse_packet(packet).is_some()));
        let Some(packets) = whole else { return self.reject_post(key, post, now) };
        let waited = session.outgoing.len();
        self.respond(key, &post.exchange, Response::new(200, HTML, b"ok"), now);
        self.note_request(key, post.session);
        for packet in packets {
            if !self.sessions.admit_message(post.session, true, now) {
                return self.close_session(post.session, CloseReason::TooManyMessages, now);
            }
            self.deliver_message(post.session, packet, now);
        }
        // A logged-in client may have more answers to one POST.
        let piles_up = |session: &Session| match session.stage() {
            Some(Stage::Idle) => session.outgoing.len() > UNAUTHENTICATED_MESSAGE,
            Some(_) => session.outgoing.len() > MAX_OUTGOING,
            None => waited > MAX_OUTGOING,
        };
        let session = self.sessions.get(post.session).filter(|session| session.websocket().is_none());
        if session.is_some_and(piles_up) {
            self.close_session(post.session, CloseReason::NotReading, now);
        }
    }

    /// Opens a WebSocket that is to take a session over.
    pub(super) fn begin_upgrade(&mut self, key: Key, sid: Sid, websocket_key: &str, exchange: &Exchange, now: Millis) {
        let Some(session) = self.sessions.find(sid) else {
            return self.respond_rejection(key, exchange, Refusal::SessionId, now);
        };
        match self.sessions.polling(session) {
            Some(polling) if polling.probing.is_none() => polling.probing = Some(key),
            _ => return self.respond_rejection(key, exchange, Refusal::Request, now),
        }
        self.connections.upgrade(key, exchange, websocket_key, None);
        self.connections.probe(key, session, now);
        self.flush_connection(key, now);
        self.connections.arm(key, &mut self.context, now);
    }

    /// Handles a text on a WebSocket that has not taken over yet: `2probe`, then `5`.
    pub(super) fn handle_probe(&mut self, key: Key, session: Key, text: &str, now: Millis) {
        let polling = self.sessions.polling(session).filter(|polling| polling.probing == Some(key));
        let Some(polling) = polling else { return self.close_connection(key, CloseReason::BrokenPacket, now) };
        match (text, polling.probed) {
            ("2probe", _) => {
                polling.probed = true;
                self.connections.queue(key, |out| websocket::write_text(out, b"3probe"));
                self.flush_connection(key, now);
                // A parked GET is answered, so that the client may stop polling.
                self.flush_polling(session, now);
            }
            ("5", true) => self.take_over(key, session, now),
            _ => self.close_connection(key, CloseReason::BrokenPacket, now),
        }
    }

    fn take_over(&mut self, key: Key, session: Key, now: Millis) {
        self.flush_polling(session, now);
        self.unlist_session(session);
        self.end_polling(session);
        self.sessions.move_to_websocket(session, key);
        self.carry(key, session, now);
    }

    fn respond_rejection(&mut self, key: Key, exchange: &Exchange, refusal: Refusal, now: Millis) {
        self.respond_answer(key, exchange, &routes::refusal(refusal), now);
    }
}
