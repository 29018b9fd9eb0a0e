//! Who may subscribe to what, and whether who logged in still is: asked of CouchDB, beside everything else.

use super::{Context, Databases, Purpose, Queue, Server};
use crate::state::access::{Access, Decision, Step, Undecided, Verdict};
use crate::state::admin_access::AdminUse;
use crate::state::name_lists::{Intake, SLICE, Work};
use crate::state::pool::{Answer, Owner};
use crate::state::positions::Named;
use crate::state::session::{Reply, Session};
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::{self, Credentials, Identity};
use crate::wire::names::NameList;
use crate::wire::security::Security;

/// A cookie is first checked after this long, in milliseconds, where no cookie of CouchDB has said how long it lives.
const FIRST_CHECK: Millis = 2_000;
/// No session is checked sooner than this after its last check, in milliseconds.
const SOONEST_CHECK: Millis = 500;
const UNAVAILABLE: &str = "ServiceUnavailableError";
/// What a client is told when CouchDB could not say who may read a database.
const UNDECIDED: &str = "The database server cannot be asked at the moment who may read this.";
/// What a client is told when its user has too many databases waiting for that.
const TOO_MANY_UNDECIDED: &str = "too many databases of this user wait until it is known who may read them";
const TOO_LARGE: &str = "The _security of a database is larger than 1 MiB: only server admins may watch that database";
const NO_ROOM: &str =
    "All large _security objects take more than 64 MiB together: only server admins may watch the databases of some";
const NO_ANSWER: &str = "CouchDB does not say who may read a database: there is no answer. It is asked again";
const NO_OBJECT: &str = "CouchDB does not say who may read a database: the answer is no JSON object. It is asked again";
const REDIRECT: &str = "CouchDB does not say who may read a database: it redirects. It is asked again";
const REFUSED: &str = "CouchDB does not say who may read a database: it answers with 4xx. It is asked again";
const FAILED: &str = "CouchDB does not say who may read a database: it answers with 5xx. It is asked again";
/// Subscriptions that are reconsidered in one turn.
const RECONSIDERED_A_TURN: usize = 2_000;
/// Names of decided requests that are answered in one turn, about.
const ANSWERED_A_TURN: usize = 2_000;

/// Reads CouchDB's answer to the question who may read a database.
///
/// # Errors
/// What to log when the answer does not say it.
fn read_security(answer: Option<&Answer>) -> Result<Verdict, &'static str> {
    let answer = answer.ok_or(NO_ANSWER)?;
    match answer.status {
        200 if answer.is_too_long => Ok(Verdict::TooLarge),
        200 => Security::parse(&answer.body).map(Box::new).map(Verdict::Security).ok_or(NO_OBJECT),
        404 => Ok(Verdict::Missing),
        300..400 => Err(REDIRECT),
        400..500 => Err(REFUSED),
        500.. => Err(FAILED),
        _ => Err(NO_OBJECT),
    }
}

impl Server {
    /// A session subscribes: what it may read is decided first. A long list is worked off over turns.
    pub(super) fn subscribe(&mut self, key: Key, reply: Reply, names: NameList, epoch: Option<Box<str>>, now: Millis) {
        if !self.may_subscribe(key, &reply, &names, now) {
            return;
        }
        let is_long = names.len() > SLICE;
        let mut intake = Intake::new(reply, names, epoch);
        if is_long {
            return self.databases.name_lists.push(key, Work::Intake(Box::new(intake)));
        }
        self.databases.names_this_turn += intake.names.len();
        self.read_names(key, &mut intake, SLICE);
        let Intake { reply, databases, epoch, new, .. } = intake;
        if !self.has_room_for(key, &reply, new, now) {
            return self.release_all(databases);
        }
        if let Err(message) = self.decide(key, reply.clone(), databases, (epoch, None), now) {
            self.refuse_subscribe(key, &reply, message, now);
        }
    }

