//! Memory for Socket.IO clients that reconnect. Their protocol has no positions, so the server
//! remembers for a while which positions the databases of a broken session had.
//!
//! The key is the user, since a client that reconnects has no other identity. When the same user
//! subscribes again, from any device, the server notifies it of the databases that have changed
//! since. The oldest position counts if a user has several sessions. It is kept until its time is
//! over, for other devices of the user. So a client may be notified of a change twice, but not zero
//! times.
//!
//! ```text
//! users: "u" ─▶ databases: a ─▶ position, until when        recalled; each is held once
//!            └▶ notes: (until, a) (until, b) (until, a) …   one per broken subscription
//! order: (until, u) (until, v) (until, u) …                 one per broken session
//! ```
//!
//! Both lists begin with the oldest entry. Remembering and forgetting take constant time per
//! subscription, however many sessions of a user break.

use std::collections::{HashMap, VecDeque};

use crate::state::subscriptions::{DatabaseId, Subscriptions};
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::positions::Position;

/// Most remembered subscriptions of broken sessions, over all users. Beyond that the oldest are
/// forgotten.
pub const MAX_REMEMBERED: usize = 500_000;
/// Most remembered subscriptions of one user.
pub const MAX_REMEMBERED_OF_USER: usize = 50_000;
/// Most subscriptions that are forgotten per turn.
const FORGOTTEN_A_TURN: usize = 2_000;

/// Positions at which sessions broke.
#[derive(Debug)]
pub struct CatchUp {
    keep_for: Millis,
    by_name: HashMap<Box<str>, Key>,
    users: Table<User>,
    order: VecDeque<(Millis, Key)>,
    /// Number of notes of all users.
    notes: usize,
    /// Number of databases of all users.
    held: usize,
    /// Number of the current era. Positions of earlier ones are void.
    era: u32,
}

#[derive(Debug)]
struct User {
    name: Box<str>,
    databases: HashMap<DatabaseId, Remembered>,
    notes: VecDeque<(Millis, DatabaseId)>,
}

#[derive(Debug)]
struct Remembered {
    /// Position; None if the client may have missed a notification, or if the position is unknown.
    position: Option<Position>,
    era: u32,
    /// Time of the latest note.
    until: Millis,
}

impl CatchUp {
    /// Creates a memory of `keep_for` milliseconds; 0 turns it off.
    pub fn new(keep_for: Millis) -> Self {
        Self {
            keep_for,
            by_name: HashMap::new(),
            users: Table::default(),
            order: VecDeque::new(),
            notes: 0,
            held: 0,
            era: 0,
        }
    }

    /// Returns whether the memory is on.
    pub fn is_on(&self) -> bool {
        self.keep_for > 0
    }

    /// Returns the number of holds on databases.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Returns the number of remembered subscriptions.
    pub fn remembered(&self) -> usize {
        self.notes
    }

    /// Remembers databases of a broken session, each with the position that the client is sure to
    /// know.
    pub fn remember(
        &mut self,
        user: &str,
        databases: &[(DatabaseId, Option<Position>)],
        now: Millis,
        subscriptions: &mut Subscriptions,
    ) {
        if !self.is_on() || databases.is_empty() {
            return;
        }
        let until = now + self.keep_for;
        let key = self.user(user);
        let Some(its) = self.users.get_mut(key) else { return };
        for &(database, position) in databases {
            let (era, held) = (self.era, &mut self.held);
            let add = || {
                subscriptions.hold_id(database);
                *held += 1;
                Remembered { position, era, until }
            };
            its.databases.entry(database).or_insert_with(add).until = until;
            its.notes.push_back((until, database));
        }
        self.notes += databases.len();
        self.order.push_back((until, key));
        while self.users.get(key).is_some_and(|its| its.notes.len() > MAX_REMEMBERED_OF_USER) {
            self.forget_oldest(key, subscriptions);
        }
        while self.notes > MAX_REMEMBERED {
            self.forget_one(Millis::MAX, subscriptions);
        }
    }

    fn user(&mut self, name: &str) -> Key {
        if let Some(key) = self.by_name.get(name) {
            return *key;
        }
        let key = self.users.insert(User { name: name.into(), databases: HashMap::new(), notes: VecDeque::new() });
        self.by_name.insert(name.into(), key);
        key
    }

    /// Returns the position of a database for a user: None if it is not remembered, `Some(None)` if
    /// it counts as changed.
    pub fn recall(&self, user: &str, database: DatabaseId, now: Millis) -> Option<Option<Position>> {
        let its = self.users.get(*self.by_name.get(user)?)?;
        let remembered = its.databases.get(&database)?;
        let position = remembered.position.filter(|_| remembered.era == self.era);
        (now < remembered.until).then_some(position)
    }

    /// Makes all positions void: every remembered database counts as changed.
    pub fn doubt(&mut self) {
        self.era += 1;
    }

