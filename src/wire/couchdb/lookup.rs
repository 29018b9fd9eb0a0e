//! Lookups: the request for the event documents of databases, and the response to it.

use std::borrow::Cow;

use serde::Deserialize;

use super::change_kind::ChangeKind;
use super::revision::Revision;
use crate::wire::json;

/// Most databases in one lookup. It is large, so that a client with many databases waits for one
/// lookup rather than several.
pub const MAX_NAMES: usize = 1_000;
/// Longest response to a lookup, in bytes: three rows for each database, with its name twice in
/// each.
pub const MAX_ANSWER: usize = 3 * MAX_NAMES * (2 * 256 + 256);

/// Returns the body of a request to `_all_docs` for the event documents of databases, in the order
/// of [`ChangeKind::ALL`].
pub fn write_keys<'a>(names: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut body = b"{\"keys\":[".to_vec();
    for (i, name) in names.enumerate() {
        for (j, kind) in ChangeKind::ALL.iter().enumerate() {
            if i + j > 0 {
                body.push(b',');
            }
            json::write_string(&mut body, &format!("{}:{name}", kind.text()));
        }
    }
    body.extend_from_slice(b"]}");
    body
}

#[derive(Deserialize)]
struct RawRows<'a> {
    #[serde(borrow)]
    rows: Vec<Option<RawRow<'a>>>,
}

#[derive(Deserialize)]
struct RawRow<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    value: Option<RawValue<'a>>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RawValue<'a> {
    #[serde(borrow)]
    rev: Cow<'a, str>,
}

/// Reads the revisions of each database off the response, in the order of [`ChangeKind::ALL`]. None
/// if the response does not match the request in full.
pub fn read_rows<'a>(body: &[u8], names: impl ExactSizeIterator<Item = &'a str>) -> Option<Vec<[Revision; 3]>> {
    let raw: RawRows<'_> = json::parse_object(body)?;
    let mut rows = raw.rows.into_iter();
    let mut read = Vec::with_capacity(names.len());
    for name in names {
        let mut revisions = [Revision::default(); 3];
        for kind in ChangeKind::ALL {
            let row = rows.next()??;
            let (prefix, rest) = row.key.split_once(':')?;
            if prefix != kind.text() || rest != name {
                return None;
            }
            revisions[kind.index()] = match (row.value, row.error.as_deref()) {
                (Some(value), None) => Revision::parse(&value.rev)?,
                (None, Some("not_found")) => Revision::default(),
                _ => return None,
            };
        }
        read.push(revisions);
    }
    rows.next().is_none().then_some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(text: &str) -> Revision {
        Revision::parse(text).expect("a revision")
    }

    #[test]
    fn requests_each_kind_of_each_database() {
        assert_eq!(
            write_keys(["a\"", "b/c"].into_iter()),
            br#"{"keys":["updated:a\"","created:a\"","deleted:a\"","updated:b/c","created:b/c","deleted:b/c"]}"#
        );
        assert_eq!(write_keys([].into_iter()), br#"{"keys":[]}"#);
    }

    const ROWS: &str = r#"{"total_rows":9,"offset":0,"rows":[
        {"id":"updated:a:b","key":"updated:a:b","value":{"rev":"7-abc"}},
        {"key":"created:a:b","error":"not_found"},
        {"id":"deleted:a:b","key":"deleted:a:b","value":{"rev":"2-def","deleted":true},"doc":null}]}"#;

    #[test]
    fn reads_whole_response_or_nothing() {
        let rows = read_rows(ROWS.as_bytes(), ["a:b"].into_iter()).expect("the answer");
        assert_eq!(rows, [[revision("7-abc"), Revision::default(), revision("2-def")]]);
        assert_eq!(read_rows(ROWS.as_bytes(), ["a"].into_iter()), None);
        assert_eq!(read_rows(ROWS.as_bytes(), ["a:b", "c"].into_iter()), None);
        assert_eq!(read_rows(ROWS.as_bytes(), [].into_iter()), None);
        for (from, to) in
            [("not_found", "oops"), ("7-abc", "x"), ("\"updated:a", "\"created:a"), ("{\"key", "null,{\"key")]
        {
            assert_eq!(read_rows(ROWS.replace(from, to).as_bytes(), ["a:b"].into_iter()), None, "{from}");
        }
        for end in 0..ROWS.len() {
            assert_eq!(read_rows(&ROWS.as_bytes()[..end], ["a:b"].into_iter()), None, "{end}");
        }
    }
}
