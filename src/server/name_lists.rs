//! Long lists of names, worked off over turns, and the messages that wait for that.

use std::collections::HashMap;

use super::positions::{LIMIT_ERROR, too_many, too_many_of_user};
use super::{Context, Databases, Server, Sessions};
use crate::state::access::Decision;
use crate::state::metrics::CloseReason;
use crate::state::name_lists::{Cancelled, Group, Intake, PART, Removal, SLICE, Work};
use crate::state::positions::Named;
use crate::state::session::{Dialect, Reply, Session};
use crate::state::subscriptions::{DatabaseId, TooManySubscriptions};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::security::Refusal;

/// Names of long lists that are worked on in one turn; each costs about half a microsecond.
const LISTED_A_TURN: usize = 2_000;
/// Bytes of a message whose parsing takes as long as the work for one name.
pub(super) const BYTES_A_NAME: usize = 256;

impl Server {
    /// Hands a message to a session, or puts it aside until the work for those before it is done.
    pub(super) fn hand_message(&mut self, key: Key, text: &str, now: Millis) {
        self.databases.names_this_turn += text.len() / BYTES_A_NAME;
        if !self.databases.name_lists.is_busy(key) {
            return self.with_session(key, now, |session, turn| session.handle_message(text, turn));
        }
        if !self.databases.name_lists.defer(
            key,
            text,
            self.sessions.rules.max_message + self.sessions.rules.max_payload,
        ) {
            self.close_session(key, CloseReason::TooMuchHeld, now);
        }
    }

    /// Works on long lists, those of each session in turn, and releases what is over: in one turn some of both.
    pub(super) fn work_on_lists(&mut self, now: Millis) {
        let mut budget = LISTED_A_TURN;
        while budget > 0
            && let Some((key, work)) = self.databases.name_lists.pop()
        {
            let cost = match work {
                Work::Resume => self.resume_session(key, now),
                Work::Intake(intake) => self.take_in(key, intake, now),
                Work::Complete(group) => self.complete_some(key, group),
                Work::Remove(removal) => self.remove_some(key, removal),
                Work::Leave => self.leave_some(key),
            };
            budget = budget.saturating_sub(cost.max(1));
            if !self.databases.name_lists.is_busy(key) {
                // It is written to, and its connection is read again.
                self.sessions.dirty.push(key);
            }
        }
        for _ in 0..LISTED_A_TURN {
            let Some(database) = self.databases.name_lists.next_released() else { break };
            self.databases.access.release(database, &mut self.databases.subscriptions);
        }
    }

    fn resume_session(&mut self, key: Key, now: Millis) -> usize {
        let Some(text) = self.databases.name_lists.next_message(key) else {
            self.databases.name_lists.resume(key);
            return 0;
        };
        let before = self.databases.names_this_turn;
        self.with_session(key, now, |session, turn| session.handle_message(&text, turn));
        self.databases.name_lists.resume(key);
        text.len() / BYTES_A_NAME + self.databases.names_this_turn - before
    }

    /// Reads some names of a `subscribe`; when all are read, has them wait part by part.
    fn take_in(&mut self, key: Key, mut intake: Box<Intake>, now: Millis) -> usize {
        let Some(group) = intake.group else {
            let before = intake.read;
            let is_read = self.read_names(key, &mut intake, SLICE);
            let cost = intake.read - before;
            if !is_read {
                self.databases.name_lists.put_back(key, Work::Intake(intake));
                return cost;
            }
            if !self.has_room_for(key, &intake.reply, intake.new, now) {
                self.databases.name_lists.release(intake.databases);
                return cost;
            }
            let user = self.sessions.table.get(key).and_then(Session::user_name);
            if user.is_none_or(|user| !self.databases.access.has_room(user, intake.unknown)) {
                self.databases.name_lists.release(intake.databases);
                self.refuse_undecided(key, &intake.reply, now);
                return cost;
            }
            let user: Option<Box<str>> = user.map(Into::into);
            self.databases.access.reserve(user.as_deref().unwrap_or_default(), intake.unknown);
            intake.user = user;
            intake.places = HashMap::new();
            let parts = intake.databases.len().div_ceil(PART);
            let (reply, epoch) = (intake.reply.clone(), intake.epoch.take());
            intake.group = Some(self.databases.name_lists.add_group(key, reply, epoch, parts));
            self.databases.name_lists.put_back(key, Work::Intake(intake));
            return cost;
        };
        let rest = intake.databases.split_off(intake.databases.len().min(PART));
        let part = std::mem::replace(&mut intake.databases, rest);
        let cost = part.len();
        // What was kept for it is for its parts, and in between for no other session.
        let user = intake.user.take().unwrap_or_default();
        self.databases.access.give_up_reserve(&user, intake.unknown);
        let before = self.databases.access.awaited();
        if let Err(message) = self.decide(key, Reply::Silent, part, (None, Some(group)), now) {
            // Other sessions of the user were quicker. The parts that wait find no group.
            self.databases.name_lists.release(intake.databases);
            if let Some(group) = self.databases.name_lists.take_group(group) {
                self.refuse_subscribe(key, &group.reply, message, now);
            }
        } else if !intake.databases.is_empty() {
            intake.unknown = intake.unknown.saturating_sub(self.databases.access.awaited() - before);
            self.databases.access.reserve(&user, intake.unknown);
            intake.user = Some(user);
            self.databases.name_lists.put_back(key, Work::Intake(intake));
        }
        cost
    }

