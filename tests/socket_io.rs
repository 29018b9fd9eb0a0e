//! The Socket.IO dialect over a WebSocket, packet by packet.

use std::time::{Duration, Instant};

use crate::support::client::{Client, Received, frame};
use crate::support::howler::Howler;
use crate::support::{A_MOMENT, PASSWORD, SOON, USER, couchdb};

fn credentials() -> String {
    format!("username={USER}&password={PASSWORD}")
}

#[test]
fn authenticated_follows_the_connect_packet_at_a_distance() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for round in 0..10 {
        // Measured from before the server wrote the 40: the time at which the test reads it proves
        // nothing about the server.
        let connected = Instant::now();
        let mut client = Client::socket_io(howler.address(), &credentials());
        let open = client.receive_text(SOON).unwrap();
        assert!(
            open.starts_with("0{\"sid\":\"")
                && open.contains("\"upgrades\":[],\"pingInterval\":25000,\"pingTimeout\":5000}"),
            "{open}"
        );
        assert_eq!(client.receive_text(SOON).unwrap(), "40");
        let text = client.receive_text(SOON).unwrap();
        assert!(text.starts_with("42[\"authenticated\",{\"cookie\":\"AuthSession="), "{text}");
        let distance = connected.elapsed();
        assert!(distance >= Duration::from_millis(25), "round {round}: {distance:?}");
    }
}

#[test]
fn authenticated_waits_until_the_client_has_read_the_connect_packet() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for answering in [true, false] {
        let mut client = Client::socket_io(howler.address(), &credentials());
        assert!(matches!(client.receive(SOON), Received::Text(text) if text.starts_with("0{")));
        assert_eq!(client.receive(SOON), Received::Text("40".into()));
        let connected = Instant::now();
        assert_eq!(client.receive(SOON), Received::Ping);
        // A busy client would read the next packet together with the one before.
        assert_eq!(client.receive(A_MOMENT), Received::Nothing);
        if answering {
            client.send_raw(&frame(0x8a, b"")).unwrap();
        }
        assert!(matches!(client.receive(SOON), Received::Text(text) if text.starts_with("42[\"authenticated\"")));
        // A client that never sends a pong is authenticated later.
        assert_eq!(connected.elapsed() < Duration::from_millis(1_900), answering, "{:?}", connected.elapsed());
    }
}

