//! Detects restarts of CouchDB by the start times of its nodes.
//!
//! ```text
//!  the feed is opened, or some minutes passed
//!     └─▶ which nodes? ─┬─ one ───▶ when did it start? ─────────────────────────┐
//!                       ├─ many ──▶ when did each start? ── none is allowed ───┐├▶ Finding
//!                       └─ no valid reply ───▶ which node is this? ─▶ when ────┴┘
//! ```
//!
//! A single node that restarts loses the events of its last tick. If one node of a cluster restarts
//! alone, nothing is lost, since the others recorded the same events. If every node has restarted
//! since its last reading, events may be lost. A load balancer may send each request to another
//! node, so nodes are identified by their names.
//!
//! A node has restarted if its start is later than before by more than the tolerance, or if its
//! uptime is shorter than before. If the clock of CouchDB is set forward, that looks like a
//! restart, and clients are notified once without need. If it is set back, the start is earlier.
//! Then connected clients are not notified, but clients that come back to a single node with an
//! older position are. Nothing is lost in either case. The exception is a node that restarts while
//! its clock is set back over its whole uptime: then only the shorter uptime shows the restart.
//!
//! A reading takes several requests, and CouchDB may restart between them. So the nodes that were
//! asked after the last continuous one prove nothing about the time since that request, and do not
//! vouch for the next interval:
//!
//! ```text
//!                  asked: a    all nodes restart    b  c                 a  b  c
//!   a  ───────────────────x    x─────────────────────────────────────────────────   restarted in this reading
//!   b  ───────────────────────x    x─────────────────────────────────────────────   restarted after a: does not vouch
//! ```
//!
//! The start times of such a reading are not used. The next reading follows at once, and asks these
//! nodes first.
//!
//! The machine neither sends requests nor notifies clients.

use crate::state::jitter::{Backoff, Jitter};
use crate::state::timers::Millis;
use crate::wire::nodes::{self, Starts, TOLERANCE};

/// Longest time between two readings while the feed stays open, in milliseconds; the shortest is
/// half of it.
const READ_EVERY: Millis = 240_000;
/// Shortest time between the starts of two readings, in milliseconds. A node in maintenance mode
/// ends the feed after every line, and each opening causes a reading. No node restarts twice in
/// this time.
const READ_PAUSE: Millis = 1_000;
/// Consecutive failed readings after which the start counts as unknown, if it was not known before.
const MAX_FIRST_FAILURES: u32 = 3;
/// The same if the start was known. While it is unknown, all clients that come back are notified.
const MAX_FAILURES: u32 = 8;
/// Most nodes that are asked in one reading.
const MAX_ASKED: usize = 32;
/// Most nodes that are remembered.
const MAX_NODES: usize = 64;

/// A request to CouchDB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// `GET /_membership`
    Membership,
    /// `GET /_node/_local`
    Name,
    /// `GET /_node/{name}/_system`; None for `_local`.
    System(Option<Box<str>>),
}

/// Reply of CouchDB.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// Status code.
    pub status: u16,
    /// `Date` of the reply, in seconds since 1970.
    pub date: Option<u64>,
    /// Body.
    pub body: &'a [u8],
}

/// Result of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The first reading, without an earlier one to compare with.
    First,
    /// A node has been up since the last reading, so no event was lost.
    Continuous,
    /// Every node has restarted, so events may be lost.
    Restarted,
    /// CouchDB does not report its start.
    Unknown,
}

/// Known nodes, and the reading in progress.
#[derive(Debug)]
pub struct Restarts {
    nodes: Vec<Node>,
    knowledge: Knowledge,
    /// Largest number of nodes that CouchDB reported.
    count: Option<usize>,
    reading: Option<Reading>,
    /// Whether a request of the reading is in flight.
    is_asking: bool,
    next_reading: Option<Millis>,
    last_began: Option<Millis>,
    /// Date of the first reply of the last reading, in seconds since 1970.
    read_at: u32,
    failures: u32,
    backoff: Backoff,
    jitter: Jitter,
    /// Since when changes are followed although no node is known: a node that has been up for less
    /// time restarted.
    followed_from: Option<Millis>,
    /// Whether CouchDB was away, so that the next finding decides whether it restarted.
    is_suspected: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// No reading has ended yet.
    Awaited,
    Unknown,
    Known(Starts),
}

