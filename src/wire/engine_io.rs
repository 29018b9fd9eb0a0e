//! Engine.IO (protocol versions 3 and 4): the layer below Socket.IO that opens sessions, keeps them
//! alive and carries packets.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

use serde::Deserialize;

use super::couchdb::Credentials;
use super::url;

/// A version of the protocol, the `EIO` parameter of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Version of socket.io 1 and 2: the client pings.
    V3,
    /// Version of socket.io 3 and 4: the server pings.
    V4,
}

/// The kind of a packet, its first character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind {
    /// `0`, from the server: the id and the parameters of the session.
    Open,
    /// `1`: closes the transport.
    Close,
    /// `2`: asks for a pong with the same data.
    Ping,
    /// `3`: answers a ping.
    Pong,
    /// `4`: carries a Socket.IO packet.
    Message,
    /// `5`: moves the session to this transport.
    Upgrade,
    /// `6`: ends a parked poll.
    Noop,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Kind of the packet.
    pub kind: PacketKind,
    /// Text behind the first character.
    pub data: &'a str,
}

/// Parses one packet. None if its first character is no kind.
pub fn parse_packet(text: &str) -> Option<Packet<'_>> {
    let kind = match text.as_bytes().first()? {
        b'0' => PacketKind::Open,
        b'1' => PacketKind::Close,
        b'2' => PacketKind::Ping,
        b'3' => PacketKind::Pong,
        b'4' => PacketKind::Message,
        b'5' => PacketKind::Upgrade,
        b'6' => PacketKind::Noop,
        _ => return None,
    };
    Some(Packet { kind, data: &text[1..] })
}

/// Appends the open packet.
pub fn write_open(out: &mut Vec<u8>, open: &Open) {
    let Open { version, sid, may_upgrade, ping_interval, ping_timeout, max_payload } = open;
    let upgrades = if *may_upgrade { "\"websocket\"" } else { "" };
    let _ = write!(
        out,
        "0{{\"sid\":\"{sid}\",\"upgrades\":[{upgrades}],\"pingInterval\":{ping_interval},\"pingTimeout\":{ping_timeout}"
    );
    if *version == Version::V4 {
        let _ = write!(out, ",\"maxPayload\":{max_payload}");
    }
    out.push(b'}');
}

/// Longest response to a GET, and default for the longest body of a POST, in bytes.
pub const MAX_PAYLOAD: usize = 64 * 1024;

/// The content of the open packet.
#[derive(Clone, Debug)]
pub struct Open {
    /// Version of the client.
    pub version: Version,
    /// Id of the session.
    pub sid: Sid,
    /// Whether the session may move to a WebSocket, since it is not on one.
    pub may_upgrade: bool,
    /// Interval of pings, in milliseconds.
    pub ping_interval: u64,
    /// Longest delay of an answer to a ping, in milliseconds.
    pub ping_timeout: u64,
    /// Longest body of a POST, in bytes.
    pub max_payload: usize,
}

/// The id of a session: bytes that nobody can guess, which hold the place of the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sid(pub [u8; SID_LENGTH]);

/// Length of a session id, in bytes.
pub const SID_LENGTH: usize = 20;

impl Sid {
    /// Parses an id. None if this server writes no such id.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        data_encoding::BASE64URL_NOPAD.encode_display(&self.0).fmt(f)
    }
}

/// The reason why a request under `/socket.io/` is rejected, with the codes of Engine.IO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The server does not offer this `transport`.
    Transport,
    /// No session has this `sid`.
    SessionId,
    /// Only GET opens a session.
    Method,
    /// The request does not fit its transport.
    Request,
    /// The server does not speak this `EIO` version.
    Version,
}

impl Refusal {
    /// Returns the body of the response, whose status is 400.
    pub fn body(self) -> &'static str {
        match self {
            Self::Transport => r#"{"code":0,"message":"Transport unknown"}"#,
            Self::SessionId => r#"{"code":1,"message":"Session ID unknown"}"#,
            Self::Method => r#"{"code":2,"message":"Bad handshake method"}"#,
            Self::Request => r#"{"code":3,"message":"Bad request"}"#,
            Self::Version => r#"{"code":5,"message":"Unsupported protocol version"}"#,
        }
    }
}

/// A transport of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP long polling.
    Polling,
    /// A WebSocket.
    WebSocket,
}

/// The query of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// `EIO`, 3 if it is missing. None if the server does not speak that version, which matters
    /// only to a request that opens a session.
    pub version: Option<Version>,
    /// `transport`.
    pub transport: Transport,
    /// `sid`. An id that this server does not write is a [`Refusal::SessionId`].
    pub sid: Option<Sid>,
    /// `j`: the number of the JSONP callback.
    pub jsonp: Option<u32>,
    /// `cookie` unless it is empty, else `token`, else `username` and `password`.
    pub credentials: Credentials,
}

