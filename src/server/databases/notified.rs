//! Sessions that have become dirty and are to be written to.

use crate::state::subscriptions::SessionIndex;

/// Subscribers of a database with more than this are a crowd: others are written to before them.
const CROWD: usize = 128;

/// Slots of the sessions that have become dirty.
#[derive(Debug, Default)]
pub(super) struct Notified {
    pub(super) few: Vec<SessionIndex>,
    pub(super) crowd: Vec<SessionIndex>,
}

impl Notified {
    /// Returns the list for the subscribers of a database that has so many.
    pub(super) fn of(&mut self, subscribers: usize) -> &mut Vec<SessionIndex> {
        if subscribers > CROWD { &mut self.crowd } else { &mut self.few }
    }
}
