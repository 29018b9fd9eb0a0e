//! Clients against a real CouchDB. Without these environment variables the tests do nothing, and
//! print that on stderr:
//!
//! | variable | value |
//! |---|---|
//! | `HOWLER_TEST_COUCHDB` | URL of a single node, with the name and password of a server admin |
//! | `HOWLER_TEST_COUCHDB_STOP` | shell command that stops the node; `$SIGNAL` is `KILL` or `TERM` |
//! | `HOWLER_TEST_COUCHDB_START` | shell command that starts the node and ends when it replies |
//! | `HOWLER_TEST_CLUSTER` | URL of one node of a cluster |
//! | `HOWLER_TEST_CLUSTER_STOP`, `HOWLER_TEST_CLUSTER_START` | the same commands for this node |
//! | `HOWLER_TEST_CLUSTER_STOP_ALL`, `HOWLER_TEST_CLUSTER_START_ALL` | the same commands for all nodes |
//!
//! The tests create databases whose names begin with `howler-test-`, a user, and `_global_changes`.
//! A client that is notified of a database reads its number of documents, as a replication would.
//! The test of a wrong password takes more than five minutes.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::device::{Device, Notice};
use crate::support::howler::{Howler, lasting_port};
use crate::support::http::{Answer, Http};
use crate::support::proxy::Proxy;
use crate::support::{PASSWORD, SOON, USER};

const DATABASES: usize = 60;
/// Number of clients of each database.
const CLIENTS: usize = 4;
const PAIRS: usize = CLIENTS * DATABASES;
/// Time after which all notifications of a write have arrived, on a cluster too.
const QUIET_AFTER: Duration = Duration::from_secs(3);

/// Held by the test that uses CouchDB.
static IN_USE: Mutex<()> = Mutex::new(());

/// A real CouchDB.
struct CouchDb {
    address: SocketAddr,
    url: String,
    credentials: String,
    variable: &'static str,
    _in_use: MutexGuard<'static, ()>,
}

impl CouchDb {
    /// Creates databases and a user in the CouchDB that a variable names. Returns None without one.
    fn find(variable: &'static str, test: &str) -> Option<Self> {
        let Ok(url) = std::env::var(variable) else {
            // Not with `println!`: the harness hides the output of tests that succeed.
            let _ = writeln!(std::io::stderr(), "NOT RUN: {test}: {variable} names no CouchDB");
            return None;
        };
        let in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        let (credentials, host) =
            url.strip_prefix("http://").and_then(|rest| rest.split_once('@')).expect("http://a:b@c");
        let address =
            host.trim_end_matches('/').to_socket_addrs().expect("a host and a port").next().expect("an address");
        let credentials = data_encoding::BASE64.encode(credentials.as_bytes());
        let couchdb = Self { address, credentials, variable, _in_use: in_use, url };
        couchdb.ask("PUT", "/_global_changes", None);
        couchdb.ask("PUT", "/_users", None);
        let user = json!({"name": USER, "password": PASSWORD, "roles": [], "type": "user"});
        couchdb.ask("PUT", &format!("/_users/org.couchdb.user:{USER}"), Some(user));
        for name in names() {
            couchdb.ask("PUT", &format!("/{name}"), None);
        }
        // The events of these databases come before the first client subscribes.
        std::thread::sleep(QUIET_AFTER);
        Some(couchdb)
    }

    /// Sends a request as the admin, and repeats it until a reply comes: CouchDB may be booting.
    fn ask(&self, method: &str, target: &str, body: Option<Value>) -> Answer {
        ask(self.address, &self.credentials, method, target, body)
    }

    /// Creates a document in each of these databases.
    fn write(&self, names: &[String]) {
        for name in names {
            let answer = self.ask("POST", &format!("/{name}"), Some(json!({})));
            assert!(matches!(answer.status, 201 | 202), "{name}: {answer:?}");
        }
    }

    /// Runs the shell command of a variable, such as `STOP`.
    fn command(&self, what: &str, signal: &str) {
        let variable = format!("{}_{what}", self.variable);
        let command = std::env::var(&variable).unwrap_or_else(|_| panic!("{variable} is a shell command"));
        let status = Command::new("sh").args(["-c", &command]).env("SIGNAL", signal).status();
        assert!(status.expect("there is a shell").success(), "{variable}");
    }

