//! Clients that repeatedly send long lists of names: the costs, and the delays for other clients.
//!
//! Each run compares the costs of the same work for few and for many names: a busy machine is slow
//! for both.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::howler::Howler;
use crate::support::{A_MOMENT, SOON, couchdb, position};

/// Returns names with a prefix of their own.
fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

/// Returns the processor time of the server so far, in hundredths of a second.
fn ticks(howler: &Howler) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", howler.id())).expect("the server runs");
    let fields = stat.rsplit(')').next().expect("the name is in parentheses");
    let times = fields.split_whitespace().skip(11).take(2);
    times.map(|time| time.parse::<u64>().expect("the field is a number")).sum()
}

/// Asserts that four times the work took about four times as long, and not sixteen times.
fn assert_linear(small: u64, large: u64) {
    assert!(large < 8 * small.max(4), "{small} and {large} hundredths of a second");
}

#[test]
fn names_are_withdrawn_in_linear_time() {
    let cost = |count: usize| {
        let couchdb = couchdb();
        couchdb.set_lookup_delay(Duration::from_secs(4));
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
        couchdb.set_lookup_delay(Duration::ZERO);
        assert_eq!(client.answer(waiting)["dbs"].as_object().map(serde_json::Map::len), Some(count));
        cost
    };
    assert_linear(cost(1_800), cost(7_200));
}

#[test]
fn many_short_sessions_do_not_raise_the_cost_of_the_end_of_a_long_one() {
    let cost = |sessions: usize, long: usize| {
        let couchdb = couchdb();
        let howler = Howler::start_with(&couchdb, &["--catch_up_sessions", "4"]);
        let address = howler.address();
        let subscribed = move |databases: &[String]| {
            let mut client = Client::socket_io_logged_in(address);
            client.send(&format!("421[\"subscribe\",{}]", json!(databases)));
            assert_eq!(client.receive_text(SOON).as_deref(), Some("431[{}]"));
            client
        };
        let open = move |numbers: std::iter::StepBy<std::ops::Range<usize>>| -> Vec<Client> {
            numbers.map(|number| subscribed(&[format!("short-{number}")])).collect()
        };
        let threads: Vec<_> =
            (0..8).map(|part| thread::spawn(move || open((part..sessions.max(part)).step_by(8)))).collect();
        let short: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().expect("it connected")).collect();
        let long_ones: Vec<_> = (0..long).map(|number| subscribed(&names(&format!("{number}-"), 6_000))).collect();
        let before = ticks(&howler);
        // The short ones are forgotten while the long ones are still remembered.
        for (clients, ended) in [(short, sessions), (long_ones, sessions + long)] {
            drop(clients);
            if ended > 0 {
                howler.wait_for_lines("Session of 127.0.0.1 ended", ended);
            }
            thread::sleep(A_MOMENT);
        }
        // The server forgets ended sessions after four seconds. Metrics would add to the cost.
        thread::sleep(Duration::from_millis(4_500));
        let mut cost = ticks(&howler) - before;
        loop {
            // Proves that no more work follows.
            thread::sleep(Duration::from_millis(300));
            let now = ticks(&howler) - before;
            if now <= cost + 1 {
                return now;
            }
            cost = now;
        }
    };
    let apart = cost(800, 0) + cost(0, 7);
    let together = cost(800, 7);
    println!("{together} together, {apart} apart");
    assert!(together < 2 * apart, "{together} together, {apart} apart, in hundredths of a second");
}

#[test]
fn session_with_many_lookups_does_not_delay_lookups_of_others() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--max_message", "1048576"]);
    let mut honest = Client::logged_in(howler.address());
    assert_eq!(honest.ask(json!({"op": "subscribe", "dbs": ["before"]}))["dbs"]["before"], "0.0.0");
    couchdb.set_lookup_delay(Duration::from_millis(500));
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
        assert_eq!(answer["dbs"][&name], "0.0.0", "the lookup was in time: {answer}");
    }
    drop(crowd);
}

#[test]
fn list_of_names_counts_as_many_messages() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::logged_in(howler.address());
    let lists = [names("a", 6_000), names("b", 6_000)];
    let mut answered = 0;
    for list in lists.iter().cycle().take(100) {
        // A burst may have 2,000 messages (those of twenty seconds), and each list counts as 61.
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
fn requests_in_one_segment_are_answered_in_order_beside_long_lists() {
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
            assert_eq!(other.receive_json(SOON).expect("a reply arrives")["ok"], true);
        }
    }
}

