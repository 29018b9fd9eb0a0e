//! WebSocket framing (RFC 6455 section 5), the server's side: parses frames of clients, and writes
//! frames.
//!
//! The frame header is tungstenite's. Its `WebSocketContext` is not used: it keeps
//! buffers for each connection. A frame is read when all of it is in the buffer, so between
//! messages a connection holds nothing. The decoder is one pointer, used only inside a fragmented
//! message.

use std::fmt;
use std::io::Cursor;

use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Longest payload of a control frame (RFC 6455 section 5.5).
pub const MAX_CONTROL: usize = 125;
/// Longest header of a client's frame, in bytes.
pub const MAX_HEADER: usize = 14;

/// Close codes that the server sends (RFC 6455 section 7.4.1). Codes from 4000 on are its own.
pub mod close_code {
    /// The session ended as requested.
    pub const NORMAL: u16 = 1000;
    /// The server shuts down.
    pub const GOING_AWAY: u16 = 1001;
    /// The client violated the framing.
    pub const PROTOCOL: u16 = 1002;
    /// The client sent a binary message.
    pub const UNSUPPORTED: u16 = 1003;
    /// The client sent text that is not UTF-8.
    pub const INVALID_UTF8: u16 = 1007;
    /// The client sent malformed messages repeatedly.
    pub const POLICY: u16 = 1008;
    /// A frame or message exceeds the limit.
    pub const TOO_BIG: u16 = 1009;
    /// The server has no capacity at the moment.
    pub const TRY_AGAIN_LATER: u16 = 1013;
    /// The login failed.
    pub const NOT_AUTHENTICATED: u16 = 4401;
    /// No login began in time.
    pub const LOGIN_TIMEOUT: u16 = 4408;
}

/// A message or frame of a client.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message, whose content does not matter.
    Binary,
    /// A ping, with the payload for the pong.
    Ping(&'a [u8]),
    /// A pong.
    Pong,
    /// A close frame with its code; 1005 if it had none.
    Close(u16),
    /// A fragment of a message that goes on.
    Fragment,
}

/// A violation of the protocol by a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A reserved bit or operation code, a long or fragmented control frame, a missing mask, a
    /// continuation without a start, a message inside a message, or a close frame of one byte or
    /// with a forbidden code.
    Protocol,
    /// A length in more bytes than it needs.
    Length,
    /// A message over the limit.
    TooBig,
    /// A text message that is not UTF-8.
    InvalidUtf8,
}

impl FrameError {
    /// Returns the close code for the violation.
    pub fn close_code(self) -> u16 {
        match self {
            Self::Protocol | Self::Length => close_code::PROTOCOL,
            Self::TooBig => close_code::TOO_BIG,
            Self::InvalidUtf8 => close_code::INVALID_UTF8,
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Protocol | Self::Length => "broken WebSocket framing",
            Self::TooBig => "message too big",
            Self::InvalidUtf8 => "text is not UTF-8",
        })
    }
}

/// Decodes the frames of one client.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Message whose last fragment is missing. Boxed, since few clients fragment messages.
    fragments: Option<Box<Fragments>>,
}

#[derive(Debug)]
struct Fragments {
    text: bool,
    /// Whether the message was returned, so that the next call drops it.
    complete: bool,
    payload: Vec<u8>,
}