#[derive(Debug)]
struct Node {
    name: Box<str>,
    start: u32,
    uptime: u64,
    /// Whether it has restarted, without another node known to be up until this one was asked
    /// again.
    has_restarted: bool,
}

#[derive(Debug)]
struct Reading {
    question: Question,
    /// Nodes to ask before others.
    first: Vec<Box<str>>,
    /// Nodes that are left to ask, the next one last.
    left: Vec<Box<str>>,
    /// Whether the feed was opened or broke meanwhile, so that some replies are older than that.
    is_stale: bool,
    found: Vec<(Box<str>, u32, u64)>,
    /// Name of the node that answers for itself; None unless nodes cannot be asked by name.
    own_name: Option<Box<str>>,
    /// Whether each reading reaches only one node, which answers for itself.
    by_itself: bool,
    /// Date of the first valid reply.
    date: u32,
    refused: bool,
}

impl Restarts {
    /// Creates a machine without a reading.
    pub fn new(jitter: Jitter) -> Self {
        Self {
            nodes: Vec::new(),
            knowledge: Knowledge::Awaited,
            count: None,
            reading: None,
            is_asking: false,
            next_reading: None,
            last_began: None,
            read_at: 0,
            failures: 0,
            backoff: Backoff::default(),
            jitter,
            followed_from: None,
            is_suspected: false,
        }
    }

    /// Returns the start times of the nodes, if they are known.
    pub fn starts(&self) -> Option<Starts> {
        match self.knowledge {
            Knowledge::Known(starts) => Some(starts),
            Knowledge::Awaited | Knowledge::Unknown => None,
        }
    }

    /// Returns whether it is decided if the start times are known.
    pub fn is_settled(&self) -> bool {
        self.knowledge != Knowledge::Awaited
    }

    /// Returns whether CouchDB is a cluster, as far as that is known.
    pub fn is_cluster(&self) -> bool {
        self.count.unwrap_or(self.nodes.len()) > 1
    }

    /// Handles the opening of the feed: CouchDB may have restarted before it.
    pub fn handle_opened(&mut self, now: Millis) {
        let soonest = self.last_began.map_or(now, |began| now.max(began + READ_PAUSE));
        self.next_reading = Some(soonest);
        self.followed_from.get_or_insert(now);
        self.handle_broken();
        self.failures = 0;
        self.backoff.reset();
    }

    /// Handles a break or an opening of the feed: replies from before and after it do not make one
    /// reading.
    pub fn handle_broken(&mut self) {
        match &mut self.reading {
            Some(reading) if self.is_asking => reading.is_stale = true,
            reading => *reading = None,
        }
    }

    /// CouchDB was away: the next finding says whether it restarted. Returns false if the starts
    /// are unknown: the caller treats that as a restart, and readings are compared with this moment
    /// from here on.
    pub fn suspect(&mut self, now: Millis) -> bool {
        self.is_suspected = self.starts().is_some();
        if !self.is_suspected {
            self.forget(now);
        }
        self.is_suspected
    }

    /// Takes back the suspicion, if there is one, for the caller to act on it.
    pub fn take_suspicion(&mut self) -> bool {
        std::mem::take(&mut self.is_suspected)
    }

    /// Returns when [`Restarts::next_question`] is due, while the feed is open.
    pub fn poll_timeout(&self) -> Option<Millis> {
        match (&self.reading, self.is_asking) {
            (_, true) => None,
            (Some(_), false) => Some(0),
            (None, false) => self.next_reading,
        }
    }

    /// Returns the next request, unless one is in flight or none is due.
    pub fn next_question(&mut self, now: Millis) -> Option<Question> {
        if self.is_asking {
            return None;
        }
        if self.reading.is_none() {
            self.next_reading.take_if(|at| *at <= now)?;
            self.last_began = Some(now);
            let first = self.nodes.iter().filter(|node| node.has_restarted).map(|node| node.name.clone()).collect();
            self.reading = Some(Reading::new(first));
        }
        self.is_asking = true;
        self.reading.as_ref().map(|reading| reading.question.clone())
    }

