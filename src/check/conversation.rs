//! One request and its answer, over a connection of its own that blocks.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::within;
use crate::net::tls;
use crate::wire::response::{Part, ResponseReader};

/// Longest body that is read, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// So much longer than it should take all of a conversation may take: what is wrong is better known in its middle.
const GRACE: Duration = Duration::from_secs(1);
/// The first byte of what a TLS server sends to those who do not speak it: an alert (RFC 8446 section 5.1).
const TLS_ALERT: u8 = 0x15;

/// Who is asked, and how.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) addresses: Vec<SocketAddr>,
    /// Over TLS, by whom to trust, and under which name.
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// How much of an answer is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// All of it.
    End,
    /// The first bytes of its body.
    Content,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Why there is none.
pub(super) enum Trouble {
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

enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Peer {
    /// Connects and, over TLS, shakes hands.
    pub(super) fn reach(&self, limit: Duration) -> Result<(), Trouble> {
        let peer = self.clone();
        within(limit + GRACE, move || peer.connect(limit).map(drop)).unwrap_or(Err(Trouble::Silent))
    }

    /// Sends a request; its answer, or as much of it as is wanted.
    pub(super) fn ask(&self, request: Vec<u8>, until: Until, limit: Duration) -> Result<Answer, Trouble> {
        let peer = self.clone();
        let answer = within(limit + GRACE, move || {
            let mut wire = peer.connect(limit)?;
            let sent = wire.write_all(&request).and_then(|()| wire.flush());
            sent.map_err(|error| Trouble::of(&error))?;
            read_answer(&mut wire, until)
        });
        answer.unwrap_or(Err(Trouble::Silent))
    }

    fn connect(&self, limit: Duration) -> Result<Wire, Trouble> {
        let mut last = Trouble::Silent;
        let share = limit / u32::try_from(self.addresses.len().max(1)).unwrap_or(u32::MAX);
        for address in &self.addresses {
            match TcpStream::connect_timeout(address, share) {
                Ok(socket) => return self.shake_hands(socket, limit),
                Err(error) => last = Trouble::Connect(*address, error),
            }
        }
        Err(last)
    }

    fn shake_hands(&self, mut socket: TcpStream, limit: Duration) -> Result<Wire, Trouble> {
        let limited = socket.set_read_timeout(Some(limit)).and_then(|()| socket.set_write_timeout(Some(limit)));
        limited.map_err(|error| Trouble::of(&error))?;
        let Some((config, name)) = &self.tls else { return Ok(Wire::Plain(socket)) };
        let session = ClientConnection::new(Arc::clone(config), name.clone());
        let mut session = session.map_err(|error| Trouble::Tls(error.to_string()))?;
        while session.is_handshaking() {
            session.complete_io(&mut socket).map_err(|error| {
                match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                    Some(error) => Trouble::Tls(tls::explain(error)),
                    None => Trouble::of(&error),
                }
            })?;
        }
        Ok(Wire::Tls(Box::new(StreamOwned::new(session, socket))))
    }
}

impl Trouble {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Closed,
        }
    }
}

impl Wire {
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(stream) => stream.flush(),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(stream) => stream.write_all(bytes),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Plain(socket) => socket.read(buffer),
                Self::Tls(stream) => stream.read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

fn read_answer(wire: &mut Wire, until: Until) -> Result<Answer, Trouble> {
    let mut reader = ResponseReader::new();
    let (mut status, mut body) = (None, Vec::new());
    let mut buffer = [0; 4096];
    loop {
        let length = wire.read(&mut buffer).map_err(|error| match Trouble::of(&error) {
            Trouble::Silent if status.is_some() => Trouble::Withheld,
            trouble => trouble,
        })?;
        let mut rest = &buffer[..length];
        if rest.is_empty() {
            let status = status.filter(|_| reader.ends_with_connection()).ok_or(Trouble::Closed)?;
            return Ok(Answer { status, body });
        }
        if rest[0] == TLS_ALERT && reader.is_untouched() && matches!(wire, Wire::Plain(_)) {
            return Err(Trouble::SpeaksTls);
        }
        loop {
            let (used, part) = reader.next(rest).map_err(|_| Trouble::NotHttp)?;
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
                return status.map(|status| Answer { status, body }).ok_or(Trouble::NotHttp);
            }
        }
    }
}
