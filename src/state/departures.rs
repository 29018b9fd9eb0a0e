//! Sessions that have ended and whose subscriptions are being ended, some each turn: many sessions with many
//! subscriptions may break at once.
//!
//! The queue is bounded by the subscriptions that there were: the slot of a session is not used again before its
//! departure is over, and its subscriptions count in the total until they end.

use std::collections::{HashMap, VecDeque};

use crate::state::subscriptions::{DatabaseId, SessionIndex, Subscriptions};
use crate::state::timers::Millis;

/// A user with more departing sessions than this has all of its databases count as changed until they are gone.
const MANY: usize = 8;

/// A session that has ended.
#[derive(Debug)]
pub struct Departure {
    /// Its slot, which is reserved.
    pub session: SessionIndex,
    /// What is remembered of it, if anything.
    pub memory: Option<Memory>,
}

/// What is remembered of a session whose client may come back.
#[derive(Debug)]
pub struct Memory {
    /// The user who was logged in.
    pub user: Box<str>,
    /// When the client was last heard of.
    pub heard: Millis,
    /// Whether it was told of every resync when it ended.
    pub is_certain: bool,
}

/// The sessions that have ended, the next to be gone first.
#[derive(Debug, Default)]
pub struct Departures {
    queue: VecDeque<Departure>,
    /// Those of each user that are remembered.
    of_user: HashMap<Box<str>, VecDeque<SessionIndex>>,
}

impl Departures {
    /// Queues a session.
    pub fn push(&mut self, departure: Departure) {
        if let Some(Memory { user, .. }) = &departure.memory {
            self.of_user.entry(user.clone()).or_default().push_back(departure.session);
        }
        self.queue.push_back(departure);
    }

    /// Returns the session whose subscriptions end next.
    pub fn front(&self) -> Option<&Departure> {
        self.queue.front()
    }

    /// Takes the first session out: nothing is left of it.
    pub fn pop(&mut self) -> Option<Departure> {
        let departure = self.queue.pop_front()?;
        if let Some(Memory { user, .. }) = &departure.memory
            && let Some(sessions) = self.of_user.get_mut(user)
        {
            // Those of a user are gone in the order in which they came.
            sessions.pop_front();
            if sessions.is_empty() {
                self.of_user.remove(user);
            }
        }
        if self.queue.capacity() > MANY && self.queue.len() < self.queue.capacity() / 8 {
            self.queue.shrink_to(2 * self.queue.len());
        }
        Some(departure)
    }

    /// Returns how many sessions are departing.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Returns whether none is.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Returns whether a departing session of a user may subscribe to a database: how far it had come is not remembered
    /// yet.
    pub fn may_subscribe(&self, user: &str, database: DatabaseId, subscriptions: &Subscriptions) -> bool {
        let Some(sessions) = self.of_user.get(user) else { return false };
        sessions.len() > MANY || sessions.iter().any(|session| subscriptions.has(*session, database))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_of_departing_sessions_are_known_until_they_are_gone() {
        let (mut departures, mut subscriptions) = (Departures::default(), Subscriptions::default());
        let [a, b] = ["a", "b"].map(|name| subscriptions.hold(name));
        subscriptions.subscribe(3, a).expect("within the limit");
        let memory = |user: &str| Some(Memory { user: user.into(), heard: 0, is_certain: true });
        departures.push(Departure { session: 3, memory: memory("u") });
        departures.push(Departure { session: 4, memory: None });
        let may = |departures: &Departures, user, database| departures.may_subscribe(user, database, &subscriptions);
        assert!(may(&departures, "u", a) && !may(&departures, "u", b) && !may(&departures, "v", a));
        for session in 10..20 {
            departures.push(Departure { session, memory: memory("w") });
        }
        assert!(may(&departures, "w", b), "there are too many to look at each");
        assert_eq!(departures.pop().map(|departure| departure.session), Some(3));
        assert!(!may(&departures, "u", a));
        while departures.pop().is_some() {}
        assert!(departures.is_empty() && departures.of_user.is_empty());
    }
}
