//! The nodes of the stand-in: their names, their starts, and the lines that a write makes on a
//! cluster.
//!
//! The stand-in has its own calendar, in which each restart takes a minute. So restarts in quick
//! succession differ by more than a reader's tolerance, as those of a real CouchDB do, which takes
//! seconds to boot. A restarted node also starts later than any earlier reply of another node.

use std::collections::VecDeque;
use std::time::Duration;

use super::global_changes::mix;

/// Uptime of the nodes when the stand-in starts.
const UP_FOR: Duration = Duration::from_secs(86_400);
/// Duration of a restart in the stand-in's calendar.
const RESTART: Duration = Duration::from_secs(60);
/// Time within which all lines of a write on a cluster appear.
const ECHOES_WITHIN: Duration = Duration::from_millis(800);
/// Numbers of writes that made one, two, three and four lines, from 160 writes on a real cluster of
/// three nodes.
const LINES_OF_WRITES: [u64; 4] = [27, 40, 63, 30];

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    /// Time of its start, in the stand-in's calendar.
    pub(super) started: Duration,
    /// Whether it runs and replies.
    pub(super) is_up: bool,
}

/// All nodes. A single one is no cluster.
#[derive(Debug)]
pub(super) struct Nodes {
    pub(super) all: Vec<Node>,
    /// Status that rejects requests to `_membership` and `_node/…`.
    pub(super) refusal: Option<u16>,
    /// Error of CouchDB's clock, in seconds.
    pub(super) clock_error: i64,
    /// Lines per write; None for the distribution of a real cluster.
    pub(super) lines_of_writes: Option<u64>,
    /// Event documents to write again and their times, the earliest first.
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

    /// Returns the time in the stand-in's calendar, since 1970.
    pub(super) fn calendar(&self, now: Duration) -> Duration {
        now + RESTART * self.restarts
    }

    /// Restarts one node, or all of them.
    pub(super) fn restart(&mut self, which: Option<usize>, now: Duration) {
        self.restarts += 1;
        let started = self.calendar(now);
        for (number, node) in self.all.iter_mut().enumerate() {
            if which.is_none_or(|which| which == number) {
                node.started = started;
            }
        }
    }

    /// Returns the node of a name. `_local` is the next one that is up, as behind a load balancer.
    pub(super) fn find(&mut self, name: &str) -> Option<&Node> {
        if name != "_local" {
            return self.all.iter().find(|node| node.name == name && node.is_up);
        }
        self.asked += 1;
        let up: Vec<&Node> = self.all.iter().filter(|node| node.is_up).collect();
        up.get(self.asked % up.len().max(1)).copied()
    }

    /// Schedules further lines for a write on a cluster: each node writes the event document at its
    /// own tick, and some nodes do so together.
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

    /// Takes the event documents that are due to be written again.
    pub(super) fn take_echoes(&mut self, now: Duration) -> Vec<String> {
        let due = self.echoes.partition_point(|(at, _)| *at <= now);
        self.echoes.drain(..due).map(|(_, id)| id).collect()
    }

    /// Returns the time of the next echo.
    pub(super) fn next_echo(&self) -> Option<Duration> {
        self.echoes.front().map(|(at, _)| *at)
    }

    pub(super) fn forget_echoes(&mut self) {
        self.echoes.clear();
    }
}
