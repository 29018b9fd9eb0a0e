//! Spreads a number of items evenly over a time.

use crate::state::timers::Millis;

/// Interval of the steps, in milliseconds.
pub const STEP: Millis = 20;

/// Progress through the items.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    count: usize,
    done: usize,
    started: Millis,
    spread: Millis,
}

impl Pacer {
    /// Creates a pacer for `count` items over `spread` milliseconds. With 0 all items are due at
    /// once.
    pub fn new(count: usize, spread: Millis, now: Millis) -> Self {
        Self { count, done: 0, started: now, spread }
    }

    /// Returns when the next items are due; None if none is left.
    pub fn poll_timeout(&self) -> Option<Millis> {
        if self.done == self.count {
            return None;
        }
        let due = ((self.done as Millis + 1) * self.spread).div_ceil(self.count as Millis);
        Some(self.started + due.next_multiple_of(STEP))
    }

    /// Returns how many items are due since the last call.
    pub fn take_due(&mut self, now: Millis) -> usize {
        let passed = now.saturating_sub(self.started);
        let due = if passed >= self.spread {
            self.count
        } else {
            usize::try_from(self.count as u64 * passed / self.spread).expect("no more than there are")
        };
        let more = due.saturating_sub(self.done);
        self.done += more;
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_due_once_and_evenly() {
        for (count, spread) in [(1, 1), (7, 35), (1_000, 5_000), (30_000, 5_000), (3, 600_000)] {
            let mut pacer = Pacer::new(count, spread, 500);
            let (mut done, mut most) = (0, 0);
            while let Some(at) = pacer.poll_timeout() {
                let due = pacer.take_due(at);
                assert!(due > 0 && at <= 500 + spread + STEP, "{due} at {at}");
                most = most.max(due);
                done += due;
            }
            assert_eq!(done, count);
            assert!(most <= 4 + count / 100, "{most} of {count} at once");
        }
    }

    #[test]
    fn without_a_time_all_items_are_due_at_once() {
        let mut pacer = Pacer::new(10_000, 0, 3);
        assert!(pacer.poll_timeout().unwrap() <= 3 + STEP);
        assert_eq!((pacer.take_due(3), pacer.take_due(4), pacer.poll_timeout()), (10_000, 0, None));
        assert_eq!(Pacer::new(0, 5_000, 3).poll_timeout(), None);
    }

    #[test]
    fn a_late_caller_catches_up() {
        let mut pacer = Pacer::new(10, 100, 0);
        assert_eq!((pacer.take_due(51), pacer.take_due(40), pacer.take_due(1_000)), (5, 0, 5));
    }
}
