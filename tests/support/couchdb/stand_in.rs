//! The handle of a stand-in: starts it, feeds it, breaks it, and tells what it saw.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::faults::{Chunking, FeedFault, SinceRefusal};
use super::global_changes::GlobalChanges;
use super::listener::Listener;
use super::state::{Counters, OrderKind, RecordedRequest, Shared, State};

/// How long the end of all connections, or a port that is still taken, is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a stand-in starts.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens; port 0 takes any.
    pub address: SocketAddr,
    /// Name and password of the server admin.
    pub admin: (String, String),
    /// Events of one tick appear together, one line for each event document, in any order. Zero
    /// makes every event a line of its own, at once.
    pub tick: Duration,
    /// How long a session cookie is good.
    pub cookie_life: Duration,
    /// How long a name is locked for a peer after five wrong passwords, and within which time of the first these count;
    /// none switches that off.
    pub lockout: Option<Duration>,
    /// Whether requests without a good login are refused altogether.
    pub require_valid_user: bool,
    /// Whether `_global_changes` is there from the start.
    pub global_changes: bool,
    /// How many nodes there are; two or more are a cluster, on which a write makes one to four lines.
    pub nodes: usize,
    /// Everything is served below this path, such as `/couch`; empty for none.
    pub path_prefix: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            admin: ("admin".to_owned(), "password".to_owned()),
            tick: Duration::ZERO,
            cookie_life: Duration::from_secs(600),
            lockout: Some(Duration::from_secs(300)),
            require_valid_user: false,
            global_changes: true,
            nodes: 1,
            path_prefix: String::new(),
        }
    }
}

/// A running stand-in. Dropping it ends all of its threads and connections.
#[derive(Debug)]
pub struct StandIn {
    shared: Arc<Shared>,
    listener: Arc<Listener>,
    address: SocketAddr,
    admin: (String, String),
    threads: Vec<JoinHandle<()>>,
}

