//! The sessions that have something to send, in the order in which they are written to.

use std::cmp::Reverse;

use crate::state::table::Key;

/// Sessions that are written to in one turn at least, if there are as many: some milliseconds.
const FLUSHED_A_TURN: usize = 512;
/// Sessions whose slots are nearer than this were opened close together.
const NEAR: u32 = 1_024;

/// The dirty sessions. Those that become dirty while others are being written to wait for the end of these.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    next: Vec<Key>,
    /// The sessions being written to, the last one first.
    flushing: Vec<Key>,
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        self.next.is_empty() && self.flushing.is_empty()
    }

    pub(super) fn push(&mut self, session: Key) {
        self.next.push(session);
    }

    /// Returns how many sessions to write to in this turn: more than become dirty in a turn, or the queue would grow.
    pub(super) fn share(&self) -> usize {
        FLUSHED_A_TURN.max((self.next.len() + self.flushing.len()) / 8)
    }

    /// Takes the next session to write to.
    pub(super) fn pop(&mut self) -> Option<Key> {
        if self.flushing.is_empty() {
            std::mem::swap(&mut self.flushing, &mut self.next);
            sort_for_locality(&mut self.flushing);
        }
        self.flushing.pop()
    }
}

/// Orders sessions for writing, the first one at the end. Sessions that were opened together lie together, here and in the
/// kernel: scattered ones are sorted by slot, the others keep their order.
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
    fn scattered_sessions_are_sorted_and_others_keep_their_order() {
        assert_eq!(written([7, 3, 3, 5].into_iter()), [7, 3, 3, 5]);
        assert_eq!(written([].into_iter()), [0; 0]);
        let scattered = || (0..15_000).map(|number| number * 7_919 % 15_000);
        assert_eq!(written(scattered().chain(scattered())), (0..15_000).collect::<Vec<_>>(), "each once");
    }
}
