//! Clients that come: accepting them, as many as there may be in all, from one address, and without a log-in.
//!
//! ```text
//! accept ──▶ all places taken? ──▶ an unauthenticated client is evicted; there is none: 503, as text
//!              │ no
//!              ▼
//!            address full? ──▶ 429, as text       (behind a trusted proxy: by what its first request says)
//!              │ no
//!              ▼
//!            too many unauthenticated? ──▶ at the end of the turn some are evicted (unauthenticated.rs)
//! ```

use std::io::Write as _;
use std::net::{IpAddr, Shutdown, SocketAddr};

use mio::net::TcpStream;

use super::doors::Door;
use super::{Http, Protocol, Seat, Server, Timer};
use crate::net::listener::Accepted;
use crate::net::stream::Stream;
use crate::state::metrics::CloseReason;
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
        self.connections.accept_pending = false;
        for door in [Door::Admin, Door::Plain, Door::Tls] {
            self.accept_at(door, now);
        }
    }

    fn accept_at(&mut self, door: Door, now: Millis) {
        if self.connections.accept_from.is_some() {
            return;
        }
        let full = self.context.limits.connections.is_some_and(|limit| self.connections.clients + ACCEPT_BATCH > limit);
        for _ in 0..if full { FULL_BATCH } else { ACCEPT_BATCH } {
            match self.connections.doors.accept(door) {
                Accepted::Client(socket, address) if door == Door::Admin => {
                    self.take_operator(socket, address.ip(), now);
                }
                Accepted::Client(socket, address) => self.take_client(socket, door, address.ip(), now),
                Accepted::Nobody => return,
                Accepted::Exhausted(error) => {
                    self.context.metrics.accept_pauses += 1;
                    let (level, more) = self.connections.pause_log.level(log::Level::Warn, now);
                    log::log!(level, "No more clients can be accepted for the moment: {error}{more}");
                    self.connections.accept_from = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.connections.accept_pending = true;
    }

    fn take_client(&mut self, socket: TcpStream, door: Door, address: IpAddr, now: Millis) {
        self.context.metrics.accepted += 1;
        if self.memory_rejection().is_some() {
            return self.turn_away(socket, door, address, 503, CloseReason::OutOfMemory, now);
        }
        if self.context.limits.connections.is_some_and(|limit| self.connections.clients >= limit)
            && !self.make_room(now)
        {
            return self.turn_away(socket, door, address, 503, CloseReason::TooManyConnections, now);
        }
        let proxied = self.connections.trusted_proxies.contains(address);
        let Some(seat) = self.seat(address, proxied) else {
            return self.turn_away(socket, door, address, 429, CloseReason::TooManyOfAddress, now);
        };
        // Notifications are small and must not wait for an acknowledgement of the one before.
        let _ = socket.set_nodelay(true);
        let stream = match (door, self.connections.doors.identity()) {
            (Door::Tls, Some(identity)) => identity.accept(socket).map(|stream| (stream, Protocol::Handshake)),
            _ => Ok((Stream::plain(socket), Protocol::Http(Http::Head))),
        };
        // The handshake is part of the time for the first request.
        let within = Deadline::at(now + self.context.limits.request_within);
        match stream.and_then(|(stream, protocol)| self.add_peer(stream, protocol, address, within, now)) {
            Ok(key) => {
                self.connections.clients += 1;
                if let Some(peer) = self.connections.peers.get_mut(key) {
                    peer.seat = seat;
                    peer.proxied = proxied;
                }
                self.connections.changed.push(Timer::Peer(key));
            }
            Err(error) => {
                self.give_up(seat, address);
                let (level, more) = self.connections.registration_log.level(log::Level::Warn, now);
                log::log!(level, "A client could not be registered: {error}{more}");
            }
        }
    }

    /// The seat of a client at an address; None when the address has no more. A proxy's own address does not count.
    pub(super) fn seat(&mut self, address: IpAddr, is_proxy: bool) -> Option<Seat> {
        match self.context.limits.per_address {
            Some(_) if !is_proxy => self.connections.addresses.enter(address).then_some(Seat::OfAddress),
            _ => Some(Seat::Taken),
        }
    }

    /// A seat is free again.
    pub(super) fn give_up(&mut self, seat: Seat, address: IpAddr) {
        if seat == Seat::OfAddress {
            self.connections.addresses.leave(address);
        }
    }

    /// A connection is over: its seat is free.
    pub(super) fn vacate(&mut self, key: Key) {
        let Some(peer) = self.connections.peers.get_mut(key) else { return };
        let (seat, address) = (std::mem::replace(&mut peer.seat, Seat::None), peer.address);
        self.connections.clients -= usize::from(!matches!(seat, Seat::None | Seat::Operator));
        self.give_up(seat, address);
    }

    /// Who the client of a request is, where proxies say so; false when that client has too many connections already.
    pub(super) fn place(&mut self, key: Key, request: &Request<'_>, now: Millis) -> bool {
        if self.connections.trusted_proxies.is_empty() && request.forwarded_for.is_none() {
            return true;
        }
        let Some(peer) = self.connections.peers.get_mut(key) else { return true };
        let Ok(socket) = peer.connection.stream().socket().peer_addr() else { return true };
        if !self.connections.trusted_proxies.contains(socket.ip()) && request.forwarded_for.is_some() {
            self.warn_of_untrusted_proxy(socket.ip(), now);
        }
        let Some(peer) = self.connections.peers.get_mut(key) else { return true };
        // Each request anew: one connection of a proxy carries those of many clients.
        let address = self.connections.trusted_proxies.client(socket.ip(), request.forwarded_for);
        let (before, seat) = (peer.address, peer.seat);
        if seat == Seat::Operator {
            return true;
        }
        peer.address = address;
        if before == address && seat != Seat::Taken {
            return true;
        }
        self.connections.changed.push(Timer::Peer(key));
        self.give_up(seat, before);
        let next = self.seat(address, self.connections.trusted_proxies.contains(address));
        if let Some(peer) = self.connections.peers.get_mut(key) {
            peer.seat = next.unwrap_or(Seat::Taken);
        }
        next.is_some()
    }

    fn warn_of_untrusted_proxy(&mut self, address: IpAddr, now: Millis) {
        if let Some(more) = self.connections.untrusted_proxy_log.pass(now) {
            let address = address.to_canonical();
            log::warn!(
                "A request from {address} carries X-Forwarded-For, and {address} is not in --trusted_proxies: \
                 all clients behind that address count as one{more}."
            );
        }
    }

    /// Returns whether the client of a request speaks TLS, to this server or to a trusted proxy.
    pub(super) fn is_secure(&mut self, key: Key, request: &Request<'_>) -> bool {
        let Some(peer) = self.connections.peers.get_mut(key) else { return false };
        let stream = peer.connection.stream();
        if stream.is_tls() {
            return true;
        }
        // The first in a list is what the client spoke to the proxy in front.
        let scheme = request.forwarded_proto.and_then(|value| http::list(value).next());
        let trusted = |socket: SocketAddr| self.connections.trusted_proxies.contains(socket.ip());
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
            && stream.socket().peer_addr().is_ok_and(trusted)
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
        self.context.metrics.count_close(reason);
        let (level, more) = self.connections.full_log.level(log::Level::Warn, now);
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
