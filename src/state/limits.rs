//! What one client, one address, and all clients together may use. Operators set each of these; what happens at the
//! limit is a [`crate::state::metrics::CloseReason`] or an error that the client is told, and is counted.

use super::timers::Millis;

/// The limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections of clients in all; None for as many as descriptors allow.
    pub connections: Option<usize>,
    /// Connections from one address (IPv6: one /64 network); None for any number.
    pub per_address: Option<usize>,
    /// Unauthenticated connections, and sessions that poll; beyond that the oldest of the network with most are evicted.
    pub unauthenticated: usize,
    /// What all unauthenticated clients hold together, in bytes; beyond that those that hold some are evicted.
    pub unauthenticated_bytes: usize,
    /// Time for the log-in to be begun, in milliseconds.
    pub login_timeout: Millis,
    /// Longest head of a request, in bytes.
    pub head: usize,
    /// Time for the head of the first request, TLS handshake included, and again for each body, in milliseconds.
    pub request_within: Millis,
    /// Longest body of a request, in bytes; before the login [`UNAUTHENTICATED_MESSAGE`] where that is less.
    pub post: usize,
    /// Longest message of a client, over all its frames, in bytes; before the login as for a body.
    pub message: usize,
    /// Messages (frames, packets) of a client per second, see [`Throttle`].
    pub messages_per_second: u64,
    /// Databases that a client may subscribe to.
    pub subscriptions: usize,
    /// Databases that a user may subscribe to, over all sessions; None for any number.
    pub subscriptions_per_user: Option<usize>,
    /// Longest name of a database, in bytes.
    pub name: usize,
    /// Requests of a client that are not answered yet.
    pub requests: usize,
    /// Log-ins that wait for their turn.
    pub login_queue: usize,
    /// Memory of the process beyond which new clients are rejected, in bytes; None for none.
    pub memory: Option<u64>,
    /// How long a client may take nothing of what is written to it, in milliseconds.
    pub slow: Millis,
}

impl Default for Limits {
    /// What `--help` calls the defaults.
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

/// Longest message, and body of a POST, of a client that has not begun to log in, in bytes.
pub const UNAUTHENTICATED_MESSAGE: usize = 4 * 1024;

/// Sessions that one connection may open by polling and that are not logged in.
pub const MAX_SESSIONS_OPENED: u8 = 8;

/// No name may be longer, in bytes, whatever is set; CouchDB's own end near 238.
pub const LONGEST_NAME: usize = 256;

/// For how many seconds a client may send messages all at once, when it sent none before: apps subscribe to what they
/// have in a burst.
const BURST: u64 = 20;

/// How fast messages came (the generic cell rate algorithm, ITU-T I.371 annex A): when the next one would be due at an
/// even pace, in thousandths of a millisecond.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle(u64);

/// A list of names counts as one more message for each of so many names.
const NAMES_A_MESSAGE: usize = 100;

impl Throttle {
    /// Takes note of a message; whether it was in time for so many a second.
    pub fn allows(&mut self, per_second: u64, now: Millis) -> bool {
        self.allows_messages(1, per_second, now)
    }

    /// Takes note of the names in a message that was taken note of.
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
    fn a_burst_and_then_an_even_pace() {
        let mut throttle = Throttle::default();
        let allowed = |throttle: &mut Throttle, now| (0..10_000).take_while(|_| throttle.allows(100, now)).count();
        assert_eq!(allowed(&mut throttle, 5), 2_000);
        assert_eq!(allowed(&mut throttle, 5), 0);
        assert_eq!(allowed(&mut throttle, 1_005), 100);
        assert_eq!(allowed(&mut throttle, 60_000), 2_000, "what was not used is not saved beyond the burst");
        assert_eq!((0..100).take_while(|_| throttle.allows_names(8_000, 100, 120_000)).count(), 25);
        assert!(throttle.allows_names(99, 100, 120_000) && !throttle.allows_names(100, 100, 120_000));
    }
}
