//! `subscribe` and `unsubscribe`.
//!
//! ```text
//! read_names ──▶ decide ──▶ access unknown? waits for CouchDB's answer (access.rs)
//!                   │ known
//!                   ▼
//!                 admit ──▶ positions to compare with? waits for a lookup (positions.rs)
//!                   │ none
//!                   ▼
//!                complete ──▶ subscribed, compared and answered in one step
//! ```

use std::collections::HashSet;

use super::Databases;
use super::errors::{LIMIT_ERROR, TOO_MANY_UNDECIDED, too_many, too_many_of_user};
use super::request::Request;
use crate::server::context::Context;
use crate::state::access::{Access, Decision};
use crate::state::name_lists::{Intake, Removal, SLICE, Work};
use crate::state::positions::{Pending, RequestedDatabases};
use crate::state::session::{Dialect, Reply, Session};
use crate::state::subscriptions::{DatabaseId, TooManySubscriptions};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::state::user_quotas::UserQuotas;
use crate::wire::couchdb::ChangeKind;
use crate::wire::howler_v1::Refused;
use crate::wire::name_list::NameList;
use crate::wire::positions::{Given, Position};

/// Names of `subscribe` requests that are answered in one turn, roughly.
const ANSWERED_A_TURN: usize = 2_000;
/// A request costs at least as much as this many names.
const ANSWER_COST: usize = 8;
/// Bytes of a message whose parsing takes as long as the work for one name.
const BYTES_A_NAME: usize = 256;

/// A database and its position, if that is known.
type Standing = (DatabaseId, Option<Position>);

impl Databases {
    /// Returns how many `subscribe` requests of a session are in progress.
    pub(crate) fn pending_requests(&self, session: Key) -> usize {
        self.positions.pending_requests(session)
            + self.access.pending_requests(session)
            + self.name_lists.pending_requests(session)
    }

    /// Returns how many names the `subscribe` requests of a session in progress have.
    pub(crate) fn pending_names(&self, session: Key) -> usize {
        self.positions.pending_names(session)
            + self.access.pending_names(session)
            + self.name_lists.pending_names(session)
    }

    /// Returns how many names a message costs, for parsing it.
    pub(crate) fn message_cost(text: &str) -> usize {
        text.len() / BYTES_A_NAME
    }

    /// Counts a message toward the work of this turn.
    pub(crate) fn count_message(&mut self, text: &str) {
        self.names_this_turn += Self::message_cost(text);
    }

    /// Returns how many names the requests of this turn had so far.
    pub(crate) fn names_this_turn(&self) -> usize {
        self.names_this_turn
    }

    /// Reads a list of names that fits in this turn.
    pub(crate) fn read_short_list(&mut self, session: (Key, &Session), intake: &mut Intake, context: &Context) {
        self.names_this_turn += intake.names.len();
        self.read_names(session, intake, SLICE, context);
    }

    /// Reads names of a `subscribe` into its databases, each once and held, at most `most` names.
    /// Returns whether all of them are read, or too many of them are new.
    pub(super) fn read_names(
        &mut self,
        (key, session): (Key, &Session),
        intake: &mut Intake,
        most: usize,
        context: &Context,
    ) -> bool {
        let Intake { names, read, databases, places, new, unknown, .. } = intake;
        let Some((user, roles)) = session.user() else { return true };
        for _ in 0..most {
            let Some((name, given)) = names.get(*read) else { return true };
            *read += 1;
            let database = self.subscriptions.hold(name);
            if let Some(place) = places.get(&database) {
                // The last one counts, as in any JSON object.
                let (_, earlier): &mut (_, Given) = &mut databases[*place];
                *earlier = given;
                self.subscriptions.release(database);
                continue;
            }
            places.insert(database, databases.len());
            databases.push((database, given));
            *new += usize::from(!self.subscriptions.has(key.index, database));
            let decision = self.access.decide(database, user, roles, &self.subscriptions);
            *unknown += usize::from(decision == Decision::Unknown);
            if *new > context.limits.subscriptions {
                return true;
            }
        }
        *read == names.len()
    }

    /// Ends the holds of a request's names, and forgets databases that nothing else needs.
    pub(crate) fn release_all(&mut self, names: RequestedDatabases) {
        for (database, _) in names {
            self.access.release(database, &mut self.subscriptions);
        }
    }

