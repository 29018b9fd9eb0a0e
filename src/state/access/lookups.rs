//! The queue of lookups.

use std::collections::VecDeque;

use crate::state::fair_queue::FairQueue;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;

/// Queued lookups. Databases in doubt, refreshes, and requests of clients take turns, and among the
/// last ones the sessions do.
#[derive(Debug, Default)]
pub(super) struct LookupQueue {
    pub(super) urgent: VecDeque<DatabaseId>,
    pub(super) refreshes: VecDeque<DatabaseId>,
    pub(super) of_sessions: FairQueue<Key, DatabaseId>,
    /// Number of the queue that was served last.
    turn: u8,
    /// Number of lookups in flight.
    pub(super) in_flight: usize,
}

impl LookupQueue {
    pub(super) fn pop(&mut self) -> Option<DatabaseId> {
        for _ in 0..3 {
            self.turn = (self.turn + 1) % 3;
            let next = match self.turn {
                0 => self.urgent.pop_front(),
                1 => self.refreshes.pop_front(),
                _ => self.of_sessions.pop().map(|(_, database)| database),
            };
            if next.is_some() {
                return next;
            }
        }
        None
    }

    pub(super) fn len(&self) -> usize {
        self.urgent.len() + self.refreshes.len() + self.of_sessions.len()
    }
}
