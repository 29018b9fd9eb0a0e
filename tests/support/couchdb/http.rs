//! The HTTP of the stand-in: parses requests and writes responses. It touches no socket.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Longest head of a request, in bytes.
pub(super) const HEAD_LIMIT: usize = 64 * 1024;
/// Longest body of a request, in bytes.
pub(super) const BODY_LIMIT: usize = 64 * 1024 * 1024;
/// Most header lines of a request.
const HEADERS_LIMIT: usize = 128;

/// A whole request with its decoded body.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) minor_version: u8,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) peer: SocketAddr,
    pub(super) connection: u64,
}

impl Request {
    /// Returns the first header of that name.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns the path without the query.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Returns a decoded query parameter.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        form_field(query, name)
    }

    /// Returns whether the connection may carry another request.
    pub(super) fn keeps_alive(&self) -> bool {
        let wish = self.header("connection").unwrap_or_default();
        if self.minor_version == 0 {
            wish.eq_ignore_ascii_case("keep-alive")
        } else {
            !wish.eq_ignore_ascii_case("close")
        }
    }

    /// Returns whether the sender wants a page for a browser rather than JSON.
    pub(super) fn wants_page(&self) -> bool {
        self.header("accept")
            .is_some_and(|accept| accept.contains("text/html") && !accept.contains("json") && !accept.contains("*/*"))
    }

    /// Returns the address that wrong passwords count for: the last one of `X-Forwarded-For` if
    /// CouchDB trusts the peer, else the peer itself.
    pub(super) fn client(&self) -> String {
        let peer = self.peer.ip();
        self.header("x-forwarded-for")
            .filter(|_| is_believed(peer))
            .and_then(|list| list.split(',').next_back())
            .map(str::trim)
            .filter(|address| !address.is_empty())
            .map_or_else(|| peer.to_string(), str::to_owned)
    }
}

/// Returns whether CouchDB trusts the `X-Forwarded-For` of a peer.
fn is_believed(peer: IpAddr) -> bool {
    let IpAddr::V4(four) = peer else { return false };
    let [first, second, ..] = four.octets();
    four.is_private() || (first == 100 && second & 0xc0 == 64) || four == Ipv4Addr::LOCALHOST
}

/// The framing of the body after a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// This many bytes.
    Length(usize),
    /// Chunks up to the zero chunk.
    Chunked,
}

/// Parses a head; `Ok(None)` needs more bytes. The body of the request is empty.
pub(super) fn parse_head(
    bytes: &[u8],
    peer: SocketAddr,
    connection: u64,
) -> Result<Option<(usize, Request, Framing)>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
    let mut head = httparse::Request::new(&mut headers);
    let used = match head.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if bytes.len() > HEAD_LIMIT => return Err("head too long"),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err("bad request head"),
    };
    let request = Request {
        method: head.method.unwrap_or_default().to_owned(),
        target: head.path.unwrap_or_default().to_owned(),
        minor_version: head.version.unwrap_or(1),
        headers: head
            .headers
            .iter()
            .map(|header| {
                let value = String::from_utf8_lossy(header.value).into_owned();
                (header.name.to_owned(), value)
            })
            .collect(),
        body: Vec::new(),
        peer,
        connection,
    };
    let chunked =
        request.header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    let framing = if chunked {
        Framing::Chunked
    } else {
        match request.header("content-length").map(str::parse::<usize>) {
            None => Framing::Length(0),
            Some(Ok(length)) if length <= BODY_LIMIT => Framing::Length(length),
            Some(_) => return Err("bad Content-Length"),
        }
    };
    Ok(Some((used, request, framing)))
}

/// Decodes a chunked body; `Ok(None)` needs more bytes.
pub(super) fn parse_chunked(bytes: &[u8]) -> Result<Option<(usize, Vec<u8>)>, &'static str> {
    let mut used = 0;
    let mut body = Vec::new();
    loop {
        let rest = &bytes[used..];
        let (line, size) = match httparse::parse_chunk_size(rest) {
            Ok(httparse::Status::Complete(found)) => found,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("bad chunk size"),
        };
        let size = usize::try_from(size).map_err(|_| "chunk too long")?;
        if size > BODY_LIMIT - body.len() {
            return Err("body too long");
        }
        let Some(chunk) = rest.get(line..line + size + 2) else {
            return Ok(None);
        };
        if !chunk.ends_with(b"\r\n") {
            return Err("bad end of a chunk");
        }
        body.extend_from_slice(&chunk[..size]);
        used += line + size + 2;
        if size == 0 {
            return Ok(Some((used, body)));
        }
    }
}

/// A response.
#[derive(Debug, Clone)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
    /// Whether the body is chunked rather than of a known length.
    pub(super) chunked: bool,
}

impl Response {
    /// Returns a JSON response, which ends with a line feed as in CouchDB.
    pub(super) fn json(status: u16, body: &str) -> Self {
        Self {
            status,
            headers: vec![("Content-Type", "application/json".to_owned())],
            body: format!("{body}\n"),
            chunked: false,
        }
    }

