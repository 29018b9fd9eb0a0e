//! Subscribing, with the positions that tell what a client missed; and what is done when changes may have been lost.

use std::collections::{HashSet, VecDeque};

use super::{Context, Databases, Purpose, Queue, Server, Sessions};
use crate::state::access::Decision;
use crate::state::admin_access::AdminUse;
use crate::state::feed::Continuity;
use crate::state::metrics::CloseReason;
use crate::state::name_lists::{Intake, Removal, SLICE, Work};
use crate::state::pool::{Answer, Owner};
use crate::state::positions::{Batch, Named, Pending};
use crate::state::restarts::Finding;
use crate::state::resync::{Policy, StaggeredResync};
use crate::state::session::{Dialect, Reply, Session};
use crate::state::subscriptions::{DatabaseId, Subscriptions, TooManySubscriptions};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::howler_v1::Refused;
use crate::wire::names::NameList;
use crate::wire::positions::{self, Given};

/// Names of `subscribe` requests that are answered in one turn, about.
const ANSWERED_A_TURN: usize = 2_000;
/// Databases whose subscribers are notified in one turn because it is not known whether they changed.
const NOTIFIED_A_TURN: usize = 2_000;
/// A request costs at least as much as this many names.
const ANSWER_COST: usize = 8;
/// Time between questions for the epoch that were not answered, in milliseconds.
const EPOCH_RETRY: Millis = 1_000;
/// Why changes may have been lost, where nothing better is known.
const AWAY: &str = "CouchDB was away";

impl Server {
    /// Returns whether a `subscribe` may come in; else it is answered.
    pub(super) fn may_subscribe(&mut self, key: Key, reply: &Reply, names: &NameList, now: Millis) -> bool {
        let waiting = self.databases.positions.pending_requests(key) + self.databases.access.pending_requests(key);
        if waiting + self.databases.name_lists.pending_requests(key) >= self.context.limits.requests {
            self.close_session(key, CloseReason::TooManyRequests, now);
            return false;
        }
        let longest = self.context.limits.name;
        if names.longest() > longest {
            self.refuse_subscribe(key, reply, &format!("a database name is longer than {longest} bytes"), now);
            return false;
        }
        if let Some(retry_after) = self.memory_rejection() {
            if let Some(session) = self.sessions.table.get_mut(key) {
                session.answer_unavailable(reply, OUT_OF_MEMORY, retry_after);
                self.sessions.dirty.push(key);
            }
            return false;
        }
        true
    }

    /// Reads names of a `subscribe` into its databases, each once and held, at most so many names; returns whether
    /// all of them are read, or too many of them are new.
    pub(super) fn read_names(&mut self, key: Key, intake: &mut Intake, most: usize) -> bool {
        let Intake { names, read, databases, places, new, unknown, .. } = intake;
        let Some((user, roles)) = self.sessions.table.get(key).and_then(Session::user) else { return true };
        for _ in 0..most {
            let Some((name, given)) = names.get(*read) else { return true };
            *read += 1;
            let database = self.databases.subscriptions.hold(name);
            if let Some(place) = places.get(&database) {
                // The last one counts, as in any JSON object.
                let (_, earlier): &mut (_, Given) = &mut databases[*place];
                *earlier = given;
                self.databases.subscriptions.release(database);
                continue;
            }
            places.insert(database, databases.len());
            databases.push((database, given));
            *new += usize::from(!self.databases.subscriptions.has(key.index, database));
            let decision = self.databases.access.decide(database, user, roles, &self.databases.subscriptions);
            *unknown += usize::from(decision == Decision::Unknown);
            if *new > self.context.limits.subscriptions {
                return true;
            }
        }
        *read == names.len()
    }

    /// Returns whether a session may have so many more subscriptions; else its request is refused.
    pub(super) fn has_room_for(&mut self, key: Key, reply: &Reply, new: usize, now: Millis) -> bool {
        let most = self.context.limits.subscriptions;
        let waiting = self.databases.positions.pending_names(key) + self.databases.access.pending_names(key);
        let pending = waiting + self.databases.name_lists.pending_names(key);
        if new + pending > 0 && self.databases.subscriptions.count(key.index) + new + pending > most {
            self.refuse_subscribe(key, reply, &too_many(most), now);
            return false;
        }
        if let Some(limit) = self.user_limit_exceeded(key, new + pending) {
            self.refuse_subscribe(key, reply, &too_many_of_user(limit), now);
            return false;
        }
        true
    }

