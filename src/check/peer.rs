//! One request and its answer, over a connection of its own that blocks.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::net::blocking::{self, Trust};
use crate::net::stream::Stream;
use crate::wire::http::{Part, ResponseReader};

/// Longest body that is read, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// Time beyond the limit until a whole exchange is given up. An error inside of it says more.
const GRACE: Duration = Duration::from_secs(1);
/// The first byte of what a TLS server sends to those who do not speak it: an alert (RFC 8446 section 5.1).
const TLS_ALERT: u8 = 0x15;

/// Who is asked, and how.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) addresses: Vec<SocketAddr>,
    /// Over TLS, by whom to trust, and under which name.
    pub(super) tls: Option<Trust>,
}

/// How much of an answer is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Nothing: there shall be a connection.
    Connected,
    /// All of it.
    End,
    /// The first bytes of its body.
    Content,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Whether the certificate of the peer holds no host name.
    pub(super) nameless: bool,
}

/// Why there is none.
pub(super) enum PeerError {
    /// No connection. To which address, and why.
    Connect(SocketAddr, io::Error),
    /// No TLS. Why.
    Tls(String),
    /// Nothing came in time.
    Silent,
    /// The head of an answer came, and nothing of its body in time.
    Withheld,
    /// The connection ended.
    Closed,
    /// TLS is spoken where plain HTTP was expected.
    SpeaksTls,
    /// Something else than HTTP is spoken.
    NotHttp,
}

impl Peer {
    /// Connects and, over TLS, shakes hands.
    /// Returns whether the certificate that is shown holds no host name.
    pub(super) fn reach(&self, limit: Duration) -> Result<bool, PeerError> {
        self.ask(Vec::new(), Until::Connected, limit).map(|answer| answer.nameless)
    }

    /// Sends a request; its answer, or as much of it as is wanted.
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
                // Something answers there: that says more than an address where nothing does.
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

/// What `work` comes to, unless it takes too long. It is not waited for then: the process ends soon.
pub(super) fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = channel();
    let thread = std::thread::Builder::new().name("check".to_owned());
    thread.spawn(move || drop(done.send(work()))).ok()?;
    result.recv_timeout(limit).ok()
}
