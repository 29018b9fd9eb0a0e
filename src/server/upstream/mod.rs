//! The owner of what is asked of CouchDB: the feed, the queues of requests, where CouchDB is, and
//! the server's own credentials.
//!
//! Its connections are entries of the connections' owner, known here by their keys: what is to be
//! done with them is returned as actions, which the server performs.
//!
//! | file | content |
//! |---|---|
//! | `feed.rs` | bytes and connections of the feed |
//! | `requests.rs`, `queue.rs` | requests and their answers |
//! | `credentials.rs`, `credentials_file.rs` | the server's own credentials |

mod credentials;
mod credentials_file;
pub(super) mod feed;
mod queue;
mod requests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use self::credentials_file::CredentialsFile;
use self::queue::RequestQueue;
use super::context::Context;
use super::ids::{Queue, UpstreamId};
use super::settings::Settings;
use crate::net::background::Background;
use crate::net::resolver::Resolver;
use crate::state::access::MAX_LOOKUPS;
use crate::state::admin_access::{AdminAccess, AdminEvent, AdminUse};
use crate::state::dialer::{DialAction, Dialer};
use crate::state::feed::{Feed, FeedAction};
use crate::state::forwarded_for::ForwardedForTrust;
use crate::state::jitter::Jitter;
use crate::state::log_throttle::{LogThrottle, LogThrottles, MINUTE, TEN_MINUTES};
use crate::state::pool::{self, Answer};
use crate::state::positions::MAX_BATCHES;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb;
use crate::wire::couchdb::lookup::MAX_ANSWER;
use crate::wire::security::{MAX_SECURITY, Security};
use crate::wire::url::CouchUrl;

/// Connections for questions about access and for checks of sessions.
const CHECKS: usize = MAX_LOOKUPS;
/// Connections for lookups: one for each batch, one for the epoch, and one for the start of CouchDB
/// and other questions.
const LOOKUPS: usize = MAX_BATCHES + 2;

/// Connections to CouchDB apart from those for logins: the feed, checks and lookups.
pub const UPSTREAMS: usize = 1 + CHECKS + LOOKUPS;

/// Time from the opening of the feed to the question whether CouchDB records changes, in
/// milliseconds.
const CHECK_RECORDING_AFTER: Millis = 5_000;

/// A longer `_security` is parsed beside the loop, in bytes: at 1 MiB that takes 20 ms.
const PARSED_AT_ONCE: usize = 16 * 1024;

/// A `_security` that was parsed beside the loop; None when it is no JSON object.
pub(super) type Parsed = (DatabaseId, Option<Security>);

/// The owner of everything that is asked of CouchDB.
#[derive(Debug)]
pub(super) struct Upstream {
    url: CouchUrl,
    requests: couchdb::Requests,
    tls: Option<Arc<rustls::ClientConfig>>,
    feed: Feed,
    dialer: Dialer<UpstreamId>,
    resolver: Resolver,
    /// `_security` objects that are parsed beside the loop.
    parsing: Background<Parsed>,
    /// The file that the URL was read from, if there is one.
    credentials_file: Option<CredentialsFile>,
    feed_connection: Option<Key>,
    /// Address to which the feed was connected last.
    feed_address: Option<IpAddr>,
    /// Whether CouchDB accepts the server's own credentials.
    admin: AdminAccess,
    /// A refusal that is not logged yet.
    unlogged_refusal: Option<AdminEvent>,
    /// Time at which to ask whether CouchDB records changes.
    recording_at: Option<Millis>,
    queues: [RequestQueue; 3],
    forwarding: ForwardedForTrust,
    feed_actions: Vec<FeedAction>,
    dial_actions: Vec<DialAction<UpstreamId>>,
    /// Throttles the lines about the server's own credentials.
    admin_log: LogThrottles<AdminEvent>,
    /// Throttles the line about a CouchDB that records no changes.
    recording_log: LogThrottle,
}

