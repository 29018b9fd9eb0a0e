//! A non-blocking byte stream: TCP, or TLS over it.
//!
//! The socket is edge-triggered, so callers read until `WouldBlock`. Bytes that rustls has
//! decrypted are returned before the socket is read, since no event reports them.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::tls;

/// Most encrypted bytes that rustls holds for a client: one record. There are many clients, and the
/// rest for a slow one is kept where it takes less memory.
const CLIENT_BUFFER: usize = 16 * 1024;
/// Bytes that a peer may send without content in them; twice the longest handshake message.
const MAX_WITHOUT_CONTENT: u32 = 128 * 1024;
/// First byte of TLS: the content type of a handshake (RFC 8446 section 5.1).
pub const TLS_HANDSHAKE: u8 = 0x16;

/// A stream.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    /// None for plain TCP.
    tls: Option<Box<Connection>>,
    /// Whether the peer is known to speak TLS. A client does not check it.
    greeted: bool,
    /// Bytes that TLS received since the last content.
    without_content: u32,
}

/// The progress of the handshake with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The handshake is complete.
    Done,
    /// The handshake needs more bytes of the client.
    Waiting,
    /// The client does not speak TLS. The stream is plain from here on, and no byte was read.
    NotTls,
}

impl Stream {
    /// Creates a plain stream.
    pub fn plain(socket: TcpStream) -> Self {
        Self { socket, tls: None, greeted: false, without_content: 0 }
    }

    /// Creates a TLS stream as the client, over a socket that is connected or connecting.
    ///
    /// # Errors
    /// Returns the error of rustls.
    pub fn tls_client(socket: TcpStream, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<Self> {
        let mut session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        // There are few of these, and the server itself writes the requests. A request may be
        // written before the handshake is complete, and no event would report space for its rest.
        session.set_buffer_limit(None);
        Ok(Self { socket, tls: Some(Box::new(session.into())), greeted: true, without_content: 0 })
    }

    /// Creates a TLS stream as the server, over an accepted socket. [`Self::handshake`] comes
    /// first.
    ///
    /// # Errors
    /// Returns the error of rustls.
    pub fn tls_server(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
        session.set_buffer_limit(Some(CLIENT_BUFFER));
        Ok(Self { socket, tls: Some(Box::new(session.into())), greeted: false, without_content: 0 })
    }

    /// Returns the socket, for registration and options.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Returns whether the stream is TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns whether a read that did not fill its buffer has emptied the socket.
    pub fn short_read_is_last(&self) -> bool {
        self.tls.is_none()
    }

    /// Returns the most bytes that TLS may hold.
    pub fn held_bytes(&self) -> usize {
        self.without_content as usize
    }

    /// Returns whether TLS holds bytes to write.
    pub fn has_unsent(&self) -> bool {
        self.tls.as_ref().is_some_and(|session| session.wants_write())
    }

    /// Returns whether the certificate of the peer has no host name that could be checked.
    pub fn peer_is_nameless(&self) -> bool {
        let shown = self.tls.as_ref().and_then(|session| session.peer_certificates()?.first());
        shown.is_some_and(tls::has_no_name)
    }

    /// Continues the handshake. Callers repeat it until it is complete, before any read or write.
    ///
    /// # Errors
    /// Returns an error if the peer left or the handshake failed. The peer was notified by an
    /// alert. The stream is plain from here on, so that its last bytes can be skipped.
    pub fn handshake(&mut self) -> io::Result<Handshake> {
        if self.tls.is_some() && !self.greeted {
            let mut first = [0];
            match retry(|| self.socket.peek(&mut first)) {
                Ok(0) => return Err(left("it sent nothing")),
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
                Ok(0) => return Err(left("some clients do so if they do not trust the certificate in --tls_cert")),
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

    /// Reads into a buffer. Returns 0 at an orderly end.
    ///
    /// # Errors
    /// Returns `WouldBlock` if there is nothing to read, and `UnexpectedEof` if a TLS stream ends
    /// without `close_notify`, since it may have been cut.
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
            // The reader reports the end of the socket, as an end or as a truncation.
            receive(socket, session, without_content)?;
        }
    }

    /// Writes as many bytes as possible. Returns their number.
    ///
    /// # Errors
    /// Returns `WouldBlock` if no byte could be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Self { socket, tls, .. } = self;
        let Some(session) = tls else { return retry(|| socket.write(bytes)) };
        loop {
            let accepted = session.writer().write(bytes)?;
            match write_records(socket, session) {
                // The buffer was full, and the socket took all of it. With `WouldBlock` the caller
                // would wait for an event that does not come.
                Ok(()) if accepted == 0 && !bytes.is_empty() && !session.is_handshaking() => {}
                Ok(()) if accepted == 0 && !bytes.is_empty() => return Err(io::ErrorKind::WouldBlock.into()),
                Err(error) if accepted == 0 || error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => return Ok(accepted),
            }
        }
    }

    /// Writes the bytes that TLS holds. Plain TCP holds none.
    ///
    /// # Errors
    /// Returns `WouldBlock` if some bytes remain.
    pub fn flush(&mut self) -> io::Result<()> {
        self.tls.as_mut().map_or(Ok(()), |session| write_records(&mut self.socket, session))
    }

    /// Closes the direction of writing.
    pub fn shut_down_write(&mut self) {
        if let Some(session) = &mut self.tls {
            session.send_close_notify();
            let _ = write_records(&mut self.socket, session);
        }
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

fn left(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the client closed the connection; {how}"))
}

/// Reads once from the socket, and sends the answers of TLS itself. Returns the number of bytes
/// read, which it also adds to `without_content`.
fn receive(socket: &mut TcpStream, session: &mut Connection, without_content: &mut u32) -> io::Result<usize> {
    let read = retry(|| session.read_tls(socket))?;
    *without_content = without_content.saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
    if let Err(error) = session.process_new_packets() {
        // Send the alert with the reason.
        let _ = write_records(socket, session);
        let why = match session {
            Connection::Client(_) => tls::explain_server(&error),
            Connection::Server(_) => tls::explain_client(&error),
        };
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    if *without_content > MAX_WITHOUT_CONTENT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too many bytes without content"));
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
