//! A small nameserver, over UDP and TCP, whose replies a test sets; and a root folder whose files
//! name it as the nameserver.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::howler::BINARY;
use super::{retry, wait_until};

/// The types of records that the server asks for.
pub const A: u16 = 1;
pub const AAAA: u16 = 28;

pub const SERVFAIL: u16 = 2;
pub const NXDOMAIN: u16 = 3;
pub const REFUSED: u16 = 5;

/// A reply of the nameserver.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Those of these addresses that have the requested type, behind an alias.
    Addresses(Vec<IpAddr>),
    /// A response code, and no records.
    Code(u16),
    /// No reply.
    Silence,
    /// The addresses over TCP, and a truncated reply over UDP.
    Truncated(Vec<IpAddr>),
    /// A message that is cut off in its middle.
    Broken,
}

/// The reply for a name that exists and has no record of the requested type.
pub const NODATA: Answer = Answer::Addresses(Vec::new());

/// Returns a reply of addresses.
pub fn addresses(texts: &[&str]) -> Answer {
    Answer::Addresses(texts.iter().map(|text| text.parse().expect("an address")).collect())
}

/// A received question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub name: String,
    pub record: u16,
    pub over_tcp: bool,
}

/// A nameserver on port 53 of an address of its own. Names without a reply do not exist.
pub struct NameServer {
    pub ip: IpAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<HashMap<(String, u16), Answer>>,
    asked: Mutex<Vec<Asked>>,
    stopped: AtomicBool,
}

impl NameServer {
    /// Starts on an unused address of the loopback network.
    pub fn start() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        for _ in 0..1000 {
            let number = std::process::id() as usize * 31 + NEXT.fetch_add(1, Ordering::Relaxed);
            let byte = |number: usize| u8::try_from(number % 250 + 1).expect("below 251");
            let ip = Ipv4Addr::new(127, 53, byte(number / 250), byte(number)).into();
            if let Some(server) = Self::try_start(ip) {
                return server;
            }
        }
        panic!("port 53 of no address can be had: run the tests as root");
    }

    /// Starts on an address as soon as it is free.
    pub fn start_at(ip: IpAddr) -> Self {
        retry(|| Self::try_start(ip).ok_or_else(|| format!("port 53 of {ip} is in use")))
    }

    fn try_start(ip: IpAddr) -> Option<Self> {
        let (udp, tcp) = (UdpSocket::bind((ip, 53)).ok()?, TcpListener::bind((ip, 53)).ok()?);
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        udp.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        std::thread::spawn(move || its.serve_udp(&udp));
        let its = shared.clone();
        std::thread::spawn(move || its.serve_tcp(&tcp));
        Some(Self { ip, shared })
    }

    /// Sets the reply for a name and a type.
    pub fn answer(&self, name: &str, record: u16, answer: Answer) {
        lock(&self.shared.answers).insert((name.to_owned(), record), answer);
    }

    /// Returns the questions so far.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Waits until there was a question.
    pub fn wait_for_question(&self) {
        wait_until(&format!("{} is asked", self.ip), || !self.asked().is_empty());
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = std::net::TcpStream::connect((self.ip, 53));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 1024];
        while !self.stopped.load(Ordering::Acquire) {
            let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
            if let Some(reply) = self.reply(&buffer[..length], false) {
                let _ = socket.send_to(&reply, client);
            }
        }
    }

    fn serve_tcp(&self, listener: &TcpListener) {
        for mut client in listener.incoming().map_while(Result::ok) {
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            let mut length = [0; 2];
            let _ = client.set_read_timeout(Some(Duration::from_secs(5)));
            if client.read_exact(&mut length).is_err() {
                continue;
            }
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            if client.read_exact(&mut query).is_err() {
                continue;
            }
            if let Some(reply) = self.reply(&query, true) {
                let length = u16::try_from(reply.len()).expect("a short reply").to_be_bytes();
                // The network may split a message like this.
                let _ = client.write_all(&[&length[..], &reply[..reply.len() / 2]].concat());
                let _ = client.write_all(&reply[reply.len() / 2..]);
            }
        }
    }

    fn reply(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let (mut at, mut labels) = (12, Vec::new());
        while query[at] != 0 {
            let length = usize::from(query[at]);
            labels.push(String::from_utf8_lossy(&query[at + 1..at + 1 + length]).to_ascii_lowercase());
            at += 1 + length;
        }
        let name = labels.join(".");
        let record = u16::from_be_bytes([query[at + 1], query[at + 2]]);
        assert_eq!((&query[2..6], query.len()), (&[1, 0, 0, 1][..], at + 5), "one question that wants recursion");
        lock(&self.asked).push(Asked { name: name.clone(), record, over_tcp });
        let answer = lock(&self.answers).get(&(name, record)).cloned().unwrap_or(Answer::Code(NXDOMAIN));
        let mut reply = query.to_vec();
        let mut flags = 0x8180;
        match answer {
            Answer::Silence => return None,
            Answer::Code(code) => flags |= code,
            Answer::Truncated(_) if !over_tcp => flags |= 0x0200,
            Answer::Addresses(list) | Answer::Truncated(list) => {
                let mut count = 0;
                let mut add = |record: u16, data: &[u8], reply: &mut Vec<u8>| {
                    count += 1;
                    reply.extend_from_slice(&[0xc0, 12]);
                    let length = u16::try_from(data.len()).expect("short");
                    for field in [record, 1, 0, 60, length] {
                        reply.extend_from_slice(&field.to_be_bytes());
                    }
                    reply.extend_from_slice(data);
                };
                if !list.is_empty() {
                    add(5, b"\x05alias\xc0\x0c", &mut reply);
                }
                for address in list {
                    match address {
                        IpAddr::V4(four) if record == A => add(A, &four.octets(), &mut reply),
                        IpAddr::V6(six) if record == AAAA => add(AAAA, &six.octets(), &mut reply),
                        _ => {}
                    }
                }
                reply[6..8].copy_from_slice(&u16::to_be_bytes(count));
            }
            Answer::Broken => {
                reply[6..8].copy_from_slice(&[0, 1]);
                reply.extend_from_slice(&[0xc0, 12, 0]);
            }
        }
        reply[2..4].copy_from_slice(&u16::to_be_bytes(flags));
        Some(reply)
    }
}

/// A root folder with the server and the files of name resolution. Dropping it removes the folder.
pub struct Root(PathBuf);

impl Root {
    pub fn new(resolv_conf: &str, hosts: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("names-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let root = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
        root.take(Path::new(BINARY), Path::new("couchdb-howler"));
        // The libraries that the binary of the tests needs.
        let libraries = Command::new("ldd").arg(BINARY).output().expect("ldd runs");
        let libraries = String::from_utf8(libraries.stdout).expect("text");
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            root.take(Path::new(library), Path::new(library.trim_start_matches('/')));
        }
        root.write("etc/resolv.conf", resolv_conf);
        root.write("etc/hosts", hosts);
        root
    }

    fn take(&self, from: &Path, to: &Path) {
        let to = self.0.join(to);
        std::fs::create_dir_all(to.parent().expect("a folder")).expect("the target folder can be written");
        if std::fs::hard_link(from.canonicalize().expect("it is there"), &to).is_err() {
            std::fs::copy(from, to).expect("it can be copied");
        }
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the target folder can be written");
        std::fs::write(path, text).expect("the file can be written");
    }

    /// Returns a command that starts the server in the folder.
    pub fn command(&self) -> Command {
        let mut command = Command::new("chroot");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg(&self.0).arg("/couchdb-howler");
        command
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
