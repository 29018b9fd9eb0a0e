//! The JSON protocol `howler.v1`, with one object in each text message: parses requests of clients,
//! and writes replies and events.
//!
//! Messages are written by hand: `serde_json::to_writer` would need a type for each of them, to
//! write the same bytes.

use std::borrow::Cow;
use std::io::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::couchdb::{ChangeKind, Credentials};
use super::json::{self, Text, parse_string, write_string};
use super::name_list::NameList;
use super::positions::Position;
use super::security::Refusal;

/// Name of the subprotocol (RFC 6455 section 1.9).
pub const PROTOCOL: &str = "howler.v1";

/// Longest id of a request, in bytes.
pub const MAX_ID: usize = 128;
/// Longest epoch of a request, in bytes. This server writes shorter ones, so a longer epoch becomes
/// [`FOREIGN`].
pub const MAX_EPOCH: usize = 128;
/// Stands for an epoch that this server cannot have written. It equals no other epoch, so databases
/// count as changed.
pub const FOREIGN: &str = "";

/// A database that the client may not subscribe to, and the reason.
pub type Refused = (Box<str>, Refusal);

/// The id of a request as sent, a JSON number or string. The reply repeats it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RequestId(Option<Box<str>>);

/// An operation that a client requests.
#[derive(Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// `log-in`.
    LogIn(Credentials),
    /// `subscribe` to databases, each with the last known position, and the epoch of these
    /// positions.
    Subscribe(NameList, Option<Cow<'a, str>>),
    /// `unsubscribe` from databases.
    Unsubscribe(NameList),
    /// `heartbeat`.
    Heartbeat,
    /// `log-out`.
    LogOut,
}

/// The reason why a message is no request. The reply is a `TypeError`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The message is no JSON object with a string `op` and a number or string `id`.
    Shape,
    /// The `op` does not exist.
    Operation,
    /// `log-in` has none of `username` and `password`, `cookie`, or `token`, as strings.
    Credentials,
    /// `dbs` is neither an array of non-empty strings nor an object of positions.
    Databases,
}

impl RequestError {
    /// Returns what was expected, for the developer of the client.
    pub fn message(self) -> &'static str {
        match self {
            Self::Shape => "expected a JSON object with a string \"op\" and a number or short string \"id\"",
            Self::Operation => "\"op\" must be log-in, subscribe, unsubscribe, heartbeat or log-out",
            Self::Credentials => "log-in takes the strings \"username\" and \"password\", or \"cookie\", or \"token\"",
            Self::Databases => {
                "\"dbs\" must be an array of non-empty strings, or an object of positions (strings or null); \
                 \"epoch\" a string or null"
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
    token: Option<&'a RawValue>,
    #[serde(borrow)]
    dbs: Option<&'a RawValue>,
    #[serde(borrow)]
    epoch: Option<&'a RawValue>,
}

/// Parses a message. The id is returned even if the rest is malformed, for the reply.
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
        Some("subscribe") => subscription(&raw).ok_or(RequestError::Databases),
        Some("unsubscribe") => raw
            .dbs
            .and_then(|dbs| NameList::parse(dbs.get()))
            .map(Operation::Unsubscribe)
            .ok_or(RequestError::Databases),
        Some("heartbeat") => Ok(Operation::Heartbeat),
        Some("log-out") => Ok(Operation::LogOut),
        Some(_) => Err(RequestError::Operation),
    };
    (id, operation)
}

fn credentials<'a>(raw: &RawRequest<'a>) -> Option<Credentials> {
    let string = |value: Option<&'a RawValue>| value.and_then(|json| parse_string(json.get()));
    if raw.cookie.is_some_and(|cookie| cookie.get() != "null") {
        return string(raw.cookie).map(|cookie| Credentials::cookie(&cookie));
    }
    if raw.token.is_some_and(|token| token.get() != "null") {
        return string(raw.token).map(|token| Credentials::token(&token));
    }
    Some(Credentials::password(string(raw.username)?, string(raw.password)?))
}

fn subscription<'a>(raw: &RawRequest<'a>) -> Option<Operation<'a>> {
    let epoch = match raw.epoch.map(RawValue::get) {
        None | Some("null") => None,
        Some(text) => Some(bounded(parse_string(text)?)),
    };
    Some(Operation::Subscribe(NameList::parse_with_positions(raw.dbs?.get())?, epoch))
}