    /// Handles the reply to the request in flight; None if there was none. Returns the finding if
    /// the reading has ended.
    pub fn handle_reply(&mut self, reply: Option<Reply<'_>>, now: Millis) -> Option<Finding> {
        self.is_asking = false;
        let mut reading = self.reading.take().filter(|reading| !reading.is_stale)?;
        if reading.handle_reply(reply, &mut self.count) {
            self.reading = Some(reading);
            return None;
        }
        // If the feed was opened again meanwhile, the next reading is due soon.
        if self.next_reading.is_none() {
            self.next_reading = Some(now + self.jitter.around(READ_EVERY));
        }
        if reading.found.is_empty() { self.fail(&reading, now) } else { self.compare(reading, now) }
    }

    fn fail(&mut self, reading: &Reading, now: Millis) -> Option<Finding> {
        self.failures += 1;
        let most = match (self.starts(), reading.refused) {
            // A host that said it before may refuse for a moment. Positions from before count as
            // changed while the start is unknown, and those that are given meanwhile count as
            // changed afterwards.
            (Some(_), _) => MAX_FAILURES,
            (None, true) => 1,
            (None, false) => MAX_FIRST_FAILURES,
        };
        if self.failures < most {
            let again = now + READ_PAUSE + self.backoff.wait(&mut self.jitter);
            self.next_reading = self.next_reading.map(|next| next.min(again));
            return None;
        }
        self.knowledge = Knowledge::Unknown;
        if self.is_suspected {
            // The caller acts as after a restart.
            self.forget(now);
        }
        // Otherwise the next reading that succeeds is compared with the last one that did, or with
        // the time since which the feed is followed.
        Some(Finding::Unknown)
    }

    /// Forgets the nodes: restarts until now are dealt with.
    fn forget(&mut self, now: Millis) {
        self.nodes.clear();
        self.followed_from = Some(now);
    }

    /// Compares the start times with the known ones. Returns None if the next reading has to
    /// decide.
    fn compare(&mut self, reading: Reading, now: Millis) -> Option<Finding> {
        self.failures = 0;
        self.backoff.reset();
        let followed_for = self.followed_from.map_or(0, |from| now.saturating_sub(from) / 1_000);
        let is_up_since = |uptime: u64| uptime + u64::from(TOLERANCE) >= followed_for;
        let is_first = self.nodes.is_empty() && reading.found.iter().any(|(.., uptime)| is_up_since(*uptime));
        let mut is_continuous = false;
        // Nodes in the order in which they were asked, and their number up to the last one that
        // vouches.
        let (mut asked, mut up_to): (Vec<usize>, usize) = (Vec::new(), 0);
        let by_itself = reading.by_itself;
        if !by_itself {
            // Nodes that are gone vouch for nothing.
            self.nodes.retain(|node| reading.found.iter().any(|(name, ..)| *name == node.name));
        }
        for (name, start, uptime) in reading.found {
            let place = self.nodes.iter().position(|node| node.name == name);
            if let Some(place) = place {
                let node = &mut self.nodes[place];
                let restarted = start > node.start.saturating_add(TOLERANCE) || uptime < node.uptime;
                let vouches = !restarted && (by_itself || !node.has_restarted);
                is_continuous |= vouches;
                node.has_restarted |= restarted;
                (node.start, node.uptime) = (start, uptime);
                asked.push(place);
                up_to = if vouches { asked.len() } else { up_to };
            } else if self.nodes.len() < MAX_NODES {
                // The node may have been there all the time.
                let is_new = start.saturating_add(TOLERANCE) >= self.read_at;
                is_continuous |= !is_new;
                asked.push(self.nodes.len());
                up_to = if is_new { up_to } else { asked.len() };
                self.nodes.push(Node { name, start, uptime, has_restarted: is_new });
            }
        }
        if by_itself {
            // The other nodes were not asked, so their last reading counts.
            is_continuous |= self.nodes.iter().any(|node| !node.has_restarted);
        }
        let mut earliest = self.nodes.iter().map(|node| node.start).min().unwrap_or(0);
        let latest = self.nodes.iter().map(|node| node.start).max().unwrap_or(0);
        self.read_at = reading.date;
        let is_doubtful = !by_itself && is_continuous && up_to < asked.len();
        if is_doubtful {
            // All nodes may have restarted after the last one that vouches.
            self.next_reading = Some(now + READ_PAUSE);
            asked[..up_to].iter().for_each(|place| self.nodes[*place].has_restarted = false);
            asked[up_to..].iter().for_each(|place| self.nodes[*place].has_restarted = true);
            return None;
        }
        if let (Some(known), true, false) = (self.starts(), is_continuous, by_itself) {
            // If nodes restart in turn, positions from before are still valid here, because one
            // node was seen up at any time. A server that starts later has not seen that.
            earliest = earliest.min(known.earliest);
        }
        self.knowledge = Knowledge::Known(Starts { earliest, latest, is_single: !self.is_cluster() });
        let finding = match (is_first, is_continuous) {
            (true, _) => Finding::First,
            (false, true) => Finding::Continuous,
            (false, false) => Finding::Restarted,
        };
        if !by_itself || finding != Finding::Continuous {
            // If readings reach one node each, nodes that were not reached keep their state.
            self.nodes.iter_mut().for_each(|node| node.has_restarted = false);
        }
        Some(finding)
    }
}

