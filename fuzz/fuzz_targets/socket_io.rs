//! Packets of Engine.IO and Socket.IO, and the events in them.
//!
//! Asserted:
//! - a packet is a kind and the rest of its text; written anew, a Socket.IO packet reads the same;
//! - an event is what a general JSON reader sees in it: its name, and names of databases none of
//!   which is empty;
//! - everything that is written to a client is a packet again, with JSON that holds the given texts,
//!   whatever characters are in them.

#![no_main]

use couchdb_howler::wire::engine_io;
use couchdb_howler::wire::json::write_string;
use couchdb_howler::wire::socket_io::{self, Event, Packet, PacketKind};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
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
    let anew = format!("{}{},{id}{}", &text[..1], packet.namespace, packet.data);
    assert_eq!(socket_io::parse_packet(&anew), Some(packet));
    check_event(packet.data);
    let mut refusal = Vec::new();
    socket_io::write_invalid_namespace(&mut refusal, packet.namespace);
    let refusal = String::from_utf8(refusal).expect("text");
    let refused = message(&refusal);
    assert_eq!((refused.kind, refused.namespace), (PacketKind::Error, packet.namespace));
    assert!(serde_json::from_str::<Value>(refused.data).is_ok());
}

fn check_event(data: &str) {
    let event = socket_io::parse_event(data);
    if let Some(Event::Subscribe(Some(names)) | Event::Unsubscribe(Some(names))) = &event {
        assert!(names.iter().all(|name| !name.is_empty()));
    }
    // A tree of values cannot hold numbers out of range, halves of surrogate pairs, depth.
    let Ok(value) = serde_json::from_str::<Value>(data) else { return };
    let Some(name) = value.get(0).and_then(Value::as_str) else {
        assert_eq!(event, None);
        return;
    };
    let names = value.get(1).and_then(Value::as_array).and_then(|list| {
        list.iter().map(|name| name.as_str().filter(|name| !name.is_empty()).map(Into::into)).collect()
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

fn check_writers(text: &str) {
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("text")
    };
    let error = json!({"error": true, "errorName": "TypeError", "errorMessage": text});
    for (out, kind, id, expected) in [
        (written(&|o| socket_io::write_change(o, text)), PacketKind::Event, None, json!(["change", text])),
        (
            written(&|o| socket_io::write_authenticated(o, text)),
            PacketKind::Event,
            None,
            json!(["authenticated", {"cookie": text}]),
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
        assert_eq!(socket_io::parse_event(&subscribe), Some(Event::Subscribe(Some(vec![text.into()]))));
    }
}

fn message(text: &str) -> Packet<'_> {
    let packet = engine_io::parse_packet(text).expect("a packet of Engine.IO");
    assert_eq!(packet.kind, engine_io::PacketKind::Message);
    socket_io::parse_packet(packet.data).expect("a packet of Socket.IO")
}
