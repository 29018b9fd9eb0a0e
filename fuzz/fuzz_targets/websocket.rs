//! A client's WebSocket frames.
//!
//! Asserted, with a small and a large limit:
//! - messages, and the error with everything before it, do not depend on how the bytes are split;
//! - no message exceeds the limit, no ping 125 bytes, and a close code is one that may be sent;
//! - tungstenite, as a server, reads the same messages from the same bytes;
//! - tungstenite, as a client, reads what we write.
//!
//! Intended differences:
//! - we check text when the message is complete, tungstenite fragment by fragment: its error may
//!   come first, before control frames between the fragments;
//! - we reject what the header alone rules out (size, a long or fragmented control frame, a missing
//!   mask) before the payload arrives, tungstenite after it;
//! - a close frame with a code that may not be sent is an error here, and a close with 1002 in
//!   tungstenite;
//! - we reject a length in more bytes than necessary, tungstenite accepts it;
//! - we accept the close code 1014 ("bad gateway", registered by IANA after the RFC), tungstenite
//!   does not.

#![no_main]

use std::io::{self, Read, Write};

use couchdb_howler::wire::websocket::{
    Decoder, FrameError, Incoming, MAX_CONTROL, close_code, write_close, write_ping, write_pong, write_text,
};
use couchdb_howler_fuzz::{WAYS, pieces};
use libfuzzer_sys::fuzz_target;
use tungstenite::protocol::{Message, Role, WebSocket, WebSocketConfig};

const SMALL: usize = 24;
const LARGE: usize = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Text(String),
    Binary,
    Ping(Vec<u8>),
    Pong,
    Close(u16),
}

/// The end of a stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    NeedMore,
    Closed,
    Error(FrameError),
}

fuzz_target!(|data: &[u8]| {
    for limit in [SMALL, LARGE] {
        let (items, end) = read(&pieces(data, 0), limit);
        for way in 1..WAYS {
            assert_eq!(read(&pieces(data, way), limit), (items.clone(), end), "way {way}");
        }
        compare(&items, end, data, limit);
        if let End::Error(error) = end {
            let codes = [close_code::PROTOCOL, close_code::TOO_BIG, close_code::INVALID_UTF8];
            assert!(codes.contains(&error.close_code()) && !error.to_string().is_empty());
        }
    }
    check_writers(data);
});

fn read(pieces: &[&[u8]], limit: usize) -> (Vec<Item>, End) {
    let (mut decoder, mut buffer, mut items) = (Decoder::default(), Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let mut at = 0;
        loop {
            let (used, incoming) = match decoder.next(&mut buffer[at..], limit) {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(error) => return (items, End::Error(error)),
            };
            items.push(match incoming {
                Incoming::Text(text) => {
                    assert!(text.len() <= limit);
                    Item::Text(text.to_owned())
                }
                Incoming::Binary => Item::Binary,
                Incoming::Ping(payload) => {
                    assert!(payload.len() <= MAX_CONTROL);
                    Item::Ping(payload.to_vec())
                }
                Incoming::Pong => Item::Pong,
                Incoming::Close(code) => {
                    assert!(matches!(code, 1000..=1003 | 1005 | 1007..=1014 | 3000..=4999), "{code}");
                    items.push(Item::Close(code));
                    return (items, End::Closed);
                }
                Incoming::Fragment => {
                    at += used;
                    continue;
                }
            });
            at += used;
        }
        buffer.drain(..at);
    }
    (items, End::NeedMore)
}

fn check_writers(data: &[u8]) {
    let (text, short) = (String::from_utf8_lossy(data), &data[..data.len().min(MAX_CONTROL)]);
    let mut written = Vec::new();
    write_text(&mut written, text.as_bytes());
    write_ping(&mut written);
    write_pong(&mut written, short);
    write_close(&mut written, close_code::NOT_AUTHENTICATED, "a reason");
    let mut socket = WebSocket::from_raw_socket(Wire(&written), Role::Client, None);
    assert_eq!(socket.read().expect("a text"), Message::text(&*text));
    assert_eq!(socket.read().expect("a ping"), Message::Ping(Default::default()));
    assert_eq!(socket.read().expect("a pong"), Message::Pong(short.to_vec().into()));
    let Ok(Message::Close(Some(frame))) = socket.read() else { panic!("no close frame") };
    assert_eq!((u16::from(frame.code), &*frame.reason), (close_code::NOT_AUTHENTICATED, "a reason"));
}

fn compare(ours: &[Item], end: End, data: &[u8], limit: usize) {
    let (theirs, their_end) = oracle(data, limit);
    let context = || format!("ours {ours:?} {end:?}, theirs {theirs:?} {their_end:?}");
    for (our, their) in ours.iter().zip(&theirs) {
        let bad_gateway = *our == Item::Close(1014) && *their == Item::Close(1002);
        assert!(our == their || bad_gateway, "{}", context());
    }
    if end == End::Error(FrameError::Length) {
        return;
    }
    if ours.len() > theirs.len() {
        assert_eq!(their_end, End::Error(FrameError::InvalidUtf8), "{}", context());
        return;
    }
    if theirs.len() > ours.len() {
        let replaced = theirs[ours.len()..] == [Item::Close(1002)];
        assert!(end == End::Error(FrameError::Protocol) && replaced, "{}", context());
        return;
    }
    match (end, their_end) {
        (End::Error(our), End::NeedMore) => assert_ne!(our, FrameError::InvalidUtf8, "{}", context()),
        (our, End::Error(FrameError::InvalidUtf8)) => assert_ne!(our, End::Closed, "{}", context()),
        // A close frame may have both a wrong code and a wrong reason, or both a wrong size and a
        // wrong kind.
        (End::Error(_), End::Error(_)) => {}
        (our, their) => assert_eq!(our, their, "{}", context()),
    }
}

fn oracle(data: &[u8], limit: usize) -> (Vec<Item>, End) {
    let config = WebSocketConfig::default()
        .read_buffer_size(512)
        .write_buffer_size(0)
        .max_message_size(Some(limit))
        .max_frame_size(Some(limit.max(MAX_CONTROL)));
    let mut socket = WebSocket::from_raw_socket(Wire(data), Role::Server, Some(config));
    let mut items = Vec::new();
    loop {
        items.push(match socket.read() {
            Ok(Message::Text(text)) => Item::Text(text.as_str().to_owned()),
            Ok(Message::Binary(_)) => Item::Binary,
            Ok(Message::Ping(payload)) => Item::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Item::Pong,
            Ok(Message::Close(frame)) => {
                items.push(Item::Close(frame.map_or(1005, |frame| frame.code.into())));
                return (items, End::Closed);
            }
            Ok(Message::Frame(_)) => unreachable!("reads return no raw frames"),
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return (items, End::NeedMore);
            }
            Err(tungstenite::Error::Utf8(_)) => return (items, End::Error(FrameError::InvalidUtf8)),
            Err(tungstenite::Error::Capacity(_)) => return (items, End::Error(FrameError::TooBig)),
            Err(tungstenite::Error::Protocol(_)) => return (items, End::Error(FrameError::Protocol)),
            Err(error) => panic!("{error}"),
        });
    }
}

/// The bytes of a client, then silence; discards what is written.
struct Wire<'a>(&'a [u8]);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { self.0.read(buffer) }
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
