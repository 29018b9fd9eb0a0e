//! The client library (`src/web/howler.js`) in Node.js against the real binary, and as a package.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::couchdb::Options;
use crate::support::howler::{Howler, lasting_port};
use crate::support::proxy::Proxy;
use crate::support::script::Script;
use crate::support::{A_MOMENT, PASSWORD, SOON, USER, couchdb, couchdb_with};

/// Apps that use the library, in one process of Node.js or one browser. `tests/clients/howler.js`
/// documents the commands.
pub struct Apps {
    pub script: Script,
}

impl Apps {
    fn node() -> Self {
        Self { script: Script::node("howler.js", &[]) }
    }

    /// Creates a client. `how` has the fields of the command.
    pub fn make(&mut self, name: &str, url: &str, how: &Value) {
        let made = self.try_make(name, url, how);
        assert_eq!(made.get("error"), None, "{made}");
    }

    fn try_make(&mut self, name: &str, url: &str, how: &Value) -> Value {
        let mut command = how.clone();
        command["do"] = "make".into();
        command["as"] = name.into();
        command["url"] = url.into();
        self.script.send_command(&command);
        self.script.expect(name, "made")
    }

    /// Calls a method without waiting for its result.
    pub fn begin(&mut self, name: &str, method: &str, arguments: &Value) {
        self.script.send_command(&json!({"do": "call", "as": name, "method": method, "arguments": arguments}));
    }

    /// Waits for the outcome of a call.
    pub fn settled(&mut self, name: &str, method: &str) -> Value {
        let settled = self.script.expect(name, "settled");
        assert_eq!(settled["to"], method, "{settled}");
        settled
    }

    fn call(&mut self, name: &str, method: &str, arguments: &Value) -> Value {
        self.begin(name, method, arguments);
        self.settled(name, method)
    }

    /// Calls a method that must succeed. Returns its value.
    pub fn done(&mut self, name: &str, method: &str, arguments: &Value) -> Value {
        let mut settled = self.call(name, method, arguments);
        assert_eq!(settled.get("error"), None, "{settled}");
        settled["value"].take()
    }

    /// Calls a method that must fail. Returns the name of its error.
    fn fails(&mut self, name: &str, method: &str, arguments: &Value) -> String {
        let settled = self.call(name, method, arguments);
        name_of(&settled)
    }

    pub fn log_in(&mut self, name: &str) {
        let session = self.done(name, "logIn", &json!([USER, PASSWORD]));
        assert_eq!(session["username"], USER);
        assert!(
            session["cookie"].as_str().is_some_and(|cookie| cookie.starts_with("AuthSession=")),
            "the reply has a cookie"
        );
    }

    pub fn expect(&mut self, name: &str, event: &str) -> Value {
        self.script.expect(name, event)
    }

    /// Waits for the next error event. Returns the name of its error.
    fn error(&mut self, name: &str) -> String {
        let event = self.expect(name, "error");
        name_of(&event)
    }

    pub fn is_connected(&mut self, name: &str) -> bool {
        self.done(name, "isConnected", &json!([])).as_bool().expect("the value is a boolean")
    }

    /// Returns all events of a client that no call has waited for.
    pub fn others(&mut self, name: &str) -> Vec<Value> {
        self.script.send_command(&json!({"do": "echo", "as": name}));
        self.expect(name, "echo");
        self.script.take_others(name)
    }

    /// Returns the databases of all change events that no call has waited for.
    pub fn changes(&mut self, name: &str) -> Vec<String> {
        let others = self.others(name);
        let changes = others.iter().filter(|event| event["event"] == "change");
        changes.map(|event| event["db"].as_str().expect("the name is a string").to_owned()).collect()
    }

    /// Waits for `count` changes of different databases, and returns the databases. A recent change
    /// may arrive after the reply to `subscribe`, since it takes another path to the server.
    pub fn changed(&mut self, name: &str, count: usize) -> BTreeSet<String> {
        let next = |_| self.expect(name, "change")["db"].as_str().expect("the name is a string").to_owned();
        let changed: BTreeSet<String> = (0..count).map(next).collect();
        assert_eq!(changed.len(), count, "each database once: {changed:?}");
        assert_eq!(self.changes(name), [] as [String; 0], "no other changes");
        changed
    }

