//! Long lists of names that sessions subscribe to or unsubscribe from: they are worked off in slices, session by session
//! in turn, so that no list holds the loop and each delays only its own session.
//!
//! ```text
//!  subscribe [10,000 names]
//!      │ Intake: names become ids, then parts of the list wait until they are decided and their positions known
//!      ▼
//!    Group: collects the parts; the last one that arrives queues its completion
//!      │ Complete: subscribe and compare in slices, the session being withheld; one answer at the end
//!      ▼
//!   released: the holds of what is over, some each turn
//! ```
//!
//! A session with work here is busy: its later messages wait, in order. While its list is being completed nothing is
//! written to it, so a change of a database that is subscribed to already is notified after the answer.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::state::fair_queue::FairQueue;
use crate::state::positions::Named;
use crate::state::session::Reply;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::{Key, Table};
use crate::wire::howler_v1::Refused;
use crate::wire::names::NameList;
use crate::wire::positions::Position;

/// Lists of more names than this are worked off in slices of as many.
pub const SLICE: usize = 500;
/// Names in a part of a list that waits as a whole.
pub const PART: usize = 500;

/// A piece of work of a session.
#[derive(Debug)]
pub enum Work {
    /// A `subscribe` comes in.
    Intake(Box<Intake>),
    /// A `subscribe` all of whose parts have arrived.
    Complete(Key),
    /// An `unsubscribe`.
    Remove(Box<Removal>),
    /// The session ends all of its subscriptions, and goes on.
    Leave,
    /// The next message that waits is handed to the session.
    Resume,
}

/// A `subscribe` whose names are being read.
#[derive(Debug)]
pub struct Intake {
    /// How to answer, until a group has it.
    pub reply: Reply,
    /// The names of the message.
    pub names: NameList,
    /// The epoch of the positions beside them.
    pub epoch: Option<Box<str>>,
    /// How many of the names were read.
    pub read: usize,
    /// The databases so far, each once and held once.
    pub databases: Named,
    /// Where each stands among them.
    pub places: HashMap<DatabaseId, usize>,
    /// How many of them the session does not subscribe to.
    pub new: usize,
    /// For how many of them it has to be asked whether the user may read them.
    pub unknown: usize,
    /// The user for whom room for these is kept, once all names are read.
    pub user: Option<Box<str>>,
    /// The group of the parts, once all names are read.
    pub group: Option<Key>,
}

impl Intake {
    /// Creates the work for a list of which nothing is read.
    pub fn new(reply: Reply, names: NameList, epoch: Option<Box<str>>) -> Self {
        let (databases, places) = (Named::new(), HashMap::new());
        Self { reply, names, epoch, read: 0, databases, places, new: 0, unknown: 0, user: None, group: None }
    }
}

/// An `unsubscribe`: the names are read, withdrawn from what waits, and then ended.
#[derive(Debug)]
pub struct Removal {
    /// How to answer.
    pub reply: Reply,
    /// The names of the message.
    pub names: NameList,
    /// How many of the names were read.
    pub read: usize,
    /// Databases of these names, each held once.
    pub databases: HashSet<DatabaseId>,
    /// Those that are still to be ended, once all names are read.
    pub left: Option<Vec<DatabaseId>>,
}

impl Removal {
    /// Creates the work for a list of which nothing is read.
    pub fn new(reply: Reply, names: NameList) -> Self {
        Self { reply, names, read: 0, databases: HashSet::new(), left: None }
    }
}

/// A `subscribe` whose parts wait, or are being completed.
#[derive(Debug)]
pub struct Group {
    /// The session that subscribes.
    pub session: Key,
    /// How to answer.
    pub reply: Reply,
    /// The epoch of the positions that the client gave.
    pub epoch: Option<Box<str>>,
    /// The names that have arrived, each held once.
    pub names: Named,
    /// How many parts have not arrived.
    parts: usize,
    /// Why the request fails: the name of the error and its message.
    pub error: Option<(&'static str, String)>,
    /// How many names were completed.
    pub completed: usize,
    /// What was subscribed to for it, in order.
    pub added: Vec<DatabaseId>,
    /// Where each database stands that is subscribed to.
    pub stand: Vec<(DatabaseId, Option<Position>)>,
    /// Those whose position is not the one that the client gave.
    pub changed: Vec<DatabaseId>,
    /// Those that the user may not read.
    pub refused: Vec<Refused>,
    /// Groups of the session that have arrived while this one was being completed, and are completed after it.
    next: Vec<Key>,
}

impl Group {
    /// Returns whether its completion has begun.
    fn is_begun(&self) -> bool {
        self.completed > 0 || self.error.is_some()
    }
}

/// Messages of a session that wait for the end of its work.
#[derive(Debug, Default)]
struct Deferred {
    messages: VecDeque<Box<str>>,
    bytes: usize,
}

/// What a session had under way.
#[derive(Debug, Default)]
pub struct Cancelled {
    /// How its requests wanted to be answered.
    pub replies: Vec<Reply>,
    /// Whether it was about to end its subscriptions.
    pub leaves: bool,
    /// For whom room for how many databases was kept.
    pub reserved: Vec<(Box<str>, usize)>,
}

/// The machine.
#[derive(Debug, Default)]
pub struct NameLists {
    work: FairQueue<Key, Work>,
    groups: Table<Group>,
    groups_of: HashMap<Key, Vec<Key>>,
    deferred: HashMap<Key, Deferred>,
    /// The session that is handed a message at the moment.
    resuming: Option<Key>,
    /// Sessions that are not written to.
    withheld: HashSet<Key>,
    /// Databases whose holds are over.
    released: VecDeque<Vec<DatabaseId>>,
}

impl NameLists {
    /// Queues work of a session.
    pub fn push(&mut self, session: Key, work: Work) {
        self.work.push(session, work);
    }

