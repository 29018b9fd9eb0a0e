//! The sockets: listeners, connections, their addresses and quotas, and the unauthenticated clients.

pub(super) mod exchange;
pub(super) mod peer;

use std::collections::VecDeque;
use std::sync::Arc;

use mio::Registry;

use super::doors::Doors;
use super::ids::Timer;
use super::memory::Memory;
use super::settings::Settings;
use crate::state::address_limit::AddressLimit;
use crate::state::log_throttle::{LogThrottle, TEN_MINUTES};
use crate::state::routes::{Origins, SameSite};
use crate::state::sessions_per_connection::SessionsPerConnection;
use crate::state::static_assets::StaticAssets;
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::state::trusted_proxies::TrustedProxies;
use crate::state::unauthenticated::Unauthenticated;
use peer::Peer;

/// Most bytes that are read at once from CouchDB: of less the system makes more work.
pub(super) const READ_BUFFER: usize = 256 * 1024;

/// The owner of all sockets.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) registry: Registry,
    pub(super) doors: Doors,
    /// While descriptors have run out, when to accept again.
    pub(super) accept_from: Option<Millis>,
    pub(super) accept_pending: bool,
    pub(super) peers: Table<Peer>,
    /// Connections of clients.
    pub(super) clients: usize,
    pub(super) addresses: AddressLimit,
    pub(super) memory: Memory,
    /// Throttles the line about memory over the limit.
    pub(super) memory_log: LogThrottle,
    pub(super) unauthenticated: Unauthenticated<Timer>,
    /// Clients to be reviewed at the end of the turn.
    pub(super) changed: Vec<Timer>,
    pub(super) openings: SessionsPerConnection,
    /// Throttles the line about pauses of accepting.
    pub(super) pause_log: LogThrottle,
    /// Throttles the line about rejected clients.
    pub(super) full_log: LogThrottle,
    /// Throttles the line about connections that the poll does not take.
    pub(super) registration_log: LogThrottle,
    /// Throttles the line about `X-Forwarded-For` from an address that is not a trusted proxy.
    pub(super) untrusted_proxy_log: LogThrottle,
    pub(super) origins: Origins,
    /// Shared by those who answer with it at the moment.
    pub(super) site: Arc<StaticAssets>,
    pub(super) trusted_proxies: TrustedProxies,
    pub(super) cookie_same_site: SameSite,
    /// One buffer for everything that is read.
    pub(super) scratch: Box<[u8]>,
    /// Connections with input that their share of this turn did not cover.
    pub(super) unfinished: Vec<Key>,
    /// Connections that are read in the next turn, because the names of this turn are used up; first come, first
    /// served.
    pub(super) postponed: VecDeque<Key>,
    /// Connections that are over; their slots are freed at the end of the turn.
    pub(super) closed: Vec<Key>,
}

impl Connections {
    pub(super) fn new(settings: &Settings, doors: Doors, registry: Registry) -> Self {
        let limits = &settings.limits;
        Self {
            registry,
            doors,
            accept_from: None,
            accept_pending: false,
            peers: Table::default(),
            clients: 0,
            addresses: AddressLimit::new(limits.per_address),
            memory: Memory::new(limits.memory),
            memory_log: LogThrottle::new(TEN_MINUTES),
            unauthenticated: Unauthenticated::new(limits.unauthenticated, limits.unauthenticated_bytes),
            changed: Vec::new(),
            openings: SessionsPerConnection::default(),
            pause_log: LogThrottle::new(TEN_MINUTES),
            full_log: LogThrottle::new(TEN_MINUTES),
            registration_log: LogThrottle::new(TEN_MINUTES),
            untrusted_proxy_log: LogThrottle::new(TEN_MINUTES),
            origins: settings.origins.clone(),
            site: Arc::new(settings.site.clone()),
            trusted_proxies: settings.trusted_proxies.clone(),
            cookie_same_site: settings.cookie_same_site,
            scratch: vec![0; READ_BUFFER].into(),
            unfinished: Vec::new(),
            postponed: VecDeque::new(),
            closed: Vec::new(),
        }
    }
}
