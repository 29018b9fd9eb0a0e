//! Decides whether CouchDB accepts this server's `X-Forwarded-For`.
//!
//! CouchDB counts wrong passwords per name and peer. It takes the peer from the field only if the
//! request comes from a private IPv4 address or from exactly 127.0.0.1. Otherwise all clients are
//! one peer.

use std::net::{IpAddr, Ipv4Addr};

/// Setting of the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrustsForwarded {
    /// Decide by the addresses of the connections to CouchDB.
    #[default]
    Auto,
    /// CouchDB accepts the field.
    Yes,
    /// CouchDB ignores the field, or sees another address in it.
    No,
}

/// The decision, and the connections on which it is based.
#[derive(Debug)]
pub struct ForwardedForTrust {
    setting: TrustsForwarded,
    /// Per connection for logins: whether CouchDB accepts the field there; None if it is not
    /// established.
    logins: Vec<Option<bool>>,
    /// The decision; None before the first connection.
    believed: Option<bool>,
}

impl ForwardedForTrust {
    /// Creates an open decision for a number of connections for logins.
    pub fn new(setting: TrustsForwarded, logins: usize) -> Self {
        let believed = match setting {
            TrustsForwarded::Auto => None,
            TrustsForwarded::Yes => Some(true),
            TrustsForwarded::No => Some(false),
        };
        Self { setting, logins: vec![None; logins], believed }
    }

    /// Returns whether CouchDB counts wrong passwords per name alone, whatever the client's
    /// address.
    pub fn counts_by_name(&self) -> bool {
        self.believed != Some(true)
    }

    /// Handles an established connection with these ends; `login` is its number among those for
    /// logins. Returns true if it shows that CouchDB does not accept the field.
    pub fn handle_connected(&mut self, login: Option<usize>, local: IpAddr, remote: IpAddr) -> bool {
        if self.setting != TrustsForwarded::Auto {
            return false;
        }
        let is_believed = believes(local, remote);
        if let Some(place) = login.and_then(|number| self.logins.get_mut(number)) {
            *place = Some(is_believed);
        } else if self.believed.is_some() {
            // This connection carries no passwords of clients.
            return false;
        }
        let before = self.believed;
        self.believed = Some(is_believed && !self.logins.contains(&Some(false)));
        self.believed == Some(false) && before != Some(false)
    }

    /// Handles the end of a connection for logins.
    pub fn handle_closed(&mut self, login: usize) {
        if let Some(place) = self.logins.get_mut(login) {
            *place = None;
        }
    }
}

/// Returns whether CouchDB accepts the field on a connection with these ends.
fn believes(local: IpAddr, remote: IpAddr) -> bool {
    let (IpAddr::V4(local), IpAddr::V4(remote)) = (local, remote) else { return false };
    // Between a private and a public address there is address translation, and CouchDB sees a
    // public peer.
    is_private(local) && (is_private(remote) || remote.is_loopback()) || local == Ipv4Addr::LOCALHOST
}

fn is_private(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    // RFC 6598: 100.64/10 is shared by the customers of a provider.
    address.is_private() || (first == 100 && second & 0xc0 == 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().expect("an address")
    }

    #[test]
    fn couchdb_accepts_the_field_from_private_ipv4_addresses() {
        for (local, remote, believed) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.53", true),
            ("127.0.0.2", "127.0.0.1", false),
            ("10.1.2.3", "10.9.9.9", true),
            ("172.16.0.1", "172.31.255.255", true),
            ("172.32.0.1", "172.31.255.255", false),
            ("192.168.1.1", "192.168.1.2", true),
            ("100.64.0.1", "100.127.255.255", true),
            ("100.128.0.1", "10.0.0.1", false),
            ("10.0.0.1", "203.0.113.1", false),
            ("203.0.113.2", "203.0.113.1", false),
            ("169.254.0.1", "169.254.0.2", false),
            ("::1", "::1", false),
            ("fd00::1", "fd00::2", false),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1", false),
        ] {
            assert_eq!(believes(at(local), at(remote)), believed, "{local} to {remote}");
            let mut forwarding = ForwardedForTrust::new(TrustsForwarded::Auto, 1);
            assert!(forwarding.counts_by_name(), "the stricter limit applies until it is known");
            assert_eq!(forwarding.handle_connected(None, at(local), at(remote)), !believed);
            assert_eq!(forwarding.counts_by_name(), !believed);
        }
    }

    #[test]
    fn one_rejected_connection_decides_while_it_is_open() {
        let mut forwarding = ForwardedForTrust::new(TrustsForwarded::Auto, 2);
        let (four, six) = (at("127.0.0.1"), at("::1"));
        assert!(!forwarding.handle_connected(Some(0), four, four) && !forwarding.counts_by_name());
        assert!(!forwarding.handle_connected(None, six, six) && !forwarding.counts_by_name(), "it carries no logins");
        assert!(forwarding.handle_connected(Some(1), six, six) && forwarding.counts_by_name());
        assert!(!forwarding.handle_connected(Some(0), four, four) && forwarding.counts_by_name());
        forwarding.handle_closed(1);
        assert!(forwarding.counts_by_name());
        assert!(!forwarding.handle_connected(Some(1), four, four) && !forwarding.counts_by_name());
    }

    #[test]
    fn the_setting_overrides_the_connections() {
        for (setting, by_name) in [(TrustsForwarded::Yes, false), (TrustsForwarded::No, true)] {
            let mut forwarding = ForwardedForTrust::new(setting, 1);
            for address in [at("::1"), at("127.0.0.1")] {
                assert!(!forwarding.handle_connected(Some(0), address, address));
                assert_eq!(forwarding.counts_by_name(), by_name);
            }
        }
    }
}