    /// Passes a request on if it is known what the session may read; else it waits for that.
    ///
    /// # Errors
    /// The text of the error when too many databases of the user are undecided.
    pub(crate) fn decide(
        &mut self,
        session: Option<&Session>,
        request: Request,
        context: &mut Context,
        now: Millis,
    ) -> Result<Option<Request>, &'static str> {
        let Some((user, roles)) = session.and_then(Session::user) else {
            self.release_all(request.names);
            return Ok(None);
        };
        let mut unknown = Vec::new();
        for (database, _) in &request.names {
            if self.access.decide(*database, user, roles, &self.subscriptions) == Decision::Unknown {
                unknown.push(*database);
            }
        }
        if unknown.is_empty() {
            return Ok(Some(request));
        }
        if !self.access.has_room(user, unknown.len()) {
            context.metrics.rejected_access_requests += 1;
            self.release_all(request.names);
            return Err(TOO_MANY_UNDECIDED);
        }
        let Request { session, reply, names, epoch, group } = request;
        let mut undecided = Access::undecided(session, reply, names, epoch);
        undecided.group = group;
        self.access.wait(undecided, &unknown, user, now, &mut self.subscriptions);
        Ok(None)
    }

    /// Takes a request whose access is decided. Returns it when it can be answered at once; else it
    /// waits for positions.
    pub(crate) fn admit(&mut self, session: Option<&Session>, request: Request, now: Millis) -> Option<Pending> {
        let Request { session: key, reply, mut names, epoch, group } = request;
        let Some(session) = session else {
            self.release_all(names);
            return None;
        };
        let is_json = session.dialect() == Dialect::Json;
        if !is_json {
            for (database, given) in &mut names {
                *given = session.user_name().map_or(Given::Nothing, |user| self.recall(user, *database, now));
            }
        }
        let waits = is_json || names.iter().any(|(_, given)| given.is_given());
        let mut pending = Pending::new(key, reply, names, epoch);
        pending.group = group;
        if !waits {
            return Some(pending);
        }
        self.positions.wait(pending, now, &mut self.subscriptions);
        None
    }

    /// Returns the position at which an earlier Socket.IO session of a user knew a database.
    fn recall(&self, user: &str, database: DatabaseId, now: Millis) -> Given {
        match self.catch_up.recall(user, database, now) {
            Some(position) => position.map_or(Given::Foreign, Given::At),
            None if self.departures.may_subscribe(user, database, &self.subscriptions) => Given::Foreign,
            None => Given::Nothing,
        }
    }

    /// Returns the next request whose positions are known, within the budget of a turn.
    pub(crate) fn next_ready(&mut self) -> Option<Pending> {
        if self.answered_this_turn >= ANSWERED_A_TURN {
            return None;
        }
        self.positions.next_ready()
    }

    /// Counts a request toward the budget of the turn. Returns it for [`Self::complete`], unless it
    /// is a part of a list.
    pub(crate) fn count_answer(&mut self, pending: Pending) -> Option<Pending> {
        self.answered_this_turn += pending.names.len().max(ANSWER_COST);
        match pending.group {
            Some(group) => {
                self.name_lists.arrive(group, pending.names);
                None
            }
            None => Some(pending),
        }
    }

    /// Subscribes a session, compares positions and answers, in one step: later changes are
    /// notified after this answer.
    pub(crate) fn complete(
        &mut self,
        session: &mut Session,
        user_quotas: &UserQuotas,
        pending: &Pending,
        context: &mut Context,
    ) {
        let Pending { session: key, reply, names, epoch, .. } = pending;
        // Other sessions of the user may have subscribed while the request waited.
        let new = names.iter().filter(|(database, _)| !self.subscriptions.has(key.index, *database)).count();
        let count = self.count(*key) + new;
        let exceeded = |user| user_quotas.exceeded(*key, user, count);
        if let Some(limit) = session.user_name().and_then(exceeded).filter(|_| new > 0) {
            context.metrics.rejected_subscriptions += 1;
            return session.answer_error(reply, LIMIT_ERROR, &too_many_of_user(limit));
        }
        let Some((names, refused)) = self.readable(session, names) else { return };
        if names.is_empty() && !refused.is_empty() {
            return session.answer_forbidden(reply, &refused);
        }
        if self.subscribe_all(*key, &names).is_err() {
            return session.answer_error(reply, LIMIT_ERROR, &too_many(context.limits.subscriptions));
        }
        let (stand, changed) = self.compare(*key, &names, epoch.as_deref());
        let name = |database: &DatabaseId| self.subscriptions.name(*database);
        let stand: Vec<_> = stand.iter().map(|(database, position)| (name(database), *position)).collect();
        let changed_names: Vec<_> = changed.iter().map(name).collect();
        session.answer_subscribed(reply, Some(&stand), &changed_names, self.positions.epoch(), &refused);
        if session.dialect() != Dialect::Json {
            for database in changed {
                self.subscriptions.mark_for(key.index, database, ChangeKind::Updated);
            }
        }
    }

    /// Returns the databases that a session may read, and those that it may not. Access may have
    /// changed while the request waited. Where it became unknown, the session subscribes, and is
    /// reconsidered once it is known.
    fn readable(
        &mut self,
        session: &Session,
        names: &RequestedDatabases,
    ) -> Option<(RequestedDatabases, Vec<Refused>)> {
        let Self { subscriptions, access, .. } = self;
        let (user, roles) = session.user()?;
        let (mut refused, mut unknown): (Vec<Refused>, _) = (Vec::new(), Vec::new());
        let mut names = names.clone();
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
        for database in unknown {
            access.queue_lookup(database, subscriptions);
        }
        Some((names, refused))
    }

    /// Subscribes a session to all of the databases, or to none.
    ///
    /// # Errors
    /// When the session would have too many subscriptions.
    fn subscribe_all(&mut self, key: Key, names: &RequestedDatabases) -> Result<(), TooManySubscriptions> {
        let mut added = Vec::new();
        for (database, _) in names {
            match self.subscriptions.subscribe(key.index, *database) {
                Ok(true) => added.push(*database),
                Ok(false) => {}
                Err(error) => {
                    for database in added {
                        self.subscriptions.unsubscribe(key.index, database);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Returns the positions of databases, and the databases whose position is not the given one.
    /// Compared only when answering: a server that has just started learns its epoch while a
    /// request waits.
    fn compare(
        &mut self,
        key: Key,
        names: &RequestedDatabases,
        epoch: Option<&str>,
    ) -> (Vec<Standing>, Vec<DatabaseId>) {
        let Self { subscriptions, positions, access, .. } = self;
        let is_foreign = epoch.is_some() && epoch != positions.epoch();
        let (mut stand, mut changed) = (Vec::with_capacity(names.len()), Vec::new());
        for (database, given) in names {
            positions.queue_lookup(*database, Some(key), subscriptions);
            let position = access.visible_position(*database, subscriptions);
            stand.push((*database, position));
            // Without a known position, a database that the client knew at one counts as changed.
            if given.is_given() && (is_foreign || given.differs(position, subscriptions.starts)) {
                changed.push(*database);
            }
        }
        (stand, changed)
    }

    /// Ends subscriptions of a session. Returns the reply to answer now; None for a long list, or
    /// beside waiting requests with many names, which takes more turns.
    pub(crate) fn unsubscribe(&mut self, key: Key, reply: Reply, names: NameList) -> Option<Reply> {
        if names.len() + self.pending_names(key) > SLICE {
            self.name_lists.push(key, Work::Remove(Box::new(Removal::new(reply, names))));
            return None;
        }
        self.names_this_turn += names.len();
        // Names that are not in memory have no subscribers, and no request waits for them.
        let databases: HashSet<_> = names.iter().filter_map(|(name, _)| self.subscriptions.find(name)).collect();
        for database in &databases {
            self.subscriptions.unsubscribe(key.index, *database);
        }
        self.withdraw(key, &databases);
        for database in &databases {
            self.access.drop_unused(*database, &mut self.subscriptions);
        }
        Some(reply)
    }

    /// Withdraws databases from the requests of a session.
    pub(super) fn withdraw(&mut self, key: Key, databases: &HashSet<DatabaseId>) {
        self.access.withdraw(key, databases, &mut self.subscriptions);
        self.positions.withdraw(key, databases, &mut self.subscriptions);
        self.name_lists.withdraw(key, databases);
    }

    /// Cancels the requests of a session. Returns how each is to be answered.
    pub(crate) fn cancel_subscribes(&mut self, key: Key) -> Vec<Reply> {
        let (mut replies, held) = self.positions.cancel(key);
        self.name_lists.release_databases(held);
        replies.extend(self.access.cancel(key, &mut self.subscriptions));
        replies
    }
}
