//! Everything the stand-in remembers, behind one lock, and the two conditions to wait on.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::accounts::Accounts;
use super::clock::Clock;
use super::faults::{Faults, FeedFault};
use super::global_changes::GlobalChanges;
use super::http::Request;
use super::nodes::Nodes;
use super::stand_in::Options;

/// Requests that are remembered; the oldest are forgotten first.
const RECORDED_LIMIT: usize = 100_000;
/// How long the thread of echoes sleeps when none is due.
const ECHO_PAUSE: Duration = Duration::from_millis(20);

/// A request as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRequest {
    /// `GET`, `POST` and so on.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// Names and values in the order they were sent.
    pub headers: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// The other end of the socket.
    pub peer: SocketAddr,
    /// Counts connections: requests of one number came over one connection.
    pub connection: u64,
    /// When it was complete, since the stand-in was started.
    pub at: Duration,
}

impl RecordedRequest {
    /// The first header of that name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What a test may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests that came in, since the start.
    pub requests: usize,
    /// Of them, those for a continuous feed.
    pub feed_requests: usize,
    /// Of them, those for a feed that is answered at once (the pin of the start).
    pub pin_requests: usize,
    /// Of them, those for `/_session`.
    pub session_requests: usize,
    /// Of them, those for the revisions of event documents.
    pub lookup_requests: usize,
    /// Those of them for a database or its `_security`.
    pub access_requests: usize,
    /// Requests being answered now; an open feed is none of them.
    pub in_flight: usize,
    /// The most there ever were.
    pub peak_in_flight: usize,
    /// Requests for `/_session` being answered now.
    pub sessions_in_flight: usize,
    /// The most there ever were.
    pub peak_sessions_in_flight: usize,
    /// Connections that are open now.
    pub open_connections: usize,
    /// The most there ever were.
    pub peak_connections: usize,
    /// Connections that were accepted, since the start.
    pub connections: usize,
    /// Continuous feeds that are open now.
    pub open_feeds: usize,
}

/// An ordinary database: who may read it and how often it was written.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) security: Value,
    pub(super) writes: u64,
}

/// Something for one feed to do once it gave out the log up to a place.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) at: usize,
    pub(super) what: OrderKind,
}

#[derive(Debug, Clone)]
pub(super) enum OrderKind {
    /// Send this line.
    Line(Arc<[u8]>),
    /// Send these bytes as they are, outside of any chunk.
    Raw(Arc<[u8]>),
    Break(FeedFault),
}

/// What others may do to a connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: Arc<TcpStream>,
    /// The peer left or the stand-in wants the connection to end.
    pub(super) gone: bool,
    /// Orders for the feed it carries, if it carries one.
    pub(super) feed: Option<VecDeque<Order>>,
    /// The connection died without a word: what comes in is not seen, and nothing goes out.
    pub(super) silent: bool,
}

/// All that is remembered.
#[derive(Debug)]
pub(super) struct State {
    pub(super) databases: BTreeMap<String, Database>,
    pub(super) global: Option<GlobalChanges>,
    pub(super) accounts: Accounts,
    pub(super) require_valid_user: bool,
    pub(super) faults: Faults,
    /// Values of the configuration that were set, by section and key.
    pub(super) config: BTreeMap<(String, String), String>,
    pub(super) links: HashMap<u64, Link>,
    pub(super) counters: Counters,
    pub(super) requests: VecDeque<RecordedRequest>,
    pub(super) stopping: bool,
    pub(super) nodes: Nodes,
    clock: Clock,
    tick: Duration,
    /// Event documents to write at the next tick. A set, for one line each, and one without an
    /// order, as CouchDB's events of one tick have none.
    pending: HashSet<String>,
    last_incarnation: u32,
}

impl State {
    pub(super) fn new(options: &Options, clock: Clock) -> Self {
        let mut accounts = Accounts::new(options.cookie_life, options.lockout);
        accounts.add_user(&options.admin.0, &options.admin.1, &["_admin"]);
        let seconds = u32::try_from(clock.now().as_secs()).unwrap_or(1);
        let mut state = Self {
            databases: BTreeMap::new(),
            global: None,
            accounts,
            require_valid_user: options.require_valid_user,
            faults: Faults::default(),
            config: BTreeMap::new(),
            links: HashMap::new(),
            counters: Counters::default(),
            requests: VecDeque::new(),
            stopping: false,
            nodes: Nodes::new(options.nodes, clock.now()),
            clock,
            tick: options.tick,
            pending: HashSet::new(),
            last_incarnation: seconds,
        };
        for name in ["_replicator", "_users"] {
            state.databases.insert(name.to_owned(), Database::new());
        }
        if options.global_changes {
            state.create_global_changes();
        }
        state
    }

