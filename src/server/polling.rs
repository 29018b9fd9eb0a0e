//! Sessions over HTTP long polling: GETs that are parked until there is something to tell, POSTs, and the
//! WebSocket that takes over.
//!
//! A connection is not a session here: any connection may bring the next request, and goes back to
//! awaiting a request when its answer is written.

use super::exchange::{Exchange, Parked, Post};
use super::http_exchange::{HTML, TEXT};
use super::{Connections, Http, Peer, Protocol, Seat, Server, Sessions, Timer};
use crate::net::connection::Flushed;
use crate::state::limits::UNAUTHENTICATED_MESSAGE;
use crate::state::metrics::CloseReason;
use crate::state::routes::{self, PostFormat};
use crate::state::session::{Dialect, Polling, Session, TAG, Transport, messages};
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};
use crate::state::unauthenticated::Stage;
use crate::wire::body::{BodyDecoder, Piece};
use crate::wire::couchdb::Credentials;
use crate::wire::engine_io::{self, MAX_PAYLOAD, Refusal, SID_LENGTH, Sid, Version};
use crate::wire::websocket::{self, Decoder};
use crate::wire::{payload, socket_io};

/// Time for a WebSocket that was opened for a session to probe and take over, in milliseconds.
const UPGRADE_WITHIN: Millis = 10_000;
/// Most bytes of answers that wait for a client to poll.
const MAX_OUTGOING: usize = 64 * 1024;

/// The id under which a session is found.
pub(super) fn sid_of(key: Key, tag: [u8; TAG]) -> Sid {
    let mut sid = [0; SID_LENGTH];
    sid[..4].copy_from_slice(&key.index.to_be_bytes());
    sid[4..8].copy_from_slice(&key.generation.to_be_bytes());
    sid[8..].copy_from_slice(&tag);
    Sid(sid)
}

impl Server {
    /// Opens a session that polls, unless its connection or its address has too many.
    pub(super) fn open_polling(
        &mut self,
        key: Key,
        version: Version,
        credentials: Credentials,
        mut exchange: Exchange,
        now: Millis,
    ) {
        let Some(address) = self.connections.peers.get(key).map(|peer| peer.address) else { return };
        let Some(seat) = self.seat(address, self.connections.trusted_proxies.contains(address)) else {
            // A proxy's connection carries other clients, too.
            self.context.metrics.count_close(CloseReason::TooManyOfAddress);
            return self.respond_answer(key, &exchange, &routes::TOO_MANY_OF_ADDRESS, now);
        };
        if !self.count_opening(key) {
            self.give_up(seat, address);
            exchange.keep_alive = false;
            exchange.closed_for = CloseReason::TooManySessions;
            return self.respond_answer(key, &exchange, &routes::TOO_MANY_SESSIONS, now);
        }
        self.open_socket_io(key, version, credentials, Some((exchange, seat == Seat::OfAddress)), now);
    }

    /// A session does not poll any more: it is no session of its connection and address.
    pub(super) fn leave_polling(&mut self, key: Key) {
        self.connections.openings.remove(key);
        if let Some(polling) = self.sessions.table.get_mut(key).and_then(Session::polling)
            && std::mem::take(&mut polling.counts_at_address)
        {
            let client = polling.client;
            self.give_up(Seat::OfAddress, client);
        }
    }

    /// The session of an id.
    pub(super) fn find_session(&self, sid: Sid) -> Option<Key> {
        let number = |from: usize| u32::from_be_bytes(sid.0[from..from + 4].try_into().expect("four bytes"));
        let key = Key { index: number(0), generation: number(4) };
        // The sessions of the other dialect have no id, and nothing random in what would be theirs.
        let named = |session: &&Session| session.dialect() != Dialect::Json && sid_of(key, session.tag) == sid;
        self.sessions.table.get(key).filter(named).map(|_| key)
    }

    pub(super) fn poll_session(&mut self, key: Key, sid: Sid, mut exchange: Exchange, now: Millis) {
        let Some(session) = self.find_session(sid) else {
            return self.respond_refusal(key, &exchange, Refusal::SessionId, now);
        };
        exchange.sid = Some(sid);
        let polling = self.sessions.table.get_mut(session).and_then(Session::polling);
        match polling {
            None => self.respond_refusal(key, &exchange, Refusal::Request, now),
            Some(Polling { parked: Some(_), .. }) => {
                self.respond_refusal(key, &exchange, Refusal::Request, now);
                self.close_session(session, CloseReason::Overlap, now);
            }
            Some(polling) => {
                polling.parked = Some(key);
                self.note_known(key, session);
                self.park(key, Parked { exchange, session });
                // Answered at the end of the turn, if there is something to tell.
                self.sessions.dirty.push(session);
            }
        }
    }