    /// Returns the cookie that a session store holds, and the calls to the store.
    fn session(&mut self, name: &str, session: &str) -> (Option<String>, Vec<Value>) {
        self.script.send_command(&json!({"do": "session", "as": name, "name": session}));
        let kept = self.expect(name, "session-kept");
        let calls = kept["calls"].as_array().expect("the value is a list").clone();
        (kept["cookie"].as_str().map(str::to_owned), calls)
    }
}

/// Returns the name of the error in an event. It must be an `Error` and contain no secret.
fn name_of(event: &Value) -> String {
    let error = &event["error"];
    assert_eq!(error["isError"], true, "{event}");
    let message = error["message"].as_str().expect("the message is a string");
    assert!(!message.contains("zq7-") && !message.contains("AuthSession"), "{message}");
    error["name"].as_str().expect("the name is a string").to_owned()
}

fn url(howler: &Howler) -> String {
    format!("http://{}", howler.address())
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// Returns the options of a client with a short backoff.
fn quick() -> Value {
    json!({"third": {"backoff": {"initial": 20, "maximum": 100}}})
}

/// Asserts that the client does not retry: for a moment CouchDB receives no login.
fn assert_idle(apps: &mut Apps, name: &str, couchdb: &crate::support::couchdb::StandIn) {
    let before = couchdb.counters().session_requests;
    assert!(!couchdb.wait_for(A_MOMENT, |seen| seen.session_requests > before), "no client logs in");
    assert!(!apps.is_connected(name));
    assert_eq!(apps.others(name), [] as [Value; 0]);
}

#[test]
fn every_method_and_event_of_the_interface_works() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut apps = Apps::node();
    apps.make("a", &url(&howler), &json!({"third": 30_000}));
    for event in ["connect", "change"] {
        apps.script.send_command(&json!({"do": "count", "as": "a", "event": event}));
    }
    assert_eq!(apps.call("a", "subscribe", &json!(["early"]))["promise"], true, "the subscription waits for the login");
    apps.done("a", "subscribe", &json!([["__proto__", "gone", "a/b+$()-äöü-😀"]]));
    apps.done("a", "unsubscribe", &json!(["gone"]));
    assert!(!apps.is_connected("a"));
    apps.log_in("a");
    assert!(apps.is_connected("a"));
    let [connect, ready] = ["connect", "ready"].map(|event| apps.expect("a", event)["at"].as_u64());
    assert!(connect <= ready);
    let counts = json!({"once": 1, "on": 1, "off": 0, "removed": 0});
    assert_eq!(apps.expect("a", "counted")["counts"], counts);

    couchdb.update("gone");
    for (name, kind) in [("early", "updated"), ("__proto__", "created"), ("a/b+$()-äöü-😀", "created")] {
        if kind == "created" {
            assert!(couchdb.create_database(name));
        } else {
            couchdb.update(name);
        }
        let change = apps.expect("a", "change");
        assert_eq!((&change["db"], &change["kind"]), (&json!(name), &json!(kind)));
        assert!(change["position"].is_string(), "{change}");
        apps.expect("a", "counted");
    }
    assert!(couchdb.delete_database("__proto__"));
    assert_eq!(apps.expect("a", "change")["kind"], "deleted");
    assert_eq!(apps.expect("a", "counted")["counts"], json!({"once": 1, "on": 4, "off": 0, "removed": 0}));

    apps.done("a", "subscribe", &json!(["late"]));
    apps.done("a", "unsubscribe", &json!([["early", "never subscribed"]]));
    couchdb.update_many(&["early", "late"]);
    assert_eq!(apps.expect("a", "change")["db"], "late");
    for wrong in [json!([7]), json!([]), json!([["a", ""]])] {
        assert_eq!(apps.fails("a", "subscribe", &wrong), "TypeError");
    }

    apps.done("a", "logOut", &json!([]));
    apps.expect("a", "disconnect");
    assert!(!apps.is_connected("a"));
    howler.wait_for_line("Session of ");
    apps.script.take_others("a");
    // Earlier subscriptions are restored.
    apps.log_in("a");
    apps.expect("a", "ready");
    couchdb.update("late");
    assert_eq!(apps.expect("a", "change")["db"], "late");
    apps.done("a", "stop", &json!([]));
    apps.expect("a", "disconnect");
}

