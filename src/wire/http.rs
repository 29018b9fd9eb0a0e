//! HTTP/1.1 heads (RFC 9110, RFC 9112), both directions: requests of clients and answers of CouchDB
//! read with httparse, our own answers written. Bodies are in [`super::body`].

use std::fmt;
use std::io::Write as _;

use super::body::BodyDecoder;

/// Longest head of a request unless told otherwise, in bytes.
pub const MAX_HEAD: usize = 16 * 1024;
/// Most header fields of a request, and of most responses.
pub const MAX_HEADERS: usize = 64;
/// Longest head of a response, in bytes. Proxies add policies and cookies; curl reads 300 KiB.
pub const MAX_RESPONSE_HEAD: usize = 256 * 1024;
/// Most header fields of a response; curl reads as many.
const MAX_RESPONSE_HEADERS: usize = 5_000;

/// Why a head cannot be served, and so whose fault it is: always the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// Longer than allowed or with more than [`MAX_HEADERS`] fields.
    TooLarge,
    /// Not HTTP.
    Malformed,
    /// A version other than 1.0 and 1.1.
    Version,
    /// The length of the body is given twice, in two ways, or in a way that is not understood: the
    /// shapes that request smuggling is made of (RFC 9112 section 11.2).
    BodyLength,
    /// An HTTP/1.1 request without exactly one `Host` (RFC 9112 section 3.2).
    Host,
}

impl HeadError {
    /// The status that answers it.
    pub fn status(self) -> u16 {
        match self {
            Self::TooLarge => 431,
            Self::Version => 505,
            Self::Malformed | Self::BodyLength | Self::Host => 400,
        }
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "The head is too long, or has more than {MAX_HEADERS} fields."),
            Self::Malformed => f.write_str("This is no HTTP request."),
            Self::Version => f.write_str("Only HTTP/1.0 and HTTP/1.1 are spoken here."),
            Self::BodyLength => f.write_str("The length of the body is not clear."),
            Self::Host => f.write_str("Exactly one Host header is due."),
        }
    }
}

/// Whether `buffer` holds a whole head, when its first `seen` bytes were looked at before without
/// success. A head is parsed only then, so that a slow drip costs linear time.
pub fn head_is_complete(buffer: &[u8], seen: usize) -> bool {
    memchr::memchr_iter(b'\n', &buffer[seen..]).any(|at| {
        let before = &buffer[..seen + at];
        before.ends_with(b"\n") || before.ends_with(b"\n\r")
    })
}

/// The head of a client's request: what this server reads of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The method as it was sent.
    pub method: &'a str,
    /// The target up to a `?`.
    pub path: &'a str,
    /// The target behind the `?`; empty when there is none. May hold credentials: never log it.
    pub query: &'a str,
    /// Whether the connection may serve another request.
    pub keep_alive: bool,
    /// The length of the body, 0 when no header speaks of one; None when it is chunked.
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
    /// Whether `Upgrade: websocket` was asked for (RFC 6455 section 4.2.1).
    pub upgrade: bool,
    /// `Sec-WebSocket-Key`.
    pub websocket_key: Option<&'a str>,
    /// `Sec-WebSocket-Version`.
    pub websocket_version: Option<&'a str>,
    /// `Sec-WebSocket-Protocol`.
    pub websocket_protocol: Option<&'a str>,
}

impl Request<'_> {
    /// The decoder for the body that follows the head.
    pub fn body(&self) -> BodyDecoder {
        self.content_length.map_or(BodyDecoder::chunked(), BodyDecoder::Length)
    }
}

