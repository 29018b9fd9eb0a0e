//! The databases of the demo, and how often each of their events happened.
//!
//! As in CouchDB, `_global_changes` has one document for each database and kind of event. A further
//! event replaces it: its count grows, and it moves to the end of the feed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The databases, and a document for each event.
#[derive(Debug, Default)]
pub(super) struct Databases {
    names: BTreeSet<String>,
    /// By its id, such as `updated:garden`.
    events: BTreeMap<String, Event>,
    last_seq: u64,
}

/// An event document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// How often the event happened.
    pub(super) count: u64,
    /// Position in the feed of the last time.
    pub(super) seq: u64,
}

impl Databases {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn create(&mut self, name: &str) {
        self.names.insert(name.to_owned());
        self.record("created", name);
    }

    pub(super) fn delete(&mut self, name: &str) {
        self.names.remove(name);
        self.record("deleted", name);
    }

    pub(super) fn update(&mut self, name: &str) {
        self.record("updated", name);
    }

    fn record(&mut self, kind: &str, name: &str) {
        self.last_seq += 1;
        let event = self.events.entry(format!("{kind}:{name}")).or_insert(Event { count: 0, seq: 0 });
        *event = Event { count: event.count + 1, seq: self.last_seq };
    }

    /// Returns the document of an event, such as `updated:garden`.
    pub(super) fn event(&self, id: &str) -> Option<Event> {
        self.events.get(id).copied()
    }

    /// Returns the position after all events so far.
    pub(super) fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// Returns the documents of events after a position, in the order of the feed.
    pub(super) fn events_since(&self, seq: u64) -> Vec<(&str, Event)> {
        let later = self.events.iter().filter(|(_, event)| event.seq > seq);
        let mut events: Vec<_> = later.map(|(id, event)| (id.as_str(), *event)).collect();
        events.sort_unstable_by_key(|(_, event)| event.seq);
        events
    }
}

/// The databases as the threads of the demo share them.
#[derive(Debug)]
pub(super) struct SharedDatabases {
    databases: Mutex<Databases>,
    changed: Condvar,
}

impl SharedDatabases {
    pub(super) fn new(names: &[&str]) -> Self {
        let mut databases = Databases::default();
        for name in names {
            databases.create(name);
        }
        Self { databases: Mutex::new(databases), changed: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Databases> {
        self.databases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the databases and wakes the feeds.
    pub(super) fn change(&self, change: impl FnOnce(&mut Databases)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits for a time.
    pub(super) fn pause(&self, time: Duration) {
        drop(self.changed.wait_timeout_while(self.lock(), time, |_| true));
    }

    /// Waits until there are events after a position, but no longer than `timeout`.
    pub(super) fn wait_for_events(&self, seq: u64, timeout: Duration) -> MutexGuard<'_, Databases> {
        let nothing_new = |databases: &mut Databases| databases.last_seq <= seq;
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, nothing_new);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_happens_again_moves_to_the_end() {
        let mut databases = Databases::default();
        databases.create("a");
        databases.update("a");
        databases.update("b");
        databases.update("a");
        let ids: Vec<_> = databases.events_since(1).iter().map(|(id, _)| (*id).to_owned()).collect();
        assert_eq!(ids, ["updated:b", "updated:a"]);
        assert_eq!(databases.event("updated:a"), Some(Event { count: 2, seq: 4 }));
        assert_eq!(databases.events_since(databases.last_seq()), []);
    }

    #[test]
    fn a_deleted_database_is_gone_and_its_events_stay() {
        let mut databases = Databases::default();
        databases.create("a");
        databases.delete("a");
        assert!(!databases.contains("a"));
        assert_eq!((databases.event("created:a"), databases.last_seq()), (Some(Event { count: 1, seq: 1 }), 2));
    }
}
