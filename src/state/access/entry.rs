//! Knowledge about one database: its verdict, its lookup, and the requests that wait for it.

use super::verdict::Verdict;
use crate::state::security_memory::SecurityMemory;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::positions::Position;

/// State of the lookup of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum LookupState {
    /// There is none.
    #[default]
    None,
    /// It is queued.
    Queued,
    /// It is queued among the databases in doubt.
    Urgent,
    /// It is in flight.
    InFlight,
    /// It is queued again at this time.
    Backoff(Millis),
}

/// Knowledge about a database, which is held once for it.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) verdict: Option<Verdict>,
    pub(super) lookup: LookupState,
    /// Number of consecutive lookups without a valid reply.
    pub(super) failures: u8,
    /// Last event since the lookup began; the reply may be older.
    pub(super) since: Option<ChangeKind>,
    /// Requests that wait for it, including some that no longer wait.
    pub(super) waiting: Vec<Key>,
    /// Number of requests that wait for it.
    pub(super) waiters: u32,
    /// Whether it may be another database since the last verdict.
    pub(super) in_doubt: bool,
    /// Change of which its subscribers are notified once they are decided.
    pub(super) pending_change: Option<ChangeKind>,
    /// Position before it came into doubt.
    pub(super) position_before: Option<Position>,
    /// Number of subscribers left to decide again, during that pass.
    pub(super) left: Option<usize>,
    /// Time of the next refresh.
    pub(super) refresh: Option<Millis>,
}

impl Entry {
    pub(super) fn is_there(&self) -> bool {
        matches!(self.verdict, Some(Verdict::Security(_) | Verdict::TooLarge | Verdict::NoRoom))
    }

    /// Replaces the verdict.
    pub(super) fn set_verdict(&mut self, database: DatabaseId, verdict: Option<Verdict>, memory: &mut SecurityMemory) {
        let bytes = |verdict: &Option<Verdict>| verdict.as_ref().map_or(0, Verdict::bytes);
        memory.remove(database, bytes(&self.verdict));
        memory.insert(database, bytes(&verdict));
        self.verdict = verdict;
    }

    /// Notes an event of the database.
    pub(super) fn note(&mut self, kind: ChangeKind) {
        let earlier = self.since.filter(|_| kind == ChangeKind::Updated);
        self.since = (self.lookup == LookupState::InFlight).then_some(earlier.unwrap_or(kind));
    }

    /// Returns whether a reply may be older than an event that changes it. An update only shows
    /// that the database exists. If updates invalidated replies, a busy database would never get a
    /// verdict.
    pub(super) fn is_outdated(&self, verdict: &Verdict) -> bool {
        match self.since {
            None => false,
            Some(ChangeKind::Updated) => *verdict == Verdict::Missing,
            Some(ChangeKind::Created | ChangeKind::Deleted) => true,
        }
    }
}

/// Returns the position of a database before its creation, as far as it can be derived.
pub(super) fn before_creation(position: Position) -> Position {
    if !position.is_there() {
        return position;
    }
    let [updated, created, deleted] = position.counts;
    Position { counts: [if created == 1 { 0 } else { updated }, deleted, deleted], ..position }
}
