//! Changes of databases, and replies of CouchDB about them.

use std::cmp::Reverse;

use super::Access;
use super::entry::{LookupState, before_creation};
use super::request::Stage;
use super::step::Pass;
use super::verdict::Verdict;
use crate::state::jitter::Jitter;
use crate::state::subscriptions::{DatabaseId, Subscriptions};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::database_name;
use crate::wire::positions::Position;

/// Age at which a verdict is read again, in milliseconds, so that the reply is there within a
/// minute.
pub(super) const REFRESH: Millis = 50_000;
/// First wait after a lookup without a valid reply, in milliseconds. It doubles with each failure.
pub(super) const FIRST_RETRY: Millis = 1_000;
/// Longest such wait, in milliseconds.
pub(super) const LONGEST_RETRY: Millis = 60_000;

impl Access {
    /// Handles a change of a database, from a line of the feed or a position. Returns whether to
    /// notify its subscribers now. If not, they are notified once it is known which of them may
    /// read it. Changes that are no news were notified before, or are in the replies to later
    /// subscribers. `before` is the position before the line, if it is known.
    pub fn handle_line(
        &mut self,
        database: DatabaseId,
        kind: ChangeKind,
        is_news: bool,
        before: Option<Position>,
        subscriptions: &Subscriptions,
    ) -> bool {
        if !self.is_restricted() {
            return is_news;
        }
        let Some(entry) = self.entries.get_mut(&database) else {
            // A database without an entry has only server admins as subscribers, or has a name that
            // CouchDB cannot have.
            return is_news && database_name::is_possible(subscriptions.name(database));
        };
        let was_there = entry.is_there();
        let is_held_back = entry.in_doubt || entry.left.is_some() || !was_there;
        if kind == ChangeKind::Updated && was_there && !entry.in_doubt {
            if is_held_back && is_news {
                entry.pending_change = Some(entry.pending_change.map_or(kind, |earlier| earlier.merge(kind)));
            }
            return is_news && !is_held_back;
        }
        let notifies_now = is_news && !is_held_back && kind == ChangeKind::Deleted;
        if !entry.in_doubt {
            entry.in_doubt = true;
            entry.position_before = if was_there {
                before.or(entry.position_before)
            } else {
                let missing = before.filter(|position| !position.is_there());
                missing.or(entry.position_before).or(before.map(before_creation))
            };
        }
        if kind == ChangeKind::Deleted {
            let now = subscriptions.known(database).or(subscriptions.notified(database));
            entry.position_before = now.map(before_creation).or(entry.position_before);
            if is_news {
                // A new subscription is answered as if the database were missing, as it may be.
                entry.set_verdict(database, Some(Verdict::Missing), &mut self.memory);
                entry.left = None;
            }
        }
        // No subscriber was notified of a database that did not exist.
        if !notifies_now && (is_news || !was_there) {
            entry.pending_change = Some(entry.pending_change.map_or(kind, |earlier| earlier.merge(kind)));
        }
        entry.note(kind);
        self.queue_urgent(database);
        notifies_now
    }