#[test]
fn every_url_form_of_the_server_is_accepted_and_others_are_not() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut apps = Apps::node();
    for scheme in ["http", "ws"] {
        for path in ["", "/", "/?x=1"] {
            let name = format!("{scheme}{path}");
            apps.make(&name, &format!("{scheme}://{}{path}", howler.address()), &json!({"third": null}));
            apps.log_in(&name);
        }
    }
    for wrong in ["ftp://127.0.0.1", "127.0.0.1", ""] {
        assert_eq!(name_of(&apps.try_make("wrong", wrong, &json!({}))), "TypeError", "{wrong}");
    }
}

#[test]
fn rejected_login_is_not_retried() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut apps = Apps::node();
    apps.make("a", &url(&howler), &quick());
    for credentials in [json!([USER, "zq7-wrong"]), json!(["nobody", PASSWORD]), json!([]), json!([null, null, "bad"])]
    {
        assert_eq!(apps.fails("a", "logIn", &credentials), "NotAuthenticatedError", "{credentials}");
    }
    couchdb.fail_logins(Some(500));
    assert_eq!(apps.fails("a", "logIn", &json!([USER, PASSWORD])), "ServiceUnavailableError");
    couchdb.fail_logins(None);
    assert_idle(&mut apps, "a", &couchdb);
    apps.log_in("a");
    apps.make("locked", &url(&howler), &quick());
    couchdb.add_user("forgetful", PASSWORD, &[]);
    for _ in 0..4 {
        assert_eq!(apps.fails("locked", "logIn", &json!(["forgetful", "zq7-wrong"])), "NotAuthenticatedError");
    }
    assert_idle(&mut apps, "locked", &couchdb);
    // The server itself rejects a fifth login for now. The app is notified, and the client waits as
    // long as requested.
    apps.begin("locked", "logIn", &json!(["forgetful", PASSWORD]));
    assert_eq!(apps.error("locked"), "LimitError");
    apps.done("locked", "stop", &json!([]));
    assert!(apps.is_connected("a"), "logged-in clients stay logged in");
}

#[test]
fn session_is_stored_renewed_and_cleared() {
    // CouchDB renews cookies older than a tenth of their life.
    let couchdb = couchdb_with(Options { cookie_life: Duration::from_secs(10), ..Options::default() });
    let howler = Howler::start(&couchdb);
    let mut apps = Apps::node();
    let with_session = json!({"session": "s", "third": {"backoff": {"initial": 20, "maximum": 100}}});
    apps.make("a", &url(&howler), &with_session);
    apps.log_in("a");
    let (first, calls) = apps.session("a", "s");
    assert_eq!(calls, ["set"]);
    // The app's next client logs in by itself.
    apps.make("b", &url(&howler), &with_session);
    apps.expect("b", "ready");
    apps.done("b", "stop", &json!([]));
    let deadline = Instant::now() + SOON;
    while apps.session("a", "s").0 == first {
        assert!(Instant::now() < deadline, "timeout waiting for a renewed session");
        apps.make("b", &url(&howler), &with_session);
        apps.expect("b", "ready");
        apps.done("b", "stop", &json!([]));
    }
    assert!(apps.session("a", "s").0.is_some_and(|cookie| cookie.starts_with("AuthSession=")));
    apps.done("a", "logOut", &json!([]));
    let (cookie, calls) = apps.session("a", "s");
    assert_eq!((cookie, calls.last()), (None, Some(&json!("clear"))));
    apps.make("c", &url(&howler), &with_session);
    assert_idle(&mut apps, "c", &couchdb);
    // Without a session store of the app, a session lasts as long as its client.
    apps.make("d", &url(&howler), &quick());
    let cookie = apps.done("d", "logIn", &json!([USER, PASSWORD]))["cookie"].take();
    apps.make("e", &url(&howler), &quick());
    assert_eq!(apps.done("e", "logIn", &json!([null, null, cookie]))["username"], USER);
}