impl Upstream {
    /// Starts the resolver. `waker` is called when the resolver or the reader of files has an
    /// answer.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn new(settings: Settings, waker: Arc<mio::Waker>) -> io::Result<Self> {
        let Settings { couchdb_url: url, feed, tls, login_concurrency, seed, limits, .. } = settings;
        let requests = couchdb::Requests::new(&url);
        Ok(Self {
            feed: Feed::new(feed, requests.clone(), Jitter::new(seed.rotate_left(32))),
            dialer: Dialer::new(&url.host, url.port),
            url,
            requests,
            tls,
            resolver: Resolver::start(Arc::clone(&waker))?,
            parsing: Background::new(Arc::clone(&waker)),
            credentials_file: settings.couchdb_url_file.map(|path| CredentialsFile::new(&path, waker)),
            feed_connection: None,
            feed_address: None,
            admin: AdminAccess::default(),
            unlogged_refusal: None,
            recording_at: None,
            queues: [
                RequestQueue::new(login_concurrency, pool::MAX_BODY, limits.login_queue),
                RequestQueue::new(LOOKUPS, MAX_ANSWER, pool::MAX_WAITING),
                RequestQueue::new(CHECKS, MAX_SECURITY, pool::MAX_WAITING),
            ],
            forwarding: ForwardedForTrust::new(settings.trusts_forwarded, login_concurrency),
            feed_actions: Vec::new(),
            dial_actions: Vec::new(),
            admin_log: LogThrottles::new(MINUTE),
            recording_log: LogThrottle::new(TEN_MINUTES),
        })
    }

    /// Returns when the next turn is due.
    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        let due = [
            self.feed.poll_timeout(),
            self.credentials_file.as_ref().and_then(CredentialsFile::poll_timeout),
            self.credentials_timeout(),
            self.recording_at,
            self.queues.iter().filter_map(|queue| queue.pool.poll_timeout()).min(),
        ];
        due.into_iter().flatten().min()
    }

    /// Handles the deadlines of the feed.
    pub(super) fn expire_feed(&mut self, now: Millis) {
        self.feed.handle_timeout(now, &mut self.feed_actions);
    }

    /// Has the file of the credentials read if it is time.
    pub(super) fn expire_credentials_file(&mut self, now: Millis) {
        if let Some(file) = &mut self.credentials_file {
            file.handle_timeout(now);
        }
    }

    /// Gives up requests of a queue that CouchDB did not answer in time.
    pub(super) fn expire_requests(&mut self, queue: Queue, now: Millis) {
        let RequestQueue { pool, actions, .. } = &mut self.queues[queue as usize];
        if pool.poll_timeout().is_some_and(|at| at <= now) {
            pool.handle_timeout(now, actions);
        }
    }

    /// Tries refused credentials again, and asks whether CouchDB records changes, where that is
    /// due.
    pub(super) fn expire_questions(&mut self, now: Millis) {
        if self.credentials_timeout().is_some_and(|at| at <= now) {
            self.try_credentials(now);
        }
        self.ask_recording(now);
    }

    /// Returns whether lookups may be sent soon.
    pub(super) fn may_look_up_soon(&self) -> bool {
        self.feed.is_streaming() && self.admin.may_ask_soon(AdminUse::Lookup)
    }

    /// Starts to parse a `_security` beside the loop if it is long. Returns whether it does: the
    /// result is for [`Self::take_parsed`]. The question counts as under way until then, so there
    /// are only a few.
    pub(super) fn parse_security(&mut self, database: DatabaseId, answer: &mut Answer) -> bool {
        let is_long = answer.status == 200 && answer.body.len() > PARSED_AT_ONCE;
        if is_long {
            let parse = |(database, body): (DatabaseId, Vec<u8>)| (database, Security::parse(&body));
            self.parsing.start((database, std::mem::take(&mut answer.body)), parse);
        }
        is_long
    }

    /// Takes a `_security` that was parsed beside the loop.
    pub(super) fn take_parsed(&mut self) -> Option<Parsed> {
        self.parsing.take()
    }

    /// Takes the answers of the resolver.
    pub(super) fn handle_resolver(&mut self) {
        while let Some(answer) = self.resolver.take_answer() {
            self.dialer.handle_resolved(&answer, &mut self.dial_actions);
        }
    }

    /// Starts to dial CouchDB for a connection.
    pub(super) fn dial(&mut self, id: UpstreamId) {
        self.dialer.dial(id, &mut self.dial_actions);
    }

    /// Returns the next step of dialing: an address to connect to, or an error for the owner of the
    /// connection.
    pub(super) fn next_dial(&mut self) -> Option<(UpstreamId, Result<SocketAddr, String>)> {
        while let Some(action) = self.dial_actions.pop() {
            match action {
                DialAction::Resolve => self.resolver.ask(&self.url.host, self.url.port),
                DialAction::Connect(id, address) => return Some((id, Ok(address))),
                DialAction::Failed(id, error) => {
                    self.feed.handle_unreachable();
                    return Some((id, Err(error)));
                }
            }
        }
        None
    }

    /// Takes note that an address did not accept a connection.
    pub(super) fn handle_dial_failed(&mut self, id: UpstreamId, error: &str) {
        self.dialer.handle_failed(id, error, &mut self.dial_actions);
    }

    /// Returns the TLS configuration and the name of the host, where the URL says `https`.
    pub(super) fn tls(&self) -> Option<(&Arc<rustls::ClientConfig>, &str)> {
        let config = self.tls.as_ref().filter(|_| self.url.tls)?;
        Some((config, &self.url.host))
    }

    /// Returns the entry for the connection of an id.
    fn connection_mut(&mut self, id: UpstreamId) -> &mut Option<Key> {
        match id {
            UpstreamId::Feed => &mut self.feed_connection,
            UpstreamId::Pool(queue, number) => &mut self.queues[queue as usize].connections[number],
        }
    }

    /// Returns the connection of an id.
    pub(super) fn connection(&self, id: UpstreamId) -> Option<Key> {
        match id {
            UpstreamId::Feed => self.feed_connection,
            UpstreamId::Pool(queue, number) => self.queues[queue as usize].connections[number],
        }
    }

    /// Sets the connection of an id, which is being established.
    pub(super) fn set_connection(&mut self, id: UpstreamId, connection: Key) {
        *self.connection_mut(id) = Some(connection);
    }

    /// Takes the connection of an id out, which is to be closed.
    pub(super) fn take_connection(&mut self, id: UpstreamId) -> Option<Key> {
        if let UpstreamId::Pool(Queue::Logins, number) = id {
            self.forwarding.handle_closed(number);
        }
        self.connection_mut(id).take()
    }

    /// Takes the connection of an id out, and stops dialing for it.
    pub(super) fn release_connection(&mut self, id: UpstreamId) -> Option<Key> {
        self.dialer.cancel(id);
        self.take_connection(id)
    }

    /// Handles that a connection is established, before anything is sent on it. `ends` are the
    /// addresses of its socket. Returns whether CouchDB has moved to another address.
    pub(super) fn handle_connected(&mut self, id: UpstreamId, address: IpAddr, ends: Option<(IpAddr, IpAddr)>) -> bool {
        self.dialer.handle_connected(id);
        let login = match id {
            UpstreamId::Pool(Queue::Logins, number) => Some(number),
            _ => None,
        };
        if let Some((local, remote)) = ends
            && self.forwarding.handle_connected(login, local, remote)
        {
            log::warn!(
                "CouchDB does not believe X-Forwarded-For of this server, which reaches it from {local}: it counts the \
                 wrong passwords of all clients as those of one, and so they are limited by name \
                 (--couchdb_trusts_forwarded)."
            );
            // Waiting logins were admitted by address.
            let RequestQueue { pool, actions, .. } = &mut self.queues[Queue::Logins as usize];
            pool.reject_waiting(actions);
        }
        id == UpstreamId::Feed && self.feed_address.replace(address).is_some_and(|earlier| earlier != address)
    }

    /// Gives up the idle connections of a queue, since CouchDB has moved.
    pub(super) fn retire_connections(&mut self, queue: Queue) {
        let RequestQueue { pool, actions, .. } = &mut self.queues[queue as usize];
        pool.retire_connections(actions);
    }

    /// Starts the use of an established connection.
    pub(super) fn start(&mut self, id: UpstreamId, now: Millis) {
        match id {
            UpstreamId::Feed => self.feed.handle_connected(now, &mut self.feed_actions),
            UpstreamId::Pool(queue, number) => {
                let RequestQueue { pool, actions, .. } = &mut self.queues[queue as usize];
                pool.handle_connected(number, now, actions);
            }
        }
    }

    /// Takes note that an established connection ended before CouchDB sent anything on it.
    pub(super) fn handle_silent_close(&mut self, address: IpAddr) {
        self.dialer.handle_silent_close(address);
    }

    /// Handles that a connection is lost, or that CouchDB cannot be reached.
    pub(super) fn handle_lost(&mut self, id: UpstreamId, error: Option<&str>, context: &mut Context, now: Millis) {
        match id {
            UpstreamId::Feed => {
                context.metrics.feed_breaks += 1;
                self.handle_admin_status(AdminUse::Feed, None, context, now);
                self.feed.handle_lost(error, now, &mut self.feed_actions);
            }
            UpstreamId::Pool(queue, number) => {
                if let Some(error) = error {
                    log::debug!("A connection for {} failed: {error}", queue.text());
                }
                let RequestQueue { pool, actions, .. } = &mut self.queues[queue as usize];
                pool.handle_lost(number, now, actions);
            }
        }
    }

    /// Returns whether CouchDB counts wrong passwords by name only, since it ignores
    /// `X-Forwarded-For`.
    pub(super) fn counts_by_name(&self) -> bool {
        self.forwarding.counts_by_name()
    }
}
