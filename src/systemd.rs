//! systemd: notifications of the server's state (`sd_notify(3)`), and the sockets that systemd
//! passes on (`sd_listen_fds(3)`).
//!
//! `RELOADING=1` is not sent: it needs the raw monotonic clock, which takes unsafe code to read.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use listenfd::ListenFd;
use mio::net::TcpListener;

use crate::state::timers::Millis;

/// Reads a variable of the environment.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Time until a message is sent again if the socket was full, in milliseconds.
const RETRY_AFTER: Millis = 100;
/// Time to request from systemd beyond the drain timeout, in milliseconds.
const STOP_MARGIN: Millis = 10_000;

/// Notifies systemd of the server's state, if systemd asks for it.
#[derive(Debug)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    /// Interval of the watchdog, in milliseconds.
    every: Option<Millis>,
    next: Option<Millis>,
    /// Number of clients in the last status.
    clients: Option<usize>,
    stopping: bool,
    /// Message that must arrive but did not fit the socket, and the time to send it again.
    unsent: Option<(String, Millis)>,
}

impl Notifier {
    /// Creates a notifier from the environment. If the socket cannot be used, it logs a warning.
    pub fn new(env: Environment<'_>, process: u32) -> Self {
        let to = env("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            let opened = open(&name);
            opened.inspect_err(|error| log::warn!("systemd cannot be notified (NOTIFY_SOCKET): {error}")).ok()
        });
        let every = watchdog(env, process).filter(|_| to.is_some());
        Self { to, every, next: None, clients: None, stopping: false, unsent: None }
    }

    /// Reports that the server is ready.
    pub fn ready(&mut self, now: Millis) {
        self.send_reliably("READY=1\nSTATUS=Serving.".to_owned(), now);
        self.next = self.every.map(|every| now + every);
    }

    /// Reports a shutdown that takes at most a time in milliseconds. Only the first call reports
    /// it.
    pub fn stopping(&mut self, clients: usize, within: Millis, now: Millis) {
        if !std::mem::replace(&mut self.stopping, true) {
            let micros = (within + STOP_MARGIN) * 1_000;
            let status = format!("Stopping, closing {clients} clients.");
            self.send_reliably(format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS={status}"), now);
        }
    }

    /// Returns when [`Notifier::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let again = self.unsent.as_ref().map(|(_, at)| *at);
        [self.next, again].into_iter().flatten().min()
    }

    /// Feeds the watchdog if it is due, and repeats a message that did not fit the socket.
    pub fn handle_timeout(&mut self, now: Millis, clients: usize) {
        if let Some((state, _)) = self.unsent.take_if(|(_, at)| *at <= now) {
            self.send_reliably(state, now);
        }
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        self.next = self.every.map(|every| now + every);
        // The next one follows in time if this one is lost.
        let _ = if self.stopping || self.clients.replace(clients) == Some(clients) {
            self.send("WATCHDOG=1")
        } else {
            self.send(&format!("WATCHDOG=1\nSTATUS=Serving {clients} clients."))
        };
    }

    /// Sends a message that must arrive. If the socket is full, as during boot, it is sent again
    /// later.
    fn send_reliably(&mut self, state: String, now: Millis) {
        let full = self.send(&state).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.unsent = full.then_some((state, now + RETRY_AFTER));
    }

    fn send(&self, state: &str) -> io::Result<()> {
        let Some((socket, address)) = &self.to else { return Ok(()) };
        // An absent systemd must not keep the server from running.
        let sent = socket.send_to_addr(state.as_bytes(), address).map(|_| ());
        sent.inspect_err(|error| log::debug!("systemd could not be notified: {error}"))
    }
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// Returns half of the watchdog's time for this process, in milliseconds.
fn watchdog(env: Environment<'_>, process: u32) -> Option<Millis> {
    let number = |name| env(name)?.to_str()?.parse::<u64>().ok();
    let meant = env("WATCHDOG_PID").is_none_or(|pid| pid.to_str() == Some(&process.to_string()));
    number("WATCHDOG_USEC").filter(|micros| meant && *micros > 0).map(|micros| (micros / 2_000).max(1))
}

/// One value for each port.
#[derive(Debug, PartialEq, Eq)]
pub struct Ports<T> {
    /// Port for plain HTTP.
    pub http: Option<T>,
    /// Port for HTTPS.
    pub https: Option<T>,
    /// Port for operators.
    pub admin: Option<T>,
}

impl<T> Ports<T> {
    const NONE: Self = Self { http: None, https: None, admin: None };

    fn named(&mut self, name: &str) -> Option<&mut Option<T>> {
        match name {
            "http" => Some(&mut self.http),
            "https" => Some(&mut self.https),
            "admin" => Some(&mut self.admin),
            _ => None,
        }
    }
}

/// Takes the sockets of systemd. Their names (`FileDescriptorName=`) assign them to ports, or else
/// their order. A single socket is for the first port, which is HTTPS with `only_tls`.
///
/// # Errors
/// Returns the reason in words: a socket is not TCP, or there are more sockets than ports.
pub fn take_sockets(env: Environment<'_>, only_tls: bool) -> Result<Ports<TcpListener>, String> {
    let mut handed = ListenFd::from_env();
    let names = env("LISTEN_FDNAMES").unwrap_or_default();
    let places = assign(&names.to_string_lossy(), handed.len(), only_tls)?;
    let mut take = |place: Option<usize>| {
        let Some(at) = place else { return Ok(None) };
        let taken = handed.take_tcp_listener(at).and_then(|socket| socket.map(listening).transpose());
        taken.map_err(|error| format!("socket {} of systemd (LISTEN_FDS): {error}", at + 1))
    };
    Ok(Ports { http: take(places.http)?, https: take(places.https)?, admin: take(places.admin)? })
}

