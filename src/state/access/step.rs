//! Deciding subscriptions again, step by step.

use crate::state::subscriptions::{DatabaseId, SessionIndex};
use crate::state::table::Key;
use crate::wire::couchdb::ChangeKind;

/// A step of deciding subscriptions again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Decide again whether a session may subscribe to a database.
    Decide(SessionIndex, DatabaseId),
    /// Notify the subscribers of a database: all of them may read it.
    Notify(DatabaseId, ChangeKind),
    /// The subscriptions of a session are decided: write to it again.
    Resume(Key),
}

/// Subscriptions to decide again.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pass {
    Database(DatabaseId),
    /// A session, and the number of its subscriptions that are left.
    Session(Key, usize),
}
