//! The server. It is driven by [`crate::event_loop`], turn by turn: [`Server`] routes each event to
//! the owner of the tables that it concerns, and carries the actions that the owner returns to the
//! other owners.
//!
//! Four owners hold the state; their fields are private, and none of them knows another:
//!
//! | owner | content |
//! |---|---|
//! | `connections/` | sockets of clients and to CouchDB, quotas of addresses, HTTP responses |
//! | `sessions/` | sessions, those that have something to send, limits of logins, totals of users |
//! | `databases/` | subscriptions, positions, access, merge windows, resyncs |
//! | `upstream/` | the feed, the queues of requests to CouchDB, the server's own credentials |
//!
//! All other files are steps of [`Server`] that need more than one owner:
//!
//! | file | steps |
//! |---|---|
//! | `accept.rs` | accepting clients |
//! | `input.rs` | input of clients: HTTP requests, WebSocket frames |
//! | `requests.rs` | routes of HTTP requests, and their responses |
//! | `polling.rs` | polling sessions, and WebSockets that take them over |
//! | `session_actions.rs` | inputs and actions of sessions, and their end |
//! | `login.rs` | logins, and checks of logged-in sessions |
//! | `subscribe.rs`, `long_lists.rs` | `subscribe` and `unsubscribe` |
//! | `access.rs` | questions about access, subscriptions that end with it |
//! | `lookups.rs` | lookups of positions, the epoch, restarts of CouchDB |
//! | `resync.rs` | resyncs of clients that may have missed changes |
//! | `flush.rs` | writing notifications and answers |
//! | `couchdb.rs` | connections to CouchDB: bytes of the feed, answers |
//! | `eviction.rs` | eviction of unauthenticated clients |
//! | `operation.rs` | health, readiness and metrics |
//! | `shutdown.rs` | closing all clients in order |
//!
//! | file | shared by all |
//! |---|---|
//! | `settings.rs` | the settings of the server |
//! | `context.rs` | metrics, timers, jitter and limits, which are passed to the owners |
//! | `ids.rs`, `purpose.rs` | names of connections, sessions and requests |
//! | `reporting.rs` | numbers that only the metrics need |

mod accept;
mod access;
mod connections;
mod context;
mod couchdb;
mod databases;
mod eviction;
mod flush;
mod ids;
mod input;
mod login;
mod long_lists;
mod lookups;
mod operation;
mod polling;
mod purpose;
mod reporting;
mod requests;
mod resync;
mod session_actions;
mod sessions;
mod settings;
mod shutdown;
#[cfg(test)]
mod sizes;
mod subscribe;
mod upstream;

use std::io;
use std::sync::Arc;

use mio::event::Event;
use mio::{Registry, Token};

pub use connections::Listeners;
pub use settings::Settings;
pub use upstream::UPSTREAMS;

use connections::{Connections, Expired};
use context::Context;
use databases::Databases;
use ids::{Handle, Queue, key_of};
use reporting::Reporting;
use sessions::Sessions;
use upstream::Upstream;

use crate::state::drain::Drain;
use crate::state::jitter::Jitter;
use crate::state::metrics::Metrics;
use crate::state::session::Session;
use crate::state::table::Key;
use crate::state::timers::{Millis, Timers};

/// Token of the plain HTTP port.
pub const LISTENER: Token = Token(usize::MAX);
/// Token of wake-ups by the resolver and the reader of files.
pub const WAKER: Token = Token(usize::MAX - 1);
/// Token of signals to stop, which the event loop handles.
pub const STOP_SIGNALS: Token = Token(usize::MAX - 2);
/// Token of signals to read the certificate again, which the event loop handles.
pub const RELOAD_SIGNALS: Token = Token(usize::MAX - 3);
/// Token of the TLS port.
pub const TLS_LISTENER: Token = Token(usize::MAX - 4);
/// Token of the port for operators.
pub const ADMIN_LISTENER: Token = Token(usize::MAX - 5);

/// The server: four owners, and what belongs to none of them.
#[derive(Debug)]
pub struct Server {
    connections: Connections,
    sessions: Sessions,
    databases: Databases,
    upstream: Upstream,
    context: Context,
    reporting: Reporting,
    /// Longest time that a shutdown takes, in milliseconds.
    drain_within: Millis,
    /// The shutdown in progress.
    drain: Option<Drain>,
}

