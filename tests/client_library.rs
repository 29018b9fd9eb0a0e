//! The client library (`src/web/howler.js`) in Node.js against the real binary, and as a package.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::couchdb::Options;
use serde_json::{Value, json};

use crate::support::howler::{Howler, lasting_port};
use crate::support::proxy::Proxy;
use crate::support::script::Script;
use crate::support::{A_MOMENT, PASSWORD, SOON, USER, couchdb, couchdb_with};

/// Apps that use the library, in one process of Node.js or one browser; what they are told stands in
/// `tests/clients/howler.js`.
pub struct Apps {
    pub script: Script,
}

impl Apps {
    fn node() -> Self {
        Self { script: Script::node("howler.js", &[]) }
    }

    /// A client; `how` says the fields of the command.
    pub fn make(&mut self, name: &str, url: &str, how: &Value) {
        let made = self.try_make(name, url, how);
        assert_eq!(made.get("error"), None, "{made}");
    }

    fn try_make(&mut self, name: &str, url: &str, how: &Value) -> Value {
        let mut command = how.clone();
        command["do"] = "make".into();
        command["as"] = name.into();
        command["url"] = url.into();
        self.script.tell(&command);
        self.script.expect(name, "made")
    }

    /// Calls a method; nothing is waited for.
    pub fn begin(&mut self, name: &str, method: &str, arguments: &Value) {
        self.script.tell(&json!({"do": "call", "as": name, "method": method, "arguments": arguments}));
    }

    /// What became of a call.
    pub fn settled(&mut self, name: &str, method: &str) -> Value {
        let settled = self.script.expect(name, "settled");
        assert_eq!(settled["to"], method, "{settled}");
        settled
    }

    fn call(&mut self, name: &str, method: &str, arguments: &Value) -> Value {
        self.begin(name, method, arguments);
        self.settled(name, method)
    }

    /// Calls a method that is to succeed; what it returned.
    pub fn done(&mut self, name: &str, method: &str, arguments: &Value) -> Value {
        let mut settled = self.call(name, method, arguments);
        assert_eq!(settled.get("error"), None, "{settled}");
        settled["value"].take()
    }

    /// Calls a method that is to fail; the name of its error.
    fn fails(&mut self, name: &str, method: &str, arguments: &Value) -> String {
        let settled = self.call(name, method, arguments);
        name_of(&settled)
    }

    pub fn log_in(&mut self, name: &str) {
        let session = self.done(name, "logIn", &json!([USER, PASSWORD]));
        assert_eq!(session["username"], USER);
        assert!(session["cookie"].as_str().is_some_and(|cookie| cookie.starts_with("AuthSession=")), "a cookie");
    }

    pub fn expect(&mut self, name: &str, event: &str) -> Value {
        self.script.expect(name, event)
    }

    /// The next error event; its name.
    fn error(&mut self, name: &str) -> String {
        let event = self.expect(name, "error");
        name_of(&event)
    }

    pub fn is_connected(&mut self, name: &str) -> bool {
        self.done(name, "isConnected", &json!([])).as_bool().expect("a fact")
    }

    /// All that was told of a client and that nobody has waited for.
    pub fn others(&mut self, name: &str) -> Vec<Value> {
        self.script.tell(&json!({"do": "echo", "as": name}));
        self.expect(name, "echo");
        self.script.take_others(name)
    }

    /// The databases that a client was told changed, of what nobody has waited for.
    pub fn changes(&mut self, name: &str) -> Vec<String> {
        let others = self.others(name);
        let changes = others.iter().filter(|event| event["event"] == "change");
        changes.map(|event| event["db"].as_str().expect("a name").to_owned()).collect()
    }

    /// Waits for so many changes, each of another database; which. What has just happened may come after the answer to
    /// `subscribe`, since the server hears of it in its own time.
    pub fn changed(&mut self, name: &str, count: usize) -> BTreeSet<String> {
        let next = |_| self.expect(name, "change")["db"].as_str().expect("a name").to_owned();
        let changed: BTreeSet<String> = (0..count).map(next).collect();
        assert_eq!(changed.len(), count, "each once: {changed:?}");
        assert_eq!(self.changes(name), [] as [String; 0], "and nothing else");
        changed
    }

    /// The cookie that a session holds, and what was done to it.
    fn session(&mut self, name: &str, session: &str) -> (Option<String>, Vec<Value>) {
        self.script.tell(&json!({"do": "session", "as": name, "name": session}));
        let kept = self.expect(name, "session-kept");
        let calls = kept["calls"].as_array().expect("a list").clone();
        (kept["cookie"].as_str().map(str::to_owned), calls)
    }
}

/// The name of the error in an event, which must be an `Error` and tell no secret.
fn name_of(event: &Value) -> String {
    let error = &event["error"];
    assert_eq!(error["isError"], true, "{event}");
    let message = error["message"].as_str().expect("a message");
    assert!(!message.contains("zq7-") && !message.contains("AuthSession"), "{message}");
    error["name"].as_str().expect("a name").to_owned()
}

