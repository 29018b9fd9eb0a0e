//! The framing of an HTTP/1.1 body (RFC 9112 section 6): by length, chunked, or up to the end of
//! the connection. The decoder is incremental: every split of the bytes yields the same content.
//!
//! `httparse::parse_chunk_size` needs the whole size line in one buffer and does not limit
//! extensions. This decoder holds no bytes, so it parses sizes itself.

use std::fmt;

/// Longest chunk extension, in bytes. Extensions are ignored.
const MAX_CHUNK_EXTENSION: u16 = 1024;
/// Longest trailer, in bytes. Trailer fields are ignored.
const MAX_TRAILER: u16 = 8192;

/// A piece of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Content.
    Data(&'a [u8]),
    /// The end of the body. The bytes that follow belong to the next message.
    End,
    /// All input was used and the body goes on.
    NeedMore,
}

/// The reason why a chunked body is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// A chunk has no valid size (RFC 9112 section 7.1).
    ChunkSize,
    /// No CRLF follows the data of a chunk.
    ChunkEnd,
    /// A chunk extension or the trailer exceeds its limit.
    TooLong,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChunkSize => "a chunk has no valid size",
            Self::ChunkEnd => "a chunk is longer than its size",
            Self::TooLong => "a chunk extension or trailer is too long",
        })
    }
}

/// Decodes a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyDecoder {
    /// `Content-Length`: the number of bytes that are still to come.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked(Chunk),
    /// Neither header: the end of the connection ends the body.
    UntilClose,
}

/// The state of the decoder within the chunked coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// In the hexadecimal digits of a size.
    Size {
        /// Value of the digits so far.
        value: u64,
        /// Number of digits so far.
        digits: u8,
    },
    /// Behind the size, in an extension or white space.
    Extension {
        /// Size of the chunk.
        value: u64,
        /// Bytes of the extension so far.
        length: u16,
    },
    /// Before the line feed that ends the size line.
    SizeLineFeed(u64),
    /// In the content, with this number of bytes to come.
    Data(u64),
    /// Before the carriage return behind the content.
    DataReturn,
    /// Before the line feed behind the content.
    DataLineFeed,
    /// At the start of a trailer line, or of the empty line that ends the body.
    TrailerStart(u16),
    /// In a trailer field.
    Trailer(u16),
    /// Before the line feed of the empty last line.
    LastLineFeed,
    /// Behind the body.
    Ended,
}

impl BodyDecoder {
    /// Creates a decoder at the start of a chunked body.
    pub const fn chunked() -> Self {
        Self::Chunked(Chunk::Size { value: 0, digits: 0 })
    }

    /// Returns whether the end of the connection is a regular end of the body.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// Takes the next piece off `input`. Returns the number of bytes used, and the piece.
    ///
    /// # Errors
    /// Returns a [`BodyError`] if the body is malformed. The rest of it cannot be decoded.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Piece<'a>), BodyError> {
        match self {
            Self::Length(0) => Ok((0, Piece::End)),
            _ if input.is_empty() => match self {
                Self::Chunked(Chunk::Ended) => Ok((0, Piece::End)),
                _ => Ok((0, Piece::NeedMore)),
            },
            Self::Length(left) => {
                let data = take(left, input);
                Ok((data.len(), Piece::Data(data)))
            }
            Self::UntilClose => Ok((input.len(), Piece::Data(input))),
            Self::Chunked(chunk) => next_of_chunked(chunk, input),
        }
    }
}

fn take<'a>(left: &mut u64, input: &'a [u8]) -> &'a [u8] {
    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
    *left -= length as u64;
    &input[..length]
}

fn next_of_chunked<'a>(chunk: &mut Chunk, input: &'a [u8]) -> Result<(usize, Piece<'a>), BodyError> {
    let mut used = 0;
    while used < input.len() {
        if let Chunk::Data(left) = chunk {
            let data = take(left, &input[used..]);
            if *left == 0 {
                *chunk = Chunk::DataReturn;
            }
            return Ok((used + data.len(), Piece::Data(data)));
        }
        if *chunk == Chunk::Ended {
            return Ok((used, Piece::End));
        }
        *chunk = step(*chunk, input[used])?;
        used += 1;
    }
    let piece = if *chunk == Chunk::Ended { Piece::End } else { Piece::NeedMore };
    Ok((used, piece))
}

