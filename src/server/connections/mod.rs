//! The owner of all sockets: listeners, connections, their addresses and quotas, and the list of
//! unauthenticated clients.
//!
//! A connection carries bytes and knows the key of the session that it serves, but nothing of
//! sessions: what a closed connection carried is returned as [`Carried`], and the server ends it.
//!
//! | file | content |
//! |---|---|
//! | `peer.rs` | a connection and its state |
//! | `exchange.rs` | HTTP requests without a response |
//! | `listeners.rs`, `accept.rs` | listening ports, accepting clients |
//! | `quota.rs` | connections in total and by address, trusted proxies |
//! | `handshake.rs` | TLS of clients |
//! | `read.rs`, `write.rs` | input and output, closing in order |
//! | `respond.rs` | HTTP responses |
//! | `polling.rs` | parked GETs, POSTs, WebSockets that take over |
//! | `operators.rs` | connections on the admin port |
//! | `couchdb.rs` | connections to CouchDB |
//! | `review.rs` | the list of unauthenticated clients |
//! | `memory.rs` | the memory of the process |

mod accept;
pub(super) mod couchdb;
pub(super) mod exchange;
mod handshake;
mod listeners;
mod memory;
mod operators;
mod peer;
mod polling;
mod quota;
pub(super) mod read;
pub(super) mod respond;
mod review;
mod write;

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use mio::Registry;

pub use self::listeners::Listeners;
pub(super) use self::listeners::Port;
pub(super) use self::memory::resident_memory;
pub(super) use self::peer::Quota;

use self::memory::Memory;
use self::peer::{Http, Peer, Protocol};
use super::context::Context;
use super::ids::{Handle, token_of};
use super::settings::Settings;
use crate::net::connection::Connection;
use crate::net::stream::Stream;
use crate::state::address_limit::AddressLimit;
use crate::state::log_throttle::{LogThrottle, TEN_MINUTES};
use crate::state::metrics::CloseReason;
use crate::state::routes::{Origins, SameSite};
use crate::state::sessions_per_connection::SessionsPerConnection;
use crate::state::static_assets::StaticAssets;
use crate::state::table::{Key, Table};
use crate::state::timers::{Deadline, Millis};
use crate::state::trusted_proxies::TrustedProxies;
use crate::state::unauthenticated::Unauthenticated;

/// Bytes of a connection in its slot.
#[cfg(test)]
pub(super) const PEER_SIZE: usize = size_of::<crate::state::table::Slot<Peer>>();
/// Size of the buffer for reads, in bytes. A smaller one costs more system calls for the feed.
const READ_BUFFER: usize = 256 * 1024;
/// A rejected client is asked to retry after this long, in milliseconds, plus up to as long again.
const RETRY_AFTER: Millis = 5_000;

/// The owner of all sockets.
#[derive(Debug)]
pub(super) struct Connections {
    registry: Registry,
    listeners: Listeners,
    /// Time at which accepting continues, while descriptors have run out.
    accept_from: Option<Millis>,
    accept_pending: bool,
    peers: Table<Peer>,
    /// Number of connections of clients.
    clients: usize,
    addresses: AddressLimit,
    /// Connections on the admin port, the oldest request first. Some may be closed.
    operators: Vec<Key>,
    memory: Memory,
    unauthenticated: Unauthenticated<Handle>,
    /// Clients to be reviewed at the end of the turn.
    changed: Vec<Handle>,
    sessions_per_connection: SessionsPerConnection,
    origins: Origins,
    /// Static files, shared with the responses that are being written.
    site: Arc<StaticAssets>,
    trusted_proxies: TrustedProxies,
    cookie_same_site: SameSite,
    /// The buffer for all reads.
    scratch: Box<[u8]>,
    /// Connections whose share of this turn did not cover their input.
    unfinished: Vec<Key>,
    /// Connections that are read in the next turn, since the names of this turn are used up; in
    /// order of arrival.
    postponed: VecDeque<Key>,
    /// Closed connections, whose slots are freed at the end of the turn.
    closed: Vec<Key>,
    /// Throttles the line about pauses of accepting.
    accept_pause_log: LogThrottle,
    /// Throttles the line about rejected clients.
    rejection_log: LogThrottle,
    /// Throttles the line about connections that the poll rejects.
    registration_log: LogThrottle,
    /// Throttles the line about `X-Forwarded-For` from an address that is not a trusted proxy.
    untrusted_proxy_log: LogThrottle,
}

