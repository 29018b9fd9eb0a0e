//! Lookups of positions, and the epoch in which positions are.

use super::Databases;
use crate::server::context::Context;
use crate::state::pool::Answer;
use crate::state::positions::Batch;
use crate::state::subscriptions::{DatabaseId, Subscriptions};
use crate::state::timers::Millis;
use crate::wire::couchdb;

/// Time between requests for the epoch, in milliseconds.
const EPOCH_RETRY: Millis = 1_000;

/// Result of reading the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Epoch {
    /// CouchDB did not say.
    Unknown,
    /// The first one, or the same as before.
    Known,
    /// Another one: positions of before are void.
    Other,
}

impl Databases {
    /// Returns the epoch of positions.
    pub(crate) fn epoch(&self) -> Option<&str> {
        self.positions.epoch()
    }

    /// Gives up lookups that took too long.
    pub(crate) fn expire_lookups(&mut self, now: Millis) {
        self.positions.handle_timeout(now, &mut self.subscriptions);
    }

    /// Prepares the lookups that this turn asked for.
    pub(crate) fn prepare_lookups(&mut self, now: Millis) {
        let dropped = self.positions.sweep(&mut self.subscriptions);
        self.drop_unused(dropped);
        self.positions.linger(now, &mut self.subscriptions);
    }

    /// Returns the next databases to look up together.
    pub(crate) fn next_batch(&mut self) -> Option<Batch> {
        self.positions.next_batch(&mut self.subscriptions)
    }

    /// Returns the name of a database.
    pub(crate) fn name(&self, database: DatabaseId) -> &str {
        self.subscriptions.name(database)
    }

    /// Handles CouchDB's answer to a lookup; None when there is none.
    pub(crate) fn handle_lookup(&mut self, batch: Batch, answer: Option<&Answer>, context: &mut Context, now: Millis) {
        let body = answer.filter(|answer| answer.status == 200).map(|answer| &*answer.body);
        // The lookup has held its databases, also those that nothing needs any more.
        let looked_up = if self.access.is_restricted() { batch.databases.clone() } else { Vec::new() };
        let Self { positions, subscriptions, notified, access, .. } = self;
        // A change that the feed missed is notified like a line of it: to clients that may read the
        // database.
        let may_notify = |database, kind, subscriptions: &Subscriptions| {
            access.handle_line(database, kind, true, None, subscriptions)
        };
        let clock = (now, &mut context.jitter);
        if !positions.handle_lookup_if(batch, body, clock, subscriptions, &mut notified.few, may_notify) {
            context.metrics.failed_lookups += 1;
            let status = answer.map(|answer| answer.status);
            log::debug!("The positions of databases could not be looked up: status {status:?}.");
        }
        self.drop_unused(looked_up);
    }

    /// Forgets databases that nothing needs any more.
    fn drop_unused(&mut self, databases: Vec<DatabaseId>) {
        for database in databases {
            self.access.drop_unused(database, &mut self.subscriptions);
        }
    }

    /// Plans the next request for the epoch.
    pub(crate) fn plan_epoch(&mut self, now: Millis) {
        self.epoch_retry = Some(now + EPOCH_RETRY);
    }

    /// Takes note that the epoch is being requested.
    pub(crate) fn handle_epoch_sent(&mut self) {
        self.epoch_retry = None;
    }

    /// Returns whether the planned request for the epoch is due.
    pub(crate) fn is_epoch_due(&self, now: Millis) -> bool {
        self.epoch_retry.is_some_and(|at| at <= now)
    }

    /// Handles CouchDB's answer about the epoch; None when there is none. Retries only while the
    /// feed is open (`is_streaming`): its next opening requests the epoch again.
    pub(crate) fn handle_epoch(&mut self, answer: Option<&Answer>, is_streaming: bool, now: Millis) -> Epoch {
        let answer = answer.filter(|answer| answer.status == 200);
        let Some(epoch) = answer.and_then(|answer| couchdb::read_epoch(&answer.body)) else {
            self.epoch_retry = is_streaming.then_some(now + EPOCH_RETRY);
            return Epoch::Unknown;
        };
        if !self.positions.handle_epoch(epoch, &mut self.subscriptions) {
            return Epoch::Known;
        }
        self.catch_up.doubt();
        Epoch::Other
    }
}
