//! Signals, and how the server closes its clients.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::client::{Client, Received};
use crate::support::howler::Howler;
use crate::support::http::{Http, Poller};
use crate::support::{SOON, couchdb};

#[test]
fn a_signal_closes_clients_and_ends_the_server() {
    for signal in ["INT", "TERM"] {
        let couchdb = couchdb();
        let mut howler = Howler::start(&couchdb);
        let mut json = Client::subscribed(howler.address(), &["db"]);
        let mut socket_io = Client::socket_io_logged_in(howler.address());
        let silent = Client::logged_in(howler.address());
        let began = Instant::now();
        howler.signal(signal);
        let (texts, close) = json.receive_close(SOON);
        let goodbye: serde_json::Value = serde_json::from_str(&texts[0]).unwrap();
        assert_eq!((&goodbye["event"], &goodbye["reason"]), (&"goodbye".into(), &"shutting-down".into()));
        assert!(goodbye["retry_after_ms"].as_u64().unwrap() >= 1000);
        assert_eq!(close, Received::Close(1001, "shutting down".into()));
        assert!(matches!(socket_io.receive(SOON), Received::Close(1001, _)));
        // `silent` never closes its side, which must not delay the server for long.
        assert_eq!(howler.wait().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        drop(silent);
    }
}

#[test]
fn a_second_signal_ends_the_server_immediately() {
    let couchdb = couchdb();
    let mut howler = Howler::start(&couchdb);
    let _silent = Client::logged_in(howler.address());
    howler.signal("TERM");
    howler.wait_for_line("Stopping");
    let began = Instant::now();
    howler.signal("TERM");
    assert_eq!(howler.wait().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// Number of clients: enough for the drain to take two seconds.
const MANY: usize = 400;

fn crowd(howler: &Howler) -> Vec<Client> {
    (0..MANY).map(|_| Client::subscribed(howler.address(), &["db"])).collect()
}

#[test]
fn a_drain_spreads_the_closes_and_still_sends_changes() {
    let couchdb = couchdb();
    let mut howler = Howler::start(&couchdb);
    let mut clients = crowd(&howler);
    howler.signal("TERM");
    howler.wait_for_line("Stopping");
    couchdb.update("db");
    let mut closed = Vec::new();
    let mut waits = Vec::new();
    for client in &mut clients {
        let (texts, close) = client.receive_close(SOON);
        closed.push(Instant::now());
        assert_eq!(close, Received::Close(1001, "shutting down".into()));
        let goodbye: Value = serde_json::from_str(texts.last().expect("a goodbye")).unwrap();
        assert_eq!(goodbye["event"], "goodbye", "{texts:?}");
        waits.push(goodbye["retry_after_ms"].as_u64().unwrap());
        if closed.len() == MANY {
            assert!(texts[0].contains("\"change\""), "the last client receives the change: {texts:?}");
        }
    }
    let took = closed[MANY - 1] - closed[0];
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(9), "{took:?}");
    let early = closed.iter().filter(|at| **at - closed[0] < took / 2).count();
    assert!((MANY / 5..MANY * 4 / 5).contains(&early), "{early} of {MANY} in the first half of the time");
    let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
    assert!(*least >= 1_000 && *most < 3_000 && most - least > 500, "{least} to {most}");
    drop(clients);
    assert_eq!(howler.wait().code(), Some(0));
}

#[test]
fn a_drain_serves_pollers_until_their_close_and_rejects_new_clients() {
    let couchdb = couchdb();
    let mut howler = Howler::start(&couchdb);
    let crowd = crowd(&howler);
    let mut poller = Poller::subscribed(howler.address(), &["db"]);
    poller.start_poll();
    let (mut late_client, mut reader) = (Http::connect(howler.address()), Http::connect(howler.address()));
    assert_eq!((late_client.get("/howler.js").status, reader.get("/howler.js").status), (200, 200));
    howler.signal("TERM");
    howler.wait_for_line("Stopping");
    assert!(TcpStream::connect(howler.address()).is_err(), "no more connections are accepted");
    let refused = late_client.get("/socket.io/?EIO=4&transport=polling");
    assert_eq!((refused.status, refused.field("Retry-After")), (503, Some("1")), "{refused:?}");
    let file = reader.get("/howler.js");
    assert_eq!((file.status, file.field("Connection")), (200, Some("close")));
    couchdb.update("db");
    assert_eq!(poller.finish_poll(), [r#"42["change","db"]"#]);
    // The server closes the session on the connection that the client already has.
    assert_eq!(poller.poll(), ["1"]);
    drop(crowd);
    assert_eq!(howler.wait().code(), Some(0));
}

#[test]
fn a_drain_takes_no_longer_than_its_timeout() {
    for (timeout, within) in [("0", 2), ("1", 3)] {
        let couchdb = couchdb();
        let mut howler = Howler::start_with(&couchdb, &["--drain_timeout", timeout]);
        // None of the clients reads or closes anything.
        let silent = crowd(&howler);
        let began = Instant::now();
        howler.signal("TERM");
        assert_eq!(howler.wait().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(within), "{timeout}: {:?}", began.elapsed());
        drop(silent);
    }
}