impl Decoder {
    /// Takes one frame off the start of `input` and unmasks it in place. Returns its length and its
    /// content, or None if bytes are missing.
    ///
    /// `max_message` limits a frame, and a message over all its fragments, in bytes. The header
    /// alone suffices to reject a frame that is too long.
    ///
    /// # Errors
    /// Returns a [`FrameError`]. The caller closes the connection with its code.
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        max_message: usize,
    ) -> Result<Option<(usize, Incoming<'a>)>, FrameError> {
        let mut cursor = Cursor::new(&*input);
        let header = FrameHeader::parse(&mut cursor).map_err(|_| FrameError::Protocol)?;
        let Some((header, length)) = header else { return Ok(None) };
        let start = usize::try_from(cursor.position()).expect("a header is short");
        self.check(&header, length)?;
        // A length takes as few bytes as possible (RFC 6455 section 5.2).
        let least = match length {
            0..=125 => 0,
            126..=0xffff => 2,
            _ => 8,
        };
        if start > 2 + 4 + least {
            return Err(FrameError::Length);
        }
        let collected = self.fragments.as_ref().filter(|f| !f.complete).map_or(0, |f| f.payload.len());
        // Fails on 32-bit targets only.
        let length = usize::try_from(length).map_err(|_| FrameError::TooBig)?;
        if !matches!(header.opcode, OpCode::Control(_)) && length > max_message - collected.min(max_message) {
            return Err(FrameError::TooBig);
        }
        let end = start + length;
        if input.len() < end {
            return Ok(None);
        }
        let payload = &mut input[start..end];
        unmask(payload, header.mask.expect("check() requires a mask"));
        let incoming = match header.opcode {
            OpCode::Control(Control::Ping) => Incoming::Ping(payload),
            OpCode::Control(Control::Pong) => Incoming::Pong,
            OpCode::Control(_) => Incoming::Close(parse_close(payload)?),
            OpCode::Data(kind) => return self.data(kind, header.is_final, payload).map(|data| Some((end, data))),
        };
        Ok(Some((end, incoming)))
    }

    /// Returns the memory of an unfinished message, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.fragments.as_ref().map_or(0, |fragments| fragments.payload.capacity())
    }

    /// Checks the parts that the header alone decides.
    fn check(&self, header: &FrameHeader, length: u64) -> Result<(), FrameError> {
        let reserved = header.rsv1 || header.rsv2 || header.rsv3;
        let inside = self.fragments.as_ref().is_some_and(|fragments| !fragments.complete);
        let fits = match header.opcode {
            OpCode::Control(_) => header.is_final && length <= MAX_CONTROL as u64,
            OpCode::Data(Data::Continue) => inside,
            OpCode::Data(_) => !inside,
        };
        if reserved || !fits || header.mask.is_none() { Err(FrameError::Protocol) } else { Ok(()) }
    }

    fn data<'a>(&'a mut self, kind: Data, last: bool, payload: &'a [u8]) -> Result<Incoming<'a>, FrameError> {
        if kind != Data::Continue {
            self.fragments = None;
            if last {
                return whole(kind == Data::Text, payload);
            }
            self.fragments =
                Some(Box::new(Fragments { text: kind == Data::Text, complete: false, payload: payload.to_vec() }));
            return Ok(Incoming::Fragment);
        }
        let fragments = self.fragments.as_mut().expect("check() requires a start");
        fragments.payload.extend_from_slice(payload);
        fragments.complete = last;
        if last { whole(fragments.text, &fragments.payload) } else { Ok(Incoming::Fragment) }
    }
}

fn whole(text: bool, payload: &[u8]) -> Result<Incoming<'_>, FrameError> {
    if !text {
        return Ok(Incoming::Binary);
    }
    std::str::from_utf8(payload).map(Incoming::Text).map_err(|_| FrameError::InvalidUtf8)
}

/// Removes the mask (RFC 6455 section 5.3), eight bytes a step. tungstenite's function is private.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let mut words = payload.chunks_exact_mut(8);
    for word in &mut words {
        let value = u64::from_ne_bytes((&*word).try_into().expect("eight bytes")) ^ wide;
        word.copy_from_slice(&value.to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Parses a code that may be sent, then UTF-8 (RFC 6455 section 5.5.1). tungstenite's
/// `CloseCode::is_allowed` rejects 1014, which IANA has registered since.
fn parse_close(payload: &[u8]) -> Result<u16, FrameError> {
    match payload {
        [] => Ok(1005),
        [_] => Err(FrameError::Protocol),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(FrameError::Protocol);
            }
            std::str::from_utf8(reason).map(|_| code).map_err(|_| FrameError::InvalidUtf8)
        }
    }
}

/// Appends a text message in one frame.
pub fn write_text(out: &mut Vec<u8>, payload: &[u8]) {
    write_header(out, OpCode::Data(Data::Text), payload.len());
    out.extend_from_slice(payload);
}

/// Appends a ping without payload.
pub fn write_ping(out: &mut Vec<u8>) {
    write_header(out, OpCode::Control(Control::Ping), 0);
}

/// Appends the pong that answers a ping.
pub fn write_pong(out: &mut Vec<u8>, payload: &[u8]) {
    write_header(out, OpCode::Control(Control::Pong), payload.len());
    out.extend_from_slice(payload);
}

/// Appends a close frame.
pub fn write_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    debug_assert!(reason.len() + 2 <= MAX_CONTROL, "reasons are short");
    write_header(out, OpCode::Control(Control::Close), reason.len() + 2);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

