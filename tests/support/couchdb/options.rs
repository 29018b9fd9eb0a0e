//! Options of a stand-in.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How a stand-in starts and behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen on. Port 0 takes any free one.
    pub address: SocketAddr,
    /// Name and password of the server admin.
    pub admin: (String, String),
    /// Interval at which events appear together, in any order, one line per event document. Zero
    /// makes every event a line at once.
    pub tick: Duration,
    /// Lifetime of a session cookie.
    pub cookie_life: Duration,
    /// Duration of the lockout of a name for a peer after five wrong passwords, and the time within
    /// which these count. None disables it.
    pub lockout: Option<Duration>,
    /// Whether requests without a valid login are rejected.
    pub require_valid_user: bool,
    /// Whether `_global_changes` exists from the start.
    pub global_changes: bool,
    /// Number of nodes. Two or more are a cluster, on which a write makes one to four lines.
    pub nodes: usize,
    /// Prefix of all paths, such as `/couch`, or empty.
    pub path_prefix: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            admin: ("admin".to_owned(), "password".to_owned()),
            tick: Duration::ZERO,
            cookie_life: Duration::from_secs(600),
            lockout: Some(Duration::from_secs(300)),
            require_valid_user: false,
            global_changes: true,
            nodes: 1,
            path_prefix: String::new(),
        }
    }
}
