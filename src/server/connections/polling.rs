//! Connections that serve polling sessions, and those that become WebSockets.

use super::exchange::{Exchange, Post};
use super::peer::{Http, Peer, Protocol};
use super::{Carried, Connections};
use crate::server::context::Context;
use crate::server::ids::Handle;
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};
use crate::wire::websocket::Decoder;

/// Time for a WebSocket that was opened for a polling session to take it over, in milliseconds.
const UPGRADE_WITHIN: Millis = 10_000;

impl Connections {
    /// Decides whether a connection may open one more polling session, and counts it if so. Not for
    /// a trusted proxy, which carries many clients on one connection: there the addresses of the
    /// clients count.
    pub(crate) fn may_open_session(&mut self, key: Key) -> bool {
        self.is_proxied(key) || self.sessions_per_connection.may_open(key)
    }

    /// Takes note of the polling session that a connection has opened.
    pub(crate) fn note_session_opened(&mut self, key: Key, session: Key) {
        if !self.is_proxied(key) {
            self.sessions_per_connection.insert(session, key);
        }
    }

    /// Takes note that a session no longer polls without a login: its connection may open another.
    pub(crate) fn note_session_settled(&mut self, session: Key) {
        self.sessions_per_connection.remove(session);
    }

    fn is_proxied(&self, key: Key) -> bool {
        self.peers.get(key).is_some_and(|peer| peer.proxied)
    }

    /// Marks whether a connection serves a logged-in client.
    pub(crate) fn set_authenticated(&mut self, key: Key, is_authenticated: bool) {
        self.changed.push(Handle::Connection(key));
        if let Some(peer) = self.peers.get_mut(key) {
            peer.is_authenticated = is_authenticated;
        }
    }

    /// Holds a GET until its session has something to send. The session has the deadline.
    pub(crate) fn park(&mut self, key: Key, session: Key, exchange: Exchange) {
        self.changed.push(Handle::Connection(key));
        if let Some(peer) = self.peers.get_mut(key) {
            peer.protocol = Protocol::Http(Http::Parked(session, Box::new(exchange)));
            peer.deadline = Deadline::NEVER;
        }
    }

    /// Returns the GET that a connection holds.
    pub(crate) fn parked_mut(&mut self, key: Key) -> Option<&mut Exchange> {
        match self.peers.get_mut(key) {
            Some(Peer { protocol: Protocol::Http(Http::Parked(_, exchange)), .. }) => Some(exchange),
            _ => None,
        }
    }

    /// Takes the GET that a connection holds, and its session, to respond to it.
    pub(crate) fn take_parked(&mut self, key: Key) -> Option<(Key, Box<Exchange>)> {
        let Protocol::Http(http @ Http::Parked(..)) = &mut self.peers.get_mut(key)?.protocol else { return None };
        let Http::Parked(session, exchange) = std::mem::replace(http, Http::Head) else {
            unreachable!("matched above")
        };
        Some((session, exchange))
    }

    /// Has a connection receive the body of a POST.
    pub(crate) fn begin_post(&mut self, key: Key, post: Post, context: &mut Context, now: Millis) {
        if let Some(peer) = self.peers.get_mut(key) {
            peer.protocol = Protocol::Http(Http::Body(Box::new(post)));
            peer.deadline = Deadline::at(now + context.limits.request_within);
        }
        self.arm(key, context, now);
    }

    /// Turns a connection into a WebSocket that is to take over a polling session.
    pub(crate) fn probe(&mut self, key: Key, session: Key, now: Millis) {
        self.changed.push(Handle::Connection(key));
        if let Some(peer) = self.peers.get_mut(key) {
            peer.protocol = Protocol::Probing(session, Decoder::default());
            peer.deadline = Deadline::at(now + UPGRADE_WITHIN);
        }
    }

    /// Returns whether a connection is a WebSocket that has not taken over its session yet.
    pub(crate) fn is_probing(&self, key: Key) -> bool {
        self.peers.get(key).is_some_and(|peer| matches!(peer.protocol, Protocol::Probing(..)))
    }

    /// Returns the request that an HTTP connection serves; None for all other connections.
    pub(crate) fn http_request(&self, key: Key) -> Option<Carried> {
        match &self.peers.get(key)?.protocol {
            Protocol::Http(Http::Head) => Some(Carried::Nothing),
            Protocol::Http(Http::Body(post)) => Some(Carried::Request(post.session)),
            Protocol::Http(Http::Parked(session, _)) => Some(Carried::Request(*session)),
            _ => None,
        }
    }

    /// Returns the session that a WebSocket carries.
    pub(crate) fn carried_session(&self, key: Key) -> Option<Key> {
        match self.peers.get(key)?.protocol {
            Protocol::WebSocket(session, _) => Some(session),
            _ => None,
        }
    }

    /// Has a WebSocket carry a session.
    pub(crate) fn carry(&mut self, key: Key, session: Key) {
        self.changed.push(Handle::Connection(key));
        if let Some(peer) = self.peers.get_mut(key) {
            peer.protocol = Protocol::WebSocket(session, Decoder::default());
            peer.deadline = Deadline::NEVER;
        }
    }
}