    /// Returns an error in CouchDB's form.
    pub(super) fn error(status: u16, error: &str, reason: &str) -> Self {
        let reason = json_string(reason);
        Self::json(status, &format!(r#"{{"error":"{error}","reason":{reason}}}"#))
    }

    /// Returns the response with one more header.
    pub(super) fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Returns the bytes of the response. There is no body for HEAD.
    pub(super) fn to_bytes(&self, request: &Request, now: Duration) -> Vec<u8> {
        let mut head = head(self.status, &self.headers, request, now);
        let with_body = request.method != "HEAD";
        if self.chunked {
            head.push_str("Transfer-Encoding: chunked\r\n\r\n");
            let mut bytes = head.into_bytes();
            if with_body {
                // Two chunks, to expose clients that read only one.
                let (first, second) = self.body.as_bytes().split_at(self.body.len() / 2);
                push_chunk(&mut bytes, first);
                push_chunk(&mut bytes, second);
                bytes.extend_from_slice(b"0\r\n\r\n");
            }
            return bytes;
        }
        let _ = write!(head, "Content-Length: {}\r\n\r\n", self.body.len());
        if with_body {
            head.push_str(&self.body);
        }
        head.into_bytes()
    }
}

/// Returns a response head up to the header that frames the body.
pub(super) fn head(status: u16, headers: &[(&'static str, String)], request: &Request, now: Duration) -> String {
    let reason = reason(status);
    let own_date = headers.iter().find(|(name, _)| *name == "Date").map(|(_, value)| value.clone());
    let date = own_date.unwrap_or_else(|| http_date(now));
    let mut head = format!(
        "HTTP/1.1 {status} {reason}\r\nCache-Control: must-revalidate\r\nDate: {date}\r\n\
         Server: CouchDB/3.5.0 (Erlang OTP/25)\r\nX-Couch-Request-ID: {:010x}\r\n",
        now.as_nanos() & 0xff_ffff_ffff,
    );
    for (name, value) in headers.iter().filter(|(name, _)| *name != "Date") {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    if !request.keeps_alive() {
        head.push_str("Connection: close\r\n");
    }
    head
}

/// Appends a chunk. Leaves out an empty one, which would end the body.
pub(super) fn push_chunk(bytes: &mut Vec<u8>, payload: &[u8]) {
    if !payload.is_empty() {
        bytes.extend_from_slice(format!("{:x}\r\n", payload.len()).as_bytes());
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
    }
}

/// Returns a JSON string with its quotes.
pub(super) fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        301 => "Moved Permanently",
        302 => "Moved Temporarily",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Object Not Found",
        405 => "Method Not Allowed",
        410 => "Gone",
        412 => "Precondition Failed",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Long",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Unknown",
    }
}

/// Returns a decoded field of a form or a query.
pub(super) fn form_field(form: &str, name: &str) -> Option<String> {
    form.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (unquote(key) == name).then(|| unquote(value))
    })
}

/// Decodes percent-encoding. As in CouchDB, a plus is a space in paths too: a database `a+b` is
/// reached as `/a%2Bb` only.
pub(super) fn unquote(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = tail
            .get(..2)
            .filter(|_| first == b'%')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        rest = if escaped.is_some() { &tail[2..] } else { tail };
        bytes.push(escaped.unwrap_or(if first == b'+' { b' ' } else { first }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const BASE64URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Encodes as base64url without padding.
pub(super) fn to_base64url(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let mut value = 0_u32;
        for position in 0..3 {
            value = value << 8 | u32::from(group.get(position).copied().unwrap_or(0));
        }
        for position in 0..=group.len() {
            let index = value >> (18 - 6 * position) & 63;
            text.push(char::from(BASE64URL[index as usize]));
        }
    }
    text
}

/// Decodes either alphabet of base64, padded or not.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    if text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut value, mut bits) = (0_u32, 0);
    for letter in text.bytes() {
        let digit = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' | b'+' => 62,
            b'_' | b'/' => 63,
            _ => return None,
        };
        value = (value << 6 | u32::from(digit)) & 0xff_ffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((value >> bits & 0xff) as u8);
        }
    }
    Some(bytes)
}

/// Returns the date for HTTP headers and cookies.
pub(super) fn http_date(since_1970: Duration) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = since_1970.as_secs();
    let days = seconds / 86_400;
    // Howard Hinnant's civil_from_days: years begin in March, so the leap day is their last day.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = (march_month + 2) % 12;
    let year = year_of_era + era * 400 + u64::from(month < 2);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[usize::try_from(days % 7).unwrap_or(0)],
        MONTHS[usize::try_from(month).unwrap_or(0)],
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_round_trips() {
        for length in 0..40_u8 {
            let bytes: Vec<u8> = (0..length).map(|value| value.wrapping_mul(37)).collect();
            let text = to_base64url(&bytes);
            assert_eq!(from_base64(&text).as_deref(), Some(&bytes[..]));
        }
        assert_eq!(to_base64url(b"myuser"), "bXl1c2Vy");
        assert_eq!(from_base64("a"), None);
        assert_eq!(from_base64("a b!"), None);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |seconds| http_date(Duration::from_secs(seconds));
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(1_709_164_800), "Thu, 29 Feb 2024 00:00:00 GMT");
    }

    #[test]
    fn unquote_keeps_invalid_escapes() {
        assert_eq!(unquote("a%2Fb+c%zz%4"), "a/b c%zz%4");
    }

    #[test]
    fn every_prefix_of_a_chunked_body_needs_more() {
        let wire = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        for end in 0..wire.len() {
            assert_eq!(parse_chunked(&wire[..end]), Ok(None), "{end}");
        }
        assert_eq!(parse_chunked(wire), Ok(Some((wire.len(), b"abcde".to_vec()))));
        assert!(parse_chunked(b"zz\r\n").is_err());
    }
}
