//! Clients that come: accepting them, as many as there may be in all, from one address, and without a log-in.
//!
//! ```text
//! accept ──▶ all places taken? ──▶ the oldest without a log-in makes way; nobody can: 503, as text
//!              │ no
//!              ▼
//!            address full? ──▶ 429, as text       (behind a trusted proxy: by what its first request says)
//!              │ no
//!              ▼
//!            too many without a log-in? ──▶ the oldest of them make way
//! ```

use std::io::Write as _;
use std::net::{IpAddr, Shutdown};

use mio::net::TcpStream;

use super::doors::Door;
use super::{Http, Peer, Protocol, Seat, Server, Table, Timer};
use crate::net::listener::Accepted;
use crate::net::stream::Stream;
use crate::state::metrics::CloseReason;
use crate::state::session::Session;
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};
use crate::wire::http::{self, Request};

/// Most clients that are accepted in one turn at a port.
const ACCEPT_BATCH: usize = 256;
/// Most that are accepted in one turn while others have to make way: the descriptors of those are free at the end of the
/// turn.
const FULL_BATCH: usize = 32;
/// Pause of accepting after descriptors ran out, in milliseconds.
const ACCEPT_PAUSE: Millis = 500;

impl Server {
    pub(super) fn accept(&mut self, now: Millis) {
        self.accept_pending = false;
        for door in [Door::Admin, Door::Plain, Door::Tls] {
            self.accept_at(door, now);
        }
    }

