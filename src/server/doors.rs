//! The ports that clients come in by: TLS or none, and those who speak TLS to the wrong port or none to the
//! right one.
//!
//! ```text
//! admin port ──────────────────────────▶ Http      operation.rs
//! plain port ──────────────────────────▶ Http      a TLS hello among it: 400, as text
//! TLS port ───▶ Handshake ──done───────▶ Http
//!                   ├─────no TLS───────▶ 400, as text
//!                   └─────fails────────▶ an alert, then the end
//! ```
//!
//! A TLS hello on the plain port is answered as any other nonsense, by a 400 in plain text and not by an alert of TLS:
//! an alert has a client say that versions or ciphers do not fit, which sends people looking in the wrong place. Plain
//! text is what they know, and what clients tell as such: "wrong version number" (OpenSSL, and so curl, Node.js,
//! Python), "record too long" (Firefox), "server gave HTTP response to HTTPS client" (Go).

use std::io;

use mio::{Registry, Token};

use super::{Http, Protocol, Server};
use crate::net::listener::{Accepted, Listener};
use crate::net::stream::Handshake;
use crate::net::tls::Identity;
use crate::state::log_throttle::{LogThrottle, TEN_MINUTES};
use crate::state::metrics::CloseReason;
use crate::state::table::Key;
use crate::state::timers::Millis;

const NO_TLS_HERE: &str = "This port speaks plain HTTP and WebSockets, not TLS: use http:// and ws://";
const TLS_HERE: &str = "This port speaks HTTPS and WebSockets over TLS, not plain HTTP: use https:// and wss://.\n";

/// The ports.
#[derive(Debug)]
pub struct Doors {
    plain: Option<Listener>,
    tls: Option<Listener>,
    /// For operators.
    admin: Option<Listener>,
    identity: Option<Identity>,
    /// Throttles the line about clients that speak TLS to the plain port.
    tls_log: LogThrottle,
    /// Throttles the line about clients that speak plain HTTP to the port of TLS.
    plain_log: LogThrottle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Plain,
    Tls,
    Admin,
}

impl Doors {
    /// A port of plain HTTP, one of TLS with what we show there, or both.
    pub fn new(plain: Option<Listener>, tls: Option<(Listener, Identity)>) -> Self {
        let (tls, identity) = tls.unzip();
        let (tls_log, plain_log) = (LogThrottle::new(TEN_MINUTES), LogThrottle::new(TEN_MINUTES));
        Self { plain, tls, admin: None, identity, tls_log, plain_log }
    }

    /// The same with a port for operators alone.
    #[must_use]
    pub fn with_admin(mut self, admin: Option<Listener>) -> Self {
        self.admin = admin;
        self
    }

    pub(super) fn has_admin(&self) -> bool {
        self.admin.is_some()
    }

    pub(super) fn register(&mut self, registry: &Registry, plain: Token, tls: Token, admin: Token) -> io::Result<()> {
        self.admin.as_mut().map_or(Ok(()), |listener| listener.register(registry, admin))?;
        self.plain.as_mut().map_or(Ok(()), |listener| listener.register(registry, plain))?;
        self.tls.as_mut().map_or(Ok(()), |listener| listener.register(registry, tls))
    }

    /// Lets no client in any more.
    pub(super) fn close(&mut self) {
        self.plain = None;
        self.tls = None;
    }

    pub(super) fn accept(&self, door: Door) -> Accepted {
        let listener = match door {
            Door::Plain => &self.plain,
            Door::Tls => &self.tls,
            Door::Admin => &self.admin,
        };
        listener.as_ref().map_or(Accepted::Nobody, Listener::accept)
    }

    /// What is shown to clients at the port of TLS.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    fn tls_port(&self) -> Option<u16> {
        self.tls.as_ref().and_then(|listener| listener.address().ok()).map(|address| address.port())
    }
}

impl Server {
    /// Goes on with the handshake of a client; whether it is over, so that requests can be read.
    pub(super) fn shake_hands(&mut self, key: Key, now: Millis) -> bool {
        let Some(peer) = self.connections.peers.get_mut(key) else { return false };
        let address = peer.address;
        match peer.connection.handshake() {
            Ok(Handshake::Done) => {
                peer.protocol = Protocol::Http(Http::Head);
                self.update_interest(key, now);
                true
            }
            Ok(Handshake::Waiting) => {
                self.update_interest(key, now);
                false
            }
            Ok(Handshake::NotTls) => {
                let (level, more) = self.connections.doors.plain_log.level(log::Level::Warn, now);
                log::log!(
                    level,
                    "A client at {address} speaks plain HTTP to the port of TLS: it has to use https:// or \
                     wss://{more}."
                );
                self.answer_and_close(key, 400, TLS_HERE, CloseReason::BadRequest, now);
                false
            }
            Err(error) => {
                log::debug!("No TLS with {address}: {error}.");
                self.context.metrics.count_close(CloseReason::HandshakeFailed);
                // The alert is to arrive.
                self.linger(key, now);
                false
            }
        }
    }

    /// What came to the plain port begins as TLS does.
    pub(super) fn refuse_tls(&mut self, key: Key, now: Millis) {
        let Some(peer) = self.connections.peers.get(key) else { return };
        let address = peer.address;
        let ((level, more), port) =
            (self.connections.doors.tls_log.level(log::Level::Warn, now), self.connections.doors.tls_port());
        let elsewhere = port.map_or(String::new(), |port| format!("; TLS is spoken on port {port}"));
        log::log!(
            level,
            "A client at {address} speaks TLS to the port of plain HTTP: it has to use http:// or \
             ws://{elsewhere}{more}."
        );
        self.answer_and_close(key, 400, &format!("{NO_TLS_HERE}{elsewhere}.\n"), CloseReason::BadRequest, now);
    }

    /// Reads the certificate and the file with CouchDB's URL again, as an operator asks by a
    /// signal. Connected clients keep what they have.
    pub fn reload(&mut self, now: Millis) {
        let reads_url = self.reload_credentials(now);
        let Some(identity) = &mut self.connections.doors.identity else {
            if !reads_url {
                log::info!("SIGHUP: there is no certificate to be read again (--tls_cert).");
            }
            return;
        };
        let reloaded = identity.reload();
        let certificate = identity.certificate().display();
        match reloaded {
            Ok(()) => log::info!("SIGHUP: new connections are shown the certificate in {certificate}."),
            Err(error) => log::error!("SIGHUP: the certificate stays the old one. {error}."),
        }
    }
}
