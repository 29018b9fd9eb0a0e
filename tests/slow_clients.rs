//! Clients that do not read their notifications: what they cost, and when the server closes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Client, Received};
use crate::support::couchdb::StandIn;
use crate::support::howler::Howler;
use crate::support::http::Poller;
use crate::support::{SOON, couchdb};

const DATABASES: usize = 1_000;
const ROUNDS: usize = 100;
/// Number of clients that stop reading: enough for their cost to show in the memory of the process.
const CLIENTS: u64 = 4;
/// Limit for the cost of one client, in KiB.
const MOST: u64 = 64;
/// Size of the shared buffer for reading from CouchDB, in KiB. It stays resident as far as it was
/// ever used.
const ONCE: u64 = 256;
/// Database that changes last.
const END: &str = "the-end";
/// Number of names in one message.
const NAMES_AT_ONCE: usize = 200;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Json,
    SocketIo,
    Polling,
}

enum Connected {
    Json(Client),
    SocketIo(Client),
    Polling(Poller),
}

impl Connected {
    fn subscribed(kind: Kind, address: SocketAddr, names: &[&str]) -> Self {
        match kind {
            Kind::Json => {
                let mut client = Client::logged_in(address);
                for part in names.chunks(NAMES_AT_ONCE) {
                    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": part}))["ok"], true);
                }
                Self::Json(client)
            }
            Kind::SocketIo => {
                let mut client = Client::socket_io_logged_in(address);
                for part in names.chunks(NAMES_AT_ONCE) {
                    client.send(&format!("421[\"subscribe\",{}]", json!(part)));
                    assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
                }
                Self::SocketIo(client)
            }
            Kind::Polling => {
                let mut client = Poller::logged_in(address);
                for part in names.chunks(NAMES_AT_ONCE) {
                    client.send(&[&format!("421[\"subscribe\",{}]", json!(part))]);
                    assert_eq!(client.next(), "431[{}]");
                }
                Self::Polling(client)
            }
        }
    }

    /// Returns the database of the next notification, with its position if the protocol has
    /// positions.
    fn next(&mut self) -> (String, Option<String>) {
        let text = match self {
            Self::Json(client) => {
                let event = client.next_event(SOON).expect("a notification");
                assert_eq!(event["event"], "change");
                let text = |field: &str| event[field].as_str().map(str::to_owned);
                return (text("db").expect("a name"), text("position"));
            }
            Self::SocketIo(client) => client.receive_text(SOON).expect("a notification"),
            Self::Polling(client) => client.next(),
        };
        let event: Value = serde_json::from_str(text.strip_prefix("42").expect("an event")).expect("JSON");
        assert_eq!(event[0], "change");
        (event[1].as_str().expect("a name").to_owned(), None)
    }
}

fn long_names() -> Vec<String> {
    (0..DATABASES).map(|number| format!("{}{number}", "a-rather-long-name/".repeat(5))).collect()
}

fn stops_reading(kind: Kind) {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--ping_interval", "600000"]);
    let names = long_names();
    let names: Vec<&str> = names.iter().map(String::as_str).chain([END]).collect();
    let mut slow: Vec<_> = (0..CLIENTS).map(|_| Connected::subscribed(kind, howler.address(), &names)).collect();
    let mut quick = Connected::subscribed(Kind::Json, howler.address(), &names);
    for _ in 0..3 {
        let mut clients = slow.iter_mut().chain([&mut quick]);
        round(&couchdb, &names[..DATABASES], &mut clients);
    }
    let before = howler.resident_kib();
    for _ in 0..ROUNDS {
        round(&couchdb, &names[..DATABASES], &mut [&mut quick].into_iter());
    }
    let grown = howler.resident_kib().saturating_sub(before);
    couchdb.update(END);
    let mut received = BTreeMap::new();
    let mut notifications = 0;
    for client in &mut slow {
        received.clear();
        while !received.contains_key(END) {
            let (name, position) = client.next();
            received.insert(name, position);
            notifications += 1;
        }
        assert_eq!(received.len(), DATABASES + 1, "every database is notified");
        let last = format!("{}.0.0", ROUNDS + 3);
        let stale =
            received.iter().find(|(name, position)| *name != END && position.as_ref().is_some_and(|at| *at != last));
        assert_eq!(stale, None, "each notification has the last position");
    }
    println!(
        "{kind:?}: {CLIENTS} clients did not read while {} changes passed: the server grew by {grown} KiB for all of them; \
         then each received all of them, in {} notifications",
        ROUNDS * DATABASES,
        notifications / CLIENTS,
    );
    assert!(
        notifications < CLIENTS * (ROUNDS * DATABASES) as u64 / 2,
        "the clients were not blocked, so this proves nothing"
    );
    assert!(grown < ONCE + CLIENTS * MOST, "the server keeps what clients do not read: {grown} KiB");
}

/// Updates each database once; these clients read the notifications.
fn round<'a>(couchdb: &StandIn, names: &[&str], clients: &mut impl Iterator<Item = &'a mut Connected>) {
    couchdb.update_many(names);
    for client in clients {
        let received: BTreeSet<_> = names.iter().map(|_| client.next().0).collect();
        assert_eq!(received.len(), names.len(), "each database once");
    }
}

#[test]
fn a_json_client_that_stops_reading_costs_little_and_misses_nothing() {
    stops_reading(Kind::Json);
}

#[test]
fn a_socket_io_client_that_stops_reading_costs_little_and_misses_nothing() {
    stops_reading(Kind::SocketIo);
}

#[test]
fn a_client_that_stops_polling_costs_little_and_misses_nothing() {
    stops_reading(Kind::Polling);
}

#[test]
fn a_client_that_reads_nothing_is_closed_and_a_slow_one_is_not() {
    const READS_NOTHING: &str = "ended: reads nothing";
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--slow_timeout", "2"]);
    let names = long_names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let open = |kind| Connected::subscribed(kind, howler.address(), &names);
    let deaf = [open(Kind::Json), open(Kind::SocketIo)];
    let Connected::Json(mut slow) = open(Kind::Json) else { unreachable!("the client has the requested kind") };
    let deadline = Instant::now() + 3 * SOON;
    let mut closed_at = None;
    // The slow client reads on for longer than the others could stay silent.
    while closed_at.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(4)) {
        assert!(Instant::now() < deadline, "no client is closed:\n{}", howler.output());
        couchdb.update_many(&names);
        for _ in 0..DATABASES / 2 {
            assert!(slow.next_change(SOON).is_some(), "the slow client is still notified");
        }
        std::thread::sleep(Duration::from_millis(20));
        if closed_at.is_none() && howler.count_lines(READS_NOTHING) == deaf.len() {
            closed_at = Some(Instant::now());
        }
    }
    assert_eq!(howler.count_lines(READS_NOTHING), deaf.len());
    assert_eq!(howler.metric("howler_closes_total{reason=\"slow_reader\"}"), deaf.len() as u64);
    for deaf in deaf {
        let (Connected::Json(mut client) | Connected::SocketIo(mut client)) = deaf else { continue };
        assert_eq!(client.receive_close(SOON).1, Received::End, "the connection ends after the buffered bytes");
    }
    assert_eq!(slow.ask(json!({"op": "heartbeat"}))["ok"], true);
}
