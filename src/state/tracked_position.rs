//! The position of one database, and its certainty.
//!
//! ```text
//!             lookup                        doubt                lookup
//!  Unknown ─────────────▶ Known ◀──▶ Stale: the position of which subscribers were notified
//!     ▲                                │
//!     └──────── another epoch ─────────┘
//! ```
//!
//! Lines of the feed and replies to lookups come over two connections, in any order. A line counts
//! as repeated only if it is identical to the last line of its kind. A reply never takes a position
//! back.

use crate::state::timers::Millis;
use crate::wire::couchdb::{ChangeKind, Revision};
use crate::wire::positions::Position;

/// Longest time for a message to reach a client and for a sign of life to come back, in
/// milliseconds.
pub const IN_FLIGHT: Millis = 5_000;

fn seconds(time: Millis) -> u32 {
    // After 136 years a position is no longer certain.
    u32::try_from(time / 1_000 + IN_FLIGHT / 1_000 + 1).unwrap_or(u32::MAX)
}

/// Position of a database, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct TrackedPosition {
    /// Maximum of lines and lookups; certain while [`Certainty::Known`].
    position: Position,
    /// Per kind, the fingerprint of the last line of which subscribers were notified.
    notified_lines: [u32; 3],
    certainty: Certainty,
    /// Whether a lookup is queued or in flight.
    pub lookup_pending: bool,
    /// Whether a line without a revision has come since the lookup began: the reply may be older
    /// than the line.
    pub lookup_outdated: bool,
    /// Whether an event certainly happened after CouchDB may have lost events, so that the position
    /// is a new one.
    settled: bool,
    /// Time of the last change, in seconds.
    changed: u32,
    /// Time of a first lookup while there were subscribers, in seconds, else 0. Subscribers are
    /// still to be notified by the lines that the lookup has overtaken.
    overtook: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Certainty {
    /// No lookup yet.
    #[default]
    Unknown,
    /// Looked up, but lines may have been missed since.
    Stale,
    /// Looked up, and updated by the feed since.
    Known,
}

impl TrackedPosition {
    /// Returns the position, if it is certain.
    pub fn known(&self) -> Option<Position> {
        (self.certainty == Certainty::Known).then_some(self.position)
    }

    /// Returns whether no client can have this position from before CouchDB may have lost events.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Handles a possible loss of events in CouchDB: earlier lookups do not cover what happens from
    /// now on.
    pub fn unsettle(&mut self) {
        self.settled = false;
        self.doubt();
    }

    /// Returns the position up to which subscribers were notified, if there is one. A client that
    /// comes back with it is notified of everything that it missed.
    pub fn notified(&self) -> Option<Position> {
        (self.certainty != Certainty::Unknown).then_some(self.position)
    }

    /// Handles a line of the feed. Returns whether to notify subscribers.
    pub fn handle_line(&mut self, kind: ChangeKind, revision: Option<Revision>, now: Millis) -> bool {
        self.changed = seconds(now);
        let Some(revision) = revision else {
            self.lookup_outdated = true;
            self.doubt();
            return true;
        };
        let slot = kind.index();
        let count = &mut self.position.counts[slot];
        if *count == revision.number && self.notified_lines[slot] == revision.mark {
            return false;
        }
        // A line may be older than the doubt, late or repeated. A line beyond a lookup since the
        // doubt is new.
        self.settled |= self.certainty == Certainty::Known && revision.number > *count;
        *count = revision.number.max(*count);
        self.notified_lines[slot] = revision.mark;
        true
    }

