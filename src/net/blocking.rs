//! A blocking connection for commands. The server never uses it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::stream::{Handshake, Stream};

/// The configuration that trusts a peer, and the name that the peer must have.
pub type Trust = (Arc<ClientConfig>, ServerName<'static>);

/// Connects within a time. Later reads and writes fail with `WouldBlock` after `limit` each.
///
/// # Errors
/// Returns an error if there is no connection.
pub fn connect(address: SocketAddr, within: Duration, limit: Duration) -> io::Result<TcpStream> {
    let socket = std::net::TcpStream::connect_timeout(&address, within)?;
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    Ok(TcpStream::from_std(socket))
}

/// Opens a stream over a connection, and completes the handshake of TLS.
///
/// # Errors
/// Returns `InvalidData` with the reason if the handshake fails.
pub fn open(socket: TcpStream, trust: Option<&Trust>) -> io::Result<Stream> {
    let Some((config, name)) = trust else { return Ok(Stream::plain(socket)) };
    let mut stream = Stream::tls_client(socket, Arc::clone(config), name.clone())?;
    // The client speaks first.
    stream.flush()?;
    match stream.handshake()? {
        Handshake::Done => Ok(stream),
        // On a blocking socket, `WouldBlock` means that the time is over.
        Handshake::Waiting | Handshake::NotTls => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Sets the time limit of each further read and write.
///
/// # Errors
/// Returns an error if the system rejects the option.
pub fn set_limit(stream: &mut Stream, limit: Duration) -> io::Result<()> {
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(stream.socket(), direction, Some(limit))?;
    }
    Ok(())
}

/// Writes all bytes.
///
/// # Errors
/// Returns an error if a write fails or exceeds the time limit.
pub fn write_all(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = stream.write(bytes)?;
        bytes = &bytes[written..];
    }
    stream.flush()
}
