//! Accepting clients at all ports, and evicting others for them.

use std::net::IpAddr;

use mio::net::TcpStream;

use super::Server;
use super::connections::Port;
use crate::state::metrics::CloseReason;
use crate::state::timers::Millis;

impl Server {
    /// Accepts clients at all ports, some in each turn.
    pub(super) fn accept(&mut self, now: Millis) {
        self.connections.set_accept_pending(false);
        for port in [Port::Admin, Port::Plain, Port::Tls] {
            self.accept_at(port, now);
        }
    }

    fn accept_at(&mut self, port: Port, now: Millis) {
        for _ in 0..self.connections.accept_batch(&self.context) {
            let Some((socket, address)) = self.connections.accept_next(port, &mut self.context, now) else { return };
            if port == Port::Admin {
                self.connections.add_operator(socket, address, &mut self.context, now);
            } else {
                self.accept_client(socket, port, address, now);
            }
        }
        self.connections.set_accept_pending(true);
    }

    fn accept_client(&mut self, socket: TcpStream, port: Port, address: IpAddr, now: Millis) {
        self.context.metrics.accepted += 1;
        let rejection = if self.connections.memory_rejection(&mut self.context).is_some() {
            Some(CloseReason::OutOfMemory)
        } else if self.connections.is_full(&self.context) && !self.evict_for_connection(now) {
            Some(CloseReason::TooManyConnections)
        } else {
            None
        };
        match rejection {
            Some(reason) => self.connections.reject(socket, port, address, reason, &mut self.context, now),
            None => self.connections.add_client(socket, port, address, &mut self.context, now),
        }
    }

    /// Reads the certificate and the file with CouchDB's URL again, as an operator asks by a
    /// signal. Open connections keep what they have.
    pub fn reload(&mut self, now: Millis) {
        let reads_url = self.upstream.reload_credentials(now);
        if !self.connections.reload_certificate() && !reads_url {
            log::info!("SIGHUP: there is no certificate to be read again (--tls_cert).");
        }
    }
}
