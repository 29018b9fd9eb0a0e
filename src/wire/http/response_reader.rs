//! A whole HTTP response of CouchDB, read incrementally: its head, then its body in any framing.

use std::fmt;

use super::body::{BodyDecoder, BodyError, Piece};
use super::head::{HeadError, head_is_complete};
use super::response::{MAX_RESPONSE_HEAD, Response, parse_response};

/// A part of a response.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The whole head.
    Head(Response),
    /// Content of the body.
    Data(&'a [u8]),
    /// The end of the response.
    End,
    /// All input was used and the response goes on.
    NeedMore,
}

/// The reason why a response is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseError {
    /// The head is malformed.
    Head(HeadError),
    /// The framing of the body is malformed.
    Body(BodyError),
}

impl fmt::Display for ResponseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(HeadError::TooLarge) => f.write_str("the head of the response is too large"),
            Self::Head(_) => f.write_str("the response is not HTTP/1.1"),
            Self::Body(error) => error.fmt(f),
        }
    }
}

/// Reads a response part by part.
#[derive(Debug)]
pub enum ResponseReader {
    /// Collecting the head, at most [`MAX_RESPONSE_HEAD`] bytes.
    Head(Vec<u8>),
    /// In the body.
    Body(BodyDecoder),
}

impl ResponseReader {
    /// Creates a reader at the start of a response.
    pub const fn new() -> Self {
        Self::Head(Vec::new())
    }

    /// Returns whether no byte of the response has arrived.
    pub fn is_untouched(&self) -> bool {
        matches!(self, Self::Head(buffer) if buffer.is_empty())
    }

    /// Returns whether the end of the connection is a regular end of the response.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self, Self::Body(decoder) if decoder.ends_with_connection())
    }

    /// Takes the next part off `input`. Returns the number of bytes used, and the part.
    ///
    /// # Errors
    /// Returns a [`ResponseError`]. The connection is of no use afterwards.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Part<'a>), ResponseError> {
        match self {
            Self::Head(_) => self.next_of_head(input).map_err(ResponseError::Head),
            Self::Body(decoder) => {
                let (used, piece) = decoder.next(input).map_err(ResponseError::Body)?;
                let part = match piece {
                    Piece::Data(data) => Part::Data(data),
                    Piece::End => Part::End,
                    Piece::NeedMore => Part::NeedMore,
                };
                Ok((used, part))
            }
        }
    }

    fn next_of_head(&mut self, input: &[u8]) -> Result<(usize, Part<'static>), HeadError> {
        let mut used = 0;
        loop {
            let Self::Head(buffer) = self else { unreachable!("called in the head only") };
            let seen = buffer.len();
            let room = (MAX_RESPONSE_HEAD - seen).min(input.len() - used);
            buffer.extend_from_slice(&input[used..used + room]);
            let parsed = if head_is_complete(buffer, seen) { parse_response(buffer)? } else { None };
            let Some((length, response)) = parsed else {
                // Reject other protocols early: their heads may never end.
                if buffer.len() >= MAX_RESPONSE_HEAD || !b"HTTP/1.".starts_with(&buffer[..buffer.len().min(7)]) {
                    parse_response(buffer)?;
                }
                return Ok((used + room, Part::NeedMore));
            };
            used += length - seen;
            if response.status >= 200 {
                *self = Self::Body(response.body.clone());
                return Ok((used, Part::Head(response)));
            }
            *self = Self::new();
        }
    }
}

impl Default for ResponseReader {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
        1\r\n\n\r\n3\r\nabc\r\n0\r\n\r\n";

    fn read(parts: &[&[u8]]) -> Result<(Option<u16>, Vec<u8>, bool), ResponseError> {
        let (mut reader, mut status, mut content) = (ResponseReader::new(), None, Vec::new());
        for part in parts {
            let mut rest = *part;
            loop {
                let (used, part) = reader.next(rest)?;
                rest = &rest[used..];
                match part {
                    Part::Head(head) => status = Some(head.status),
                    Part::Data(data) => content.extend_from_slice(data),
                    Part::End => return Ok((status, content, rest.is_empty())),
                    Part::NeedMore => break,
                }
            }
        }
        Ok((status, content, false))
    }

    #[test]
    fn every_split_yields_the_same_response() {
        for at in 0..=BYTES.len() {
            let whole = Ok((Some(200), b"\nabc".to_vec(), true));
            assert_eq!(read(&[&BYTES[..at], &BYTES[at..]]), whole, "{at}");
        }
        let bytes: Vec<&[u8]> = BYTES.chunks(1).collect();
        assert_eq!(read(&bytes), Ok((Some(200), b"\nabc".to_vec(), true)));
    }

    #[test]
    fn every_prefix_is_unfinished() {
        for end in 0..BYTES.len() {
            assert!(!read(&[&BYTES[..end]]).unwrap().2, "{end}");
        }
    }

    #[test]
    fn rejects_other_protocols_at_once() {
        for bytes in [&b"SSH-2.0-OpenSSH"[..], b"\x15\x03\x01\x00\x02\x02", b"<html>"] {
            assert!(matches!(read(&[bytes]), Err(ResponseError::Head(_))), "{bytes:?}");
        }
        let endless = vec![b'x'; MAX_RESPONSE_HEAD];
        assert!(read(&[b"HTTP/1.1 200 OK\r\nX: ", &endless]).is_err());
    }
}
