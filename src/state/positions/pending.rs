//! `subscribe` requests that wait for positions.

use std::collections::HashSet;

use crate::state::session::Reply;
use crate::state::subscriptions::{DatabaseId, Subscriptions};
use crate::state::table::Key;
use crate::wire::positions::Given;

/// Databases of a request, each once and held once, with the position that the client gave.
pub type RequestedDatabases = Vec<(DatabaseId, Given)>;

/// A `subscribe` whose reply waits or is due.
#[derive(Debug)]
pub struct Pending {
    /// Session that subscribes.
    pub session: Key,
    /// Form of the reply.
    pub reply: Reply,
    /// Databases of the request.
    pub names: RequestedDatabases,
    /// Epoch of the client's positions, if it gave one.
    pub epoch: Option<Box<str>>,
    /// Group of the list that it is a part of.
    pub group: Option<Key>,
    /// Databases whose positions it waits for.
    pub(super) awaits: HashSet<DatabaseId>,
    /// Whether its reply is due.
    pub(super) is_ready: bool,
}

impl Pending {
    /// Creates a `subscribe` that waits for no database yet.
    pub fn new(session: Key, reply: Reply, names: RequestedDatabases, epoch: Option<Box<str>>) -> Self {
        Self { session, reply, names, epoch, group: None, awaits: HashSet::new(), is_ready: false }
    }

    /// Releases the databases of a request that was answered or dropped.
    pub fn release(self, subscriptions: &mut Subscriptions) {
        for (database, _) in self.names {
            subscriptions.release(database);
        }
    }

    /// Withdraws databases from it.
    pub(super) fn withdraw(&mut self, databases: &HashSet<DatabaseId>, subscriptions: &mut Subscriptions) {
        self.names.retain(|(database, _)| {
            let stays = !databases.contains(database);
            if !stays {
                self.awaits.remove(database);
                subscriptions.release(*database);
            }
            stays
        });
    }
}