impl Server {
    /// Takes listeners that are bound already; connects to CouchDB in the first turn.
    ///
    /// # Errors
    /// When the poll rejects a listener, or no thread can be started.
    pub fn new(settings: Settings, mut listeners: Listeners, registry: Registry) -> io::Result<Self> {
        listeners.register(&registry, LISTENER, TLS_LISTENER, ADMIN_LISTENER)?;
        let waker = Arc::new(mio::Waker::new(&registry, WAKER)?);
        Ok(Self {
            context: Context {
                metrics: Metrics::default(),
                timers: Timers::default(),
                jitter: Jitter::new(settings.seed),
                limits: settings.limits.clone(),
            },
            reporting: Reporting::new(settings.started, settings.dropped_log_lines),
            drain_within: settings.drain_within,
            drain: None,
            connections: Connections::new(&settings, listeners, registry),
            sessions: Sessions::new(&settings),
            databases: Databases::new(&settings),
            upstream: Upstream::new(settings, waker)?,
        })
    }

    /// Returns until when the loop may wait for an event: 0 while work is left, None without a
    /// limit.
    pub fn poll_timeout(&self) -> Option<Millis> {
        if self.connections.has_work() || self.sessions.has_work() || self.databases.has_work() {
            return Some(0);
        }
        let due = [
            self.connections.poll_timeout(),
            self.sessions.login_timeout(),
            self.databases.poll_timeout(self.upstream.may_look_up_soon()),
            self.upstream.poll_timeout(),
            self.context.timers.poll_timeout(),
            self.drain.as_ref().map(Drain::poll_timeout),
        ];
        due.into_iter().flatten().min()
    }

    /// Begins a turn with the connections that the turn before had no time for.
    pub fn begin_turn(&mut self, now: Millis) {
        self.databases.begin_turn();
        self.answer_ready();
        self.end_departed(now);
        self.databases.notify_some();
        self.mark_notified();
        for _ in 0..self.connections.postponed_count() {
            if self.databases.is_turn_full() {
                break;
            }
            let Some(key) = self.connections.next_postponed() else { break };
            self.read(key, true, now);
        }
    }

    /// Handles one event of the poll.
    pub fn ready(&mut self, event: &Event, now: Millis) {
        match event.token() {
            LISTENER | TLS_LISTENER | ADMIN_LISTENER => self.accept(now),
            WAKER => {
                self.upstream.handle_resolver();
                self.connect_dialed(now);
                self.upstream.handle_credentials_file(now);
                self.handle_parsed(now);
            }
            token => self.handle_event(key_of(token), event, now),
        }
    }

    /// Continues what an earlier turn left.
    pub fn run_unfinished(&mut self, now: Millis) {
        if self.connections.is_accept_pending() {
            self.accept(now);
        }
        for key in self.connections.take_unfinished() {
            self.read(key, true, now);
        }
    }

    /// Handles the deadlines that are over.
    pub fn expire_timers(&mut self, now: Millis) {
        self.check_memory(now);
        self.upstream.expire_feed(now);
        self.perform_feed_actions(now);
        self.upstream.expire_credentials_file(now);
        for queue in Queue::ALL {
            self.upstream.expire_requests(queue, now);
            self.perform_queue_actions(queue, now);
        }
        self.upstream.expire_questions(now);
        self.perform_queue_actions(Queue::Lookups, now);
        self.retry_epoch(now);
        self.ask_restarts(now);
        self.databases.expire_lookups(now);
        self.answer_ready();
        self.databases.handle_timeout(now);
        self.advance_resync(now);
        if self.connections.resume_accept(now) {
            self.accept(now);
        }
        self.databases.release_held_changes(&mut self.context, now);
        self.mark_notified();
        while let Some((bucket, due)) = self.context.timers.pop_due(now) {
            for handle in due {
                match handle {
                    Handle::Session(key) if self.sessions.is_due(key, bucket) => {
                        self.with_session(key, now, Session::handle_timeout);
                    }
                    Handle::Session(_) => {}
                    Handle::Connection(key) => self.expire_connection(key, bucket, now),
                }
            }
        }
        self.serve_logins(now);
    }

    fn expire_connection(&mut self, key: Key, bucket: Millis, now: Millis) {
        match self.connections.handle_timeout(key, bucket, &mut self.context, now) {
            Expired::Handled => {}
            Expired::Upstream => self.upstream_lost(key, Some("no connection in time"), now),
            Expired::Close(reason) => self.close_connection(key, reason, now),
        }
    }

    /// Frees the slots of closed connections.
    pub fn reap_closed(&mut self) {
        self.connections.reap_closed();
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }
}
