//! Limits of failed logins. They prevent CouchDB from locking out users because of others.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Client, Received};
use crate::support::couchdb::{FeedFault, Options, StandIn};
use crate::support::howler::Howler;
use crate::support::{ADMIN, ADMIN_PASSWORD, PASSWORD, SOON, USER, couchdb, couchdb_with};

const OTHER: &str = "other";
const OTHER_PASSWORD: &str = "zq7-other-secret";
/// Options that make the server trust the client addresses that the tests send.
const BELIEVE: [&str; 2] = ["--trusted_proxies", "127.0.0.0/8,::1"];
/// Longest `retry_after_ms` because of an address: CouchDB's five minutes and a second.
const WINDOW_MS: u64 = 301_000;

fn scene() -> (StandIn, Howler) {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let howler = Howler::start_with(&couchdb, &BELIEVE);
    (couchdb, howler)
}

/// Opens a client that a proxy reports at an address.
fn client_at(howler: &Howler, address: &str) -> Client {
    Client::try_open(howler.address(), "/howler", &format!("X-Forwarded-For: {address}\r\n"))
        .expect("the connection opens")
}

/// Sends a login without reading the reply.
fn send(client: &mut Client, name: &str, password: &str) -> u64 {
    client.request(json!({"op": "log-in", "username": name, "password": password}))
}

/// Logs in from an address. Returns the reply.
fn log_in(howler: &Howler, address: &str, name: &str, password: &str) -> Value {
    client_at(howler, address).ask(json!({"op": "log-in", "username": name, "password": password}))
}

/// Logs in from an address. Returns the error, or null after a success.
fn try_password(howler: &Howler, address: &str, name: &str, password: &str) -> Value {
    log_in(howler, address, name, password)["error"].clone()
}

/// Sends logins at once, each with an address, a name and a password. Returns the replies.
fn log_in_at_once(howler: &Howler, logins: &[(String, String, String)]) -> Vec<Value> {
    let mut clients: Vec<_> = logins.iter().map(|(address, ..)| client_at(howler, address)).collect();
    let ids: Vec<_> =
        clients.iter_mut().zip(logins).map(|(client, (_, name, password))| send(client, name, password)).collect();
    clients.iter_mut().zip(ids).map(|(client, id)| client.answer(id)).collect()
}

fn count_errors(answers: &[Value], name: &str) -> usize {
    answers.iter().filter(|answer| answer["error"] == name).count()
}

/// Returns the number of passwords for a name that CouchDB received.
fn passwords_asked(couchdb: &StandIn, name: &str) -> usize {
    let of_name = format!("\"name\":\"{name}\"");
    let requests = couchdb.requests();
    let logins = requests.iter().filter(|request| request.method == "POST" && request.target == "/_session");
    logins.filter(|request| String::from_utf8_lossy(&request.body).contains(&of_name)).count()
}

