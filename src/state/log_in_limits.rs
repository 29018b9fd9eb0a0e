//! Wrong passwords are slowed down before they reach CouchDB, which locks a name out for minutes after five of them
//! from one address: nobody is to do that to somebody else, nor to try out passwords here.
//!
//! ```text
//!  log-in ─▶ bucket of the address ─▶ of the name ─▶ of the two together ─▶ CouchDB
//!                  │ empty: refused        │                │ empty: refused; others under way: waits for their answers
//! ```
//!
//! A wrong password takes from each bucket; a right one fills that of the two together, and whoever had one may try
//! whatever others do to the name.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;

use crate::state::pool::network;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::Credentials;

/// How many wrong passwords there may be at once, and after how many milliseconds one more.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u64,
    interval: Millis,
}

/// For one name from one address: CouchDB locks after five within five minutes.
const PAIR: Rate = Rate { burst: 4, interval: 75_000 };
/// For all names from one address.
const ADDRESS: Rate = Rate { burst: 30, interval: 2_000 };
/// For one name from all addresses together.
const NAME: Rate = Rate { burst: 50, interval: 5_000 };
/// Most addresses, names, and pairs of them, that are known for wrong passwords.
const MAX_KNOWN: usize = 20_000;
/// Most pairs that are known for a right password.
const MAX_GOOD: usize = 1_000_000;

/// What is to be done with a log-in.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Ask CouchDB.
    Ask,
    /// It waits, and comes out of [`LogInLimits::handle_answer`] when it is its turn to be looked at again.
    Waits,
    /// Too many wrong passwords: not before so many milliseconds.
    Refused(Millis),
    /// Too many wait.
    Overloaded,
}

/// What CouchDB said of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is right.
    Right,
    /// It is wrong.
    Wrong,
    /// Nothing.
    Unknown,
}

/// A log-in that waits: whose it is, which of theirs, and with what.
pub type Waiting = (Key, u32, Credentials);

/// A bucket that fills by itself: the moment at which it is full.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Millis,
}

impl Bucket {
    /// How much was taken and has not come back.
    fn taken(self, rate: Rate, now: Millis) -> u64 {
        self.full_at.saturating_sub(now).div_ceil(rate.interval)
    }

    fn take(&mut self, rate: Rate, now: Millis) {
        self.full_at = self.full_at.max(now) + rate.interval;
    }

    /// How long until there is something in it.
    fn wait(self, rate: Rate, now: Millis) -> Millis {
        self.full_at.saturating_sub(now).saturating_sub((rate.burst - 1) * rate.interval)
    }
}

/// A name and where somebody logs in by it from.
#[derive(Debug, Default)]
struct Pair {
    bucket: Bucket,
    /// Log-ins that CouchDB works on.
    asked: u64,
    waiting: VecDeque<Waiting>,
}

impl Pair {
    /// Whether it still says something.
    fn tells(&self, now: Millis) -> bool {
        self.asked > 0 || self.bucket.full_at > now
    }
}

/// A name and an address, as they are found in tables: there is one for every client, and texts would take more room
/// than all else. Nobody can choose two that come out the same, for the hash is keyed.
type PairId = u64;

/// The buckets.
#[derive(Debug)]
pub struct LogInLimits {
    hasher: RandomState,
    pairs: HashMap<PairId, Pair>,
    /// Those whose last password was right.
    good: HashSet<PairId>,
    addresses: HashMap<IpAddr, Bucket>,
    names: HashMap<Box<str>, Bucket>,
    waiting: usize,
    /// Most log-ins that wait for the answer to another.
    max_waiting: usize,
}

impl LogInLimits {
    /// Full buckets, and how many log-ins may wait for the answer to another.
    pub fn new(max_waiting: usize) -> Self {
        Self {
            hasher: RandomState::new(),
            pairs: HashMap::new(),
            good: HashSet::new(),
            addresses: HashMap::new(),
            names: HashMap::new(),
            waiting: 0,
            max_waiting,
        }
    }

