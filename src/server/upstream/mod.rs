//! What is asked of CouchDB: the feed, the request queues, and the server's own credentials.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::credentials::CredentialsFile;
use super::ids::UpstreamId;
use super::purpose::Purpose;
use super::settings::Settings;
use crate::net::resolver::Resolver;
use crate::state::access::MAX_QUESTIONS;
use crate::state::admin_access::{AdminAccess, AdminEvent};
use crate::state::dialer::{DialAction, Dialer};
use crate::state::feed::{Feed, FeedAction};
use crate::state::forwarded_for::ForwardedForTrust;
use crate::state::jitter::Jitter;
use crate::state::log_throttle::{LogThrottle, LogThrottles, MINUTE, TEN_MINUTES};
use crate::state::pool::{self, Pool, PoolAction};
use crate::state::positions::MAX_BATCHES;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb;
use crate::wire::positions::MAX_ANSWER;
use crate::wire::security::MAX_SECURITY;
use crate::wire::url::CouchUrl;

/// Connections to CouchDB on which it is asked who may read what, and whether users are still logged in.
const CHECKS: usize = MAX_QUESTIONS;
/// Connections to CouchDB for look-ups: one for each batch, one for the epoch, and one for when CouchDB started and
/// other questions.
const LOOKUPS: usize = MAX_BATCHES + 2;

/// Connections to CouchDB beside those of log-ins: the feed, checks and look-ups.
pub const UPSTREAMS: usize = 1 + CHECKS + LOOKUPS;

/// The owner of everything that is asked of CouchDB.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) url: CouchUrl,
    pub(super) requests: couchdb::Requests,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    pub(super) feed: Feed,
    pub(super) dialer: Dialer<UpstreamId>,
    pub(super) resolver: Resolver,
    /// Where the URL was read from, if that can change.
    pub(super) credentials_file: Option<CredentialsFile>,
    pub(super) feed_connection: Option<Key>,
    /// Where the feed was connected to last.
    pub(super) feed_address: Option<IpAddr>,
    /// The credentials of the server itself.
    pub(super) admin: AdminAccess,
    /// A refusal that is not logged yet.
    pub(super) admin_unsaid: Option<AdminEvent>,
    /// Throttles the lines about the server's own credentials.
    pub(super) admin_log: LogThrottles<AdminEvent>,
    /// When to ask whether CouchDB records changes.
    pub(super) recording_at: Option<Millis>,
    /// Throttles the line about a CouchDB that records no changes.
    pub(super) recording_log: LogThrottle,
    pub(super) queues: [Requests; 3],
    pub(super) forwarding: ForwardedForTrust,
    pub(super) feed_actions: Vec<FeedAction>,
    pub(super) dial_actions: Vec<DialAction<UpstreamId>>,
}

impl Upstream {
    /// Starts the resolver; `waker` is called when it or the reader of files has an answer.
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
            credentials_file: settings.couchdb_url_file.map(|path| CredentialsFile::new(&path, waker)),
            feed_connection: None,
            feed_address: None,
            admin: AdminAccess::default(),
            admin_unsaid: None,
            admin_log: LogThrottles::new(MINUTE),
            recording_at: None,
            recording_log: LogThrottle::new(TEN_MINUTES),
            queues: [
                Requests::new(login_concurrency, pool::MAX_BODY, limits.login_queue),
                Requests::new(LOOKUPS, MAX_ANSWER, pool::MAX_WAITING),
                Requests::new(CHECKS, MAX_SECURITY, pool::MAX_WAITING),
            ],
            forwarding: ForwardedForTrust::new(settings.trusts_forwarded, login_concurrency),
            feed_actions: Vec::new(),
            dial_actions: Vec::new(),
        })
    }
}

/// Requests of one kind, which wait for each other alone: a storm of log-ins delays nothing else.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) pool: Pool<Purpose>,
    pub(super) connections: Vec<Option<Key>>,
    pub(super) actions: Vec<PoolAction<Purpose>>,
}

impl Requests {
    fn new(size: usize, max_body: usize, max_waiting: usize) -> Self {
        Self { pool: Pool::new(size, max_body, max_waiting), connections: vec![None; size], actions: Vec::new() }
    }
}
