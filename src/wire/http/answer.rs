//! Responses to clients.

use std::io::Write as _;

/// Appends a whole response: status line, `Content-Length`, `Connection`, the given fields, and the
/// body. A response to HEAD has the length of the body but not the body.
pub fn write_response(out: &mut Vec<u8>, answer: &Answer<'_>) {
    let _ = write!(
        out,
        "HTTP/1.1 {} {}\r\nContent-Length: {}\r\n",
        answer.status,
        reason(answer.status),
        answer.body.len()
    );
    for (name, value) in answer.fields {
        let _ = write!(out, "{name}: {value}\r\n");
    }
    out.extend_from_slice(if answer.keep_alive {
        b"Connection: keep-alive\r\n\r\n"
    } else {
        b"Connection: close\r\n\r\n"
    });
    if !answer.head_only {
        out.extend_from_slice(answer.body);
    }
}

/// A response to a client.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Status code.
    pub status: u16,
    /// Header fields besides `Content-Length` and `Connection`. Their values are our own or were
    /// checked to hold no line end.
    pub fields: &'a [(&'a str, &'a str)],
    /// Body.
    pub body: &'a [u8],
    /// Whether to leave out the body, since the method was HEAD.
    pub head_only: bool,
    /// Whether the connection stays open.
    pub keep_alive: bool,
}

/// Appends the head that turns the connection into a WebSocket (RFC 6455 section 4.2.2).
///
/// `create_response` of tungstenite would need the request in the types of the `http` crate.
pub fn write_upgrade(out: &mut Vec<u8>, websocket_key: &str, protocol: Option<&str>) {
    let accept = tungstenite::handshake::derive_accept_key(websocket_key.as_bytes());
    let _ = write!(
        out,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n"
    );
    if let Some(protocol) = protocol {
        let _ = write!(out, "Sec-WebSocket-Protocol: {protocol}\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Returns the reason phrase. The table of the `http` crate is larger and has an old name for 413.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_responses_and_upgrades() {
        let mut out = Vec::new();
        write_response(
            &mut out,
            &Answer { status: 404, fields: &[("X", "y")], body: b"no", head_only: false, keep_alive: true },
        );
        assert_eq!(out, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nX: y\r\nConnection: keep-alive\r\n\r\nno");
        out.clear();
        write_upgrade(&mut out, "dGhlIHNhbXBsZSBub25jZQ==", Some("howler.v1"));
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
            "RFC 6455 section 1.3: {text}"
        );
        assert!(text.ends_with("Sec-WebSocket-Protocol: howler.v1\r\n\r\n"));
    }
}
