//! Long lists of names in `subscribe` and `unsubscribe`. They are processed in slices, session by
//! session in turn, so that no list holds the event loop and each delays only its own session.
//!
//! ```text
//!  subscribe [10,000 names]
//!      │ Intake: names become ids, then parts of the list wait for decisions and positions
//!      ▼
//!    Group: collects the parts; the last one that arrives queues its completion
//!      │ Complete: subscribe and compare in slices, without writes to the session; one reply
//!      ▼
//!   released: the holds of completed work, some each turn
//! ```
//!
//! A session with work here is busy: its later messages wait, in order. While its list is being
//! completed nothing is written to it, so a notification of a database that is subscribed to
//! already comes after the reply.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::state::fair_queue::FairQueue;
use crate::state::positions::RequestedDatabases;
use crate::state::session::Reply;
use crate::state::subscriptions::DatabaseId;
use crate::state::table::{Key, Table};
use crate::wire::howler_v1::Refused;
use crate::wire::name_list::NameList;
use crate::wire::positions::Position;

/// Length of a slice, and longest list that is processed at once.
pub const SLICE: usize = 500;
/// Names in a part of a list, which waits as a whole.
pub const PART: usize = 500;

/// A piece of work of a session.
#[derive(Debug)]
pub enum Work {
    /// Read the names of a `subscribe`.
    Intake(Box<Intake>),
    /// Complete a `subscribe` whose parts have all arrived.
    Complete(Key),
    /// Execute an `unsubscribe`.
    Remove(Box<Removal>),
    /// End all subscriptions of the session, which stays open.
    Leave,
    /// Pass the next deferred message to the session.
    Resume,
}

/// A `subscribe` whose names are being read.
#[derive(Debug)]
pub struct Intake {
    /// Form of the reply, until a group has it.
    pub reply: Reply,
    /// Names of the message.
    pub names: NameList,
    /// Epoch of the positions of these names.
    pub epoch: Option<Box<str>>,
    /// Number of names that were read.
    pub read: usize,
    /// Databases so far, each once and held once.
    pub databases: RequestedDatabases,
    /// Index of each database among them.
    pub places: HashMap<DatabaseId, usize>,
    /// Number of them to which the session does not subscribe yet.
    pub new: usize,
    /// Number of them without a verdict about the user's access.
    pub unknown: usize,
    /// User with reserved room for these, once all names are read.
    pub user: Option<Box<str>>,
    /// Group of the parts, once all names are read.
    pub group: Option<Key>,
}

impl Intake {
    /// Creates the work for a list that is not read yet.
    pub fn new(reply: Reply, names: NameList, epoch: Option<Box<str>>) -> Self {
        let (databases, places) = (RequestedDatabases::new(), HashMap::new());
        Self { reply, names, epoch, read: 0, databases, places, new: 0, unknown: 0, user: None, group: None }
    }
}

/// An `unsubscribe`: its names are read, withdrawn from waiting requests, and then ended.
#[derive(Debug)]
pub struct Removal {
    /// Form of the reply.
    pub reply: Reply,
    /// Names of the message.
    pub names: NameList,
    /// Number of names that were read.
    pub read: usize,
    /// Databases of these names, each held once.
    pub databases: HashSet<DatabaseId>,
    /// Step that comes next.
    pub step: RemovalStep,
}

/// Steps of an `unsubscribe`. Meanwhile requests go on from the second step to the third and the
/// fourth, so none is missed; those that are completed earlier subscribe, which the last step ends.
#[derive(Debug)]
pub enum RemovalStep {
    /// Read names.
    Read,
    /// Withdraw the databases from these requests, which wait for decisions.
    WithdrawUndecided(VecDeque<Key>),
    /// Withdraw them from these requests, which wait for positions, and then from groups.
    WithdrawPending(VecDeque<Key>),
    /// End the subscriptions to these databases.
    End(Vec<DatabaseId>),
}

impl Removal {
    /// Creates the work for a list that is not read yet.
    pub fn new(reply: Reply, names: NameList) -> Self {
        Self { reply, names, read: 0, databases: HashSet::new(), step: RemovalStep::Read }
    }
}

/// A `subscribe` whose parts wait, or are being completed.
#[derive(Debug)]
pub struct Group {
    /// Session that subscribes.
    pub session: Key,
    /// Form of the reply.
    pub reply: Reply,
    /// Epoch of the client's positions.
    pub epoch: Option<Box<str>>,
    /// Databases that have arrived, each held once.
    pub names: RequestedDatabases,
    /// Number of parts that have not arrived.
    parts: usize,
    /// Error of the request: its name and its message.
    pub error: Option<(&'static str, String)>,
    /// Number of completed names.
    pub completed: usize,
    /// New subscriptions, in order.
    pub added: Vec<DatabaseId>,
    /// Position of each subscribed database.
    pub stand: Vec<(DatabaseId, Option<Position>)>,
    /// Databases whose position differs from the client's.
    pub changed: Vec<DatabaseId>,
    /// Databases that the user may not read.
    pub refused: Vec<Refused>,
    /// Groups of the session that have arrived while this one was being completed, and are
    /// completed after it.
    next: Vec<Key>,
}

impl Group {
    /// Returns whether its completion has begun.
    fn is_begun(&self) -> bool {
        self.completed > 0 || self.error.is_some()
    }
}

/// Deferred messages of a busy session.
#[derive(Debug, Default)]
struct Deferred {
    messages: VecDeque<Box<str>>,
    bytes: usize,
}

/// Cancelled work of a session.
#[derive(Debug, Default)]
pub struct Cancelled {
    /// Forms of the replies to its requests.
    pub replies: Vec<Reply>,
    /// Whether the session was about to end its subscriptions.
    pub leaves: bool,
    /// Users and the number of databases for which room was reserved.
    pub reserved: Vec<(Box<str>, usize)>,
}

/// Queued work of all sessions.
#[derive(Debug, Default)]
pub struct NameLists {
    work: FairQueue<Key, Work>,
    groups: Table<Group>,
    groups_of: HashMap<Key, Vec<Key>>,
    deferred: HashMap<Key, Deferred>,
    /// Session that is handling a deferred message.
    resuming: Option<Key>,
    /// Sessions that are not written to.
    withheld: HashSet<Key>,
    /// Databases whose holds have to be released.
    released: VecDeque<Vec<DatabaseId>>,
}

impl NameLists {
    /// Queues work of a session.
    pub fn push(&mut self, session: Key, work: Work) {
        self.work.push(session, work);
    }

