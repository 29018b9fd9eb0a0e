//! Many clients, slow clients, and clients that disappear.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::Client;
use crate::support::howler::Howler;
use crate::support::{SOON, couchdb, wait_until};

/// Opens this number of clients, half of each protocol, in a few threads.
fn many(address: SocketAddr, count: usize, database: &'static str) -> Vec<(Client, &'static str)> {
    const THREADS: usize = 10;
    let open = move |number: usize| {
        if number.is_multiple_of(2) {
            return (Client::subscribed(address, &[database]), "\"db\":");
        }
        let mut client = Client::socket_io_logged_in(address);
        client.send(&format!(r#"421["subscribe",["{database}"]]"#));
        assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
        (client, "42[\"change\",")
    };
    let threads: Vec<_> =
        (0..THREADS).map(|_| thread::spawn(move || (0..count / THREADS).map(open).collect::<Vec<_>>())).collect();
    threads.into_iter().flat_map(|thread| thread.join().expect("all clients log in")).collect()
}

#[test]
fn five_thousand_clients_are_notified_once() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let before = howler.resident_kib();
    let began = Instant::now();
    let mut clients = many(howler.address(), 5000, "busy");
    println!(
        "5000 clients logged in and subscribed in {:.1} s; {} bytes of the server's memory each",
        began.elapsed().as_secs_f64(),
        (howler.resident_kib() - before) * 1024 / 5000,
    );
    for round in 0..3 {
        let began = Instant::now();
        couchdb.update("busy");
        for (client, sign) in &mut clients {
            let text = client.receive_text(SOON).expect("every client is notified");
            assert!(text.contains(*sign) && text.contains("\"busy\""), "{text}");
        }
        println!("round {round}: all clients notified within {} ms", began.elapsed().as_millis());
    }
    for (client, _) in &mut clients {
        assert_eq!(client.receive_text(Duration::from_millis(1)), None, "each client is notified once");
    }
}

#[test]
fn slow_client_delays_no_other_and_receives_each_database() {
    const DATABASES: usize = 1000;
    const ROUNDS: usize = 60;
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let names: Vec<String> = (0..DATABASES).map(|i| format!("{}{i}", "a-rather-long-name/".repeat(10))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let subscribe = |mut client: Client| {
        // In several messages, each below 64 KiB.
        for part in names.chunks(DATABASES / 5) {
            assert_eq!(client.ask(json!({"op": "subscribe", "dbs": part}))["ok"], true);
        }
        client
    };
    let mut slow = subscribe(Client::logged_in(howler.address()));
    let mut quick = subscribe(Client::logged_in(howler.address()));
    let before = howler.resident_kib();
    for _ in 0..ROUNDS {
        couchdb.update_many(&names);
        for _ in 0..DATABASES {
            assert!(quick.next_change(SOON).is_some(), "the quick client is notified at once");
        }
    }
    let grown = howler.resident_kib().saturating_sub(before);
    // The slow client reads the contents of the socket buffers, then each database once.
    let mut received: HashMap<String, usize> = HashMap::new();
    let mut total = 0;
    couchdb.update("the end");
    while let Some(name) = slow.next_change(Duration::from_millis(1500)) {
        *received.entry(name).or_default() += 1;
        total += 1;
    }
    println!("{total} notifications for {} changes; the server grew by {grown} KiB meanwhile", ROUNDS * DATABASES);
    assert_eq!(received.len(), DATABASES, "the slow client is notified of every database");
    assert!(total < ROUNDS * DATABASES, "notifications were coalesced, so the client was blocked");
    assert!(grown < 1024, "unread notifications take no memory: {grown} KiB");
    couchdb.update(names[7]);
    assert_eq!(slow.next_change(SOON).as_deref(), Some(names[7]));
}

#[test]
fn closed_connections_leave_no_memory_or_descriptors() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let descriptors = howler.descriptors();
    let mut resident = Vec::new();
    for round in 0..5 {
        let clients = many(howler.address(), 1000, "db");
        let peak = howler.resident_kib();
        if round % 2 == 0 {
            // With an unread notification, the close is a reset.
            couchdb.update("db");
        }
        drop(clients);
        wait_until("descriptors are closed", || howler.descriptors() <= descriptors + 12);
        resident.push(howler.resident_kib());
        println!(
            "1000 clients came (peak {peak} KiB) and went: {} KiB, {} descriptors",
            resident[round],
            howler.descriptors()
        );
    }
    assert!(resident[4] <= resident[1] + 512, "memory does not keep growing: {resident:?} KiB");
    // Connections that end within the handshake leave nothing behind, either.
    for _ in 0..200 {
        let mut socket = std::net::TcpStream::connect(howler.address()).expect("the server accepts the connection");
        std::io::Write::write_all(&mut socket, b"GET /howler HT").expect("the request is sent");
    }
    wait_until("descriptors are closed", || howler.descriptors() <= descriptors + 12);
    let mut client = Client::subscribed(howler.address(), &["db"]);
    couchdb.update("db");
    assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
}
