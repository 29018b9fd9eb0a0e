//! A connection that blocks, for commands that ask one thing and end; the server has none.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mio::net::TcpStream;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::stream::{Handshake, Stream};

/// By whom to trust a peer, and under which name.
pub type Trust = (Arc<ClientConfig>, ServerName<'static>);

/// Connects. What is done with the connection then takes at most `limit` each time: else it is `WouldBlock`.
///
/// # Errors
/// There is no connection.
pub fn connect(address: SocketAddr, within: Duration, limit: Duration) -> io::Result<TcpStream> {
    let socket = std::net::TcpStream::connect_timeout(&address, within)?;
    socket.set_read_timeout(Some(limit))?;
    socket.set_write_timeout(Some(limit))?;
    Ok(TcpStream::from_std(socket))
}

/// A stream over a connection; over TLS the handshake is over.
///
/// # Errors
/// `InvalidData` says why there is no TLS with that peer.
pub fn open(socket: TcpStream, trust: Option<&Trust>) -> io::Result<Stream> {
    let Some((config, name)) = trust else { return Ok(Stream::plain(socket)) };
    let mut stream = Stream::tls_client(socket, Arc::clone(config), name.clone())?;
    // The first word is ours.
    stream.flush()?;
    match stream.handshake()? {
        Handshake::Done => Ok(stream),
        // That it would block is that its time is over.
        Handshake::Waiting | Handshake::NotTls => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Sets how long each read and each write of a stream may take from now on.
///
/// # Errors
/// The system refuses.
pub fn set_limit(stream: &mut Stream, limit: Duration) -> io::Result<()> {
    for direction in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(stream.socket(), direction, Some(limit))?;
    }
    Ok(())
}

/// Writes all of it.
///
/// # Errors
/// It does not go, or not in time.
pub fn write_all(stream: &mut Stream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = stream.write(bytes)?;
        bytes = &bytes[written..];
    }
    stream.flush()
}
