//! The JSON protocol `howler.v1`: one object a text message, read into what the client wants and
//! written for each thing that the server says.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::couchdb::{ChangeKind, Credentials};
use super::json::{self, Text, parse_string, write_string};
use super::secret::Secret;

/// The name of the sub-protocol (RFC 6455 section 1.9).
pub const PROTOCOL: &str = "howler.v1";

/// Longest id of a request, in bytes.
pub const MAX_ID: usize = 128;

/// The id of a request as it came, a JSON number or string: it goes back in the answer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RequestId(Option<Box<str>>);

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// `log-in`.
    LogIn(Credentials),
    /// `subscribe` to databases, each with the last position known.
    Subscribe(Positions<'a>),
    /// `unsubscribe` from databases.
    Unsubscribe(Vec<Cow<'a, str>>),
    /// `heartbeat`.
    Heartbeat,
    /// `log-out`.
    LogOut,
}

/// Names of databases, each with the last position that the client knows.
pub type Positions<'a> = Vec<(Cow<'a, str>, Option<Cow<'a, str>>)>;

/// Why a message is no request. Each is answered with a `TypeError`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// Not a JSON object with a string `op` and a number or string as `id`.
    Shape,
    /// An `op` that is none.
    Operation,
    /// `log-in` without `username` and `password`, or `cookie`, as strings.
    Credentials,
    /// `dbs` is neither an array of non-empty strings nor an object of positions.
    Databases,
}

impl RequestError {
    /// What was expected, for the client's developer.
    pub fn message(self) -> &'static str {
        match self {
            Self::Shape => "expected a JSON object with a string \"op\" and a number or short string \"id\"",
            Self::Operation => "\"op\" must be log-in, subscribe, unsubscribe, heartbeat or log-out",
            Self::Credentials => "log-in takes the strings \"username\" and \"password\", or \"cookie\"",
            Self::Databases => {
                "\"dbs\" must be an array of non-empty strings, or an object of positions (strings or null)"
            }
        }
    }
}

#[derive(Deserialize)]
struct RawRequest<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    op: Option<Text<'a>>,
    #[serde(borrow)]
    username: Option<&'a RawValue>,
    #[serde(borrow)]
    password: Option<&'a RawValue>,
    #[serde(borrow)]
    cookie: Option<&'a RawValue>,
    #[serde(borrow)]
    dbs: Option<&'a RawValue>,
}

/// Reads a message. The id is there for the answer also where the rest is wrong.
pub fn parse_request(text: &str) -> (RequestId, Result<Operation<'_>, RequestError>) {
    let Some(raw) = json::parse_object::<RawRequest<'_>>(text.as_bytes()) else {
        return (RequestId(None), Err(RequestError::Shape));
    };
    let id = match raw.id.map(RawValue::get) {
        None => RequestId(None),
        Some(id) if id.len() <= MAX_ID && id.starts_with(|c: char| c == '"' || c == '-' || c.is_ascii_digit()) => {
            RequestId(Some(id.into()))
        }
        Some(_) => return (RequestId(None), Err(RequestError::Shape)),
    };
    let operation = match raw.op.as_ref().map(|op| &*op.0) {
        None => Err(RequestError::Shape),
        Some("log-in") => credentials(&raw).map(Operation::LogIn).ok_or(RequestError::Credentials),
        Some("subscribe") => raw.dbs.and_then(positions).map(Operation::Subscribe).ok_or(RequestError::Databases),
        Some("unsubscribe") => raw
            .dbs
            .and_then(|dbs| json::parse_names(dbs.get()))
            .map(Operation::Unsubscribe)
            .ok_or(RequestError::Databases),
        Some("heartbeat") => Ok(Operation::Heartbeat),
        Some("log-out") => Ok(Operation::LogOut),
        Some(_) => Err(RequestError::Operation),
    };
    (id, operation)
}

fn credentials(raw: &RawRequest<'_>) -> Option<Credentials> {
    let string = |value: Option<&RawValue>| value.and_then(|json| parse_string(json.get()).map(Cow::into_owned));
    if raw.cookie.is_some_and(|cookie| cookie.get() != "null") {
        return string(raw.cookie).map(|cookie| Credentials::cookie(&cookie));
    }
    let username = string(raw.username)?.into();
    Some(Credentials::Password { username, password: Secret::new(string(raw.password)?) })
}