/// Advances by one byte of the framing, which is not content.
fn step(chunk: Chunk, byte: u8) -> Result<Chunk, BodyError> {
    Ok(match (chunk, byte) {
        (Chunk::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
            let digit = u64::from(char::from(byte).to_digit(16).expect("a hexadecimal digit"));
            // Fifteen digits cannot overflow, and no chunk is that long.
            if digits == 15 {
                return Err(BodyError::ChunkSize);
            }
            Chunk::Size { value: value << 4 | digit, digits: digits + 1 }
        }
        (Chunk::Size { digits: 0, .. }, _) => return Err(BodyError::ChunkSize),
        (Chunk::Size { value, .. } | Chunk::Extension { value, .. }, b'\r') => Chunk::SizeLineFeed(value),
        (Chunk::Size { value, .. }, b';' | b' ' | b'\t') => Chunk::Extension { value, length: 0 },
        (Chunk::Size { .. }, _) | (Chunk::Extension { .. }, b'\n') => return Err(BodyError::ChunkSize),
        (Chunk::Extension { length: MAX_CHUNK_EXTENSION, .. }, _) => return Err(BodyError::TooLong),
        (Chunk::Extension { value, length }, _) => Chunk::Extension { value, length: length + 1 },
        (Chunk::SizeLineFeed(0), b'\n') => Chunk::TrailerStart(0),
        (Chunk::SizeLineFeed(size), b'\n') => Chunk::Data(size),
        (Chunk::SizeLineFeed(_), _) => return Err(BodyError::ChunkSize),
        (Chunk::DataReturn, b'\r') => Chunk::DataLineFeed,
        (Chunk::DataLineFeed, b'\n') => Chunk::Size { value: 0, digits: 0 },
        (Chunk::TrailerStart(_), b'\r') => Chunk::LastLineFeed,
        (Chunk::Trailer(length), b'\n') => Chunk::TrailerStart(length),
        (Chunk::TrailerStart(MAX_TRAILER) | Chunk::Trailer(MAX_TRAILER), _) => return Err(BodyError::TooLong),
        (Chunk::TrailerStart(length) | Chunk::Trailer(length), _) => Chunk::Trailer(length + 1),
        (Chunk::LastLineFeed, b'\n') => Chunk::Ended,
        (Chunk::DataReturn | Chunk::DataLineFeed | Chunk::LastLineFeed, _) => return Err(BodyError::ChunkEnd),
        (Chunk::Data(_) | Chunk::Ended, _) => unreachable!("content and the end are handled by the caller"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `parts` one after the other. Returns the content, whether it ended, and the bytes
    /// used.
    fn decode(mut decoder: BodyDecoder, parts: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), BodyError> {
        let (mut content, mut total) = (Vec::new(), 0);
        for part in parts {
            let mut rest = *part;
            loop {
                let (used, piece) = decoder.next(rest)?;
                rest = &rest[used..];
                total += used;
                match piece {
                    Piece::Data(data) => content.extend_from_slice(data),
                    Piece::End => return Ok((content, true, total)),
                    Piece::NeedMore => break,
                }
            }
        }
        Ok((content, false, total))
    }

    const BODY: &[u8] = b"1\r\n\n\r\n5;ext=1\r\nhello\r\n00a \r\n0123456789\r\n0\r\nX-T: 1\r\n\r\n";

    #[test]
    fn every_split_yields_the_same_content() {
        let whole = (b"\nhello0123456789".to_vec(), true, BODY.len());
        assert_eq!(decode(BodyDecoder::chunked(), &[BODY]), Ok(whole.clone()));
        for a in 0..=BODY.len() {
            for b in a..=BODY.len() {
                let parts = [&BODY[..a], &BODY[a..b], &BODY[b..], b"HTTP/1.1 next"];
                assert_eq!(decode(BodyDecoder::chunked(), &parts), Ok(whole.clone()), "{a} {b}");
            }
        }
    }

    #[test]
    fn every_prefix_needs_more() {
        for end in 0..BODY.len() {
            let (_, ended, used) = decode(BodyDecoder::chunked(), &[&BODY[..end]]).unwrap();
            assert!(!ended && used == end, "{end}");
        }
    }

    #[test]
    fn rejects_malformed_chunks() {
        let bytes = b"1\r\n\n\r\nHTTP/1.1 500 Internal Server Error\r\n";
        assert_eq!(decode(BodyDecoder::chunked(), &[bytes]), Err(BodyError::ChunkSize));
        for broken in [&b"\r\n"[..], b"g\r\n", b"5x\r\n", b"-1\r\n", b"5\n", b"5\rx", b"1234567890123456\r\n", b";\r\n"]
        {
            assert_eq!(decode(BodyDecoder::chunked(), &[broken]), Err(BodyError::ChunkSize), "{broken:?}");
        }
        assert_eq!(decode(BodyDecoder::chunked(), &[b"1\r\nabc"]), Err(BodyError::ChunkEnd));
        let long = [b"1;".to_vec(), vec![b'x'; 2000]].concat();
        assert_eq!(decode(BodyDecoder::chunked(), &[&long]), Err(BodyError::TooLong));
        let long = [b"0\r\n".to_vec(), vec![b'x'; 9000]].concat();
        assert_eq!(decode(BodyDecoder::chunked(), &[&long]), Err(BodyError::TooLong));
    }

    #[test]
    fn decodes_by_length_and_until_close() {
        assert_eq!(decode(BodyDecoder::Length(3), &[b"a", b"bcd"]), Ok((b"abc".to_vec(), true, 3)));
        assert_eq!(decode(BodyDecoder::Length(0), &[b"x"]), Ok((vec![], true, 0)));
        assert_eq!(decode(BodyDecoder::UntilClose, &[b"a", b"b"]), Ok((b"ab".to_vec(), false, 2)));
    }
}
