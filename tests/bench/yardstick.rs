//! The yardstick: the least that a server could do. An epoll loop reads lines from one socket and
//! writes their text to the named clients with one write each. It parses, stores and checks
//! nothing.
//!
//! A client sends its number and receives `ready`. The sender of `feed` supplies the lines: `*
//! text` for all clients, `17 text` for one.

use std::io::{ErrorKind, Read as _, Write as _};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::frames;

const LISTENER: Token = Token(usize::MAX - 1);

struct Loop {
    poll: Poll,
    /// Sockets in the order of their arrival. The token is the index.
    sockets: Vec<TcpStream>,
    /// Number of a client → index of its socket.
    clients: Vec<usize>,
    feed: Option<usize>,
    /// The beginning of an incomplete line of the feed.
    begun: Vec<u8>,
}

/// Runs until the process is killed.
pub fn run() -> ! {
    let mut listener = TcpListener::bind("0.0.0.0:0".parse().expect("the address is valid")).expect("a port is free");
    let poll = Poll::new().expect("epoll is available");
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).expect("the socket is new");
    eprintln!("yardstick listens on {} (http);", listener.local_addr().expect("the listener is bound"));
    let mut this = Loop { poll, sockets: Vec::new(), clients: Vec::new(), feed: None, begun: Vec::new() };
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match this.poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled.expect("epoll is available"),
        }
        for event in &events {
            match event.token() {
                LISTENER => this.accept(&listener),
                Token(place) => this.read(place, &mut buffer),
            }
        }
    }
}

impl Loop {
    fn accept(&mut self, listener: &TcpListener) {
        while let Ok((mut socket, _)) = listener.accept() {
            let _ = socket.set_nodelay(true);
            let token = Token(self.sockets.len());
            self.poll.registry().register(&mut socket, token, Interest::READABLE).expect("the socket is new");
            self.sockets.push(socket);
        }
    }

    fn read(&mut self, place: usize, buffer: &mut [u8]) {
        loop {
            match self.sockets[place].read(buffer) {
                Ok(0) => return,
                Ok(read) if self.feed == Some(place) => self.pass_on(&buffer[..read]),
                Ok(read) => self.greet(place, std::str::from_utf8(&buffer[..read]).expect("clients send text")),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("a connection failed: {error}"),
            }
        }
    }

    fn greet(&mut self, place: usize, line: &str) {
        if line == "feed\n" {
            self.feed = Some(place);
        } else {
            let number: usize = line.trim_end().parse().expect("one read returns the whole number");
            if self.clients.len() <= number {
                self.clients.resize(number + 1, usize::MAX);
            }
            self.clients[number] = place;
        }
        self.write(place, &frames::plain(b"ready"));
    }

    fn pass_on(&mut self, mut bytes: &[u8]) {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let line = std::mem::take(&mut self.begun);
            if line.is_empty() {
                self.notify(&bytes[..end]);
            } else {
                self.notify(&[&line, &bytes[..end]].concat());
            }
            bytes = &bytes[end + 1..];
        }
        self.begun.extend_from_slice(bytes);
    }

    fn notify(&mut self, line: &[u8]) {
        let space = memchr::memchr(b' ', line).expect("a line starts with its recipient");
        let frame = frames::plain(&line[space + 1..]);
        if &line[..space] == b"*" {
            for place in 0..self.sockets.len() {
                if self.feed != Some(place) {
                    self.write(place, &frame);
                }
            }
        } else {
            let number = std::str::from_utf8(&line[..space]).ok().and_then(|number| number.parse::<usize>().ok());
            self.write(self.clients[number.expect("the recipient is a number")], &frame);
        }
    }

    fn write(&mut self, place: usize, frame: &[u8]) {
        let written = self.sockets[place].write(frame).expect("the client reads");
        assert_eq!(written, frame.len(), "the client reads");
    }
}
