//! The socket that clients connect to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

/// `EMFILE`: this process has no descriptor left (errno(3), the same number on every Linux).
const NO_DESCRIPTOR_HERE: i32 = 24;
/// `ENFILE`: the whole system has none.
const NO_DESCRIPTOR_ANYWHERE: i32 = 23;

/// What accepting gave.
#[derive(Debug)]
pub enum Accepted {
    /// A client.
    Client(TcpStream, SocketAddr),
    /// Nobody is waiting.
    Nobody,
    /// Descriptors or memory ran out: accepting must pause.
    Exhausted(io::Error),
}

/// The listener.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
}

impl Listener {
    /// Listens on a port of an address; without one, on all addresses, IPv6 and IPv4 alike where there
    /// is IPv6.
    ///
    /// # Errors
    /// The port is in use, or the address is none of this machine.
    pub fn bind(host: Option<IpAddr>, port: u16) -> io::Result<Self> {
        let bind = |address| TcpListener::bind(SocketAddr::new(address, port));
        let socket = match host {
            Some(address) => bind(address)?,
            None => match bind(Ipv6Addr::UNSPECIFIED.into()) {
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => bind(Ipv4Addr::UNSPECIFIED.into())?,
                bound => bound?,
            },
        };
        Ok(Self { socket })
    }

    /// Has its events told under a token.
    ///
    /// # Errors
    /// What the registration failed with.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, Interest::READABLE)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts one client. What was wrong with a client alone is passed over.
    pub fn accept(&self) -> Accepted {
        loop {
            match self.socket.accept() {
                Ok((socket, address)) => return Accepted::Client(socket, address),
                Err(error) => match (error.kind(), error.raw_os_error()) {
                    (io::ErrorKind::WouldBlock, _) => return Accepted::Nobody,
                    (io::ErrorKind::OutOfMemory, _) | (_, Some(NO_DESCRIPTOR_HERE | NO_DESCRIPTOR_ANYWHERE)) => {
                        return Accepted::Exhausted(error);
                    }
                    // The client is gone again, or its packet was bad.
                    (_, _) => log::debug!("A client could not be accepted: {error}"),
                },
            }
        }
    }
}
