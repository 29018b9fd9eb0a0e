//! The server's own credentials at CouchDB: what is held back while CouchDB refuses them, and what an operator is told.

use super::{Purpose, Queue, Server};
use crate::state::admin_access::{AdminEvent, AdminUse};
use crate::state::pool::{Answer, Owner};
use crate::state::timers::Millis;
use crate::wire::couchdb;

const NOT_RECORDING: &str = "CouchDB does not record changes: update_db is false in the section [global_changes] of its \
     configuration, and no client is notified. Run `couchdb-howler check` for how to change it.";

/// Time from the opening of the feed to the question whether CouchDB records changes, in milliseconds.
const ASK_RECORDING_AFTER: Millis = 5_000;

impl Purpose {
    /// What the server's own credentials are sent for; None where the request carries those of a user.
    pub(super) fn admin_use(&self) -> Option<AdminUse> {
        match self {
            Self::LogIn(..) | Self::Abandoned(..) | Self::Check(..) => None,
            Self::Security(_) => Some(AdminUse::Security),
            Self::Lookup(_) | Self::Epoch | Self::Restarts | Self::Recording | Self::Admin => Some(AdminUse::Lookup),
        }
    }

    /// Whether hosts and proxies may refuse the request although they accept the credentials.
    fn may_be_forbidden(&self) -> bool {
        matches!(self, Self::Restarts | Self::Recording)
    }
}

impl Server {
    /// Whether a question with the server's own credentials may be sent now. What waits is sent in a later turn.
    pub(super) fn may_ask(&self, what: AdminUse, now: Millis) -> bool {
        self.upstream.admin.may_ask(what, now)
    }

    /// Whether the feed has to wait before it sends the credentials; it does then.
    pub(super) fn defer_feed(&mut self, now: Millis) -> bool {
        let Err(at) = self.upstream.admin.may_try(now) else { return false };
        self.upstream.feed.wait_until(at);
        true
    }

    /// Takes the answer to a request of a pool as far as it says something of the server's own credentials.
    pub(super) fn note_admin_answer(&mut self, purpose: &Purpose, answer: Option<&Answer>, now: Millis) {
        let Some(what) = purpose.admin_use() else { return };
        let status = answer.map(|answer| answer.status);
        if !matches!(status, Some(401 | 403)) || !purpose.may_be_forbidden() {
            return self.handle_admin_status(what, status, now);
        }
        self.upstream.admin.handle_ambiguous(what);
        if !self.upstream.admin.is_refused() {
            self.try_credentials(now);
        }
    }

    /// Takes the status that answers a request with the server's own credentials; None when there was no answer.
    pub(super) fn handle_admin_status(&mut self, what: AdminUse, status: Option<u16>, now: Millis) {
        self.context.metrics.admin_refusals += u64::from(matches!(status, Some(401 | 403)));
        let event = self.upstream.admin.handle_answer(what, status, now);
        // Where the credentials are in a file, it is read again first: a rotated password is no error.
        let unsaid = self.upstream.admin_unsaid.take();
        match (event, unsaid) {
            (Some(event @ AdminEvent::Refused(_)), _) if self.upstream.credentials_file.is_some() => {
                self.upstream.admin_unsaid = Some(event);
            }
            (Some(AdminEvent::Accepted), Some(_)) => {}
            (Some(event), _) => self.log_admin(event, now),
            (None, Some(event)) if matches!(status, Some(401 | 403)) => self.log_admin(event, now),
            (None, unsaid) => self.upstream.admin_unsaid = unsaid,
        }
        if what == AdminUse::Feed && matches!(status, Some(401 | 403)) {
            self.defer_feed(now);
        }
    }

    fn log_admin(&mut self, event: AdminEvent, now: Millis) {
        let level = if event == AdminEvent::Accepted { log::Level::Info } else { log::Level::Error };
        let (level, more) = self.upstream.admin_log.of(event).level(level, now);
        log::log!(level, "{event}{more}");
    }

    /// Other credentials are used from now on.
    pub(super) fn handle_admin_credentials(&mut self) {
        self.upstream.admin.handle_credentials();
        self.upstream.admin_unsaid = None;
    }

    /// When refused credentials are tried again in place of the feed, which is open.
    pub(super) fn admin_timeout(&self) -> Option<Millis> {
        self.upstream.admin.retry_at().filter(|_| self.upstream.feed.is_streaming())
    }

    /// Tries refused credentials again.
    pub(super) fn expire_admin(&mut self, now: Millis) {
        if self.admin_timeout().is_some_and(|at| at <= now) {
            self.try_credentials(now);
        }
    }

    /// Asks CouchDB whose the credentials are, which nobody has a reason to refuse but for them.
    fn try_credentials(&mut self, now: Millis) {
        let request = self.upstream.requests.own_session();
        self.ask_couchdb(Queue::Lookups, Owner::Server, request, Purpose::Admin, now);
        self.perform_pool_actions(Queue::Lookups, now);
    }

    /// The feed is open. Whether CouchDB records changes is asked once all that is more urgent was.
    pub(super) fn plan_recording(&mut self, now: Millis) {
        self.upstream.recording_at = Some(now + ASK_RECORDING_AFTER);
    }

    /// Asks CouchDB whether it records changes, when that is due.
    pub(super) fn ask_recording(&mut self, now: Millis) {
        if self.upstream.recording_at.is_none_or(|at| now < at) {
            return;
        }
        self.upstream.recording_at = None;
        if self.upstream.feed.is_streaming() && self.may_ask(AdminUse::Lookup, now) {
            let request = self.upstream.requests.config(couchdb::GLOBAL_CHANGES_SECTION, couchdb::UPDATE_DB);
            self.ask_couchdb(Queue::Lookups, Owner::Server, request, Purpose::Recording, now);
            self.perform_pool_actions(Queue::Lookups, now);
        }
    }

    /// CouchDB said whether it records changes; a host that does not say is taken to.
    pub(super) fn handle_recording(&mut self, answer: Option<&Answer>, now: Millis) {
        let value = answer.filter(|answer| answer.status == 200).and_then(|answer| couchdb::read_config(&answer.body));
        if value.as_deref() == Some("false")
            && let Some(more) = self.upstream.recording_log.pass(now)
        {
            log::warn!("{NOT_RECORDING}{more}");
        }
    }
}