fn url(howler: &Howler) -> String {
    format!("http://{}", howler.address())
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// A client that does not wait long before it connects again.
fn quick() -> Value {
    json!({"third": {"backoff": {"initial": 20, "maximum": 100}}})
}

/// Expects that CouchDB is asked about nobody for a moment: nothing is tried again.
fn assert_idle(apps: &mut Apps, name: &str, couchdb: &crate::support::couchdb::StandIn) {
    let before = couchdb.counters().session_requests;
    assert!(!couchdb.wait_for(A_MOMENT, |seen| seen.session_requests > before), "nobody logs in");
    assert!(!apps.is_connected(name));
    assert_eq!(apps.others(name), [] as [Value; 0]);
}

#[test]
fn an_app_does_what_the_interface_has() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut apps = Apps::node();
    apps.make("a", &url(&howler), &json!({"third": 30_000}));
    for event in ["connect", "change"] {
        apps.script.tell(&json!({"do": "count", "as": "a", "event": event}));
    }
    assert_eq!(apps.call("a", "subscribe", &json!(["early"]))["promise"], true, "kept for later");
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
    // What was subscribed is so again.
    apps.log_in("a");
    apps.expect("a", "ready");
    couchdb.update("late");
    assert_eq!(apps.expect("a", "change")["db"], "late");
    apps.done("a", "stop", &json!([]));
    apps.expect("a", "disconnect");
}

