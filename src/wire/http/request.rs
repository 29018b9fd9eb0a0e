//! The head of a client's request, parsed with httparse.

use super::body::BodyDecoder;
use super::head::{Framing, HeadError, MAX_HEADERS, field_text, has_token, head_error};

/// Default for the longest head of a request, in bytes.
pub const MAX_HEAD: usize = 16 * 1024;

/// The head of a client's request, as far as this server uses it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// Method as sent.
    pub method: &'a str,
    /// Target up to a `?`.
    pub path: &'a str,
    /// Target behind the `?`, or empty. It may hold credentials: never log it.
    pub query: &'a str,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
    /// Length of the body in bytes, 0 if no field gives one; None if the body is chunked.
    pub content_length: Option<u64>,
    /// `Host`.
    pub host: Option<&'a str>,
    /// `If-None-Match`, the last one.
    pub if_none_match: Option<&'a str>,
    /// `Content-Type`.
    pub content_type: Option<&'a str>,
    /// `Origin`.
    pub origin: Option<&'a str>,
    /// `User-Agent`.
    pub user_agent: Option<&'a str>,
    /// `X-Forwarded-For`, the last one.
    pub forwarded_for: Option<&'a str>,
    /// `X-Forwarded-Proto`, the last one.
    pub forwarded_proto: Option<&'a str>,
    /// Whether the client asks for `Upgrade: websocket` (RFC 6455 section 4.2.1).
    pub upgrade: bool,
    /// `Sec-WebSocket-Key`.
    pub websocket_key: Option<&'a str>,
    /// `Sec-WebSocket-Version`.
    pub websocket_version: Option<&'a str>,
    /// `Sec-WebSocket-Protocol`.
    pub websocket_protocol: Option<&'a str>,
}

impl Request<'_> {
    /// Returns a decoder for the body behind the head.
    pub fn body(&self) -> BodyDecoder {
        self.content_length.map_or(BodyDecoder::chunked(), BodyDecoder::Length)
    }
}

/// The fields that decide only together.
#[derive(Default)]
struct Seen {
    upgrade_named: bool,
    upgrade_asked: bool,
    close: bool,
    hosts: usize,
    framing: Framing,
}

impl<'a> Request<'a> {
    /// Reads one header field. Unknown fields are ignored.
    fn read_field(&mut self, name: &str, value: &'a str, seen: &mut Seen) -> Result<(), HeadError> {
        match name {
            n if n.eq_ignore_ascii_case("host") => {
                seen.hosts += 1;
                self.host = Some(value);
            }
            n if n.eq_ignore_ascii_case("if-none-match") => self.if_none_match = Some(value),
            n if n.eq_ignore_ascii_case("connection") => {
                seen.upgrade_asked |= has_token(value, "upgrade");
                self.keep_alive |= has_token(value, "keep-alive");
                seen.close |= has_token(value, "close");
            }
            n if n.eq_ignore_ascii_case("upgrade") => seen.upgrade_named |= has_token(value, "websocket"),
            n if n.eq_ignore_ascii_case("origin") => self.origin = Some(value),
            n if n.eq_ignore_ascii_case("content-type") => self.content_type = Some(value),
            n if n.eq_ignore_ascii_case("user-agent") => self.user_agent = Some(value),
            n if n.eq_ignore_ascii_case("x-forwarded-for") => self.forwarded_for = Some(value),
            n if n.eq_ignore_ascii_case("x-forwarded-proto") => self.forwarded_proto = Some(value),
            n if n.eq_ignore_ascii_case("sec-websocket-key") => self.websocket_key = Some(value),
            n if n.eq_ignore_ascii_case("sec-websocket-version") => self.websocket_version = Some(value),
            n if n.eq_ignore_ascii_case("sec-websocket-protocol") => self.websocket_protocol = Some(value),
            n => seen.framing.add(n, value)?,
        }
        Ok(())
    }
}

