//! The socket that clients connect to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

/// What is wrong with one client or the way to it alone, by the numbers of errno(3) on Linux: `EPERM` (a firewall),
/// `EPROTO`, `ENOPROTOOPT`, `EOPNOTSUPP`, `ENETDOWN`, `ENETUNREACH`, `ECONNABORTED`, `EHOSTDOWN`, `EHOSTUNREACH`, `ENONET`.
const OF_ONE_CLIENT: [i32; 10] = [1, 71, 92, 95, 100, 101, 103, 112, 113, 64];
/// Most clients in a row with whom something is wrong before others have their turn.
const PASSED_OVER: usize = 64;

/// What accepting gave.
#[derive(Debug)]
pub enum Accepted {
    /// A client.
    Client(TcpStream, SocketAddr),
    /// Nobody is waiting.
    Nobody,
    /// Descriptors or memory ran out, or the socket is broken: accepting must pause.
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

    /// Takes a socket that listens already, and does not block.
    pub fn adopt(socket: TcpListener) -> Self {
        Self { socket }
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
        for _ in 0..PASSED_OVER {
            match self.socket.accept() {
                Ok((socket, address)) => return Accepted::Client(socket, address),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Accepted::Nobody,
                Err(error) if is_of_one_client(&error) => log::debug!("A client could not be accepted: {error}"),
                Err(error) => return Accepted::Exhausted(error),
            }
        }
        Accepted::Exhausted(io::Error::other("one client after the other could not be accepted"))
    }
}

/// See accept(2), "Error handling".
fn is_of_one_client(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted || error.raw_os_error().is_some_and(|code| OF_ONE_CLIENT.contains(&code))
}
