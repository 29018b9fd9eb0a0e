//! Those who have come and not logged in yet, in the order in which they came. When there are too many the oldest make
//! way: who means to log in does so at once, and who only holds connections open loses those.

use std::collections::VecDeque;

/// The newcomers, and some who are none any more: those are passed over.
#[derive(Debug)]
pub struct Newcomers<T> {
    limit: usize,
    order: VecDeque<T>,
    /// When there are so many, it is looked who is none any more.
    look_at: usize,
}

/// So few are not looked through.
const FEW: usize = 64;

impl<T: Copy> Newcomers<T> {
    /// Nobody yet, and how many there may be.
    pub fn new(limit: usize) -> Self {
        Self { limit, order: VecDeque::new(), look_at: FEW }
    }

    /// Takes somebody in who has just come.
    pub fn add(&mut self, who: T) {
        self.order.push_back(who);
    }

    /// Who have to make way for being too many. All are looked through once in so many arrivals only, so the limit is
    /// kept to an eighth.
    pub fn take_surplus(&mut self, is_newcomer: impl Fn(T) -> bool) -> Vec<T> {
        let most = self.limit + self.limit / 8;
        if self.order.len() <= most.min(self.look_at) {
            return Vec::new();
        }
        self.order.retain(|who| is_newcomer(*who));
        let over = if self.order.len() > most { self.order.len() - self.limit } else { 0 };
        let surplus = self.order.drain(..over).collect();
        // Those who log in take no room here for long, and who looks through all does so for as many who came.
        self.order.shrink_to(2 * self.order.len());
        self.look_at = FEW.max(2 * self.order.len());
        surplus
    }

    /// The oldest, who has to make way for a connection beyond what there may be in all.
    pub fn take_oldest(&mut self, is_newcomer: impl Fn(T) -> bool) -> Option<T> {
        std::iter::from_fn(|| self.order.pop_front()).find(|who| is_newcomer(*who))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_way_and_those_who_logged_in_do_not() {
        let mut newcomers = Newcomers::new(4);
        let logged_in = |who: i32| who % 2 == 0;
        let is_newcomer = |who| !logged_in(who);
        for who in 0..8 {
            newcomers.add(who);
        }
        assert!(newcomers.take_surplus(is_newcomer).is_empty(), "four of the eight are left");
        newcomers.add(9);
        newcomers.add(11);
        assert_eq!(newcomers.take_surplus(is_newcomer), [1, 3]);
        assert!(newcomers.take_surplus(is_newcomer).is_empty());
        newcomers.add(2);
        assert_eq!(newcomers.take_oldest(is_newcomer), Some(5));
        assert_eq!(newcomers.take_oldest(|_| false), None);
    }

    #[test]
    fn who_logged_in_takes_no_room() {
        let mut newcomers = Newcomers::new(20_000);
        for who in 0..15_000 {
            newcomers.add(who);
            assert!(newcomers.take_surplus(|who| who >= 14_990).is_empty());
        }
        assert!(newcomers.order.len() <= FEW && newcomers.order.capacity() <= 4 * FEW, "{}", newcomers.order.len());
    }
}