/// The session or request that a connection carried when it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    Nothing,
    /// The session of a WebSocket.
    Session(Key),
    /// A request, or a probing WebSocket, of a polling session.
    Request(Key),
}

/// Result of a connection's deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// The deadline was handled, or is not over.
    Handled,
    /// A connection to CouchDB was not established in time.
    Upstream,
    /// A client is to be closed.
    Close(CloseReason),
}

impl Connections {
    pub(super) fn new(settings: &Settings, listeners: Listeners, registry: Registry) -> Self {
        let limits = &settings.limits;
        Self {
            registry,
            listeners,
            accept_from: None,
            accept_pending: false,
            peers: Table::default(),
            clients: 0,
            addresses: AddressLimit::new(limits.per_address),
            operators: Vec::new(),
            memory: Memory::new(limits.memory),
            unauthenticated: Unauthenticated::new(limits.unauthenticated, limits.unauthenticated_bytes),
            changed: Vec::new(),
            sessions_per_connection: SessionsPerConnection::default(),
            origins: settings.origins.clone(),
            site: Arc::new(settings.site.clone()),
            trusted_proxies: settings.trusted_proxies.clone(),
            cookie_same_site: settings.cookie_same_site,
            scratch: vec![0; READ_BUFFER].into(),
            unfinished: Vec::new(),
            postponed: VecDeque::new(),
            closed: Vec::new(),
            accept_pause_log: LogThrottle::new(TEN_MINUTES),
            rejection_log: LogThrottle::new(TEN_MINUTES),
            registration_log: LogThrottle::new(TEN_MINUTES),
            untrusted_proxy_log: LogThrottle::new(TEN_MINUTES),
        }
    }

    /// Returns whether the next turn has work without waiting for an event.
    pub(super) fn has_work(&self) -> bool {
        let reads = !self.unfinished.is_empty() || !self.postponed.is_empty();
        reads || self.accept_pending || self.unauthenticated.surplus().is_some()
    }

