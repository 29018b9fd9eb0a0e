//! The server: owns every table, hands each event to the machine that it is for, and carries out what
//! the machines ask for. It is driven by [`crate::event_loop`], turn by turn.
//!
//! | file | what is in it |
//! |---|---|
//! | `mod.rs` | the tables, and the steps of a turn |
//! | `doors.rs` | the ports: TLS, and none |
//! | `credentials.rs` | the server's own credentials, read again from their file |
//! | `admin.rs` | the server's own credentials at CouchDB |
//! | `arrivals.rs` | clients that come, as many as there may be |
//! | `inbound.rs` | connections of clients: HTTP, WebSocket frames |
//! | `http_exchange.rs` | answers to HTTP requests |
//! | `operation.rs` | health, readiness and metrics, and the port for them |
//! | `polling.rs` | sessions over HTTP long polling, and their upgrade |
//! | `sessions.rs` | actions of sessions |
//! | `access.rs` | who may subscribe to what, and who is still logged in |
//! | `name_lists.rs` | long lists of names, worked off over turns |
//! | `departures.rs` | sessions that end |
//! | `positions.rs` | subscribing, look-ups of positions, resync |
//! | `restarts.rs` | whether CouchDB restarted |
//! | `outbound.rs` | connections to CouchDB: the feed, the log-ins |
//! | `flush.rs` | what is written, and when |
//! | `events.rs` | what the log tells of requests and sessions |
//! | `memory.rs` | the memory of the process against its limit |
//! | `unauthenticated.rs` | clients that have not logged in, and their eviction |
//! | `farewell.rs` | the end: seeing the clients off |

mod access;
mod admin;
mod arrivals;
mod credentials;
mod departures;
mod doors;
mod events;
mod farewell;
mod flush;
mod http_exchange;
mod inbound;
mod memory;
mod name_lists;
mod operation;
mod outbound;
mod polling;
mod positions;
mod restarts;
mod sessions;
#[cfg(test)]
mod sizes;
mod unauthenticated;

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use mio::event::Event;
use mio::{Registry, Token};

pub use doors::Doors;

use credentials::CredentialsFile;

use crate::net::connection::Connection;
use crate::net::resolver::Resolver;
use crate::state::access::{Access, MAX_QUESTIONS, Policy as AccessPolicy};
use crate::state::addresses::Addresses;
use crate::state::admin_access::{AdminAccess, AdminEvent, AdminUse};
use crate::state::catch_up::CatchUp;
use crate::state::departures::Departures;
use crate::state::dialer::{DialAction, Dialer};
use crate::state::drain::Drain;
use crate::state::feed::{Feed, FeedAction, FeedSettings};
use crate::state::forwarding::{Forwarding, TrustsForwarded};
use crate::state::jitter::Jitter;
use crate::state::limits::Limits;
use crate::state::log_throttle::{LogThrottle, LogThrottles, MINUTE, TEN_MINUTES};
use crate::state::login_limits::LoginLimits;
use crate::state::metrics::{CloseReason, Metrics};
use crate::state::name_lists::NameLists;
use crate::state::openings::Openings;
use crate::state::pool::{self, Pool, PoolAction};
use crate::state::positions::{Batch, MAX_BATCHES, Positions};
use crate::state::proxies::TrustedProxies;
use crate::state::restarts::Restarts;
use crate::state::resync::{Policy, Wave};
use crate::state::routes::{Origins, SameSite};
use crate::state::session::{Action, Rules, Session};
use crate::state::site::Site;
use crate::state::subscriptions::{DatabaseId, SessionIndex, Subscriptions};
use crate::state::table::{Key, Table};
use crate::state::timers::{Alarm, Deadline, Millis, Timers};
use crate::state::unauthenticated::Unauthenticated;
use crate::state::user_totals::UserTotals;
use crate::wire::couchdb::{self, Credentials, FeedSource};
use crate::wire::positions::MAX_ANSWER;
use crate::wire::security::MAX_SECURITY;
use crate::wire::url::CouchUrl;
use crate::wire::websocket::Decoder;

