//! Positions: what a client receives when it returns, how many requests that costs CouchDB, and
//! which notifications clients get when changes may have been lost.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::couchdb::{FeedFault, RecordedRequest, StandIn};
use crate::support::device::{Device, Notice};
use crate::support::howler::{Howler, lasting_port};
use crate::support::http::Poller;
use crate::support::{A_MOMENT, SOON, couchdb, position};

/// Longest time to the reply to `subscribe` when positions cannot be looked up: five seconds, plus
/// room for a busy machine.
const SUBSCRIBED_WITHIN: Duration = Duration::from_secs(9);

/// Time after which the server assumes that a sent message has arrived.
const OUT_OF_FLIGHT: Duration = Duration::from_secs(12);

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("db-{number}")).collect()
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// Returns the lookups that CouchDB received.
fn lookups(couchdb: &StandIn) -> Vec<RecordedRequest> {
    couchdb.requests().into_iter().filter(|request| request.target.ends_with("/_all_docs")).collect()
}

/// Reconnects a client; returns the databases that it is notified of and the number of lookups.
fn back_at(howler: &Howler, couchdb: &StandIn, device: &mut Device) -> (Vec<String>, usize) {
    couchdb.forget_requests();
    let changed = device.come_back(howler.address()).expect("the server replies");
    (sorted(changed), lookups(couchdb).len())
}

/// Returns the next notification of a client.
fn next(device: &mut Device) -> Notice {
    device.next(SOON).expect("the client is connected")
}

/// Returns the counters of a database's position as a device knows it, without the part that marks
/// losses.
fn counts<'a>(device: &'a Device, name: &str) -> &'a str {
    let position = device.known[name].as_deref().expect("the position is known");
    position.split(['-', '@']).next().expect("there is a first part")
}

fn hears_nothing(device: &mut Device) {
    assert_eq!(device.next(A_MOMENT).expect("the client is connected"), Notice::Nothing);
}

/// Connects a client to a server that knows the position of each of its databases.
fn settled(howler: &Howler, names: &[String]) -> Device {
    let mut device = Device::new(names.to_vec());
    let changed = device.come_back(howler.address()).expect("the server replies");
    assert_eq!(changed.len(), names.len(), "the client knew no positions");
    assert!(device.known.values().all(Option::is_some), "all positions are known");
    assert!(device.epoch.is_some());
    device
}

/// Stops CouchDB until the servers notice, then restarts it.
fn couchdb_restarts(couchdb: &StandIn, howlers: &[&Howler]) {
    const REFUSED: &str = "The changes feed is not connected: 127.0.0.1: Connection refused";
    let before: Vec<_> = howlers.iter().map(|howler| howler.count_lines(REFUSED)).collect();
    couchdb.refuse();
    for (howler, before) in howlers.iter().zip(before) {
        howler.wait_for_lines(REFUSED, before + 1);
    }
    couchdb.lose_next_events(false);
    couchdb.restart(true).expect("the port of the stand-in is free");
    assert!(couchdb.wait_for_feeds(howlers.len(), SOON));
}

#[test]
fn a_returning_client_learns_what_changed_after_one_lookup() {
    let couchdb = couchdb();
    let names = names(1_000);
    let ports = [lasting_port(), lasting_port()];
    let start = |port| Howler::start_on(port, &couchdb, &[]);
    let mut howlers = ports.map(start);
    couchdb.update_many(&refs(&names));
    let mut device = settled(&howlers[0], &names);
    let moved: Vec<String> = sorted((0..37).map(|i| names[i * 27].clone()).collect());
    for (place, restarted) in [(0, false), (1, false), (0, true), (1, true)] {
        device.leave();
        if restarted && place == 0 {
            drop(howlers);
            assert!(couchdb.wait_for_feeds(0, SOON));
            howlers = ports.map(start);
        }
        couchdb.update_many(&refs(&moved));
        couchdb.update(&moved[5]);
        let (changed, requests) = back_at(&howlers[place], &couchdb, &mut device);
        assert_eq!(changed, moved, "server {place}, restarted: {restarted}");
        // The first server still knew the positions.
        let most = usize::from(place == 1 || restarted);
        assert!(requests <= 1 && requests == most, "{requests} requests, server {place}, restarted: {restarted}");
        let own = |request: &RecordedRequest| {
            let target = &*request.target;
            let restarts = target == "/_membership" || target.starts_with("/_node/");
            restarts || target == "/_session" || target == "/_global_changes" || target.contains("_changes?")
        };
        assert_eq!(couchdb.requests().iter().filter(|request| !own(request)).count(), requests, "no other requests");
        couchdb.update(&names[1]);
        // Feed lines of changes that the reply covered may follow if the server had not read them
        // yet.
        while next(&mut device) != Notice::Change(names[1].clone()) {}
        hears_nothing(&mut device);
    }
}

