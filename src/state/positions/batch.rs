//! A batch of lookups.

use crate::state::subscriptions::DatabaseId;
use crate::state::table::Key;

/// Databases that are looked up together.
#[derive(Debug)]
pub struct Batch {
    /// Databases, each held once.
    pub databases: Vec<DatabaseId>,
    /// Owner of each database in the queue.
    pub(super) owners: Vec<Owner>,
    /// Number of the era. Results of an earlier era are void, since the feed has lost lines
    /// meanwhile.
    pub(super) era: u32,
}

/// Session that wants a position; None for the feed.
pub(super) type Owner = Option<Key>;
