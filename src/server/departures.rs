//! Sessions that end: their subscriptions do over the next turns, and where they stood is remembered.

use super::Server;
use crate::state::departures::{Departure, Memory};
use crate::state::session::Dialect;
use crate::state::subscriptions::SessionIndex;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::state::watch::IN_FLIGHT;

/// Subscriptions of sessions that have ended which end in one turn, about a millisecond.
const ENDED_A_TURN: usize = 2_000;
/// A session costs at least as much as this many subscriptions.
const SESSION_COST: usize = 4;

impl Server {
    /// Returns what is to be remembered of a session whose client may come back.
    pub(super) fn memory_of(&self, key: Key) -> Option<Memory> {
        let session = self.sessions.table.get(key).filter(|session| session.dialect() != Dialect::Json)?;
        let user = session.user_name().filter(|_| self.databases.catch_up.is_on())?;
        Some(Memory { user: user.into(), heard: session.last_seen(), is_certain: self.was_told(session.last_seen()) })
    }

    /// Returns whether a client that was heard of at a moment was told of the last resync for certain.
    fn was_told(&self, heard: Millis) -> bool {
        self.databases.pending_resync.is_none() && self.databases.last_resync_at.is_none_or(|at| at + IN_FLIGHT < heard)
    }

    /// Takes a session out of the table, and ends its subscriptions in this turn or the next ones. Returns whether it
    /// was there.
    pub(super) fn depart(&mut self, key: Key, memory: Option<Memory>, now: Millis) -> bool {
        let was_there = self.sessions.table.remove_and_reserve(key).is_some();
        if was_there {
            self.databases.departures.push(Departure { session: key.index, memory });
            self.end_departed(now);
        }
        was_there
    }

    /// Goes on with sessions that have ended: in one turn with some of their subscriptions.
    pub(super) fn end_departed(&mut self, now: Millis) {
        while self.databases.ended_this_turn < ENDED_A_TURN
            && let Some(Departure { session, memory }) = self.databases.departures.front()
        {
            let session = *session;
            let most = self.databases.subscriptions.count(session).min(ENDED_A_TURN - self.databases.ended_this_turn);
            self.databases.ended_this_turn += most.max(SESSION_COST);
            if let Some(memory) = memory {
                let is_certain = memory.is_certain && self.was_told(memory.heard);
                let subscriptions = &mut self.databases.subscriptions;
                let (access, catch_up) = (&self.databases.access, &mut self.databases.catch_up);
                let databases = subscriptions.last_of_session(session, most).map(|(database, told)| {
                    let told = told && is_certain && !subscriptions.holds_back(database);
                    let told = told && subscriptions.watch(database).told_by(memory.heard);
                    (database, access.told(database, subscriptions).filter(|_| told))
                });
                catch_up.remember(&memory.user, &databases.collect::<Vec<_>>(), now, subscriptions);
            }
            self.end_subscriptions(session, most);
            if self.databases.subscriptions.count(session) == 0 {
                self.databases.departures.pop();
                self.sessions.table.release(session);
            }
        }
    }

    /// Ends the last subscriptions of a session, so many of them. What is known of databases that nobody else
    /// subscribes to is forgotten.
    pub(super) fn end_subscriptions(&mut self, session: SessionIndex, most: usize) {
        for _ in 0..most {
            let Some(database) = self.databases.subscriptions.drop_last(session) else { return };
            if self.databases.access.is_restricted() {
                self.databases.access.drop_unused(database, &mut self.databases.subscriptions);
            }
        }
    }
}
