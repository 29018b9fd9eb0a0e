//! Clients that send long lists of names again and again: what that costs, and whom it delays.
//!
//! Costs are compared within one run, the same work for few and for many names: a machine that is busy is slow for
//! both.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::howler::Howler;
use crate::support::{A_MOMENT, SOON, couchdb};

/// Names that nobody else has.
fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

/// Processor time of the server so far, in hundredths of a second.
fn ticks(howler: &Howler) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", howler.id())).expect("it runs");
    let fields = stat.rsplit(')').next().expect("the name is in parentheses");
    let times = fields.split_whitespace().skip(11).take(2);
    times.map(|time| time.parse::<u64>().expect("a number")).sum()
}

/// Asserts that four times as much took about four times as long, not sixteen times.
fn assert_linear(small: u64, large: u64) {
    assert!(large < 8 * small.max(4), "{small} and {large} hundredths of a second");
}

#[test]
fn names_are_withdrawn_in_linear_time() {
    let cost = |count: usize| {
        let couchdb = couchdb();
        couchdb.set_look_up_delay(Duration::from_secs(4));
        let howler = Howler::start(&couchdb);
        let mut client = Client::logged_in(howler.address());
        let waiting = client.request(json!({"op": "subscribe", "dbs": names("a", count)}));
        client.ask(json!({"op": "heartbeat"}));
        let before = ticks(&howler);
        let others = names("b", count);
        for _ in 0..24 {
            assert_eq!(client.ask(json!({"op": "unsubscribe", "dbs": others}))["ok"], true);
        }
        let cost = ticks(&howler) - before;
        couchdb.set_look_up_delay(Duration::ZERO);
        assert_eq!(client.answer(waiting)["dbs"].as_object().map(serde_json::Map::len), Some(count));
        cost
    };
    assert_linear(cost(1_800), cost(7_200));
}

#[test]
fn many_short_sessions_make_the_end_of_a_long_one_no_dearer() {
    let cost = |sessions: usize, count: usize| {
        let couchdb = couchdb();
        let howler = Howler::start_with(&couchdb, &["--catch_up_sessions", "3"]);
        let subscribed = |databases: &[String]| {
            let mut client = Client::socket_io_logged_in(howler.address());
            client.send(&format!("421[\"subscribe\",{}]", json!(databases)));
            assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
            client
        };
        let mut clients: Vec<_> = (0..sessions).map(|number| subscribed(&[format!("short-{number}")])).collect();
        clients.push(subscribed(&names("l", count)));
        let before = ticks(&howler);
        drop(clients);
        howler.wait_for_lines("Session of 127.0.0.1 ended", sessions + 1);
        let deadline = Instant::now() + 4 * SOON;
        while howler.metric("howler_catch_up_subscriptions") > 0 {
            assert!(Instant::now() < deadline, "what was remembered is forgotten");
            thread::sleep(A_MOMENT);
        }
        ticks(&howler) - before
    };
    let apart = cost(400, 1) + cost(1, 7_000);
    let together = cost(400, 7_000);
    assert!(together < 2 * apart + 10, "{together} together, {apart} apart, in hundredths of a second");
}

#[test]
fn lookups_of_other_sessions_wait_for_no_session_with_many() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--max_message", "1048576"]);
    let mut honest = Client::logged_in(howler.address());
    assert_eq!(honest.ask(json!({"op": "subscribe", "dbs": ["before"]}))["dbs"]["before"], "0.0.0");
    couchdb.set_look_up_delay(Duration::from_millis(500));
    let crowd: Vec<Client> = (0..20)
        .map(|number| {
            let mut client = Client::logged_in(howler.address());
            client.request(json!({"op": "subscribe", "dbs": names(&format!("crowd-{number}-"), 8_000)}));
            client
        })
        .collect();
    for round in 0..4 {
        let name = format!("mine-{round}");
        let answer = honest.ask(json!({"op": "subscribe", "dbs": [&name]}));
        assert_eq!(answer["dbs"][&name], "0.0.0", "it was looked up in time: {answer}");
    }
    drop(crowd);
}

#[test]
fn a_list_of_names_counts_as_many_messages() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::logged_in(howler.address());
    let lists = [names("a", 6_000), names("b", 6_000)];
    let mut answered = 0;
    for list in lists.iter().cycle().take(100) {
        // The burst of twenty seconds has 2,000 messages, and each list counts as 61.
        client.request(json!({"op": "unsubscribe", "dbs": list}));
        match client.receive_json(SOON) {
            Some(answer) if answer["ok"] == Value::Bool(true) => answered += 1,
            _ => break,
        }
    }
    assert!((30..60).contains(&answered), "{answered} lists were taken");
    assert_eq!(howler.metric("howler_closes_total{reason=\"too_many_messages\"}"), 1);
    let mut other = Client::logged_in(howler.address());
    for number in 0..200 {
        assert_eq!(other.ask(json!({"op": "unsubscribe", "dbs": [number.to_string()]}))["ok"], true);
    }
}

#[test]
fn requests_in_one_segment_are_answered_in_order_whatever_others_send() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut busy: Vec<Client> = (0..4).map(|_| Client::logged_in(howler.address())).collect();
    let mut client = Client::logged_in(howler.address());
    for round in 0..5 {
        for other in &mut busy {
            other.request(json!({"op": "unsubscribe", "dbs": names("x", 5_000)}));
        }
        let ids: Vec<u64> = (0..8)
            .map(|number| {
                if number % 2 == 0 {
                    return client.request(json!({"op": "heartbeat"}));
                }
                client.request(json!({"op": "unsubscribe", "dbs": names(&format!("{round}-"), 300)}))
            })
            .collect();
        for id in ids {
            assert_eq!(client.answer(id)["ok"], true);
        }
    }
    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": ["last"]}))["ok"], true);
    couchdb.update("last");
    assert_eq!(client.next_change(SOON).as_deref(), Some("last"));
    for other in &mut busy {
        for _ in 0..5 {
            assert_eq!(other.receive_json(SOON).expect("an answer")["ok"], true);
        }
    }
}

#[test]
fn a_name_is_stored_once_whatever_refers_to_it() {
    const NAMES: usize = 4_000;
    let growth = |length: usize| {
        let couchdb = couchdb();
        let howler = Howler::start_with(&couchdb, &["--access", "members"]);
        let mut client = Client::logged_in(howler.address());
        client.ask(json!({"op": "subscribe", "dbs": ["first"]}));
        let before = howler.resident_kib();
        let names: Vec<String> = (0..NAMES).map(|number| format!("d{number:0>length$}")).collect();
        for part in names.chunks(200) {
            assert_eq!(client.ask(json!({"op": "subscribe", "dbs": part}))["ok"], true);
        }
        assert_eq!(howler.metric("howler_databases_watched"), NAMES as u64 + 1);
        howler.resident_kib() - before
    };
    // A byte more in each name, and what the allocator adds to that.
    let (short, long) = (growth(7), growth(207));
    assert!(long < short + 1_600, "{short} and {long} KiB: the names alone have 781 KiB more");
}
