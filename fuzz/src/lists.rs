//! Long lists of names as the server works on them, without a server. Sessions subscribe to lists,
//! withdraw them half way, log in as another user and end, while the work for each is done in
//! slices over turns. A naive model knows the subscriptions of each session, and which of its
//! requests need a reply.
//!
//! A script consists of lines; a line that is no operation is skipped. `N` is the digit of a
//! session (0 to 4), names are letters from `a` to `z`:
//!
//! ```text
//! N>abc     subscribes          N/abc     unsubscribes         N#3       subscribes to 300 names of its own
//! N!        a heartbeat         N~        another user logs in: all subscriptions end
//! N-        the session ends
//! N.        what waits is written, from here on at the end of each turn, or no more
//! @a        a database changes
//! )         the oldest lookup is answered        (         it fails
//! =7        all users together may have 7 subscriptions from here on (=0: any number)
//! E         positions become known, or are not kept from here on
//! T         slices are a hundred times as large from here on, or as small as before
//! ~1234     time passes, in milliseconds
//! &…        an operation, and another one in the same turn
//! ```
//!
//! The slices are much smaller than a server's, so that short scripts take many turns.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use couchdb_howler::state::jitter::Jitter;
use couchdb_howler::state::name_lists::{Intake, NameLists, Removal, RemovalStep, Work};
use couchdb_howler::state::positions::{Batch, MAX_BATCHES, Pending, Positions, RequestedDatabases};
use couchdb_howler::state::session::Reply;
use couchdb_howler::state::session_cleanup::{EndedSession, RememberedSession, SessionCleanup};
use couchdb_howler::state::subscriptions::{SessionIndex, Subscriptions};
use couchdb_howler::state::table::{Key, Table};
use couchdb_howler::state::timers::Millis;
use couchdb_howler::wire::couchdb::ChangeKind;
use couchdb_howler::wire::name_list::NameList;

const SESSIONS: usize = 5;
/// Longest time of a script, in milliseconds.
const MAX_OPERATIONS: usize = 200;
const MAX_BULK: usize = 6;
/// Names in a slice and in a part, and the work of a turn.
const SLICE: usize = 3;
const PART: usize = 4;
const A_TURN: usize = 5;
/// Subscriptions of ended sessions that end in one turn.
const ENDED_A_TURN: usize = 3;
/// Most bytes of waiting messages.
const MAX_DEFERRED: usize = 2_000;
/// Longest wait of a `subscribe` for positions, in milliseconds.
const ANSWER_WITHIN: Millis = 5_000;
/// Time that a database is kept without subscribers, in milliseconds.
const LINGER: Millis = 60_000;

/// A request of a session without a reply.
struct Asked {
    subscribes: bool,
    names: BTreeSet<String>,
    /// Names that later requests have withdrawn: all of them, and those of requests with a reply.
    withdrawn: BTreeSet<String>,
    certainly: BTreeSet<String>,
}

/// The state of a client from its own view.
#[derive(Default)]
struct Client {
    /// Key of the session while it exists.
    key: Option<Key>,
    reads: bool,
    /// Number of the last message that was processed. Messages are processed in order.
    handed: u64,
    asked: BTreeMap<u64, Asked>,
    /// Subscriptions according to the replies.
    subscribed: BTreeSet<String>,
    /// Databases that changed while subscribed, according to the replies, without a notification
    /// yet.
    pending: BTreeSet<String>,
    /// Whether all its subscriptions are ending.
    leaves: bool,
}

/// The fairness of turns; see [`World::check_turns`].
#[derive(Clone, Copy, Default)]
struct Turns {
    /// Begin of its uninterrupted work, and its last turn; 0 for neither.
    since: u64,
    served: u64,
}

