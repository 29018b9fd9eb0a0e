//! The listening ports: plain HTTP, TLS, and the one for operators.
//!
//! ```text
//! admin port ──────────────────────────▶ Http      operators.rs
//! plain port ──────────────────────────▶ Http      a TLS hello: 400, in plain text
//! TLS port ───▶ Handshake ──done───────▶ Http
//!                   ├─────no TLS───────▶ 400, in plain text
//!                   └─────fails────────▶ a TLS alert, then closed
//! ```
//!
//! The plain port answers a TLS hello with a 400 in plain text rather than a TLS alert. Clients
//! report an alert as a mismatch of versions or ciphers, which misleads. They recognize plain text
//! and say so: "wrong version number" (OpenSSL, and with it curl, Node.js and Python), "record too
//! long" (Firefox), "server gave HTTP response to HTTPS client" (Go).

use std::io;

use mio::{Registry, Token};

use crate::net::listener::{Accepted, Listener};
use crate::net::tls::Identity;
use crate::state::log_throttle::{LogThrottle, TEN_MINUTES};

/// The listening sockets, and the certificate for the TLS port.
#[derive(Debug)]
pub struct Listeners {
    plain: Option<Listener>,
    tls: Option<Listener>,
    /// The port for operators.
    admin: Option<Listener>,
    identity: Option<Identity>,
    /// Throttles the line about clients that speak TLS to the plain port.
    pub(super) tls_log: LogThrottle,
    /// Throttles the line about clients that speak plain HTTP to the TLS port.
    pub(super) plain_log: LogThrottle,
}

/// One of the listening ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Plain,
    Tls,
    Admin,
}

impl Listeners {
    /// Takes a plain HTTP listener, a TLS listener with its certificate, or both.
    pub fn new(plain: Option<Listener>, tls: Option<(Listener, Identity)>) -> Self {
        let (tls, identity) = tls.unzip();
        let (tls_log, plain_log) = (LogThrottle::new(TEN_MINUTES), LogThrottle::new(TEN_MINUTES));
        Self { plain, tls, admin: None, identity, tls_log, plain_log }
    }

    /// Adds a listener for operators only.
    #[must_use]
    pub fn with_admin(mut self, admin: Option<Listener>) -> Self {
        self.admin = admin;
        self
    }

    pub(super) fn has_admin(&self) -> bool {
        self.admin.is_some()
    }

    /// Registers the listeners with the poll.
    ///
    /// # Errors
    /// When the poll rejects a socket.
    pub(crate) fn register(&mut self, registry: &Registry, plain: Token, tls: Token, admin: Token) -> io::Result<()> {
        self.admin.as_mut().map_or(Ok(()), |listener| listener.register(registry, admin))?;
        self.plain.as_mut().map_or(Ok(()), |listener| listener.register(registry, plain))?;
        self.tls.as_mut().map_or(Ok(()), |listener| listener.register(registry, tls))
    }

    /// Closes the ports for clients.
    pub(super) fn close(&mut self) {
        self.plain = None;
        self.tls = None;
    }

    pub(super) fn accept(&self, port: Port) -> Accepted {
        let listener = match port {
            Port::Plain => &self.plain,
            Port::Tls => &self.tls,
            Port::Admin => &self.admin,
        };
        listener.as_ref().map_or(Accepted::Nobody, Listener::accept)
    }

    /// Returns the certificate for the TLS port.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Reads the certificate from its files again. Returns false when there is none.
    pub(super) fn reload(&mut self) -> bool {
        let Some(identity) = &mut self.identity else { return false };
        let reloaded = identity.reload();
        let certificate = identity.certificate().display();
        match reloaded {
            Ok(()) => log::info!("SIGHUP: new connections are shown the certificate in {certificate}."),
            Err(error) => log::error!("SIGHUP: the old certificate stays in use. {error}."),
        }
        true
    }

    pub(super) fn tls_port(&self) -> Option<u16> {
        self.tls.as_ref().and_then(|listener| listener.address().ok()).map(|address| address.port())
    }
}
