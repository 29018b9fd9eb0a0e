//! The list of unauthenticated clients: what each holds is determined at the end of a turn in which
//! it changed.

use super::Connections;
use super::peer::{Http, Protocol, Quota};
use crate::server::ids::Handle;
use crate::state::table::Key;
use crate::state::unauthenticated::{Holding, Kind, Stage};

/// Capacity of the list of changed clients that is kept from turn to turn.
const KEPT_CHANGED: usize = 1_024;

impl Connections {
    /// Has a client reviewed at the end of the turn.
    pub(crate) fn review_later(&mut self, client: Handle) {
        self.changed.push(client);
    }

    /// Takes the clients to be reviewed.
    pub(crate) fn take_changed(&mut self) -> Vec<Handle> {
        std::mem::take(&mut self.changed)
    }

    /// Gives the list of clients to be reviewed back, so that its capacity is used again.
    pub(crate) fn put_changed(&mut self, mut changed: Vec<Handle>) {
        changed.clear();
        changed.shrink_to(KEPT_CHANGED);
        self.changed = changed;
    }

    /// Lists a connection as unauthenticated if it is, with what it holds. `stage_and_bytes`
    /// returns the stage of a session, None for a logged-in one, and the bytes that it holds.
    pub(crate) fn review(&mut self, key: Key, stage_and_bytes: impl Fn(Key) -> (Option<Stage>, usize)) {
        let holding = self.holding(key, stage_and_bytes);
        let Some(peer) = self.peers.get_mut(key) else { return };
        let was_listed = std::mem::replace(&mut peer.listed, holding.is_some());
        self.list(Handle::Connection(key), was_listed, holding);
    }

    /// Lists a client as unauthenticated with what it holds; None takes it off the list.
    pub(crate) fn list(&mut self, client: Handle, was_listed: bool, holding: Option<Holding>) {
        match holding {
            Some(holding) => self.unauthenticated.set(client, holding),
            None if was_listed => self.unauthenticated.remove(client),
            None => {}
        }
    }

    /// Returns what an unauthenticated connection holds; None for every other one.
    fn holding(&self, key: Key, stage_and_bytes: impl Fn(Key) -> (Option<Stage>, usize)) -> Option<Holding> {
        let peer = self.peers.get(key)?;
        if matches!(peer.quota, Quota::None | Quota::Operator) {
            return None;
        }
        let stage_of = |session| stage_and_bytes(session).0;
        let (stage, more) = match &peer.protocol {
            Protocol::Http(Http::Head) if peer.is_authenticated => return None,
            // A proxy's connection carries many clients: whose request comes next is not known.
            Protocol::Handshake | Protocol::Http(Http::Head) if peer.proxied => (Stage::Spare, 0),
            Protocol::Handshake | Protocol::Http(Http::Head) => (Stage::Idle, 0),
            Protocol::Http(Http::Body(post)) => (stage_of(post.session)?, post.body.capacity()),
            Protocol::Http(Http::Parked(session, _)) => (stage_of(*session)?, 0),
            Protocol::Probing(session, decoder) => (stage_of(*session)?, decoder.held_bytes()),
            Protocol::WebSocket(session, decoder) => {
                let (stage, of_session) = stage_and_bytes(*session);
                (stage?, decoder.held_bytes() + of_session)
            }
            Protocol::Lingering { .. } => (Stage::Spare, 0),
            Protocol::Closed | Protocol::Upstream { .. } => return None,
        };
        let bytes = peer.connection.held_bytes() + more;
        Some(Holding { address: peer.address, kind: Kind::Connection, stage, bytes })
    }

    /// Takes a connection off the list.
    pub(crate) fn unlist(&mut self, key: Key) {
        if self.peers.get_mut(key).is_some_and(|peer| std::mem::take(&mut peer.listed)) {
            self.unauthenticated.remove(Handle::Connection(key));
        }
    }

    /// Returns the client to evict because there are too many, or because they hold too much.
    pub(crate) fn surplus(&self) -> Option<Handle> {
        self.unauthenticated.surplus()
    }

    /// Returns the client to evict for memory: the one that holds most, or the oldest.
    pub(crate) fn largest(&self) -> Option<Handle> {
        self.unauthenticated.largest().or_else(|| self.unauthenticated.oldest())
    }

    /// Returns the connection to evict for a new one.
    pub(crate) fn oldest_connection(&self) -> Option<Key> {
        match self.unauthenticated.oldest_connection()? {
            Handle::Connection(key) => Some(key),
            Handle::Session(_) => None,
        }
    }

    /// Returns the number of unauthenticated clients, and the bytes that they hold.
    pub(crate) fn unauthenticated(&self) -> (usize, usize) {
        (self.unauthenticated.len(), self.unauthenticated.bytes())
    }
}