/// Reads a request head of at most `max_head` bytes off the start of `buffer`; returns its length and itself, or None
/// when bytes are missing.
///
/// # Errors
/// [`HeadError`]; its [`HeadError::status`] is the answer.
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
    let mut request = Request {
        method: parsed.method.unwrap_or(""),
        path,
        query,
        keep_alive: http_1_1,
        content_length: Some(0),
        host: None,
        if_none_match: None,
        content_type: None,
        origin: None,
        user_agent: None,
        forwarded_for: None,
        forwarded_proto: None,
        upgrade: false,
        websocket_key: None,
        websocket_version: None,
        websocket_protocol: None,
    };
    let (mut upgrade_named, mut upgrade_asked, mut close, mut hosts) = (false, false, false, 0);
    let mut framing = Framing::default();
    for header in parsed.headers.iter() {
        let value = field_text(header.value)?;
        match header.name {
            n if n.eq_ignore_ascii_case("host") => {
                hosts += 1;
                request.host = Some(value);
            }
            n if n.eq_ignore_ascii_case("if-none-match") => request.if_none_match = Some(value),
            n if n.eq_ignore_ascii_case("connection") => {
                upgrade_asked |= has_token(value, "upgrade");
                request.keep_alive |= has_token(value, "keep-alive");
                close |= has_token(value, "close");
            }
            n if n.eq_ignore_ascii_case("upgrade") => upgrade_named |= has_token(value, "websocket"),
            n if n.eq_ignore_ascii_case("origin") => request.origin = Some(value),
            n if n.eq_ignore_ascii_case("content-type") => request.content_type = Some(value),
            n if n.eq_ignore_ascii_case("user-agent") => request.user_agent = Some(value),
            n if n.eq_ignore_ascii_case("x-forwarded-for") => request.forwarded_for = Some(value),
            n if n.eq_ignore_ascii_case("x-forwarded-proto") => request.forwarded_proto = Some(value),
            n if n.eq_ignore_ascii_case("sec-websocket-key") => request.websocket_key = Some(value),
            n if n.eq_ignore_ascii_case("sec-websocket-version") => request.websocket_version = Some(value),
            n if n.eq_ignore_ascii_case("sec-websocket-protocol") => request.websocket_protocol = Some(value),
            n => framing.add(n, value)?,
        }
    }
    if hosts > 1 || (http_1_1 && hosts == 0) {
        return Err(HeadError::Host);
    }
    if framing.chunked && !http_1_1 {
        return Err(HeadError::BodyLength);
    }
    // `close` in any field wins (RFC 9112 section 9.3).
    request.keep_alive &= !close;
    request.upgrade = upgrade_named && upgrade_asked;
    request.content_length = if framing.chunked { None } else { Some(framing.length.unwrap_or(0)) };
    Ok(Some((length, request)))
}

/// The head of an answer of CouchDB: what this server reads of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Whether the connection may serve another request.
    pub keep_alive: bool,
    /// The decoder for the body that follows the head.
    pub body: BodyDecoder,
    /// The `Set-Cookie` that holds an `AuthSession`, as it came.
    pub auth_cookie: Option<super::secret::Secret>,
    /// The `Date`, in seconds since 1970.
    pub date: Option<u64>,
}

/// Reads a response head off the start of `buffer`; returns its length and itself, or None when bytes
/// are missing. `1xx` heads are the caller's to skip.
///
/// What stands between CouchDB and this server may write sloppy lines. As in curl, white space in
/// front of a colon does not count, and a line that is no field is passed over.
///
/// # Errors
/// [`HeadError`] when it is no HTTP/1 response.
pub fn parse_response(buffer: &[u8]) -> Result<Option<(usize, Response)>, HeadError> {
    match parse_response_into(buffer, &mut [httparse::EMPTY_HEADER; MAX_HEADERS]) {
        Err(HeadError::TooLarge) => {
            parse_response_into(buffer, &mut vec![httparse::EMPTY_HEADER; MAX_RESPONSE_HEADERS])
        }
        parsed => parsed,
    }
}

fn parse_response_into<'a>(
    buffer: &'a [u8],
    headers: &mut [httparse::Header<'a>],
) -> Result<Option<(usize, Response)>, HeadError> {
    let mut parsed = httparse::Response::new(headers);
    let mut parser = httparse::ParserConfig::default();
    parser.allow_spaces_after_header_name_in_responses(true);
    parser.ignore_invalid_headers_in_responses(true);
    parser.allow_multiple_spaces_in_response_status_delimiters(true);
    let length = match parser.parse_response(&mut parsed, &buffer[..buffer.len().min(MAX_RESPONSE_HEAD)]) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if buffer.len() >= MAX_RESPONSE_HEAD => return Err(HeadError::TooLarge),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(head_error(error)),
    };
    let status = parsed.code.unwrap_or(0);
    let (mut keep_alive, mut close) = (parsed.version == Some(1), false);
    let mut framing = Framing::default();
    let (mut auth_cookie, mut date) = (None, None);
    for header in parsed.headers.iter() {
        let Ok(value) = field_text(header.value) else { continue };
        match header.name {
            n if n.eq_ignore_ascii_case("connection") => {
                keep_alive |= has_token(value, "keep-alive");
                close |= has_token(value, "close");
            }
            n if n.eq_ignore_ascii_case("set-cookie") && value.starts_with("AuthSession=") => {
                auth_cookie = Some(super::secret::Secret::new(value));
            }
            n if n.eq_ignore_ascii_case("date") => date = parse_date(value),
            n => close |= framing.add_of_response(n, value)?,
        }
    }
    let body = match framing {
        _ if status < 200 || status == 204 || status == 304 => BodyDecoder::Length(0),
        Framing { chunked: true, .. } => BodyDecoder::chunked(),
        Framing { length: Some(length), .. } => BodyDecoder::Length(length),
        Framing { .. } => BodyDecoder::UntilClose,
    };
    keep_alive &= !close && !body.ends_with_connection();
    Ok(Some((length, Response { status, keep_alive, body, auth_cookie, date })))
}

