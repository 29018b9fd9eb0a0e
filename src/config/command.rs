//! What the command line asks for: a command, and the checked configuration that it needs.

use std::net::IpAddr;
use std::path::PathBuf;

use super::completions::Shell;
use crate::logging;
use crate::state::access;
use crate::state::forwarded_for::TrustsForwarded;
use crate::state::limits::Limits;
use crate::state::trusted_proxies::TrustedProxies;
use crate::state::resync::Policy;
use crate::state::routes::{Origins, SameSite};
use crate::wire::couchdb::FeedSource;
use crate::wire::url::CouchUrl;

/// What the server is to do, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The CouchDB to follow, with credentials whose user is not empty. None exactly with `demo`.
    pub couchdb_url: Option<CouchUrl>,
    /// The file that the URL was read from, to be read again.
    pub couchdb_url_file: Option<PathBuf>,
    /// The address to listen on; None for all of them, IPv6 and IPv4.
    pub host: Option<IpAddr>,
    /// The port to listen on; 0 for any that is free. It speaks TLS when there is `tls` and no `tls_port`.
    pub port: u16,
    /// What clients are shown over TLS.
    pub tls: Option<TlsFiles>,
    /// The port to speak TLS on beside the plain one; 0 for any that is free. None without `tls`.
    pub tls_port: Option<u16>,
    /// Whether other instances may listen on the ports for clients, too.
    pub reuse_port: bool,
    /// The least important messages to log.
    pub log_level: log::LevelFilter,
    /// Certificates (PEM) to trust for CouchDB besides the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// The feed to follow.
    pub feed: FeedSource,
    /// Whether to make the `_global_changes` database where it is missing.
    pub create_global_changes: bool,
    /// How often CouchDB is to send a heartbeat.
    pub feed_heartbeat_ms: u64,
    /// Which origins browsers may come from.
    pub origins: Origins,
    /// Whether the console is left out.
    pub no_console: bool,
    /// How often Engine.IO pings come.
    pub ping_interval_ms: u64,
    /// How late they, or their answers, may be; None for the default of each version.
    pub ping_timeout_ms: Option<u64>,
    /// Whether CouchDB believes this server about where clients are.
    pub trusts_forwarded: TrustsForwarded,
    /// How many log-ins CouchDB is asked for at once.
    pub login_concurrency: usize,
    /// When clients are told that changes may have been lost.
    pub resync: Policy,
    /// For how long changes of a database are merged after the first one, in milliseconds; None where that depends on
    /// whether CouchDB is a cluster.
    pub merge_window_ms: Option<u64>,
    /// What clients may use.
    pub limits: Limits,
    /// How long it is remembered what broken sessions of Socket.IO were told of; 0 for not at all.
    pub catch_up_sessions_s: u64,
    /// Who may subscribe to what.
    pub access: access::Policy,
    /// How often it is checked that users are still logged in; 0 for never.
    pub session_check_s: u64,
    /// Whose word counts about where a client is.
    pub trusted_proxies: TrustedProxies,
    /// The `SameSite` attribute of the cookie that names a session.
    pub cookie_same_site: SameSite,
    /// What lines of the log look like.
    pub log_format: logging::Format,
    /// The longest time to see the clients off when stopping.
    pub drain_timeout_s: u64,
    /// The port for health, readiness and metrics alone; 0 for any that is free. None where clients' ports have them.
    pub admin_port: Option<u16>,
    /// Whether to run beside a built-in stand-in for CouchDB.
    pub demo: bool,
}

/// Where the server's certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The file of certificates (PEM), the server's own first.
    pub certificate: PathBuf,
    /// The file with its private key (PEM).
    pub key: PathBuf,
}

/// Where a server with these options can be asked whether it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPort {
    /// The address that it listens on; None for all of them.
    pub host: Option<IpAddr>,
    /// The port to ask; not 0.
    pub port: u16,
    /// The certificate that is shown there, where TLS is spoken.
    pub certificate: Option<PathBuf>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve.
    Run(Box<Config>),
    /// Check whether serving would work.
    Check(Box<Config>),
    /// Ask the server that runs whether it lives.
    HealthCheck(HealthPort),
    /// Print [`help`](super::help()).
    Help,
    /// Print [`version`](super::version).
    Version,
    /// Print [`completions`](super::completions()).
    Completions(Shell),
    /// Print [`man`](super::man()).
    Man,
}
