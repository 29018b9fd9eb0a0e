//! Deadlines of very many sessions and connections, in coarse buckets.
//!
//! An entry is never taken out: it fires, and the owner looks whether its deadline has really come. Who
//! is busy only moves its own deadline; the entry that fires early is armed again for the new one. So
//! an owner has one entry that counts ([`Alarm`]), and activity costs nothing here.

use std::collections::BTreeMap;

/// A moment: milliseconds since the start of the process.
pub type Millis = u64;

/// A moment that may come, or never: no larger than a moment, for there are many of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Millis);

impl Deadline {
    /// It never comes.
    pub const NEVER: Self = Self(Millis::MAX);

    /// It comes at a moment.
    pub fn at(moment: Millis) -> Self {
        Self(moment)
    }

    /// The moment, if it ever comes.
    pub fn moment(self) -> Option<Millis> {
        (self != Self::NEVER).then_some(self.0)
    }

    /// Whether it never comes.
    pub fn is_never(self) -> bool {
        self == Self::NEVER
    }
}

/// Whole seconds of a moment, where they are enough: for centuries.
pub fn seconds(moment: Millis) -> u32 {
    u32::try_from(moment / 1_000).unwrap_or(u32::MAX)
}

/// Deadlines nearer than this are kept to [`FINE`], the others to [`COARSE`].
const NEAR: Millis = 2_000;
/// Width of a bucket for near deadlines, in milliseconds.
const FINE: Millis = 4;
/// Width of a bucket for distant deadlines, in milliseconds.
const COARSE: Millis = 256;

/// When the entry of an owner that counts will fire; 0 for none. Kept by the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alarm(Millis);

/// The buckets.
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
    /// Sees to it that `owner` is fired at `deadline` or little later, whatever was asked for before.
    pub fn arm(&mut self, owner: T, alarm: &mut Alarm, deadline: Millis, now: Millis) {
        let width = if deadline.saturating_sub(now) < NEAR { FINE } else { COARSE };
        let bucket = deadline.max(now).div_ceil(width).saturating_mul(width).max(1);
        // An entry that fires earlier will find the new deadline by itself.
        if alarm.0 != 0 && alarm.0 <= bucket {
            return;
        }
        alarm.0 = bucket;
        self.buckets.entry(bucket).or_default().push(owner);
    }

    /// When the next bucket is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.buckets.keys().next().copied()
    }

    /// Takes the next bucket that is due, with the moment it stood for.
    pub fn pop_due(&mut self, now: Millis) -> Option<(Millis, Vec<T>)> {
        let first = self.buckets.first_entry().filter(|entry| *entry.key() <= now)?;
        Some(first.remove_entry())
    }

    /// Whether no entry is left.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

impl Alarm {
    /// Takes note that the entry of a bucket fired; false when that entry did not count any more.
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
    fn fires_never_early_and_once() {
        let mut timers = Timers::default();
        let mut alarm = Alarm::default();
        timers.arm('a', &mut alarm, 30_001, 0);
        timers.arm('a', &mut alarm, 40_000, 0);
        let due = timers.poll_timeout().unwrap();
        assert!((30_001..30_001 + COARSE).contains(&due), "the first entry stands: {due}");
        assert!(timers.pop_due(due - 1).is_none());
        let (bucket, owners) = timers.pop_due(due).unwrap();
        assert_eq!(owners, ['a']);
        assert!(alarm.fired(bucket));
        timers.arm('a', &mut alarm, 40_000, due);
        assert!(timers.poll_timeout().unwrap() >= 40_000);
    }

    #[test]
    fn an_earlier_deadline_overtakes() {
        let mut timers = Timers::default();
        let mut alarm = Alarm::default();
        timers.arm('a', &mut alarm, 30_000, 100);
        timers.arm('a', &mut alarm, 126, 100);
        let (bucket, _) = timers.pop_due(128).unwrap();
        assert!(bucket >= 126 && alarm.fired(bucket));
        let (bucket, _) = timers.pop_due(60_000).unwrap();
        assert!(!alarm.fired(bucket), "the overtaken entry does not count");
        assert!(timers.is_empty());
    }
}
