//! The shutdown: no client is accepted any more, and connected clients are closed one after the
//! other.
//!
//! Until its turn comes a session goes on. A polling session may continue on its open connections,
//! since it could open no other. Other requests are still answered, and their connections close
//! after that; no session is opened.

use super::Server;
use crate::state::drain::Drain;
use crate::state::metrics::CloseReason;
use crate::state::session::Dialect;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::howler_v1;

impl Server {
    /// Starts the shutdown, which [`Self::drain_clients`] continues.
    pub fn shut_down(&mut self, now: Millis) {
        if self.is_draining() {
            return;
        }
        let sessions = self.sessions.keys();
        let clients = sessions.len();
        self.drain = Some(Drain::begin(sessions, self.drain_within, now));
        self.connections.stop_accepting();
        log::info!("Stopping: {clients} sessions are closed.");
    }

    /// Returns whether the shutdown is in progress.
    pub fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Returns how many clients have a session.
    pub fn client_count(&self) -> usize {
        self.sessions.len()
    }

    /// Returns the longest time that a shutdown takes, in milliseconds.
    pub fn drain_within(&self) -> Millis {
        self.drain_within
    }

    /// During a shutdown, closes the sessions whose turn it is. Their notifications have been
    /// written before.
    pub fn drain_clients(&mut self, now: Millis) {
        let Some(drain) = &mut self.drain else { return };
        let leaving = drain.next(now);
        let (due, rest) = (leaving.sessions.to_vec(), leaving.others);
        for key in due {
            self.send_goodbye(key, now);
        }
        if rest {
            self.connections.close_idle(&mut self.context, now);
        }
    }

    fn send_goodbye(&mut self, key: Key, now: Millis) {
        let (Some(session), Some(drain)) = (self.sessions.get_mut(key), &self.drain) else { return };
        if session.dialect() == Dialect::Json {
            let retry_after = drain.retry_after(&mut self.context.jitter);
            session.outgoing.push(|out| howler_v1::write_goodbye(out, retry_after));
        }
        self.close_session(key, CloseReason::ShuttingDown, now);
    }

    /// Returns whether the shutdown is over: every client is gone, or the time is.
    pub fn is_drained(&self, now: Millis) -> bool {
        let is_empty = |drain: &Drain| drain.all_closed() && !self.connections.has_clients();
        self.drain.as_ref().is_some_and(|drain| drain.is_over(now) || is_empty(drain))
    }
}
