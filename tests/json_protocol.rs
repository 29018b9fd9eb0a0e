//! `howler.v1`, message by message.

use serde_json::json;

use crate::support::client::{Client, Received, frame};
use crate::support::howler::Howler;
use crate::support::{A_MOMENT, PASSWORD, SOON, USER, couchdb};

#[test]
fn subscribed_client_is_notified_once_of_each_change() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::json(howler.address());
    let answer = client.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
    assert_eq!((&answer["ok"], &answer["username"]), (&json!(true), &json!(USER)));
    let cookie = answer["cookie"].as_str().expect("the reply has a cookie").to_owned();
    assert!(cookie.starts_with("AuthSession=") && cookie.ends_with("HttpOnly"), "the cookie is unchanged");

    let names = ["a/b", "plus+db", "plain", "__proto__", "plain"];
    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": names}))["ok"], true);
    for name in ["plain", "a/b", "other", "plus+db", "__proto__"] {
        couchdb.update(name);
        if name != "other" {
            assert_eq!(client.next_change(SOON).as_deref(), Some(name));
        }
    }
    assert_eq!(client.ask(json!({"op": "unsubscribe", "dbs": ["plain", "never"]})), json!({"id": 3, "ok": true}));
    couchdb.update("plain");
    couchdb.update("a/b");
    assert_eq!(client.next_change(SOON).as_deref(), Some("a/b"));
    assert_eq!(client.next_change(A_MOMENT), None, "each change once, none after unsubscribe");

    // Both the whole cookie and its name and value alone log in.
    for cookie in [&*cookie, cookie.split(';').next().expect("split returns at least one item")] {
        let mut again = Client::json(howler.address());
        let answer = again.ask(json!({"op": "log-in", "cookie": cookie}));
        assert_eq!((&answer["ok"], &answer["username"]), (&json!(true), &json!(USER)), "{answer}");
    }
    assert_eq!(client.ask(json!({"op": "heartbeat"})), json!({"id": 4, "ok": true}));
    client.request(json!({"op": "log-out"}));
    let (texts, close) = client.receive_close(SOON);
    assert_eq!(texts, [r#"{"id":5,"ok":true}"#]);
    assert_eq!(close, Received::Close(1000, "logged out".into()));
}

#[test]
fn notifications_have_the_kind_of_change() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::logged_in(howler.address());
    let answer = client.ask(json!({"op": "subscribe", "dbs": ["db"]}));
    assert_eq!((&answer["dbs"], &answer["changed"]), (&json!({"db": "0.0.0"}), &json!([])));
    let change = |kind, position| json!({"event": "change", "db": "db", "kind": kind, "position": position});
    couchdb.create_database("db");
    assert_eq!(client.receive_json(SOON).unwrap(), change("created", "0.1.0"));
    couchdb.update("db");
    assert_eq!(client.receive_json(SOON).unwrap(), change("updated", "1.1.0"));
    couchdb.delete_database("db");
    assert_eq!(client.receive_json(SOON).unwrap(), change("deleted", "1.1.1"));
}

#[test]
fn failed_login_is_answered_and_closes_the_connection() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for credentials in [
        json!({"username": USER, "password": "zq7-wrong"}),
        json!({"username": "", "password": ""}),
        json!({"cookie": "AuthSession=forged"}),
        json!({"cookie": "AuthSession="}),
        json!({"cookie": "nonsense"}),
        json!({"cookie": "AuthSession=YWRtaW46NUY6eHh4"}),
    ] {
        let mut client = Client::json(howler.address());
        let mut request = credentials.clone();
        request["op"] = "log-in".into();
        let id = client.request(request);
        let (texts, close) = client.receive_close(SOON);
        let answer: serde_json::Value = serde_json::from_str(&texts[0]).unwrap();
        assert_eq!((&answer["id"], &answer["error"]), (&json!(id), &json!("NotAuthenticatedError")), "{credentials}");
        assert_eq!(close, Received::Close(4401, "not authenticated".into()));
    }
}

