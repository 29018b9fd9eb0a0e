//! Messages of the JSON protocol.
//!
//! Asserted:
//! - a request is a JSON object, and the names of databases in it are not empty;
//! - every kind of reply has the id unchanged, even if the rest of the request is invalid;
//! - names, positions and the epoch of a request are those in its tree of values, except for an
//!   epoch that is too long;
//! - everything written is JSON that has the given texts, whatever characters they contain, and
//!   positions that parse to the same value.

#![no_main]

use std::collections::BTreeMap;

use couchdb_howler::wire::couchdb::{ChangeKind, Credentials};
use couchdb_howler::wire::howler_v1::{
    FOREIGN, MAX_EPOCH, MAX_ID, Operation, RequestError, RequestId, parse_request, write_change, write_error,
    write_forbidden, write_goodbye, write_hello, write_logged_in, write_not_authenticated, write_ok, write_resync,
    write_session, write_subscribed, write_unsubscribed,
};
use couchdb_howler::wire::name_list::NameList;
use couchdb_howler::wire::positions::{Given, Position};
use couchdb_howler::wire::security::Refusal;
use couchdb_howler_fuzz::confuses_trees;
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use serde_json::{Value, json};

type Fields = BTreeMap<String, Box<RawValue>>;

fuzz_target!(|data: &[u8]| {
    if confuses_trees(data) {
        return;
    }
    let text = String::from_utf8_lossy(data);
    let (id, operation) = parse_request(&text);
    let fields = serde_json::from_str::<Fields>(&text).ok();
    if operation != Err(RequestError::Shape) {
        assert!(fields.is_some(), "not an object");
    }
    let given = fields.as_ref().and_then(|fields| fields.get("id")).map(|id| id.get()).filter(|id| *id != "null");
    let echoed = check_echo(&id, &text);
    if operation == Err(RequestError::Shape) {
        assert!(echoed.is_none() || echoed.as_deref() == given);
    } else {
        assert_eq!(echoed.as_deref(), given);
    }
    assert!(echoed.is_none_or(|id| id.len() <= MAX_ID));
    match operation {
        Ok(Operation::Subscribe(positions, epoch)) => {
            assert!(positions.iter().all(|(name, _)| !name.is_empty()));
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                assert_eq!(epoch.as_deref(), value.get("epoch").and_then(Value::as_str).map(bounded));
                check_positions(&positions, &value["dbs"]);
            }
        }
        Ok(Operation::Unsubscribe(names)) => assert!(names.iter().all(|(name, _)| !name.is_empty())),
        Ok(Operation::LogIn(Credentials::Cookie(value))) => {
            assert!(value.reveal().bytes().all(|b| b.is_ascii_graphic() && b != b';'));
        }
        Ok(Operation::LogIn(Credentials::Token(token))) => {
            assert!(token.reveal().bytes().all(|b| b.is_ascii_graphic()))
        }
        Err(error) => assert!(!error.message().is_empty()),
        _ => {}
    }
    check_events(&text);
});

fn check_positions(positions: &NameList, dbs: &Value) {
    let read = positions.iter();
    if let Some(map) = dbs.as_object() {
        for known in map.values().filter_map(Value::as_str) {
            let position = Position::parse(known);
            assert!(position.is_none_or(|position| position.to_string() == known));
        }
        let read: BTreeMap<&str, Given> = read.collect();
        assert!(
            read.iter()
                .map(|(name, given)| (*name, *given))
                .eq(map.iter().map(|(name, known)| (&**name, Given::of(known.as_str()))))
        );
        assert!(map.values().all(|known| known.is_string() || known.is_null()));
    } else {
        let expected =
            dbs.as_array().expect("names").iter().map(|name| (name.as_str().expect("a name"), Given::Nothing));
        assert!(read.eq(expected));
    }
}

/// Returns the part of an epoch that the parser keeps.
fn bounded(text: &str) -> &str {
    if text.len() > MAX_EPOCH { FOREIGN } else { text }
}

/// Makes a position from the bytes of a text.
fn position_of(text: &str) -> Position {
    let mut numbers = [0_u32; 5];
    for (i, byte) in text.bytes().enumerate() {
        numbers[i % 5] = numbers[i % 5].wrapping_mul(257).wrapping_add(byte.into());
    }
    let [counts @ .., doubt, start] = numbers;
    Position { counts, doubt, start }
}

/// Parses a position from its text.
fn read_back(text: &str) -> Position {
    let split = |text: &'_ str, mark| match text.split_once(mark) {
        Some((text, number)) => (text.to_owned(), u32::from_str_radix(number, 16).expect("a number")),
        None => (text.to_owned(), 0),
    };
    let (text, start) = split(text, '@');
    let (counts, doubt) = split(&text, '-');
    let counts: Vec<u32> = counts.split('.').map(|count| count.parse().expect("a count")).collect();
    Position { counts: counts.try_into().expect("three kinds"), doubt, start }
}

