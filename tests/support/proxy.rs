//! TCP proxies: one that a test can silence (what is sent through it then is gone, and nobody is told), one that retries,
//! so that a restart of the server behind it shows to its clients as no more than the end of a connection, and one that
//! rewrites what the server sends.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::couchdb::StandIn;

use super::SOON;

/// A running proxy. Its connections end when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    links: Mutex<Vec<Link>>,
    stopped: AtomicBool,
    rewrite: Rewrite,
}

/// What becomes of the bytes of one read from the server.
type Rewrite = fn(Vec<u8>) -> Vec<u8>;

struct Link {
    ends: [TcpStream; 2],
    silent: Arc<AtomicBool>,
    /// Both peers see its end.
    ended: Arc<AtomicBool>,
}

impl Proxy {
    /// Passes connections on to a server.
    pub fn start(to: SocketAddr) -> Self {
        Self::start_with(to, Duration::ZERO, |bytes| bytes)
    }

    /// The same, and accepts connections while the server is away: they wait for it (HAProxy does with `retries`).
    pub fn retrying(to: SocketAddr) -> Self {
        Self::start_with(to, SOON, |bytes| bytes)
    }

    /// Passes connections on, and rewrites what the server sends.
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
                // Where nobody listens, the client sees its connection end.
                std::thread::spawn(move || {
                    if let Some(server) = its.connect(to, patience) {
                        its.join(client, server);
                    }
                });
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL of a stand-in by way of this, with its credentials.
    pub fn url_of(&self, couchdb: &StandIn) -> String {
        couchdb.url().replace(&couchdb.address().to_string(), &self.address.to_string())
    }

    /// Swallows from now on what the connections that are there send, either way; later ones are passed on.
    pub fn silence(&self) {
        for link in &*self.shared.links.lock().expect("no test holds it") {
            link.silent.store(true, Ordering::Release);
        }
    }

    /// Ends the connections that are there.
    pub fn cut(&self) {
        self.end(|_| true);
    }

    /// Ends the connections that were silenced, for both peers.
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

/// Passes on in one direction, to its end.
fn pass(mut from: TcpStream, mut to: TcpStream, (silent, ended): (Arc<AtomicBool>, Arc<AtomicBool>), rewrite: Rewrite) {
    std::thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            if !silent.load(Ordering::Acquire) && to.write_all(&rewrite(bytes[..read].to_vec())).is_err() {
                break;
            }
        }
        // The end is silent, too.
        if !silent.load(Ordering::Acquire) {
            let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
            ended.store(true, Ordering::Release);
        }
    });
}
