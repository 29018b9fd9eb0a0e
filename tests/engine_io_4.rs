//! Engine.IO 4 with Socket.IO 5, by the public specifications of both, over polling and WebSockets.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::client::{Client, Received, frame};
use crate::support::howler::Howler;
use crate::support::http::{Http, Poller};
use crate::support::{A_MOMENT, PASSWORD, SOON, USER, couchdb, wait_until};

/// Minimum time between an event and the packet before it. Measured from before the request for
/// that packet, because the time of reading says nothing about the server.
const DISTANCE: Duration = Duration::from_millis(25);
const QUICK: &[&str] = &["--ping_interval", "300", "--ping_timeout", "1500"];

fn credentials() -> String {
    format!("username={USER}&password={PASSWORD}")
}

fn auth() -> String {
    format!(r#"40{{"username":"{USER}","password":"{PASSWORD}"}}"#)
}

/// Opens a WebSocket and reads its open packet. Returns the client and the engine's session id.
fn open(howler: &Howler, query: &str) -> (Client, String) {
    let mut client = Client::open(howler.address(), &format!("/socket.io/?EIO=4&transport=websocket&{query}"));
    let open = client.receive_text(SOON).expect("the open packet arrives");
    let open: Value =
        serde_json::from_str(open.strip_prefix('0').expect("the first packet is the open packet")).expect("JSON");
    (client, open["sid"].as_str().expect("the id is a string").to_owned())
}

/// Connects. Returns the id in the confirmation of CONNECT.
fn connect(client: &mut Client, packet: &str, event: &str) -> String {
    let connected = Instant::now();
    client.send(packet);
    let confirmed = client.receive_text(SOON).expect("CONNECT is confirmed");
    let text = client.receive_text(SOON).expect("the event comes");
    assert!(text.starts_with(&format!("42[\"{event}\",{{")), "{text}");
    assert!(connected.elapsed() >= DISTANCE, "{:?}", connected.elapsed());
    let confirmed: Value = serde_json::from_str(confirmed.strip_prefix("40").expect("40")).expect("JSON");
    assert_eq!(confirmed.as_object().expect("the value is an object").len(), 1);
    confirmed["sid"].as_str().expect("the id is a string").to_owned()
}

fn logged_in(howler: &Howler) -> Client {
    let (mut client, _) = open(howler, &credentials());
    connect(&mut client, "40", "authenticated");
    client
}

#[test]
fn handshakes_have_the_documented_fields() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let poller = Poller::open(howler.address(), 4, "");
    assert_eq!(poller.packets.len(), 1, "the server waits for CONNECT");
    let expected = format!(
        r#"0{{"sid":"{}","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1048576}}"#,
        poller.sid
    );
    assert_eq!(poller.packets[0], expected);
    let mut client = Client::open(howler.address(), "/socket.io/?EIO=4&transport=websocket");
    let open = client.receive_text(SOON).unwrap();
    let rest = r#""upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1048576}"#;
    assert!(open.starts_with("0{\"sid\":\"") && open.ends_with(rest), "{open}");
    assert_eq!(client.receive_text(A_MOMENT), None, "the server waits for CONNECT");
}

