//! Connections to CouchDB and proxies between: silently broken connections, expired cookies, long
//! heads.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Client, Received};
use crate::support::couchdb::{FeedFault, Options, RecordedRequest, StandIn};
use crate::support::howler::Howler;
use crate::support::http::Poller;
use crate::support::proxy::Proxy;
use crate::support::{PASSWORD, SOON, USER, couchdb, couchdb_with};

/// Inserts header lines after the status line of each response.
fn with_fields(bytes: Vec<u8>, fields: &str) -> Vec<u8> {
    match bytes.windows(2).position(|two| two == b"\r\n") {
        Some(end) if bytes.starts_with(b"HTTP/1.1 ") => {
            [&bytes[..end + 2], fields.as_bytes(), &bytes[end + 2..]].concat()
        }
        _ => bytes,
    }
}

fn long_field(bytes: Vec<u8>) -> Vec<u8> {
    with_fields(bytes, &format!("Content-Security-Policy: {}\r\n", "x".repeat(40_000)))
}

#[test]
fn clients_log_in_behind_a_proxy_with_long_heads() {
    let couchdb = couchdb();
    let proxy = Proxy::rewriting(couchdb.address(), long_field);
    let howler = Howler::launch(&["--couchdb_url", &proxy.url_of(&couchdb)]);
    assert!(couchdb.wait_for_feeds(1, SOON), "the feed is not open");
    let mut client = Client::subscribed(howler.address(), &["garden"]);
    couchdb.update("garden");
    assert_eq!(client.next_change(SOON).as_deref(), Some("garden"));
}

#[test]
fn an_invalid_token_has_its_own_message() {
    let couchdb = couchdb();
    couchdb.add_token("good.token", USER, &[]);
    couchdb.add_token("old.token", USER, &[]);
    couchdb.expire_token("old.token");
    let howler = Howler::start(&couchdb);
    for token in ["no.such.token", "old.token", "not a token", ""] {
        let mut client = Client::json(howler.address());
        let answer = client.ask(json!({"op": "log-in", "token": token}));
        assert_eq!(answer["error"], "NotAuthenticatedError", "{answer}");
        let message = answer["message"].as_str().expect("a text");
        assert!(message.contains("token") && !message.contains("password"), "{message}");
    }
    let mut client = Client::json(howler.address());
    let answer = client.ask(json!({"op": "log-in", "cookie": "AuthSession=abc"}));
    assert!(answer["message"].as_str().is_some_and(|message| message.contains("cookie")), "{answer}");
    // A handshake of Socket.IO may carry a token, too.
    let mut client = Client::socket_io(howler.address(), "token=no.such.token");
    let refusal = (0..3).filter_map(|_| client.receive_text(SOON)).last().expect("the login is refused");
    assert!(refusal.contains("not-authenticated") && refusal.contains("token"), "{refusal}");
}

/// Logs eight users in concurrently.
pub fn log_in_eight(couchdb: &StandIn, howler: &Howler) -> Vec<Client> {
    let mut clients: Vec<_> = (0..8).map(|_| Client::json(howler.address())).collect();
    let log_in = |(number, client): (usize, &mut Client)| {
        let name = format!("user-{number}");
        couchdb.add_user(&name, PASSWORD, &[]);
        client.request(json!({"op": "log-in", "username": name, "password": PASSWORD}))
    };
    let ids: Vec<_> = clients.iter_mut().enumerate().map(log_in).collect();
    for (client, id) in clients.iter_mut().zip(ids) {
        let answer = client.answer(id);
        assert_eq!(answer["ok"], true, "{answer}");
    }
    clients
}

/// Makes the server open all of its connections for logins, and leaves them idle.
fn fill_pool(couchdb: &StandIn, howler: &Howler) -> Vec<Client> {
    couchdb.set_login_delay(Duration::from_millis(300));
    let clients = log_in_eight(couchdb, howler);
    couchdb.set_login_delay(Duration::ZERO);
    assert!(couchdb.counters().open_connections > 8, "{:?}", couchdb.counters());
    clients
}

/// Returns those of the requests that log in with a password.
fn logins(requests: Vec<RecordedRequest>) -> impl Iterator<Item = RecordedRequest> {
    requests.into_iter().filter(|request| request.method == "POST" && request.target == "/_session")
}

/// Returns for each login the time between the request on a dead connection and its one repetition
/// on another connection, as seen by CouchDB.
fn delays(couchdb: &StandIn) -> Vec<Duration> {
    let answered: Vec<_> = logins(couchdb.requests()).collect();
    let delay = |swallowed: RecordedRequest| {
        let is_repetition = |request: &&RecordedRequest| request.body == swallowed.body && request.at > swallowed.at;
        let repetitions: Vec<_> = answered.iter().filter(is_repetition).collect();
        let [repetition] = repetitions[..] else { panic!("{swallowed:?} is repeated once: {repetitions:?}") };
        assert_ne!(repetition.connection, swallowed.connection);
        repetition.at.saturating_sub(swallowed.at)
    };
    logins(couchdb.swallowed_requests()).map(delay).collect()
}

