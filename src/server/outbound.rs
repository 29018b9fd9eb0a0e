//! Connections to CouchDB: dialing, the feed's bytes, the answers to log-ins.

use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::net::TcpStream;

use super::restarts::arm_merge_window;
use super::{Protocol, Purpose, Queue, READ_BUFFER, Requests, Server, Upstream};
use crate::net::connection::Flushed;
use crate::net::keep_alive;
use crate::net::stream::{Handshake, Stream};
use crate::net::tls;
use crate::state::admin_access::AdminUse;
use crate::state::dialer::DialAction;
use crate::state::feed::{FeedAction, FeedPart, Told};
use crate::state::merge_window::Admission;
use crate::state::metrics::CloseReason;
use crate::state::pool::{Answer, NoAnswer, Owner, PoolAction, Submission};
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};
use crate::wire::couchdb::ChangeKind;

/// Time for one address of CouchDB to accept a connection, and again for its TLS, in milliseconds.
const CONNECT_WITHIN: Millis = 3_000;
/// Buffers that are read from CouchDB in one turn; then the clients come first. So many lines take some milliseconds, and
/// of a burst each database is told once.
const READS_A_TURN: usize = 16;

impl Server {
    pub(super) fn handle_resolver(&mut self, now: Millis) {
        while let Some(answer) = self.couchdb.resolver.take_answer() {
            self.couchdb.dialer.handle_resolved(&answer, &mut self.couchdb.dial_actions);
        }
        self.perform_dial_actions(now);
    }

    fn dial(&mut self, owner: Upstream, now: Millis) {
        self.hang_up(owner, now);
        self.couchdb.dialer.dial(owner, &mut self.couchdb.dial_actions);
        self.perform_dial_actions(now);
    }

    fn perform_dial_actions(&mut self, now: Millis) {
        while let Some(action) = self.couchdb.dial_actions.pop() {
            match action {
                DialAction::Resolve => self.couchdb.resolver.ask(&self.couchdb.url.host, self.couchdb.url.port),
                DialAction::Connect(owner, address) => {
                    if let Err(error) = self.connect(owner, address, now) {
                        let error = format!("{address}: {error}");
                        self.couchdb.dialer.handle_failed(owner, &error, &mut self.couchdb.dial_actions);
                    }
                }
                DialAction::Failed(owner, error) => {
                    self.feed.handle_unreachable();
                    self.tell_lost(owner, Some(&error), now);
                }
            }
        }
    }

    fn connect(&mut self, owner: Upstream, address: SocketAddr, now: Millis) -> io::Result<()> {
        let socket = TcpStream::connect(address)?;
        let _ = socket.set_nodelay(true);
        // Without it, a dead connection shows by the heartbeats and deadlines alone.
        let _ = keep_alive::watch(&socket);
        let stream = if let (true, Some(config)) = (self.couchdb.url.tls, &self.couchdb.tls) {
            Stream::tls_client(socket, config.clone(), tls::server_name(&self.couchdb.url.host)?)?
        } else {
            Stream::plain(socket)
        };
        let protocol = Protocol::Upstream { owner, connected: false };
        let key = self.add_peer(stream, protocol, address.ip(), Deadline::at(now + CONNECT_WITHIN), now)?;
        *self.connection_of(owner) = Some(key);
        Ok(())
    }

    fn connection_of(&mut self, owner: Upstream) -> &mut Option<Key> {
        match owner {
            Upstream::Feed => &mut self.couchdb.feed_connection,
            Upstream::Pool(queue, number) => &mut self.couchdb.queues[queue as usize].connections[number],
        }
    }

