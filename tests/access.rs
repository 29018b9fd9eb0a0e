//! Which users may subscribe to which databases, and when sessions end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Client, Received};
use crate::support::couchdb::{FeedFault, Options, StandIn};
use crate::support::howler::Howler;
use crate::support::{A_MOMENT, PASSWORD, SOON, USER, couchdb, couchdb_with, position, wait_until};

const OTHER: &str = "other";
const OTHER_PASSWORD: &str = "zq7-other-secret";

fn members(couchdb: &StandIn) -> Howler {
    Howler::start_with(couchdb, &["--access", "members"])
}

fn scene() -> (StandIn, Howler) {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &["team"]);
    couchdb.create_database_for("mine", &[USER]);
    couchdb.create_database_for("theirs", &[OTHER]);
    let howler = members(&couchdb);
    (couchdb, howler)
}

fn client_of(howler: &Howler, name: &str, password: &str) -> Client {
    let mut client = Client::json(howler.address());
    assert_eq!(client.ask(json!({"op": "log-in", "username": name, "password": password}))["ok"], true);
    client
}

fn subscribe(client: &mut Client, names: &[&str]) -> Value {
    client.ask(json!({"op": "subscribe", "dbs": names}))
}

#[test]
fn only_members_may_subscribe() {
    let (couchdb, howler) = scene();
    couchdb.create_database("admins-alone");
    couchdb.create_database("public");
    couchdb
        .set_security("public", json!({"admins": {"names": [], "roles": []}, "members": {"names": [], "roles": []}}));
    couchdb.create_database("team-db");
    couchdb.set_security("team-db", json!({"members": {"roles": ["team"]}}));
    let mut user = client_of(&howler, USER, PASSWORD);
    let names = ["mine", "theirs", "public", "admins-alone", "team-db", "_users", "a/new+one"];
    let answer = subscribe(&mut user, &names);
    assert_eq!(answer["ok"], true, "{answer}");
    let of = |answer: &Value, what: &str| -> Vec<String> {
        answer[what].as_object().expect("an object").keys().cloned().collect()
    };
    assert_eq!(of(&answer, "dbs"), ["a/new+one", "mine", "public"]);
    assert_eq!(of(&answer, "errors"), ["_users", "admins-alone", "team-db", "theirs"]);
    assert_eq!(answer["errors"]["theirs"]["error"], "ForbiddenError");
    let answer = subscribe(&mut user, &["theirs"]);
    assert_eq!(
        (&answer["error"], &answer["errors"]["theirs"]["error"]),
        (&json!("ForbiddenError"), &json!("ForbiddenError"))
    );

    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    assert_eq!(of(&subscribe(&mut other, &names), "errors"), ["_users", "admins-alone", "mine"]);
    for name in ["theirs", "team-db", "admins-alone", "mine"] {
        couchdb.update(name);
    }
    assert_eq!(user.next_change(SOON).as_deref(), Some("mine"));
    assert_eq!(user.next_change(A_MOMENT), None);
    let received = [other.next_change(SOON), other.next_change(SOON)];
    assert_eq!(received.map(Option::unwrap), ["theirs", "team-db"]);

    // The server asks once for all clients.
    let asked = couchdb.requests();
    let questions = asked.iter().filter(|request| request.target == "/mine/_security").count();
    assert_eq!(questions, 1);
}

#[test]
fn a_server_admin_may_subscribe_to_any_database() {
    let couchdb = couchdb();
    couchdb.add_user("boss", "zq7-boss-secret", &["_admin"]);
    couchdb.create_database("admins-alone");
    let howler = members(&couchdb);
    let mut boss = client_of(&howler, "boss", "zq7-boss-secret");
    assert_eq!(subscribe(&mut boss, &["admins-alone", "_users"])["errors"], Value::Null);
    couchdb.update("admins-alone");
    assert_eq!(boss.next_change(SOON).as_deref(), Some("admins-alone"));
}

