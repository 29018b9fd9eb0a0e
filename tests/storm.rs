//! Everybody comes back at once: a server is killed and started again, and CouchDB takes its time for log-ins.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use couchdb_howler::demo::StandIn;
use serde_json::json;

use crate::support::client::{Client, Received};
use crate::support::device::{Device, Told};
use crate::support::howler::{Howler, lasting_port};
use crate::support::http::Http;
use crate::support::{PASSWORD, SOON, USER, couchdb};

const CLIENTS: usize = 5_000;
/// Clients of a second server, which is left alone.
const UNDISTURBED: usize = 500;
/// Threads for either: each serves its share of the clients.
const THREADS: usize = 10;
/// What a log-in costs CouchDB.
const LOGIN_TAKES: Duration = Duration::from_millis(20);

#[test]
fn five_thousand_clients_come_back_and_disturb_nobody() {
    let couchdb = Arc::new(couchdb());
    let port = lasting_port();
    let first = Howler::start_on(port, &couchdb, &[]);
    let second = Howler::start(&couchdb);
    let mut shares = first_visit(first.address());
    let undisturbed = Undisturbed::start(second.address(), &couchdb);
    couchdb.set_login_delay(LOGIN_TAKES);
    let before = couchdb.counters();
    drop(first);
    // What happens while they are away is told to each when it is back.
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
    let told: usize = threads.into_iter().map(|thread| thread.join().expect("all come back").1).sum();
    let took = began.elapsed();
    let after = couchdb.counters();
    let (latencies, rounds) = undisturbed.finish();
    let p99 = latencies[latencies.len() * 99 / 100];
    println!(
        "storm: {CLIENTS} clients were back after {:.1} s ({} log-ins refused and tried again); {} log-ins at CouchDB, at most \
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
    assert_eq!(told, CLIENTS / 10, "those who have the database that changed are told, and nobody else");
    assert!(after.peak_sessions_in_flight <= 16, "two servers with eight log-ins each");
    assert!(after.session_requests - before.session_requests >= CLIENTS, "each was asked for");
    assert!(p99 < Duration::from_secs(2), "the others are served meanwhile: {p99:?}");
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// All clients connect for the first time; each has one of ten databases, and one of its own.
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
            assert_eq!(device.subscribe().expect("it is connected").len(), 2, "it knew nothing");
        }
        devices
    };
    let threads: Vec<_> = (0..THREADS).map(|share| thread::spawn(move || visit(share))).collect();
    threads.into_iter().map(|thread| thread.join().expect("all log in")).collect()
}

/// A share of the clients connects all at once; who is refused tries again. With how many changes they were told.
fn come_back(mut devices: Vec<Device>, address: SocketAddr, refused: &AtomicUsize) -> (Vec<Device>, usize) {
    let mut left: Vec<usize> = (0..devices.len()).collect();
    let deadline = Instant::now() + 6 * SOON;
    while !left.is_empty() {
        assert!(Instant::now() < deadline, "{} clients are not back", left.len());
        for which in &left {
            // One that is refused is found out below.
            let _ = devices[*which].begin_login(address);
        }
        let again = left.extract_if(.., |which| devices[*which].finish_login().is_err()).collect::<Vec<_>>();
        refused.fetch_add(again.len(), SeqCst);
        left = again;
    }
    let told = devices.iter_mut().map(|device| device.subscribe().expect("it is logged in").len()).sum();
    (devices, told)
}

/// Clients that nothing happens to, and how long after a change each was told of it.
struct Undisturbed {
    over: Arc<AtomicBool>,
    writer: thread::JoinHandle<usize>,
    readers: Vec<thread::JoinHandle<Vec<Duration>>>,
}

impl Undisturbed {
    /// When the change was written that readers wait for; each change has a database of its own, in turn.
    fn start(address: SocketAddr, couchdb: &Arc<StandIn>) -> Self {
        const PULSES: usize = 50;
        let over = Arc::new(AtomicBool::new(false));
        let written = Arc::new(Mutex::new(vec![Instant::now(); PULSES]));
        let names: Vec<_> = (0..PULSES).map(|number| format!("pulse-{number}")).collect();
        let readers = (0..THREADS)
            .map(|_| {
                let mut devices: Vec<_> = (0..UNDISTURBED / THREADS).map(|_| Device::new(names.clone())).collect();
                for device in &mut devices {
                    device.come_back(address).expect("it is served");
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
                written.lock().expect("nobody panics with it")[which] = Instant::now();
                couchdb.update(&names[which]);
                round += 1;
                thread::sleep(Duration::from_millis(50));
            }
            round
        });
        Self { over, writer, readers }
    }

    /// All latencies, the shortest first, and how many changes there were.
    fn finish(self) -> (Vec<Duration>, usize) {
        self.over.store(true, SeqCst);
        let rounds = self.writer.join().expect("it only writes");
        let mut latencies = Vec::new();
        for reader in self.readers {
            let its = reader.join().expect("the clients stay connected");
            assert_eq!(its.len(), rounds * UNDISTURBED / THREADS, "each was told of each change");
            latencies.extend(its);
        }
        latencies.sort_unstable();
        (latencies, rounds)
    }
}

/// Reads what each client is told, until all was said and nothing comes any more.
fn listen(devices: &mut [Device], over: &AtomicBool, written: &Mutex<Vec<Instant>>) -> Vec<Duration> {
    let mut latencies = Vec::new();
    loop {
        let ends = over.load(SeqCst);
        let before = latencies.len();
        for device in &mut *devices {
            // Nothing is waited for but the first of a pulse.
            let within = if latencies.len() == before { Duration::from_millis(20) } else { Duration::from_millis(1) };
            match device.next(within) {
                Ok(Told::Change(name)) => {
                    let which: usize = name["pulse-".len()..].parse().expect("a number");
                    latencies.push(written.lock().expect("nobody panics with it")[which].elapsed());
                }
                Ok(Told::Nothing) => {}
                other => panic!("an undisturbed client is disturbed: {other:?}"),
            }
        }
        if ends && latencies.len() == before {
            return latencies;
        }
    }
}

#[test]
fn who_comes_when_too_many_wait_is_told_when_to_come_again() {
    // A session that polls logs in with its first request, and any number of them fit into one connection of a proxy.
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
    let polls: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("all are opened")).collect();
    // One or two are at CouchDB and not waiting.
    let (mut waiting, mut refusal) = (Vec::new(), None);
    while refusal.is_none() && waiting.len() < 10 {
        let mut client = Client::json(howler.address());
        client.request(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
        match client.receive_json(Duration::from_millis(500)) {
            Some(answer) => refusal = Some((client, answer)),
            None => waiting.push(client),
        }
    }
    let (mut client, answer) = refusal.expect("one is refused at last");
    assert_eq!((&answer["id"], &answer["error"]), (&json!(1), &json!("ServiceUnavailableError")), "{answer}");
    let again = answer["retry_after_ms"].as_u64().expect("a time");
    assert!((5_000..10_000).contains(&again), "{again}");
    assert!(matches!(client.receive(SOON), Received::Close(4401, _)));
    drop(polls);
}
