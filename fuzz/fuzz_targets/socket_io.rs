//! Packets of Engine.IO and Socket.IO, and the events in them.
//!
//! Asserted:
//! - a packet is a kind and the rest of its text; a rewritten Socket.IO packet parses to the same
//!   value;
//! - an event has the name that a general JSON reader finds in it, and names of databases that are
//!   not empty;
//! - an auth object has the credentials that a general JSON reader finds in it;
//! - the id of a session parses only from the text that it is written as;
//! - everything written to a client is a packet, with JSON that has the given texts, whatever
//!   characters they contain.

#![no_main]

use couchdb_howler::wire::couchdb::{Credentials, MAX_CREDENTIAL};
use couchdb_howler::wire::engine_io::{self, Sid, Version};
use couchdb_howler::wire::json::write_string;
use couchdb_howler::wire::secret::Secret;
use couchdb_howler::wire::socket_io::{self, Event, Packet, PacketKind};
use couchdb_howler_fuzz::confuses_trees;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    if confuses_trees(data) {
        return;
    }
    let text = String::from_utf8_lossy(data);
    check_engine(&text);
    check_packet(&text);
    check_event(&text);
    check_writers(&text);
});

fn check_engine(text: &str) {
    let Some(packet) = engine_io::parse_packet(text) else { return };
    assert_eq!(packet.data, &text[1..]);
    if packet.kind == engine_io::PacketKind::Message {
        check_packet(packet.data);
    }
}

fn check_packet(text: &str) {
    let Some(packet) = socket_io::parse_packet(text) else { return };
    assert!(packet.namespace.starts_with('/') && !packet.namespace.contains([',', '?']));
    assert!(!packet.data.starts_with(|c: char| c.is_ascii_digit()));
    let id = packet.id.map_or_else(String::new, |id| id.to_string());
    let rewritten = format!("{}{},{id}{}", &text[..1], packet.namespace, packet.data);
    assert_eq!(socket_io::parse_packet(&rewritten), Some(packet));
    check_event(packet.data);
    check_auth(packet.data);
    for (version, expected) in
        [(Version::V3, json!("Invalid namespace")), (Version::V4, json!({"message": "Invalid namespace"}))]
    {
        let refusal = written(&|out| socket_io::write_invalid_namespace(out, packet.namespace, version));
        let refused = message(&refusal);
        assert_eq!((refused.kind, refused.namespace), (PacketKind::Error, packet.namespace));
        assert_eq!(serde_json::from_str::<Value>(refused.data).ok(), Some(expected));
    }
}

/// Checks the credentials in an auth object against those that a general JSON reader finds.
fn check_auth(data: &str) {
    let auth = socket_io::parse_auth(data);
    let Ok(value) = serde_json::from_str::<Value>(data) else { return };
    let field = |name| match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(&**text)),
        Some(_) => Err(()),
    };
    let expected = match (field("username"), field("password"), field("cookie"), field("token")) {
        (Ok(_), Ok(_), Ok(Some(cookie)), Ok(_)) if !cookie.is_empty() => Some(Credentials::cookie(cookie)),
        (Ok(_), Ok(_), Ok(_), Ok(Some(token))) if !token.is_empty() => Some(Credentials::token(token)),
        (Ok(None), Ok(None), Ok(_), Ok(_)) => None,
        (Ok(username), Ok(password), Ok(_), Ok(_)) => {
            let (username, password) = (username.unwrap_or(""), password.unwrap_or(""));
            let too_long = username.len().max(password.len()) > MAX_CREDENTIAL;
            let password = Secret::new(password);
            Some(if too_long {
                Credentials::TooLong
            } else {
                Credentials::Password { username: username.into(), password }
            })
        }
        _ => None,
    };
    // A general reader takes the last of duplicate fields; ours rejects them.
    assert!(auth == expected || auth.is_none() && has_field_twice(data), "{auth:?}, {expected:?}");
}

fn has_field_twice(data: &str) -> bool {
    ["username", "password", "cookie", "token"].iter().any(|name| data.matches(name).count() > 1) || data.contains('\\')
}

