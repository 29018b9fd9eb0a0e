//! Who may subscribe to what: the `_security` of each watched database, read once for all, kept while someone
//! subscribes, and read again every minute and when the database is made or deleted.
//!
//! ```text
//!  subscribe ──▶ Asked ──▶ Known(security | missing) ──▶ decided
//!                 ▲              │ a minute, or a line `created` or `deleted`
//!                 └──────────────┘ asked again; what was known counts meanwhile
//! ```
//!
//! A database that does not exist may be subscribed to, and nobody is told of its making before it was asked who may
//! read it.

use std::collections::{HashMap, VecDeque};

use crate::state::positions::Named;
use crate::state::session::Reply;
use crate::state::table::{Key, Table};
use crate::state::timers::Millis;
use crate::wire::couchdb::ChangeKind;
use crate::wire::security::{Security, is_server_admin, is_system};

/// Who may subscribe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Whoever logged in, to everything.
    Open,
    /// Those who may read a database.
    Members,
}

/// What is known is asked again after so long, in milliseconds: the answer is there within a minute.
const REFRESH: Millis = 50_000;
/// A question that was not answered is asked again after this long, in milliseconds.
const RETRY: Millis = 1_000;
/// A `subscribe` fails when it is not decided after this long, in milliseconds.
const DECIDE_WITHIN: Millis = 5_000;
/// Most questions at once.
pub const MAX_QUESTIONS: usize = 4;
/// Most databases of which something is known or asked.
const MAX_ENTRIES: usize = 500_000;

/// What CouchDB says of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Who may read it.
    Security(Security),
    /// It does not exist.
    Missing,
}

/// Whether someone may subscribe to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allowed,
    /// No.
    Forbidden,
    /// CouchDB has to be asked.
    Unknown,
}

/// A `subscribe` that waits for decisions.
#[derive(Debug)]
pub struct Undecided {
    /// Who subscribes.
    pub session: Key,
    /// How to answer.
    pub reply: Reply,
    /// To what.
    pub names: Named,
    /// The epoch of the positions beside the names.
    pub epoch: Option<Box<str>>,
    missing: usize,
}

