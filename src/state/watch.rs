//! What is known of one database's events: its position, and whether that is certain.
//!
//! ```text
//!             look-up                       doubt                look-up
//!  Unknown ─────────────▶ Known ◀──▶ Stale: the position that its subscribers were told of
//!     ▲                                │
//!     └──────── another epoch ─────────┘
//! ```
//!
//! Lines of the feed and the answer to a look-up come over two connections, in no order. A line counts as told
//! before only when it is the last line of its kind again, to the letter; an answer never takes a position back.

use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::positions::{KINDS, Position, Revision, slot};

/// Longest time for what is said to a client to arrive and for a sign of life to come back, in milliseconds.
pub const IN_FLIGHT: Millis = 5_000;

fn seconds(time: Millis) -> u32 {
    // Behind 136 years, a position is not certain any more.
    u32::try_from(time / 1_000 + IN_FLIGHT / 1_000 + 1).unwrap_or(u32::MAX)
}

/// A database that is watched.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// What lines and look-ups said, whichever is more; certain while [`Certainty::Known`].
    position: Position,
    /// Of each kind, the fingerprint of the line that was told last.
    told: [u32; 3],
    certainty: Certainty,
    /// Whether a look-up of it is to come or under way.
    pub wanted: bool,
    /// Whether a line came since a look-up was begun that does not say how far it goes: the answer may be from before.
    pub outrun: bool,
    /// Whether something happened for certain since CouchDB may have lost events: then the position is none from before.
    settled: bool,
    /// When it changed last, in seconds.
    changed: u32,
    /// When it was looked up for the first time although it had subscribers, in seconds, else 0: lines that the look-up
    /// was quicker than are still to tell them.
    overtook: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Certainty {
    /// Never looked up.
    #[default]
    Unknown,
    /// Looked up, but lines may have been missed since.
    Stale,
    /// Looked up, and kept by the feed since.
    Known,
}

impl Watch {
    /// The position, if it is certain.
    pub fn known(&self) -> Option<Position> {
        (self.certainty == Certainty::Known).then_some(self.position)
    }

    /// Whether the position is none that a client can have from before CouchDB may have lost events.
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// CouchDB may have lost events. What was looked up before says nothing about what happens from here on.
    pub fn unsettle(&mut self) {
        self.settled = false;
        self.doubt();
    }

    /// The position up to which subscribers were told, if there is one: a client that comes back with it is told of
    /// everything that it missed.
    pub fn told(&self) -> Option<Position> {
        (self.certainty != Certainty::Unknown).then_some(self.position)
    }

    /// Takes a line of the feed; whether its subscribers are to be told.
    pub fn handle_line(&mut self, kind: ChangeKind, revision: Option<Revision>, now: Millis) -> bool {
        self.changed = seconds(now);
        let Some(revision) = revision else {
            self.outrun = true;
            self.doubt();
            return true;
        };
        let slot = slot(kind);
        let count = &mut self.position.counts[slot];
        if *count == revision.number && self.told[slot] == revision.mark {
            return false;
        }
        // A line may be older than the doubt, and come late or again. What is more than a look-up since then found is
        // not.
        self.settled |= self.certainty == Certainty::Known && revision.number > *count;
        *count = revision.number.max(*count);
        self.told[slot] = revision.mark;
        true
    }