struct World {
    now: Millis,
    lists: NameLists,
    positions: Positions,
    subscriptions: Subscriptions,
    departures: SessionCleanup,
    /// Users of ended sessions with subscriptions left, and their slots.
    ended: Vec<(String, SessionIndex)>,
    jitter: Jitter,
    sessions: Table<usize>,
    clients: Vec<Client>,
    messages: u64,
    bulk: usize,
    limit: usize,
    has_epoch: bool,
    flights: VecDeque<(Batch, Vec<String>)>,
    /// Names that belong to one session, with their owner, and those of them to be looked up.
    own: HashMap<String, usize>,
    wanted: HashSet<String>,
    /// Sessions that have withdrawn names which are still in the queue of lookups.
    took_back: [bool; SESSIONS],
    scale: usize,
    /// Lengths of the parts of each group.
    parts: HashMap<Key, usize>,
    pops: u64,
    turns: [Turns; SESSIONS],
    /// Times since which requests wait for positions.
    waits: BTreeMap<u64, Millis>,
}

/// Runs a script to its end, and on until all work is done and all clients have left.
pub fn run(script: &str) {
    let mut world = World::new();
    for line in script.lines().take(MAX_OPERATIONS) {
        let (goes_on, line) = line.strip_prefix('&').map_or((false, line), |rest| (true, rest));
        world.operate(line);
        if !goes_on {
            world.turn();
        }
    }
    world.finish();
}

impl World {
    fn new() -> Self {
        Self {
            now: 1_000,
            lists: NameLists::default(),
            positions: Positions::new(true),
            subscriptions: Subscriptions::default(),
            departures: SessionCleanup::default(),
            ended: Vec::new(),
            jitter: Jitter::new(3),
            sessions: Table::default(),
            clients: (0..SESSIONS).map(|_| Client::default()).collect(),
            messages: 0,
            bulk: 0,
            limit: usize::MAX,
            has_epoch: false,
            flights: VecDeque::new(),
            own: HashMap::new(),
            wanted: HashSet::new(),
            took_back: [false; SESSIONS],
            scale: 1,
            parts: HashMap::new(),
            pops: 0,
            turns: [Turns::default(); SESSIONS],
            waits: BTreeMap::new(),
        }
    }

    fn operate(&mut self, line: &str) {
        let mut letters = line.chars();
        let (Some(first), rest) = (letters.next(), letters.as_str()) else { return };
        let number = rest.parse::<usize>().ok();
        match first {
            '0'..='4' => self.client(first as usize - '0' as usize, rest),
            '@' => self.change(rest),
            ')' => self.answer(true),
            '(' => self.answer(false),
            '=' => self.limit = number.filter(|limit| *limit > 0).unwrap_or(usize::MAX),
            'E' => {
                let epoch = (!self.has_epoch).then(|| "epoch".into());
                self.has_epoch |= self.positions.are_available() && epoch.is_some();
                self.positions.handle_epoch(epoch, &mut self.subscriptions);
                self.answer_ready();
            }
            'T' => self.scale = if self.scale == 1 { 100 } else { 1 },
            '~' => self.pass(number.unwrap_or(0).min(10_000) as Millis),
            _ => {}
        }
    }

    fn client(&mut self, who: usize, rest: &str) {
        let key = *self.clients[who].key.get_or_insert_with(|| self.sessions.insert(who));
        let mut letters = rest.chars();
        let (Some(operation), rest) = (letters.next(), letters.as_str()) else { return };
        match operation {
            '>' | '/' | '!' => self.send(who, &format!("{operation}{rest}")),
            '#' if self.bulk < MAX_BULK => {
                self.bulk += 1;
                let names = rest.parse::<usize>().unwrap_or(0) % 9 * 100;
                self.send(who, &format!("#{} {names}", self.bulk));
            }
            '~' => self.leave(who, key),
            '-' => self.end(who),
            '.' => self.clients[who].reads ^= true,
            _ => {}
        }
    }

    // The steps of the server's name lists, with smaller numbers.

    /// Sends a message of a client. It is processed, or waits for the work before it.
    fn send(&mut self, who: usize, text: &str) {
        let Some(key) = self.clients[who].key else { return };
        self.messages += 1;
        let text = format!("{} {text}", self.messages);
        if !self.lists.is_busy(key) {
            return self.hand(who, key, &text);
        }
        if !self.lists.defer(key, &text, MAX_DEFERRED) {
            self.end(who);
        }
    }