#[test]
fn address_that_tries_many_names_is_limited_and_then_served() {
    let (couchdb, howler) = scene();
    couchdb.set_login_delay(Duration::from_millis(100));
    let begun = Instant::now();
    let address = || "198.51.100.1".to_owned();
    let logins: Vec<_> = (0..400).map(|n| (address(), format!("name-{n}"), "zq7-guess".to_owned())).collect();
    let answers = log_in_at_once(&howler, &logins);
    let asked = couchdb.counters().session_requests;
    let may_be_asked = 30 + usize::try_from(begun.elapsed().as_secs()).unwrap() / 2 + 1;
    assert!((30..=may_be_asked).contains(&asked), "{asked} of 400 reached CouchDB");
    assert_eq!(count_errors(&answers, "NotAuthenticatedError"), asked);
    let limited: Vec<_> = answers.iter().filter(|answer| answer["error"] == "LimitError").collect();
    assert_eq!(limited.len(), 400 - asked);
    for answer in limited {
        assert_eq!(answer["message"], "Too many failed logins from this address.");
        assert!(answer["retry_after_ms"].as_u64().is_some_and(|wait| (1..=2_000).contains(&wait)), "{answer}");
    }
    assert_eq!(howler.metric("howler_log_ins_slowed_total"), u64::try_from(400 - asked).unwrap());
    assert_eq!(
        try_password(&howler, "198.51.100.2", OTHER, OTHER_PASSWORD),
        Value::Null,
        "other addresses are not affected"
    );
    // Rejected logins do not lengthen the wait.
    let deadline = Instant::now() + SOON;
    while try_password(&howler, "198.51.100.1", OTHER, OTHER_PASSWORD) != Value::Null {
        assert!(Instant::now() < deadline, "timeout waiting for the address to be served");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn many_users_behind_one_address_log_in_at_once() {
    let (couchdb, howler) = scene();
    (0..200).for_each(|n| couchdb.add_user(&format!("user-{n}"), "zq7-right", &[]));
    couchdb.set_login_delay(Duration::from_millis(5));
    let address = || "198.51.100.1".to_owned();
    let logins: Vec<_> = (0..200).map(|n| (address(), format!("user-{n}"), "zq7-right".to_owned())).collect();
    assert!(log_in_at_once(&howler, &logins).iter().all(|answer| answer["ok"] == true));
}

#[test]
fn one_user_with_many_tabs_logs_in_at_once() {
    let (couchdb, howler) = scene();
    couchdb.set_login_delay(Duration::from_millis(5));
    let login = || ("198.51.100.1".to_owned(), USER.to_owned(), PASSWORD.to_owned());
    let logins: Vec<_> = (0..300).map(|_| login()).collect();
    assert!(log_in_at_once(&howler, &logins).iter().all(|answer| answer["ok"] == true));
}

#[test]
fn right_password_does_not_lift_the_limit_for_wrong_ones() {
    let (couchdb, howler) = scene();
    let address = "198.51.100.1";
    assert_eq!(try_password(&howler, address, USER, PASSWORD), Value::Null);
    couchdb.forget_requests();
    let logins: Vec<_> = (0..50).map(|n| (address.to_owned(), USER.to_owned(), format!("zq7-wrong-{n}"))).collect();
    let answers = log_in_at_once(&howler, &logins);
    let asked = passwords_asked(&couchdb, USER);
    assert!((1..=4).contains(&asked), "{asked} wrong passwords reached CouchDB");
    assert_eq!((count_errors(&answers, "LimitError"), couchdb.lockouts()), (50 - asked, 0));
    assert_eq!(try_password(&howler, "198.51.100.2", USER, PASSWORD), Value::Null);
    // The user shares an address with the attacker and is not locked out for five minutes.
    let deadline = Instant::now() + SOON;
    while try_password(&howler, address, USER, PASSWORD) != Value::Null {
        assert!(Instant::now() < deadline, "timeout waiting for the user to be served");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn tabs_with_an_old_password_do_not_lock_the_user_out() {
    let (couchdb, howler) = scene();
    let address = "198.51.100.1";
    assert_eq!(try_password(&howler, address, USER, PASSWORD), Value::Null);
    couchdb.change_password(USER, "zq7-another-secret");
    let logins: Vec<_> = (0..50).map(|_| (address.to_owned(), USER.to_owned(), PASSWORD.to_owned())).collect();
    let answers = log_in_at_once(&howler, &logins);
    assert_eq!((count_errors(&answers, "NotAuthenticatedError"), couchdb.lockouts()), (4, 0), "{answers:?}");
    assert_eq!(try_password(&howler, "198.51.100.2", USER, "zq7-another-secret"), Value::Null);
}

#[test]
fn wrong_passwords_of_one_client_do_not_lock_the_user_out() {
    let (couchdb, howler) = scene();
    let mut answers = Vec::new();
    for _ in 0..6 {
        let login = |n| ("198.51.100.1".to_owned(), USER.to_owned(), format!("zq7-wrong-{n}"));
        answers.extend(log_in_at_once(&howler, &(0..50).map(login).collect::<Vec<_>>()));
    }
    assert_eq!((count_errors(&answers, "NotAuthenticatedError"), count_errors(&answers, "LimitError")), (4, 296));
    assert_eq!(passwords_asked(&couchdb, USER), 4, "CouchDB, which locks after five, received four passwords");
    // A fifth attempt must come after the whole of CouchDB's five minutes.
    for answer in answers.iter().filter(|answer| answer["error"] == "LimitError") {
        let wait = answer["retry_after_ms"].as_u64().expect("the reply has a time");
        assert!((WINDOW_MS - 60_000..=WINDOW_MS).contains(&wait), "{answer}");
    }
    assert_eq!(try_password(&howler, "192.0.2.1", USER, PASSWORD), Value::Null);
    assert!(howler.output().contains("too many wrong passwords"));
    assert_eq!(howler.metric("howler_log_ins_slowed_total"), 296);
}

#[test]
fn socket_io_clients_receive_the_limit_error() {
    let (couchdb, howler) = scene();
    for _ in 0..4 {
        assert_eq!(try_password(&howler, "127.0.0.1", USER, "zq7-wrong"), "NotAuthenticatedError");
    }
    let mut client = Client::socket_io(howler.address(), &format!("username={USER}&password=zq7-wrong"));
    let texts: Vec<_> = std::iter::from_fn(|| client.receive_text(SOON)).collect();
    let event = texts.iter().find_map(|text| text.strip_prefix("42")).expect("an event arrives");
    let event: Value = serde_json::from_str(event).expect("the event is JSON");
    assert_eq!((&event[0], &event[1]["errorName"]), (&json!("not-authenticated"), &json!("LimitError")), "{texts:?}");
    assert_eq!(couchdb.lockouts(), 0);
}

#[test]
fn failures_of_other_addresses_do_not_block_a_client() {
    let (couchdb, howler) = scene();
    let logins: Vec<_> = (0..256)
        .map(|n| (format!("2001:db8:0:{n:x}::1"), USER.to_owned(), format!("zq7-wrong-{n}")))
        .chain((0..60).map(|n| (format!("192.0.2.{n}"), USER.to_owned(), format!("zq7-wrong-{n}"))))
        .collect();
    for logins in logins.chunks(64) {
        assert_eq!(count_errors(&log_in_at_once(&howler, logins), "NotAuthenticatedError"), logins.len());
    }
    for address in ["203.0.113.1", "2001:db8:1::1", "2001:db8:0:1000::1"] {
        assert_eq!(try_password(&howler, address, USER, PASSWORD), Value::Null, "{address}");
    }
    assert_eq!(couchdb.lockouts(), 0);
}

/// A client owns a whole /64 network.
#[test]
fn addresses_of_one_network_count_as_one() {
    let (couchdb, howler) = scene();
    let login = |n| (format!("2001:db8::{n:x}"), USER.to_owned(), format!("zq7-wrong-{n}"));
    let answers = log_in_at_once(&howler, &(0..40).map(login).collect::<Vec<_>>());
    assert_eq!((count_errors(&answers, "NotAuthenticatedError"), passwords_asked(&couchdb, USER)), (4, 4));
}

#[test]
fn login_flood_of_one_address_delays_only_that_address() {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let howler = Howler::start_with(&couchdb, &[&BELIEVE[..], &["--login_concurrency", "1"]].concat());
    couchdb.set_login_delay(Duration::from_millis(100));
    // All logins together take a minute. Cookies cannot lock anyone out; passwords can.
    let mut flood: Vec<_> = (0..600).map(|_| client_at(&howler, "198.51.100.1")).collect();
    for (number, client) in flood.iter_mut().enumerate() {
        if number % 4 == 0 {
            send(client, &format!("name-{number}"), "zq7-guess");
        } else {
            client.request(json!({"op": "log-in", "cookie": "AuthSession=bXl1c2VyOjVFOnh4eA"}));
        }
    }
    let pending = "howler_couchdb_requests_pending{queue=\"log_ins\"}";
    let deadline = Instant::now() + SOON;
    while howler.metric(pending) < 400 {
        assert!(Instant::now() < deadline, "timeout waiting for queued logins");
    }
    let before = couchdb.counters().session_requests;
    for address in ["198.51.100.2", "2001:db8::1"] {
        assert_eq!(try_password(&howler, address, OTHER, OTHER_PASSWORD), Value::Null);
    }
    let served = couchdb.counters().session_requests - before;
    assert!(served <= 10, "{served} logins ran meanwhile");
    assert!(howler.metric(pending) > 100, "the flood still waits");
}

/// A wrong password could lock the server itself out, since CouchDB also locks its admin.
#[test]
fn wrong_passwords_for_the_server_admin_never_reach_couchdb() {
    let (couchdb, howler) = scene();
    for _ in 0..6 {
        let answer = log_in(&howler, "127.0.0.1", ADMIN, "zq7-wrong");
        assert_eq!(answer["error"], "NotAuthenticatedError");
        assert_eq!(answer["message"], "The name, password or cookie is not correct.");
    }
    let mut client = client_at(&howler, "127.0.0.1");
    client.send(r#"{"id":1,"op":"log-in","username":"\u0061dmin","password":"zq7-wrong"}"#);
    assert_eq!(client.answer(1)["error"], "NotAuthenticatedError");
    let mut old = Client::socket_io(howler.address(), "username=%61dmin&password=zq7-wrong");
    let texts: Vec<_> = std::iter::from_fn(|| old.receive_text(SOON)).collect();
    assert!(texts.iter().any(|text| text.contains("NotAuthenticatedError")), "{texts:?}");
    assert_eq!((passwords_asked(&couchdb, ADMIN), couchdb.lockouts()), (0, 0));
    // Names are case-sensitive.
    assert_eq!(try_password(&howler, "127.0.0.1", "Admin", "zq7-wrong"), "NotAuthenticatedError");
    assert_eq!(passwords_asked(&couchdb, "Admin"), 1);
    assert_eq!(try_password(&howler, "127.0.0.1", ADMIN, ADMIN_PASSWORD), Value::Null);
    let feeds = couchdb.counters().feed_requests;
    couchdb.break_feed(FeedFault::Cut);
    assert!(
        couchdb.wait_for(SOON, |seen| seen.feed_requests > feeds && seen.open_feeds == 1),
        "the feed is not rejected"
    );
    // Guesses count against the address.
    let answers: Vec<_> = (0..60).map(|_| log_in(&howler, "198.51.100.1", ADMIN, "zq7-wrong")).collect();
    assert!(count_errors(&answers, "NotAuthenticatedError") >= 30);
    assert!(answers.iter().any(|answer| answer["error"] == "LimitError" && answer["retry_after_ms"].is_u64()));
    assert_eq!(passwords_asked(&couchdb, ADMIN), 1);
}

/// Asserts that logins are limited by name. A CouchDB that does not trust the server counts all of
/// its clients as one.
fn assert_limited_by_name(couchdb: &StandIn, howler: &Howler) {
    assert_eq!(try_password(howler, "192.0.2.1", USER, PASSWORD), Value::Null);
    couchdb.forget_requests();
    let login = |n| (format!("198.51.100.{n}"), USER.to_owned(), format!("zq7-wrong-{n}"));
    let answers = log_in_at_once(howler, &(0..50).map(login).collect::<Vec<_>>());
    let asked = passwords_asked(couchdb, USER);
    assert!((1..=4).contains(&asked), "{asked} wrong passwords reached CouchDB");
    assert_eq!((count_errors(&answers, "LimitError"), couchdb.lockouts()), (50 - asked, 0), "{answers:?}");
    assert!(answers.iter().all(|answer| answer["error"] != "LimitError" || answer["retry_after_ms"].is_u64()));
    // Addresses that logged in before may try again, and so may other addresses with the right
    // password.
    for address in ["192.0.2.1", "192.0.2.2", "192.0.2.1"] {
        assert_eq!(try_password(howler, address, USER, PASSWORD), Value::Null, "{address}");
    }
    assert_eq!(try_password(howler, "192.0.2.1", USER, "zq7-mistyped"), "NotAuthenticatedError");
    assert_eq!(try_password(howler, "192.0.2.1", USER, PASSWORD), Value::Null);
    assert_eq!(couchdb.lockouts(), 0);
}

#[test]
fn names_are_limited_if_couchdb_does_not_trust_the_server() {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let couchdb = couchdb_with(Options { address, ..Options::default() });
    let howler = Howler::start_with(&couchdb, &BELIEVE);
    assert_limited_by_name(&couchdb, &howler);
    howler.wait_for_line("does not believe X-Forwarded-For");
}

#[test]
fn names_are_limited_if_the_option_says_so() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &[&BELIEVE[..], &["--couchdb_trusts_forwarded", "no"]].concat());
    assert_limited_by_name(&couchdb, &howler);
}

#[test]
fn addresses_are_limited_if_the_option_says_so() {
    let address = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let couchdb = couchdb_with(Options { address, lockout: None, ..Options::default() });
    let howler = Howler::start_with(&couchdb, &[&BELIEVE[..], &["--couchdb_trusts_forwarded", "yes"]].concat());
    let login = |n| (format!("198.51.100.{n}"), USER.to_owned(), format!("zq7-wrong-{n}"));
    let answers = log_in_at_once(&howler, &(0..50).map(login).collect::<Vec<_>>());
    assert_eq!(count_errors(&answers, "NotAuthenticatedError"), 50);
}

#[test]
fn forwarded_addresses_of_untrusted_proxies_are_ignored() {
    for options in [&[][..], &["--trusted_proxies", "10.0.0.0/8,::1"]] {
        let couchdb = couchdb();
        let howler = Howler::start_with(&couchdb, options);
        let places = (0..8).map(|last| try_password(&howler, &format!("192.0.2.{last}"), USER, "zq7-guess"));
        let asked = places.filter(|error| error == "NotAuthenticatedError").count();
        assert_eq!(asked, 4, "{options:?}: all requests count as one client");
        let mut received = couchdb.requests();
        received.retain(|request| request.target == "/_session");
        assert!(received.iter().all(|request| request.header("X-Forwarded-For") == Some("127.0.0.1")), "{options:?}");
    }
}

/// CouchDB may have counted a wrong password even if its response was lost.
#[test]
fn unanswered_logins_count_as_failures() {
    let (couchdb, howler) = scene();
    couchdb.lose_login_answers(true);
    for number in 0..12 {
        let answer = log_in(&howler, "198.51.100.1", USER, &format!("zq7-wrong-{number}"));
        assert_eq!(answer["error"], "ServiceUnavailableError");
    }
    couchdb.lose_login_answers(false);
    assert_eq!((passwords_asked(&couchdb, USER), couchdb.lockouts()), (4, 0));
    assert_eq!(try_password(&howler, "198.51.100.2", USER, PASSWORD), Value::Null);
    assert_eq!(try_password(&howler, "198.51.100.1", OTHER, OTHER_PASSWORD), Value::Null);
}

/// An outage of CouchDB does not lock out users who have logged in before.
#[test]
fn unanswered_right_passwords_do_not_block_the_user() {
    let (couchdb, howler) = scene();
    assert_eq!(try_password(&howler, "198.51.100.1", USER, PASSWORD), Value::Null);
    couchdb.lose_login_answers(true);
    for _ in 0..8 {
        assert_eq!(try_password(&howler, "198.51.100.1", USER, PASSWORD), "ServiceUnavailableError");
    }
    couchdb.lose_login_answers(false);
    assert_eq!(try_password(&howler, "198.51.100.1", USER, PASSWORD), Value::Null);
}

#[test]
fn only_a_lockout_reply_of_couchdb_reports_a_locked_account() {
    let (couchdb, howler) = scene();
    couchdb.fail_logins(Some(403));
    assert_eq!(try_password(&howler, "198.51.100.1", USER, PASSWORD), "AccountLockedError");
    couchdb.fail_logins(None);
    couchdb.forbid_logins(true);
    for _ in 0..6 {
        assert_eq!(try_password(&howler, "198.51.100.1", USER, PASSWORD), "ServiceUnavailableError");
    }
    let cookie = json!({"op": "log-in", "cookie": "AuthSession=bXl1c2VyOjVFOnh4eA"});
    assert_eq!(client_at(&howler, "198.51.100.1").ask(cookie)["error"], "ServiceUnavailableError");
    couchdb.forbid_logins(false);
    assert_eq!(try_password(&howler, "198.51.100.1", USER, PASSWORD), Value::Null);
}

/// A session that logs in again while its previous login is checked keeps the new login.
#[test]
fn session_check_result_applies_only_to_the_checked_login() {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let howler = Howler::start_with(&couchdb, &["--session_check", "1"]);
    let deadline = Instant::now() + SOON;
    // On a busy machine the check may be over too early.
    let mut client = loop {
        let mut client = Client::logged_in(howler.address());
        couchdb.set_login_delay(Duration::from_secs(3));
        let before = couchdb.counters().session_requests;
        assert!(couchdb.wait_for(SOON, |seen| seen.session_requests > before), "CouchDB receives the session check");
        couchdb.set_login_delay(Duration::ZERO);
        let answer = client.ask(json!({"op": "log-in", "username": OTHER, "password": OTHER_PASSWORD}));
        assert_eq!(answer["username"], OTHER);
        if couchdb.counters().sessions_in_flight > 0 {
            break client;
        }
        assert!(Instant::now() < deadline, "timeout waiting for a running check");
    };
    couchdb.remove_user(USER);
    assert!(couchdb.wait_for(SOON, |seen| seen.sessions_in_flight == 0));
    // Proves that the session stays.
    for _ in 0..5 {
        assert_eq!(client.ask(json!({"op": "heartbeat"}))["ok"], true);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(howler.metric("howler_log_ins_ended_total"), 0);
    // The new login is checked like any other.
    couchdb.remove_user(OTHER);
    let event = std::iter::from_fn(|| client.next_event(SOON)).find(|event| event["event"] != "session");
    assert_eq!(event.expect("an event arrives")["event"], "not-authenticated");
    assert_eq!(client.receive_close(SOON).1, Received::Close(4401, "not authenticated".into()));
}
