//! The commands, and the checked configuration of those that need one.

use std::net::IpAddr;
use std::path::PathBuf;

use super::completions::Shell;
use crate::logging;
use crate::state::access;
use crate::state::forwarded_for::TrustsForwarded;
use crate::state::limits::Limits;
use crate::state::resync::Policy;
use crate::state::routes::{Origins, SameSite};
use crate::state::trusted_proxies::TrustedProxies;
use crate::wire::couchdb::FeedSource;
use crate::wire::url::CouchUrl;

/// Checked configuration of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// URL of CouchDB, with a user name that is not empty. None exactly if `demo` is set.
    pub couchdb_url: Option<CouchUrl>,
    /// File that the URL was read from, to be read again at runtime.
    pub couchdb_url_file: Option<PathBuf>,
    /// Address to listen on; None for all IPv6 and IPv4 addresses.
    pub host: Option<IpAddr>,
    /// Port to listen on; 0 for any free port. It speaks TLS if `tls` is set and `tls_port` is not.
    pub port: u16,
    /// Certificate and key of the server.
    pub tls: Option<TlsFiles>,
    /// Port for TLS beside the plain one; 0 for any free port. None without `tls`.
    pub tls_port: Option<u16>,
    /// Whether other instances may listen on the ports for clients as well.
    pub reuse_port: bool,
    /// Least important messages to log.
    pub log_level: log::LevelFilter,
    /// Certificates (PEM) to trust for CouchDB besides the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// Feed to follow.
    pub feed: FeedSource,
    /// Whether to create the `_global_changes` database if it is missing.
    pub create_global_changes: bool,
    /// Interval of CouchDB's heartbeats, in milliseconds.
    pub feed_heartbeat_ms: u64,
    /// Origins whose pages may connect.
    pub origins: Origins,
    /// Whether to serve no console.
    pub no_console: bool,
    /// Interval of Engine.IO pings, in milliseconds.
    pub ping_interval_ms: u64,
    /// Longest delay of a ping or its answer, in milliseconds; None for the default of each
    /// version.
    pub ping_timeout_ms: Option<u64>,
    /// Whether CouchDB trusts the `X-Forwarded-For` of this server.
    pub trusts_forwarded: TrustsForwarded,
    /// Most logins that CouchDB checks at once.
    pub login_concurrency: usize,
    /// When clients are asked to resync.
    pub resync: Policy,
    /// Time to merge the changes of a database that follow the first one, in milliseconds; None for
    /// a value that depends on whether CouchDB is a cluster.
    pub merge_window_ms: Option<u64>,
    /// Limits for clients.
    pub limits: Limits,
    /// How long the server remembers the notifications of broken Socket.IO sessions, in seconds; 0
    /// to disable.
    pub catch_up_sessions_s: u64,
    /// Rule for reading databases.
    pub access: access::Policy,
    /// Interval of the checks that users are still logged in, in seconds; 0 to disable.
    pub session_check_s: u64,
    /// Proxies whose word on a client's address is trusted.
    pub trusted_proxies: TrustedProxies,
    /// `SameSite` attribute of the cookie that names a session.
    pub cookie_same_site: SameSite,
    /// Format of the log.
    pub log_format: logging::Format,
    /// Longest time to close all clients at shutdown, in seconds.
    pub drain_timeout_s: u64,
    /// Port for health, readiness and metrics alone; 0 for any free port. None if the ports for
    /// clients serve them.
    pub admin_port: Option<u16>,
    /// Whether to run with the built-in CouchDB of the demo.
    pub demo: bool,
}

/// Files of the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates (PEM), the server's own first.
    pub certificate: PathBuf,
    /// Private key (PEM) of the first certificate.
    pub key: PathBuf,
}

/// Where to check the health of a server with these options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPort {
    /// Address that the server listens on; None for all of them.
    pub host: Option<IpAddr>,
    /// Port to ask; never 0.
    pub port: u16,
    /// Certificate of the server, if the port speaks TLS.
    pub certificate: Option<PathBuf>,
}

/// The task of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run the server.
    Run(Box<Config>),
    /// Check whether the server would run.
    Check(Box<Config>),
    /// Check the health of the running server.
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