    fn hand(&mut self, who: usize, key: Key, text: &str) {
        let (number, text) = text.split_once(' ').expect("all have a number");
        let number = number.parse::<u64>().expect("a number");
        let its = &mut self.clients[who];
        assert!(its.handed < number, "messages come in order");
        its.handed = number;
        let names: Vec<String> = match text.strip_prefix('#').and_then(|text| text.split_once(' ')) {
            Some((bulk, count)) => (0..count.parse().expect("ours")).map(|name| format!("{bulk}-{name}")).collect(),
            None => text[1..].chars().filter(char::is_ascii_lowercase).map(String::from).collect(),
        };
        let list: NameList = names.iter().map(|name| (&**name, Some("1.0.0"))).collect();
        let subscribes = text.starts_with('>') || text.starts_with('#');
        if text.starts_with('!') || list.is_empty() {
            return assert!(its.asked.values().all(|asked| asked.subscribes), "it waits for what takes turns");
        }
        let names: BTreeSet<String> = names.into_iter().collect();
        if !subscribes {
            self.took_back[who] = true;
            for asked in its.asked.values_mut() {
                asked.withdrawn.extend(names.iter().filter(|name| asked.names.contains(*name)).cloned());
            }
        } else if text.starts_with('#') {
            self.own.extend(names.iter().map(|name| (name.clone(), who)));
        }
        its.asked.insert(number, Asked { subscribes, names, withdrawn: BTreeSet::new(), certainly: BTreeSet::new() });
        let reply = Reply::Ack(number);
        let work = if subscribes {
            Work::Intake(Box::new(Intake::new(reply, list, None)))
        } else {
            Work::Remove(Box::new(Removal::new(reply, list)))
        };
        self.lists.push(key, work);
    }

    fn work(&mut self) {
        let mut budget = A_TURN * self.scale;
        while budget > 0 {
            self.note_busy();
            let Some((key, work)) = self.lists.pop() else { break };
            let who = *self.sessions.get(key).expect("work of a session that is there");
            self.check_turns(who);
            let cost = match work {
                Work::Resume => self.resume(who, key),
                Work::Intake(intake) => self.take_in(key, intake),
                Work::Complete(group) => self.complete(who, key, group),
                Work::Remove(removal) => self.remove(who, key, removal),
                Work::Leave => self.leave_some(who, key),
            };
            budget = budget.saturating_sub(cost.max(1));
        }
        for _ in 0..A_TURN * self.scale {
            let Some(database) = self.lists.next_released() else { break };
            self.subscriptions.release(database);
        }
    }

    fn note_busy(&mut self) {
        self.pops += 1;
        for (client, turns) in self.clients.iter().zip(&mut self.turns) {
            match client.key.is_some_and(|key| self.lists.is_busy(key)) {
                true if turns.since == 0 => turns.since = self.pops,
                true => {}
                false => *turns = Turns::default(),
            }
        }
    }

    /// Asserts that between two turns of a session every other busy session has a turn.
    fn check_turns(&mut self, who: usize) {
        let before = self.turns[who].served;
        for (other, turns) in self.turns.iter().enumerate() {
            let waits = other != who && turns.since > 0 && before > 0 && turns.since <= before;
            assert!(!waits || turns.served > before, "{other} waits for more than a round");
        }
        self.turns[who].served = self.pops;
    }

    fn resume(&mut self, who: usize, key: Key) -> usize {
        let Some(text) = self.lists.next_message(key) else {
            self.lists.resume(key);
            return 0;
        };
        self.hand(who, key, &text);
        self.lists.resume(key);
        1
    }

