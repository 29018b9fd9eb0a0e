//! Proxies whose `X-Forwarded-For` the server accepts. Any client can send the field, so only
//! listed ones count.

use std::net::IpAddr;

/// A network: one of its addresses, and the length of the prefix that all of them share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

/// Networks of trusted proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<Network>);

impl TrustedProxies {
    /// Parses a list of addresses and networks, such as `10.0.0.0/8, ::1`.
    ///
    /// # Errors
    /// The item that is neither.
    pub fn parse(list: &str) -> Result<Self, &str> {
        let items = list.split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(|item| Network::parse(item).ok_or(item)).collect::<Result<_, _>>().map(Self)
    }

    /// Returns whether no proxy is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the address of a client: the last address in the field that is no trusted proxy.
    /// `peer` is the address of the connection.
    pub fn client(&self, peer: IpAddr, forwarded_for: Option<&str>) -> IpAddr {
        let mut client = peer.to_canonical();
        let mut hops = forwarded_for.unwrap_or_default().rsplit(',');
        while self.contains(client) {
            match hops.next().and_then(address_of) {
                Some(hop) => client = hop,
                // The item is malformed, so it was not written by a trusted proxy.
                None => break,
            }
        }
        client
    }

    /// Returns whether an address belongs to a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

/// Parses an item of `X-Forwarded-For`; some proxies append a port.
fn address_of(item: &str) -> Option<IpAddr> {
    let item = item.trim();
    let bare = item.parse().or_else(|_| item.parse().map(|socket: std::net::SocketAddr| socket.ip()));
    bare.ok().map(|address: IpAddr| address.to_canonical())
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most && !text.ends_with('+'))?,
            None => most,
        };
        Some(Self { address, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let differing = match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        differing >= self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(list: &str, peer: &str, forwarded: &str) -> String {
        let proxies = TrustedProxies::parse(list).expect("a list");
        proxies.client(peer.parse().expect("an address"), Some(forwarded)).to_string()
    }

    #[test]
    fn only_the_field_of_trusted_proxies_counts() {
        for (list, peer, forwarded, expected) in [
            ("", "10.0.0.1", "1.2.3.4", "10.0.0.1"),
            ("10.0.0.0/8", "10.0.0.1", "1.2.3.4", "1.2.3.4"),
            ("10.0.0.0/8", "11.0.0.1", "1.2.3.4", "11.0.0.1"),
            ("10.0.0.0/8", "10.0.0.1", "6.6.6.6, 1.2.3.4, 10.9.9.9", "1.2.3.4"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "1.2.3.4:5678", "1.2.3.4"),
            ("10.0.0.1", "10.0.0.2", "1.2.3.4", "10.0.0.2"),
            ("10.0.0.1", "10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.1", "unknown", "10.0.0.1"),
            ("fd00::/8, ::1", "::1", "2001:db8::1, fd00::7", "2001:db8::1"),
            ("::1", "::1", "[2001:db8::1]:443", "2001:db8::1"),
            ("0.0.0.0/0", "10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ] {
            assert_eq!(client(list, peer, forwarded), expected, "{list} {peer} {forwarded}");
        }
    }

    #[test]
    fn an_error_contains_the_malformed_item() {
        for bad in ["10.0.0.0/33", "x", "10.0.0/8", "::1/129", "10.0.0.1/", "10.0.0.1/-1"] {
            assert_eq!(TrustedProxies::parse(&format!("127.0.0.1, {bad}")), Err(bad));
        }
        assert!(TrustedProxies::parse(" , ").expect("a list").is_empty());
    }
}