/// `dbs` of `subscribe`: names, or names with positions.
fn positions(dbs: &RawValue) -> Option<Positions<'_>> {
    if !dbs.get().starts_with('{') {
        return Some(json::parse_names(dbs.get())?.into_iter().map(|name| (name, None)).collect());
    }
    let map: BTreeMap<String, Option<Text<'_>>> = serde_json::from_str(dbs.get()).ok()?;
    if map.keys().any(String::is_empty) {
        return None;
    }
    Some(map.into_iter().map(|(name, position)| (Cow::Owned(name), position.map(|text| text.0))).collect())
}

/// Appends the first message of a connection.
pub fn write_hello(out: &mut Vec<u8>) {
    out.extend_from_slice(
        concat!("{\"event\":\"hello\",\"server\":\"couchdb-howler/", env!("CARGO_PKG_VERSION"), "\"}").as_bytes(),
    );
}

/// Appends the answer to `unsubscribe`, `heartbeat` and `log-out`.
pub fn write_ok(out: &mut Vec<u8>, id: &RequestId) {
    open_answer(out, id);
    out.extend_from_slice(b"\"ok\":true}");
}

/// Appends the answer to `log-in`, with CouchDB's `Set-Cookie` value.
pub fn write_logged_in(out: &mut Vec<u8>, id: &RequestId, username: &str, cookie: &str) {
    open_answer(out, id);
    out.extend_from_slice(b"\"ok\":true,\"username\":");
    write_string(out, username);
    out.extend_from_slice(b",\"cookie\":");
    write_string(out, cookie);
    out.push(b'}');
}

/// Appends the answer to `subscribe`: `changed` are those of the named databases that may have changed
/// since the position that the client gave.
pub fn write_subscribed(out: &mut Vec<u8>, id: &RequestId, changed: &[&str]) {
    open_answer(out, id);
    out.extend_from_slice(b"\"ok\":true,\"changed\":[");
    for (i, name) in changed.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(out, name);
    }
    out.extend_from_slice(b"]}");
}

/// Appends an answer that says no.
pub fn write_error(out: &mut Vec<u8>, id: &RequestId, name: &str, message: &str) {
    open_answer(out, id);
    out.extend_from_slice(b"\"error\":");
    write_string(out, name);
    out.extend_from_slice(b",\"message\":");
    write_string(out, message);
    out.push(b'}');
}

/// Appends the `change` event.
pub fn write_change(out: &mut Vec<u8>, database: &str, kind: ChangeKind) {
    out.extend_from_slice(b"{\"event\":\"change\",\"db\":");
    write_string(out, database);
    out.extend_from_slice(match kind {
        ChangeKind::Created => b",\"kind\":\"created\"}",
        ChangeKind::Updated => b",\"kind\":\"updated\"}",
        ChangeKind::Deleted => b",\"kind\":\"deleted\"}",
    });
}

/// Appends the `goodbye` event: the server stops, come back after so many milliseconds.
pub fn write_goodbye(out: &mut Vec<u8>, retry_after_ms: u64) {
    use std::io::Write as _;
    let _ = write!(out, "{{\"event\":\"goodbye\",\"reason\":\"shutting-down\",\"retry_after_ms\":{retry_after_ms}}}");
}