#[test]
fn another_epoch_counts_every_database_as_changed() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut device = settled(&howler, &names(3));
    let position = device.known["db-1"].clone();
    let mut client = Client::logged_in(howler.address());
    let mut ask = |epoch: Value| client.ask(json!({"op": "subscribe", "dbs": {"db-1": position}, "epoch": epoch}));
    assert_eq!(ask(json!(device.epoch))["changed"], json!([]));
    assert_eq!(ask(Value::Null)["changed"], json!([]));
    assert_eq!(ask(json!("17"))["changed"], json!(["db-1"]));
    assert_eq!(ask(json!(""))["changed"], json!(["db-1"]));
    // For a malformed position and for an unknown one the reply only gives the current position.
    let answer = client.ask(json!({"op": "subscribe", "dbs": {"db-1": "nonsense", "db-2": null}}));
    assert_eq!(answer["changed"], json!(["db-1"]));
    assert_eq!(answer["dbs"], json!({"db-1": "0.0.0", "db-2": "0.0.0"}));
    device.leave();
    let (changed, requests) = back_at(&howler, &couchdb, &mut device);
    assert_eq!((changed, requests), (vec![], 0));
}

#[test]
fn a_new_server_compares_positions_once_it_knows_the_epoch() {
    let couchdb = couchdb();
    let port = lasting_port();
    let howler = Howler::start_on(port, &couchdb, &[]);
    let mut device = settled(&howler, &names(20));
    drop(howler);
    couchdb.update("db-7");
    // The server reads the epoch from `GET /_global_changes`.
    couchdb.set_access_delay(Duration::from_secs(1));
    let howler = Howler::start_on(port, &couchdb, &[]);
    assert_eq!(back_at(&howler, &couchdb, &mut device), (vec!["db-7".to_owned()], 1));
}

#[test]
fn a_broken_feed_of_a_healthy_couchdb_notifies_no_client() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut device = settled(&howler, &names(5));
    let mut socket_io = Poller::subscribed(howler.address(), &["db-1", "db-4"]);
    couchdb.forget_requests();
    for (round, fault) in [FeedFault::Cut, FeedFault::CleanEnd, FeedFault::Garbage, FeedFault::Reset].iter().enumerate()
    {
        couchdb.break_feed(*fault);
        let feeds = 2 + round;
        assert!(couchdb.wait_for(SOON, |seen| seen.feed_requests == feeds && seen.open_feeds == 1));
        couchdb.update("db-4");
        assert_eq!(next(&mut device), Notice::Change("db-4".to_owned()), "{fault:?}");
        assert_eq!(socket_io.next(), r#"42["change","db-4"]"#);
    }
    hears_nothing(&mut device);
    assert_eq!(lookups(&couchdb).len(), 0, "the feed reported all changes");
    device.leave();
    assert_eq!(back_at(&howler, &couchdb, &mut device), (vec![], 0));
}

#[test]
fn a_restart_of_couchdb_notifies_connected_and_returning_clients() {
    // CouchDB reports its start time, or the server has to guess.
    for says in [true, false] {
        every_client_learns_of_a_restart(says);
    }
}