/// What the events of the plain port come under.
pub const LISTENER: Token = Token(usize::MAX);
/// What the wake-ups of the resolver come under.
pub const WAKER: Token = Token(usize::MAX - 1);
/// What signals to stop come under; the event loop's own.
pub const STOP_SIGNALS: Token = Token(usize::MAX - 2);
/// What signals to read the certificate again come under; the event loop's own.
pub const RELOAD_SIGNALS: Token = Token(usize::MAX - 3);
/// What the events of the TLS port come under.
pub const TLS_LISTENER: Token = Token(usize::MAX - 4);

/// What the events of the port for operators come under.
pub const ADMIN_LISTENER: Token = Token(usize::MAX - 5);

/// Most bytes that are read from a client in one turn.
const CLIENT_READ: usize = 64 * 1024;
/// Most bytes that are read at once from CouchDB: of less the system makes more work.
const READ_BUFFER: usize = 256 * 1024;
/// Names of databases in the requests of one turn; what clients send beyond is read in the next turn. A name costs about
/// half a microsecond.
const NAMES_A_TURN: usize = 2_000;
/// Time for a peer to take the last bytes and to close, in milliseconds.
const LINGER: Millis = 3_000;
/// Most bytes that are read from a peer that was told of the end and goes on sending.
const LINGER_READ: usize = 256 * 1024;
/// Connections to CouchDB on which it is asked who may read what, and whether users are still logged in.
const CHECKS: usize = MAX_QUESTIONS;
/// Connections to CouchDB for look-ups: one for each batch, one for the epoch, and one for when CouchDB started and
/// other questions.
const LOOK_UPS: usize = MAX_BATCHES + 2;

/// Connections to CouchDB beside those of log-ins: the feed, checks and look-ups.
pub const UPSTREAMS: usize = 1 + CHECKS + LOOK_UPS;

/// How the server is to run.
#[derive(Debug)]
pub struct Settings {
    /// Where CouchDB is, with the credentials of a server admin.
    pub couchdb_url: CouchUrl,
    /// The file that the URL was read from.
    pub couchdb_url_file: Option<PathBuf>,
    /// How to follow its feed.
    pub feed: FeedSettings,
    /// How to speak TLS with it; needed where its URL says `https`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The time limits of sessions.
    pub rules: Rules,
    /// Which origins browsers may come from.
    pub origins: Origins,
    /// How many log-ins CouchDB is asked for at once.
    pub login_concurrency: usize,
    /// Whether CouchDB believes this server about where clients are.
    pub trusts_forwarded: TrustsForwarded,
    /// When clients are told that changes may have been lost.
    pub resync: Policy,
    /// For how long changes of a database are merged after the first one, in milliseconds; None where that depends on
    /// whether CouchDB is a cluster.
    pub merge_window: Option<Millis>,
    /// What clients may use.
    pub limits: Limits,
    /// How long it is remembered what broken sessions of Socket.IO were told of, in milliseconds; 0 for not at all.
    pub catch_up_for: Millis,
    /// The longest time to see the clients off when stopping, in milliseconds.
    pub drain_within: Millis,
    /// The files that browsers are given.
    pub site: Site,
    /// Who may subscribe to what.
    pub access: AccessPolicy,
    /// Whose word counts about where a client is.
    pub trusted_proxies: TrustedProxies,
    /// The `SameSite` attribute of the cookie that names a session.
    pub cookie_same_site: SameSite,
    /// How often it is checked that users are still logged in, in milliseconds; 0 for never.
    pub session_check: Millis,
    /// When the process started, in seconds since 1970.
    pub started: u64,
    /// Where the log counts the lines that it dropped.
    pub dropped_log_lines: &'static AtomicU64,
    /// Seed for spreading things in time; any number.
    pub seed: u64,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    registry: Registry,
    doors: Doors,
    /// While descriptors have run out, when to accept again.
    accept_from: Option<Millis>,
    accept_pending: bool,
    peers: Table<Peer>,
    limits: Limits,
    /// Connections of clients.
    clients: usize,
    addresses: Addresses,
    memory: memory::Memory,
    /// Throttles the line about memory over the limit.
    memory_log: LogThrottle,
    unauthenticated: Unauthenticated<Timer>,
    /// Clients to be reviewed at the end of the turn.
    changed: Vec<Timer>,
    openings: Openings,
    /// Throttles the line about pauses of accepting.
    pause_log: LogThrottle,
    /// Throttles the line about rejected clients.
    full_log: LogThrottle,
    /// Throttles the line about connections that the poll does not take.
    registration_log: LogThrottle,
    /// Throttles the line about `X-Forwarded-For` from an address that is not a trusted proxy.
    untrusted_proxy_log: LogThrottle,
    /// Throttles the line about sessions that get no random id.
    randomness_log: LogThrottle,
    /// Throttles the lines about the server's own credentials.
    admin_log: LogThrottles<AdminEvent>,
    /// When to ask whether CouchDB records changes.
    recording_at: Option<Millis>,
    /// Throttles the line about a CouchDB that records no changes.
    recording_log: LogThrottle,
    /// Throttles the line about another epoch.
    epoch_log: LogThrottle,
    /// Throttles the lines about resyncs, by their reason.
    resync_log: LogThrottles<&'static str>,
    sessions: Table<Session>,
    subscriptions: Subscriptions,
    user_totals: UserTotals,
    rules: Rules,
    origins: Origins,
    /// Shared by those who answer with it at the moment.
    site: Arc<Site>,
    timers: Timers<Timer>,
    jitter: Jitter,
    metrics: Metrics,
    operation: operation::Operation,

