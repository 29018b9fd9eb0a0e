//! Unauthenticated polling sessions per connection.

use std::collections::HashMap;

use super::limits::MAX_SESSIONS_OPENED;
use super::table::Key;

/// Connections and the sessions that they have opened. Clients that are logged in take no memory
/// here.
#[derive(Debug, Default)]
pub struct SessionsPerConnection {
    counts: HashMap<Key, u8>,
    /// Connection of each session.
    connections: HashMap<Key, Key>,
}

impl SessionsPerConnection {
    /// Returns whether a connection may open one more session, and counts it until
    /// [`SessionsPerConnection::remove`].
    pub fn may_open(&mut self, connection: Key) -> bool {
        let count = self.counts.entry(connection).or_default();
        let allowed = *count < MAX_SESSIONS_OPENED;
        *count += u8::from(allowed);
        allowed
    }

    /// Stores the session that a connection has opened.
    pub fn insert(&mut self, session: Key, connection: Key) {
        self.connections.insert(session, connection);
    }

    /// Removes a session that has logged in, ended, or moved to a WebSocket. Its connection may
    /// open another one.
    pub fn remove(&mut self, session: Key) {
        let Some(connection) = self.connections.remove(&session) else { return };
        if let Some(count) = self.counts.get_mut(&connection) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&connection);
            }
        }
        if self.connections.capacity() > KEPT && self.connections.len() < self.connections.capacity() / 8 {
            self.connections.shrink_to(2 * self.connections.len());
            self.counts.shrink_to(2 * self.counts.len());
        }
    }
}

/// Capacity below which the tables are not shrunk.
const KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unauthenticated_sessions_of_a_connection_are_limited() {
        let key = |index| Key { index, generation: 0 };
        let mut openings = SessionsPerConnection::default();
        for session in 0..MAX_SESSIONS_OPENED.into() {
            assert!(openings.may_open(key(7)));
            openings.insert(key(session), key(7));
        }
        assert!(!openings.may_open(key(7)) && openings.may_open(key(8)));
        openings.insert(key(99), key(8));
        openings.remove(key(0));
        openings.remove(key(0));
        assert!(openings.may_open(key(7)) && !openings.may_open(key(7)));
        openings.insert(key(0), key(7));
        for session in (0..MAX_SESSIONS_OPENED.into()).chain([99]) {
            openings.remove(key(session));
        }
        assert!(openings.counts.is_empty() && openings.connections.is_empty());
    }

    #[test]
    fn clients_that_logged_in_take_no_memory() {
        let key = |index| Key { index, generation: 0 };
        let mut openings = SessionsPerConnection::default();
        for number in 0..10_000 {
            assert!(openings.may_open(key(number)));
            openings.insert(key(number), key(number));
        }
        for number in 0..10_000 {
            openings.remove(key(number));
        }
        assert!(openings.counts.capacity() <= 4 * KEPT && openings.connections.capacity() <= 4 * KEPT);
    }
}
