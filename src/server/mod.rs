//! The server: owns every table, hands each event to the machine that it is for, and carries out what
//! the machines ask for. It is driven by [`crate::event_loop`], turn by turn.
//!
//! | file | what is in it |
//! |---|---|
//! | `mod.rs` | the tables, and the steps of a turn |
//! | `doors.rs` | the ports: TLS, and none |
//! | `credentials.rs` | the server's own credentials, read again from their file |
//! | `admin.rs` | the server's own credentials at CouchDB |
//! | `arrivals.rs` | clients that come, as many as there may be |
//! | `inbound.rs` | connections of clients: HTTP, WebSocket frames |
//! | `http_exchange.rs` | answers to HTTP requests |
//! | `operation.rs` | health, readiness and metrics, and the port for them |
//! | `polling.rs` | sessions over HTTP long polling, and their upgrade |
//! | `sessions.rs` | actions of sessions |
//! | `access.rs` | who may subscribe to what, and who is still logged in |
//! | `name_lists.rs` | long lists of names, worked off over turns |
//! | `departures.rs` | sessions that end |
//! | `positions.rs` | subscribing, look-ups of positions, resync |
//! | `restarts.rs` | whether CouchDB restarted |
//! | `outbound.rs` | connections to CouchDB: the feed, the log-ins |
//! | `flush.rs` | what is written, and when |
//! | `events.rs` | what the log tells of requests and sessions |
//! | `memory.rs` | the memory of the process against its limit |
//! | `unauthenticated.rs` | clients that have not logged in, and their eviction |
//! | `farewell.rs` | the end: seeing the clients off |

mod access;
mod admin;
mod arrivals;
mod connections;
mod context;
mod credentials;
mod databases;
mod departures;
mod doors;
mod events;
mod farewell;
mod flush;
mod http_exchange;
mod ids;
mod inbound;
mod memory;
mod name_lists;
mod operation;
mod outbound;
mod polling;
mod positions;
mod purpose;
mod restarts;
mod session_actions;
mod sessions;
mod settings;
#[cfg(test)]
mod sizes;
mod unauthenticated;
mod upstream;

use std::io;
use std::sync::Arc;

use mio::event::Event;
use mio::{Registry, Token};

pub use doors::Doors;
pub use settings::Settings;
pub use upstream::UPSTREAMS;

use connections::Connections;
use connections::exchange;
use connections::peer::{Http, Peer, Protocol, Seat};
use context::Context;
use credentials::CredentialsFile;
use databases::Databases;
use ids::{Queue, Timer, UpstreamId};
use purpose::{Login, Purpose};
use sessions::Sessions;
use upstream::{Requests, Upstream};

use crate::state::admin_access::AdminUse;
use crate::state::drain::Drain;
use crate::state::jitter::Jitter;
use crate::state::metrics::{CloseReason, Metrics};
use crate::state::resync::StaggeredResync;
use crate::state::table::Key;
use crate::state::timers::{Millis, Timers};

/// What the events of the plain port come under.
pub const LISTENER: Token = Token(usize::MAX);
/// What the wake-ups of the resolver come under.
pub const WAKER: Token = Token(usize::MAX - 1);
/// What signals to stop come under; the event loop's own.
pub const STOP_SIGNALS: Token = Token(usize::MAX - 2);
/// What signals to read the certificate again come under; the event loop's own.
pub const RELOAD_SIGNALS: Token = Token(usize::MAX - 3);
/// What the events of the TLS port come under.
pub const TLS_LISTENER: Token = Token(usize::MAX - 4);

/// What the events of the port for operators come under.
pub const ADMIN_LISTENER: Token = Token(usize::MAX - 5);

/// Most bytes that are read from a client in one turn.
const CLIENT_READ: usize = 64 * 1024;
/// Names of databases in the requests of one turn; what clients send beyond is read in the next turn. A name costs about
/// half a microsecond.
const NAMES_A_TURN: usize = 2_000;
/// Time for a peer to take the last bytes and to close, in milliseconds.
const LINGER: Millis = 3_000;
/// Most bytes that are read from a peer that was told of the end and goes on sending.
const LINGER_READ: usize = 256 * 1024;
/// The server.
#[derive(Debug)]
pub struct Server {
    connections: Connections,
    sessions: Sessions,
    databases: Databases,
    upstream: Upstream,
    context: Context,
    operation: operation::Operation,
    drain_within: Millis,
    /// While stopping, the clients that are still to be seen off.
    drain: Option<Drain>,
}