    /// Ends the holds of names that a request does not need any more, and forgets what is known of databases that nobody
    /// else needs.
    pub(super) fn release_all(&mut self, names: Named) {
        for (database, _) in names {
            self.databases.access.release(database, &mut self.databases.subscriptions);
        }
    }

    /// Returns the limit of subscriptions of a user when so many more for a session exceed it.
    pub(super) fn user_limit_exceeded(&self, key: Key, more: usize) -> Option<usize> {
        let session = self.sessions.table.get(key).filter(|_| more > 0)?;
        let count = self.databases.subscriptions.count(key.index) + more;
        self.sessions.user_totals.exceeded(key, session.user_name()?, count)
    }

    /// Takes note of how many subscriptions a session has now, for the total of its user.
    pub(super) fn recount_user(&mut self, key: Key) {
        let Some(session) = self.sessions.table.get(key) else { return };
        self.sessions.user_totals.recount(key, session.user_name(), self.databases.subscriptions.count(key.index));
    }

    /// Tells a client that it asks for more than it may have; one that goes on all the same is closed.
    pub(super) fn refuse_subscribe(&mut self, key: Key, reply: &Reply, message: &str, now: Millis) {
        self.context.metrics.rejected_subscriptions += 1;
        let Some(session) = self.sessions.table.get_mut(key) else { return };
        if session.answer_limit(reply, message) {
            self.close_session(key, CloseReason::TooManySubscriptions, now);
        }
    }

    /// A session subscribes to what is decided: at once, or when the positions that it is to be compared with are known.
    pub(super) fn subscribe_decided(
        &mut self,
        key: Key,
        reply: Reply,
        mut names: Named,
        (epoch, group): (Option<Box<str>>, Option<Key>),
        now: Millis,
    ) {
        let Some(session) = self.sessions.table.get_mut(key) else { return self.release_all(names) };
        if session.dialect() != Dialect::Json {
            for (database, given) in &mut names {
                *given = session.user_name().map_or(Given::Nothing, |user| {
                    let Databases { catch_up, departures, subscriptions, .. } = &mut self.databases;
                    match catch_up.recall(user, *database, now) {
                        Some(position) => position.map_or(Given::Foreign, Given::At),
                        None if departures.may_subscribe(user, *database, subscriptions) => Given::Foreign,
                        None => Given::Nothing,
                    }
                });
            }
        }
        let waits = session.dialect() == Dialect::Json || names.iter().any(|(_, given)| given.is_given());
        let mut pending = Pending::new(key, reply, names, epoch);
        pending.group = group;
        if waits {
            self.databases.positions.wait(pending, now, &mut self.databases.subscriptions);
            self.answer_ready();
        } else {
            self.answer_subscription(pending);
        }
    }

    /// Answers the `subscribe` requests whose positions are known: in one turn some of them.
    pub(super) fn answer_ready(&mut self) {
        while self.databases.answered_this_turn < ANSWERED_A_TURN
            && let Some(pending) = self.databases.positions.next_ready()
        {
            self.answer_subscription(pending);
        }
    }

    fn answer_subscription(&mut self, pending: Pending) {
        self.databases.answered_this_turn += pending.names.len().max(ANSWER_COST);
        if let Some(group) = pending.group {
            return self.databases.name_lists.arrive(group, pending.names);
        }
        self.complete_subscription(&pending);
        self.sessions.dirty.push(pending.session);
        self.release_all(pending.names);
    }