/// Returns an epoch as it may be kept: one that is too long becomes [`FOREIGN`].
fn bounded(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.len() > MAX_EPOCH { Cow::Borrowed(FOREIGN) } else { text }
}

/// Appends the `hello` event, with the epoch of positions if it is known. It is the first message
/// of a connection, and is repeated when the epoch changes.
pub fn write_hello(out: &mut Vec<u8>, epoch: Option<&str>) {
    out.extend_from_slice(
        concat!("{\"event\":\"hello\",\"server\":\"couchdb-howler/", env!("CARGO_PKG_VERSION"), "\"").as_bytes(),
    );
    if let Some(epoch) = epoch {
        write_member(out, "epoch", epoch);
    }
    out.push(b'}');
}

/// Appends the `resync` event: any subscribed database may have changed.
pub fn write_resync(out: &mut Vec<u8>, reason: &str) {
    out.extend_from_slice(b"{\"event\":\"resync\",\"reason\":");
    write_string(out, reason);
    out.push(b'}');
}

/// Appends the reply to `unsubscribe`, `heartbeat` and `log-out`.
pub fn write_ok(out: &mut Vec<u8>, id: &RequestId) {
    open_reply(out, id);
    out.extend_from_slice(b"\"ok\":true}");
}

/// Appends the reply to `log-in`, with CouchDB's `Set-Cookie` value unless it was a token.
pub fn write_logged_in(out: &mut Vec<u8>, id: &RequestId, username: &str, cookie: Option<&str>) {
    open_reply(out, id);
    out.extend_from_slice(b"\"ok\":true,\"username\":");
    write_string(out, username);
    if let Some(cookie) = cookie {
        write_member(out, "cookie", cookie);
    }
    out.push(b'}');
}

/// Appends the `session` event, with the cookie for later logins.
pub fn write_session(out: &mut Vec<u8>, cookie: &str) {
    out.extend_from_slice(b"{\"event\":\"session\",\"cookie\":");
    write_string(out, cookie);
    out.push(b'}');
}

/// Appends the `unsubscribed` event: the user may no longer read the database.
pub fn write_unsubscribed(out: &mut Vec<u8>, database: &str, why: Refusal) {
    out.extend_from_slice(b"{\"event\":\"unsubscribed\",\"db\":");
    write_string(out, database);
    let _ = write!(out, ",\"error\":\"ForbiddenError\",\"message\":\"{}\"}}", why.message());
}

/// Appends the `not-authenticated` event: the session is no longer valid.
pub fn write_not_authenticated(out: &mut Vec<u8>, name: &str, message: &str) {
    out.extend_from_slice(b"{\"event\":\"not-authenticated\",\"error\":");
    write_string(out, name);
    write_member(out, "message", message);
    out.push(b'}');
}

/// Appends the reply to `subscribe`.
///
/// `positions` holds a position or null for each database; None leaves the member out, as for feeds
/// without positions. `changed` lists the databases that may have changed since the position that
/// the client gave. `epoch` is present if it was unknown at the time of `hello`.
pub fn write_subscribed(
    out: &mut Vec<u8>,
    id: &RequestId,
    positions: Option<&[(&str, Option<Position>)]>,
    changed: &[&str],
    epoch: Option<&str>,
    refused: &[Refused],
) {
    open_reply(out, id);
    out.extend_from_slice(b"\"ok\":true,");
    write_refused(out, refused);
    if let Some(epoch) = epoch {
        out.extend_from_slice(b"\"epoch\":");
        write_string(out, epoch);
        out.push(b',');
    }
    if let Some(positions) = positions {
        out.extend_from_slice(b"\"dbs\":{");
        for (i, (name, position)) in positions.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write_string(out, name);
            out.push(b':');
            match position {
                Some(position) => write_position(out, *position),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.extend_from_slice(b"},");
    }
    out.extend_from_slice(b"\"changed\":[");
    for (i, name) in changed.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(out, name);
    }
    out.extend_from_slice(b"]}");
}

/// Appends a reply with an error, and with `retry_after_ms` if a later attempt may succeed.
pub fn write_error(out: &mut Vec<u8>, id: &RequestId, name: &str, message: &str, retry_after_ms: Option<u64>) {
    open_reply(out, id);
    out.extend_from_slice(b"\"error\":");
    write_string(out, name);
    write_member(out, "message", message);
    if let Some(milliseconds) = retry_after_ms {
        let _ = write!(out, ",\"retry_after_ms\":{milliseconds}");
    }
    out.push(b'}');
}