#[test]
fn ended_session_is_reported_and_stops_retries_until_the_next_login() {
    for expires in [false, true] {
        let life = if expires { Duration::from_secs(1) } else { Duration::from_secs(600) };
        let couchdb = couchdb_with(Options { cookie_life: life, ..Options::default() });
        // Session checks would renew the cookie before it expires.
        let howler = Howler::start_with(&couchdb, &["--session_check", "0"]);
        let proxy = Proxy::start(howler.address());
        let mut apps = Apps::node();
        let mut how = quick();
        how["session"] = "s".into();
        apps.make("a", &proxy.url(), &how);
        apps.done("a", "subscribe", &json!(["db"]));
        apps.log_in("a");
        apps.expect("a", "ready");
        if expires {
            // The cookie expires by the clock alone. Its life began before the reply to the login.
            std::thread::sleep(life + A_MOMENT);
        } else {
            assert!(couchdb.change_password(USER, "zq7-another"));
            assert!(couchdb.change_password(USER, PASSWORD));
        }
        proxy.cut();
        apps.expect("a", "disconnect");
        assert_eq!(apps.error("a"), "NotAuthenticatedError");
        assert_eq!(apps.session("a", "s").0, None, "the session is cleared");
        apps.script.take_others("a");
        assert_idle(&mut apps, "a", &couchdb);
        apps.log_in("a");
        apps.expect("a", "ready");
        apps.script.take_others("a");
        couchdb.update("db");
        assert_eq!(apps.expect("a", "change")["db"], "db");
    }
}

#[test]
fn outage_of_couchdb_does_not_end_a_session() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let proxy = Proxy::start(howler.address());
    let mut apps = Apps::node();
    let mut how = quick();
    how["session"] = "s".into();
    apps.make("a", &proxy.url(), &how);
    apps.log_in("a");
    apps.expect("a", "ready");
    couchdb.fail_logins(Some(500));
    proxy.cut();
    apps.expect("a", "disconnect");
    for _ in 0..3 {
        assert_eq!(apps.error("a"), "ServiceUnavailableError");
    }
    assert!(apps.session("a", "s").0.is_some(), "the session is kept");
    couchdb.fail_logins(None);
    apps.expect("a", "ready");
}

#[test]
fn last_of_several_calls_wins() {
    let couchdb = couchdb();
    couchdb.add_user("other", PASSWORD, &[]);
    let howler = Howler::start(&couchdb);
    let mut apps = Apps::node();
    apps.make("a", &url(&howler), &quick());
    // Both in one turn, and with the first login already at CouchDB.
    for asked in [false, true] {
        couchdb.set_login_delay(if asked { A_MOMENT } else { Duration::ZERO });
        let before = couchdb.counters().session_requests;
        apps.begin("a", "logIn", &json!([USER, PASSWORD]));
        if asked {
            assert!(couchdb.wait_for(SOON, |seen| seen.session_requests > before));
        }
        apps.begin("a", "logIn", &json!(["other", PASSWORD]));
        assert_eq!(name_of(&apps.settled("a", "logIn")), "AbortError");
        assert_eq!(apps.settled("a", "logIn")["value"]["username"], "other");
        assert!(apps.is_connected("a"));
        apps.begin("a", "stop", &json!([]));
        apps.settled("a", "stop");
    }
    couchdb.set_login_delay(Duration::ZERO);
    apps.log_in("a");
    for method in ["subscribe", "unsubscribe", "subscribe"] {
        apps.begin("a", method, &json!(["kept"]));
    }
    for method in ["subscribe", "unsubscribe"] {
        apps.begin("a", method, &json!(["given up"]));
    }
    apps.begin("a", "subscribe", &json!(["last"]));
    for _ in 0..6 {
        assert_eq!(apps.expect("a", "settled").get("error"), None);
    }
    apps.script.take_others("a");
    for name in ["given up", "kept", "last"] {
        couchdb.update(name);
    }
    for name in ["kept", "last"] {
        assert_eq!(apps.expect("a", "change")["db"], name);
    }
    assert_eq!(apps.changes("a"), [] as [String; 0]);
    // Later calls abort a pending login.
    for method in ["logOut", "stop"] {
        apps.begin("a", "logIn", &json!([USER, PASSWORD]));
        apps.begin("a", method, &json!([]));
        let settled = [apps.expect("a", "settled"), apps.expect("a", "settled")];
        let [log_in, _] = if settled[0]["to"] == "logIn" {
            settled
        } else {
            let [b, a] = settled;
            [a, b]
        };
        assert_eq!(name_of(&log_in), "AbortError");
        apps.script.take_others("a");
        assert_idle(&mut apps, "a", &couchdb);
    }
}