    /// Subscribes and compares in one step: what changes from here on is told after this answer.
    fn complete_subscription(&mut self, pending: &Pending) {
        let Pending { session: key, reply, names, epoch, .. } = pending;
        let key = *key;
        // Other sessions of the user may have subscribed while the request waited.
        let new = names.iter().filter(|(database, _)| !self.databases.subscriptions.has(key.index, *database)).count();
        if let Some(limit) = self.user_limit_exceeded(key, new) {
            self.context.metrics.rejected_subscriptions += 1;
            let Some(session) = self.sessions.table.get_mut(key) else { return };
            return session.answer_error(reply, LIMIT_ERROR, &too_many_of_user(limit));
        }
        let Self { sessions: Sessions { table: sessions, .. }, databases, context: Context { limits, .. }, .. } = self;
        let Databases { subscriptions, positions, access, .. } = databases;
        let Some(session) = sessions.get_mut(key) else { return };
        let Some((user, roles)) = session.user() else { return };
        // Decided here too: who may read what can have changed while the request waited.
        let (mut refused, mut unknown): (Vec<Refused>, _) = (Vec::new(), Vec::new());
        let mut names: Vec<_> = names.iter().collect();
        names.retain(|(database, _)| {
            let why = match access.decide(*database, user, roles, subscriptions) {
                Decision::Allowed => return true,
                Decision::Forbidden(why) => why,
                Decision::Unknown => {
                    unknown.push(*database);
                    return true;
                }
            };
            refused.push((subscriptions.name(*database).into(), why));
            false
        });
        if names.is_empty() && !refused.is_empty() {
            return session.answer_forbidden(reply, &refused);
        }
        // Subscribed to as if they were missing; they are reconsidered once it is known who may read them.
        for database in unknown {
            access.ask(database, subscriptions);
        }
        // All or nothing.
        let mut added = Vec::new();
        for (database, _) in &names {
            match subscriptions.subscribe(key.index, *database) {
                Ok(true) => added.push(*database),
                Ok(false) => {}
                Err(TooManySubscriptions) => {
                    for database in added {
                        subscriptions.unsubscribe(key.index, database);
                    }
                    return session.answer_error(reply, LIMIT_ERROR, &too_many(limits.subscriptions));
                }
            }
        }
        // Compared here and not before: a server that has just started learns its epoch while a request waits.
        let foreign = epoch.is_some() && epoch.as_deref() != positions.epoch();
        let mut stand = Vec::with_capacity(names.len());
        let mut changed = Vec::new();
        for (database, given) in &names {
            positions.want(*database, Some(key), subscriptions);
            let position = access.shown(*database, subscriptions);
            stand.push((*database, position));
            // Where no position is known, a database that was known at one counts as changed.
            if given.is_given() && (foreign || given.differs(position, subscriptions.starts)) {
                changed.push(*database);
            }
        }
        let stand: Vec<_> =
            stand.iter().map(|(database, position)| (subscriptions.name(*database), *position)).collect();
        let names: Vec<_> = changed.iter().map(|database| subscriptions.name(*database)).collect();
        session.answer_subscribed(reply, Some(&stand), &names, positions.epoch(), &refused);
        if session.dialect() != Dialect::Json {
            for database in changed {
                subscriptions.mark_for(key.index, database, ChangeKind::Updated);
            }
        }
        self.recount_user(key);
    }

    pub(super) fn unsubscribe(&mut self, key: Key, reply: Reply, names: NameList) {
        if names.len() > SLICE {
            return self.databases.name_lists.push(key, Work::Remove(Box::new(Removal::new(reply, names))));
        }
        self.databases.names_this_turn += names.len();
        // What is not kept nobody subscribes to or waits for.
        let databases: HashSet<_> =
            names.iter().filter_map(|(name, _)| self.databases.subscriptions.find(name)).collect();
        for database in &databases {
            self.databases.subscriptions.unsubscribe(key.index, *database);
        }
        self.withdraw(key, &databases);
        for database in &databases {
            self.databases.access.drop_unused(*database, &mut self.databases.subscriptions);
        }
        self.answer_unsubscribed(key, &reply);
    }

    /// Withdraws databases from whatever a session waits for.
    pub(super) fn withdraw(&mut self, key: Key, databases: &HashSet<DatabaseId>) {
        self.databases.access.withdraw(key, databases, &mut self.databases.subscriptions);
        self.databases.positions.withdraw(key, databases, &mut self.databases.subscriptions);
        self.databases.name_lists.withdraw(key, databases);
    }

