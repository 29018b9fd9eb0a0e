//! Connections to CouchDB: dialing, the feed's bytes, the answers to log-ins.

use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::net::TcpStream;

use super::connections::READ_BUFFER;
use super::restarts::arm_merge_window;
use super::{Context, Databases, Protocol, Purpose, Queue, Requests, Server, Upstream, UpstreamId};
use crate::net::connection::Flushed;
use crate::net::keep_alive;
use crate::net::stream::{Handshake, Stream};
use crate::net::tls;
use crate::state::admin_access::AdminUse;
use crate::state::dialer::DialAction;
use crate::state::feed::{FeedAction, FeedEvent, FeedPart};
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
        while let Some(answer) = self.upstream.resolver.take_answer() {
            self.upstream.dialer.handle_resolved(&answer, &mut self.upstream.dial_actions);
        }
        self.perform_dial_actions(now);
    }

    fn dial(&mut self, owner: UpstreamId, now: Millis) {
        self.hang_up(owner, now);
        self.upstream.dialer.dial(owner, &mut self.upstream.dial_actions);
        self.perform_dial_actions(now);
    }

    fn perform_dial_actions(&mut self, now: Millis) {
        while let Some(action) = self.upstream.dial_actions.pop() {
            match action {
                DialAction::Resolve => self.upstream.resolver.ask(&self.upstream.url.host, self.upstream.url.port),
                DialAction::Connect(owner, address) => {
                    if let Err(error) = self.connect(owner, address, now) {
                        let error = format!("{address}: {error}");
                        self.upstream.dialer.handle_failed(owner, &error, &mut self.upstream.dial_actions);
                    }
                }
                DialAction::Failed(owner, error) => {
                    self.upstream.feed.handle_unreachable();
                    self.tell_lost(owner, Some(&error), now);
                }
            }
        }
    }

    fn connect(&mut self, owner: UpstreamId, address: SocketAddr, now: Millis) -> io::Result<()> {
        let socket = TcpStream::connect(address)?;
        let _ = socket.set_nodelay(true);
        // Without it, a dead connection shows by the heartbeats and deadlines alone.
        let _ = keep_alive::watch(&socket);
        let stream = if let (true, Some(config)) = (self.upstream.url.tls, &self.upstream.tls) {
            Stream::tls_client(socket, config.clone(), tls::server_name(&self.upstream.url.host)?)?
        } else {
            Stream::plain(socket)
        };
        let protocol = Protocol::Upstream { owner, connected: false };
        let key = self.add_peer(stream, protocol, address.ip(), Deadline::at(now + CONNECT_WITHIN), now)?;
        *self.connection_of(owner) = Some(key);
        Ok(())
    }

    fn connection_of(&mut self, owner: UpstreamId) -> &mut Option<Key> {
        match owner {
            UpstreamId::Feed => &mut self.upstream.feed_connection,
            UpstreamId::Pool(queue, number) => &mut self.upstream.queues[queue as usize].connections[number],
        }
    }

    /// Handles an event of a connection that did not stand yet; whether it stands now. Over TLS it
    /// stands when the handshake is over: an address whose certificate is refused is one that
    /// failed.
    pub(super) fn upstream_connected(&mut self, key: Key, now: Millis) -> bool {
        let Some(peer) = self.connections.peers.get_mut(key) else { return false };
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
        let Some(peer) = self.connections.peers.get_mut(key) else { return false };
        peer.protocol = Protocol::Upstream { owner, connected: true };
        peer.deadline = Deadline::NEVER;
        let address = peer.address;
        let socket = peer.connection.stream().socket();
        let ends = (socket.local_addr(), socket.peer_addr());
        self.upstream.dialer.handle_connected(owner);
        if let (Ok(local), Ok(remote)) = ends {
            self.handle_route(owner, local.ip(), remote.ip(), now);
        }
        match owner {
            UpstreamId::Feed => {
                self.handle_feed_address(address, now);
                self.upstream.feed.handle_connected(now, &mut self.upstream.feed_actions);
                self.perform_feed_actions(now);
            }
            UpstreamId::Pool(queue, number) => {
                let Requests { pool, actions, .. } = &mut self.upstream.queues[queue as usize];
                pool.handle_connected(number, now, actions);
                self.perform_pool_actions(queue, now);
            }
        }
        self.update_interest(key, now);
        true
    }

    /// Goes on with the handshake of TLS, where there is one; whether it is over.
    fn shake_hands_upstream(&mut self, key: Key) -> io::Result<bool> {
        let Some(peer) = self.connections.peers.get_mut(key) else { return Ok(false) };
        // The first word is ours.
        peer.connection.flush()?;
        Ok(peer.connection.handshake()? == Handshake::Done)
    }

    /// Takes note of the way on which a connection reaches CouchDB, before anything is sent on it.
    fn handle_route(&mut self, owner: UpstreamId, local: IpAddr, remote: IpAddr, now: Millis) {
        let login = match owner {
            UpstreamId::Pool(Queue::Logins, number) => Some(number),
            _ => None,
        };
        if self.upstream.forwarding.handle_connected(login, local, remote) {
            log::warn!(
                "CouchDB does not believe X-Forwarded-For of this server, which reaches it from {local}: it counts the \
                 wrong passwords of all clients as those of one, and so they are limited by name \
                 (--couchdb_trusts_forwarded)."
            );
            // Those that wait were let through by address.
            let Requests { pool, actions, .. } = &mut self.upstream.queues[Queue::Logins as usize];
            pool.reject_waiting(actions);
            self.perform_pool_actions(Queue::Logins, now);
        }
    }

    /// The feed is connected to an address. Where that is another one than before, CouchDB has moved, and the
    /// connections to the old address are given up.
    fn handle_feed_address(&mut self, address: IpAddr, now: Millis) {
        if self.upstream.feed_address.replace(address).is_none_or(|earlier| earlier == address) {
            return;
        }
        for queue in Queue::ALL {
            let Requests { pool, actions, .. } = &mut self.upstream.queues[queue as usize];
            pool.retire_connections(actions);
            self.perform_pool_actions(queue, now);
        }
    }

    /// A connection to CouchDB ended, or did not come to stand.
    pub(super) fn upstream_lost(&mut self, key: Key, error: Option<&str>, now: Millis) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        let Protocol::Upstream { owner, connected } = peer.protocol else { return };
        let (address, answered) = (peer.address, peer.known);
        self.close_peer(key, CloseReason::ClientVanished, now);
        *self.connection_of(owner) = None;
        self.forget_route(owner);
        if connected {
            if !answered {
                self.upstream.dialer.handle_silent_close(address);
            }
            return self.tell_lost(owner, error, now);
        }
        let error = format!("{address}: {}", error.unwrap_or("the connection was closed"));
        self.upstream.dialer.handle_failed(owner, &error, &mut self.upstream.dial_actions);
        self.perform_dial_actions(now);
    }

    fn tell_lost(&mut self, owner: UpstreamId, error: Option<&str>, now: Millis) {
        match owner {
            UpstreamId::Feed => {
                self.context.metrics.feed_breaks += 1;
                self.handle_admin_status(AdminUse::Feed, None, now);
                self.upstream.feed.handle_lost(error, now, &mut self.upstream.feed_actions);
                self.perform_feed_actions(now);
            }
            UpstreamId::Pool(queue, number) => {
                if let Some(error) = error {
                    log::debug!("A connection for {} failed: {error}", queue.text());
                }
                let Requests { pool, actions, .. } = &mut self.upstream.queues[queue as usize];
                pool.handle_lost(number, now, actions);
                self.perform_pool_actions(queue, now);
            }
        }
    }

    /// Closes a connection to CouchDB without telling its owner, who wanted it so.
    fn hang_up(&mut self, owner: UpstreamId, now: Millis) {
        self.upstream.dialer.cancel(owner);
        if let Some(key) = self.connection_of(owner).take() {
            self.close_peer(key, CloseReason::Served, now);
        }
        self.forget_route(owner);
    }

    fn forget_route(&mut self, owner: UpstreamId) {
        if let UpstreamId::Pool(Queue::Logins, number) = owner {
            self.upstream.forwarding.handle_closed(number);
        }
    }

    fn send(&mut self, owner: UpstreamId, request: &[u8], now: Millis) {
        let Some(key) = *self.connection_of(owner) else { return };
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        match peer.connection.write(request) {
            Ok(Flushed::All | Flushed::Blocked) => self.update_interest(key, now),
            Err(error) => self.lost(key, Some(&error), now),
        }
    }

    pub(super) fn perform_feed_actions(&mut self, now: Millis) {
        for action in std::mem::take(&mut self.upstream.feed_actions) {
            match action {
                FeedAction::Dial | FeedAction::Send(_) if self.defer_feed(now) => self.hang_up(UpstreamId::Feed, now),
                FeedAction::Dial => self.dial(UpstreamId::Feed, now),
                FeedAction::Send(request) => {
                    self.upstream.admin.handle_sent(AdminUse::Feed);
                    self.send(UpstreamId::Feed, &request, now);
                }
                FeedAction::Close => {
                    self.handle_admin_status(AdminUse::Feed, None, now);
                    self.hang_up(UpstreamId::Feed, now);
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
        for action in std::mem::take(&mut self.upstream.queues[queue as usize].actions) {
            match action {
                PoolAction::Dial(number) => self.dial(UpstreamId::Pool(queue, number), now),
                PoolAction::Send(number, request) => self.send(UpstreamId::Pool(queue, number), &request, now),
                PoolAction::Close(number) => self.hang_up(UpstreamId::Pool(queue, number), now),
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
        let Requests { pool, actions, .. } = &mut self.upstream.queues[queue as usize];
        let submission = Submission { owner, request, purpose, since: now, repeatable: true };
        let submitted = pool.submit(submission, now, actions).ok();
        if let (Some(_), Some(admin_use)) = (submitted, admin_use) {
            self.upstream.admin.handle_sent(admin_use);
        }
        submitted
    }

    /// Gives up what CouchDB did not answer in time.
    pub(super) fn expire_requests(&mut self, now: Millis) {
        for queue in Queue::ALL {
            let Requests { pool, actions, .. } = &mut self.upstream.queues[queue as usize];
            if pool.poll_timeout().is_some_and(|at| at <= now) {
                pool.handle_timeout(now, actions);
                self.perform_pool_actions(queue, now);
            }
        }
    }

    /// CouchDB answered a request, or did not.
    fn handle_answer(&mut self, purpose: Purpose, answer: Result<Answer, NoAnswer>, now: Millis) {
        if let Ok(answer) = &answer {
            self.upstream.feed.handle_reachable(now);
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
            Purpose::LogIn(login, attempt) => self.handle_login(login, attempt, answer, now),
            Purpose::Abandoned(attempt, credentials) => {
                let _ = self.read_login(attempt, &credentials, answer, now);
            }
            Purpose::Security(database) => self.handle_security(database, answer.as_ref().ok(), now),
            Purpose::Check(session, attempt, credentials) => {
                self.handle_check(session, attempt, &credentials, answer.ok(), now);
            }
            Purpose::Lookup(batch) => self.handle_lookup(batch, answer.as_ref().ok(), now),
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
            let Some(peer) = self.connections.peers.get_mut(key) else { return };
            let Protocol::Upstream { owner, .. } = peer.protocol else { return };
            let stream = peer.connection.stream();
            let short_is_last = stream.short_read_is_last() && !to_end;
            match stream.read(&mut self.connections.scratch) {
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
        self.connections.unfinished.push(key);
    }

    /// Takes the first `length` bytes of the scratch buffer as the next of CouchDB.
    fn take_upstream(&mut self, owner: UpstreamId, length: usize, now: Millis) {
        let scratch = std::mem::take(&mut self.connections.scratch);
        match owner {
            UpstreamId::Feed => self.take_feed(&scratch[..length], now),
            UpstreamId::Pool(queue, number) => {
                let Requests { pool, actions, .. } = &mut self.upstream.queues[queue as usize];
                pool.handle_bytes(number, &scratch[..length], now, actions);
                self.perform_pool_actions(queue, now);
            }
        }
        self.connections.scratch = scratch;
    }

    /// Takes bytes of the feed: every change in them marks its subscribers.
    fn take_feed(&mut self, mut input: &[u8], now: Millis) {
        let merge_window = self.merge_window();
        let Self { databases, upstream, context: Context { metrics, .. }, .. } = self;
        let Databases { subscriptions, positions, access, woken, merge_timers, .. } = databases;
        let Upstream { feed, feed_actions: actions, .. } = upstream;
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
                    FeedEvent::Change(name, kind, revision) => {
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
                    FeedEvent::Nothing => {}
                    FeedEvent::Skipped => skipped += 1,
                    FeedEvent::Done => break,
                    FeedEvent::Malformed => {
                        if !feed.handle_malformed_line(now, actions) {
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
            self.context.metrics.skipped_lines += skipped;
            self.handle_gap(now, now);
        }
    }
}
