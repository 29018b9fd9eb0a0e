//! A non-blocking byte stream: TCP, or TLS over it.
//!
//! The socket is edge-triggered. Reading goes on until `WouldBlock`; what rustls holds decrypted is
//! handed out before the socket is asked again, since the socket will not tell of it.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::tls;

/// Most bytes that rustls keeps on their way to a client, encrypted. There are many of them: one record's worth each, and
/// what a slow reader leaves is kept where it costs less.
const CLIENT_BUFFER: usize = 16 * 1024;
/// Bytes that a peer may send without any content in them; the longest handshake message is half of it.
const MAX_WITHOUT_CONTENT: u32 = 128 * 1024;
/// What the first record of TLS begins with: the content type of a handshake (RFC 8446 section 5.1).
pub const TLS_HANDSHAKE: u8 = 0x16;

/// A stream.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    /// None for TCP alone.
    tls: Option<Box<Connection>>,
    /// Whether the peer was seen to begin with TLS; it is not looked for where we begin.
    greeted: bool,
    /// Bytes that TLS took since it last had content.
    without_content: u32,
}

/// How far the handshake with a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It is over.
    Done,
    /// The client has to say more.
    Waiting,
    /// What the client says is no TLS. From here on the stream is plain, and nothing was taken off it.
    NotTls,
}

impl Stream {
    /// TCP alone.
    pub fn plain(socket: TcpStream) -> Self {
        Self { socket, tls: None, greeted: false, without_content: 0 }
    }

    /// A TLS stream over a socket that is connected, or about to be: we are the client.
    ///
    /// # Errors
    /// When rustls cannot set the session up.
    pub fn tls_client(socket: TcpStream, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<Self> {
        let mut session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        // There are few of these, and what is written is ours. A request may come before the handshake is over, and
        // nothing would tell that there is room for the rest of it then.
        session.set_buffer_limit(None);
        Ok(Self { socket, tls: Some(Box::new(session.into())), greeted: true, without_content: 0 })
    }

    /// A TLS stream over a socket that was accepted: we are the server. [`Self::handshake`] comes first.
    ///
    /// # Errors
    /// When rustls cannot set the session up.
    pub fn tls_server(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(CLIENT_BUFFER));
        Ok(Self { socket, tls: Some(Box::new(session.into())), greeted: false, without_content: 0 })
    }

    /// The socket, for registration and for its options.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether a read that did not fill its buffer has emptied the socket.
    pub fn short_read_is_last(&self) -> bool {
        self.tls.is_none()
    }

    /// Returns at most how many received bytes TLS holds.
    pub fn held_bytes(&self) -> usize {
        self.without_content as usize
    }

    /// Whether TLS holds back what was written.
    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.wants_write())
    }

    /// Whether the certificate of the peer holds no host name that could be checked.
    pub fn peer_is_nameless(&self) -> bool {
        let shown = self.tls.as_ref().and_then(|session| session.peer_certificates()?.first());
        shown.is_some_and(tls::holds_no_name)
    }

    /// Goes on with the handshake, as far as what the peer sent goes. To be called until it is
    /// done, before anything else is read or written.
    ///
    /// # Errors
    /// The peer left, or no TLS can be spoken with it. It was told why; from here on the stream is
    /// plain, for its last bytes to be passed over.
    pub fn handshake(&mut self) -> io::Result<Handshake> {
        if self.tls.is_some() && !self.greeted {
            let mut first = [0];
            match retry(|| self.socket.peek(&mut first)) {
                Ok(0) => return Err(left("it said nothing")),
                Ok(_) if first == [TLS_HANDSHAKE] => self.greeted = true,
                Ok(_) => {
                    self.tls = None;
                    return Ok(Handshake::NotTls);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Handshake::Waiting),
                Err(error) => return Err(error),
            }
        }
        while let Some(session) = self.tls.as_deref_mut().filter(|session| session.is_handshaking()) {
            match receive(&mut self.socket, session, &mut self.without_content) {
                Ok(0) if matches!(session, Connection::Client(_)) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the connection ended in the TLS handshake",
                    ));
                }
                Ok(0) => return Err(left("so do some that do not trust the certificate in --tls_cert")),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Handshake::Waiting),
                Err(error) => {
                    self.tls = None;
                    return Err(error);
                }
            }
        }
        Ok(Handshake::Done)
    }

    /// Reads; 0 is an orderly end.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing to read. A TLS stream that ends without `close_notify` is
    /// `UnexpectedEof`: it may have been cut.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self { socket, tls, without_content, .. } = self;
        let Some(session) = tls else { return retry(|| socket.read(buffer)) };
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::Error::new(error.kind(), "the connection was cut (TLS: no close_notify)"));
                }
                Ok(read) => {
                    *without_content = 0;
                    return Ok(read);
                }
                Err(error) => return Err(error),
            }
            // The end of the socket shows in the reader: as an end, or as a truncation.
            receive(socket, session, without_content)?;
        }
    }

    /// Writes as much as goes.
    ///
    /// # Errors
    /// `WouldBlock` when nothing goes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { socket, tls, .. } = self;
        let Some(session) = tls else { return retry(|| socket.write(bytes)) };
        loop {
            let accepted = session.writer().write(bytes)?;
            match write_records(socket, session) {
                // It was full, and the socket takes more: saying that it would block would be waiting for an event that
                // does not come.
                Ok(()) if accepted == 0 && !bytes.is_empty() && !session.is_handshaking() => {}
                Ok(()) if accepted == 0 && !bytes.is_empty() => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) if accepted == 0 || error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => return Ok(accepted),
            }
        }
    }

    /// Writes what TLS holds back; nothing to do over plain TCP.
    ///
    /// # Errors
    /// `WouldBlock` when not all of it goes.
    pub fn flush(&mut self) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(()), |session| write_records(&mut self.socket, session))
    }

    /// Says that nothing more will be written.
    pub fn shut_down_write(&mut self) {
        if let Some(session) = &mut self.tls {
            session.send_close_notify();
            let _ = write_records(&mut self.socket, session);
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

fn left(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the client left; {how}"))
}

/// Takes once from the socket what it has, and answers what TLS itself answers; how many bytes there were.
/// `without_content` adds them up.
fn receive(socket: &mut TcpStream, session: &mut Connection, without_content: &mut u32) -> io::Result<usize> {
    let read = retry(|| session.read_tls(socket))?;
    *without_content = without_content.saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
    if let Err(error) = session.process_new_packets() {
        // Tell the peer why.
        let _ = write_records(socket, session);
        let why = match session {
            Connection::Client(_) => tls::explain_server(&error),
            Connection::Server(_) => tls::explain_client(&error),
        };
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    if *without_content > MAX_WITHOUT_CONTENT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "much is sent, and nothing is in it"));
    }
    match write_records(socket, session) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(read),
    }
}

fn write_records(socket: &mut TcpStream, session: &mut Connection) -> io::Result<()> {
    while session.wants_write() {
        retry(|| session.write_tls(socket))?;
    }
    Ok(())
}

fn retry<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