impl Reading {
    fn new(first: Vec<Box<str>>) -> Self {
        Self {
            question: Question::Membership,
            first,
            left: Vec::new(),
            is_stale: false,
            found: Vec::new(),
            own_name: None,
            by_itself: false,
            date: 0,
            refused: false,
        }
    }

    /// Handles the reply to its request. Returns whether there is another request.
    fn handle_reply(&mut self, reply: Option<Reply<'_>>, count: &mut Option<usize>) -> bool {
        let ok = reply.filter(|reply| reply.status == 200);
        // A proxy without CouchDB, or a busy CouchDB, may succeed the next time.
        self.refused =
            reply.is_some_and(|reply| matches!(reply.status, 400..=499) && !matches!(reply.status, 408 | 429));
        match std::mem::replace(&mut self.question, Question::Membership) {
            Question::Membership => match ok.and_then(|reply| nodes::read_membership(reply.body)) {
                Some(connected) => {
                    // Nodes that are down belong to the cluster too.
                    *count = (*count).max(Some(connected.len()));
                    if connected.len() == 1 {
                        self.question = Question::System(None);
                        return true;
                    }
                    self.left = connected;
                    self.left.truncate(MAX_ASKED);
                    self.left.sort_by_key(|name| self.first.contains(name));
                    self.ask_next()
                }
                None if self.refused => self.ask_itself(),
                None => false,
            },
            Question::Name => match (ok.and_then(|reply| nodes::read_node_name(reply.body)), &self.own_name) {
                (Some(name), None) => {
                    self.own_name = Some(name);
                    self.question = Question::System(None);
                    true
                }
                (Some(name), Some(before)) => {
                    if name != *before {
                        // Behind a load balancer it is unknown which node has this uptime.
                        self.found.clear();
                    }
                    false
                }
                (None, _) => {
                    self.found.clear();
                    false
                }
            },
            Question::System(name) => {
                let uptime = ok.and_then(|reply| nodes::read_uptime(reply.body));
                let date = ok.and_then(|reply| reply.date);
                let start = date.zip(uptime).and_then(|(date, uptime)| nodes::start_of(date, uptime));
                if let (Some(start), Some(uptime), Some(date)) = (start, uptime, date) {
                    let name = name.clone().or_else(|| self.own_name.clone()).unwrap_or_default();
                    if self.found.is_empty() {
                        self.date = u32::try_from(date).unwrap_or(u32::MAX);
                    }
                    self.found.push((name, start, uptime));
                }
                match name {
                    Some(_) => self.ask_next() || self.found.is_empty() && self.refused && self.ask_itself(),
                    None if self.by_itself && !self.found.is_empty() => {
                        self.question = Question::Name;
                        true
                    }
                    None => false,
                }
            }
        }
    }

