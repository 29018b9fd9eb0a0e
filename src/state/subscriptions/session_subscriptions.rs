//! The subscriptions of one session, and its pending notifications.
//!
//! ```text
//!  None ──▶ One: the database, and whether it is dirty
//!              └──▶ Many: entries; dirty entries form a list, oldest first
//! ```
//!
//! Most sessions have one database and are idle, which takes no memory beside the value itself.

use std::collections::HashMap;

use crate::wire::couchdb::ChangeKind;

/// Number of subscriptions above which a hash map finds them.
const LOOKUP_FROM: usize = 32;
/// Index of no entry, at the ends of the list.
const NONE: u32 = u32::MAX;

/// Subscriptions of a session, numbered from 0 without gaps.
#[derive(Debug, Default)]
pub(super) enum SessionSubscriptions {
    #[default]
    None,
    One(Entry),
    Many(Box<Many>),
}

/// A subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) database: u32,
    /// Number of the subscription among the database's subscribers.
    pub(super) position: u32,
    /// Pending change.
    pub(super) dirty: Option<ChangeKind>,
}

/// More than one subscription, or what is left of them.
#[derive(Debug)]
pub(super) struct Many {
    entries: Vec<Linked>,
    /// Number of the entry by database, if there are many.
    lookup: Option<HashMap<u32, u32>>,
    /// Ends of the list of dirty entries.
    first: u32,
    last: u32,
}

/// An entry, and its neighbours in the list of dirty entries; meaningless while it is not dirty.
#[derive(Clone, Copy, Debug)]
struct Linked {
    entry: Entry,
    previous: u32,
    next: u32,
}

impl SessionSubscriptions {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(many) => many.entries.len(),
        }
    }

    pub(super) fn get(&self, number: u32) -> Option<Entry> {
        match self {
            Self::One(entry) if number == 0 => Some(*entry),
            Self::Many(many) => many.entries.get(number as usize).map(|linked| linked.entry),
            _ => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        (0..index(self.len())).filter_map(|number| self.get(number))
    }

    pub(super) fn find(&self, database: u32) -> Option<u32> {
        match self {
            Self::One(entry) if entry.database == database => Some(0),
            Self::Many(many) => many.find(database),
            _ => None,
        }
    }

    /// Changes the number of a subscription among the database's subscribers.
    pub(super) fn set_position(&mut self, number: u32, position: u32) {
        match self {
            Self::None => {}
            Self::One(entry) => entry.position = position,
            Self::Many(many) => many.entries[number as usize].entry.position = position,
        }
    }

    pub(super) fn add(&mut self, database: u32, position: u32) -> u32 {
        let entry = Entry { database, position, dirty: None };
        match self {
            Self::None => {
                *self = Self::One(entry);
                0
            }
            Self::One(first) => {
                let mut many = Box::new(Many::of(*first));
                let number = many.push(entry);
                *self = Self::Many(many);
                number
            }
            Self::Many(many) => many.push(entry),
        }
    }

    /// Removes an entry; the last one takes its place.
    pub(super) fn remove(&mut self, number: u32) -> Entry {
        if let Self::Many(many) = self {
            let removed = many.remove(number);
            if many.entries.is_empty() {
                *self = Self::None;
            }
            return removed;
        }
        match std::mem::take(self) {
            Self::One(entry) => entry,
            _ => unreachable!("the caller has found the entry"),
        }
    }

    /// Marks a change. Returns false if it was merged with a pending one.
    pub(super) fn mark(&mut self, number: u32, kind: ChangeKind) -> bool {
        match self {
            Self::None => false,
            Self::One(entry) => entry.mark(kind),
            Self::Many(many) => many.mark(number, kind),
        }
    }

    /// Takes the change that has been pending for longest.
    pub(super) fn take_dirty(&mut self) -> Option<(u32, ChangeKind)> {
        match self {
            Self::None => None,
            Self::One(entry) => entry.dirty.take().map(|kind| (entry.database, kind)),
            Self::Many(many) => {
                let first = many.first;
                let kind = many.unmark(first)?;
                Some((many.entries[first as usize].entry.database, kind))
            }
        }
    }

    pub(super) fn is_dirty(&self) -> bool {
        match self {
            Self::None => false,
            Self::One(entry) => entry.dirty.is_some(),
            Self::Many(many) => many.first != NONE,
        }
    }
}

impl Entry {
    fn mark(&mut self, kind: ChangeKind) -> bool {
        let earlier = self.dirty;
        self.dirty = Some(earlier.map_or(kind, |earlier| earlier.merge(kind)));
        earlier.is_none()
    }
}

impl Many {
    fn of(first: Entry) -> Self {
        let mut many = Self { entries: Vec::with_capacity(2), lookup: None, first: NONE, last: NONE };
        many.push(Entry { dirty: None, ..first });
        if let Some(kind) = first.dirty {
            many.mark(0, kind);
        }
        many
    }

    fn find(&self, database: u32) -> Option<u32> {
        match &self.lookup {
            Some(lookup) => lookup.get(&database).copied(),
            None => self.entries.iter().position(|linked| linked.entry.database == database).map(index),
        }
    }

    fn push(&mut self, entry: Entry) -> u32 {
        let number = index(self.entries.len());
        self.entries.push(Linked { entry, previous: NONE, next: NONE });
        if let Some(lookup) = &mut self.lookup {
            lookup.insert(entry.database, number);
        } else if self.entries.len() > LOOKUP_FROM {
            self.lookup = Some(self.entries.iter().map(|linked| linked.entry.database).zip(0..).collect());
        }
        number
    }

    fn remove(&mut self, number: u32) -> Entry {
        self.unmark(number);
        let removed = self.entries.swap_remove(number as usize).entry;
        if let Some(moved) = self.entries.get(number as usize).copied() {
            if moved.entry.dirty.is_some() {
                self.link(moved.previous, number);
                self.link(number, moved.next);
            }
            if let Some(lookup) = &mut self.lookup {
                lookup.insert(moved.entry.database, number);
            }
        }
        if let Some(lookup) = &mut self.lookup {
            lookup.remove(&removed.database);
        }
        removed
    }

    fn mark(&mut self, number: u32, kind: ChangeKind) -> bool {
        let fresh = self.entries[number as usize].entry.mark(kind);
        if fresh {
            self.link(self.last, number);
            self.link(number, NONE);
        }
        fresh
    }

    /// Removes an entry from the list. Returns the pending change, if there is one.
    fn unmark(&mut self, number: u32) -> Option<ChangeKind> {
        let its = self.entries.get_mut(number as usize)?;
        let kind = its.entry.dirty.take()?;
        let (previous, next) = (its.previous, its.next);
        self.link(previous, next);
        Some(kind)
    }

    /// Makes two entries neighbours in the list; [`NONE`] stands for its ends.
    fn link(&mut self, before: u32, after: u32) {
        match self.entries.get_mut(before as usize) {
            Some(linked) => linked.next = after,
            None => self.first = after,
        }
        match self.entries.get_mut(after as usize) {
            Some(linked) => linked.previous = before,
            None => self.last = before,
        }
    }
}

/// Converts a count to an index.
pub(super) fn index(number: usize) -> u32 {
    u32::try_from(number).expect("limits keep all counts far below 2^32")
}