#[test]
fn logins_succeed_soon_after_all_connections_broke_silently() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--feed_heartbeat", "500"]);
    let mut clients = fill_pool(&couchdb, &howler);
    assert_eq!(clients[0].ask(json!({"op": "subscribe", "dbs": ["garden"]}))["ok"], true);
    couchdb.silence_connections();
    couchdb.update("garden");
    log_in_eight(&couchdb, &howler);
    // One second each, all at the same time. A machine that is busy may take longer.
    let delays = delays(&couchdb);
    assert_eq!(delays.len(), 8, "one login over each dead connection: {delays:?}");
    assert!(delays.iter().min() < Some(&Duration::from_secs(2)), "{delays:?}");
    // No connection is left that is dead, so that nothing is repeated.
    Client::logged_in(howler.address());
    assert_eq!(logins(couchdb.swallowed_requests()).count(), 8);
    // The feed is opened again after three heartbeats, from where it was.
    assert_eq!(clients[0].next_change(SOON).as_deref(), Some("garden"));
}

#[test]
fn logins_succeed_soon_after_a_proxy_dropped_connections() {
    let couchdb = couchdb();
    let proxy = Proxy::start(couchdb.address());
    let howler = Howler::launch(&["--couchdb_url", &proxy.url_of(&couchdb)]);
    assert!(couchdb.wait_for_feeds(1, SOON));
    fill_pool(&couchdb, &howler);
    proxy.silence();
    couchdb.forget_requests();
    // The first request gets no response on its dead connection, so the login needs a repetition.
    Client::logged_in(howler.address());
    assert_eq!(logins(couchdb.requests()).count(), 1);
}

#[test]
fn subscriptions_and_checks_survive_silently_broken_connections() {
    let couchdb = couchdb();
    couchdb.create_database_for("garden", &[USER]);
    couchdb.create_database_for("meadow", &[USER]);
    let howler = Howler::start_with(&couchdb, &["--access", "members", "--session_check", "2"]);
    let mut client = Client::subscribed(howler.address(), &["garden"]);
    couchdb.silence_connections();
    let before = couchdb.counters().session_requests;
    let answer = client.ask(json!({"op": "subscribe", "dbs": ["meadow"]}));
    assert!(answer["ok"] == true && answer["dbs"]["meadow"].is_string(), "{answer}");
    assert!(couchdb.wait_for(SOON, |seen| seen.session_requests > before + 1), "the user is not checked");
    assert_eq!(client.ask(json!({"op": "heartbeat"}))["ok"], true);
}

#[test]
fn idle_connections_to_couchdb_are_closed() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let _clients = fill_pool(&couchdb, &howler);
    assert!(couchdb.wait_for(Duration::from_secs(60), |seen| seen.open_connections == 1), "{:?}", couchdb.counters());
    assert_eq!(couchdb.open_feeds(), 1);
    Client::logged_in(howler.address());
}

/// Tests that the kernel probes the connections to CouchDB. `02` is its keepalive timer (proc(5),
/// `/proc/net/tcp`).
#[test]
fn connections_to_couchdb_have_keepalive() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let _client = Client::logged_in(howler.address());
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", howler.id())).expect("Linux has the file");
    let remote = format!("0100007F:{:04X}", couchdb.address().port());
    let timers: Vec<&str> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(2).is_some_and(|peer| *peer == remote) && fields[3] == "01")
        .map(|fields| table[table.find(fields[5]).expect("a field")..].split(':').next().expect("a timer"))
        .collect();
    assert!(timers.len() >= 2 && timers.iter().all(|timer| *timer == "02"), "{timers:?} in\n{table}");
}

#[test]
fn a_reply_to_subscribe_always_has_positions() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--feed", "db_updates"]);
    let answer = Client::logged_in(howler.address()).ask(json!({"op": "subscribe", "dbs": ["garden", "meadow"]}));
    assert_eq!((&answer["ok"], &answer["dbs"]), (&json!(true), &json!({"garden": null, "meadow": null})), "{answer}");
}

/// Starts a stand-in whose cookies live for a number of seconds.
fn short_lived(seconds: u64) -> StandIn {
    couchdb_with(Options { cookie_life: Duration::from_secs(seconds), ..Options::default() })
}

#[test]
fn a_session_is_checked_before_half_of_the_life_of_its_cookie() {
    let couchdb = short_lived(4);
    let howler = Howler::start(&couchdb);
    let mut client = Client::subscribed(howler.address(), &["garden"]);
    let mut old = Client::socket_io_logged_in(howler.address());
    old.send("421[\"subscribe\",[\"garden\"]]");
    assert_eq!(old.receive_text(SOON).as_deref(), Some("431[{}]"));
    // Far longer than the life of the first cookie.
    let mut cookies = 0;
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        if let Some(event) = client.next_event(Duration::from_millis(500)) {
            assert_eq!(event["event"], "session", "{event}");
            cookies += 1;
        }
    }
    assert!(cookies >= 3, "{cookies} renewed cookies");
    couchdb.update("garden");
    assert_eq!(client.next_change(SOON).as_deref(), Some("garden"));
    assert_eq!(old.receive_text(SOON).as_deref(), Some("42[\"change\",\"garden\"]"));
}