#[test]
fn events_are_acknowledged() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::socket_io_logged_in(howler.address());
    for (sent, answer) in [
        (r#"421["subscribe",["db1","a/b","__proto__","db1"]]"#, "431[{}]"),
        (r#"422["heartbeat",null]"#, r#"432[{"ok":true}]"#),
        (r#"423["unsubscribe",["never"]]"#, "433[{}]"),
        (r#"424["heartbeat"]"#, r#"434[{"ok":true}]"#),
    ] {
        client.send(sent);
        assert_eq!(client.receive_text(SOON).as_deref(), Some(answer), "{sent}");
    }
    for wrong in [r#"["subscribe"]"#, r#"["subscribe",null]"#, r#"["subscribe",["a",1]]"#, r#"["unsubscribe",[""]]"#] {
        client.send(&format!("425{wrong}"));
        let answer = client.receive_text(SOON).unwrap();
        assert!(answer.starts_with(r#"435[{"error":true,"errorName":"TypeError","errorMessage":""#), "{answer}");
    }
    // Events without an id are processed without a reply; unknown events are ignored.
    client.send(r#"42["subscribe",["silent"]]"#);
    client.send(r#"42["subscribe",5]"#);
    client.send(r#"426["dance",1]"#);
    client.send("2probe");
    assert_eq!(client.receive_text(SOON).as_deref(), Some("3probe"));
    for name in ["silent", "__proto__", "a/b", "db1"] {
        couchdb.update(name);
        assert_eq!(client.receive_text(SOON), Some(format!("42[\"change\",\"{name}\"]")));
    }
    client.send(r#"427["unsubscribe",["db1"]]"#);
    assert_eq!(client.receive_text(SOON).as_deref(), Some("437[{}]"));
    couchdb.update("db1");
    assert_eq!(client.receive_text(A_MOMENT), None);
}

#[test]
fn events_before_the_login_wait_for_it() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    couchdb.set_login_delay(A_MOMENT);
    let mut client = Client::socket_io(howler.address(), &credentials());
    client.send(r#"421["subscribe",["db"]]"#);
    client.send(r#"422["heartbeat",null]"#);
    let texts: Vec<_> = (0..5).map(|_| client.receive_text(SOON).unwrap()).collect();
    assert!(texts[2].starts_with("42[\"authenticated\""), "{texts:?}");
    assert_eq!(texts[3..], ["431[{}]", r#"432[{"ok":true}]"#]);
}

#[test]
fn a_refused_login_is_reported_and_closed() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for (query, error) in [
        (format!("username={USER}&password=zq7-wrong"), "NotAuthenticatedError"),
        (format!("username={USER}"), "NotAuthenticatedError"),
        ("password=x".to_owned(), "NotAuthenticatedError"),
        (String::new(), "NotAuthenticatedError"),
        ("cookie=AuthSession%3Dforged".to_owned(), "NotAuthenticatedError"),
        ("cookie=malformed".to_owned(), "NotAuthenticatedError"),
    ] {
        let mut client = Client::socket_io(howler.address(), &query);
        let began = Instant::now();
        let (texts, close) = client.receive_close(SOON);
        assert_eq!(texts.len(), 4, "{query}: {texts:?}");
        let expected = format!(r#"42["not-authenticated",{{"error":true,"errorName":"{error}","errorMessage":""#);
        assert!(texts[2].starts_with(&expected), "{query}: {texts:?}");
        assert_eq!((&*texts[1], &*texts[3]), ("40", "41"));
        assert!(matches!(close, Received::Close(4401, _)), "{close:?}");
        assert!(began.elapsed() >= Duration::from_millis(45), "40, the refusal and 41 are apart in time");
    }
}

#[test]
fn log_out_is_acknowledged_with_the_disconnect() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::socket_io_logged_in(howler.address());
    client.send(r#"421["subscribe",["db"]]"#);
    assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
    client.send(r#"425["log-out",null]"#);
    couchdb.update("db");
    let (texts, close) = client.receive_close(SOON);
    assert_eq!(texts, ["435[{}]", "41"], "no change after the disconnect");
    assert!(matches!(close, Received::Close(1000, _)), "{close:?}");
}

#[test]
fn a_second_connect_authenticates_again_and_other_namespaces_are_rejected() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::socket_io_logged_in(howler.address());
    client.send(r#"421["subscribe",["db"]]"#);
    assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
    client.send("40");
    assert_eq!(client.receive_text(SOON).as_deref(), Some("40"));
    assert!(client.receive_text(SOON).unwrap().starts_with("42[\"authenticated\""));
    client.send("40/foo?a=b,");
    assert_eq!(client.receive_text(SOON).as_deref(), Some("44/foo,\"Invalid namespace\""));
    couchdb.update("db");
    assert_eq!(client.receive_text(SOON).as_deref(), Some("42[\"change\",\"db\"]"), "still subscribed");
}

#[test]
fn an_abandoned_login_does_not_answer_the_next_one() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    // More wrong passwords would lock the account, as their responses may arrive after those of the
    // correct ones.
    for _ in 0..3 {
        let mut client = Client::socket_io(howler.address(), &credentials());
        client.send("41");
        client.send(&format!(r#"40{{"username":"{USER}","password":"zq7-wrong"}}"#));
        client.send("41");
        client.send(&format!(r#"40{{"username":"{USER}","password":"{PASSWORD}"}}"#));
        let event = std::iter::from_fn(|| client.receive_text(SOON)).find(|text| text.starts_with("42")).unwrap();
        assert!(event.starts_with("42[\"authenticated\""), "{event}");
    }
}

#[test]
fn a_broken_packet_closes_the_session_and_a_disconnect_ends_it() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for broken in ["9", "", "4", "49", "42{}", "42[]", "42[1]", "4299999999999999999999[\"a\"]", "451-[\"a\"]", "0"] {
        let mut client = Client::socket_io_logged_in(howler.address());
        client.send(broken);
        assert!(matches!(client.receive_close(SOON).1, Received::Close(1008, _)), "{broken}");
    }
    let mut client = Client::socket_io_logged_in(howler.address());
    client.send(r#"421["subscribe",["db"]]"#);
    client.send("41");
    assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
    couchdb.update("db");
    assert!(matches!(client.receive(SOON), Received::Close(1000, _)), "no change after the disconnect");
    let mut client = Client::socket_io_logged_in(howler.address());
    client.send("1");
    assert!(matches!(client.receive(SOON), Received::Close(1000, _)));
}
