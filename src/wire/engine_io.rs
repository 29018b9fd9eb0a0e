//! Engine.IO (protocol versions 3 and 4): the layer under Socket.IO that opens sessions, keeps them
//! alive and carries packets.

use std::io::Write as _;

use super::couchdb::Credentials;
use super::secret::Secret;
use super::url;

/// The version of the protocol, the `EIO` parameter of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Clients of socket.io 1 and 2: the client pings.
    V3,
    /// Clients of socket.io 3 and 4: the server pings.
    V4,
}

/// The kind of a packet; its first character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketKind {
    /// `0`, from the server: the session's id and parameters.
    Open,
    /// `1`: the transport is to be closed.
    Close,
    /// `2`: asks for a pong with the same data.
    Ping,
    /// `3`: answers a ping.
    Pong,
    /// `4`: carries a Socket.IO packet.
    Message,
    /// `5`: this transport takes over.
    Upgrade,
    /// `6`: frees a parked poll.
    Noop,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What it is.
    pub kind: PacketKind,
    /// What follows the first character.
    pub data: &'a str,
}

/// Reads one packet; None when its first character is no kind.
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

/// Appends the open packet, without `upgrades` (a WebSocket has nowhere to go).
pub fn write_open(out: &mut Vec<u8>, sid: &str, ping_interval: u64, ping_timeout: u64) {
    let _ = write!(
        out,
        "0{{\"sid\":\"{sid}\",\"upgrades\":[],\"pingInterval\":{ping_interval},\"pingTimeout\":{ping_timeout}}}"
    );
}

/// Why a request under `/socket.io/` is refused, with the codes that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The `transport` is none that is served.
    Transport,
    /// No session has this `sid`.
    SessionId,
    /// A session is opened with GET.
    Method,
    /// The request makes no sense for its transport.
    Request,
    /// The `EIO` version is none that is served.
    Version,
}

impl Refusal {
    /// The body of the answer, whose status is 400.
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

/// The query of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// `EIO`; version 3 when it is missing.
    pub version: Version,
    /// `username` and `password`, or `cookie`, which wins when it is not empty.
    pub credentials: Credentials,
}

/// Reads the query of a request that opens a session over a WebSocket.
///
/// # Errors
/// The [`Refusal`] to answer with.
pub fn parse_handshake(query: &str) -> Result<Handshake, Refusal> {
    let (mut version, mut transport, mut sid) = (None, None, None);
    let (mut username, mut password, mut cookie) = (None, None, None);
    for (name, value) in url::query_pairs(query) {
        match &*name {
            "EIO" => version = Some(value),
            "transport" => transport = Some(value),
            "sid" => sid = Some(value),
            "username" => username = Some(value),
            "password" => password = Some(value),
            "cookie" => cookie = Some(value),
            _ => {}
        }
    }
    let version = match version.as_deref() {
        None | Some("3") => Version::V3,
        Some(_) => return Err(Refusal::Version),
    };
    if transport.as_deref() != Some("websocket") {
        return Err(Refusal::Transport);
    }
    if sid.is_some() {
        return Err(Refusal::SessionId);
    }
    let credentials = match cookie.filter(|cookie| !cookie.is_empty()) {
        Some(cookie) => Credentials::cookie(&cookie),
        None => Credentials::Password {
            username: username.unwrap_or_default().into(),
            password: Secret::new(password.unwrap_or_default()),
        },
    };
    Ok(Handshake { version, credentials })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets() {
        assert_eq!(parse_packet("2probe"), Some(Packet { kind: PacketKind::Ping, data: "probe" }));
        assert_eq!(parse_packet("4"), Some(Packet { kind: PacketKind::Message, data: "" }));
        for broken in ["", "7", "b4AAAA", "\u{e9}"] {
            assert_eq!(parse_packet(broken), None, "{broken}");
        }
    }

    #[test]
    fn handshakes() {
        let parsed = parse_handshake("username=a%20b&password=p%26w&EIO=3&transport=websocket").unwrap();
        assert_eq!(parsed.version, Version::V3);
        let expected = Credentials::Password { username: "a b".into(), password: Secret::new("p&w") };
        assert_eq!(parsed.credentials, expected);
        let parsed = parse_handshake("cookie=AuthSession%3Dabc%3B%20Version%3D1&transport=websocket").unwrap();
        assert_eq!(parsed.credentials, Credentials::Cookie(Secret::new("abc")));
        for (query, refusal) in [
            ("transport=polling&EIO=3", Refusal::Transport),
            ("", Refusal::Transport),
            ("transport=websocket&EIO=4", Refusal::Version),
            ("transport=websocket&EIO=5", Refusal::Version),
            ("transport=websocket&EIO=3&sid=x", Refusal::SessionId),
        ] {
            assert_eq!(parse_handshake(query), Err(refusal), "{query}");
        }
    }

    #[test]
    fn open_packet() {
        let mut out = Vec::new();
        write_open(&mut out, "abc", 25000, 5000);
        assert_eq!(out, br#"0{"sid":"abc","upgrades":[],"pingInterval":25000,"pingTimeout":5000}"#);
    }
}
