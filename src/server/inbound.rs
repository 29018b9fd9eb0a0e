//! Connections of clients: their HTTP requests, their WebSocket frames.

use std::io;
use std::sync::Arc;

use mio::event::Event;

use super::exchange::Exchange;
use super::{CLIENT_READ, Http, LINGER, LINGER_READ, NAMES_A_TURN, Peer, Protocol, Seat, Server, Timer, token_of};
use crate::net::connection::{Connection, Flushed, Inbox};
use crate::net::stream::{Stream, TLS_HANDSHAKE};
use crate::state::limits::UNAUTHENTICATED_MESSAGE;
use crate::state::metrics::CloseReason;
use crate::state::routes::{self, Route};
use crate::state::session::Session;
use crate::state::table::Key;
use crate::state::timers::{Alarm, Deadline, Millis};
use crate::wire::http::{self, HeadError, Request};
use crate::wire::websocket::{self, Decoder, FrameError, Incoming};

const TOO_MANY_OF_ADDRESS: &str = "This address has too many connections already.\n";

/// Requests of one connection that are served in one turn: about as many as take a millisecond.
const REQUESTS_A_TURN: usize = 64;

/// What came of the bytes of a connection.
enum Input {
    /// So many were used; the rest is no whole item yet.
    Used(usize),
    /// The connection serves something else now; so many were used, and the rest is for that.
    Switched(usize),
    /// The connection is over or about to be.
    Over,
}

impl Server {
    pub(super) fn add_peer(
        &mut self,
        stream: Stream,
        protocol: Protocol,
        address: std::net::IpAddr,
        deadline: Deadline,
        now: Millis,
    ) -> io::Result<Key> {
        let connecting = matches!(protocol, Protocol::Upstream { .. });
        let registry = &self.connections.registry;
        let key = self.connections.peers.try_insert_with(|key| {
            let connection = Connection::register(stream, connecting, registry, token_of(key))?;
            io::Result::Ok(Peer {
                connection,
                protocol,
                address,
                deadline,
                alarm: Alarm::default(),
                seat: Seat::None,
                unread: false,
                known: false,
                postponed: false,
                early: false,
                listed: false,
                proxied: false,
            })
        })?;
        self.arm_peer(key, now);
        Ok(key)
    }

    pub(super) fn peer_ready(&mut self, key: Key, event: &Event, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        if let Protocol::Upstream { connected: false, .. } = peer.protocol {
            if !self.upstream_connected(key, now) {
                return;
            }
        } else if event.is_writable() {
            peer.connection.handle_writable();
            self.write_more(key, now);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(key, event.is_read_closed() || event.is_error(), now);
        }
    }

    /// The socket takes bytes again: first those that waited, then what its session has to say.
    fn write_more(&mut self, key: Key, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        if matches!(peer.protocol, Protocol::WebSocket(..)) {
            // It has taken something.
            peer.deadline = Deadline::NEVER;
        }
        self.connections.changed.push(Timer::Peer(key));
        match peer.connection.flush() {
            Err(error) => return self.lost(key, Some(&error), now),
            Ok(Flushed::Blocked) => return self.wait_for_reader(key, now),
            Ok(Flushed::All) => {
                if std::mem::take(&mut peer.unread) {
                    self.connections.unfinished.push(key);
                }
                match &peer.protocol {
                    Protocol::WebSocket(session, _) => self.sessions.dirty.push(*session),
                    Protocol::Lingering { .. } => self.shut_down_write(key, now),
                    _ => {}
                }
            }
        }
        self.update_interest(key, now);
    }

    /// A client does not take what is written: it is waited for as long as it takes some of it now and then.
    pub(super) fn wait_for_reader(&mut self, key: Key, now: Millis) {
        if let Some(peer) = self.connections.peers.get_mut(key)
            && matches!(peer.protocol, Protocol::WebSocket(..))
            && peer.deadline.is_never()
        {
            peer.deadline = Deadline::at(now + self.context.limits.slow);
            self.arm_peer(key, now);
        }
        self.update_interest(key, now);
    }

    pub(super) fn update_interest(&mut self, key: Key, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        if let Err(error) = peer.connection.update_interest(&self.connections.registry, token_of(key)) {
            self.lost(key, Some(&error), now);
        }
    }

