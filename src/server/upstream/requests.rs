//! Requests to CouchDB and their answers.

use std::net::IpAddr;

use super::Upstream;
use super::queue::RequestQueue;
use crate::server::context::Context;
use crate::server::ids::Queue;
use crate::server::purpose::{Login, Purpose};
use crate::state::pool::{Answer, NoAnswer, Owner, PoolAction, Rejection, Submission};
use crate::state::positions::Batch;
use crate::state::restarts::Request;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::Credentials;

impl Upstream {
    /// Queues a request. Returns its ticket; None when too many wait.
    pub(super) fn submit(
        &mut self,
        queue: Queue,
        owner: Owner,
        request: Vec<u8>,
        purpose: Purpose,
        now: Millis,
    ) -> Option<Key> {
        let admin_use = purpose.admin_use();
        let RequestQueue { pool, actions, .. } = &mut self.queues[queue as usize];
        let submission = Submission { owner, request, purpose, since: now, repeatable: true };
        let submitted = pool.submit(submission, now, actions).ok();
        if let (Some(_), Some(admin_use)) = (submitted, admin_use) {
            self.admin.handle_sent(admin_use);
        }
        submitted
    }

    /// Asks who may read a database. Returns false when too many requests wait.
    pub(crate) fn ask_security(&mut self, database: DatabaseId, name: &str, now: Millis) -> bool {
        let request = self.requests.security(name);
        self.submit(Queue::Checks, Owner::Server, request, Purpose::Security(database), now).is_some()
    }

    /// Asks whether a session is still logged in. Returns false when too many requests wait; None
    /// without a request.
    pub(crate) fn ask_check(
        &mut self,
        session: Key,
        attempt: u32,
        credentials: &Credentials,
        client: IpAddr,
        now: Millis,
    ) -> Option<bool> {
        let request = self.requests.log_in(credentials, client)?;
        let purpose = Purpose::Check(session, attempt, credentials.clone());
        Some(self.submit(Queue::Checks, Owner::SessionChecks, request, purpose, now).is_some())
    }

    /// Looks up the positions of databases; `name` returns the name of one.
    pub(crate) fn look_up<'a>(&mut self, batch: Batch, name: impl Fn(DatabaseId) -> &'a str, now: Millis) {
        let request = self.requests.look_up(batch.databases.iter().map(|database| name(*database)));
        self.submit_lookup(request, Purpose::Lookup(batch), now);
    }

    /// Asks for the epoch of positions.
    pub(crate) fn ask_epoch(&mut self, now: Millis) {
        let request = self.requests.epoch();
        self.submit_lookup(request, Purpose::Epoch, now);
    }

    /// Asks about the nodes of CouchDB.
    pub(crate) fn ask_restarts(&mut self, request: Request, now: Millis) {
        let requests = &self.requests;
        let request = match request {
            Request::Membership => requests.membership(),
            Request::Name => requests.node_name(),
            Request::System(node) => requests.system(node.as_deref()),
        };
        self.submit_lookup(request, Purpose::Restarts, now);
    }

    fn submit_lookup(&mut self, request: Vec<u8>, purpose: Purpose, now: Millis) {
        let submitted = self.submit(Queue::Lookups, Owner::Server, request, purpose, now);
        debug_assert!(submitted.is_some(), "there are never more than a few");
    }

    /// Queues a login. Returns its ticket.
    ///
    /// # Errors
    /// When it cannot be answered in time.
    pub(crate) fn ask_login(&mut self, login: Login, attempt: Key, now: Millis) -> Result<Key, Rejection> {
        let (client, since) = (login.client, login.since);
        let request = self.requests.log_in(&login.credentials, client).unwrap_or_default();
        // CouchDB counts a wrong password each time.
        let repeatable = !matches!(login.credentials, Credentials::Password { .. });
        let purpose = Purpose::Login(login, attempt);
        let submission = Submission { owner: Owner::at(client), request, purpose, since, repeatable };
        let RequestQueue { pool, actions, .. } = &mut self.queues[Queue::Logins as usize];
        pool.submit(submission, now, actions)
    }

    /// Abandons a login that its session does not wait for any more. One that was sent still
    /// counts, since its password may be wrong. Returns the key of the attempt if it was not sent.
    pub(crate) fn abandon_login(&mut self, ticket: Key) -> Option<Key> {
        let pool = &mut self.queues[Queue::Logins as usize].pool;
        let is_sent = pool.is_sent(ticket);
        let purpose = pool.purpose(ticket)?;
        let Purpose::Login(login, attempt) = purpose else { return None };
        let attempt = *attempt;
        if is_sent {
            *purpose = Purpose::Abandoned(attempt, std::mem::take(&mut login.credentials));
            return None;
        }
        pool.cancel(ticket);
        Some(attempt)
    }

    /// Returns whether logins wait for others to be answered.
    pub(crate) fn has_waiting_logins(&self) -> bool {
        self.queues[Queue::Logins as usize].pool.is_waiting()
    }

    /// Compares a password for the server's own admin. Returns None for another name.
    pub(crate) fn is_own_password(&self, name: &str, password: &str) -> Option<bool> {
        self.requests.is_own_password(name, password)
    }

    /// Returns the number of requests in each queue, with the queue's name in the metrics.
    pub(crate) fn request_counts(&self) -> [(&'static str, usize); 3] {
        Queue::ALL.map(|queue| (queue.label(), self.queues[queue as usize].pool.len()))
    }

    /// Handles bytes on a connection of a queue.
    pub(crate) fn handle_answer_bytes(&mut self, queue: Queue, number: usize, input: &[u8], now: Millis) {
        let RequestQueue { pool, actions, .. } = &mut self.queues[queue as usize];
        pool.handle_bytes(number, input, now, actions);
    }

    /// Takes the actions of a queue.
    pub(crate) fn take_queue_actions(&mut self, queue: Queue) -> Vec<PoolAction<Purpose>> {
        std::mem::take(&mut self.queues[queue as usize].actions)
    }

    /// Handles what an answer says of CouchDB and of the server's own credentials. Returns the
    /// answer to its purpose: only a `_security` object may be too long.
    pub(crate) fn handle_answer(
        &mut self,
        purpose: &Purpose,
        answer: Result<Answer, NoAnswer>,
        context: &mut Context,
        now: Millis,
    ) -> Result<Answer, NoAnswer> {
        self.note_answer(purpose, answer.as_ref().ok(), context, now);
        match (purpose, answer) {
            (Purpose::Security(_), answer) => answer,
            (_, Ok(answer)) if answer.is_too_long => Err(NoAnswer::Sent),
            (_, answer) => answer,
        }
    }
}