#[test]
fn polling_carries_requests_events_and_rejections() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::open(howler.address(), 4, &credentials());
    poller.packets.clear();
    poller.start_poll();
    let connected = Instant::now();
    poller.send(&["40"]);
    let confirmed = poller.finish_poll();
    assert!(confirmed.len() == 1 && confirmed[0].starts_with("40{\"sid\":\""), "{confirmed:?}");
    let event = poller.poll();
    assert!(event.len() == 1 && event[0].starts_with("42[\"authenticated\","), "{event:?}");
    assert!(connected.elapsed() >= DISTANCE);
    poller.send(&[r#"421["subscribe",["grün","b"]]"#, r#"422["heartbeat"]"#]);
    let target = poller.target();
    assert_eq!(poller.polls.get(&target).text(), "431[{}]\u{1e}432[{\"ok\":true}]");
    poller.start_poll();
    couchdb.update("grün");
    assert_eq!(poller.finish_poll(), ["42[\"change\",\"grün\"]"]);
    poller.send(&[r#"423["log-out"]"#]);
    assert_eq!(poller.poll(), ["433[{}]", "41"]);
    assert_eq!(poller.poll(), ["1"]);
    assert!(!poller.is_known());

    // A rejection sends each packet in a poll of its own.
    let mut poller = Poller::open(howler.address(), 4, "username=nobody");
    poller.packets.clear();
    let rejected = howler.metric("howler_log_ins_failed_total");
    poller.send(&["40"]);
    wait_until("the login is rejected", || howler.metric("howler_log_ins_failed_total") > rejected);
    for start in ["40{", "42[\"not-authenticated\",", "41", "1"] {
        let packets = poller.poll();
        assert!(packets.len() == 1 && packets[0].starts_with(start), "{start}: {packets:?}");
    }

    for (fields, body) in [
        ("", ""),
        ("", "abc"),
        ("", "6\u{1e}"),
        ("", "6\u{1e}\u{1e}6"),
        ("", "bAQIDBA=="),
        ("", "6\u{1e}bAQIDBA=="),
        ("Content-Type: application/octet-stream\r\n", "6"),
        ("Content-Type: application/octet-stream\r\n", "\0\u{1}"),
    ] {
        let mut poller = Poller::open(howler.address(), 4, "");
        poller.start_poll();
        let target = poller.target();
        let answer = poller.posts.ask("POST", &target, fields, body.as_bytes());
        assert_eq!((answer.status, answer.refusal()), (400, Some(3)), "{body:?}");
        assert_eq!(poller.finish_poll(), ["1"]);
        assert_eq!(Http::connect(howler.address()).get(&target).refusal(), Some(1));
    }
    // Two concurrent polls.
    let mut poller = Poller::open(howler.address(), 4, "");
    poller.start_poll();
    assert!(poller.polls.is_silent(Duration::from_millis(20)));
    assert_eq!(Http::connect(howler.address()).get(&poller.target()).status, 400);
    assert_eq!(poller.finish_poll(), ["1"]);
}

#[test]
fn server_pings_and_requires_pongs() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, QUICK);
    let (mut client, _) = open(&howler, &credentials());
    connect(&mut client, "40", "authenticated");
    let mut poller = Poller::open(howler.address(), 4, &credentials());
    poller.packets.clear();
    poller.send(&["40"]);
    assert!(poller.next().starts_with("40") && poller.next().starts_with("42"));
    for round in 0..4 {
        let began = Instant::now();
        poller.start_poll();
        assert_eq!(client.receive_text(SOON).as_deref(), Some("2"));
        client.send("3");
        assert_eq!(poller.finish_poll(), ["2"]);
        poller.send(&["3"]);
        assert!(round == 0 || began.elapsed() > Duration::from_millis(150), "{:?}", began.elapsed());
    }
    // Other packets do not count as pongs.
    let began = Instant::now();
    poller.start_poll();
    assert_eq!(client.receive_text(SOON).as_deref(), Some("2"));
    client.send(r#"421["heartbeat"]"#);
    assert_eq!(client.receive_text(SOON).as_deref(), Some(r#"431[{"ok":true}]"#));
    assert_eq!(poller.finish_poll(), ["2"]);
    poller.start_poll();
    assert!(matches!(client.receive_close(SOON).1, Received::Close(..)));
    assert_eq!(poller.finish_poll(), ["1"]);
    assert!(began.elapsed() > Duration::from_millis(400) && began.elapsed() < Duration::from_secs(5));
    assert!(!poller.is_known());
}

#[test]
fn connect_uses_its_own_credentials_or_those_of_the_query() {
    let couchdb = couchdb();
    couchdb.add_user("other", "zq7-other", &[]);
    let howler = Howler::start(&couchdb);
    let other = "username=other&password=zq7-wrong";
    let (mut client, engine) = open(&howler, other);
    let id = connect(&mut client, &auth(), "authenticated");
    assert_ne!(id, engine, "the Socket.IO id differs from the engine's");
    for (query, packet, event) in [
        (&*credentials(), "40", "authenticated"),
        (&credentials(), "40{}", "authenticated"),
        (&credentials(), r#"40{"more":"x"}"#, "authenticated"),
        (&credentials(), r#"40{"token":"zq7-forged"}"#, "not-authenticated"),
        (other, "40", "not-authenticated"),
        ("", "40", "not-authenticated"),
        (&credentials(), r#"40{"username":"other","password":"zq7-wrong"}"#, "not-authenticated"),
        (&credentials(), r#"40{"cookie":"AuthSession=forged"}"#, "not-authenticated"),
    ] {
        let (mut client, _) = open(&howler, query);
        let began = Instant::now();
        connect(&mut client, packet, event);
        if event != "authenticated" {
            let (texts, close) = client.receive_close(SOON);
            assert_eq!(texts, ["41"]);
            assert!(began.elapsed() >= Duration::from_millis(45));
            assert!(matches!(close, Received::Close(4401, _)), "{close:?}");
        }
    }
}

#[test]
fn disconnected_client_can_connect_again() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, QUICK);
    let mut client = logged_in(&howler);
    client.send(r#"421["subscribe",["db"]]"#);
    assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
    client.send("41");
    couchdb.update("db");
    for _ in 0..3 {
        assert_eq!(client.receive_text(SOON).as_deref(), Some("2"), "the engine session continues without changes");
        client.send("3");
    }
    connect(&mut client, "40", "authenticated");
    client.send(r#"422["subscribe",["db"]]"#);
    assert_eq!(client.receive_text(SOON).as_deref(), Some("432[{}]"));
    couchdb.update("db");
    assert_eq!(client.receive_text(SOON).as_deref(), Some("42[\"change\",\"db\"]"));
}

#[test]
fn disconnect_before_connect_has_no_effect() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let (mut client, _) = open(&howler, &credentials());
    client.send("41");
    connect(&mut client, "40", "authenticated");
}

#[test]
fn second_connect_is_answered_for_the_new_credentials() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    couchdb.set_login_delay(A_MOMENT);
    let (mut client, _) = open(&howler, "");
    client.send(&auth());
    assert!(client.receive_text(SOON).unwrap().starts_with("40{"));
    assert!(couchdb.wait_for(SOON, |seen| seen.sessions_in_flight == 1));
    client.send("41");
    connect(&mut client, r#"40{"username":"nobody","password":"zq7-x"}"#, "not-authenticated");
}

#[test]
fn session_without_connect_is_closed_after_the_timeout() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let began = Instant::now();
    let (mut client, _) = open(&howler, &credentials());
    let mut poller = Poller::open(howler.address(), 4, &credentials());
    poller.start_poll();
    assert!(matches!(client.receive(SOON), Received::Close(..)));
    assert_eq!(poller.finish_poll(), ["1"]);
    assert!(began.elapsed() > Duration::from_secs(9), "{:?}", began.elapsed());
}

#[test]
fn unknown_namespaces_are_rejected_and_malformed_packets_close() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for early in [r#"421["heartbeat"]"#, r#"42["subscribe",["db"]]"#, "2", "0", "7", "4", "x", "451-[\"a\"]"] {
        let (mut client, _) = open(&howler, &credentials());
        client.send(early);
        let (texts, close) = client.receive_close(SOON);
        assert!(texts.is_empty() && matches!(close, Received::Close(1008, _)), "{early}: {texts:?} {close:?}");
    }
    let (mut client, _) = open(&howler, &credentials());
    for (sent, refused) in [("40/foo,", "/foo"), (r#"40/foo,{"a":1}"#, "/foo"), ("40/bar?x=y,", "/bar")] {
        client.send(sent);
        let expected = format!(r#"44{refused},{{"message":"Invalid namespace"}}"#);
        assert_eq!(client.receive_text(SOON), Some(expected));
    }
    connect(&mut client, "40", "authenticated");
    client.send("40/foo,");
    assert_eq!(client.receive_text(SOON).as_deref(), Some(r#"44/foo,{"message":"Invalid namespace"}"#));
    for (sent, answer) in [
        (r#"421["subscribe",["db1","db1"]]"#, "431[{}]"),
        (r#"422["heartbeat",null]"#, r#"432[{"ok":true}]"#),
        (r#"423["unsubscribe",["never"]]"#, "433[{}]"),
    ] {
        client.send(sent);
        assert_eq!(client.receive_text(SOON).as_deref(), Some(answer), "{sent}");
    }
    client.send("42[\"subscribe\"]");
    client.send("424[\"subscribe\"]");
    assert!(client.receive_text(SOON).unwrap().starts_with(r#"434[{"error":true,"errorName":"TypeError""#));
    couchdb.update("db1");
    assert_eq!(client.receive_text(SOON).as_deref(), Some("42[\"change\",\"db1\"]"));
    client.send(r#"425["log-out",null]"#);
    assert_eq!(client.receive_close(SOON).0, ["435[{}]", "41"]);

    for broken in [
        "2",
        "2probe",
        "0",
        "",
        "9",
        "4",
        "49",
        "4abc",
        "42{}",
        "42[]",
        "42[1]",
        "42abc[\"message\",\"1\"]",
        "451-[\"a\",{\"_placeholder\":true,\"num\":0}]",
        "461-1[]",
        "44",
        "bAQIDBA==",
    ] {
        let mut client = logged_in(&howler);
        client.send(broken);
        assert!(matches!(client.receive_close(SOON).1, Received::Close(1008, _)), "{broken}");
    }
    let mut client = logged_in(&howler);
    client.send_raw(&frame(0x82, b"\x01\x02")).unwrap();
    assert!(matches!(client.receive_close(SOON).1, Received::Close(1003, _)));
}

#[test]
fn websocket_upgrade_takes_over_a_polling_session() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, QUICK);
    let mut poller = Poller::open(howler.address(), 4, &credentials());
    poller.packets.clear();
    let mut websocket = Client::open(howler.address(), &poller.websocket_target());
    poller.start_poll();
    websocket.send("2probe");
    assert_eq!(websocket.receive_text(SOON).as_deref(), Some("3probe"));
    assert_eq!(poller.finish_poll(), ["6"]);
    websocket.send("5");
    connect(&mut websocket, "40", "authenticated");
    for _ in 0..3 {
        assert_eq!(websocket.receive_text(SOON).as_deref(), Some("2"));
        websocket.send("3");
    }
    assert_eq!(poller.posts.get(&poller.target()).refusal(), Some(3));
    let refused =
        Client::try_open(howler.address(), &poller.websocket_target(), "").err().expect("the upgrade is rejected");
    assert!(refused.starts_with("HTTP/1.1 400 "), "{refused}");
    websocket.send("1");
    assert!(matches!(websocket.receive_close(SOON).1, Received::Close(1000, _)));
}