    /// Returns when the next turn is due, apart from the deadlines of connections.
    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        [self.accept_from, self.memory.poll_timeout()].into_iter().flatten().min()
    }

    /// Returns the number of connections of clients.
    pub(super) fn client_count(&self) -> usize {
        self.clients
    }

    /// Returns whether any connection of a client is left.
    pub(super) fn has_clients(&self) -> bool {
        let is_client = |key| !self.is_operator(key) && !self.is_upstream(key);
        self.peers.keys().any(is_client)
    }

    /// Returns the address of a client, as trusted proxies forward it.
    pub(super) fn address(&self, key: Key) -> Option<IpAddr> {
        self.peers.get(key).map(|peer| peer.address)
    }

    pub(super) fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Returns the static files.
    pub(super) fn site(&self) -> Arc<StaticAssets> {
        Arc::clone(&self.site)
    }

    /// Reads the memory of the process if it is time. Returns whether it was read and is above the
    /// limit.
    pub(super) fn check_memory(&mut self, now: Millis) -> bool {
        self.memory.check(now)
    }

    pub(super) fn is_memory_full(&self) -> bool {
        self.memory.is_full()
    }

    /// Returns when a client that is rejected for lack of memory may retry, in milliseconds; None
    /// if there is memory.
    pub(super) fn memory_rejection(&self, context: &mut Context) -> Option<Millis> {
        if !self.memory.is_full() {
            return None;
        }
        context.metrics.memory_rejections += 1;
        Some(RETRY_AFTER + context.jitter.below(RETRY_AFTER))
    }

    /// Adds a connection and registers it with the poll.
    fn add(
        &mut self,
        stream: Stream,
        protocol: Protocol,
        address: IpAddr,
        deadline: Deadline,
        context: &mut Context,
        now: Millis,
    ) -> io::Result<Key> {
        let connecting = matches!(protocol, Protocol::Upstream { .. });
        let registry = &self.registry;
        let key = self.peers.try_insert_with(|key| {
            let connection = Connection::register(stream, connecting, registry, token_of(key))?;
            io::Result::Ok(Peer::new(connection, protocol, address, deadline))
        })?;
        self.arm(key, context, now);
        Ok(key)
    }

    /// Enters the deadline of a connection in the timers.
    pub(super) fn arm(&mut self, key: Key, context: &mut Context, now: Millis) {
        if let Some(peer) = self.peers.get_mut(key)
            && let Some(deadline) = peer.deadline.moment()
        {
            context.timers.arm(Handle::Connection(key), &mut peer.alarm, deadline, now);
        }
    }

    /// Handles the deadline of a connection, if it is over.
    pub(super) fn handle_timeout(&mut self, key: Key, bucket: Millis, context: &mut Context, now: Millis) -> Expired {
        let Some(peer) = self.peers.get_mut(key) else { return Expired::Handled };
        if !peer.alarm.fired(bucket) {
            return Expired::Handled;
        }
        match (peer.deadline.moment(), &peer.protocol) {
            (None, _) => {}
            (Some(deadline), _) if now < deadline => self.arm(key, context, now),
            (_, Protocol::Upstream { .. }) => return Expired::Upstream,
            (_, Protocol::Handshake) => return Expired::Close(CloseReason::HandshakeTimeout),
            (_, Protocol::Http(Http::Head)) => self.reject_late_request(key, context, now),
            (_, Protocol::Http(_) | Protocol::Probing(..)) => return Expired::Close(CloseReason::RequestTimeout),
            (_, Protocol::WebSocket(..)) => return Expired::Close(CloseReason::SlowReader),
            _ => return Expired::Close(CloseReason::CloseTimeout),
        }
        Expired::Handled
    }

    /// Closes a connection: nothing is read or written any more. Returns what it carried.
    pub(super) fn close(&mut self, key: Key, reason: CloseReason, context: &mut Context) -> Carried {
        let Some(peer) = self.peers.get_mut(key) else { return Carried::Nothing };
        let protocol = std::mem::replace(&mut peer.protocol, Protocol::Closed);
        let carried = match &protocol {
            Protocol::Closed => return Carried::Nothing,
            Protocol::WebSocket(session, _) => Carried::Session(*session),
            Protocol::Http(Http::Body(post)) => Carried::Request(post.session),
            Protocol::Probing(session, _) | Protocol::Http(Http::Parked(session, _)) => Carried::Request(*session),
            _ => Carried::Nothing,
        };
        if !matches!(protocol, Protocol::Lingering { .. } | Protocol::Upstream { .. }) {
            self.count_close(key, reason, context);
        }
        self.unlist(key);
        self.release_quota(key);
        self.closed.push(key);
        carried
    }

    /// Closes the connections of clients without a session at the end of the shutdown. Those of
    /// operators stay.
    pub(super) fn close_idle(&mut self, context: &mut Context, now: Millis) {
        for key in self.peers.keys().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get(key).filter(|peer| peer.quota != Quota::Operator) else { continue };
            if matches!(peer.protocol, Protocol::Handshake | Protocol::Http(_) | Protocol::Probing(..)) {
                self.count_close(key, CloseReason::ShuttingDown, context);
                self.linger(key, context, now);
            }
        }
    }

    /// Frees the slots of closed connections.
    pub(super) fn reap_closed(&mut self) {
        for key in self.closed.drain(..) {
            if let Some(mut peer) = self.peers.remove(key) {
                // Closing the socket ends its registration, unless the socket was duplicated.
                let _ = self.registry.deregister(peer.connection.stream().socket());
            }
        }
    }
}
