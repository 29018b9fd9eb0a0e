//! The server's own credentials: read from their file again, held back while CouchDB refuses them,
//! and logged.

use std::io;

use super::{CHECK_RECORDING_AFTER, Upstream};
use crate::server::context::Context;
use crate::server::ids::Queue;
use crate::server::purpose::Purpose;
use crate::state::admin_access::{AdminEvent, AdminUse};
use crate::state::pool::{Answer, Owner};
use crate::state::timers::Millis;
use crate::wire::couchdb::{self, Requests};
use crate::wire::url::CouchUrl;

const NOT_RECORDING: &str = "CouchDB does not record changes: update_db is false in the section [global_changes] of its \
     configuration, and no client is notified. Run `couchdb-howler check` for how to change it.";

impl Upstream {
    /// Returns whether a request with the server's own credentials may be sent now. Others are sent
    /// in a later turn.
    pub(crate) fn may_ask(&self, what: AdminUse, now: Millis) -> bool {
        self.admin.may_ask(what, now)
    }

    /// Returns whether CouchDB refuses the server's own credentials.
    pub(crate) fn is_refused(&self) -> bool {
        self.admin.is_refused()
    }

    /// Decides whether the feed may send the credentials; else it waits until it may.
    pub(super) fn defer_feed(&mut self, now: Millis) -> bool {
        let Err(at) = self.admin.may_try(now) else { return false };
        self.feed.wait_until(at);
        true
    }

    /// Handles the answer to a request as far as it concerns the server's own credentials.
    pub(super) fn note_answer(
        &mut self,
        purpose: &Purpose,
        answer: Option<&Answer>,
        context: &mut Context,
        now: Millis,
    ) {
        if let Some(answer) = answer {
            self.feed.handle_reachable(now);
            if purpose.admin_use().is_some() {
                self.handle_file_status(answer.status, now);
            }
        }
        let Some(what) = purpose.admin_use() else { return };
        let status = answer.map(|answer| answer.status);
        if !matches!(status, Some(401 | 403)) || !purpose.may_be_forbidden() {
            return self.handle_admin_status(what, status, context, now);
        }
        self.admin.handle_ambiguous(what);
        if !self.admin.is_refused() {
            self.try_credentials(now);
        }
    }

    /// Handles a status that shows whether CouchDB accepts the credentials in the file.
    pub(super) fn handle_file_status(&mut self, status: u16, now: Millis) {
        if let Some(file) = &mut self.credentials_file {
            file.handle_status(status, now);
        }
    }

    /// Handles the status of a request with the server's own credentials; None when there was no
    /// answer.
    pub(super) fn handle_admin_status(
        &mut self,
        what: AdminUse,
        status: Option<u16>,
        context: &mut Context,
        now: Millis,
    ) {
        context.metrics.admin_refusals += u64::from(matches!(status, Some(401 | 403)));
        let event = self.admin.handle_answer(what, status, now);
        // A refusal is logged only after the file was read again: a rotated password is no error.
        let unlogged = self.unlogged_refusal.take();
        match (event, unlogged) {
            (Some(event @ AdminEvent::Refused(_)), _) if self.credentials_file.is_some() => {
                self.unlogged_refusal = Some(event);
            }
            (Some(AdminEvent::Accepted), Some(_)) => {}
            (Some(event), _) => self.log_admin(event, now),
            (None, Some(event)) if matches!(status, Some(401 | 403)) => self.log_admin(event, now),
            (None, unlogged) => self.unlogged_refusal = unlogged,
        }
        if what == AdminUse::Feed && matches!(status, Some(401 | 403)) {
            self.defer_feed(now);
        }
    }

    fn log_admin(&mut self, event: AdminEvent, now: Millis) {
        let level = if event == AdminEvent::Accepted { log::Level::Info } else { log::Level::Error };
        let (level, more) = self.admin_log.of(event).level(level, now);
        log::log!(level, "{event}{more}");
    }

    /// Returns when refused credentials are tried again, while the feed is open and does not do so.
    pub(super) fn credentials_timeout(&self) -> Option<Millis> {
        self.admin.retry_at().filter(|_| self.feed.is_streaming())
    }

    /// Requests a resource that every admin may read, to learn whether CouchDB accepts the
    /// credentials.
    pub(super) fn try_credentials(&mut self, now: Millis) {
        let request = self.requests.own_session();
        self.submit(Queue::Lookups, Owner::Server, request, Purpose::Admin, now);
    }

    /// Has the file of the credentials read again, as an operator asks by a signal. Returns false
    /// when there is none.
    pub(crate) fn reload_credentials(&mut self, now: Millis) -> bool {
        let Some(file) = &mut self.credentials_file else { return false };
        file.reload(now);
        true
    }

    /// Takes the content of the file of the credentials, if it has been read.
    pub(crate) fn handle_credentials_file(&mut self, now: Millis) {
        while let Some((content, asked)) = self.credentials_file.as_mut().and_then(|file| file.take(now)) {
            if let Err(problem) = self.use_url(content, asked, now)
                && let Some(file) = &mut self.credentials_file
            {
                file.log_problem(problem, asked);
            }
        }
    }

    /// Uses the credentials of a URL that was read.
    ///
    /// # Errors
    /// The problem of the file.
    fn use_url(&mut self, content: io::Result<String>, asked: bool, now: Millis) -> Result<(), String> {
        let text = content.map_err(|error| error.to_string())?;
        let url = CouchUrl::parse_file(&text).map_err(|error| error.to_string())?;
        if !url.is_same_place(&self.url) {
            return Err(format!("it names another CouchDB ({url}), which takes a restart"));
        }
        if let Some(file) = &mut self.credentials_file {
            file.clear_problem();
        }
        if url == self.url {
            if asked {
                log::info!("SIGHUP: the file with --couchdb_url holds what is in use already.");
            }
            return Ok(());
        }
        log::info!("Using the credentials for CouchDB that the file with --couchdb_url holds now.");
        let old = std::mem::replace(&mut self.requests, Requests::new(&url));
        self.url = url;
        let requests = &self.requests;
        for queue in &mut self.queues {
            queue.pool.for_each_waiting(|request| requests.renew(&old, request));
        }
        self.admin.handle_credentials();
        self.unlogged_refusal = None;
        self.feed.handle_credentials(self.requests.clone(), now);
        Ok(())
    }

    /// Plans to ask whether CouchDB records changes, after more urgent questions.
    pub(crate) fn plan_recording(&mut self, now: Millis) {
        self.recording_at = Some(now + CHECK_RECORDING_AFTER);
    }

    /// Asks CouchDB whether it records changes, when that is due.
    pub(super) fn ask_recording(&mut self, now: Millis) {
        if self.recording_at.is_none_or(|at| now < at) {
            return;
        }
        self.recording_at = None;
        if self.feed.is_streaming() && self.may_ask(AdminUse::Lookup, now) {
            let request = self.requests.config(couchdb::GLOBAL_CHANGES_SECTION, couchdb::UPDATE_DB);
            self.submit(Queue::Lookups, Owner::Server, request, Purpose::Recording, now);
        }
    }

    /// Handles CouchDB's answer about recording; without one it is taken to record changes.
    pub(crate) fn handle_recording(&mut self, answer: Option<&Answer>, now: Millis) {
        let value = answer.filter(|answer| answer.status == 200).and_then(|answer| couchdb::read_config(&answer.body));
        if value.as_deref() == Some("false")
            && let Some(more) = self.recording_log.pass(now)
        {
            log::warn!("{NOT_RECORDING}{more}");
        }
    }
}