#[test]
fn name_is_stored_once_for_all_its_references() {
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
    // One more byte in each name, and the overhead of the allocator.
    let (short, long) = (growth(7), growth(207));
    assert!(long < short + 1_600, "{short} and {long} KiB: the names alone have 781 KiB more");
}

/// Returns 10,000 names of the greatest length that fits into a message of 1 MiB.
fn long_names(prefix: &str) -> Vec<String> {
    (0..10_000).map(|number| format!("{prefix}{number:0>80}")).collect()
}

#[test]
fn other_clients_are_answered_during_the_work_on_a_long_list() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut other = Client::logged_in(howler.address());
    let mut best = f64::MAX;
    for round in 0..6 {
        let mut client = Client::logged_in(howler.address());
        let databases = long_names(&format!("r{round}-"));
        let over = std::sync::atomic::AtomicBool::new(false);
        let (longest, took) = thread::scope(|scope| {
            let measured = scope.spawn(|| {
                let mut longest = Duration::ZERO;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let begun = Instant::now();
                    other.ask(json!({"op": "heartbeat"}));
                    longest = longest.max(begun.elapsed());
                    // Stays below the rate of 100 messages a second.
                    thread::sleep(Duration::from_millis(3));
                }
                longest
            });
            let mut took = Duration::ZERO;
            for op in ["subscribe", "unsubscribe"] {
                let begun = Instant::now();
                assert_eq!(client.ask(json!({"op": op, "dbs": databases}))["ok"], true);
                took = took.max(begun.elapsed());
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            (measured.join().expect("the thread measured"), took)
        });
        best = best.min(longest.as_secs_f64() / took.as_secs_f64());
        println!("{longest:?} of {took:?}");
    }
    assert!(best < 0.4, "other clients waited for {best} of the time of a list");
}

#[test]
fn change_during_the_work_on_a_long_list_is_in_the_reply_or_follows_it() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for round in 0..3 {
        let databases = names(&format!("r{round}-"), 10_000);
        let known: serde_json::Map<String, Value> =
            databases.iter().map(|name| (name.clone(), Value::from(position(&couchdb, "0.0.0")))).collect();
        let mut client = Client::logged_in(howler.address());
        let changed: Vec<String> = databases.iter().step_by(50).cloned().collect();
        let mut found = std::collections::BTreeSet::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                for name in &changed {
                    couchdb.update(name);
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let id = client.request(json!({"op": "subscribe", "dbs": known}));
            let answer = client.receive_json(4 * SOON).expect("a reply arrives");
            assert_eq!(answer["id"], json!(id), "no notification precedes the reply: {answer:.200}");
            assert_eq!(answer["dbs"].as_object().map(serde_json::Map::len), Some(10_000));
            found.extend(answer["changed"].as_array().expect("names").iter().map(ToString::to_string));
        });
        let all: std::collections::BTreeSet<_> = changed.iter().map(|name| Value::from(&**name).to_string()).collect();
        while !found.is_superset(&all) {
            let Some(change) = client.next_change(SOON) else { break };
            found.insert(Value::from(change).to_string());
        }
        assert_eq!(found, all, "each change is in the reply or follows it");
        drop(client);
    }
}

#[test]
fn messages_after_a_long_list_are_handled_in_order() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let (first, second) = (names("a", 4_000), names("b", 4_000));
    let mut client = Client::logged_in(howler.address());
    let requests = [
        json!({"op": "unsubscribe", "dbs": first}),
        json!({"op": "heartbeat"}),
        json!({"op": "subscribe", "dbs": second}),
        json!({"op": "unsubscribe", "dbs": second}),
        json!({"op": "subscribe", "dbs": ["last"]}),
    ];
    let ids: Vec<u64> = requests.iter().map(|request| client.request(request.clone())).collect();
    for id in &ids[..2] {
        assert_eq!(client.receive_json(SOON).expect("a reply arrives")["id"], json!(id));
    }
    // The second `subscribe` is withdrawn while it waits for positions, and then answered.
    let mut answered: Vec<u64> = (0..3)
        .map(|_| {
            let answer = client.receive_json(SOON).expect("a reply arrives");
            assert_eq!(answer["ok"], true, "{answer:.200}");
            answer["id"].as_u64().expect("the reply has an id")
        })
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, ids[2..]);
    assert_eq!(howler.metric("howler_subscriptions"), 1);

    // The same over Socket.IO, which needs no lookups.
    let mut client = Client::socket_io_logged_in(howler.address());
    for (id, (event, databases)) in
        [("subscribe", &first), ("unsubscribe", &first), ("subscribe", &second)].into_iter().enumerate()
    {
        client.send(&format!("42{id}[\"{event}\",{}]", json!(databases)));
    }
    client.send("423[\"heartbeat\",null]");
    for answer in ["430[{}]", "431[{}]", "432[{}]", "433[{\"ok\":true}]"] {
        assert_eq!(client.receive_text(SOON).as_deref(), Some(answer));
    }
    assert_eq!(howler.metric("howler_subscriptions"), 4_001);
    couchdb.update("b7");
    assert_eq!(client.receive_text(SOON).as_deref(), Some("42[\"change\",\"b7\"]"));
}

