//! Unauthenticated clients: what they hold is reviewed at the end of each turn in which something of theirs changed.
//! Those that are too many, or hold too much, are evicted.

use super::{Http, Protocol, Seat, Server, Timer};
use crate::state::metrics::CloseReason;
use crate::state::session::{Session, Transport};
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::state::unauthenticated::{Holding, Kind, Stage};

/// Most clients that are evicted in one turn: some milliseconds.
const EVICTED_A_TURN: usize = 1_024;

impl Server {
    /// Has a session reviewed at the end of the turn, or the connection that carries it.
    pub(super) fn note_session(&mut self, key: Key) {
        let Some(session) = self.sessions.table.get(key) else { return };
        let carrier = session.websocket().map_or(Timer::Session(key), Timer::Peer);
        self.connections.changed.push(carrier);
    }

    /// Reviews the clients of which something changed, and evicts those that are too many or hold too much.
    pub fn review_clients(&mut self, now: Millis) {
        self.review_changed();
        for _ in 0..EVICTED_A_TURN {
            let Some(who) = self.connections.unauthenticated.surplus() else { break };
            self.evict(who, now);
        }
    }

    /// Evicts some unauthenticated clients, those that hold most memory first.
    pub(super) fn evict_for_memory(&mut self, count: usize, now: Millis) {
        self.review_changed();
        for _ in 0..count {
            let who = self.connections.unauthenticated.largest().or_else(|| self.connections.unauthenticated.oldest());
            let Some(who) = who else { break };
            self.evict(who, now);
        }
    }

    /// Makes room for one connection; false when there is no unauthenticated client to evict.
    pub(super) fn make_room(&mut self, now: Millis) -> bool {
        self.review_changed();
        let Some(who @ Timer::Peer(key)) = self.connections.unauthenticated.oldest_connection() else { return false };
        self.evict(who, now);
        // Its place is needed at once: its last bytes are on their way, or they are not.
        self.close_peer(key, CloseReason::MadeWay, now);
        true
    }

    fn review_changed(&mut self) {
        let mut changed = std::mem::take(&mut self.connections.changed);
        for who in changed.drain(..) {
            self.review(who);
        }
        changed.shrink_to(KEPT_CHANGED);
        self.connections.changed = changed;
    }

    fn review(&mut self, who: Timer) {
        let holding = self.holding(who);
        let listed = match who {
            Timer::Peer(key) => self.connections.peers.get_mut(key).map(|peer| &mut peer.listed),
            Timer::Session(key) => self.sessions.table.get_mut(key).map(|session| &mut session.listed),
        };
        let Some(listed) = listed else { return };
        let was_listed = std::mem::replace(listed, holding.is_some());
        match holding {
            Some(holding) => self.connections.unauthenticated.set(who, holding),
            None if was_listed => self.connections.unauthenticated.remove(who),
            None => {}
        }
        if let (Timer::Session(key), None) = (who, holding) {
            self.connections.openings.remove(key);
        }
    }

    /// Returns what an unauthenticated client holds; None for every other client.
    fn holding(&self, who: Timer) -> Option<Holding> {
        match who {
            Timer::Session(key) => {
                let session = self.sessions.table.get(key)?;
                let Transport::Polling(polling) = &session.transport else { return None };
                let (stage, bytes) = (session.stage()?, session.held_bytes());
                Some(Holding { address: polling.client, kind: Kind::Session, stage, bytes })
            }
            Timer::Peer(key) => {
                let peer = self.connections.peers.get(key)?;
                if matches!(peer.seat, Seat::None | Seat::Operator) {
                    return None;
                }
                let stage_of =
                    |session: &Key| self.sessions.table.get(*session).map_or(Some(Stage::Idle), Session::stage);
                let (stage, more) = match &peer.protocol {
                    Protocol::Http(Http::Head) if peer.known => return None,
                    // Whose request comes next is not known: a proxy's connection carries many clients.
                    Protocol::Handshake | Protocol::Http(Http::Head) if peer.proxied => (Stage::Spare, 0),
                    Protocol::Handshake | Protocol::Http(Http::Head) => (Stage::Idle, 0),
                    Protocol::Http(Http::Body(post)) => (stage_of(&post.session())?, post.held_bytes()),
                    Protocol::Http(Http::Parked(parked)) => (stage_of(&parked.session)?, 0),
                    Protocol::Probing(session, decoder) => (stage_of(session)?, decoder.held_bytes()),
                    Protocol::WebSocket(session, decoder) => {
                        let of_session = self.sessions.table.get(*session).map_or(0, Session::held_bytes);
                        (stage_of(session)?, decoder.held_bytes() + of_session)
                    }
                    Protocol::Lingering { .. } => (Stage::Spare, 0),
                    Protocol::Closed | Protocol::Upstream { .. } => return None,
                };
                let bytes = peer.connection.held_bytes() + more;
                Some(Holding { address: peer.address, kind: Kind::Connection, stage, bytes })
            }
        }
    }

    fn evict(&mut self, who: Timer, now: Millis) {
        let reason = CloseReason::MadeWay;
        self.delist(who);
        let Timer::Peer(key) = who else {
            let Timer::Session(key) = who else { return };
            return self.close_session(key, reason, now);
        };
        match self.connections.peers.get(key).map(|peer| &peer.protocol) {
            Some(Protocol::WebSocket(session, _)) => self.close_session(*session, reason, now),
            Some(Protocol::Http(http)) => {
                match http {
                    Http::Head => {}
                    Http::Body(post) => self.forget_connection(key, post.session()),
                    Http::Parked(parked) => self.forget_connection(key, parked.session),
                }
                self.answer_and_close(key, 503, "Others need the place.\n", reason, now);
            }
            _ => self.close_peer(key, reason, now),
        }
    }

    /// A client is no unauthenticated one any more.
    pub(super) fn delist(&mut self, who: Timer) {
        let listed = match who {
            Timer::Peer(key) => self.connections.peers.get_mut(key).map(|peer| &mut peer.listed),
            Timer::Session(key) => self.sessions.table.get_mut(key).map(|session| &mut session.listed),
        };
        if listed.is_some_and(std::mem::take) {
            self.connections.unauthenticated.remove(who);
        }
    }

    /// Decides whether a connection may open one more session that polls; counts it if so. A trusted proxy carries many
    /// clients on one connection: there the address of each counts.
    pub(super) fn count_opening(&mut self, connection: Key) -> bool {
        if self.connections.peers.get(connection).is_some_and(|peer| peer.proxied) {
            return true;
        }
        self.connections.openings.may_open(connection)
    }
}

/// Room for fewer entries than this is kept from turn to turn.
const KEPT_CHANGED: usize = 1_024;