fn write_header(out: &mut Vec<u8>, opcode: OpCode, length: usize) {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    header.format(length as u64, out).expect("writing to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a frame of a client. `first` is its first byte: FIN, RSV and operation code.
    pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let mut out = vec![first];
        match payload.len() {
            length @ 0..=125 => out.push(0x80 | u8::try_from(length).unwrap()),
            length @ 126..=65535 => {
                out.push(0xfe);
                out.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                out.push(0xff);
                out.extend((length as u64).to_be_bytes());
            }
        }
        out.extend(mask);
        out.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
        out
    }

    /// Reads all messages of a byte stream that arrives in the given parts, as text.
    fn read(parts: &[&[u8]]) -> Result<Vec<String>, FrameError> {
        let (mut decoder, mut buffer, mut seen) = (Decoder::default(), Vec::new(), Vec::new());
        for part in parts {
            buffer.extend_from_slice(part);
            let mut at = 0;
            while let Some((used, incoming)) = decoder.next(&mut buffer[at..], 1000)? {
                at += used;
                seen.push(format!("{incoming:?}"));
            }
            buffer.drain(..at);
        }
        Ok(seen)
    }

    #[test]
    fn every_split_yields_the_same_messages() {
        let long = "x".repeat(300);
        let bytes = [
            frame(0x81, b"hello"),
            frame(0x01, "gr\u{fc}".as_bytes()),
            frame(0x89, b"p"),
            frame(0x80, "n".as_bytes()),
            frame(0x81, long.as_bytes()),
            frame(0x82, b"\xff"),
            frame(0x8a, b""),
            frame(0x88, &1000u16.to_be_bytes()),
        ]
        .concat();
        let whole = read(&[&bytes]).unwrap();
        let expected = [
            "Text(\"hello\")",
            "Fragment",
            "Ping([112])",
            "Text(\"gr\u{fc}n\")",
            &format!("Text(\"{long}\")"),
            "Binary",
            "Pong",
            "Close(1000)",
        ];
        assert_eq!(whole, expected);
        for at in 0..=bytes.len() {
            assert_eq!(read(&[&bytes[..at], &bytes[at..]]).unwrap(), whole, "{at}");
        }
        assert_eq!(read(&bytes.chunks(1).collect::<Vec<_>>()).unwrap(), whole);
    }

    #[test]
    fn unmasks_any_length() {
        for length in 0..40 {
            let text: String = (0..length).map(|i| char::from(b'a' + i)).collect();
            assert_eq!(read(&[&frame(0x81, text.as_bytes())]).unwrap(), [format!("Text({text:?})")]);
        }
    }

    #[test]
    fn rejects_what_the_rfc_forbids() {
        let unmasked = [0x81, 0x01, b'x'];
        assert_eq!(read(&[&unmasked]), Err(FrameError::Protocol));
        for bytes in [
            frame(0xc1, b"x"),                               // RSV1 without an extension
            frame(0x83, b"x"),                               // reserved data frame
            frame(0x8b, b"x"),                               // reserved control frame
            frame(0x09, b"x"),                               // fragmented ping
            frame(0x89, &[b'x'; 126]),                       // long ping
            frame(0x80, b"x"),                               // continuation of nothing
            [frame(0x01, b"a"), frame(0x81, b"b")].concat(), // message inside a message
            frame(0x88, b"x"),                               // close of one byte
            frame(0x88, &1005u16.to_be_bytes()),
            frame(0x88, &999u16.to_be_bytes()),
        ] {
            assert_eq!(read(&[&bytes]), Err(FrameError::Protocol), "{bytes:x?}");
        }
        assert_eq!(read(&[&frame(0x81, b"\xc3(")]), Err(FrameError::InvalidUtf8));
        assert_eq!(read(&[&frame(0x88, b"\x03\xe8\xff")]), Err(FrameError::InvalidUtf8));
    }

    #[test]
    fn limits_frames_by_header_and_messages_by_sum() {
        let huge = &frame(0x81, &[b'x'; 1001])[..8];
        assert_eq!(read(&[huge]), Err(FrameError::TooBig), "before the payload came");
        let endless = [0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4];
        assert_eq!(read(&[&endless]), Err(FrameError::TooBig));
        let fragments = [frame(0x01, &[b'x'; 600]), frame(0x00, &[b'x'; 401])].concat();
        assert_eq!(read(&[&fragments]), Err(FrameError::TooBig));
        let fits = [frame(0x01, &[b'x'; 600]), frame(0x80, &[b'x'; 400]), frame(0x81, &[b'x'; 1000])].concat();
        assert_eq!(read(&[&fits]).unwrap().len(), 3);
    }

    #[test]
    fn writes_frames() {
        let mut out = Vec::new();
        write_text(&mut out, b"hi");
        write_ping(&mut out);
        write_pong(&mut out, b"x");
        write_close(&mut out, 1001, "bye");
        assert_eq!(out, b"\x81\x02hi\x89\x00\x8a\x01x\x88\x05\x03\xe9bye");
        out.clear();
        write_text(&mut out, &[b'y'; 200]);
        assert_eq!(&out[..5], b"\x81\x7e\x00\xc8y");
    }
}
