//! Connects to a host: one DNS lookup for all waiting owners, then one address after the other.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// Request of the dialer; `O` identifies its user.
#[derive(Debug, PartialEq, Eq)]
pub enum DialAction<O> {
    /// Look up the host. The result goes to [`Dialer::handle_resolved`].
    Resolve,
    /// Open a connection to this address.
    Connect(O, SocketAddr),
    /// All addresses have failed.
    Failed(O, String),
}

/// Dialer of one host.
#[derive(Debug)]
pub struct Dialer<O> {
    /// Address of a host given as an IP address, which needs no lookup.
    address: Option<SocketAddr>,
    resolving: bool,
    /// Owners that wait for the lookup.
    waiting: Vec<O>,
    attempts: Vec<Attempt<O>>,
    /// Addresses of the host whose last attempt failed; they are tried last.
    failed: Vec<SocketAddr>,
    /// Address whose last connection ended without a byte; it is tried last too.
    silent: Option<IpAddr>,
}

/// An owner whose addresses are being tried.
#[derive(Debug)]
struct Attempt<O> {
    owner: O,
    /// Address of the current attempt.
    current: Option<SocketAddr>,
    /// Addresses that are left.
    left: VecDeque<SocketAddr>,
    /// Error of each failed address.
    errors: Vec<String>,
}

impl<O: Copy + PartialEq> Dialer<O> {
    /// Creates a dialer for a DNS name or an IP address.
    pub fn new(host: &str, port: u16) -> Self {
        let address = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
        Self { address, resolving: false, waiting: Vec::new(), attempts: Vec::new(), failed: Vec::new(), silent: None }
    }

    /// Dials for `owner`, in place of its earlier request.
    pub fn dial(&mut self, owner: O, actions: &mut Vec<DialAction<O>>) {
        self.cancel(owner);
        if let Some(address) = self.address {
            return self.start(owner, [address].into(), actions);
        }
        self.waiting.push(owner);
        if !std::mem::replace(&mut self.resolving, true) {
            actions.push(DialAction::Resolve);
        }
    }

    /// Cancels the request of `owner`.
    pub fn cancel(&mut self, owner: O) {
        self.waiting.retain(|waiting| *waiting != owner);
        self.attempts.retain(|one| one.owner != owner);
    }

    /// Handles the result of [`DialAction::Resolve`].
    pub fn handle_resolved(&mut self, answer: &Result<Vec<SocketAddr>, String>, actions: &mut Vec<DialAction<O>>) {
        self.resolving = false;
        let mut addresses = answer.clone();
        if let Ok(addresses) = &mut addresses {
            self.failed.retain(|failed| addresses.contains(failed));
            addresses.sort_by_key(|address| (self.failed.contains(address), self.silent == Some(address.ip())));
        }
        for owner in std::mem::take(&mut self.waiting) {
            match &addresses {
                Ok(addresses) => self.start(owner, addresses.iter().copied().collect(), actions),
                Err(error) => actions.push(DialAction::Failed(owner, error.clone())),
            }
        }
    }

    fn start(&mut self, owner: O, left: VecDeque<SocketAddr>, actions: &mut Vec<DialAction<O>>) {
        self.attempts.push(Attempt { owner, current: None, left, errors: Vec::new() });
        self.advance(owner, actions);
    }

    /// Handles the established connection of `owner`.
    pub fn handle_connected(&mut self, owner: O) {
        let current = self.attempts.iter().find(|one| one.owner == owner).and_then(|one| one.current);
        self.failed.retain(|failed| Some(*failed) != current);
        self.cancel(owner);
    }

    /// Handles a failed address of `owner`: tries the next one.
    pub fn handle_failed(&mut self, owner: O, error: &str, actions: &mut Vec<DialAction<O>>) {
        let Some(one) = self.attempts.iter_mut().find(|one| one.owner == owner) else { return };
        one.errors.push(error.to_owned());
        if let Some(address) = one.current
            && !self.failed.contains(&address)
        {
            self.failed.push(address);
        }
        self.advance(owner, actions);
    }

    /// Handles an established connection to this address that ended without a byte.
    pub fn handle_silent_close(&mut self, address: IpAddr) {
        self.silent = Some(address);
    }

