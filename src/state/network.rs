//! The network of a client.

use std::net::{IpAddr, Ipv6Addr};

/// Returns what one customer of a provider has: an address of version 4, 64 bits of one of version 6.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) => Ipv6Addr::from_bits(six.to_bits() & !u128::from(u64::MAX)).into(),
        four @ IpAddr::V4(_) => four,
    }
}