    /// A connection brought a request of a session: it is known for as long as somebody is logged in there.
    fn note_known(&mut self, key: Key, session: Key) {
        self.connections.changed.push(Timer::Peer(key));
        let known = self.sessions.table.get(session).is_some_and(Session::is_active);
        if let Some(peer) = self.connections.peers.get_mut(key) {
            peer.known = known;
        }
    }

    fn park(&mut self, key: Key, parked: Parked) {
        if let Some(peer) = self.connections.peers.get_mut(key) {
            peer.protocol = Protocol::Http(Http::Parked(Box::new(parked)));
            // Its session sees to the time.
            peer.deadline = Deadline::NEVER;
        }
    }

    /// The first answer to a client that polls: what the session says by itself.
    pub(super) fn answer_opening(&mut self, key: Key, session: Key, exchange: Exchange, now: Millis) {
        if let Some(polling) = self.sessions.table.get_mut(session).and_then(Session::polling) {
            polling.parked = Some(key);
        }
        self.connections.changed.push(Timer::Peer(key));
        self.park(key, Parked { exchange, session });
        self.arm_session(session, now);
        self.sessions.dirty.push(session);
    }

    /// Writes what a polling session has to say into the answer to its parked GET, if there is one.
    pub(super) fn flush_polling(&mut self, key: Key, now: Millis) {
        let is_withheld = self.is_withheld(key);
        let Some(session) = self.sessions.table.get_mut(key) else { return };
        let Dialect::SocketIo(version) = session.dialect() else { return };
        let Some(polling) = session.polling() else { return };
        let freed = polling.probed;
        let Some(connection) = polling.parked else { return };
        if session.outgoing.is_empty() && !self.databases.subscriptions.is_dirty(key.index) && !freed {
            return;
        }
        let said = !session.outgoing.is_empty();
        let mut out = Vec::new();
        for message in messages(&session.outgoing.take()) {
            payload::write_packet(&mut out, message, version);
        }
        let mut message = Vec::new();
        while out.len() < MAX_PAYLOAD / 2 && !is_withheld {
            let Some((database, _)) = self.databases.subscriptions.take_dirty(key.index) else { break };
            self.context.metrics.notifications += 1;
            session.notifications = session.notifications.saturating_add(1);
            message.clear();
            socket_io::write_change(&mut message, self.databases.subscriptions.name(database));
            payload::write_packet(&mut out, &message, version);
        }
        if out.is_empty() {
            payload::write_packet(&mut out, b"6", version);
        }
        self.answer_parked(connection, 200, &out, now);
        self.note_session(key);
        if said && self.sessions.table.get_mut(key).is_some_and(|session| session.handle_flushed(now)) {
            self.arm_session(key, now);
        }
    }

    /// Answers a parked GET; its connection awaits the next request.
    fn answer_parked(&mut self, connection: Key, status: u16, content: &[u8], now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(connection) else { return };
        let Protocol::Http(http @ Http::Parked(_)) = &mut peer.protocol else { return };
        let Http::Parked(parked) = std::mem::replace(http, Http::Head) else { unreachable!("matched above") };
        if let Some(polling) = self.sessions.table.get_mut(parked.session).and_then(Session::polling) {
            polling.parked = None;
        }
        let exchange = &parked.exchange;
        match exchange.jsonp {
            Some(callback) => {
                let script = payload::wrap_jsonp(content, callback);
                self.respond(connection, exchange, status, "text/javascript; charset=UTF-8", &script, now);
            }
            None => self.respond(connection, exchange, status, TEXT, content, now),
        }
    }

