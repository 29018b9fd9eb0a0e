//! Connections on the admin port.
//!
//! They are no clients: no limit of clients counts them, and they stay open until the shutdown is
//! over. There may be [`MAX_OPERATORS`] of them; a new one replaces the one whose last request is
//! the oldest.

use std::net::IpAddr;

use mio::net::TcpStream;

use super::Connections;
use super::peer::{Http, Protocol, Quota};
use crate::net::stream::Stream;
use crate::server::context::Context;
use crate::state::metrics::CloseReason;
use crate::state::table::Key;
use crate::state::timers::{Deadline, Millis};

/// Most connections on the admin port at once.
const MAX_OPERATORS: usize = 64;
/// Time for the head of an operator's request, in milliseconds.
const HEAD_WITHIN: Millis = 10_000;

impl Connections {
    /// Adds a connection on the admin port.
    pub(crate) fn add_operator(&mut self, socket: TcpStream, address: IpAddr, context: &mut Context, now: Millis) {
        let Self { operators, peers, .. } = self;
        operators.retain(|key| peers.get(*key).is_some());
        if operators.len() >= MAX_OPERATORS {
            let oldest = operators.remove(0);
            self.close(oldest, CloseReason::Served, context);
        }
        let protocol = Protocol::Http(Http::Head);
        let deadline = Deadline::at(now + HEAD_WITHIN);
        match self.add(Stream::plain(socket), protocol, address, deadline, context, now) {
            Ok(key) => {
                self.operators.push(key);
                if let Some(peer) = self.peers.get_mut(key) {
                    peer.quota = Quota::Operator;
                }
            }
            Err(error) => {
                let (level, more) = self.registration_log.level(log::Level::Warn, now);
                log::log!(level, "A connection on --admin_port could not be registered: {error}{more}");
            }
        }
    }

    pub(crate) fn has_admin_port(&self) -> bool {
        self.listeners.has_admin()
    }

    pub(crate) fn is_operator(&self, key: Key) -> bool {
        self.peers.get(key).is_some_and(|peer| peer.quota == Quota::Operator)
    }

    /// Takes note of a request of an operator.
    pub(crate) fn note_operator(&mut self, key: Key) {
        self.operators.retain(|one| *one != key);
        self.operators.push(key);
    }

    /// Counts the close of a connection, unless it is that of an operator.
    pub(crate) fn count_close(&self, key: Key, reason: CloseReason, context: &mut Context) {
        if !self.is_operator(key) {
            context.metrics.count_close(reason);
        }
    }
}
