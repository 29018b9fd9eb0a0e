//! One request and its response, over a blocking connection of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::net::blocking::{self, Trust};
use crate::net::stream::Stream;
use crate::wire::http::{Part, ResponseReader};

/// Most bytes of a body to read.
const MAX_BODY: usize = 64 * 1024;
/// Time beyond the limit until a whole exchange is given up. An error within it says more.
const GRACE: Duration = Duration::from_secs(1);
/// First byte of an alert, which a TLS server sends to a plain client (RFC 8446 section 5.1).
const TLS_ALERT: u8 = 0x15;

/// A server to ask.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) addresses: Vec<SocketAddr>,
    /// Trust and name for TLS; None for plain TCP.
    pub(super) tls: Option<Trust>,
}

/// The part of a response to wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// A connection, without a request.
    Connected,
    /// The whole response.
    End,
    /// The first bytes of the body.
    Content,
}

/// A response.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Whether the certificate of the peer has no host name.
    pub(super) nameless: bool,
}

/// The reason why there is no response.
pub(super) enum PeerError {
    /// No connection: the address and the error.
    Connect(SocketAddr, io::Error),
    /// TLS failed: the reason in words.
    Tls(String),
    /// No byte arrived in time.
    Silent,
    /// The head arrived, but no byte of the body in time.
    Withheld,
    /// The connection ended.
    Closed,
    /// The peer speaks TLS instead of plain HTTP.
    SpeaksTls,
    /// The peer does not speak HTTP.
    NotHttp,
}

impl Peer {
    /// Connects, and completes the handshake of TLS. Returns whether the certificate has no host
    /// name.
    pub(super) fn reach(&self, limit: Duration) -> Result<bool, PeerError> {
        self.ask(Vec::new(), Until::Connected, limit).map(|answer| answer.nameless)
    }

    /// Sends a request. Returns the response, as far as it is wanted.
    pub(super) fn ask(&self, request: Vec<u8>, until: Until, limit: Duration) -> Result<Answer, PeerError> {
        let peer = self.clone();
        let answer = within(limit + GRACE, move || {
            let mut stream = peer.connect(limit)?;
            if until == Until::Connected {
                return Ok(Answer { status: 0, body: Vec::new(), nameless: stream.peer_is_nameless() });
            }
            blocking::write_all(&mut stream, &request).map_err(|error| PeerError::of(&error))?;
            read_answer(&mut stream, until)
        });
        answer.unwrap_or(Err(PeerError::Silent))
    }

    fn connect(&self, limit: Duration) -> Result<Stream, PeerError> {
        let (mut last, mut refused) = (PeerError::Silent, None);
        let share = limit / u32::try_from(self.addresses.len().max(1)).unwrap_or(u32::MAX);
        for address in &self.addresses {
            let socket = match blocking::connect(*address, share, share) {
                Ok(socket) => socket,
                Err(error) => {
                    last = PeerError::Connect(*address, error);
                    continue;
                }
            };
            match blocking::open(socket, self.tls.as_ref()) {
                Ok(mut stream) => {
                    blocking::set_limit(&mut stream, limit).map_err(|error| PeerError::of(&error))?;
                    return Ok(stream);
                }
                // An address with a server says more than one without.
                Err(error) => refused = refused.or(Some(PeerError::of(&error))),
            }
        }
        Err(refused.unwrap_or(last))
    }
}

impl PeerError {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            io::ErrorKind::InvalidData => Self::Tls(error.to_string()),
            _ => Self::Closed,
        }
    }
}

fn read_answer(stream: &mut Stream, until: Until) -> Result<Answer, PeerError> {
    let mut reader = ResponseReader::new();
    let (mut status, mut body) = (None, Vec::new());
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).map_err(|error| match PeerError::of(&error) {
            PeerError::Silent if status.is_some() => PeerError::Withheld,
            error => error,
        })?;
        let mut rest = &buffer[..length];
        if rest.is_empty() {
            let status = status.filter(|_| reader.ends_with_connection()).ok_or(PeerError::Closed)?;
            return Ok(Answer { status, body, nameless: false });
        }
        if rest[0] == TLS_ALERT && reader.is_untouched() && !stream.is_tls() {
            return Err(PeerError::SpeaksTls);
        }
        loop {
            let (used, part) = reader.next(rest).map_err(|_| PeerError::NotHttp)?;
            rest = &rest[used..];
            let is_over = match part {
                Part::Head(head) => {
                    status = Some(head.status);
                    false
                }
                Part::Data(data) => {
                    body.extend_from_slice(data);
                    until == Until::Content || body.len() > MAX_BODY
                }
                Part::End => true,
                Part::NeedMore => break,
            };
            if is_over {
                return status.map(|status| Answer { status, body, nameless: false }).ok_or(PeerError::NotHttp);
            }
        }
    }
}

/// Runs `work` in a thread and returns its result; None if it takes too long. The thread is
/// abandoned then, since the process ends soon.
pub(super) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = channel();
    let thread = std::thread::Builder::new().name("check".to_owned());
    thread.spawn(move || drop(done.send(work()))).ok()?;
    result.recv_timeout(limit).ok()
}