    fn take_in(&mut self, key: Key, mut intake: Box<Intake>) -> usize {
        let Some(group) = intake.group else {
            let Intake { names, read, databases, places, .. } = &mut *intake;
            let before = *read;
            for _ in 0..SLICE * self.scale {
                let Some((name, given)) = names.get(*read) else { break };
                *read += 1;
                let database = self.subscriptions.hold(name);
                if places.contains_key(&database) {
                    self.subscriptions.release(database);
                    continue;
                }
                places.insert(database, databases.len());
                databases.push((database, given));
            }
            let cost = *read - before;
            if intake.read == intake.names.len() {
                let most = PART * self.scale;
                let parts = intake.databases.len().div_ceil(most);
                let group = self.lists.add_group(key, intake.reply.clone(), None, parts);
                self.parts.insert(group, most);
                intake.group = Some(group);
            }
            self.lists.put_back(key, Work::Intake(intake));
            return cost;
        };
        let most = self.parts[&group];
        let rest = intake.databases.split_off(intake.databases.len().min(most));
        let part = std::mem::replace(&mut intake.databases, rest);
        let cost = part.len();
        let Reply::Ack(number) = intake.reply else { unreachable!("all have a number") };
        let mut pending = Pending::new(key, Reply::Silent, part, None);
        pending.group = Some(group);
        self.waits.insert(number, self.now);
        for (database, _) in &pending.names {
            let name = self.subscriptions.name(*database);
            if self.own.contains_key(name)
                && self.subscriptions.known(*database).is_none()
                && self.positions.are_available()
            {
                self.wanted.insert(name.to_owned());
            }
        }
        self.positions.wait(pending, self.now, &mut self.subscriptions);
        self.answer_ready();
        if !intake.databases.is_empty() {
            self.lists.put_back(key, Work::Intake(intake));
        }
        cost
    }

    fn answer_ready(&mut self) {
        while let Some(pending) = self.positions.next_ready() {
            self.lists.arrive(pending.group.expect("all are parts"), pending.names);
        }
    }

    fn complete(&mut self, who: usize, key: Key, group: Key) -> usize {
        self.lists.pause_writes(key);
        let total = self.subscriptions.total();
        let Some(its) = self.lists.group_mut(group) else { return 0 };
        let cost = if its.error.is_some() {
            let from = its.added.len().saturating_sub(SLICE * self.scale);
            let undone = its.added.split_off(from);
            for database in &undone {
                self.subscriptions.unsubscribe(key.index, *database);
            }
            undone.len()
        } else {
            let slice: RequestedDatabases =
                its.names[its.completed..].iter().take(SLICE * self.scale).copied().collect();
            if total + slice.len() > self.limit {
                its.error = Some(("LimitError", String::new()));
            } else {
                for (database, _) in &slice {
                    if self.subscriptions.subscribe(key.index, *database).expect("within the limit") {
                        its.added.push(*database);
                    }
                    self.positions.queue_lookup(*database, Some(key), &mut self.subscriptions);
                    its.stand.push((*database, self.subscriptions.known(*database)));
                }
                its.completed += slice.len();
            }
            slice.len()
        };
        let Some(its) = self.lists.group_mut(group) else { return cost };
        let is_over = if its.error.is_some() { its.added.is_empty() } else { its.completed == its.names.len() };
        if !is_over {
            self.lists.put_back(key, Work::Complete(group));
            return cost;
        }
        let its = self.lists.finish_group(group).expect("it is there");
        let Reply::Ack(number) = its.reply else { unreachable!("all have a number") };
        let stand = its.stand.iter().map(|(database, _)| self.subscriptions.name(*database).to_owned()).collect();
        self.be_subscribed(who, number, its.error.is_none().then_some(stand));
        self.lists.resume_writes(key);
        cost
    }

    fn remove(&mut self, who: usize, key: Key, mut removal: Box<Removal>) -> usize {
        let Removal { names, read, databases, step, reply } = &mut *removal;
        let Reply::Ack(number) = *reply else { unreachable!("all have a number") };
        let cost = match step {
            RemovalStep::Read => {
                let before = *read;
                for _ in 0..SLICE * self.scale {
                    let Some((name, _)) = names.get(*read) else { break };
                    *read += 1;
                    if let Some(database) = self.subscriptions.find(name)
                        && databases.insert(database)
                    {
                        self.subscriptions.hold_id(database);
                    }
                }
                if *read == names.len() {
                    *step = RemovalStep::WithdrawPending(self.positions.requests_of(key).collect());
                }
                *read - before
            }
            RemovalStep::WithdrawUndecided(_) => unreachable!("access is open"),
            RemovalStep::WithdrawPending(requests) => match requests.pop_front() {
                Some(request) => self.positions.withdraw_from(request, databases, &mut self.subscriptions),
                None => {
                    self.lists.withdraw(key, databases);
                    *step = RemovalStep::End(std::mem::take(databases).into_iter().collect());
                    SLICE
                }
            },
            RemovalStep::End(left) => {
                let ended = left.split_off(left.len().saturating_sub(SLICE * self.scale));
                for database in &ended {
                    self.subscriptions.unsubscribe(key.index, *database);
                    self.subscriptions.release(*database);
                }
                if left.is_empty() {
                    self.answer_ready();
                    self.be_unsubscribed(who, number);
                    return ended.len();
                }
                ended.len()
            }
        };
        self.lists.put_back(key, Work::Remove(removal));
        cost
    }