/// Appends the `change` event, with the position of the database if it is known.
pub fn write_change(out: &mut Vec<u8>, database: &str, kind: ChangeKind, position: Option<Position>) {
    out.extend_from_slice(b"{\"event\":\"change\",\"db\":");
    write_string(out, database);
    out.extend_from_slice(match kind {
        ChangeKind::Created => b",\"kind\":\"created\"",
        ChangeKind::Updated => b",\"kind\":\"updated\"",
        ChangeKind::Deleted => b",\"kind\":\"deleted\"",
    });
    if let Some(position) = position {
        out.extend_from_slice(b",\"position\":");
        write_position(out, position);
    }
    out.push(b'}');
}

/// Appends the reply to `subscribe` if the user may read none of the databases.
pub fn write_forbidden(out: &mut Vec<u8>, id: &RequestId, refused: &[Refused]) {
    open_reply(out, id);
    write_refused(out, refused);
    let message = refused.first().map_or(Refusal::NotReader, |(_, why)| *why).message();
    let _ = write!(out, "\"error\":\"ForbiddenError\",\"message\":\"{message}\"}}");
}

/// Appends the databases that the user may not read, each with the reason.
fn write_refused(out: &mut Vec<u8>, refused: &[Refused]) {
    for (i, (name, why)) in refused.iter().enumerate() {
        out.extend_from_slice(if i == 0 { b"\"errors\":{" } else { b"," });
        write_string(out, name);
        let _ = write!(out, ":{{\"error\":\"ForbiddenError\",\"message\":\"{}\"}}", why.message());
    }
    if !refused.is_empty() {
        out.extend_from_slice(b"},");
    }
}

fn write_position(out: &mut Vec<u8>, position: Position) {
    let _ = write!(out, "\"{position}\"");
}

/// Appends the `goodbye` event of a shutdown: the client reconnects after this time, in
/// milliseconds.
pub fn write_goodbye(out: &mut Vec<u8>, retry_after_ms: u64) {
    let _ = write!(out, "{{\"event\":\"goodbye\",\"reason\":\"shutting-down\",\"retry_after_ms\":{retry_after_ms}}}");
}

/// Appends the `goodbye` event of an expired session: the client logs in again after this time, in
/// milliseconds.
pub fn write_expired(out: &mut Vec<u8>, retry_after_ms: u64) {
    let _ = write!(out, "{{\"event\":\"goodbye\",\"reason\":\"session-expired\",\"retry_after_ms\":{retry_after_ms}}}");
}

/// Appends a further member of an object, with a text.
fn write_member(out: &mut Vec<u8>, key: &str, text: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
    write_string(out, text);
}