/// Makes a socket non-blocking. Fails for the socket of a client, from a unit with `Accept=yes`,
/// which would never accept a client.
fn listening(socket: std::net::TcpListener) -> io::Result<TcpListener> {
    socket.set_nonblocking(true)?;
    let stream = std::net::TcpStream::from(OwnedFd::from(socket));
    // Nothing can be read from a listening socket.
    if !stream.peek(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::NotConnected) {
        return Err(io::Error::other("the socket is connected instead of listening (Accept= must be no)"));
    }
    Ok(TcpListener::from_std(std::net::TcpListener::from(OwnedFd::from(stream))))
}

/// Assigns sockets to ports, by index. Sockets without a known name go by their order.
fn assign(names: &str, count: usize, only_tls: bool) -> Result<Ports<usize>, String> {
    let mut ports = Ports::NONE;
    let mut unnamed = Vec::new();
    let mut names = names.split(':');
    for at in 0..count {
        let name = names.next().unwrap_or("");
        match ports.named(name) {
            None => unnamed.push(at),
            Some(place @ None) => *place = Some(at),
            Some(Some(_)) => return Err(format!("systemd passes two sockets for {name} (LISTEN_FDNAMES)")),
        }
    }
    let alone = only_tls && unnamed.len() == 1;
    let order = if alone { ["https", "http"] } else { ["http", "https"] };
    for at in unnamed {
        let free = order.iter().find(|name| matches!(ports.named(name), Some(None)));
        let place = free.and_then(|name| ports.named(name));
        *place.ok_or("systemd passes more sockets (LISTEN_FDS) than there are ports for clients")? = Some(at);
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_go_by_name_or_by_order() {
        let ports = |http, https, admin| Ok(Ports { http, https, admin });
        for (names, count, only_tls, expected) in [
            ("", 0, false, ports(None, None, None)),
            ("", 1, false, ports(Some(0), None, None)),
            ("howler.socket", 1, true, ports(None, Some(0), None)),
            ("", 2, true, ports(Some(0), Some(1), None)),
            ("howler.socket:howler.socket", 2, false, ports(Some(0), Some(1), None)),
            ("https:http", 2, false, ports(Some(1), Some(0), None)),
            ("admin:http", 2, false, ports(Some(1), None, Some(0))),
            ("admin:unknown", 2, true, ports(None, Some(1), Some(0))),
            ("https:x:admin", 3, true, ports(Some(1), Some(0), Some(2))),
            ("http", 2, false, ports(Some(0), Some(1), None)),
        ] {
            assert_eq!(assign(names, count, only_tls), expected, "{names} {count} {only_tls}");
        }
        assert!(assign("", 3, false).unwrap_err().contains("LISTEN_FDS"));
        assert!(assign("http:http", 2, false).unwrap_err().contains("http"));
        assert!(assign("admin:admin", 2, false).is_err());
    }

    #[test]
    fn watchdog_is_fed_twice_per_interval_by_its_process() {
        let every = |usec: &'static str, pid: Option<&'static str>| {
            watchdog(
                &|name| match name {
                    "WATCHDOG_USEC" => Some(usec.into()),
                    "WATCHDOG_PID" => pid.map(Into::into),
                    _ => None,
                },
                77,
            )
        };
        assert_eq!((every("30000000", None), every("30000000", Some("77"))), (Some(15_000), Some(15_000)));
        assert_eq!(
            (every("30000000", Some("78")), every("30000000", Some("")), every("1", None)),
            (None, None, Some(1))
        );
        assert_eq!(
            (every("0", None), every("", None), every("-1", None), every("soon", None)),
            (None, None, None, None)
        );
    }

    #[test]
    fn does_not_notify_without_a_listener() {
        for socket in [None, Some(""), Some("@nobody-listens-here"), Some("/nowhere/at/all")] {
            let env = |name: &str| match name {
                "NOTIFY_SOCKET" => socket.map(Into::into),
                "WATCHDOG_USEC" => Some("2000".into()),
                _ => None,
            };
            let mut notifier = Notifier::new(&env, 1);
            notifier.ready(5);
            assert_eq!(notifier.poll_timeout(), socket.filter(|name| !name.is_empty()).map(|_| 6), "{socket:?}");
            notifier.handle_timeout(6, 0);
            notifier.stopping(0, 0, 7);
        }
    }

    #[test]
    fn repeats_readiness_if_the_socket_is_full() {
        let path = std::env::temp_dir().join(format!("howler-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let systemd = UnixDatagram::bind(&path).unwrap();
        let env = |name: &str| (name == "NOTIFY_SOCKET").then(|| path.clone().into_os_string());
        let mut notifier = Notifier::new(&env, 1);
        while notifier.send("x").is_ok() {}
        notifier.ready(5);
        assert_eq!(notifier.poll_timeout(), Some(5 + RETRY_AFTER));
        notifier.handle_timeout(5 + RETRY_AFTER, 0);
        assert_eq!(notifier.poll_timeout(), Some(5 + 2 * RETRY_AFTER));
        let mut message = [0; 64];
        let mut receive = || systemd.recv(&mut message).map(|length| message[..length].to_vec()).unwrap();
        assert_eq!(receive(), b"x");
        notifier.handle_timeout(5 + 2 * RETRY_AFTER, 0);
        assert_eq!(notifier.poll_timeout(), None);
        while !receive().starts_with(b"READY=1") {}
        let _ = std::fs::remove_file(&path);
    }
}
