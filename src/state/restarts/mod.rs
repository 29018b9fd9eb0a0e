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
//!            asked: a    all nodes restart    b  c        a  b  c
//!   a  ─────────────x    x──────────────────────────────────────   restarted in this reading
//!   b  ─────────────────x    x──────────────────────────────────   restarted after a: no vouching
//! ```
//!
//! The start times of such a reading are not used. The next reading follows at once, and asks these
//! nodes first.
//!
//! The machine neither sends requests nor notifies clients.

mod reading;

use reading::Reading;
pub use reading::{Reply, Request};

use crate::state::jitter::{Backoff, Jitter};
use crate::state::timers::Millis;
use crate::wire::nodes::{Starts, TOLERANCE};

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
/// Most nodes that are remembered.
const MAX_NODES: usize = 64;

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
    in_flight: bool,
    next_reading: Option<Millis>,
    last_began: Option<Millis>,
    /// Date of the first reply of the last reading, in seconds since 1970.
    read_at: u32,
    failures: u32,
    backoff: Backoff,
    jitter: Jitter,
    /// Time since which changes are followed without a known node. A node with a shorter uptime has
    /// restarted.
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

/// Outcome of comparing a reading with the known nodes.
struct Comparison {
    /// Whether a node has been up since the last reading.
    is_continuous: bool,
    /// Nodes in the order in which they were asked.
    asked: Vec<usize>,
    /// Number of them up to the last one that vouches.
    up_to: usize,
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

impl Restarts {
    /// Creates a machine without a reading.
    pub fn new(jitter: Jitter) -> Self {
        Self {
            nodes: Vec::new(),
            knowledge: Knowledge::Awaited,
            count: None,
            reading: None,
            in_flight: false,
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
        self.handle_break();
        self.failures = 0;
        self.backoff.reset();
    }

    /// Handles a break or an opening of the feed: replies from before and after it do not make one
    /// reading.
    pub fn handle_break(&mut self) {
        match &mut self.reading {
            Some(reading) if self.in_flight => reading.is_stale = true,
            reading => *reading = None,
        }
    }

    /// Notes that CouchDB was away: the next finding decides whether it restarted. Returns false if
    /// the start times are unknown. The caller treats that as a restart, and readings are compared
    /// with this time from now on.
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

    /// Returns when [`Restarts::next_request`] is due, while the feed is open.
    pub fn poll_timeout(&self) -> Option<Millis> {
        match (&self.reading, self.in_flight) {
            (_, true) => None,
            (Some(_), false) => Some(0),
            (None, false) => self.next_reading,
        }
    }

    /// Returns the next request, unless one is in flight or none is due.
    pub fn next_request(&mut self, now: Millis) -> Option<Request> {
        if self.in_flight {
            return None;
        }
        if self.reading.is_none() {
            self.next_reading.take_if(|at| *at <= now)?;
            self.last_began = Some(now);
            let first = self.nodes.iter().filter(|node| node.has_restarted).map(|node| node.name.clone()).collect();
            self.reading = Some(Reading::new(first));
        }
        self.in_flight = true;
        self.reading.as_ref().map(|reading| reading.request.clone())
    }

    /// Handles the reply to the request in flight; None if there was none. Returns the finding if
    /// the reading has ended.
    pub fn handle_reply(&mut self, reply: Option<Reply<'_>>, now: Millis) -> Option<Finding> {
        self.in_flight = false;
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
            // A host that has reported its start may refuse for a moment. Positions from before
            // count as changed while the start is unknown, and later those that are given meanwhile
            // do.
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
            // The caller treats it as a restart.
            self.forget(now);
        }
        // Otherwise the next successful reading is compared with the last one, or with the time
        // since which the feed is followed.
        Some(Finding::Unknown)
    }

    /// Forgets the nodes, since all restarts until now are handled.
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
        let one_at_a_time = reading.one_at_a_time;
        let date = reading.date;
        let Comparison { is_continuous, asked, up_to } = self.merge(reading);
        let mut earliest = self.nodes.iter().map(|node| node.start).min().unwrap_or(0);
        let latest = self.nodes.iter().map(|node| node.start).max().unwrap_or(0);
        self.read_at = date;
        let is_doubtful = !one_at_a_time && is_continuous && up_to < asked.len();
        if is_doubtful {
            // All nodes may have restarted after the last one that vouches.
            self.next_reading = Some(now + READ_PAUSE);
            asked[..up_to].iter().for_each(|place| self.nodes[*place].has_restarted = false);
            asked[up_to..].iter().for_each(|place| self.nodes[*place].has_restarted = true);
            return None;
        }
        if let (Some(known), true, false) = (self.starts(), is_continuous, one_at_a_time) {
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
        if !one_at_a_time || finding != Finding::Continuous {
            // If readings reach one node each, nodes that were not reached keep their state.
            self.nodes.iter_mut().for_each(|node| node.has_restarted = false);
        }
        Some(finding)
    }

    /// Stores the start times of a reading. Returns which nodes are continuous.
    fn merge(&mut self, reading: Reading) -> Comparison {
        let mut is_continuous = false;
        // Nodes in the order in which they were asked, and their number up to the last one that
        // vouches.
        let (mut asked, mut up_to): (Vec<usize>, usize) = (Vec::new(), 0);
        let one_at_a_time = reading.one_at_a_time;
        if !one_at_a_time {
            // Nodes that are gone vouch for nothing.
            self.nodes.retain(|node| reading.found.iter().any(|(name, ..)| *name == node.name));
        }
        for (name, start, uptime) in reading.found {
            let place = self.nodes.iter().position(|node| node.name == name);
            if let Some(place) = place {
                let node = &mut self.nodes[place];
                let restarted = start > node.start.saturating_add(TOLERANCE) || uptime < node.uptime;
                let vouches = !restarted && (one_at_a_time || !node.has_restarted);
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
        if one_at_a_time {
            // The other nodes were not asked, so their last reading counts.
            is_continuous |= self.nodes.iter().any(|node| !node.has_restarted);
        }
        Comparison { is_continuous, asked, up_to }
    }
}

#[cfg(test)]
mod tests;
