//! Input of clients: events of their connections, HTTP requests, POST bodies, WebSocket frames.

use mio::event::Event;

use super::Server;
use super::connections::Carried;
use super::connections::read::{BodyPart, Item, NoHead, Received};
use crate::state::limits::UNAUTHENTICATED_MESSAGE;
use crate::state::metrics::CloseReason;
use crate::state::session::Session;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::websocket::{self, FrameError, Incoming};

/// Result of handling one item of a connection's input.
enum Progress {
    /// Number of bytes that were used; the rest is no complete item yet.
    Used(usize),
    /// Number of bytes that were used; the rest belongs to an item of another kind.
    Switched(usize),
    /// The rest does not matter any more.
    Over,
}

impl Server {
    /// Handles an event of a connection.
    pub(super) fn handle_event(&mut self, key: Key, event: &Event, now: Millis) {
        if let Some((_, false)) = self.connections.upstream(key) {
            if !self.finish_connect(key, now) {
                return;
            }
        } else if event.is_writable() {
            match self.connections.write_more(key, &mut self.context, now) {
                Ok(session) => session.into_iter().for_each(|session| self.sessions.mark_dirty(session)),
                Err(error) => self.connection_lost(key, Some(&error.to_string()), now),
            }
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(key, event.is_read_closed() || event.is_error(), now);
        }
    }

    /// Reads a connection's share of a turn. `to_end` when the socket may also hold an end that no
    /// further event announces.
    pub(super) fn read(&mut self, key: Key, to_end: bool, now: Millis) {
        if self.connections.is_upstream(key) {
            return self.read_upstream(key, to_end, now);
        }
        if self.databases.is_turn_full() {
            return self.connections.postpone(key);
        }
        if !self.connections.begin_read(key, &mut self.context, now) {
            return;
        }
        if self.connections.carried_session(key).is_some_and(|session| self.databases.is_busy(session)) {
            // The next message is read when the work for the ones before is done.
            return self.connections.mark_unread(key);
        }
        if self.connections.take_pipelined(key) {
            self.take_input(key, 0, now);
        }
        match self.connections.receive(key, to_end, &mut self.context) {
            Received::Nothing => {}
            Received::Bytes(length) => self.take_input(key, length, now),
            Received::Lost => self.close_connection(key, CloseReason::ClientVanished, now),
        }
    }

    /// Handles that a connection failed or was closed by its peer.
    pub(super) fn connection_lost(&mut self, key: Key, error: Option<&str>, now: Millis) {
        if self.connections.is_upstream(key) {
            return self.upstream_lost(key, error, now);
        }
        self.close_connection(key, CloseReason::ClientVanished, now);
    }

    /// Closes a connection, and ends what it carried.
    pub(super) fn close_connection(&mut self, key: Key, reason: CloseReason, now: Millis) {
        match self.connections.close(key, reason, &mut self.context) {
            Carried::Nothing => {}
            Carried::Session(session) => self.end_session(session, reason, now),
            Carried::Request(session) => self.sessions.forget_connection(session, key),
        }
    }

    /// Handles the first `length` bytes of the scratch buffer, behind those that are held.
    fn take_input(&mut self, key: Key, length: usize, now: Millis) {
        let Some(mut input) = self.connections.take_input(key, length) else { return };
        let seen = input.seen;
        let used = self.handle_input(key, input.bytes(), seen, now);
        self.connections.put_input(key, input, used);
    }

    /// Handles every complete item in `bytes`, of which `seen` were looked at before. Returns how
    /// many were used; None when the rest does not matter any more.
    fn handle_input(&mut self, key: Key, bytes: &mut [u8], mut seen: usize, now: Millis) -> Option<usize> {
        let (mut used, mut requests) = (0, 0);
        loop {
            let rest = &mut bytes[used..];
            let progress = match self.connections.next_item(key, requests) {
                Item::Head => {
                    requests += 1;
                    self.handle_head(key, rest, seen, now)
                }
                Item::Body => Progress::Switched(self.handle_body(key, rest, now)),
                Item::Frame => self.handle_frame(key, rest, now),
                Item::Later => return Some(used),
                Item::Never => return None,
            };
            match progress {
                Progress::Over => return None,
                Progress::Used(0) => return Some(used),
                Progress::Used(taken) => {
                    used += taken;
                    seen = seen.saturating_sub(taken);
                }
                Progress::Switched(taken) => {
                    used += taken;
                    seen = 0;
                    if used == bytes.len() {
                        return Some(used);
                    }
                }
            }
        }
    }

