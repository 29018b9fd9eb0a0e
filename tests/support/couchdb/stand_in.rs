//! The handle of a stand-in: starts it, writes to it, breaks it, and reports what it received.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::faults::{Chunking, FeedFault, SinceRefusal};
use super::global_changes::GlobalChanges;
use super::listener::Listener;
use super::options::Options;
use super::state::{Counters, OrderKind, RecordedRequest, Shared, State};

/// Longest wait for the end of all connections, and for a port that is in use.
const PATIENCE: Duration = Duration::from_secs(5);

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
    ///
    /// If the address cannot be bound, or a thread cannot be started.
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

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL with the admin's name and password, and with the path prefix.
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

    /// Adds a user, or replaces the user of that name, which invalidates cookies.
    pub fn add_user(&self, name: &str, password: &str, roles: &[&str]) {
        self.shared.change(|state| state.accounts.add_user(name, password, roles));
    }

    /// Removes a user, which invalidates cookies; false if there was none.
    pub fn remove_user(&self, name: &str) -> bool {
        self.shared.change(|state| state.accounts.remove_user(name))
    }

    /// Changes a password, which invalidates cookies; false if there is no such user.
    pub fn change_password(&self, name: &str, password: &str) -> bool {
        self.shared.change(|state| state.accounts.change_password(name, password))
    }

    /// Returns how often five wrong passwords locked a name for a peer.
    pub fn lockouts(&self) -> usize {
        self.shared.lock().accounts.lockouts
    }

    /// Gives cookies another life, including those that are out.
    pub fn set_cookie_life(&self, life: Duration) {
        self.shared.change(|state| state.accounts.set_cookie_life(life));
    }

    /// Accepts `Authorization: Bearer <token>` as this user, who needs no password.
    pub fn add_token(&self, token: &str, name: &str, roles: &[&str]) {
        self.shared.change(|state| state.accounts.add_token(token, name, roles));
    }

    /// Lets a token expire; false if it is unknown or has expired before.
    pub fn expire_token(&self, token: &str) -> bool {
        self.shared.change(|state| state.accounts.expire_token(token))
    }

    /// Sets whether requests without a valid login are rejected.
    pub fn set_require_valid_user(&self, required: bool) {
        self.shared.change(|state| state.require_valid_user = required);
    }

    // Databases and events

    /// Creates `_global_changes`, or a database that only admins may read; false if it exists.
    pub fn create_database(&self, name: &str) -> bool {
        self.shared.change(|state| state.create_database(name))
    }

    /// Creates a database that these users may read, or everyone if there are none; false if it
    /// exists.
    pub fn create_database_for(&self, name: &str, users: &[&str]) -> bool {
        let security = json!({
            "admins": {"names": [], "roles": []},
            "members": {"names": users, "roles": []},
        });
        // In one step: a reader of the event must find the database readable.
        self.shared.change(|state| {
            let created = state.create_database(name);
            if created && let Some(database) = state.databases.get_mut(name) {
                database.security = security;
            }
            created
        })
    }

    /// Deletes a database, or `_global_changes`; false if there is none.
    pub fn delete_database(&self, name: &str) -> bool {
        self.shared.change(|state| state.delete_database(name))
    }

    /// Sets the `_security` of a database; false if there is none.
    pub fn set_security(&self, name: &str, security: Value) -> bool {
        self.shared.change(|state| {
            let database = state.databases.get_mut(name);
            database.is_some_and(|database| {
                database.security = security;
                true
            })
        })
    }

    /// Fires `updated:<name>`, even if there is no such database.
    pub fn update(&self, name: &str) {
        self.update_many(&[name]);
    }

    /// Fires `updated:<name>` for any number of names, all in one chunk.
    pub fn update_many(&self, names: &[&str]) {
        let ids = names.iter().map(|name| format!("updated:{name}"));
        self.shared.change(|state| state.fire(ids));
    }

    /// Writes a document with any id to `_global_changes`, such as `_design/views` or one without a
    /// colon.
    pub fn write_event_document(&self, id: &str) {
        self.shared.change(|state| state.fire([id]));
    }

    /// Returns the number of the revision of an event document, such as `updated:garden`; None if
    /// there is no such document.
    pub fn revision(&self, id: &str) -> Option<u32> {
        self.shared.lock().global.as_ref()?.revision(id)
    }

    /// Returns the position after all events so far; None without `_global_changes`.
    pub fn last_seq(&self) -> Option<String> {
        let state = self.shared.lock();
        state.global.as_ref().map(GlobalChanges::last_seq)
    }

    /// Sets whether events are lost for good.
    pub fn lose_next_events(&self, losing: bool) {
        self.shared.change(|state| state.faults.losing = losing);
    }

    /// Sends a line to all open feeds as a chunk, and adds its line feed.
    pub fn inject_line(&self, raw: &[u8]) {
        let line = [raw, b"\n"].concat();
        self.order(&OrderKind::Line(line.into()));
    }

    /// Sends bytes to all open feeds outside of any chunk.
    pub fn inject_raw(&self, raw: &[u8]) {
        self.order(&OrderKind::Raw(raw.into()));
    }

    fn order(&self, what: &OrderKind) {
        self.shared.change(|state| state.order_all(what));
    }

    /// Sets or removes a value of the configuration.
    pub fn set_config(&self, section: &str, key: &str, value: Option<&str>) {
        let place = (section.to_owned(), key.to_owned());
        self.shared.change(|state| match value {
            Some(value) => drop(state.config.insert(place, value.to_owned())),
            None => drop(state.config.remove(&place)),
        });
    }

    // Faults

    /// Lets all open connections die silently, as when a firewall drops them: they stay open
    /// without any response. New connections work.
    pub fn silence_connections(&self) {
        self.shared.change(State::silence_links);
    }

    /// Rejects requests for values of the configuration with this status, as hosted offerings do.
    pub fn fail_config(&self, status: Option<u16>) {
        self.shared.change(|state| state.faults.config_status = status);
    }

    /// Breaks all open feeds.
    pub fn break_feed(&self, fault: FeedFault) {
        self.order(&OrderKind::Break(fault));
    }

    /// Breaks the next feed right after its start. Further calls are for later feeds.
    pub fn break_next_feed(&self, fault: FeedFault) {
        self.shared.change(|state| state.faults.next_feeds.push_back(fault));
    }

    /// Rejects this many feed requests of either kind with this status. A count of 0 ends that.
    pub fn fail_feed(&self, status: u16, count: usize) {
        let refusals = (count > 0).then_some((status, count));
        self.shared.change(|state| state.faults.feed_refusals = refusals);
    }

    /// Rejects continuous feeds from now on, except those that start at a position that was read
    /// since then. None ends that.
    pub fn refuse_since(&self, refusal: Option<SinceRefusal>) {
        self.shared.change(|state| {
            state.faults.since_refusal = refusal;
            state.faults.pinned.clear();
        });
    }

    /// Sets whether feeds end after each batch of lines, as those of a node in maintenance mode do.
    pub fn set_maintenance(&self, maintenance: bool) {
        self.shared.change(|state| state.faults.maintenance = maintenance);
    }

    /// Rejects requests about nodes and their uptime, as hosted offerings do.
    pub fn refuse_uptime(&self, status: Option<u16>) {
        self.shared.change(|state| state.nodes.refusal = status);
    }

    /// Sets the error of CouchDB's clock, in seconds.
    pub fn set_clock_error(&self, seconds: i64) {
        self.shared.change(|state| state.nodes.clock_error = seconds);
    }

    /// Returns when the node that started last did so, in seconds since 1970.
    pub fn latest_start(&self) -> u64 {
        self.shared.lock().nodes.all.iter().map(|node| node.started.as_secs()).max().unwrap_or(0)
    }

    /// Sets the lines per write on a cluster; None for the distribution of a real one.
    pub fn set_lines_of_writes(&self, lines: Option<u64>) {
        self.shared.change(|state| state.nodes.lines_of_writes = lines);
    }

    /// Stops a node of a cluster, or brings it back as it was.
    pub fn set_node_up(&self, number: usize, is_up: bool) {
        self.shared.change(|state| state.nodes.all[number].is_up = is_up);
    }

    /// Rejects requests to `/_session` with this status.
    pub fn fail_logins(&self, status: Option<u16>) {
        self.shared.change(|state| state.faults.login_status = status);
    }

    /// Sets whether requests to `/_session` are carried out and the connection ends without a
    /// response.
    pub fn lose_login_answers(&self, lost: bool) {
        self.shared.change(|state| state.faults.lose_login_answers = lost);
    }

    /// Sets whether requests to `/_session` get 403 and a body that is not CouchDB's, as from a
    /// proxy in front of CouchDB.
    pub fn forbid_logins(&self, forbidden: bool) {
        self.shared.change(|state| state.faults.forbid_logins = forbidden);
    }

    /// Delays responses of `/_session`.
    pub fn set_login_delay(&self, delay: Duration) {
        self.shared.change(|state| state.faults.login_delay = delay);
    }

    /// Rejects requests to `/_global_changes/_all_docs` with this status.
    pub fn fail_lookups(&self, status: Option<u16>) {
        self.shared.change(|state| state.faults.lookup_status = status);
    }

    /// Delays responses of `/_global_changes/_all_docs`. Their content is that after the delay.
    pub fn set_lookup_delay(&self, delay: Duration) {
        self.shared.change(|state| state.faults.lookup_delay = delay);
    }

    /// Rejects `GET` and `HEAD` of a database or its `_security` with this status.
    pub fn fail_access(&self, status: Option<u16>) {
        self.shared.change(|state| state.faults.access_status = status);
    }

    /// Delays responses to `GET` and `HEAD` of a database or its `_security`.
    pub fn set_access_delay(&self, delay: Duration) {
        self.shared.change(|state| state.faults.access_delay = delay);
    }

    /// Sets whether responses to `GET` and `HEAD` of a database or its `_security` are held back.
    /// Their content is that of the moment of their release.
    pub fn hold_access(&self, held: bool) {
        self.shared.change(|state| state.faults.access_held = held);
    }

    /// Sets the response to `GET /{name}/_security`; None for the stored object.
    pub fn answer_security(&self, name: &str, answer: Option<(u16, &str)>) {
        self.shared.change(|state| {
            let answers = &mut state.faults.security_answers;
            match answer {
                Some((status, body)) => answers.insert(name.to_owned(), (status, body.to_owned())),
                None => answers.remove(name),
            };
        });
    }

    /// Sets how feeds split what they send from now on.
    pub fn set_chunking(&self, chunking: Chunking) {
        self.shared.change(|state| state.faults.chunking = chunking);
    }

    /// Stops listening and ends all connections: from here on connections are refused.
    pub fn refuse(&self) {
        self.listener.close();
        self.shared.change(State::close_links);
        self.shared.wait_until(PATIENCE, |state| state.counters.open_connections == 0 || state.stopping);
    }

    /// Listens again on the same port, and ends a pause.
    ///
    /// # Errors
    ///
    /// If another process took the port and keeps it.
    pub fn accept_again(&self) -> io::Result<()> {
        self.listener.pause(false);
        let until = self.shared.clock.now() + PATIENCE;
        loop {
            match self.listener.open(self.address) {
                Err(error) if self.shared.clock.now() > until => return Err(error),
                // An outgoing connection of another process may hold the port for a moment.
                Err(_) => {
                    self.shared.wait_until(PATIENCE / 100, |_| false);
                }
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Accepts no connection, although connecting succeeds, until `accept_again`.
    pub fn pause_accepting(&self) {
        self.listener.pause(true);
    }

    /// Restarts one node of a cluster. All connections end, as if they led to this node. No event
    /// is lost, because the other nodes record them as well.
    ///
    /// # Errors
    ///
    /// If the port cannot be bound again.
    pub fn restart_node(&self, number: usize) -> io::Result<()> {
        self.refuse();
        let now = self.shared.clock.now();
        self.shared.change(|state| state.nodes.restart(Some(number), now));
        self.accept_again()
    }

    /// Restarts all nodes. Feeds are cut off without the zero chunk, and for a moment connections
    /// are refused. The events of the current tick are lost for good if `lose_events` says so.
    ///
    /// # Errors
    ///
    /// If the port cannot be bound again.
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

    // Requests and counters

    /// Returns all requests so far, the oldest first (the last 100,000).
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.lock().requests.iter().cloned().collect()
    }

    /// Drops the recorded requests. The counters stay.
    pub fn forget_requests(&self) {
        let mut state = self.shared.lock();
        state.requests.clear();
        state.swallowed.clear();
    }

    /// Returns the requests on connections that died silently, the oldest first. Counters and other
    /// records leave them out. See [`StandIn::silence_connections`].
    pub fn swallowed_requests(&self) -> Vec<RecordedRequest> {
        self.shared.lock().swallowed.clone()
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        self.shared.lock().counters
    }

    /// Returns the number of open continuous feeds.
    pub fn open_feeds(&self) -> usize {
        self.counters().open_feeds
    }

    /// Waits until exactly this many continuous feeds are open; false after the timeout.
    pub fn wait_for_feeds(&self, feeds: usize, timeout: Duration) -> bool {
        self.wait_for(timeout, |counters| counters.open_feeds == feeds)
    }

    /// Waits until a condition on the counters holds; false after the timeout.
    pub fn wait_for(&self, timeout: Duration, condition: impl Fn(&Counters) -> bool) -> bool {
        self.shared.wait_until(timeout, |state| condition(&state.counters))
    }

    /// Waits for a request, and returns the first one that meets the condition; None after the
    /// timeout.
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
