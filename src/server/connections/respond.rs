//! HTTP responses: their fields, and the state of the connection after them.

use std::sync::Arc;

use super::Connections;
use super::exchange::Exchange;
use super::peer::{Http, Protocol};
use crate::net::connection::Flushed;
use crate::server::context::Context;
use crate::server::ids::Handle;
use crate::state::metrics::CloseReason;
use crate::state::routes::{self, Answer};
use crate::state::static_assets::Asset;
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};
use crate::wire::engine_io::Sid;
use crate::wire::http;

/// Time for the next request on a connection that stays open, in milliseconds.
const KEEP_ALIVE: Millis = 60_000;

/// The content types of Engine.IO's responses.
pub(crate) const TEXT: &str = "text/plain; charset=UTF-8";
pub(crate) const HTML: &str = "text/html";

/// A response, but for the fields that depend on its request.
#[derive(Debug)]
pub(crate) struct Response<'a> {
    status: u16,
    fields: Vec<(&'a str, &'a str)>,
    body: &'a [u8],
}

impl<'a> Response<'a> {
    pub(crate) fn new(status: u16, content_type: &'a str, body: &'a [u8]) -> Self {
        Self { status, fields: vec![("Content-Type", content_type)], body }
    }

    /// Returns a fixed answer as a response.
    pub(crate) fn of(answer: &'a Answer) -> Self {
        let mut response = Self::new(answer.status, answer.content_type, answer.body.as_bytes());
        response.fields.extend(answer.field);
        response
    }

    /// Returns the response to a browser that asks which requests of other origins' pages are
    /// allowed.
    pub(crate) fn preflight() -> Self {
        let fields = vec![
            ("Access-Control-Allow-Methods", "GET, POST, OPTIONS"),
            ("Access-Control-Allow-Headers", "Content-Type"),
            ("Access-Control-Max-Age", "600"),
        ];
        Self { status: 204, fields, body: b"" }
    }
}

