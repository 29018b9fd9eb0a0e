//! Deadlines of many sessions and connections, in coarse buckets.
//!
//! An entry is never removed. It fires, and the owner checks whether its deadline has come.
//! Activity only moves the owner's deadline, and an entry that fires early is armed again for the
//! new one. So each owner has one valid entry ([`Alarm`]), and activity costs nothing here.

use std::collections::BTreeMap;

/// A time in milliseconds since the start of the process.
pub type Millis = u64;

/// A time that may never come. It is as small as a time, since there are many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Millis);

impl Deadline {
    /// A deadline that never comes.
    pub const NEVER: Self = Self(Millis::MAX);

    /// Creates a deadline at a time.
    pub fn at(moment: Millis) -> Self {
        Self(moment)
    }

    /// Returns the time, unless the deadline never comes.
    pub fn moment(self) -> Option<Millis> {
        (self != Self::NEVER).then_some(self.0)
    }

    /// Returns whether the deadline never comes.
    pub fn is_never(self) -> bool {
        self == Self::NEVER
    }
}

/// Converts a time to whole seconds; enough for a century.
pub fn seconds(moment: Millis) -> u32 {
    u32::try_from(moment / 1_000).unwrap_or(u32::MAX)
}

/// Deadlines nearer than this use buckets of [`FINE`], others of [`COARSE`].
const NEAR: Millis = 2_000;
/// Width of a bucket for near deadlines, in milliseconds.
const FINE: Millis = 4;
/// Width of a bucket for distant deadlines, in milliseconds.
const COARSE: Millis = 256;

/// Time at which the owner's valid entry fires, or 0 for none. The owner stores it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alarm(Millis);

/// Entries by bucket.
#[derive(Debug)]
pub struct Timers<T> {
    buckets: BTreeMap<Millis, Vec<T>>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { buckets: BTreeMap::new() }
    }
}

impl<T: Copy> Timers<T> {
    /// Arms `owner` to fire at `deadline` or a little later.
    pub fn arm(&mut self, owner: T, alarm: &mut Alarm, deadline: Millis, now: Millis) {
        let width = if deadline.saturating_sub(now) < NEAR { FINE } else { COARSE };
        let bucket = deadline.max(now).div_ceil(width).saturating_mul(width).max(1);
        // An entry that fires earlier finds the new deadline by itself.
        if alarm.0 != 0 && alarm.0 <= bucket {
            return;
        }
        alarm.0 = bucket;
        self.buckets.entry(bucket).or_default().push(owner);
    }

    /// Returns when the next bucket is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.buckets.keys().next().copied()
    }

    /// Takes the next due bucket, with its time.
    pub fn pop_due(&mut self, now: Millis) -> Option<(Millis, Vec<T>)> {
        let first = self.buckets.first_entry().filter(|entry| *entry.key() <= now)?;
        Some(first.remove_entry())
    }

    /// Returns whether no entry is left.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

impl Alarm {
    /// Handles an entry that fired. Returns false if the entry is no longer valid.
    pub fn fired(&mut self, bucket: Millis) -> bool {
        let counts = self.0 == bucket;
        if counts {
            self.0 = 0;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_fires_once_and_not_early() {
        let mut timers = Timers::default();
        let mut alarm = Alarm::default();
        timers.arm('a', &mut alarm, 30_001, 0);
        timers.arm('a', &mut alarm, 40_000, 0);
        let due = timers.poll_timeout().unwrap();
        assert!((30_001..30_001 + COARSE).contains(&due), "the first entry stays: {due}");
        assert!(timers.pop_due(due - 1).is_none());
        let (bucket, owners) = timers.pop_due(due).unwrap();
        assert_eq!(owners, ['a']);
        assert!(alarm.fired(bucket));
        timers.arm('a', &mut alarm, 40_000, due);
        assert!(timers.poll_timeout().unwrap() >= 40_000);
    }

    #[test]
    fn an_earlier_deadline_replaces_a_later_one() {
        let mut timers = Timers::default();
        let mut alarm = Alarm::default();
        timers.arm('a', &mut alarm, 30_000, 100);
        timers.arm('a', &mut alarm, 126, 100);
        let (bucket, _) = timers.pop_due(128).unwrap();
        assert!(bucket >= 126 && alarm.fired(bucket));
        let (bucket, _) = timers.pop_due(60_000).unwrap();
        assert!(!alarm.fired(bucket), "the replaced entry is not valid");
        assert!(timers.is_empty());
    }
}