fn every_client_learns_of_a_restart(says: bool) {
    let couchdb = couchdb();
    couchdb.refuse_uptime((!says).then_some(404));
    let howler = Howler::start(&couchdb);
    let names = names(4);
    let (mut there, mut away) = (settled(&howler, &names), settled(&howler, &names));
    let mut socket_io = Poller::subscribed(howler.address(), &["db-0", "db-2"]);
    away.leave();
    // An event that CouchDB never sends.
    couchdb.lose_next_events(true);
    couchdb.update("db-2");
    couchdb_restarts(&couchdb, &[&howler]);
    assert_eq!(next(&mut there), Notice::Everything);
    let received: BTreeSet<_> = (0..2).map(|_| socket_io.next()).collect();
    assert_eq!(received, [r#"42["change","db-0"]"#, r#"42["change","db-2"]"#].map(str::to_owned).into());
    // Without a certain event since the restart, positions from before it are no longer valid.
    couchdb.update("db-3");
    assert_eq!(next(&mut there), Notice::Change("db-3".to_owned()));
    let (changed, _) = back_at(&howler, &couchdb, &mut away);
    assert_eq!(changed, names);
    assert_eq!((counts(&away, "db-3"), counts(&away, "db-2")), ("1.0.0", "0.0.0"));
    let marked = |name: &str| away.known[name].as_deref().is_some_and(|position| position.contains(['-', '@']));
    assert_eq!([marked("db-3"), marked("db-2")], [says, true], "{:?}", away.known);
    away.leave();
    assert_eq!(back_at(&howler, &couchdb, &mut away), (vec![], 0), "the client is notified once");
    hears_nothing(&mut there);
}

#[test]
fn a_recreated_global_changes_database_resets_positions() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--create_global_changes"]);
    couchdb.update("db-1");
    let names = names(3);
    let (mut there, mut away) = (settled(&howler, &names), settled(&howler, &names));
    let epoch = there.epoch.clone();
    away.leave();
    assert!(couchdb.delete_database("_global_changes"));
    howler.wait_for_line("is not the database that it was");
    // The resync, the new epoch, and the change of epoch may come in any number of messages.
    assert_eq!(next(&mut there), Notice::Everything);
    while there.epoch == epoch {
        next(&mut there);
    }
    couchdb.update("db-1");
    while next(&mut there) != Notice::Change("db-1".to_owned()) {}
    assert_eq!(sorted(away.come_back(howler.address()).expect("the server replies")), names);
    assert_eq!((away.epoch, &away.known["db-1"]), (there.epoch, &there.known["db-1"]));
}

#[test]
fn after_a_refused_sequence_only_changed_databases_are_notified() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut device = settled(&howler, &names(50));
    let mut socket_io = Poller::subscribed(howler.address(), &["db-1", "db-7"]);
    howler_knows(&howler, &["db-1", "db-7"]);
    couchdb.fail_feed(400, 1);
    couchdb.break_feed(FeedFault::Cut);
    couchdb.update_many(&["db-7", "db-9"]);
    let received: BTreeSet<_> = (0..2).map(|_| format!("{:?}", next(&mut device))).collect();
    assert_eq!(received, [r#"Change("db-7")"#, r#"Change("db-9")"#].map(str::to_owned).into());
    assert_eq!(socket_io.next(), r#"42["change","db-7"]"#);
    assert_eq!(couchdb.counters().pin_requests, 2, "the feed starts at the current sequence");
    hears_nothing(&mut device);
    couchdb.update("db-1");
    assert_eq!(socket_io.next(), r#"42["change","db-1"]"#);
    assert_eq!(next(&mut device), Notice::Change("db-1".to_owned()));
}

/// Waits until a server knows the positions of databases.
fn howler_knows(howler: &Howler, names: &[&str]) {
    let answer = Client::logged_in(howler.address()).ask(json!({"op": "subscribe", "dbs": names}));
    assert!(names.iter().all(|name| answer["dbs"][name].is_string()), "{answer}");
}

#[test]
fn the_resync_option_decides_when_clients_resync() {
    for (policy, restart, cut) in [("off", false, false), ("lost", true, false), ("always", true, true)] {
        let couchdb = couchdb();
        let howler = Howler::start_with(&couchdb, &["--resync", policy]);
        let mut device = settled(&howler, &names(2));
        let mut resyncs = |expected: bool| {
            couchdb.update("db-1");
            let mut received = Vec::new();
            while !received.contains(&Notice::Change("db-1".to_owned()))
                || expected && !received.contains(&Notice::Everything)
            {
                received.push(next(&mut device));
            }
            hears_nothing(&mut device);
            assert_eq!(received.contains(&Notice::Everything), expected, "{policy}: {received:?}");
        };
        resyncs(false);
        couchdb.break_feed(FeedFault::CleanEnd);
        assert!(couchdb.wait_for(SOON, |seen| seen.feed_requests == 2 && seen.open_feeds == 1));
        resyncs(cut);
        couchdb_restarts(&couchdb, &[&howler]);
        resyncs(restart);
    }
}

#[test]
fn changes_in_unreadable_lines_are_found_by_position() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut device = settled(&howler, &names(10));
    couchdb.break_feed(FeedFault::PadNextLine(70_000));
    couchdb.update_many(&["db-3"]);
    assert_eq!(next(&mut device), Notice::Change("db-3".to_owned()), "{}", howler.output());
    howler.assert_logged("Skipped a line of the changes feed that is over 65536 bytes.", 1);
    // The server reads the line once more, then skips it.
    couchdb.break_next_feed(FeedFault::SpoilNextLine);
    couchdb.break_feed(FeedFault::SpoilNextLine);
    couchdb.update("db-5");
    assert_eq!(next(&mut device), Notice::Change("db-5".to_owned()), "{}", howler.output());
    howler.assert_logged("Skipped a line of the changes feed that is not JSON, twice.", 1);
    hears_nothing(&mut device);
}

#[test]
fn the_same_lookup_of_a_thousand_clients_is_one_request() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    couchdb.update("b");
    couchdb.set_lookup_delay(Duration::from_millis(300));
    let none = position(&couchdb, "0.0.0");
    let mut clients: Vec<_> = (0..1_000).map(|_| Client::logged_in(howler.address())).collect();
    let asked: Vec<_> = clients
        .iter_mut()
        .map(|client| client.request(json!({"op": "subscribe", "dbs": {"a": none, "b": none}})))
        .collect();
    for (client, id) in clients.iter_mut().zip(asked) {
        let answer = client.answer(id);
        assert_eq!(answer["changed"], json!(["b"]));
        assert_eq!(answer["dbs"], json!({"a": "0.0.0", "b": "1.0.0"}));
    }
    assert_eq!(couchdb.counters().lookup_requests, 1);
}

#[test]
fn three_thousand_names_are_looked_up_in_a_few_requests() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let names = names(3_000);
    couchdb.update_many(&refs(&names)[..1_500]);
    let device = settled(&howler, &names);
    assert_eq!(counts(&device, "db-1499"), "1.0.0");
    assert_eq!(counts(&device, "db-1500"), "0.0.0");
    let lookups = lookups(&couchdb);
    let sizes: Vec<_> = lookups
        .iter()
        .map(|request| serde_json::from_slice::<Value>(&request.body).expect("JSON")["keys"].as_array().map(Vec::len))
        .collect();
    assert_eq!(sizes, [Some(3_000); 3], "three keys for each database");
}

#[test]
fn unsubscribe_cancels_a_waiting_subscription() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    couchdb.set_lookup_delay(A_MOMENT);
    let mut client = Client::logged_in(howler.address());
    let subscribe = client.request(json!({"op": "subscribe", "dbs": {"a": "9.9.9", "b": "9.9.9"}}));
    let unsubscribe = client.request(json!({"op": "unsubscribe", "dbs": ["a", "c"]}));
    assert_eq!(client.answer(unsubscribe)["ok"], true);
    let answer = client.answer(subscribe);
    assert_eq!((&answer["dbs"], &answer["changed"]), (&json!({"b": "0.0.0"}), &json!(["b"])));
    couchdb.update("a");
    couchdb.update("b");
    assert_eq!(client.next_change(SOON).as_deref(), Some("b"));
    assert_eq!(client.next_change(A_MOMENT), None);
}

