//! Accepts connections, and notices at once when a peer disconnects.
//!
//! One thread with a `mio::Poll` does both. The thread of a connection cannot notice it: that
//! thread waits for changes, and leaves a byte unread that hides the end behind it.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::connection;
use super::state::{Link, Shared};

const LISTENER: Token = Token(0);
const WAKER: Token = Token(1);
/// Connection `n` has the token `n + FIRST_CONNECTION`.
const FIRST_CONNECTION: u64 = 2;
/// Pause after a failed accept, such as one without free descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// The listening socket, with the registry of the poll that watches it.
#[derive(Debug)]
pub(super) struct Listener {
    registry: Registry,
    waker: Waker,
    socket: Mutex<Socket>,
}

#[derive(Debug, Default)]
struct Socket {
    open: Option<(TcpListener, mio::net::TcpListener)>,
    paused: bool,
    accepted: u64,
    /// Whether the last accept failed although a client may be waiting.
    failed: bool,
}

impl Listener {
    pub(super) fn new() -> io::Result<(Poll, Self)> {
        let poll = Poll::new()?;
        let listener = Self {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKER)?,
            socket: Mutex::default(),
        };
        Ok((poll, listener))
    }

    /// Listens on an address, and returns it with its port.
    pub(super) fn open(&self, address: SocketAddr) -> io::Result<SocketAddr> {
        let mut socket = self.socket.lock().expect("no thread panics with the lock");
        if let Some((open, _)) = &socket.open {
            return open.local_addr();
        }
        let open = TcpListener::bind(address)?;
        open.set_nonblocking(true)?;
        let mut watched = mio::net::TcpListener::from_std(open.try_clone()?);
        self.registry.register(&mut watched, LISTENER, Interest::READABLE)?;
        let address = open.local_addr()?;
        socket.open = Some((open, watched));
        Ok(address)
    }

    /// Stops listening: from here on connections are refused.
    pub(super) fn close(&self) {
        let mut socket = self.socket.lock().expect("no thread panics with the lock");
        if let Some((_, mut watched)) = socket.open.take() {
            let _ = self.registry.deregister(&mut watched);
        }
    }

    /// Leaves connections in the backlog, or accepts them again.
    pub(super) fn pause(&self, paused: bool) {
        let mut socket = self.socket.lock().expect("no thread panics with the lock");
        socket.paused = paused;
        drop(socket);
        self.wake();
    }

    pub(super) fn wake(&self) {
        let _ = self.waker.wake();
    }

    /// Accepts and watches connections until the stand-in stops.
    pub(super) fn run(self: &Arc<Self>, mut poll: Poll, shared: &Arc<Shared>) {
        let mut events = Events::with_capacity(256);
        while !shared.lock().stopping {
            let failed = self.socket.lock().is_ok_and(|socket| socket.failed);
            let _ = poll.poll(&mut events, failed.then_some(RETRY));
            for event in &events {
                let number = (event.token().0 as u64).checked_sub(FIRST_CONNECTION);
                if let Some(number) = number
                    && (event.is_read_closed() || event.is_error())
                {
                    peer_left(shared, number);
                }
            }
            self.accept(shared);
        }
    }

    fn accept(self: &Arc<Self>, shared: &Arc<Shared>) {
        let mut socket = self.socket.lock().expect("no thread panics with the lock");
        socket.failed = false;
        while !socket.paused {
            let Some((open, _)) = &socket.open else {
                return;
            };
            match open.accept() {
                Ok((stream, peer)) => {
                    socket.accepted += 1;
                    // Under the lock of the socket: a later `close` then finds the connection.
                    if let Err(error) = self.start(shared, stream, peer, socket.accepted) {
                        log::debug!("the stand-in cannot serve a connection: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    socket.failed = true;
                    return;
                }
            }
        }
    }

    fn start(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        stream: TcpStream,
        peer: SocketAddr,
        number: u64,
    ) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        let token = usize::try_from(number + FIRST_CONNECTION).map_err(io::Error::other)?;
        let mut watched = mio::net::TcpStream::from_std(stream.try_clone()?);
        let stream = Arc::new(stream);
        shared.observe(|state| {
            let link = Link { stream: Arc::clone(&stream), gone: false, feed: None, silent: false };
            state.links.insert(number, link);
            let counters = &mut state.counters;
            counters.connections += 1;
            counters.open_connections += 1;
            counters.peak_connections = counters.peak_connections.max(counters.open_connections);
        });
        let guard = Guard { shared: Arc::clone(shared), number };
        self.registry.register(&mut watched, Token(token), Interest::READABLE)?;
        let listener = Arc::clone(self);
        thread::Builder::new().name(format!("stand-in-{number}")).spawn(move || {
            connection::serve(&guard.shared, &stream, number, peer);
            // Every handle of the socket is dropped before the connection counts as closed.
            let _ = listener.registry.deregister(&mut watched);
            drop(watched);
            guard.shared.lock().links.remove(&number);
            drop(stream);
            drop(guard);
        })?;
        Ok(())
    }
}

/// Handles the end of a peer, or of its sending half: no reader of a feed ends only that.
fn peer_left(shared: &Shared, number: u64) {
    shared.change(|state| {
        if let Some(link) = state.links.get_mut(&number) {
            link.gone = true;
        }
    });
}

/// Removes a connection when its thread ends, even by a panic.
struct Guard {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.observe(|state| {
            state.links.remove(&self.number);
            state.counters.open_connections -= 1;
        });
    }
}
