//! Merges lines of one database that follow each other closely into one notification.
//!
//! Each node of a cluster records a write for itself, so one write causes one to four lines within
//! 0.8 s. Subscribers are notified of the first line at once. It may come before the client's node
//! has the document, so later lines are not dropped: all lines within the window cause one
//! notification at its end.
//!
//! ```text
//!  line ─▶ notified at once        line  line          ─▶ one notification         line ─▶ notified at once
//!          └────────────────── window ────────────────────┘
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
    use super::*;
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
}
