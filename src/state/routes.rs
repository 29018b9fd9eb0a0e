//! Routing of HTTP requests: a pure function of the request head.

use super::static_assets::{Asset, StaticAssets};
use crate::wire::engine_io::{self, Query, Refusal, Sid, Transport, Version};
use crate::wire::howler_v1;
use crate::wire::http::{Request, has_token};

/// Target of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// A `howler.v1` session over a WebSocket.
    Howler {
        /// `Sec-WebSocket-Key`.
        key: &'a str,
        /// Subprotocol to confirm, if the client offered it.
        protocol: Option<&'static str>,
    },
    /// A Socket.IO session over a WebSocket.
    OpenWebSocket(Query, Version, &'a str),
    /// A Socket.IO session by polling.
    OpenPolling(Query, Version),
    /// A poll of a session, with the number of the JSONP callback.
    Poll(Sid, Option<u32>),
    /// A post to a session.
    Post(Sid, PostFormat),
    /// A WebSocket that is to take over a session.
    Upgrade(Sid, &'a str),
    /// A CORS preflight request.
    Preflight,
    /// A static file.
    Asset(&'a Asset),
    /// A fixed response.
    Answer(Answer),
}

impl Route<'_> {
    /// Returns whether the request opens a session.
    pub fn opens_session(&self) -> bool {
        matches!(self, Self::Howler { .. } | Self::OpenWebSocket(..) | Self::OpenPolling(..))
    }
}

/// Encoding of the packets in a post.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostFormat {
    /// Text.
    Text,
    /// Binary framing of version 3.
    Binary,
    /// Form of a JSONP client.
    Form,
}

/// A fixed HTTP response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Header field that the status requires.
    pub field: Option<(&'static str, &'static str)>,
    /// Body.
    pub body: &'static str,
}

/// Origins (RFC 6454) from which browsers may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// All origins.
    Any,
    /// These origins, each as a browser sends it: `https://app.example.com`.
    Listed(Vec<Box<str>>),
}

impl Origins {
    /// Returns whether a request with this origin may open a session. A request without an origin
    /// comes from no browser.
    pub fn allow(&self, origin: Option<&str>) -> bool {
        match (self, origin) {
            (Self::Any, _) | (_, None) => true,
            (Self::Listed(listed), Some(origin)) => listed.iter().any(|one| one.eq_ignore_ascii_case(origin)),
        }
    }
}

/// `SameSite` attribute of the cookie that names a session (RFC 6265bis section 5.4.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SameSite {
    /// Browsers send the cookie from pages of every site, over TLS.
    None,
    /// Browsers send it from pages of the same site, and when the user follows a link.
    #[default]
    Lax,
    /// Browsers send it from pages of the same site.
    Strict,
}

/// Returns the `Set-Cookie` value by which load balancers find a session. `secure` is true if the
/// client speaks TLS with this server or with a proxy. Browsers drop `SameSite=None` without
/// `Secure`, so the attribute is omitted there.
pub fn session_cookie(sid: Sid, same_site: SameSite, secure: bool) -> String {
    let same_site = match same_site {
        SameSite::None if secure => "; SameSite=None",
        SameSite::None => "",
        SameSite::Lax => "; SameSite=Lax",
        SameSite::Strict => "; SameSite=Strict",
    };
    format!("io={sid}; Path=/; HttpOnly{same_site}{}", if secure { "; Secure" } else { "" })
}

const TEXT: &str = "text/plain; charset=utf-8";

/// Returns a response with a text body.
pub(super) const fn text(status: u16, body: &'static str) -> Answer {
    Answer { status, content_type: TEXT, field: None, body }
}

/// Response to an origin that is not allowed.
pub const ORIGIN_REFUSED: Answer = text(403, "Pages of this origin may not connect (see --origins).\n");
/// Response to a new session during the shutdown.
pub const STOPPING: Answer = Answer {
    field: Some(("Retry-After", "1")),
    ..text(
        503,
        "The server is shutting down: connect to another one.
",
    )
};
/// Response to a polling session over the limit of unauthenticated sessions per connection.
pub const TOO_MANY_SESSIONS: Answer = Answer {
    field: Some(("Retry-After", "5")),
    ..text(429, "This connection has opened too many sessions that are not logged in.\n")
};
/// Response to a new session while the process uses more memory than the limit.
pub const OUT_OF_MEMORY: Answer =
    Answer { field: Some(("Retry-After", "5")), ..text(503, "The server uses too much memory: come back later.\n") };
