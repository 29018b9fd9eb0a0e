//! `subscribe` and `unsubscribe` of sessions. Their way through access and positions is in
//! `databases/subscribe.rs`.

use super::Server;
use super::databases::errors::{OUT_OF_MEMORY, too_long, too_many, too_many_of_user};
use super::databases::request::Request;
use crate::state::metrics::CloseReason;
use crate::state::name_lists::{Intake, SLICE};
use crate::state::positions::Pending;
use crate::state::session::Reply;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::name_list::NameList;

impl Server {
    /// Subscribes a session to databases. A long list is worked off over turns (`long_lists.rs`).
    pub(super) fn subscribe(&mut self, key: Key, reply: Reply, names: NameList, epoch: Option<Box<str>>, now: Millis) {
        if !self.may_subscribe(key, &reply, &names, now) {
            return;
        }
        let is_long = names.len() > SLICE;
        let mut intake = Intake::new(reply, names, epoch);
        if is_long {
            return self.databases.queue_list(key, intake);
        }
        let Some(session) = self.sessions.get(key) else { return };
        self.databases.read_short_list((key, session), &mut intake, &self.context);
        let Intake { reply, databases, epoch, new, .. } = intake;
        if !self.has_room(key, &reply, new, now) {
            return self.databases.release_all(databases);
        }
        let request = Request { session: key, reply: reply.clone(), names: databases, epoch, group: None };
        if let Err(message) = self.decide(request, now) {
            self.reject_subscribe(key, &reply, message, now);
        }
    }

    /// Decides whether a `subscribe` may start; else answers it.
    fn may_subscribe(&mut self, key: Key, reply: &Reply, names: &NameList, now: Millis) -> bool {
        if self.databases.pending_requests(key) >= self.context.limits.requests {
            self.close_session(key, CloseReason::TooManyRequests, now);
            return false;
        }
        let longest = self.context.limits.name;
        if names.longest() > longest {
            self.reject_subscribe(key, reply, &too_long(longest), now);
            return false;
        }
        if let Some(retry_after) = self.connections.memory_rejection(&mut self.context) {
            if let Some(session) = self.sessions.get_mut(key) {
                session.answer_unavailable(reply, OUT_OF_MEMORY, retry_after);
                self.sessions.mark_dirty(key);
            }
            return false;
        }
        true
    }

    /// Decides whether a session may have `new` more subscriptions; else rejects its request.
    pub(super) fn has_room(&mut self, key: Key, reply: &Reply, new: usize, now: Millis) -> bool {
        let most = self.context.limits.subscriptions;
        let more = new + self.databases.pending_names(key);
        if more == 0 {
            return true;
        }
        let count = self.databases.count(key) + more;
        if count > most {
            self.reject_subscribe(key, reply, &too_many(most), now);
            return false;
        }
        if let Some(limit) = self.sessions.exceeded_user_limit(key, count) {
            self.reject_subscribe(key, reply, &too_many_of_user(limit), now);
            return false;
        }
        true
    }

    /// Rejects a `subscribe` beyond a limit. A client that continues in spite of it is closed.
    pub(super) fn reject_subscribe(&mut self, key: Key, reply: &Reply, message: &str, now: Millis) {
        self.context.metrics.rejected_subscriptions += 1;
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.answer_limit(reply, message) {
            self.close_session(key, CloseReason::TooManySubscriptions, now);
        }
    }

    /// Passes a request on as soon as it is known what its session may read.
    ///
    /// # Errors
    /// The text of the error when too many databases of the user are undecided.
    pub(super) fn decide(&mut self, request: Request, now: Millis) -> Result<(), &'static str> {
        let session = self.sessions.get(request.session);
        if let Some(request) = self.databases.decide(session, request, &mut self.context, now)? {
            self.subscribe_decided(request, now);
        }
        Ok(())
    }

    /// Answers a request whose access is decided, at once or when its positions are known.
    pub(super) fn subscribe_decided(&mut self, request: Request, now: Millis) {
        let session = self.sessions.get(request.session);
        match self.databases.admit(session, request, now) {
            Some(pending) => self.answer_subscription(pending),
            None => self.answer_ready(),
        }
    }

    /// Answers the requests whose positions are known, some in each turn.
    pub(super) fn answer_ready(&mut self) {
        while let Some(pending) = self.databases.next_ready() {
            self.answer_subscription(pending);
        }
    }

    fn answer_subscription(&mut self, pending: Pending) {
        let Some(pending) = self.databases.count_answer(pending) else { return };
        let key = pending.session;
        if let Some((session, user_quotas)) = self.sessions.session_and_totals(key) {
            self.databases.complete(session, user_quotas, &pending, &mut self.context);
        }
        self.recount_user(key);
        self.sessions.mark_dirty(key);
        self.databases.release_all(pending.names);
    }

    /// Ends subscriptions of a session. A long list is worked off over turns.
    pub(super) fn unsubscribe(&mut self, key: Key, reply: Reply, names: NameList) {
        if let Some(reply) = self.databases.unsubscribe(key, reply, names) {
            self.answer_unsubscribed(key, &reply);
        }
    }

    /// Answers an `unsubscribe` that is done.
    pub(super) fn answer_unsubscribed(&mut self, key: Key, reply: &Reply) {
        self.answer_ready();
        self.recount_user(key);
        if let Some(session) = self.sessions.get_mut(key) {
            session.answer_ok(reply);
        }
    }

    /// Ends all subscriptions of a session, and those in progress, since somebody else has logged
    /// in.
    pub(super) fn unsubscribe_all(&mut self, key: Key) {
        let replies = self.databases.unsubscribe_all(key);
        self.recount_user(key);
        for reply in replies {
            if let Some(session) = self.sessions.get_mut(key).filter(|session| session.is_active()) {
                session.answer_error(&reply, "NotAuthenticatedError", "somebody else has logged in");
            }
        }
    }
}
