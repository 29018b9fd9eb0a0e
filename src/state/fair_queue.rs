//! A queue that serves its owners in turn: the items of one owner delay only that owner.
//!
//! ```text
//! owner a: 1 2 3 4 5 6 …  ─┐
//! owner b: 7               ├─▶ 1 7 8 2 9 3 4 …       one item of each owner, then the next
//! owner c: 8 9             ─┘
//! ```
//!
//! Every operation takes constant time (amortized), except [`FairQueue::retain`]. An owner without
//! items takes memory only until its turn has passed.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Items of several owners, each in its own order.
#[derive(Debug)]
pub struct FairQueue<O, T> {
    /// Keys of `items`, each once, the next one to serve first.
    turns: VecDeque<O>,
    /// Items of each owner; empty if they were removed before its turn.
    items: HashMap<O, VecDeque<T>>,
    len: usize,
}

impl<O, T> Default for FairQueue<O, T> {
    fn default() -> Self {
        Self { turns: VecDeque::new(), items: HashMap::new(), len: 0 }
    }
}

impl<O: Copy + Eq + Hash, T> FairQueue<O, T> {
    /// Appends an item of an owner.
    pub fn push(&mut self, owner: O, item: T) {
        self.owned(owner).push_back(item);
        self.len += 1;
    }

    /// Inserts an item before all others of its owner, for an item that was taken and could not be
    /// served.
    pub fn push_front(&mut self, owner: O, item: T) {
        self.owned(owner).push_front(item);
        self.len += 1;
    }

    /// Takes the next item of the owner whose turn it is. The owner then moves behind all others.
    pub fn pop(&mut self) -> Option<(O, T)> {
        loop {
            let owner = self.turns.pop_front()?;
            let items = self.items.get_mut(&owner).expect("each owner in the order has an entry");
            let item = items.pop_front();
            if items.is_empty() {
                self.items.remove(&owner);
                self.give_back();
            } else {
                self.turns.push_back(owner);
            }
            if let Some(item) = item {
                self.len -= 1;
                return Some((owner, item));
            }
        }
    }

    /// Removes all items of an owner.
    pub fn remove_owner(&mut self, owner: O) -> VecDeque<T> {
        // The entry stays until its turn, since finding the owner in the order would take linear
        // time.
        let items = self.items.get_mut(&owner).map(std::mem::take).unwrap_or_default();
        self.len -= items.len();
        items
    }

    /// Keeps only the items for which `keep` returns true, in linear time.
    pub fn retain(&mut self, mut keep: impl FnMut(O, &T) -> bool) {
        let Self { turns, items, len } = self;
        items.retain(|owner, items| {
            items.retain(|item| keep(*owner, item));
            !items.is_empty()
        });
        turns.retain(|owner| items.contains_key(owner));
        *len = items.values().map(VecDeque::len).sum();
        self.give_back();
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of items of an owner.
    pub fn len_of(&self, owner: O) -> usize {
        self.items.get(&owner).map_or(0, VecDeque::len)
    }

    fn owned(&mut self, owner: O) -> &mut VecDeque<T> {
        let Self { turns, items, .. } = self;
        items.entry(owner).or_insert_with(|| {
            turns.push_back(owner);
            VecDeque::new()
        })
    }

    /// Shrinks the queue after many owners were served.
    fn give_back(&mut self) {
        if self.turns.capacity() > KEPT && self.turns.len() < self.turns.capacity() / 4 {
            self.turns.shrink_to(2 * self.turns.len());
            self.items.shrink_to(2 * self.items.len());
        }
    }
}

/// Capacity below which the queue is not shrunk.
const KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut FairQueue<u32, u32>) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn owners_are_served_in_turn_and_each_in_its_own_order() {
        let mut queue = FairQueue::default();
        for item in 0..4 {
            queue.push(1, item);
        }
        queue.push(2, 10);
        queue.push(3, 20);
        queue.push(3, 21);
        assert_eq!((queue.len(), queue.len_of(1), queue.len_of(9)), (7, 4, 0));
        assert_eq!(queue.pop(), Some((1, 0)));
        queue.push_front(1, 0);
        assert_eq!(drain(&mut queue), [(2, 10), (3, 20), (1, 0), (3, 21), (1, 1), (1, 2), (1, 3)]);
        assert!(queue.is_empty() && queue.items.is_empty());
    }

    #[test]
    fn a_late_owner_waits_for_one_item_of_each_other_owner() {
        let mut queue = FairQueue::default();
        for owner in 0..10 {
            for item in 0..1_000 {
                queue.push(owner, item);
            }
        }
        queue.push(99, 0);
        let position = drain(&mut queue).iter().position(|(owner, _)| *owner == 99);
        assert_eq!(position, Some(10));
    }

    #[test]
    fn removed_owners_and_items_are_not_served() {
        let mut queue = FairQueue::default();
        for item in 0..6 {
            queue.push(item % 3, item);
        }
        assert_eq!(queue.remove_owner(1), [1, 4]);
        assert!(queue.remove_owner(1).is_empty());
        assert_eq!((queue.len(), queue.len_of(1)), (4, 0));
        queue.retain(|owner, item| owner == 2 || *item == 0);
        assert_eq!(queue.len(), 3);
        assert_eq!(drain(&mut queue), [(0, 0), (2, 2), (2, 5)]);
        queue.push(1, 7);
        queue.retain(|_, _| false);
        assert_eq!((queue.len(), queue.pop()), (0, None));
    }

    #[test]
    fn an_owner_that_removes_and_queues_again_gets_one_turn() {
        let mut queue = FairQueue::default();
        for item in 0..100 {
            queue.push(1, item);
            queue.remove_owner(1);
        }
        queue.push(1, 100);
        queue.push(1, 101);
        queue.push(2, 0);
        assert_eq!(drain(&mut queue), [(1, 100), (2, 0), (1, 101)]);
    }

    #[test]
    fn the_queue_shrinks_after_many_owners() {
        let mut queue = FairQueue::default();
        for owner in 0..10_000 {
            queue.push(owner, owner);
        }
        drain(&mut queue);
        assert!(queue.turns.capacity() <= KEPT && queue.items.capacity() <= 4 * KEPT, "{}", queue.items.capacity());
    }
}
