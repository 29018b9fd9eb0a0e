//! The nodes of the stand-in: their names, when each started, and the lines that a write makes on a cluster.
//!
//! The stand-in has a calendar of its own: every restart takes a minute of it. So restarts in quick succession have
//! starts that differ by more than a reader's tolerance, as those of a real CouchDB do, which takes seconds to boot. And
//! a node that restarted started later than any moment at which another node replied before.

use std::collections::VecDeque;
use std::time::Duration;

use super::global_changes::mix;

/// How long the nodes have been up when the stand-in starts.
const UP_FOR: Duration = Duration::from_secs(86_400);
/// How long a restart takes in the stand-in's calendar.
const RESTART: Duration = Duration::from_secs(60);
/// Within this time every line of a write on a cluster appears.
const ECHOES_WITHIN: Duration = Duration::from_millis(800);
/// Of 160 writes on a real cluster of three nodes, so many made one line, two, three and four.
const LINES_OF_WRITES: [u64; 4] = [27, 40, 63, 30];

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    /// When it started, in the stand-in's calendar.
    pub(super) started: Duration,
    /// Whether it runs and can be asked.
    pub(super) is_up: bool,
}

/// All nodes. One alone is no cluster.
#[derive(Debug)]
pub(super) struct Nodes {
    pub(super) all: Vec<Node>,
    /// What `_membership` and `_node/…` are refused with.
    pub(super) refusal: Option<u16>,
    /// By how many seconds the clock of CouchDB is wrong.
    pub(super) clock_error: i64,
    /// How many lines each write makes, instead of what a real cluster does.
    pub(super) lines_of_writes: Option<u64>,
    /// Event documents that are written again, with the moment, soonest first.
    echoes: VecDeque<(Duration, String)>,
    restarts: u32,
    writes: u64,
    asked: usize,
}

impl Nodes {
    pub(super) fn new(count: usize, now: Duration) -> Self {
        let name = |number: usize| match (count, number) {
            (0 | 1, _) => "couchdb@127.0.0.1".to_owned(),
            (_, number) => format!("couchdb@node{}.example", number + 1),
        };
        let started = now.saturating_sub(UP_FOR);
        let node = |number| Node { name: name(number), started, is_up: true };
        Self {
            all: (0..count.max(1)).map(node).collect(),
            refusal: None,
            clock_error: 0,
            lines_of_writes: None,
            echoes: VecDeque::new(),
            restarts: 0,
            writes: 0,
            asked: 0,
        }
    }

    pub(super) fn are_a_cluster(&self) -> bool {
        self.all.len() > 1
    }

    /// Returns a moment of the stand-in's calendar, since 1970.
    pub(super) fn calendar(&self, now: Duration) -> Duration {
        now + RESTART * self.restarts
    }

    /// Restarts all nodes, or one.
    pub(super) fn restart(&mut self, which: Option<usize>, now: Duration) {
        self.restarts += 1;
        let started = self.calendar(now);
        for (number, node) in self.all.iter_mut().enumerate() {
            if which.is_none_or(|which| which == number) {
                node.started = started;
            }
        }
    }

    /// The node that a name stands for. A load balancer sends each request to the next node, so `_local` is any that
    /// is up.
    pub(super) fn find(&mut self, name: &str) -> Option<&Node> {
        if name != "_local" {
            return self.all.iter().find(|node| node.name == name && node.is_up);
        }
        self.asked += 1;
        let up: Vec<&Node> = self.all.iter().filter(|node| node.is_up).collect();
        up.get(self.asked % up.len().max(1)).copied()
    }

    /// A write of an event document: every node of a cluster writes it at its own tick, some of them together.
    pub(super) fn note_write(&mut self, id: &str, now: Duration) {
        if !self.are_a_cluster() {
            return;
        }
        self.writes += 1;
        let dice = mix(self.writes);
        let lines = self.lines_of_writes.unwrap_or_else(|| {
            let mut left = dice % LINES_OF_WRITES.iter().sum::<u64>();
            let fits = |share: &u64| {
                let fits = left < *share;
                left = left.saturating_sub(*share);
                fits
            };
            LINES_OF_WRITES.iter().position(fits).map_or(1, |place| place as u64 + 1)
        });
        for number in 1..lines {
            let part = u32::try_from(mix(dice + number) % 1_000).unwrap_or(0);
            let due = now + ECHOES_WITHIN * part / 1_000;
            let place = self.echoes.partition_point(|(at, _)| *at <= due);
            self.echoes.insert(place, (due, id.to_owned()));
        }
    }

    /// The event documents that are due to be written again.
    pub(super) fn take_echoes(&mut self, now: Duration) -> Vec<String> {
        let due = self.echoes.partition_point(|(at, _)| *at <= now);
        self.echoes.drain(..due).map(|(_, id)| id).collect()
    }

    /// When the next echo is due.
    pub(super) fn next_echo(&self) -> Option<Duration> {
        self.echoes.front().map(|(at, _)| *at)
    }

    pub(super) fn forget_echoes(&mut self) {
        self.echoes.clear();
    }
}
