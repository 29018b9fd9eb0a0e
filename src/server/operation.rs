//! Health, readiness and metrics, served on the ports of clients or on a port of their own.

use super::Server;
use super::connections::exchange::Exchange;
use super::connections::resident_memory;
use super::ids::Queue;
use crate::state::monitoring::{self, Endpoint, Gauges, Readiness};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::http::Request;

impl Server {
    /// Serves a request of an operator. Returns false for requests of clients.
    pub(super) fn serve_operator(&mut self, key: Key, request: &Request<'_>, exchange: &Exchange, now: Millis) -> bool {
        let is_operator = self.connections.is_operator(key);
        if is_operator {
            self.connections.note_operator(key);
        } else if self.connections.has_admin_port() {
            return false;
        }
        let mut page = Vec::new();
        let answer = match (monitoring::endpoint(request.path), request.method) {
            (None, _) if is_operator => monitoring::NOT_FOUND,
            (None, _) => return false,
            (Some(Endpoint::Health), "GET" | "HEAD") => monitoring::HEALTHY,
            (Some(Endpoint::Readiness), "GET" | "HEAD") => self.readiness(now).answer(),
            (Some(Endpoint::Metrics), "GET" | "HEAD") => {
                page = self.exposition(now);
                monitoring::METRICS
            }
            (Some(_), _) => monitoring::METHOD_NOT_ALLOWED,
        };
        let body = if page.is_empty() { answer.body.as_bytes() } else { &*page };
        let keep_alive = self.keeps_alive(exchange);
        self.connections.respond_operator(key, exchange, keep_alive, (&answer, body), &mut self.context, now);
        true
    }

    fn readiness(&self, now: Millis) -> Readiness {
        match (self.is_draining(), self.upstream.is_feed_ready(now)) {
            (true, _) => Readiness::Stopping,
            _ if self.upstream.is_refused() => Readiness::Refused,
            (false, true) => Readiness::Ready,
            (false, false) if self.databases.has_followed() => Readiness::FeedDown,
            (false, false) => Readiness::NotOpenYet,
        }
    }

    /// Returns the metrics in the format of Prometheus.
    fn exposition(&mut self, now: Millis) -> Vec<u8> {
        self.context.metrics.dropped_log_lines = self.reporting.dropped_log_lines();
        let mut requests = self.upstream.request_counts();
        requests[Queue::Logins as usize].1 += self.sessions.waiting_logins();
        let started = self.reporting.started();
        let databases = self.databases.counts();
        let gauges = Gauges {
            started,
            feed_up: self.upstream.is_feed_ready(now),
            connections: self.connections.client_count(),
            unauthenticated: self.connections.unauthenticated(),
            memory_full: self.connections.is_memory_full(),
            sessions: self.reporting.sessions(|| self.sessions.counts(), now),
            subscriptions: databases.subscriptions,
            databases: databases.databases,
            names: databases.names,
            remembered: databases.remembered,
            access: databases.access,
            requests: &requests,
            resident_memory: resident_memory(),
        };
        monitoring::exposition(&self.context.metrics, &gauges)
    }
}
