//! Positions: the state of a database in the feed, by the revisions of its event documents in
//! `_global_changes`.
//!
//! The number in the revision of `updated:<db>` counts the updates of that database, and so do
//! those of `created:<db>` and `deleted:<db>`. The numbers are the same for every reader and across
//! restarts, until `_global_changes` itself is created again, which begins another epoch. So the
//! changes since a position are known at any time, with nothing stored.

use std::fmt;

use super::nodes::Starts;

/// The position of a database, which clients treat as opaque.
///
/// It is written as `updates.creations.deletions`, with `-doubt` if there is a doubt, and with
/// `@start` if the start of CouchDB is known.
///
/// # On a cluster
///
/// One write causes one to four events: each node records it at its own tick, within 0.8 s. A
/// client that disconnects between two of them is notified of the database again when it
/// reconnects. The server cannot know whether the later events are echoes of the write that the
/// client knows:
///
/// - The revision of an event document depends on its number alone, so it does not identify the
///   write.
/// - An event within the 0.8 s may stem from another write, which a further node recorded.
/// - Even an echo counts. It may be the first event after the client's node has the document: the
///   client may have read the database before, and found nothing.
///
/// All events of a write arrive within the time in which notifications are merged. A client that
/// stays connected that long holds the position after them, and is not notified when it reconnects.
/// A single node causes no echoes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Numbers of the revisions, by [`ChangeKind::index`](super::couchdb::ChangeKind::index).
    pub counts: [u32; 3],
    /// Number that is set when CouchDB may have lost events that the counts do not show. It
    /// distinguishes this position from the same counts before the loss. 0 without such a doubt.
    pub doubt: u32,
    /// Latest known start of a node when the position was given, in seconds since 1970 (see
    /// [`Starts`]). 0 if it was unknown.
    pub start: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [updated, created, deleted] = self.counts;
        write!(f, "{updated}.{created}.{deleted}")?;
        if self.doubt > 0 {
            write!(f, "-{:x}", self.doubt)?;
        }
        if self.start > 0 { write!(f, "@{:x}", self.start) } else { Ok(()) }
    }
}

impl Position {
    /// Parses a position. None for every text that no [`Position`] is written as.
    pub fn parse(text: &str) -> Option<Self> {
        let (text, start) = match text.split_once('@') {
            Some((text, start)) => (text, number(start, 16).filter(|start| *start > 0)?),
            None => (text, 0),
        };
        let (counts, doubt) = match text.split_once('-') {
            Some((counts, doubt)) => (counts, number(doubt, 16).filter(|doubt| *doubt > 0)?),
            None => (text, 0),
        };
        let mut numbers = counts.split('.');
        let mut next = || number(numbers.next()?, 10);
        let counts = [next()?, next()?, next()?];
        numbers.next().is_none().then_some(Self { counts, doubt, start })
    }

    /// Returns whether no event happened, and none was lost, since a given position. `starts` says
    /// when the nodes of CouchDB started, if that is known.
    ///
    /// - Starts are known: a node must have been up since the start in the given position. A
    ///   position without a start was given by a server that did not know the start. It may be from
    ///   before a restart, so it is not the same.
    /// - Starts are unknown: the given position must have no start either. A position with a start
    ///   may be from before a restart that this server cannot notice.
    pub fn is_same(self, given: Self, starts: Option<Starts>) -> bool {
        let is_of_this_run = starts.map_or(given.start == 0, |starts| starts.reach_back_to(given.start));
        (self.counts, self.doubt) == (given.counts, given.doubt) && is_of_this_run
    }

    /// Returns whether the database exists: it was created more often than deleted.
    pub fn is_there(&self) -> bool {
        let [_, created, deleted] = self.counts;
        created > deleted
    }
}

/// Parses a number in canonical form: no sign, leading zeros or capitals.
fn number(text: &str, radix: u32) -> Option<u32> {
    let written = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
    let leading_zero = text.len() > 1 && text.starts_with('0');
    (!leading_zero && text.bytes().all(written)).then(|| u32::from_str_radix(text, radix).ok())?
}

