//! A small blocking HTTP/1.1 client that keeps its connection, and an Engine.IO client that polls
//! with it. Both are independent of the server's code, and can send what no real client sends.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::wire::{Target, Wire};
use super::{PASSWORD, SOON, USER};

/// A response.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    /// The status line and the header fields as received.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// Returns the value of a header field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.map(|(n, value)| (n, value.trim())).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    /// Returns the code of an Engine.IO error.
    pub fn refusal(&self) -> Option<u64> {
        serde_json::from_slice::<Value>(&self.body).ok()?.get("code")?.as_u64()
    }
}

/// A connection.
pub struct Http {
    pub wire: Wire,
    buffer: Vec<u8>,
}

impl Http {
    pub fn connect(target: impl Into<Target>) -> Self {
        let wire = target.into().connect().expect("the server listens");
        Self { wire, buffer: Vec::new() }
    }

    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.wire.write_all(bytes.as_ref()).expect("the server reads");
    }

    /// Sends a request without waiting for the response.
    pub fn send(&mut self, method: &str, target: &str, fields: &str, body: &[u8]) {
        self.send_raw(request(method, target, fields, body));
    }

    pub fn get(&mut self, target: &str) -> Answer {
        self.ask("GET", target, "", b"")
    }

    pub fn post(&mut self, target: &str, body: impl AsRef<[u8]>) -> Answer {
        self.ask("POST", target, "Content-Type: text/plain;charset=UTF-8\r\n", body.as_ref())
    }

    pub fn ask(&mut self, method: &str, target: &str, fields: &str, body: &[u8]) -> Answer {
        self.send(method, target, fields, body);
        if method == "HEAD" {
            return self.receive_head(SOON).expect("an answer comes").0;
        }
        self.answer()
    }

    /// Returns the next response; fails if there is none.
    pub fn answer(&mut self) -> Answer {
        self.receive(SOON).expect("an answer comes")
    }

    /// Returns the next response; None if none arrives in time, or if the connection ends.
    pub fn receive(&mut self, within: Duration) -> Option<Answer> {
        let deadline = Instant::now() + within;
        let (mut answer, mut length) = self.receive_head(within)?;
        if answer.status == 304 {
            // The response to HEAD has the length of a body that is not sent.
            length = 0;
        }
        while self.buffer.len() < length {
            if !self.read_more(deadline)? {
                return None;
            }
        }
        answer.body = self.buffer.drain(..length).collect();
        Some(answer)
    }

    fn receive_head(&mut self, within: Duration) -> Option<(Answer, usize)> {
        let deadline = Instant::now() + within;
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.read_more(deadline)? {
                return None;
            }
        };
        let head = String::from_utf8(self.buffer.drain(..end).collect()).expect("a head is text");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        let answer = Answer { status, head, body: Vec::new() };
        let length = answer.field("Content-Length").expect("every response has a length").parse();
        Some((answer, length.expect("a number")))
    }

    /// Returns whether the server closes the connection without sending anything more.
    pub fn ends(&mut self) -> bool {
        self.buffer.is_empty() && self.read_more(Instant::now() + SOON) == Some(false)
    }

    /// Returns whether nothing arrives, not even the end of the connection.
    pub fn is_silent(&mut self, during: Duration) -> bool {
        self.buffer.is_empty() && self.read_more(Instant::now() + during).is_none()
    }

    /// Reads once; false at the end of the connection, None if nothing arrives in time.
    fn read_more(&mut self, deadline: Instant) -> Option<bool> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, Interrupted, TimedOut, WouldBlock};
        let left = deadline.saturating_duration_since(Instant::now());
        self.wire.set_read_timeout(left.max(Duration::from_millis(1))).expect("a socket option");
        let mut bytes = [0; 16 * 1024];
        match self.wire.read(&mut bytes) {
            Ok(read) => {
                self.buffer.extend_from_slice(&bytes[..read]);
                Some(read > 0)
            }
            Err(error) if matches!(error.kind(), ConnectionReset | BrokenPipe) => Some(false),
            Err(error) if error.kind() == Interrupted && !left.is_zero() => self.read_more(deadline),
            Err(error) if matches!(error.kind(), WouldBlock | TimedOut | Interrupted) => None,
            Err(error) => panic!("reading failed: {error}"),
        }
    }
}