    /// Makes `_global_changes`; false if it is there.
    pub(super) fn create_global_changes(&mut self) -> bool {
        if self.global.is_some() {
            return false;
        }
        self.last_incarnation += 1;
        self.global = Some(GlobalChanges::new(self.last_incarnation));
        true
    }

    /// Makes a database that admits admins only; false if it is there.
    pub(super) fn create_database(&mut self, name: &str) -> bool {
        if name == "_global_changes" {
            return self.create_global_changes();
        }
        if self.databases.contains_key(name) {
            return false;
        }
        self.databases.insert(name.to_owned(), Database::new());
        self.fire([format!("created:{name}"), "updated:_dbs".to_owned()]);
        true
    }

    /// Deletes a database; false if it is not there.
    pub(super) fn delete_database(&mut self, name: &str) -> bool {
        if name == "_global_changes" {
            return self.global.take().is_some();
        }
        if self.databases.remove(name).is_none() {
            return false;
        }
        self.fire([format!("deleted:{name}"), "updated:_dbs".to_owned()]);
        true
    }

    /// Notes that event documents are due: at once as one batch, or at the next tick.
    pub(super) fn fire<S: AsRef<str>>(&mut self, ids: impl IntoIterator<Item = S>) {
        if self.faults.losing || self.config_value("global_changes", "update_db") == Some("false") {
            return;
        }
        if self.tick.is_zero() {
            let ids: Vec<S> = ids.into_iter().collect();
            self.note_writes(&ids);
            if let Some(global) = &mut self.global {
                global.record(ids);
            }
        } else {
            for id in ids {
                if !self.pending.contains(id.as_ref()) {
                    self.pending.insert(id.as_ref().to_owned());
                }
            }
        }
    }

    /// A value of the configuration, if it was set.
    pub(super) fn config_value(&self, section: &str, key: &str) -> Option<&str> {
        self.config.get(&(section.to_owned(), key.to_owned())).map(String::as_str)
    }

    /// Makes all connections that there are die without a word.
    pub(super) fn silence_links(&mut self) {
        for link in self.links.values_mut() {
            link.silent = true;
        }
        self.order_all(&OrderKind::Break(FeedFault::Silence));
    }

    pub(super) fn is_silent(&self, connection: u64) -> bool {
        self.links.get(&connection).is_some_and(|link| link.silent)
    }

    /// One tick: writes the event documents that are due.
    pub(super) fn flush_events(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let pending: Vec<String> = std::mem::take(&mut self.pending).into_iter().collect();
        self.note_writes(&pending);
        if let Some(global) = &mut self.global {
            global.record(pending);
        }
    }

    fn note_writes<S: AsRef<str>>(&mut self, ids: &[S]) {
        let now = self.clock.now();
        for id in ids {
            self.nodes.note_write(id.as_ref(), now);
        }
    }

    /// Writes the event documents whose echoes are due; when the next one is.
    fn flush_echoes(&mut self) -> Option<Duration> {
        let due = self.nodes.take_echoes(self.clock.now());
        if let Some(global) = self.global.as_mut().filter(|_| !due.is_empty()) {
            global.record(due);
        }
        self.nodes.next_echo()
    }

    /// Forgets the events that are due; their writes stand.
    pub(super) fn lose_pending_events(&mut self) {
        self.pending.clear();
        self.nodes.forget_echoes();
    }

    /// Gives all open feeds something to do after what was written so far.
    pub(super) fn order_all(&mut self, what: &OrderKind) {
        let at = self.global.as_ref().map_or(0, GlobalChanges::end);
        for orders in self.links.values_mut().filter_map(|link| link.feed.as_mut()) {
            orders.push_back(Order { at, what: what.clone() });
        }
    }

    /// From here on the connection takes orders for its feed.
    pub(super) fn open_feed(&mut self, connection: u64) {
        let at = self.global.as_ref().map_or(0, GlobalChanges::end);
        let fault = self.faults.next_feeds.pop_front().map(|fault| {
            // What is replayed has lines to spoil, too.
            let spoils = matches!(fault, FeedFault::SpoilNextLine | FeedFault::PadNextLine(_));
            Order { at: if spoils { 0 } else { at }, what: OrderKind::Break(fault) }
        });
        if let Some(link) = self.links.get_mut(&connection) {
            link.feed = Some(fault.into_iter().collect());
        }
    }