    /// Handles the reply to a lookup. Returns the kinds of event of which subscribers have to be
    /// notified. `subscribed` says whether there are any. After the first lookup of a database its
    /// subscribers are notified by the feed.
    pub fn handle_lookup(
        &mut self,
        revisions: [Revision; 3],
        subscribed: bool,
        now: Millis,
    ) -> impl Iterator<Item = ChangeKind> + use<> {
        let mut moved = [false; 3];
        if subscribed && self.certainty == Certainty::Unknown {
            self.overtook = seconds(now);
        }
        for (slot, revision) in revisions.into_iter().enumerate() {
            if revision.number <= self.position.counts[slot] {
                continue;
            }
            self.position.counts[slot] = revision.number;
            moved[slot] = subscribed && self.certainty != Certainty::Unknown;
            if moved[slot] {
                self.changed = seconds(now);
            }
            if moved[slot] || !subscribed {
                // The line with the same content may be in flight.
                self.notified_lines[slot] = revision.mark;
            }
        }
        self.certainty = Certainty::Known;
        let [_, created, deleted] = self.position.counts;
        // The last notification counts for the client: the database exists if it was created more
        // often than deleted.
        let order = if created > deleted { [0, 2, 1] } else { [0, 1, 2] };
        order.into_iter().filter(move |slot| moved[*slot]).map(|slot| ChangeKind::ALL[slot])
    }

    /// Returns whether a client with this last sign of life has certainly received all
    /// notifications. A message shortly before a connection breaks may never arrive.
    pub fn is_notified_by(&self, last_seen: Millis) -> bool {
        self.changed.max(self.overtook) < seconds(last_seen.saturating_sub(IN_FLIGHT))
    }

    /// Returns whether subscribers may lack notifications of changes that the position includes, if
    /// the lines stopped at that time.
    pub fn awaits_lines(&self, followed_until: Millis) -> bool {
        let overtook = self.overtook > 0 && Millis::from(self.overtook) * 1_000 >= followed_until;
        self.notified().is_none() || overtook
    }

    /// Handles a possible loss of lines.
    pub fn doubt(&mut self) {
        if self.certainty == Certainty::Known {
            self.certainty = Certainty::Stale;
        }
    }

    /// Forgets the position, for a database without subscribers or in another epoch.
    pub fn forget(&mut self) {
        *self = Self { lookup_pending: self.lookup_pending, lookup_outdated: self.lookup_outdated, ..Self::default() };
    }

    /// Declares the position certain without a lookup, for names that no database can have.
    pub fn set_certain(&mut self) {
        self.certainty = Certainty::Known;
    }
}

#[cfg(test)]
mod tests {
    use ChangeKind::{Created, Deleted, Updated};

    use super::*;

    fn revision(number: u32) -> Revision {
        Revision::parse(&format!("{number}-{number:x}")).expect("a revision")
    }

    fn rows(counts: [u32; 3]) -> [Revision; 3] {
        counts.map(|count| if count == 0 { Revision::default() } else { revision(count) })
    }

    fn look_up(tracked: &mut TrackedPosition, counts: [u32; 3], subscribed: bool) -> Vec<ChangeKind> {
        tracked.handle_lookup(rows(counts), subscribed, 0).collect()
    }

    fn text(position: Option<Position>) -> String {
        position.map_or("-".to_owned(), |position| position.to_string())
    }

    #[test]
    fn lines_update_the_position_of_a_lookup() {
        let mut tracked = TrackedPosition::default();
        assert_eq!((text(tracked.known()), text(tracked.notified())), ("-".into(), "-".into()));
        assert!(look_up(&mut tracked, [29, 1, 0], false).is_empty());
        assert_eq!(text(tracked.known()), "29.1.0");
        assert!(
            !tracked.handle_line(Updated, Some(revision(29)), 0),
            "the lookup included it, before there was a subscriber"
        );
        assert!(tracked.handle_line(Updated, Some(revision(30)), 0));
        assert!(!tracked.handle_line(Updated, Some(revision(30)), 0), "a repeated line");
        assert!(tracked.handle_line(Deleted, Some(revision(1)), 0));
        assert_eq!(text(tracked.known()), "30.1.1");
        let elsewhere = Revision::parse("30-other").expect("a revision");
        assert!(tracked.handle_line(Updated, Some(elsewhere), 0), "the same number, and not the same write");
        assert!(tracked.handle_line(Updated, Some(revision(28)), 0), "an older number may be new to subscribers");
        assert_eq!(text(tracked.known()), "30.1.1");
    }