/// Reads a date as servers write it (RFC 9110 section 5.6.7, IMF-fixdate), in seconds since 1970.
pub fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (_, rest) = text.split_once(", ")?;
    let mut parts = rest.split(' ');
    let (day, month, year) = (number(parts.next()?)?, parts.next()?, number(parts.next()?)?);
    let (time, zone) = (parts.next()?, parts.next()?);
    let mut clock = time.split(':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let month = MONTHS.chunks(3).position(|name| name == month.as_bytes())? as u64;
    let in_range =
        (1..=31).contains(&day) && (1970..10_000).contains(&year) && hour < 24 && minute < 60 && second <= 60;
    if !in_range || zone != "GMT" || parts.next().is_some() || clock.next().is_some() {
        return None;
    }
    // Howard Hinnant's days_from_civil: years that begin in March have the leap day at their end.
    let (shifted_year, shifted_month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// The two fields that say how long a body is.
#[derive(Default)]
struct Framing {
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    /// Takes note of a field of a response. The same length twice, and a length beside chunks,
    /// which win over it, are taken from a peer that is trusted; whether the connection is of no
    /// use for another request then.
    fn add_of_response(&mut self, name: &str, value: &str) -> Result<bool, HeadError> {
        let before = std::mem::take(self);
        self.add(name, value)?;
        let both = before.chunked && self.length.is_some() || before.length.is_some() && self.chunked;
        if both || self.chunked && before.chunked {
            *self = Self { length: None, chunked: true };
            return Ok(true);
        }
        match (before.length, self.length) {
            (Some(one), Some(other)) if one != other => Err(HeadError::BodyLength),
            _ => {
                *self = Self { length: self.length.or(before.length), chunked: self.chunked || before.chunked };
                Ok(false)
            }
        }
    }

    /// Takes note of a field; others than the two are passed over.
    fn add(&mut self, name: &str, value: &str) -> Result<(), HeadError> {
        if name.eq_ignore_ascii_case("content-length") {
            let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            let length = value.parse().ok().filter(|_| plain).ok_or(HeadError::BodyLength)?;
            if self.chunked || self.length.replace(length).is_some() {
                return Err(HeadError::BodyLength);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if self.chunked || self.length.is_some() || !value.eq_ignore_ascii_case("chunked") {
                return Err(HeadError::BodyLength);
            }
            self.chunked = true;
        }
        Ok(())
    }
}

fn head_error(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        httparse::Error::Version => HeadError::Version,
        _ => HeadError::Malformed,
    }
}

fn field_text(value: &[u8]) -> Result<&str, HeadError> {
    std::str::from_utf8(value).map(trim).map_err(|_| HeadError::Malformed)
}

/// Takes off the white space that HTTP knows (RFC 9110 section 5.6.3). That of Unicode stays: a proxy
/// in front would not take it off, and see another value than this server.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// Whether a comma-separated field holds a token, in any case of letters (RFC 9110 section 5.6.1).
pub fn has_token(value: &str, token: &str) -> bool {
    list(value).any(|part| part.eq_ignore_ascii_case(token))
}

/// The members of a comma-separated field (RFC 9110 section 5.6.1) none of which can hold a comma.
pub fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(trim)
}

/// Appends an answer with a body, whole: status line, `Content-Length`, `Connection`, the given
/// fields, the body (left out for a HEAD request, whose length it still tells).
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

/// An answer of ours.
#[derive(Debug)]
pub struct Answer<'a> {
    /// The status code.
    pub status: u16,
    /// Header fields beside `Content-Length` and `Connection`. The values are ours or were checked:
    /// nothing of a peer that could hold a line end.
    pub fields: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
    /// Whether the body is left out because the method was HEAD.
    pub head_only: bool,
    /// Whether the connection stays open.
    pub keep_alive: bool,
}

