//! Health, readiness and metrics: served beside all else, or on a port of their own, for operators.
//!
//! A connection that came in by that port is nobody's client: it is counted nowhere, no limit of clients holds for it,
//! and it outlives them when the server stops. There may be [`MAX_OPERATORS`] of them; the one that asked least recently
//! gives way to a new one.

use std::io::Read as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use mio::net::TcpStream;

use super::exchange::Exchange;
use super::{Connections, Http, Protocol, Queue, Seat, Server};
use crate::net::stream::Stream;
use crate::state::metrics::CloseReason;
use crate::state::monitoring::{self, Endpoint, Gauges, Readiness, SessionCounts};
use crate::state::routes::Answer;
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};
use crate::wire::http::{self, Request};

/// Most connections at once on the port for operators.
const MAX_OPERATORS: usize = 64;
/// Time for the head of an operator's request, in milliseconds.
const HEAD_WITHIN: Millis = 10_000;
/// For so long a count of all sessions is good, in milliseconds: strangers may ask, and there are many sessions.
const COUNTED_FOR: Millis = 1_000;

/// What is kept for operators.
#[derive(Debug)]
pub(super) struct Operation {
    /// When the process started, in seconds since 1970.
    started: u64,
    /// Where the log counts the lines that it dropped.
    dropped_log_lines: &'static AtomicU64,
    /// The connections on the port for operators, by when they asked last, longest ago first. Some may be over.
    operators: Vec<Key>,
    /// The sessions as they were counted last, and when.
    counted: Option<(Millis, SessionCounts)>,
}

impl Operation {
    pub(super) fn new(started: u64, dropped_log_lines: &'static AtomicU64) -> Self {
        Self { started, dropped_log_lines, operators: Vec::new(), counted: None }
    }
}

impl Server {
    /// Takes a connection on the port for operators.
    pub(super) fn take_operator(&mut self, socket: TcpStream, address: IpAddr, now: Millis) {
        let Self { operation, connections: Connections { peers, .. }, .. } = self;
        operation.operators.retain(|key| peers.get(*key).is_some());
        if operation.operators.len() >= MAX_OPERATORS {
            let oldest = operation.operators.remove(0);
            self.close_peer(oldest, CloseReason::Served, now);
        }
        let protocol = Protocol::Http(Http::Head);
        match self.add_peer(Stream::plain(socket), protocol, address, Deadline::at(now + HEAD_WITHIN), now) {
            Ok(key) => {
                self.operation.operators.push(key);
                if let Some(peer) = self.connections.peers.get_mut(key) {
                    peer.seat = Seat::Operator;
                }
            }
            Err(error) => {
                let (level, more) = self.connections.registration_log.level(log::Level::Warn, now);
                log::log!(level, "A connection on --admin_port could not be registered: {error}{more}");
            }
        }
    }

    /// Counts a close of a client.
    pub(super) fn count_close(&mut self, key: Key, reason: CloseReason) {
        if self.connections.peers.get(key).is_none_or(|peer| peer.seat != Seat::Operator) {
            self.context.metrics.count_close(reason);
        }
    }

    /// Answers a request when it is one of an operator; whether it was.
    pub(super) fn serve_operation(
        &mut self,
        key: Key,
        request: &Request<'_>,
        exchange: &Exchange,
        now: Millis,
    ) -> bool {
        let is_operator = self.connections.peers.get(key).is_some_and(|peer| peer.seat == Seat::Operator);
        if is_operator {
            let operators = &mut self.operation.operators;
            operators.retain(|one| *one != key);
            operators.push(key);
        } else if self.connections.doors.has_admin() {
            return false;
        }
        let answer = match (monitoring::endpoint(request.path), request.method) {
            (None, _) if is_operator => monitoring::NOT_FOUND,
            (None, _) => return false,
            (Some(Endpoint::Health), "GET" | "HEAD") => monitoring::HEALTHY,
            (Some(Endpoint::Readiness), "GET" | "HEAD") => self.readiness(now).answer(),
            (Some(Endpoint::Metrics), "GET" | "HEAD") => {
                let page = self.exposition(now);
                self.respond_operation(key, exchange, &monitoring::METRICS, &page, now);
                return true;
            }
            (Some(_), _) => monitoring::METHOD_NOT_ALLOWED,
        };
        self.respond_operation(key, exchange, &answer, answer.body.as_bytes(), now);
        true
    }

    fn readiness(&self, now: Millis) -> Readiness {
        match (self.is_draining(), self.upstream.feed.is_ready(now)) {
            (true, _) => Readiness::Stopping,
            _ if self.upstream.admin.is_refused() => Readiness::Refused,
            (false, true) => Readiness::Ready,
            (false, false) if self.databases.followed => Readiness::FeedDown,
            (false, false) => Readiness::NotOpenYet,
        }
    }

    fn exposition(&mut self, now: Millis) -> Vec<u8> {
        if self.operation.counted.as_ref().is_none_or(|(at, _)| *at + COUNTED_FOR <= now) {
            let mut counts = SessionCounts::default();
            self.sessions
                .table
                .keys()
                .filter_map(|key| self.sessions.table.get(key))
                .for_each(|session| counts.count(session));
            self.operation.counted = Some((now, counts));
        }
        self.context.metrics.dropped_log_lines = self.operation.dropped_log_lines.load(Ordering::Relaxed);
        let (_, sessions) = self.operation.counted.as_ref().expect("counted above");
        let queues = &self.upstream.queues;
        let mut requests = Queue::ALL.map(|queue| (queue.label(), queues[queue as usize].pool.len()));
        requests[Queue::Logins as usize].1 += self.sessions.login_limits.waiting();
        let gauges = Gauges {
            started: self.operation.started,
            feed_up: self.upstream.feed.is_ready(now),
            connections: self.connections.clients,
            unauthenticated: (self.connections.unauthenticated.len(), self.connections.unauthenticated.bytes()),
            memory_full: self.connections.memory.is_full(),
            sessions,
            subscriptions: self.databases.subscriptions.total(),
            databases: self.databases.subscriptions.watched(),
            names: self.databases.subscriptions.databases(),
            remembered: self.databases.catch_up.remembered(),
            access: (self.databases.access.waiting_questions(), self.databases.access.security_bytes()),
            requests: &requests,
            resident_memory: resident_memory(),
        };
        monitoring::exposition(&self.context.metrics, &gauges)
    }

    /// Answers an operator, with that body. Pages of other origins may not read it, and nothing may keep it.
    fn respond_operation(&mut self, key: Key, exchange: &Exchange, answer: &Answer, body: &[u8], now: Millis) {
        let kept = self.keeps(exchange);
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        // Those of operators do not hold a stop up: they may ask until the end.
        let keep_alive = kept || exchange.keep_alive && peer.seat == Seat::Operator;
        let mut fields = vec![
            ("Content-Type", answer.content_type),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ];
        fields.extend(answer.field);
        let answer =
            http::Answer { status: answer.status, fields: &fields, body, head_only: exchange.head_only, keep_alive };
        http::write_response(peer.connection.queue(), &answer);
        self.log_answer(key, exchange, answer.status);
        self.answered(key, keep_alive, exchange.closed_for, now);
    }
}

/// Linux keeps this file in memory: reading it waits for nothing.
pub(super) fn resident_memory() -> Option<u64> {
    let mut status = [0; 2048];
    let read = std::fs::File::open("/proc/self/status").ok()?.read(&mut status).ok()?;
    monitoring::resident_memory(&status[..read])
}