    #[test]
    fn a_line_and_a_reply_may_come_in_any_order() {
        // A client without positions subscribes before the lookup: it is notified of the line,
        // whether that comes before or after the reply.
        let mut tracked = TrackedPosition::default();
        assert!(tracked.handle_line(Updated, Some(revision(5)), 0));
        assert!(look_up(&mut tracked, [5, 1, 0], true).is_empty());
        assert!(!tracked.handle_line(Updated, Some(revision(5)), 0));
        let mut tracked = TrackedPosition::default();
        assert!(look_up(&mut tracked, [5, 1, 0], true).is_empty());
        assert!(tracked.handle_line(Updated, Some(revision(5)), 0));
        // The line is faster than a lookup that does not include it.
        let mut tracked = TrackedPosition::default();
        assert!(tracked.handle_line(Updated, Some(revision(6)), 0));
        assert!(look_up(&mut tracked, [5, 1, 0], false).is_empty());
        assert_eq!(text(tracked.known()), "6.1.0");
    }

    #[test]
    fn changes_during_a_doubt_are_notified_once() {
        let mut tracked = TrackedPosition::default();
        look_up(&mut tracked, [5, 1, 0], false);
        tracked.doubt();
        assert_eq!((text(tracked.known()), text(tracked.notified())), ("-".into(), "5.1.0".into()));
        assert_eq!(look_up(&mut tracked, [7, 2, 1], true), [Updated, Deleted, Created]);
        assert!(!tracked.handle_line(Updated, Some(revision(7)), 0), "subscribers were notified of it");
        tracked.doubt();
        assert!(look_up(&mut tracked, [7, 2, 1], true).is_empty());
        tracked.doubt();
        assert_eq!(look_up(&mut tracked, [7, 2, 2], true), [Deleted]);
        tracked.doubt();
        assert!(tracked.handle_line(Updated, Some(revision(8)), 0));
        assert!(look_up(&mut tracked, [8, 2, 2], true).is_empty(), "subscribers were notified by the line");
        tracked.forget();
        assert_eq!(text(tracked.notified()), "-");
        assert!(look_up(&mut tracked, [1, 0, 0], true).is_empty());
        assert_eq!(text(tracked.known()), "1.0.0");
    }

    #[test]
    fn subscribers_wait_for_the_lines_that_a_first_lookup_overtook() {
        let mut tracked = TrackedPosition::default();
        assert!(tracked.awaits_lines(100_000));
        look_up(&mut tracked, [5, 1, 0], false);
        assert!(!tracked.awaits_lines(0), "there was no subscriber");
        tracked.forget();
        assert!(tracked.handle_lookup(rows([5, 1, 0]), true, 60_000).next().is_none());
        assert!(tracked.awaits_lines(60_000) && tracked.awaits_lines(60_000 + IN_FLIGHT), "lines may be in flight");
        assert!(!tracked.awaits_lines(60_000 + 2 * IN_FLIGHT));
        assert!(!tracked.is_notified_by(60_000 + IN_FLIGHT) && tracked.is_notified_by(60_000 + 3 * IN_FLIGHT));
    }

    #[test]
    fn only_certainly_newer_events_settle_a_doubt() {
        let mut tracked = TrackedPosition::default();
        look_up(&mut tracked, [5, 1, 0], true);
        tracked.handle_line(Updated, Some(revision(6)), 0);
        assert!(tracked.is_settled());
        tracked.unsettle();
        assert!(tracked.handle_line(Updated, Some(revision(7)), 0), "CouchDB may have written it before it stopped");
        assert!(!tracked.is_settled());
        look_up(&mut tracked, [8, 1, 0], true);
        for (kind, number) in [(Updated, 7), (Updated, 8), (Created, 1)] {
            tracked.handle_line(kind, Some(revision(number)), 0);
            assert!(!tracked.is_settled(), "a repeated or late line: {number}");
        }
        assert!(tracked.handle_line(Updated, Some(revision(9)), 0));
        assert!(tracked.is_settled());
    }

    #[test]
    fn a_line_without_a_revision_is_notified_and_leaves_doubt() {
        let mut tracked = TrackedPosition::default();
        assert!(tracked.handle_line(Created, None, 0));
        look_up(&mut tracked, [1, 1, 0], false);
        assert!(tracked.handle_line(Created, None, 0));
        assert_eq!((text(tracked.known()), text(tracked.notified())), ("-".into(), "1.1.0".into()));
    }
}