    pub(super) fn answer_unsubscribed(&mut self, key: Key, reply: &Reply) {
        self.answer_ready();
        self.recount_user(key);
        if let Some(session) = self.sessions.table.get_mut(key) {
            session.answer_ok(reply);
        }
    }

    /// Forgets what is known of databases that nobody needs any more.
    fn drop_unused(&mut self, databases: Vec<DatabaseId>) {
        for database in databases {
            self.databases.access.drop_unused(database, &mut self.databases.subscriptions);
        }
    }

    /// Takes the requests of a session back. Returns how each wanted to be answered.
    pub(super) fn cancel_subscribes(&mut self, key: Key) -> Vec<Reply> {
        let (mut replies, held) = self.databases.positions.cancel(key);
        self.databases.name_lists.release_databases(held);
        replies.extend(self.databases.access.cancel(key, &mut self.databases.subscriptions));
        replies
    }

    /// At the end of a turn: sends the look-ups that it asked for, all in as few requests as can be.
    pub fn send_lookups(&mut self, now: Millis) {
        self.run_access(now);
        self.work_on_lists(now);
        let dropped = self.databases.positions.sweep(&mut self.databases.subscriptions);
        self.drop_unused(dropped);
        self.databases.positions.linger(now, &mut self.databases.subscriptions);
        while self.may_ask(AdminUse::Lookup, now)
            && let Some(batch) = self.databases.positions.next_batch(&mut self.databases.subscriptions)
        {
            let names = batch.databases.iter().map(|database| self.databases.subscriptions.name(*database));
            let request = self.upstream.requests.look_up(names);
            self.context.metrics.lookups += 1;
            self.look_up(request, Purpose::Lookup(batch), now);
        }
    }

    pub(super) fn look_up(&mut self, request: Vec<u8>, purpose: Purpose, now: Millis) {
        let submitted = self.ask_couchdb(Queue::Lookups, Owner::Server, request, purpose, now);
        debug_assert!(submitted.is_some(), "there are never more than a few");
        self.perform_pool_actions(Queue::Lookups, now);
    }

    /// CouchDB answered a look-up, or did not.
    pub(super) fn handle_lookup(&mut self, batch: Batch, answer: Option<&Answer>, now: Millis) {
        let body = answer.filter(|answer| answer.status == 200).map(|answer| &*answer.body);
        // The look-up has kept them, also those that nobody needs any more.
        let looked_up = if self.databases.access.is_restricted() { batch.databases.clone() } else { Vec::new() };
        let Self { databases, context: Context { jitter, .. }, .. } = self;
        let Databases { positions, subscriptions, woken, access, .. } = databases;
        // What the feed has missed is told as a line is: to those who may read the database.
        let may_tell = |database, kind, subscriptions: &Subscriptions| {
            access.handle_line(database, kind, true, None, subscriptions)
        };
        if !positions.handle_lookup_if(batch, body, (now, jitter), subscriptions, woken, may_tell) {
            self.context.metrics.failed_lookups += 1;
            let status = answer.map(|answer| answer.status);
            log::debug!("The positions of databases could not be looked up: status {status:?}.");
        }
        self.drop_unused(looked_up);
        self.wake();
        self.answer_ready();
    }

    /// Marked sessions are flushed at the end of the turn.
    pub(super) fn wake(&mut self) {
        for index in self.databases.woken.drain(..) {
            self.sessions.dirty.extend(self.sessions.table.key_at(index));
        }
    }

    /// Where the first stream starts is known. Who subscribed before that may have missed something.
    pub(super) fn handle_pinned(&mut self) {
        if !self.databases.followed {
            let unknown = self.databases.positions.handle_doubt(0, &mut self.databases.subscriptions);
            self.notify_later(unknown);
        }
    }

    /// Has the subscribers of databases notified, over the next turns where there are many.
    fn notify_later(&mut self, databases: Vec<DatabaseId>) {
        for database in &databases {
            self.databases.subscriptions.hold_id(*database);
        }
        self.databases.unnotified.extend(databases);
        self.notify_some();
    }