#[test]
fn a_cookie_of_unknown_age_is_checked_in_time() {
    let couchdb = short_lived(8);
    let first = Howler::start(&couchdb);
    let mut client = Client::json(first.address());
    let cookie = client.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}))["cookie"].clone();
    drop(first);
    // A new server does not know how long cookies live, and CouchDB does not renew one that is this
    // fresh.
    let howler = Howler::start(&couchdb);
    let mut client = Client::json(howler.address());
    assert_eq!(client.ask(json!({"op": "log-in", "cookie": cookie}))["ok"], true);
    let start = Instant::now();
    let event = client.next_event(SOON).expect("the cookie is renewed");
    assert_eq!(event["event"], "session", "{event}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    // Proves that the session outlives its first cookie.
    std::thread::sleep(Duration::from_secs(9).saturating_sub(start.elapsed()));
    assert_eq!(client.ask(json!({"op": "heartbeat"}))["ok"], true);
}

/// Fails logins at CouchDB until all existing cookies have expired.
fn outlasts_cookies(couchdb: &StandIn, life: Duration) {
    couchdb.fail_logins(Some(503));
    // The cookies expire by the clock alone.
    std::thread::sleep(life + Duration::from_millis(500));
    couchdb.fail_logins(None);
}

#[test]
fn sessions_with_an_expired_cookie_and_a_password_are_closed_without_a_refusal() {
    let couchdb = short_lived(3);
    let howler = Howler::start(&couchdb);
    let mut old = Client::socket_io_logged_in(howler.address());
    let mut poller = Poller::logged_in(howler.address());
    let mut json_client = Client::logged_in(howler.address());
    poller.start_poll();
    outlasts_cookies(&couchdb, Duration::from_secs(3));
    // Neither a refusal nor a DISCONNECT: after either the client does not reconnect by itself.
    let closed = Received::Close(1013, "session expired".into());
    assert_eq!(old.receive_close(SOON), (vec![], closed.clone()));
    assert_eq!(poller.finish_poll(), ["1"]);
    let (texts, end) = json_client.receive_close(SOON);
    let goodbye = texts.last().map(|text| serde_json::from_str::<serde_json::Value>(text).expect("JSON"));
    let goodbye = goodbye.expect("a goodbye");
    assert_eq!((&goodbye["event"], &goodbye["reason"]), (&json!("goodbye"), &json!("session-expired")), "{goodbye}");
    assert!(goodbye["retry_after_ms"].is_u64() && end == closed, "{goodbye} {end:?}");
    assert_eq!(howler.metric("howler_closes_total{reason=\"session_expired\"}"), 3);
    // Clients log in again with the credentials that they used first.
    Client::socket_io_logged_in(howler.address());
}

#[test]
fn sessions_with_only_an_expired_cookie_are_refused() {
    let couchdb = short_lived(3);
    let howler = Howler::start(&couchdb);
    let mut client = Client::json(howler.address());
    let answer = client.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
    let cookie = answer["cookie"].as_str().and_then(|cookie| cookie.split(';').next()).expect("a cookie").to_owned();
    let mut old = Client::socket_io(howler.address(), &format!("cookie={}", cookie.replace('=', "%3D")));
    for start in ["0{", "40", "42[\"authenticated\""] {
        assert!(old.receive_text(SOON).is_some_and(|text| text.starts_with(start)), "{start}");
    }
    outlasts_cookies(&couchdb, Duration::from_secs(3));
    let received = old.receive_text(SOON).expect("the login is refused");
    assert!(received.starts_with("42[\"not-authenticated\""), "{received}");
}

#[test]
fn sessions_of_removed_users_are_refused() {
    let couchdb = short_lived(20);
    let howler = Howler::start_with(&couchdb, &["--session_check", "1"]);
    let mut old = Client::socket_io_logged_in(howler.address());
    couchdb.remove_user(USER);
    let received = old.receive_text(SOON).expect("the login is refused");
    assert!(received.starts_with("42[\"not-authenticated\""), "{received}");
}

#[test]
fn a_silent_feed_is_logged_with_a_hint_at_the_check_command() {
    let couchdb = couchdb();
    // As behind a proxy that buffers the body of the feed.
    couchdb.break_next_feed(FeedFault::Silence);
    let howler = Howler::start_with(&couchdb, &["--feed_heartbeat", "300"]);
    let line = howler.wait_for_line("was silent for");
    assert!(line.contains("`couchdb-howler check`") && line.contains("proxy"), "{line}");
}
