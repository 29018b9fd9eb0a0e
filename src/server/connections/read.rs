//! Reading from clients: a connection's share of a turn, and which item its next bytes belong to.

use std::io;

use super::Connections;
use super::exchange::Post;
use super::peer::{Http, Peer, Protocol};
use crate::net::connection::Inbox;
use crate::net::stream::TLS_HANDSHAKE;
use crate::server::context::Context;
use crate::server::ids::Handle;
use crate::state::metrics::CloseReason;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::http::Piece;
use crate::wire::http::{self, HeadError, Request};
use crate::wire::websocket::Decoder;

/// Most bytes that are read from a client in one turn.
const CLIENT_READ: usize = 64 * 1024;
/// Most bytes that are read from a lingering peer, which should close instead.
const LINGER_READ: usize = 256 * 1024;
/// Requests of one connection that are served in one turn: about a millisecond.
const REQUESTS_A_TURN: usize = 64;

/// Result of reading from a client.
#[derive(Debug)]
pub(crate) enum Received {
    /// Nothing for now.
    Nothing,
    /// Bytes, this many.
    Bytes(usize),
    /// The client closed the connection, or it failed.
    Lost,
}

/// Input of a connection, taken out while it is handled.
#[derive(Debug)]
pub(crate) struct Input {
    scratch: Box<[u8]>,
    inbox: Inbox,
    /// Bytes in the scratch buffer; those of an inbox are behind it already.
    length: usize,
    /// Bytes that an earlier call looked at.
    pub(crate) seen: usize,
}

impl Input {
    /// Returns the bytes that are not used yet.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        if self.inbox.is_empty() { &mut self.scratch[..self.length] } else { self.inbox.unused() }
    }
}

/// The item that the next bytes of a connection belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// The head of a request.
    Head,
    /// The body of a POST.
    Body,
    /// A WebSocket frame.
    Frame,
    /// No item for now: the bytes wait.
    Later,
    /// No item any more: the bytes are dropped.
    Never,
}

/// Bytes that are no complete head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoHead {
    /// Number of bytes that are skipped; 0 if more are needed.
    Skip(usize),
    /// The bytes are no HTTP, and the connection is being closed.
    Invalid,
}

/// Result of taking bytes of a POST's body.
#[derive(Debug)]
pub(crate) enum BodyPart {
    /// More is to come.
    NeedMore,
    /// The body is complete.
    Complete(Box<Post>),
    TooLong(Box<Post>),
    Invalid(Box<Post>),
}

