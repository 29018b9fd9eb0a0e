//! A non-blocking byte stream: TCP, or TLS over it.
//!
//! The socket is edge-triggered. Reading goes on until `WouldBlock`; what rustls holds decrypted is
//! handed out before the socket is asked again, since the socket will not tell of it.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::tls;

/// A stream.
#[derive(Debug)]
pub enum Stream {
    /// TCP alone.
    Plain(TcpStream),
    /// TLS, we are the client.
    TlsClient(Box<TlsClient>),
}

/// The client's end of a TLS connection.
#[derive(Debug)]
pub struct TlsClient {
    socket: TcpStream,
    session: ClientConnection,
}

impl Stream {
    /// A TLS stream over a socket that is connected, or about to be.
    ///
    /// # Errors
    /// When rustls cannot set the session up.
    pub fn tls_client(socket: TcpStream, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<Self> {
        let mut session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        // There are few of these, and what is written is ours. A request may come before the handshake is over, and
        // nothing would tell that there is room for the rest of it then.
        session.set_buffer_limit(None);
        Ok(Self::TlsClient(Box::new(TlsClient { socket, session })))
    }

    /// The socket, for registration and for its options.
    pub fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::TlsClient(client) => &mut client.socket,
        }
    }

    /// Whether a read that did not fill its buffer has emptied the socket.
    pub fn short_read_is_last(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Reads; 0 is an orderly end.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing to read. A TLS stream that ends without `close_notify` is
    /// `UnexpectedEof`: it may have been cut.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => retry(|| socket.read(buffer)),
            Self::TlsClient(client) => client.read(buffer),
        }
    }

    /// Writes as much as goes.
    ///
    /// # Errors
    /// `WouldBlock` when nothing goes.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => retry(|| socket.write(bytes)),
            Self::TlsClient(client) => client.write(bytes),
        }
    }

    /// Writes what TLS holds back; nothing to do over plain TCP.
    ///
    /// # Errors
    /// `WouldBlock` when not all of it goes.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::TlsClient(client) => client.write_records(),
        }
    }

    /// Says that nothing more will be written.
    pub fn shut_down_write(&mut self) {
        if let Self::TlsClient(client) = self {
            client.session.send_close_notify();
            let _ = client.write_records();
        }
        let _ = self.socket().shutdown(Shutdown::Write);
    }
}

impl TlsClient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::Error::new(error.kind(), "the connection was cut (TLS: no close_notify)"));
                }
                done => return done,
            }
            // The end of the socket shows in the reader: as an end, or as a truncation.
            let Self { socket, session } = self;
            retry(|| session.read_tls(socket))?;
            if let Err(error) = self.session.process_new_packets() {
                // Tell the peer why.
                let _ = self.write_records();
                return Err(io::Error::new(io::ErrorKind::InvalidData, tls::explain(&error)));
            }
            match self.write_records() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let accepted = self.session.writer().write(bytes)?;
        match self.write_records() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ if accepted == 0 && !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(accepted),
        }
    }

    fn write_records(&mut self) -> io::Result<()> {
        let Self { socket, session } = self;
        while session.wants_write() {
            retry(|| session.write_tls(socket))?;
        }
        Ok(())
    }
}

fn retry<T>(mut operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
