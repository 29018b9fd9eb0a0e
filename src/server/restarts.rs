//! Asks CouchDB when its nodes started.

use super::{Purpose, Server};
use crate::state::pool::Answer;
use crate::state::restarts::{Question, Reply};
use crate::state::timers::Millis;

impl Server {
    /// Asks what is due, while the feed is followed: a CouchDB that refuses the feed is not asked for more.
    pub(super) fn ask_restarts(&mut self, now: Millis) {
        if !self.feed.is_streaming() {
            return;
        }
        let Some(question) = self.restarts.next_question(now) else { return };
        let requests = &self.couchdb.requests;
        let request = match question {
            Question::Membership => requests.membership(),
            Question::Name => requests.node_name(),
            Question::System(node) => requests.system(node.as_deref()),
        };
        self.look_up(request, Purpose::Restarts, now);
    }

    /// CouchDB answered, or did not.
    pub(super) fn handle_restarts(&mut self, answer: Option<&Answer>, now: Millis) {
        let reply = answer.map(|answer| Reply { status: answer.status, date: answer.date, body: &answer.body });
        if let Some(finding) = self.restarts.handle_reply(reply, now) {
            log::debug!("Whether CouchDB restarted: {finding:?}, status {:?}.", answer.map(|answer| answer.status));
            self.handle_finding(finding, now);
        }
        self.ask_restarts(now);
    }
}
