//! A TCP proxy that a test can silence: what is sent through it then is gone, and nobody is told.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A running proxy. Its connections end when this is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    links: Mutex<Vec<Link>>,
    stopped: AtomicBool,
}

struct Link {
    ends: [TcpStream; 2],
    silent: Arc<AtomicBool>,
}

impl Proxy {
    /// Passes connections on to a server.
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let its = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if its.stopped.load(Ordering::Acquire) {
                    return;
                }
                // Where nobody listens, the client sees its connection end.
                if let Ok(server) = TcpStream::connect(to) {
                    its.join(client, server);
                }
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Swallows from now on what the connections that are there send, either way; later ones are passed on.
    pub fn silence(&self) {
        for link in &*self.shared.links.lock().expect("no test holds it") {
            link.silent.store(true, Ordering::Release);
        }
    }

    /// Ends the connections that are there.
    pub fn cut(&self) {
        for link in self.shared.links.lock().expect("no test holds it").drain(..) {
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
    fn join(&self, client: TcpStream, server: TcpStream) {
        let silent = Arc::new(AtomicBool::new(false));
        let copy = |end: &TcpStream| end.try_clone().expect("descriptors are left");
        pass(copy(&client), copy(&server), silent.clone());
        pass(copy(&server), copy(&client), silent.clone());
        self.links.lock().expect("no test holds it").push(Link { ends: [client, server], silent });
    }
}

/// Passes on in one direction, to its end.
fn pass(mut from: TcpStream, mut to: TcpStream, silent: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            if !silent.load(Ordering::Acquire) && to.write_all(&bytes[..read]).is_err() {
                return;
            }
        }
        // The end is silent, too.
        if !silent.load(Ordering::Acquire) {
            let _ = to.shutdown(Shutdown::Both);
        }
    });
}
