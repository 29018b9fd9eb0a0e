//! The target of a client, and the blocking stream to it: TCP, or TLS over it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::SOON;

/// A port and its protocol. A plain address stands for plain HTTP.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    /// Most bytes of one write.
    piece: usize,
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, tls: None, piece: usize::MAX }
    }
}

impl From<&Target> for Target {
    fn from(target: &Target) -> Self {
        target.clone()
    }
}

impl Target {
    /// Returns a target over TLS. Its certificate must be for `localhost`.
    pub fn tls(address: SocketAddr, config: Arc<ClientConfig>) -> Self {
        Self { address, tls: Some(config), piece: usize::MAX }
    }

    /// Returns a target to which every byte is a write of its own.
    pub fn byte_by_byte(self) -> Self {
        Self { piece: 1, ..self }
    }

    /// Connects; over TLS this includes the handshake.
    pub fn connect(&self) -> io::Result<Wire> {
        let socket = TcpStream::connect(self.address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(SOON))?;
        let mut wire = Wire { socket: Pieces { socket, piece: self.piece }, tls: None };
        if let Some(config) = &self.tls {
            let name = ServerName::try_from("localhost").expect("a name");
            let mut session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
            while session.is_handshaking() {
                session.complete_io(&mut wire.socket)?;
            }
            wire.tls = Some(Box::new(session));
        }
        Ok(wire)
    }
}

/// A connection.
pub struct Wire {
    socket: Pieces,
    tls: Option<Box<ClientConnection>>,
}

impl Wire {
    pub fn set_read_timeout(&self, within: Duration) -> io::Result<()> {
        self.socket.socket.set_read_timeout(Some(within))
    }

    /// Returns the TLS session.
    pub fn session(&mut self) -> &mut ClientConnection {
        self.tls.as_mut().expect("it is over TLS")
    }

    /// Sends what the session has to say by itself, such as alerts.
    pub fn flush_session(&mut self) {
        let session = self.tls.as_mut().expect("it is over TLS");
        while session.wants_write() {
            session.write_tls(&mut self.socket).expect("the server reads");
        }
    }

    /// Returns the TCP socket below.
    pub fn socket(&self) -> &TcpStream {
        &self.socket.socket
    }
}

impl Read for Wire {
    /// Reads from the stream. Over TLS an end without `close_notify` is the error `UnexpectedEof`.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.read(bytes),
            Some(session) => rustls::Stream::new(&mut **session, &mut self.socket).read(bytes),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(session) = &mut self.tls else { return self.socket.write(bytes) };
        let mut stream = rustls::Stream::new(&mut **session, &mut self.socket);
        let written = stream.write(bytes)?;
        stream.flush()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that is written to in pieces.
struct Pieces {
    socket: TcpStream,
    piece: usize,
}

impl Read for Pieces {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.read(bytes)
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(&bytes[..bytes.len().min(self.piece)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
