//! A response of CouchDB as the feed reads it: head, body framing, lines, JSON. After `LONG `, an
//! input describes lines of about the maximum length.
//!
//! Asserted, for an input that is everything CouchDB sends:
//! - heads, lines, the end, and the error with everything before it do not depend on how the bytes
//!   are split: whole, one by one, or at points taken from the input;
//! - "need more" means that all input was used, and every other step makes progress;
//! - a line that is too long is skipped, and no other line;
//! - a change names a database: neither an empty name nor `_dbs`;
//! - a line and the same JSON rewritten (keys in another order, escapes decoded) parse to the same
//!   result, and so does the same change in CouchDB's usual form, which takes another path;
//! - the revision of a change is that in the tree of values of the line;
//! - a line that parses to anything but a heartbeat is a JSON object.

#![no_main]

use couchdb_howler::wire::couchdb::{ChangeKind, FeedLine, Revision, parse_feed_line, parse_last_seq};
use couchdb_howler::wire::http::{BodyDecoder, Part, Response, ResponseError, ResponseReader};
use couchdb_howler::wire::lines::{Line, LineReader, MAX_LINE};
use couchdb_howler_fuzz::{WAYS, confuses_trees, field, number_of, pieces};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// An item of the response.
#[derive(Debug, PartialEq, Eq)]
enum Item {
    Head(Response),
    /// A line; None if it was too long.
    Line(Option<Vec<u8>>),
    /// The response was complete after this number of bytes.
    End(usize),
    Error(ResponseError),
}

fuzz_target!(|data: &[u8]| {
    if let Some(plan) = data.strip_prefix(b"LONG ") {
        return check_long_lines(plan);
    }
    if confuses_trees(data) {
        return;
    }
    let whole = read(&pieces(data, 0));
    for way in 1..WAYS {
        assert_eq!(read(&pieces(data, way)), whole, "way {way}");
    }
    for item in &whole {
        if let Item::Line(Some(line)) = item {
            assert!(line.len() <= MAX_LINE && !line.contains(&b'\n'));
            check_line(line);
        }
    }
    // Also reads the bytes as bare lines, so that mutations reach the JSON without valid framing.
    data.split(|byte| *byte == b'\n').for_each(check_line);
    check_last_seq(data);
});

fn read(pieces: &[&[u8]]) -> Vec<Item> {
    let (mut reader, mut lines, mut items, mut total) =
        (ResponseReader::default(), LineReader::default(), Vec::new(), 0);
    for piece in pieces {
        let mut rest = *piece;
        loop {
            let (used, part) = match reader.next(rest) {
                Ok(next) => next,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    items.push(Item::Error(error));
                    return items;
                }
            };
            total += used;
            rest = &rest[used..];
            assert!(reader.is_untouched() || total > 0);
            match part {
                Part::Head(head) => {
                    assert_eq!(reader.ends_with_connection(), head.body == BodyDecoder::UntilClose);
                    items.push(Item::Head(head));
                }
                Part::Data(data) => {
                    assert!(!data.is_empty(), "a step without progress");
                    take_lines(&mut lines, data, &mut items);
                }
                Part::End => {
                    assert_eq!(reader.next(&[]), Ok((0, Part::End)), "the end is repeated");
                    items.push(Item::End(total));
                    return items;
                }
                Part::NeedMore => {
                    assert!(rest.is_empty(), "needs more and has more");
                    break;
                }
            }
        }
    }
    items
}

fn take_lines(lines: &mut LineReader, mut rest: &[u8], items: &mut Vec<Item>) {
    loop {
        let (used, line) = lines.next(rest);
        rest = &rest[used..];
        match line {
            Line::Complete(line) => items.push(Item::Line(Some(line.to_vec()))),
            Line::TooLong => items.push(Item::Line(None)),
            Line::NeedMore => {
                assert!(rest.is_empty(), "needs more and has more");
                return;
            }
        }
    }
}

/// Checks the sequence at the end of a response: it is that of `last_seq`, also when read as the
/// last line of a feed.
fn check_last_seq(body: &[u8]) {
    let seq = parse_last_seq(body);
    if let Ok(value) = serde_json::from_slice::<Value>(body) {
        let last = value.get("last_seq").filter(|seq| !seq.is_null());
        assert!(seq.is_none() || last.is_some());
        if let Some(text) = last.and_then(Value::as_str) {
            assert!(seq.as_deref().is_none_or(|seq| seq == text));
        }
    }
    if let Some(seq) = seq {
        assert_eq!(parse_feed_line(body), Some(FeedLine::LastSeq { seq: seq.into() }));
    }
}