#[test]
fn failed_lookups_leave_clients_without_positions() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    couchdb.fail_lookups(Some(503));
    let mut client = Client::logged_in(howler.address());
    let asked = Instant::now();
    let answer = client.ask(json!({"op": "subscribe", "dbs": {"a": "0.0.0", "b": null}}));
    assert!(asked.elapsed() < SUBSCRIBED_WITHIN, "{:?}", asked.elapsed());
    assert_eq!(answer["dbs"], json!({"a": null, "b": null}));
    assert_eq!(answer["changed"], json!(["a"]), "an unknown position counts as changed");
    couchdb.update("b");
    let change = client.next_event(SOON).expect("a change");
    assert_eq!(change, json!({"event": "change", "db": "b", "kind": "updated"}));
    couchdb.fail_lookups(None);
    let mut known = Value::Null;
    let [none, once] = ["0.0.0", "1.0.0"].map(|counts| position(&couchdb, counts));
    let deadline = Instant::now() + SOON;
    // The server retries the lookup after a while, which may be longer than a reply waits.
    while !known["dbs"]["a"].is_string() || !known["dbs"]["b"].is_string() {
        assert!(Instant::now() < deadline, "{known}");
        known = client.ask(json!({"op": "subscribe", "dbs": {"a": none, "b": once}}));
    }
    assert_eq!((&known["dbs"], &known["changed"]), (&json!({"a": "0.0.0", "b": "1.0.0"}), &json!([])));
    couchdb.update("b");
    assert_eq!(client.next_event(SOON).expect("a change")["position"], "2.0.0");
    assert_eq!(client.next_change(A_MOMENT), None, "no change is sent twice");
}

