//! Sessions that have ended: their subscriptions are removed over the next turns, and their
//! positions are remembered.

use super::Databases;
use crate::state::session::{Dialect, Session};
use crate::state::session_cleanup::{EndedSession, RememberedSession};
use crate::state::subscriptions::SessionIndex;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::state::tracked_position::IN_FLIGHT;

/// Subscriptions of ended sessions that are removed in one turn: about a millisecond.
const ENDED_A_TURN: usize = 2_000;
/// A session costs at least as much as this many subscriptions.
const SESSION_COST: usize = 4;

impl Databases {
    /// Returns what to remember of a session whose client may come back.
    pub(crate) fn memory_of(&self, session: &Session) -> Option<RememberedSession> {
        if session.dialect() == Dialect::Json {
            return None;
        }
        let user = session.user_name().filter(|_| self.catch_up.is_on())?;
        let last_seen = session.last_seen();
        Some(RememberedSession { user: user.into(), last_seen, is_certain: self.was_resynced(last_seen) })
    }

    /// Returns whether a client with this last sign of life certainly got the last resync.
    fn was_resynced(&self, last_seen: Millis) -> bool {
        self.resync.is_none() && self.last_resync.is_none_or(|at| at + IN_FLIGHT < last_seen)
    }

    /// Queues a session whose slot is reserved until [`Self::next_departed`] returns it.
    pub(crate) fn depart(&mut self, session: Key, memory: Option<RememberedSession>) {
        self.departures.push(EndedSession { session: session.index, memory });
    }

    /// Removes subscriptions of ended sessions, some in each turn. Returns the next session whose
    /// last one is removed.
    pub(crate) fn next_departed(&mut self, now: Millis) -> Option<SessionIndex> {
        while self.ended_this_turn < ENDED_A_TURN
            && let Some(EndedSession { session, memory }) = self.departures.front()
        {
            let session = *session;
            let most = self.subscriptions.count(session).min(ENDED_A_TURN - self.ended_this_turn);
            self.ended_this_turn += most.max(SESSION_COST);
            if let Some(memory) = memory {
                let is_certain = memory.is_certain && self.was_resynced(memory.last_seen);
                let (subscriptions, access) = (&mut self.subscriptions, &self.access);
                let databases = subscriptions.last_of_session(session, most).map(|(database, is_notified)| {
                    let is_known = is_notified && is_certain && !subscriptions.holds_back(database);
                    let is_known = is_known && subscriptions.tracked(database).is_notified_by(memory.last_seen);
                    (database, access.notified_position(database, subscriptions).filter(|_| is_known))
                });
                let databases = databases.collect::<Vec<_>>();
                self.catch_up.remember(&memory.user, &databases, now, subscriptions);
            }
            self.end_subscriptions(session, most);
            if self.subscriptions.count(session) == 0 {
                self.departures.pop();
                return Some(session);
            }
        }
        None
    }

    /// Removes up to `most` of the last subscriptions of a session, and forgets databases without
    /// subscribers.
    pub(super) fn end_subscriptions(&mut self, session: SessionIndex, most: usize) {
        for _ in 0..most {
            let Some(database) = self.subscriptions.drop_last(session) else { return };
            if self.access.is_restricted() {
                self.access.drop_unused(database, &mut self.subscriptions);
            }
        }
    }
}