impl Connections {
    /// Prepares a connection for reading. Returns false when nothing can be read from it now.
    pub(crate) fn begin_read(&mut self, key: Key, context: &mut Context, now: Millis) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        if matches!(peer.protocol, Protocol::Handshake) && !self.continue_handshake(key, context, now) {
            self.changed.push(Handle::Connection(key));
            return false;
        }
        let Some(peer) = self.peers.get_mut(key) else { return false };
        if matches!(peer.protocol, Protocol::Closed) {
            return false;
        }
        // A client that does not read its responses may not send more requests.
        if peer.connection.has_unsent() && !matches!(peer.protocol, Protocol::Lingering { .. }) {
            peer.unread = true;
            return false;
        }
        true
    }

    /// Has a connection read once what holds it back has ended.
    pub(crate) fn mark_unread(&mut self, key: Key) {
        if let Some(peer) = self.peers.get_mut(key) {
            peer.unread = true;
        }
    }

    /// Has a connection read in the next turn, since the names of this turn are used up.
    pub(crate) fn postpone(&mut self, key: Key) {
        if let Some(peer) = self.peers.get_mut(key)
            && !matches!(peer.protocol, Protocol::Closed)
            && !std::mem::replace(&mut peer.postponed, true)
        {
            self.postponed.push_back(key);
        }
    }

    pub(crate) fn postponed_count(&self) -> usize {
        self.postponed.len()
    }

    /// Returns the next postponed connection.
    pub(crate) fn next_postponed(&mut self) -> Option<Key> {
        let key = self.postponed.pop_front()?;
        if let Some(peer) = self.peers.get_mut(key) {
            peer.postponed = false;
        }
        Some(key)
    }

    /// Returns the connections whose share of the last turn did not cover their input.
    pub(crate) fn take_unfinished(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.unfinished)
    }

    /// Returns whether a pipelined request in the inbox is to be served now.
    pub(crate) fn take_pipelined(&mut self, key: Key) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        let waits_for_answer = matches!(peer.protocol, Protocol::Http(Http::Parked(..)));
        !waits_for_answer && std::mem::take(&mut peer.pipelined) && matches!(peer.protocol, Protocol::Http(_))
    }

    /// Reads one buffer, the connection's share of a turn, into the scratch buffer; the rest is
    /// read in the next turn. `to_end` when the socket may also hold an end that no further event
    /// announces.
    pub(crate) fn receive(&mut self, key: Key, to_end: bool, context: &mut Context) -> Received {
        let Some(peer) = self.peers.get_mut(key) else { return Received::Nothing };
        // Determined only now: a pipelined request may have left unsent bytes or a parked GET.
        let share = match &peer.protocol {
            Protocol::Closed => return Received::Nothing,
            Protocol::Lingering { .. } => CLIENT_READ,
            _ if peer.connection.has_unsent() => 0,
            Protocol::Http(_) if peer.connection.inbox_len() >= context.limits.head => 0,
            // Bytes behind a request that waits for its response are held.
            Protocol::Http(_) => context.limits.head,
            _ => CLIENT_READ,
        };
        if share == 0 {
            peer.unread = true;
            return Received::Nothing;
        }
        let short_is_last = peer.connection.stream().short_read_is_last() && !to_end;
        let read = peer.connection.read(&mut self.scratch[..share]);
        if peer.connection.is_blocked() && self.update_interest(key).is_err() {
            return Received::Lost;
        }
        let Some(peer) = self.peers.get_mut(key) else { return Received::Nothing };
        match read {
            Ok(0) => {
                Self::confirm_end(peer);
                Received::Lost
            }
            Ok(length) => {
                if let Protocol::Lingering { received, .. } = &mut peer.protocol {
                    *received += length;
                    if *received > LINGER_READ {
                        context.metrics.cut_connections += 1;
                        self.close(key, CloseReason::CloseTimeout, context);
                        return Received::Nothing;
                    }
                }
                self.changed.push(Handle::Connection(key));
                if length == share || !short_is_last {
                    // The rest waits for the next turn: the other clients come first.
                    self.unfinished.push(key);
                }
                Received::Bytes(length)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
            Err(_) => Received::Lost,
        }
    }

    /// Takes the input of a connection: the inbox, and the first `length` bytes of the scratch
    /// buffer behind it.
    pub(crate) fn take_input(&mut self, key: Key, length: usize) -> Option<Input> {
        let peer = self.peers.get_mut(key)?;
        let mut inbox = peer.connection.take_inbox();
        let scratch = std::mem::take(&mut self.scratch);
        let mut seen = 0;
        if !inbox.is_empty() {
            // No byte of a pipelined request was looked at.
            seen = if length == 0 { 0 } else { inbox.len() };
            inbox.append(&scratch[..length]);
        }
        Some(Input { scratch, inbox, length, seen })
    }

    /// Puts the input of a connection back, after `used` bytes of it; None drops the rest.
    pub(crate) fn put_input(&mut self, key: Key, input: Input, used: Option<usize>) {
        let Input { scratch, mut inbox, length, .. } = input;
        match used {
            None => inbox = Inbox::default(),
            Some(used) if inbox.is_empty() => inbox.append(&scratch[used..length]),
            Some(used) => inbox.consume(used),
        }
        if let Some(peer) = self.peers.get_mut(key) {
            peer.connection.put_inbox(inbox);
        }
        self.scratch = scratch;
    }

    /// Returns the item that the next bytes of a connection belong to, after `requests` requests in
    /// this turn.
    pub(crate) fn next_item(&mut self, key: Key, requests: usize) -> Item {
        let Some(peer) = self.peers.get_mut(key) else { return Item::Never };
        match &peer.protocol {
            Protocol::Http(Http::Head) if requests == REQUESTS_A_TURN => {
                peer.pipelined = true;
                self.unfinished.push(key);
                Item::Later
            }
            // Responses may pile up no faster than the client reads: the next request waits in its
            // few bytes.
            Protocol::Http(Http::Head) if peer.connection.has_unsent() => {
                peer.pipelined = true;
                peer.unread = true;
                Item::Later
            }
            Protocol::Http(Http::Head) => Item::Head,
            Protocol::Http(Http::Body(_)) => Item::Body,
            // The next request waits for the response to this one.
            Protocol::Http(Http::Parked(..)) => Item::Later,
            Protocol::WebSocket(..) | Protocol::Probing(..) => Item::Frame,
            Protocol::Handshake | Protocol::Lingering { .. } | Protocol::Closed | Protocol::Upstream { .. } => {
                Item::Never
            }
        }
    }

    /// Parses the head of a request, of whose bytes `seen` were looked at before. Returns its
    /// length and the request.
    ///
    /// # Errors
    /// When the bytes are not, or not yet, a head. Bytes that cannot become one are rejected.
    pub(crate) fn parse_head<'a>(
        &mut self,
        key: Key,
        bytes: &'a [u8],
        seen: usize,
        context: &mut Context,
        now: Millis,
    ) -> Result<(usize, Request<'a>), NoHead> {
        // RFC 9112 section 2.2: empty lines before a request are skipped.
        let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        if blank > 0 {
            return Err(NoHead::Skip(blank));
        }
        let is_plain = |peer: &mut Peer| !peer.connection.stream().is_tls();
        if bytes.first() == Some(&TLS_HANDSHAKE) && self.peers.get_mut(key).is_some_and(is_plain) {
            self.reject_tls(key, context, now);
            return Err(NoHead::Invalid);
        }
        // No method starts with another byte, so there is no head to wait for.
        let garbage = bytes.first().is_some_and(|byte| !byte.is_ascii_alphabetic());
        if !garbage && bytes.len() < context.limits.head && !http::head_is_complete(bytes, seen) {
            return Err(NoHead::Skip(0));
        }
        match http::parse_request(bytes, context.limits.head) {
            Ok(None) => Err(NoHead::Skip(0)),
            Ok(Some(parsed)) => Ok(parsed),
            Err(error) => {
                let reason = match error {
                    HeadError::TooLarge => CloseReason::HeadTooLarge,
                    _ => CloseReason::BadRequest,
                };
                self.answer_and_close(key, error.status(), &format!("{error}\n"), reason, context, now);
                Err(NoHead::Invalid)
            }
        }
    }

    /// Returns the session of the POST that a connection receives.
    pub(crate) fn post_session(&self, key: Key) -> Option<Key> {
        match &self.peers.get(key)?.protocol {
            Protocol::Http(Http::Body(post)) => Some(post.session),
            _ => None,
        }
    }

    /// Takes bytes of a POST's body, which may have `limit` in total. Returns how many bytes were
    /// used.
    pub(crate) fn receive_body(&mut self, key: Key, bytes: &[u8], limit: usize) -> (usize, BodyPart) {
        let Some(Peer { protocol: Protocol::Http(http), .. }) = self.peers.get_mut(key) else {
            return (0, BodyPart::NeedMore);
        };
        let Http::Body(post) = http else { return (0, BodyPart::NeedMore) };
        let mut used = 0;
        let (taken, end): (usize, fn(Box<Post>) -> BodyPart) = loop {
            match post.decoder.next(&bytes[used..]) {
                Ok((taken, Piece::Data(data))) if post.body.len() + data.len() <= limit => {
                    post.body.extend_from_slice(data);
                    used += taken;
                }
                Ok((_, Piece::Data(_))) => break (0, BodyPart::TooLong),
                Ok((taken, Piece::NeedMore)) => return (used + taken, BodyPart::NeedMore),
                Ok((taken, Piece::End)) => break (taken, BodyPart::Complete),
                Err(_) => break (0, BodyPart::Invalid),
            }
        };
        let Http::Body(post) = std::mem::replace(http, Http::Head) else { unreachable!("matched above") };
        (used + taken, end(post))
    }

    /// Takes the frame decoder of a WebSocket out, with the session that it carries or is to take
    /// over.
    pub(crate) fn take_decoder(&mut self, key: Key) -> Option<(Key, Decoder)> {
        match &mut self.peers.get_mut(key)?.protocol {
            Protocol::WebSocket(session, decoder) | Protocol::Probing(session, decoder) => {
                Some((*session, std::mem::take(decoder)))
            }
            _ => None,
        }
    }

    /// Puts the frame decoder of a WebSocket back, unless the connection was closed meanwhile.
    pub(crate) fn put_decoder(&mut self, key: Key, decoder: Decoder) {
        if let Some(peer) = self.peers.get_mut(key)
            && let Protocol::WebSocket(_, place) | Protocol::Probing(_, place) = &mut peer.protocol
        {
            *place = decoder;
        }
    }
}
