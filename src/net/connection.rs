//! A stream with what waits in front of it and behind it: the bytes that could not be written, and
//! the bytes of an item that has not come whole. Both hold memory only while there is something.

use std::io;
use std::sync::Arc;

use mio::{Interest, Registry, Token};

use super::stream::{Handshake, Stream};

/// Whether all that was written has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// All of it.
    All,
    /// Some waits until the socket can be written again.
    Blocked,
}

/// A connection. There is one for each client: what it keeps while something waits is put aside.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    waiting: Option<Box<Waiting>>,
    /// The socket would not take more; an event will tell when it does.
    blocked: bool,
    /// Whether that event is asked for.
    watched: bool,
}

/// What waits on either side.
#[derive(Debug, Default)]
struct Waiting {
    /// What is to be written.
    outbox: Vec<u8>,
    /// How much of the outbox has left.
    sent: usize,
    /// What waits behind the outbox, and how much of it has left: bytes that others are sent too, so that many slow
    /// peers cost no copy each.
    shared: Option<(Arc<[u8]>, usize)>,
    /// Received bytes that are not used yet.
    inbox: Inbox,
}

impl Connection {
    /// Takes a stream and has its events told under a token. `connecting` asks for the event that
    /// tells that a connection stands.
    ///
    /// # Errors
    /// What the registration failed with.
    pub fn register(mut stream: Stream, connecting: bool, registry: &Registry, token: Token) -> io::Result<Self> {
        let interest = if connecting { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        registry.register(stream.socket(), token, interest)?;
        Ok(Self { stream, waiting: None, blocked: connecting, watched: connecting })
    }

    /// Returns how many received bytes are not used yet.
    pub fn inbox_len(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.inbox.len())
    }

    /// Returns how many bytes of memory hold what was received and what is to be written.
    pub fn held_bytes(&self) -> usize {
        let waiting = self.waiting.as_ref().map_or(0, |waiting| waiting.inbox.held_bytes() + waiting.outbox.capacity());
        waiting + self.stream.held_bytes()
    }

    /// Takes the received bytes out, to be put back as far as they are not used.
    pub fn take_inbox(&mut self) -> Inbox {
        let inbox = self.waiting.as_mut().map(|waiting| std::mem::take(&mut waiting.inbox));
        self.tidy();
        inbox.unwrap_or_default()
    }

    /// Puts received bytes back.
    pub fn put_inbox(&mut self, inbox: Inbox) {
        if !inbox.is_empty() || self.waiting.is_some() {
            self.waiting.get_or_insert_default().inbox = inbox;
            self.tidy();
        }
    }

    /// Gives the memory back when nothing waits.
    fn tidy(&mut self) {
        let waits =
            |waiting: &Waiting| !waiting.outbox.is_empty() || waiting.shared.is_some() || !waiting.inbox.is_empty();
        if !self.waiting.as_deref().is_some_and(waits) {
            self.waiting = None;
        }
    }

