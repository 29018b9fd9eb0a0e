//! CouchDB over TLS: which certificates are trusted, and that a cut is never taken for an end.

use std::net::{Ipv6Addr, TcpListener};
use std::time::Instant;

use rustls::version::{TLS12, TLS13};
use serde_json::json;

use crate::support::client::Client;
use crate::support::couchdb::{FeedFault, Options, StandIn};
use crate::support::howler::Howler;
use crate::support::tls::{Authority, TlsProxy, tls_url};
use crate::support::{ANSWERED_WITHIN, PASSWORD, SOON, USER, couchdb, couchdb_with};

/// Names and addresses of this machine, as written in certificates.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Starts a server that follows `couchdb` at a URL, and a client that subscribes to `db` and
/// `during`.
fn follow(couchdb: &StandIn, url: &str, authority: &Authority) -> (Client, Howler) {
    let howler = Howler::launch(&["--couchdb_url", url, "--ca_file", authority.file()]);
    assert!(couchdb.wait_for_feeds(1, SOON), "the feed is not open:\n{}", howler.output());
    let client = Client::subscribed(howler.address(), &["db", "during"]);
    (client, howler)
}

fn is_notified(couchdb: &StandIn, client: &mut Client, database: &str) {
    couchdb.update(database);
    assert_eq!(client.next_change(SOON).as_deref(), Some(database));
}

#[test]
fn the_feed_and_logins_work_by_name_by_address_and_below_a_path() {
    let authority = Authority::new();
    for (host, listen, prefix) in
        [("localhost", "127.0.0.1", ""), ("127.0.0.1", "127.0.0.1", "/couch/db"), ("[::1]", "::1", "")]
    {
        let couchdb = couchdb_with(Options { path_prefix: prefix.to_owned(), ..Options::default() });
        let listen = listen.parse().expect("an address");
        let proxy = TlsProxy::start_at(&couchdb, authority.server(&NAMES), listen, false);
        let (mut client, _howler) = follow(&couchdb, &proxy.url(&couchdb, host), &authority);
        is_notified(&couchdb, &mut client, "db");
        let asked = couchdb.requests();
        assert!(asked.iter().all(|request| request.target.starts_with(prefix)), "{host}");
        let expected = proxy.url(&couchdb, host);
        let expected = expected.rsplit('@').next().and_then(|rest| rest.split('/').next());
        assert!(asked.iter().all(|request| request.header("Host") == expected), "{host}");
    }
}

#[test]
fn both_versions_of_tls_work_whole_and_byte_by_byte() {
    let authority = Authority::new();
    for version in [&TLS12, &TLS13] {
        for byte_by_byte in [false, true] {
            let couchdb = couchdb();
            let config = authority.server_with(&NAMES, false, &[version]);
            let proxy = TlsProxy::start_at(&couchdb, config, [127, 0, 0, 1].into(), byte_by_byte);
            let (mut client, howler) = follow(&couchdb, &proxy.url(&couchdb, "localhost"), &authority);
            is_notified(&couchdb, &mut client, "db");
            assert_eq!(howler.count_logged("WARN"), 0, "{}", howler.output());
        }
    }
}

#[test]
fn a_thousand_concurrent_changes_arrive_over_tls() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let proxy = TlsProxy::start(&couchdb, authority.server(&NAMES));
    let (mut client, _howler) = follow(&couchdb, &proxy.url(&couchdb, "localhost"), &authority);
    let names: Vec<String> = (0..1000).map(|number| format!("db-{number}")).collect();
    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": names}))["ok"], true);
    couchdb.update_many(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut received: Vec<_> = names.iter().map(|_| client.next_change(SOON).expect("a change")).collect();
    received.sort();
    received.dedup();
    assert_eq!(received.len(), names.len());
}

