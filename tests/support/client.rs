//! A small blocking WebSocket client, independent of the server's code. One process can hold
//! thousands of them.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::wire::{Target, Wire};
use super::{PASSWORD, SOON, USER};

/// An item that a client received.
#[derive(Debug, PartialEq, Eq, Clone)]
pub enum Received {
    Text(String),
    Ping,
    Pong(Vec<u8>),
    /// A close frame with its code and reason.
    Close(u16, String),
    /// The end of the connection without a close frame.
    End,
    /// Nothing in time.
    Nothing,
}

pub struct Client {
    wire: Wire,
    buffer: Vec<u8>,
    next_id: u64,
    /// Events that arrived before an awaited response.
    pub events: Vec<Value>,
}

impl Client {
    /// Opens a WebSocket on a path; fails if the server refuses it.
    pub fn open(target: impl Into<Target>, path: &str) -> Self {
        Self::try_open(target, path, "").expect("the handshake succeeds")
    }

    /// Opens a WebSocket with further header lines, or returns the response that refuses it.
    pub fn try_open(target: impl Into<Target>, path: &str, fields: &str) -> Result<Self, String> {
        let target = target.into();
        let mut wire = target.connect().map_err(|error| error.to_string())?;
        let address = target.address;
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{fields}\r\n"
        );
        wire.write_all(head.as_bytes()).map_err(|error| error.to_string())?;
        let mut client = Self { wire, buffer: Vec::new(), next_id: 1, events: Vec::new() };
        let end = loop {
            if let Some(at) = client.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !client.read_more(SOON).map_err(|error| error.to_string())? {
                return Err(format!("no answer but {:?}", String::from_utf8_lossy(&client.buffer)));
            }
        };
        let head: Vec<u8> = client.buffer.drain(..end).collect();
        let head = String::from_utf8(head).map_err(|error| error.to_string())?;
        if head.starts_with("HTTP/1.1 101 ") {
            assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
            return Ok(client);
        }
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok());
        while client.buffer.len() < length.unwrap_or(usize::MAX) && client.read_more(SOON).unwrap_or(false) {}
        Err(head + &String::from_utf8_lossy(&client.buffer))
    }

    /// Opens a `howler.v1` session and reads its `hello`.
    pub fn json(target: impl Into<Target>) -> Self {
        let mut client = Self::open(target, "/howler");
        let hello = client.receive_json(SOON).expect("hello comes first");
        assert_eq!(hello["event"], "hello");
        client
    }

    /// Opens a `howler.v1` session and logs the user in.
    pub fn logged_in(target: impl Into<Target>) -> Self {
        let mut client = Self::json(target);
        let answer = client.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
        assert_eq!(answer["ok"], true, "{answer}");
        client
    }

    /// Opens a `howler.v1` session, logs the user in and subscribes to databases.
    pub fn subscribed(target: impl Into<Target>, databases: &[&str]) -> Self {
        let mut client = Self::logged_in(target);
        let answer = client.ask(json!({"op": "subscribe", "dbs": databases}));
        assert_eq!(answer["ok"], true, "{answer}");
        client
    }

    /// Opens a Socket.IO session (Engine.IO 3) with the credentials of a query, and reads nothing.
    pub fn socket_io(target: impl Into<Target>, credentials: &str) -> Self {
        Self::open(target, &format!("/socket.io/?EIO=3&transport=websocket&{credentials}"))
    }

    /// Opens a Socket.IO session and waits until the login succeeded.
    pub fn socket_io_logged_in(target: impl Into<Target>) -> Self {
        let mut client = Self::socket_io(target, &format!("username={USER}&password={PASSWORD}"));
        for start in ["0{", "40", "42[\"authenticated\""] {
            let text = client.receive_text(SOON).expect("the login goes on");
            assert!(text.starts_with(start), "{start}: {text}");
        }
        client
    }

    /// Returns the TCP socket below.
    pub fn socket(&self) -> &TcpStream {
        self.wire.socket()
    }

    /// Sends raw bytes.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire.write_all(bytes)
    }

    pub fn send(&mut self, text: &str) {
        self.send_raw(&frame(0x81, text.as_bytes())).expect("the server reads");
    }

    /// Sends a request with a new id, and returns the id.
    pub fn request(&mut self, mut request: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        request["id"] = id.into();
        self.send(&request.to_string());
        id
    }

    /// Sends a request and waits for its response. Events that arrive before it are kept.
    pub fn ask(&mut self, request: Value) -> Value {
        let id = self.request(request);
        self.answer(id)
    }

    pub fn answer(&mut self, id: u64) -> Value {
        loop {
            let value = self.receive_json(SOON).expect("an answer comes");
            if value["id"] == id {
                return value;
            }
            assert!(value.get("event").is_some(), "neither the answer nor an event: {value}");
            self.events.push(value);
        }
    }

    /// Returns the next event of any kind.
    pub fn next_event(&mut self, within: Duration) -> Option<Value> {
        if self.events.is_empty() { self.receive_json(within) } else { Some(self.events.remove(0)) }
    }

    /// Returns the database of the next change; fails on any other event.
    pub fn next_change(&mut self, within: Duration) -> Option<String> {
        let event = self.next_event(within)?;
        assert_eq!(event["event"], "change", "{event}");
        Some(event["db"].as_str().expect("a name").to_owned())
    }

    /// Waits for a `resync`, and returns the databases of the changes before it.
    pub fn wait_for_resync(&mut self) -> Vec<String> {
        let mut changed = Vec::new();
        loop {
            let event = self.next_event(SOON).expect("a resync comes");
            match event["event"].as_str() {
                Some("change") => changed.push(event["db"].as_str().expect("a name").to_owned()),
                Some("hello") => {}
                _ => {
                    assert_eq!(event["event"], "resync", "{event}");
                    return changed;
                }
            }
        }
    }

    pub fn receive_json(&mut self, within: Duration) -> Option<Value> {
        let text = self.receive_text(within)?;
        let mut value = serde_json::from_str(&text).expect("the server sends JSON");
        cut_starts(&mut value);
        Some(value)
    }

    /// Returns the next text message; None if none arrives in time, or if the connection ends.
    pub fn receive_text(&mut self, within: Duration) -> Option<String> {
        loop {
            match self.receive(within) {
                Received::Text(text) => return Some(text),
                Received::Ping => self.send_raw(&frame(0x8a, b"")).ok()?,
                Received::Pong(_) => {}
                Received::Nothing | Received::End | Received::Close(..) => return None,
            }
        }
    }

    /// Reads until the connection ends, and returns the texts and the close frame, if there was
    /// one.
    pub fn receive_close(&mut self, within: Duration) -> (Vec<String>, Received) {
        let mut texts = Vec::new();
        loop {
            match self.receive(within) {
                Received::Text(text) => texts.push(text),
                Received::Ping => drop(self.send_raw(&frame(0x8a, b""))),
                Received::Pong(_) => {}
                end => return (texts, end),
            }
        }
    }

    pub fn receive(&mut self, within: Duration) -> Received {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, Interrupted, TimedOut, UnexpectedEof, WouldBlock};
        let deadline = Instant::now() + within;
        loop {
            if let Some(received) = self.take_frame() {
                return received;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Received::Nothing;
            }
            match self.read_more(left) {
                Ok(true) => {}
                Ok(false) => return Received::End,
                Err(error) if matches!(error.kind(), WouldBlock | TimedOut | Interrupted) => {}
                // The server closed the connection while data of the client was on its way, over
                // TCP or over TLS.
                Err(error) if matches!(error.kind(), ConnectionReset | BrokenPipe | UnexpectedEof) => {
                    return Received::End;
                }
                Err(error) => panic!("reading failed: {error}"),
            }
        }
    }

    fn take_frame(&mut self) -> Option<Received> {
        let (&[first, second], rest) = self.buffer.split_first_chunk::<2>()?;
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let (length, rest) = match second {
            126 => {
                let (bytes, rest) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*bytes)), rest)
            }
            127 => {
                let (bytes, rest) = rest.split_first_chunk::<8>()?;
                (usize::try_from(u64::from_be_bytes(*bytes)).expect("fits"), rest)
            }
            short => (usize::from(short), rest),
        };
        let payload = rest.get(..length)?.to_vec();
        let used = self.buffer.len() - rest.len() + length;
        self.buffer.drain(..used);
        Some(match first {
            0x81 => Received::Text(String::from_utf8(payload).expect("text is UTF-8")),
            0x88 => {
                let (code, reason) = payload.split_first_chunk::<2>().expect("our closes have a code");
                Received::Close(u16::from_be_bytes(*code), String::from_utf8_lossy(reason).into_owned())
            }
            0x89 => Received::Ping,
            0x8a => Received::Pong(payload),
            other => panic!("a frame that the server must not send: {other:x}"),
        })
    }

    fn read_more(&mut self, within: Duration) -> io::Result<bool> {
        self.wire.set_read_timeout(within.max(Duration::from_millis(1)))?;
        let mut bytes = [0; 16 * 1024];
        let read = self.wire.read(&mut bytes)?;
        self.buffer.extend_from_slice(&bytes[..read]);
        Ok(read > 0)
    }
}

/// Removes the start of CouchDB from a position: no test knows it to the second. A position to give
/// comes from [`super::position`].
fn cut_starts(value: &mut Value) {
    let dbs = value.get_mut("dbs").and_then(Value::as_object_mut).map(|dbs| dbs.values_mut().collect::<Vec<_>>());
    let positions = dbs.unwrap_or_default();
    let cut = |position: &mut Value| {
        if let Some((counts, _)) = position.as_str().and_then(|text| text.split_once('@')) {
            *position = counts.into();
        }
    };
    positions.into_iter().for_each(cut);
    if let Some(position) = value.get_mut("position") {
        cut(position);
    }
}

/// Returns a frame of a client; `first` is its first byte on the wire.
pub fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut out = vec![first];
    match u16::try_from(payload.len()) {
        Ok(length @ 0..=125) => out.push(0x80 | u8::try_from(length).expect("short")),
        Ok(length) => {
            out.push(0xfe);
            out.extend(length.to_be_bytes());
        }
        Err(_) => {
            out.push(0xff);
            out.extend((payload.len() as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().enumerate().map(|(i, byte)| byte ^ mask[i % 4]));
    out
}
