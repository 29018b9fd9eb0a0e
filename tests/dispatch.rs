//! Many clients, slow clients, clients that vanish.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::Client;
use crate::support::howler::Howler;
use crate::support::{SOON, couchdb};

/// So many clients of each dialect, opened by a few threads.
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
fn five_thousand_clients_are_all_told() {
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
            let text = client.receive_text(SOON).expect("everyone is told");
            assert!(text.contains(*sign) && text.contains("\"busy\""), "{text}");
        }
        println!("round {round}: all told within {} ms", began.elapsed().as_millis());
    }
    for (client, _) in &mut clients {
        assert_eq!(client.receive_text(Duration::from_millis(1)), None, "once");
    }
}

#[test]
fn a_client_that_stops_reading_delays_nobody_and_misses_nothing() {
    const DATABASES: usize = 1000;
    const ROUNDS: usize = 60;
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let names: Vec<String> = (0..DATABASES).map(|i| format!("{}{i}", "a-rather-long-name/".repeat(10))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let subscribe = |mut client: Client| {
        // In two messages: one may not be over 64 KiB.
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
            assert!(quick.next_change(SOON).is_some(), "the quick client is told at once");
        }
    }
    let grown = howler.resident_kib().saturating_sub(before);
    // Now it reads: what lay in the buffers of the system, then each database once.
    let mut told: HashMap<String, usize> = HashMap::new();
    let mut total = 0;
    couchdb.update("the end");
    while let Some(name) = slow.next_change(Duration::from_millis(1500)) {
        *told.entry(name).or_default() += 1;
        total += 1;
    }
    println!("{total} notifications for {} changes; the server grew by {grown} KiB meanwhile", ROUNDS * DATABASES);
    assert_eq!(told.len(), DATABASES, "every database was told");
    assert!(total < ROUNDS * DATABASES, "the client was blocked, else this proves nothing");
    assert!(grown < 1024, "what a client does not read is not kept for it: {grown} KiB");
    couchdb.update(names[7]);
    assert_eq!(slow.next_change(SOON).as_deref(), Some(names[7]));
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let descriptors = howler.descriptors();
    let mut resident = Vec::new();
    for round in 0..5 {
        let clients = many(howler.address(), 1000, "db");
        let peak = howler.resident_kib();
        if round % 2 == 0 {
            // With a notification unread, closing is a reset.
            couchdb.update("db");
        }
        drop(clients);
        wait_until(|| howler.descriptors() <= descriptors + 12);
        resident.push(howler.resident_kib());
        println!(
            "1000 clients came (peak {peak} KiB) and went: {} KiB, {} descriptors",
            resident[round],
            howler.descriptors()
        );
    }
    assert!(resident[4] <= resident[1] + 512, "memory does not creep: {resident:?} KiB");
    // And half-open ones: connections that never say anything, and such that end within the handshake.
    for _ in 0..200 {
        let mut socket = std::net::TcpStream::connect(howler.address()).expect("accepted");
        std::io::Write::write_all(&mut socket, b"GET /howler HT").expect("sent");
    }
    wait_until(|| howler.descriptors() <= descriptors + 12);
    let mut client = Client::subscribed(howler.address(), &["db"]);
    couchdb.update("db");
    assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "it does not come to pass");
        thread::sleep(Duration::from_millis(10));
    }
}