    fn documents(&self) -> BTreeMap<String, u64> {
        names().into_iter().map(|name| (name.clone(), documents(self.address, &self.credentials, &name))).collect()
    }
}

fn ask(address: SocketAddr, credentials: &str, method: &str, target: &str, body: Option<Value>) -> Answer {
    let fields =
        format!("Authorization: Basic {credentials}\r\nContent-Type: application/json\r\nConnection: close\r\n");
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let deadline = Instant::now() + 3 * SOON;
    loop {
        if std::net::TcpStream::connect(address).is_ok() {
            let mut http = Http::connect(address);
            http.send(method, target, &fields, body.as_bytes());
            if let Some(answer) = http.receive(SOON).filter(|answer| answer.status < 500) {
                return answer;
            }
        }
        assert!(Instant::now() < deadline, "CouchDB replies");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn documents(address: SocketAddr, credentials: &str, name: &str) -> u64 {
    let answer = ask(address, credentials, "GET", &format!("/{name}"), None);
    let value: Value = serde_json::from_slice(&answer.body).expect("JSON");
    value["doc_count"].as_u64().unwrap_or_else(|| panic!("{name}: {value}"))
}

fn names() -> Vec<String> {
    (0..DATABASES).map(|number| format!("howler-test-{number}")).collect()
}

fn start(port: u16, url: &str) -> Howler {
    let howler = Howler::launch_command_on(
        port,
        Command::new(crate::support::howler::BINARY).args(["--couchdb_url", url, "--feed_heartbeat", "1000"]),
    );
    howler.wait_for_line("Whether CouchDB restarted: First");
    howler
}

/// A client in a thread of its own.
struct Follower {
    thread: JoinHandle<()>,
    synced: Arc<Mutex<Synced>>,
    leaves: Arc<AtomicBool>,
}

/// Notifications and reads of a client.
#[derive(Default)]
struct Synced {
    documents: BTreeMap<String, u64>,
    events: usize,
    resyncs: u64,
}

/// Keeps a client connected. It reads each database that it is notified of.
fn follow(couchdb: &CouchDb, mut device: Device, address: SocketAddr) -> Follower {
    let (at, credentials) = (couchdb.address, couchdb.credentials.clone());
    let synced = Arc::new(Mutex::new(Synced::default()));
    let leaves = Arc::new(AtomicBool::new(false));
    let (its, its_end) = (Arc::clone(&synced), Arc::clone(&leaves));
    let thread = std::thread::spawn(move || {
        let mut changed: Vec<String> = names();
        while !its_end.load(SeqCst) {
            for name in std::mem::take(&mut changed) {
                let count = documents(at, &credentials, &name);
                its.lock().expect("no thread panics while it holds this").documents.insert(name, count);
            }
            let next = device.next(Duration::from_millis(50));
            let mut synced = its.lock().expect("no thread panics while it holds this");
            match next {
                Ok(Notice::Nothing) => {}
                Ok(Notice::Change(name)) => {
                    synced.events += 1;
                    changed.push(name);
                }
                Ok(Notice::Everything) => changed = names(),
                Err(_) => {
                    drop(synced);
                    changed = device.come_back(address).unwrap_or_default();
                    continue;
                }
            }
            synced.resyncs = device.resyncs;
        }
    });
    Follower { thread, synced, leaves }
}

/// Starts clients of all databases, half of them at each server.
fn follow_all(couchdb: &CouchDb, howlers: &[Howler; 2]) -> Vec<Follower> {
    let clients = (0..CLIENTS).map(|number| {
        let howler = &howlers[number % 2];
        follow(couchdb, settled(howler), howler.address())
    });
    let clients = clients.collect::<Vec<_>>();
    // Until each client has read all of its databases.
    while clients
        .iter()
        .any(|client| client.synced.lock().expect("no thread panics while it holds this").documents.len() < DATABASES)
    {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(QUIET_AFTER);
    clients
}

/// Waits until no pair is lost, and stops the clients. Returns the number of pairs that are lost
/// when the time is over.
fn finish(couchdb: &CouchDb, clients: Vec<Follower>) -> usize {
    let deadline = Instant::now() + 2 * SOON;
    let mut left = lost(couchdb, &clients);
    while left > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
        left = lost(couchdb, &clients);
    }
    for client in clients {
        client.leaves.store(true, SeqCst);
        client.thread.join().expect("the server accepts the client");
    }
    left
}

fn settled(howler: &Howler) -> Device {
    let mut device = Device::new(names());
    device.come_back(howler.address()).expect("the server accepts the client");
    assert!(device.known.values().all(Option::is_some), "{:?}", device.known);
    device
}

/// Returns the number of (client, database) pairs whose last change the client has not read.
fn lost(couchdb: &CouchDb, clients: &[Follower]) -> usize {
    let truth = couchdb.documents();
    let lost = |client: &Follower| {
        let synced = client.synced.lock().expect("no thread panics while it holds this");
        truth.iter().filter(|(name, count)| synced.documents.get(*name).is_none_or(|synced| synced < *count)).count()
    };
    clients.iter().map(lost).sum()
}

fn print(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn a_restart_behind_a_retrying_proxy_loses_nothing() {
    let Some(couchdb) = CouchDb::find("HOWLER_TEST_COUCHDB", "a restart behind a retrying proxy") else { return };
    let proxy = Proxy::retrying(couchdb.address);
    let url = couchdb.url.replace(&couchdb.address.to_string(), &proxy.url().replace("http://", ""));
    let howlers = [0, 1].map(|_| start(0, &url));
    let mut resyncs = [0, 0];
    for signal in ["KILL", "TERM", "KILL", "TERM", "KILL"] {
        let clients = follow_all(&couchdb, &howlers);
        couchdb.write(&names());
        couchdb.command("STOP", signal);
        couchdb.command("START", signal);
        let lost = finish(&couchdb, clients);
        let before = std::mem::replace(&mut resyncs, howlers.each_ref().map(resyncs_of));
        let resyncs = [resyncs[0] - before[0], resyncs[1] - before[1]];
        print(&format!("behind a retrying proxy by SIG{signal}: {lost} of {PAIRS} pairs lost; resyncs {resyncs:?}"));
        assert_eq!(lost, 0, "SIG{signal}");
    }
}

fn resyncs_of(howler: &Howler) -> u64 {
    howler.metric("howler_resyncs_total")
}

#[test]
fn clients_are_notified_once_after_couchdb_and_the_servers_restarted() {
    let Some(couchdb) = CouchDb::find("HOWLER_TEST_COUCHDB", "both restarted") else { return };
    for signal in ["KILL", "TERM"] {
        let ports = [lasting_port(), lasting_port()];
        let mut howlers = ports.map(|port| start(port, &couchdb.url));
        let mut devices: Vec<_> = (0..CLIENTS).map(|number| settled(&howlers[number % 2])).collect();
        devices.iter_mut().for_each(Device::leave);
        couchdb.write(&names());
        for howler in &howlers {
            howler.signal(signal);
        }
        couchdb.command("STOP", signal);
        for howler in &mut howlers {
            howler.wait();
        }
        couchdb.command("START", signal);
        let howlers = ports.map(|port| start(port, &couchdb.url));
        for (number, device) in devices.iter_mut().enumerate() {
            let returns = [0, 1, 1, 0].map(|place| {
                device.leave();
                device.come_back(howlers[(number + place) % 2].address()).expect("the server accepts the client").len()
            });
            print(&format!("both restarted by SIG{signal}: client {number}: {returns:?} notified at its returns"));
            assert_eq!(returns, [DATABASES, 0, 0, 0], "SIG{signal}");
        }
    }
}

/// Writes one document after the other, and compares the notifications of one client with them.
fn notifications_per_write(couchdb: &CouchDb, most: f64) {
    const WRITES: u32 = 240;
    let howler = start(0, &couchdb.url);
    let client = follow(couchdb, settled(&howler), howler.address());
    std::thread::sleep(QUIET_AFTER);
    for number in 0..WRITES {
        couchdb.write(&[names()[usize::try_from(number).expect("small") % DATABASES].clone()]);
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(2 * QUIET_AFTER);
    let events =
        u32::try_from(client.synced.lock().expect("no thread panics while it holds this").events).expect("few");
    let lost = finish(couchdb, vec![client]);
    let per_write = f64::from(events) / f64::from(WRITES);
    print(&format!(
        "{}: {events} notifications of {WRITES} single writes: {per_write:.2} a write ({} lines, {} merged); {lost} of \
         {DATABASES} pairs lost",
        couchdb.variable,
        howler.metric("howler_changes_total"),
        howler.metric("howler_changes_merged_total"),
    ));
    assert_eq!(lost, 0);
    assert!(per_write <= most, "{per_write} notifications a write");
}

/// Sends wrong passwords of the server's own user for longer than CouchDB counts them.
#[test]
fn a_wrong_admin_password_does_not_lock_the_admin() {
    const COUNTED_FOR: Duration = Duration::from_secs(300);
    const PAUSE: Duration = Duration::from_secs(10);
    let Some(couchdb) = CouchDb::find("HOWLER_TEST_COUCHDB", "a wrong admin password") else { return };
    // A restarted CouchDB remembers no wrong passwords of earlier runs.
    couchdb.command("STOP", "TERM");
    couchdb.command("START", "TERM");
    let (name, rest) = couchdb.url["http://".len()..].split_once(':').expect("a name and a password");
    let host = rest.rsplit_once('@').expect("a password and a host").1;
    let url = format!("http://{name}:wrong@{host}");
    let began = Instant::now();
    let howler = Howler::launch(&["--couchdb_url", &url, "--access", "members"]);
    let rejected = || howler.metric("howler_couchdb_refusals_total");
    let mut readiness = 200;
    while began.elapsed() + 2 * PAUSE < COUNTED_FOR {
        // Clients log in and subscribe meanwhile.
        let mut client = Client::logged_in(howler.address());
        client.request(json!({"op": "subscribe", "dbs": names()}));
        std::thread::sleep(PAUSE);
        assert!(rejected() <= 4, "{}", howler.output());
        // 403 where the name is locked.
        assert_eq!(couchdb.ask("GET", "/_users", None).status, 200, "the admin can log in");
        readiness = Http::connect(howler.address()).get("/readyz").status;
    }
    let (within, after) = (rejected(), began.elapsed());
    // The next attempts follow, and CouchDB counts the first ones no longer.
    std::thread::sleep(3 * PAUSE);
    print(&format!(
        "a wrong admin password: rejected {within} times in {} s, {} times in {} s; /readyz is {readiness}",
        after.as_secs(),
        rejected(),
        began.elapsed().as_secs(),
    ));
    assert_eq!((within, readiness), (4, 503));
    assert_eq!(couchdb.ask("GET", "/_users", None).status, 200, "the admin can log in");
}

#[test]
fn a_write_on_a_single_node_is_notified_once() {
    let Some(couchdb) = CouchDb::find("HOWLER_TEST_COUCHDB", "notifications a write") else { return };
    notifications_per_write(&couchdb, 1.02);
}

#[test]
fn a_write_on_a_cluster_is_notified_about_twice() {
    let Some(couchdb) = CouchDb::find("HOWLER_TEST_CLUSTER", "notifications a write on a cluster") else { return };
    // A late line, after the merge window, causes a third notification.
    notifications_per_write(&couchdb, 2.2);
}

#[test]
fn a_node_that_restarts_causes_no_resync() {
    let Some(couchdb) = CouchDb::find("HOWLER_TEST_CLUSTER", "one node restarts") else { return };
    let howlers = [0, 1].map(|_| start(0, &couchdb.url));
    for signal in ["KILL", "TERM"] {
        let clients = follow_all(&couchdb, &howlers);
        couchdb.write(&names());
        couchdb.command("STOP", signal);
        couchdb.command("START", signal);
        let lost = finish(&couchdb, clients);
        let resyncs = howlers.each_ref().map(resyncs_of);
        print(&format!("one node restarted by SIG{signal}: {lost} of {PAIRS} pairs lost, resyncs {resyncs:?}"));
        assert_eq!((lost, resyncs), (0, [0, 0]), "SIG{signal}");
    }
}

#[test]
fn a_cluster_whose_nodes_all_restart_loses_nothing() {
    let Some(couchdb) = CouchDb::find("HOWLER_TEST_CLUSTER", "all nodes restart") else { return };
    let howlers = [0, 1].map(|_| start(0, &couchdb.url));
    let clients = follow_all(&couchdb, &howlers);
    couchdb.write(&names());
    couchdb.command("STOP_ALL", "KILL");
    couchdb.command("START_ALL", "KILL");
    let lost = finish(&couchdb, clients);
    let resyncs = howlers.each_ref().map(resyncs_of);
    print(&format!("all nodes restarted by SIGKILL: {lost} of {PAIRS} pairs lost, resyncs {resyncs:?}"));
    assert_eq!((lost, resyncs), (0, [1, 1]));
}