    /// Puts back work that is not finished; the other sessions come first.
    pub fn put_back(&mut self, session: Key, work: Work) {
        self.work.push_front(session, work);
    }

    /// Returns the next piece of work.
    pub fn pop(&mut self) -> Option<(Key, Work)> {
        self.work.pop()
    }

    /// Returns whether a session has work, so that its messages are to wait.
    pub fn is_busy(&self, session: Key) -> bool {
        !self.work.is_empty() && self.work.len_of(session) > 0
    }

    /// Returns whether there is anything to do now.
    pub fn has_work(&self) -> bool {
        !self.work.is_empty() || !self.released.is_empty()
    }

    /// Puts a message of a busy session aside; false when that has more than so many bytes waiting.
    pub fn defer(&mut self, session: Key, text: &str, most: usize) -> bool {
        let deferred = self.deferred.entry(session).or_default();
        deferred.bytes += text.len() + size_of::<Box<str>>();
        let is_within = deferred.bytes <= most;
        if is_within {
            deferred.messages.push_back(text.into());
            if deferred.messages.len() == 1 {
                self.work.push(session, Work::Resume);
            }
        }
        is_within
    }

    /// Takes the next message that waits, for [`Work::Resume`]; the ones behind it go on waiting.
    pub fn next_message(&mut self, session: Key) -> Option<Box<str>> {
        let deferred = self.deferred.get_mut(&session)?;
        self.resuming = Some(session);
        let text = deferred.messages.pop_front()?;
        deferred.bytes -= text.len() + size_of::<Box<str>>();
        Some(text)
    }

    /// Queues the message behind the one that was handed on, after whatever work that one has made.
    pub fn resume(&mut self, session: Key) {
        self.resuming = None;
        match self.deferred.get(&session) {
            Some(deferred) if deferred.messages.is_empty() => {
                self.deferred.remove(&session);
            }
            Some(_) => self.work.push(session, Work::Resume),
            None => {}
        }
    }

    /// Has nothing written to a session until [`NameLists::show`].
    pub fn withhold(&mut self, session: Key) {
        self.withheld.insert(session);
    }

    /// Lets a session be written to again, unless another of its lists is being completed.
    pub fn show(&mut self, session: Key) {
        if !self.groups_of(session).any(|group| group.completed > 0) {
            self.withheld.remove(&session);
        }
    }

    /// Returns whether a session is not to be written to.
    pub fn is_withheld(&self, session: Key) -> bool {
        !self.withheld.is_empty() && self.withheld.contains(&session)
    }

    /// Creates the group of a `subscribe` that waits in so many parts.
    pub fn add_group(&mut self, session: Key, reply: Reply, epoch: Option<Box<str>>, parts: usize) -> Key {
        let group = self.groups.insert(Group {
            session,
            reply,
            epoch,
            names: Named::new(),
            parts,
            error: None,
            completed: 0,
            added: Vec::new(),
            stand: Vec::new(),
            changed: Vec::new(),
            refused: Vec::new(),
            next: Vec::new(),
        });
        self.groups_of.entry(session).or_default().push(group);
        group
    }

    /// Takes a part of a group that waits no more. The last one queues the completion.
    pub fn arrive(&mut self, group: Key, names: Named) {
        let Some(its) = self.groups.get_mut(group) else { return self.release(names) };
        its.parts -= 1;
        its.names.extend(names);
        if its.parts == 0 {
            self.queue_completion(group);
        }
    }

