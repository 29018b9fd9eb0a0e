//! The settings of the server.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::state::access::Policy as AccessPolicy;
use crate::state::feed::FeedSettings;
use crate::state::forwarded_for::TrustsForwarded;
use crate::state::limits::Limits;
use crate::state::resync::Policy;
use crate::state::routes::{Origins, SameSite};
use crate::state::session::Rules;
use crate::state::static_assets::StaticAssets;
use crate::state::timers::Millis;
use crate::state::trusted_proxies::TrustedProxies;
use crate::wire::url::CouchUrl;

/// The settings of the server.
#[derive(Debug)]
pub struct Settings {
    /// URL of CouchDB with the credentials of a server admin.
    pub couchdb_url: CouchUrl,
    /// File that the URL was read from, if there is one.
    pub couchdb_url_file: Option<PathBuf>,
    /// Settings of the feed.
    pub feed: FeedSettings,
    /// TLS configuration for CouchDB; needed where its URL says `https`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Time limits of sessions.
    pub rules: Rules,
    /// Origins of pages that may open sessions.
    pub origins: Origins,
    /// Number of logins at CouchDB at once.
    pub login_concurrency: usize,
    /// Whether CouchDB believes `X-Forwarded-For` of this server.
    pub trusts_forwarded: TrustsForwarded,
    /// Events after which clients resync.
    pub resync: Policy,
    /// Time for which changes of a database are merged after the first one, in milliseconds; None
    /// where it depends on whether CouchDB is a cluster.
    pub merge_window: Option<Millis>,
    /// Limits of clients.
    pub limits: Limits,
    /// Time for which the positions of broken Socket.IO sessions are remembered, in milliseconds; 0
    /// for not at all.
    pub catch_up_for: Millis,
    /// Longest time of a shutdown, in milliseconds.
    pub drain_within: Millis,
    /// Static files for browsers.
    pub site: StaticAssets,
    /// Policy of access to databases.
    pub access: AccessPolicy,
    /// Proxies whose `X-Forwarded-For` counts.
    pub trusted_proxies: TrustedProxies,
    /// `SameSite` attribute of the cookie that names a session.
    pub cookie_same_site: SameSite,
    /// Longest time between checks that a session is still logged in, in milliseconds; 0 for no
    /// checks.
    pub session_check: Millis,
    /// Start of the process, in seconds since 1970.
    pub started: u64,
    /// Counter of the lines that the log dropped.
    pub dropped_log_lines: &'static AtomicU64,
    /// Seed for spreading things in time; any number.
    pub seed: u64,
}
