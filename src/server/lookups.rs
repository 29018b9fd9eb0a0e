//! Questions to CouchDB about positions: lookups, the epoch, and when its nodes started.

use super::Server;
use super::databases::positions::Epoch;
use super::ids::Queue;
use crate::state::admin_access::AdminUse;
use crate::state::pool::Answer;
use crate::state::positions::Batch;
use crate::state::timers::Millis;

impl Server {
    /// Sends the questions that this turn asked for, in as few requests as possible. Called at the
    /// end of a turn.
    pub fn send_lookups(&mut self, now: Millis) {
        self.run_access(now);
        self.work_on_lists(now);
        self.databases.prepare_lookups(now);
        while self.upstream.may_ask(AdminUse::Lookup, now)
            && let Some(batch) = self.databases.next_batch()
        {
            self.context.metrics.lookups += 1;
            let databases = &self.databases;
            self.upstream.look_up(batch, |database| databases.name(database), now);
            self.perform_queue_actions(Queue::Lookups, now);
        }
    }

    /// Handles CouchDB's answer to a lookup; None when there is none.
    pub(super) fn handle_lookup(&mut self, batch: Batch, answer: Option<&Answer>, now: Millis) {
        self.databases.handle_lookup(batch, answer, &mut self.context, now);
        self.mark_notified();
        self.answer_ready();
    }

    /// Asks CouchDB for the epoch.
    pub(super) fn ask_epoch(&mut self, now: Millis) {
        if !self.upstream.may_ask(AdminUse::Lookup, now) {
            return self.databases.plan_epoch(now);
        }
        self.databases.handle_epoch_sent();
        self.upstream.ask_epoch(now);
        self.perform_queue_actions(Queue::Lookups, now);
    }

    /// Asks CouchDB for the epoch again, when that is due.
    pub(super) fn retry_epoch(&mut self, now: Millis) {
        if self.databases.is_epoch_due(now) {
            self.ask_epoch(now);
        }
    }

    /// Handles CouchDB's answer about the epoch; None when there is none.
    pub(super) fn handle_epoch(&mut self, answer: Option<&Answer>, now: Millis) {
        let epoch = self.databases.handle_epoch(answer, self.upstream.is_streaming(), now);
        if epoch == Epoch::Unknown {
            return;
        }
        self.answer_ready();
        if epoch == Epoch::Other {
            self.handle_other_epoch(now);
        }
    }

    /// Asks CouchDB about its nodes, when that is due and the feed is open: a CouchDB that refuses
    /// the feed is not asked for more.
    pub(super) fn ask_restarts(&mut self, now: Millis) {
        if !self.upstream.is_streaming() || !self.upstream.may_ask(AdminUse::Lookup, now) {
            return;
        }
        let Some(question) = self.databases.next_restart_request(now) else { return };
        self.upstream.ask_restarts(question, now);
        self.perform_queue_actions(Queue::Lookups, now);
    }

    /// Handles CouchDB's answer about its nodes; None when there is none.
    pub(super) fn handle_restarts(&mut self, answer: Option<&Answer>, now: Millis) {
        if let Some(finding) = self.databases.handle_restarts(answer, self.upstream.is_streaming(), now) {
            if let Some(reason) = self.databases.handle_finding(finding, &mut self.context) {
                self.start_resync(reason, false, now);
            }
            if self.databases.wants_epoch() {
                self.ask_epoch(now);
            }
        }
        self.ask_restarts(now);
    }
}
