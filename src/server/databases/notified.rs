//! Sessions that have become dirty and are to be written to.

use crate::state::subscriptions::SessionIndex;

/// Subscribers of a database with more than this are bulk sessions: others are written to first.
const BULK: usize = 128;

/// Slots of the sessions that have become dirty.
#[derive(Debug, Default)]
pub(super) struct Notified {
    pub(super) few: Vec<SessionIndex>,
    pub(super) bulk: Vec<SessionIndex>,
}

impl Notified {
    /// Returns the list for the subscribers of a database with `subscribers` of them.
    pub(super) fn of(&mut self, subscribers: usize) -> &mut Vec<SessionIndex> {
        if subscribers > BULK { &mut self.bulk } else { &mut self.few }
    }
}
