//! Access to databases: questions to CouchDB, requests that they decide, subscriptions that end.

use super::Server;
use super::databases::errors::{UNAVAILABLE, UNDECIDED};
use super::ids::Queue;
use crate::state::access::Step;
use crate::state::admin_access::AdminUse;
use crate::state::pool::Answer;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Subscriptions that are reconsidered in one turn.
const RECONSIDERED_A_TURN: usize = 1_000;
/// Names of decided requests that are answered in one turn, roughly.
const ANSWERED_A_TURN: usize = 2_000;
/// A request costs at least as much as this many names.
const ANSWER_COST: usize = 8;

impl Server {
    /// Continues with requests that are decided, and asks CouchDB about access to other databases.
    pub(super) fn run_access(&mut self, now: Millis) {
        self.databases.sweep_access();
        self.reconsider_some();
        self.answer_decided(now);
        while self.upstream.may_ask(AdminUse::Security, now)
            && let Some((database, name)) = self.databases.next_question()
        {
            if !self.upstream.ask_security(database, name, now) {
                return self.handle_security(database, None, now);
            }
            self.perform_queue_actions(Queue::Checks, now);
        }
    }

    /// Handles CouchDB's answer about a database's `_security`; None when there is none.
    pub(super) fn handle_security(&mut self, database: DatabaseId, mut answer: Option<Answer>, now: Millis) {
        if answer.as_mut().is_some_and(|answer| self.upstream.parse_security(database, answer)) {
            return;
        }
        self.databases.handle_security(database, answer.as_ref(), &mut self.context, now);
        self.mark_notified();
    }

    /// Handles the `_security` objects that were parsed beside the loop.
    pub(super) fn handle_parsed(&mut self, now: Millis) {
        while let Some((database, security)) = self.upstream.take_parsed() {
            self.databases.handle_parsed(database, security, &mut self.context, now);
        }
        self.mark_notified();
    }

    /// Continues with decided requests, and gives up those that waited for too long, some in each
    /// turn.
    fn answer_decided(&mut self, now: Millis) {
        let mut budget = ANSWERED_A_TURN;
        while budget > 0
            && let Some(request) = self.databases.next_decided()
        {
            budget = budget.saturating_sub(request.names.len().max(ANSWER_COST));
            self.subscribe_decided(request, now);
        }
        while budget > 0
            && let Some(late) = self.databases.next_late()
        {
            budget = budget.saturating_sub(late.names.len().max(ANSWER_COST));
            if let Some(group) = late.group {
                self.fail_list(group, late.names, UNAVAILABLE, UNDECIDED);
                continue;
            }
            if let Some(session) = self.sessions.get_mut(late.session) {
                session.answer_error(&late.reply, UNAVAILABLE, UNDECIDED);
                self.sessions.mark_dirty(late.session);
            }
            self.databases.end_late(late);
        }
    }

    /// Reconsiders subscriptions after a verdict or a change of a user's roles, some in each turn.
    fn reconsider_some(&mut self) {
        for _ in 0..RECONSIDERED_A_TURN {
            let Some(step) = self.databases.next_step(&mut self.context) else { break };
            match step {
                Step::Decide(session, database) => {
                    if let Some(key) = self.sessions.key_at(session) {
                        self.reconsider(key, database);
                    }
                }
                Step::Notify(..) => {}
                Step::Resume(session) => self.sessions.mark_dirty(session),
            }
        }
        self.mark_notified();
    }

    /// Ends a subscription of a session that may no longer read the database.
    fn reconsider(&mut self, key: Key, database: DatabaseId) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if self.databases.reconsider((key, session), database, &mut self.context) {
            self.recount_user(key);
            self.sessions.mark_dirty(key);
        }
    }
}