    /// Withdraws the requests of a session. Returns how each of them wanted its reply.
    fn cancel(&mut self, key: Key, ends: bool) -> (BTreeSet<u64>, bool) {
        let (mut replies, held) = self.positions.cancel(key);
        self.lists.release_databases(held);
        let cancelled = if ends { self.lists.remove(key) } else { self.lists.cancel(key) };
        replies.extend(cancelled.replies);
        let replies: Vec<u64> =
            replies.iter().filter_map(|reply| if let Reply::Ack(id) = reply { Some(*id) } else { None }).collect();
        let ids: BTreeSet<u64> = replies.iter().copied().collect();
        assert_eq!(ids.len(), replies.len(), "each is given back once");
        (ids, cancelled.leaves)
    }

    /// Logs in as another user, which ends all earlier requests.
    fn leave(&mut self, who: usize, key: Key) {
        let (replies, _) = self.cancel(key, false);
        assert!(replies.iter().eq(self.clients[who].asked.keys()), "what is not answered is given back");
        if self.subscriptions.count(key.index) > SLICE * self.scale {
            self.lists.pause_writes(key);
            self.lists.push(key, Work::Leave);
            self.clients[who].leaves = true;
        } else {
            self.drop_last(key, SLICE * self.scale);
            self.clients[who].leaves = false;
        }
        self.lists.resume_later(key);
        let its = &mut self.clients[who];
        self.took_back[who] = true;
        for number in replies {
            self.waits.remove(&number);
        }
        its.asked.clear();
        its.subscribed.clear();
        its.pending.clear();
    }

    fn leave_some(&mut self, who: usize, key: Key) -> usize {
        self.drop_last(key, SLICE * self.scale);
        if self.subscriptions.count(key.index) > 0 {
            self.lists.put_back(key, Work::Leave);
        } else {
            self.lists.resume_writes(key);
            self.clients[who].leaves = false;
        }
        SLICE
    }

    fn drop_last(&mut self, key: Key, most: usize) {
        for _ in 0..most {
            if self.subscriptions.drop_last(key.index).is_none() {
                return;
            }
        }
    }

    /// Ends a session. Its subscriptions end over the next turns, and its slot is not reused before
    /// that.
    fn end(&mut self, who: usize) {
        let Some(key) = self.clients[who].key else { return };
        let (replies, _) = self.cancel(key, true);
        assert!(replies.iter().eq(self.clients[who].asked.keys()), "what is not answered is given back");
        assert_eq!(self.sessions.remove_and_reserve(key), Some(who));
        let memory = Some(RememberedSession { user: format!("user {who}").into(), last_seen: 0, is_certain: true });
        self.ended.push((format!("user {who}"), key.index));
        self.departures.push(EndedSession { session: key.index, memory });
        self.took_back[who] = true;
        for number in replies {
            self.waits.remove(&number);
        }
        self.clients[who] = Client { handed: self.clients[who].handed, ..Client::default() };
        self.turns[who] = Turns::default();
    }

    fn end_departed(&mut self) {
        let mut ended = 0;
        while ended < ENDED_A_TURN * self.scale
            && let Some(departure) = self.departures.front()
        {
            let session = departure.session;
            let user = departure.memory.as_ref().map(|memory| memory.user.clone()).expect("all are remembered");
            let most = self.subscriptions.count(session).min(ENDED_A_TURN * self.scale - ended);
            ended += most.max(1);
            let last: Vec<_> =
                self.subscriptions.last_of_session(session, most).map(|(database, _)| database).collect();
            for database in last {
                assert!(
                    self.departures.may_subscribe(&user, database, &self.subscriptions),
                    "it is not remembered yet"
                );
                assert_eq!(self.subscriptions.drop_last(session), Some(database));
            }
            if self.subscriptions.count(session) == 0 {
                self.departures.pop();
                self.sessions.release(session);
            }
        }
    }

