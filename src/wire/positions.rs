//! Positions: how far a database's events have come, told by the revisions of its event documents in
//! `_global_changes`.
//!
//! The number in front of the revision of `updated:<db>` counts the updates of that database, and
//! `created:<db>` and `deleted:<db>` count likewise: the same numbers for every reader, whatever was
//! restarted meanwhile, until `_global_changes` itself is made anew (another epoch). So what changed
//! since a position is known at any time, with nothing stored.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;

use super::couchdb::ChangeKind;
use super::json;
use super::nodes::Starts;

/// Most databases that one look-up asks for: all of a client that has many, so that it is answered after one.
pub const MAX_NAMES: usize = 1_000;
/// Longest answer to a look-up, in bytes: three rows for each database, with its name twice in each.
pub const MAX_ANSWER: usize = 3 * MAX_NAMES * (2 * 256 + 256);

/// The revision of an event document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// The number in front: how many events of the kind there were. 0 when there was none.
    pub number: u32,
    /// A fingerprint of the whole, to know the same line when it comes again.
    pub mark: u32,
}

impl Revision {
    /// Reads `29-967a00dff5e02add41819138abb3284d`; None for what has no number in front.
    pub fn parse(text: &str) -> Option<Self> {
        let mut number = 0_u32;
        for (place, byte) in text.bytes().enumerate() {
            match byte {
                b'0'..=b'9' => number = number.checked_mul(10)?.checked_add(u32::from(byte - b'0'))?,
                b'-' if place > 0 => return Some(Self { number, mark: fingerprint(&text.as_bytes()[place + 1..]) }),
                _ => return None,
            }
        }
        None
    }
}

/// A number for a text, eight bytes at a time: every line of the feed has one. Two that are not the same have one
/// number by a chance of 1 to 4 billion; nothing is won by making such, and the numbers in front must be the same too.
fn fingerprint(text: &[u8]) -> u32 {
    // 2^64 divided by the golden ratio: Fibonacci hashing.
    let mix = |mark: u64, word: u64| {
        let product = (mark ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ product >> 32
    };
    let (words, rest) = text.as_chunks::<8>();
    let mark = words.iter().fold(text.len() as u64, |mark, word| mix(mark, u64::from_le_bytes(*word)));
    let mark = mix(mark, rest.iter().fold(0, |word, byte| word << 8 | u64::from(*byte)));
    u32::try_from(mark >> 32).expect("half of the bits")
}

/// How far a database's events have come. Written as `updates.creations.deletions`, `-doubt` where there is one, and
/// `@start` where it is known when CouchDB started; clients take it for opaque.
///
/// # On a cluster
///
/// One write makes one to four events there: each node records it at its own tick, within 0.8 s. A client that leaves
/// between two of them and comes back is told of the database again. It cannot be known whether the later events are
/// echoes of the write that the client was told of:
///
/// - The revision of an event document is a function of its number alone, so it does not say which write made it.
/// - An event within the 0.8 s may be of another write, which a further node recorded with the first one or for itself.
/// - Even an echo counts. It may be the first that comes after the client's node has the document: the client may have
///   read the database before, and found nothing.
///
/// What is known is that all events of a write have come after the time that notifications are merged for. A client
/// that stays that long holds the position after them, and is told nothing when it comes back. On a single node
/// there are no echoes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The numbers of the revisions, by [`slot`].
    pub counts: [u32; 3],
    /// When CouchDB may have lost events that these numbers do not show: a number that tells this position from the
    /// same one before the loss. 0 when there is no such doubt.
    pub doubt: u32,
    /// When the last node of CouchDB started that was known as the position was given, in seconds since 1970 (see
    /// [`Starts`]). 0 when that is not known.
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
    /// Reads a position; None for every text that [`Position`] is not written as.
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

    /// Returns whether no event happened, and none was lost, since a given position. `starts` says when the nodes of
    /// CouchDB started, if that is known.
    ///
    /// - Starts are known: a node must have been up since the start in the given position. A position without a start
    ///   was given by a server that did not know the start. It may be from before a restart, so it is not the same.
    /// - Starts are unknown: the given position must have no start either. A position with a start may be from before
    ///   a restart that this server cannot notice.
    pub fn is_same(self, given: Self, starts: Option<Starts>) -> bool {
        let is_of_this_run = starts.map_or(given.start == 0, |starts| starts.reach_back_to(given.start));
        (self.counts, self.doubt) == (given.counts, given.doubt) && is_of_this_run
    }

    /// Whether the database is there: made more often than deleted.
    pub fn is_there(&self) -> bool {
        let [_, created, deleted] = self.counts;
        created > deleted
    }
}