    /// Reads one buffer, the connection's share of a turn; what is left is read in the next. `to_end` when
    /// more than data may wait: an end that no further event tells of.
    pub(super) fn read(&mut self, key: Key, to_end: bool, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        if matches!(peer.protocol, Protocol::Upstream { .. }) {
            return self.read_upstream(key, to_end, now);
        }
        if matches!(peer.protocol, Protocol::Closed) {
            return;
        }
        if self.databases.names_this_turn >= NAMES_A_TURN {
            if !std::mem::replace(&mut peer.postponed, true) {
                self.connections.postponed.push_back(key);
            }
            return;
        }
        if matches!(peer.protocol, Protocol::Handshake) && !self.shake_hands(key, now) {
            self.connections.changed.push(Timer::Peer(key));
            return;
        }
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        if let Protocol::WebSocket(session, _) = &peer.protocol
            && self.databases.name_lists.is_busy(*session)
        {
            // What comes next is read when the work for what came is done.
            peer.unread = true;
            return;
        }
        // A client that does not read its answers may not ask on.
        if peer.connection.has_unsent() && !matches!(peer.protocol, Protocol::Lingering { .. }) {
            peer.unread = true;
            return;
        }
        let waits_for_answer = matches!(peer.protocol, Protocol::Http(Http::Parked(_)));
        if !waits_for_answer && std::mem::take(&mut peer.early) && matches!(peer.protocol, Protocol::Http(_)) {
            self.take_input(key, 0, now);
        }
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        // Looked at only now: the request that came early may wait for its answer, or its answer for the client.
        let share = match &peer.protocol {
            Protocol::Closed => return,
            Protocol::Lingering { .. } => CLIENT_READ,
            _ if peer.connection.has_unsent() => 0,
            Protocol::Http(_) if peer.connection.inbox_len() >= self.context.limits.head => 0,
            // What is left of it behind a request that waits for its answer is held.
            Protocol::Http(_) => self.context.limits.head,
            _ => CLIENT_READ,
        };
        if share == 0 {
            peer.unread = true;
            return;
        }
        let short_is_last = peer.connection.stream().short_read_is_last() && !to_end;
        let read = peer.connection.read(&mut self.connections.scratch[..share]);
        if peer.connection.is_blocked() {
            self.update_interest(key, now);
        }
        match read {
            Ok(0) => self.ended(key, now),
            Ok(length) => {
                if self.is_over_linger(key, length) {
                    self.context.metrics.cut_connections += 1;
                    return self.close_peer(key, CloseReason::CloseTimeout, now);
                }
                let emptied = length < share && short_is_last;
                self.take_input(key, length, now);
                self.connections.changed.push(Timer::Peer(key));
                if !emptied {
                    // Its share of the turn is used up: the others come first.
                    self.connections.unfinished.push(key);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.lost(key, Some(&error), now),
        }
    }

    /// Counts bytes of a client that was told of the end; returns whether it has sent too many since.
    fn is_over_linger(&mut self, key: Key, length: usize) -> bool {
        let Some(Peer { protocol: Protocol::Lingering { received, .. }, .. }) = self.connections.peers.get_mut(key)
        else {
            return false;
        };
        *received += length;
        *received > LINGER_READ
    }

    /// The client ends the connection in order.
    fn ended(&mut self, key: Key, now: Millis) {
        if let Some(peer) = self.connections.peers.get_mut(key)
            && peer.connection.stream().is_tls()
        {
            // TLS wants the end to be answered, for the client cannot tell it from a cut otherwise.
            peer.connection.stream().shut_down_write();
        }
        self.lost(key, None, now);
    }

    /// The client is gone, in order or not.
    pub(super) fn lost(&mut self, key: Key, error: Option<&io::Error>, now: Millis) {
        if self.is_upstream(key) {
            let text = error.map(ToString::to_string);
            return self.upstream_lost(key, text.as_deref(), now);
        }
        self.close_peer(key, CloseReason::ClientVanished, now);
    }

    /// Takes the first `length` bytes of the scratch buffer as the connection's next input.
    fn take_input(&mut self, key: Key, length: usize, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        // Taken out for the time being: what is in it is the connection's, and the server is handed on.
        let mut scratch = std::mem::take(&mut self.connections.scratch);
        let mut inbox = peer.connection.take_inbox();
        if inbox.is_empty() {
            let used = self.handle_input(key, &mut scratch[..length], 0, now);
            if let Some(used) = used {
                inbox.append(&scratch[used..length]);
            }
        } else {
            // Nothing of a request that came early was looked at.
            let seen = if length == 0 { 0 } else { inbox.len() };
            inbox.append(&scratch[..length]);
            match self.handle_input(key, inbox.unused(), seen, now) {
                Some(used) => inbox.consume(used),
                None => inbox = Inbox::default(),
            }
        }
        if let Some(peer) = self.connections.peers.get_mut(key) {
            peer.connection.put_inbox(inbox);
        }
        self.connections.scratch = scratch;
    }

    /// Handles every whole item in `bytes`, of which `seen` were looked at before; how many were used, or
    /// None when the rest does not matter any more.
    fn handle_input(&mut self, key: Key, bytes: &mut [u8], seen: usize, now: Millis) -> Option<usize> {
        let (mut used, mut seen, mut requests) = (0, seen, 0);
        loop {
            let rest = &mut bytes[used..];
            let peer = self.connections.peers.get_mut(key)?;
            let input = match &peer.protocol {
                // Its share of the turn is used up: the others come first.
                Protocol::Http(Http::Head) if requests == REQUESTS_A_TURN => {
                    peer.early = true;
                    self.connections.unfinished.push(key);
                    return Some(used);
                }
                // Answers add up only as fast as they are taken: the next request waits in its few bytes.
                Protocol::Http(Http::Head) if peer.connection.has_unsent() => {
                    peer.early = true;
                    peer.unread = true;
                    return Some(used);
                }
                Protocol::Http(Http::Head) => {
                    requests += 1;
                    self.handle_request(key, rest, seen, now)
                }
                Protocol::Http(Http::Body(_)) => Input::Switched(self.handle_body(key, rest, now)),
                // The next request waits for the answer to this one.
                Protocol::Http(Http::Parked(_)) => Input::Used(0),
                Protocol::WebSocket(..) | Protocol::Probing(..) => self.handle_frame(key, rest, now),
                Protocol::Handshake | Protocol::Lingering { .. } | Protocol::Closed | Protocol::Upstream { .. } => {
                    Input::Over
                }
            };
            match input {
                Input::Over => return None,
                Input::Used(0) => return Some(used),
                Input::Used(taken) => {
                    used += taken;
                    seen = seen.saturating_sub(taken);
                }
                Input::Switched(taken) => {
                    used += taken;
                    seen = 0;
                    if used == bytes.len() {
                        return Some(used);
                    }
                }
            }
        }
    }

    fn handle_request(&mut self, key: Key, bytes: &[u8], seen: usize, now: Millis) -> Input {
        // RFC 9112 section 2.2: empty lines before a request are passed over.
        let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blank > 0 {
            return Input::Used(blank);
        }
        let is_plain = |peer: &mut Peer| !peer.connection.stream().is_tls();
        if bytes.first() == Some(&TLS_HANDSHAKE) && self.connections.peers.get_mut(key).is_some_and(is_plain) {
            self.refuse_tls(key, now);
            return Input::Over;
        }
        // What cannot be a method is no HTTP, and need not be waited for.
        let garbage = bytes.first().is_some_and(|byte| !byte.is_ascii_alphabetic());
        if !garbage && bytes.len() < self.context.limits.head && !http::head_is_complete(bytes, seen) {
            return Input::Used(0);
        }
        match http::parse_request(bytes, self.context.limits.head) {
            Ok(None) => Input::Used(0),
            Ok(Some((used, request))) => {
                self.serve(key, &request, now);
                Input::Switched(used)
            }
            Err(error) => {
                let reason = match error {
                    HeadError::TooLarge => CloseReason::HeadTooLarge,
                    _ => CloseReason::BadRequest,
                };
                self.answer_and_close(key, error.status(), &format!("{error}\n"), reason, now);
                Input::Over
            }
        }
    }

    fn serve(&mut self, key: Key, request: &Request<'_>, now: Millis) {
        if !self.place(key, request, now) {
            return self.answer_and_close(key, 429, TOO_MANY_OF_ADDRESS, CloseReason::TooManyOfAddress, now);
        }
        let mut exchange = Exchange::of(request);
        exchange.secure = self.is_secure(key, request);
        if self.serve_operation(key, request, &exchange, now) {
            return;
        }
        let site = Arc::clone(&self.connections.site);
        if !routes::is_origin_allowed(request, &self.connections.origins, &site) {
            return self.respond_answer(key, &exchange, &routes::ORIGIN_REFUSED, now);
        }
        let route = routes::route(request, &site);
        if self.is_draining() && route.opens_session() {
            exchange.keep_alive = false;
            return self.respond_answer(key, &exchange, &routes::STOPPING, now);
        }
        if route.opens_session() && self.memory_rejection().is_some() {
            exchange.keep_alive = false;
            exchange.closed_for = CloseReason::OutOfMemory;
            return self.respond_answer(key, &exchange, &routes::OUT_OF_MEMORY, now);
        }
        match route {
            Route::Howler { key: websocket_key, protocol } => {
                self.upgrade(key, &exchange, websocket_key, protocol);
                self.open_json(key, now);
            }
            Route::OpenWebSocket(query, version, websocket_key) => {
                self.upgrade(key, &exchange, websocket_key, None);
                self.open_socket_io(key, version, query.credentials, None, now);
            }
            Route::OpenPolling(query, version) => {
                exchange.jsonp = query.jsonp;
                self.open_polling(key, version, query.credentials, exchange, now);
            }
            Route::Poll(sid, jsonp) => {
                exchange.jsonp = jsonp;
                self.poll_session(key, sid, exchange, now);
            }
            Route::Post(sid, format) => {
                exchange.keep_alive = request.keep_alive;
                self.begin_post(key, sid, format, request.body(), exchange, now);
            }
            Route::Upgrade(sid, websocket_key) => {
                self.begin_upgrade(key, sid, websocket_key, &exchange, now);
            }
            Route::Preflight => self.respond_preflight(key, &exchange, now),
            Route::Asset(file) => self.respond_file(key, &exchange, file, request.if_none_match, now),
            Route::Answer(answer) => self.respond_answer(key, &exchange, &answer, now),
        }
    }

    pub(super) fn upgrade(&mut self, key: Key, exchange: &Exchange, websocket_key: &str, protocol: Option<&str>) {
        self.log_answer(key, exchange, 101);
        if let Some(peer) = self.connections.peers.get_mut(key) {
            http::write_upgrade(peer.connection.queue(), websocket_key, protocol);
            peer.deadline = Deadline::NEVER;
        }
    }

    pub(super) fn answer_and_close(&mut self, key: Key, status: u16, body: &str, reason: CloseReason, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        let fields = [("Content-Type", "text/plain; charset=utf-8")];
        let answer =
            http::Answer { status, fields: &fields, body: body.as_bytes(), head_only: false, keep_alive: false };
        http::write_response(peer.connection.queue(), &answer);
        self.count_close(key, reason);
        self.log_refusal(key, status);
        self.linger(key, now);
    }

    pub(super) fn refuse_late_request(&mut self, key: Key, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        if peer.connection.inbox_len() == 0 {
            return self.close_peer(key, CloseReason::RequestTimeout, now);
        }
        self.answer_and_close(key, 408, "The request did not come in time.\n", CloseReason::RequestTimeout, now);
    }

    fn handle_frame(&mut self, key: Key, bytes: &mut [u8], now: Millis) -> Input {
        let Some(peer) = self.connections.peers.get_mut(key) else { return Input::Over };
        let (Protocol::WebSocket(session, decoder) | Protocol::Probing(session, decoder)) = &mut peer.protocol else {
            return Input::Over;
        };
        let session = *session;
        // Taken out while the session, which may end the connection, has the message.
        let mut decoder = std::mem::take(decoder);
        let limit = self
            .sessions
            .table
            .get(session)
            .map_or(UNAUTHENTICATED_MESSAGE, |session| session.max_message(&self.sessions.rules));
        let outcome = match decoder.next(bytes, limit) {
            Ok(None) => Input::Used(0),
            Err(error) => {
                let reason = match error {
                    FrameError::Protocol | FrameError::Length => CloseReason::BrokenFrame,
                    FrameError::TooBig => CloseReason::MessageTooBig,
                    FrameError::InvalidUtf8 => CloseReason::InvalidUtf8,
                };
                self.close_websocket(key, session, reason, now);
                Input::Over
            }
            Ok(Some((used, incoming))) => {
                self.handle_incoming(key, session, &incoming, now);
                Input::Used(used)
            }
        };
        if let Some(peer) = self.connections.peers.get_mut(key)
            && let Protocol::WebSocket(_, place) | Protocol::Probing(_, place) = &mut peer.protocol
        {
            *place = decoder;
        }
        outcome
    }

    fn handle_incoming(&mut self, key: Key, session: Key, incoming: &Incoming<'_>, now: Millis) {
        let probing =
            self.connections.peers.get(key).is_some_and(|peer| matches!(peer.protocol, Protocol::Probing(..)));
        if let Some(speaker) = self.sessions.table.get_mut(session) {
            if !speaker.allows_message(&self.sessions.rules, now) {
                return self.close_websocket(key, session, CloseReason::TooManyMessages, now);
            }
            if !probing {
                speaker.handle_activity(now);
            }
        }
        match incoming {
            Incoming::Text(text) if probing => self.handle_probe(key, session, text, now),
            Incoming::Text(text) => self.hand_message(session, text, now),
            Incoming::Ping(payload) => {
                if let Some(peer) = self.connections.peers.get_mut(key) {
                    websocket::write_pong(peer.connection.queue(), payload);
                }
                if probing { self.flush_peer(key, now) } else { self.sessions.dirty.push(session) }
            }
            Incoming::Pong if !probing => self.with_session(session, now, Session::handle_pong),
            Incoming::Pong | Incoming::Fragment => {}
            Incoming::Binary => self.close_websocket(key, session, CloseReason::BinaryMessage, now),
            Incoming::Close(_) => self.close_websocket(key, session, CloseReason::ClientClosed, now),
        }
    }

    /// Closes a WebSocket, and the session that it carries. One that is only to take over leaves the session
    /// alone.
    fn close_websocket(&mut self, key: Key, session: Key, reason: CloseReason, now: Millis) {
        match self.connections.peers.get_mut(key) {
            Some(Peer { protocol: Protocol::Probing(..), connection, .. }) => {
                websocket::write_close(connection.queue(), reason.close_code(), reason.text());
                self.forget_connection(key, session);
                self.linger(key, now);
            }
            _ => self.close_session(session, reason, now),
        }
    }

    /// The last bytes are queued: they leave, then the sending side is shut down, then the peer is waited for. Closing
    /// at once could destroy what is still on its way.
    pub(super) fn linger(&mut self, key: Key, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        peer.protocol = Protocol::Lingering { shut_down: false, received: 0 };
        peer.deadline = Deadline::at(now + LINGER);
        peer.connection.take_inbox();
        self.connections.changed.push(Timer::Peer(key));
        match peer.connection.flush() {
            Ok(Flushed::All) => self.shut_down_write(key, now),
            Ok(Flushed::Blocked) => self.update_interest(key, now),
            Err(_) => return self.close_peer(key, CloseReason::ClientVanished, now),
        }
        self.arm_peer(key, now);
        // What came before the peer noticed must be read, or the close becomes a reset.
        self.connections.unfinished.push(key);
    }

    fn shut_down_write(&mut self, key: Key, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        if let Protocol::Lingering { shut_down, .. } = &mut peer.protocol
            && !std::mem::replace(shut_down, true)
        {
            peer.connection.stream().shut_down_write();
        }
        self.arm_peer(key, now);
    }

    /// Opens the session of a connection that has become a WebSocket.
    pub(super) fn carry(&mut self, key: Key, session: Key, now: Millis) {
        if let Some(peer) = self.connections.peers.get_mut(key) {
            peer.protocol = Protocol::WebSocket(session, Decoder::default());
        }
        self.sessions.dirty.push(session);
        self.connections.changed.push(Timer::Peer(key));
        self.arm_session(session, now);
    }

    pub(super) fn arm_session(&mut self, key: Key, now: Millis) {
        if let Some(session) = self.sessions.table.get_mut(key) {
            let deadline = session.poll_timeout(&self.sessions.rules);
            self.context.timers.arm(Timer::Session(key), &mut session.alarm, deadline, now);
        }
    }
}