impl StandIn {
    /// Starts to listen and to serve.
    ///
    /// # Errors
    /// When the address cannot be listened on, or a thread cannot be started.
    pub fn start(options: &Options) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(options));
        let (poll, listener) = Listener::new()?;
        let listener = Arc::new(listener);
        let address = listener.open(options.address)?;
        let mut stand_in = Self { shared, listener, address, admin: options.admin.clone(), threads: Vec::new() };
        let (listener, shared) = stand_in.parts();
        stand_in.spawn("stand-in-listener", move || listener.run(poll, &shared))?;
        if !options.tick.is_zero() {
            let (_, shared) = stand_in.parts();
            stand_in.spawn("stand-in-tick", move || shared.tick())?;
        }
        if options.nodes > 1 {
            let (_, shared) = stand_in.parts();
            stand_in.spawn("stand-in-echoes", move || shared.echo())?;
        }
        Ok(stand_in)
    }

    fn parts(&self) -> (Arc<Listener>, Arc<Shared>) {
        (Arc::clone(&self.listener), Arc::clone(&self.shared))
    }

    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(work)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL with the admin's name and password, and the path prefix if there is one.
    pub fn url(&self) -> String {
        let escaped = |text: &str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            let escape = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
            text.bytes().map(escape).collect::<String>()
        };
        let (name, password) = &self.admin;
        let prefix = &self.shared.path_prefix;
        format!("http://{}:{}@{}{prefix}", escaped(name), escaped(password), self.address)
    }

    // Accounts

    /// Adds a user; one of that name is replaced, which ends its cookies.
    pub fn add_user(&self, name: &str, password: &str, roles: &[&str]) {
        self.shared.change(|state| state.accounts.add_user(name, password, roles));
    }

    /// Removes a user, which ends its cookies; false if there was none.
    pub fn remove_user(&self, name: &str) -> bool {
        self.shared.change(|state| state.accounts.remove_user(name))
    }

    /// Changes a password, which ends the user's cookies; false if there is no such user.
    pub fn change_password(&self, name: &str, password: &str) -> bool {
        self.shared.change(|state| state.accounts.change_password(name, password))
    }

    /// How often five wrong passwords locked a name for a peer.
    pub fn lockouts(&self) -> usize {
        self.shared.lock().accounts.lockouts
    }

    /// Accepts `Authorization: Bearer <token>` as this user, who need not have a password.
    pub fn add_token(&self, token: &str, name: &str, roles: &[&str]) {
        self.shared.change(|state| state.accounts.add_token(token, name, roles));
    }

    /// From now on the token is one that expired; false if it was none.
    pub fn expire_token(&self, token: &str) -> bool {
        self.shared.change(|state| state.accounts.expire_token(token))
    }

    /// Whether requests without a good login are refused altogether.
    pub fn set_require_valid_user(&self, required: bool) {
        self.shared.change(|state| state.require_valid_user = required);
    }

    // Databases and events

    /// Makes a database that admits admins only, or `_global_changes`; false if it is there.
    pub fn create_database(&self, name: &str) -> bool {
        self.shared.change(|state| state.create_database(name))
    }

    /// Makes a database that these users may read, or everyone if there are none; false if it is
    /// there.
    pub fn create_database_for(&self, name: &str, users: &[&str]) -> bool {
        let security = json!({
            "admins": {"names": [], "roles": []},
            "members": {"names": users, "roles": []},
        });
        // In one step: who hears of the database must find it readable.
        self.shared.change(|state| {
            let created = state.create_database(name);
            if created && let Some(database) = state.databases.get_mut(name) {
                database.security = security;
            }
            created
        })
    }

    /// Deletes a database, or `_global_changes`; false if it is not there.
    pub fn delete_database(&self, name: &str) -> bool {
        self.shared.change(|state| state.delete_database(name))
    }

    /// Says who may read a database; false if it is not there.
    pub fn set_security(&self, name: &str, security: Value) -> bool {
        self.shared.change(|state| {
            let database = state.databases.get_mut(name);
            database.is_some_and(|database| {
                database.security = security;
                true
            })
        })
    }

    /// Fires `updated:<name>`, whether or not there is such a database.
    pub fn update(&self, name: &str) {
        self.update_many(&[name]);
    }

    /// Fires `updated:<name>` for each, all in one chunk, however many there are.
    pub fn update_many(&self, names: &[&str]) {
        let ids = names.iter().map(|name| format!("updated:{name}"));
        self.shared.change(|state| state.fire(ids));
    }

    /// Writes a document of any id to `_global_changes`, such as `_design/views` or one without a
    /// colon.
    pub fn write_event_document(&self, id: &str) {
        self.shared.change(|state| state.fire([id]));
    }

    /// The count of an event document's revisions, such as that of `updated:garden`; none if there
    /// is no such document.
    pub fn revision(&self, id: &str) -> Option<u32> {
        self.shared.lock().global.as_ref()?.revision(id)
    }

    /// The position after all events so far; none without `_global_changes`.
    pub fn last_seq(&self) -> Option<String> {
        let state = self.shared.lock();
        state.global.as_ref().map(GlobalChanges::last_seq)
    }

    /// From now on events are lost for good, or no more.
    pub fn lose_next_events(&self, losing: bool) {
        self.shared.change(|state| state.faults.losing = losing);
    }

    /// Sends a line to all open feeds as a chunk; its line feed is added.
    pub fn inject_line(&self, raw: &[u8]) {
        let line = [raw, b"\n"].concat();
        self.order(&OrderKind::Line(line.into()));
    }

    /// Sends bytes to all open feeds as they are, outside of any chunk.
    pub fn inject_raw(&self, raw: &[u8]) {
        self.order(&OrderKind::Raw(raw.into()));
    }

    fn order(&self, what: &OrderKind) {
        self.shared.change(|state| state.order_all(what));
    }

    /// Sets a value of the configuration, or takes it out.
    pub fn set_config(&self, section: &str, key: &str, value: Option<&str>) {
        let place = (section.to_owned(), key.to_owned());
        self.shared.change(|state| match value {
            Some(value) => drop(state.config.insert(place, value.to_owned())),
            None => drop(state.config.remove(&place)),
        });
    }

    // Faults

    /// Makes all connections that there are die without a word, as when a firewall forgets them: they stay open, and
    /// nothing is answered on them. New ones work.
    pub fn silence_connections(&self) {
        self.shared.change(State::silence_links);
    }

    /// Answers every request for a value of the configuration with this status, as hosted offerings do.
    pub fn fail_config(&self, status: Option<u16>) {
        self.shared.change(|state| state.faults.config_status = status);
    }

    /// Breaks all open feeds.
    pub fn break_feed(&self, fault: FeedFault) {
        self.order(&OrderKind::Break(fault));
    }

    /// Breaks a feed that is not open yet, right after its start. Further calls are for the feeds
    /// after it.
    pub fn break_next_feed(&self, fault: FeedFault) {
        self.shared.change(|state| state.faults.next_feeds.push_back(fault));
    }

    /// Answers the next so many feed requests, at once or continuous, with this status; a count of
    /// 0 ends that.
    pub fn fail_feed(&self, status: u16, count: usize) {
        let refusals = (count > 0).then_some((status, count));
        self.shared.change(|state| state.faults.feed_refusals = refusals);
    }

    /// Refuses continuous feeds from here on, but for those that start where one was pinned since; None ends that.
    pub fn refuse_since(&self, refusal: Option<SinceRefusal>) {
        self.shared.change(|state| {
            state.faults.since_refusal = refusal;
            state.faults.pinned.clear();
        });
    }

    /// Ends feeds cleanly after each batch of lines, as a node in maintenance mode does, or no more.
    pub fn set_maintenance(&self, maintenance: bool) {
        self.shared.change(|state| state.faults.maintenance = maintenance);
    }

    /// Refuses to say which nodes there are and when they started, as hosted offerings do.
    pub fn refuse_uptime(&self, status: Option<u16>) {
        self.shared.change(|state| state.nodes.refusal = status);
    }

    /// Sets the clock of CouchDB wrong by so many seconds.
    pub fn set_clock_error(&self, seconds: i64) {
        self.shared.change(|state| state.nodes.clock_error = seconds);
    }

    /// Makes each write on a cluster so many lines; None: as a real one does.
    pub fn set_lines_of_writes(&self, lines: Option<u64>) {
        self.shared.change(|state| state.nodes.lines_of_writes = lines);
    }

    /// Takes a node of a cluster away, or brings it back as it was.
    pub fn set_node_up(&self, number: usize, is_up: bool) {
        self.shared.change(|state| state.nodes.all[number].is_up = is_up);
    }

    /// Answers every request for `/_session` with this status.
    pub fn fail_logins(&self, status: Option<u16>) {
        self.shared.change(|state| state.faults.login_status = status);
    }

    /// Carries every request for `/_session` out and ends the connection without an answer, or no more.
    pub fn lose_login_answers(&self, lost: bool) {
        self.shared.change(|state| state.faults.lose_login_answers = lost);
    }

    /// Answers every request for `/_session` with 403 and a body that is not CouchDB's, as something in front of it does.
    pub fn forbid_logins(&self, forbidden: bool) {
        self.shared.change(|state| state.faults.forbid_logins = forbidden);
    }

    /// Answers every request for `/_session` so much later.
    pub fn set_login_delay(&self, delay: Duration) {
        self.shared.change(|state| state.faults.login_delay = delay);
    }

    /// Answers every request for `/_global_changes/_all_docs` with this status.
    pub fn fail_lookups(&self, status: Option<u16>) {
        self.shared.change(|state| state.faults.lookup_status = status);
    }

    /// Answers every request for `/_global_changes/_all_docs` so much later. The answer is of then.
    pub fn set_lookup_delay(&self, delay: Duration) {
        self.shared.change(|state| state.faults.lookup_delay = delay);
    }

    /// Answers `GET` and `HEAD` of a database or its `_security` with this status.
    pub fn fail_access(&self, status: Option<u16>) {
        self.shared.change(|state| state.faults.access_status = status);
    }

    /// Answers `GET` and `HEAD` of a database or its `_security` so much later.
    pub fn set_access_delay(&self, delay: Duration) {
        self.shared.change(|state| state.faults.access_delay = delay);
    }

    /// Holds the answers to `GET` and `HEAD` of a database or its `_security` back, or gives them out. The answers
    /// are of then.
    pub fn hold_access(&self, held: bool) {
        self.shared.change(|state| state.faults.access_held = held);
    }

    /// Answers `GET /{name}/_security` with this status and body, whatever is stored, or with the truth again.
    pub fn answer_security(&self, name: &str, answer: Option<(u16, &str)>) {
        self.shared.change(|state| {
            let answers = &mut state.faults.security_answers;
            match answer {
                Some((status, body)) => answers.insert(name.to_owned(), (status, body.to_owned())),
                None => answers.remove(name),
            };
        });
    }

    /// Cuts what feeds send from now on in another way.
    pub fn set_chunking(&self, chunking: Chunking) {
        self.shared.change(|state| state.faults.chunking = chunking);
    }

    /// Stops listening and ends all connections: from here on connects are refused.
    pub fn refuse(&self) {
        self.listener.close();
        self.shared.change(State::close_links);
        self.shared.wait_until(PATIENCE, |state| state.counters.open_connections == 0 || state.stopping);
    }

    /// Listens again, on the same port, and ends a pause.
    ///
    /// # Errors
    /// When somebody else took the port meanwhile and keeps it.
    pub fn accept_again(&self) -> io::Result<()> {
        self.listener.pause(false);
        let until = self.shared.clock.now() + PATIENCE;
        loop {
            match self.listener.open(self.address) {
                Err(error) if self.shared.clock.now() > until => return Err(error),
                // An outgoing connection of anyone may have the port for a moment.
                Err(_) => {
                    self.shared.wait_until(PATIENCE / 100, |_| false);
                }
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Accepts nothing, although connects succeed: a black hole, until `accept_again`.
    pub fn pause_accepting(&self) {
        self.listener.pause(true);
    }

    /// Restarts one node of a cluster: all connections end, as if they led to it, and no event is lost, because the
    /// other nodes record them too.
    ///
    /// # Errors
    /// When the port cannot be listened on again.
    pub fn restart_node(&self, number: usize) -> io::Result<()> {
        self.refuse();
        let now = self.shared.clock.now();
        self.shared.change(|state| state.nodes.restart(Some(number), now));
        self.accept_again()
    }

    /// Stops and starts again, all nodes of it: feeds are cut without the zero chunk, and connects are refused for
    /// a moment. The events of the tick that was not over are lost for good if that is wished.
    ///
    /// # Errors
    /// When the port cannot be listened on again.
    pub fn restart(&self, lose_events: bool) -> io::Result<()> {
        self.refuse();
        let now = self.shared.clock.now();
        self.shared.change(|state| {
            if lose_events {
                state.lose_pending_events();
            } else {
                state.flush_events();
            }
            state.nodes.restart(None, now);
            state.accounts.forget_failures();
        });
        self.accept_again()
    }

    // What it saw

    /// All requests so far, oldest first (the last 100,000).
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.lock().requests.iter().cloned().collect()
    }

    /// Forgets the requests so far; the counters stay.
    pub fn forget_requests(&self) {
        self.shared.lock().requests.clear();
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.shared.lock().counters
    }

    /// Continuous feeds that are open now.
    pub fn open_feeds(&self) -> usize {
        self.counters().open_feeds
    }

    /// Waits until exactly so many continuous feeds are open; false if the time ran out.
    pub fn wait_for_feeds(&self, feeds: usize, timeout: Duration) -> bool {
        self.wait_for(timeout, |counters| counters.open_feeds == feeds)
    }

    /// Waits until the counters are as wished; false if the time ran out.
    pub fn wait_for(&self, timeout: Duration, condition: impl Fn(&Counters) -> bool) -> bool {
        self.shared.wait_until(timeout, |state| condition(&state.counters))
    }

    /// Waits until such a request came in, and returns the first; none if the time ran out.
    pub fn wait_for_request(
        &self,
        timeout: Duration,
        condition: impl Fn(&RecordedRequest) -> bool,
    ) -> Option<RecordedRequest> {
        let mut found = None;
        self.shared.wait_until(timeout, |state| {
            found = state.requests.iter().find(|seen| condition(seen)).cloned();
            found.is_some()
        });
        found
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.listener.close();
        self.shared.change(|state| {
            state.stopping = true;
            state.close_links();
        });
        self.listener.wake();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.shared.wait_until(PATIENCE, |state| state.counters.open_connections == 0);
    }
}
