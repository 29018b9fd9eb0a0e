//! The head of a response of CouchDB, parsed with httparse.

use super::body::BodyDecoder;
use super::date::parse_date;
use super::head::{Framing, HeadError, MAX_HEADERS, field_text, has_token, head_error};
use crate::wire::secret::Secret;

/// Longest head of a response, in bytes. Proxies add policies and cookies; curl reads 300 KiB.
pub const MAX_RESPONSE_HEAD: usize = 256 * 1024;
/// Most header fields of a response; curl has the same limit.
const MAX_RESPONSE_HEADERS: usize = 5_000;

/// The head of a response of CouchDB, as far as this server uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Whether another request may follow on the connection.
    pub keep_alive: bool,
    /// Decoder for the body behind the head.
    pub body: BodyDecoder,
    /// The `Set-Cookie` value with an `AuthSession`, as sent.
    pub auth_cookie: Option<Secret>,
    /// The `Date`, in seconds since 1970.
    pub date: Option<u64>,
}

/// Parses a response head at the start of `buffer`. Returns its length and the response, or None if
/// bytes are missing. The caller skips `1xx` heads.
///
/// Proxies in front of CouchDB may write sloppy lines. As in curl, white space in front of a colon
/// is ignored, and so is a line that is no field.
///
/// # Errors
/// Returns a [`HeadError`] if the bytes are no HTTP/1 response.
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
                auth_cookie = Some(Secret::new(value));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignores_sloppy_lines_of_responses() {
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
        // A peer that takes the length would read the rest as another response.
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
    fn parses_responses() {
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
}
