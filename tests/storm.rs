//! All clients reconnect at once: a server is killed and started again while logins at CouchDB are
//! slow.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Client, Received};
use crate::support::couchdb::StandIn;
use crate::support::device::{Device, Notice};
use crate::support::howler::{Howler, lasting_port};
use crate::support::http::Http;
use crate::support::{PASSWORD, SOON, USER, couchdb};

const CLIENTS: usize = 5_000;
/// Clients of a second server, which is not restarted.
const UNDISTURBED: usize = 500;
/// Threads for each of the two groups; each thread serves its share of the clients.
const THREADS: usize = 10;
/// Time that a login takes CouchDB.
const LOGIN_TAKES: Duration = Duration::from_millis(20);

#[test]
fn five_thousand_reconnecting_clients_do_not_disturb_others() {
    let couchdb = Arc::new(couchdb());
    let port = lasting_port();
    let first = Howler::start_on(port, &couchdb, &[]);
    let second = Howler::start(&couchdb);
    let mut shares = first_visit(first.address());
    let undisturbed = Undisturbed::start(second.address(), &couchdb);
    couchdb.set_login_delay(LOGIN_TAKES);
    let before = couchdb.counters();
    drop(first);
    // Each client learns of this change when it is back.
    couchdb.update("storm-3");
    let began = Instant::now();
    let first = Howler::start_on(port, &couchdb, &[]);
    let refused = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = shares
        .drain(..)
        .map(|share| {
            let (address, refused) = (first.address(), Arc::clone(&refused));
            thread::spawn(move || come_back(share, address, &refused))
        })
        .collect();
    let notified: usize = threads.into_iter().map(|thread| thread.join().expect("all clients reconnect").1).sum();
    let took = began.elapsed();
    let after = couchdb.counters();
    let (latencies, rounds) = undisturbed.finish();
    let p99 = latencies[latencies.len() * 99 / 100];
    println!(
        "storm: {CLIENTS} clients were back after {:.1} s ({} logins rejected and retried); {} logins at CouchDB, at most \
         {} at once, {} requests of any kind at once; {rounds} notifications to each of {UNDISTURBED} undisturbed clients: \
         p50 {:.1} ms, p99 {:.1} ms, slowest {:.1} ms",
        took.as_secs_f64(),
        refused.load(SeqCst),
        after.session_requests - before.session_requests,
        after.peak_sessions_in_flight,
        after.peak_in_flight,
        milliseconds(latencies[latencies.len() / 2]),
        milliseconds(p99),
        milliseconds(latencies[latencies.len() - 1]),
    );
    assert_eq!(notified, CLIENTS / 10, "only subscribers of the changed database are notified");
    assert!(after.peak_sessions_in_flight <= 16, "two servers with eight logins each");
    assert!(after.session_requests - before.session_requests >= CLIENTS, "CouchDB checks each login");
    assert!(p99 < Duration::from_secs(2), "notifications of other clients are late: {p99:?}");
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// Connects all clients for the first time; each has one of ten shared databases and one of its
/// own.
fn first_visit(address: SocketAddr) -> Vec<Vec<Device>> {
    let visit = move |share: usize| {
        let numbers = (0..CLIENTS).filter(|number| number % THREADS == share);
        let mut devices: Vec<_> = numbers
            .map(|number| Device::new([format!("storm-{}", number / THREADS % 10), format!("own-{number}")]))
            .collect();
        for device in &mut devices {
            device.begin_login(address).expect("the server listens");
        }
        for device in &mut devices {
            device.finish_login().expect("CouchDB is quick");
        }
        for device in &mut devices {
            assert_eq!(device.subscribe().expect("the client is connected").len(), 2, "the client knew no positions");
        }
        devices
    };
    let threads: Vec<_> = (0..THREADS).map(|share| thread::spawn(move || visit(share))).collect();
    threads.into_iter().map(|thread| thread.join().expect("all log in")).collect()
}

/// Connects a share of the clients at once and retries rejected logins. Returns the clients and the
/// number of changes that they were notified of.
fn come_back(mut devices: Vec<Device>, address: SocketAddr, refused: &AtomicUsize) -> (Vec<Device>, usize) {
    let mut left: Vec<usize> = (0..devices.len()).collect();
    let deadline = Instant::now() + 6 * SOON;
    while !left.is_empty() {
        assert!(Instant::now() < deadline, "{} clients are not back", left.len());
        for which in &left {
            // A rejected client is found below.
            let _ = devices[*which].begin_login(address);
        }
        let again = left.extract_if(.., |which| devices[*which].finish_login().is_err()).collect::<Vec<_>>();
        refused.fetch_add(again.len(), SeqCst);
        left = again;
    }
    let notified = devices.iter_mut().map(|device| device.subscribe().expect("the client is logged in").len()).sum();
    (devices, notified)
}

/// Clients of the second server, and the latency of each of their notifications.
struct Undisturbed {
    over: Arc<AtomicBool>,
    writer: thread::JoinHandle<usize>,
    readers: Vec<thread::JoinHandle<Vec<Duration>>>,
}

impl Undisturbed {
    /// Connects the clients, then starts to write changes. Readers compute latencies from the time
    /// of the last write to each of the databases, which change in turn.
    fn start(address: SocketAddr, couchdb: &Arc<StandIn>) -> Self {
        const PULSES: usize = 50;
        let over = Arc::new(AtomicBool::new(false));
        let written = Arc::new(Mutex::new(vec![Instant::now(); PULSES]));
        let names: Vec<_> = (0..PULSES).map(|number| format!("pulse-{number}")).collect();
        let readers = (0..THREADS)
            .map(|_| {
                let mut devices: Vec<_> = (0..UNDISTURBED / THREADS).map(|_| Device::new(names.clone())).collect();
                for device in &mut devices {
                    device.come_back(address).expect("the server replies");
                }
                let (over, written) = (Arc::clone(&over), Arc::clone(&written));
                thread::spawn(move || listen(&mut devices, &over, &written))
            })
            .collect();
        let (couchdb, stop) = (Arc::clone(couchdb), Arc::clone(&over));
        let writer = thread::spawn(move || {
            let mut round = 0;
            while !stop.load(SeqCst) {
                let which = round % PULSES;
                written.lock().expect("the lock is not poisoned")[which] = Instant::now();
                couchdb.update(&names[which]);
                round += 1;
                thread::sleep(Duration::from_millis(50));
            }
            round
        });
        Self { over, writer, readers }
    }

    /// Returns all latencies in ascending order and the number of changes.
    fn finish(self) -> (Vec<Duration>, usize) {
        self.over.store(true, SeqCst);
        let rounds = self.writer.join().expect("the writer does not panic");
        let mut latencies = Vec::new();
        for reader in self.readers {
            let its = reader.join().expect("the clients stay connected");
            assert_eq!(its.len(), rounds * UNDISTURBED / THREADS, "each client is notified of each change");
            latencies.extend(its);
        }
        latencies.sort_unstable();
        (latencies, rounds)
    }
}

/// Reads the notifications of the clients until the writer has stopped and no more arrive.
fn listen(devices: &mut [Device], over: &AtomicBool, written: &Mutex<Vec<Instant>>) -> Vec<Duration> {
    let mut latencies = Vec::new();
    loop {
        let ends = over.load(SeqCst);
        let before = latencies.len();
        for device in &mut *devices {
            // Wait only for the first notification of a change.
            let within = if latencies.len() == before { Duration::from_millis(20) } else { Duration::from_millis(1) };
            match device.next(within) {
                Ok(Notice::Change(name)) => {
                    let which: usize = name["pulse-".len()..].parse().expect("a number");
                    latencies.push(written.lock().expect("the lock is not poisoned")[which].elapsed());
                }
                Ok(Notice::Nothing) => {}
                other => panic!("an undisturbed client is disturbed: {other:?}"),
            }
        }
        if ends && latencies.len() == before {
            return latencies;
        }
    }
}

#[test]
fn a_login_above_the_limit_of_waiting_logins_is_rejected_with_a_retry_time() {
    // A polling session logs in with its first request, and one connection of a proxy carries any
    // number of them.
    const WAITING: usize = 20_000;
    const CONNECTIONS: usize = 20;
    let couchdb = couchdb();
    couchdb.set_login_delay(Duration::from_secs(3));
    let options = ["--ping_interval", "600000", "--login_concurrency", "1", "--trusted_proxies", "127.0.0.1"];
    let howler = Howler::start_with(&couchdb, &options);
    let query = format!("/socket.io/?EIO=3&transport=polling&username={USER}&password={PASSWORD}");
    let address = howler.address();
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let query = query.clone();
            thread::spawn(move || {
                let mut polls = Http::connect(address);
                for _ in 0..WAITING / CONNECTIONS {
                    assert_eq!(polls.get(&query).status, 200);
                }
                polls
            })
        })
        .collect();
    let polls: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("all sessions are open")).collect();
    // One or two logins are at CouchDB and do not wait.
    let (mut waiting, mut refusal) = (Vec::new(), None);
    while refusal.is_none() && waiting.len() < 10 {
        let mut client = Client::json(howler.address());
        client.request(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
        match client.receive_json(Duration::from_millis(500)) {
            Some(answer) => refusal = Some((client, answer)),
            None => waiting.push(client),
        }
    }
    let (mut client, answer) = refusal.expect("a login is rejected");
    assert_eq!((&answer["id"], &answer["error"]), (&json!(1), &json!("ServiceUnavailableError")), "{answer}");
    let again = answer["retry_after_ms"].as_u64().expect("a time");
    assert!((5_000..10_000).contains(&again), "{again}");
    assert!(matches!(client.receive(SOON), Received::Close(4401, _)));
    drop(polls);
}
