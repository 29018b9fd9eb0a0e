//! Unauthenticated clients: their number, their memory, and the order in which they are evicted.
//!
//! ```text
//! arrival, login, end ─▶ set / remove ─▶ evict while there are …  from the network with most …
//!                                        too many clients         clients: the oldest one
//!                                        too many bytes           bytes: the oldest holder
//!                                        too few descriptors      connections: the oldest one
//! ```
//!
//! A network is an IPv4 address or an IPv6 /64. So a network that takes most loses its clients
//! first, and clients of other networks are not affected. Every operation takes logarithmic time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

use super::network::network;

/// Resources of an unauthenticated client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Address of the client.
    pub address: IpAddr,
    /// Resource that an eviction frees.
    pub kind: Kind,
    /// Progress of the client, which decides whether it counts against the limit.
    pub stage: Stage,
    /// Memory for the client, in bytes.
    pub bytes: usize,
}

/// Kind of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection with its descriptor.
    Connection,
    /// A polling session, whose requests come on any connection.
    Session,
}

/// Progress of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No login has begun, or the login has failed.
    Idle,
    /// CouchDB checks the login. The client is evicted only for its memory.
    LoggingIn,
    /// No client: a connection that is closing, or one of a proxy between two requests. It is
    /// evicted only for its connection or its memory.
    Spare,
}

/// Table of unauthenticated clients.
#[derive(Debug)]
pub struct Unauthenticated<T> {
    max_clients: usize,
    max_bytes: usize,
    clients: HashMap<T, Client>,
    networks: HashMap<IpAddr, Network<T>>,
    by_clients: BTreeSet<(usize, IpAddr)>,
    by_connections: BTreeSet<(usize, IpAddr)>,
    by_bytes: BTreeSet<(usize, IpAddr)>,
    /// Number of clients of [`Stage::Idle`].
    idle: usize,
    bytes: usize,
    /// Number of arrivals since the start, which numbers the clients.
    arrivals: u64,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    holding: Holding,
    /// Number of the arrival; older clients have lower ones.
    number: u64,
}

/// Clients of one network by number, so that the oldest comes first.
#[derive(Debug)]
struct Network<T> {
    idle: BTreeMap<u64, T>,
    connections: BTreeMap<u64, T>,
    holders: BTreeMap<u64, T>,
    bytes: usize,
}

impl<T> Default for Network<T> {
    fn default() -> Self {
        Self { idle: BTreeMap::new(), connections: BTreeMap::new(), holders: BTreeMap::new(), bytes: 0 }
    }
}

impl<T: Copy + Eq + Hash> Unauthenticated<T> {
    /// Creates an empty table with limits of clients and of bytes.
    pub fn new(max_clients: usize, max_bytes: usize) -> Self {
        Self {
            max_clients,
            max_bytes,
            clients: HashMap::new(),
            networks: HashMap::new(),
            by_clients: BTreeSet::new(),
            by_connections: BTreeSet::new(),
            by_bytes: BTreeSet::new(),
            idle: 0,
            bytes: 0,
            arrivals: 0,
        }
    }

    /// Returns the number of clients that count against the limit.
    pub fn len(&self) -> usize {
        self.idle
    }

    /// Returns whether no client counts against the limit.
    pub fn is_empty(&self) -> bool {
        self.idle == 0
    }

    /// Returns the memory of all clients, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds or updates a client. An update does not change its age.
    pub fn set(&mut self, id: T, holding: Holding) {
        let holding = Holding { address: network(holding.address), ..holding };
        let number = match self.clients.get(&id) {
            Some(client) if client.holding == holding => return,
            Some(client) => client.number,
            None => {
                self.arrivals += 1;
                self.arrivals
            }
        };
        self.take_out(id);
        let client = Client { holding, number };
        self.clients.insert(id, client);
        self.idle += usize::from(client.is_idle());
        self.bytes += holding.bytes;
        self.change(client, |network| {
            if client.is_idle() {
                network.idle.insert(number, id);
            }
            if client.is_connection() {
                network.connections.insert(number, id);
            }
            if holding.bytes > 0 {
                network.holders.insert(number, id);
            }
            network.bytes += holding.bytes;
        });
    }

    /// Removes a client that has logged in or ended.
    pub fn remove(&mut self, id: T) {
        self.take_out(id);
        if self.clients.capacity() > KEPT && self.clients.len() < self.clients.capacity() / 4 {
            self.clients.shrink_to(2 * self.clients.len());
            self.networks.shrink_to(2 * self.networks.len());
        }
    }

    /// Returns the client to evict while a limit is exceeded.
    pub fn surplus(&self) -> Option<T> {
        if self.bytes > self.max_bytes {
            return self.largest();
        }
        if self.idle > self.max_clients { self.oldest() } else { None }
    }

    /// Returns the client to evict because there are too many.
    pub fn oldest(&self) -> Option<T> {
        let (_, network) = self.by_clients.last()?;
        self.networks.get(network)?.idle.values().next().copied()
    }

    /// Returns the client to evict for memory: the oldest holder in the network that holds most.
    pub fn largest(&self) -> Option<T> {
        let (_, network) = self.by_bytes.last()?;
        self.networks.get(network)?.holders.values().next().copied()
    }

