//! Lists of names that take more than a turn, the work for each session in turn, and messages that
//! wait for it.

use std::collections::HashMap;

use super::Databases;
use super::errors::{LIMIT_ERROR, too_many, too_many_of_user};
use super::request::Request;
use crate::server::context::Context;
use crate::state::access::Decision;
use crate::state::name_lists::{Cancelled, Group, Intake, PART, Removal, RemovalStep, SLICE, Work};
use crate::state::positions::RequestedDatabases;
use crate::state::session::{Dialect, Reply, Session};
use crate::state::subscriptions::{DatabaseId, TooManySubscriptions};
use crate::state::table::Key;
use crate::state::user_quotas::UserQuotas;
use crate::wire::couchdb::ChangeKind;
use crate::wire::security::Refusal;

/// Databases of finished lists whose holds end in one turn.
const RELEASED_A_TURN: usize = 2_000;

impl Databases {
    /// Returns whether work for a session is in progress: its further messages wait.
    pub(crate) fn is_busy(&self, key: Key) -> bool {
        self.name_lists.is_busy(key)
    }

    /// Queues a message behind the work for its session. Returns false when the queue would exceed
    /// `most` bytes.
    pub(crate) fn defer(&mut self, key: Key, text: &str, most: usize) -> bool {
        self.name_lists.defer(key, text, most)
    }

    /// Queues a long list.
    pub(crate) fn queue_list(&mut self, key: Key, intake: Intake) {
        self.name_lists.push(key, Work::Intake(Box::new(intake)));
    }

    /// Takes the next work for a session.
    pub(crate) fn next_work(&mut self) -> Option<(Key, Work)> {
        self.name_lists.pop()
    }

    /// Ends holds of finished lists, some in each turn.
    pub(crate) fn release_finished(&mut self) {
        for _ in 0..RELEASED_A_TURN {
            let Some(database) = self.name_lists.next_released() else { break };
            self.access.release(database, &mut self.subscriptions);
        }
    }

    /// Returns the next message that waited for a session's work.
    pub(crate) fn next_deferred(&mut self, key: Key) -> Option<Box<str>> {
        self.name_lists.next_message(key)
    }

    /// Plans the next message that waits, or ends the work for a session.
    pub(crate) fn resume(&mut self, key: Key) {
        self.name_lists.resume(key);
    }

    /// Reads some names of a list. Returns the list once all are read, and the cost.
    pub(crate) fn read_some(
        &mut self,
        session: (Key, Option<&Session>),
        mut intake: Box<Intake>,
        context: &Context,
    ) -> (Option<Box<Intake>>, usize) {
        let (key, session) = session;
        let before = intake.read;
        let is_read = session.is_none_or(|session| self.read_names((key, session), &mut intake, SLICE, context));
        let cost = intake.read - before;
        if is_read {
            return (Some(intake), cost);
        }
        self.name_lists.put_back(key, Work::Intake(intake));
        (None, cost)
    }

    /// Splits a list into parts that wait for access and positions one by one, and reserves room
    /// for them. Returns false when too many databases of the user are undecided.
    pub(crate) fn split(&mut self, key: Key, session: Option<&Session>, intake: &mut Box<Intake>) -> bool {
        let user = session.and_then(Session::user_name);
        if user.is_none_or(|user| !self.access.has_room(user, intake.unknown)) {
            self.name_lists.release(std::mem::take(&mut intake.databases));
            return false;
        }
        let user: Option<Box<str>> = user.map(Into::into);
        self.access.reserve(user.as_deref().unwrap_or_default(), intake.unknown);
        intake.user = user;
        intake.places = HashMap::new();
        let parts = intake.databases.len().div_ceil(PART);
        let (reply, epoch) = (intake.reply.clone(), intake.epoch.take());
        intake.group = Some(self.name_lists.add_group(key, reply, epoch, parts));
        true
    }

    /// Queues a list again.
    pub(crate) fn put_back(&mut self, key: Key, intake: Box<Intake>) {
        self.name_lists.put_back(key, Work::Intake(intake));
    }

    /// Takes the next part of a list whose names are read, as a request of its own. Returns also
    /// the user, and how many questions about access wait. The room reserved for the list serves
    /// its parts, and no other session in between.
    pub(crate) fn next_part(&mut self, key: Key, intake: &mut Intake) -> Option<(Request, Box<str>, usize)> {
        let group = intake.group?;
        let rest = intake.databases.split_off(intake.databases.len().min(PART));
        let names = std::mem::replace(&mut intake.databases, rest);
        let user = intake.user.take().unwrap_or_default();
        self.access.release_reserved(&user, intake.unknown);
        let request = Request { session: key, reply: Reply::Silent, names, epoch: None, group: Some(group) };
        Some((request, user, self.access.awaited()))
    }