    /// Tells all connections to end; their threads see it at the next read, write or wait.
    pub(super) fn close_links(&mut self) {
        for link in self.links.values_mut() {
            link.gone = true;
            let _ = link.stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether a connection should end.
    pub(super) fn is_gone(&self, connection: u64) -> bool {
        self.stopping || self.links.get(&connection).is_none_or(|link| link.gone)
    }

    /// Remembers a request and counts it.
    pub(super) fn record(&mut self, request: &Request, at: Duration) {
        if self.requests.len() == RECORDED_LIMIT {
            self.requests.pop_front();
        }
        self.requests.push_back(RecordedRequest {
            method: request.method.clone(),
            target: request.target.clone(),
            headers: request.headers.clone(),
            body: request.body.clone(),
            peer: request.peer,
            connection: request.connection,
            at,
        });
        let counters = &mut self.counters;
        counters.requests += 1;
        counters.in_flight += 1;
        counters.peak_in_flight = counters.peak_in_flight.max(counters.in_flight);
        if is_session(request) {
            counters.session_requests += 1;
            counters.sessions_in_flight += 1;
            counters.peak_sessions_in_flight = counters.peak_sessions_in_flight.max(counters.sessions_in_flight);
        }
    }

    /// A request is answered, or became a feed.
    pub(super) fn finish(&mut self, request: &Request) {
        self.counters.in_flight -= 1;
        if is_session(request) {
            self.counters.sessions_in_flight -= 1;
        }
    }
}

fn is_session(request: &Request) -> bool {
    request.path().ends_with("/_session")
}

impl Database {
    fn new() -> Self {
        let admins_only = json!({"roles": ["_admin"]});
        Self { security: json!({"admins": admins_only, "members": admins_only}), writes: 0 }
    }
}

/// The state as all threads share it.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Something that feeds and delayed answers wait for.
    pub(super) changed: Condvar,
    /// Something that tests wait for.
    pub(super) observed: Condvar,
    pub(super) clock: Clock,
    pub(super) path_prefix: String,
}

impl Shared {
    pub(super) fn new(options: &Options) -> Self {
        let clock = Clock::start();
        Self {
            state: Mutex::new(State::new(options, clock)),
            changed: Condvar::new(),
            observed: Condvar::new(),
            clock,
            path_prefix: options.path_prefix.trim_end_matches('/').to_owned(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A condition that a test handed in may panic; what it saw is whole nevertheless.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the feeds.
    pub(super) fn change<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let result = action(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Changes what tests wait for.
    pub(super) fn observe<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let result = action(&mut self.lock());
        self.observed.notify_all();
        result
    }

    /// Waits on behalf of a connection, unless that ends first.
    pub(super) fn pause(&self, connection: u64, duration: Duration) {
        let until = self.clock.now().saturating_add(duration);
        let mut state = self.lock();
        while !state.is_gone(connection) {
            let left = until.saturating_sub(self.clock.now());
            if left.is_zero() {
                return;
            }
            state = wait(&self.changed, state, left);
        }
    }

    /// Waits on behalf of a connection for as long as something holds, unless the connection ends first.
    pub(super) fn wait_while(&self, connection: u64, holds: impl Fn(&State) -> bool) {
        let mut state = self.lock();
        while holds(&state) && !state.is_gone(connection) {
            state = wait(&self.changed, state, Duration::from_secs(1));
        }
    }

    /// Waits until the state is as wished; false if the time ran out.
    pub(super) fn wait_until(&self, timeout: Duration, mut condition: impl FnMut(&State) -> bool) -> bool {
        let until = self.clock.now().saturating_add(timeout);
        let mut state = self.lock();
        while !condition(&state) {
            let left = until.saturating_sub(self.clock.now());
            if left.is_zero() {
                return false;
            }
            state = wait(&self.observed, state, left);
        }
        true
    }

    /// Writes the events of each tick until the stand-in stops.
    pub(super) fn tick(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let next = self.clock.now() + state.tick;
            while !state.stopping {
                let left = next.saturating_sub(self.clock.now());
                if left.is_zero() {
                    break;
                }
                state = wait(&self.changed, state, left);
            }
            state.flush_events();
            self.changed.notify_all();
        }
    }
}

impl Shared {
    /// Writes the further lines that writes make on a cluster until the stand-in stops.
    pub(super) fn echo(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let next = state.flush_echoes();
            self.changed.notify_all();
            let left = next.map_or(ECHO_PAUSE, |at| at.saturating_sub(self.clock.now()));
            state = wait(&self.observed, state, left.clamp(Duration::from_millis(1), ECHO_PAUSE));
        }
    }
}

/// Waits on a condition for a while; the guard comes back either way.
pub(super) fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>, timeout: Duration) -> MutexGuard<'a, State> {
    condition.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
}