#[test]
fn requests_during_a_login_are_carried_out_after_it() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::json(howler.address());
    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": ["db"]}))["error"], "NotAuthenticatedError");
    assert_eq!(client.ask(json!({"op": "heartbeat"}))["ok"], true);
    // Requests sent without waiting for the login are carried out after it.
    couchdb.set_login_delay(A_MOMENT);
    let log_in = client.request(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
    let subscribe = client.request(json!({"op": "subscribe", "dbs": ["db"]}));
    let heartbeat = client.request(json!({"op": "heartbeat"}));
    let mut answered = Vec::new();
    for _ in 0..3 {
        let answer = client.receive_json(SOON).unwrap();
        assert_eq!(answer["ok"], true, "{answer}");
        answered.push(answer["id"].as_u64().expect("the id is a number"));
    }
    assert_eq!(answered.remove(0), log_in);
    // A subscription may wait for its position; a heartbeat does not.
    assert!(answered.contains(&subscribe) && answered.contains(&heartbeat), "{answered:?}");
    couchdb.update("db");
    assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
}

#[test]
fn unknown_positions_count_as_changed() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--feed", "db_updates"]);
    let mut client = Client::logged_in(howler.address());
    let answer = client.ask(json!({"op": "subscribe", "dbs": {"a": "29.1.0", "b": null}}));
    assert_eq!(answer, json!({"id": 2, "ok": true, "dbs": {"a": null, "b": null}, "changed": ["a"]}));
}

#[test]
fn malformed_input_is_answered_and_three_in_a_row_close_the_connection() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::logged_in(howler.address());
    for _ in 0..2 {
        client.send("{");
        assert_eq!(client.receive_json(SOON).unwrap()["error"], "TypeError");
        assert_eq!(client.ask(json!({"op": "subscribe", "dbs": "db"}))["error"], "TypeError");
        assert_eq!(client.ask(json!({"op": "heartbeat"}))["ok"], true);
    }
    for text in ["[]", "nonsense", r#"{"id":{},"op":"heartbeat"}"#] {
        client.send(text);
    }
    let (texts, close) = client.receive_close(SOON);
    assert_eq!(texts.len(), 3);
    assert_eq!(close, Received::Close(1008, "malformed input".into()));
}

#[test]
fn protocol_violations_have_their_close_codes() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let long = "x".repeat(1_048_577);
    for (bytes, code) in [
        (frame(0x81, long.as_bytes())[..20].to_vec(), 1009),
        (frame(0x82, b"binary"), 1003),
        (frame(0x81, b"\xff\xfe"), 1007),
        (frame(0xc1, b"{}"), 1002),
        (vec![0x81, 0x02, b'{', b'}'], 1002),
    ] {
        let mut client = Client::logged_in(howler.address());
        client.send_raw(&bytes).unwrap();
        assert!(matches!(client.receive_close(SOON).1, Received::Close(got, _) if got == code), "{code}");
    }
    let mut client = Client::logged_in(howler.address());
    let answer = client.ask(json!({"op": "subscribe", "dbs": ["x".repeat(257)]}));
    assert_eq!(answer["error"], "LimitError");
    client.send_raw(&frame(0x89, b"are you there")).unwrap();
    assert_eq!(client.receive(SOON), Received::Pong(b"are you there".to_vec()));
    client.send_raw(&frame(0x88, &1000u16.to_be_bytes())).unwrap();
    assert!(matches!(client.receive(SOON), Received::Close(1000, _)));
    assert_eq!(client.receive(SOON), Received::End);
}

#[test]
fn subprotocol_is_confirmed_and_invalid_upgrades_are_explained() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    assert!(Client::try_open(howler.address(), "/howler", "Sec-WebSocket-Protocol: howler.v1\r\n").is_ok());
    for (path, fields, status, word) in [
        ("/nothing", "", "404", "/howler"),
        ("/socket.io/?EIO=3&transport=pigeon", "", "400", r#"{"code":0,"message":"Transport unknown"}"#),
        ("/socket.io/?EIO=5&transport=websocket", "", "400", r#"{"code":5,"message":"Unsupported protocol version"}"#),
        ("/socket.io/?EIO=3&transport=websocket&sid=x", "", "400", r#"{"code":1,"message":"Session ID unknown"}"#),
        ("/howler", "Content-Length: 1\r\nContent-Length: 2\r\n", "400", "length"),
    ] {
        let refusal = Client::try_open(howler.address(), path, fields).err().expect("the upgrade is rejected");
        assert!(refusal.starts_with(&format!("HTTP/1.1 {status} ")) && refusal.contains(word), "{path}: {refusal}");
    }
}