    // The model.

    /// Handles the reply to `subscribe`: the names that are subscribed now, or a failure.
    fn be_subscribed(&mut self, who: usize, number: u64, stand: Option<BTreeSet<String>>) {
        self.waits.remove(&number);
        let its = &mut self.clients[who];
        let asked = its.asked.remove(&number).expect("asked, and not answered before");
        assert!(asked.subscribes);
        let Some(stand) = stand else { return };
        assert!(stand.is_subset(&asked.names) && stand.is_disjoint(&asked.certainly), "what was asked for, and stays");
        let stays: BTreeSet<_> = asked.names.difference(&asked.withdrawn).cloned().collect();
        assert!(stand.is_superset(&stays), "all that was asked for and not taken back");
        its.subscribed.extend(stand);
    }

    fn be_unsubscribed(&mut self, who: usize, number: u64) {
        let its = &mut self.clients[who];
        let asked = its.asked.remove(&number).expect("asked, and not answered before");
        assert!(!asked.subscribes);
        its.subscribed.retain(|name| !asked.names.contains(name));
        its.pending.retain(|name| !asked.names.contains(name));
        for other in its.asked.values_mut() {
            other.certainly.extend(other.names.intersection(&asked.names).cloned().collect::<Vec<_>>());
        }
    }

    fn change(&mut self, name: &str) {
        let Some(name) = name.chars().next().filter(char::is_ascii_lowercase).map(String::from) else { return };
        let Some(database) = self.subscriptions.find(&name) else { return };
        self.subscriptions.mark(database, ChangeKind::Updated, &mut Vec::new());
        for its in &mut self.clients {
            let may_go = its.asked.values().any(|asked| !asked.subscribes && asked.names.contains(&name));
            if its.subscribed.contains(&name) && !may_go {
                its.pending.insert(name.clone());
            }
        }
    }

    fn answer(&mut self, succeeds: bool) {
        let Some((batch, names)) = self.flights.pop_front() else { return };
        let row = |name: &String| {
            let of = |kind: &ChangeKind| {
                format!(
                    "{{\"key\":{},\"error\":\"not_found\"}}",
                    serde_json::Value::from(format!("{}:{name}", kind.text()))
                )
            };
            ChangeKind::ALL.iter().map(of).collect::<Vec<_>>().join(",")
        };
        let rows: Vec<String> = names.iter().map(row).collect();
        let body = format!("{{\"total_rows\":1,\"offset\":0,\"rows\":[{}]}}", rows.join(","));
        let body = succeeds.then_some(body.as_bytes());
        if !succeeds {
            self.wanted.extend(names.iter().filter(|name| self.own.contains_key(*name)).cloned());
        }
        let times = (self.now, &mut self.jitter);
        self.positions.handle_lookup(batch, body, times, &mut self.subscriptions, &mut Vec::new());
        self.answer_ready();
    }

    fn pass(&mut self, time: Millis) {
        let until = self.now + time;
        for _ in 0..100 {
            let due = self.positions.poll_timeout().filter(|at| *at <= until);
            let Some(due) = due else { break };
            self.now = self.now.max(due);
            self.positions.handle_timeout(self.now, &mut self.subscriptions);
            self.answer_ready();
            self.turn();
        }
        self.now = until;
    }

    fn turn(&mut self) {
        self.answer_ready();
        self.end_departed();
        self.work();
        self.positions.sweep(&mut self.subscriptions);
        self.positions.linger(self.now, &mut self.subscriptions);
        while let Some(batch) = self.positions.next_batch(&mut self.subscriptions) {
            let names: Vec<String> =
                batch.databases.iter().map(|database| self.subscriptions.name(*database).to_owned()).collect();
            self.check_shares(&names);
            self.flights.push_back((batch, names));
            assert!(self.flights.len() <= MAX_BATCHES);
        }
        for who in 0..SESSIONS {
            if self.clients[who].reads {
                self.flush(who);
            }
            self.check(who);
        }
        self.check_ended();
    }

