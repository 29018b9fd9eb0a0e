//! The lines of CouchDB's changes feeds.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::change_kind::ChangeKind;
use super::revision::Revision;
use crate::wire::json;

/// A line of a feed.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedLine<'a> {
    /// An empty line: CouchDB is alive.
    Heartbeat,
    /// A change of a database.
    Change {
        /// Name of the database, unescaped.
        database: Cow<'a, str>,
        /// Kind of the change.
        kind: ChangeKind,
        /// Revision of the event document; None if the line has none, as in `_db_updates`.
        revision: Option<Revision>,
        /// Opaque sequence to resume from behind this line. A change without one is notified as
        /// well; a resumed feed repeats it.
        seq: Option<Cow<'a, str>>,
    },
    /// A line about no database: a design document, `_dbs` or a tombstone. Only its sequence
    /// counts.
    Other {
        /// Sequence, if the line has one.
        seq: Option<Cow<'a, str>>,
    },
    /// The last line of a feed that CouchDB ends.
    LastSeq {
        /// Sequence to resume from.
        seq: Cow<'a, str>,
    },
}

/// The members of a line of `_global_changes/_changes` or `_db_updates`, or of their last lines.
#[derive(Deserialize)]
struct RawLine<'a> {
    #[serde(borrow)]
    seq: Option<&'a RawValue>,
    #[serde(borrow)]
    last_seq: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    changes: Option<&'a RawValue>,
    #[serde(default)]
    deleted: bool,
    #[serde(borrow)]
    db_name: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RawChange<'a> {
    #[serde(borrow)]
    rev: Cow<'a, str>,
}

/// Parses one line of either feed, without its line feed. Returns None if it is no such line.
pub fn parse_feed_line(line: &[u8]) -> Option<FeedLine<'_>> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Some(FeedLine::Heartbeat);
    }
    parse_common_line(line).or_else(|| parse_general_line(line))
}

/// Parses the form that nearly every line has, in one pass:
/// `{"seq":"…","id":"updated:name","changes":[{"rev":"…"}]}`. Returns None for every other line,
/// even a malformed one.
fn parse_common_line(line: &[u8]) -> Option<FeedLine<'_>> {
    // Strings hold no control characters (RFC 8259 section 7).
    if least_byte(line)? < b' ' {
        return None;
    }
    let rest = std::str::from_utf8(line).ok()?.strip_prefix("{\"seq\":\"")?;
    let (seq, rest) = split_plain_string(rest)?;
    let (id, rest) = split_plain_string(rest.strip_prefix(",\"id\":\"")?)?;
    let (revision, rest) = split_plain_string(rest.strip_prefix(",\"changes\":[{\"rev\":\"")?)?;
    if rest != "}]}" {
        return None;
    }
    let (revision, seq) = (Revision::parse(revision), Some(Cow::Borrowed(seq)));
    Some(match id.strip_prefix("updated:") {
        Some(name) => change_of(Cow::Borrowed(name), Some(ChangeKind::Updated), revision, seq),
        None => change_of_document(Cow::Borrowed(id), revision, seq),
    })
}

/// Returns the least byte, comparing 32 at a time; None for fewer bytes than that.
fn least_byte(bytes: &[u8]) -> Option<u8> {
    const MANY: usize = 32;
    let (blocks, _) = bytes.as_chunks::<MANY>();
    let mut least = *bytes.last_chunk::<MANY>()?;
    for block in blocks {
        for (least, byte) in least.iter_mut().zip(block) {
            *least = (*least).min(*byte);
        }
    }
    least.into_iter().min()
}

/// Splits a JSON string without escapes, up to its closing quotation mark, from the rest.
fn split_plain_string(text: &str) -> Option<(&str, &str)> {
    let end = memchr::memchr2(b'"', b'\\', text.as_bytes())?;
    (text.as_bytes()[end] == b'"').then(|| (&text[..end], &text[end + 1..]))
}

fn parse_general_line(line: &[u8]) -> Option<FeedLine<'_>> {
    let raw: RawLine<'_> = json::parse_object(line)?;
    if let Some(seq) = raw.last_seq {
        return Some(FeedLine::LastSeq { seq: opaque(seq)? });
    }
    let seq = raw.seq.and_then(opaque);
    if raw.deleted {
        return Some(FeedLine::Other { seq });
    }
    match (raw.id, raw.db_name, raw.kind) {
        (Some(id), ..) => Some(change_of_document(id, raw.changes.and_then(winning_revision), seq)),
        (None, Some(name), Some(kind)) => Some(change_of(name, ChangeKind::parse(&kind), None, seq)),
        _ => Some(FeedLine::Other { seq }),
    }
}