impl Server {
    /// A server that listens already; it connects to CouchDB in its first turn.
    ///
    /// # Errors
    /// When the events of its ports cannot be had, or no thread started.
    pub fn new(settings: Settings, mut doors: Doors, registry: Registry) -> io::Result<Self> {
        doors.register(&registry, LISTENER, TLS_LISTENER, ADMIN_LISTENER)?;
        let waker = Arc::new(mio::Waker::new(&registry, WAKER)?);
        Ok(Self {
            context: Context {
                metrics: Metrics::default(),
                timers: Timers::default(),
                jitter: Jitter::new(settings.seed),
                limits: settings.limits.clone(),
            },
            operation: operation::Operation::new(settings.started, settings.dropped_log_lines),
            drain_within: settings.drain_within,
            drain: None,
            connections: Connections::new(&settings, doors, registry),
            sessions: Sessions::new(&settings),
            databases: Databases::new(&settings),
            upstream: Upstream::new(settings, waker)?,
        })
    }

    /// How long the loop may wait for an event: until then; 0 while work is left.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let writes = !self.sessions.dirty.is_empty() || !self.sessions.flushing.is_empty();
        let evicts = self.connections.unauthenticated.surplus().is_some();
        let reads = !self.connections.unfinished.is_empty() || !self.connections.postponed.is_empty();
        let works = !self.databases.unnotified.is_empty()
            || self.databases.access.has_work()
            || self.databases.positions.has_work()
            || self.databases.name_lists.has_work();
        if reads
            || writes
            || works
            || self.connections.accept_pending
            || evicts
            || !self.databases.departures.is_empty()
        {
            return Some(0);
        }
        let may_look_up = self.upstream.feed.is_streaming() && self.upstream.admin.may_ask_soon(AdminUse::Lookup);
        let due = [
            self.upstream.feed.poll_timeout(),
            self.upstream.credentials_file.as_ref().and_then(CredentialsFile::poll_timeout),
            self.admin_timeout(),
            self.upstream.recording_at,
            self.upstream.queues.iter().filter_map(|queue| queue.pool.poll_timeout()).min(),
            self.sessions.login_limits.poll_timeout(),
            self.databases.access.poll_timeout(),
            self.databases.positions.poll_timeout(),
            self.databases.pending_resync.as_ref().and_then(StaggeredResync::poll_timeout),
            self.databases.catch_up.poll_timeout(),
            self.context.timers.poll_timeout(),
            self.databases.merge_timers.poll_timeout(),
            self.databases.epoch_retry,
            self.databases.restarts.poll_timeout().filter(|_| may_look_up),
            self.connections.accept_from,
            self.connections.memory.poll_timeout(),
            self.drain.as_ref().map(Drain::poll_timeout),
        ];
        due.into_iter().flatten().min()
    }

    /// Begins a turn: connections that the turn before had no time for are read first.
    pub fn begin_turn(&mut self, now: Millis) {
        (self.databases.names_this_turn, self.databases.answered_this_turn, self.databases.ended_this_turn) = (0, 0, 0);
        self.answer_ready();
        self.end_departed(now);
        self.notify_some();
        for _ in 0..self.connections.postponed.len() {
            if self.is_busy() {
                break;
            }
            let Some(key) = self.connections.postponed.pop_front() else { break };
            if let Some(peer) = self.connections.peers.get_mut(key) {
                peer.postponed = false;
                self.read(key, true, now);
            }
        }
    }

    /// Whether the requests of this turn had as many names as there is time for.
    fn is_busy(&self) -> bool {
        self.databases.names_this_turn >= NAMES_A_TURN
    }

    /// Handles one event of the poll.
    pub fn ready(&mut self, event: &Event, now: Millis) {
        match event.token() {
            LISTENER | TLS_LISTENER | ADMIN_LISTENER => self.accept(now),
            WAKER => {
                self.handle_resolver(now);
                self.handle_credentials_file(now);
            }
            token => self.peer_ready(key_of(token), event, now),
        }
    }

    /// Goes on with what an earlier turn left.
    pub fn run_unfinished(&mut self, now: Millis) {
        if self.connections.accept_pending {
            self.accept(now);
        }
        for key in std::mem::take(&mut self.connections.unfinished) {
            self.read(key, true, now);
        }
    }

    /// Does what the time asks for.
    pub fn expire_timers(&mut self, now: Millis) {
        self.check_memory(now);
        self.upstream.feed.handle_timeout(now, &mut self.upstream.feed_actions);
        self.perform_feed_actions(now);
        self.expire_credentials(now);
        self.expire_requests(now);
        self.expire_admin(now);
        self.ask_recording(now);
        self.retry_epoch(now);
        self.ask_restarts(now);
        self.databases.positions.handle_timeout(now, &mut self.databases.subscriptions);
        self.answer_ready();
        self.expire_access(now);
        self.databases.catch_up.handle_timeout(now, &mut self.databases.subscriptions);
        self.advance_wave(now);
        if self.connections.accept_from.is_some_and(|at| at <= now) {
            self.connections.accept_from = None;
            self.accept(now);
        }
        while let Some((_, due)) = self.databases.merge_timers.pop_due(now) {
            for database in due {
                self.release_held(database, now);
            }
        }
        while let Some((bucket, due)) = self.context.timers.pop_due(now) {
            for timer in due {
                match timer {
                    Timer::Session(key) => self.session_timeout(key, bucket, now),
                    Timer::Peer(key) => self.peer_timeout(key, bucket, now),
                }
            }
        }
        self.serve_logins(now);
    }

    /// Frees the slots of connections that are over.
    pub fn reap_closed(&mut self) {
        for key in self.connections.closed.drain(..) {
            if let Some(mut peer) = self.connections.peers.remove(key) {
                // Closing the socket ends its registration too; this also covers a socket that was duplicated.
                let _ = self.connections.registry.deregister(peer.connection.stream().socket());
            }
        }
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    fn is_client(&self, key: Key) -> bool {
        self.connections.peers.get(key).is_some_and(|peer| peer.seat != Seat::Operator) && !self.is_upstream(key)
    }

    fn is_upstream(&self, key: Key) -> bool {
        self.connections.peers.get(key).is_some_and(|peer| matches!(peer.protocol, Protocol::Upstream { .. }))
    }

    /// A connection is over: nothing is read or written any more. What it carried ends with it.
    fn close_peer(&mut self, key: Key, reason: CloseReason, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        match std::mem::replace(&mut peer.protocol, Protocol::Closed) {
            Protocol::Closed => return,
            Protocol::WebSocket(session, _) => {
                self.context.metrics.count_close(reason);
                self.log_session_end(session, "ended", reason, now);
                let memory = self.memory_of(session);
                self.remove_session(session, memory, now);
            }
            Protocol::Handshake => self.context.metrics.count_close(reason),
            Protocol::Http(http) => {
                self.count_close(key, reason);
                match http {
                    Http::Head => {}
                    Http::Body(post) => self.forget_connection(key, post.session()),
                    Http::Parked(parked) => self.forget_connection(key, parked.session),
                }
            }
            Protocol::Probing(session, _) => {
                self.context.metrics.count_close(reason);
                self.forget_connection(key, session);
            }
            Protocol::Lingering { .. } | Protocol::Upstream { .. } => {}
        }
        self.delist(Timer::Peer(key));
        self.vacate(key);
        self.connections.closed.push(key);
    }

    fn arm_peer(&mut self, key: Key, now: Millis) {
        if let Some(peer) = self.connections.peers.get_mut(key)
            && let Some(deadline) = peer.deadline.moment()
        {
            self.context.timers.arm(Timer::Peer(key), &mut peer.alarm, deadline, now);
        }
    }

    fn peer_timeout(&mut self, key: Key, bucket: Millis, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        if !peer.alarm.fired(bucket) {
            return;
        }
        match (peer.deadline.moment(), &peer.protocol) {
            (None, _) => {}
            (Some(deadline), _) if now < deadline => self.arm_peer(key, now),
            (_, Protocol::Upstream { .. }) => self.upstream_lost(key, Some("no connection in time"), now),
            (_, Protocol::Handshake) => self.close_peer(key, CloseReason::HandshakeTimeout, now),
            (_, Protocol::Http(Http::Head)) => self.refuse_late_request(key, now),
            (_, Protocol::Http(_) | Protocol::Probing(..)) => self.close_peer(key, CloseReason::RequestTimeout, now),
            (_, Protocol::WebSocket(..)) => self.close_peer(key, CloseReason::SlowReader, now),
            _ => self.close_peer(key, CloseReason::CloseTimeout, now),
        }
    }
}

fn token_of(key: Key) -> Token {
    Token((key.generation as usize) << 32 | key.index as usize)
}

fn key_of(token: Token) -> Key {
    let low = |number: usize| u32::try_from(number & 0xffff_ffff).expect("masked");
    Key { index: low(token.0), generation: low(token.0 >> 32) }
}