    fn ask_next(&mut self) -> bool {
        let next = self.left.pop();
        let more = next.is_some();
        if more {
            self.question = Question::System(next);
        }
        more
    }

    /// Falls back to asking the node that answers for its own start, because nodes cannot be asked
    /// by name.
    fn ask_itself(&mut self) -> bool {
        self.by_itself = true;
        self.question = Question::Name;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: u64 = 1_795_000_000;

    /// A CouchDB of several nodes, and a machine that asks it.
    struct Rig {
        restarts: Restarts,
        now: Millis,
        /// Name, start in seconds, and whether the node can be asked.
        nodes: Vec<(&'static str, u64, bool)>,
        clock_error: u64,
        membership: u16,
        by_name: u16,
        system: u16,
        asked: usize,
        /// Number of the node that answers for itself.
        own: usize,
    }

    impl Rig {
        fn new(starts: &[u64]) -> Self {
            let names = ["a@x", "b@x", "c@x"];
            let nodes = names.into_iter().zip(starts).map(|(name, start)| (name, *start, true)).collect();
            Self {
                restarts: Restarts::new(Jitter::new(3)),
                now: 0,
                nodes,
                clock_error: 0,
                membership: 200,
                by_name: 200,
                system: 200,
                asked: 0,
                own: 0,
            }
        }

        fn reply(&self, question: &Question) -> (u16, String) {
            match question {
                Question::Membership => {
                    let names = |up: bool| {
                        let nodes = self.nodes.iter().filter(|(.., is_up)| *is_up || !up);
                        nodes.map(|(name, ..)| format!("{name:?}")).collect::<Vec<_>>().join(",")
                    };
                    let body = format!(r#"{{"all_nodes":[{}],"cluster_nodes":[{}]}}"#, names(true), names(false));
                    (self.membership, body)
                }
                Question::Name => (self.system, format!(r#"{{"name":{:?}}}"#, self.nodes[self.own].0)),
                Question::System(node) => {
                    let found = match node {
                        Some(node) => self.nodes.iter().find(|(name, _, is_up)| **name == **node && *is_up),
                        None => self.nodes.get(self.own),
                    };
                    let status = if node.is_some() { self.by_name } else { self.system };
                    match found {
                        Some((_, start, _)) => {
                            let uptime = DATE + self.now / 1_000 - (DATE - 10_000 + start);
                            (status, format!(r#"{{"uptime":{uptime}}}"#))
                        }
                        None => (404, "{}".to_owned()),
                    }
                }
            }
        }

        /// Runs one reading after a while.
        fn read(&mut self) -> Option<Finding> {
            self.now += 20_000;
            self.restarts.handle_opened(self.now);
            self.go_on()
        }

        fn go_on(&mut self) -> Option<Finding> {
            let mut finding = None;
            while self.step(&mut finding) {}
            finding
        }

        /// Runs a reading, and the following one if it is doubtful.
        fn read_until_settled(&mut self) -> Option<Finding> {
            self.read().or_else(|| {
                self.now += READ_PAUSE;
                self.go_on()
            })
        }

        /// Runs one request. Returns false if none is due.
        fn step(&mut self, finding: &mut Option<Finding>) -> bool {
            let Some(question) = self.restarts.next_question(self.now) else { return false };
            self.asked += 1;
            let (status, body) = self.reply(&question);
            let date = Some(DATE + self.now / 1_000 + self.clock_error);
            let reply = Reply { status, date, body: body.as_bytes() };
            assert_eq!(self.restarts.next_question(self.now), None, "one at a time");
            *finding = self.restarts.handle_reply(Some(reply), self.now);
            true
        }
    }

    #[test]
    fn a_single_node_that_started_later_restarted() {
        let mut rig = Rig::new(&[100]);
        assert!(!rig.restarts.is_settled() && rig.restarts.starts().is_none());
        assert_eq!(rig.read(), Some(Finding::First));
        assert_eq!(rig.asked, 2);
        let starts = rig.restarts.starts().expect("known");
        assert!(starts.is_single && starts.earliest == starts.latest && !rig.restarts.is_cluster());
        for (start, finding) in [
            (100, Finding::Continuous),
            (102, Finding::Continuous),
            (105, Finding::Restarted),
            (105, Finding::Continuous),
        ] {
            rig.nodes[0].1 = start;
            assert_eq!(rig.read(), Some(finding), "{start}");
        }
    }

    #[test]
    fn a_cluster_that_restarts_in_the_middle_of_a_reading_is_noticed() {
        for asked_before in 1..3 {
            let mut rig = Rig::new(&[100, 200, 300]);
            assert_eq!(rig.read(), Some(Finding::First));
            let starts = rig.restarts.starts();
            rig.now += 20_000;
            rig.restarts.handle_opened(rig.now);
            // The nodes, and the start times of some of them.
            for _ in 0..=asked_before {
                assert!(rig.step(&mut None));
            }
            rig.nodes.iter_mut().for_each(|(_, start, _)| *start += 900);
            assert_eq!(rig.go_on(), None, "some were up, and all may have restarted behind them");
            assert_eq!(rig.restarts.starts(), starts, "nothing of it is used");
            rig.now += READ_PAUSE;
            assert_eq!(rig.go_on(), Some(Finding::Restarted), "{asked_before} were asked before");
            assert_eq!(rig.read(), Some(Finding::Continuous));
        }
    }

    #[test]
    fn a_node_that_restarted_and_was_asked_last_is_asked_first_the_next_time() {
        for number in 0..3 {
            let mut rig = Rig::new(&[100, 200, 300]);
            rig.read();
            // The nodes restart in turn: one of them is up at any time.
            for turn in 0..6 {
                rig.nodes[(number + turn) % 3].1 += 900;
                assert_eq!(rig.read_until_settled(), Some(Finding::Continuous), "{number} {turn}");
            }
            rig.nodes.iter_mut().for_each(|(_, start, _)| *start += 900);
            assert_eq!(rig.read(), Some(Finding::Restarted));
        }
    }

    #[test]
    fn answers_from_before_the_feed_was_opened_are_not_used() {
        let mut rig = Rig::new(&[100]);
        assert_eq!(rig.read(), Some(Finding::First));
        rig.now += 20_000;
        rig.restarts.handle_opened(rig.now);
        assert!(rig.step(&mut None));
        assert_eq!(rig.restarts.next_question(rig.now), Some(Question::System(None)));
        rig.now += 2 * READ_PAUSE;
        rig.restarts.handle_opened(rig.now);
        let reply = Reply { status: 200, date: Some(DATE), body: br#"{"uptime":1}"# };
        assert_eq!(rig.restarts.handle_reply(Some(reply), rig.now), None, "it is of the time before");
        rig.nodes[0].1 += 900;
        assert_eq!(rig.go_on(), Some(Finding::Restarted));
    }

    #[test]
    fn a_refusal_that_passes_does_not_make_a_known_start_unknown() {
        let mut rig = Rig::new(&[100]);
        assert_eq!(rig.read(), Some(Finding::First));
        let starts = rig.restarts.starts();
        (rig.membership, rig.system) = (403, 403);
        for _ in 1..MAX_FAILURES {
            assert_eq!(rig.go_on(), None);
            assert_eq!(rig.restarts.starts(), starts);
            rig.now += 300_000;
        }
        (rig.membership, rig.system) = (200, 200);
        rig.nodes[0].1 += 900;
        assert_eq!(rig.go_on(), Some(Finding::Restarted), "it is compared with what was known");
    }

    #[test]
    fn a_restart_before_the_first_answer_is_noticed_by_the_uptime() {
        let mut rig = Rig { system: 503, ..Rig::new(&[100]) };
        assert_eq!(rig.read(), None);
        rig.system = 200;
        rig.now += 10_000;
        rig.nodes[0].1 = 10_000 + rig.now / 1_000 - 5;
        assert_eq!(rig.go_on(), Some(Finding::Restarted), "it has been up for 5 s, and was followed for 10");
        assert_eq!(rig.read(), Some(Finding::Continuous));
    }

    #[test]
    fn a_clock_that_is_set_forward_looks_like_a_restart_and_one_that_is_set_back_does_not() {
        let mut rig = Rig::new(&[100]);
        rig.read();
        rig.clock_error = 60;
        assert_eq!(rig.read(), Some(Finding::Restarted));
        let ahead = rig.restarts.starts().expect("known").latest;
        rig.clock_error = 0;
        assert_eq!(rig.read(), Some(Finding::Continuous));
        assert!(!rig.restarts.starts().expect("known").reach_back_to(ahead), "clients that come back are told");
        // The uptime shows a restart while the clock is set back.
        rig.nodes[0].1 = 9_990;
        rig.clock_error = 0_u64.wrapping_sub(9_950);
        let date = DATE.wrapping_add(rig.clock_error) + rig.now / 1_000;
        rig.restarts.handle_opened(rig.now + READ_PAUSE);
        rig.now += READ_PAUSE;
        assert_eq!(rig.restarts.next_question(rig.now), Some(Question::Membership));
        let body = br#"{"all_nodes":["a@x"],"cluster_nodes":["a@x"]}"#;
        assert_eq!(rig.restarts.handle_reply(Some(Reply { status: 200, date: None, body }), rig.now), None);
        rig.restarts.next_question(rig.now);
        let reply = Reply { status: 200, date: Some(date), body: br#"{"uptime":3}"# };
        assert_eq!(rig.restarts.handle_reply(Some(reply), rig.now), Some(Finding::Restarted));
    }

    #[test]
    fn a_cluster_lost_something_only_if_all_nodes_restarted() {
        let mut rig = Rig::new(&[100, 200, 300]);
        assert_eq!(rig.read(), Some(Finding::First));
        assert!(rig.restarts.is_cluster());
        let given = rig.restarts.starts().expect("known").latest;
        for (node, start) in [(0, 400), (1, 500), (2, 600), (0, 700)] {
            rig.nodes[node].1 = start;
            assert_eq!(rig.read_until_settled(), Some(Finding::Continuous), "one after the other");
        }
        let reaches_back = |rig: &Rig, given| rig.restarts.starts().expect("known").reach_back_to(given);
        assert!(reaches_back(&rig, given), "one was up at any time");
        let mut later = Rig::new(&[700, 500, 600]);
        later.read();
        assert!(!reaches_back(&later, given), "and who was not there does not know");
        assert!(reaches_back(&later, rig.restarts.starts().expect("known").latest));
        rig.nodes[2].2 = false;
        rig.nodes[0].1 = 800;
        assert_eq!(rig.read_until_settled(), Some(Finding::Continuous), "one is down, one restarted, one stayed");
        rig.nodes[2].2 = true;
        assert_eq!(rig.read_until_settled(), Some(Finding::Continuous), "it was cut off, and is back");
        let given = rig.restarts.starts().expect("known").latest;
        rig.nodes = vec![("a@x", 10_100, true), ("b@x", 10_101, true), ("c@x", 600, false)];
        assert_eq!(rig.read(), Some(Finding::Restarted), "those that are up did, and the third is away");
        assert!(!rig.restarts.starts().expect("known").reach_back_to(given));
        assert_eq!(rig.read_until_settled(), Some(Finding::Continuous));
    }

    #[test]
    fn nodes_that_cannot_be_asked_by_name_are_met_one_at_a_time() {
        for (membership, by_name) in [(200, 404), (403, 200)] {
            let mut rig = Rig { membership, by_name, ..Rig::new(&[100, 200, 300]) };
            assert_eq!(rig.read(), Some(Finding::First));
            for own in [1, 2, 0] {
                rig.own = own;
                assert_eq!(rig.read(), Some(Finding::Continuous), "{own}");
            }
            rig.nodes[1].1 = 10_070;
            for own in [0, 1, 2] {
                rig.own = own;
                assert_eq!(rig.read(), Some(Finding::Continuous), "{own}");
            }
            rig.nodes[0].1 = 10_130;
            rig.nodes[2].1 = 10_131;
            let findings = [0, 2].map(|own| {
                rig.own = own;
                rig.read()
            });
            assert_eq!(findings, [Some(Finding::Continuous), Some(Finding::Restarted)]);
        }
    }

    #[test]
    fn a_host_that_says_nothing_is_left_alone() {
        let mut rig = Rig { membership: 404, system: 403, ..Rig::new(&[100]) };
        assert_eq!(rig.read(), Some(Finding::Unknown));
        assert_eq!((rig.asked, rig.restarts.is_settled(), rig.restarts.starts()), (2, true, None));
        assert!(!rig.restarts.suspect(rig.now) && !rig.restarts.take_suspicion());
        let next = rig.restarts.poll_timeout().expect("it is asked again");
        assert!((rig.now + READ_EVERY / 2..=rig.now + READ_EVERY).contains(&next), "{next}");
    }

    #[test]
    fn failures_are_tried_again_for_a_while() {
        let mut rig = Rig { system: 503, ..Rig::new(&[100]) };
        let tries = |rig: &mut Rig| {
            let mut finding = rig.read();
            let mut tries = 1;
            while finding.is_none() {
                rig.now = rig.restarts.poll_timeout().expect("it is tried again");
                finding = rig.go_on();
                tries += 1;
            }
            (finding, tries)
        };
        assert_eq!(tries(&mut rig), (Some(Finding::Unknown), MAX_FIRST_FAILURES));
        rig.system = 200;
        assert_eq!(rig.read(), Some(Finding::First));
        assert!(rig.restarts.suspect(rig.now));
        rig.system = 503;
        assert_eq!(tries(&mut rig), (Some(Finding::Unknown), MAX_FAILURES));
        assert!(rig.restarts.take_suspicion() && !rig.restarts.take_suspicion());
    }

    /// Reads until the start counts as unknown.
    fn read_until_unknown(rig: &mut Rig) {
        rig.system = 403;
        let mut finding = rig.read();
        while finding.is_none() {
            rig.now = rig.restarts.poll_timeout().expect("it is tried again");
            finding = rig.go_on();
        }
        assert_eq!(finding, Some(Finding::Unknown));
        rig.system = 200;
    }

    #[test]
    fn a_restart_while_the_start_is_unknown_is_noticed_afterwards() {
        for is_known_before in [false, true] {
            for restarts in [false, true] {
                let mut rig = Rig::new(&[100]);
                if is_known_before {
                    assert_eq!(rig.read(), Some(Finding::First));
                }
                read_until_unknown(&mut rig);
                rig.now += 20_000;
                // A proxy hides it.
                if restarts {
                    rig.nodes[0].1 = 10_000 + rig.now / 1_000;
                }
                read_until_unknown(&mut rig);
                let otherwise = if is_known_before { Finding::Continuous } else { Finding::First };
                assert_eq!(rig.read(), Some(if restarts { Finding::Restarted } else { otherwise }));
                assert_eq!(rig.read(), Some(Finding::Continuous));
            }
        }
    }

    #[test]
    fn a_restart_that_was_dealt_with_while_the_start_was_unknown_is_not_found_again() {
        let mut rig = Rig::new(&[100]);
        assert_eq!(rig.read(), Some(Finding::First));
        // It was away, and refuses afterwards to say when it started.
        rig.nodes[0].1 = 10_000 + rig.now / 1_000;
        assert!(rig.restarts.suspect(rig.now));
        read_until_unknown(&mut rig);
        assert!(rig.restarts.take_suspicion());
        assert_eq!(rig.read(), Some(Finding::First));
        read_until_unknown(&mut rig);
        // It is away while the start is unknown.
        rig.nodes[0].1 = 10_000 + rig.now / 1_000;
        assert!(!rig.restarts.suspect(rig.now));
        assert_eq!(rig.read(), Some(Finding::First));
    }

    #[test]
    fn openings_in_a_row_make_one_reading_a_second() {
        let mut rig = Rig::new(&[100]);
        rig.read();
        let asked = rig.asked;
        for _ in 0..10 {
            rig.now += 90;
            rig.restarts.handle_opened(rig.now);
            rig.go_on();
        }
        assert_eq!(rig.asked, asked);
        rig.now += READ_PAUSE;
        assert_eq!(rig.go_on(), Some(Finding::Continuous));
    }
}