/// Reads a number as it is written: without a sign, leading zeros or capitals.
fn number(text: &str, radix: u32) -> Option<u32> {
    let written = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
    let leading_zero = text.len() > 1 && text.starts_with('0');
    (!leading_zero && text.bytes().all(written)).then(|| u32::from_str_radix(text, radix).ok())?
}

/// The position that a client gives of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Given {
    /// None.
    #[default]
    Nothing,
    /// This one.
    At(Position),
    /// A text that is no position: the database counts as changed.
    Foreign,
}

impl Given {
    /// Reads what a client gives.
    pub fn of(text: Option<&str>) -> Self {
        text.map_or(Self::Nothing, |text| Position::parse(text).map_or(Self::Foreign, Self::At))
    }

    /// Returns whether the client gives a position.
    pub fn is_given(self) -> bool {
        self != Self::Nothing
    }

    /// Returns whether a database that stands at a position, or at one that is not known, changed since the position
    /// that was given, with a CouchDB whose nodes started then.
    pub fn differs(self, position: Option<Position>, starts: Option<Starts>) -> bool {
        match self {
            Self::Nothing => false,
            Self::At(given) => !position.is_some_and(|position| position.is_same(given, starts)),
            Self::Foreign => true,
        }
    }
}

/// The kinds of event, in the order of a position's counts.
pub const KINDS: [ChangeKind; 3] = [ChangeKind::Updated, ChangeKind::Created, ChangeKind::Deleted];

/// Where in a position a kind is counted.
pub fn slot(kind: ChangeKind) -> usize {
    match kind {
        ChangeKind::Updated => 0,
        ChangeKind::Created => 1,
        ChangeKind::Deleted => 2,
    }
}

/// The body that asks `_all_docs` for the event documents of databases, in the order of [`KINDS`].
pub fn write_keys<'a>(names: impl Iterator<Item = &'a str>) -> Vec<u8> {
    let mut body = b"{\"keys\":[".to_vec();
    for (i, name) in names.enumerate() {
        for (j, kind) in KINDS.iter().enumerate() {
            if i + j > 0 {
                body.push(b',');
            }
            json::write_string(&mut body, &format!("{}:{name}", kind.text()));
        }
    }
    body.extend_from_slice(b"]}");
    body
}

#[derive(Deserialize)]
struct RawRows<'a> {
    #[serde(borrow)]
    rows: Vec<Option<RawRow<'a>>>,
}

#[derive(Deserialize)]
struct RawRow<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    value: Option<RawValue<'a>>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RawValue<'a> {
    #[serde(borrow)]
    rev: Cow<'a, str>,
}

/// Reads the answer for these databases: for each the revisions in the order of [`KINDS`]. None when it is not the
/// answer to that question, all of it.
pub fn read_rows<'a>(body: &[u8], names: impl ExactSizeIterator<Item = &'a str>) -> Option<Vec<[Revision; 3]>> {
    let raw: RawRows<'_> = json::parse_object(body)?;
    let mut rows = raw.rows.into_iter();
    let mut read = Vec::with_capacity(names.len());
    for name in names {
        let mut revisions = [Revision::default(); 3];
        for kind in KINDS {
            let row = rows.next()??;
            let (prefix, rest) = row.key.split_once(':')?;
            if prefix != kind.text() || rest != name {
                return None;
            }
            revisions[slot(kind)] = match (row.value, row.error.as_deref()) {
                (Some(value), None) => Revision::parse(&value.rev)?,
                (None, Some("not_found")) => Revision::default(),
                _ => return None,
            };
        }
        read.push(revisions);
    }
    rows.next().is_none().then_some(read)
}

