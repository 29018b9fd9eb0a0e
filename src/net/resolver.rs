//! Name resolution in a thread of its own, since a lookup blocks and the loop must not.
//!
//! Names are looked up in `/etc/hosts`, then by the nameservers in `/etc/resolv.conf`. Each lookup
//! reads both files, and nothing is cached: connections to CouchDB are few and last long, and each
//! new one follows the current address of the name.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::Waker;
use rustix::net::netdevice::name_to_index;

use super::nameservers;
use crate::wire::resolv_conf::{ResolvConf, Zoned, find_host};

/// The addresses of a name in the order of use, or the reason why there are none.
pub type Resolved = Result<Vec<SocketAddr>, String>;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Most bytes to read of each file; lists of blocked names are long.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The handle of the resolver thread.
#[derive(Debug)]
pub struct Resolver {
    questions: Sender<(Box<str>, u16)>,
    answers: Receiver<Resolved>,
}

impl Resolver {
    /// Starts the thread. It wakes the loop when it has an answer.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start(waker: Arc<Waker>) -> io::Result<Self> {
        let (questions, asked) = channel::<(Box<str>, u16)>();
        let (answer, answers) = channel();
        std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            // Ends when the loop drops its end.
            for turn in 0_usize.. {
                let Ok((host, port)) = asked.recv() else { return };
                if answer.send(resolve(&host, port, turn)).is_err() || waker.wake().is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }

    /// Asks for the addresses of a host.
    pub fn ask(&self, host: &str, port: u16) {
        // The thread lives as long as this handle.
        let _ = self.questions.send((host.into(), port));
    }

    /// Returns an answer if there is one.
    pub fn take_answer(&self) -> Option<Resolved> {
        self.answers.try_recv().ok()
    }
}

/// Looks up a host, and blocks until there is an answer.
///
/// # Errors
/// Returns the reason why there are no addresses.
pub fn look_up(host: &str, port: u16) -> Resolved {
    resolve(host, port, 0)
}

/// Looks up a host. `turn` counts the lookups, so that nameservers can take turns.
fn resolve(host: &str, port: u16, turn: usize) -> Resolved {
    if let Some(address) = Zoned::parse(host) {
        return socket_address(&address, port).map(|address| vec![address]);
    }
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].map(|ip| SocketAddr::new(ip, port));
    let bare = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    // Known without a lookup (RFC 6761 section 6.3), even without a hosts file, as in an image of
    // one binary. There a lookup would cost seconds.
    if bare == "localhost" {
        return Ok(loopback.to_vec());
    }
    let listed = find_host(&read(HOSTS), host);
    if !listed.is_empty() {
        return listed.iter().map(|address| socket_address(address, port)).collect();
    }
    if bare.ends_with(".localhost") {
        return Ok(loopback.to_vec());
    }
    let conf = ResolvConf::parse(&read(RESOLV_CONF));
    // A nameserver on a missing interface cannot be asked, but others can.
    let servers = conf.nameservers.iter().filter_map(|server| socket_address(server, nameservers::PORT).ok());
    let mut servers: Vec<SocketAddr> = servers.collect();
    if conf.rotate && !servers.is_empty() {
        let first = turn % servers.len();
        servers.rotate_left(first);
    }
    match nameservers::look_up(&conf, &servers, host) {
        Ok(addresses) => Ok(alternate(addresses).into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
        Err(error) => Err(format!("the lookup of the host name failed: {error}")),
    }
}

/// Alternates the addresses of both families, so that a family that does not work costs one
/// attempt. IPv4 comes first, since CouchDB trusts `X-Forwarded-For` only over IPv4.
fn alternate([four, six]: [Vec<IpAddr>; 2]) -> Vec<IpAddr> {
    let mut mixed = Vec::with_capacity(four.len() + six.len());
    let (mut four, mut six) = (four.into_iter(), six.into_iter());
    loop {
        let pair = [four.next(), six.next()];
        if pair == [None, None] {
            return mixed;
        }
        mixed.extend(pair.into_iter().flatten());
    }
}

/// Returns the address to connect to, with the number of its zone.
fn socket_address(address: &Zoned, port: u16) -> Result<SocketAddr, String> {
    let (IpAddr::V6(ip), Some(zone)) = (address.ip, &address.zone) else {
        return Ok(SocketAddr::new(address.ip, port));
    };
    let index = match zone.parse::<u32>() {
        Ok(number) => number,
        Err(_) => interface(zone).map_err(|error| format!("there is no interface {zone:?} ({error})"))?,
    };
    Ok(SocketAddrV6::new(ip, port, 0, index).into())
}

fn interface(name: &str) -> io::Result<u32> {
    // The system call needs any socket.
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).or_else(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))?;
    Ok(name_to_index(socket, name)?)
}

/// Reads a file. A missing file is empty.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_FILE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_localhost_and_addresses_without_lookup() {
        let loopback: Vec<SocketAddr> = ["127.0.0.1:80", "[::1]:80"].map(|text| text.parse().unwrap()).to_vec();
        for name in ["localhost", "LOCALHOST", "localhost.", "couch.localhost"] {
            assert_eq!(look_up(name, 80), Ok(loopback.clone()), "{name}");
        }
        assert_eq!(look_up("::1", 80), Ok(vec!["[::1]:80".parse().unwrap()]));
        assert_eq!(look_up("fe80::1%7", 80), Ok(vec![SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 0, 7).into()]));
        let index = interface("lo").unwrap();
        let expected = SocketAddrV6::new("fe80::1".parse().unwrap(), 80, 0, index);
        assert_eq!(look_up("fe80::1%lo", 80), Ok(vec![expected.into()]));
        assert!(look_up("fe80::1%nowhere0", 80).unwrap_err().contains("there is no interface \"nowhere0\""));
    }

    #[test]
    fn alternates_families() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mixed = alternate([vec![ip("10.0.0.1"), ip("10.0.0.2")], vec![ip("::1"), ip("::2"), ip("::3")]]);
        assert_eq!(mixed, ["10.0.0.1", "::1", "10.0.0.2", "::2", "::3"].map(ip));
    }
}
