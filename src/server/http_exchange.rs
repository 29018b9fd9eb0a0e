//! One HTTP request and its answer: what of the request decides the form of the answer, CORS, and
//! what becomes of the connection then.

use std::sync::Arc;

use super::exchange::Exchange;
use super::{Http, Protocol, Server, Timer};
use crate::net::connection::Flushed;
use crate::state::metrics::CloseReason;
use crate::state::routes;
use crate::state::static_assets::Asset;
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};
use crate::wire::http;

/// Time for the next request on a connection that is kept, in milliseconds.
const KEEP_ALIVE: Millis = 60_000;

/// The content types of Engine.IO's answers.
pub(super) const TEXT: &str = "text/plain; charset=UTF-8";
pub(super) const HTML: &str = "text/html";

impl Server {
    /// Writes an answer; the connection awaits the next request, or is closed.
    pub(super) fn respond(
        &mut self,
        key: Key,
        exchange: &Exchange,
        status: u16,
        content_type: &str,
        body: &[u8],
        now: Millis,
    ) {
        self.respond_with(key, exchange, status, &[("Content-Type", content_type)], body, now);
    }

    pub(super) fn respond_answer(&mut self, key: Key, exchange: &Exchange, answer: &routes::Answer, now: Millis) {
        let mut fields = vec![("Content-Type", answer.content_type)];
        fields.extend(answer.field);
        self.respond_with(key, exchange, answer.status, &fields, answer.body.as_bytes(), now);
    }

    /// The answer to a browser that asks which requests of another origin's page are welcome.
    pub(super) fn respond_preflight(&mut self, key: Key, exchange: &Exchange, now: Millis) {
        let fields = [
            ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
            ("Access-Control-Allow-Headers", "Content-Type"),
            ("Access-Control-Max-Age", "600"),
        ];
        self.respond_with(key, exchange, 204, &fields, b"", now);
    }

    /// Answers with a file, or that the client has it already.
    pub(super) fn respond_file(
        &mut self,
        key: Key,
        exchange: &Exchange,
        file: &Asset,
        if_none_match: Option<&str>,
        now: Millis,
    ) {
        let keep_alive = self.keeps(exchange);
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        let status = if file.is_known(if_none_match) { 304 } else { 200 };
        let mut fields = file.fields.to_vec();
        fields.push(("ETag", &file.etag));
        // The body is not copied behind the head: who reads slowly is to cost no more than others.
        let answer = http::Answer { status, fields: &fields, body: &file.body, head_only: true, keep_alive };
        http::write_response(peer.connection.queue(), &answer);
        if status == 200 && !exchange.head_only {
            peer.connection.queue_shared(Arc::clone(&file.body));
        }
        self.log_answer(key, exchange, status);
        self.answered(key, keep_alive, exchange.closed_for, now);
    }

    fn respond_with(
        &mut self,
        key: Key,
        exchange: &Exchange,
        status: u16,
        own_fields: &[(&str, &str)],
        body: &[u8],
        now: Millis,
    ) {
        let keep_alive = self.keeps(exchange);
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        let cookie =
            exchange.sid.map(|sid| routes::session_cookie(sid, self.connections.cookie_same_site, exchange.secure));
        let mut fields = own_fields.to_vec();
        match &exchange.origin {
            Some(origin) => fields.extend([
                ("Access-Control-Allow-Origin", &**origin),
                ("Access-Control-Allow-Credentials", "true"),
                ("Vary", "Origin"),
            ]),
            None => fields.push(("Access-Control-Allow-Origin", "*")),
        }
        fields.extend(cookie.as_deref().map(|cookie| ("Set-Cookie", cookie)));
        let answer = http::Answer { status, fields: &fields, body, head_only: exchange.head_only, keep_alive };
        http::write_response(peer.connection.queue(), &answer);
        self.log_answer(key, exchange, status);
        self.answered(key, keep_alive, exchange.closed_for, now);
    }

    pub(super) fn keeps(&self, exchange: &Exchange) -> bool {
        // While stopping, those alone that serve a session until its turn comes: it could make no other.
        let serves = || exchange.sid.is_some_and(|sid| self.find_session(sid).is_some());
        exchange.keep_alive && (!self.is_draining() || serves())
    }

    /// The answer is queued: it leaves, and the connection awaits the next request or is closed.
    pub(super) fn answered(&mut self, key: Key, keep_alive: bool, closed_for: CloseReason, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        if !keep_alive {
            self.count_close(key, closed_for);
            return self.linger(key, now);
        }
        peer.protocol = Protocol::Http(Http::Head);
        self.connections.changed.push(Timer::Peer(key));
        peer.deadline = Deadline::at(now + KEEP_ALIVE);
        let flushed = peer.connection.flush();
        // A request that came early, or input that was left unread.
        peer.early = peer.connection.inbox_len() > 0;
        if peer.early || std::mem::take(&mut peer.unread) {
            self.connections.unfinished.push(key);
        }
        match flushed {
            Ok(Flushed::All) => {}
            Ok(Flushed::Blocked) => self.update_interest(key, now),
            Err(error) => return self.lost(key, Some(&error), now),
        }
        self.arm_peer(key, now);
    }
}