/// Returns a sequence as text, to send it back unchanged. CouchDB 3 writes strings; older versions,
/// PouchDB Server and some hosts write numbers or arrays. None for a string with half of a
/// surrogate pair.
fn opaque(seq: &RawValue) -> Option<Cow<'_, str>> {
    let text = seq.get();
    if text.starts_with('"') { json::parse_string(text) } else { Some(Cow::Borrowed(text)) }
}

/// Returns the revision of the first of the `changes` of a line.
fn winning_revision(changes: &RawValue) -> Option<Revision> {
    let changes: Vec<RawChange<'_>> = serde_json::from_str(changes.get()).ok()?;
    Revision::parse(&changes.first()?.rev)
}

/// Returns the change that the id `kind:name` of an event document stands for. The name may hold
/// further colons.
fn change_of_document<'a>(id: Cow<'a, str>, revision: Option<Revision>, seq: Option<Cow<'a, str>>) -> FeedLine<'a> {
    let Some(colon) = id.find(':') else { return FeedLine::Other { seq } };
    let kind = ChangeKind::parse(&id[..colon]);
    let name = match id {
        Cow::Borrowed(id) => Cow::Borrowed(&id[colon + 1..]),
        Cow::Owned(mut id) => Cow::Owned(id.split_off(colon + 1)),
    };
    change_of(name, kind, revision, seq)
}

fn change_of<'a>(
    database: Cow<'a, str>,
    kind: Option<ChangeKind>,
    revision: Option<Revision>,
    seq: Option<Cow<'a, str>>,
) -> FeedLine<'a> {
    match kind {
        // CouchDB updates `_dbs`, its list of databases, on every creation and deletion.
        Some(kind) if database != "_dbs" && !database.is_empty() => FeedLine::Change { database, kind, revision, seq },
        _ => FeedLine::Other { seq },
    }
}

