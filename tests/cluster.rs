//! CouchDB as a cluster, where a write causes several events. The server merges them into few
//! notifications.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::couchdb::{Options, StandIn};
use crate::support::device::{Device, Notice};
use crate::support::howler::Howler;
use crate::support::{A_MOMENT, SOON, couchdb, couchdb_with, position};

/// Time within which all events of a write arrive.
const ECHOES_WITHIN: Duration = Duration::from_millis(800);

/// Returns a cluster on which each write causes this number of events.
fn cluster(lines: u64) -> StandIn {
    let couchdb = couchdb_with(Options { nodes: 3, ..Options::default() });
    couchdb.set_lines_of_writes(Some(lines));
    couchdb
}

/// Starts a server and waits until it knows the number of nodes.
fn start(couchdb: &StandIn, options: &[&str]) -> Howler {
    let howler = Howler::start_with(couchdb, options);
    howler.wait_for_line("Whether CouchDB restarted: First");
    howler
}

/// Returns a client with subscriptions at known positions.
fn subscribed(couchdb: &StandIn, howler: &Howler, names: &[&str]) -> Client {
    let mut client = Client::logged_in(howler.address());
    let none = json!(position(couchdb, "0.0.0"));
    let known: Value =
        names.iter().map(|name| ((*name).to_owned(), none.clone())).collect::<serde_json::Map<_, _>>().into();
    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": known}))["changed"], json!([]));
    client
}

/// Returns the positions of all notifications up to the one at position `last`.
fn positions_to(client: &mut Client, last: &str) -> Vec<String> {
    let mut positions = Vec::new();
    while positions.last().is_none_or(|position| position != last) {
        let event = client.next_event(SOON).expect("a change arrives");
        positions.push(event["position"].as_str().expect("the position is a string").to_owned());
    }
    positions
}

#[test]
fn write_on_a_cluster_causes_two_notifications() {
    let couchdb = cluster(4);
    // Longer than the events of a write take, even on a busy machine.
    let howler = start(&couchdb, &["--merge_window", "3000"]);
    let mut client = subscribed(&couchdb, &howler, &["a", "b"]);
    let mut socket_io = Client::socket_io_logged_in(howler.address());
    socket_io.send(r#"421["subscribe",["a"]]"#);
    assert_eq!(socket_io.receive_text(SOON).as_deref(), Some("431[{}]"));
    for write in 1..=2 {
        couchdb.update("a");
        // If all events arrive in one turn, the first notification has the last position already.
        let positions = [0; 2].map(|_| client.next_event(SOON).expect("two notifications arrive")["position"].take());
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
fn write_with_one_event_causes_one_notification() {
    let couchdb = cluster(1);
    let howler = start(&couchdb, &[]);
    let mut client = subscribed(&couchdb, &howler, &["a"]);
    couchdb.update("a");
    assert_eq!(positions_to(&mut client, "1.0.0").len(), 1);
    assert_eq!(client.next_event(2 * ECHOES_WITHIN), None);
}

#[test]
fn each_database_has_its_own_merge_window() {
    let couchdb = cluster(3);
    let howler = start(&couchdb, &[]);
    let names: Vec<String> = (0..200).map(|number| format!("db-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = subscribed(&couchdb, &howler, &names);
    couchdb.update_many(&names);
    let (mut events, mut last) = (0, std::collections::BTreeMap::new());
    while last.len() < 200 || last.values().any(|position| position != "3.0.0") {
        let event = client.next_event(SOON).expect("a change arrives");
        let text = |member: &str| event[member].as_str().expect("the member is a string").to_owned();
        last.insert(text("db"), text("position"));
        events += 1;
    }
    let merged = howler.metric("howler_changes_merged_total");
    // Each window merges its events into one notification.
    assert!(merged > 0 && events <= 600 - merged + 200, "{events} notifications, {merged} events merged");
}

#[test]
fn merge_window_option_overrides_the_default() {
    let couchdb = cluster(4);
    let howler = start(&couchdb, &["--merge_window", "0"]);
    let mut client = subscribed(&couchdb, &howler, &["a"]);
    couchdb.update("a");
    positions_to(&mut client, "4.0.0");
    assert_eq!(howler.metric("howler_changes_merged_total"), 0);
    // The option also applies to a single node.
    let single = self::couchdb();
    let howler = start(&single, &["--merge_window", "5000"]);
    let mut client = subscribed(&single, &howler, &["a"]);
    single.update("a");
    assert_eq!(positions_to(&mut client, "1.0.0").len(), 1);
    for _ in 0..4 {
        single.update("a");
    }
    assert_eq!(positions_to(&mut client, "5.0.0").len(), 1);
    assert_eq!(howler.metric("howler_changes_merged_total"), 4);
}

#[test]
fn events_of_a_single_node_are_not_merged() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    let mut client = subscribed(&couchdb, &howler, &["a"]);
    for number in 1..=5 {
        couchdb.update("a");
        assert_eq!(positions_to(&mut client, &format!("{number}.0.0")).len(), 1);
    }
    assert_eq!(howler.metric("howler_changes_merged_total"), 0);
}

#[test]
fn held_changes_reach_clients_that_leave_and_clients_that_arrive() {
    let couchdb = cluster(4);
    let howlers = [start(&couchdb, &["--merge_window", "10000"]), start(&couchdb, &["--merge_window", "0"])];
    let mut leaves = Device::new(["a".to_owned()]);
    leaves.come_back(howlers[0].address()).expect("the server accepts the client");
    couchdb.update("a");
    assert_eq!(leaves.next(SOON).expect("the client is connected"), Notice::Change("a".to_owned()));
    leaves.leave();
    let mut witness = Client::subscribed(howlers[1].address(), &["a"]);
    while couchdb.revision("updated:a") < Some(4) {
        let _ = witness.next_event(A_MOMENT);
    }
    // The server that merges and the one that does not agree on the position.
    let changed = leaves.come_back(howlers[0].address()).expect("the server accepts the client");
    let position = leaves.known["a"].clone();
    leaves.leave();
    assert_eq!(
        changed.len() + leaves.come_back(howlers[1].address()).expect("the server accepts the client").len(),
        1,
        "{position:?}"
    );
    // A client that subscribes within the window gets the position after all events, and may be
    // notified once more.
    let mut comes = subscribed_from(&couchdb, &howlers[0], "a");
    couchdb.update("b");
    assert_eq!(comes.next_event(A_MOMENT), None);
}

/// Returns a client that knows the position of a database.
fn subscribed_from(couchdb: &StandIn, howler: &Howler, name: &str) -> Client {
    let mut client = Client::logged_in(howler.address());
    let counts = client.ask(json!({"op": "subscribe", "dbs": [name]}))["dbs"][name].take();
    let position = position(couchdb, counts.as_str().expect("it is known"));
    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": {name: position}}))["changed"], json!([]));
    client
}
