//! A connection: reads one request after the other, and writes the responses.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::feed::{self, FeedEnd};
use super::http::{self, BODY_LIMIT, Framing, HEAD_LIMIT, Request, Response};
use super::routes::{self, Answer};
use super::state::Shared;

/// Serves a connection until it ends. The caller closes the socket; this function decides whether
/// that sends FIN or RST.
pub(super) fn serve(shared: &Shared, stream: &TcpStream, number: u64, peer: SocketAddr) {
    let mut reader = Reader { stream, peer, number, bytes: Vec::new(), held_back: false };
    loop {
        let request = match reader.next_request() {
            Ok(Some(request)) => request,
            Ok(None) => break,
            Err(error) => {
                reader.refuse(shared, &error);
                break;
            }
        };
        let at = shared.clock.elapsed();
        if shared.observe(|state| state.swallow(&request, at)) {
            continue;
        }
        match exchange(shared, reader.stream, &request) {
            Ok(FeedEnd::KeepAlive) if request.keeps_alive() => {}
            Ok(FeedEnd::Reset) => return,
            Ok(FeedEnd::KeepAlive | FeedEnd::Close) | Err(_) => break,
        }
    }
    reader.end();
}

fn exchange(shared: &Shared, stream: &TcpStream, request: &Request) -> io::Result<FeedEnd> {
    let at = shared.clock.elapsed();
    // In one step: a test that has seen the request may end the delay for later requests.
    let login_delay = shared.observe(|state| {
        state.record(request, at);
        state.faults.login_delay
    });
    let answer = routes::answer(shared, request, login_delay);
    // Before the response is written: a reader of the response must not find the request in flight.
    shared.observe(|state| state.finish(request));
    match answer {
        Answer::Response(_) if request.path().ends_with("/_session") && shared.lock().faults.lose_login_answers => {
            Ok(FeedEnd::Close)
        }
        Answer::Response(response) => {
            let bytes = response.to_bytes(request, shared.clock.now());
            if !shared.lock().is_silent(request.connection) {
                (&mut &*stream).write_all(&bytes)?;
            }
            Ok(FeedEnd::KeepAlive)
        }
        Answer::Close => Ok(FeedEnd::Close),
        Answer::Feed(feed) => Ok(feed::run(shared, stream, request, *feed)),
    }
}

/// The reading half of a connection.
struct Reader<'a> {
    stream: &'a TcpStream,
    peer: SocketAddr,
    number: u64,
    bytes: Vec<u8>,
    /// Whether the last byte of `bytes` was peeked at and is still in the socket. Linux sends RST
    /// when a socket with unread bytes is closed, and without unsafe code there is no other way to
    /// a reset. So the last byte of a request for a feed stays unread while the feed runs.
    held_back: bool,
}

impl Reader<'_> {
    /// Returns the next request; None if the peer closed the connection.
    fn next_request(&mut self) -> io::Result<Option<Request>> {
        let (used, mut request, framing) = loop {
            match http::parse_head(&self.bytes, self.peer, self.number).map_err(invalid)? {
                Some(found) => break found,
                None if !self.fill()? => return Ok(None),
                None => {}
            }
        };
        self.bytes.drain(..used);
        if request.header("expect").is_some() {
            (&mut &*self.stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        request.body = loop {
            let found = match framing {
                Framing::Length(length) if self.bytes.len() >= length => Some((length, self.bytes[..length].to_vec())),
                Framing::Length(_) => None,
                Framing::Chunked => http::parse_chunked(&self.bytes).map_err(invalid)?,
            };
            match found {
                Some((used, body)) => {
                    self.bytes.drain(..used);
                    break body;
                }
                None if self.bytes.len() > BODY_LIMIT * 2 => return Err(invalid("body too long")),
                None if !self.fill()? => return Ok(None),
                None => {}
            }
        };
        Ok(Some(request))
    }

    /// Reads more bytes; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        self.take_held_back();
        let mut buffer = [0; 16 * 1024];
        let seen = self.stream.peek(&mut buffer)?;
        if seen == 0 {
            return Ok(false);
        }
        self.bytes.extend_from_slice(&buffer[..seen]);
        self.held_back = self.bytes.ends_with(b"\r\n\r\n")
            && self.bytes.len() <= HEAD_LIMIT
            && contains(&self.bytes, b"feed=continuous");
        let take = seen - usize::from(self.held_back);
        (&mut &*self.stream).read_exact(&mut buffer[..take])?;
        Ok(true)
    }

    fn take_held_back(&mut self) {
        if std::mem::take(&mut self.held_back) {
            let _ = (&mut &*self.stream).read_exact(&mut [0]);
        }
    }

    /// Replies to bytes that are no request with the reason.
    fn refuse(&self, shared: &Shared, error: &io::Error) {
        if error.kind() != io::ErrorKind::InvalidData {
            return;
        }
        let request = Request {
            method: "GET".to_owned(),
            target: "/".to_owned(),
            minor_version: 1,
            headers: vec![("Connection".to_owned(), "close".to_owned())],
            body: Vec::new(),
            peer: self.peer,
            connection: self.number,
        };
        let response = Response::error(400, "bad_request", &error.to_string());
        let _ = (&mut &*self.stream).write_all(&response.to_bytes(&request, shared.clock.now()));
    }

    /// Ends the connection with FIN.
    fn end(mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        self.take_held_back();
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