/// Response to a polling session over the limit of its address.
pub const TOO_MANY_OF_ADDRESS: Answer = Answer {
    field: Some(("Retry-After", "5")),
    ..text(429, "This address has too many connections and sessions already.\n")
};
const NOT_FOUND: Answer = text(404, "Not found. Clients connect to /howler (WebSocket) or /socket.io/.\n");
const METHOD: Answer =
    Answer { field: Some(("Allow", "GET")), ..text(405, "Only GET is answered here, as a WebSocket handshake.\n") };
const FILE_METHOD: Answer = Answer {
    field: Some(("Allow", "GET, HEAD")),
    ..text(405, "This is a file: only GET and HEAD are answered here.\n")
};
const UPGRADE: Answer = Answer {
    field: Some(("Upgrade", "websocket")),
    ..text(426, "This is a WebSocket endpoint: connect with a WebSocket client, e.g. websocat.\n")
};
const WEBSOCKET_VERSION: Answer = Answer {
    field: Some(("Sec-WebSocket-Version", "13")),
    ..text(426, "Only version 13 of the WebSocket protocol is spoken here.\n")
};
const WEBSOCKET_KEY: Answer = text(400, "The WebSocket handshake has no valid Sec-WebSocket-Key.\n");

/// Returns the response to a refused request under `/socket.io/`.
pub fn refusal(refusal: Refusal) -> Answer {
    Answer { status: 400, content_type: "application/json", field: None, body: refusal.body() }
}

/// Returns whether the origin of a request is allowed. The console has the origin of this server,
/// so it needs no entry in the list. It speaks `howler.v1` only.
pub fn is_origin_allowed(request: &Request<'_>, origins: &Origins, assets: &StaticAssets) -> bool {
    match request.path {
        "/howler" | "/howler/" => origins.allow(request.origin) || assets.has_console() && is_same_origin(request),
        "/socket.io" | "/socket.io/" => origins.allow(request.origin),
        // Other paths open and carry no session.
        _ => true,
    }
}

/// Returns whether the request comes from a page of the same host. The scheme is unknown, since a
/// proxy may speak TLS with the browser.
fn is_same_origin(request: &Request<'_>) -> bool {
    let (Some(origin), Some(host)) = (request.origin, request.host) else { return false };
    let (own, port) = match origin.split_once("://") {
        Some((scheme, own)) if scheme.eq_ignore_ascii_case("https") => (own, ":443"),
        Some((scheme, own)) if scheme.eq_ignore_ascii_case("http") => (own, ":80"),
        _ => return false,
    };
    // Browsers omit the default port from both fields; a proxy may add it to `Host`.
    !own.is_empty() && own.eq_ignore_ascii_case(host.strip_suffix(port).unwrap_or(host))
}

/// Returns the route of a request.
pub fn route<'a>(request: &Request<'a>, assets: &'a StaticAssets) -> Route<'a> {
    match request.path {
        "/howler" | "/howler/" => match websocket_key(request) {
            Ok(key) => Route::Howler { key, protocol: sub_protocol(request) },
            Err(answer) => Route::Answer(answer),
        },
        "/socket.io/" | "/socket.io" if request.method == "OPTIONS" => Route::Preflight,
        "/socket.io/" | "/socket.io" => socket_io(request).unwrap_or_else(|why| Route::Answer(refusal(why))),
        path => match (assets.find(path), request.method) {
            (Some(file), "GET" | "HEAD") => Route::Asset(file),
            (Some(_), _) => Route::Answer(FILE_METHOD),
            (None, _) => Route::Answer(NOT_FOUND),
        },
    }
}

fn socket_io<'a>(request: &Request<'a>) -> Result<Route<'a>, Refusal> {
    let query = engine_io::parse_query(request.query)?;
    let websocket = query.transport == Transport::WebSocket;
    let key = || websocket_key(request).map_err(|_| Refusal::Request);
    match (query.sid, request.method) {
        (None, "GET") => {
            let version = query.version.ok_or(Refusal::Version)?;
            if websocket {
                return Ok(Route::OpenWebSocket(query, version, key()?));
            }
            Ok(Route::OpenPolling(query, version))
        }
        (None, _) => Err(Refusal::Method),
        (Some(sid), "GET") if websocket => Ok(Route::Upgrade(sid, key()?)),
        (Some(sid), "GET") => Ok(Route::Poll(sid, query.jsonp)),
        (Some(sid), "POST") if !websocket => Ok(Route::Post(sid, post_format(request, &query))),
        (Some(_), _) => Err(Refusal::Request),
    }
}

