//! Socket.IO packets (protocol versions 4 and 5, which differ in CONNECT only): the text behind the
//! `4` of an Engine.IO message, and the events of this server.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::couchdb::Credentials;
use super::engine_io::{CredentialFields, Sid, Version};
use super::json::{parse_string, write_string};
use super::name_list::NameList;

/// The kind of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind {
    /// `0`: opens a namespace.
    Connect,
    /// `1`: leaves a namespace.
    Disconnect,
    /// `2`: an event with arguments.
    Event,
    /// `3`: acknowledges an event with an id.
    Ack,
    /// `4`: rejects a namespace.
    Error,
}

/// A packet: `<kind>[/namespace,][id][data]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Kind of the packet.
    pub kind: PacketKind,
    /// Namespace without a query; `/` if none is named.
    pub namespace: &'a str,
    /// Id of an acknowledgement, requested or given.
    pub id: Option<u64>,
    /// JSON, or empty.
    pub data: &'a str,
}

/// Parses a packet. None if it is malformed. Binary packets (`5`, `6`) count as malformed, since no
/// client of this server needs them.
pub fn parse_packet(text: &str) -> Option<Packet<'_>> {
    let kind = match text.as_bytes().first()? {
        b'0' => PacketKind::Connect,
        b'1' => PacketKind::Disconnect,
        b'2' => PacketKind::Event,
        b'3' => PacketKind::Ack,
        b'4' => PacketKind::Error,
        _ => return None,
    };
    let mut rest = &text[1..];
    let mut namespace = "/";
    if rest.starts_with('/') {
        (namespace, rest) = rest.split_once(',').unwrap_or((rest, ""));
        namespace = namespace.split_once('?').map_or(namespace, |(path, _)| path);
    }
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let id = if digits == 0 { None } else { Some(rest[..digits].parse().ok()?) };
    Some(Packet { kind, namespace, id, data: &rest[digits..] })
}

/// An event that a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `subscribe` to databases; None if the argument is no list of names.
    Subscribe(Option<NameList>),
    /// `unsubscribe` from databases; None if the argument is no list of names.
    Unsubscribe(Option<NameList>),
    /// `heartbeat`: checks whether the session is alive.
    Heartbeat,
    /// `log-out`.
    LogOut,
    /// An unknown event.
    Unknown,
}

/// Parses the data of an event packet: a JSON array that begins with the name of the event. None if
/// it is malformed.
pub fn parse_event(data: &str) -> Option<Event> {
    let Arguments(event, argument) = serde_json::from_str(data).ok()?;
    let name: Cow<'_, str> = parse_string(event.get())?;
    let names = || argument.and_then(|argument| NameList::parse(argument.get()));
    Some(match &*name {
        "subscribe" => Event::Subscribe(names()),
        "unsubscribe" => Event::Unsubscribe(names()),
        "heartbeat" => Event::Heartbeat,
        "log-out" => Event::LogOut,
        _ => Event::Unknown,
    })
}

/// The name of an event and its first argument. A client may send very many, so the others are
/// skipped.
struct Arguments<'a>(&'a RawValue, Option<&'a RawValue>);

impl<'de> Deserialize<'de> for Arguments<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ArgumentsVisitor)
    }
}

struct ArgumentsVisitor;

impl<'de> Visitor<'de> for ArgumentsVisitor {
    type Value = Arguments<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an event and its arguments")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Arguments<'de>, A::Error> {
        let event = parts.next_element()?.ok_or_else(|| A::Error::custom("an event without a name"))?;
        let argument = parts.next_element()?;
        while parts.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Arguments(event, argument))
    }
}

/// Appends the message that opens the root namespace, with an id in version 5 of the protocol.
pub fn write_connect(out: &mut Vec<u8>, id: Option<Sid>) {
    out.extend_from_slice(b"40");
    if let Some(id) = id {
        let _ = write!(out, "{{\"sid\":\"{id}\"}}");
    }
}

/// Parses the auth object of CONNECT (version 5 of the protocol). None if it holds no credentials.
pub fn parse_auth(data: &str) -> Option<Credentials> {
    super::json::parse_object::<CredentialFields<'_>>(data.as_bytes())?.read()
}

/// Message that ends the session.
pub const DISCONNECT: &[u8] = b"41";

/// Appends an acknowledgement without an error: `{}`, or `{"ok":true}`.
pub fn write_ack(out: &mut Vec<u8>, id: u64, json: &str) {
    let _ = write!(out, "43{id}[{json}]");
}

/// Appends an acknowledgement with an error.
pub fn write_error_ack(out: &mut Vec<u8>, id: u64, name: &str, message: &str) {
    let _ = write!(out, "43{id}[");
    write_error(out, name, message);
    out.push(b']');
}

