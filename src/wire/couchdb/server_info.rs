//! CouchDB's responses about itself: its version, its configuration, and the epoch of
//! `_global_changes`.

use std::borrow::Cow;

use serde::Deserialize;

use crate::wire::json;

#[derive(Deserialize)]
struct WelcomeBody<'a> {
    #[serde(borrow)]
    couchdb: Option<Cow<'a, str>>,
    #[serde(borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
}

/// The server that responds to [`Requests::welcome`](super::Requests::welcome).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// CouchDB of this version.
    CouchDb(Box<str>),
    /// Most likely CouchDB, with an error such as `unauthorized`.
    Error(Box<str>),
    /// Another server.
    Other,
}

/// Reads the response to [`Requests::welcome`](super::Requests::welcome).
pub fn read_welcome(body: &[u8]) -> Welcome {
    match json::parse_object::<WelcomeBody<'_>>(body) {
        Some(WelcomeBody { couchdb: Some(_), version, .. }) => {
            // The version is printed, so keep a few harmless characters of it.
            let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
            let version: String = version.unwrap_or_default().chars().filter(fits).take(32).collect();
            Welcome::CouchDb(version.into())
        }
        Some(WelcomeBody { error: Some(error), .. }) => Welcome::Error(error.into()),
        _ => Welcome::Other,
    }
}

/// Section of CouchDB's configuration about its changes feeds.
pub const GLOBAL_CHANGES_SECTION: &str = "global_changes";
/// Whether CouchDB records changes at all; `true` by default.
pub const UPDATE_DB: &str = "update_db";
/// Longest delay before CouchDB records a change, in milliseconds.
pub const MAX_WRITE_DELAY: &str = "max_write_delay";

/// Reads the value off a response of status 200 to [`Requests::config`](super::Requests::config).
pub fn read_config(body: &[u8]) -> Option<String> {
    serde_json::from_slice(body).ok()
}

#[derive(Deserialize)]
struct RawInfo<'a> {
    #[serde(borrow)]
    db_name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    instance_start_time: Option<Cow<'a, str>>,
}

/// Longest epoch, in bytes.
const MAX_EPOCH: usize = 64;

/// Reads the epoch off the response to `GET /_global_changes`. `Some(None)` if that database has
/// none, so that positions mean nothing; None if the response is of another kind.
pub fn read_epoch(body: &[u8]) -> Option<Option<Box<str>>> {
    let raw: RawInfo<'_> = json::parse_object(body)?;
    raw.db_name?;
    Some(raw.instance_start_time.filter(|epoch| !epoch.is_empty() && epoch.len() <= MAX_EPOCH).map(Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognizes_couchdb_by_its_welcome() {
        let welcome = |body: &str| read_welcome(body.as_bytes());
        assert_eq!(
            welcome(r#"{"couchdb":"Welcome","version":"3.5.0","git_sha":"1"}"#),
            Welcome::CouchDb("3.5.0".into())
        );
        assert_eq!(welcome(r#"{"couchdb":"Welcome"}"#), Welcome::CouchDb("".into()));
        let hostile = format!(r#"{{"couchdb":"Welcome","version":"\u001b[31m 1.0 {}"}}"#, "x".repeat(99));
        assert_eq!(welcome(&hostile), Welcome::CouchDb(format!("31m1.0{}", "x".repeat(26)).into()));
        assert_eq!(welcome(r#"{"error":"unauthorized","reason":"no"}"#), Welcome::Error("unauthorized".into()));
        for body in ["", "ok", "[]", "{}", "<html>", r#"{"couchdb":1}"#, r#"{"version":"1"}"#] {
            assert_eq!(welcome(body), Welcome::Other, "{body}");
        }
    }

    #[test]
    fn reads_configuration() {
        assert_eq!(read_config(b"\"500\"\n").as_deref(), Some("500"));
        assert_eq!(read_config(b"{\"error\":\"not_found\"}"), None);
    }

    #[test]
    fn epoch_is_the_creation_of_the_database() {
        let info =
            |time: &str| format!(r#"{{"db_name":"_global_changes","instance_start_time":{time},"doc_count":3}}"#);
        assert_eq!(read_epoch(info("\"1795459624\"").as_bytes()), Some(Some("1795459624".into())));
        assert_eq!(read_epoch(info("\"\"").as_bytes()), Some(None));
        assert_eq!(read_epoch(info("null").as_bytes()), Some(None));
        assert_eq!(read_epoch(br#"{"db_name":"_global_changes"}"#), Some(None));
        assert_eq!(read_epoch(br#"{"instance_start_time":"1"}"#), None);
        assert_eq!(read_epoch(b"{}"), None);
        assert_eq!(read_epoch(b"<html>"), None);
    }
}