    couchdb: CouchDb,
    feed: Feed,
    login_limits: LoginLimits<sessions::Login>,
    trusted_proxies: TrustedProxies,
    cookie_same_site: SameSite,
    access: Access,
    /// Throttles the lines about answers that do not say who may read a database, by their cause.
    security_log: LogThrottles<&'static str>,
    /// How often sessions are checked, in milliseconds; 0 for never.
    session_check: Millis,
    /// How long CouchDB's cookies live, in milliseconds, by the last one that said so.
    cookie_life: Option<Millis>,
    positions: Positions,
    restarts: Restarts,
    /// For how long changes of a database are merged, in milliseconds; None where the number of nodes decides.
    merge_window: Option<Millis>,
    /// When changes of databases are released that were held back.
    merge_timers: Timers<DatabaseId>,
    /// Whether the feed is one whose changes have positions.
    asks_epoch: bool,
    /// When to ask again for the epoch.
    epoch_retry: Option<Millis>,
    /// Whether changes were ever followed.
    followed: bool,
    resync: Policy,
    wave: Option<Wave>,
    /// When clients were told last in a wave.
    last_wave: Option<Millis>,
    catch_up: CatchUp,

    /// One buffer for everything that is read.
    scratch: Box<[u8]>,
    /// Actions of the session at hand.
    actions: Vec<Action>,
    /// Sessions that have something to be written.
    dirty: Vec<Key>,
    /// Those that are written to before them, the last first.
    flushing: Vec<Key>,
    woken: Vec<SessionIndex>,
    frames: flush::Frames,
    /// Connections with input that their share of this turn did not cover.
    unfinished: Vec<Key>,
    /// Names in the requests of this turn.
    names_this_turn: usize,
    /// Names in the `subscribe` requests that were answered in this turn.
    answered_this_turn: usize,
    /// Subscriptions of sessions that have ended which ended in this turn.
    ended_this_turn: usize,
    name_lists: NameLists,
    departures: Departures,
    /// Databases whose subscribers are to be notified, each held once: it is not known whether they changed.
    unnotified: VecDeque<DatabaseId>,
    /// Connections that are read in the next turn, because the names of this turn are used up; first come, first
    /// served.
    postponed: VecDeque<Key>,
    /// Connections that are over; their slots are freed at the end of the turn.
    closed: Vec<Key>,
    drain_within: Millis,
    /// While stopping, the clients that are still to be seen off.
    drain: Option<Drain>,
}

