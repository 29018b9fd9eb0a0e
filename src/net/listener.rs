//! The sockets that clients connect to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

/// Errors that concern one client or the path to it, by the numbers of errno(3) on Linux: `EPERM`
/// (a firewall), `EPROTO`, `ENOPROTOOPT`, `EOPNOTSUPP`, `ENETDOWN`, `ENETUNREACH`, `ECONNABORTED`,
/// `EHOSTDOWN`, `EHOSTUNREACH`, `ENONET`.
const CLIENT_ERRORS: [i32; 10] = [1, 71, 92, 95, 100, 101, 103, 112, 113, 64];
/// Most such errors in a row before the caller gets its turn.
const MAX_SKIPPED: usize = 64;
/// Most clients that wait to be accepted; the system may allow fewer (`net.core.somaxconn`). A
/// client beyond that tries again a second later, so the limit fits all clients that reconnect
/// after a restart.
const BACKLOG: i32 = 4096;

/// The result of accepting.
#[derive(Debug)]
pub enum Accepted {
    /// A client, with its address.
    Client(TcpStream, SocketAddr),
    /// No client waits.
    Nobody,
    /// Descriptors or memory ran out, or the socket failed. Accepting must pause.
    Exhausted(io::Error),
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
}

impl Listener {
    /// Listens on a port of an address. Without an address, it listens on all IPv4 addresses, and
    /// on all IPv6 addresses if the system has IPv6.
    ///
    /// # Errors
    /// Returns an error if the port is in use or the machine does not have the address.
    pub fn bind(host: Option<IpAddr>, port: u16) -> io::Result<Self> {
        Self::listen(at(host, port, |address| bound(address, false))?)
    }

    /// Listens on a port that other processes of the same user may share, if each of them asks for
    /// it (`SO_REUSEPORT`). The system gives each client to one of them. Port 0 stands for a free
    /// port.
    ///
    /// # Errors
    /// As [`Self::bind`], and an error if another process has the port and does not share it, or
    /// belongs to another user.
    pub fn bind_shared(host: Option<IpAddr>, port: u16) -> io::Result<Self> {
        Self::listen(at(host, port, |address| bound(address, true))?)
    }

    fn listen(socket: OwnedFd) -> io::Result<Self> {
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(Self { socket: TcpListener::from_std(socket.into()) })
    }

    /// Checks whether [`Self::bind_shared`] would succeed. The system gives no client to a socket
    /// that does not listen, so processes that share the port are not disturbed.
    ///
    /// # Errors
    /// As [`Self::bind_shared`].
    pub fn try_shared(host: Option<IpAddr>, port: u16) -> io::Result<()> {
        at(host, port, |address| bound(address, true)).map(drop)
    }

    /// Takes a non-blocking socket that listens.
    pub fn adopt(socket: TcpListener) -> Self {
        Self { socket }
    }

    /// Registers the socket under a token.
    ///
    /// # Errors
    /// Returns the error of the registration.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.socket, token, Interest::READABLE)
    }

    /// Returns the local address.
    ///
    /// # Errors
    /// Returns the error of the system.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts one client. Errors that concern one client are skipped.
    pub fn accept(&self) -> Accepted {
        for _ in 0..MAX_SKIPPED {
            match self.socket.accept() {
                Ok((socket, address)) => return Accepted::Client(socket, address),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Accepted::Nobody,
                Err(error) if concerns_one_client(&error) => log::debug!("A client could not be accepted: {error}"),
                Err(error) => return Accepted::Exhausted(error),
            }
        }
        Accepted::Exhausted(io::Error::other("many clients in a row could not be accepted"))
    }
}

/// Binds to a port of one address, or of all addresses.
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

/// Creates a socket that is bound to an address, which other sockets may share if `shared` is set.
/// mio sets neither the length of the queue nor `SO_REUSEPORT`.
fn bound(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // Otherwise a port stays in use while old connections linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if shared {
        sockopt::set_socket_reuseport(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}

/// Returns whether an error concerns one client (accept(2), "Error handling").
fn concerns_one_client(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted || error.raw_os_error().is_some_and(|code| CLIENT_ERRORS.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trying_a_shared_port_takes_no_client() {
        let host = Some(Ipv4Addr::LOCALHOST.into());
        let listener = Listener::bind_shared(host, 0).unwrap();
        let address = listener.address().unwrap();
        let _tried = bound(address, true).unwrap();
        let clients: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let accepted = clients.iter().filter(|_| matches!(listener.accept(), Accepted::Client(..))).count();
        assert_eq!(accepted, clients.len());
        // A socket that does not share the port cannot bind to it.
        assert_eq!(Listener::bind(host, address.port()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn many_clients_may_wait_to_be_accepted() {
        let listener = Listener::bind(Some(Ipv4Addr::LOCALHOST.into()), 0).unwrap();
        let address = listener.address().unwrap();
        // The system answers a client beyond the limit after a second at the earliest.
        let soon = std::time::Duration::from_millis(900);
        let clients: Vec<_> = (0..600).map(|_| std::net::TcpStream::connect_timeout(&address, soon)).collect();
        assert!(clients.iter().all(Result::is_ok), "{:?}", clients.iter().find(|client| client.is_err()));
    }
}