#[derive(Debug, Default)]
struct Entry {
    verdict: Option<Verdict>,
    /// Whether a question waits or is under way.
    asked: bool,
    /// Whether the answer under way may be from before something happened: it is asked once more.
    stale: bool,
    waiting: Vec<Key>,
    /// What is to be told once it is decided to whom.
    untold: Option<ChangeKind>,
    /// Whether it is in the queue of those to be asked again.
    queued: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Access {
    policy: Policy,
    entries: HashMap<Box<str>, Entry>,
    questions: VecDeque<Box<str>>,
    asking: usize,
    undecided: Table<Undecided>,
    undecided_of: HashMap<Key, Vec<Key>>,
    deadlines: VecDeque<(Millis, Key)>,
    /// When to ask again, soonest first within each kind.
    refreshes: VecDeque<(Millis, Box<str>)>,
    retries: VecDeque<(Millis, Box<str>)>,
    ready: VecDeque<Undecided>,
    late: VecDeque<Undecided>,
}

impl Access {
    /// The machine for a policy.
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            entries: HashMap::new(),
            questions: VecDeque::new(),
            asking: 0,
            undecided: Table::default(),
            undecided_of: HashMap::new(),
            deadlines: VecDeque::new(),
            refreshes: VecDeque::new(),
            retries: VecDeque::new(),
            ready: VecDeque::new(),
            late: VecDeque::new(),
        }
    }

    /// Whether anything is restricted.
    pub fn is_restricted(&self) -> bool {
        self.policy == Policy::Members
    }

    /// Whether someone may subscribe to a database, as far as is known.
    pub fn decide(&self, database: &str, user: &str, roles: &[Box<str>]) -> Decision {
        if !self.is_restricted() || is_server_admin(roles) {
            return Decision::Allowed;
        }
        if is_system(database) {
            return Decision::Forbidden;
        }
        match self.entries.get(database).and_then(|entry| entry.verdict.as_ref()) {
            None => Decision::Unknown,
            Some(Verdict::Missing) => Decision::Allowed,
            Some(Verdict::Security(security)) if security.may_read(user, roles) => Decision::Allowed,
            Some(Verdict::Security(_)) => Decision::Forbidden,
        }
    }

    /// Puts a `subscribe` aside until all its databases are decided.
    pub fn wait(&mut self, undecided: Undecided, unknown: &[Box<str>], now: Millis) {
        let session = undecided.session;
        let key = self.undecided.insert(Undecided { missing: unknown.len(), ..undecided });
        self.undecided_of.entry(session).or_default().push(key);
        for name in unknown {
            self.ask(name);
            if let Some(entry) = self.entries.get_mut(name) {
                if entry.waiting.len() == entry.waiting.capacity() {
                    let undecided = &self.undecided;
                    entry.waiting.retain(|key| undecided.get(*key).is_some());
                }
                entry.waiting.push(key);
            }
        }
        self.deadlines.push_back((now + DECIDE_WITHIN, key));
    }

    /// A `subscribe` that waits, for a request of one session and a name; see [`Access::wait`].
    pub fn undecided(session: Key, reply: Reply, names: Named, epoch: Option<Box<str>>) -> Undecided {
        Undecided { session, reply, names, epoch, missing: 0 }
    }

    /// To how many names a session is about to be subscribed once they are decided.
    pub fn pending_names(&self, session: Key) -> usize {
        let keys = self.undecided_of.get(&session).into_iter().flatten();
        keys.filter_map(|key| self.undecided.get(*key)).map(|undecided| undecided.names.len()).sum()
    }

    /// How many requests of a session wait.
    pub fn pending_requests(&self, session: Key) -> usize {
        self.undecided_of.get(&session).map_or(0, Vec::len)
    }

    /// A session does not want to be subscribed to a name any more.
    pub fn withdraw(&mut self, session: Key, name: &str) {
        for key in self.undecided_of.get(&session).into_iter().flatten() {
            if let Some(undecided) = self.undecided.get_mut(*key) {
                undecided.names.retain(|(wanted, _)| **wanted != *name);
            }
        }
    }

    /// Takes all requests of a session back: how each wanted to be answered.
    pub fn cancel(&mut self, session: Key) -> Vec<Reply> {
        self.ready.retain(|undecided| undecided.session != session);
        let keys = self.undecided_of.remove(&session).unwrap_or_default();
        keys.into_iter().filter_map(|key| self.undecided.remove(key)).map(|undecided| undecided.reply).collect()
    }

    /// A request does not wait any more.
    fn take_undecided(&mut self, key: Key) -> Option<Undecided> {
        let undecided = self.undecided.remove(key)?;
        if let Some(keys) = self.undecided_of.get_mut(&undecided.session) {
            keys.retain(|other| *other != key);
            if keys.is_empty() {
                self.undecided_of.remove(&undecided.session);
            }
        }
        Some(undecided)
    }

    /// The next request all of whose databases are decided.
    pub fn next_ready(&mut self) -> Option<Undecided> {
        self.ready.pop_front()
    }

    /// The next request that could not be decided in time.
    pub fn next_late(&mut self) -> Option<Undecided> {
        self.late.pop_front()
    }

    /// Has CouchDB asked about a database.
    fn ask(&mut self, database: &str) {
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(database) {
            return;
        }
        let entry = self.entries.entry(database.into()).or_default();
        if !std::mem::replace(&mut entry.asked, true) {
            self.questions.push_back(database.into());
        }
    }

    /// The next database to ask CouchDB about, unless enough is asked.
    pub fn next_question(&mut self) -> Option<Box<str>> {
        if self.asking >= MAX_QUESTIONS {
            return None;
        }
        let name = self.questions.pop_front()?;
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.stale = false;
        }
        self.asking += 1;
        Some(name)
    }

    /// A line of the feed tells of a change of a database: whether its subscribers may be told now. If not, they are when
    /// it is known who may.
    pub fn handle_line(&mut self, database: &str, kind: ChangeKind) -> bool {
        // One without an entry has no subscribers but server admins.
        let Some(entry) = self.entries.get_mut(database) else { return true };
        let is_there = matches!(entry.verdict, Some(Verdict::Security(_)));
        let in_doubt = !is_there || kind == ChangeKind::Created || entry.untold.is_some();
        if in_doubt {
            entry.untold = Some(entry.untold.map_or(kind, |earlier| earlier.merge(kind)));
        }
        if in_doubt || kind == ChangeKind::Deleted {
            // An answer that is on its way may be from before.
            entry.stale = entry.asked;
            self.ask(database);
        }
        !in_doubt
    }

    /// CouchDB answered about a database; None when it could not say. Returns what is to be told now to those of its
    /// subscribers who may read it. `wanted` says whether it has subscribers.
    pub fn handle_verdict(
        &mut self,
        database: &str,
        verdict: Option<Verdict>,
        wanted: bool,
        now: Millis,
    ) -> Option<ChangeKind> {
        self.asking -= 1;
        let entry = self.entries.get_mut(database)?;
        if verdict.is_none() || entry.stale {
            let after = if verdict.is_none() { RETRY } else { 0 };
            self.retries.push_back((now + after, database.into()));
            return None;
        }
        entry.asked = false;
        entry.verdict = verdict;
        let untold = entry.untold.take();
        let waiting = std::mem::take(&mut entry.waiting);
        if !wanted && waiting.is_empty() && !entry.queued {
            self.entries.remove(database);
            return None;
        }
        if !std::mem::replace(&mut entry.queued, true) {
            self.refreshes.push_back((now + REFRESH, database.into()));
        }
        for key in waiting {
            let Some(undecided) = self.undecided.get_mut(key) else { continue };
            undecided.missing -= 1;
            if undecided.missing == 0 {
                let undecided = self.take_undecided(key);
                self.ready.extend(undecided);
            }
        }
        untold
    }

    /// When [`Access::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let deadline = self.deadlines.front().map(|(at, _)| *at);
        let again = [&self.refreshes, &self.retries].map(|queue| queue.front().map(|(at, _)| *at));
        again.into_iter().chain([deadline]).flatten().min()
    }

    /// Does what the time asks for. `is_wanted` tells whether a database has subscribers.
    pub fn handle_timeout(&mut self, now: Millis, is_wanted: impl Fn(&str) -> bool) {
        while self.deadlines.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.deadlines.pop_front() {
                let undecided = self.take_undecided(key);
                self.late.extend(undecided);
            }
        }
        while self.retries.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, name)) = self.retries.pop_front() {
                self.questions.push_back(name);
            }
        }
        while self.refreshes.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, name)) = self.refreshes.pop_front() else { break };
            let Some(entry) = self.entries.get_mut(&name) else { continue };
            entry.queued = false;
            if is_wanted(&name) || !entry.waiting.is_empty() {
                self.ask(&name);
            } else if !entry.asked {
                self.entries.remove(&name);
            }
        }
    }
}
