//! Connections to CouchDB: dialing, bytes of the feed, answers to requests.

use super::Server;
use super::connections::couchdb::{ConnectProgress, UpstreamRead};
use super::ids::{Queue, UpstreamId};
use super::purpose::Purpose;
use super::upstream::feed::FeedStep;
use crate::state::metrics::CloseReason;
use crate::state::pool::{Answer, NoAnswer, PoolAction};
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Buffers that are read from CouchDB in one turn before the clients' turn. As many lines take some
/// milliseconds, and changes of one database in them are one notification.
const READS_A_TURN: usize = 16;

impl Server {
    fn dial(&mut self, id: UpstreamId, now: Millis) {
        self.close_upstream(id, now);
        self.upstream.dial(id);
        self.connect_dialed(now);
    }

    /// Connects to the addresses that were resolved.
    pub(super) fn connect_dialed(&mut self, now: Millis) {
        while let Some((id, step)) = self.upstream.next_dial() {
            match step {
                Ok(address) => {
                    let tls = self.upstream.tls();
                    match self.connections.connect_upstream(id, address, tls, &mut self.context, now) {
                        Ok(key) => self.upstream.set_connection(id, key),
                        Err(error) => self.upstream.handle_dial_failed(id, &format!("{address}: {error}")),
                    }
                }
                Err(error) => self.report_lost(id, Some(&error), now),
            }
        }
    }

    /// Handles an event of a connection that was not established. Returns whether it is established
    /// now.
    pub(super) fn finish_connect(&mut self, key: Key, now: Millis) -> bool {
        let (id, address, ends) = match self.connections.handle_connecting(key, &mut self.context, now) {
            ConnectProgress::Pending => return false,
            ConnectProgress::Failed(error) => {
                self.upstream_lost(key, Some(&error), now);
                return false;
            }
            ConnectProgress::Established { id, address, ends } => (id, address, ends),
        };
        let has_moved = self.upstream.handle_connected(id, address, ends);
        self.perform_queue_actions(Queue::Logins, now);
        if has_moved {
            for queue in Queue::ALL {
                self.upstream.retire_connections(queue);
                self.perform_queue_actions(queue, now);
            }
        }
        self.upstream.start(id, now);
        self.perform_upstream_actions(id, now);
        if let Err(error) = self.connections.update_interest(key) {
            self.connection_lost(key, Some(&error.to_string()), now);
        }
        true
    }

    /// Handles that a connection to CouchDB ended, or could not be established.
    pub(super) fn upstream_lost(&mut self, key: Key, error: Option<&str>, now: Millis) {
        let Some((id, is_established)) = self.connections.upstream(key) else { return };
        let Some((address, has_answered)) = self.connections.upstream_address(key) else { return };
        self.close_connection(key, CloseReason::ClientVanished, now);
        self.upstream.take_connection(id);
        if is_established {
            if !has_answered {
                self.upstream.handle_silent_close(address);
            }
            return self.report_lost(id, error, now);
        }
        let error = format!("{address}: {}", error.unwrap_or("the connection was closed"));
        self.upstream.handle_dial_failed(id, &error);
        self.connect_dialed(now);
    }

    /// Reports a lost connection to the feed or its pool.
    fn report_lost(&mut self, id: UpstreamId, error: Option<&str>, now: Millis) {
        self.upstream.handle_lost(id, error, &mut self.context, now);
        self.perform_upstream_actions(id, now);
    }

    /// Closes a connection to CouchDB on behalf of the feed or its pool.
    fn close_upstream(&mut self, id: UpstreamId, now: Millis) {
        if let Some(key) = self.upstream.release_connection(id) {
            self.close_connection(key, CloseReason::Served, now);
        }
    }

    fn send(&mut self, id: UpstreamId, request: &[u8], now: Millis) {
        let Some(key) = self.upstream.connection(id) else { return };
        if let Err(error) = self.connections.send_upstream(key, request) {
            self.connection_lost(key, Some(&error.to_string()), now);
        }
    }

    fn perform_upstream_actions(&mut self, id: UpstreamId, now: Millis) {
        match id {
            UpstreamId::Feed => self.perform_feed_actions(now),
            UpstreamId::Pool(queue, _) => self.perform_queue_actions(queue, now),
        }
    }

