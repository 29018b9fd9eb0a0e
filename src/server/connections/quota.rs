//! Counting clients: in total, and by address. Behind a trusted proxy the address is that of
//! `X-Forwarded-For`.

use std::net::{IpAddr, SocketAddr};

use super::Connections;
use super::peer::Quota;
use crate::server::context::Context;
use crate::server::ids::Handle;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::http::{self, Request};

impl Connections {
    /// Takes a place for a client at an address. Returns None when the address has too many. The
    /// address of a trusted proxy is not counted.
    pub(crate) fn take_quota(&mut self, address: IpAddr, context: &Context) -> Option<Quota> {
        match context.limits.per_address {
            Some(_) if !self.trusted_proxies.contains(address) => {
                self.addresses.try_add(address).then_some(Quota::Address)
            }
            _ => Some(Quota::Total),
        }
    }

    /// Returns the place of a client at an address.
    pub(crate) fn return_quota(&mut self, quota: Quota, address: IpAddr) {
        if quota == Quota::Address {
            self.addresses.remove(address);
        }
    }

    /// Returns the place of a connection that is closed.
    pub(super) fn release_quota(&mut self, key: Key) {
        let Some(peer) = self.peers.get_mut(key) else { return };
        let (quota, address) = (std::mem::replace(&mut peer.quota, Quota::None), peer.address);
        self.clients -= usize::from(!matches!(quota, Quota::None | Quota::Operator));
        self.return_quota(quota, address);
    }

    /// Determines the client of a request, where trusted proxies forward it. Returns false when the
    /// address of that client has too many connections.
    pub(crate) fn assign_client(
        &mut self,
        key: Key,
        request: &Request<'_>,
        context: &mut Context,
        now: Millis,
    ) -> bool {
        if self.trusted_proxies.is_empty() && request.forwarded_for.is_none() {
            return true;
        }
        let Some(peer) = self.peers.get_mut(key) else { return true };
        let Ok(socket) = peer.connection.stream().socket().peer_addr() else { return true };
        if !self.trusted_proxies.contains(socket.ip()) && request.forwarded_for.is_some() {
            self.log_untrusted_proxy(socket.ip(), now);
        }
        let Some(peer) = self.peers.get_mut(key) else { return true };
        // Determined for each request: one connection of a proxy carries those of many clients.
        let address = self.trusted_proxies.client(socket.ip(), request.forwarded_for);
        let (before, quota) = (peer.address, peer.quota);
        if quota == Quota::Operator {
            return true;
        }
        peer.address = address;
        if before == address && quota != Quota::Total {
            return true;
        }
        self.changed.push(Handle::Connection(key));
        self.return_quota(quota, before);
        let next = self.take_quota(address, context);
        if let Some(peer) = self.peers.get_mut(key) {
            peer.quota = next.unwrap_or(Quota::Total);
        }
        next.is_some()
    }

    fn log_untrusted_proxy(&mut self, address: IpAddr, now: Millis) {
        if let Some(more) = self.untrusted_proxy_log.pass(now) {
            let address = address.to_canonical();
            log::warn!(
                "A request from {address} carries X-Forwarded-For, and {address} is not in --trusted_proxies: \
                 all clients behind that address count as one{more}."
            );
        }
    }

    /// Returns whether the client of a request speaks TLS, to this server or to a trusted proxy.
    pub(crate) fn is_secure(&mut self, key: Key, request: &Request<'_>) -> bool {
        let Some(peer) = self.peers.get_mut(key) else { return false };
        let stream = peer.connection.stream();
        if stream.is_tls() {
            return true;
        }
        // The first in a list is the scheme between the client and the outermost proxy.
        let scheme = request.forwarded_proto.and_then(|value| http::list(value).next());
        let trusted = |socket: SocketAddr| self.trusted_proxies.contains(socket.ip());
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
            && stream.socket().peer_addr().is_ok_and(trusted)
    }
}
