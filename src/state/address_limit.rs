//! Number of connections per address.

use std::collections::HashMap;
use std::net::IpAddr;

use super::network::network;

/// Addresses with connections. Empty without a limit.
#[derive(Debug)]
pub struct AddressLimit {
    limit: Option<usize>,
    counts: HashMap<IpAddr, usize>,
}

impl AddressLimit {
    /// Creates an empty table with the limit of one address; None for no limit.
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, counts: HashMap::new() }
    }

    /// Counts one more connection of an address. Returns false if the address is at its limit.
    pub fn try_add(&mut self, address: IpAddr) -> bool {
        let Some(limit) = self.limit else { return true };
        let count = self.counts.entry(network(address)).or_default();
        let allowed = *count < limit;
        *count += usize::from(allowed);
        allowed
    }

    /// Removes one connection of an address.
    pub fn remove(&mut self, address: IpAddr) {
        let address = network(address);
        if let Some(count) = self.counts.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_an_address_are_limited() {
        let address = |text: &str| text.parse().expect("an address");
        let mut addresses = AddressLimit::new(Some(2));
        let one = address("10.0.0.1");
        assert!(addresses.try_add(one) && addresses.try_add(address("::ffff:10.0.0.1")));
        assert!(!addresses.try_add(one) && addresses.try_add(address("10.0.0.2")));
        addresses.remove(one);
        assert!(addresses.try_add(one) && !addresses.try_add(one));
        assert!(addresses.try_add(address("2001:db8::1")) && addresses.try_add(address("2001:db8::2")));
        assert!(!addresses.try_add(address("2001:db8::3")), "a /64 network counts as one address");
        for address in [one, one, address("10.0.0.2"), address("2001:db8::9"), address("2001:db8::9")] {
            addresses.remove(address);
        }
        assert!(addresses.counts.is_empty());
        assert!(AddressLimit::new(None).try_add(one));
    }
}