    /// Takes a part of a group that could not be decided in time: the request fails.
    pub(super) fn arrive_late(&mut self, group: Key, names: Named, name: &str, message: &str) {
        if let Some(group) = self.databases.name_lists.take_group(group)
            && let Some(session) = self.sessions.table.get_mut(group.session)
        {
            session.answer_error(&group.reply, name, message);
            self.sessions.dirty.push(group.session);
        }
        self.databases.name_lists.release(names);
    }

    /// Subscribes to some names of a group and compares them; answers when all are done. Nothing is written to the session
    /// meanwhile: what changes is in the answer, or notified after it.
    fn complete_some(&mut self, key: Key, group: Key) -> usize {
        self.databases.name_lists.withhold(key);
        let Some(its) = self.databases.name_lists.group_mut(group) else { return 0 };
        let cost = if its.error.is_some() {
            let from = its.added.len().saturating_sub(SLICE);
            let undone = its.added.split_off(from);
            for database in &undone {
                self.databases.subscriptions.unsubscribe(key.index, *database);
            }
            undone.len()
        } else {
            self.complete_slice(key, group)
        };
        let Some(its) = self.databases.name_lists.group_mut(group) else { return cost };
        let is_over = if its.error.is_some() { its.added.is_empty() } else { its.completed == its.names.len() };
        if !is_over {
            self.databases.name_lists.put_back(key, Work::Complete(group));
            return cost;
        }
        self.recount_user(key);
        if let Some(group) = self.databases.name_lists.take_group(group) {
            self.answer_group(key, group);
        }
        self.databases.name_lists.show(key);
        self.sessions.dirty.push(key);
        cost
    }

    fn complete_slice(&mut self, key: Key, group: Key) -> usize {
        let Self {
            sessions: Sessions { table: sessions, user_totals, .. },
            databases,
            context: Context { limits, .. },
            ..
        } = self;
        let Databases { subscriptions, positions, access, name_lists, .. } = databases;
        let Some(its) = name_lists.group_mut(group) else { return 0 };
        let Some(session) = sessions.get(key) else { return 0 };
        let Some((user, roles)) = session.user() else { return 0 };
        let slice = its.names[its.completed..].iter().take(SLICE);
        let new = slice.clone().filter(|(database, _)| !subscriptions.has(key.index, *database)).count();
        let count = subscriptions.count(key.index) + new;
        if let Some(limit) = user_totals.exceeded(key, user, count).filter(|_| new > 0) {
            self.context.metrics.rejected_subscriptions += 1;
            its.error = Some((LIMIT_ERROR, too_many_of_user(limit)));
            return 0;
        }
        let foreign = its.epoch.is_some() && its.epoch.as_deref() != positions.epoch();
        let is_json = session.dialect() == Dialect::Json;
        let mut done = 0;
        for (database, given) in slice {
            done += 1;
            match access.decide(*database, user, roles, subscriptions) {
                Decision::Allowed => {}
                Decision::Unknown => access.ask(*database, subscriptions),
                Decision::Forbidden(why) => {
                    its.refused.push((subscriptions.name(*database).into(), why));
                    continue;
                }
            }
            match subscriptions.subscribe(key.index, *database) {
                Ok(true) => its.added.push(*database),
                Ok(false) => {}
                Err(TooManySubscriptions) => {
                    its.error = Some((LIMIT_ERROR, too_many(limits.subscriptions)));
                    break;
                }
            }
            positions.want(*database, Some(key), subscriptions);
            let position = access.shown(*database, subscriptions);
            its.stand.push((*database, position));
            if given.is_given() && (foreign || given.differs(position, subscriptions.starts)) {
                its.changed.push(*database);
                if !is_json {
                    subscriptions.mark_for(key.index, *database, ChangeKind::Updated);
                }
            }
        }
        its.completed += done;
        self.recount_user(key);
        done
    }