fn post_format(request: &Request<'_>, query: &Query) -> PostFormat {
    let media_type = request.content_type.and_then(|value| value.split(';').next()).map(str::trim);
    match media_type {
        Some(octets) if octets.eq_ignore_ascii_case("application/octet-stream") => PostFormat::Binary,
        _ if query.jsonp.is_some() => PostFormat::Form,
        _ => PostFormat::Text,
    }
}

/// Returns the key of a valid WebSocket handshake (RFC 6455 section 4.2.1).
fn websocket_key<'a>(request: &Request<'a>) -> Result<&'a str, Answer> {
    if request.method != "GET" {
        return Err(METHOD);
    }
    if !request.upgrade {
        return Err(UPGRADE);
    }
    if request.websocket_version != Some("13") {
        return Err(WEBSOCKET_VERSION);
    }
    // Sixteen bytes in base64.
    let valid = |key: &&str| data_encoding::BASE64.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == 16);
    request.websocket_key.filter(valid).ok_or(WEBSOCKET_KEY)
}

fn sub_protocol(request: &Request<'_>) -> Option<&'static str> {
    request.websocket_protocol.filter(|offered| has_token(offered, howler_v1::PROTOCOL)).map(|_| howler_v1::PROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::static_assets::Console;
    use crate::wire::http::MAX_HEAD;
    use crate::wire::http::parse_request;

    fn named(head: &str) -> String {
        let bytes = head.replace('\n', "\r\n") + "\r\n";
        let (_, request) = parse_request(bytes.as_bytes(), MAX_HEAD).unwrap().unwrap();
        match route(&request, &StaticAssets::new(Console::On)) {
            Route::Answer(answer) if answer.content_type == "application/json" => {
                format!("{} {}", answer.status, &answer.body[8..9])
            }
            Route::Answer(answer) => answer.status.to_string(),
            other => format!("{other:?}").split(['(', ' ']).next().unwrap_or("").to_owned(),
        }
    }

    const UPGRADE: &str = "Host: a\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n";

    #[test]
    fn routes() {
        let sid = Sid([7; engine_io::SID_LENGTH]);
        for (line, expected) in [
            ("GET /howler", "Howler"),
            ("GET /howler?x=y", "Howler"),
            ("POST /howler", "405"),
            ("GET /", "Asset"),
            ("HEAD /?x", "Asset"),
            ("POST /", "405"),
            ("GET /howler.js", "Asset"),
            ("OPTIONS /howler.js", "405"),
            ("GET /index.html", "404"),
            ("POST /index.html", "404"),
            ("GET /howlers", "404"),
            ("GET /socket.io/?transport=websocket&EIO=3", "OpenWebSocket"),
            ("GET /socket.io?transport=websocket&EIO=4", "OpenWebSocket"),
            ("GET /socket.io/?transport=polling", "OpenPolling"),
            ("GET /socket.io/?transport=polling&EIO=5", "400 5"),
            ("GET /socket.io/?transport=carrier-pigeon", "400 0"),
            ("GET /socket.io/", "400 0"),
            ("POST /socket.io/?transport=polling", "400 2"),
            ("HEAD /socket.io/?transport=polling", "400 2"),
            ("GET /socket.io/?transport=polling&sid=zzz", "400 1"),
            (&format!("GET /socket.io/?transport=polling&sid={sid}"), "Poll"),
            (&format!("POST /socket.io/?transport=polling&sid={sid}"), "Post"),
            (&format!("DELETE /socket.io/?transport=polling&sid={sid}"), "400 3"),
            (&format!("POST /socket.io/?transport=websocket&sid={sid}"), "400 3"),
            (&format!("GET /socket.io/?transport=websocket&sid={sid}"), "Upgrade"),
            ("OPTIONS /socket.io/?transport=polling", "Preflight"),
        ] {
            assert_eq!(named(&format!("{line} HTTP/1.1\n{UPGRADE}")), expected, "{line}");
        }
        assert_eq!(named("GET /howler HTTP/1.1\nHost: a\n"), "426");
        assert_eq!(named(&format!("GET /howler HTTP/1.1\n{}", UPGRADE.replace("13", "8"))), "426");
        assert_eq!(named(&format!("GET /howler HTTP/1.1\n{}", UPGRADE.replace("dGhl", "d"))), "400");
        assert_eq!(named("GET /socket.io/?transport=websocket HTTP/1.1\nHost: a\n"), "400 3");
    }

    #[test]
    fn confirms_the_subprotocol_only_if_it_was_offered() {
        for (offered, confirmed) in [("howler.v1", Some("howler.v1")), ("x, howler.v1", Some("howler.v1")), ("x", None)]
        {
            let head =
                format!("GET /howler HTTP/1.1\n{UPGRADE}Sec-WebSocket-Protocol: {offered}\n\n").replace('\n', "\r\n");
            let (_, request) = parse_request(head.as_bytes(), MAX_HEAD).unwrap().unwrap();
            let assets = StaticAssets::new(Console::Off);
            assert!(matches!(route(&request, &assets), Route::Howler { protocol, .. } if protocol == confirmed));
        }
    }

    #[test]
    fn a_cookie_for_every_site_needs_tls() {
        let cookie = |same_site, secure| session_cookie(Sid([0; engine_io::SID_LENGTH]), same_site, secure);
        let start = format!("io={}; Path=/; HttpOnly", Sid([0; engine_io::SID_LENGTH]));
        for (same_site, plain, secure) in [
            (SameSite::None, "", "; SameSite=None; Secure"),
            (SameSite::Lax, "; SameSite=Lax", "; SameSite=Lax; Secure"),
            (SameSite::Strict, "; SameSite=Strict", "; SameSite=Strict; Secure"),
        ] {
            assert_eq!(cookie(same_site, false), format!("{start}{plain}"));
            assert_eq!(cookie(same_site, true), format!("{start}{secure}"));
        }
    }

    #[test]
    fn origins() {
        let listed = Origins::Listed(vec!["https://app.example.com".into()]);
        assert!(listed.allow(None) && listed.allow(Some("https://app.example.com")));
        for other in ["https://app.example.com.evil.com", "http://app.example.com", "null", ""] {
            assert!(!listed.allow(Some(other)), "{other}");
            assert!(Origins::Any.allow(Some(other)));
        }
    }
    #[test]
    fn the_console_is_allowed_from_its_own_origin() {
        let listed = Origins::Listed(vec!["https://app.example.com".into()]);
        let allowed = |path: &str, host: &str, origin: &str, console| {
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\r\n");
            let (_, request) = parse_request(head.as_bytes(), MAX_HEAD).unwrap().unwrap();
            is_origin_allowed(&request, &listed, &StaticAssets::new(console))
        };
        for (host, origin) in [
            ("howler.example.com", "https://howler.example.com"),
            ("howler.example.com", "http://Howler.example.com"),
            ("howler.example.com:443", "https://howler.example.com"),
            ("localhost:3000", "http://localhost:3000"),
            ("[::1]:3000", "http://[::1]:3000"),
        ] {
            assert!(allowed("/howler", host, origin, Console::On), "{host} {origin}");
            assert!(!allowed("/howler", host, origin, Console::Off), "{host} {origin}");
            assert!(!allowed("/socket.io/", host, origin, Console::On), "{host} {origin}");
        }
        for (host, origin) in [
            ("howler.example.com", "https://howler.example.com.evil.com"),
            ("howler.example.com", "https://evil.com"),
            ("howler.example.com", "https://howler.example.com:8443"),
            ("howler.example.com:443", "http://howler.example.com"),
            ("localhost:3000", "http://localhost"),
            ("localhost", "http://localhost:3000"),
            ("howler.example.com", "howler.example.com"),
            ("howler.example.com", "ftp://howler.example.com"),
            ("null", "null"),
            ("", "http://"),
            ("", ""),
        ] {
            assert!(!allowed("/howler", host, origin, Console::On), "{host} {origin}");
        }
        assert!(allowed("/howler", "a", "https://app.example.com", Console::Off));
        assert!(allowed("/", "a", "https://evil.com", Console::On), "pages are public");
    }
}