    /// Puts back unfinished work; the other sessions come first.
    pub fn put_back(&mut self, session: Key, work: Work) {
        self.work.push_front(session, work);
    }

    /// Returns the next piece of work.
    pub fn pop(&mut self) -> Option<(Key, Work)> {
        self.work.pop()
    }

    /// Returns whether a session has work, so that its messages are deferred.
    pub fn is_busy(&self, session: Key) -> bool {
        !self.work.is_empty() && self.work.len_of(session) > 0
    }

    /// Returns whether there is work now.
    pub fn has_work(&self) -> bool {
        !self.work.is_empty() || !self.released.is_empty()
    }

    /// Defers a message of a busy session. Returns false if more than `most` bytes wait.
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

    /// Takes the next deferred message, for [`Work::Resume`].
    pub fn next_message(&mut self, session: Key) -> Option<Box<str>> {
        let deferred = self.deferred.get_mut(&session)?;
        self.resuming = Some(session);
        let text = deferred.messages.pop_front()?;
        deferred.bytes -= text.len() + size_of::<Box<str>>();
        Some(text)
    }

    /// Queues the message after the one that was handled, behind all work of that one.
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

    /// Stops writing to a session until [`NameLists::resume_writes`].
    pub fn pause_writes(&mut self, session: Key) {
        self.withheld.insert(session);
    }

    /// Resumes writing to a session, unless another of its lists is being completed.
    pub fn resume_writes(&mut self, session: Key) {
        if !self.groups_of(session).any(|group| group.completed > 0) {
            self.withheld.remove(&session);
        }
    }

    /// Returns whether nothing may be written to a session.
    pub fn is_withheld(&self, session: Key) -> bool {
        !self.withheld.is_empty() && self.withheld.contains(&session)
    }

    /// Creates the group of a `subscribe` that waits in `parts` parts.
    pub fn add_group(&mut self, session: Key, reply: Reply, epoch: Option<Box<str>>, parts: usize) -> Key {
        let group = self.groups.insert(Group {
            session,
            reply,
            epoch,
            names: RequestedDatabases::new(),
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

    /// Adds a part that no longer waits to its group. The last part queues the completion.
    pub fn arrive(&mut self, group: Key, names: RequestedDatabases) {
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
            // A failed completion ends the subscriptions that it has added, also those that it
            // shares with this group.
            Some(begun) => begun.next.push(group),
            // The completion goes before later messages, so that the replies keep their order.
            None => self.work.push_front(session, Work::Complete(group)),
        }
    }

    /// Takes out a group whose completion is over, and queues the groups behind it.
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

    /// Takes out a group that is about to be answered. Its names are released over the next turns.
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

    /// Returns the number of names in the groups of a session, without those that wait elsewhere.
    pub fn pending_names(&self, session: Key) -> usize {
        self.groups_of(session).map(|group| group.names.len()).sum()
    }

    /// Returns the number of waiting groups of a session.
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

    /// Cancels the work of a session, but keeps its deferred messages. Holds are released over the
    /// next turns.
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
                    let Removal { reply, databases, step, .. } = *removal;
                    cancelled.replies.push(reply);
                    self.release_databases(match step {
                        RemovalStep::End(left) => left,
                        _ => databases.into_iter().collect(),
                    });
                }
                Work::Leave => cancelled.leaves = true,
                Work::Complete(_) | Work::Resume => {}
            }
        }
        for group in self.groups_of.get(&session).cloned().unwrap_or_default() {
            cancelled.replies.extend(self.take_group(group).map(|group| group.reply));
        }
        self.resume_writes(session);
        cancelled
    }

    /// Queues the deferred messages of a session whose work was cancelled, behind the work that
    /// replaced it.
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

    /// Queues the holds of names for release over the next turns.
    pub fn release(&mut self, names: RequestedDatabases) {
        self.release_databases(names.into_iter().map(|(database, _)| database).collect());
    }

    /// Queues the holds of databases for release over the next turns.
    pub fn release_databases(&mut self, databases: Vec<DatabaseId>) {
        if !databases.is_empty() {
            self.released.push_back(databases);
        }
    }

    /// Returns the next database whose hold the caller has to release.
    pub fn next_released(&mut self) -> Option<DatabaseId> {
        let databases = self.released.front_mut()?;
        let database = databases.pop();
        if databases.is_empty() {
            self.released.pop_front();
        }
        database
    }

    /// Returns whether there is no work and no waiting message.
    pub fn is_empty(&self) -> bool {
        let tables = self.groups.is_empty() && self.groups_of.is_empty() && self.deferred.is_empty();
        tables && self.withheld.is_empty() && !self.has_work()
    }
}