    /// Reads; see [`Stream::read`].
    ///
    /// # Errors
    /// As there.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer);
        // TLS had something to answer by itself, and the socket did not take it.
        self.blocked |= self.stream.has_unsent();
        read
    }

    /// The stream.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Whether written bytes wait.
    pub fn has_unsent(&self) -> bool {
        let waits = |waiting: &Waiting| !waiting.outbox.is_empty() || waiting.shared.is_some();
        self.waiting.as_deref().is_some_and(waits) || self.stream.has_unsent()
    }

    /// Whether the socket would not take more.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Goes on with the handshake of a client; see [`Stream::handshake`].
    ///
    /// # Errors
    /// The client left, or no TLS can be spoken with it.
    pub fn handshake(&mut self) -> io::Result<Handshake> {
        let reached = self.stream.handshake()?;
        // What the socket does not take now, it takes when it can be written again.
        self.flush_stream()?;
        Ok(reached)
    }

    /// Puts bytes behind what waits; they leave with the next write or flush.
    pub fn queue(&mut self) -> &mut Vec<u8> {
        let waiting = self.waiting.get_or_insert_default();
        if let Some((bytes, sent)) = waiting.shared.take() {
            waiting.outbox.extend_from_slice(&bytes[sent..]);
        }
        &mut waiting.outbox
    }

    /// Puts bytes that are shared behind what waits; they leave with the next flush.
    pub fn queue_shared(&mut self, bytes: Arc<[u8]>) {
        self.queue();
        self.waiting.get_or_insert_default().shared = Some((bytes, 0));
    }

    /// Writes, in one call to the system where that can be.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<Flushed> {
        if self.has_unsent() || self.blocked {
            self.queue().extend_from_slice(bytes);
            return self.flush();
        }
        let mut sent = 0;
        if send(&mut self.stream, bytes, &mut sent)? == Flushed::Blocked {
            self.queue().extend_from_slice(&bytes[sent..]);
            self.blocked = true;
            return Ok(Flushed::Blocked);
        }
        self.flush_stream()
    }

    /// Writes what waits, as far as it goes.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn flush(&mut self) -> io::Result<Flushed> {
        if self.blocked {
            return Ok(Flushed::Blocked);
        }
        let Self { stream, waiting: Some(waiting), .. } = self else { return self.flush_stream() };
        let mut flushed = send(stream, &waiting.outbox, &mut waiting.sent)?;
        if flushed == Flushed::All {
            waiting.outbox = Vec::new();
            waiting.sent = 0;
            if let Some((bytes, sent)) = &mut waiting.shared {
                flushed = send(stream, bytes, sent)?;
            }
        }
        if flushed == Flushed::Blocked {
            self.blocked = true;
            return Ok(Flushed::Blocked);
        }
        waiting.shared = None;
        self.tidy();
        self.flush_stream()
    }

    fn flush_stream(&mut self) -> io::Result<Flushed> {
        match self.stream.flush() {
            Ok(()) => Ok(Flushed::All),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = true;
                Ok(Flushed::Blocked)
            }
            Err(error) => Err(error),
        }
    }

    /// The socket can be written again.
    pub fn handle_writable(&mut self) {
        self.blocked = false;
    }

    /// Asks for the event that tells that the socket can be written, or no longer, as the state wants it.
    ///
    /// # Errors
    /// What the registration failed with.
    pub fn update_interest(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        if self.watched == self.blocked {
            return Ok(());
        }
        self.watched = self.blocked;
        let interest = if self.blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        registry.reregister(self.stream.socket(), token, interest)
    }
}

/// Received bytes that are not used yet. Used bytes are removed in large steps, so that many short items take linear
/// time.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// How many bytes at the start are used.
    start: usize,
}

impl Inbox {
    /// Returns the bytes that are not used yet.
    pub fn unused(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    /// Returns how many bytes are not used yet.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Returns whether every byte is used.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends received bytes.
    pub fn append(&mut self, bytes: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes = bytes.to_vec();
        } else {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Takes note that some more bytes are used.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            *self = Self::default();
        } else if self.start > self.bytes.len() / 2 {
            // As many bytes as are moved have been used since the last time.
            self.bytes.drain(..self.start);
            self.bytes.shrink_to_fit();
            self.start = 0;
        }
    }

    /// Returns how many bytes of memory it takes.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Writes bytes from `sent` on, as far as it goes.
fn send(stream: &mut Stream, bytes: &[u8], sent: &mut usize) -> io::Result<Flushed> {
    while *sent < bytes.len() {
        match stream.write(&bytes[*sent..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => *sent += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
            Err(error) => return Err(error),
        }
    }
    Ok(Flushed::All)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inbox_gives_back_every_byte_once_and_in_order() {
        let (mut inbox, mut expected) = (Inbox::default(), std::collections::VecDeque::new());
        let mut bytes = (0..=u8::MAX).cycle();
        for step in 0..2_000_usize {
            let added: Vec<u8> = bytes.by_ref().take(step % 7).collect();
            inbox.append(&added);
            expected.extend(added);
            let used = (step * 31 % 11).min(inbox.len());
            assert!(inbox.unused()[..used].iter().eq(expected.drain(..used).collect::<Vec<_>>().iter()));
            inbox.consume(used);
            assert_eq!((inbox.len(), inbox.is_empty()), (expected.len(), expected.is_empty()));
        }
        inbox.consume(inbox.len());
        assert_eq!(inbox.held_bytes(), 0);
    }

    #[test]
    fn an_inbox_moves_few_bytes_however_short_the_items_are() {
        let mut inbox = Inbox::default();
        inbox.append(&vec![b'x'; 1 << 20]);
        let (mut moves, mut start) = (0, 0);
        while !inbox.is_empty() {
            inbox.consume(1);
            moves += usize::from(inbox.start < start);
            start = inbox.start;
        }
        assert!(moves < 25, "{moves}");
    }
}