    /// Whether a password may be tried for a name from an address.
    pub fn admit(&mut self, address: IpAddr, name: &str, who: impl FnOnce() -> Waiting, now: Millis) -> Admission {
        let address = network(address);
        let id = self.id(address, name);
        make_room(&mut self.pairs, |pair| pair.asked > 0, |pair| pair.tells(now));
        let good = self.good.contains(&id);
        let wait = [
            self.addresses.get(&address).map(|bucket| bucket.wait(ADDRESS, now)),
            self.names.get(name).map(|bucket| bucket.wait(NAME, now)),
        ];
        let wait = wait.into_iter().flatten().max().unwrap_or(0);
        if wait > 0 && !good {
            return Admission::Refused(wait);
        }
        let pair = self.pairs.entry(id).or_default();
        if good || pair.asked + pair.bucket.taken(PAIR, now) < PAIR.burst {
            pair.asked += 1;
            return Admission::Ask;
        }
        if pair.asked == 0 {
            return Admission::Refused(pair.bucket.wait(PAIR, now).max(1));
        }
        if self.waiting >= self.max_waiting {
            return Admission::Overloaded;
        }
        self.waiting += 1;
        pair.waiting.push_back(who());
        Admission::Waits
    }

    /// Takes the end of a log-in that was asked; those that waited for it are to be looked at again.
    pub fn handle_answer(&mut self, address: IpAddr, name: &str, outcome: Outcome, now: Millis) -> VecDeque<Waiting> {
        let address = network(address);
        let id = self.id(address, name);
        let Some(pair) = self.pairs.get_mut(&id) else { return VecDeque::new() };
        pair.asked = pair.asked.saturating_sub(1);
        match outcome {
            Outcome::Right => {
                pair.bucket = Bucket::default();
                if self.good.len() >= MAX_GOOD {
                    // It only says that others' mistakes do not count.
                    self.good.clear();
                }
                self.good.insert(id);
            }
            Outcome::Wrong => {
                self.good.remove(&id);
                pair.bucket.take(PAIR, now);
                take(&mut self.addresses, address, ADDRESS, now);
                take(&mut self.names, name.into(), NAME, now);
            }
            Outcome::Unknown => {}
        }
        let waiting = std::mem::take(&mut pair.waiting);
        self.waiting -= waiting.len();
        if !pair.tells(now) {
            self.pairs.remove(&id);
        }
        waiting
    }

    fn id(&self, address: IpAddr, name: &str) -> PairId {
        self.hasher.hash_one((address, name))
    }
}

/// Takes from a bucket.
fn take<K: Hash + Eq>(buckets: &mut HashMap<K, Bucket>, key: K, rate: Rate, now: Millis) {
    make_room(buckets, |_| false, |bucket| bucket.full_at > now);
    buckets.entry(key).or_default().take(rate, now);
}