    /// Performs the actions of the feed.
    pub(super) fn perform_feed_actions(&mut self, now: Millis) {
        for action in self.upstream.take_feed_actions() {
            let Some(step) = self.upstream.feed_step(action, &mut self.context, now) else { continue };
            match step {
                FeedStep::Dial => self.dial(UpstreamId::Feed, now),
                FeedStep::Send(request) => self.send(UpstreamId::Feed, &request, now),
                FeedStep::Close => self.close_upstream(UpstreamId::Feed, now),
                FeedStep::Pinned => {
                    self.databases.handle_pinned();
                    self.mark_notified();
                }
                FeedStep::Opened(continuity) => self.handle_opened(continuity, now),
            }
        }
    }

    /// Performs the actions of a queue of requests.
    pub(super) fn perform_queue_actions(&mut self, queue: Queue, now: Millis) {
        for action in self.upstream.take_queue_actions(queue) {
            match action {
                PoolAction::Dial(number) => self.dial(UpstreamId::Pool(queue, number), now),
                PoolAction::Send(number, request) => self.send(UpstreamId::Pool(queue, number), &request, now),
                PoolAction::Close(number) => self.close_upstream(UpstreamId::Pool(queue, number), now),
                PoolAction::Done(purpose, answer) => self.handle_answer(purpose, answer, now),
            }
        }
    }

    /// Handles CouchDB's answer to a request, or that there is none.
    fn handle_answer(&mut self, purpose: Purpose, answer: Result<Answer, NoAnswer>, now: Millis) {
        let answer = self.upstream.handle_answer(&purpose, answer, &mut self.context, now);
        self.perform_queue_actions(Queue::Lookups, now);
        match purpose {
            Purpose::Login(login, attempt) => self.handle_login(login, attempt, answer, now),
            Purpose::Abandoned(attempt, credentials) => self.handle_abandoned(attempt, &credentials, answer, now),
            Purpose::Security(database) => self.handle_security(database, answer.ok(), now),
            Purpose::Check(session, attempt, credentials) => {
                self.handle_check(session, attempt, &credentials, answer.ok(), now);
            }
            Purpose::Lookup(batch) => self.handle_lookup(batch, answer.as_ref().ok(), now),
            Purpose::Epoch => self.handle_epoch(answer.as_ref().ok(), now),
            Purpose::Restarts => self.handle_restarts(answer.as_ref().ok(), now),
            Purpose::Recording => self.upstream.handle_recording(answer.as_ref().ok(), now),
            // Its status was handled already.
            Purpose::Admin => {}
        }
    }

    /// Reads bytes of CouchDB up to a limit; the rest is read in the next turn. `to_end` when the
    /// socket may also hold an end that no further event announces.
    pub(super) fn read_upstream(&mut self, key: Key, to_end: bool, now: Millis) {
        for _ in 0..READS_A_TURN {
            match self.connections.read_upstream(key, to_end) {
                UpstreamRead::Nothing => return,
                UpstreamRead::Lost(error) => return self.upstream_lost(key, error.as_deref(), now),
                UpstreamRead::Bytes { id, length, is_last } => {
                    let scratch = self.connections.take_scratch();
                    match id {
                        UpstreamId::Feed => self.handle_feed_bytes(&scratch[..length], now),
                        UpstreamId::Pool(queue, number) => {
                            self.upstream.handle_answer_bytes(queue, number, &scratch[..length], now);
                            self.perform_queue_actions(queue, now);
                        }
                    }
                    self.connections.put_scratch(scratch);
                    if is_last {
                        return;
                    }
                }
            }
        }
        self.connections.mark_unfinished(key);
    }

    /// Handles bytes of the feed: every change in them marks the subscribers of its database.
    fn handle_feed_bytes(&mut self, bytes: &[u8], now: Millis) {
        let Self { upstream, databases, context, .. } = self;
        let merge_window = databases.merge_window();
        let skipped = upstream.handle_feed_bytes(bytes, context, now, |context, name, kind, revision| {
            databases.handle_change(name, kind, revision, merge_window, context, now);
        });
        self.mark_notified();
        self.perform_feed_actions(now);
        if skipped > 0 {
            self.handle_gap(now, now);
        }
    }
}
