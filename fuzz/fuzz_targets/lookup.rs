//! CouchDB's responses about positions: lookups, the epoch, and revisions. An input is the body of
//! a response, and each of its lines a revision.
//!
//! Asserted:
//! - the response to a lookup is read as a naive reader of its tree of values does, completely or
//!   not at all;
//! - it is no response to another lookup: more names, fewer, others, or the same in another order;
//! - the epoch is that in the tree of values;
//! - a database exists if it was created more often than deleted;
//! - a revision's number is the one at its start; the same text has the same fingerprint, and a
//!   position with it parses to the same value.

#![no_main]

use couchdb_howler::wire::couchdb::lookup::{read_rows, write_keys};
use couchdb_howler::wire::couchdb::{ChangeKind, Revision, read_epoch};
use couchdb_howler::wire::positions::Position;
use couchdb_howler_fuzz::{confuses_trees, field, number_of};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    String::from_utf8_lossy(data).lines().for_each(check_revision);
    if confuses_trees(data) {
        return;
    }
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        // A tree of values limits depth and numbers also in fields that the reader skips. A
        // truncated body is no response.
        let whole = data.trim_ascii_end().ends_with(b"}");
        return assert!(whole || (read_epoch(data).is_none() && read_rows(data, [].into_iter()).is_none()));
    };
    // The reader rejects a duplicate key, which the rewritten body no longer has.
    let rewritten = value.to_string();
    check_epoch(data, &rewritten, &value);
    check_rows(data, &rewritten, &value);
});

fn check_revision(text: &str) {
    let revision = Revision::parse(text);
    assert_eq!(revision.map(|revision| revision.number), number_of(text), "{text}");
    let Some(revision) = revision else { return };
    assert_eq!(Revision::parse(&format!("{text}x")).map(|other| other.number), Some(revision.number));
    assert_ne!(Revision::parse(&format!("{text}x")), Some(revision), "another revision with the same fingerprint");
    let position = Position { counts: [revision.number, revision.mark, 0], ..Position::default() };
    let shown = format!("{}.{}.0", revision.number, revision.mark);
    assert_eq!(Position::parse(&shown), Some(position));
    assert!(Position::parse(&format!("{shown}-0")).is_none() && Position::parse(&format!("0{shown}")).is_none());
    let created = Position { counts: [0, revision.number, revision.mark], ..Position::default() };
    assert_eq!(created.is_there(), revision.number > revision.mark);
    let in_doubt = Position { doubt: revision.mark.max(1), ..position };
    assert_eq!(Position::parse(&format!("{shown}-{:x}", revision.mark.max(1))), Some(in_doubt));
}

fn check_epoch(data: &[u8], rewritten: &str, value: &Value) {
    let naive = naive_epoch(value);
    assert_eq!(read_epoch(rewritten.as_bytes()).map(|epoch| epoch.map(String::from)), naive, "{rewritten}");
    let read = read_epoch(data).map(|epoch| epoch.map(String::from));
    assert!(read.is_none() || read == naive, "{read:?}");
}

fn naive_epoch(value: &Value) -> Option<Option<String>> {
    let value = value.as_object()?;
    value.get("db_name")?.as_str()?;
    match value.get("instance_start_time") {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(epoch)) => Some(Some(epoch.clone()).filter(|epoch| (1..=64).contains(&epoch.len()))),
        Some(_) => None,
    }
}

fn check_rows(data: &[u8], rewritten: &str, value: &Value) {
    let rows = value.get("rows").and_then(Value::as_array).map_or(&[][..], |rows| rows);
    let name_of = |row: &Value| Some(field(row, &ROW, "key")?.as_str()?.split_once(':')?.1.to_owned());
    let names: Vec<String> =
        rows.iter().step_by(ChangeKind::ALL.len()).map(|row| name_of(row).unwrap_or_default()).collect();
    let ask = |body: &[u8], names: &[String]| read_rows(body, names.iter().map(|name| &**name));
    let naive = naive_rows(value, &names);
    assert_eq!(ask(rewritten.as_bytes(), &names), naive, "{rewritten}");
    let read = ask(data, &names);
    assert!(read.is_none() || read == naive, "{read:?}");
    let Some(read) = read else { return };
    assert_eq!(read.len(), names.len());
    // The keys of the response are those of the request.
    let asked: Value = serde_json::from_slice(&write_keys(names.iter().map(|name| &**name))).expect("JSON");
    let answered: Value = rows.iter().map(|row| field(row, &ROW, "key").expect("the row has a key").clone()).collect();
    assert_eq!(asked["keys"], answered);
    let mut others = names.clone();
    others.push("a".to_owned());
    assert_eq!(ask(data, &others), None, "one name more");
    if names.is_empty() {
        return;
    }
    assert_eq!(ask(data, &names[1..]), None, "one name fewer");
    others = names.clone();
    others[0].push('x');
    assert_eq!(ask(data, &others), None, "another name");
    others = names.clone();
    others.reverse();
    assert_eq!(ask(data, &others).is_some(), others == names, "another order");
}

/// The fields of a row that the reader uses.
const ROW: [&str; 3] = ["key", "value", "error"];

fn naive_rows(value: &Value, names: &[String]) -> Option<Vec<[Revision; 3]>> {
    let rows = value.as_object()?.get("rows")?.as_array()?;
    if rows.len() != names.len() * ChangeKind::ALL.len() {
        return None;
    }
    let mut read = vec![[Revision::default(); 3]; names.len()];
    for (i, row) in rows.iter().enumerate() {
        let (kind, name) = (ChangeKind::ALL[i % ChangeKind::ALL.len()], &names[i / ChangeKind::ALL.len()]);
        if field(row, &ROW, "key")? != &Value::from(format!("{}:{name}", kind.text())) {
            return None;
        }
        let there = |name| field(row, &ROW, name).filter(|value| !value.is_null());
        read[i / ChangeKind::ALL.len()][kind.index()] = match (there("value"), there("error")) {
            (Some(value), None) => {
                let text = field(value, &["rev"], "rev")?.as_str()?;
                let revision = Revision::parse(text)?;
                assert_eq!(Some(revision.number), number_of(text));
                revision
            }
            (None, Some(error)) if error == "not_found" => Revision::default(),
            _ => return None,
        };
    }
    Some(read)
}