    /// Handles CouchDB's reply about a database; None if it was not valid. Returns the change of
    /// which to notify subscribers now. If they have to be decided before, [`Access::next_step`]
    /// returns it. The database may be forgotten.
    pub fn handle_verdict(
        &mut self,
        database: DatabaseId,
        verdict: Option<Verdict>,
        (now, jitter): (Millis, &mut Jitter),
        subscriptions: &mut Subscriptions,
    ) -> Option<ChangeKind> {
        self.lookups.in_flight -= 1;
        let entry = self.entries.get_mut(&database)?;
        let Some(verdict) = verdict else {
            let span = (FIRST_RETRY << entry.failures.min(6)).min(LONGEST_RETRY);
            entry.failures = entry.failures.saturating_add(1);
            self.back_off(database, now + jitter.around(span).max(FIRST_RETRY / 2), subscriptions);
            return None;
        };
        entry.failures = 0;
        if entry.is_outdated(&verdict) {
            entry.lookup = LookupState::None;
            self.queue_urgent(database);
            return None;
        }
        let has_subscribers = subscriptions.has_subscribers(database);
        let is_other = entry.verdict.as_ref() != Some(&verdict);
        let verdict = if is_other { self.admit(database, verdict, subscriptions) } else { verdict };
        let entry = self.entries.get_mut(&database)?;
        // The replacement can be the same if there is still no room.
        let is_other = entry.verdict.as_ref() != Some(&verdict);
        entry.lookup = LookupState::None;
        if is_other {
            entry.set_verdict(database, Some(verdict), &mut self.memory);
        }
        entry.in_doubt = false;
        let is_there = entry.is_there();
        entry.position_before = subscriptions.known(database).filter(|position| is_there || !position.is_there());
        if is_other && has_subscribers {
            entry.left = Some(subscriptions.subscriber_count(database));
            self.passes.push_back(Pass::Database(database));
        }
        let notifies_now = if entry.left.is_none() { entry.pending_change.take() } else { None };
        let waiting = std::mem::take(&mut entry.waiting);
        let at = now + REFRESH;
        entry.refresh = Some(at);
        entry.waiters = 0;
        self.refreshes.push_back((at, database));
        self.wake(database, waiting);
        self.drop_unused(database, subscriptions);
        notifies_now
    }

    /// Schedules the next lookup of a database after one without a valid reply.
    fn back_off(&mut self, database: DatabaseId, at: Millis, subscriptions: &mut Subscriptions) {
        let Some(entry) = self.entries.get_mut(&database) else { return };
        entry.lookup = LookupState::Backoff(at);
        self.retries.push(Reverse((at, database)));
        self.drop_unused(database, subscriptions);
    }

    /// Makes those of the requests ready that waited for a database alone.
    fn wake(&mut self, database: DatabaseId, waiting: Vec<Key>) {
        for key in waiting {
            let Some(undecided) = self.undecided.get_mut(key) else { continue };
            if undecided.awaits.remove(&database) {
                if undecided.stage == Stage::Cancelled {
                    continue;
                }
                let (session, is_ready) = (undecided.session, undecided.awaits.is_empty());
                self.uncount(session, 1);
                if is_ready {
                    self.make_ready(key);
                }
            }
        }
    }

    /// Makes room for a verdict. Returns the verdict that is kept.
    fn admit(&mut self, database: DatabaseId, verdict: Verdict, subscriptions: &mut Subscriptions) -> Verdict {
        let bytes = verdict.bytes();
        while !self.memory.has_room(database, bytes) {
            if let Some(idle) = self.memory.longest_idle() {
                self.drop_idle(idle, database, subscriptions);
                continue;
            }
            match self.memory.largest() {
                Some((largest, other)) if largest > bytes && other != database => self.evict(other, subscriptions),
                _ => {
                    self.evictions += 1;
                    return Verdict::NoRoom;
                }
            }
        }
        verdict
    }

    /// Forgets an idle database, unless it is needed now.
    fn drop_idle(&mut self, idle: DatabaseId, answered: DatabaseId, subscriptions: &mut Subscriptions) {
        self.memory.set_in_use(idle);
        let Some(entry) = self.entries.get(&idle) else { return };
        let is_needed = entry.waiters > 0 || entry.lookup == LookupState::InFlight || idle == answered;
        if !is_needed && !subscriptions.has_subscribers(idle) && !subscriptions.is_awaited(idle) {
            self.forget(idle, subscriptions);
        }
    }

    /// Drops the `_security` of a database that takes too much memory. Its subscriptions are
    /// decided again.
    fn evict(&mut self, database: DatabaseId, subscriptions: &Subscriptions) {
        let Some(entry) = self.entries.get_mut(&database) else { return };
        entry.set_verdict(database, Some(Verdict::NoRoom), &mut self.memory);
        self.evictions += 1;
        if subscriptions.has_subscribers(database) {
            entry.left = Some(subscriptions.subscriber_count(database));
            self.passes.push_back(Pass::Database(database));
        }
    }
}