/// Tests requests that are written before the handshake of their connection is complete: all of
/// their bytes must arrive.
#[test]
fn long_requests_before_the_end_of_the_handshake_are_sent_completely() {
    for version in [&TLS12, &TLS13] {
        let (couchdb, authority) = (couchdb(), Authority::new());
        let config = authority.server_with(&NAMES, false, &[version]);
        let proxy = TlsProxy::start_at(&couchdb, config, [127, 0, 0, 1].into(), false);
        let (_, howler) = follow(&couchdb, &proxy.url(&couchdb, "localhost"), &authority);
        let mut clients: Vec<Client> = (0..4).map(|_| Client::logged_in(howler.address())).collect();
        // Each client asks for the positions of 240 databases with three keys each: over 160 KB.
        // They do so concurrently, which takes new connections.
        let names =
            |client| (0..240).map(|number| format!("{}-{client}-{number}", "n".repeat(220))).collect::<Vec<_>>();
        let asked = clients.iter_mut().enumerate();
        let asked: Vec<u64> = asked.map(|(i, one)| one.request(json!({"op": "subscribe", "dbs": names(i)}))).collect();
        for (i, (client, id)) in clients.iter_mut().zip(asked).enumerate() {
            client.answer(id);
            // On a slow machine the first reply may have no positions.
            let deadline = Instant::now() + SOON;
            while client.ask(json!({"op": "subscribe", "dbs": names(i)}))["dbs"][&names(i)[0]] != "0.0.0" {
                assert!(Instant::now() < deadline, "{version:?}, client {i}:\n{}", howler.output());
            }
        }
        assert_eq!(howler.count_lines("could not be looked up"), 0, "{}", howler.output());
    }
}

#[test]
fn an_end_without_close_notify_is_logged_as_a_cut() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let proxy = TlsProxy::start(&couchdb, authority.server(&NAMES));
    let (mut client, howler) = follow(&couchdb, &proxy.url(&couchdb, "localhost"), &authority);
    is_notified(&couchdb, &mut client, "db");
    proxy.cut();
    is_notified(&couchdb, &mut client, "during");
    is_notified(&couchdb, &mut client, "db");
    howler.assert_logged("the connection was cut (TLS: no close_notify)", 1);
    howler.assert_logged("WARN", 1);
    Client::logged_in(howler.address());
}

#[test]
fn close_notify_is_logged_as_an_end() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let proxy = TlsProxy::start(&couchdb, authority.server(&NAMES));
    let (mut client, howler) = follow(&couchdb, &proxy.url(&couchdb, "localhost"), &authority);
    is_notified(&couchdb, &mut client, "db");
    couchdb.break_feed(FeedFault::Cut);
    is_notified(&couchdb, &mut client, "during");
    is_notified(&couchdb, &mut client, "db");
    howler.assert_logged("CouchDB cut the changes feed", 1);
    howler.assert_logged("WARN", 1);
}

/// Asserts that a server does not follow, logs the reason once, and continues to serve.
fn is_refused(url: &str, ca_file: &str, line: &str) {
    let howler = Howler::launch(&["--couchdb_url", url, "--ca_file", ca_file]);
    howler.wait_for_lines("Next try in", 3);
    howler.assert_logged(line, 1);
    howler.assert_logged("WARN", 1);
    Client::json(howler.address());
}

#[test]
fn an_invalid_certificate_is_rejected_and_its_problem_logged() {
    let (couchdb, authority, stranger) = (couchdb(), Authority::new(), Authority::new());
    for (config, line) in [
        (stranger.server(&NAMES), "from an unknown authority: --ca_file"),
        (authority.server(&["elsewhere.example"]), "is not for the host in --couchdb_url"),
        (authority.server_with(&NAMES, true, rustls::ALL_VERSIONS), "has expired"),
    ] {
        let proxy = TlsProxy::start(&couchdb, config);
        is_refused(&proxy.url(&couchdb, "localhost"), authority.file(), line);
    }
    assert_eq!(couchdb.counters().requests, 0, "no request is sent over an untrusted connection");
}

#[test]
fn a_mismatch_of_http_and_https_is_logged() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let url = tls_url(&couchdb, &couchdb.address().to_string());
    is_refused(&url, authority.file(), "does not speak TLS: check https in --couchdb_url");
    // Plain HTTP to a TLS port.
    let proxy = TlsProxy::start(&couchdb, authority.server(&NAMES));
    let url = proxy.url(&couchdb, "localhost").replacen("https:", "http:", 1);
    is_refused(&url, authority.file(), "the response is not HTTP/1.1");
}

#[test]
fn a_silent_port_does_not_block_logins() {
    let authority = Authority::new();
    let silent = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).expect("a port is free");
    let url = format!("https://admin:zq7-admin@{}", silent.local_addr().expect("the listener is bound"));
    let howler = Howler::launch(&["--couchdb_url", &url, "--ca_file", authority.file()]);
    let mut client = Client::json(howler.address());
    let started = Instant::now();
    let answer = client.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
    assert_eq!(answer["error"], "ServiceUnavailableError");
    assert!(started.elapsed() < ANSWERED_WITHIN, "{:?}", started.elapsed());
}
