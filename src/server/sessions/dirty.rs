//! The sessions that have something to send, in the order in which they are written to.

use std::cmp::Reverse;

use crate::state::table::Key;

/// Sessions that are written to in one turn at least, if there are as many: some milliseconds.
const FLUSHED_A_TURN: usize = 512;
/// Bulk sessions that are written to in one turn: in any case, and if no other session is dirty.
const BULK_A_TURN: [usize; 2] = [128, 384];
/// Sessions whose slots are nearer than this were opened close together.
const NEAR: u32 = 1_024;

/// The dirty sessions. Those that were notified of a database with many subscribers are bulk
/// sessions: the others do not wait for them.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    few: Lane,
    bulk: Lane,
    /// How many of both are written to in this turn.
    shares: [usize; 2],
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        self.few.len() + self.bulk.len() == 0
    }

    pub(super) fn push(&mut self, session: Key) {
        self.few.next.push(session);
    }

    /// Appends a bulk session.
    pub(super) fn push_bulk(&mut self, session: Key) {
        self.bulk.next.push(session);
    }

    /// Decides how many sessions to write to in this turn.
    pub(super) fn begin_flush(&mut self) {
        // More than become dirty in a turn, or the queue would grow. No bulk session is in it
        // twice.
        let few = FLUSHED_A_TURN.max(self.few.len() / 8);
        let [least, most] = BULK_A_TURN;
        self.shares = [few, most.saturating_sub(few.min(self.few.len())).max(least)];
    }

    /// Takes the next session to write to in this turn.
    pub(super) fn pop(&mut self) -> Option<Key> {
        for (lane, share) in [&mut self.few, &mut self.bulk].into_iter().zip(&mut self.shares) {
            if *share > 0
                && let Some(key) = lane.pop()
            {
                *share -= 1;
                return Some(key);
            }
        }
        None
    }
}

/// Sessions of one kind. Those that become dirty while others are being written to wait for the end
/// of these.
#[derive(Debug, Default)]
struct Lane {
    next: Vec<Key>,
    /// The sessions being written to, the last one first.
    flushing: Vec<Key>,
}

impl Lane {
    fn len(&self) -> usize {
        self.next.len() + self.flushing.len()
    }

    fn pop(&mut self) -> Option<Key> {
        if self.flushing.is_empty() {
            std::mem::swap(&mut self.flushing, &mut self.next);
            sort_for_locality(&mut self.flushing);
        }
        self.flushing.pop()
    }
}

/// Orders sessions for writing, the first one at the end. Sessions that were opened together lie
/// together, here and in the kernel: scattered ones are sorted by slot, the others keep their
/// order.
fn sort_for_locality(keys: &mut Vec<Key>) {
    let far = keys.windows(2).filter(|pair| pair[0].index.abs_diff(pair[1].index) > NEAR).count();
    if far > keys.len() / 4 {
        keys.sort_unstable_by_key(|key| Reverse(key.index));
        keys.dedup();
    } else {
        keys.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(indices: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut keys = indices.map(|index| Key { index, generation: 0 }).collect();
        sort_for_locality(&mut keys);
        keys.into_iter().rev().map(|key| key.index).collect()
    }

    #[test]
    fn sessions_beside_bulk_sessions_are_written_to_in_the_next_turn() {
        let mut dirty = Dirty::default();
        let key = |index| Key { index, generation: 0 };
        (0..5_000).for_each(|index| dirty.push_bulk(key(index)));
        let mut turns = 0;
        while !dirty.is_empty() {
            dirty.push(key(9_000 + turns));
            dirty.begin_flush();
            let written: Vec<Key> = std::iter::from_fn(|| dirty.pop()).collect();
            assert_eq!(written[0], key(9_000 + turns));
            assert!(written.len() <= BULK_A_TURN[1]);
            turns += 1;
        }
        assert_eq!(turns, 5_000_u32.div_ceil(383));
        (0..10_000).for_each(|index| dirty.push(key(index)));
        dirty.push_bulk(key(7));
        dirty.begin_flush();
        let written: Vec<Key> = std::iter::from_fn(|| dirty.pop()).collect();
        assert_eq!((written.len(), written[1_250]), (1_251, key(7)), "bulk sessions have their share, too");
    }

    #[test]
    fn scattered_sessions_are_sorted_and_others_keep_their_order() {
        assert_eq!(written([7, 3, 3, 5].into_iter()), [7, 3, 3, 5]);
        assert_eq!(written([].into_iter()), [0; 0]);
        let scattered = || (0..15_000).map(|number| number * 7_919 % 15_000);
        assert_eq!(written(scattered().chain(scattered())), (0..15_000).collect::<Vec<_>>(), "each once");
    }
}
