//! CouchDB's responses about its nodes: their names, and when each of them started.
//!
//! `GET /_membership` lists the nodes, and `GET /_node/{name}/_system` has their `uptime` in
//! seconds. Both need a server admin. The `Date` of the response minus the uptime is the start of
//! the node by CouchDB's own clock, the same for every reader to a second.
//!
//! A node that stops loses the events of its last tick, unless another node recorded them as well.
//! So nothing was lost since a moment if one node has been up since then. A position carries such a
//! moment: the latest start of a node known when the position was given. If every node started
//! later than that moment, events may be missing, and positions with the same counts are not the
//! same.

use std::borrow::Cow;

use serde::Deserialize;

use super::json;

/// Largest difference of two observations of one start, in seconds: `Date` and `uptime` are whole
/// seconds.
pub const TOLERANCE: u32 = 2;
/// Longest name of a node, in bytes.
const MAX_NODE_NAME: usize = 256;

/// The starts of CouchDB's nodes, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Starts {
    /// Start of the node that started first.
    pub earliest: u32,
    /// Start of the node that started last.
    pub latest: u32,
    /// Whether CouchDB has a single node.
    pub is_single: bool,
}

impl Starts {
    /// Returns whether no event was lost since a position that carries this start, since a node has
    /// been up since then.
    ///
    /// A single node that started before the start in the position had its clock set back. Whether
    /// it restarted is unknown, so the position does not count. On a cluster such a start may
    /// belong to a node that is down at the moment.
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

/// Reads the names of the connected nodes off the response to `GET /_membership`. None if it is no
/// such response.
///
/// `cluster_nodes` is ignored. It may name a node that never existed, such as the default name of a
/// single node that was given another one.
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

/// Reads the name off the response to `GET /_node/_local`.
pub fn read_node_name(body: &[u8]) -> Option<Box<str>> {
    let raw: RawNode<'_> = json::parse_object(body)?;
    (!raw.name.is_empty() && raw.name.len() <= MAX_NODE_NAME).then(|| raw.name.into())
}

#[derive(Deserialize)]
struct RawSystem {
    uptime: u64,
}

/// Reads the uptime in seconds off the response to `GET /_node/{name}/_system`.
pub fn read_uptime(body: &[u8]) -> Option<u64> {
    let raw: RawSystem = json::parse_object(body)?;
    Some(raw.uptime)
}

/// Returns the start of a node with this uptime at a date, in seconds since 1970. None for dates
/// that no clock shows today.
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
    fn single_node_reaches_back_to_its_start() {
        let node = Starts { earliest: 1_000, latest: 1_000, is_single: true };
        for start in 998..=1_002 {
            assert!(node.reach_back_to(start), "{start}");
        }
        for start in [0, 997, 1_003, u32::MAX] {
            assert!(!node.reach_back_to(start), "{start}");
        }
    }

    #[test]
    fn cluster_reaches_back_while_one_node_does() {
        let given = 300;
        assert!(starts(100, 300).reach_back_to(given));
        assert!(starts(200, 400).reach_back_to(given), "the oldest node restarted");
        assert!(starts(302, 500).reach_back_to(given), "within the tolerance");
        assert!(!starts(400, 500).reach_back_to(given), "all nodes did");
        assert!(starts(100, 200).reach_back_to(given), "a node is down");
    }

    #[test]
    fn reads_responses_of_couchdb_only() {
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
    fn start_is_date_minus_uptime() {
        assert_eq!(start_of(1_795_000_000, 5_000), Some(1_794_995_000));
        assert_eq!(start_of(10, 11), None);
        assert_eq!(start_of(10, 10), None);
        assert_eq!(start_of(u64::MAX, 0), None);
    }
}