/// Appends the `authenticated` event with CouchDB's `Set-Cookie` value.
pub fn write_authenticated(out: &mut Vec<u8>, cookie: Option<&str>) {
    let Some(cookie) = cookie else { return out.extend_from_slice(br#"42["authenticated",{}]"#) };
    out.extend_from_slice(br#"42["authenticated",{"cookie":"#);
    write_string(out, cookie);
    out.extend_from_slice(b"}]");
}

/// Appends the `unsubscribed` event: the user may no longer read the database.
pub fn write_unsubscribed(out: &mut Vec<u8>, database: &str) {
    out.extend_from_slice(br#"42["unsubscribed","#);
    write_string(out, database);
    out.push(b']');
}

/// Appends the `not-authenticated` event.
pub fn write_not_authenticated(out: &mut Vec<u8>, name: &str, message: &str) {
    out.extend_from_slice(br#"42["not-authenticated","#);
    write_error(out, name, message);
    out.push(b']');
}

/// Appends the `change` event.
pub fn write_change(out: &mut Vec<u8>, database: &str) {
    out.extend_from_slice(br#"42["change","#);
    write_string(out, database);
    out.push(b']');
}

/// Appends the rejection of a namespace that does not exist.
pub fn write_invalid_namespace(out: &mut Vec<u8>, namespace: &str, version: Version) {
    let _ = match version {
        Version::V3 => write!(out, "44{namespace},\"Invalid namespace\""),
        Version::V4 => write!(out, "44{namespace},{{\"message\":\"Invalid namespace\"}}"),
    };
}

fn write_error(out: &mut Vec<u8>, name: &str, message: &str) {
    out.extend_from_slice(br#"{"error":true,"errorName":"#);
    write_string(out, name);
    out.extend_from_slice(br#","errorMessage":"#);
    write_string(out, message);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::secret::Secret;

    #[test]
    fn parses_packets() {
        let packet = |kind, namespace, id, data| Some(Packet { kind, namespace, id, data });
        assert_eq!(parse_packet("0"), packet(PacketKind::Connect, "/", None, ""));
        assert_eq!(parse_packet("0/foo?a=b,"), packet(PacketKind::Connect, "/foo", None, ""));
        assert_eq!(parse_packet("0/foo"), packet(PacketKind::Connect, "/foo", None, ""));
        assert_eq!(parse_packet("21[\"a\"]"), packet(PacketKind::Event, "/", Some(1), "[\"a\"]"));
        assert_eq!(parse_packet("2/n,12[1]"), packet(PacketKind::Event, "/n", Some(12), "[1]"));
        assert_eq!(parse_packet("1"), packet(PacketKind::Disconnect, "/", None, ""));
        for broken in ["", "9", "51-[]", "x", "299999999999999999999[]"] {
            assert_eq!(parse_packet(broken), None, "{broken}");
        }
    }

    #[test]
    fn parses_events() {
        let names = |list: &[&str]| Some(list.iter().map(|name| (*name, None)).collect());
        assert_eq!(
            parse_event(r#"["subscribe",["a/b","__proto__","gr\u00fcn"]]"#),
            Some(Event::Subscribe(names(&["a/b", "__proto__", "grün"])))
        );
        assert_eq!(parse_event(r#"["unsubscribe",[]]"#), Some(Event::Unsubscribe(names(&[]))));
        for wrong in [
            r#"["subscribe"]"#,
            r#"["subscribe",null]"#,
            r#"["subscribe",["a",1]]"#,
            r#"["subscribe",[""]]"#,
            r#"["subscribe",{"a":1}]"#,
            r#"["subscribe","a"]"#,
        ] {
            assert_eq!(parse_event(wrong), Some(Event::Subscribe(None)), "{wrong}");
        }
        assert_eq!(parse_event(r#"["heartbeat",null]"#), Some(Event::Heartbeat));
        assert_eq!(parse_event(r#"["heartbeat"]"#), Some(Event::Heartbeat));
        assert_eq!(parse_event(r#"["log-out",null]"#), Some(Event::LogOut));
        assert_eq!(parse_event(r#"["toString",{}]"#), Some(Event::Unknown));
        let numbers = "1,".repeat(500_000);
        assert_eq!(
            parse_event(&format!(r#"["subscribe",["a"],{numbers}[2]]"#)),
            Some(Event::Subscribe(names(&["a"]))),
            "further arguments are skipped"
        );
        assert_eq!(parse_event(&format!(r#"["subscribe",["a"],{numbers}]"#)), None, "but they must be JSON");
        for broken in ["", "[]", "[1]", "{}", "[\"a\"", "[null]", "[\"a\"]x", &"[".repeat(10_000)] {
            assert_eq!(parse_event(broken), None, "{broken:.20}");
        }
    }

    #[test]
    fn writes_messages() {
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(&|o| write_ack(o, 7, "{}")), "437[{}]");
        assert_eq!(written(&|o| write_change(o, "a\"b")), r#"42["change","a\"b"]"#);
        assert_eq!(
            written(&|o| write_authenticated(o, Some("AuthSession=x"))),
            r#"42["authenticated",{"cookie":"AuthSession=x"}]"#
        );
        assert_eq!(
            written(&|o| write_not_authenticated(o, "NotAuthenticatedError", "no")),
            r#"42["not-authenticated",{"error":true,"errorName":"NotAuthenticatedError","errorMessage":"no"}]"#
        );
        assert_eq!(
            written(&|o| write_error_ack(o, 1, "TypeError", "m")),
            r#"431[{"error":true,"errorName":"TypeError","errorMessage":"m"}]"#
        );
        let refused = |version| written(&|o| write_invalid_namespace(o, "/foo", version));
        assert_eq!(refused(Version::V3), r#"44/foo,"Invalid namespace""#);
        assert_eq!(refused(Version::V4), r#"44/foo,{"message":"Invalid namespace"}"#);
        assert_eq!(written(&|o| write_connect(o, None)), "40");
        let sid = Sid([0; 20]);
        assert_eq!(written(&|o| write_connect(o, Some(sid))), format!(r#"40{{"sid":"{sid}"}}"#));
    }

    #[test]
    fn parses_auth_objects() {
        let password = Credentials::Password { username: "u".into(), password: Secret::new("p") };
        assert_eq!(parse_auth(r#"{"username":"u","password":"p","x":1}"#), Some(password));
        assert_eq!(parse_auth(r#"{"cookie":"AuthSession=abc"}"#), Some(Credentials::cookie("AuthSession=abc")));
        for nobody in ["", "{}", "[]", "null", r#"{"username":1}"#, r#"["u","p",null]"#] {
            assert_eq!(parse_auth(nobody), None, "{nobody}");
        }
    }
}
