//! Clients that may have missed changes: they resync, spread over time.

use super::Server;
use crate::state::feed::Continuity;
use crate::state::session::{Dialect, Session};
use crate::state::table::Key;
use crate::state::timers::Millis;

impl Server {
    /// Handles that the feed is open: it continues where it was, or with a gap.
    pub(super) fn handle_opened(&mut self, continuity: Continuity, now: Millis) {
        if self.databases.handle_opened(now) {
            self.ask_epoch(now);
        }
        if continuity != Continuity::Whole {
            self.handle_gap(self.upstream.followed_until(), now);
        }
        if let Some(reason) = self.databases.lost_changes(continuity, &mut self.context, now) {
            self.start_resync(reason, false, now);
        }
        self.upstream.plan_recording(now);
    }

    /// Handles that the feed has missed changes since a time.
    pub(super) fn handle_gap(&mut self, followed_until: Millis, now: Millis) {
        let reason = self.databases.handle_gap(followed_until);
        self.mark_notified();
        if let Some(reason) = reason {
            self.start_resync(reason, false, now);
        }
    }

    /// Handles that positions of before are void, since `_global_changes` was replaced.
    pub(super) fn handle_other_epoch(&mut self, now: Millis) {
        if self.databases.may_resync() {
            self.databases.log_other_epoch(now);
            return self.start_resync("CouchDB records changes in a new database", true, now);
        }
        for key in self.sessions.keys() {
            self.send_hello_again(key);
        }
    }

    /// Starts a resync of all sessions.
    pub(super) fn start_resync(&mut self, reason: &'static str, is_other_epoch: bool, now: Millis) {
        let sessions = self.sessions.keys();
        self.databases.start_resync(reason, is_other_epoch, sessions, &mut self.context, now);
    }

    /// Has the sessions resync whose turn it is.
    pub(super) fn advance_resync(&mut self, now: Millis) {
        let Some(mut resync) = self.databases.take_due_resync(now) else { return };
        let (reason, other_epoch) = (resync.reason, resync.other_epoch);
        for key in resync.next(now) {
            self.resync_session(*key, reason, other_epoch);
        }
        self.databases.put_resync(resync, now);
    }

    fn resync_session(&mut self, key: Key, reason: &str, other_epoch: bool) {
        if other_epoch {
            self.send_hello_again(key);
        }
        let Some(session) = self.sessions.get_mut(key).filter(|session| Session::is_active(session)) else { return };
        self.databases.resync((key, session), reason);
        self.sessions.mark_dirty(key);
    }

    /// Sends the epoch to a `howler.v1` session again.
    fn send_hello_again(&mut self, key: Key) {
        let epoch = self.databases.epoch();
        if let Some(session) = self.sessions.get_mut(key).filter(|session| session.dialect() == Dialect::Json) {
            session.send_hello(epoch);
            self.sessions.mark_dirty(key);
        }
    }
}