/// The connections to CouchDB.
#[derive(Debug)]
struct CouchDb {
    url: CouchUrl,
    requests: couchdb::Requests,
    tls: Option<Arc<rustls::ClientConfig>>,
    dialer: Dialer<Upstream>,
    resolver: Resolver,
    /// Where the URL was read from, if that can change.
    credentials_file: Option<CredentialsFile>,
    feed_connection: Option<Key>,
    /// Where the feed was connected to last.
    feed_address: Option<IpAddr>,
    /// The credentials of the server itself.
    admin: AdminAccess,
    /// A refusal that is not logged yet.
    admin_unsaid: Option<AdminEvent>,
    queues: [Requests; 3],
    forwarding: Forwarding,
    feed_actions: Vec<FeedAction>,
    dial_actions: Vec<DialAction<Upstream>>,
}

/// Whose connection to CouchDB it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upstream {
    Feed,
    Pool(Queue, usize),
}

/// Requests of one kind, which wait for each other alone: a storm of log-ins delays nothing else.
#[derive(Debug)]
struct Requests {
    pool: Pool<Purpose>,
    connections: Vec<Option<Key>>,
    actions: Vec<PoolAction<Purpose>>,
}

impl Requests {
    fn new(size: usize, max_body: usize, max_waiting: usize) -> Self {
        Self { pool: Pool::new(size, max_body, max_waiting), connections: vec![None; size], actions: Vec::new() }
    }
}

/// Which requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    LogIns,
    LookUps,
    Checks,
}

impl Queue {
    const ALL: [Self; 3] = [Self::LogIns, Self::LookUps, Self::Checks];

    fn text(self) -> &'static str {
        match self {
            Self::LogIns => "log-ins",
            Self::LookUps => "look-ups",
            Self::Checks => "checks",
        }
    }

    /// The same as the value of a label.
    fn label(self) -> &'static str {
        match self {
            Self::LogIns => "log_ins",
            Self::LookUps => "look_ups",
            Self::Checks => "checks",
        }
    }
}

/// What a request to CouchDB is for.
#[derive(Debug)]
enum Purpose {
    /// A login, and its key in the login limits.
    LogIn(sessions::Login, Key),
    /// A login that nobody waits for any more.
    Abandoned(Key, Credentials),
    Security(DatabaseId),
    /// A session, the number of its login, and what that is good with.
    Check(Key, u32, Credentials),
    LookUp(Batch),
    Epoch,
    Restarts,
    /// Whether CouchDB records changes.
    Recording,
    /// Whether CouchDB accepts the server's own credentials again.
    Admin,
}

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Timer {
    Peer(Key),
    Session(Key),
}

/// A connection and what it is used for.
#[derive(Debug)]
struct Peer {
    connection: Connection,
    protocol: Protocol,
    address: IpAddr,
    seat: Seat,
    /// When to give it up; never while its session, or the feed or the pool, sees to that.
    deadline: Deadline,
    alarm: Alarm,
    /// Whether there may be input that was not read: no event will tell of it.
    unread: bool,
    /// Whether it brought a request of somebody who is logged in; of CouchDB, whether it brought anything.
    known: bool,
    /// Whether it is to be read in the next turn.
    postponed: bool,
    /// Whether a request came before the one in front of it was answered, and was not looked at yet.
    early: bool,
    /// Whether it is among the unauthenticated clients.
    listed: bool,
    /// Whether a trusted proxy opened it.
    proxied: bool,
}

/// How a connection counts among those that there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// Not at all: it leads to CouchDB, or is over.
    None,
    /// Not at all: an operator came in by the port for those.
    Operator,
    /// As a client, and not at its address.
    Taken,
    /// As a client, and as one of its address.
    OfAddress,
}

/// What a connection is used for.
#[derive(Debug)]
enum Protocol {
    /// A client's TLS is being set up.
    Handshake,
    /// A client's requests.
    Http(Http),
    /// It carries a session.
    WebSocket(Key, Decoder),
    /// It is to take over a session that polls.
    Probing(Key, Decoder),
    /// The last bytes are on their way out. What comes in is ignored until the peer closes; `received` counts it.
    Lingering { shut_down: bool, received: usize },
    /// It leads to CouchDB, and stands or not yet.
    Upstream { owner: Upstream, connected: bool },
    /// It is over.
    Closed,
}

