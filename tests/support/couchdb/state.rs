//! The state of the stand-in behind one lock, and two conditions to wait for.

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
use super::options::Options;

/// Most requests that are recorded. The oldest ones are dropped first.
const RECORDED_LIMIT: usize = 100_000;
/// Longest pause between two looks for due echoes.
const ECHO_PAUSE: Duration = Duration::from_millis(20);

/// A received request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedRequest {
    /// `GET`, `POST` and so on.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// Names and values in the order of the request.
    pub headers: Vec<(String, String)>,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// Address of the peer.
    pub peer: SocketAddr,
    /// Number of the connection.
    pub connection: u64,
    /// Time of arrival, since the start of the stand-in.
    pub at: Duration,
}

impl RecordedRequest {
    pub(super) fn new(request: &Request, at: Duration) -> Self {
        Self {
            method: request.method.clone(),
            target: request.target.clone(),
            headers: request.headers.clone(),
            body: request.body.clone(),
            peer: request.peer,
            connection: request.connection,
            at,
        }
    }

    /// Returns the first header of that name, in any case of letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Counters that a test may wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Requests since the start.
    pub requests: usize,
    /// Requests for a continuous feed.
    pub feed_requests: usize,
    /// Requests for a feed that ends at once, such as those for the position of the start.
    pub pin_requests: usize,
    /// Requests for `/_session`.
    pub session_requests: usize,
    /// Requests for the revisions of event documents.
    pub lookup_requests: usize,
    /// Requests for a database or its `_security`.
    pub access_requests: usize,
    /// Requests in progress. Open feeds do not count.
    pub in_flight: usize,
    /// Highest value of `in_flight`.
    pub peak_in_flight: usize,
    /// Requests for `/_session` in progress.
    pub sessions_in_flight: usize,
    /// Highest value of `sessions_in_flight`.
    pub peak_sessions_in_flight: usize,
    /// Open connections.
    pub open_connections: usize,
    /// Highest value of `open_connections`.
    pub peak_connections: usize,
    /// Connections since the start.
    pub connections: usize,
    /// Open continuous feeds.
    pub open_feeds: usize,
}

/// An ordinary database.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) security: Value,
    pub(super) writes: u64,
}

/// An order for a feed, to be carried out after the log up to an index.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) at: usize,
    pub(super) what: OrderKind,
}

#[derive(Debug, Clone)]
pub(super) enum OrderKind {
    /// Send this line.
    Line(Arc<[u8]>),
    /// Send these bytes outside of any chunk.
    Raw(Arc<[u8]>),
    Break(FeedFault),
}

/// A connection, as other threads see it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: Arc<TcpStream>,
    /// Whether the peer disconnected, or the connection is to end.
    pub(super) gone: bool,
    /// Orders for its feed; None without a feed.
    pub(super) feed: Option<VecDeque<Order>>,
    /// Whether the connection is dead but open: it ignores what arrives, and sends nothing.
    pub(super) silent: bool,
}

/// The state of the stand-in.
#[derive(Debug)]
pub(super) struct State {
    pub(super) databases: BTreeMap<String, Database>,
    pub(super) global: Option<GlobalChanges>,
    pub(super) accounts: Accounts,
    pub(super) require_valid_user: bool,
    pub(super) faults: Faults,
    /// Configured values by section and key.
    pub(super) config: BTreeMap<(String, String), String>,
    pub(super) links: HashMap<u64, Link>,
    pub(super) counters: Counters,
    pub(super) requests: VecDeque<RecordedRequest>,
    /// Requests that came over connections that died silently.
    pub(super) swallowed: Vec<RecordedRequest>,
    pub(super) stopping: bool,
    pub(super) nodes: Nodes,
    clock: Clock,
    tick: Duration,
    /// Event documents to write at the next tick. A set makes one line of each, and has no order,
    /// just like the events of a tick in CouchDB.
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
            swallowed: Vec::new(),
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

    /// Creates `_global_changes`; false if it exists.
    pub(super) fn create_global_changes(&mut self) -> bool {
        if self.global.is_some() {
            return false;
        }
        self.last_incarnation += 1;
        self.global = Some(GlobalChanges::new(self.last_incarnation));
        true
    }

    /// Creates a database that only admins may read; false if it exists.
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

    /// Deletes a database; false if there is none.
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

    /// Writes event documents, at once as one batch, or at the next tick.
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

