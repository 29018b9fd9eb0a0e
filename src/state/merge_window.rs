//! Merges lines of one database that follow each other closely into one notification.
//!
//! Each node of a cluster records a write for itself, so one write causes one to four lines within
//! 0.8 s. Subscribers are notified of the first line at once. It may come before the client's node
//! has the document, so later lines are not dropped: all lines within the window cause one
//! notification at its end.
//!
//! ```text
//!  line ─▶ notification     line  line     ─▶ one notification     line ─▶ notification
//!          └────────────── window ────────────┘
//! ```
//!
//! The window is a property of the database, not of its subscribers. A client that subscribes
//! within it gets the position after all lines so far, and at the end of the window a notification
//! that it may not have needed.

use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;

/// Window of one database. Every database has one, so its end and the held change share one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeWindow(u64);

/// Decision about a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Notify subscribers now of a change of this kind.
    Notify(ChangeKind),
    /// Hold the change until the end of the window. Contains the end for the first held change.
    Hold(Option<Millis>),
}

impl MergeWindow {
    /// Handles a change. `length` is the length of a window that begins now; with 0 subscribers are
    /// always notified at once.
    pub fn admit(&mut self, kind: ChangeKind, length: Millis, now: Millis) -> Admission {
        let (ends, held) = (self.ends(), self.held());
        let merged = held.map_or(kind, |earlier| earlier.merge(kind));
        if length == 0 || now >= ends {
            *self = Self::new(now + length, None);
            return Admission::Notify(merged);
        }
        *self = Self::new(ends, Some(merged));
        Admission::Hold(held.is_none().then_some(ends))
    }

    /// Takes the held change if the window is over.
    pub fn release(&mut self, now: Millis) -> Option<ChangeKind> {
        let held = self.held().filter(|_| now >= self.ends())?;
        *self = Self::new(self.ends(), None);
        Some(held)
    }

    /// Returns whether a change is held.
    pub fn holds_back(&self) -> bool {
        self.held().is_some()
    }

    fn new(ends: Millis, held: Option<ChangeKind>) -> Self {
        Self(ends << KIND_BITS | held.map_or(0, |kind| kind as u64 + 1))
    }

    /// Returns the end of the window.
    fn ends(self) -> Millis {
        self.0 >> KIND_BITS
    }

    /// Returns the held change.
    fn held(self) -> Option<ChangeKind> {
        let kinds = [ChangeKind::Created, ChangeKind::Updated, ChangeKind::Deleted];
        kinds.into_iter().find(|kind| *kind as u64 + 1 == self.0 & KIND)
    }
}