    /// Queues the completion of a group, behind the one of its session that has begun.
    fn queue_completion(&mut self, group: Key) {
        let Some(session) = self.groups.get(group).map(|its| its.session) else { return };
        let others = self.groups_of.get(&session).into_iter().flatten();
        let begun = others.copied().find(|other| self.groups.get(*other).is_some_and(Group::is_begun));
        match begun.and_then(|begun| self.groups.get_mut(begun)) {
            // One that fails ends the subscriptions that it has added, also those that this one shares with it.
            Some(begun) => begun.next.push(group),
            // Before the messages behind it, so that they are answered in order.
            None => self.work.push_front(session, Work::Complete(group)),
        }
    }

    /// Takes a group out whose completion is over; those that wait for that are queued.
    pub fn finish_group(&mut self, group: Key) -> Option<Group> {
        let its = self.take_group(group)?;
        for next in &its.next {
            self.queue_completion(*next);
        }
        Some(its)
    }

    /// Returns a group.
    pub fn group_mut(&mut self, group: Key) -> Option<&mut Group> {
        self.groups.get_mut(group)
    }

    /// Takes a group out that is about to be answered. Its names are released over the next turns.
    pub fn take_group(&mut self, group: Key) -> Option<Group> {
        let mut its = self.groups.remove(group)?;
        if let Some(groups) = self.groups_of.get_mut(&its.session) {
            groups.retain(|other| *other != group);
            if groups.is_empty() {
                self.groups_of.remove(&its.session);
            }
        }
        self.release(std::mem::take(&mut its.names));
        Some(its)
    }

    fn groups_of(&self, session: Key) -> impl Iterator<Item = &Group> {
        self.groups_of.get(&session).into_iter().flatten().filter_map(|group| self.groups.get(*group))
    }

    /// Returns to how many names of its groups a session is about to be subscribed, beside those that wait elsewhere.
    pub fn pending_names(&self, session: Key) -> usize {
        self.groups_of(session).map(|group| group.names.len()).sum()
    }

    /// Returns how many groups of a session wait.
    pub fn pending_requests(&self, session: Key) -> usize {
        self.groups_of.get(&session).map_or(0, Vec::len)
    }

    /// Withdraws databases from the groups of a session, none of which is being completed.
    pub fn withdraw(&mut self, session: Key, databases: &HashSet<DatabaseId>) {
        let mut withdrawn = Vec::new();
        for group in self.groups_of.get(&session).into_iter().flatten() {
            let Some(its) = self.groups.get_mut(*group) else { continue };
            its.names.retain(|(database, _)| {
                let stays = !databases.contains(database);
                withdrawn.extend((!stays).then_some(*database));
                stays
            });
        }
        self.release_databases(withdrawn);
    }

    /// Drops the work of a session, but no message that waits. Holds are released over the next turns.
    pub fn cancel(&mut self, session: Key) -> Cancelled {
        let mut cancelled = Cancelled::default();
        for work in self.work.remove_owner(session) {
            match work {
                Work::Intake(intake) => {
                    let Intake { reply, databases, group, unknown, user, .. } = *intake;
                    cancelled.reserved.extend(user.map(|user| (user, unknown)));
                    cancelled.replies.extend(group.is_none().then_some(reply));
                    self.release(databases);
                }
                Work::Remove(removal) => {
                    let Removal { reply, databases, left, .. } = *removal;
                    cancelled.replies.push(reply);
                    self.release_databases(left.unwrap_or_else(|| databases.into_iter().collect()));
                }
                Work::Leave => cancelled.leaves = true,
                Work::Complete(_) | Work::Resume => {}
            }
        }
        for group in self.groups_of.get(&session).cloned().unwrap_or_default() {
            cancelled.replies.extend(self.take_group(group).map(|group| group.reply));
        }
        self.show(session);
        cancelled
    }

    /// Queues the messages of a session again whose work was dropped, behind work that came in its place.
    pub fn resume_later(&mut self, session: Key) {
        if self.deferred.contains_key(&session) && self.resuming != Some(session) {
            self.work.push(session, Work::Resume);
        }
    }

    /// Drops the work and the messages of a session that has ended.
    pub fn remove(&mut self, session: Key) -> Cancelled {
        self.deferred.remove(&session);
        self.cancel(session)
    }

    /// Has the holds of names released over the next turns.
    pub fn release(&mut self, names: Named) {
        self.release_databases(names.into_iter().map(|(database, _)| database).collect());
    }

    /// The same of databases.
    pub fn release_databases(&mut self, databases: Vec<DatabaseId>) {
        if !databases.is_empty() {
            self.released.push_back(databases);
        }
    }

    /// Returns the next database whose hold is over; the caller releases it.
    pub fn next_released(&mut self) -> Option<DatabaseId> {
        let databases = self.released.front_mut()?;
        let database = databases.pop();
        if databases.is_empty() {
            self.released.pop_front();
        }
        database
    }

    /// Returns whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        let tables = self.groups.is_empty() && self.groups_of.is_empty() && self.deferred.is_empty();
        tables && self.withheld.is_empty() && !self.has_work()
    }
}