    fn advance(&mut self, owner: O, actions: &mut Vec<DialAction<O>>) {
        let Some(one) = self.attempts.iter_mut().find(|one| one.owner == owner) else { return };
        one.current = one.left.pop_front();
        if let Some(address) = one.current {
            return actions.push(DialAction::Connect(owner, address));
        }
        // The text must not depend on the order of the addresses, so that the log recognizes the
        // same problem.
        let mut errors = std::mem::take(&mut one.errors);
        errors.sort();
        self.cancel(owner);
        let error = if errors.is_empty() { "the host has no address".to_owned() } else { errors.join("; ") };
        actions.push(DialAction::Failed(owner, error));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses<const N: usize>(texts: [&str; N]) -> [SocketAddr; N] {
        texts.map(|text| text.parse().unwrap())
    }

    #[test]
    fn looks_up_once_and_tries_every_address() {
        let (mut dialer, mut actions) = (Dialer::new("db.example", 5984), Vec::new());
        dialer.dial('a', &mut actions);
        dialer.dial('b', &mut actions);
        dialer.dial('c', &mut actions);
        dialer.cancel('c');
        assert_eq!(actions, [DialAction::Resolve]);
        actions.clear();
        let [six, four] = addresses(["[::1]:5984", "127.0.0.1:5984"]);
        dialer.handle_resolved(&Ok(vec![six, four]), &mut actions);
        assert_eq!(actions, [DialAction::Connect('a', six), DialAction::Connect('b', six)]);
        actions.clear();
        dialer.handle_failed('a', "refused", &mut actions);
        dialer.handle_failed('a', "no TLS", &mut actions);
        dialer.handle_failed('a', "late", &mut actions);
        assert_eq!(actions, [DialAction::Connect('a', four), DialAction::Failed('a', "no TLS; refused".into())]);
        actions.clear();
        dialer.dial('a', &mut actions);
        dialer.handle_resolved(&Err("no such name".into()), &mut actions);
        assert_eq!(actions, [DialAction::Resolve, DialAction::Failed('a', "no such name".into())]);
        actions.clear();
        dialer.dial('a', &mut actions);
        dialer.handle_resolved(&Ok(Vec::new()), &mut actions);
        assert_eq!(actions[1], DialAction::Failed('a', "the host has no address".into()));
    }

    #[test]
    fn an_address_that_closes_silently_is_tried_last() {
        let (mut dialer, mut actions) = (Dialer::new("db.example", 80), Vec::new());
        let [one, two] = addresses(["10.0.0.1:80", "10.0.0.2:80"]);
        for (silent, expected) in [(one, two), (two, one)] {
            dialer.handle_silent_close(silent.ip());
            dialer.dial('a', &mut actions);
            dialer.handle_resolved(&Ok(vec![one, two]), &mut actions);
            assert_eq!(actions.pop(), Some(DialAction::Connect('a', expected)));
        }
    }

    #[test]
    fn an_address_needs_no_lookup() {
        let (mut dialer, mut actions) = (Dialer::new("::1", 80), Vec::new());
        dialer.dial('a', &mut actions);
        dialer.handle_failed('a', "refused", &mut actions);
        let [address] = addresses(["[::1]:80"]);
        assert_eq!(actions, [DialAction::Connect('a', address), DialAction::Failed('a', "refused".into())]);
    }

    #[test]
    fn a_failed_address_is_tried_last_until_it_works_or_is_gone() {
        let (mut dialer, mut actions) = (Dialer::new("db.example", 80), Vec::new());
        let [one, two, three] = addresses(["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]);
        let mut dial = |dialer: &mut Dialer<char>, found: &[SocketAddr]| {
            actions.clear();
            dialer.dial('a', &mut actions);
            dialer.handle_resolved(&Ok(found.to_vec()), &mut actions);
            match actions.last() {
                Some(DialAction::Connect('a', address)) => *address,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(dial(&mut dialer, &[one, two, three]), one);
        let mut next = Vec::new();
        dialer.handle_failed('a', "refused", &mut next);
        assert_eq!(next, [DialAction::Connect('a', two)]);
        dialer.handle_connected('a');
        assert_eq!(dial(&mut dialer, &[one, two, three]), two, "a working address is tried first");
        assert_eq!(dial(&mut dialer, &[one]), one, "the only one there is");
        dialer.handle_connected('a');
        assert_eq!(dial(&mut dialer, &[one, two]), one, "it works again");
        dialer.handle_failed('a', "refused", &mut next);
        assert_eq!(dial(&mut dialer, &[three, two]), three);
        assert_eq!(dial(&mut dialer, &[one, two]), one, "an address that had gone is new");
    }
}
