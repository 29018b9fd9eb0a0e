//! Connections to CouchDB, and what stands in between: connections that died silently, cookies that run out, long heads.

use std::time::{Duration, Instant};

use couchdb_howler::demo::{FeedFault, Options, StandIn};
use serde_json::json;

use crate::support::client::{Client, Received};
use crate::support::howler::Howler;
use crate::support::http::Poller;
use crate::support::proxy::Proxy;
use crate::support::{PASSWORD, SOON, USER, couchdb, couchdb_with};

/// Puts header lines behind the status line of each response.
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
    assert!(couchdb.wait_for_feeds(1, SOON), "the feed opens");
    let mut client = Client::subscribed(howler.address(), &["garden"]);
    couchdb.update("garden");
    assert_eq!(client.next_change(SOON).as_deref(), Some("garden"));
}

#[test]
fn a_bad_token_has_its_own_message() {
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
    // The handshake of Socket.IO carries a token, too.
    let mut client = Client::socket_io(howler.address(), "token=no.such.token");
    let refusal = (0..3).filter_map(|_| client.receive_text(SOON)).last().expect("it is refused");
    assert!(refusal.contains("not-authenticated") && refusal.contains("token"), "{refusal}");
}

/// Logs eight users in at once.
fn log_in_eight(couchdb: &StandIn, howler: &Howler) -> Vec<Client> {
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

/// Has the server open all of its connections for logins, and leaves them idle.
fn fill_pool(couchdb: &StandIn, howler: &Howler) -> Vec<Client> {
    couchdb.set_login_delay(Duration::from_millis(300));
    let clients = log_in_eight(couchdb, howler);
    couchdb.set_login_delay(Duration::ZERO);
    assert!(couchdb.counters().open_connections > 8, "{:?}", couchdb.counters());
    clients
}

/// Logs in, and expects that it takes less than what a request without an answer may take.
fn logs_in_soon(howler: &Howler) -> Client {
    let start = Instant::now();
    let client = Client::logged_in(howler.address());
    let took = start.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    client
}

#[test]
fn logins_succeed_soon_after_all_connections_died_silently() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--feed_heartbeat", "500"]);
    let mut clients = fill_pool(&couchdb, &howler);
    assert_eq!(clients[0].ask(json!({"op": "subscribe", "dbs": ["garden"]}))["ok"], true);
    couchdb.silence_connections();
    couchdb.update("garden");
    log_in_eight(&couchdb, &howler);
    logs_in_soon(&howler);
    // The feed is opened again after three heartbeats, from where it was.
    assert_eq!(clients[0].next_change(SOON).as_deref(), Some("garden"));
}

#[test]
fn logins_succeed_soon_when_a_proxy_forgets_connections() {
    let couchdb = couchdb();
    let proxy = Proxy::start(couchdb.address());
    let howler = Howler::launch(&["--couchdb_url", &proxy.url_of(&couchdb)]);
    assert!(couchdb.wait_for_feeds(1, SOON));
    fill_pool(&couchdb, &howler);
    proxy.silence();
    logs_in_soon(&howler);
}

#[test]
fn subscriptions_and_checks_survive_connections_that_died_silently() {
    let couchdb = couchdb();
    couchdb.create_database_for("garden", &[USER]);
    couchdb.create_database_for("meadow", &[USER]);
    let howler = Howler::start_with(&couchdb, &["--access", "members", "--session_check", "2"]);
    let mut client = Client::subscribed(howler.address(), &["garden"]);
    couchdb.silence_connections();
    let before = couchdb.counters().session_requests;
    let answer = client.ask(json!({"op": "subscribe", "dbs": ["meadow"]}));
    assert!(answer["ok"] == true && answer["dbs"]["meadow"].is_string(), "{answer}");
    assert!(couchdb.wait_for(SOON, |seen| seen.session_requests > before + 1), "the user is checked");
    assert_eq!(client.ask(json!({"op": "heartbeat"}))["ok"], true);
}

#[test]
fn connections_are_closed_that_nobody_needs() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let _clients = fill_pool(&couchdb, &howler);
    assert!(couchdb.wait_for(Duration::from_secs(60), |seen| seen.open_connections == 1), "{:?}", couchdb.counters());
    assert_eq!(couchdb.open_feeds(), 1);
    logs_in_soon(&howler);
}

/// The kernel watches the connections to CouchDB: `02` is its timer for keepalive (proc(5), `/proc/net/tcp`).
#[test]
fn the_system_watches_connections_to_couchdb() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let _client = Client::logged_in(howler.address());
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", howler.id())).expect("Linux has it");
    let remote = format!("0100007F:{:04X}", couchdb.address().port());
    let timers: Vec<&str> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(2).is_some_and(|peer| *peer == remote) && fields[3] == "01")
        .map(|fields| table[table.find(fields[5]).expect("it is in there")..].split(':').next().expect("a timer"))
        .collect();
    assert!(timers.len() >= 2 && timers.iter().all(|timer| *timer == "02"), "{timers:?} in\n{table}");
}

