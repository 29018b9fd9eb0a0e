//! CouchDB as a cluster: a write makes several events there, which become few notifications.

use std::time::Duration;

use crate::support::couchdb::{Options, StandIn};
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::device::{Device, Told};
use crate::support::howler::Howler;
use crate::support::{A_MOMENT, SOON, couchdb, couchdb_with};

/// All events of a write come within this.
const ECHOES_WITHIN: Duration = Duration::from_millis(800);

/// A cluster on which each write makes so many events.
fn cluster(lines: u64) -> StandIn {
    let couchdb = couchdb_with(Options { nodes: 3, ..Options::default() });
    couchdb.set_lines_of_writes(Some(lines));
    couchdb
}

/// A server that knows by now how many nodes there are.
fn start(couchdb: &StandIn, options: &[&str]) -> Howler {
    let howler = Howler::start_with(couchdb, options);
    howler.wait_for_line("Whether CouchDB restarted: First");
    howler
}

/// A client whose databases' positions are known.
fn subscribed(howler: &Howler, names: &[&str]) -> Client {
    let mut client = Client::logged_in(howler.address());
    let known: Value =
        names.iter().map(|name| ((*name).to_owned(), json!("0.0.0"))).collect::<serde_json::Map<_, _>>().into();
    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": known}))["changed"], json!([]));
    client
}

/// The positions of all notifications of a database, up to one.
fn positions_to(client: &mut Client, last: &str) -> Vec<String> {
    let mut positions = Vec::new();
    while positions.last().is_none_or(|position| position != last) {
        let event = client.next_event(SOON).expect("a change");
        positions.push(event["position"].as_str().expect("a position").to_owned());
    }
    positions
}

#[test]
fn a_write_on_a_cluster_is_notified_at_once_and_once_more() {
    let couchdb = cluster(4);
    // Longer than the events of a write take, also on a busy machine.
    let howler = start(&couchdb, &["--merge_window", "3000"]);
    let mut client = subscribed(&howler, &["a", "b"]);
    let mut socket_io = Client::socket_io_logged_in(howler.address());
    socket_io.send(r#"421["subscribe",["a"]]"#);
    assert_eq!(socket_io.receive_text(SOON).as_deref(), Some("431[{}]"));
    for write in 1..=2 {
        couchdb.update("a");
        // Where all come in one turn, the first has the last position already.
        let positions = [0; 2].map(|_| client.next_event(SOON).expect("two of them")["position"].take());
        assert_eq!(positions[1], format!("{}.0.0", 4 * write), "{positions:?}");
        for _ in 0..2 {
            assert_eq!(socket_io.receive_text(SOON).as_deref(), Some(r#"42["change","a"]"#));
        }
    }
    assert_eq!(client.next_event(ECHOES_WITHIN), None);
    assert_eq!(socket_io.receive_text(A_MOMENT), None);
    assert_eq!((howler.metric("howler_changes_total"), howler.metric("howler_changes_merged_total")), (8, 6));
}

#[test]
fn a_write_that_makes_one_event_is_notified_once() {
    let couchdb = cluster(1);
    let howler = start(&couchdb, &[]);
    let mut client = subscribed(&howler, &["a"]);
    couchdb.update("a");
    assert_eq!(positions_to(&mut client, "1.0.0").len(), 1);
    assert_eq!(client.next_event(2 * ECHOES_WITHIN), None);
}

#[test]
fn every_database_has_a_window_of_its_own() {
    let couchdb = cluster(3);
    let howler = start(&couchdb, &[]);
    let names: Vec<String> = (0..200).map(|number| format!("db-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = subscribed(&howler, &names);
    couchdb.update_many(&names);
    let (mut events, mut last) = (0, std::collections::BTreeMap::new());
    while last.len() < 200 || last.values().any(|position| position != "3.0.0") {
        let event = client.next_event(SOON).expect("a change");
        let text = |member: &str| event[member].as_str().expect("a text").to_owned();
        last.insert(text("db"), text("position"));
        events += 1;
    }
    let merged = howler.metric("howler_changes_merged_total");
    // What is merged is one notification of each window.
    assert!(merged > 0 && events <= 600 - merged + 200, "{events} notifications, {merged} events merged");
}

#[test]
fn the_operator_says_how_long_changes_are_merged() {
    let couchdb = cluster(4);
    let howler = start(&couchdb, &["--merge_window", "0"]);
    let mut client = subscribed(&howler, &["a"]);
    couchdb.update("a");
    positions_to(&mut client, "4.0.0");
    assert_eq!(howler.metric("howler_changes_merged_total"), 0);
    // And a single node is no reason not to.
    let single = self::couchdb();
    let howler = start(&single, &["--merge_window", "5000"]);
    let mut client = subscribed(&howler, &["a"]);
    single.update("a");
    assert_eq!(positions_to(&mut client, "1.0.0").len(), 1);
    for _ in 0..4 {
        single.update("a");
    }
    assert_eq!(positions_to(&mut client, "5.0.0").len(), 1);
    assert_eq!(howler.metric("howler_changes_merged_total"), 4);
}

#[test]
fn a_single_node_merges_nothing() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    let mut client = subscribed(&howler, &["a"]);
    for number in 1..=5 {
        couchdb.update("a");
        assert_eq!(positions_to(&mut client, &format!("{number}.0.0")).len(), 1);
    }
    assert_eq!(howler.metric("howler_changes_merged_total"), 0);
}

#[test]
fn what_is_held_back_is_told_to_those_who_leave_and_those_who_come() {
    let couchdb = cluster(4);
    let howlers = [start(&couchdb, &["--merge_window", "10000"]), start(&couchdb, &["--merge_window", "0"])];
    let mut leaves = Device::new(["a".to_owned()]);
    leaves.come_back(howlers[0].address()).expect("it is served");
    couchdb.update("a");
    assert_eq!(leaves.next(SOON).expect("it is connected"), Told::Change("a".to_owned()));
    leaves.leave();
    let mut witness = Client::subscribed(howlers[1].address(), &["a"]);
    while couchdb.revision("updated:a") < Some(4) {
        let _ = witness.next_event(A_MOMENT);
    }
    // By the server that holds changes back, and by the other: they agree on the position.
    let told = leaves.come_back(howlers[0].address()).expect("it is served");
    let position = leaves.known["a"].clone();
    leaves.leave();
    assert_eq!(told.len() + leaves.come_back(howlers[1].address()).expect("it is served").len(), 1, "{position:?}");
    // Who comes within the window has the position after all of it, and may be told once more.
    let mut comes = subscribed_from(&howlers[0], "a");
    couchdb.update("b");
    assert_eq!(comes.next_event(A_MOMENT), None);
}

/// A client that knows where a database is.
fn subscribed_from(howler: &Howler, name: &str) -> Client {
    let mut client = Client::logged_in(howler.address());
    let position = client.ask(json!({"op": "subscribe", "dbs": [name]}))["dbs"][name].take();
    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": {name: position}}))["changed"], json!([]));
    client
}