    /// Returns the client to evict for its connection.
    pub fn oldest_connection(&self) -> Option<T> {
        let (_, network) = self.by_connections.last()?;
        self.networks.get(network)?.connections.values().next().copied()
    }

    fn take_out(&mut self, id: T) {
        let Some(client) = self.clients.remove(&id) else { return };
        self.idle -= usize::from(client.is_idle());
        self.bytes -= client.holding.bytes;
        self.change(client, |network| {
            network.idle.remove(&client.number);
            network.connections.remove(&client.number);
            network.holders.remove(&client.number);
            network.bytes -= client.holding.bytes;
        });
    }

    /// Changes the network of a client, and its rank in each order.
    fn change(&mut self, client: Client, change: impl FnOnce(&mut Network<T>)) {
        let address = client.holding.address;
        let network = self.networks.entry(address).or_default();
        let before = network.sizes();
        change(network);
        let after = network.sizes();
        if after == [0; 3] {
            self.networks.remove(&address);
        }
        let orders = [&mut self.by_clients, &mut self.by_connections, &mut self.by_bytes];
        for ((order, before), after) in orders.into_iter().zip(before).zip(after) {
            if before == after {
                continue;
            }
            order.remove(&(before, address));
            if after > 0 {
                order.insert((after, address));
            }
        }
    }
}

impl<T> Network<T> {
    fn sizes(&self) -> [usize; 3] {
        [self.idle.len(), self.connections.len(), self.bytes]
    }
}

impl Client {
    fn is_idle(&self) -> bool {
        self.holding.stage == Stage::Idle
    }

    /// Returns whether the client may be evicted for its connection.
    fn is_connection(&self) -> bool {
        self.holding.kind == Kind::Connection && self.holding.stage != Stage::LoggingIn
    }
}

/// Capacity below which the tables are not shrunk.
const KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn holding(address: &str, bytes: usize) -> Holding {
        Holding { address: address.parse().unwrap(), kind: Kind::Connection, stage: Stage::Idle, bytes }
    }

    fn evicted(table: &mut Unauthenticated<u32>) -> Vec<u32> {
        std::iter::from_fn(|| {
            let id = table.surplus()?;
            table.remove(id);
            Some(id)
        })
        .collect()
    }

    #[test]
    fn the_network_with_most_clients_is_evicted_first() {
        let mut table = Unauthenticated::new(4, 1_000);
        table.set(0, holding("10.0.0.1", 0));
        for id in 1..8 {
            table.set(id, holding(&format!("2001:db8::{id}"), 0));
        }
        table.set(8, holding("::ffff:10.0.0.1", 0));
        assert_eq!(evicted(&mut table), [1, 2, 3, 4, 5]);
        assert_eq!((table.len(), table.bytes()), (4, 0));
        table.set(6, Holding { stage: Stage::LoggingIn, ..holding("2001:db8::6", 0) });
        assert_eq!((table.len(), table.surplus()), (3, None));
        for id in [0, 6, 7, 8] {
            table.remove(id);
            table.remove(id);
        }
        assert!(table.networks.is_empty() && table.by_clients.is_empty() && table.by_connections.is_empty());
    }

    #[test]
    fn the_oldest_holder_of_the_largest_network_is_evicted_first() {
        let mut table = Unauthenticated::new(100, 1_000);
        table.set(0, holding("10.0.0.1", 0));
        table.set(1, holding("10.0.0.2", 300));
        for id in 2..6 {
            table.set(id, Holding { stage: Stage::LoggingIn, ..holding("10.0.0.1", 100) });
        }
        assert_eq!((table.bytes(), table.surplus()), (700, None));
        table.set(4, holding("10.0.0.1", 500));
        assert_eq!(evicted(&mut table), [2], "client 0 holds nothing");
        table.set(3, holding("10.0.0.1", 0));
        assert_eq!((table.bytes(), table.largest()), (900, Some(4)));
    }

    #[test]
    fn closing_connections_can_be_evicted() {
        let mut table = Unauthenticated::new(100, 1_000);
        table.set(0, Holding { kind: Kind::Session, ..holding("10.0.0.1", 0) });
        table.set(1, Holding { stage: Stage::LoggingIn, ..holding("10.0.0.1", 0) });
        assert_eq!(table.oldest_connection(), None);
        table.set(2, Holding { stage: Stage::Spare, ..holding("10.0.0.1", 0) });
        table.set(3, holding("10.0.0.1", 0));
        assert_eq!((table.len(), table.oldest_connection()), (2, Some(2)));
    }

    #[test]
    fn clients_that_logged_in_take_no_memory() {
        let mut table = Unauthenticated::new(100_000, 1_000);
        for id in 0..15_000 {
            table.set(id, holding(&format!("10.0.{}.{}", id / 250, id % 250), 0));
        }
        for id in 0..15_000 {
            table.remove(id);
        }
        assert!(table.clients.capacity() <= 4 * KEPT && table.networks.capacity() <= 4 * KEPT);
        assert_eq!((table.len(), table.surplus()), (0, None));
    }
}
