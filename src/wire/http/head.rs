//! The parts that the heads of requests and responses share (RFC 9110, RFC 9112).

use std::fmt;

/// Most header fields of a request, and of most responses.
pub const MAX_HEADERS: usize = 64;

/// The reason why a head is rejected. The fault is always the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// The head is longer than allowed, or has more than [`MAX_HEADERS`] fields.
    TooLarge,
    /// The bytes are not HTTP.
    Malformed,
    /// The version is neither 1.0 nor 1.1.
    Version,
    /// The length of the body is given twice, in two ways, or in an unknown way: the shapes of
    /// request smuggling (RFC 9112 section 11.2).
    BodyLength,
    /// The HTTP/1.1 request does not have exactly one `Host` (RFC 9112 section 3.2).
    Host,
}

impl HeadError {
    /// Returns the status of the response.
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
            Self::Malformed => f.write_str("Not an HTTP request."),
            Self::Version => f.write_str("Only HTTP/1.0 and HTTP/1.1 are supported."),
            Self::BodyLength => f.write_str("The length of the body is ambiguous."),
            Self::Host => f.write_str("Exactly one Host header is required."),
        }
    }
}

/// Returns whether `buffer` holds a whole head. The first `seen` bytes were searched before.
/// Parsing only whole heads keeps the cost linear for peers that send single bytes.
pub fn head_is_complete(buffer: &[u8], seen: usize) -> bool {
    memchr::memchr_iter(b'\n', &buffer[seen..]).any(|at| {
        let before = &buffer[..seen + at];
        before.ends_with(b"\n") || before.ends_with(b"\n\r")
    })
}

/// The fields that determine the length of a body.
#[derive(Default)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
}

impl Framing {
    /// Adds a field of a response. Returns whether the connection must close after this response.
    ///
    /// CouchDB and its proxies are trusted: the same length twice is accepted, and so is a length
    /// beside chunks, which take precedence.
    pub(super) fn add_of_response(&mut self, name: &str, value: &str) -> Result<bool, HeadError> {
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

    /// Adds a field if it determines the length.
    pub(super) fn add(&mut self, name: &str, value: &str) -> Result<(), HeadError> {
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

pub(super) fn head_error(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        httparse::Error::Version => HeadError::Version,
        _ => HeadError::Malformed,
    }
}

pub(super) fn field_text(value: &[u8]) -> Result<&str, HeadError> {
    std::str::from_utf8(value).map(trim).map_err(|_| HeadError::Malformed)
}

/// Removes the white space of HTTP (RFC 9110 section 5.6.3). Unicode white space stays: a proxy in
/// front would keep it, and see another value than this server.
fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// Returns whether a comma-separated field holds a token, ignoring case (RFC 9110 section 5.6.1).
pub fn has_token(value: &str, token: &str) -> bool {
    list(value).any(|part| part.eq_ignore_ascii_case(token))
}

/// Splits a comma-separated field (RFC 9110 section 5.6.1) whose members hold no commas.
pub fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(trim)
}