#[test]
fn client_stops_in_every_state() {
    let couchdb = couchdb();
    let port = lasting_port();
    let howler = Howler::start_on(port, &couchdb, &[]);
    let nobody_answers = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let black_hole = format!("http://{}", nobody_answers.local_addr().unwrap());
    let mut apps = Apps::node();
    let stop = |apps: &mut Apps, name: &str, during_login: bool| {
        apps.done(name, "stop", &json!([]));
        if during_login {
            assert_eq!(name_of(&apps.settled(name, "logIn")), "AbortError", "{name}");
        }
        apps.script.take_others(name);
        assert_idle(apps, name, &couchdb);
    };

    apps.make("idle", &url(&howler), &quick());
    stop(&mut apps, "idle", false);
    stop(&mut apps, "idle", false);
    apps.log_in("idle");

    apps.make("connecting", &black_hole, &quick());
    apps.begin("connecting", "logIn", &json!([USER, PASSWORD]));
    let (connection, _) = nobody_answers.accept().unwrap();
    stop(&mut apps, "connecting", true);
    drop(connection);

    apps.make("logging in", &url(&howler), &quick());
    couchdb.set_login_delay(A_MOMENT);
    let before = couchdb.counters().session_requests;
    apps.begin("logging in", "logIn", &json!([USER, PASSWORD]));
    assert!(couchdb.wait_for(SOON, |seen| seen.session_requests > before));
    stop(&mut apps, "logging in", true);
    couchdb.set_login_delay(Duration::ZERO);
    apps.log_in("logging in");

    apps.make("connected", &url(&howler), &quick());
    apps.done("connected", "subscribe", &json!(["db"]));
    apps.log_in("connected");
    stop(&mut apps, "connected", false);
    couchdb.update("db");
    assert_idle(&mut apps, "connected", &couchdb);
    apps.log_in("connected");

    apps.make("waiting", &url(&howler), &quick());
    apps.log_in("waiting");
    drop(howler);
    apps.expect("waiting", "disconnect");
    stop(&mut apps, "waiting", false);
    for name in ["idle", "logging in", "connected"] {
        stop(&mut apps, name, false);
    }
    let _howler = Howler::start_on(port, &couchdb, &[]);
    assert_idle(&mut apps, "waiting", &couchdb);
    for name in ["idle", "logging in", "connected", "waiting"] {
        apps.log_in(name);
    }
}

#[test]
fn fifty_clients_reconnect_spread_over_time() {
    const CLIENTS: usize = 50;
    let couchdb = couchdb();
    let port = lasting_port();
    let mut howler = Howler::start_on(port, &couchdb, &[]);
    let mut apps = Apps::node();
    apps.script.send_command(&json!({
        "do": "fleet", "name": "c", "count": CLIENTS, "url": url(&howler), "logIn": [USER, PASSWORD],
        "dbs": ["shared", "own-*"], "third": {},
    }));
    let clients: Vec<String> = (0..CLIENTS).map(|number| format!("c{number}")).collect();
    for name in &clients {
        apps.expect(name, "ready");
        apps.expect(name, "connect");
    }
    // After a goodbye with a delay, and without a goodbye.
    for signal in ["TERM", "KILL"] {
        howler.signal(signal);
        howler.wait();
        howler = Howler::start_on(port, &couchdb, &[]);
        let mut times: Vec<u64> = Vec::new();
        for name in &clients {
            apps.expect(name, "ready");
            times.push(apps.expect(name, "connect")["at"].as_u64().unwrap());
        }
        times.sort_unstable();
        let (spread, half) = (times[CLIENTS - 1] - times[0], times[CLIENTS * 3 / 4] - times[CLIENTS / 4]);
        println!("after SIG{signal}: back within {spread} ms, the half in the middle within {half} ms");
        assert!(spread > 300 && half > 100, "{times:?}");
        for name in &clients {
            apps.script.take_others(name);
        }
        let own: Vec<String> = clients.iter().map(|name| format!("own-{name}")).collect();
        for database in own.iter().map(String::as_str).chain(["shared"]) {
            couchdb.update(database);
        }
        for name in &clients {
            let heard = [(); 2].map(|()| apps.expect(name, "change")["db"].as_str().unwrap().to_owned());
            assert_eq!(BTreeSet::from(heard), BTreeSet::from(["shared".to_owned(), format!("own-{name}")]));
        }
    }
}