    /// Goes on with [`Self::notify_later`]: in one turn with some databases.
    pub(super) fn notify_some(&mut self) {
        for _ in 0..NOTIFIED_A_TURN {
            let Some(database) = self.databases.unnotified.pop_front() else {
                self.databases.unnotified = VecDeque::new();
                break;
            };
            self.databases.subscriptions.mark(database, ChangeKind::Updated, &mut self.databases.woken);
            self.databases.subscriptions.release(database);
        }
        self.wake();
    }

    /// The feed missed something after a moment, which shows in the positions; where one is not known, the database
    /// counts as changed.
    pub(super) fn handle_gap(&mut self, followed_until: Millis, now: Millis) {
        let unknown = self.databases.positions.handle_doubt(followed_until, &mut self.databases.subscriptions);
        if self.databases.positions.are_kept() {
            self.notify_later(unknown);
        } else if self.databases.resync != Policy::Off {
            self.start_wave("the feed of changes has a gap", now);
        }
    }

    /// Changes are followed: from where they were, or with something missing in between.
    pub(super) fn handle_opened(&mut self, continuity: Continuity, now: Millis) {
        self.databases.restarts.handle_opened(now);
        // No position is given before it is known when CouchDB started, unless that is not to be known.
        if self.databases.asks_epoch && self.databases.restarts.is_settled() {
            self.ask_epoch(now);
        }
        if continuity != Continuity::Whole {
            self.handle_gap(self.upstream.feed.followed_until(), now);
        }
        let lost = match continuity {
            Continuity::Whole | Continuity::Gap => None,
            Continuity::Doubtful if self.databases.restarts.suspect(now) => None,
            Continuity::Doubtful => Some(AWAY),
            Continuity::Unrecorded => Some("CouchDB did not record changes for a while"),
        };
        match (self.databases.resync, lost) {
            (Policy::Off, _) | (Policy::Lost, None) => {}
            (_, Some(reason)) => {
                self.doubt_positions();
                self.start_wave(reason, now);
            }
            (Policy::Always, None) if self.databases.followed => {
                self.start_wave("the feed of changes was interrupted", now);
            }
            (Policy::Always, None) => {}
        }
        self.databases.followed = true;
        self.plan_recording(now);
    }

    /// Events may be lost, which no start of CouchDB shows: clients that are away, or go before they are told, are told
    /// when they come back.
    fn doubt_positions(&mut self) {
        let doubt = self.context.jitter.below(u64::from(u32::MAX));
        self.databases.subscriptions.doubt(u32::try_from(doubt).expect("below that"));
    }

    /// CouchDB said when it started, or that it does not say.
    pub(super) fn handle_finding(&mut self, finding: Finding, now: Millis) {
        self.databases.subscriptions.starts = self.databases.restarts.starts();
        let is_suspected = self.databases.restarts.take_suspicion();
        let reason = match finding {
            // Positions from before carry another start: clients that are away are told when they come back.
            Finding::Restarted => Some("CouchDB restarted"),
            Finding::Unknown if is_suspected && self.databases.resync != Policy::Off => {
                self.doubt_positions();
                Some(AWAY)
            }
            Finding::First | Finding::Continuous | Finding::Unknown => None,
        };
        // With the other policies clients were told when the feed was opened, or are not to be.
        if let (Some(reason), Policy::Lost) = (reason, self.databases.resync) {
            self.start_wave(reason, now);
        }
        if self.databases.asks_epoch
            && self.databases.positions.epoch().is_none()
            && self.databases.positions.are_kept()
        {
            self.ask_epoch(now);
        }
    }

    pub(super) fn ask_epoch(&mut self, now: Millis) {
        if !self.may_ask(AdminUse::Lookup, now) {
            self.databases.epoch_retry = Some(now + EPOCH_RETRY);
            return;
        }
        self.databases.epoch_retry = None;
        let request = self.upstream.requests.epoch();
        self.look_up(request, Purpose::Epoch, now);
    }

