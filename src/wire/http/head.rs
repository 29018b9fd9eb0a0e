//! What the heads of requests and responses have in common (RFC 9110, RFC 9112).

use std::fmt;

/// Most header fields of a request, and of most responses.
pub const MAX_HEADERS: usize = 64;

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

/// The two fields that say how long a body is.
#[derive(Default)]
pub(super) struct Framing {
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
}

impl Framing {
    /// Takes note of a field of a response. The same length twice, and a length beside chunks,
    /// which win over it, are taken from a peer that is trusted; whether the connection is of no
    /// use for another request then.
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

    /// Takes note of a field; others than the two are passed over.
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