/// Parses a request head of at most `max_head` bytes at the start of `buffer`. Returns its length
/// and the request, or None if bytes are missing.
///
/// # Errors
/// Returns a [`HeadError`], whose [`HeadError::status`] is the status of the response.
pub fn parse_request(buffer: &[u8], max_head: usize) -> Result<Option<(usize, Request<'_>)>, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(&buffer[..buffer.len().min(max_head)]) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if buffer.len() >= max_head => return Err(HeadError::TooLarge),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(head_error(error)),
    };
    let target = parsed.path.unwrap_or("");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let http_1_1 = parsed.version == Some(1);
    let method = parsed.method.unwrap_or("");
    let mut request = Request { method, path, query, keep_alive: http_1_1, ..Request::default() };
    let mut seen = Seen::default();
    for header in parsed.headers.iter() {
        request.read_field(header.name, field_text(header.value)?, &mut seen)?;
    }
    let Seen { upgrade_named, upgrade_asked, close, hosts, framing } = seen;
    if hosts > 1 || (http_1_1 && hosts == 0) {
        return Err(HeadError::Host);
    }
    if framing.chunked && !http_1_1 {
        return Err(HeadError::BodyLength);
    }
    // `close` in any field takes precedence (RFC 9112 section 9.3).
    request.keep_alive &= !close;
    request.upgrade = upgrade_named && upgrade_asked;
    request.content_length = if framing.chunked { None } else { Some(framing.length.unwrap_or(0)) };
    Ok(Some((length, request)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::head_is_complete;

    const UPGRADE: &[u8] = b"GET /socket.io/?EIO=3&transport=websocket HTTP/1.1\r\nHost: a\r\n\
        Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\nOrigin: http://x\r\n\r\n";

    #[test]
    fn parses_upgrade_and_leaves_following_bytes() {
        let bytes = [UPGRADE, b"\x81\x80"].concat();
        let (used, request) = parse_request(&bytes, MAX_HEAD).unwrap().unwrap();
        assert_eq!(used, UPGRADE.len());
        assert_eq!((request.method, request.path, request.query), ("GET", "/socket.io/", "EIO=3&transport=websocket"));
        assert!(request.upgrade && request.keep_alive);
        assert_eq!(request.origin, Some("http://x"));
        assert_eq!(request.content_length, Some(0));
    }

    #[test]
    fn every_prefix_is_incomplete() {
        for end in 0..UPGRADE.len() {
            assert_eq!(parse_request(&UPGRADE[..end], MAX_HEAD), Ok(None), "{end}");
            assert!(!head_is_complete(&UPGRADE[..end], 0), "{end}");
            assert!(head_is_complete(UPGRADE, end), "{end}");
        }
        assert!(head_is_complete(b"GET / HTTP/1.1\n\n", 0));
    }

    #[test]
    fn rejects_smuggling_and_oversize() {
        let refused = |fields: &str| {
            parse_request(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes(), MAX_HEAD).map(|_| ())
        };
        for shape in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\u{a0}\r\n",
            "Content-Length: \u{2003}1\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ] {
            assert_eq!(refused(shape), Err(HeadError::BodyLength), "{shape}");
        }
        assert_eq!(refused("X: a\r\n b\r\n"), Err(HeadError::Malformed), "folded field");
        assert_eq!(refused("X : a\r\n"), Err(HeadError::Malformed));
        assert_eq!(refused("Host: b\r\n"), Err(HeadError::Host));
        assert_eq!(refused(&"X: y\r\n".repeat(64)), Err(HeadError::TooLarge));
        assert_eq!(refused(&format!("X: {}\r\n", "y".repeat(MAX_HEAD))), Err(HeadError::TooLarge));
        assert_eq!(parse_request(b"GET / HTTP/1.1\r\n\r\n", MAX_HEAD), Err(HeadError::Host));
        assert_eq!(parse_request(b"GET / HTTP/2.0\r\n", MAX_HEAD), Err(HeadError::Version));
        assert_eq!(parse_request(b"\x16\x03\x01\x02\x00\x01", MAX_HEAD), Err(HeadError::Malformed));
    }

    #[test]
    fn keep_alive_depends_on_version_and_field() {
        let alive = |head: &str| parse_request(head.as_bytes(), MAX_HEAD).unwrap().unwrap().1.keep_alive;
        assert!(alive("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(!alive("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert!(!alive("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n"));
        assert!(!alive("GET / HTTP/1.0\r\n\r\n"));
        assert!(alive("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    }
}
