//! Restarts of CouchDB: clients are notified of changes that may have been lost, and not if none
//! were lost.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::couchdb::{FeedFault, Options, StandIn};
use crate::support::device::{Device, Notice};
use crate::support::howler::{Howler, lasting_port};
use crate::support::http::Poller;
use crate::support::proxy::Proxy;
use crate::support::{A_MOMENT, SOON, couchdb_with, position};

/// CouchDB's default delay between a write and its event.
const TICK: Duration = Duration::from_millis(500);

/// Starts a CouchDB with a number of nodes that records events at its tick.
fn ticking(nodes: usize) -> StandIn {
    couchdb_with(Options { tick: TICK, nodes, ..Options::default() })
}

fn names() -> Vec<String> {
    (0..60).map(|number| format!("db-{number}")).collect()
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

/// Connects a client and looks up the position of each of its databases.
fn settled(howler: &Howler) -> Device {
    let mut device = Device::new(names());
    assert_eq!(
        device.come_back(howler.address()).expect("the server replies").len(),
        60,
        "the client knew no positions"
    );
    assert!(device.known.values().all(|known| known.as_ref().is_some_and(|it| it.contains('@'))), "{:?}", device.known);
    device
}

/// Returns the number of databases a client is notified of when it returns.
fn notified_at_return(device: &mut Device, howler: &Howler) -> usize {
    device.leave();
    device.come_back(howler.address()).expect("the server replies").len()
}

fn resyncs(howler: &Howler) -> u64 {
    howler.metric("howler_resyncs_total")
}

/// Waits until a server has compared the start times of CouchDB's nodes `count` times in total.
fn wait_for_readings(howler: &Howler, count: usize) {
    howler.wait_for_lines("Whether CouchDB restarted: ", count);
}

/// Returns how often a server has compared the start times of CouchDB's nodes.
fn readings(howler: &Howler) -> usize {
    howler.count_lines("Whether CouchDB restarted: ")
}

/// Waits until a client receives a resync; skips the notifications before it.
fn wait_for_everything(device: &mut Device) {
    let deadline = Instant::now() + SOON;
    while device.next(SOON).expect("the client is connected") != Notice::Everything {
        assert!(Instant::now() < deadline, "no resync");
    }
}

#[test]
fn a_restart_behind_a_retrying_proxy_resyncs_clients() {
    let couchdb = ticking(1);
    let proxy = Proxy::retrying(couchdb.address());
    let howlers = [0, 1].map(|_| Howler::launch(&["--couchdb_url", &proxy.url_of(&couchdb)]));
    assert!(couchdb.wait_for_feeds(2, SOON));
    let mut there: Vec<_> = howlers.iter().map(settled).collect();
    let mut away: Vec<_> = howlers.iter().map(settled).collect();
    away.iter_mut().for_each(Device::leave);
    let mut socket_io = Poller::subscribed(howlers[0].address(), &["db-7"]);
    for round in 0..2 {
        couchdb.update_many(&refs(&names()));
        couchdb.restart(true).expect("the port is free");
        for (place, device) in there.iter_mut().enumerate() {
            wait_for_everything(device);
            let howler = &howlers[place];
            assert_eq!(howler.count_lines("Connection refused"), 0, "the proxy hides the restart: {}", howler.output());
            assert_eq!(resyncs(howler), round + 1, "{}", howler.output());
        }
        assert_eq!(socket_io.next(), r#"42["change","db-7"]"#);
    }
    for (place, device) in there.iter_mut().enumerate() {
        assert_eq!(notified_at_return(device, &howlers[1 - place]), 0, "the resync was enough");
    }
    for (place, device) in away.iter_mut().enumerate() {
        assert_eq!(notified_at_return(device, &howlers[1 - place]), 60);
        assert_eq!(notified_at_return(device, &howlers[place]), 0, "the client is notified once");
    }
}

#[test]
fn a_client_that_returns_after_both_restarted_is_notified_once() {
    for signal in ["KILL", "TERM"] {
        let couchdb = ticking(1);
        let ports = [lasting_port(), lasting_port()];
        let howlers = ports.map(|port| Howler::start_on(port, &couchdb, &[]));
        let mut devices: Vec<_> = (0..4).map(|number| settled(&howlers[number % 2])).collect();
        couchdb.update_many(&refs(&names()));
        for mut howler in howlers {
            howler.signal(signal);
            howler.wait();
        }
        couchdb.restart(true).expect("the port is free");
        let howlers = ports.map(|port| Howler::start_on(port, &couchdb, &[]));
        for (number, device) in devices.iter_mut().enumerate() {
            let returns = [0, 1, 1, 0].map(|place| notified_at_return(device, &howlers[(number + place) % 2]));
            assert_eq!(returns, [60, 0, 0, 0], "{signal}");
        }
        assert_eq!(howlers.each_ref().map(resyncs), [0, 0]);
    }
}

#[test]
fn a_network_outage_without_a_restart_causes_no_resync() {
    let couchdb = ticking(1);
    let howler = Howler::start(&couchdb);
    let (mut there, mut away) = (settled(&howler), settled(&howler));
    away.leave();
    let read = readings(&howler);
    couchdb.refuse();
    howler.wait_for_line("The changes feed is not connected: ");
    couchdb.accept_again().expect("the port is free");
    wait_for_readings(&howler, read + 1);
    couchdb.update("db-3");
    assert_eq!(there.next(SOON).expect("the client is connected"), Notice::Change("db-3".to_owned()));
    assert_eq!((resyncs(&howler), notified_at_return(&mut away, &howler)), (0, 1));
    assert_eq!(notified_at_return(&mut there, &howler), 0);
}

#[test]
fn a_clock_that_is_wrong_for_a_while_looks_like_a_restart() {
    let couchdb = ticking(1);
    let howler = Howler::start(&couchdb);
    let mut devices = [true, false].map(|compares_again| {
        let mut device = settled(&howler);
        device.compares_again = compares_again;
        device
    });
    couchdb.set_clock_error(30);
    couchdb.break_feed(FeedFault::CleanEnd);
    devices.iter_mut().for_each(wait_for_everything);
    couchdb.set_clock_error(0);
    let read = readings(&howler);
    couchdb.break_feed(FeedFault::CleanEnd);
    wait_for_readings(&howler, read + 1);
    assert_eq!(resyncs(&howler), 1, "a clock set back is not a restart");
    let returns = devices.each_mut().map(|device| [0; 2].map(|_| notified_at_return(device, &howler)));
    assert_eq!(returns, [[60, 0], [0, 0]], "only positions given while the clock was wrong count as changed");
}

#[test]
fn a_restart_is_noticed_with_the_db_updates_feed() {
    let couchdb = ticking(1);
    let proxy = Proxy::retrying(couchdb.address());
    let howler = Howler::launch(&["--couchdb_url", &proxy.url_of(&couchdb), "--feed", "db_updates"]);
    assert!(couchdb.wait_for_feeds(1, SOON));
    howler.wait_for_line("Whether CouchDB restarted: First");
    let mut client = Client::subscribed(howler.address(), &["a"]);
    couchdb.update("a");
    couchdb.restart(true).expect("the port is free");
    assert_eq!(client.wait_for_resync(), [""; 0]);
}

#[test]
fn returning_socket_io_clients_are_notified_of_a_restart() {
    let couchdb = ticking(1);
    let howler = Howler::start_with(&couchdb, &["--catch_up_sessions", "60"]);
    let come = |subscribe: &str| {
        let mut client = Client::socket_io_logged_in(howler.address());
        client.send(subscribe);
        assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
        client
    };
    let subscribe = r#"421["subscribe",["a","b"]]"#;
    let mut client = come(subscribe);
    // The client has to send something after the notifications in flight have surely arrived.
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        assert_eq!(client.receive_text(A_MOMENT), None);
        client.send(r#"422["heartbeat",null]"#);
        assert_eq!(client.receive_text(SOON).as_deref(), Some(r#"432[{"ok":true}]"#));
    }
    drop(client);
    howler.wait_for_line("Session of 127.0.0.1 ended");
    let read = readings(&howler);
    couchdb.update("b");
    couchdb.restart(true).expect("the port is free");
    wait_for_readings(&howler, read + 1);
    let mut client = come(subscribe);
    let received = [0; 2].map(|_| client.receive_text(SOON).expect("a notification"));
    assert_eq!(received, [r#"42["change","a"]"#, r#"42["change","b"]"#]);
    assert_eq!(client.receive_text(A_MOMENT), None);
}

#[test]
fn without_a_start_time_an_outage_counts_as_a_restart() {
    for status in [401, 403, 404] {
        let couchdb = ticking(1);
        couchdb.refuse_uptime(Some(status));
        let howler = Howler::start(&couchdb);
        let mut device = Device::new(names());
        device.come_back(howler.address()).expect("the server replies");
        assert!(device.known.values().flatten().all(|position| !position.contains('@')));
        couchdb.refuse();
        howler.wait_for_line("The changes feed is not connected: ");
        couchdb.accept_again().expect("the port is free");
        wait_for_everything(&mut device);
        assert_eq!(notified_at_return(&mut device, &howler), 0, "the client compared its positions after the resync");
        couchdb.refuse();
        howler.wait_for_lines("The changes feed is not connected: ", 2);
        couchdb.accept_again().expect("the port is free");
        device.compares_again = false;
        wait_for_everything(&mut device);
        assert_eq!(notified_at_return(&mut device, &howler), 60, "its positions are older than the resync");
        assert_eq!(notified_at_return(&mut device, &howler), 0);
    }
}

/// Returns a client with positions from a server that does not know when CouchDB started.
fn settled_without_start(howler: &Howler) -> Device {
    let mut device = Device::new(names());
    assert_eq!(
        device.come_back(howler.address()).expect("the server accepts the client").len(),
        60,
        "a client without positions reads all databases"
    );
    assert!(
        device.known.values().all(|known| known.as_ref().is_some_and(|it| !it.contains('@'))),
        "{:?}",
        device.known
    );
    device
}

#[test]
fn a_position_without_a_start_counts_as_changed_where_the_start_is_known() {
    let couchdb = ticking(1);
    let howler = Howler::start(&couchdb);
    let mut client = Client::logged_in(howler.address());
    let mut changed =
        |position: &str| -> Value { client.ask(json!({"op": "subscribe", "dbs": {"a": position}}))["changed"].take() };
    for given in ["0.0.0", "1.0.0", "0.0.0@1", &position(&couchdb, "1.0.0")] {
        assert_eq!(changed(given), json!(["a"]), "{given}");
    }
    assert_eq!(changed(&position(&couchdb, "0.0.0")), json!([]));
}

#[test]
fn positions_from_before_the_start_was_known_count_as_changed_once() {
    for hidden_restart in [false, true] {
        let couchdb = ticking(1);
        let proxy = Proxy::retrying(couchdb.address());
        couchdb.refuse_uptime(Some(403));
        let howlers = [0, 1].map(|_| Howler::launch(&["--couchdb_url", &proxy.url_of(&couchdb)]));
        assert!(couchdb.wait_for_feeds(2, SOON));
        let (mut away, mut there) = (settled_without_start(&howlers[0]), settled_without_start(&howlers[0]));
        away.leave();
        if hidden_restart {
            // Uptime shows only a restart that comes some seconds after the feed was opened.
            thread::sleep(Duration::from_secs(4));
            couchdb.update_many(&refs(&names()));
            couchdb.restart(true).expect("the port is free");
            assert!(couchdb.wait_for_feeds(2, SOON));
        }
        couchdb.refuse_uptime(None);
        let read = howlers.each_ref().map(readings);
        couchdb.break_feed(FeedFault::CleanEnd);
        for (howler, read) in howlers.iter().zip(read) {
            wait_for_readings(howler, read + 1);
        }
        if hidden_restart {
            wait_for_everything(&mut there);
        } else {
            assert_eq!(there.next(A_MOMENT).expect("the client is connected"), Notice::Nothing);
        }
        let returns = [1, 0, 1].map(|place: usize| notified_at_return(&mut away, &howlers[place]));
        assert_eq!(returns, [60, 0, 0], "restarted: {hidden_restart}");
        assert_eq!(howlers.each_ref().map(resyncs), [u64::from(hidden_restart); 2]);
    }
}

#[test]
fn a_restart_of_all_between_an_unknown_and_a_known_start_is_notified_once() {
    let couchdb = ticking(1);
    couchdb.refuse_uptime(Some(403));
    let port = lasting_port();
    let howler = Howler::start_on(port, &couchdb, &[]);
    let mut device = settled_without_start(&howler);
    couchdb.update_many(&refs(&names()));
    drop(howler);
    couchdb.restart(true).expect("the port is free");
    couchdb.refuse_uptime(None);
    let howler = Howler::start_on(port, &couchdb, &[]);
    assert_eq!([0; 3].map(|_| notified_at_return(&mut device, &howler)), [60, 0, 0]);
}

#[test]
fn positions_are_given_once_the_start_is_known() {
    let couchdb = ticking(1);
    couchdb.refuse_uptime(Some(503));
    let howler = Howler::start(&couchdb);
    let mut device = Device::new(["a".to_owned()]);
    device.begin_login(howler.address()).and_then(|()| device.finish_login()).expect("the server accepts the client");
    let asked = couchdb.wait_for_request(SOON, |request| request.target.ends_with("/_membership"));
    assert!(asked.is_some(), "the server asks which nodes there are");
    couchdb.refuse_uptime(None);
    device.subscribe().expect("the server accepts the client");
    assert!(device.known["a"].as_ref().is_some_and(|position| position.starts_with("0.0.0@")), "{:?}", device.known);
}

#[test]
fn a_restart_of_one_node_loses_nothing_and_one_of_all_nodes_does() {
    let couchdb = ticking(3);
    let howlers = [Howler::start(&couchdb), Howler::start(&couchdb)];
    let mut there = settled(&howlers[0]);
    let mut away = settled(&howlers[1]);
    away.leave();
    for node in [0, 1, 2, 1] {
        let read = howlers.each_ref().map(readings);
        couchdb.restart_node(node).expect("the port is free");
        for (howler, read) in howlers.iter().zip(read) {
            wait_for_readings(howler, read + 1);
            assert_eq!(resyncs(howler), 0, "{}", howler.output());
        }
    }
    assert_eq!(there.next(A_MOMENT).expect("the client is connected"), Notice::Nothing);
    assert_eq!(notified_at_return(&mut there, &howlers[1]), 0);
    // A node that is down does not prove that it kept its events.
    couchdb.set_node_up(2, false);
    couchdb.update_many(&refs(&names()));
    couchdb.restart(true).expect("the port is free");
    wait_for_everything(&mut there);
    assert_eq!(
        howlers.each_ref().map(|howler| {
            howler.wait_for_line("clients resync, since changes may have been lost: CouchDB restarted");
            resyncs(howler)
        }),
        [1, 1]
    );
    let returns = [0, 1, 0].map(|place| notified_at_return(&mut away, &howlers[place]));
    assert_eq!(returns, [60, 0, 0]);
}

#[test]
fn a_restart_of_one_node_changes_no_position() {
    let couchdb = ticking(3);
    let port = lasting_port();
    let howler = Howler::start_on(port, &couchdb, &[]);
    let mut device = settled(&howler);
    drop(howler);
    couchdb.restart_node(0).expect("the port is free");
    // This server has never seen the start time of that node before its restart.
    let howler = Howler::start_on(port, &couchdb, &[]);
    assert_eq!(notified_at_return(&mut device, &howler), 0);
    drop(howler);
    couchdb.restart(true).expect("the port is free");
    let howler = Howler::start_on(port, &couchdb, &[]);
    assert_eq!([0; 2].map(|_| notified_at_return(&mut device, &howler)), [60, 0]);
}
