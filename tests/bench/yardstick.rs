//! The yardstick: the least that a server could do. It reads a line from one socket and writes its text to those
//! who are meant, one write each, in one loop over epoll; nothing is parsed, kept, or checked.
//!
//! A client says its number and is told `ready`; who says `feed` is the one whose lines are passed on:
//! `* text` to all, `17 text` to one.

use std::io::{ErrorKind, Read as _, Write as _};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::frames;

const LISTENER: Token = Token(usize::MAX - 1);

struct Loop {
    poll: Poll,
    /// In the order in which they came; the token is the place.
    sockets: Vec<TcpStream>,
    /// Number of a client → its socket.
    clients: Vec<usize>,
    feed: Option<usize>,
    /// A line of the feed of which the end has not come yet.
    begun: Vec<u8>,
}

/// Runs until it is killed.
pub fn run() -> ! {
    let mut listener = TcpListener::bind("0.0.0.0:0".parse().expect("an address")).expect("a free port");
    let poll = Poll::new().expect("epoll is there");
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).expect("a fresh socket");
    eprintln!("yardstick listens on {} (http);", listener.local_addr().expect("it is bound"));
    let mut this = Loop { poll, sockets: Vec::new(), clients: Vec::new(), feed: None, begun: Vec::new() };
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match this.poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled.expect("epoll is there"),
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
            self.poll.registry().register(&mut socket, token, Interest::READABLE).expect("a fresh socket");
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
                Err(error) => panic!("a client is lost: {error}"),
            }
        }
    }

    fn greet(&mut self, place: usize, line: &str) {
        if line == "feed\n" {
            self.feed = Some(place);
        } else {
            let number: usize = line.trim_end().parse().expect("a number in one piece");
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
                self.tell(&bytes[..end]);
            } else {
                self.tell(&[&line, &bytes[..end]].concat());
            }
            bytes = &bytes[end + 1..];
        }
        self.begun.extend_from_slice(bytes);
    }

    fn tell(&mut self, line: &[u8]) {
        let space = memchr::memchr(b' ', line).expect("a line names who is meant");
        let frame = frames::plain(&line[space + 1..]);
        if &line[..space] == b"*" {
            for place in 0..self.sockets.len() {
                if self.feed != Some(place) {
                    self.write(place, &frame);
                }
            }
        } else {
            let number = std::str::from_utf8(&line[..space]).ok().and_then(|number| number.parse::<usize>().ok());
            self.write(self.clients[number.expect("a number")], &frame);
        }
    }

    fn write(&mut self, place: usize, frame: &[u8]) {
        let written = self.sockets[place].write(frame).expect("the client reads");
        assert_eq!(written, frame.len(), "the client reads");
    }
}
