//! Queries to nameservers for the addresses of a name, over UDP, and over TCP for replies that do
//! not fit. They block, so they run in the thread of the resolver, or in commands.
//!
//! IPv4 and IPv6 addresses are two questions, and a failure of one does not affect the other. Some
//! nameservers refuse the question for IPv6, do not answer it, or say that the name does not exist.
//! The C library of the static binary fails in these cases.
//!
//! Nothing here reads a clock. Limits on each wait limit the time of a lookup: a wait for a silent
//! nameserver uses up [`PATIENCE`], and a message that is no reply halves the rest of a wait.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::tls;
use crate::wire::dns::{self, Family, Reply};
use crate::wire::resolv_conf::ResolvConf;

/// Port of nameservers.
pub(super) const PORT: u16 = 53;
/// Wait for each nameserver in the first round; short, since another one may answer.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait for each nameserver in later rounds.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// Wait for the reply about one family once the other one suffices.
const OTHER_FAMILY: Duration = Duration::from_millis(300);
/// Total wait for silent nameservers.
const PATIENCE: Duration = Duration::from_secs(10);
/// Shortest wait; a shorter one counts as over.
const SHORTEST_WAIT: Duration = Duration::from_millis(5);
/// Longest reply over UDP, in bytes. Without extensions it is 512, but some nameservers send more.
const MAX_DATAGRAM: usize = 4096;
/// Most reads for one reply over TCP.
const MAX_READS: usize = 256;

/// Looks up the addresses of a name. Returns those of both families, each in the order of the
/// reply.
///
/// # Errors
/// Returns the reason. Its text is the same whenever the reason is.
pub(super) fn look_up(conf: &ResolvConf, servers: &[SocketAddr], name: &str) -> Result<[Vec<IpAddr>; 2], String> {
    let mut lookup = Lookup { conf, servers, patience: PATIENCE, failure: None };
    let mut problem = None;
    for name in conf.candidates(name).iter().filter(|name| dns::is_name(name)) {
        match lookup.find(name) {
            Found::Addresses(addresses) => return Ok(addresses),
            Found::Nothing => {}
            Found::Failed(text) => problem = Some(text),
            Found::Silent => {
                let asked = servers.iter().map(|server| server.ip().to_string()).collect::<Vec<_>>().join(", ");
                return Err(format!("no nameserver answers ({asked})"));
            }
        }
    }
    Err(problem.unwrap_or_else(|| "the name does not exist or has no address".to_owned()))
}

/// The result of the lookup of one name.
enum Found {
    /// Addresses, at least one.
    Addresses([Vec<IpAddr>; 2]),
    /// The name does not exist or has no address.
    Nothing,
    /// The nameservers do not answer the question: which one, and how it says so.
    Failed(String),
    /// No nameserver responds.
    Silent,
}

struct Lookup<'a> {
    conf: &'a ResolvConf,
    servers: &'a [SocketAddr],
    /// Rest of [`PATIENCE`].
    patience: Duration,
    /// Last nameserver that did not answer a question, and its code.
    failure: Option<(IpAddr, u8)>,
}

/// The replies about both families, in the order of [`Family::BOTH`].
#[derive(Default)]
struct Replies([Option<Reply>; 2]);

impl Replies {
    fn has_addresses(&self) -> bool {
        self.0.iter().flatten().any(|reply| matches!(reply, Reply::Addresses(found) if !found.is_empty()))
    }

    /// Returns whether a missing reply is not worth a long wait.
    fn suffice(&self) -> bool {
        self.has_addresses() || self.0.contains(&Some(Reply::NoSuchName))
    }

    fn are_complete(&self) -> bool {
        self.0.iter().all(Option::is_some)
    }
}

