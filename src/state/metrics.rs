//! Counters of the server, and the reasons for closing.

use crate::wire::websocket::close_code;

macro_rules! close_reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal, $code:expr;)*) => {
        /// Reason for the end of a connection or session.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CloseReason { $($(#[$doc])* $name,)* }

        impl CloseReason {
            /// All reasons, in the order of their counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Returns the name of the variant.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Returns the text for the log and the close frame.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Returns the code of the close frame (RFC 6455 section 7.4).
            pub fn close_code(self) -> u16 {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

close_reasons! {
    /// The client closed in an orderly way.
    ClientClosed => "closed by the client", close_code::NORMAL;
    /// The connection ended or broke without a close.
    ClientVanished => "connection lost", close_code::NORMAL;
    /// The client logged out.
    LoggedOut => "logged out", close_code::NORMAL;
    /// The login failed.
    NotAuthenticated => "not authenticated", close_code::NOT_AUTHENTICATED;
    /// The cookie expired while CouchDB could not be asked. The client may log in again by itself.
    SessionExpired => "session expired", close_code::TRY_AGAIN_LATER;
    /// No login began in time.
    LogInTimeout => "no login in time", close_code::LOGIN_TIMEOUT;
    /// The client was silent for too long.
    PingTimeout => "ping timeout", close_code::NORMAL;
    /// The WebSocket framing was malformed.
    BrokenFrame => "broken WebSocket frame", close_code::PROTOCOL;
    /// The client sent a binary message.
    BinaryMessage => "binary messages are not read here", close_code::UNSUPPORTED;
    /// The client sent text that is not UTF-8.
    InvalidUtf8 => "text is not UTF-8", close_code::INVALID_UTF8;
    /// A message exceeded the limit.
    MessageTooBig => "message too big", close_code::TOO_BIG;
    /// The client sent a malformed Engine.IO or Socket.IO packet.
    BrokenPacket => "broken packet", close_code::POLICY;
    /// The client sent malformed requests repeatedly.
    Malformed => "malformed input", close_code::POLICY;
    /// The client sends requests and does not read the replies.
    NotReading => "answers are not read", close_code::POLICY;
    /// The client sent two polls or two posts at once.
    Overlap => "overlapping requests", close_code::POLICY;
    /// Too many messages waited for the end of a login or of a long list.
    TooMuchHeld => "too many messages wait for an answer", close_code::POLICY;
    /// Too many requests of the client are unanswered.
    TooManyRequests => "too many requests at once", close_code::POLICY;
    /// The client exceeded its rate of messages.
    TooManyMessages => "too many messages a second", close_code::POLICY;
    /// The client repeatedly exceeded its limit of subscriptions.
    TooManySubscriptions => "too many subscriptions", close_code::POLICY;
    /// The connection opened too many sessions without a login.
    TooManySessions => "too many sessions of this connection without a login", close_code::POLICY;
    /// There are too many connections.
    TooManyConnections => "too many connections", close_code::TRY_AGAIN_LATER;
    /// The process uses more memory than the limit.
    OutOfMemory => "too much memory in use", close_code::TRY_AGAIN_LATER;
    /// The address has too many connections.
    TooManyOfAddress => "too many connections of this address", close_code::POLICY;
    /// The unauthenticated client was evicted for newer connections.
    MadeWay => "evicted for newer clients without a login", close_code::TRY_AGAIN_LATER;
    /// The client reads nothing.
    SlowReader => "reads nothing", close_code::POLICY;
    /// The request cannot be served.
    BadRequest => "bad request", close_code::PROTOCOL;
    /// A request head exceeded the limit.
    HeadTooLarge => "request head too large", close_code::PROTOCOL;
    /// A request body exceeded the limit.
    BodyTooLarge => "request body too large", close_code::PROTOCOL;
    /// A request head or body did not arrive in time.
    RequestTimeout => "request timeout", close_code::NORMAL;
    /// The TLS handshake failed.
    HandshakeFailed => "TLS handshake failed", close_code::NORMAL;
    /// The TLS handshake did not end in time.
    HandshakeTimeout => "TLS handshake timeout", close_code::NORMAL;
    /// A plain HTTP exchange ended.
    Served => "served", close_code::NORMAL;
    /// The peer did not read or did not close in time.
    CloseTimeout => "close timeout", close_code::NORMAL;
    /// The server is shutting down.
    ShuttingDown => "shutting down", close_code::GOING_AWAY;
}

/// Number of closes by reason.
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
            /// Visits every counter except the closes: its exposed name, its help text, and its
            /// value.
            pub fn for_each_counter(&self, mut visit: impl FnMut(&'static str, &'static str, u64)) {
                $(visit($exposed, concat!($($help),+), self.$name);)*
            }
        }
    };
}