impl Connections {
    /// Writes a response; then the connection waits for the next request, or is closed. Load
    /// balancers find the id of the session in a cookie.
    pub(crate) fn respond(
        &mut self,
        key: Key,
        (exchange, sid): (&Exchange, Option<Sid>),
        keep_alive: bool,
        response: Response<'_>,
        context: &mut Context,
        now: Millis,
    ) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let Response { status, mut fields, body } = response;
        let cookie = sid.map(|sid| routes::session_cookie(sid, self.cookie_same_site, exchange.secure));
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
        self.finish_exchange(key, exchange, status, keep_alive, context, now);
    }

    /// Responds to an operator. No page of another origin may read the response, and no cache may
    /// keep it.
    pub(crate) fn respond_operator(
        &mut self,
        key: Key,
        exchange: &Exchange,
        keep_alive: bool,
        (answer, body): (&Answer, &[u8]),
        context: &mut Context,
        now: Millis,
    ) {
        // Connections of operators do not delay the shutdown: they stay open until its end.
        let keep_alive = keep_alive || exchange.keep_alive && self.is_operator(key);
        let Some(peer) = self.peers.get_mut(key) else { return };
        let mut fields = vec![
            ("Content-Type", answer.content_type),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ];
        fields.extend(answer.field);
        let status = answer.status;
        let answer = http::Answer { status, fields: &fields, body, head_only: exchange.head_only, keep_alive };
        http::write_response(peer.connection.queue(), &answer);
        self.finish_exchange(key, exchange, status, keep_alive, context, now);
    }

    /// Responds with a file, or with 304 if the client has it.
    pub(crate) fn respond_file(
        &mut self,
        key: Key,
        exchange: &Exchange,
        keep_alive: bool,
        (file, if_none_match): (&Asset, Option<&str>),
        context: &mut Context,
        now: Millis,
    ) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let status = if file.is_known(if_none_match) { 304 } else { 200 };
        let mut fields = file.fields.to_vec();
        fields.push(("ETag", &file.etag));
        // The body is shared rather than copied behind the head, so that slow clients cost no more
        // than others.
        let answer = http::Answer { status, fields: &fields, body: &file.body, head_only: true, keep_alive };
        http::write_response(peer.connection.queue(), &answer);
        if status == 200 && !exchange.head_only {
            peer.connection.queue_shared(Arc::clone(&file.body));
        }
        self.finish_exchange(key, exchange, status, keep_alive, context, now);
    }

    /// Has a queued response leave; then the connection waits for the next request, or is closed.
    fn finish_exchange(
        &mut self,
        key: Key,
        exchange: &Exchange,
        status: u16,
        keep_alive: bool,
        context: &mut Context,
        now: Millis,
    ) {
        self.log_response(key, exchange, status);
        let Some(peer) = self.peers.get_mut(key) else { return };
        if !keep_alive {
            self.count_close(key, exchange.closed_for, context);
            return self.linger(key, context, now);
        }
        peer.protocol = Protocol::Http(Http::Head);
        self.changed.push(Handle::Connection(key));
        peer.deadline = Deadline::at(now + KEEP_ALIVE);
        let flushed = peer.connection.flush();
        // A pipelined request, or input that was left unread.
        peer.pipelined = peer.connection.inbox_len() > 0;
        if peer.pipelined || std::mem::take(&mut peer.unread) {
            self.unfinished.push(key);
        }
        match flushed {
            Ok(Flushed::All) => {}
            Ok(Flushed::Blocked) => self.watch(key, context),
            Err(_) => {
                self.close(key, CloseReason::ClientVanished, context);
                return;
            }
        }
        self.arm(key, context, now);
    }

    /// Responds to bytes that are no valid request, and closes the connection.
    pub(crate) fn answer_and_close(
        &mut self,
        key: Key,
        status: u16,
        body: &str,
        reason: CloseReason,
        context: &mut Context,
        now: Millis,
    ) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let fields = [("Content-Type", "text/plain; charset=utf-8")];
        let answer =
            http::Answer { status, fields: &fields, body: body.as_bytes(), head_only: false, keep_alive: false };
        http::write_response(peer.connection.queue(), &answer);
        let address = peer.address;
        self.count_close(key, reason, context);
        log::debug!(event = "request", client:% = address, status = status; "No request: {status}");
        self.linger(key, context, now);
    }

    /// Closes a connection whose request did not come in time.
    pub(super) fn reject_late_request(&mut self, key: Key, context: &mut Context, now: Millis) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if peer.connection.inbox_len() == 0 {
            self.close(key, CloseReason::RequestTimeout, context);
            return;
        }
        let text = "The request did not come in time.\n";
        self.answer_and_close(key, 408, text, CloseReason::RequestTimeout, context, now);
    }

    /// Writes the response that turns a connection into a WebSocket.
    pub(crate) fn upgrade(&mut self, key: Key, exchange: &Exchange, websocket_key: &str, protocol: Option<&str>) {
        self.log_response(key, exchange, 101);
        if let Some(peer) = self.peers.get_mut(key) {
            http::write_upgrade(peer.connection.queue(), websocket_key, protocol);
            peer.deadline = Deadline::NEVER;
        }
    }

    /// Logs a request and the status of its response, never the query, which may hold credentials.
    /// Requests of polling sessions are left out unless they are rejected: they correspond to the
    /// frames of a WebSocket.
    fn log_response(&self, key: Key, exchange: &Exchange, status: u16) {
        let (Some(line), Some(peer)) = (&exchange.line, self.peers.get(key)) else { return };
        if status == 200 && exchange.session.is_some() {
            return;
        }
        let (method, path) = (&*line.method, &*line.path);
        log::debug!(event = "request", client:% = peer.address, method = method, path = path, status = status;
            "{method} {path}: {status}");
    }
}