/// Parses the `last_seq` of a response that is no stream.
pub fn parse_last_seq(body: &[u8]) -> Option<String> {
    let raw: RawLine<'_> = json::parse_object(body)?;
    opaque(raw.last_seq?).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change<'a>(database: &'a str, kind: ChangeKind, seq: &'a str) -> FeedLine<'a> {
        FeedLine::Change { database: database.into(), kind, revision: None, seq: Some(seq.into()) }
    }

    fn revised<'a>(database: &'a str, kind: ChangeKind, revision: &str, seq: &'a str) -> FeedLine<'a> {
        let revision = Revision::parse(revision);
        FeedLine::Change { database: database.into(), kind, revision, seq: Some(seq.into()) }
    }

    fn other(seq: &str) -> FeedLine<'_> {
        FeedLine::Other { seq: Some(seq.into()) }
    }

    #[test]
    fn parses_lines_of_both_feeds() {
        use ChangeKind::{Created, Deleted, Updated};
        for (line, expected) in [
            (
                r#"{"seq":"4-g1A","id":"created:t1","changes":[{"rev":"1-967a"}]}"#,
                revised("t1", Created, "1-967a", "4-g1A"),
            ),
            (r#"{"seq":"8-x","id":"updated:a/b","changes":[{"rev":"1-9"}]}"#, revised("a/b", Updated, "1-9", "8-x")),
            (
                r#"{"seq":"8-x","id":"deleted:plus+db:x","changes":[{"rev":"1-9"}]}"#,
                revised("plus+db:x", Deleted, "1-9", "8-x"),
            ),
            (
                r#"{"seq":"8-x","id":"updated:_users","changes":[{"rev":"1-9"}]}"#,
                revised("_users", Updated, "1-9", "8-x"),
            ),
            (r#"{"seq":"9-y","id":"updated:_dbs","changes":[{"rev":"1-9"}]}"#, other("9-y")),
            (r#"{"seq":"9-y","id":"_design/a:b","changes":[{"rev":"1-9"}]}"#, other("9-y")),
            (r#"{"seq":"9-y","id":"updated:","changes":[{"rev":"1-9"}]}"#, other("9-y")),
            (r#"{"seq":"9-y","id":"nothing","changes":[{"rev":"1-9"}]}"#, other("9-y")),
            (r#"{"seq":"9-y","id":"updated:a","changes":[{"rev":"2-9"}],"deleted":true}"#, other("9-y")),
            (
                r#"{"seq":"9-\u0079","id":"updated:gr\u00fcn","changes":[{"rev":"1-9"}]}"#,
                revised("grün", Updated, "1-9", "9-y"),
            ),
            (
                r#"{"id":"updated:a","seq":12,"changes":[{"rev":"1-9"},{"rev":"2-8"}]}"#,
                revised("a", Updated, "1-9", "12"),
            ),
            (r#"{"seq":"1","id":"updated:a","changes":[{"rev":"x"}]}"#, change("a", Updated, "1")),
            (r#"{"seq":[1,"x"],"id":"updated:a","changes":[]}"#, change("a", Updated, r#"[1,"x"]"#)),
            (
                r#"{"seq":null,"id":"updated:a","changes":[]}"#,
                FeedLine::Change { database: "a".into(), kind: Updated, revision: None, seq: None },
            ),
            (r#"{"seq":null,"id":"nothing","changes":[]}"#, FeedLine::Other { seq: None }),
            (r#"{"db_name":"t1","type":"created","seq":"4-g"}"#, change("t1", Created, "4-g")),
            (r#"{"db_name":"t1","type":"ddoc_updated","seq":"4-g"}"#, other("4-g")),
            (r#"{"db_name":"_dbs","type":"updated","seq":"4-g"}"#, other("4-g")),
            (r#"{"last_seq":"200-z","pending":0}"#, FeedLine::LastSeq { seq: "200-z".into() }),
            (r#"{"last_seq":"200-z"}"#, FeedLine::LastSeq { seq: "200-z".into() }),
            ("", FeedLine::Heartbeat),
            ("\r", FeedLine::Heartbeat),
        ] {
            assert_eq!(parse_feed_line(line.as_bytes()), Some(expected), "{line}");
        }
    }

    /// PouchDB Server writes sequences as numbers, and last.
    #[test]
    fn parses_numeric_sequences_of_pouchdb_server() {
        let line = br#"{"id":"updated:garden","changes":[{"rev":"1-a57534680eeb10ad905f2bfe73cfd97e"}],"seq":1}"#;
        let expected = revised("garden", ChangeKind::Updated, "1-a57534680eeb10ad905f2bfe73cfd97e", "1");
        assert_eq!(parse_feed_line(line), Some(expected));
        assert_eq!(parse_last_seq(b"{\"results\":[],\"last_seq\":0}\n").as_deref(), Some("0"));
    }

    #[test]
    fn rejects_every_prefix_of_a_line() {
        for line in [
            r#"{"seq":"4-g1A","id":"created:t1","changes":[{"rev":"1-967a"}]}"#,
            r#"{"db_name":"t1","type":"created","seq":"4-g"}"#,
        ] {
            for end in 1..line.len() {
                assert_eq!(parse_feed_line(&line.as_bytes()[..end]), None, "{}", &line[..end]);
            }
        }
        for broken in [
            &b"\xff"[..],
            b"[]",
            b"[\"4-g\",null,\"updated:a\",false,null,null]",
            b"{\"seq\":\"\xff\",\"id\":\"updated:a\",\"changes\":[{\"rev\":\"1\"}]}",
            b"{\"seq\":\"a\nb\",\"id\":\"updated:a\",\"changes\":[{\"rev\":\"1\"}]}",
        ] {
            assert_eq!(parse_feed_line(broken), None);
        }
    }

    #[test]
    fn fast_and_general_parsers_agree() {
        for line in [
            r#"{"seq":"4-g1A","id":"created:t1","changes":[{"rev":"1-967a"}]}"#,
            r#"{"seq":"4-g1A","id":"_design/x","changes":[{"rev":"1-967a"}]}"#,
            r#"{"seq":"","id":"updated:ü","changes":[{"rev":""}]}"#,
        ] {
            let quick = parse_common_line(line.as_bytes());
            assert!(quick.is_some(), "{line}");
            assert_eq!(quick, parse_general_line(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn parses_last_seq() {
        assert_eq!(parse_last_seq(br#"{"results":[],"last_seq":"9-a","pending":0}"#).as_deref(), Some("9-a"));
        assert_eq!(parse_last_seq(b"{}"), None);
        assert_eq!(parse_last_seq(br#"[null,"9-a",null,false,null,null]"#), None, "no object");
    }
}
