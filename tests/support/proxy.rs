//! TCP proxies. One can be silenced: it drops what is sent, and neither peer notices. One retries:
//! clients see a restart of the server behind it only as the end of a connection. One rewrites what
//! the server sends.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::SOON;
use super::couchdb::StandIn;

/// A running proxy. Dropping it ends its connections.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    links: Mutex<Vec<Link>>,
    stopped: AtomicBool,
    rewrite: Rewrite,
}

/// The treatment of the bytes of one read from the server.
type Rewrite = fn(Vec<u8>) -> Vec<u8>;

struct Link {
    ends: [TcpStream; 2],
    silent: Arc<AtomicBool>,
    /// End the connection for both peers.
    ended: Arc<AtomicBool>,
}

impl Proxy {
    /// Starts a proxy in front of a server.
    pub fn start(to: SocketAddr) -> Self {
        Self::start_with(to, Duration::ZERO, |bytes| bytes)
    }

    /// Starts a proxy whose connections wait for the server while it is away, as in HAProxy with
    /// `retries`.
    pub fn retrying(to: SocketAddr) -> Self {
        Self::start_with(to, SOON, |bytes| bytes)
    }

    /// Starts a proxy that rewrites what the server sends.
    pub fn rewriting(to: SocketAddr, rewrite: Rewrite) -> Self {
        Self::start_with(to, Duration::ZERO, rewrite)
    }

    fn start_with(to: SocketAddr, patience: Duration, rewrite: Rewrite) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared { links: Mutex::default(), stopped: AtomicBool::default(), rewrite });
        let its = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if its.stopped.load(Ordering::Acquire) {
                    return;
                }
                let its = its.clone();
                // Without a server, the client sees its connection end.
                std::thread::spawn(move || {
                    if let Some(server) = its.connect(to, patience) {
                        its.join(client, server);
                    }
                });
            }
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the URL of a stand-in behind this proxy, with its credentials.
    pub fn url_of(&self, couchdb: &StandIn) -> String {
        couchdb.url().replace(&couchdb.address().to_string(), &self.address.to_string())
    }

    /// Drops everything on the open connections from now on, in both directions. Later connections
    /// work.
    pub fn silence(&self) {
        for link in &*self.shared.links.lock().expect("no test holds it") {
            link.silent.store(true, Ordering::Release);
        }
    }

    /// Ends the open connections.
    pub fn cut(&self) {
        self.end(|_| true);
    }

    /// Ends the silenced connections for both peers.
    pub fn end_silenced(&self) {
        self.end(|link| link.silent.load(Ordering::Acquire));
    }

    fn end(&self, which: impl Fn(&Link) -> bool) {
        for link in self.shared.links.lock().expect("no test holds it").extract_if(.., |link| which(link)) {
            for end in link.ends {
                let _ = end.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        self.cut();
    }
}

impl Shared {
    fn connect(&self, to: SocketAddr, patience: Duration) -> Option<TcpStream> {
        let deadline = Instant::now() + patience;
        loop {
            match TcpStream::connect(to) {
                Ok(server) => return Some(server),
                Err(_) if Instant::now() < deadline && !self.stopped.load(Ordering::Acquire) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(_) => return None,
            }
        }
    }

    fn join(&self, client: TcpStream, server: TcpStream) {
        let silent = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let copy = |end: &TcpStream| end.try_clone().expect("descriptors are left");
        pass(copy(&client), copy(&server), (silent.clone(), ended.clone()), |bytes| bytes);
        pass(copy(&server), copy(&client), (silent.clone(), ended.clone()), self.rewrite);
        let mut links = self.links.lock().expect("no test holds it");
        links.retain(|link| !link.ended.load(Ordering::Acquire));
        links.push(Link { ends: [client, server], silent, ended });
    }
}

/// Forwards one direction until its end.
fn pass(mut from: TcpStream, mut to: TcpStream, (silent, ended): (Arc<AtomicBool>, Arc<AtomicBool>), rewrite: Rewrite) {
    std::thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            if !silent.load(Ordering::Acquire) && to.write_all(&rewrite(bytes[..read].to_vec())).is_err() {
                break;
            }
        }
        // A silenced connection hides its end as well.
        if !silent.load(Ordering::Acquire) {
            let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
            ended.store(true, Ordering::Release);
        }
    });
}