    /// Asserts that the databases of ended sessions are known until their last subscription ends.
    fn check_ended(&mut self) {
        let Self { ended, departures, subscriptions, .. } = self;
        ended.retain(|(_, session)| subscriptions.count(*session) > 0);
        for (user, session) in ended {
            for (database, _) in subscriptions.of_session(*session) {
                assert!(departures.may_subscribe(user, database, subscriptions), "{user} is forgotten too early");
            }
        }
    }

    /// Asserts that in a batch no session has over one name more than another one that waits for
    /// some.
    fn check_shares(&mut self, names: &[String]) {
        let mut counts = [0_usize; SESSIONS];
        for name in names {
            self.wanted.remove(name);
            if let Some(who) = self.own.get(name) {
                counts[*who] += 1;
            }
        }
        let most = counts.into_iter().max().unwrap_or(0);
        for who in self.wanted.iter().map(|name| self.own[name]).collect::<BTreeSet<_>>() {
            assert!(self.took_back[who] || counts[who] + 1 >= most, "{who} waits for others: {counts:?}");
        }
    }

    fn flush(&mut self, who: usize) {
        let Some(key) = self.clients[who].key.filter(|key| !self.lists.is_withheld(*key)) else { return };
        while let Some((database, _)) = self.subscriptions.take_dirty(key.index) {
            self.clients[who].pending.remove(self.subscriptions.name(database));
        }
        let its = &mut self.clients[who];
        // Notifications of subscriptions that are about to end are optional.
        let ends = |name: &String| its.asked.values().any(|asked| !asked.subscribes && asked.names.contains(name));
        its.pending.retain(|name| !ends(name));
        assert!(its.pending.is_empty(), "not notified of {:?}", its.pending);
    }

    /// Asserts the invariants at the end of a turn.
    fn check(&self, who: usize) {
        let its = &self.clients[who];
        let Some(key) = its.key else { return };
        for number in its.asked.keys() {
            let since = self.waits.get(number).copied().unwrap_or(self.now);
            // The rest is work, which takes no time here.
            assert!(self.lists.is_busy(key) || self.now <= since + ANSWER_WITHIN, "it waits too long");
        }
        if self.lists.is_busy(key) || its.leaves {
            return;
        }
        assert!(!self.lists.is_withheld(key), "nothing is done for it, and nothing written to it");
        let is: BTreeSet<String> = self
            .subscriptions
            .of_session(key.index)
            .map(|(database, _)| self.subscriptions.name(database).to_owned())
            .collect();
        assert_eq!(is, its.subscribed, "the subscriptions of {who}");
        let waiting: usize = its.asked.values().map(|asked| asked.names.len() - asked.certainly.len()).sum();
        let pending = self.positions.pending_names(key) + self.lists.pending_names(key);
        assert!(pending <= waiting, "{pending} names wait, {waiting} were asked for");
        assert_eq!(self.lists.pending_requests(key), its.asked.len());
    }

    /// Delivers everything under way, then ends all sessions.
    fn finish(&mut self) {
        self.limit = usize::MAX;
        if !self.has_epoch {
            self.operate("E");
        }
        for client in &mut self.clients {
            client.reads = true;
        }
        self.settle();
        for its in &self.clients {
            assert!(its.asked.is_empty() && !its.leaves, "all is answered");
        }
        for who in 0..SESSIONS {
            self.end(who);
        }
        self.settle();
        self.pass(LINGER + 1);
        self.settle();
        let s = &self.subscriptions;
        assert_eq!((s.databases(), s.total(), s.held(), self.positions.waiting()), (0, 0, 0, 0), "nothing is left");
        assert!(self.lists.is_empty() && self.departures.is_empty() && self.sessions.is_empty());
    }

    fn settle(&mut self) {
        for _ in 0..20_000 {
            let works = self.lists.has_work() || !self.departures.is_empty() || self.positions.has_work();
            if !self.flights.is_empty() {
                self.answer(true);
            } else if !works {
                if self.clients.iter().all(|its| its.asked.is_empty()) {
                    return;
                }
                self.pass(1_000);
            }
            self.turn();
        }
        panic!("it does not come to an end");
    }
}