    /// Returns a value of the configuration, if it was set.
    pub(super) fn config_value(&self, section: &str, key: &str) -> Option<&str> {
        self.config.get(&(section.to_owned(), key.to_owned())).map(String::as_str)
    }

    /// Lets all open connections die silently.
    pub(super) fn silence_links(&mut self) {
        for link in self.links.values_mut() {
            link.silent = true;
        }
        self.order_all(&OrderKind::Break(FeedFault::Silence));
    }

    pub(super) fn is_silent(&self, connection: u64) -> bool {
        self.links.get(&connection).is_some_and(|link| link.silent)
    }

    /// Takes note of a request over a connection that died silently; false over any other.
    pub(super) fn swallow(&mut self, request: &Request, at: Duration) -> bool {
        let is_silent = self.is_silent(request.connection);
        if is_silent && self.swallowed.len() < RECORDED_LIMIT {
            self.swallowed.push(RecordedRequest::new(request, at));
        }
        is_silent
    }

    /// Writes the event documents of a tick.
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

    /// Writes the event documents whose echoes are due, and returns the time of the next echo.
    fn flush_echoes(&mut self) -> Option<Duration> {
        let due = self.nodes.take_echoes(self.clock.now());
        if let Some(global) = self.global.as_mut().filter(|_| !due.is_empty()) {
            global.record(due);
        }
        self.nodes.next_echo()
    }

    /// Drops the events of this tick. Writes that were counted stay.
    pub(super) fn lose_pending_events(&mut self) {
        self.pending.clear();
        self.nodes.forget_echoes();
    }

    /// Gives an order to all open feeds, to be carried out after everything written so far.
    pub(super) fn order_all(&mut self, what: &OrderKind) {
        let at = self.global.as_ref().map_or(0, GlobalChanges::end);
        for orders in self.links.values_mut().filter_map(|link| link.feed.as_mut()) {
            orders.push_back(Order { at, what: what.clone() });
        }
    }

    /// Lets a connection take orders for its feed.
    pub(super) fn open_feed(&mut self, connection: u64) {
        let at = self.global.as_ref().map_or(0, GlobalChanges::end);
        let fault = self.faults.next_feeds.pop_front().map(|fault| {
            // A replay has lines to spoil as well.
            let spoils = matches!(fault, FeedFault::SpoilNextLine | FeedFault::PadNextLine(_));
            Order { at: if spoils { 0 } else { at }, what: OrderKind::Break(fault) }
        });
        if let Some(link) = self.links.get_mut(&connection) {
            link.feed = Some(fault.into_iter().collect());
        }
    }

    /// Ends all connections. Their threads notice at the next read, write or wait.
    pub(super) fn close_links(&mut self) {
        for link in self.links.values_mut() {
            link.gone = true;
            let _ = link.stream.shutdown(Shutdown::Both);
        }
    }

    /// Returns whether a connection is to end.
    pub(super) fn is_gone(&self, connection: u64) -> bool {
        self.stopping || self.links.get(&connection).is_none_or(|link| link.gone)
    }

    /// Records and counts a request.
    pub(super) fn record(&mut self, request: &Request, at: Duration) {
        if self.requests.len() == RECORDED_LIMIT {
            self.requests.pop_front();
        }
        self.requests.push_back(RecordedRequest::new(request, at));
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

    /// Counts a request as done when it was answered or became a feed.
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

/// The state that all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes feeds and delayed responses.
    pub(super) changed: Condvar,
    /// Wakes tests.
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
        // The condition of a test may panic, but it cannot change the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and wakes the feeds.
    pub(super) fn change<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let result = action(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Changes the state and wakes the tests.
    pub(super) fn observe<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let result = action(&mut self.lock());
        self.observed.notify_all();
        result
    }

    /// Waits in the thread of a connection until a time has passed or the connection ends.
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

    /// Waits in the thread of a connection until a condition no longer holds or the connection
    /// ends.
    pub(super) fn wait_while(&self, connection: u64, holds: impl Fn(&State) -> bool) {
        let mut state = self.lock();
        while holds(&state) && !state.is_gone(connection) {
            state = wait(&self.changed, state, Duration::from_secs(1));
        }
    }

    /// Waits until a condition holds; false after the timeout.
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
    /// Writes the further lines of writes on a cluster until the stand-in stops.
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

/// Waits for a condition variable for a limited time.
pub(super) fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>, timeout: Duration) -> MutexGuard<'a, State> {
    condition.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
}
