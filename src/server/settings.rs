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

/// How the server is to run.
#[derive(Debug)]
pub struct Settings {
    /// Where CouchDB is, with the credentials of a server admin.
    pub couchdb_url: CouchUrl,
    /// The file that the URL was read from.
    pub couchdb_url_file: Option<PathBuf>,
    /// How to follow its feed.
    pub feed: FeedSettings,
    /// How to speak TLS with it; needed where its URL says `https`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The time limits of sessions.
    pub rules: Rules,
    /// Which origins browsers may come from.
    pub origins: Origins,
    /// How many log-ins CouchDB is asked for at once.
    pub login_concurrency: usize,
    /// Whether CouchDB believes this server about where clients are.
    pub trusts_forwarded: TrustsForwarded,
    /// When clients are told that changes may have been lost.
    pub resync: Policy,
    /// For how long changes of a database are merged after the first one, in milliseconds; None where that depends on
    /// whether CouchDB is a cluster.
    pub merge_window: Option<Millis>,
    /// What clients may use.
    pub limits: Limits,
    /// How long it is remembered what broken sessions of Socket.IO were told of, in milliseconds; 0 for not at all.
    pub catch_up_for: Millis,
    /// The longest time to see the clients off when stopping, in milliseconds.
    pub drain_within: Millis,
    /// The files that browsers are given.
    pub site: StaticAssets,
    /// Who may subscribe to what.
    pub access: AccessPolicy,
    /// Whose word counts about where a client is.
    pub trusted_proxies: TrustedProxies,
    /// The `SameSite` attribute of the cookie that names a session.
    pub cookie_same_site: SameSite,
    /// How often it is checked that users are still logged in, in milliseconds; 0 for never.
    pub session_check: Millis,
    /// When the process started, in seconds since 1970.
    pub started: u64,
    /// Where the log counts the lines that it dropped.
    pub dropped_log_lines: &'static AtomicU64,
    /// Seed for spreading things in time; any number.
    pub seed: u64,
}