/// Returns the bytes of a request with the `Content-Length` of its body.
pub fn request(method: &str, target: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let length =
        if body.is_empty() && method != "POST" { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n{fields}{length}\r\n");
    [head.as_bytes(), body].concat()
}

/// An Engine.IO session over polling, with one connection for GETs and one for POSTs, as in
/// browsers.
pub struct Poller {
    target: Target,
    version: u8,
    pub sid: String,
    /// Connection for GETs.
    pub polls: Http,
    /// Connection for POSTs.
    pub posts: Http,
    /// Received packets that the test has not taken yet.
    pub packets: VecDeque<String>,
}

impl Poller {
    /// Opens a session with the parameters of a query. The packets of the first response can be
    /// taken next.
    pub fn open(target: impl Into<Target>, version: u8, query: &str) -> Self {
        let target = target.into();
        let mut polls = Http::connect(&target);
        let answer = polls.get(&format!("/socket.io/?EIO={version}&transport=polling&{query}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let packets = split(answer.text(), version);
        let open: Value = serde_json::from_str(&packets[0][1..]).expect("the open packet is JSON");
        let sid = open["sid"].as_str().expect("an id").to_owned();
        Self { version, sid, polls, posts: Http::connect(&target), target, packets: packets.into() }
    }

    /// Opens a session (version 3) and logs the user in.
    pub fn logged_in(target: impl Into<Target>) -> Self {
        let mut poller = Self::open(target, 3, &format!("username={USER}&password={PASSWORD}"));
        for start in ["0{", "40", "42[\"authenticated\""] {
            let packet = poller.next();
            assert!(packet.starts_with(start), "{start}: {packet}");
        }
        poller
    }

    /// Opens a session (version 3), logs the user in and subscribes to databases.
    pub fn subscribed(target: impl Into<Target>, databases: &[&str]) -> Self {
        let mut poller = Self::logged_in(target);
        poller.send(&[&format!("420[\"subscribe\",{}]", serde_json::json!(databases))]);
        assert_eq!(poller.next(), "430[{}]");
        poller
    }

    /// Returns the target of its requests.
    pub fn target(&self) -> String {
        format!("/socket.io/?EIO={}&transport=polling&sid={}", self.version, self.sid)
    }

    /// Returns the target of a WebSocket that takes the session over.
    pub fn websocket_target(&self) -> String {
        self.target().replace("polling", "websocket")
    }

    /// Sends a GET; [`Poller::finish_poll`] takes its answer.
    pub fn start_poll(&mut self) {
        let target = self.target();
        self.polls.send("GET", &target, "", b"");
    }

    /// Returns the packets of the response to the GET.
    pub fn finish_poll(&mut self) -> Vec<String> {
        let answer = self.polls.answer();
        assert_eq!(answer.status, 200, "{answer:?}");
        split(answer.text(), self.version)
    }

    pub fn poll(&mut self) -> Vec<String> {
        self.start_poll();
        self.finish_poll()
    }

    /// Returns the next packet; polls if there is none.
    pub fn next(&mut self) -> String {
        while self.packets.is_empty() {
            self.packets = self.poll().into();
        }
        self.packets.pop_front().expect("checked above")
    }

    /// Posts packets.
    pub fn send(&mut self, packets: &[&str]) {
        let answer = self.post(join(packets, self.version));
        assert_eq!((answer.status, answer.text()), (200, "ok"), "{packets:?}");
    }

    pub fn post(&mut self, body: impl AsRef<[u8]>) -> Answer {
        let target = self.target();
        self.posts.post(&target, body)
    }

    /// Returns whether the server knows the session. Sends a packet that changes nothing to find
    /// out.
    pub fn is_known(&self) -> bool {
        let answer = Http::connect(&self.target).post(&self.target(), join(&["6"], self.version));
        match (answer.status, answer.refusal()) {
            (200, _) => true,
            (400, Some(1)) => false,
            _ => panic!("{answer:?}"),
        }
    }
}

/// Returns the packets of a payload.
pub fn split(payload: &str, version: u8) -> Vec<String> {
    if version == 4 {
        return payload.split('\u{1e}').map(Into::into).collect();
    }
    let (mut packets, mut rest) = (Vec::new(), payload.encode_utf16().collect::<Vec<_>>());
    while !rest.is_empty() {
        let colon = rest.iter().position(|unit| *unit == u16::from(b':')).expect("a length comes first");
        let length = String::from_utf16(&rest[..colon]).expect("digits").parse::<usize>().expect("a length");
        packets.push(String::from_utf16(&rest[colon + 1..colon + 1 + length]).expect("whole characters"));
        rest.drain(..colon + 1 + length);
    }
    packets
}

/// Returns the payload of some packets.
pub fn join(packets: &[&str], version: u8) -> String {
    if version == 4 {
        return packets.join("\u{1e}");
    }
    packets.iter().map(|packet| format!("{}:{packet}", packet.encode_utf16().count())).collect::<Vec<_>>().concat()
}
