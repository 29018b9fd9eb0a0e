//! Cleanup of sessions that have ended. Their subscriptions end over several turns, since many
//! sessions with many subscriptions may break at once.
//!
//! The queue is bounded by the number of subscriptions: the slot of a session is not reused until
//! its cleanup is over, and its subscriptions count in the total until they end.

use std::collections::{HashMap, VecDeque};

use crate::state::subscriptions::{DatabaseId, SessionIndex, Subscriptions};
use crate::state::timers::Millis;

/// Number of sessions in cleanup above which all databases of their user count as changed.
const MANY: usize = 8;

/// A session that has ended.
#[derive(Debug)]
pub struct EndedSession {
    /// Its slot, which is reserved.
    pub session: SessionIndex,
    /// Data to remember for its client, if any.
    pub memory: Option<RememberedSession>,
}

/// Data to remember of a session whose client may come back.
#[derive(Debug)]
pub struct RememberedSession {
    /// User of the session.
    pub user: Box<str>,
    /// Time of the last sign of life of the client.
    pub last_seen: Millis,
    /// Whether the client had been notified of every resync when the session ended.
    pub is_certain: bool,
}

/// Sessions that have ended, the next one to clean up first.
#[derive(Debug, Default)]
pub struct SessionCleanup {
    queue: VecDeque<EndedSession>,
    /// Sessions of each user that are to be remembered.
    of_user: HashMap<Box<str>, VecDeque<SessionIndex>>,
}

impl SessionCleanup {
    /// Queues a session.
    pub fn push(&mut self, ended: EndedSession) {
        if let Some(RememberedSession { user, .. }) = &ended.memory {
            self.of_user.entry(user.clone()).or_default().push_back(ended.session);
        }
        self.queue.push_back(ended);
    }

    /// Returns the session whose subscriptions end next.
    pub fn front(&self) -> Option<&EndedSession> {
        self.queue.front()
    }

    /// Takes out the first session, which has no subscription left.
    pub fn pop(&mut self) -> Option<EndedSession> {
        let ended = self.queue.pop_front()?;
        if let Some(RememberedSession { user, .. }) = &ended.memory
            && let Some(sessions) = self.of_user.get_mut(user)
        {
            // The sessions of a user leave in the order in which they came.
            sessions.pop_front();
            if sessions.is_empty() {
                self.of_user.remove(user);
            }
        }
        if self.queue.capacity() > MANY && self.queue.len() < self.queue.capacity() / 8 {
            self.queue.shrink_to(2 * self.queue.len());
        }
        Some(ended)
    }

    /// Returns the number of sessions in cleanup.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether no session is in cleanup.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns whether an ended session of a user may still subscribe to a database, so that its
    /// position is not remembered yet.
    pub fn may_subscribe(&self, user: &str, database: DatabaseId, subscriptions: &Subscriptions) -> bool {
        let Some(sessions) = self.of_user.get(user) else { return false };
        sessions.len() > MANY || sessions.iter().any(|session| subscriptions.has(*session, database))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_of_ended_sessions_are_found_until_the_cleanup() {
        let (mut cleanup, mut subscriptions) = (SessionCleanup::default(), Subscriptions::default());
        let [a, b] = ["a", "b"].map(|name| subscriptions.hold(name));
        subscriptions.subscribe(3, a).expect("within the limit");
        let memory = |user: &str| Some(RememberedSession { user: user.into(), last_seen: 0, is_certain: true });
        cleanup.push(EndedSession { session: 3, memory: memory("u") });
        cleanup.push(EndedSession { session: 4, memory: None });
        let may = |cleanup: &SessionCleanup, user, database| cleanup.may_subscribe(user, database, &subscriptions);
        assert!(may(&cleanup, "u", a) && !may(&cleanup, "u", b) && !may(&cleanup, "v", a));
        for session in 10..20 {
            cleanup.push(EndedSession { session, memory: memory("w") });
        }
        assert!(may(&cleanup, "w", b), "there are too many sessions to check each");
        assert_eq!(cleanup.pop().map(|ended| ended.session), Some(3));
        assert!(!may(&cleanup, "u", a));
        while cleanup.pop().is_some() {}
        assert!(cleanup.is_empty() && cleanup.of_user.is_empty());
    }
}
