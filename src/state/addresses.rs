//! How many connections each address has.

use std::collections::HashMap;
use std::net::IpAddr;

use super::network::network;

/// The addresses that have connections, where there is a limit to count for.
#[derive(Debug)]
pub struct Addresses {
    limit: Option<usize>,
    counts: HashMap<IpAddr, usize>,
}

impl Addresses {
    /// Nobody yet, and how many connections an address may have.
    pub fn new(limit: Option<usize>) -> Self {
        Self { limit, counts: HashMap::new() }
    }

    /// Takes note of one more connection, if the address may have it.
    pub fn enter(&mut self, address: IpAddr) -> bool {
        let Some(limit) = self.limit else { return true };
        let count = self.counts.entry(network(address)).or_default();
        let allowed = *count < limit;
        *count += usize::from(allowed);
        allowed
    }

    /// One connection of an address is over.
    pub fn leave(&mut self, address: IpAddr) {
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
    fn an_address_has_so_many_connections_and_no_more() {
        let address = |text: &str| text.parse().expect("an address");
        let mut addresses = Addresses::new(Some(2));
        let one = address("10.0.0.1");
        assert!(addresses.enter(one) && addresses.enter(address("::ffff:10.0.0.1")));
        assert!(!addresses.enter(one) && addresses.enter(address("10.0.0.2")));
        addresses.leave(one);
        assert!(addresses.enter(one) && !addresses.enter(one));
        assert!(addresses.enter(address("2001:db8::1")) && addresses.enter(address("2001:db8::2")));
        assert!(!addresses.enter(address("2001:db8::3")), "a network is one client's");
        for who in [one, one, address("10.0.0.2"), address("2001:db8::9"), address("2001:db8::9")] {
            addresses.leave(who);
        }
        assert!(addresses.counts.is_empty());
        assert!(Addresses::new(None).enter(one));
    }
}
