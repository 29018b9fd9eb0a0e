//! Limits of one client, one address, and all clients together. Operators can set each of them. At
//! a limit the server closes with a [`crate::state::metrics::CloseReason`] or answers with an
//! error, and counts it.

use super::timers::Millis;

/// Limits that operators can set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of clients in total; None for as many as descriptors allow.
    pub connections: Option<usize>,
    /// Connections from one address (IPv6: one /64 network); None for no limit.
    pub per_address: Option<usize>,
    /// Unauthenticated connections and polling sessions. Beyond that the oldest one of the network
    /// with most is evicted.
    pub unauthenticated: usize,
    /// Memory for all unauthenticated clients, in bytes. Beyond that clients that hold some are
    /// evicted.
    pub unauthenticated_bytes: usize,
    /// Time until the login has to begin, in milliseconds.
    pub login_timeout: Millis,
    /// Longest head of a request, in bytes.
    pub head: usize,
    /// Time for the head of the first request including the TLS handshake, and for each body, in
    /// milliseconds.
    pub request_within: Millis,
    /// Longest body of a request, in bytes; before the login at most [`UNAUTHENTICATED_MESSAGE`].
    pub post: usize,
    /// Longest message of a client over all its frames, in bytes; before the login at most
    /// [`UNAUTHENTICATED_MESSAGE`].
    pub message: usize,
    /// Messages (frames, packets) of a client per second, see [`Throttle`].
    pub messages_per_second: u64,
    /// Databases to which a client may subscribe.
    pub subscriptions: usize,
    /// Databases to which a user may subscribe, over all sessions; None for no limit.
    pub subscriptions_per_user: Option<usize>,
    /// Longest name of a database, in bytes.
    pub name: usize,
    /// Unanswered requests of a client.
    pub requests: usize,
    /// Waiting logins.
    pub login_queue: usize,
    /// Memory of the process beyond which new clients are rejected, in bytes; None for no limit.
    pub memory: Option<u64>,
    /// Longest time without progress in writing to a client, in milliseconds.
    pub slow: Millis,
}

impl Default for Limits {
    /// Returns the defaults, as `--help` shows them.
    fn default() -> Self {
        Self {
            connections: None,
            per_address: None,
            unauthenticated: 20_000,
            unauthenticated_bytes: 64 * 1024 * 1024,
            login_timeout: 10_000,
            head: 16 * 1024,
            request_within: 10_000,
            post: 1024 * 1024,
            message: 1024 * 1024,
            messages_per_second: 100,
            subscriptions: 10_000,
            name: LONGEST_NAME,
            requests: 256,
            login_queue: 20_000,
            slow: 60_000,
            subscriptions_per_user: Some(100_000),
            memory: None,
        }
    }
}

/// Longest message, and longest body of a POST, of a client that has not begun to log in, in bytes.
pub const UNAUTHENTICATED_MESSAGE: usize = 4 * 1024;

/// Most unauthenticated sessions that one connection may open by polling.
pub const MAX_SESSIONS_OPENED: u8 = 8;

/// Upper bound of the limit of names, in bytes. Names in CouchDB have at most 238 bytes.
pub const LONGEST_NAME: usize = 256;

/// Largest burst of messages, in seconds at the permitted rate. Apps subscribe to all their
/// databases at once.
const BURST: u64 = 20;

/// Rate of messages (generic cell rate algorithm, ITU-T I.371 annex A): the time at which the next
/// one would be due at an even rate, in thousandths of a millisecond.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle(u64);

/// Number of names in a list that count as one more message.
const NAMES_A_MESSAGE: usize = 100;

impl Throttle {
    /// Counts a message. Returns whether the rate is at most `per_second`.
    pub fn allows(&mut self, per_second: u64, now: Millis) -> bool {
        self.allows_messages(1, per_second, now)
    }

    /// Counts the names in a message that is counted already.
    pub fn allows_names(&mut self, names: usize, per_second: u64, now: Millis) -> bool {
        self.allows_messages((names / NAMES_A_MESSAGE) as u64, per_second, now)
    }

    fn allows_messages(&mut self, messages: u64, per_second: u64, now: Millis) -> bool {
        let now = now * 1_000;
        let due = self.0.max(now) + messages * 1_000_000 / per_second;
        let allowed = due <= now + BURST * 1_000_000;
        if allowed {
            self.0 = due;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allows_a_burst_and_then_an_even_rate() {
        let mut throttle = Throttle::default();
        let allowed = |throttle: &mut Throttle, now| (0..10_000).take_while(|_| throttle.allows(100, now)).count();
        assert_eq!(allowed(&mut throttle, 5), 2_000);
        assert_eq!(allowed(&mut throttle, 5), 0);
        assert_eq!(allowed(&mut throttle, 1_005), 100);
        assert_eq!(allowed(&mut throttle, 60_000), 2_000, "unused messages are not saved beyond the burst");
        assert_eq!((0..100).take_while(|_| throttle.allows_names(8_000, 100, 120_000)).count(), 25);
        assert!(throttle.allows_names(99, 100, 120_000) && !throttle.allows_names(100, 100, 120_000));
    }
}