// Each counter is declared only here: field, help text, and exposed name.
counters! {
    /// Accepted connections of clients.
    accepted => "howler_connections_accepted_total";
    /// Pauses in accepting because descriptors ran out.
    accept_pauses => "howler_accept_pauses_total";
    /// Connections that were cut because the client kept sending after the close.
    cut_connections => "howler_connections_cut_total";
    /// Connections, sessions, logins and subscriptions rejected because more memory is used than
    /// the limit.
    memory_rejections => "howler_memory_rejections_total";
    /// Logins that CouchDB confirmed.
    logins => "howler_log_ins_total";
    /// Logins that failed, for any reason.
    failed_logins => "howler_log_ins_failed_total";
    /// Logins rejected after too many wrong passwords.
    throttled_logins => "howler_log_ins_slowed_total";
    /// Logins rejected because too many waited.
    overloaded_logins => "howler_log_ins_overloaded_total";
    /// Requests to subscribe over the limit of a client.
    rejected_subscriptions => "howler_subscriptions_refused_total";
    /// Requests to subscribe over the limit of databases whose permissions a user waits for.
    rejected_access_requests => "howler_access_questions_refused_total";
    /// `_security` objects that were not kept because all take more memory than the limit.
    evicted_security => "howler_security_evictions_total";
    /// Sessions that ended because the user is not logged in any more.
    ended_sessions => "howler_log_ins_ended_total";
    /// Subscriptions that ended because the user may not read the database any more.
    revoked_subscriptions => "howler_subscriptions_revoked_total";
    /// Lines of the feed that contain a change.
    changes => "howler_changes_total";
    /// Lines of the feed that were merged with another one of the same database because of
    /// `--merge_window`.
    merged_changes => "howler_changes_merged_total";
    /// Lines of the feed that are too long or not JSON.
    skipped_lines => "howler_feed_lines_skipped_total";
    /// Breaks of the feed.
    feed_breaks => "howler_feed_breaks_total";
    /// Notifications handed to the connections of clients.
    notifications => "howler_notifications_total";
    /// Notifications that were merged with an earlier one that the client had not received yet.
    merged_notifications => "howler_notifications_merged_total";
    /// Replies of CouchDB that refused the server's own credentials.
    admin_refusals => "howler_couchdb_refusals_total";
    /// Requests for the positions of databases.
    lookups => "howler_look_ups_total";
    /// Requests for positions without a valid reply.
    failed_lookups => "howler_look_ups_failed_total";
    /// Times that all clients were notified that changes may have been lost.
    resyncs => "howler_resyncs_total";
    /// Lines of the log that were dropped because standard error did not accept them.
    dropped_log_lines => "howler_log_lines_dropped_total";
}

impl Metrics {
    /// Counts a close.
    pub fn count_close(&mut self, reason: CloseReason) {
        self.closes.0[reason as usize] += 1;
    }

    /// Returns the number of closes for a reason.
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
        metrics.for_each_counter(|name, help, value| {
            assert!(name.starts_with("howler_") && name.ends_with("_total"), "{name}");
            assert!(help.trim_end().ends_with('.') && !help.contains(['\n', '\\']), "{name}: {help}");
            assert_eq!(value, if name == "howler_log_ins_total" { 7 } else { 0 }, "{name}");
            assert!(!names.contains(&name), "{name}");
            names.push(name);
        });
        assert!(names.len() > 10, "{names:?}");
    }
}
