//! Messages of the JSON protocol.
//!
//! Asserted:
//! - what is read as a request is a JSON object, and names of databases in it are not empty;
//! - the id comes back to the letter, in every kind of answer, also where the rest of the request
//!   is wrong;
//! - everything that is written is JSON and holds the given texts, whatever characters are in them.

#![no_main]

use std::collections::BTreeMap;

use couchdb_howler::wire::couchdb::{ChangeKind, Credentials};
use couchdb_howler::wire::howler_v1::{
    MAX_ID, Operation, RequestError, RequestId, parse_request, write_change, write_error, write_goodbye, write_hello,
    write_logged_in, write_ok, write_subscribed,
};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;
use serde_json::{Value, json};

type Fields = BTreeMap<String, Box<RawValue>>;

fuzz_target!(|data: &[u8]| {
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
        Ok(Operation::Subscribe(positions)) => assert!(positions.iter().all(|(name, _)| !name.is_empty())),
        Ok(Operation::Unsubscribe(names)) => assert!(names.iter().all(|name| !name.is_empty())),
        Ok(Operation::LogIn(Credentials::Cookie(value))) => {
            assert!(value.reveal().bytes().all(|b| b.is_ascii_graphic() && b != b';'));
        }
        _ => {}
    }
    check_events(&text);
});

/// Writes every answer to a request; the id in them.
fn check_echo(id: &RequestId, text: &str) -> Option<String> {
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        serde_json::from_slice::<Fields>(&out).expect("an object")
    };
    let echoed = written(&|o| write_ok(o, id)).get("id").map(|id| id.get().to_owned());
    for (fields, expected) in [
        (written(&|o| write_ok(o, id)), json!({"ok": true})),
        (written(&|o| write_logged_in(o, id, "u", text)), json!({"ok": true, "username": "u", "cookie": text})),
        (written(&|o| write_subscribed(o, id, &["a", text])), json!({"ok": true, "changed": ["a", text]})),
        (written(&|o| write_subscribed(o, id, &[])), json!({"ok": true, "changed": []})),
        (written(&|o| write_error(o, id, "TypeError", text)), json!({"error": "TypeError", "message": text})),
    ] {
        assert_eq!(fields.get("id").map(|id| id.get()), echoed.as_deref());
        let rest: BTreeMap<_, Value> = fields
            .iter()
            .filter(|(name, _)| *name != "id")
            .map(|(name, value)| (name.clone(), serde_json::from_str(value.get()).expect("ours")))
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
    for (kind, name) in
        [(ChangeKind::Created, "created"), (ChangeKind::Updated, "updated"), (ChangeKind::Deleted, "deleted")]
    {
        let change = written(&|o| write_change(o, text, kind));
        assert_eq!(change, json!({"event": "change", "db": text, "kind": name}));
    }
    assert_eq!(written(&|o| write_hello(o))["event"], "hello");
    assert_eq!(written(&|o| write_goodbye(o, text.len() as u64))["retry_after_ms"], text.len());
}