    /// Queues the rest of a list after a part of it. `awaited` is the number of questions before
    /// that part.
    pub(crate) fn queue_rest(&mut self, key: Key, mut intake: Box<Intake>, user: Box<str>, awaited: usize) {
        if intake.databases.is_empty() {
            return;
        }
        intake.unknown = intake.unknown.saturating_sub(self.access.awaited() - awaited);
        self.access.reserve(&user, intake.unknown);
        intake.user = Some(user);
        self.name_lists.put_back(key, Work::Intake(intake));
    }

    /// Ends the holds of names over the next turns.
    pub(crate) fn release_later(&mut self, names: RequestedDatabases) {
        self.name_lists.release(names);
    }

    /// Takes a list out, whose parts that wait are dropped when they arrive.
    pub(crate) fn take_group(&mut self, group: Key) -> Option<Group> {
        self.name_lists.take_group(group)
    }

    /// Subscribes to some names of a list and compares their positions. Nothing is written to the
    /// session meanwhile: changes are in the answer, or notified after it. Returns the list once it
    /// is done, and the cost.
    pub(crate) fn complete_some(
        &mut self,
        (key, session): (Key, Option<&Session>),
        group: Key,
        user_quotas: &UserQuotas,
        context: &mut Context,
    ) -> (Option<Group>, usize) {
        self.name_lists.pause_writes(key);
        let Some(list) = self.name_lists.group_mut(group) else { return (None, 0) };
        let cost = if list.error.is_some() {
            let from = list.added.len().saturating_sub(SLICE);
            let undone = list.added.split_off(from);
            for database in &undone {
                self.subscriptions.unsubscribe(key.index, *database);
            }
            undone.len()
        } else {
            session.map_or(0, |session| self.complete_slice((key, session), group, user_quotas, context))
        };
        let Some(list) = self.name_lists.group_mut(group) else { return (None, cost) };
        let is_over = if list.error.is_some() { list.added.is_empty() } else { list.completed == list.names.len() };
        if !is_over {
            self.name_lists.put_back(key, Work::Complete(group));
            return (None, cost);
        }
        (self.name_lists.finish_group(group), cost)
    }

    fn complete_slice(
        &mut self,
        (key, session): (Key, &Session),
        group: Key,
        user_quotas: &UserQuotas,
        context: &mut Context,
    ) -> usize {
        let Self { subscriptions, positions, access, name_lists, .. } = self;
        let Some(list) = name_lists.group_mut(group) else { return 0 };
        let Some((user, roles)) = session.user() else { return 0 };
        let slice = list.names[list.completed..].iter().take(SLICE);
        let new = slice.clone().filter(|(database, _)| !subscriptions.has(key.index, *database)).count();
        let count = subscriptions.count(key.index) + new;
        if let Some(limit) = user_quotas.exceeded(key, user, count).filter(|_| new > 0) {
            context.metrics.rejected_subscriptions += 1;
            list.error = Some((LIMIT_ERROR, too_many_of_user(limit)));
            return 0;
        }
        let foreign = list.epoch.is_some() && list.epoch.as_deref() != positions.epoch();
        let is_json = session.dialect() == Dialect::Json;
        let mut done = 0;
        for (database, given) in slice {
            done += 1;
            match access.decide(*database, user, roles, subscriptions) {
                Decision::Allowed => {}
                Decision::Unknown => access.queue_lookup(*database, subscriptions),
                Decision::Forbidden(why) => {
                    list.refused.push((subscriptions.name(*database).into(), why));
                    continue;
                }
            }
            match subscriptions.subscribe(key.index, *database) {
                Ok(true) => list.added.push(*database),
                Ok(false) => {}
                Err(TooManySubscriptions) => {
                    list.error = Some((LIMIT_ERROR, too_many(context.limits.subscriptions)));
                    break;
                }
            }
            positions.queue_lookup(*database, Some(key), subscriptions);
            let position = access.visible_position(*database, subscriptions);
            list.stand.push((*database, position));
            if given.is_given() && (foreign || given.differs(position, subscriptions.starts)) {
                list.changed.push(*database);
                if !is_json {
                    subscriptions.mark_for(key.index, *database, ChangeKind::Updated);
                }
            }
        }
        list.completed += done;
        done
    }

