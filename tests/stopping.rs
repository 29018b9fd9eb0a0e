//! Signals, and the clients' last words.

use std::time::{Duration, Instant};

use crate::support::client::{Client, Received};
use crate::support::howler::Howler;
use crate::support::{SOON, couchdb};

#[test]
fn clients_are_told_and_the_server_ends() {
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
        // `silent` never closes its side: it cannot hold the server up for long.
        assert_eq!(howler.wait().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        drop(silent);
    }
}

#[test]
fn a_second_signal_ends_at_once() {
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