/// Writes every kind of reply to a request; returns the id in them.
fn check_echo(id: &RequestId, text: &str) -> Option<String> {
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        serde_json::from_slice::<Fields>(&out).expect("an object")
    };
    let echoed = written(&|o| write_ok(o, id)).get("id").map(|id| id.get().to_owned());
    let position = position_of(text);
    // Two different names, because a JSON object holds a name once.
    let stand = [(&*format!("{text}."), Some(position)), (text, None)];
    let dbs = json!({format!("{text}."): position.to_string(), text: null});
    let forbidden = json!({"error": "ForbiddenError", "message": Refusal::NotReader.message()});
    for (fields, expected) in [
        (written(&|o| write_ok(o, id)), json!({"ok": true})),
        (written(&|o| write_logged_in(o, id, "u", Some(text))), json!({"ok": true, "username": "u", "cookie": text})),
        (
            written(&|o| write_subscribed(o, id, None, &["a", text], None, &[])),
            json!({"ok": true, "changed": ["a", text]}),
        ),
        (
            written(&|o| write_subscribed(o, id, Some(&[]), &[], Some(text), &[])),
            json!({"ok": true, "epoch": text, "dbs": {}, "changed": []}),
        ),
        (
            written(&|o| write_subscribed(o, id, Some(&stand), &[text], None, &[])),
            json!({"ok": true, "dbs": dbs, "changed": [text]}),
        ),
        (
            written(&|o| write_subscribed(o, id, None, &[], None, &[(text.into(), Refusal::NotReader)])),
            json!({"ok": true, "errors": {text: forbidden.clone()}, "changed": []}),
        ),
        (
            written(&|o| write_forbidden(o, id, &[(text.into(), Refusal::NotReader)])),
            json!({"error": "ForbiddenError", "message": Refusal::NotReader.message(), "errors": {text: forbidden}}),
        ),
        (written(&|o| write_logged_in(o, id, text, None)), json!({"ok": true, "username": text})),
        (written(&|o| write_error(o, id, "TypeError", text, None)), json!({"error": "TypeError", "message": text})),
        (
            written(&|o| write_error(o, id, text, "x", Some(u64::MAX))),
            json!({"error": text, "message": "x", "retry_after_ms": u64::MAX}),
        ),
    ] {
        assert_eq!(fields.get("id").map(|id| id.get()), echoed.as_deref());
        let rest: BTreeMap<_, Value> = fields
            .iter()
            .filter(|(name, _)| *name != "id")
            .map(|(name, value)| (name.clone(), serde_json::from_str(value.get()).expect("our own JSON")))
            .collect();
        assert_eq!(json!(rest), expected);
    }
    echoed
}

fn check_events(text: &str) {
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        serde_json::from_slice::<Value>(&out).expect("JSON")
    };
    let position = position_of(text);
    assert_eq!(read_back(&position.to_string()), position);
    for (kind, name) in
        [(ChangeKind::Created, "created"), (ChangeKind::Updated, "updated"), (ChangeKind::Deleted, "deleted")]
    {
        let change = written(&|o| write_change(o, text, kind, None));
        assert_eq!(change, json!({"event": "change", "db": text, "kind": name}));
        let change = written(&|o| write_change(o, text, kind, Some(position)));
        let notified = position.to_string();
        assert_eq!(change, json!({"event": "change", "db": text, "kind": name, "position": notified}));
    }
    let hello = written(&|o| write_hello(o, None));
    assert!(hello["event"] == "hello" && hello.get("epoch").is_none());
    let hello = written(&|o| write_hello(o, Some(text)));
    assert!(hello["event"] == "hello" && hello["epoch"] == text);
    assert_eq!(written(&|o| write_resync(o, text)), json!({"event": "resync", "reason": text}));
    assert_eq!(written(&|o| write_session(o, text)), json!({"event": "session", "cookie": text}));
    assert_eq!(
        written(&|o| write_unsubscribed(o, text, Refusal::NotReader)),
        json!({"event": "unsubscribed", "db": text, "error": "ForbiddenError", "message": Refusal::NotReader.message()})
    );
    let ended = written(&|o| write_not_authenticated(o, "TypeError", text));
    assert_eq!(ended, json!({"event": "not-authenticated", "error": "TypeError", "message": text}));
    assert_eq!(written(&|o| write_goodbye(o, text.len() as u64))["retry_after_ms"], text.len());
}