#[test]
fn client_waits_as_long_as_the_goodbye_asks() {
    let couchdb = couchdb();
    let port = lasting_port();
    let howler = Howler::start_on(port, &couchdb, &[]);
    let mut apps = Apps::node();
    apps.make("a", &url(&howler), &quick());
    apps.log_in("a");
    apps.expect("a", "connect");
    howler.signal("TERM");
    let gone = apps.expect("a", "disconnect")["at"].as_u64().unwrap();
    drop(howler);
    let _howler = Howler::start_on(port, &couchdb, &[]);
    let back = apps.expect("a", "connect")["at"].as_u64().unwrap();
    // By itself, the client would return within 100 ms. The server asks for at least a second.
    assert!(back - gone >= 990, "{} ms", back - gone);
}

#[test]
fn dead_connection_is_detected_within_two_heartbeats() {
    const HEARTBEAT: u64 = 1_000;
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let proxy = Proxy::start(howler.address());
    let mut apps = Apps::node();
    let third = json!({"heartbeatMilliseconds": HEARTBEAT, "backoff": {"initial": 20, "maximum": 100}});
    apps.make("a", &proxy.url(), &json!({"third": third}));
    apps.done("a", "subscribe", &json!(["db", "quiet"]));
    apps.log_in("a");
    for event in ["connect", "ready"] {
        apps.expect("a", event);
    }
    // Proves that a live connection is kept.
    std::thread::sleep(Duration::from_millis(HEARTBEAT * 2));
    assert_eq!(apps.others("a"), [] as [Value; 0]);
    couchdb.update("db");
    apps.expect("a", "change");
    proxy.silence();
    let silent = Instant::now();
    couchdb.update("db");
    apps.expect("a", "disconnect");
    let found = silent.elapsed();
    println!("found after {found:?}");
    assert!(found >= Duration::from_millis(HEARTBEAT), "{found:?}");
    // Two heartbeats plus a margin for a busy machine.
    assert!(found < Duration::from_millis(HEARTBEAT * 2 + 300), "{found:?}");
    // The client is notified of the missed change and of nothing else.
    apps.expect("a", "ready");
    assert_eq!(apps.changed("a", 1), names(["db"]));
}

#[test]
fn reconnected_client_is_notified_of_exactly_the_missed_changes() {
    let couchdb = couchdb();
    let port = lasting_port();
    let mut howler = Howler::start_on(port, &couchdb, &[]);
    let mut apps = Apps::node();
    apps.make("a", &url(&howler), &json!({"positions": "p", "session": "s"}));
    apps.done("a", "subscribe", &json!([["one", "two", "three"]]));
    apps.log_in("a");
    apps.expect("a", "ready");
    couchdb.update("one");
    apps.expect("a", "change");
    assert_eq!(apps.changes("a"), [] as [String; 0], "a new subscription reports no past changes");
    // A new server without any state.
    howler.signal("TERM");
    howler.wait();
    couchdb.update("two");
    howler = Howler::start_on(port, &couchdb, &[]);
    apps.expect("a", "ready");
    assert_eq!(apps.changed("a", 1), names(["two"]));
    // A new run of the app.
    apps.done("a", "stop", &json!([]));
    couchdb.update_many(&["one", "three"]);
    apps.make("b", &url(&howler), &json!({"positions": "p", "session": "s"}));
    apps.done("b", "subscribe", &json!([["three", "two", "one"]]));
    apps.expect("b", "ready");
    assert_eq!(apps.changed("b", 2), names(["one", "three"]));
    // Unsubscribed and subscribed again.
    apps.done("b", "unsubscribe", &json!([["one", "two"]]));
    couchdb.update("two");
    apps.done("b", "subscribe", &json!([["one", "two"]]));
    assert_eq!(apps.changed("b", 1), names(["two"]));
    // Positions from another `_global_changes` database are meaningless.
    apps.done("b", "stop", &json!([]));
    howler.signal("TERM");
    howler.wait();
    assert!(couchdb.delete_database("_global_changes") && couchdb.create_database("_global_changes"));
    let howler = Howler::start_on(port, &couchdb, &[]);
    apps.make("c", &url(&howler), &json!({"positions": "p", "session": "s"}));
    apps.done("c", "subscribe", &json!([["one", "two", "new"]]));
    apps.expect("c", "ready");
    assert_eq!(apps.changed("c", 2), names(["one", "two"]));
}