    /// Ends a polling session: a parked GET is told. A client that is to come back, and would not after a close
    /// packet, is told by a status.
    pub(super) fn close_polling(&mut self, key: Key, reason: CloseReason, now: Millis) {
        let Some(session) = self.sessions.table.get_mut(key) else { return };
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
            let stopping = reason == CloseReason::ShuttingDown;
            let mut close_is_final = false;
            if let Some(Peer { protocol: Protocol::Http(Http::Parked(parked)), .. }) =
                self.connections.peers.get_mut(connection)
            {
                close_is_final = parked.exchange.close_is_final;
                parked.exchange.keep_alive &= !stopping;
            }
            if stopping && close_is_final {
                self.answer_parked(connection, 503, b"The server stops.\n", now);
            } else {
                self.answer_parked(connection, 200, &out, now);
            }
        }
        if let Some(connection) = probing {
            self.close_peer(connection, CloseReason::ClientVanished, now);
        }
    }

    pub(super) fn begin_post(
        &mut self,
        key: Key,
        sid: Sid,
        format: PostFormat,
        decoder: BodyDecoder,
        mut exchange: Exchange,
        now: Millis,
    ) {
        // The body is on its way, whatever the answer.
        let Some(session) = self.find_session(sid) else {
            exchange.keep_alive = false;
            return self.respond_refusal(key, &exchange, Refusal::SessionId, now);
        };
        exchange.sid = Some(sid);
        let limit = self.max_post(session) as u64;
        match self.sessions.table.get_mut(session).and_then(Session::polling) {
            None => {
                exchange.keep_alive = false;
                self.respond_refusal(key, &exchange, Refusal::Request, now);
            }
            Some(Polling { posting: Some(_), .. }) => {
                exchange.keep_alive = false;
                self.respond_refusal(key, &exchange, Refusal::Request, now);
                self.close_session(session, CloseReason::Overlap, now);
            }
            Some(_) if matches!(decoder, BodyDecoder::Length(length) if length > limit) => {
                self.refuse_payload(key, exchange, now);
            }
            Some(polling) => {
                polling.posting = Some(key);
                let post = Post { exchange, session, format, decoder, body: Vec::new() };
                if let Some(peer) = self.connections.peers.get_mut(key) {
                    peer.protocol = Protocol::Http(Http::Body(Box::new(post)));
                    peer.deadline = Deadline::at(now + self.context.limits.request_within);
                }
                self.arm_peer(key, now);
                // An empty body has come already.
                self.handle_body(key, &[], now);
            }
        }
    }

    /// Returns the longest body of a POST that a session takes now.
    fn max_post(&self, key: Key) -> usize {
        self.sessions.table.get(key).map_or(0, |session| session.max_payload(&self.sessions.rules))
    }

    fn refuse_payload(&mut self, key: Key, mut exchange: Exchange, now: Millis) {
        exchange.keep_alive = false;
        exchange.closed_for = CloseReason::BodyTooLarge;
        self.respond(key, &exchange, 413, TEXT, b"The body is too long.\n", now);
    }

    /// Takes bytes of a POST's body; how many were used.
    pub(super) fn handle_body(&mut self, key: Key, bytes: &[u8], now: Millis) -> usize {
        let Self { connections: Connections { peers, .. }, sessions: Sessions { table: sessions, rules, .. }, .. } =
            self;
        let Some(peer) = peers.get_mut(key) else { return 0 };
        let Protocol::Http(Http::Body(post)) = &mut peer.protocol else { return 0 };
        let limit = sessions.get(post.session).map_or(rules.max_payload, |session| session.max_payload(rules));
        let mut used = 0;
        loop {
            match post.decoder.next(&bytes[used..]) {
                Ok((taken, Piece::Data(data))) if post.body.len() + data.len() <= limit => {
                    post.body.extend_from_slice(data);
                    used += taken;
                }
                Ok((_, Piece::Data(_))) => {
                    let post = self.take_post(key);
                    if let Some(post) = post {
                        self.refuse_payload(key, post.exchange, now);
                    }
                    return used;
                }
                Ok((taken, Piece::NeedMore)) => return used + taken,
                Ok((taken, Piece::End)) => {
                    if let Some(post) = self.take_post(key) {
                        self.finish_post(key, &post, now);
                    }
                    return used + taken;
                }
                Err(_) => {
                    if let Some(mut post) = self.take_post(key) {
                        post.exchange.keep_alive = false;
                        self.refuse_post(key, &post, now);
                    }
                    return used;
                }
            }
        }
    }

    /// The POST is no longer under way.
    fn take_post(&mut self, key: Key) -> Option<Box<Post>> {
        let peer = self.connections.peers.get_mut(key)?;
        let Protocol::Http(http @ Http::Body(_)) = &mut peer.protocol else { return None };
        let Http::Body(post) = std::mem::replace(http, Http::Head) else { unreachable!("matched above") };
        if let Some(polling) = self.sessions.table.get_mut(post.session).and_then(Session::polling) {
            polling.posting = None;
        }
        Some(post)
    }

    fn refuse_post(&mut self, key: Key, post: &Post, now: Millis) {
        self.respond_refusal(key, &post.exchange, Refusal::Request, now);
        self.close_session(post.session, CloseReason::BrokenPacket, now);
    }

    fn finish_post(&mut self, key: Key, post: &Post, now: Millis) {
        let Some(session) = self.sessions.table.get(post.session) else {
            return self.respond_refusal(key, &post.exchange, Refusal::SessionId, now);
        };
        let Dialect::SocketIo(version) = session.dialect() else { return };
        if post.format == PostFormat::Binary && version == Version::V4 {
            return self.refuse_post(key, post, now);
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
        let Some(packets) = whole else { return self.refuse_post(key, post, now) };
        let waited = session.outgoing.len();
        self.respond(key, &post.exchange, 200, HTML, b"ok", now);
        self.note_known(key, post.session);
        for packet in packets {
            let rules = &self.sessions.rules;
            if self.sessions.table.get_mut(post.session).is_some_and(|session| !session.allows_message(rules, now)) {
                return self.close_session(post.session, CloseReason::TooManyMessages, now);
            }
            if let Some(session) = self.sessions.table.get_mut(post.session) {
                session.handle_activity(now);
            }
            self.hand_message(post.session, packet, now);
        }
        // An authenticated client may have more answers to one POST.
        let piles_up = |session: &Session| match session.stage() {
            Some(Stage::Idle) => session.outgoing.len() > UNAUTHENTICATED_MESSAGE,
            Some(_) => session.outgoing.len() > MAX_OUTGOING,
            None => waited > MAX_OUTGOING,
        };
        let session = self.sessions.table.get(post.session).filter(|session| session.websocket().is_none());
        if session.is_some_and(piles_up) {
            self.close_session(post.session, CloseReason::NotReading, now);
        }
    }

    /// Opens a WebSocket that is to take a session over, when the session is one that can be.
    pub(super) fn begin_upgrade(&mut self, key: Key, sid: Sid, websocket_key: &str, exchange: &Exchange, now: Millis) {
        let session = self.find_session(sid);
        let polling = session.and_then(|session| self.sessions.table.get_mut(session)).and_then(Session::polling);
        let (Some(session), refusal) = (session, polling) else {
            return self.respond_refusal(key, exchange, Refusal::SessionId, now);
        };
        match refusal {
            Some(polling) if polling.probing.is_none() => polling.probing = Some(key),
            _ => return self.respond_refusal(key, exchange, Refusal::Request, now),
        }
        self.upgrade(key, exchange, websocket_key, None);
        self.connections.changed.push(Timer::Peer(key));
        if let Some(peer) = self.connections.peers.get_mut(key) {
            peer.protocol = Protocol::Probing(session, Decoder::default());
            peer.deadline = Deadline::at(now + UPGRADE_WITHIN);
        }
        self.flush_peer(key, now);
        self.arm_peer(key, now);
    }

    /// A text on a WebSocket that has not taken over: `2probe`, then `5`.
    pub(super) fn handle_probe(&mut self, key: Key, session: Key, text: &str, now: Millis) {
        let polling = self.sessions.table.get_mut(session).and_then(Session::polling);
        let Some(polling) = polling.filter(|polling| polling.probing == Some(key)) else {
            return self.close_peer(key, CloseReason::BrokenPacket, now);
        };
        match (text, polling.probed) {
            ("2probe", _) => {
                polling.probed = true;
                if let Some(peer) = self.connections.peers.get_mut(key) {
                    websocket::write_text(peer.connection.queue(), b"3probe");
                }
                self.flush_peer(key, now);
                // A parked GET is freed, so that the client may stop polling.
                self.flush_polling(session, now);
            }
            ("5", true) => self.take_over(key, session, now),
            _ => self.close_peer(key, CloseReason::BrokenPacket, now),
        }
    }

    fn take_over(&mut self, key: Key, session: Key, now: Millis) {
        self.flush_polling(session, now);
        self.delist(Timer::Session(session));
        self.leave_polling(session);
        if let Some(session) = self.sessions.table.get_mut(session) {
            session.transport = Transport::WebSocket(key);
        }
        if let Some(peer) = self.connections.peers.get_mut(key) {
            peer.deadline = Deadline::NEVER;
        }
        self.carry(key, session, now);
    }

    /// A connection that brought a request of a session is over.
    pub(super) fn forget_connection(&mut self, key: Key, session: Key) {
        let Some(polling) = self.sessions.table.get_mut(session).and_then(Session::polling) else { return };
        for place in [&mut polling.parked, &mut polling.posting, &mut polling.probing] {
            if *place == Some(key) {
                *place = None;
            }
        }
        polling.probed &= polling.probing.is_some();
    }

    fn respond_refusal(&mut self, key: Key, exchange: &Exchange, refusal: Refusal, now: Millis) {
        let answer = routes::refusal(refusal);
        self.respond(key, exchange, answer.status, answer.content_type, answer.body.as_bytes(), now);
    }

    pub(super) fn flush_peer(&mut self, key: Key, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        match peer.connection.flush() {
            Ok(Flushed::All) => {}
            Ok(Flushed::Blocked) => self.update_interest(key, now),
            Err(error) => self.lost(key, Some(&error), now),
        }
    }
}