impl Lookup<'_> {
    fn find(&mut self, name: &str) -> Found {
        self.failure = None;
        let mut replies = Replies::default();
        for round in 0..self.conf.attempts {
            for server in self.servers {
                let wait = match round {
                    _ if replies.suffice() => OTHER_FAMILY,
                    0 => FIRST_WAIT,
                    _ => LONGEST_WAIT.min(Duration::from_secs(self.conf.timeout_s)),
                };
                // A failure of one nameserver does not matter while there are others.
                let _ = self.ask(*server, name, wait, &mut replies);
                if replies.are_complete() {
                    break;
                }
            }
            if replies.suffice() || replies.are_complete() || self.patience.is_zero() {
                break;
            }
        }
        if replies.has_addresses() {
            return Found::Addresses(replies.0.map(|reply| match reply {
                Some(Reply::Addresses(found)) => found,
                _ => Vec::new(),
            }));
        }
        match self.failure {
            _ if replies.are_complete() => Found::Nothing,
            Some((server, code)) => Found::Failed(format!(
                "the nameserver {server} does not answer the question ({})",
                dns::code_name(code)
            )),
            None if replies.suffice() => Found::Nothing,
            None => Found::Silent,
        }
    }

    /// Asks one nameserver the unanswered questions.
    fn ask(&mut self, server: SocketAddr, name: &str, wait: Duration, replies: &mut Replies) -> io::Result<()> {
        let missing = (0..2).filter(|at| replies.0[*at].is_none());
        let mut queries = missing.map(|at| Ok((at, query(name, Family::BOTH[at])?))).collect::<io::Result<Vec<_>>>()?;
        if self.conf.tcp {
            for (at, query) in queries {
                let reply = self.ask_over_tcp(server, &query, Family::BOTH[at], wait)?;
                self.settle(server, at, reply, replies);
            }
            return Ok(());
        }
        let unspecified: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // A new port each time, so that late replies to earlier questions do not arrive here.
        let socket = UdpSocket::bind((unspecified, 0))?;
        socket.connect(server)?;
        for (_, query) in &queries {
            socket.send(query)?;
        }
        let (mut wait, mut buffer) = (wait, [0; MAX_DATAGRAM]);
        while !queries.is_empty() {
            let length = match self.wait(&mut wait, |wait| {
                socket.set_read_timeout(Some(wait))?;
                socket.recv(&mut buffer)
            }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            };
            let message = &buffer[..length];
            let answered = queries.iter().enumerate().find_map(|(number, (at, query))| {
                dns::read_reply(message, query, Family::BOTH[*at]).map(|reply| (number, reply))
            });
            let Some((number, reply)) = answered else {
                wait /= 2;
                continue;
            };
            let (at, query) = queries.swap_remove(number);
            let reply = match reply {
                Reply::Truncated(some) => match self.ask_over_tcp(server, &query, Family::BOTH[at], wait) {
                    Ok(whole) => whole,
                    // Some of the addresses are better than none.
                    Err(_) if !some.is_empty() => Reply::Addresses(some),
                    Err(error) => return Err(error),
                },
                reply => reply,
            };
            self.settle(server, at, reply, replies);
            if replies.suffice() {
                wait = wait.min(OTHER_FAMILY);
            }
        }
        Ok(())
    }

    fn settle(&mut self, server: SocketAddr, at: usize, reply: Reply, replies: &mut Replies) {
        match reply {
            Reply::Failed(code) => self.failure = Some((server.ip(), code)),
            Reply::Truncated(some) => replies.0[at] = Some(Reply::Addresses(some)),
            reply => replies.0[at] = Some(reply),
        }
    }

    /// Asks one question over TCP (RFC 1035 section 4.2.2).
    fn ask_over_tcp(
        &mut self,
        server: SocketAddr,
        query: &[u8],
        family: Family,
        mut wait: Duration,
    ) -> io::Result<Reply> {
        let mut stream = self.wait(&mut wait, |wait| TcpStream::connect_timeout(&server, wait))?;
        let length = u16::try_from(query.len()).expect("a name has at most 255 bytes");
        stream.set_write_timeout(Some(wait))?;
        stream.write_all(&[&length.to_be_bytes()[..], query].concat())?;
        let (mut message, mut buffer) = (Vec::new(), [0; MAX_DATAGRAM]);
        for _ in 0..MAX_READS {
            let read = self.wait(&mut wait, |wait| {
                stream.set_read_timeout(Some(wait))?;
                stream.read(&mut buffer)
            })?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            message.extend_from_slice(&buffer[..read]);
            if let Some((length, rest)) = message.split_first_chunk()
                && let Some(reply) = rest.get(..usize::from(u16::from_be_bytes(*length)))
            {
                let reply = dns::read_reply(reply, query, family);
                return reply.ok_or_else(|| io::ErrorKind::InvalidData.into());
            }
            // A peer that sends a reply in small parts gets less and less time for each.
            wait = (wait * 3 / 4).max(SHORTEST_WAIT * 2);
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Runs an action that waits, within the rest of this wait and of [`PATIENCE`].
    fn wait<T>(&mut self, wait: &mut Duration, action: impl FnOnce(Duration) -> io::Result<T>) -> io::Result<T> {
        *wait = (*wait).min(self.patience);
        if *wait < SHORTEST_WAIT {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let result = action(*wait);
        match &result {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                self.patience -= *wait;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => *wait /= 2,
            _ => {}
        }
        result
    }
}

/// Writes a query with an id that nobody can guess.
fn query(name: &str, family: Family) -> io::Result<Vec<u8>> {
    let mut id = [0; 2];
    tls::random_bytes(&mut id).map_err(io::Error::other)?;
    dns::write_query(u16::from_ne_bytes(id), name, family).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