/// Bits for the held change.
const KIND_BITS: u32 = 2;
/// Mask of these bits.
const KIND: u64 = (1 << KIND_BITS) - 1;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::state::jitter::Jitter;
    use ChangeKind::{Created, Deleted, Updated};

    #[test]
    fn subscribers_are_notified_of_the_first_line_at_once_and_of_others_together() {
        let mut window = MergeWindow::default();
        assert_eq!(window.admit(Updated, 800, 1_000), Admission::Notify(Updated));
        assert_eq!(window.admit(Updated, 800, 1_001), Admission::Hold(Some(1_800)));
        assert_eq!(window.admit(Updated, 800, 1_799), Admission::Hold(None));
        assert_eq!((window.release(1_799), window.holds_back()), (None, true));
        assert_eq!((window.release(1_800), window.holds_back()), (Some(Updated), false));
        assert_eq!(window.release(1_800), None);
        assert_eq!(window.admit(Updated, 800, 1_801), Admission::Notify(Updated));
        assert_eq!((window.release(5_000), window.holds_back()), (None, false), "no line followed");
    }

    #[test]
    fn a_line_after_the_window_includes_the_held_change() {
        let mut window = MergeWindow::default();
        window.admit(Created, 800, 0);
        assert_eq!(window.admit(Deleted, 800, 10), Admission::Hold(Some(800)));
        assert_eq!(window.admit(Updated, 800, 900), Admission::Notify(Deleted));
        assert_eq!(window.release(2_000), None);
    }

    #[test]
    fn without_a_length_no_change_is_held() {
        let mut window = MergeWindow::default();
        for _ in 0..3 {
            assert_eq!(window.admit(Updated, 0, 7), Admission::Notify(Updated));
        }
        window.admit(Updated, 800, 10);
        window.admit(Updated, 800, 11);
        assert_eq!(window.admit(Deleted, 0, 12), Admission::Notify(Deleted));
        assert_eq!(window.release(810), None, "no notification follows");
    }

    #[test]
    fn a_write_on_a_cluster_causes_at_most_two_notifications() {
        let lines: [&[Millis]; 4] = [&[0], &[0, 799], &[0, 300, 500], &[0, 1, 2, 700]];
        for (times, most) in lines.into_iter().zip([1, 2, 2, 2]) {
            let (mut window, mut notified) = (MergeWindow::default(), 0);
            for time in times {
                notified += u64::from(matches!(window.admit(Updated, 800, *time), Admission::Notify(_)));
            }
            notified += u64::from(window.release(800).is_some());
            assert_eq!(notified, most);
        }
    }

    /// Time between two records of a node.
    const TICK: Millis = 500;
    /// Number of writes that caused one, two, three and four lines, out of 160 on a real cluster of
    /// three nodes.
    const LINES_OF_WRITES: [u64; 4] = [27, 40, 63, 30];

    /// Returns the lines of 461 writes to 10 databases within 135 s: time and database, sorted by
    /// time. They are generated from what was measured on a real cluster of three nodes: the lines
    /// of a write, and that each node records a database at most once per tick.
    fn generate_recording(seed: u64) -> Vec<(Millis, usize)> {
        let mut jitter = Jitter::new(seed);
        let mut below = |bound: u64| jitter.below(bound);
        let phases = [(); 3].map(|()| below(TICK));
        let mut lines = BTreeSet::new();
        for _ in 0..461 {
            let (written, database, first_node) = (below(135_000), below(10), below(3));
            let mut left = below(LINES_OF_WRITES.iter().sum());
            let fits = |share: &u64| left.checked_sub(*share).map(|rest| left = rest).is_none();
            let count = LINES_OF_WRITES.iter().position(fits).expect("below the sum") + 1;
            for line in 0..u64::try_from(count).expect("at most four") {
                let node = (first_node + line) % 3;
                let phase = phases[usize::try_from(node).expect("one of three")];
                // The fourth line is an echo at the next tick of the first node.
                let ticks = (written + TICK - phase) / TICK + line / 3;
                lines.insert((phase + ticks * TICK, database, node));
            }
        }
        lines.into_iter().map(|(time, database, _)| (time, usize::try_from(database).expect("one of ten"))).collect()
    }

    /// A recording of 461 writes on a real cluster had 1,115 lines, which merged to 726
    /// notifications.
    #[test]
    fn merging_the_lines_of_a_cluster_removes_a_third_of_the_notifications() {
        let recordings =
            (0..).map(|number| generate_recording(2 * number + 1)).filter(|lines| lines.len() == 1_115).take(8);
        let counts = recordings.map(|lines| {
            let mut windows = [MergeWindow::default(); 10];
            let mut notified = 0;
            for (time, database) in lines {
                let window = &mut windows[database];
                notified += u32::from(window.release(time).is_some());
                notified += u32::from(matches!(window.admit(Updated, 800, time), Admission::Notify(_)));
            }
            notified + windows.iter_mut().map(|window| u32::from(window.release(Millis::MAX).is_some())).sum::<u32>()
        });
        let counts: Vec<u32> = counts.collect();
        assert!(counts.iter().all(|count| (690..=760).contains(count)), "{counts:?}");
        println!("notifications of 1,115 lines: {counts:?}");
    }
}
