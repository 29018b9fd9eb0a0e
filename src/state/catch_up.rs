//! What Socket.IO clients missed: their protocol has no positions, so the server can remember for them, for a while,
//! how far the databases of a broken session had come.
//!
//! It is remembered by user, since clients come back with nothing else that is theirs: when the same user subscribes
//! again, from whatever device, what moved since is told. With several sessions of a user the oldest position counts,
//! and it is kept until its time is over, for another device may come for it too: a change can be told twice, never
//! not at all.

use std::collections::{HashMap, VecDeque};

use crate::state::timers::Millis;
use crate::wire::positions::Position;

/// Most databases that are remembered, over all users; then the oldest session is forgotten.
const MAX_REMEMBERED: usize = 500_000;

/// What broken sessions were told of last.
#[derive(Debug)]
pub struct CatchUp {
    keep_for: Millis,
    users: HashMap<Box<str>, HashMap<Box<str>, Remembered>>,
    /// Users in the order in which their sessions broke.
    order: VecDeque<(Millis, Box<str>)>,
    databases: usize,
}

#[derive(Debug)]
struct Remembered {
    /// None when the client may not have been told of everything, or where that stands is not known.
    position: Option<Position>,
    until: Millis,
}

impl CatchUp {
    /// Remembers for so many milliseconds; 0 for not at all.
    pub fn new(keep_for: Millis) -> Self {
        Self { keep_for, users: HashMap::new(), order: VecDeque::new(), databases: 0 }
    }

    /// Whether anything is remembered at all.
    pub fn is_on(&self) -> bool {
        self.keep_for > 0
    }

    /// A session of a user broke: its databases, each with the position that the client was told of for certain.
    pub fn remember<'a>(
        &mut self,
        user: &str,
        databases: impl Iterator<Item = (&'a str, Option<Position>)>,
        now: Millis,
    ) {
        if !self.is_on() {
            return;
        }
        let until = now + self.keep_for;
        let its = self.users.entry(user.into()).or_default();
        for (name, position) in databases {
            if let Some(earlier) = its.get_mut(name) {
                earlier.until = until;
            } else {
                its.insert(name.into(), Remembered { position, until });
                self.databases += 1;
            }
        }
        self.order.push_back((until, user.into()));
        while self.databases > MAX_REMEMBERED {
            let Some((oldest, user)) = self.order.pop_front() else { break };
            self.forget(&user, oldest);
        }
    }

    /// What is remembered of a database for a user: None when nothing is, `Some(None)` when it counts as changed.
    pub fn recall(&self, user: &str, name: &str, now: Millis) -> Option<Option<Position>> {
        let remembered = self.users.get(user)?.get(name)?;
        (now < remembered.until).then_some(remembered.position)
    }

    /// Positions mean nothing any more: whatever is remembered counts as changed.
    pub fn doubt(&mut self) {
        for remembered in self.users.values_mut().flat_map(HashMap::values_mut) {
            remembered.position = None;
        }
    }

    /// When [`CatchUp::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.order.front().map(|(until, _)| *until)
    }

    /// Forgets what is too old.
    pub fn handle_timeout(&mut self, now: Millis) {
        while self.poll_timeout().is_some_and(|until| until <= now) {
            if let Some((until, user)) = self.order.pop_front() {
                self.forget(&user, until);
            }
        }
    }

    /// Forgets what is remembered of a user until then, or less long.
    fn forget(&mut self, user: &str, until: Millis) {
        let Some(its) = self.users.get_mut(user) else { return };
        let before = its.len();
        its.retain(|_, remembered| remembered.until > until);
        self.databases -= before - its.len();
        if its.is_empty() {
            self.users.remove(user);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(updates: u32) -> Position {
        Position { counts: [updates, 1, 0], doubt: 0 }
    }

    #[test]
    fn the_oldest_position_counts_until_its_time_is_over() {
        let mut catch_up = CatchUp::new(1000);
        catch_up.remember("u", [("a", Some(at(3))), ("b", None)].into_iter(), 0);
        catch_up.remember("u", [("a", Some(at(5))), ("c", Some(at(1)))].into_iter(), 400);
        assert_eq!(catch_up.recall("u", "a", 1200), Some(Some(at(3))));
        assert_eq!(catch_up.recall("u", "b", 999), Some(None));
        assert_eq!(catch_up.recall("u", "b", 1000), None);
        assert_eq!(catch_up.recall("u", "x", 0), None);
        assert_eq!(catch_up.recall("v", "a", 0), None);
        assert_eq!(catch_up.poll_timeout(), Some(1000));
        catch_up.handle_timeout(1000);
        assert_eq!(catch_up.databases, 2);
        catch_up.doubt();
        assert_eq!(catch_up.recall("u", "c", 1000), Some(None));
        catch_up.handle_timeout(1400);
        assert_eq!((catch_up.databases, catch_up.users.len(), catch_up.poll_timeout()), (0, 0, None));
    }

    #[test]
    fn is_off_or_limited() {
        let mut off = CatchUp::new(0);
        off.remember("u", [("a", Some(at(1)))].into_iter(), 0);
        assert_eq!((off.is_on(), off.recall("u", "a", 0)), (false, None));
        let mut catch_up = CatchUp::new(1000);
        for user in 0..60 {
            let names: Vec<_> = (0..10_000).map(|name| name.to_string()).collect();
            catch_up.remember(&user.to_string(), names.iter().map(|name| (&**name, Some(at(1)))), user);
            assert!(catch_up.databases <= MAX_REMEMBERED);
        }
        assert_eq!(catch_up.recall("0", "7", 60), None, "the oldest went first");
        assert_eq!(catch_up.recall("59", "7", 60), Some(Some(at(1))));
    }
}
