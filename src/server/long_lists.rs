//! Long lists of names, worked off over turns. The work of each session is in
//! `databases/long_lists.rs`.

use super::Server;
use super::databases::Databases;
use super::databases::errors::TOO_MANY_UNDECIDED;
use crate::state::name_lists::{Intake, Work};
use crate::state::positions::RequestedDatabases;
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Names of long lists that are worked on in one turn; each costs about half a microsecond.
const LISTED_A_TURN: usize = 2_000;

impl Server {
    /// Works on the lists of each session in turn, and ends the holds of finished ones, some in
    /// each turn.
    pub(super) fn work_on_lists(&mut self, now: Millis) {
        let mut budget = LISTED_A_TURN;
        while budget > 0
            && let Some((key, work)) = self.databases.next_work()
        {
            let cost = match work {
                Work::Resume => self.resume_session(key, now),
                Work::Intake(intake) if intake.group.is_none() => self.read_list(key, intake, now),
                Work::Intake(intake) => self.decide_part(key, intake, now),
                Work::Complete(group) => self.complete_list(key, group),
                Work::Remove(removal) => {
                    let (reply, cost) = self.databases.remove_some(key, removal);
                    if let Some(reply) = reply {
                        self.answer_unsubscribed(key, &reply);
                    }
                    cost
                }
                Work::Leave => {
                    let cost = self.databases.unsubscribe_some(key);
                    self.recount_user(key);
                    cost
                }
            };
            budget = budget.saturating_sub(cost.max(1));
            if !self.databases.is_busy(key) {
                // The session is written to, and its connection is read again.
                self.sessions.mark_dirty(key);
            }
        }
        self.databases.release_finished();
    }

    /// Hands the next message that waited to its session. Returns the cost.
    fn resume_session(&mut self, key: Key, now: Millis) -> usize {
        let Some(text) = self.databases.next_deferred(key) else {
            self.databases.resume(key);
            return 0;
        };
        let before = self.databases.names_this_turn();
        self.with_session(key, now, |session, turn| session.handle_message(&text, turn));
        self.databases.resume(key);
        Databases::message_cost(&text) + self.databases.names_this_turn() - before
    }

    /// Reads some names of a `subscribe`; when all are read, splits it into parts. Returns the
    /// cost.
    fn read_list(&mut self, key: Key, intake: Box<Intake>, now: Millis) -> usize {
        let session = self.sessions.get(key);
        let (intake, cost) = self.databases.read_some((key, session), intake, &self.context);
        let Some(mut intake) = intake else { return cost };
        if !self.has_room(key, &intake.reply, intake.new, now) {
            self.databases.release_later(intake.databases);
            return cost;
        }
        if self.databases.split(key, self.sessions.get(key), &mut intake) {
            self.databases.put_back(key, intake);
        } else {
            self.context.metrics.rejected_access_requests += 1;
            self.reject_subscribe(key, &intake.reply, TOO_MANY_UNDECIDED, now);
        }
        cost
    }

    /// Passes the next part of a list on. Returns the cost.
    fn decide_part(&mut self, key: Key, mut intake: Box<Intake>, now: Millis) -> usize {
        let Some((request, user, awaited)) = self.databases.next_part(key, &mut intake) else { return 0 };
        let (cost, group) = (request.names.len(), request.group);
        match self.decide(request, now) {
            Ok(()) => self.databases.queue_rest(key, intake, user, awaited),
            Err(message) => {
                // Other sessions of the user took the room. The parts that wait find no list.
                self.databases.release_later(intake.databases);
                if let Some(group) = group.and_then(|group| self.databases.take_group(group)) {
                    self.reject_subscribe(key, &group.reply, message, now);
                }
            }
        }
        cost
    }

    /// Subscribes to some names of a list whose parts have arrived; answers when all are done.
    /// Returns the cost.
    fn complete_list(&mut self, key: Key, group: Key) -> usize {
        let (session, user_quotas) = (self.sessions.get(key), self.sessions.user_quotas());
        let (done, cost) = self.databases.complete_some((key, session), group, user_quotas, &mut self.context);
        self.recount_user(key);
        if let Some(group) = done {
            self.databases.answer_group((key, self.sessions.get_mut(key)), group);
            self.sessions.mark_dirty(key);
        }
        cost
    }

    /// Fails a list of which a part waited for too long.
    pub(super) fn fail_list(&mut self, group: Key, names: RequestedDatabases, name: &str, message: &str) {
        if let Some(group) = self.databases.take_group(group)
            && let Some(session) = self.sessions.get_mut(group.session)
        {
            session.answer_error(&group.reply, name, message);
            self.sessions.mark_dirty(group.session);
        }
        self.databases.release_later(names);
    }
}