/// Checks lines of about the maximum length. Each two bytes of the plan are a line, as the
/// difference of its length to the maximum. The first byte, times 512, is the size of the pieces.
fn check_long_lines(plan: &[u8]) {
    let [way, plan @ ..] = plan else { return };
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for (number, difference) in plan.as_chunks().0.iter().take(4).enumerate() {
        let length = (MAX_LINE as u64).saturating_add_signed(i16::from_be_bytes(*difference).into());
        let line = vec![b'a' + number as u8; length as usize];
        bytes.extend_from_slice(&line);
        bytes.push(b'\n');
        expected.push(Item::Line(Some(line).filter(|line| line.len() <= MAX_LINE)));
    }
    let (mut lines, mut items) = (LineReader::default(), Vec::new());
    for piece in bytes.chunks(usize::from(*way).max(1) * 512) {
        take_lines(&mut lines, piece, &mut items);
    }
    assert!(items == expected);
}

fn check_line(line: &[u8]) {
    let Some(parsed) = parse_feed_line(line) else { return };
    if parsed == FeedLine::Heartbeat {
        assert!(line.iter().all(u8::is_ascii_whitespace));
        return;
    }
    assert!(line.trim_ascii_start().starts_with(b"{"), "not an object: {parsed:?}");
    // Fields that the reader skips may have content that a tree of values cannot hold: numbers out
    // of range, lone surrogates, deep nesting.
    let value = serde_json::from_slice::<Value>(line).ok();
    if let FeedLine::Change { database, kind, revision, seq } = &parsed {
        assert!(!database.is_empty() && database != "_dbs");
        let kind = match kind {
            ChangeKind::Created => "created",
            ChangeKind::Updated => "updated",
            ChangeKind::Deleted => "deleted",
        };
        let id = Value::from(format!("{kind}:{database}"));
        let seq = seq.as_deref().map_or(Value::Null, Value::from);
        let text = value.as_ref().and_then(revision_text);
        let shown = revision.and(text.as_deref()).map_or_else(|| Value::from("none"), Value::from);
        let usual = format!(r#"{{"seq":{seq},"id":{id},"changes":[{{"rev":{shown}}}]}}"#);
        let rewritten = parse_feed_line(usual.as_bytes()).expect("the usual form is a line");
        // Without a tree of values the expected revision is unknown.
        if value.is_some() {
            assert_eq!(rewritten, parsed, "{usual}");
        } else {
            assert_eq!(
                without_revision(rewritten),
                without_revision(parse_feed_line(line).expect("the line parses again")),
                "{usual}"
            );
        }
        if let (Some(revision), Some(_)) = (revision, &value) {
            let text = text.expect("the revision is in the line");
            assert_eq!(Some(revision.number), number_of(&text), "{text}");
            assert_eq!(Some(*revision), Revision::parse(&text));
        }
    }
    let Some(mut value) = value else { return };
    for name in ["seq", "last_seq"] {
        // Sequences other than strings keep their exact text.
        if let Some(seq) = value.get_mut(name).filter(|seq| !seq.is_string() && !seq.is_null()) {
            *seq = Value::from("opaque");
        }
    }
    let rewritten = value.to_string();
    let again = parse_feed_line(rewritten.as_bytes()).expect("the rewritten line is a line");
    if let FeedLine::Change { revision, .. } = &again
        && value.get("id").is_some_and(Value::is_string)
    {
        let number = revision_text(&value).and_then(|text| number_of(&text));
        assert_eq!(revision.map(|revision| revision.number), number, "{rewritten}");
    }
    let (again, parsed) = (without_odd_seq(again, &value), without_odd_seq(parsed, &value));
    // A duplicate key in one of the `changes` makes the revision unknown; the rewritten line no
    // longer has it.
    let twice = matches!(&parsed, FeedLine::Change { revision: None, .. });
    if twice {
        assert_eq!(without_revision(again), without_revision(parsed), "{rewritten}");
    } else {
        assert_eq!(again, parsed, "{rewritten}");
    }
}

/// Returns the revision in a line of `_global_changes` if each of its `changes` has one.
fn revision_text(line: &Value) -> Option<String> {
    let changes = line.get("changes")?.as_array()?;
    let revisions: Option<Vec<&str>> = changes.iter().map(|change| field(change, &["rev"], "rev")?.as_str()).collect();
    revisions?.first().map(|text| (*text).to_owned())
}

fn without_revision(line: FeedLine<'_>) -> FeedLine<'_> {
    match line {
        FeedLine::Change { database, kind, seq, .. } => FeedLine::Change { database, kind, revision: None, seq },
        line => line,
    }
}

/// Returns the line with its sequence blanked where the check replaced it.
fn without_odd_seq<'a>(line: FeedLine<'a>, value: &Value) -> FeedLine<'a> {
    let odd = |name: &str| value.get(name).and_then(Value::as_str) == Some("opaque");
    match line {
        FeedLine::Change { database, kind, revision, seq: Some(_) } if odd("seq") => {
            FeedLine::Change { database, kind, revision, seq: Some("opaque".into()) }
        }
        FeedLine::Other { seq: Some(_) } if odd("seq") => FeedLine::Other { seq: Some("opaque".into()) },
        FeedLine::LastSeq { .. } if odd("last_seq") => FeedLine::LastSeq { seq: "opaque".into() },
        line => line,
    }
}