    /// Takes the answer to a look-up: the kinds of event that subscribers were not told of. `subscribed` says
    /// whether there are any. Those of a database that was never looked up are told by the feed.
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
                // The line that says the same may be on its way.
                self.told[slot] = revision.mark;
            }
        }
        self.certainty = Certainty::Known;
        let [_, created, deleted] = self.position.counts;
        // What a client is told last decides: a database is there when it was made more often than deleted.
        let order = if created > deleted { [0, 2, 1] } else { [0, 1, 2] };
        order.into_iter().filter(move |slot| moved[*slot]).map(|slot| KINDS[slot])
    }

    /// Whether a client that was heard of at a moment has been told of everything until now for certain: what is said
    /// just before a connection breaks may never arrive.
    pub fn told_by(&self, heard: Millis) -> bool {
        self.changed.max(self.overtook) < seconds(heard.saturating_sub(IN_FLIGHT))
    }

    /// Whether its subscribers may have to be told of what the position includes already: when the lines stopped to
    /// come at that moment.
    pub fn awaits_lines(&self, followed_until: Millis) -> bool {
        let overtook = self.overtook > 0 && Millis::from(self.overtook) * 1_000 >= followed_until;
        self.told().is_none() || overtook
    }

    /// Lines may have been missed.
    pub fn doubt(&mut self) {
        if self.certainty == Certainty::Known {
            self.certainty = Certainty::Stale;
        }
    }

    /// Nobody subscribes to it any more who was told of its position, or that means nothing in another epoch.
    pub fn forget(&mut self) {
        *self = Self { wanted: self.wanted, outrun: self.outrun, ..Self::default() };
    }

    /// Takes the position to be what the feed says: for names that no database can have.
    pub fn assume(&mut self) {
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

    fn look_up(watch: &mut Watch, counts: [u32; 3], subscribed: bool) -> Vec<ChangeKind> {
        watch.handle_lookup(rows(counts), subscribed, 0).collect()
    }

    fn text(position: Option<Position>) -> String {
        position.map_or("-".to_owned(), |position| position.to_string())
    }

    #[test]
    fn lines_keep_what_a_look_up_found() {
        let mut watch = Watch::default();
        assert_eq!((text(watch.known()), text(watch.told())), ("-".into(), "-".into()));
        assert!(look_up(&mut watch, [29, 1, 0], false).is_empty());
        assert_eq!(text(watch.known()), "29.1.0");
        assert!(!watch.handle_line(Updated, Some(revision(29)), 0), "the look-up had it, and nobody was there before");
        assert!(watch.handle_line(Updated, Some(revision(30)), 0));
        assert!(!watch.handle_line(Updated, Some(revision(30)), 0), "a line that comes twice");
        assert!(watch.handle_line(Deleted, Some(revision(1)), 0));
        assert_eq!(text(watch.known()), "30.1.1");
        let elsewhere = Revision::parse("30-other").expect("a revision");
        assert!(watch.handle_line(Updated, Some(elsewhere), 0), "the same number, and not the same write");
        assert!(watch.handle_line(Updated, Some(revision(28)), 0), "whatever it is, it is not known to be told");
        assert_eq!(text(watch.known()), "30.1.1");
    }

    #[test]
    fn a_line_and_an_answer_may_come_in_any_order() {
        // Subscribed before the look-up, as clients without positions are: the line must be told, before the answer or
        // behind it.
        let mut watch = Watch::default();
        assert!(watch.handle_line(Updated, Some(revision(5)), 0));
        assert!(look_up(&mut watch, [5, 1, 0], true).is_empty());
        assert!(!watch.handle_line(Updated, Some(revision(5)), 0));
        let mut watch = Watch::default();
        assert!(look_up(&mut watch, [5, 1, 0], true).is_empty());
        assert!(watch.handle_line(Updated, Some(revision(5)), 0));
        // The line was quicker than the look-up that does not know it.
        let mut watch = Watch::default();
        assert!(watch.handle_line(Updated, Some(revision(6)), 0));
        assert!(look_up(&mut watch, [5, 1, 0], false).is_empty());
        assert_eq!(text(watch.known()), "6.1.0");
    }

    #[test]
    fn what_moved_while_in_doubt_is_told_once() {
        let mut watch = Watch::default();
        look_up(&mut watch, [5, 1, 0], false);
        watch.doubt();
        assert_eq!((text(watch.known()), text(watch.told())), ("-".into(), "5.1.0".into()));
        assert_eq!(look_up(&mut watch, [7, 2, 1], true), [Updated, Deleted, Created]);
        assert!(!watch.handle_line(Updated, Some(revision(7)), 0), "it was told");
        watch.doubt();
        assert!(look_up(&mut watch, [7, 2, 1], true).is_empty());
        watch.doubt();
        assert_eq!(look_up(&mut watch, [7, 2, 2], true), [Deleted]);
        watch.doubt();
        assert!(watch.handle_line(Updated, Some(revision(8)), 0));
        assert!(look_up(&mut watch, [8, 2, 2], true).is_empty(), "the line has told it");
        watch.forget();
        assert_eq!(text(watch.told()), "-");
        assert!(look_up(&mut watch, [1, 0, 0], true).is_empty());
        assert_eq!(text(watch.known()), "1.0.0");
    }

    #[test]
    fn subscribers_wait_for_the_lines_that_a_first_look_up_overtook() {
        let mut watch = Watch::default();
        assert!(watch.awaits_lines(100_000));
        look_up(&mut watch, [5, 1, 0], false);
        assert!(!watch.awaits_lines(0), "nobody was there");
        watch.forget();
        assert!(watch.handle_lookup(rows([5, 1, 0]), true, 60_000).next().is_none());
        assert!(watch.awaits_lines(60_000) && watch.awaits_lines(60_000 + IN_FLIGHT), "they may be on their way");
        assert!(!watch.awaits_lines(60_000 + 2 * IN_FLIGHT));
        assert!(!watch.told_by(60_000 + IN_FLIGHT) && watch.told_by(60_000 + 3 * IN_FLIGHT));
    }

    #[test]
    fn only_what_is_newer_than_a_doubt_for_certain_settles_it() {
        let mut watch = Watch::default();
        look_up(&mut watch, [5, 1, 0], true);
        watch.handle_line(Updated, Some(revision(6)), 0);
        assert!(watch.is_settled());
        watch.unsettle();
        assert!(watch.handle_line(Updated, Some(revision(7)), 0), "CouchDB wrote it before it stopped, maybe");
        assert!(!watch.is_settled());
        look_up(&mut watch, [8, 1, 0], true);
        for (kind, number) in [(Updated, 7), (Updated, 8), (Created, 1)] {
            watch.handle_line(kind, Some(revision(number)), 0);
            assert!(!watch.is_settled(), "a line that comes again, or late: {number}");
        }
        assert!(watch.handle_line(Updated, Some(revision(9)), 0));
        assert!(watch.is_settled());
    }

    #[test]
    fn a_line_without_a_revision_is_told_and_leaves_doubt() {
        let mut watch = Watch::default();
        assert!(watch.handle_line(Created, None, 0));
        look_up(&mut watch, [1, 1, 0], false);
        assert!(watch.handle_line(Created, None, 0));
        assert_eq!((text(watch.known()), text(watch.told())), ("-".into(), "1.1.0".into()));
    }
}
