//! A stream with its buffers: bytes to write, and received bytes of an incomplete item. The buffers
//! take memory only while they hold something.

use std::io;
use std::sync::Arc;

use mio::{Interest, Registry, Token};

use super::stream::{Handshake, Stream};

/// The state of the bytes to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// All bytes were written.
    All,
    /// Some bytes wait until the socket is writable.
    Blocked,
}

/// A connection. The buffers are boxed, since most of the many clients have nothing in them.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    waiting: Option<Box<Waiting>>,
    /// Whether the socket is full. An event reports when it is writable.
    blocked: bool,
    /// Whether that event is registered.
    watched: bool,
}

/// The buffers.
#[derive(Debug, Default)]
struct Waiting {
    /// Bytes to write.
    outbox: Vec<u8>,
    /// Number of bytes of the outbox that were written.
    sent: usize,
    /// Bytes to write behind the outbox, and the number of them that were written. Several
    /// connections share them, so that many slow peers cost no copy each.
    shared: Option<(Arc<[u8]>, usize)>,
    /// Received bytes that are not used yet.
    inbox: Inbox,
}

impl Connection {
    /// Registers a stream under a token. `connecting` also registers for the event that reports an
    /// established connection.
    ///
    /// # Errors
    /// Returns the error of the registration.
    pub fn register(mut stream: Stream, connecting: bool, registry: &Registry, token: Token) -> io::Result<Self> {
        let interest = if connecting { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        registry.register(stream.socket(), token, interest)?;
        Ok(Self { stream, waiting: None, blocked: connecting, watched: connecting })
    }

    /// Returns the number of received bytes that are not used yet.
    pub fn inbox_len(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.inbox.len())
    }

    /// Returns the memory of all buffers, in bytes.
    pub fn held_bytes(&self) -> usize {
        let waiting = self.waiting.as_ref().map_or(0, |waiting| waiting.inbox.held_bytes() + waiting.outbox.capacity());
        waiting + self.stream.held_bytes()
    }

    /// Takes the received bytes. [`Self::put_inbox`] returns those that are not used.
    pub fn take_inbox(&mut self) -> Inbox {
        let inbox = self.waiting.as_mut().map(|waiting| std::mem::take(&mut waiting.inbox));
        self.free_empty();
        inbox.unwrap_or_default()
    }

    /// Puts received bytes back.
    pub fn put_inbox(&mut self, inbox: Inbox) {
        if !inbox.is_empty() || self.waiting.is_some() {
            self.waiting.get_or_insert_default().inbox = inbox;
            self.free_empty();
        }
    }

    /// Frees the buffers if they are empty.
    fn free_empty(&mut self) {
        let waits =
            |waiting: &Waiting| !waiting.outbox.is_empty() || waiting.shared.is_some() || !waiting.inbox.is_empty();
        if !self.waiting.as_deref().is_some_and(waits) {
            self.waiting = None;
        }
    }

    /// Reads; see [`Stream::read`].
    ///
    /// # Errors
    /// As [`Stream::read`].
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer);
        // TLS may have written an answer of its own that the socket did not take.
        self.blocked |= self.stream.has_unsent();
        read
    }

    /// Returns the stream.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// Returns whether bytes wait to be written.
    pub fn has_unsent(&self) -> bool {
        let waits = |waiting: &Waiting| !waiting.outbox.is_empty() || waiting.shared.is_some();
        self.waiting.as_deref().is_some_and(waits) || self.stream.has_unsent()
    }

    /// Returns whether the socket is full.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Continues the handshake of a client; see [`Stream::handshake`].
    ///
    /// # Errors
    /// Returns an error if the client left or the handshake failed.
    pub fn handshake(&mut self) -> io::Result<Handshake> {
        let reached = self.stream.handshake()?;
        // The rest follows when the socket is writable.
        self.flush_stream()?;
        Ok(reached)
    }

    /// Returns the buffer of bytes to write. They leave with the next write or flush.
    pub fn queue(&mut self) -> &mut Vec<u8> {
        let waiting = self.waiting.get_or_insert_default();
        if let Some((bytes, sent)) = waiting.shared.take() {
            waiting.outbox.extend_from_slice(&bytes[sent..]);
        }
        &mut waiting.outbox
    }

    /// Queues shared bytes. They leave with the next flush.
    pub fn queue_shared(&mut self, bytes: Arc<[u8]>) {
        self.queue();
        self.waiting.get_or_insert_default().shared = Some((bytes, 0));
    }

    /// Writes bytes, in one system call if possible.
    ///
    /// # Errors
    /// Returns an error if the connection is lost.
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

    /// Writes as many waiting bytes as the socket takes.
    ///
    /// # Errors
    /// Returns an error if the connection is lost.
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
        self.free_empty();
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

    /// Handles the event that the socket is writable.
    pub fn handle_writable(&mut self) {
        self.blocked = false;
    }

    /// Registers for the event that the socket is writable while bytes wait, and only then.
    ///
    /// # Errors
    /// Returns the error of the registration.
    pub fn update_interest(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        if self.watched == self.blocked {
            return Ok(());
        }
        self.watched = self.blocked;
        let interest = if self.blocked { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        registry.reregister(self.stream.socket(), token, interest)
    }
}

/// Received bytes that are not used yet. Used bytes are removed in large steps, so that many short
/// items take linear time.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    /// Number of used bytes at the start.
    start: usize,
}

impl Inbox {
    /// Returns the bytes that are not used yet.
    pub fn unused(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    /// Returns the number of bytes that are not used yet.
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

    /// Marks some more bytes as used.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            *self = Self::default();
        } else if self.start > self.bytes.len() / 2 {
            // At least as many bytes were used since the last move as this one moves.
            self.bytes.drain(..self.start);
            self.bytes.shrink_to_fit();
            self.start = 0;
        }
    }

    /// Returns the memory of the buffer, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Writes bytes from `sent` on, as many as the socket takes.
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
    fn inbox_returns_every_byte_once_in_order() {
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
    fn inbox_moves_few_bytes_for_short_items() {
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
