//! Changes of databases: lines of the feed, merge windows, and databases that may have changed.

use super::Databases;
use crate::server::context::Context;
use crate::state::merge_window::Admission;
use crate::state::subscriptions::DatabaseId;
use crate::state::timers::{Alarm, Millis, Timers};
use crate::wire::couchdb::ChangeKind;
use crate::wire::couchdb::Revision;

/// Time for which changes of a database are merged on a cluster, unless the operator sets another,
/// in milliseconds: all lines of one write come within it.
const CLUSTER_MERGE_WINDOW: Millis = 800;
/// Databases whose subscribers are notified in one turn because a change may have been missed.
const NOTIFIED_A_TURN: usize = 2_000;

impl Databases {
    /// Returns the time for which changes of a database are merged after the first one, in
    /// milliseconds.
    pub(crate) fn merge_window(&self) -> Millis {
        self.merge_window.unwrap_or(if self.restarts.is_cluster() { CLUSTER_MERGE_WINDOW } else { 0 })
    }

    /// Handles a change that the feed reports: marks the subscribers of the database.
    pub(crate) fn handle_change(
        &mut self,
        name: &str,
        kind: ChangeKind,
        revision: Option<Revision>,
        merge_window: Millis,
        context: &mut Context,
        now: Millis,
    ) {
        context.metrics.changes += 1;
        let Self { subscriptions, positions, access, notified, merge_timers, .. } = self;
        let Some(database) = subscriptions.find(name) else { return };
        let before = access.is_restricted().then(|| subscriptions.notified(database)).flatten();
        let is_news = subscriptions.tracked_mut(database).handle_line(kind, revision, now);
        // Where access is not known, the subscribers are notified once it is.
        if access.handle_line(database, kind, is_news, before, subscriptions) {
            // A deletion puts access in doubt, so it is not held back.
            let may_wait = kind == ChangeKind::Updated || !access.is_restricted();
            let window = if may_wait { merge_window } else { 0 };
            match subscriptions.admit(database, kind, window, now) {
                Admission::Notify(kind) => {
                    let notified = notified.of(subscriptions.subscriber_count(database));
                    context.metrics.merged_notifications += subscriptions.mark(database, kind, notified);
                }
                Admission::Hold(until) => {
                    context.metrics.merged_changes += 1;
                    arm_merge_window(merge_timers, database, until, now);
                }
            }
        }
        if is_news && revision.is_none() {
            positions.queue_lookup(database, None, subscriptions);
        }
    }

    /// Releases the changes that were held back and are due.
    pub(crate) fn release_held_changes(&mut self, context: &mut Context, now: Millis) {
        while let Some((_, due)) = self.merge_timers.pop_due(now) {
            for database in due {
                let Some(kind) = self.subscriptions.release_held(database, now) else { continue };
                // Access may have come into doubt meanwhile.
                if self.access.handle_line(database, kind, true, None, &self.subscriptions) {
                    self.notify(database, kind, context);
                }
            }
        }
    }

    /// Marks the subscribers of a database.
    pub(super) fn notify(&mut self, database: DatabaseId, kind: ChangeKind, context: &mut Context) {
        let notified = self.notified.of(self.subscriptions.subscriber_count(database));
        context.metrics.merged_notifications += self.subscriptions.mark(database, kind, notified);
    }

    /// Has the subscribers of databases notified, over the next turns where there are many.
    pub(super) fn notify_later(&mut self, databases: Vec<DatabaseId>) {
        for database in &databases {
            self.subscriptions.hold_id(*database);
        }
        self.unnotified.extend(databases);
        self.notify_some();
    }

    /// Notifies the subscribers of some of the databases of [`Self::notify_later`].
    pub(crate) fn notify_some(&mut self) {
        for _ in 0..NOTIFIED_A_TURN {
            let Some(database) = self.unnotified.pop_front() else {
                self.unnotified = std::collections::VecDeque::new();
                break;
            };
            let notified = self.notified.of(self.subscriptions.subscriber_count(database));
            self.subscriptions.mark(database, ChangeKind::Updated, notified);
            self.subscriptions.release(database);
        }
    }
}

/// Enters the end of a merge window in the timers, for the first change that is held back in it.
fn arm_merge_window(timers: &mut Timers<DatabaseId>, database: DatabaseId, until: Option<Millis>, now: Millis) {
    if let Some(until) = until {
        // A new alarm each time: a window has one entry.
        timers.arm(database, &mut Alarm::default(), until, now);
    }
}