    fn handle_head(&mut self, key: Key, bytes: &[u8], seen: usize, now: Millis) -> Progress {
        match self.connections.parse_head(key, bytes, seen, &mut self.context, now) {
            Ok((used, request)) => {
                self.serve(key, &request, now);
                Progress::Switched(used)
            }
            Err(NoHead::Skip(count)) => Progress::Used(count),
            Err(NoHead::Invalid) => Progress::Over,
        }
    }

    /// Handles bytes of a POST's body. Returns how many were used.
    pub(super) fn handle_body(&mut self, key: Key, bytes: &[u8], now: Millis) -> usize {
        let Some(session) = self.connections.post_session(key) else { return 0 };
        let limit = self.max_post(session).unwrap_or(self.sessions.rules().max_payload);
        let (used, part) = self.connections.receive_body(key, bytes, limit);
        match part {
            BodyPart::NeedMore => return used,
            BodyPart::Complete(_) | BodyPart::TooLong(_) | BodyPart::Invalid(_) => {
                if let Some(polling) = self.sessions.polling(session) {
                    polling.posting = None;
                }
            }
        }
        match part {
            BodyPart::NeedMore => {}
            BodyPart::Complete(post) => self.finish_post(key, &post, now),
            BodyPart::TooLong(post) => self.reject_payload(key, post.exchange, now),
            BodyPart::Invalid(mut post) => {
                post.exchange.keep_alive = false;
                self.reject_post(key, &post, now);
            }
        }
        used
    }

    fn handle_frame(&mut self, key: Key, bytes: &mut [u8], now: Millis) -> Progress {
        // Taken out while the session, which may close the connection, has the message.
        let Some((session, mut decoder)) = self.connections.take_decoder(key) else { return Progress::Over };
        let rules = self.sessions.rules();
        let limit = self.sessions.get(session).map_or(UNAUTHENTICATED_MESSAGE, |session| session.max_message(rules));
        let progress = match decoder.next(bytes, limit) {
            Ok(None) => Progress::Used(0),
            Err(error) => {
                let reason = match error {
                    FrameError::Protocol | FrameError::Length => CloseReason::BrokenFrame,
                    FrameError::TooBig => CloseReason::MessageTooBig,
                    FrameError::InvalidUtf8 => CloseReason::InvalidUtf8,
                };
                self.close_websocket(key, session, reason, now);
                Progress::Over
            }
            Ok(Some((used, incoming))) => {
                self.handle_incoming(key, session, &incoming, now);
                Progress::Used(used)
            }
        };
        self.connections.put_decoder(key, decoder);
        progress
    }

    fn handle_incoming(&mut self, key: Key, session: Key, incoming: &Incoming<'_>, now: Millis) {
        let is_probing = self.connections.is_probing(key);
        if !self.sessions.admit_message(session, !is_probing, now) {
            return self.close_websocket(key, session, CloseReason::TooManyMessages, now);
        }
        match incoming {
            Incoming::Text(text) if is_probing => self.handle_probe(key, session, text, now),
            Incoming::Text(text) => self.deliver_message(session, text, now),
            Incoming::Ping(payload) => {
                self.connections.queue(key, |out| websocket::write_pong(out, payload));
                if is_probing { self.flush_connection(key, now) } else { self.sessions.mark_dirty(session) }
            }
            Incoming::Pong if !is_probing => self.with_session(session, now, Session::handle_pong),
            Incoming::Pong | Incoming::Fragment => {}
            Incoming::Binary => self.close_websocket(key, session, CloseReason::BinaryMessage, now),
            Incoming::Close(_) => self.close_websocket(key, session, CloseReason::ClientClosed, now),
        }
    }

    /// Closes a WebSocket and the session that it carries. A session that it was only to take over
    /// goes on.
    fn close_websocket(&mut self, key: Key, session: Key, reason: CloseReason, now: Millis) {
        if !self.connections.is_probing(key) {
            return self.close_session(session, reason, now);
        }
        self.connections.queue(key, |out| websocket::write_close(out, reason.close_code(), reason.text()));
        self.sessions.forget_connection(session, key);
        self.connections.linger(key, &mut self.context, now);
    }

    /// Writes what is queued on a connection.
    pub(super) fn flush_connection(&mut self, key: Key, now: Millis) {
        if let Err(error) = self.connections.flush(key) {
            self.connection_lost(key, Some(&error.to_string()), now);
        }
    }
}