    fn accept_at(&mut self, door: Door, now: Millis) {
        if self.accept_from.is_some() {
            return;
        }
        let full = self.limits.connections.is_some_and(|limit| self.clients + ACCEPT_BATCH > limit);
        for _ in 0..if full { FULL_BATCH } else { ACCEPT_BATCH } {
            match self.doors.accept(door) {
                Accepted::Client(socket, address) if door == Door::Admin => {
                    self.take_operator(socket, address.ip(), now);
                }
                Accepted::Client(socket, address) => self.take_client(socket, door, address.ip(), now),
                Accepted::Nobody => return,
                Accepted::Exhausted(error) => {
                    self.metrics.accept_pauses += 1;
                    let (level, more) = self.pause_log.level(log::Level::Warn, now);
                    log::log!(level, "No more clients can be accepted for the moment: {error}{more}");
                    self.accept_from = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_pending = true;
    }

    fn take_client(&mut self, socket: TcpStream, door: Door, address: IpAddr, now: Millis) {
        self.metrics.accepted += 1;
        if self.limits.connections.is_some_and(|limit| self.clients >= limit) && !self.make_room(now) {
            return self.turn_away(socket, door, address, 503, CloseReason::TooManyConnections, now);
        }
        let Some(seat) = self.seat(address, self.trusted_proxies.trust(address)) else {
            return self.turn_away(socket, door, address, 429, CloseReason::TooManyOfAddress, now);
        };
        // Notifications are small and must not wait for an acknowledgement of the one before.
        let _ = socket.set_nodelay(true);
        let stream = match (door, self.doors.identity()) {
            (Door::Tls, Some(identity)) => identity.accept(socket).map(|stream| (stream, Protocol::Handshake)),
            _ => Ok((Stream::plain(socket), Protocol::Http(Http::Head))),
        };
        // The handshake is part of the time for the first request.
        let within = Deadline::at(now + self.limits.request_within);
        match stream.and_then(|(stream, protocol)| self.add_peer(stream, protocol, address, within, now)) {
            Ok(key) => {
                self.clients += 1;
                if let Some(peer) = self.peers.get_mut(key) {
                    peer.seat = seat;
                }
                self.admit_newcomer(Timer::Peer(key), now);
            }
            Err(error) => {
                self.give_up(seat, address);
                let (level, more) = self.registration_log.level(log::Level::Warn, now);
                log::log!(level, "A client could not be registered: {error}{more}");
            }
        }
    }

    /// The seat of a client at an address; None when the address has no more. A proxy's own address does not count.
    fn seat(&mut self, address: IpAddr, is_proxy: bool) -> Option<Seat> {
        match self.limits.per_address {
            Some(_) if !is_proxy => self.addresses.enter(address).then_some(Seat::OfAddress),
            _ => Some(Seat::Taken),
        }
    }

    /// A seat is free again.
    fn give_up(&mut self, seat: Seat, address: IpAddr) {
        if seat == Seat::OfAddress {
            self.addresses.leave(address);
        }
    }

    /// A connection is over: its seat is free.
    pub(super) fn vacate(&mut self, key: Key) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let (seat, address) = (std::mem::replace(&mut peer.seat, Seat::None), peer.address);
        self.clients -= usize::from(!matches!(seat, Seat::None | Seat::Operator));
        self.give_up(seat, address);
    }

    /// Who the client of a request is, where proxies say so; false when that client has too many connections already.
    pub(super) fn place(&mut self, key: Key, request: &Request<'_>) -> bool {
        if self.trusted_proxies.is_empty() {
            return true;
        }
        let Some(peer) = self.peers.get_mut(key) else { return true };
        let Ok(socket) = peer.connection.stream().socket().peer_addr() else { return true };
        // Each request anew: one connection of a proxy carries those of many clients.
        let address = self.trusted_proxies.client(socket.ip(), request.forwarded_for);
        let (before, seat) = (peer.address, peer.seat);
        if seat == Seat::Operator {
            return true;
        }
        peer.address = address;
        if before == address && seat != Seat::Taken {
            return true;
        }
        self.give_up(seat, before);
        let next = self.seat(address, self.trusted_proxies.trust(address));
        if let Some(peer) = self.peers.get_mut(key) {
            peer.seat = next.unwrap_or(Seat::Taken);
        }
        next.is_some()
    }

    /// Somebody came whom nobody knows: when there are too many of them, those who came first have to go.
    pub(super) fn admit_newcomer(&mut self, who: Timer, now: Millis) {
        self.newcomers.add(who);
        let Self { newcomers, peers, sessions, .. } = self;
        for who in newcomers.take_surplus(|who| is_newcomer(who, peers, sessions)) {
            self.send_away(who, CloseReason::MadeWay, now);
        }
    }

    /// Makes room for one connection; false when nobody can be asked to make way.
    fn make_room(&mut self, now: Millis) -> bool {
        let Self { newcomers, peers, sessions, .. } = self;
        let holds_connection = |who| matches!(who, Timer::Peer(_)) && is_newcomer(who, peers, sessions);
        let Some(Timer::Peer(key)) = newcomers.take_oldest(holds_connection) else { return false };
        self.send_away(Timer::Peer(key), CloseReason::MadeWay, now);
        // Its place is needed at once: its last bytes are on their way, or they are not.
        self.close_peer(key, CloseReason::MadeWay, now);
        true
    }

    fn send_away(&mut self, who: Timer, reason: CloseReason, now: Millis) {
        match who {
            Timer::Session(key) => self.close_session(key, reason, now),
            Timer::Peer(key) => match self.peers.get(key).map(|peer| &peer.protocol) {
                Some(Protocol::WebSocket(session, _)) => self.close_session(*session, reason, now),
                Some(Protocol::Http(_)) => self.answer_and_close(key, 503, "Others need the place.\n", reason, now),
                _ => self.close_peer(key, reason, now),
            },
        }
    }

    /// Closes a connection that was just accepted. What it is told may get lost with what it has sent: nothing is kept
    /// for it.
    fn turn_away(
        &mut self,
        mut socket: TcpStream,
        door: Door,
        address: IpAddr,
        status: u16,
        reason: CloseReason,
        now: Millis,
    ) {
        self.metrics.count_close(reason);
        let (level, more) = self.full_log.level(log::Level::Warn, now);
        log::log!(level, "A client at {address} is turned away: {}{more}.", reason.text());
        if door == Door::Plain {
            let fields = [("Content-Type", "text/plain; charset=utf-8"), ("Retry-After", "5")];
            let body = format!("{}\n", reason.text());
            let mut out = Vec::new();
            let answer =
                http::Answer { status, fields: &fields, body: body.as_bytes(), head_only: false, keep_alive: false };
            http::write_response(&mut out, &answer);
            let _ = socket.write(&out);
        }
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// Whether nobody has logged in on what a client holds.
fn is_newcomer(who: Timer, peers: &Table<Peer>, sessions: &Table<Session>) -> bool {
    let waits = |session: Key| sessions.get(session).is_some_and(Session::is_newcomer);
    match who {
        Timer::Session(key) => waits(key),
        Timer::Peer(key) => peers.get(key).is_some_and(|peer| match &peer.protocol {
            Protocol::Handshake => true,
            Protocol::Http(Http::Head) => !peer.known,
            Protocol::WebSocket(session, _) => waits(*session),
            // Requests of sessions are counted by those; the others are no clients any more, or never were.
            _ => false,
        }),
    }
}