/// Appends the head that turns the connection into a WebSocket (RFC 6455 section 4.2.2).
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

    const UPGRADE: &[u8] = b"GET /socket.io/?EIO=3&transport=websocket HTTP/1.1\r\nHost: a\r\n\
        Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\nOrigin: http://x\r\n\r\n";

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800),
            ("Fri, 31 Dec 1999 23:59:60 GMT", 946_684_800),
        ] {
            assert_eq!(parse_date(text), Some(seconds), "{text}");
            for end in 0..text.len() {
                assert_eq!(parse_date(&text[..end]), None, "{}", &text[..end]);
            }
        }
        for bad in [
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 08:49:37 GMT ",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "1994-11-06T08:49:37Z",
        ] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn reads_an_upgrade_and_leaves_what_follows() {
        let bytes = [UPGRADE, b"\x81\x80"].concat();
        let (used, request) = parse_request(&bytes, MAX_HEAD).unwrap().unwrap();
        assert_eq!(used, UPGRADE.len());
        assert_eq!((request.method, request.path, request.query), ("GET", "/socket.io/", "EIO=3&transport=websocket"));
        assert!(request.upgrade && request.keep_alive);
        assert_eq!(request.origin, Some("http://x"));
        assert_eq!(request.content_length, Some(0));
    }

    #[test]
    fn every_prefix_needs_more_and_is_seen_incomplete() {
        for end in 0..UPGRADE.len() {
            assert_eq!(parse_request(&UPGRADE[..end], MAX_HEAD), Ok(None), "{end}");
            assert!(!head_is_complete(&UPGRADE[..end], 0), "{end}");
            assert!(head_is_complete(UPGRADE, end), "{end}");
        }
        assert!(head_is_complete(b"GET / HTTP/1.1\n\n", 0));
    }

    #[test]
    fn refuses_smuggling_shapes_and_oversize() {
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
    fn keep_alive_by_version_and_field() {
        let alive = |head: &str| parse_request(head.as_bytes(), MAX_HEAD).unwrap().unwrap().1.keep_alive;
        assert!(alive("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert!(!alive("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
        assert!(!alive("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n"));
        assert!(!alive("GET / HTTP/1.0\r\n\r\n"));
        assert!(alive("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    }

    #[test]
    fn sloppy_lines_of_responses_do_not_matter() {
        let read = |fields: &str| {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            for end in 0..head.len() {
                assert_eq!(parse_response(&head.as_bytes()[..end]), Ok(None), "{fields}: {end}");
            }
            parse_response(head.as_bytes()).map(|parsed| parsed.expect("whole").1)
        };
        for fields in [
            "Content-Length : 2\r\nX-Proxy\t : a\r\n",
            "X Proxy: a\r\nContent-Length: 2\r\n",
            ": nothing\r\nno colon\r\nContent-Length: 2\r\n",
            "X: a\r\n folded\r\nContent-Length: 2\r\n",
            "X\u{fc}: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n",
            &("X-Field: a\r\n".repeat(500) + "Content-Length: 2\r\n"),
            &("a:\r\n".repeat(2_000) + "Content-Length: 2\r\n"),
        ] {
            let response = read(fields).unwrap_or_else(|error| panic!("{error:?}: {fields}"));
            assert_eq!((response.body, response.keep_alive), (BodyDecoder::Length(2), true), "{fields}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nX-Policy: {}\r\nContent-Length: 2\r\n\r\n", "x".repeat(40_000));
        assert_eq!(parse_response(long.as_bytes()).unwrap().unwrap().1.body, BodyDecoder::Length(2));
        let cookie = read("Set-Cookie : AuthSession=abc\r\nContent-Length: 0\r\n").unwrap().auth_cookie;
        assert_eq!(cookie.unwrap().reveal(), "AuthSession=abc");
        // Who counts otherwise would take the rest for another answer.
        for fields in [
            "Content-Length: 2\r\nTransfer-Encoding : chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        ] {
            let response = read(fields).unwrap();
            assert_eq!((response.body, response.keep_alive), (BodyDecoder::chunked(), false), "{fields}");
        }
        for fields in
            ["Content-Length: 2\r\nContent-Length: 3\r\n", "Content-Length: x\r\n", "Transfer-Encoding: gzip\r\n"]
        {
            assert_eq!(read(fields), Err(HeadError::BodyLength), "{fields}");
        }
    }

    #[test]
    fn reads_responses() {
        let head = b"HTTP/1.1 200 OK\r\nSet-Cookie: AuthSession=abc; Version=1; Path=/; HttpOnly\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (used, response) = parse_response(head).unwrap().unwrap();
        assert_eq!((used, response.status, response.keep_alive), (head.len(), 200, true));
        assert_eq!(response.body, BodyDecoder::chunked());
        assert_eq!(response.auth_cookie.unwrap().reveal(), "AuthSession=abc; Version=1; Path=/; HttpOnly");
        for end in 0..head.len() {
            assert_eq!(parse_response(&head[..end]), Ok(None), "{end}");
        }
        let until_close = parse_response(b"HTTP/1.0 401 No\r\n\r\n").unwrap().unwrap().1;
        assert_eq!((until_close.body, until_close.keep_alive), (BodyDecoder::UntilClose, false));
        let empty = parse_response(b"HTTP/1.1 204 No\r\n\r\n").unwrap().unwrap().1;
        assert_eq!((empty.body, empty.keep_alive), (BodyDecoder::Length(0), true));
        let closing = b"HTTP/1.1 204 No\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n";
        assert!(!parse_response(closing).unwrap().unwrap().1.keep_alive);
        assert!(parse_response(b"SSH-2.0-x\r\n").is_err());
    }

    #[test]
    fn writes_answers_and_upgrades() {
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