/// Where a connection stands with its requests.
#[derive(Debug)]
enum Http {
    /// A head is awaited.
    Head,
    /// The body of a POST comes in.
    Body(Box<polling::Post>),
    /// The answer to a GET waits for something to tell.
    Parked(Box<polling::Parked>),
}

impl Server {
    /// A server that listens already; it connects to CouchDB in its first turn.
    ///
    /// # Errors
    /// When the events of its ports cannot be had, or no thread started.
    pub fn new(settings: Settings, mut doors: Doors, registry: Registry) -> io::Result<Self> {
        doors.register(&registry, LISTENER, TLS_LISTENER, ADMIN_LISTENER)?;
        let waker = Arc::new(mio::Waker::new(&registry, WAKER)?);
        let resolver = Resolver::start(Arc::clone(&waker))?;
        let Settings { couchdb_url: url, feed, tls, login_concurrency, seed, .. } = settings;
        let has_revisions = feed.source == FeedSource::GlobalChanges;
        let requests = couchdb::Requests::new(&url);
        Ok(Self {
            registry,
            doors,
            accept_from: None,
            accept_pending: false,
            peers: Table::default(),
            sessions: Table::default(),
            subscriptions: Subscriptions::new(settings.limits.subscriptions),
            user_totals: UserTotals::new(settings.limits.subscriptions_per_user),
            clients: 0,
            pause_log: LogThrottle::new(TEN_MINUTES),
            full_log: LogThrottle::new(TEN_MINUTES),
            registration_log: LogThrottle::new(TEN_MINUTES),
            untrusted_proxy_log: LogThrottle::new(TEN_MINUTES),
            randomness_log: LogThrottle::new(MINUTE),
            admin_log: LogThrottles::new(MINUTE),
            recording_at: None,
            recording_log: LogThrottle::new(TEN_MINUTES),
            epoch_log: LogThrottle::new(MINUTE),
            resync_log: LogThrottles::new(MINUTE),
            addresses: Addresses::new(settings.limits.per_address),
            memory: memory::Memory::new(settings.limits.memory),
            memory_log: LogThrottle::new(TEN_MINUTES),
            unauthenticated: Unauthenticated::new(
                settings.limits.unauthenticated,
                settings.limits.unauthenticated_bytes,
            ),
            changed: Vec::new(),
            openings: Openings::default(),
            rules: settings.rules,
            origins: settings.origins,
            site: Arc::new(settings.site),
            timers: Timers::default(),
            jitter: Jitter::new(seed),
            metrics: Metrics::default(),
            operation: operation::Operation::new(settings.started, settings.dropped_log_lines),
            feed: Feed::new(feed, requests.clone(), Jitter::new(seed.rotate_left(32))),
            login_limits: LoginLimits::new(settings.limits.log_in_queue),
            trusted_proxies: settings.trusted_proxies,
            cookie_same_site: settings.cookie_same_site,
            access: Access::new(settings.access),
            security_log: LogThrottles::new(TEN_MINUTES),
            session_check: settings.session_check,
            cookie_life: None,
            positions: Positions::new(has_revisions),
            merge_window: settings.merge_window,
            merge_timers: Timers::default(),
            restarts: Restarts::new(Jitter::new(seed.rotate_left(16))),
            asks_epoch: has_revisions,
            epoch_retry: None,
            followed: false,
            resync: settings.resync,
            wave: None,
            last_wave: None,
            catch_up: CatchUp::new(settings.catch_up_for),
            couchdb: CouchDb {
                dialer: Dialer::new(&url.host, url.port),
                url,
                requests,
                tls,
                resolver,
                credentials_file: settings.couchdb_url_file.map(|path| CredentialsFile::new(&path, waker)),
                feed_connection: None,
                feed_address: None,
                admin: AdminAccess::default(),
                admin_unsaid: None,
                queues: [
                    Requests::new(login_concurrency, pool::MAX_BODY, settings.limits.log_in_queue),
                    Requests::new(LOOK_UPS, MAX_ANSWER, pool::MAX_WAITING),
                    Requests::new(CHECKS, MAX_SECURITY, pool::MAX_WAITING),
                ],
                forwarding: Forwarding::new(settings.trusts_forwarded, login_concurrency),
                feed_actions: Vec::new(),
                dial_actions: Vec::new(),
            },
            limits: settings.limits,
            scratch: vec![0; READ_BUFFER].into(),
            actions: Vec::new(),
            dirty: Vec::new(),
            flushing: Vec::new(),
            woken: Vec::new(),
            frames: flush::Frames::default(),
            unfinished: Vec::new(),
            names_this_turn: 0,
            answered_this_turn: 0,
            ended_this_turn: 0,
            name_lists: NameLists::default(),
            departures: Departures::default(),
            unnotified: VecDeque::new(),
            postponed: VecDeque::new(),
            closed: Vec::new(),
            drain_within: settings.drain_within,
            drain: None,
        })
    }