#[test]
fn resync_reports_every_database_as_changed() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut apps = Apps::node();
    apps.make("a", &url(&howler), &quick());
    apps.done("a", "subscribe", &json!([["one", "two"]]));
    apps.log_in("a");
    apps.expect("a", "ready");
    assert!(couchdb.delete_database("_global_changes") && couchdb.create_database("_global_changes"));
    let resync = apps.expect("a", "resync");
    assert!(resync["reason"].is_string(), "{resync}");
    let heard = [(); 2].map(|()| apps.expect("a", "change")["db"].as_str().unwrap().to_owned());
    assert_eq!(BTreeSet::from(heard), BTreeSet::from(["one".to_owned(), "two".to_owned()]));
}

#[test]
fn connected_client_notices_changes_of_session_and_access() {
    let couchdb = couchdb_with(Options { cookie_life: Duration::from_secs(10), ..Options::default() });
    couchdb.add_user("other", PASSWORD, &[]);
    couchdb.create_database_for("mine", &[USER]);
    couchdb.create_database_for("theirs", &["other"]);
    let howler = Howler::start_with(&couchdb, &["--access", "members", "--session_check", "1"]);
    let mut apps = Apps::node();
    let mut how = quick();
    how["session"] = "s".into();
    apps.make("a", &url(&howler), &how);
    apps.log_in("a");
    apps.expect("a", "ready");
    let first = apps.session("a", "s").0;
    assert_eq!(apps.fails("a", "subscribe", &json!([["mine", "theirs", "later"]])), "ForbiddenError");
    let forbidden = |apps: &mut Apps, database: &str| {
        let event = apps.expect("a", "error");
        assert_eq!((name_of(&event).as_str(), &event["error"]["db"]), ("ForbiddenError", &json!(database)));
    };
    forbidden(&mut apps, "theirs");
    couchdb.update_many(&["theirs", "mine"]);
    assert_eq!(apps.expect("a", "change")["db"], "mine");
    couchdb.create_database_for("later", &["other"]);
    forbidden(&mut apps, "later");
    // CouchDB renews cookies older than a tenth of their life.
    let renewed = apps.expect("a", "session")["cookie"].as_str().map(str::to_owned);
    let kept = apps.session("a", "s").0;
    assert!(renewed.is_some() && kept.is_some() && renewed != first && kept != first, "the renewed cookie is stored");

    couchdb.fail_access(Some(500));
    couchdb.create_database_for("another", &[USER]);
    apps.script.take_others("a");
    apps.done("a", "subscribe", &json!(["another"]));
    assert_eq!(apps.error("a"), "ServiceUnavailableError");
    couchdb.fail_access(None);
    apps.expect("a", "ready");
    apps.script.take_others("a");
    for database in ["mine", "another"] {
        couchdb.update(database);
        assert_eq!(apps.expect("a", "change")["db"], database);
    }

    couchdb.remove_user(USER);
    apps.expect("a", "disconnect");
    while apps.error("a") != "NotAuthenticatedError" {}
    assert_eq!(apps.session("a", "s").0, None);
}

// ---- without the server

/// Runs a command in a folder until it ends, within a time limit. Returns its output.
fn run(folder: &Path, within: Duration, program: &str, arguments: &[&str]) -> String {
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", &within.as_secs().to_string(), program])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start timeout: {error}"));
    let _ = child.stdin.take();
    let output = child.wait_with_output().expect("the child can be waited for");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

fn web() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/web")
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