fn open_reply(out: &mut Vec<u8>, id: &RequestId) {
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
    use crate::wire::secret::Secret;

    fn request(text: &str) -> (Option<String>, Result<Operation<'_>, RequestError>) {
        let (id, operation) = parse_request(text);
        (id.0.map(String::from), operation)
    }

    fn list(names: &[(&str, Option<&str>)]) -> NameList {
        names.iter().copied().collect()
    }

    #[test]
    fn parses_every_operation() {
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
            (None, Ok(Operation::Subscribe(list(&[("a", None)]), None)))
        );
        assert_eq!(
            request(r#"{"op":"subscribe","dbs":{"a":"29.1.0","b":null},"epoch":"17"}"#).1,
            Ok(Operation::Subscribe(list(&[("a", Some("29.1.0")), ("b", None)]), Some("17".into())))
        );
        let long = |length| "1".repeat(length);
        let subscribe = |length| format!(r#"{{"op":"subscribe","dbs":{{"a":"{0}"}},"epoch":"{0}"}}"#, long(length));
        for (length, kept) in [(MAX_EPOCH, &*long(MAX_EPOCH)), (MAX_EPOCH + 1, FOREIGN)] {
            let expected = Operation::Subscribe(list(&[("a", Some(kept))]), Some(kept.into()));
            assert_eq!(request(&subscribe(length)).1, Ok(expected));
        }
        assert_eq!(
            request(r#"{"op":"unsubscribe","dbs":["a","b"]}"#).1,
            Ok(Operation::Unsubscribe(list(&[("a", None), ("b", None)])))
        );
        assert_eq!(request(r#" {"id":-1.5e3,"op":"heartbeat","more":[1]} "#), (id("-1.5e3"), Ok(Operation::Heartbeat)));
        assert_eq!(request(r#"{"op":"log-out"}"#).1, Ok(Operation::LogOut));
    }

    #[test]
    fn explains_invalid_requests() {
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
            (r#"{"op":"subscribe","dbs":["a"],"epoch":17}"#, RequestError::Databases),
            (r#"{"op":"unsubscribe","dbs":{"a":null}}"#, RequestError::Databases),
        ] {
            assert_eq!(parse_request(text).1, Err(error), "{text}");
        }
        assert_eq!(request(r#"{"id":7,"op":"dance"}"#).0.as_deref(), Some("7"), "the id comes back with the error");
    }

    #[test]
    fn rejects_every_prefix() {
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
        assert!(written(&|o| write_hello(o, None)).starts_with(r#"{"event":"hello","server":"couchdb-howler/"#));
        assert!(written(&|o| write_hello(o, Some("17"))).ends_with(r#","epoch":"17"}"#));
        assert_eq!(written(&|o| write_resync(o, "why")), r#"{"event":"resync","reason":"why"}"#);
        let position = Position { counts: [32, 1, 0], ..Position::default() };
        assert_eq!(written(&|o| write_ok(o, &id)), r#"{"id":3,"ok":true}"#);
        assert_eq!(written(&|o| write_ok(o, &RequestId(None))), r#"{"ok":true}"#);
        assert_eq!(
            written(&|o| write_logged_in(o, &id, "u", Some("c"))),
            r#"{"id":3,"ok":true,"username":"u","cookie":"c"}"#
        );
        assert_eq!(
            written(&|o| write_subscribed(o, &id, None, &["a", "b"], None, &[])),
            r#"{"id":3,"ok":true,"changed":["a","b"]}"#
        );
        assert_eq!(
            written(&|o| write_subscribed(
                o,
                &id,
                Some(&[("a", Some(position)), ("b", None)]),
                &["b"],
                Some("17"),
                &[]
            )),
            r#"{"id":3,"ok":true,"epoch":"17","dbs":{"a":"32.1.0","b":null},"changed":["b"]}"#
        );
        let refused = ["x\"", "y"].map(|name| (name.into(), Refusal::NotReader));
        let errors = r#""errors":{"x\"":{"error":"ForbiddenError","message":"you may not read this database"},"y":{"error":"ForbiddenError","message":"you may not read this database"}}"#;
        assert_eq!(
            written(&|o| write_subscribed(o, &id, None, &[], None, &refused)),
            format!(r#"{{"id":3,"ok":true,{errors},"changed":[]}}"#)
        );
        assert_eq!(
            written(&|o| write_forbidden(o, &id, &refused)),
            format!(r#"{{"id":3,{errors},"error":"ForbiddenError","message":"you may not read this database"}}"#)
        );
        assert_eq!(
            written(&|o| write_unsubscribed(o, "x", Refusal::NotReader)),
            r#"{"event":"unsubscribed","db":"x","error":"ForbiddenError","message":"you may not read this database"}"#
        );
        assert_eq!(written(&|o| write_session(o, "c")), r#"{"event":"session","cookie":"c"}"#);
        assert_eq!(written(&|o| write_logged_in(o, &id, "u", None)), r#"{"id":3,"ok":true,"username":"u"}"#);
        assert_eq!(
            written(&|o| write_error(o, &id, "TypeError", "x", None)),
            r#"{"id":3,"error":"TypeError","message":"x"}"#
        );
        assert_eq!(
            written(&|o| write_error(o, &id, "LimitError", "x", Some(70))),
            r#"{"id":3,"error":"LimitError","message":"x","retry_after_ms":70}"#
        );
        assert_eq!(
            written(&|o| write_change(o, "a/b", ChangeKind::Deleted, None)),
            r#"{"event":"change","db":"a/b","kind":"deleted"}"#
        );
        assert_eq!(
            written(&|o| write_change(o, "a", ChangeKind::Updated, Some(position))),
            r#"{"event":"change","db":"a","kind":"updated","position":"32.1.0"}"#
        );
        assert_eq!(
            written(&|o| write_goodbye(o, 5)),
            r#"{"event":"goodbye","reason":"shutting-down","retry_after_ms":5}"#
        );
        assert_eq!(
            written(&|o| write_expired(o, 7)),
            r#"{"event":"goodbye","reason":"session-expired","retry_after_ms":7}"#
        );
    }
}
