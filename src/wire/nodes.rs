//! What CouchDB says of its nodes: which there are, and when each of them started.
//!
//! `GET /_membership` names the nodes and `GET /_node/{name}/_system` has their `uptime` in seconds, both for server
//! admins alone. The `Date` of that answer minus the uptime is the start of the node by CouchDB's own clock, the same
//! for every reader to a second.
//!
//! A CouchDB that stops loses the events of its last tick, but not those that another node recorded too. So nothing was
//! lost since a moment if one node has been up since then. A position carries such a moment: the latest start of a node
//! that was known when the position was given, which is before that. If every node started later than the moment,
//! events may be missing, and positions of the same counts are not the same.

use std::borrow::Cow;

use serde::Deserialize;

use super::json;

/// Starts that differ by no more than this are one start, in seconds: `Date` and `uptime` are whole seconds.
pub const TOLERANCE: u32 = 2;
/// Longest name of a node, in bytes.
const MAX_NODE_NAME: usize = 256;

/// When the nodes of CouchDB started, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starts {
    /// The start of the node that has been up for the longest time.
    pub earliest: u32,
    /// The start of the node that started last.
    pub latest: u32,
    /// Whether there is one node alone.
    pub is_single: bool,
}

impl Starts {
    /// Returns whether no event was lost since a position that carries this start: a node has been up since then.
    ///
    /// A single node that started earlier than the position says had its clock set back: whether it restarted is not
    /// known then, so the position does not count. On a cluster the start may be of a node that is down at the moment.
    pub fn reach_back_to(&self, start: u32) -> bool {
        let is_later = self.earliest > start.saturating_add(TOLERANCE);
        let is_earlier = start > self.latest.saturating_add(TOLERANCE);
        !(is_later || self.is_single && is_earlier)
    }
}

#[derive(Deserialize)]
struct RawMembership<'a> {
    #[serde(borrow)]
    all_nodes: Vec<Cow<'a, str>>,
}

/// Reads the names of the connected nodes off the answer to `GET /_membership`; None when it is no such answer.
///
/// `cluster_nodes` in it does not count: it may name a node that never was, such as the one that a single node was
/// called before it was given a name.
pub fn read_membership(body: &[u8]) -> Option<Vec<Box<str>>> {
    let raw: RawMembership<'_> = json::parse_object(body)?;
    let usable = |name: &Cow<'_, str>| !name.is_empty() && name.len() <= MAX_NODE_NAME;
    let connected: Vec<Box<str>> = raw.all_nodes.into_iter().filter(usable).map(Into::into).collect();
    (!connected.is_empty()).then_some(connected)
}

#[derive(Deserialize)]
struct RawNode<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

/// Reads the name off the answer to `GET /_node/_local`.
pub fn read_node_name(body: &[u8]) -> Option<Box<str>> {
    let raw: RawNode<'_> = json::parse_object(body)?;
    (!raw.name.is_empty() && raw.name.len() <= MAX_NODE_NAME).then(|| raw.name.into())
}

#[derive(Deserialize)]
struct RawSystem {
    uptime: u64,
}

/// Reads the uptime in seconds off the answer to `GET /_node/{name}/_system`.
pub fn read_uptime(body: &[u8]) -> Option<u64> {
    let raw: RawSystem = json::parse_object(body)?;
    Some(raw.uptime)
}

/// Returns when a node started that has been up for so many seconds at a moment, in seconds since 1970. None for what
/// no clock of today shows.
pub fn start_of(date: u64, uptime: u64) -> Option<u32> {
    date.checked_sub(uptime).and_then(|start| u32::try_from(start).ok()).filter(|start| *start > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(earliest: u32, latest: u32) -> Starts {
        Starts { earliest, latest, is_single: false }
    }

    #[test]
    fn a_single_node_reaches_back_to_its_own_start() {
        let node = Starts { earliest: 1_000, latest: 1_000, is_single: true };
        for start in 998..=1_002 {
            assert!(node.reach_back_to(start), "{start}");
        }
        for start in [0, 997, 1_003, u32::MAX] {
            assert!(!node.reach_back_to(start), "{start}");
        }
    }

    #[test]
    fn a_cluster_reaches_back_while_one_node_does() {
        let given = 300;
        assert!(starts(100, 300).reach_back_to(given));
        assert!(starts(200, 400).reach_back_to(given), "the oldest node restarted");
        assert!(starts(302, 500).reach_back_to(given), "within the tolerance");
        assert!(!starts(400, 500).reach_back_to(given), "all nodes did");
        assert!(starts(100, 200).reach_back_to(given), "a node is down");
    }

    #[test]
    fn reads_what_couchdb_writes_and_nothing_else() {
        let body = br#"{"all_nodes":["a@x","b@x"],"cluster_nodes":["a@x","b@x","c@x"]}"#;
        assert_eq!(read_membership(body), Some(vec!["a@x".into(), "b@x".into()]));
        for bad in [&b"{}"[..], b"<html>", br#"{"all_nodes":[],"cluster_nodes":[]}"#, br#"{"all_nodes":"a"}"#] {
            assert_eq!(read_membership(bad), None);
        }
        assert_eq!(read_node_name(br#"{"name":"couchdb@127.0.0.1"}"#), Some("couchdb@127.0.0.1".into()));
        assert_eq!(read_node_name(br#"{"name":""}"#), None);
        assert_eq!(read_uptime(br#"{"uptime":1234,"memory":{"other":1}}"#), Some(1_234));
        for bad in [&b"{}"[..], br#"{"uptime":-1}"#, br#"{"uptime":"1"}"#, br#"{"uptime":1.5}"#] {
            assert_eq!(read_uptime(bad), None);
        }
    }

    #[test]
    fn a_start_is_a_date_before_an_uptime() {
        assert_eq!(start_of(1_795_000_000, 5_000), Some(1_794_995_000));
        assert_eq!(start_of(10, 11), None);
        assert_eq!(start_of(10, 10), None);
        assert_eq!(start_of(u64::MAX, 0), None);
    }
}
