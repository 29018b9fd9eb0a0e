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

            /// The name of the reason, as it is declared.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

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
    /// The cookie ran out while CouchDB could not be asked; the client is to log in again by itself.
    SessionExpired => "session expired", close_code::TRY_AGAIN_LATER;
    /// Nobody logged in within the time for it.
    LogInTimeout => "no login in time", close_code::LOGIN_TIMEOUT;
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
    /// Too many messages waited for the end of a login or of a long list.
    TooMuchHeld => "too many messages wait for an answer", close_code::POLICY;
    /// More requests than may wait for their answers.
    TooManyRequests => "too many requests at once", close_code::POLICY;
    /// More messages a second than a client may send.
    TooManyMessages => "too many messages a second", close_code::POLICY;
    /// A client that goes on asking for more subscriptions than it may have.
    TooManySubscriptions => "too many subscriptions", close_code::POLICY;
    /// More sessions that are not logged in than a connection may open.
    TooManySessions => "too many sessions of this connection without a login", close_code::POLICY;
    /// More connections than there may be in all.
    TooManyConnections => "too many connections", close_code::TRY_AGAIN_LATER;
    /// More memory is used than the limit.
    OutOfMemory => "too much memory in use", close_code::TRY_AGAIN_LATER;
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

/// How often connections were closed, for each reason.
#[derive(Debug)]
struct Closes([u64; CloseReason::ALL.len()]);

impl Default for Closes {
    fn default() -> Self {
        Self([0; CloseReason::ALL.len()])
    }
}

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident => $exposed:literal;)*) => {
        /// Counters since the start.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $name: u64,)*
            closes: Closes,
        }

        impl Metrics {
            /// Tells every counter but the closes: the name under which it is exposed, what it counts, and its value.
            pub fn tell_counters(&self, mut tell: impl FnMut(&'static str, &'static str, u64)) {
                $(tell($exposed, concat!($($help),+), self.$name);)*
            }
        }
    };
}

// A counter is declared here and nowhere else: field, meaning, and the name under which it is exposed.
counters! {
    /// Connections of clients accepted.
    accepted => "howler_connections_accepted_total";
    /// Times that accepting paused because descriptors ran out.
    accept_pauses => "howler_accept_pauses_total";
    /// Connections that were cut because the client kept sending after it was told of the end.
    cut_connections => "howler_connections_cut_total";
    /// Connections, sessions, logins and subscriptions rejected because more memory is used than the limit.
    memory_rejections => "howler_memory_rejections_total";
    /// Log-ins that CouchDB confirmed.
    logins => "howler_log_ins_total";
    /// Log-ins that failed, for whatever reason.
    failed_logins => "howler_log_ins_failed_total";
    /// Log-ins that were not tried, after too many wrong passwords.
    slowed_logins => "howler_log_ins_slowed_total";
    /// Log-ins that were not tried because too many waited.
    overloaded_logins => "howler_log_ins_overloaded_total";
    /// Requests to subscribe beyond what a client may have.
    refused_subscriptions => "howler_subscriptions_refused_total";
    /// Requests to subscribe beyond what a user may have waiting for its permissions.
    refused_questions => "howler_access_questions_refused_total";
    /// `_security` objects that were not kept because all take more memory than the limit.
    evicted_security => "howler_security_evictions_total";
    /// Sessions that ended because the user was not logged in any more.
    ended_sessions => "howler_log_ins_ended_total";
    /// Subscriptions that ended because the user may not read the database any more.
    revoked_subscriptions => "howler_subscriptions_revoked_total";
    /// Lines of the feed that told of a change.
    changes => "howler_changes_total";
    /// Lines of the feed that were merged with another one of the same database because of `--merge_window`.
    merged_changes => "howler_changes_merged_total";
    /// Lines of the feed that were too long or no JSON.
    skipped_lines => "howler_feed_lines_skipped_total";
    /// Times that the feed broke.
    feed_breaks => "howler_feed_breaks_total";
    /// Notifications handed to the connections of clients.
    notifications => "howler_notifications_total";
    /// Notifications that became one with an earlier one which the client had not been told yet.
    merged_notifications => "howler_notifications_merged_total";
    /// Answers of CouchDB that refused the server's own credentials.
    admin_refusals => "howler_couchdb_refusals_total";
    /// Requests for the positions of databases.
    lookups => "howler_look_ups_total";
    /// Requests for positions that were not answered, or not with positions.
    failed_lookups => "howler_look_ups_failed_total";
    /// Times that all clients were told that changes may have been lost.
    resyncs => "howler_resyncs_total";
    /// Lines of the log that were dropped because standard error did not take them.
    dropped_log_lines => "howler_log_lines_dropped_total";
}

impl Metrics {
    /// Counts a close.
    pub fn count_close(&mut self, reason: CloseReason) {
        self.closes.0[reason as usize] += 1;
    }

    /// How often connections were closed for a reason.
    pub fn closes(&self, reason: CloseReason) -> u64 {
        self.closes.0[reason as usize]
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

    #[test]
    fn every_counter_has_a_name_of_its_own_and_a_meaning() {
        let metrics = Metrics { logins: 7, ..Metrics::default() };
        let mut names = Vec::new();
        metrics.tell_counters(|name, help, value| {
            assert!(name.starts_with("howler_") && name.ends_with("_total"), "{name}");
            assert!(help.trim_end().ends_with('.') && !help.contains(['\n', '\\']), "{name}: {help}");
            assert_eq!(value, if name == "howler_log_ins_total" { 7 } else { 0 }, "{name}");
            assert!(!names.contains(&name), "{name}");
            names.push(name);
        });
        assert!(names.len() > 10, "{names:?}");
    }
}