/// Waits until ended sessions have left no subscriptions.
fn wait_until_released(howler: &Howler) {
    let deadline = Instant::now() + 4 * SOON;
    // The lists of clients that left may reach the server late: a session ends after its last list.
    for metric in ["howler_sessions_logged_in", "howler_subscriptions", "howler_databases_watched"] {
        while howler.metric(metric) > 0 {
            assert!(Instant::now() < deadline, "{metric} is {}", howler.metric(metric));
            thread::sleep(A_MOMENT);
        }
    }
}

#[test]
fn session_that_ends_during_the_work_on_its_list_leaves_nothing() {
    let couchdb = couchdb();
    for options in [&[][..], &["--access", "members"], &["--catch_up_sessions", "1"]] {
        let howler = Howler::start_with(&couchdb, options);
        let databases = names("a", 10_000);
        for step in 0..6 {
            let mut client = Client::logged_in(howler.address());
            client.request(json!({"op": "subscribe", "dbs": databases}));
            if step % 3 == 1 {
                client.request(json!({"op": "unsubscribe", "dbs": databases}));
            }
            if step % 3 == 2 {
                client.request(json!({"op": "log-out"}));
            }
            // Ends the session in another step of the work each time.
            thread::sleep(step * Duration::from_millis(7));
        }
        let mut client = Client::socket_io_logged_in(howler.address());
        client.send(&format!("421[\"subscribe\",{}]", json!(databases)));
        drop(client);
        wait_until_released(&howler);
        let mut client = Client::logged_in(howler.address());
        let answer = client.ask(json!({"op": "subscribe", "dbs": databases[..200]}));
        assert_eq!(answer["ok"], true, "{options:?}: {answer}");
        assert_eq!(howler.metric("howler_subscriptions"), 200);
    }
}

#[test]
fn client_that_reconnects_during_the_work_keeps_nothing_of_its_list() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::socket_io_logged_in(howler.address());
    client.send(&format!("421[\"subscribe\",{}]", json!(names("a", 10_000))));
    client.send("41");
    client.send("40");
    client.send("422[\"subscribe\",[\"mine\"]]");
    let texts: Vec<String> = std::iter::from_fn(|| client.receive_text(SOON)).take(4).collect();
    assert_eq!(texts.last().map(String::as_str), Some("432[{}]"), "{texts:?}");
    assert_eq!(howler.metric("howler_subscriptions"), 1);
    couchdb.update("a7");
    couchdb.update("mine");
    assert_eq!(client.receive_text(SOON).as_deref(), Some("42[\"change\",\"mine\"]"));
}

#[test]
fn other_clients_are_answered_during_the_end_of_long_sessions() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--catch_up_sessions", "1"]);
    let databases = names("a", 10_000);
    let mut other = Client::logged_in(howler.address());
    let mut best = f64::MAX;
    for _ in 0..3 {
        let crowd: Vec<Client> = (0..6)
            .map(|_| {
                let mut client = Client::socket_io_logged_in(howler.address());
                client.send(&format!("421[\"subscribe\",{}]", json!(databases)));
                assert_eq!(client.receive_text(4 * SOON).as_deref(), Some("431[{}]"));
                client
            })
            .collect();
        // Everything that arrived with the replies is handled before this one.
        other.ask(json!({"op": "heartbeat"}));
        let before = ticks(&howler);
        drop(crowd);
        let (mut longest, deadline) = (Duration::ZERO, Instant::now() + 4 * SOON);
        while howler.metric("howler_subscriptions") > 0 {
            assert!(Instant::now() < deadline, "timeout waiting for the end of all subscriptions");
            let begun = Instant::now();
            other.ask(json!({"op": "heartbeat"}));
            longest = longest.max(begun.elapsed());
            thread::sleep(Duration::from_millis(3));
        }
        let took = Duration::from_millis(10 * (ticks(&howler) - before).max(1));
        println!("{longest:?} of {took:?}");
        best = best.min(longest.as_secs_f64() / took.as_secs_f64());
    }
    assert!(best < 0.4, "other clients waited for {best} of the time of the end of sessions");
}