    pub(super) fn retry_epoch(&mut self, now: Millis) {
        if self.databases.epoch_retry.is_some_and(|at| at <= now) {
            self.ask_epoch(now);
        }
    }

    /// CouchDB said in what epoch positions are, or did not.
    pub(super) fn handle_epoch(&mut self, answer: Option<&Answer>, now: Millis) {
        let body = answer.filter(|answer| answer.status == 200);
        let Some(epoch) = body.and_then(|answer| positions::read_epoch(&answer.body)) else {
            // Without the feed, its next start asks.
            self.databases.epoch_retry = self.upstream.feed.is_streaming().then_some(now + EPOCH_RETRY);
            return;
        };
        let other = self.databases.positions.handle_epoch(epoch, &mut self.databases.subscriptions);
        self.answer_ready();
        if other {
            self.databases.catch_up.doubt();
        }
        if other && self.databases.resync == Policy::Off {
            for key in self.sessions.table.keys().collect::<Vec<_>>() {
                self.say_hello_again(key);
            }
        } else if other {
            if let Some(more) = self.databases.epoch_log.pass(now) {
                log::warn!("_global_changes is not the database that it was: clients are told to sync anew{more}.");
            }
            self.start_wave("changes are recorded anew", now);
            if let Some(pending_resync) = &mut self.databases.pending_resync {
                pending_resync.other_epoch = true;
            }
        }
    }

    fn say_hello_again(&mut self, key: Key) {
        let epoch = self.databases.positions.epoch();
        if let Some(session) = self.sessions.table.get_mut(key).filter(|session| session.dialect() == Dialect::Json) {
            session.send_hello(epoch);
            self.sessions.dirty.push(key);
        }
    }

    fn start_wave(&mut self, reason: &'static str, now: Millis) {
        let sessions: Vec<_> = self.sessions.table.keys().collect();
        let (level, more) = self.databases.resync_log.of(reason).level(log::Level::Info, now);
        log::log!(level, "{} clients are told that changes may have been lost: {reason}{more}.", sessions.len());
        self.context.metrics.resyncs += 1;
        // Those whom an earlier pending_resync has not reached yet are in this one.
        let other_epoch = self.databases.pending_resync.take().is_some_and(|pending_resync| pending_resync.other_epoch);
        let mut pending_resync = StaggeredResync::new(reason, sessions, now, &mut self.context.jitter);
        pending_resync.other_epoch = other_epoch;
        self.databases.pending_resync = Some(pending_resync);
    }

    /// Tells the sessions whose turn it is that changes may have been lost.
    pub(super) fn advance_wave(&mut self, now: Millis) {
        let Some(mut pending_resync) = self
            .databases
            .pending_resync
            .take_if(|pending_resync| pending_resync.poll_timeout().is_none_or(|at| at <= now))
        else {
            return;
        };
        let (reason, other_epoch) = (pending_resync.reason, pending_resync.other_epoch);
        for key in pending_resync.next(now) {
            self.tell_resync(*key, reason, other_epoch);
        }
        self.databases.last_resync_at = Some(now);
        self.databases.pending_resync = pending_resync.poll_timeout().is_some().then_some(pending_resync);
    }

    fn tell_resync(&mut self, key: Key, reason: &str, other_epoch: bool) {
        if other_epoch {
            self.say_hello_again(key);
        }
        let Some(session) = self.sessions.table.get_mut(key).filter(|session| session.is_active()) else { return };
        match session.dialect() {
            Dialect::Json => session.send_resync(reason),
            Dialect::SocketIo(_) => self.databases.subscriptions.mark_all(key.index),
        }
        self.sessions.dirty.push(key);
    }
}

/// The error of a request beyond a limit.
pub(super) const LIMIT_ERROR: &str = "LimitError";
/// What a client is told that may not subscribe for want of memory.
const OUT_OF_MEMORY: &str = "The server uses too much memory at the moment.";

pub(super) fn too_many_of_user(most: usize) -> String {
    format!("a user may have {most} subscriptions over all sessions and no more")
}

pub(super) fn too_many(most: usize) -> String {
    format!("a client may have {most} subscriptions and no more")
}