    /// Handles an event of a connection that did not stand yet; whether it stands now. Over TLS it
    /// stands when the handshake is over: an address whose certificate is refused is one that
    /// failed.
    pub(super) fn upstream_connected(&mut self, key: Key, now: Millis) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        let Protocol::Upstream { owner, .. } = peer.protocol else { return false };
        let socket = peer.connection.stream().socket();
        let error = match socket.take_error() {
            Ok(None) => match socket.peer_addr() {
                Ok(_) => None,
                // Not yet: a further event will tell.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => return false,
                Err(error) => Some(error),
            },
            Ok(error) => error,
            Err(error) => Some(error),
        };
        let reached = if let Some(error) = error {
            Err(error)
        } else {
            if peer.connection.is_blocked() {
                peer.connection.handle_writable();
                peer.deadline = Deadline::at(now + CONNECT_WITHIN);
                self.arm_peer(key, now);
            }
            self.shake_hands_upstream(key)
        };
        match reached {
            Ok(true) => {}
            Ok(false) => {
                self.update_interest(key, now);
                return false;
            }
            Err(error) => {
                let text = error.to_string();
                self.upstream_lost(key, Some(&text), now);
                return false;
            }
        }
        let Some(peer) = self.peers.get_mut(key) else { return false };
        peer.protocol = Protocol::Upstream { owner, connected: true };
        peer.deadline = Deadline::NEVER;
        let address = peer.address;
        let socket = peer.connection.stream().socket();
        let ends = (socket.local_addr(), socket.peer_addr());
        self.couchdb.dialer.handle_connected(owner);
        if let (Ok(local), Ok(remote)) = ends {
            self.handle_route(owner, local.ip(), remote.ip(), now);
        }
        match owner {
            Upstream::Feed => {
                self.handle_feed_address(address, now);
                self.feed.handle_connected(now, &mut self.couchdb.feed_actions);
                self.perform_feed_actions(now);
            }
            Upstream::Pool(queue, number) => {
                let Requests { pool, actions, .. } = &mut self.couchdb.queues[queue as usize];
                pool.handle_connected(number, now, actions);
                self.perform_pool_actions(queue, now);
            }
        }
        self.update_interest(key, now);
        true
    }

    /// Goes on with the handshake of TLS, where there is one; whether it is over.
    fn shake_hands_upstream(&mut self, key: Key) -> io::Result<bool> {
        let Some(peer) = self.peers.get_mut(key) else { return Ok(false) };
        // The first word is ours.
        peer.connection.flush()?;
        Ok(peer.connection.handshake()? == Handshake::Done)
    }

    /// Takes note of the way on which a connection reaches CouchDB, before anything is sent on it.
    fn handle_route(&mut self, owner: Upstream, local: IpAddr, remote: IpAddr, now: Millis) {
        let login = match owner {
            Upstream::Pool(Queue::LogIns, number) => Some(number),
            _ => None,
        };
        if self.couchdb.forwarding.handle_connected(login, local, remote) {
            log::warn!(
                "CouchDB does not believe X-Forwarded-For of this server, which reaches it from {local}: it counts the \
                 wrong passwords of all clients as those of one, and so they are limited by name \
                 (--couchdb_trusts_forwarded)."
            );
            // Those that wait were let through by address.
            let Requests { pool, actions, .. } = &mut self.couchdb.queues[Queue::LogIns as usize];
            pool.reject_waiting(actions);
            self.perform_pool_actions(Queue::LogIns, now);
        }
    }

    /// The feed is connected to an address. Where that is another one than before, CouchDB has moved, and the
    /// connections to the old address are given up.
    fn handle_feed_address(&mut self, address: IpAddr, now: Millis) {
        if self.couchdb.feed_address.replace(address).is_none_or(|earlier| earlier == address) {
            return;
        }
        for queue in Queue::ALL {
            let Requests { pool, actions, .. } = &mut self.couchdb.queues[queue as usize];
            pool.retire_connections(actions);
            self.perform_pool_actions(queue, now);
        }
    }

    /// A connection to CouchDB ended, or did not come to stand.
    pub(super) fn upstream_lost(&mut self, key: Key, error: Option<&str>, now: Millis) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let Protocol::Upstream { owner, connected } = peer.protocol else { return };
        let (address, answered) = (peer.address, peer.known);
        self.close_peer(key, CloseReason::ClientVanished, now);
        *self.connection_of(owner) = None;
        self.forget_route(owner);
        if connected {
            if !answered {
                self.couchdb.dialer.handle_mute(address);
            }
            return self.tell_lost(owner, error, now);
        }
        let error = format!("{address}: {}", error.unwrap_or("the connection was closed"));
        self.couchdb.dialer.handle_failed(owner, &error, &mut self.couchdb.dial_actions);
        self.perform_dial_actions(now);
    }

    fn tell_lost(&mut self, owner: Upstream, error: Option<&str>, now: Millis) {
        match owner {
            Upstream::Feed => {
                self.metrics.feed_breaks += 1;
                self.handle_admin_status(AdminUse::Feed, None, now);
                self.feed.handle_lost(error, now, &mut self.couchdb.feed_actions);
                self.perform_feed_actions(now);
            }
            Upstream::Pool(queue, number) => {
                if let Some(error) = error {
                    log::debug!("A connection for {} failed: {error}", queue.text());
                }
                let Requests { pool, actions, .. } = &mut self.couchdb.queues[queue as usize];
                pool.handle_lost(number, now, actions);
                self.perform_pool_actions(queue, now);
            }
        }
    }

    /// Closes a connection to CouchDB without telling its owner, who wanted it so.
    fn hang_up(&mut self, owner: Upstream, now: Millis) {
        self.couchdb.dialer.cancel(owner);
        if let Some(key) = self.connection_of(owner).take() {
            self.close_peer(key, CloseReason::Served, now);
        }
        self.forget_route(owner);
    }

    fn forget_route(&mut self, owner: Upstream) {
        if let Upstream::Pool(Queue::LogIns, number) = owner {
            self.couchdb.forwarding.handle_closed(number);
        }
    }

    fn send(&mut self, owner: Upstream, request: &[u8], now: Millis) {
        let Some(key) = *self.connection_of(owner) else { return };
        let Some(peer) = self.peers.get_mut(key) else { return };
        match peer.connection.write(request) {
            Ok(Flushed::All | Flushed::Blocked) => self.update_interest(key, now),
            Err(error) => self.lost(key, Some(&error), now),
        }
    }

    pub(super) fn perform_feed_actions(&mut self, now: Millis) {
        for action in std::mem::take(&mut self.couchdb.feed_actions) {
            match action {
                FeedAction::Dial | FeedAction::Send(_) if self.defer_feed(now) => self.hang_up(Upstream::Feed, now),
                FeedAction::Dial => self.dial(Upstream::Feed, now),
                FeedAction::Send(request) => {
                    self.couchdb.admin.handle_sent(AdminUse::Feed);
                    self.send(Upstream::Feed, &request, now);
                }
                FeedAction::HangUp => {
                    self.handle_admin_status(AdminUse::Feed, None, now);
                    self.hang_up(Upstream::Feed, now);
                }
                FeedAction::Pinned => self.handle_pinned(),
                FeedAction::Opened(continuity) => {
                    self.handle_admin_answer(200, now);
                    self.handle_opened(continuity, now);
                }
                FeedAction::Refused => self.handle_admin_answer(401, now),
            }
        }
    }

    pub(super) fn perform_pool_actions(&mut self, queue: Queue, now: Millis) {
        for action in std::mem::take(&mut self.couchdb.queues[queue as usize].actions) {
            match action {
                PoolAction::Dial(number) => self.dial(Upstream::Pool(queue, number), now),
                PoolAction::Send(number, request) => self.send(Upstream::Pool(queue, number), &request, now),
                PoolAction::HangUp(number) => self.hang_up(Upstream::Pool(queue, number), now),
                PoolAction::Done(purpose, answer) => self.handle_answer(purpose, answer, now),
            }
        }
    }

    /// Queues a request to CouchDB for an owner. The key is good for giving it up; None when too many wait.
    pub(super) fn ask_couchdb(
        &mut self,
        queue: Queue,
        owner: Owner,
        request: Vec<u8>,
        purpose: Purpose,
        now: Millis,
    ) -> Option<Key> {
        let admin_use = purpose.admin_use();
        let Requests { pool, actions, .. } = &mut self.couchdb.queues[queue as usize];
        let submission = Submission { owner, request, purpose, since: now, repeatable: true };
        let submitted = pool.submit(submission, now, actions).ok();
        if let (Some(_), Some(admin_use)) = (submitted, admin_use) {
            self.couchdb.admin.handle_sent(admin_use);
        }
        submitted
    }

    /// Gives up what CouchDB did not answer in time.
    pub(super) fn expire_requests(&mut self, now: Millis) {
        for queue in Queue::ALL {
            let Requests { pool, actions, .. } = &mut self.couchdb.queues[queue as usize];
            if pool.poll_timeout().is_some_and(|at| at <= now) {
                pool.handle_timeout(now, actions);
                self.perform_pool_actions(queue, now);
            }
        }
    }

    /// CouchDB answered a request, or did not.
    fn handle_answer(&mut self, purpose: Purpose, answer: Result<Answer, NoAnswer>, now: Millis) {
        if let Ok(answer) = &answer {
            self.feed.handle_reachable(now);
            if !matches!(purpose, Purpose::LogIn(..) | Purpose::Abandoned(..) | Purpose::Check(..)) {
                self.handle_admin_answer(answer.status, now);
            }
        }
        self.note_admin_answer(&purpose, answer.as_ref().ok(), now);
        let answer = match purpose {
            Purpose::Security(_) => answer,
            _ => answer.and_then(|answer| if answer.is_too_long { Err(NoAnswer::Sent) } else { Ok(answer) }),
        };
        match purpose {
            Purpose::LogIn(login, attempt) => self.handle_log_in(login, attempt, answer, now),
            Purpose::Abandoned(attempt, credentials) => {
                let _ = self.read_log_in(attempt, &credentials, answer, now);
            }
            Purpose::Security(database) => self.handle_security(database, answer.as_ref().ok(), now),
            Purpose::Check(session, attempt, credentials) => {
                self.handle_check(session, attempt, &credentials, answer.ok(), now);
            }
            Purpose::LookUp(batch) => self.handle_look_up(batch, answer.as_ref().ok(), now),
            Purpose::Epoch => self.handle_epoch(answer.as_ref().ok(), now),
            Purpose::Restarts => self.handle_restarts(answer.as_ref().ok(), now),
            Purpose::Recording => self.handle_recording(answer.as_ref().ok(), now),
            // What it says of the credentials was noted.
            Purpose::Admin => {}
        }
    }

    /// Reads what CouchDB sent, up to a limit; what is left is read in the next turn. `to_end` when more than data may
    /// wait: an end that no further event tells of.
    pub(super) fn read_upstream(&mut self, key: Key, to_end: bool, now: Millis) {
        for _ in 0..READS_A_TURN {
            let Some(peer) = self.peers.get_mut(key) else { return };
            let Protocol::Upstream { owner, .. } = peer.protocol else { return };
            let stream = peer.connection.stream();
            let short_is_last = stream.short_read_is_last() && !to_end;
            match stream.read(&mut self.scratch) {
                Ok(0) => return self.upstream_lost(key, None, now),
                Ok(length) => {
                    peer.known = true;
                    self.take_upstream(owner, length, now);
                    if length < READ_BUFFER && short_is_last {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Reading may have made TLS write.
                    return match peer.connection.flush() {
                        Ok(_) => self.update_interest(key, now),
                        Err(error) => self.lost(key, Some(&error), now),
                    };
                }
                Err(error) => return self.lost(key, Some(&error), now),
            }
        }
        self.unfinished.push(key);
    }

    /// Takes the first `length` bytes of the scratch buffer as the next of CouchDB.
    fn take_upstream(&mut self, owner: Upstream, length: usize, now: Millis) {
        let scratch = std::mem::take(&mut self.scratch);
        match owner {
            Upstream::Feed => self.take_feed(&scratch[..length], now),
            Upstream::Pool(queue, number) => {
                let Requests { pool, actions, .. } = &mut self.couchdb.queues[queue as usize];
                pool.handle_bytes(number, &scratch[..length], now, actions);
                self.perform_pool_actions(queue, now);
            }
        }
        self.scratch = scratch;
    }

    /// Takes bytes of the feed: every change in them marks its subscribers.
    fn take_feed(&mut self, mut input: &[u8], now: Millis) {
        let merge_window = self.merge_window();
        let Self { feed, subscriptions, positions, access, metrics, woken, couchdb, merge_timers, .. } = self;
        let actions = &mut couchdb.feed_actions;
        let (mut skipped, mut status) = (0, None);
        loop {
            let (used, part) = feed.handle_bytes(input, now, actions);
            input = &input[used..];
            status = feed.take_status().or(status);
            let content = match part {
                FeedPart::Done => break,
                FeedPart::Nothing => continue,
                FeedPart::Content(content) => content,
            };
            let mut place = 0;
            loop {
                let (used, told) = feed.next_line(content, place, now);
                place += used;
                match told {
                    Told::Change(name, kind, revision) => {
                        metrics.changes += 1;
                        if let Some(database) = subscriptions.find(&name) {
                            let before = access.is_restricted().then(|| subscriptions.told(database)).flatten();
                            let is_news = subscriptions.watch_mut(database).handle_line(kind, revision, now);
                            // Else its subscribers are notified once it is known who may read it.
                            if access.handle_line(database, kind, is_news, before, subscriptions) {
                                // That a database is gone leaves in doubt who may read it: nothing waits for that.
                                let waits = kind == ChangeKind::Updated || !access.is_restricted();
                                let window = if waits { merge_window } else { 0 };
                                match subscriptions.admit(database, kind, window, now) {
                                    Admission::Notify(kind) => {
                                        metrics.merged_notifications += subscriptions.mark(database, kind, woken);
                                    }
                                    Admission::Hold(until) => {
                                        metrics.merged_changes += 1;
                                        arm_merge_window(merge_timers, database, until, now);
                                    }
                                }
                            }
                            if is_news && revision.is_none() {
                                positions.want(database, None, subscriptions);
                            }
                        }
                    }
                    Told::Nothing => {}
                    Told::Skipped => skipped += 1,
                    Told::Done => break,
                    Told::Broken => {
                        if !feed.handle_broken_line(now, actions) {
                            break;
                        }
                        skipped += 1;
                    }
                }
            }
        }
        self.wake();
        if status.is_some() {
            self.handle_admin_status(AdminUse::Feed, status, now);
        }
        self.perform_feed_actions(now);
        if skipped > 0 {
            self.metrics.skipped_lines += skipped;
            self.handle_gap(now, now);
        }
    }
}
