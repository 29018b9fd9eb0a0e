//! Random test of the limits against a naive model of how CouchDB locks accounts.

use std::collections::HashMap;

use super::*;
use crate::state::jitter::Jitter;

/// Model of CouchDB: five wrong passwords for a name from one peer within 300 s of the first lock
/// it for 300 s.
#[derive(Default)]
struct CouchDb {
    passwords: HashMap<usize, u64>,
    failures: HashMap<(usize, Option<IpAddr>), (Millis, u32)>,
}

const COUCHDB_WINDOW: Millis = 300_000;

impl CouchDb {
    fn log_in(&mut self, name: usize, peer: Option<IpAddr>, password: u64, now: Millis) -> Outcome {
        let (since, count) = self.failures.entry((name, peer)).or_insert((now, 0));
        if now >= *since + COUCHDB_WINDOW {
            (*since, *count) = (now, 0);
        }
        if self.passwords[&name] == password {
            return Outcome::Right;
        }
        if *count == 0 {
            *since = now;
        }
        *count += 1;
        assert!(*count < 5, "CouchDB locks name {name} for {peer:?}");
        Outcome::Wrong
    }
}

/// A login that was sent to CouchDB.
struct UnderWay {
    key: Key,
    login: Login,
    /// Times at which CouchDB processes and answers it.
    worked_on: Millis,
    answered: Millis,
    /// Outcome, once CouchDB has processed it.
    outcome: Option<Outcome>,
    lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct Login {
    client: usize,
    name: usize,
    address: IpAddr,
    password: u64,
}

/// A client that logs in, and tries again after a rejection.
struct Client {
    login: Login,
    /// Start of the wait, and time of the next try; None while a login is in progress.
    since: Millis,
    next: Option<Millis>,
    honest: bool,
    /// Time of the last change of the password.
    changed: Millis,
}

const NAMES: usize = 4;
/// Longest delay of a login because of wrong passwords of other clients.
const MINUTE: Millis = 60_000;
/// Longest processing time of CouchDB in the model.
const LONGEST_ANSWER: Millis = 4_000;

struct World {
    limits: LoginLimits<Login>,
    couchdb: CouchDb,
    random: Jitter,
    clients: Vec<Client>,
    under_way: Vec<UnderWay>,
    by_name: bool,
    now: Millis,
    served: usize,
}

impl World {
    /// Creates one honest client per name, and attackers at all other addresses.
    fn new(seed: u64, by_name: bool) -> Self {
        let mut random = Jitter::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut clients = Vec::new();
        for name in 0..NAMES {
            let address = format!("2001:db8:0:{name}::1").parse().expect("an address");
            let login = Login { client: clients.len(), name, address, password: 0 };
            clients.push(Client { login, since: 0, next: Some(0), honest: true, changed: 0 });
        }
        for _ in 0..=random.below(60) {
            let host = random.below(20);
            let address = match random.below(3) {
                0 => format!("10.0.0.{host}"),
                1 => format!("2001:db8:0:{:x}::{host}", 100 + host),
                _ => format!("2001:db8:{:x}::1", 1 + host),
            };
            let name = usize::try_from(random.below(NAMES as u64)).expect("small");
            let address = network(address.parse().expect("an address"));
            let login = Login { client: clients.len(), name, address, password: 1_000 };
            clients.push(Client { login, since: 0, next: Some(MINUTE), honest: false, changed: 0 });
        }
        let couchdb = CouchDb { passwords: (0..NAMES).map(|name| (name, 0)).collect(), ..CouchDb::default() };
        let limits = LoginLimits::new(500);
        Self { limits, couchdb, random, clients, under_way: Vec::new(), by_name, now: 0, served: 0 }
    }

    fn step(&mut self) {
        let most = if self.random.below(20) == 0 { 5_000 } else { 600 };
        self.now += self.random.below(most);
        self.answer();
        if self.random.below(500) == 0 {
            self.change_password();
        }
        for number in 0..self.clients.len() {
            if self.clients[number].next.is_some_and(|at| at <= self.now) {
                self.try_log_in(number);
            }
        }
        self.go_on();
    }

