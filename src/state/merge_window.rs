//! Merges the lines of one database that follow each other closely into one further notification.
//!
//! Each node of a cluster records a write for itself, so one write makes one to four lines within 0.8 s. The first line
//! is notified at once. It may come before the client's node has the document, so no later line may be dropped; all that
//! come within the window are one notification at its end.
//!
//! ```text
//!  line ─▶ notified at once        line  line          ─▶ one notification         line ─▶ notified at once
//!          └────────────────── window ────────────────────┘
//! ```
//!
//! The window is a property of the database, not of its subscribers. A client that subscribes within it gets the
//! position after all lines so far, and at the end of the window a notification that it may not have needed.

use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;

/// The window of one database. There is one in each database, so the end and the change that is held back share a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeWindow(u64);

/// What is to be done with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Notify subscribers now of a change of this kind.
    Notify(ChangeKind),
    /// Hold it back until the end of the window; for the first that is held back, when that is.
    Hold(Option<Millis>),
}

impl MergeWindow {
    /// Takes a change, with the length of windows that begin now; with none it is notified at once in any case.
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

    /// Takes what was held back, if the window is over.
    pub fn release(&mut self, now: Millis) -> Option<ChangeKind> {
        let held = self.held().filter(|_| now >= self.ends())?;
        *self = Self::new(self.ends(), None);
        Some(held)
    }

    /// Returns whether there is a change that subscribers were not notified of.
    pub fn holds_back(&self) -> bool {
        self.held().is_some()
    }

    fn new(ends: Millis, held: Option<ChangeKind>) -> Self {
        Self(ends << KIND_BITS | held.map_or(0, |kind| kind as u64 + 1))
    }

    /// Returns when it ends.
    fn ends(self) -> Millis {
        self.0 >> KIND_BITS
    }

    /// Returns what is to be notified then.
    fn held(self) -> Option<ChangeKind> {
        let kinds = [ChangeKind::Created, ChangeKind::Updated, ChangeKind::Deleted];
        kinds.into_iter().find(|kind| *kind as u64 + 1 == self.0 & KIND)
    }
}

/// How many bits say what is held back.
const KIND_BITS: u32 = 2;
/// The bits that say it.
const KIND: u64 = (1 << KIND_BITS) - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use ChangeKind::{Created, Deleted, Updated};

    #[test]
    fn the_first_line_is_notified_at_once_and_the_others_together() {
        let mut window = MergeWindow::default();
        assert_eq!(window.admit(Updated, 800, 1_000), Admission::Notify(Updated));
        assert_eq!(window.admit(Updated, 800, 1_001), Admission::Hold(Some(1_800)));
        assert_eq!(window.admit(Updated, 800, 1_799), Admission::Hold(None));
        assert_eq!((window.release(1_799), window.holds_back()), (None, true));
        assert_eq!((window.release(1_800), window.holds_back()), (Some(Updated), false));
        assert_eq!(window.release(1_800), None);
        assert_eq!(window.admit(Updated, 800, 1_801), Admission::Notify(Updated));
        assert_eq!((window.release(5_000), window.holds_back()), (None, false), "nothing followed");
    }

    #[test]
    fn a_line_behind_the_window_takes_with_it_what_was_not_released() {
        let mut window = MergeWindow::default();
        window.admit(Created, 800, 0);
        assert_eq!(window.admit(Deleted, 800, 10), Admission::Hold(Some(800)));
        assert_eq!(window.admit(Updated, 800, 900), Admission::Notify(Deleted));
        assert_eq!(window.release(2_000), None);
    }

    #[test]
    fn without_a_length_nothing_is_held_back() {
        let mut window = MergeWindow::default();
        for _ in 0..3 {
            assert_eq!(window.admit(Updated, 0, 7), Admission::Notify(Updated));
        }
        window.admit(Updated, 800, 10);
        window.admit(Updated, 800, 11);
        assert_eq!(window.admit(Deleted, 0, 12), Admission::Notify(Deleted));
        assert_eq!(window.release(810), None, "nothing is notified behind that");
    }

    #[test]
    fn a_write_on_a_cluster_makes_two_notifications_at_most() {
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