/// The position of a database that a client gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Given {
    /// No position.
    #[default]
    Nothing,
    /// A valid position.
    At(Position),
    /// A text that is no position. The database counts as changed.
    Foreign,
}

impl Given {
    /// Parses the text that a client gives.
    pub fn of(text: Option<&str>) -> Self {
        text.map_or(Self::Nothing, |text| Position::parse(text).map_or(Self::Foreign, Self::At))
    }

    /// Returns whether the client gives a position.
    pub fn is_given(self) -> bool {
        self != Self::Nothing
    }

    /// Returns whether a database with this position, or an unknown one, changed since the given
    /// position, for a CouchDB with these starts.
    pub fn differs(self, position: Option<Position>, starts: Option<Starts>) -> bool {
        match self {
            Self::Nothing => false,
            Self::At(given) => !position.is_some_and(|position| position.is_same(given, starts)),
            Self::Foreign => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_canonical_positions_only() {
        let position = Position { counts: [29, 1, 0], ..Position::default() };
        assert_eq!(position.to_string(), "29.1.0");
        assert_eq!(Position::parse("29.1.0"), Some(position));
        let in_doubt = Position { doubt: 255, ..position };
        assert_eq!(in_doubt.to_string(), "29.1.0-ff");
        assert_eq!(Position::parse("29.1.0-ff"), Some(in_doubt));
        let most = Position { counts: [u32::MAX; 3], doubt: u32::MAX, start: u32::MAX };
        assert_eq!(Position::parse(&most.to_string()), Some(most));
        for none in [
            "",
            "29",
            "29.1",
            "29.1.",
            "29.1.0.0",
            "029.1.0",
            "+29.1.0",
            "29.1.00",
            "x.1.0",
            "29.1.a",
            "29.1.0-",
            "29.1.0-0",
            "29.1.0-0f",
            "29.1.0-FF",
            "29.1.0-g",
            "29.1.0--1",
            "29.1.0-ff-1",
            "29.1.0@",
            "29.1.0@0",
            "29.1.0@01",
            "29.1.0@+1",
            "29.1.0@1@1",
            "29.1.0@1-1",
            "4294967296.1.0",
            " 29.1.0",
        ] {
            assert_eq!(Position::parse(none), None, "{none}");
            assert_eq!(Given::of(Some(none)), Given::Foreign);
        }
        let given = Given::of(Some("29.1.0"));
        let differs = |given: Given, position| given.differs(position, None);
        assert!(!differs(given, Some(position)) && differs(given, Some(in_doubt)) && differs(given, None));
        assert!(differs(Given::Foreign, Some(position)) && !differs(Given::of(None), None));
    }

    #[test]
    fn positions_with_another_start_differ() {
        let position = Position { counts: [29, 1, 0], start: 0x1000, ..Position::default() };
        assert_eq!(position.to_string(), "29.1.0@1000");
        assert_eq!(Position { doubt: 255, ..position }.to_string(), "29.1.0-ff@1000");
        let starts = Some(Starts { earliest: 0x1000, latest: 0x1000, is_single: true });
        let differs = |position: Position, given: &str, starts| Given::of(Some(given)).differs(Some(position), starts);
        for same in ["29.1.0@1000", "29.1.0@1002", "29.1.0@ffe"] {
            assert!(!differs(position, same, starts), "{same}");
        }
        for other in ["29.1.0@ffd", "29.1.0@1003", "30.1.0@1000", "29.1.0-1@1000", "29.1.0"] {
            assert!(differs(position, other, starts), "{other}");
        }
        assert!(differs(position, "29.1.0@1000", None), "whether CouchDB restarted is unknown");
        assert!(!differs(position, "29.1.0", None), "no start is known, then and now");
        assert!(!differs(Position { doubt: 255, ..position }, "29.1.0-ff@1001", starts));
    }
}