    fn try_log_in(&mut self, number: usize) {
        let client = &mut self.clients[number];
        // A client that tries later than it might does not count that time.
        client.since += self.now - client.next.take().unwrap_or(self.now);
        if !client.honest {
            // Some attackers guess, some repeat one password, some use an old one.
            client.login.password = match self.random.below(3) {
                0 => 1_000 + self.random.below(1_000),
                1 => 1_000,
                _ => self.couchdb.passwords[&client.login.name].wrapping_sub(1),
            };
        }
        let login = client.login;
        let (name, password) = (login.name.to_string(), login.password.to_string());
        let kind = Kind::Password { name: &name, password: &password, by_name: self.by_name };
        match self.limits.admit(login.address, kind, self.now, || login, self.now) {
            Admission::Ask(key) => self.ask(key, login),
            Admission::Wait(_) => {}
            Admission::Reject(rejection) => self.reject(login, rejection),
        }
    }

    fn ask(&mut self, key: Key, login: Login) {
        let worked_on = self.now + self.random.below(LONGEST_ANSWER / 2);
        let answered = worked_on + self.random.below(LONGEST_ANSWER / 2);
        // Only guesses lose their reply now and then: users with a right or an old password would
        // wait because of it.
        let lost = (1_000..u64::MAX).contains(&login.password) && self.random.below(10) == 0;
        self.under_way.push(UnderWay { key, login, worked_on, answered, outcome: None, lost });
    }

    fn reject(&mut self, login: Login, rejection: Rejection) {
        let wait = match rejection {
            Rejection::Address(wait) | Rejection::Name(wait) => wait,
            Rejection::Unanswered | Rejection::Overloaded => 5_000,
        };
        let client = &mut self.clients[login.client];
        client.next = Some(self.now + if client.honest { wait } else { self.random.below(2_000) });
        let waited = self.now - client.since;
        assert!(!client.honest || waited + wait <= MINUTE, "{login:?} waits for {waited} + {wait} ms: {rejection:?}");
    }

    /// Lets CouchDB process and answer logins, in the order of time.
    fn answer(&mut self) {
        self.under_way.sort_by_key(|it| it.worked_on);
        for it in &mut self.under_way {
            if it.worked_on <= self.now && it.outcome.is_none() {
                let peer = (!self.by_name).then_some(it.login.address);
                let Login { name, password, .. } = it.login;
                it.outcome = Some(self.couchdb.log_in(name, peer, password, it.worked_on));
            }
        }
        for number in (0..self.under_way.len()).rev() {
            if self.under_way[number].answered <= self.now {
                let UnderWay { key, login, outcome, lost, .. } = self.under_way.swap_remove(number);
                let outcome = outcome.expect("CouchDB processes a login before it answers");
                self.limits.finish(key, if lost { Outcome::Unanswered } else { outcome }, self.now);
                self.handle_outcome(login, outcome);
            }
        }
    }

    fn handle_outcome(&mut self, login: Login, outcome: Outcome) {
        let now = self.now;
        let client = &mut self.clients[login.client];
        if client.honest {
            assert_eq!(outcome, Outcome::Right, "honest clients know the password");
            self.served += 1;
            let pause = self.random.below(120_000);
            (client.since, client.next) = (now + pause, Some(now + pause));
        } else {
            client.next = Some(now + self.random.below(500));
        }
    }

    fn go_on(&mut self) {
        while let Some((login, verdict)) = self.limits.next(self.now) {
            match verdict {
                Ok(key) => self.ask(key, login),
                Err(rejection) => self.reject(login, rejection),
            }
        }
    }

    /// Changes the password of an honest client.
    fn change_password(&mut self) {
        let client = usize::try_from(self.random.below(NAMES as u64)).expect("small");
        let Client { login, next: Some(_), changed, .. } = &mut self.clients[client] else { return };
        if self.now < *changed + 2 * COUCHDB_WINDOW {
            return;
        }
        *changed = self.now;
        login.password += 1;
        self.couchdb.passwords.insert(login.name, login.password);
    }
}

fn run(by_name: bool) {
    let mut served = 0;
    for seed in 1..=12 {
        let mut world = World::new(seed, by_name);
        for _ in 0..3_000 {
            world.step();
        }
        assert!(world.served > 20, "seed {seed}: {} logins", world.served);
        served += world.served;
    }
    assert!(served > 500, "{served}");
}

#[test]
fn no_address_is_locked_and_no_client_waits_for_a_minute_because_of_others() {
    run(false);
}

#[test]
fn no_name_is_locked_and_known_clients_wait_for_less_than_a_minute() {
    run(true);
}