    /// Returns when [`CatchUp::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.order.front().map(|(until, _)| *until)
    }

    /// Forgets old subscriptions, a limited number per turn.
    pub fn handle_timeout(&mut self, now: Millis, subscriptions: &mut Subscriptions) {
        for _ in 0..FORGOTTEN_A_TURN {
            if !self.forget_one(now, subscriptions) {
                break;
            }
        }
    }

    /// Forgets the oldest note of all if its time is over. Returns whether there may be another.
    fn forget_one(&mut self, now: Millis, subscriptions: &mut Subscriptions) -> bool {
        let Some((until, key)) = self.order.front().copied().filter(|(until, _)| *until <= now) else { return false };
        let oldest = self.users.get(key).and_then(|its| its.notes.front());
        if oldest.is_some_and(|(note, _)| *note <= until) {
            self.forget_oldest(key, subscriptions);
        } else {
            // Its notes are already forgotten, because of the limit or with those of an earlier
            // session.
            self.order.pop_front();
        }
        true
    }

    /// Forgets the oldest note of a user, and the user with the last one.
    fn forget_oldest(&mut self, key: Key, subscriptions: &mut Subscriptions) {
        let Some(its) = self.users.get_mut(key) else { return };
        let Some((until, database)) = its.notes.pop_front() else { return };
        self.notes -= 1;
        if its.databases.get(&database).is_some_and(|remembered| remembered.until <= until) {
            its.databases.remove(&database);
            subscriptions.release(database);
            self.held -= 1;
        }
        if its.notes.is_empty()
            && let Some(user) = self.users.remove(key)
        {
            self.by_name.remove(&user.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(updates: u32) -> Position {
        Position { counts: [updates, 1, 0], ..Position::default() }
    }

    #[test]
    fn the_oldest_position_counts_until_its_time_is_over() {
        let (mut catch_up, mut subscriptions) = (CatchUp::new(1000), Subscriptions::default());
        let [a, b, c, x] = ["a", "b", "c", "x"].map(|name| subscriptions.hold(name));
        catch_up.remember("u", &[(a, Some(at(3))), (b, None)], 0, &mut subscriptions);
        catch_up.remember("u", &[(a, Some(at(5))), (c, Some(at(1)))], 400, &mut subscriptions);
        assert_eq!(catch_up.recall("u", a, 1200), Some(Some(at(3))));
        assert_eq!(catch_up.recall("u", b, 999), Some(None));
        assert_eq!(catch_up.recall("u", b, 1000), None);
        assert_eq!(catch_up.recall("u", x, 0), None);
        assert_eq!(catch_up.recall("v", a, 0), None);
        assert_eq!(catch_up.poll_timeout(), Some(1000));
        catch_up.handle_timeout(1000, &mut subscriptions);
        assert_eq!((catch_up.held(), catch_up.remembered(), subscriptions.held()), (2, 2, 6));
        catch_up.doubt();
        assert_eq!(catch_up.recall("u", c, 1000), Some(None));
        catch_up.handle_timeout(1400, &mut subscriptions);
        assert_eq!((catch_up.held(), catch_up.users.len(), catch_up.poll_timeout()), (0, 0, None));
        assert!(catch_up.by_name.is_empty() && subscriptions.held() == 4);
    }

    #[test]
    fn is_off_or_limited() {
        let mut s = Subscriptions::default();
        let names: Vec<DatabaseId> = (0..10_000).map(|name| s.hold(&name.to_string())).collect();
        let its: Vec<_> = names.iter().map(|database| (*database, Some(at(1)))).collect();
        let mut off = CatchUp::new(0);
        off.remember("u", &its, 0, &mut s);
        assert_eq!((off.is_on(), off.recall("u", names[7], 0)), (false, None));
        let mut catch_up = CatchUp::new(1000);
        for user in 0..60 {
            catch_up.remember(&user.to_string(), &its, user, &mut s);
            assert!(catch_up.remembered() <= MAX_REMEMBERED);
        }
        assert_eq!(catch_up.recall("0", names[7], 60), None, "the oldest is forgotten first");
        assert_eq!(catch_up.recall("59", names[7], 60), Some(Some(at(1))));
        for _ in 0..60 {
            catch_up.remember("59", &its, 60, &mut s);
        }
        assert_eq!(catch_up.recall("58", names[7], 60), Some(Some(at(1))), "one user does not displace others");
        assert!(
            catch_up.users.get(catch_up.by_name["59"]).is_some_and(|its| its.notes.len() <= MAX_REMEMBERED_OF_USER)
        );
        while catch_up.poll_timeout().is_some() {
            catch_up.handle_timeout(2_000, &mut s);
        }
        assert_eq!((catch_up.held(), catch_up.remembered(), s.held()), (0, 0, names.len()));
    }
}
