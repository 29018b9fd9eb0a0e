//! The end of the server: nobody is let in any more, and the clients are seen off one after the other.
//!
//! Until its turn comes a session goes on as ever; one that polls may go on doing so on the connections that it has,
//! for it could make no other here. Requests for anything else are still answered, and their connections end with that;
//! no session is opened any more.

use super::{Protocol, Seat, Server};
use crate::state::drain::Drain;
use crate::state::metrics::CloseReason;
use crate::state::session::Dialect;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::howler_v1;

impl Server {
    /// Starts to stop: accepts nobody, and sees every client off, in [`Self::see_off`].
    pub fn shut_down(&mut self, now: Millis) {
        if self.is_draining() {
            return;
        }
        let sessions = self.sessions.table.keys().collect::<Vec<_>>();
        let clients = sessions.len();
        self.drain = Some(Drain::begin(sessions, self.drain_within, now));
        self.connections.doors.close();
        self.connections.accept_pending = false;
        self.connections.accept_from = None;
        log::info!("Stopping: {clients} clients are told.");
    }

    /// Whether the server stops: it is not ready for anybody new.
    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// How many clients have a session.
    pub fn client_count(&self) -> usize {
        self.sessions.table.len()
    }

    /// The longest time that seeing the clients off takes, in milliseconds.
    pub fn drain_within(&self) -> Millis {
        self.drain_within
    }

    /// While stopping, sees those off whose turn it is. What they have to be told of changes is written before.
    pub fn see_off(&mut self, now: Millis) {
        let Some(drain) = &mut self.drain else { return };
        let leaving = drain.next(now);
        let (due, rest) = (leaving.sessions.to_vec(), leaving.others);
        for key in due {
            self.say_goodbye(key, now);
        }
        if rest {
            self.see_the_rest_off(now);
        }
    }

    fn say_goodbye(&mut self, key: Key, now: Millis) {
        let (Some(session), Some(drain)) = (self.sessions.table.get_mut(key), &self.drain) else { return };
        if session.dialect() == Dialect::Json {
            let retry_after = drain.retry_after(&mut self.context.jitter);
            session.outgoing.push(|out| howler_v1::write_goodbye(out, retry_after));
        }
        self.close_session(key, CloseReason::ShuttingDown, now);
    }

    /// No session is left: nor is a connection of any use.
    fn see_the_rest_off(&mut self, now: Millis) {
        for key in self.connections.peers.keys().collect::<Vec<_>>() {
            let Some(peer) = self.connections.peers.get(key) else { continue };
            // Operators may ask until the end.
            let is_client = peer.seat != Seat::Operator;
            if is_client && matches!(peer.protocol, Protocol::Handshake | Protocol::Http(_) | Protocol::Probing(..)) {
                self.count_close(key, CloseReason::ShuttingDown);
                self.linger(key, now);
            }
        }
    }

    /// Whether stopping is over: every client is gone, or had its time.
    pub fn is_drained(&self, now: Millis) -> bool {
        let clients = || self.connections.peers.keys().any(|key| self.is_client(key));
        self.drain.as_ref().is_some_and(|drain| drain.is_over(now) || drain.all_closed() && !clients())
    }
}