#[test]
fn library_passes_the_tests_with_a_scripted_server() {
    crate::support::script::assert_installed();
    let arguments =
        ["--test", "--test-force-exit", "--test-timeout=55000", "--test-reporter=spec", "howler_scripted.mjs"];
    let report = run(&clients(), Duration::from_secs(58), "node", &arguments);
    let count = |what: &str| {
        let line = report.lines().find(|line| line.contains(&format!(" {what} "))).expect("the report has a summary");
        line.rsplit(' ').next().and_then(|number| number.parse::<usize>().ok()).expect("the summary has a number")
    };
    assert!(count("pass") >= 30 && count("pass") == count("tests"), "{report}");
}

#[test]
fn library_is_at_most_8_kib_compressed() {
    crate::support::script::assert_installed();
    let script =
        "process.stdout.write(String(require('zlib').gzipSync(require('fs').readFileSync('howler.js')).length))";
    let size: usize = run(&web(), SOON, "node", &["-e", script]).parse().unwrap();
    println!("howler.js: {size} bytes with gzip");
    assert!(size <= 8 * 1024, "{size} bytes");
}

/// Returns the folder of an app that has installed the packed library.
fn app(name: &str) -> PathBuf {
    crate::support::script::assert_installed();
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("package.json"), "{\"private\": true}").unwrap();
    let web = web();
    let packed = run(&folder, SOON, "npm", &["pack", "--silent", "--offline", web.to_str().unwrap()]);
    let install = ["install", "--silent", "--offline", "--no-audit", "--no-fund", &format!("./{}", packed.trim())];
    run(&folder, Duration::from_secs(30), "npm", &install);
    folder
}

#[test]
fn package_works_with_import_and_require() {
    let folder = app("packed");
    let mut files: Vec<_> = std::fs::read_dir(folder.join("node_modules/couchdb-howler")).unwrap().collect();
    files.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
    let files: Vec<String> = files.into_iter().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, ["howler.cjs", "howler.d.cts", "howler.d.ts", "howler.js", "package.json"]);
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    // After `stop()`, nothing keeps the process running. The app stops only after the login, which
    // `stop()` would reject.
    let app = "const client = new Client(process.argv[2], null, { WebSocket })
client.subscribe('db').then(() => client.logIn(process.argv[3], process.argv[4])).then(() => {
  console.log('ready')
  client.on('change', db => { console.log(db); client.stop() })
})";
    let ws = format!("{}/node_modules/ws", clients().display());
    let sources = [
        ("app.mjs", format!("import Client from 'couchdb-howler'\nimport WebSocket from '{ws}/wrapper.mjs'\n{app}")),
        ("app.cjs", format!("const Client = require('couchdb-howler')\nconst WebSocket = require('{ws}')\n{app}")),
        (
            "default.cjs",
            format!("const Client = require('couchdb-howler').default\nconst WebSocket = require('{ws}')\n{app}"),
        ),
    ];
    for (file, source) in sources {
        std::fs::write(folder.join(file), source).unwrap();
        let end = std::sync::mpsc::channel();
        let url = url(&howler);
        std::thread::scope(|scope| {
            let apps = scope.spawn(|| {
                let printed = run(&folder, SOON, "node", &[file, &url, USER, PASSWORD]);
                let _ = end.0.send(());
                printed
            });
            // Repeat until the app is notified.
            while end.1.recv_timeout(Duration::from_millis(50)).is_err() && !apps.is_finished() {
                couchdb.update("db");
            }
            assert_eq!(apps.join().unwrap(), "ready\ndb\n", "{file}");
        });
    }
}

#[test]
fn types_check_in_apps_of_both_module_kinds() {
    let folder = app("typed");
    let types = clients().join("types");
    for file in ["esm.mts", "cjs.cts"] {
        std::fs::copy(types.join(file), folder.join(file)).unwrap();
    }
    let tsc = clients().join("node_modules/typescript/bin/tsc");
    let arguments = [
        tsc.to_str().unwrap(),
        "--noEmit",
        "--strict",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--lib",
        "es2022,dom",
        "esm.mts",
        "cjs.cts",
    ];
    run(&folder, Duration::from_secs(60), "node", &arguments);
}