#[test]
fn socket_io_acknowledgements_name_forbidden_databases() {
    let (couchdb, howler) = scene();
    let mut client = Client::socket_io_logged_in(howler.address());
    client.send(r#"421["subscribe",["mine","theirs"]]"#);
    let ack = client.receive_text(SOON).expect("an ack");
    assert!(ack.starts_with("431[{") && ack.contains("ForbiddenError") && ack.contains("theirs"), "{ack}");
    assert!(!ack.contains("mine"), "{ack}");
    couchdb.update_many(&["mine", "theirs"]);
    assert_eq!(client.receive_text(SOON).as_deref(), Some(r#"42["change","mine"]"#));
    assert_eq!(client.receive_text(A_MOMENT), None);
}

#[test]
fn a_new_database_is_announced_to_its_members_only() {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let howler = members(&couchdb);
    let mut user = client_of(&howler, USER, PASSWORD);
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    for client in [&mut user, &mut other] {
        let answer = subscribe(client, &["later"]);
        assert_eq!((&answer["ok"], &answer["errors"]), (&json!(true), &Value::Null), "{answer}");
    }
    couchdb.create_database_for("later", &[USER]);
    assert_eq!(user.next_change(SOON).as_deref(), Some("later"));
    let event = other.next_event(SOON).expect("an event");
    assert_eq!(
        (&event["event"], &event["db"], &event["error"]),
        (&json!("unsubscribed"), &json!("later"), &json!("ForbiddenError"))
    );
    couchdb.update("later");
    assert_eq!(user.next_change(SOON).as_deref(), Some("later"));
    assert_eq!(other.next_event(A_MOMENT), None, "no change is sent to a user who may not read it");
}

#[test]
fn a_subscription_ends_when_the_database_is_recreated_for_others() {
    let (couchdb, howler) = scene();
    let mut user = client_of(&howler, USER, PASSWORD);
    subscribe(&mut user, &["mine"]);
    couchdb.set_security("mine", json!({"members": {"names": [OTHER]}}));
    // The feed does not report a change of `_security`, but it does report a deletion and a
    // creation.
    couchdb.delete_database("mine");
    let mut received = Vec::new();
    couchdb.create_database_for("mine", &[OTHER]);
    loop {
        let event = user.next_event(SOON).expect("an event");
        if event["event"] == "unsubscribed" {
            break;
        }
        received.push(event["kind"].clone());
    }
    assert!(received.is_empty() || received == ["deleted"], "{received:?}");
    couchdb.update("mine");
    assert_eq!(user.next_event(A_MOMENT), None);
}

/// The feed restarts at the current sequence, so only positions show what happened.
#[test]
fn changes_that_the_feed_missed_are_sent_to_members_only() {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let howler = members(&couchdb);
    let mut user = client_of(&howler, USER, PASSWORD);
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    for client in [&mut user, &mut other] {
        let answer = subscribe(client, &["later"]);
        assert_eq!((&answer["ok"], &answer["dbs"]["later"]), (&json!(true), &json!("0.0.0")), "{answer}");
    }
    couchdb.fail_feed(400, 1);
    couchdb.break_feed(FeedFault::Cut);
    couchdb.create_database_for("later", &[USER]);
    assert_eq!(user.next_change(SOON).as_deref(), Some("later"));
    let event = other.next_event(SOON).expect("an event");
    assert_eq!(
        (&event["event"], &event["db"]),
        (&json!("unsubscribed"), &json!("later")),
        "no change is sent to a user who may not read it"
    );
    assert_eq!(couchdb.counters().pin_requests, 2, "the feed did not report the change");
}

/// While CouchDB does not answer who may read a new database, replies treat it as missing.
#[test]
fn replies_treat_an_undecided_database_as_missing() {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    // `again` existed before, `later` never did.
    couchdb.create_database_for("again", &[USER]);
    couchdb.delete_database("again");
    let howler = members(&couchdb);
    let mut user = client_of(&howler, USER, PASSWORD);
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    let [none, made, gone, far] = ["0.0.0", "0.1.0", "0.1.1", "9.9.9"].map(|counts| json!(position(&couchdb, counts)));
    let known = [Value::Null, none, made, gone, far];
    let names = ["later", "again"];
    let ask = |client: &mut Client| -> Vec<Value> {
        let of = |(name, known): (&str, &Value)| {
            let mut answer = client.ask(json!({"op": "subscribe", "dbs": {name: known}}));
            // The first reply to each client contains the epoch.
            for member in ["id", "epoch"] {
                answer[member] = Value::Null;
            }
            answer
        };
        names.iter().flat_map(|name| known.iter().map(move |known| (*name, known))).map(of).collect()
    };
    let missing = ask(&mut user);
    assert_eq!((&missing[0]["dbs"]["later"], &missing[5]["dbs"]["again"]), (&json!("0.0.0"), &json!("0.1.1")));
    couchdb.fail_access(Some(500));
    let asked = names.map(|name| questions(&couchdb, name));
    for name in names {
        couchdb.create_database_for(name, &[USER]);
        couchdb.update(name);
    }
    for (name, before) in names.into_iter().zip(asked) {
        wait_for_question(&couchdb, name, before);
    }
    assert_eq!(ask(&mut user), missing);
    assert_eq!(ask(&mut other), missing, "the same for a new subscriber");
    assert_eq!(user.next_event(A_MOMENT), None);
    couchdb.fail_access(None);
    let mut received = [user.next_change(SOON).expect("a change"), user.next_change(SOON).expect("a change")];
    received.sort_unstable();
    assert_eq!(received, ["again", "later"]);
    for _ in names {
        assert_eq!(other.next_event(SOON).expect("an event")["event"], "unsubscribed");
    }
    let answer = subscribe(&mut user, &names);
    assert_eq!((&answer["dbs"]["later"], &answer["dbs"]["again"]), (&json!("1.1.0"), &json!("1.2.1")));
}

/// After a deletion another database of the same name may follow.
#[test]
fn a_deleted_database_is_undecided_until_its_security_is_read_again() {
    let (couchdb, howler) = scene();
    let mut user = client_of(&howler, USER, PASSWORD);
    let answer = subscribe(&mut user, &["mine"]);
    assert_eq!(answer["errors"], Value::Null);
    couchdb.fail_access(Some(500));
    let asked = questions(&couchdb, "mine");
    couchdb.delete_database("mine");
    let event = user.next_event(SOON).expect("an event");
    assert_eq!(
        (&event["event"], &event["kind"], &event["position"]),
        (&json!("change"), &json!("deleted"), &json!("0.1.1"))
    );
    wait_for_question(&couchdb, "mine", asked);
    couchdb.update("mine");
    couchdb.create_database_for("mine", &[OTHER]);
    couchdb.update("mine");
    assert_eq!(user.next_event(A_MOMENT), None, "no change is sent, as this may be another database");
    let answer = user.ask(json!({"op": "subscribe", "dbs": {"mine": position(&couchdb, "0.1.1")}}));
    assert_eq!((&answer["dbs"]["mine"], &answer["changed"]), (&json!("0.1.1"), &json!([])), "{answer}");
    couchdb.fail_access(None);
    let event = user.next_event(SOON).expect("an event");
    assert_eq!((&event["event"], &event["db"]), (&json!("unsubscribed"), &json!("mine")));
    couchdb.update("mine");
    assert_eq!(user.next_event(A_MOMENT), None);
}

/// CouchDB answers incorrectly for one name: the server stops asking when no client waits, and logs
/// each cause once.
#[test]
fn unreadable_responses_do_not_cause_endless_requests() {
    const LINE: &str = "CouchDB does not say who may read a database";
    let couchdb = couchdb();
    let howler = members(&couchdb);
    for (number, (status, body)) in
        [(200, "<html>"), (200, "[]"), (302, ""), (500, "{}"), (500, "{}"), (403, "{}")].into_iter().enumerate()
    {
        let name = format!("odd-{number}");
        couchdb.answer_security(&name, Some((status, body)));
        let mut user = client_of(&howler, USER, PASSWORD);
        user.request(json!({"op": "subscribe", "dbs": [name]}));
        let target = format!("/{name}/_security");
        assert!(couchdb.wait_for_request(SOON, |request| request.target == target).is_some(), "{name}");
        // The response arrives while the client is connected.
        std::thread::sleep(A_MOMENT);
        if number == 0 {
            let answer = user.next_event(SOON).expect("an answer");
            assert_eq!(answer["error"], "ServiceUnavailableError");
            assert!(
                (3..=5).contains(&questions(&couchdb, &name)),
                "retries have a growing backoff: {}",
                questions(&couchdb, &name)
            );
        }
    }
    wait_until("the server has noticed that all clients left", || {
        howler.metric("howler_sessions_logged_in") == 0 && couchdb.counters().in_flight == 0
    });
    let asked = couchdb.counters().access_requests;
    // Proves that no further request follows.
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(couchdb.counters().access_requests, asked, "no more requests, as no client waits");
    assert_eq!(howler.count_logged(LINE), 4, "one line for each cause:\n{}", howler.output());
    assert_eq!(howler.count_logged("odd-"), 0, "database names are logged at level debug only");
}

/// One client subscribes to new names and unsubscribes as fast as it can, while CouchDB is slow.
#[test]
fn a_client_with_endless_new_names_delays_no_one_and_takes_little_memory() {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    couchdb.create_database_for("theirs", &[OTHER]);
    let howler = Howler::start_with(&couchdb, &["--access", "members", "--max_message_rate", "1000000"]);
    let mut attacker = client_of(&howler, USER, PASSWORD);
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    couchdb.set_access_delay(Duration::from_millis(20));
    let before = howler.resident_kib();
    let padding = "x".repeat(220);
    for round in 0..400 {
        let names: Vec<String> = (0..250).map(|number| format!("a{round}-{number}-{padding}")).collect();
        attacker.request(json!({"op": "subscribe", "dbs": names}));
        attacker.request(json!({"op": "unsubscribe", "dbs": names}));
        for _ in 0..2 {
            let answer = attacker.receive_json(SOON).expect("an answer");
            assert_eq!(answer["ok"], true, "{answer}");
        }
        if round % 100 == 50 {
            let begun = Instant::now();
            let answer = subscribe(&mut other, &["theirs", &format!("missing-{round}")]);
            assert_eq!(answer["ok"], true, "{answer}");
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        }
    }
    // 100,000 names of 240 bytes are 24 MB.
    let grown = howler.resident_kib().saturating_sub(before);
    assert!(grown < 8_000, "{grown} KiB");
    let asked = couchdb.counters().access_requests;
    // Proves that not many more requests follow.
    std::thread::sleep(Duration::from_millis(500));
    assert!(couchdb.counters().access_requests - asked <= 8, "names without subscribers are not looked up");
    couchdb.update("theirs");
    assert_eq!(other.next_change(SOON).as_deref(), Some("theirs"));
}

#[test]
fn the_waiting_databases_of_a_user_are_limited() {
    const SESSIONS: usize = 3;
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let howler = members(&couchdb);
    couchdb.hold_access(true);
    let mut sessions: Vec<_> = (0..SESSIONS).map(|_| client_of(&howler, USER, PASSWORD)).collect();
    let mut refused = 0;
    for (number, session) in sessions.iter_mut().enumerate() {
        for part in 0..4 {
            let names: Vec<String> = (0..2_400).map(|name| format!("a{number}-{part}-{name}")).collect();
            session.request(json!({"op": "subscribe", "dbs": names}));
        }
    }
    for session in &mut sessions {
        while let Some(answer) = session.receive_json(Duration::from_secs(1)) {
            refused += usize::from(answer["error"] == "LimitError");
            assert!(
                answer["error"] != "LimitError" || answer["message"].as_str().unwrap().contains("wait"),
                "{answer}"
            );
            if answer["error"] == "ServiceUnavailableError" {
                break;
            }
        }
    }
    assert_eq!(refused, 4, "20,000 of 28,800 names wait");
    assert_eq!(howler.metric("howler_access_questions_refused_total"), 4);
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    other.request(json!({"op": "subscribe", "dbs": ["their-new"]}));
    couchdb.hold_access(false);
    let answer = other.next_event(SOON).expect("an answer");
    assert_eq!(answer["ok"], true, "{answer}");
}

/// Session checks and access lookups share their connections.
#[test]
fn session_checks_do_not_starve_access_lookups() {
    let couchdb = couchdb();
    couchdb.create_database_for("mine", &[USER]);
    let howler = Howler::start_with(&couchdb, &["--access", "members", "--session_check", "2"]);
    let mut clients: Vec<_> = (0..300).map(|_| client_of(&howler, USER, PASSWORD)).collect();
    // This allows 40 checks a second, while 150 a second become due.
    couchdb.set_login_delay(Duration::from_millis(100));
    let before = couchdb.counters().session_requests;
    assert!(couchdb.wait_for(SOON, |seen| seen.session_requests > before + 150));
    for (round, client) in clients.iter_mut().enumerate().take(3) {
        let begun = Instant::now();
        let answer = subscribe(client, &["mine", &format!("missing-{round}")]);
        assert_eq!(answer["ok"], true, "{answer}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}

/// Many subscribers of a database whose `_security` has many names.
#[test]
fn a_changed_security_is_applied_to_many_subscribers() {
    const CLIENTS: usize = 120;
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let of = |more: &[&str]| {
        let mut names: Vec<String> = (0..3_700).map(|number| format!("user-{number}")).collect();
        names.extend(more.iter().map(|name| (*name).to_owned()));
        json!({"members": {"names": names}})
    };
    couchdb.create_database("crowded");
    couchdb.set_security("crowded", of(&[USER, OTHER]));
    let howler = members(&couchdb);
    let mut stay: Vec<_> = (0..CLIENTS).map(|_| client_of(&howler, USER, PASSWORD)).collect();
    let mut go: Vec<_> = (0..CLIENTS).map(|_| client_of(&howler, OTHER, OTHER_PASSWORD)).collect();
    for client in stay.iter_mut().chain(&mut go) {
        assert_eq!(subscribe(client, &["crowded"])["errors"], Value::Null);
    }
    couchdb.delete_database("crowded");
    couchdb.hold_access(true);
    couchdb.create_database("crowded");
    couchdb.set_security("crowded", of(&[USER]));
    couchdb.hold_access(false);
    for client in &mut go {
        loop {
            let event = client.next_event(SOON).expect("an event");
            assert!(event["event"] == "unsubscribed" || event["kind"] == "deleted", "{event}");
            if event["event"] == "unsubscribed" {
                break;
            }
        }
    }
    assert_eq!(howler.metric("howler_subscriptions_revoked_total"), CLIENTS as u64);
    couchdb.update("crowded");
    for client in &mut stay {
        while client.next_event(SOON).expect("a change")["kind"] != "updated" {}
    }
    for client in &mut go {
        assert_eq!(client.next_event(Duration::from_millis(1)), None);
    }
}

/// The feed does not report the change, so the server looks `_security` up again.
#[test]
fn revoked_access_is_noticed_within_a_minute() {
    let couchdb = couchdb();
    couchdb.create_database_for("mine", &[USER]);
    couchdb.create_database_for("ours", &[USER, OTHER]);
    let howler = Howler::start_with(&couchdb, &["--access", "members", "--ping_interval", "600000"]);
    let mut user = client_of(&howler, USER, PASSWORD);
    assert_eq!(subscribe(&mut user, &["mine", "ours"])["errors"], Value::Null);
    let mut socket_io = Client::socket_io_logged_in(howler.address());
    socket_io.send(r#"421["subscribe",["mine","ours"]]"#);
    assert_eq!(socket_io.receive_text(SOON).as_deref(), Some("431[{}]"));
    let begun = Instant::now();
    couchdb.set_security("mine", json!({"members": {"names": [OTHER]}}));
    let event = user.next_event(Duration::from_secs(70)).expect("an event");
    assert_eq!(
        (&event["event"], &event["db"], &event["error"]),
        (&json!("unsubscribed"), &json!("mine"), &json!("ForbiddenError"))
    );
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(socket_io.receive_text(SOON).as_deref(), Some(r#"42["unsubscribed","mine"]"#));
    assert_eq!(howler.metric("howler_subscriptions_revoked_total"), 2);
    couchdb.update_many(&["mine", "ours"]);
    assert_eq!(user.next_change(SOON).as_deref(), Some("ours"));
    assert_eq!(socket_io.receive_text(SOON).as_deref(), Some(r#"42["change","ours"]"#));
}

#[test]
fn a_failed_access_lookup_fails_only_the_subscription() {
    let (couchdb, howler) = scene();
    let mut user = client_of(&howler, USER, PASSWORD);
    couchdb.fail_access(Some(500));
    assert_eq!(subscribe(&mut user, &["mine"])["error"], "ServiceUnavailableError");
    couchdb.fail_access(None);
    let deadline = Instant::now() + SOON;
    while subscribe(&mut user, &["mine"])["ok"] != true {
        assert!(Instant::now() < deadline, "{}", howler.output());
    }
    couchdb.update("mine");
    assert_eq!(user.next_change(SOON).as_deref(), Some("mine"));
}

#[test]
fn sessions_of_removed_users_end() {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let howler = Howler::start_with(&couchdb, &["--session_check", "1"]);
    let mut user = client_of(&howler, USER, PASSWORD);
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    let query = format!("username={OTHER}&password={OTHER_PASSWORD}");
    let mut old = Client::socket_io(howler.address(), &query);
    let seen = |text: &str, client: &mut Client| loop {
        let received = client.receive_text(SOON).expect("a message");
        if received.contains(text) {
            return received;
        }
    };
    seen("\"authenticated\"", &mut old);
    couchdb.remove_user(OTHER);
    let event = other.next_event(SOON).expect("an event");
    assert_eq!((&event["event"], &event["error"]), (&json!("not-authenticated"), &json!("NotAuthenticatedError")));
    assert_eq!(other.receive_close(SOON).1, Received::Close(4401, "not authenticated".into()));
    seen("not-authenticated", &mut old);
    seen("41", &mut old);
    assert_eq!(howler.metric("howler_log_ins_ended_total"), 2);
    // Sessions of existing users stay, even while CouchDB does not answer.
    couchdb.fail_logins(Some(500));
    // Proves that a failed check ends no session; there is one every second.
    std::thread::sleep(Duration::from_millis(1_500));
    couchdb.fail_logins(None);
    assert_eq!(user.ask(json!({"op": "heartbeat"}))["ok"], true);
}

#[test]
fn session_checks_are_spread_over_the_interval() {
    const CLIENTS: usize = 20;
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--session_check", "8", "--login_concurrency", "1"]);
    let _clients: Vec<_> = (0..CLIENTS).map(|_| client_of(&howler, USER, PASSWORD)).collect();
    let before = couchdb.counters();
    couchdb.set_login_delay(Duration::from_millis(50));
    assert!(couchdb.wait_for(SOON, |seen| seen.session_requests > before.session_requests));
    let first = Instant::now();
    assert!(couchdb.wait_for(SOON, |seen| seen.session_requests >= before.session_requests + CLIENTS));
    // Concurrent checks would take 250 ms.
    assert!(first.elapsed() > Duration::from_millis(700), "{:?}", first.elapsed());
    let peak = couchdb.counters().peak_sessions_in_flight;
    assert!((2..=4).contains(&peak), "{peak} checks at once");
}

#[test]
fn a_changed_password_and_a_lockout_end_sessions() {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let howler = Howler::start_with(&couchdb, &["--session_check", "1"]);
    let mut user = client_of(&howler, USER, PASSWORD);
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    couchdb.change_password(OTHER, "zq7-another-secret");
    let event = other.next_event(SOON).expect("an event");
    assert_eq!((&event["event"], &event["error"]), (&json!("not-authenticated"), &json!("NotAuthenticatedError")));
    assert_eq!(user.ask(json!({"op": "heartbeat"}))["ok"], true);
    let mut old = Client::socket_io_logged_in(howler.address());
    couchdb.fail_logins(Some(403));
    let event = user.next_event(SOON).expect("an event");
    assert_eq!((&event["event"], &event["error"]), (&json!("not-authenticated"), &json!("AccountLockedError")));
    assert!(event["message"].as_str().expect("a message").contains("locked"), "{event}");
    assert_eq!(user.receive_close(SOON).1, Received::Close(4401, "not authenticated".into()));
    let received = old.receive_text(SOON).expect("an event");
    assert!(received.starts_with("42[\"not-authenticated\"") && received.contains("AccountLockedError"), "{received}");
}

#[test]
fn sessions_are_not_checked_if_checks_are_off() {
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let unchecked = Howler::start_with(&couchdb, &["--session_check", "0"]);
    let checked = Howler::start_with(&couchdb, &["--session_check", "1"]);
    let mut stays = client_of(&unchecked, OTHER, OTHER_PASSWORD);
    let mut goes = client_of(&checked, OTHER, OTHER_PASSWORD);
    couchdb.remove_user(OTHER);
    assert_eq!(goes.next_event(SOON).expect("an event")["event"], "not-authenticated");
    // Proves that no check follows.
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(stays.ask(json!({"op": "heartbeat"}))["ok"], true);
    assert_eq!(unchecked.metric("howler_log_ins_ended_total"), 0);
}

#[test]
fn a_renewed_cookie_is_sent_to_the_client_and_valid() {
    let couchdb = couchdb_with(Options { cookie_life: Duration::from_secs(10), ..Options::default() });
    let howler = Howler::start_with(&couchdb, &["--session_check", "1"]);
    let mut user = Client::json(howler.address());
    let answer = user.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
    let event = user.next_event(SOON).expect("an event");
    assert_eq!(event["event"], "session");
    assert!(event["cookie"].is_string() && event["cookie"] != answer["cookie"], "{event}");
    let mut again = Client::json(howler.address());
    assert_eq!(again.ask(json!({"op": "log-in", "cookie": event["cookie"]}))["username"], USER);
}

#[test]
fn a_lost_role_ends_the_subscriptions_that_it_allowed() {
    let couchdb = couchdb();
    let token = "zq7-team.payload.signature";
    couchdb.add_token(token, USER, &["team"]);
    couchdb.create_database_for("mine", &[USER]);
    couchdb.create_database("team-db");
    couchdb.set_security("team-db", json!({"members": {"roles": ["team"]}}));
    let howler = Howler::start_with(&couchdb, &["--access", "members", "--session_check", "1"]);
    let mut user = Client::json(howler.address());
    assert_eq!(user.ask(json!({"op": "log-in", "token": token}))["ok"], true);
    assert_eq!(subscribe(&mut user, &["mine", "team-db"])["errors"], Value::Null);
    couchdb.add_token(token, USER, &[]);
    let event = user.next_event(SOON).expect("an event");
    assert_eq!((&event["event"], &event["db"]), (&json!("unsubscribed"), &json!("team-db")));
    couchdb.update_many(&["team-db", "mine"]);
    assert_eq!(user.next_change(SOON).as_deref(), Some("mine"));
}

/// Returns how often the server asked for the `_security` of a database.
fn questions(couchdb: &StandIn, name: &str) -> usize {
    let target = format!("/{name}/_security");
    couchdb.requests().iter().filter(|request| request.target == target).count()
}

/// Waits until CouchDB was asked about a database more often than before.
fn wait_for_question(couchdb: &StandIn, name: &str, before: usize) {
    let deadline = Instant::now() + SOON;
    while questions(couchdb, name) <= before {
        assert!(Instant::now() < deadline, "CouchDB is asked who may read {name}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Checking the subscribers of a database with many members again takes a small part of a round of
/// deletion and creation, and never all of it in one turn.
#[test]
fn other_clients_are_answered_while_many_subscribers_are_checked_again() {
    const CLIENTS: usize = 2_000;
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    let mut names: Vec<String> = (0..3_600).map(|number| format!("user-{number:05}")).collect();
    names.push(USER.to_owned());
    let security = json!({"members": {"names": names}});
    couchdb.create_database("crowded");
    couchdb.set_security("crowded", security.clone());
    let howler = members(&couchdb);
    let mut crowd: Vec<_> = (0..CLIENTS).map(|_| client_of(&howler, USER, PASSWORD)).collect();
    for client in &mut crowd {
        assert_eq!(subscribe(client, &["crowded"])["errors"], Value::Null);
    }
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    let mut best = f64::MAX;
    for _ in 0..4 {
        let over = std::sync::atomic::AtomicBool::new(false);
        let (longest, took) = std::thread::scope(|scope| {
            let measured = scope.spawn(|| {
                let mut longest = Duration::ZERO;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let begun = Instant::now();
                    other.ask(json!({"op": "heartbeat"}));
                    longest = longest.max(begun.elapsed());
                    std::thread::sleep(Duration::from_millis(3));
                }
                longest
            });
            let begun = Instant::now();
            couchdb.delete_database("crowded");
            couchdb.hold_access(true);
            couchdb.create_database("crowded");
            couchdb.set_security("crowded", security.clone());
            couchdb.hold_access(false);
            for client in &mut crowd {
                while client.next_event(SOON).expect("a change")["kind"] == "deleted" {}
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            (measured.join().expect("it measured"), begun.elapsed())
        });
        println!("{longest:?} of {took:?}");
        best = best.min(longest.as_secs_f64() / took.as_secs_f64());
    }
    assert!(best < 0.25, "another client waited for {best} of the time that a round took");
}

#[test]
fn the_legacy_keys_readers_and_cloudant_count_without_members() {
    let (couchdb, howler) = scene();
    let admins = json!({"names": ["boss"], "roles": []});
    let databases = [
        ("legacy", json!({"admins": admins, "readers": {"names": [OTHER], "roles": []}}), false),
        ("legacy-mine", json!({"admins": admins, "readers": {"names": [USER], "roles": []}}), true),
        ("legacy-open", json!({"admins": admins, "readers": {"names": [], "roles": []}}), true),
        ("both", json!({"readers": {"names": [USER]}, "members": {"names": [OTHER]}}), false),
        ("null", json!({"readers": {"names": [USER]}, "members": null}), false),
        ("odd", json!({"members": {"names": [USER, 7]}}), false),
        ("cloudant", json!({"cloudant": {OTHER: ["_reader"]}}), false),
        ("cloudant-mine", json!({"cloudant": {USER: ["_reader", "_writer"]}}), true),
        ("cloudant-empty", json!({"cloudant": {}}), false),
        ("cloudant-admin", json!({"cloudant": {}, "admins": {"names": [USER]}}), true),
        ("nobody-named", json!({}), true),
    ];
    for (name, security, _) in &databases {
        couchdb.create_database(name);
        couchdb.set_security(name, security.clone());
    }
    let names = databases.each_ref().map(|(name, ..)| *name);
    let mut user = client_of(&howler, USER, PASSWORD);
    let answer = subscribe(&mut user, &names);
    for (name, security, may_read) in &databases {
        let error = &answer["errors"][name]["error"];
        assert_eq!(*error == Value::Null, *may_read, "{name}: {security} {answer}");
    }
    couchdb.update_many(&names);
    let expected = databases.iter().filter(|(.., may_read)| *may_read).count();
    let mut received: Vec<String> = (0..expected).map(|_| user.next_change(SOON).expect("a change")).collect();
    received.sort_unstable();
    assert_eq!(received, ["cloudant-admin", "cloudant-mine", "legacy-mine", "legacy-open", "nobody-named"]);
    assert_eq!(user.next_change(A_MOMENT), None);
}

#[test]
fn couchdb_is_never_asked_about_an_invalid_name() {
    let long = "a".repeat(239);
    let names =
        ["..", "../_users", "..%2F_users", "a b", "Garden", "favicon.ico", "a?b", "_up", "_session", "é", &long];
    for access in ["members", "open"] {
        let couchdb = couchdb();
        couchdb.create_database_for("mine", &[USER]);
        let howler = Howler::start_with(&couchdb, &["--access", access]);
        let mut user = client_of(&howler, USER, PASSWORD);
        let begun = Instant::now();
        let answer = subscribe(&mut user, &names);
        assert!(begun.elapsed() < Duration::from_secs(4), "the reply is late: {:?}", begun.elapsed());
        assert_eq!(answer["ok"], true, "{access}: {answer}");
        assert_eq!(subscribe(&mut user, &["mine"])["ok"], true);
        couchdb.update("mine");
        assert_eq!(user.next_change(SOON).as_deref(), Some("mine"));
        for request in couchdb.requests() {
            let target = request.target.as_str();
            assert!(!target.ends_with("/_security") || target == "/mine/_security", "{access}: {target}");
            let body = String::from_utf8_lossy(&request.body).into_owned();
            let asks_for = |name: &&&str| body.contains(&format!("updated:{name}\""));
            assert_eq!(names.iter().find(asks_for), None, "{access}: {body}");
        }
    }
}

#[test]
fn names_are_percent_encoded_in_paths() {
    let couchdb = couchdb();
    let name = "a/b$c(d)+e-f_g";
    couchdb.create_database_for(name, &[USER]);
    let howler = members(&couchdb);
    let mut user = client_of(&howler, USER, PASSWORD);
    assert_eq!(subscribe(&mut user, &[name])["errors"], Value::Null);
    assert_eq!(questions(&couchdb, "a%2Fb%24c%28d%29%2Be-f_g"), 1);
    couchdb.update(name);
    assert_eq!(user.next_change(SOON).as_deref(), Some(name));
}

/// Returns a `_security` of about `length` bytes that lists the user last.
fn security_of_size(length: usize) -> Value {
    let mut names: Vec<String> = (0..length / 21).map(|number| format!("user-{number:013}")).collect();
    names.push(USER.to_owned());
    json!({"admins": {"names": ["boss"]}, "members": {"names": names}})
}

#[test]
fn a_large_security_is_read_up_to_a_limit() {
    let couchdb = couchdb();
    couchdb.add_user("chief", "zq7-chief-secret", &["_admin"]);
    let howler = members(&couchdb);
    let mut user = client_of(&howler, USER, PASSWORD);
    for (name, length) in [("small", 65_000), ("medium", 70_000), ("large", 1_000_000)] {
        couchdb.create_database(name);
        couchdb.set_security(name, security_of_size(length));
        assert_eq!(subscribe(&mut user, &[name])["errors"], Value::Null, "{name}");
        couchdb.update(name);
        assert_eq!(user.next_change(SOON).as_deref(), Some(name));
    }
    let too_large = ["huge-1", "huge-2"];
    for name in too_large {
        couchdb.create_database(name);
        couchdb.set_security(name, security_of_size(1_100_000));
        for _ in 0..2 {
            let begun = Instant::now();
            let answer = subscribe(&mut user, &[name]);
            assert!(begun.elapsed() < Duration::from_secs(4), "the reply is late: {:?}", begun.elapsed());
            let error = &answer["errors"][name];
            assert_eq!(error["error"], "ForbiddenError", "{answer}");
            assert!(error["message"].as_str().expect("a message").contains("larger than 1 MiB"), "{answer}");
        }
    }
    let mut socket_io = Client::socket_io_logged_in(howler.address());
    socket_io.send(r#"421["subscribe",["huge-1","small"]]"#);
    let ack = socket_io.receive_text(SOON).expect("an ack");
    assert!(ack.contains("ForbiddenError") && ack.contains("huge-1") && ack.contains("larger than 1 MiB"), "{ack}");
    let mut chief = client_of(&howler, "chief", "zq7-chief-secret");
    assert_eq!(subscribe(&mut chief, &too_large)["errors"], Value::Null);
    couchdb.update_many(&too_large);
    assert!(chief.next_change(SOON).is_some() && chief.next_change(SOON).is_some());
    assert_eq!(user.next_event(A_MOMENT), None);
    howler.assert_logged("_security of a database is larger than 1 MiB", 1);
    assert_eq!(howler.count_logged("huge-"), 0, "database names are logged at level debug only");
}

/// A login with other roles takes effect immediately, in both dialects.
#[test]
fn a_login_with_fewer_roles_ends_the_subscriptions_that_they_allowed() {
    let couchdb = couchdb();
    let (with, without) = ("zq7-with.payload.signature", "zq7-without.payload.signature");
    couchdb.add_token(with, USER, &["team", "_admin"]);
    couchdb.add_token(without, USER, &["other"]);
    couchdb.create_database_for("mine", &[USER]);
    couchdb.create_database("team-db");
    couchdb.set_security("team-db", json!({"members": {"roles": ["team"]}}));
    couchdb.create_database("admins-alone");
    let howler = members(&couchdb);
    let mut user = Client::json(howler.address());
    assert_eq!(user.ask(json!({"op": "log-in", "token": with}))["ok"], true);
    let names = ["mine", "team-db", "admins-alone", "_users"];
    assert_eq!(subscribe(&mut user, &names)["errors"], Value::Null);
    assert_eq!(user.ask(json!({"op": "log-in", "token": without}))["ok"], true);
    let mut lost = Vec::new();
    couchdb.update_many(&names);
    let mut changed = Vec::new();
    while lost.len() < 3 || changed.is_empty() {
        let event = user.next_event(SOON).expect("an event");
        let name = event["db"].as_str().expect("a name").to_owned();
        if event["event"] == "unsubscribed" { lost.push(name) } else { changed.push(name) }
    }
    lost.sort_unstable();
    assert_eq!(
        (lost, changed),
        (["_users", "admins-alone", "team-db"].map(str::to_owned).to_vec(), vec!["mine".into()])
    );
    couchdb.update_many(&names);
    assert_eq!(user.next_change(SOON).as_deref(), Some("mine"));
    assert_eq!(user.next_event(A_MOMENT), None);
}

#[test]
fn tokens_are_passed_to_couchdb() {
    let couchdb = couchdb();
    couchdb.add_token("zq7-header.payload.signature", USER, &[]);
    let howler = Howler::start_with(&couchdb, &["--session_check", "1"]);
    let mut client = Client::json(howler.address());
    let answer = client.ask(json!({"op": "log-in", "token": "zq7-header.payload.signature"}));
    assert_eq!((&answer["ok"], &answer["username"], &answer["cookie"]), (&json!(true), &json!(USER), &Value::Null));
    let mut old = Client::socket_io(howler.address(), "token=zq7-header.payload.signature");
    let received: Vec<_> = std::iter::from_fn(|| old.receive_text(SOON)).take(3).collect();
    assert_eq!(received[2], r#"42["authenticated",{}]"#, "{received:?}");
    for bad in ["zq7-forged.payload.signature", "a b", ""] {
        let mut client = Client::json(howler.address());
        assert_eq!(client.ask(json!({"op": "log-in", "token": bad}))["error"], "NotAuthenticatedError", "{bad}");
    }
    couchdb.expire_token("zq7-header.payload.signature");
    assert_eq!(client.next_event(SOON).expect("an event")["event"], "not-authenticated");
}

/// Above the total limit, the server evicts the largest objects and keeps the small ones.
#[test]
fn large_security_objects_take_a_limited_amount_of_memory() {
    const DATABASES: usize = 80;
    const LIMIT: u64 = 64 << 20;
    let couchdb = couchdb();
    couchdb.add_user(OTHER, OTHER_PASSWORD, &[]);
    couchdb.add_user("chief", "zq7-chief-secret", &["_admin"]);
    couchdb.create_database_for("mine", &[USER]);
    couchdb.create_database_for("theirs", &[OTHER]);
    let security = |name: &str, kib: usize| {
        let fillers = (0..kib).map(|number| format!("\"{number:01021}\"")).collect::<Vec<_>>().join(",");
        format!(r#"{{"members":{{"names":["{name}",{fillers}]}}}}"#)
    };
    let large: Vec<String> = (0..DATABASES).map(|number| format!("large-{number}")).collect();
    for (number, name) in large.iter().enumerate() {
        couchdb.create_database(name);
        couchdb.answer_security(name, Some((200, &security(USER, 900 + number))));
    }
    couchdb.create_database("medium");
    couchdb.answer_security("medium", Some((200, &security(OTHER, 100))));
    let howler = members(&couchdb);
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    assert_eq!(subscribe(&mut other, &["theirs", "medium"])["errors"], Value::Null);
    // The objects of a user without access take no room from others.
    for name in &large {
        assert_eq!(subscribe(&mut other, &[name])["error"], "ForbiddenError");
        assert!(howler.metric("howler_security_bytes") < LIMIT + (1 << 20));
    }
    assert_eq!(howler.metric("howler_security_evictions_total"), 0);
    let mut user = client_of(&howler, USER, PASSWORD);
    let mut refused = 0;
    for name in large.iter().map(String::as_str).chain(["mine"]) {
        let answer = subscribe(&mut user, &[name]);
        let error = &answer["errors"][name];
        if !error.is_null() {
            assert_eq!(error["error"], "ForbiddenError", "{answer}");
            assert!(error["message"].as_str().expect("a message").contains("more than 64 MiB together"), "{answer}");
            refused += 1;
        }
        assert!(howler.metric("howler_security_bytes") < LIMIT + (1 << 20));
    }
    assert!((1..DATABASES).contains(&refused), "{refused}");
    assert_eq!(howler.metric("howler_security_evictions_total"), refused as u64);
    assert_eq!(howler.metric("howler_access_questions_waiting"), 0);
    assert!(howler.metric("howler_security_bytes") > LIMIT * 3 / 4);
    howler.assert_logged("All large _security objects take more than 64 MiB together", 1);
    // A smaller object replaces the largest, and the subscriber of the latter is notified.
    couchdb.create_database("smaller");
    couchdb.answer_security("smaller", Some((200, &security(OTHER, 850))));
    assert_eq!(subscribe(&mut other, &["smaller"])["errors"], Value::Null);
    let event = user.next_event(SOON).expect("an event");
    assert_eq!((&event["event"], &event["error"]), (&json!("unsubscribed"), &json!("ForbiddenError")), "{event}");
    assert!(event["message"].as_str().expect("a message").contains("more than 64 MiB together"), "{event}");
    let mut chief = client_of(&howler, "chief", "zq7-chief-secret");
    assert_eq!(subscribe(&mut chief, &[&large[DATABASES - 1]])["errors"], Value::Null);
    couchdb.update_many(&["theirs", "medium", "smaller"]);
    let mut received: Vec<_> = (0..3).map(|_| other.next_change(SOON).expect("a change")).collect();
    received.sort();
    assert_eq!(received, ["medium", "smaller", "theirs"]);
    couchdb.update("mine");
    assert_eq!(user.next_change(SOON).as_deref(), Some("mine"));
    // Objects without subscribers are evicted as soon as room is needed.
    drop((user, chief));
    let mut user = client_of(&howler, USER, PASSWORD);
    assert_eq!(subscribe(&mut user, &["large-0"])["errors"], Value::Null);
}

#[test]
fn a_request_that_ends_while_it_waits_for_positions_leaves_nothing_behind() {
    let (couchdb, howler) = scene();
    let mut other = client_of(&howler, OTHER, OTHER_PASSWORD);
    assert_eq!(subscribe(&mut other, &["theirs"])["errors"], Value::Null);
    couchdb.set_lookup_delay(Duration::from_secs(1));
    let names: Vec<String> = (0..50).map(|number| format!("missing-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut user = client_of(&howler, USER, PASSWORD);
    let before = (couchdb.counters().lookup_requests, howler.metric("howler_names_stored"));
    user.send(&json!({"id": 1, "op": "subscribe", "dbs": names}).to_string());
    assert!(couchdb.wait_for(SOON, |seen| seen.lookup_requests > before.0), "the request does not wait for positions");
    drop(user);
    wait_until("its names are dropped", || howler.metric("howler_names_stored") <= before.1);
}
