//! What a request asks this server for. A pure function of the head.

use crate::wire::engine_io::{self, Handshake};
use crate::wire::howler_v1;
use crate::wire::http::{Request, has_token};

/// What a request leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// A `howler.v1` session over a WebSocket.
    Howler {
        /// `Sec-WebSocket-Key`.
        key: &'a str,
        /// The sub-protocol to confirm, when the client offered it.
        protocol: Option<&'static str>,
    },
    /// A Socket.IO session over a WebSocket.
    SocketIo {
        /// `Sec-WebSocket-Key`.
        key: &'a str,
        /// What the query said.
        handshake: Handshake,
    },
    /// An answer without further ado.
    Answer(Answer),
}

/// A short answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// A header field that the status calls for.
    pub field: Option<(&'static str, &'static str)>,
    /// The body.
    pub body: &'static str,
}

const TEXT: &str = "text/plain; charset=utf-8";

const fn text(status: u16, body: &'static str) -> Answer {
    Answer { status, content_type: TEXT, field: None, body }
}

const NOT_FOUND: Answer = text(404, "There is nothing here. Clients connect to /howler (WebSocket) or /socket.io/.\n");
const METHOD: Answer =
    Answer { field: Some(("Allow", "GET")), ..text(405, "Only GET is answered here, as a WebSocket handshake.\n") };
const UPGRADE: Answer = Answer {
    field: Some(("Upgrade", "websocket")),
    ..text(426, "This is a WebSocket endpoint: connect with a WebSocket client, e.g. websocat.\n")
};
const WEBSOCKET_VERSION: Answer = Answer {
    field: Some(("Sec-WebSocket-Version", "13")),
    ..text(426, "Only version 13 of the WebSocket protocol is spoken here.\n")
};
const WEBSOCKET_KEY: Answer = text(400, "The WebSocket handshake has no valid Sec-WebSocket-Key.\n");

/// Decides by the head of a request.
pub fn route<'a>(request: &Request<'a>) -> Route<'a> {
    match request.path {
        "/howler" | "/howler/" => match websocket_key(request) {
            Ok(key) => Route::Howler { key, protocol: sub_protocol(request) },
            Err(answer) => Route::Answer(answer),
        },
        "/socket.io/" | "/socket.io" => match engine_io::parse_handshake(request.query) {
            Ok(_) if request.method != "GET" => refuse(engine_io::Refusal::Method),
            Ok(handshake) => match websocket_key(request) {
                Ok(key) => Route::SocketIo { key, handshake },
                Err(_) => refuse(engine_io::Refusal::Request),
            },
            Err(refusal) => refuse(refusal),
        },
        _ => Route::Answer(NOT_FOUND),
    }
}

fn refuse(refusal: engine_io::Refusal) -> Route<'static> {
    Route::Answer(Answer { content_type: "application/json", ..text(400, refusal.body()) })
}

/// The key of a valid WebSocket handshake (RFC 6455 section 4.2.1).
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
    use crate::wire::http::parse_request;

    fn status(head: &str) -> u16 {
        let bytes = head.replace('\n', "\r\n") + "\r\n";
        let (_, request) = parse_request(bytes.as_bytes()).unwrap().unwrap();
        match route(&request) {
            Route::Howler { .. } | Route::SocketIo { .. } => 101,
            Route::Answer(answer) => answer.status,
        }
    }

    const UPGRADE: &str = "Host: a\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n";

    #[test]
    fn routes() {
        for (line, status_due) in [
            ("GET /howler", 101),
            ("GET /howler?x=y", 101),
            ("GET /socket.io/?transport=websocket&EIO=3", 101),
            ("GET /socket.io/?transport=websocket&EIO=4", 400),
            ("GET /socket.io/?transport=polling&EIO=3", 400),
            ("POST /socket.io/?transport=websocket&EIO=3", 400),
            ("POST /howler", 405),
            ("GET /", 404),
            ("GET /howlers", 404),
        ] {
            assert_eq!(status(&format!("{line} HTTP/1.1\n{UPGRADE}")), status_due, "{line}");
        }
        assert_eq!(status("GET /howler HTTP/1.1\nHost: a\n"), 426);
        assert_eq!(status(&format!("GET /howler HTTP/1.1\n{}", UPGRADE.replace("13", "8"))), 426);
        assert_eq!(status(&format!("GET /howler HTTP/1.1\n{}", UPGRADE.replace("dGhl", "d"))), 400);
        assert_eq!(status("GET /socket.io/?transport=websocket HTTP/1.1\nHost: a\n"), 400);
    }

    #[test]
    fn confirms_the_sub_protocol_only_where_it_was_offered() {
        for (offered, confirmed) in [("howler.v1", Some("howler.v1")), ("x, howler.v1", Some("howler.v1")), ("x", None)]
        {
            let head =
                format!("GET /howler HTTP/1.1\n{UPGRADE}Sec-WebSocket-Protocol: {offered}\n\n").replace('\n', "\r\n");
            let (_, request) = parse_request(head.as_bytes()).unwrap().unwrap();
            assert!(matches!(route(&request), Route::Howler { protocol, .. } if protocol == confirmed));
        }
    }
}