/// Parses the query of a request.
///
/// # Errors
/// Returns the [`Refusal`] to answer with.
pub fn parse_query(query: &str) -> Result<Query, Refusal> {
    let (mut version, mut transport, mut sid, mut jsonp) = (None, None, None, None);
    let mut credentials = CredentialFields::default();
    for (name, value) in url::query_pairs(query) {
        match &*name {
            "EIO" => version = Some(value),
            "transport" => transport = Some(value),
            "sid" => sid = Some(value),
            // A value that is no number counts by its digits, as in engine.io.
            "j" => jsonp = value.chars().filter(char::is_ascii_digit).collect::<String>().parse().ok(),
            "username" => credentials.username = Some(value),
            "password" => credentials.password = Some(value),
            "cookie" => credentials.cookie = Some(value),
            "token" => credentials.token = Some(value),
            _ => {}
        }
    }
    let transport = match transport.as_deref() {
        Some("polling") => Transport::Polling,
        Some("websocket") => Transport::WebSocket,
        _ => return Err(Refusal::Transport),
    };
    let version = match version.as_deref() {
        None | Some("3") => Some(Version::V3),
        Some("4") => Some(Version::V4),
        Some(_) => None,
    };
    let sid = match sid {
        Some(text) => Some(Sid::parse(&text).ok_or(Refusal::SessionId)?),
        None => None,
    };
    Ok(Query { version, transport, sid, jsonp, credentials: credentials.read().unwrap_or_default() })
}

/// The fields with credentials, in a query or in the auth object of CONNECT.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CredentialFields<'a> {
    #[serde(borrow)]
    username: Option<Cow<'a, str>>,
    #[serde(borrow)]
    password: Option<Cow<'a, str>>,
    #[serde(borrow)]
    cookie: Option<Cow<'a, str>>,
    #[serde(borrow)]
    token: Option<Cow<'a, str>>,
}

impl CredentialFields<'_> {
    /// Returns the credentials. None if no field is present.
    pub(super) fn read(self) -> Option<Credentials> {
        if let Some(cookie) = self.cookie.filter(|cookie| !cookie.is_empty()) {
            return Some(Credentials::cookie(&cookie));
        }
        if let Some(token) = self.token.filter(|token| !token.is_empty()) {
            return Some(Credentials::token(&token));
        }
        if self.username.is_none() && self.password.is_none() {
            return None;
        }
        Some(Credentials::password(self.username.unwrap_or_default(), self.password.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::secret::Secret;

    #[test]
    fn parses_packets() {
        assert_eq!(parse_packet("2probe"), Some(Packet { kind: PacketKind::Ping, data: "probe" }));
        assert_eq!(parse_packet("4"), Some(Packet { kind: PacketKind::Message, data: "" }));
        for broken in ["", "7", "b4AAAA", "\u{e9}"] {
            assert_eq!(parse_packet(broken), None, "{broken}");
        }
    }

    #[test]
    fn parses_queries() {
        let parsed = parse_query("username=a%20b&password=p%26w&EIO=3&transport=websocket").unwrap();
        assert_eq!((parsed.version, parsed.transport), (Some(Version::V3), Transport::WebSocket));
        let expected = Credentials::Password { username: "a b".into(), password: Secret::new("p&w") };
        assert_eq!(parsed.credentials, expected);
        let parsed = parse_query("cookie=AuthSession%3Dabc%3B%20Version%3D1&transport=polling&EIO=4&j=12").unwrap();
        assert_eq!(parsed.credentials, Credentials::Cookie(Secret::new("abc")));
        assert_eq!((parsed.version, parsed.transport, parsed.jsonp), (Some(Version::V4), Transport::Polling, Some(12)));
        assert_eq!(parse_query("transport=polling&EIO=5").unwrap().version, None);
        assert_eq!(parse_query("transport=polling").unwrap().version, Some(Version::V3));
        assert_eq!(parse_query(""), Err(Refusal::Transport));
        assert_eq!(parse_query("transport=flashsocket&sid=x"), Err(Refusal::Transport));
        assert_eq!(parse_query("transport=polling&sid=x"), Err(Refusal::SessionId));
    }

    #[test]
    fn session_ids_round_trip() {
        let sid = Sid([0xfb; SID_LENGTH]);
        assert_eq!(Sid::parse(&sid.to_string()), Some(sid));
        for other in ["", "abc", "GfpBe6QCXluYghFXAAAE", &format!("{sid}A"), &sid.to_string().replace('-', "+")] {
            assert_eq!(Sid::parse(other), None, "{other}");
        }
    }

    #[test]
    fn writes_open_packets() {
        let open = |version, may_upgrade| {
            let open = Open {
                version,
                sid: Sid([0; SID_LENGTH]),
                may_upgrade,
                ping_interval: 25000,
                ping_timeout: 5000,
                max_payload: MAX_PAYLOAD,
            };
            let mut out = Vec::new();
            write_open(&mut out, &open);
            String::from_utf8(out).unwrap()
        };
        let sid = "A".repeat(27);
        assert_eq!(
            open(Version::V3, false),
            format!(r#"0{{"sid":"{sid}","upgrades":[],"pingInterval":25000,"pingTimeout":5000}}"#)
        );
        assert_eq!(
            open(Version::V4, true),
            format!(
                r#"0{{"sid":"{sid}","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":5000,"maxPayload":65536}}"#
            )
        );
    }
}