fn check_event(data: &str) {
    let event = socket_io::parse_event(data);
    if let Some(Event::Subscribe(Some(names)) | Event::Unsubscribe(Some(names))) = &event {
        assert!(names.iter().all(|(name, _)| !name.is_empty()));
    }
    // A tree of values cannot hold numbers out of range, lone surrogates, or deep nesting.
    let Ok(value) = serde_json::from_str::<Value>(data) else { return };
    let Some(name) = value.get(0).and_then(Value::as_str) else {
        assert_eq!(event, None);
        return;
    };
    let names = value.get(1).and_then(Value::as_array).and_then(|list| {
        list.iter().map(|name| name.as_str().filter(|name| !name.is_empty()).map(|name| (name, None))).collect()
    });
    let expected = match name {
        "subscribe" => Event::Subscribe(names),
        "unsubscribe" => Event::Unsubscribe(names),
        "heartbeat" => Event::Heartbeat,
        "log-out" => Event::LogOut,
        _ => Event::Unknown,
    };
    assert_eq!(event, Some(expected));
}

fn written(write: &dyn Fn(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).expect("text")
}

fn check_writers(text: &str) {
    if let Some(id) = text.as_bytes().first_chunk().copied().map(Sid) {
        assert_eq!(Sid::parse(&id.to_string()), Some(id));
        let connect = written(&|out| socket_io::write_connect(out, Some(id)));
        let packet = message(&connect);
        assert_eq!((packet.kind, packet.namespace, packet.id), (PacketKind::Connect, "/", None));
        assert_eq!(serde_json::from_str::<Value>(packet.data).ok(), Some(json!({"sid": id.to_string()})));
    }
    if let Some(id) = Sid::parse(text) {
        assert_eq!(id.to_string(), text);
    }
    let error = json!({"error": true, "errorName": "TypeError", "errorMessage": text});
    for (out, kind, id, expected) in [
        (written(&|o| socket_io::write_change(o, text)), PacketKind::Event, None, json!(["change", text])),
        (
            written(&|o| socket_io::write_authenticated(o, Some(text))),
            PacketKind::Event,
            None,
            json!(["authenticated", {"cookie": text}]),
        ),
        (written(&|o| socket_io::write_authenticated(o, None)), PacketKind::Event, None, json!(["authenticated", {}])),
        (written(&|o| socket_io::write_unsubscribed(o, text)), PacketKind::Event, None, json!(["unsubscribed", text])),
        (
            written(&|o| socket_io::write_ack(o, text.len() as u64, "{}")),
            PacketKind::Ack,
            Some(text.len() as u64),
            json!([{}]),
        ),
        (
            written(&|o| socket_io::write_not_authenticated(o, "TypeError", text)),
            PacketKind::Event,
            None,
            json!(["not-authenticated", error]),
        ),
        (
            written(&|o| socket_io::write_error_ack(o, u64::MAX, "TypeError", text)),
            PacketKind::Ack,
            Some(u64::MAX),
            json!([error]),
        ),
    ] {
        let packet = message(&out);
        assert_eq!((packet.kind, packet.namespace, packet.id), (kind, "/", id), "{out}");
        assert_eq!(serde_json::from_str::<Value>(packet.data).ok(), Some(expected), "{out}");
    }
    if !text.is_empty() {
        let subscribe = written(&|out| {
            out.extend_from_slice(br#"["subscribe",["#);
            write_string(out, text);
            out.extend_from_slice(b"]]");
        });
        assert_eq!(
            socket_io::parse_event(&subscribe),
            Some(Event::Subscribe(Some([(text, None)].into_iter().collect())))
        );
    }
}

fn message(text: &str) -> Packet<'_> {
    let packet = engine_io::parse_packet(text).expect("a packet of Engine.IO");
    assert_eq!(packet.kind, engine_io::PacketKind::Message);
    socket_io::parse_packet(packet.data).expect("a packet of Socket.IO")
}