#[test]
fn any_url_of_the_server_will_do_and_no_other() {
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
fn a_log_in_that_is_refused_rejects_and_is_not_tried_again() {
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
    // The server itself rejects a fifth login for now: the app is told, and the client waits as long as it was asked to.
    apps.begin("locked", "logIn", &json!(["forgetful", PASSWORD]));
    assert_eq!(apps.error("locked"), "LimitError");
    apps.done("locked", "stop", &json!([]));
    assert!(apps.is_connected("a"), "who is logged in stays so");
}

#[test]
fn a_session_is_kept_renewed_and_cleared() {
    // CouchDB renews what is older than a tenth of its life.
    let couchdb = couchdb_with(Options { cookie_life: Duration::from_secs(10), ..Options::default() });
    let howler = Howler::start(&couchdb);
    let mut apps = Apps::node();
    let with_session = json!({"session": "s", "third": {"backoff": {"initial": 20, "maximum": 100}}});
    apps.make("a", &url(&howler), &with_session);
    apps.log_in("a");
    let (first, calls) = apps.session("a", "s");
    assert_eq!(calls, ["set"]);
    // The next client of the app comes in by itself.
    apps.make("b", &url(&howler), &with_session);
    apps.expect("b", "ready");
    apps.done("b", "stop", &json!([]));
    let deadline = Instant::now() + SOON;
    while apps.session("a", "s").0 == first {
        assert!(Instant::now() < deadline, "the session is never renewed");
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
    // Without a session of the app's own it lasts as long as the client.
    apps.make("d", &url(&howler), &quick());
    let cookie = apps.done("d", "logIn", &json!([USER, PASSWORD]))["cookie"].take();
    apps.make("e", &url(&howler), &quick());
    assert_eq!(apps.done("e", "logIn", &json!([null, null, cookie]))["username"], USER);
}

#[test]
fn a_session_that_ended_is_told_and_nothing_is_tried_until_the_next_log_in() {
    for expires in [false, true] {
        let life = if expires { Duration::from_secs(1) } else { Duration::from_secs(600) };
        let couchdb = couchdb_with(Options { cookie_life: life, ..Options::default() });
        // Checks would renew the cookie before it expires.
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
            // It began before the answer to the log-in at the latest.
            std::thread::sleep(life + A_MOMENT);
        } else {
            assert!(couchdb.change_password(USER, "zq7-another"));
            assert!(couchdb.change_password(USER, PASSWORD));
        }
        proxy.cut();
        apps.expect("a", "disconnect");
        assert_eq!(apps.error("a"), "NotAuthenticatedError");
        assert_eq!(apps.session("a", "s").0, None, "it is forgotten");
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
fn couchdb_may_be_away_for_a_session_but_not_end_it() {
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
    assert!(apps.session("a", "s").0.is_some(), "it is kept");
    couchdb.fail_logins(None);
    apps.expect("a", "ready");
}

#[test]
fn of_two_calls_the_last_wins() {
    let couchdb = couchdb();
    couchdb.add_user("other", PASSWORD, &[]);
    let howler = Howler::start(&couchdb);
    let mut apps = Apps::node();
    apps.make("a", &url(&howler), &quick());
    // In one breath, and when the first has come as far as CouchDB.
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
    // A log-in that is under way is given up by what is said after it.
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
fn it_stops_in_every_state() {
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
fn fifty_clients_come_back_one_by_one() {
    const CLIENTS: usize = 50;
    let couchdb = couchdb();
    let port = lasting_port();
    let mut howler = Howler::start_on(port, &couchdb, &[]);
    let mut apps = Apps::node();
    apps.script.tell(&json!({
        "do": "fleet", "name": "c", "count": CLIENTS, "url": url(&howler), "logIn": [USER, PASSWORD],
        "dbs": ["shared", "own-*"], "third": {},
    }));
    let clients: Vec<String> = (0..CLIENTS).map(|number| format!("c{number}")).collect();
    for name in &clients {
        apps.expect(name, "ready");
        apps.expect(name, "connect");
    }
    // Told to come back later, and told nothing.
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
fn goodbye_is_obeyed() {
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
    // By itself it would have come within 100 ms; the server asks for a second at least.
    assert!(back - gone >= 990, "{} ms", back - gone);
}

#[test]
fn a_dead_link_is_found_within_two_heartbeats() {
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
    // One that lives is kept.
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
    // Within two, and what a busy machine takes.
    assert!(found < Duration::from_millis(HEARTBEAT * 2 + 300), "{found:?}");
    // What it could not hear meanwhile is told, and nothing else.
    apps.expect("a", "ready");
    assert_eq!(apps.changed("a", 1), names(["db"]));
}

#[test]
fn what_changed_while_it_was_away_is_told_and_nothing_else() {
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
    assert_eq!(apps.changes("a"), [] as [String; 0], "what is new is not told");
    // Another server, that remembers nothing.
    howler.signal("TERM");
    howler.wait();
    couchdb.update("two");
    howler = Howler::start_on(port, &couchdb, &[]);
    apps.expect("a", "ready");
    assert_eq!(apps.changed("a", 1), names(["two"]));
    // Another run of the app.
    apps.done("a", "stop", &json!([]));
    couchdb.update_many(&["one", "three"]);
    apps.make("b", &url(&howler), &json!({"positions": "p", "session": "s"}));
    apps.done("b", "subscribe", &json!([["three", "two", "one"]]));
    apps.expect("b", "ready");
    assert_eq!(apps.changed("b", 2), names(["one", "three"]));
    // Given up and asked for again.
    apps.done("b", "unsubscribe", &json!([["one", "two"]]));
    couchdb.update("two");
    apps.done("b", "subscribe", &json!([["one", "two"]]));
    assert_eq!(apps.changed("b", 1), names(["two"]));
    // Positions of another _global_changes mean nothing.
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
fn a_resync_tells_every_database() {
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
fn sessions_and_access_are_watched_while_it_is_connected() {
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
    // CouchDB renews what is older than a tenth of its life.
    let renewed = apps.expect("a", "session")["cookie"].as_str().map(str::to_owned);
    let kept = apps.session("a", "s").0;
    assert!(renewed.is_some() && kept.is_some() && renewed != first && kept != first, "it is stored");

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

/// Runs a command in a folder to its end, within a time; what it printed.
fn run(folder: &Path, within: Duration, program: &str, arguments: &[&str]) -> String {
    let mut child = Command::new("timeout")
        .args(["--kill-after=5", &within.as_secs().to_string(), program])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("timeout does not start: {error}"));
    let _ = child.stdin.take();
    let output = child.wait_with_output().expect("it is our child");
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
fn a_scripted_server_finds_no_fault() {
    crate::support::script::assert_installed();
    let arguments =
        ["--test", "--test-force-exit", "--test-timeout=55000", "--test-reporter=spec", "howler_scripted.mjs"];
    let report = run(&clients(), Duration::from_secs(58), "node", &arguments);
    let count = |what: &str| {
        let line = report.lines().find(|line| line.contains(&format!(" {what} "))).expect("a summary");
        line.rsplit(' ').next().and_then(|number| number.parse::<usize>().ok()).expect("a number")
    };
    assert!(count("pass") >= 30 && count("pass") == count("tests"), "{report}");
}

#[test]
fn the_library_is_small() {
    crate::support::script::assert_installed();
    let script =
        "process.stdout.write(String(require('zlib').gzipSync(require('fs').readFileSync('howler.js')).length))";
    let size: usize = run(&web(), SOON, "node", &["-e", script]).parse().unwrap();
    println!("howler.js: {size} bytes with gzip");
    assert!(size <= 8 * 1024, "{size} bytes");
}

/// A folder of an app that has installed the packed library.
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
fn a_package_of_it_works_with_import_and_require() {
    let folder = app("packed");
    let mut files: Vec<_> = std::fs::read_dir(folder.join("node_modules/couchdb-howler")).unwrap().collect();
    files.sort_by_key(|entry| entry.as_ref().unwrap().file_name());
    let files: Vec<String> = files.into_iter().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, ["howler.cjs", "howler.d.cts", "howler.d.ts", "howler.js", "package.json"]);
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    // The end of it: with stop() nothing holds the process.
    // A stop before the log-in is through would reject it.
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
            // Until it hears of one.
            while end.1.recv_timeout(Duration::from_millis(50)).is_err() && !apps.is_finished() {
                couchdb.update("db");
            }
            assert_eq!(apps.join().unwrap(), "ready\ndb\n", "{file}");
        });
    }
}

#[test]
fn types_hold_for_apps_of_each_kind_of_module() {
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