#[test]
fn socket_io_clients_catch_up_if_sessions_are_remembered() {
    let subscribe = r#"421["subscribe",["a","b","c"]]"#;
    let come = |howler: &Howler| {
        let mut client = Client::socket_io_logged_in(howler.address());
        client.send(subscribe);
        assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
        client
    };
    for remembers in [true, false] {
        let couchdb = couchdb();
        let seconds = if remembers { "60" } else { "0" };
        let howler = Howler::start_with(&couchdb, &["--catch_up_sessions", seconds]);
        couchdb.update_many(&["a", "b"]);
        let mut client = come(&howler);
        howler_knows(&howler, &["a", "b", "c"]);
        // A notification sent just before a connection breaks may not arrive, so the client has to
        // send something later than that.
        let until = Instant::now() + if remembers { OUT_OF_FLIGHT } else { Duration::ZERO };
        while Instant::now() < until {
            assert_eq!(client.receive_text(A_MOMENT), None);
            client.send(r#"422["heartbeat",null]"#);
            assert_eq!(client.receive_text(SOON).as_deref(), Some(r#"432[{"ok":true}]"#));
        }
        let ended = howler.count_lines("Session of 127.0.0.1 ended");
        drop(client);
        howler.wait_for_lines("Session of 127.0.0.1 ended", ended + 1);
        couchdb.update("b");
        let mut client = come(&howler);
        if remembers {
            assert_eq!(client.receive_text(SOON).as_deref(), Some(r#"42["change","b"]"#));
        }
        couchdb.update("c");
        assert_eq!(
            client.receive_text(SOON).as_deref(),
            Some(r#"42["change","c"]"#),
            "no notification of a, which did not change"
        );
        assert_eq!(client.receive_text(A_MOMENT), None);
    }
}

#[test]
fn a_change_while_a_subscription_waits_is_in_the_reply_or_follows_it() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::logged_in(howler.address());
    let none = position(&couchdb, "0.0.0");
    for round in 0..200 {
        let name = format!("db-{round}");
        couchdb.set_lookup_delay(Duration::from_millis(round % 4));
        let id = client.request(json!({"op": "subscribe", "dbs": {&name: none}}));
        thread::sleep(Duration::from_micros(round * 25));
        couchdb.update(&name);
        let answer = client.answer(id);
        if answer["changed"] == json!([name]) {
            assert_eq!(answer["dbs"][&name], "1.0.0");
        } else {
            assert_eq!(client.next_change(SOON), Some(name), "{answer}");
        }
    }
}
