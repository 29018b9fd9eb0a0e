//! What the server counts, and the reasons for which it closes.

use crate::wire::websocket::close_code;

macro_rules! close_reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal, $code:expr;)*) => {
        /// Why a connection or session ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CloseReason { $($(#[$doc])* $name,)* }

        impl CloseReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason in words: in logs, and in the close frame.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The code of the close frame (RFC 6455 section 7.4).
            pub fn close_code(self) -> u16 {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

close_reasons! {
    /// The client closed in an orderly way.
    ClientClosed => "closed by the client", close_code::NORMAL;
    /// The connection ended or broke without a word.
    ClientVanished => "connection lost", close_code::NORMAL;
    /// The client logged out.
    LoggedOut => "logged out", close_code::NORMAL;
    /// The log-in failed.
    NotAuthenticated => "not authenticated", close_code::NOT_AUTHENTICATED;
    /// Nobody logged in within the time for it.
    LogInTimeout => "no log-in in time", close_code::LOG_IN_TIMEOUT;
    /// The client was silent for too long.
    PingTimeout => "ping timeout", close_code::NORMAL;
    /// The WebSocket framing was broken.
    BrokenFrame => "broken WebSocket frame", close_code::PROTOCOL;
    /// A binary message.
    BinaryMessage => "binary messages are not read here", close_code::UNSUPPORTED;
    /// Text that is not UTF-8.
    InvalidUtf8 => "text is not UTF-8", close_code::INVALID_UTF8;
    /// A message over the limit.
    MessageTooBig => "message too big", close_code::TOO_BIG;
    /// An Engine.IO or Socket.IO packet that is none.
    BrokenPacket => "broken packet", close_code::POLICY;
    /// Malformed requests again and again.
    Malformed => "malformed input", close_code::POLICY;
    /// A client that asks and does not take the answers.
    NotReading => "answers are not read", close_code::POLICY;
    /// Two polls or two posts at once.
    Overlap => "overlapping requests", close_code::POLICY;
    /// Too many messages before the log-in was over.
    TooMuchHeld => "too many messages before the log-in", close_code::POLICY;
    /// More requests than may wait for their answers.
    TooManyRequests => "too many requests at once", close_code::POLICY;
    /// More messages a second than a client may send.
    TooManyMessages => "too many messages a second", close_code::POLICY;
    /// A client that goes on asking for more subscriptions than it may have.
    TooManySubscriptions => "too many subscriptions", close_code::POLICY;
    /// More connections than there may be in all.
    TooManyConnections => "too many connections", close_code::TRY_AGAIN_LATER;
    /// More connections than an address may have.
    TooManyOfAddress => "too many connections of this address", close_code::POLICY;
    /// Nobody logged in, and newer connections needed the place.
    MadeWay => "made way for others without a log-in", close_code::TRY_AGAIN_LATER;
    /// A client that takes nothing of what is written to it.
    SlowReader => "reads nothing", close_code::POLICY;
    /// A request that cannot be served.
    BadRequest => "bad request", close_code::PROTOCOL;
    /// A request head over the limit.
    HeadTooLarge => "request head too large", close_code::PROTOCOL;
    /// A request body over the limit.
    BodyTooLarge => "request body too large", close_code::PROTOCOL;
    /// A request whose head or body did not come in time.
    RequestTimeout => "request timeout", close_code::NORMAL;
    /// A client with which no TLS could be spoken.
    HandshakeFailed => "TLS handshake failed", close_code::NORMAL;
    /// A TLS handshake that was not over in time.
    HandshakeTimeout => "TLS handshake timeout", close_code::NORMAL;
    /// A plain HTTP exchange was over.
    Served => "served", close_code::NORMAL;
    /// The peer did not take what was written, or did not close, in time.
    CloseTimeout => "close timeout", close_code::NORMAL;
    /// The server stops.
    ShuttingDown => "shutting down", close_code::GOING_AWAY;
}

/// Counters since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Connections accepted.
    pub accepted: u64,
    /// Times that accepting paused because descriptors ran out.
    pub accept_pauses: u64,
    /// Log-ins that CouchDB confirmed.
    pub log_ins: u64,
    /// Log-ins that failed, for whatever reason.
    pub failed_log_ins: u64,
    /// Log-ins that were not tried, after too many wrong passwords.
    pub slowed_log_ins: u64,
    /// Log-ins that were not tried because too many waited.
    pub overloaded_log_ins: u64,
    /// Requests to subscribe beyond what a client may have.
    pub refused_subscriptions: u64,
    /// Sessions that ended because the user was not logged in any more.
    pub ended_sessions: u64,
    /// Subscriptions that ended because the user may not read the database any more.
    pub revoked_subscriptions: u64,
    /// Lines of the feed that told of a change.
    pub changes: u64,
    /// Lines of the feed that were too long or no JSON.
    pub skipped_lines: u64,
    /// Times that the feed broke.
    pub feed_breaks: u64,
    /// Notifications handed to clients' connections.
    pub notifications: u64,
    /// Notifications that became one with an earlier one which the client had not been told yet.
    pub merged_notifications: u64,
    /// Requests for the positions of databases.
    pub look_ups: u64,
    /// Those that were not answered, or not with positions.
    pub failed_look_ups: u64,
    /// Times that all clients were told that changes may have been lost.
    pub resyncs: u64,
    closes: [u64; CloseReason::ALL.len()],
}

impl Metrics {
    /// Counts a close.
    pub fn count_close(&mut self, reason: CloseReason) {
        self.closes[reason as usize] += 1;
    }

    /// How often connections were closed for a reason.
    pub fn closes(&self, reason: CloseReason) -> u64 {
        self.closes[reason as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_counter_and_fits_a_close_frame() {
        let mut metrics = Metrics::default();
        for reason in CloseReason::ALL {
            metrics.count_close(*reason);
            assert_eq!(metrics.closes(*reason), 1, "{reason:?}");
            assert!(reason.text().len() <= 123, "RFC 6455 section 5.5");
        }
    }
}