    fn answer_group(&mut self, key: Key, group: Group) {
        let Group { reply, error, mut stand, mut changed, mut refused, .. } = group;
        let Self { sessions: Sessions { table: sessions, .. }, databases, .. } = self;
        let Databases { subscriptions, positions, .. } = databases;
        let Some(session) = sessions.get_mut(key) else { return };
        if let Some((name, message)) = error {
            return session.answer_error(&reply, name, &message);
        }
        // Whoever lost the right to read one since it was subscribed to is not subscribed any more.
        let is_subscribed = |database: &DatabaseId| subscriptions.has(key.index, *database);
        let lost = stand.iter().filter(|(database, _)| !is_subscribed(database));
        refused.extend(lost.map(|(database, _)| (subscriptions.name(*database).into(), Refusal::NotReader)));
        stand.retain(|(database, _)| is_subscribed(database));
        changed.retain(is_subscribed);
        if stand.is_empty() && !refused.is_empty() {
            return session.answer_forbidden(&reply, &refused);
        }
        let stand: Vec<_> =
            stand.iter().map(|(database, position)| (subscriptions.name(*database), *position)).collect();
        let names: Vec<_> = changed.iter().map(|database| subscriptions.name(*database)).collect();
        session.answer_subscribed(&reply, Some(&stand), &names, positions.epoch(), &refused);
    }

    /// Reads some names of an `unsubscribe`, or ends some of its subscriptions.
    fn remove_some(&mut self, key: Key, mut removal: Box<Removal>) -> usize {
        let Removal { names, read, databases, left, reply } = &mut *removal;
        let Some(left) = left else {
            let from = *read;
            for _ in 0..SLICE {
                let Some((name, _)) = names.get(*read) else { break };
                *read += 1;
                // What is not kept nobody subscribes to or waits for.
                if let Some(database) = self.databases.subscriptions.find(name)
                    && databases.insert(database)
                {
                    self.databases.subscriptions.hold_id(database);
                }
            }
            let cost = *read - from;
            if *read == names.len() {
                // At once, so that none of them is subscribed to meanwhile; it takes a millisecond for 10,000 names.
                let databases = std::mem::take(databases);
                self.withdraw(key, &databases);
                *left = Some(databases.into_iter().collect());
            }
            self.databases.name_lists.put_back(key, Work::Remove(removal));
            return cost;
        };
        let ended = left.split_off(left.len().saturating_sub(SLICE));
        for database in &ended {
            self.databases.subscriptions.unsubscribe(key.index, *database);
            self.databases.access.release(*database, &mut self.databases.subscriptions);
        }
        if left.is_empty() {
            let reply = reply.clone();
            self.answer_unsubscribed(key, &reply);
        } else {
            self.databases.name_lists.put_back(key, Work::Remove(removal));
        }
        ended.len()
    }

    /// Ends all subscriptions of a session, those too that were about to be.
    pub(super) fn leave(&mut self, key: Key) {
        let mut replies = self.cancel_subscribes(key);
        let cancelled = self.databases.name_lists.cancel(key);
        self.give_up_reserves(&cancelled);
        replies.extend(cancelled.replies);
        if self.databases.subscriptions.count(key.index) > SLICE {
            self.databases.name_lists.withhold(key);
            self.databases.name_lists.push(key, Work::Leave);
        } else {
            self.end_subscriptions(key.index, SLICE);
        }
        self.recount_user(key);
        self.databases.name_lists.resume_later(key);
        for reply in replies {
            if let Some(session) = self.sessions.table.get_mut(key).filter(|session| session.is_active()) {
                session.answer_error(&reply, "NotAuthenticatedError", "somebody else has logged in");
            }
        }
    }

    /// Gives the room back that was kept for cancelled lists.
    pub(super) fn give_up_reserves(&mut self, cancelled: &Cancelled) {
        for (user, count) in &cancelled.reserved {
            self.databases.access.give_up_reserve(user, *count);
        }
    }

    /// Ends some subscriptions of a session that goes on.
    fn leave_some(&mut self, key: Key) -> usize {
        self.end_subscriptions(key.index, SLICE);
        if self.databases.subscriptions.count(key.index) > 0 {
            self.databases.name_lists.put_back(key, Work::Leave);
        } else {
            self.databases.name_lists.show(key);
            self.recount_user(key);
        }
        SLICE
    }

    /// Returns whether nothing is to be written to a session yet.
    pub(super) fn is_withheld(&self, key: Key) -> bool {
        self.databases.name_lists.is_withheld(key) || self.databases.access.is_withheld(key)
    }
}