fn open_answer(out: &mut Vec<u8>, id: &RequestId) {
    out.push(b'{');
    if let Some(id) = &id.0 {
        out.extend_from_slice(b"\"id\":");
        out.extend_from_slice(id.as_bytes());
        out.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> (Option<String>, Result<Operation<'_>, RequestError>) {
        let (id, operation) = parse_request(text);
        (id.0.map(String::from), operation)
    }

    #[test]
    fn reads_every_operation() {
        let id = |text: &str| Some(text.to_owned());
        let password = Credentials::Password { username: "u".into(), password: Secret::new("p") };
        assert_eq!(
            request(r#"{"id":1,"op":"log-in","username":"u","password":"p"}"#),
            (id("1"), Ok(Operation::LogIn(password)))
        );
        let cookie = Credentials::Cookie(Secret::new("x"));
        assert_eq!(
            request(r#"{"id":"a","op":"log-in","cookie":"AuthSession=x; Path=/"}"#),
            (id("\"a\""), Ok(Operation::LogIn(cookie)))
        );
        assert_eq!(
            request(r#"{"op":"subscribe","dbs":["a"]}"#),
            (None, Ok(Operation::Subscribe(vec![("a".into(), None)])))
        );
        assert_eq!(
            request(r#"{"op":"subscribe","dbs":{"a":"29.1.0","b":null}}"#).1,
            Ok(Operation::Subscribe(vec![("a".into(), Some("29.1.0".into())), ("b".into(), None)]))
        );
        assert_eq!(
            request(r#"{"op":"unsubscribe","dbs":["a","b"]}"#).1,
            Ok(Operation::Unsubscribe(vec!["a".into(), "b".into()]))
        );
        assert_eq!(request(r#" {"id":-1.5e3,"op":"heartbeat","more":[1]} "#), (id("-1.5e3"), Ok(Operation::Heartbeat)));
        assert_eq!(request(r#"{"op":"log-out"}"#).1, Ok(Operation::LogOut));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, error) in [
            ("", RequestError::Shape),
            ("[]", RequestError::Shape),
            (r#"[1,"heartbeat",null,null,null,null]"#, RequestError::Shape),
            ("{}", RequestError::Shape),
            (r#"{"op":1}"#, RequestError::Shape),
            (r#"{"op":"heartbeat","id":{}}"#, RequestError::Shape),
            (r#"{"op":"heartbeat","id":true}"#, RequestError::Shape),
            (r#"{"op":"dance"}"#, RequestError::Operation),
            (r#"{"op":"log-in"}"#, RequestError::Credentials),
            (r#"{"op":"log-in","username":1,"password":"x"}"#, RequestError::Credentials),
            (r#"{"op":"log-in","username":"x"}"#, RequestError::Credentials),
            (r#"{"op":"log-in","cookie":5}"#, RequestError::Credentials),
            (r#"{"op":"subscribe"}"#, RequestError::Databases),
            (r#"{"op":"subscribe","dbs":[1]}"#, RequestError::Databases),
            (r#"{"op":"subscribe","dbs":[""]}"#, RequestError::Databases),
            (r#"{"op":"subscribe","dbs":{"":null}}"#, RequestError::Databases),
            (r#"{"op":"subscribe","dbs":{"a":1}}"#, RequestError::Databases),
            (r#"{"op":"unsubscribe","dbs":{"a":null}}"#, RequestError::Databases),
        ] {
            assert_eq!(parse_request(text).1, Err(error), "{text}");
        }
        assert_eq!(request(r#"{"id":7,"op":"dance"}"#).0.as_deref(), Some("7"), "the id comes back with the error");
    }

    #[test]
    fn every_prefix_is_an_error() {
        let text = r#"{"id":1,"op":"subscribe","dbs":{"a":"1.0.0"}}"#;
        for end in 0..text.len() {
            assert_eq!(parse_request(&text[..end]).1, Err(RequestError::Shape), "{end}");
        }
    }

    #[test]
    fn writes_every_message() {
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).unwrap()
        };
        let id = RequestId(Some("3".into()));
        assert!(written(&|o| write_hello(o)).starts_with(r#"{"event":"hello","server":"couchdb-howler/1"#));
        assert_eq!(written(&|o| write_ok(o, &id)), r#"{"id":3,"ok":true}"#);
        assert_eq!(written(&|o| write_ok(o, &RequestId(None))), r#"{"ok":true}"#);
        assert_eq!(
            written(&|o| write_logged_in(o, &id, "u", "c")),
            r#"{"id":3,"ok":true,"username":"u","cookie":"c"}"#
        );
        assert_eq!(written(&|o| write_subscribed(o, &id, &["a", "b"])), r#"{"id":3,"ok":true,"changed":["a","b"]}"#);
        assert_eq!(
            written(&|o| write_error(o, &id, "TypeError", "x")),
            r#"{"id":3,"error":"TypeError","message":"x"}"#
        );
        assert_eq!(
            written(&|o| write_change(o, "a/b", ChangeKind::Deleted)),
            r#"{"event":"change","db":"a/b","kind":"deleted"}"#
        );
        assert_eq!(
            written(&|o| write_goodbye(o, 5)),
            r#"{"event":"goodbye","reason":"shutting-down","retry_after_ms":5}"#
        );
    }
}