    /// Answers a list that is done, and lets its session be written to again.
    pub(crate) fn answer_group(&mut self, (key, session): (Key, Option<&mut Session>), group: Group) {
        self.name_lists.resume_writes(key);
        let Some(session) = session else { return };
        let Group { reply, error, mut stand, mut changed, mut refused, .. } = group;
        let (subscriptions, positions) = (&self.subscriptions, &self.positions);
        if let Some((name, message)) = error {
            return session.answer_error(&reply, name, &message);
        }
        // Databases that the user may no longer read have been unsubscribed since.
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

    /// Takes the next step of an `unsubscribe`. Returns the reply once it is done, and the cost.
    pub(crate) fn remove_some(&mut self, key: Key, mut removal: Box<Removal>) -> (Option<Reply>, usize) {
        let Removal { names, read, databases, step, reply } = &mut *removal;
        let cost = match step {
            RemovalStep::Read => {
                let from = *read;
                for _ in 0..SLICE {
                    let Some((name, _)) = names.get(*read) else { break };
                    *read += 1;
                    // Names that are not in memory have no subscribers, and no request waits for
                    // them.
                    if let Some(database) = self.subscriptions.find(name)
                        && databases.insert(database)
                    {
                        self.subscriptions.hold_id(database);
                    }
                }
                if *read == names.len() {
                    *step = RemovalStep::WithdrawUndecided(self.access.requests_of(key).collect());
                }
                *read - from
            }
            RemovalStep::WithdrawUndecided(requests) => {
                if let Some(request) = requests.pop_front() {
                    self.access.withdraw_from(request, databases, &mut self.subscriptions)
                } else {
                    self.access.drop_stale_lookups(key);
                    *step = RemovalStep::WithdrawPending(self.positions.requests_of(key).collect());
                    SLICE
                }
            }
            RemovalStep::WithdrawPending(requests) => {
                if let Some(request) = requests.pop_front() {
                    self.positions.withdraw_from(request, databases, &mut self.subscriptions)
                } else {
                    self.name_lists.withdraw(key, databases);
                    *step = RemovalStep::End(std::mem::take(databases).into_iter().collect());
                    SLICE
                }
            }
            RemovalStep::End(left) => {
                let ended = left.split_off(left.len().saturating_sub(SLICE));
                for database in &ended {
                    self.subscriptions.unsubscribe(key.index, *database);
                    self.access.release(*database, &mut self.subscriptions);
                }
                if left.is_empty() {
                    return (Some(reply.clone()), ended.len());
                }
                ended.len()
            }
        };
        self.name_lists.put_back(key, Work::Remove(removal));
        (None, cost)
    }

    /// Ends all subscriptions of a session that goes on, and cancels its requests. Returns how
    /// these are to be answered.
    pub(crate) fn unsubscribe_all(&mut self, key: Key) -> Vec<Reply> {
        let mut replies = self.cancel_subscribes(key);
        let cancelled = self.name_lists.cancel(key);
        self.give_up_reserves(&cancelled);
        replies.extend(cancelled.replies);
        if self.subscriptions.count(key.index) > SLICE {
            self.name_lists.pause_writes(key);
            self.name_lists.push(key, Work::Leave);
        } else {
            self.end_subscriptions(key.index, SLICE);
        }
        self.name_lists.resume_later(key);
        replies
    }

    /// Ends some subscriptions of a session that goes on. Returns the cost.
    pub(crate) fn unsubscribe_some(&mut self, key: Key) -> usize {
        self.end_subscriptions(key.index, SLICE);
        if self.subscriptions.count(key.index) > 0 {
            self.name_lists.put_back(key, Work::Leave);
        } else {
            self.name_lists.resume_writes(key);
        }
        SLICE
    }

    /// Cancels the work for a session that ends. Returns whether it was about to end its
    /// subscriptions.
    pub(crate) fn cancel_work(&mut self, key: Key) -> bool {
        let cancelled = self.name_lists.remove(key);
        self.give_up_reserves(&cancelled);
        cancelled.leaves
    }

    /// Gives up the room that was reserved for cancelled lists.
    fn give_up_reserves(&mut self, cancelled: &Cancelled) {
        for (user, count) in &cancelled.reserved {
            self.access.release_reserved(user, *count);
        }
    }
}