    /// Has a session subscribe to databases as soon as it is decided whether it may.
    ///
    /// # Errors
    /// What to answer when too many databases of its user are not decided.
    pub(super) fn decide(
        &mut self,
        key: Key,
        reply: Reply,
        names: Named,
        (epoch, group): (Option<Box<str>>, Option<Key>),
        now: Millis,
    ) -> Result<(), &'static str> {
        let Some((user, roles)) = self.sessions.table.get(key).and_then(Session::user) else {
            self.release_all(names);
            return Ok(());
        };
        let mut unknown = Vec::new();
        for (database, _) in &names {
            if self.databases.access.decide(*database, user, roles, &self.databases.subscriptions) == Decision::Unknown
            {
                unknown.push(*database);
            }
        }
        if unknown.is_empty() {
            self.subscribe_decided(key, reply, names, (epoch, group), now);
            return Ok(());
        }
        if !self.databases.access.has_room(user, unknown.len()) {
            self.context.metrics.rejected_access_requests += 1;
            self.release_all(names);
            return Err(TOO_MANY_UNDECIDED);
        }
        let mut undecided = Access::undecided(key, reply, names, epoch);
        undecided.group = group;
        self.databases.access.wait(undecided, &unknown, user, now, &mut self.databases.subscriptions);
        Ok(())
    }

    /// Refuses a `subscribe` because too many databases of its user are not decided.
    pub(super) fn refuse_undecided(&mut self, key: Key, reply: &Reply, now: Millis) {
        self.context.metrics.rejected_access_requests += 1;
        self.refuse_subscribe(key, reply, TOO_MANY_UNDECIDED, now);
    }

    /// At the end of a turn: goes on with what became decided, and asks CouchDB what it made necessary to know.
    pub(super) fn run_access(&mut self, now: Millis) {
        self.databases.access.sweep(&mut self.databases.subscriptions);
        self.reconsider_some();
        self.answer_decided(now);
        while self.may_ask(AdminUse::Security, now)
            && let Some(database) = self.databases.access.next_question(&mut self.databases.subscriptions)
        {
            let request = self.upstream.requests.security(self.databases.subscriptions.name(database));
            let submitted = self.ask_couchdb(Queue::Checks, Owner::Server, request, Purpose::Security(database), now);
            if submitted.is_none() {
                return self.handle_security(database, None, now);
            }
            self.perform_pool_actions(Queue::Checks, now);
        }
    }

    /// Takes CouchDB's answer to the question who may read a database; None when there is none.
    pub(super) fn handle_security(&mut self, database: DatabaseId, answer: Option<&Answer>, now: Millis) {
        let verdict = match read_security(answer) {
            Ok(verdict) => {
                if verdict == Verdict::TooLarge {
                    self.log_security(database, TOO_LARGE, now);
                }
                Some(verdict)
            }
            Err(cause) => {
                self.log_security(database, cause, now);
                None
            }
        };
        // Kept until the end of this, whatever becomes of its entry and its subscribers.
        self.databases.subscriptions.hold_id(database);
        let Self { databases, context: Context { jitter, .. }, .. } = self;
        let Databases { access, subscriptions, .. } = databases;
        if let Some(kind) = access.handle_verdict(database, verdict, (now, jitter), subscriptions) {
            self.notify(database, kind);
        }
        let evictions = self.databases.access.take_evictions();
        if evictions > 0 {
            self.context.metrics.evicted_security += evictions;
            self.log_security(database, NO_ROOM, now);
        }
        self.databases.access.release(database, &mut self.databases.subscriptions);
    }

    fn notify(&mut self, database: DatabaseId, kind: crate::wire::couchdb::ChangeKind) {
        self.context.metrics.merged_notifications +=
            self.databases.subscriptions.mark(database, kind, &mut self.databases.woken);
        self.wake();
    }

    /// Logs what is wrong with an answer: one line per cause and ten minutes. Names are for developers.
    fn log_security(&mut self, database: DatabaseId, cause: &'static str, now: Millis) {
        if let Some(more) = self.databases.security_log.of(cause).pass(now) {
            log::warn!("{cause}{more}.");
        }
        log::debug!("{}: {cause}.", self.databases.subscriptions.name(database));
    }

    /// Does what the time asks for.
    pub(super) fn expire_access(&mut self, now: Millis) {
        if self.databases.access.poll_timeout().is_some_and(|at| at <= now) {
            self.databases.access.handle_timeout(now, &mut self.databases.subscriptions);
        }
    }

    /// Goes on with requests that are decided, and gives up those that took too long: in one turn some of them.
    fn answer_decided(&mut self, now: Millis) {
        let mut budget = ANSWERED_A_TURN;
        while budget > 0
            && let Some(Undecided { session, reply, names, epoch, group, .. }) = self.databases.access.next_ready()
        {
            budget = budget.saturating_sub(names.len().max(8));
            self.subscribe_decided(session, reply, names, (epoch, group), now);
        }
        while budget > 0
            && let Some(late) = self.databases.access.next_late()
        {
            budget = budget.saturating_sub(late.names.len().max(8));
            if let Some(group) = late.group {
                self.arrive_late(group, late.names, UNAVAILABLE, UNDECIDED);
                continue;
            }
            if let Some(session) = self.sessions.table.get_mut(late.session) {
                session.answer_error(&late.reply, UNAVAILABLE, UNDECIDED);
                self.sessions.dirty.push(late.session);
            }
            self.databases.access.end(late, &mut self.databases.subscriptions);
        }
    }

    /// Reconsiders subscriptions after a verdict or a user's roles changed: in one turn some of them.
    fn reconsider_some(&mut self) {
        for _ in 0..RECONSIDERED_A_TURN {
            match self.databases.access.next_step(&self.databases.subscriptions) {
                None => return,
                Some(Step::Decide(session, database)) => {
                    if let Some(key) = self.sessions.table.key_at(session) {
                        self.reconsider(key, database);
                    }
                }
                Some(Step::Notify(database, kind)) => self.notify(database, kind),
                Some(Step::Resume(session)) => self.sessions.dirty.push(session),
            }
        }
    }

    /// Ends a subscription of a session if it may not read the database any more.
    fn reconsider(&mut self, key: Key, database: DatabaseId) {
        let Some(session) = self.sessions.table.get_mut(key) else { return };
        let Some((user, roles)) = session.user() else { return };
        match self.databases.access.decide(database, user, roles, &self.databases.subscriptions) {
            Decision::Allowed => {}
            // It had no subscribers but server admins, of whom this was one.
            Decision::Unknown => self.databases.access.ask(database, &mut self.databases.subscriptions),
            Decision::Forbidden(why) => {
                if self.databases.subscriptions.has(key.index, database) {
                    session.send_unsubscribed(self.databases.subscriptions.name(database), why);
                    self.databases.subscriptions.unsubscribe(key.index, database);
                    self.context.metrics.revoked_subscriptions += 1;
                    self.recount_user(key);
                    self.sessions.dirty.push(key);
                }
            }
        }
    }

    /// Asks CouchDB whether a user is still logged in.
    pub(super) fn check_session(&mut self, key: Key, credentials: &Credentials, now: Millis) {
        let client = self.client_of(key);
        let Some(attempt) = self.sessions.table.get(key).map(Session::attempt) else { return };
        let Some(request) = self.upstream.requests.log_in(credentials, client) else { return };
        let purpose = Purpose::Check(key, attempt, credentials.clone());
        if self.ask_couchdb(Queue::Checks, Owner::SessionChecks, request, purpose, now).is_none() {
            return self.handle_check(key, attempt, credentials, None, now);
        }
        self.perform_pool_actions(Queue::Checks, now);
    }

    /// CouchDB said whether a user is still logged in, or could not.
    pub(super) fn handle_check(
        &mut self,
        key: Key,
        attempt: u32,
        credentials: &Credentials,
        answer: Option<Answer>,
        now: Millis,
    ) {
        if self.sessions.table.get(key).is_none_or(|session| session.attempt() != attempt) {
            // The session is gone, or somebody logged in again: the answer says nothing about that login.
            return;
        }
        let outcome = match answer {
            Some(answer) => couchdb::read_login(credentials, answer.status, answer.auth_cookie, &answer.body),
            None => Err(couchdb::LoginError::Unavailable),
        };
        if outcome.as_ref().is_err_and(|error| error.is_refusal() || *error == couchdb::LoginError::Locked) {
            self.context.metrics.ended_sessions += 1;
        }
        let age = self.sessions.table.get(key).map_or(0, |session| session.age(now));
        let next = self.next_check(outcome.as_ref().ok(), age, now);
        self.with_session(key, now, |session, turn| {
            session.handle_check(attempt, outcome, turn);
            if let Some(at) = next {
                session.check_at(at);
            }
        });
    }

    /// When a session is to be checked again: before half of its cookie's life is over. `identity` is what CouchDB said
    /// just now, and None when it did not answer; `age` is how long the client has been here, in milliseconds.
    ///
    /// CouchDB renews a cookie that is older than a tenth of its life in any answer. So a cookie that was not renewed has
    /// nine tenths left at least, and lives ten times as long as it has been here.
    pub(super) fn next_check(&mut self, identity: Option<&Identity>, age: Millis, now: Millis) -> Option<Millis> {
        if self.sessions.session_check == 0 {
            return None;
        }
        let cookie = identity.and_then(|identity| identity.cookie.as_ref());
        let given = cookie.and_then(|cookie| couchdb::cookie_life(cookie.reveal()));
        self.sessions.cookie_life = given.or(self.sessions.cookie_life);
        let within = match (identity, cookie, self.sessions.cookie_life) {
            (Some(_), None, _) => None,
            (Some(_), _, Some(life)) if given.is_some() => Some(life / 2),
            (Some(_), _, Some(life)) => Some(life * 2 / 5),
            (None, _, Some(life)) => Some(life / 8),
            (_, _, None) => Some((age * 3).max(FIRST_CHECK)),
        };
        let within = within.unwrap_or(Millis::MAX).max(SOONEST_CHECK);
        Some(now + self.context.jitter.around(within.min(self.sessions.session_check)))
    }
}