#[derive(Deserialize)]
struct RawInfo<'a> {
    #[serde(borrow)]
    db_name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    instance_start_time: Option<Cow<'a, str>>,
}

/// Longest epoch, in bytes.
const MAX_EPOCH: usize = 64;

/// Reads the epoch off the answer to `GET /_global_changes`. `Some(None)` when that database has none, so that positions
/// mean nothing; None when the answer is no such answer.
pub fn read_epoch(body: &[u8]) -> Option<Option<Box<str>>> {
    let raw: RawInfo<'_> = json::parse_object(body)?;
    raw.db_name?;
    Some(raw.instance_start_time.filter(|epoch| !epoch.is_empty() && epoch.len() <= MAX_EPOCH).map(Into::into))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(text: &str) -> Revision {
        Revision::parse(text).expect("a revision")
    }

    #[test]
    fn a_revision_is_its_number_and_a_fingerprint() {
        assert_eq!(revision("29-967a00df").number, 29);
        assert_eq!(revision("29-967a00df"), revision("29-967a00df"));
        assert_ne!(revision("29-967a00df").mark, revision("29-967a00de").mark);
        for bad in ["", "-", "-a", "a-1", "+1-a", "1", "99999999999-a"] {
            assert_eq!(Revision::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_a_positions_own_text_is_that_position() {
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
    fn a_position_of_another_start_is_another_one() {
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

    #[test]
    fn asks_for_each_kind_of_each_database() {
        assert_eq!(
            write_keys(["a\"", "b/c"].into_iter()),
            br#"{"keys":["updated:a\"","created:a\"","deleted:a\"","updated:b/c","created:b/c","deleted:b/c"]}"#
        );
        assert_eq!(write_keys([].into_iter()), br#"{"keys":[]}"#);
    }

    const ROWS: &str = r#"{"total_rows":9,"offset":0,"rows":[
        {"id":"updated:a:b","key":"updated:a:b","value":{"rev":"7-abc"}},
        {"key":"created:a:b","error":"not_found"},
        {"id":"deleted:a:b","key":"deleted:a:b","value":{"rev":"2-def","deleted":true},"doc":null}]}"#;

    #[test]
    fn reads_the_whole_answer_or_nothing() {
        let rows = read_rows(ROWS.as_bytes(), ["a:b"].into_iter()).expect("the answer");
        assert_eq!(rows, [[revision("7-abc"), Revision::default(), revision("2-def")]]);
        assert_eq!(read_rows(ROWS.as_bytes(), ["a"].into_iter()), None);
        assert_eq!(read_rows(ROWS.as_bytes(), ["a:b", "c"].into_iter()), None);
        assert_eq!(read_rows(ROWS.as_bytes(), [].into_iter()), None);
        for (from, to) in
            [("not_found", "oops"), ("7-abc", "x"), ("\"updated:a", "\"created:a"), ("{\"key", "null,{\"key")]
        {
            assert_eq!(read_rows(ROWS.replace(from, to).as_bytes(), ["a:b"].into_iter()), None, "{from}");
        }
        for end in 0..ROWS.len() {
            assert_eq!(read_rows(&ROWS.as_bytes()[..end], ["a:b"].into_iter()), None, "{end}");
        }
    }

    #[test]
    fn an_epoch_is_when_the_database_was_made() {
        let info =
            |time: &str| format!(r#"{{"db_name":"_global_changes","instance_start_time":{time},"doc_count":3}}"#);
        assert_eq!(read_epoch(info("\"1795459624\"").as_bytes()), Some(Some("1795459624".into())));
        assert_eq!(read_epoch(info("\"\"").as_bytes()), Some(None));
        assert_eq!(read_epoch(info("null").as_bytes()), Some(None));
        assert_eq!(read_epoch(br#"{"db_name":"_global_changes"}"#), Some(None));
        assert_eq!(read_epoch(br#"{"instance_start_time":"1"}"#), None);
        assert_eq!(read_epoch(b"{}"), None);
        assert_eq!(read_epoch(b"<html>"), None);
    }
}
