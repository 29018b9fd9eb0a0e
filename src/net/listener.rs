//! The socket that clients connect to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// What is wrong with one client or the way to it alone, by the numbers of errno(3) on Linux: `EPERM` (a firewall),
/// `EPROTO`, `ENOPROTOOPT`, `EOPNOTSUPP`, `ENETDOWN`, `ENETUNREACH`, `ECONNABORTED`, `EHOSTDOWN`, `EHOSTUNREACH`, `ENONET`.
const OF_ONE_CLIENT: [i32; 10] = [1, 71, 92, 95, 100, 101, 103, 112, 113, 64];
/// Most clients in a row with whom something is wrong before others have their turn.
const PASSED_OVER: usize = 64;
/// Most clients that wait to be accepted; the system may allow fewer (`net.core.somaxconn`). Who finds no place tries again
/// a second later, so all who come back at once after a restart are to have one.
const BACKLOG: i32 = 4096;

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
        Self::listen(at(host, port, |address| bound(address, false))?)
    }

    /// The same for a port that other processes of the same user may listen on, too, when each asks for that
    /// (`SO_REUSEPORT`): the system gives each client to one of them. Port 0 is one that nobody has.
    ///
    /// # Errors
    /// As above; the port is in use also when one who has it did not ask for that, or is of another user.
    pub fn bind_shared(host: Option<IpAddr>, port: u16) -> io::Result<Self> {
        Self::listen(at(host, port, |address| bound(address, true))?)
    }

    fn listen(socket: OwnedFd) -> io::Result<Self> {
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self { socket: TcpListener::from_std(socket.into()) })
    }

    /// Whether [`Self::bind_shared`] would do. The system gives no client to a socket that does not listen, so those who
    /// share the port are not disturbed.
    ///
    /// # Errors
    /// As above.
    pub fn try_shared(host: Option<IpAddr>, port: u16) -> io::Result<()> {
        at(host, port, |address| bound(address, true)).map(drop)
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

/// Binds to a port of an address, or of all.
fn at<T>(host: Option<IpAddr>, port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let bind = |address| bind(SocketAddr::new(address, port));
    match host {
        Some(address) => bind(address),
        None => match bind(Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => bind(Ipv4Addr::UNSPECIFIED.into()),
            bound => bound,
        },
    }
}

/// A socket that is bound to an address, where others may be bound, too, if it is shared.
fn bound(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Else a port could not be had again for as long as connections of before linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// See accept(2), "Error handling".
fn is_of_one_client(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted || error.raw_os_error().is_some_and(|code| OF_ONE_CLIENT.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_tries_a_shared_port_gets_no_client() {
        let host = Some(Ipv4Addr::LOCALHOST.into());
        let listener = Listener::bind_shared(host, 0).unwrap();
        let address = listener.address().unwrap();
        let _tried = bound(address, true).unwrap();
        let clients: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let accepted = clients.iter().filter(|_| matches!(listener.accept(), Accepted::Client(..))).count();
        assert_eq!(accepted, clients.len());
        // Who does not share it cannot have it.
        assert_eq!(Listener::bind(host, address.port()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn many_may_wait_to_be_accepted() {
        let listener = Listener::bind(Some(Ipv4Addr::LOCALHOST.into()), 0).unwrap();
        let address = listener.address().unwrap();
        // Who finds no place is answered a second later at the earliest.
        let soon = std::time::Duration::from_millis(900);
        let clients: Vec<_> = (0..600).map(|_| std::net::TcpStream::connect_timeout(&address, soon)).collect();
        assert!(clients.iter().all(Result::is_ok), "{:?}", clients.iter().find(|client| client.is_err()));
    }
}
