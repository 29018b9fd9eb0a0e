//! Access to databases: CouchDB's answers about who may read one, and their effects.

use super::Databases;
use super::request::Request;
use crate::server::context::Context;
use crate::state::access::{Decision, Step, Undecided, Verdict};
use crate::state::pool::Answer;
use crate::state::session::Session;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::security::Security;

const TOO_LARGE: &str = "The _security of a database is larger than 1 MiB: only server admins may watch that database";
const NO_ROOM: &str =
    "All large _security objects take more than 64 MiB together: only server admins may watch the databases of some";
const NO_ANSWER: &str = "CouchDB does not say who may read a database: there is no answer. The request is retried";
const NO_OBJECT: &str =
    "CouchDB does not say who may read a database: the answer is no JSON object. The request is retried";
const REDIRECT: &str = "CouchDB does not say who may read a database: it redirects. The request is retried";
const REFUSED: &str = "CouchDB does not say who may read a database: it answers with 4xx. The request is retried";
const FAILED: &str = "CouchDB does not say who may read a database: it answers with 5xx. The request is retried";

impl Databases {
    /// Cleans up after cancelled requests, at the end of a turn.
    pub(crate) fn sweep_access(&mut self) {
        self.access.sweep(&mut self.subscriptions);
    }

    /// Returns the next database whose `_security` CouchDB is to be asked for, and its name.
    pub(crate) fn next_question(&mut self) -> Option<(DatabaseId, &str)> {
        let database = self.access.next_lookup(&mut self.subscriptions)?;
        Some((database, self.subscriptions.name(database)))
    }

    /// Handles CouchDB's answer about a database's `_security`; None when there is none.
    pub(crate) fn handle_security(
        &mut self,
        database: DatabaseId,
        answer: Option<&Answer>,
        context: &mut Context,
        now: Millis,
    ) {
        self.handle_verdict(database, read_security(answer), context, now);
    }

    /// Handles a `_security` that was parsed beside the loop; None when it is no JSON object.
    pub(crate) fn handle_parsed(
        &mut self,
        database: DatabaseId,
        security: Option<Security>,
        context: &mut Context,
        now: Millis,
    ) {
        self.handle_verdict(database, verdict_of(security), context, now);
    }

    fn handle_verdict(
        &mut self,
        database: DatabaseId,
        verdict: Result<Verdict, &'static str>,
        context: &mut Context,
        now: Millis,
    ) {
        let verdict = match verdict {
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
        // Held until the end of this method, whatever happens to its entry and its subscribers.
        self.subscriptions.hold_id(database);
        let clock = (now, &mut context.jitter);
        if let Some(kind) = self.access.handle_verdict(database, verdict, clock, &mut self.subscriptions) {
            self.notify(database, kind, context);
        }
        let evictions = self.access.take_evictions();
        if evictions > 0 {
            context.metrics.evicted_security += evictions;
            self.log_security(database, NO_ROOM, now);
        }
        self.access.release(database, &mut self.subscriptions);
    }

    /// Logs the problem of an answer: one line per cause and ten minutes. Names are for developers.
    fn log_security(&mut self, database: DatabaseId, cause: &'static str, now: Millis) {
        if let Some(more) = self.security_log.of(cause).pass(now) {
            log::warn!("{cause}{more}.");
        }
        log::debug!("{}: {cause}.", self.subscriptions.name(database));
    }

    /// Returns the next request that is decided.
    pub(crate) fn next_decided(&mut self) -> Option<Request> {
        let Undecided { session, reply, names, epoch, group, .. } = self.access.next_ready()?;
        Some(Request { session, reply, names, epoch, group })
    }

    /// Returns the next request that waited for too long.
    pub(crate) fn next_late(&mut self) -> Option<Undecided> {
        self.access.next_late()
    }

    /// Drops a request that waited for too long.
    pub(crate) fn end_late(&mut self, late: Undecided) {
        self.access.end(late, &mut self.subscriptions);
    }

    /// Has the subscriptions of a session reconsidered, since its user's roles changed.
    pub(crate) fn reconsider_session(&mut self, key: Key) {
        self.access.reconsider_session(key, &self.subscriptions);
    }

    /// Returns the next step of reconsidering subscriptions after a verdict or a change of roles.
    /// Notifications are done.
    pub(crate) fn next_step(&mut self, context: &mut Context) -> Option<Step> {
        let step = self.access.next_step(&self.subscriptions)?;
        if let Step::Notify(database, kind) = step {
            self.notify(database, kind, context);
        }
        Some(step)
    }

    /// Ends a subscription of a session that may no longer read the database. Returns whether it
    /// ended.
    pub(crate) fn reconsider(
        &mut self,
        (key, session): (Key, &mut Session),
        database: DatabaseId,
        context: &mut Context,
    ) -> bool {
        let Some((user, roles)) = session.user() else { return false };
        match self.access.decide(database, user, roles, &self.subscriptions) {
            Decision::Allowed => false,
            // Its only subscribers were server admins, of whom this session was one.
            Decision::Unknown => {
                self.access.queue_lookup(database, &mut self.subscriptions);
                false
            }
            Decision::Forbidden(why) => {
                let subscribes = self.subscriptions.has(key.index, database);
                if subscribes {
                    session.send_unsubscribed(self.subscriptions.name(database), why);
                    self.subscriptions.unsubscribe(key.index, database);
                    context.metrics.revoked_subscriptions += 1;
                }
                subscribes
            }
        }
    }
}

fn verdict_of(security: Option<Security>) -> Result<Verdict, &'static str> {
    security.map(Box::new).map(Verdict::Security).ok_or(NO_OBJECT)
}

/// Reads CouchDB's answer about a database's `_security`.
///
/// # Errors
/// The cause for the log when the answer does not say who may read the database.
fn read_security(answer: Option<&Answer>) -> Result<Verdict, &'static str> {
    let answer = answer.ok_or(NO_ANSWER)?;
    match answer.status {
        200 if answer.is_too_long => Ok(Verdict::TooLarge),
        200 => verdict_of(Security::parse(&answer.body)),
        404 => Ok(Verdict::Missing),
        300..400 => Err(REDIRECT),
        400..500 => Err(REFUSED),
        500.. => Err(FAILED),
        _ => Err(NO_OBJECT),
    }
}