/// Where too many are known, those are forgotten that say nothing any more; where that is not enough, all but those that
/// are in use: a table that is full must not keep anybody out.
fn make_room<K: Hash + Eq, V>(table: &mut HashMap<K, V>, in_use: impl Fn(&V) -> bool, tells: impl Fn(&V) -> bool) {
    if table.len() < MAX_KNOWN {
        return;
    }
    table.retain(|_, value| in_use(value) || tells(value));
    // Else the next one would look through all of them again.
    if table.len() >= MAX_KNOWN / 4 * 3 {
        table.retain(|_, value| in_use(value));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    const HERE: &str = "192.0.2.1";
    const THERE: &str = "192.0.2.2";

    fn admit(limits: &mut LogInLimits, address: &str, name: &str, now: Millis) -> Admission {
        let who = || (Key { index: 0, generation: 0 }, 0, Credentials::Unusable);
        limits.admit(address.parse().expect("an address"), name, who, now)
    }

    fn answer(limits: &mut LogInLimits, address: &str, name: &str, outcome: Outcome, now: Millis) -> usize {
        limits.handle_answer(address.parse().expect("an address"), name, outcome, now).len()
    }

    fn wrong(limits: &mut LogInLimits, address: &str, name: &str, now: Millis) -> bool {
        let asked = admit(limits, address, name, now) == Admission::Ask;
        if asked {
            answer(limits, address, name, Outcome::Wrong, now);
        }
        asked
    }

    #[test]
    fn five_wrong_passwords_in_five_minutes_never_reach_couchdb() {
        let mut limits = LogInLimits::new(20_000);
        let mut asked: Vec<Millis> = Vec::new();
        for second in 0..3_600 {
            if wrong(&mut limits, HERE, "u", second * 1_000) {
                asked.push(second);
            }
        }
        assert!(asked.len() > 40, "one more after a while: {asked:?}");
        assert!(asked.windows(5).skip(4).all(|five| five[4] - five[0] >= 300), "{asked:?}");
        assert_eq!(admit(&mut limits, THERE, "u", 3_600_000), Admission::Ask, "others are let alone");
        assert_eq!(admit(&mut limits, HERE, "v", 3_600_000), Admission::Ask);
    }

    #[test]
    fn those_at_once_wait_for_the_first_answers() {
        let mut limits = LogInLimits::new(20_000);
        let admitted: Vec<_> = (0..300).map(|_| admit(&mut limits, HERE, "u", 0)).collect();
        assert!(admitted[..4].iter().all(|one| *one == Admission::Ask));
        assert!(admitted[4..].iter().all(|one| *one == Admission::Waits));
        assert_eq!(answer(&mut limits, HERE, "u", Outcome::Wrong, 1), 296);
        assert_eq!(admit(&mut limits, HERE, "u", 1), Admission::Waits, "three are under way");
        for _ in 0..3 {
            answer(&mut limits, HERE, "u", Outcome::Wrong, 1);
        }
        assert!(matches!(admit(&mut limits, HERE, "u", 2), Admission::Refused(ms) if ms > 70_000));
        assert_eq!(limits.waiting, 0);
    }

    #[test]
    fn a_right_password_opens_the_way() {
        let mut limits = LogInLimits::new(20_000);
        for _ in 0..3 {
            assert!(wrong(&mut limits, HERE, "u", 0));
        }
        assert_eq!(admit(&mut limits, HERE, "u", 0), Admission::Ask);
        answer(&mut limits, HERE, "u", Outcome::Right, 0);
        assert!((0..1_000).all(|_| admit(&mut limits, HERE, "u", 1) == Admission::Ask));
        // Whatever others do to the name.
        for host in 0..200u8 {
            wrong(&mut limits, &format!("198.51.100.{host}"), "u", 2);
        }
        assert!(matches!(admit(&mut limits, "198.51.100.250", "u", 2), Admission::Refused(_)));
        assert_eq!(admit(&mut limits, HERE, "u", 2), Admission::Ask);
    }

    #[test]
    fn an_address_that_tries_many_names_is_slowed_and_tables_are_bounded() {
        let mut limits = LogInLimits::new(20_000);
        let asked = (0..1_000).filter(|name| wrong(&mut limits, "2001:db8::1", &name.to_string(), 0)).count();
        assert_eq!(asked, 30);
        assert!(!wrong(&mut limits, "2001:db8::2", "x", 0), "it has the whole network");
        assert!(wrong(&mut limits, "2001:db8:0:1::1", "x", 0));
        assert!(wrong(&mut limits, "2001:db8::3", "x", 2_000));
        for host in 0..50_000u32 {
            let address = Ipv6Addr::from_bits(u128::from(host) << 64).to_string();
            wrong(&mut limits, &address, &host.to_string(), u64::from(host));
        }
        assert!(limits.addresses.len() <= MAX_KNOWN && limits.names.len() <= MAX_KNOWN);
        assert!(limits.pairs.len() <= MAX_KNOWN, "{}", limits.pairs.len());
    }
}