    /// How long the loop may wait for an event: until then; 0 while work is left.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let writes = !self.dirty.is_empty() || !self.flushing.is_empty();
        let evicts = self.unauthenticated.surplus().is_some();
        let reads = !self.unfinished.is_empty() || !self.postponed.is_empty();
        let works = !self.unnotified.is_empty()
            || self.access.has_work()
            || self.positions.has_work()
            || self.name_lists.has_work();
        if reads || writes || works || self.accept_pending || evicts || !self.departures.is_empty() {
            return Some(0);
        }
        let may_look_up = self.feed.is_streaming() && self.couchdb.admin.may_ask_soon(AdminUse::LookUp);
        let due = [
            self.feed.poll_timeout(),
            self.couchdb.credentials_file.as_ref().and_then(CredentialsFile::poll_timeout),
            self.admin_timeout(),
            self.recording_at,
            self.couchdb.queues.iter().filter_map(|queue| queue.pool.poll_timeout()).min(),
            self.login_limits.poll_timeout(),
            self.access.poll_timeout(),
            self.positions.poll_timeout(),
            self.wave.as_ref().and_then(Wave::poll_timeout),
            self.catch_up.poll_timeout(),
            self.timers.poll_timeout(),
            self.merge_timers.poll_timeout(),
            self.epoch_retry,
            self.restarts.poll_timeout().filter(|_| may_look_up),
            self.accept_from,
            self.memory.poll_timeout(),
            self.drain.as_ref().map(Drain::poll_timeout),
        ];
        due.into_iter().flatten().min()
    }

    /// Begins a turn: connections that the turn before had no time for are read first.
    pub fn begin_turn(&mut self, now: Millis) {
        (self.names_this_turn, self.answered_this_turn, self.ended_this_turn) = (0, 0, 0);
        self.answer_ready();
        self.end_departed(now);
        self.notify_some();
        for _ in 0..self.postponed.len() {
            if self.is_busy() {
                break;
            }
            let Some(key) = self.postponed.pop_front() else { break };
            if let Some(peer) = self.peers.get_mut(key) {
                peer.postponed = false;
                self.read(key, true, now);
            }
        }
    }

    /// Whether the requests of this turn had as many names as there is time for.
    fn is_busy(&self) -> bool {
        self.names_this_turn >= NAMES_A_TURN
    }

    /// Handles one event of the poll.
    pub fn ready(&mut self, event: &Event, now: Millis) {
        match event.token() {
            LISTENER | TLS_LISTENER | ADMIN_LISTENER => self.accept(now),
            WAKER => {
                self.handle_resolver(now);
                self.handle_credentials_file(now);
            }
            token => self.peer_ready(key_of(token), event, now),
        }
    }

    /// Goes on with what an earlier turn left.
    pub fn run_unfinished(&mut self, now: Millis) {
        if self.accept_pending {
            self.accept(now);
        }
        for key in std::mem::take(&mut self.unfinished) {
            self.read(key, true, now);
        }
    }

    /// Does what the time asks for.
    pub fn expire_timers(&mut self, now: Millis) {
        self.check_memory(now);
        self.feed.handle_timeout(now, &mut self.couchdb.feed_actions);
        self.perform_feed_actions(now);
        self.expire_credentials(now);
        self.expire_requests(now);
        self.expire_admin(now);
        self.ask_recording(now);
        self.retry_epoch(now);
        self.ask_restarts(now);
        self.positions.handle_timeout(now, &mut self.subscriptions);
        self.answer_ready();
        self.expire_access(now);
        self.catch_up.handle_timeout(now, &mut self.subscriptions);
        self.advance_wave(now);
        if self.accept_from.is_some_and(|at| at <= now) {
            self.accept_from = None;
            self.accept(now);
        }
        while let Some((_, due)) = self.merge_timers.pop_due(now) {
            for database in due {
                self.release_held(database, now);
            }
        }
        while let Some((bucket, due)) = self.timers.pop_due(now) {
            for timer in due {
                match timer {
                    Timer::Session(key) => self.session_timeout(key, bucket, now),
                    Timer::Peer(key) => self.peer_timeout(key, bucket, now),
                }
            }
        }
        self.serve_logins(now);
    }

    /// Frees the slots of connections that are over.
    pub fn reap_closed(&mut self) {
        for key in self.closed.drain(..) {
            if let Some(mut peer) = self.peers.remove(key) {
                // Closing the socket ends its registration too; this also covers a socket that was duplicated.
                let _ = self.registry.deregister(peer.connection.stream().socket());
            }
        }
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn is_client(&self, key: Key) -> bool {
        self.peers.get(key).is_some_and(|peer| peer.seat != Seat::Operator) && !self.is_upstream(key)
    }

    fn is_upstream(&self, key: Key) -> bool {
        self.peers.get(key).is_some_and(|peer| matches!(peer.protocol, Protocol::Upstream { .. }))
    }

    /// A connection is over: nothing is read or written any more. What it carried ends with it.
    fn close_peer(&mut self, key: Key, reason: CloseReason, now: Millis) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        match std::mem::replace(&mut peer.protocol, Protocol::Closed) {
            Protocol::Closed => return,
            Protocol::WebSocket(session, _) => {
                self.metrics.count_close(reason);
                self.log_session_end(session, "ended", reason, now);
                let memory = self.memory_of(session);
                self.remove_session(session, memory, now);
            }
            Protocol::Handshake => self.metrics.count_close(reason),
            Protocol::Http(http) => {
                self.count_close(key, reason);
                match http {
                    Http::Head => {}
                    Http::Body(post) => self.forget_connection(key, post.session()),
                    Http::Parked(parked) => self.forget_connection(key, parked.session),
                }
            }
            Protocol::Probing(session, _) => {
                self.metrics.count_close(reason);
                self.forget_connection(key, session);
            }
            Protocol::Lingering { .. } | Protocol::Upstream { .. } => {}
        }
        self.delist(Timer::Peer(key));
        self.vacate(key);
        self.closed.push(key);
    }

    fn arm_peer(&mut self, key: Key, now: Millis) {
        if let Some(peer) = self.peers.get_mut(key)
            && let Some(deadline) = peer.deadline.moment()
        {
            self.timers.arm(Timer::Peer(key), &mut peer.alarm, deadline, now);
        }
    }

    fn peer_timeout(&mut self, key: Key, bucket: Millis, now: Millis) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        if !peer.alarm.fired(bucket) {
            return;
        }
        match (peer.deadline.moment(), &peer.protocol) {
            (None, _) => {}
            (Some(deadline), _) if now < deadline => self.arm_peer(key, now),
            (_, Protocol::Upstream { .. }) => self.upstream_lost(key, Some("no connection in time"), now),
            (_, Protocol::Handshake) => self.close_peer(key, CloseReason::HandshakeTimeout, now),
            (_, Protocol::Http(Http::Head)) => self.refuse_late_request(key, now),
            (_, Protocol::Http(_) | Protocol::Probing(..)) => self.close_peer(key, CloseReason::RequestTimeout, now),
            (_, Protocol::WebSocket(..)) => self.close_peer(key, CloseReason::SlowReader, now),
            _ => self.close_peer(key, CloseReason::CloseTimeout, now),
        }
    }
}

fn token_of(key: Key) -> Token {
    Token((key.generation as usize) << 32 | key.index as usize)
}

fn key_of(token: Token) -> Key {
    let low = |number: usize| u32::try_from(number & 0xffff_ffff).expect("masked");
    Key { index: low(token.0), generation: low(token.0 >> 32) }
}
