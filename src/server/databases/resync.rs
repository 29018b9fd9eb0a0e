//! Gaps of the feed and restarts of CouchDB: where changes may be lost, sessions resync, some in
//! each turn.

use super::Databases;
use crate::server::context::Context;
use crate::state::feed::Continuity;
use crate::state::pool::Answer;
use crate::state::restarts::{Finding, Reply, Request};
use crate::state::resync::{Policy, StaggeredResync};
use crate::state::session::{Dialect, Session};
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Reason of a resync when nothing more precise is known.
const AWAY: &str = "CouchDB was away";

impl Databases {
    /// Handles that the start of the first stream is known: subscriptions of before may have missed
    /// changes.
    pub(crate) fn handle_pinned(&mut self) {
        if !self.followed {
            let unknown = self.positions.handle_doubt(0, &mut self.subscriptions);
            self.notify_later(unknown);
        }
    }

    /// Handles a gap of the feed after a time. Positions show what changed in it; a database
    /// without a position counts as changed. Returns the reason of a resync if one is needed.
    pub(crate) fn handle_gap(&mut self, followed_until: Millis) -> Option<&'static str> {
        let unknown = self.positions.handle_doubt(followed_until, &mut self.subscriptions);
        if self.positions.are_available() {
            self.notify_later(unknown);
            return None;
        }
        (self.resync_policy != Policy::Off).then_some("the feed of changes has a gap")
    }

    /// Handles that the feed is open. Returns whether the epoch is to be requested: no position is
    /// given out before it is known when CouchDB started, unless CouchDB does not say.
    pub(crate) fn handle_opened(&mut self, now: Millis) -> bool {
        self.restarts.handle_opened(now);
        self.needs_epoch && self.restarts.is_settled()
    }

    /// Returns the reason of a resync when the feed was opened, if one is needed.
    pub(crate) fn lost_changes(
        &mut self,
        continuity: Continuity,
        context: &mut Context,
        now: Millis,
    ) -> Option<&'static str> {
        let lost = match continuity {
            Continuity::Whole | Continuity::Gap => None,
            Continuity::Doubtful if self.restarts.suspect(now) => None,
            Continuity::Doubtful => Some(AWAY),
            Continuity::Unrecorded => Some("CouchDB did not record changes for a while"),
        };
        let followed = std::mem::replace(&mut self.followed, true);
        match (self.resync_policy, lost) {
            (Policy::Off, _) | (Policy::Lost, None) => None,
            (_, Some(reason)) => {
                self.doubt_positions(context);
                Some(reason)
            }
            (Policy::Always, None) => followed.then_some("the feed of changes was interrupted"),
        }
    }

    /// Marks all positions as doubtful: a client that is away, or leaves before it gets the resync,
    /// resyncs when it comes back.
    fn doubt_positions(&mut self, context: &mut Context) {
        let doubt = context.jitter.below(u64::from(u32::MAX));
        self.subscriptions.doubt(u32::try_from(doubt).expect("below that"));
    }

    /// Returns whether changes were ever followed.
    pub(crate) fn has_followed(&self) -> bool {
        self.followed
    }

    /// Returns the next question about the nodes of CouchDB.
    pub(crate) fn next_restart_request(&mut self, now: Millis) -> Option<Request> {
        self.restarts.next_request(now)
    }

    /// Handles CouchDB's answer about its nodes; None when there is none. `is_streaming` says
    /// whether the feed is open.
    pub(crate) fn handle_restarts(
        &mut self,
        answer: Option<&Answer>,
        is_streaming: bool,
        now: Millis,
    ) -> Option<Finding> {
        if !is_streaming {
            self.restarts.handle_break();
        }
        let reply = answer.map(|answer| Reply { status: answer.status, date: answer.date, body: &answer.body });
        let finding = self.restarts.handle_reply(reply, now)?;
        log::debug!("Whether CouchDB restarted: {finding:?}, status {:?}.", answer.map(|answer| answer.status));
        Some(finding)
    }

    /// Handles whether CouchDB restarted. Returns the reason of a resync if one is needed.
    pub(crate) fn handle_finding(&mut self, finding: Finding, context: &mut Context) -> Option<&'static str> {
        self.subscriptions.starts = self.restarts.starts();
        let is_suspected = self.restarts.take_suspicion();
        let reason = match finding {
            // Positions of before carry another start: clients that are away resync when they come
            // back.
            Finding::Restarted => Some("CouchDB restarted"),
            Finding::Unknown if is_suspected && self.resync_policy != Policy::Off => {
                self.doubt_positions(context);
                Some(AWAY)
            }
            Finding::First | Finding::Continuous | Finding::Unknown => None,
        };
        // With the other policies clients resynced when the feed was opened, or never do.
        reason.filter(|_| self.resync_policy == Policy::Lost)
    }

    /// Returns whether the epoch is to be requested after a finding.
    pub(crate) fn wants_epoch(&self) -> bool {
        self.needs_epoch && self.positions.epoch().is_none() && self.positions.are_available()
    }

    /// Returns whether sessions ever resync.
    pub(crate) fn may_resync(&self) -> bool {
        self.resync_policy != Policy::Off
    }

    /// Logs that positions are void.
    pub(crate) fn log_other_epoch(&mut self, now: Millis) {
        if let Some(more) = self.epoch_log.pass(now) {
            log::warn!("_global_changes is not the database that it was: all clients resync{more}.");
        }
    }

    /// Starts a resync of sessions. Sessions that an earlier resync has not reached yet are among
    /// them.
    pub(crate) fn start_resync(
        &mut self,
        reason: &'static str,
        is_other_epoch: bool,
        sessions: Vec<Key>,
        context: &mut Context,
        now: Millis,
    ) {
        let (level, more) = self.resync_log.of(reason).level(log::Level::Info, now);
        log::log!(level, "{} clients resync, since changes may have been lost: {reason}{more}.", sessions.len());
        context.metrics.resyncs += 1;
        let earlier = self.resync.take().is_some_and(|resync| resync.other_epoch);
        let mut resync = StaggeredResync::new(reason, sessions, now, &mut context.jitter);
        resync.other_epoch = earlier || is_other_epoch;
        self.resync = Some(resync);
    }

    /// Takes the resync if some of its sessions are due.
    pub(crate) fn take_due_resync(&mut self, now: Millis) -> Option<StaggeredResync> {
        self.resync.take_if(|resync| resync.poll_timeout().is_none_or(|at| at <= now))
    }

    /// Puts the resync back, unless it is complete.
    pub(crate) fn put_resync(&mut self, resync: StaggeredResync, now: Millis) {
        self.last_resync = Some(now);
        self.resync = resync.poll_timeout().is_some().then_some(resync);
    }

    /// Has a session resync. Socket.IO sessions are notified of all their databases.
    pub(crate) fn resync(&mut self, (key, session): (Key, &mut Session), reason: &str) {
        match session.dialect() {
            Dialect::Json => session.send_resync(reason),
            Dialect::SocketIo(_) => self.subscriptions.mark_all(key.index),
        }
    }
}
