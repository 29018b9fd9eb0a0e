//! Dialects and limits of sessions.

use crate::state::limits::Limits;
use crate::state::timers::Millis;
use crate::wire::engine_io::Version;

/// Protocol of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Socket.IO over a version of Engine.IO.
    SocketIo(Version),
    /// `howler.v1`.
    Json,
}

/// Limits of sessions; times in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Engine.IO: interval of pings.
    pub ping_interval: Millis,
    /// Engine.IO: longest delay of a ping or its pong. None for the default of each version.
    pub ping_timeout: Option<Millis>,
    /// Time from the opening to the first login, or to CONNECT. Also the time from the client's
    /// DISCONNECT to the end of the transport, which the client closes.
    pub login_timeout: Millis,
    /// Messages of a client per second.
    pub messages_per_second: u64,
    /// Unanswered requests of a client.
    pub requests: usize,
    /// Longest body of a POST, in bytes.
    pub max_payload: usize,
    /// Longest message, and most bytes of messages deferred to the end of a login.
    pub max_message: usize,
}

impl Default for Rules {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            ping_interval: 25_000,
            ping_timeout: None,
            login_timeout: limits.login_timeout,
            messages_per_second: limits.messages_per_second,
            requests: limits.requests,
            max_payload: limits.post,
            max_message: limits.message,
        }
    }
}

impl Rules {
    /// Returns the longest delay of a ping (version 3) or a pong (version 4).
    pub fn ping_timeout(&self, version: Version) -> Millis {
        self.ping_timeout.unwrap_or(match version {
            Version::V3 => 5_000,
            Version::V4 => 20_000,
        })
    }
}
