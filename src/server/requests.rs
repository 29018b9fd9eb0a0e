//! Routes of HTTP requests, and their responses.

use super::Server;
use super::connections::exchange::Exchange;
use super::connections::respond::Response;
use crate::state::metrics::CloseReason;
use crate::state::routes::{self, Answer, Route};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::http::Request;

const TOO_MANY_OF_ADDRESS: &str = "This address has too many connections already.\n";

impl Server {
    /// Serves a request.
    pub(super) fn serve(&mut self, key: Key, request: &Request<'_>, now: Millis) {
        if !self.connections.assign_client(key, request, &mut self.context, now) {
            let reason = CloseReason::TooManyOfAddress;
            return self.connections.answer_and_close(key, 429, TOO_MANY_OF_ADDRESS, reason, &mut self.context, now);
        }
        let mut exchange = Exchange::new(request);
        exchange.secure = self.connections.is_secure(key, request);
        if self.serve_operator(key, request, &exchange, now) {
            return;
        }
        let site = self.connections.site();
        if !routes::is_origin_allowed(request, self.connections.origins(), &site) {
            return self.respond_answer(key, &exchange, &routes::ORIGIN_REFUSED, now);
        }
        let route = routes::route(request, &site);
        if self.is_draining() && route.opens_session() {
            exchange.keep_alive = false;
            return self.respond_answer(key, &exchange, &routes::STOPPING, now);
        }
        if route.opens_session() && self.connections.memory_rejection(&mut self.context).is_some() {
            exchange.keep_alive = false;
            exchange.closed_for = CloseReason::OutOfMemory;
            return self.respond_answer(key, &exchange, &routes::OUT_OF_MEMORY, now);
        }
        match route {
            Route::Howler { key: websocket_key, protocol } => {
                self.connections.upgrade(key, &exchange, websocket_key, protocol);
                self.open_json(key, now);
            }
            Route::OpenWebSocket(query, version, websocket_key) => {
                self.connections.upgrade(key, &exchange, websocket_key, None);
                self.open_websocket(key, version, query.credentials, now);
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
            Route::Upgrade(sid, websocket_key) => self.begin_upgrade(key, sid, websocket_key, &exchange, now),
            Route::Preflight => self.respond(key, &exchange, Response::preflight(), now),
            Route::Asset(file) => {
                let keep_alive = self.keeps_alive(&exchange);
                let file = (file, request.if_none_match);
                self.connections.respond_file(key, &exchange, keep_alive, file, &mut self.context, now);
            }
            Route::Answer(answer) => self.respond_answer(key, &exchange, &answer, now),
        }
    }

    /// Responds to a request.
    pub(super) fn respond(&mut self, key: Key, exchange: &Exchange, response: Response<'_>, now: Millis) {
        let keep_alive = self.keeps_alive(exchange);
        let sid = exchange.session.and_then(|session| self.sessions.sid(session));
        self.connections.respond(key, (exchange, sid), keep_alive, response, &mut self.context, now);
    }

    /// Responds with a fixed answer.
    pub(super) fn respond_answer(&mut self, key: Key, exchange: &Exchange, answer: &Answer, now: Millis) {
        self.respond(key, exchange, Response::of(answer), now);
    }

    /// Returns whether a connection stays open after a response. During a shutdown only connections
    /// of polling sessions do: the session could open no other.
    pub(super) fn keeps_alive(&self, exchange: &Exchange) -> bool {
        let serves_session = || exchange.session.is_some_and(|session| self.sessions.get(session).is_some());
        exchange.keep_alive && (!self.is_draining() || serves_session())
    }
}