#[test]
fn an_answer_to_subscribe_always_has_positions() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--feed", "db_updates"]);
    let answer = Client::logged_in(howler.address()).ask(json!({"op": "subscribe", "dbs": ["garden", "meadow"]}));
    assert_eq!((&answer["ok"], &answer["dbs"]), (&json!(true), &json!({"garden": null, "meadow": null})), "{answer}");
}

/// A stand-in whose cookies live for so many seconds.
fn short_lived(seconds: u64) -> StandIn {
    couchdb_with(Options { cookie_life: Duration::from_secs(seconds), ..Options::default() })
}

#[test]
fn a_session_is_checked_before_half_of_its_cookie_is_over() {
    let couchdb = short_lived(4);
    let howler = Howler::start(&couchdb);
    let mut client = Client::subscribed(howler.address(), &["garden"]);
    let mut old = Client::socket_io_logged_in(howler.address());
    old.send("421[\"subscribe\",[\"garden\"]]");
    assert_eq!(old.receive_text(SOON).as_deref(), Some("431[{}]"));
    // Far beyond the life of the first cookie.
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
    // A new server does not know how long cookies live, and this one is too young to be renewed.
    let howler = Howler::start(&couchdb);
    let mut client = Client::json(howler.address());
    assert_eq!(client.ask(json!({"op": "log-in", "cookie": cookie}))["ok"], true);
    let start = Instant::now();
    let event = client.next_event(SOON).expect("the cookie is renewed");
    assert_eq!(event["event"], "session", "{event}");
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    std::thread::sleep(Duration::from_secs(9).saturating_sub(start.elapsed()));
    assert_eq!(client.ask(json!({"op": "heartbeat"}))["ok"], true);
}

/// A CouchDB that cannot be asked until the cookies that are out have run out.
fn outlasts_cookies(couchdb: &StandIn, life: Duration) {
    couchdb.fail_logins(Some(503));
    std::thread::sleep(life + Duration::from_millis(500));
    couchdb.fail_logins(None);
}

#[test]
fn sessions_whose_cookie_ran_out_meanwhile_are_closed_without_a_refusal() {
    let couchdb = short_lived(3);
    let howler = Howler::start(&couchdb);
    let mut old = Client::socket_io_logged_in(howler.address());
    let mut poller = Poller::logged_in(howler.address());
    let mut json_client = Client::logged_in(howler.address());
    poller.start_poll();
    outlasts_cookies(&couchdb, Duration::from_secs(3));
    // No refusal and no DISCONNECT: after either the client does not connect again by itself.
    let closed = Received::Close(1013, "session expired".into());
    assert_eq!(old.receive_close(SOON), (vec![], closed.clone()));
    assert_eq!(poller.finish_poll(), ["1"]);
    let (texts, end) = json_client.receive_close(SOON);
    let goodbye = texts.last().map(|text| serde_json::from_str::<serde_json::Value>(text).expect("JSON"));
    let goodbye = goodbye.expect("the client is told");
    assert_eq!((&goodbye["event"], &goodbye["reason"]), (&json!("goodbye"), &json!("session-expired")), "{goodbye}");
    assert!(goodbye["retry_after_ms"].is_u64() && end == closed, "{goodbye} {end:?}");
    assert_eq!(howler.metric("howler_closes_total{reason=\"session_expired\"}"), 3);
    // They log in again by themselves, as they did at first.
    Client::socket_io_logged_in(howler.address());
}

#[test]
fn sessions_that_have_nothing_but_a_cookie_are_refused_when_it_ran_out() {
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
    let told = old.receive_text(SOON).expect("it is refused");
    assert!(told.starts_with("42[\"not-authenticated\""), "{told}");
}

#[test]
fn users_who_are_gone_are_refused_also_behind_an_outage() {
    let couchdb = short_lived(20);
    let howler = Howler::start_with(&couchdb, &["--session_check", "1"]);
    let mut old = Client::socket_io_logged_in(howler.address());
    couchdb.remove_user(USER);
    let told = old.receive_text(SOON).expect("it is refused");
    assert!(told.starts_with("42[\"not-authenticated\""), "{told}");
}

#[test]
fn a_silent_feed_points_to_the_check() {
    let couchdb = couchdb();
    // As behind a proxy that holds the body of the feed back.
    couchdb.break_next_feed(FeedFault::Silence);
    let howler = Howler::start_with(&couchdb, &["--feed_heartbeat", "300"]);
    let line = howler.wait_for_line("was silent for");
    assert!(line.contains("`couchdb-howler check`") && line.contains("proxy"), "{line}");
}
