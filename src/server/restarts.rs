//! Asks CouchDB for its nodes: when they started, and whether notifications are merged because there are several.

use super::{Purpose, Server};
use crate::state::admin_access::AdminUse;
use crate::state::pool::Answer;
use crate::state::restarts::{Question, Reply};
use crate::state::subscriptions::DatabaseId;
use crate::state::timers::{Alarm, Millis, Timers};

/// For how long changes of a database are merged on a cluster, unless the operator says otherwise, in milliseconds:
/// all lines of a write come within this time.
const CLUSTER_MERGE_WINDOW: Millis = 800;

impl Server {
    /// Asks what is due, while the feed is followed: a CouchDB that refuses the feed is not asked for more.
    pub(super) fn ask_restarts(&mut self, now: Millis) {
        if !self.upstream.feed.is_streaming() || !self.may_ask(AdminUse::Lookup, now) {
            return;
        }
        let Some(question) = self.databases.restarts.next_question(now) else { return };
        let requests = &self.upstream.requests;
        let request = match question {
            Question::Membership => requests.membership(),
            Question::Name => requests.node_name(),
            Question::System(node) => requests.system(node.as_deref()),
        };
        self.look_up(request, Purpose::Restarts, now);
    }

    /// CouchDB answered, or did not.
    pub(super) fn handle_restarts(&mut self, answer: Option<&Answer>, now: Millis) {
        if !self.upstream.feed.is_streaming() {
            self.databases.restarts.handle_broken();
        }
        let reply = answer.map(|answer| Reply { status: answer.status, date: answer.date, body: &answer.body });
        if let Some(finding) = self.databases.restarts.handle_reply(reply, now) {
            log::debug!("Whether CouchDB restarted: {finding:?}, status {:?}.", answer.map(|answer| answer.status));
            self.handle_finding(finding, now);
        }
        self.ask_restarts(now);
    }

    /// For how long changes of a database are merged after the first one, in milliseconds.
    pub(super) fn merge_window(&self) -> Millis {
        self.databases.merge_window.unwrap_or(if self.databases.restarts.is_cluster() {
            CLUSTER_MERGE_WINDOW
        } else {
            0
        })
    }

    /// The time is over for which changes of a database were held back.
    pub(super) fn release_held(&mut self, database: DatabaseId, now: Millis) {
        let Some(kind) = self.databases.subscriptions.release_held(database, now) else { return };
        // Access to it may have come into doubt meanwhile.
        if self.databases.access.handle_line(database, kind, true, None, &self.databases.subscriptions) {
            self.context.metrics.merged_notifications +=
                self.databases.subscriptions.mark(database, kind, &mut self.databases.woken);
            self.wake();
        }
    }
}

/// Has changes of a database released when its window ends, if they are the first in it.
pub(super) fn arm_merge_window(
    timers: &mut Timers<DatabaseId>,
    database: DatabaseId,
    until: Option<Millis>,
    now: Millis,
) {
    if let Some(until) = until {
        // An alarm of its own each time: there is one entry for a window.
        timers.arm(database, &mut Alarm::default(), until, now);
    }
}
