//! From a host's name to a connection: one look-up for all who wait, then address after address.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

/// What the dialer wants done; `O` is who asked.
#[derive(Debug, PartialEq, Eq)]
pub enum DialAction<O> {
    /// Look the host's name up; the answer goes to [`Dialer::handle_resolved`].
    Resolve,
    /// Open a connection to this address.
    Connect(O, SocketAddr),
    /// No address is left to try.
    Failed(O, String),
}

/// The dialer of one host.
#[derive(Debug)]
pub struct Dialer<O> {
    host: Box<str>,
    port: u16,
    resolving: bool,
    /// Who waits for the addresses.
    waiting: Vec<O>,
    /// Who tries addresses, and which are left.
    trying: Vec<(O, VecDeque<SocketAddr>)>,
}

impl<O: Copy + PartialEq> Dialer<O> {
    /// A dialer for a DNS name or an IP address.
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port, resolving: false, waiting: Vec::new(), trying: Vec::new() }
    }

    /// Dials for `owner`. What it asked for before is forgotten.
    pub fn dial(&mut self, owner: O, actions: &mut Vec<DialAction<O>>) {
        self.cancel(owner);
        if let Ok(address) = self.host.parse::<IpAddr>() {
            self.trying.push((owner, VecDeque::new()));
            return actions.push(DialAction::Connect(owner, SocketAddr::new(address, self.port)));
        }
        self.waiting.push(owner);
        if !std::mem::replace(&mut self.resolving, true) {
            actions.push(DialAction::Resolve);
        }
    }

    /// Forgets what `owner` asked for.
    pub fn cancel(&mut self, owner: O) {
        self.waiting.retain(|waiting| *waiting != owner);
        self.trying.retain(|(trying, _)| *trying != owner);
    }

    /// Takes the answer to [`DialAction::Resolve`].
    pub fn handle_resolved(&mut self, answer: &Result<Vec<IpAddr>, String>, actions: &mut Vec<DialAction<O>>) {
        self.resolving = false;
        for owner in std::mem::take(&mut self.waiting) {
            match answer {
                Ok(addresses) => {
                    let addresses = addresses.iter().map(|address| SocketAddr::new(*address, self.port)).collect();
                    self.trying.push((owner, addresses));
                    self.handle_failed(owner, "the host has no address", actions);
                }
                Err(error) => actions.push(DialAction::Failed(owner, error.clone())),
            }
        }
    }

    /// The address that `owner` tried last failed: the next one is tried.
    pub fn handle_failed(&mut self, owner: O, error: &str, actions: &mut Vec<DialAction<O>>) {
        let Some((_, addresses)) = self.trying.iter_mut().find(|(trying, _)| *trying == owner) else { return };
        if let Some(address) = addresses.pop_front() {
            actions.push(DialAction::Connect(owner, address));
        } else {
            self.cancel(owner);
            actions.push(DialAction::Failed(owner, error.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_up_once_and_tries_every_address() {
        let (mut dialer, mut actions) = (Dialer::new("db.example", 5984), Vec::new());
        dialer.dial('a', &mut actions);
        dialer.dial('b', &mut actions);
        dialer.dial('c', &mut actions);
        dialer.cancel('c');
        assert_eq!(actions, [DialAction::Resolve]);
        actions.clear();
        let six: SocketAddr = "[::1]:5984".parse().unwrap();
        let four: SocketAddr = "127.0.0.1:5984".parse().unwrap();
        dialer.handle_resolved(&Ok(vec![six.ip(), four.ip()]), &mut actions);
        assert_eq!(actions, [DialAction::Connect('a', six), DialAction::Connect('b', six)]);
        actions.clear();
        dialer.handle_failed('a', "refused", &mut actions);
        dialer.handle_failed('a', "refused too", &mut actions);
        dialer.handle_failed('a', "late", &mut actions);
        assert_eq!(actions, [DialAction::Connect('a', four), DialAction::Failed('a', "refused too".into())]);
        actions.clear();
        dialer.dial('a', &mut actions);
        dialer.handle_resolved(&Err("no such name".into()), &mut actions);
        assert_eq!(actions, [DialAction::Resolve, DialAction::Failed('a', "no such name".into())]);
    }

    #[test]
    fn an_address_needs_no_look_up() {
        let (mut dialer, mut actions) = (Dialer::new("::1", 80), Vec::new());
        dialer.dial('a', &mut actions);
        dialer.handle_failed('a', "refused", &mut actions);
        let address = "[::1]:80".parse().unwrap();
        assert_eq!(actions, [DialAction::Connect('a', address), DialAction::Failed('a', "refused".into())]);
    }
}
