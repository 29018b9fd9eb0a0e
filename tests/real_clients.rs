//! Clients from the package registries, against the real binary. Every library and version does in
//! every mode of its transport what an app does. `tests/clients/install.sh` installs them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::howler::{Howler, lasting_port};
use crate::support::script::Script;
use crate::support::tls::{Authority, Identity};
use crate::support::{PASSWORD, USER, couchdb};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Library {
    /// `socket.io-client` of npm, by its major version.
    SocketIoClient(u8),
    /// `python-socketio` of `PyPI`, by its major version, with threads.
    PythonSync(u8),
    /// The same with asyncio.
    PythonAsyncio(u8),
    /// howler.v1 with `ws` of npm.
    Ws,
    /// howler.v1 with `websockets` of `PyPI`.
    Websockets,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Polling,
    WebSocket,
    /// The library's default: polling, then an upgrade.
    Default,
}

/// Where the client sends its credentials.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Given {
    /// In the query of the handshake (Socket.IO) or in the request (howler.v1).
    Plainly,
    /// In the auth object of CONNECT, which Engine.IO 4 clients have.
    InAuth,
}

#[derive(Clone, Copy, Debug)]
struct Row(Library, Mode, Given);

use Given::{InAuth, Plainly};
use Library::{PythonAsyncio, PythonSync, SocketIoClient, Websockets, Ws};
use Mode::{Default, Polling, WebSocket};

/// Every combination that must work.
const ROWS: &[Row] = &[
    // howler.v1
    Row(Ws, WebSocket, Plainly),
    Row(Websockets, WebSocket, Plainly),
    // Engine.IO 3
    Row(SocketIoClient(1), WebSocket, Plainly),
    Row(SocketIoClient(1), Polling, Plainly),
    Row(SocketIoClient(1), Default, Plainly),
    Row(SocketIoClient(2), WebSocket, Plainly),
    Row(SocketIoClient(2), Polling, Plainly),
    Row(SocketIoClient(2), Default, Plainly),
    Row(PythonSync(4), WebSocket, Plainly),
    Row(PythonSync(4), Polling, Plainly),
    Row(PythonSync(4), Default, Plainly),
    Row(PythonAsyncio(4), WebSocket, Plainly),
    Row(PythonAsyncio(4), Polling, Plainly),
    Row(PythonAsyncio(4), Default, Plainly),
    // Engine.IO 4
    Row(SocketIoClient(3), WebSocket, Plainly),
    Row(SocketIoClient(3), Polling, InAuth),
    Row(SocketIoClient(3), Default, Plainly),
    Row(SocketIoClient(4), WebSocket, Plainly),
    Row(SocketIoClient(4), WebSocket, InAuth),
    Row(SocketIoClient(4), Polling, Plainly),
    Row(SocketIoClient(4), Default, InAuth),
    Row(PythonSync(5), WebSocket, Plainly),
    Row(PythonSync(5), Polling, Plainly),
    Row(PythonSync(5), Default, InAuth),
    Row(PythonAsyncio(5), WebSocket, InAuth),
    Row(PythonAsyncio(5), Polling, Plainly),
    Row(PythonAsyncio(5), Default, Plainly),
];

impl Row {
    fn script(self) -> Script {
        self.script_trusting(None)
    }

    /// Starts a script that trusts the authority whose certificate is in a file.
    fn script_trusting(self, authority: Option<&str>) -> Script {
        let mut script = self.start_script(authority);
        script.wait_until_ready("script");
        script
    }

    fn start_script(self, authority: Option<&str>) -> Script {
        let Self(library, mode, _) = self;
        let node = |file, arguments: &[&str]| Script::node_trusting(authority, file, arguments);
        let python = |environment: &str, file, arguments: &[&str]| {
            Script::python_trusting(authority, environment, file, arguments)
        };
        let mode = match mode {
            Polling => "polling",
            WebSocket => "websocket",
            Default => "default",
        };
        match library {
            SocketIoClient(major) => node("socket_io.js", &[&major.to_string(), mode]),
            PythonSync(major) => python(&format!("py-v{major}"), "socket_io.py", &["sync", mode]),
            PythonAsyncio(major) => python(&format!("py-v{major}"), "socket_io.py", &["asyncio", mode]),
            Ws => node("json_ws.js", &[]),
            Websockets => python("py-v5", "json_ws.py", &[]),
        }
    }

    /// Makes the script create a client and connect it; does not wait for anything.
    fn connect(self, script: &mut Script, client: &str, howler: &Howler, credentials: &Value) {
        let url = howler.url();
        let place = if self.2 == InAuth { "auth" } else { "query" };
        script.send_command(&json!({"do": "connect", "as": client, "url": url, place: credentials}));
    }

    /// Connects a client and waits until it is authenticated over the expected transport; returns
    /// its cookie.
    fn log_in(self, script: &mut Script, client: &str, howler: &Howler, credentials: &Value) -> String {
        self.connect(script, client, howler, credentials);
        self.expect_authenticated(script, client)
    }

    fn expect_authenticated(self, script: &mut Script, client: &str) -> String {
        script.expect(client, "connect");
        let event = script.expect(client, "authenticated");
        match self.1 {
            Polling => assert_eq!(event["transport"], "polling"),
            WebSocket => assert_eq!(event["transport"], "websocket"),
            Default => {
                script.expect(client, "upgraded");
            }
        }
        let cookie = event["data"]["cookie"].as_str().expect("a cookie");
        assert!(cookie.starts_with("AuthSession="), "{cookie}");
        cookie.to_owned()
    }

    fn is_howler_v1(self) -> bool {
        matches!(self.0, Ws | Websockets)
    }

    /// Asserts that a reply to `subscribe`, `unsubscribe` or `log-out` is a success.
    fn assert_plain_ack(self, ack: &Value) {
        if self.is_howler_v1() { assert_eq!(ack["ok"], true) } else { assert_eq!(*ack, json!({})) }
    }

    /// Asserts that a disconnect has the reason of one by the server, if the library reports a
    /// reason. This reason keeps the library from reconnecting.
    fn assert_disconnected(self, event: &Value, code: &str) {
        let reason = event["reason"].as_str().unwrap_or_default();
        match self.0 {
            SocketIoClient(_) => assert_eq!(reason, "io server disconnect"),
            PythonSync(5) | PythonAsyncio(5) => assert_eq!(reason, "server disconnect"),
            PythonSync(_) | PythonAsyncio(_) => {}
            Ws | Websockets => assert!(reason.starts_with(code), "{reason}"),
        }
    }
}

fn password() -> Value {
    json!({"username": USER, "password": PASSWORD})
}

/// Runs a scenario with every row.
fn for_every_row(scenario: fn(Row, &mut Script)) {
    for_rows(ROWS, &|row| scenario(row, &mut row.script()));
}

/// Runs a scenario with some rows, a few at a time; the panic names every row that failed.
fn for_rows(rows: &[Row], scenario: &(impl Fn(Row) + Sync)) {
    // One test at a time limits the interpreters that run concurrently.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let at_once = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failed = Vec::new();
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let began = Instant::now();
            let outcome = catch_unwind(AssertUnwindSafe(|| scenario(*row)));
            println!("{row:?}: {} in {:?}", if outcome.is_ok() { "ok" } else { "FAILED" }, began.elapsed());
            if outcome.is_err() {
                failed.push(format!("{row:?}"));
            }
        }
        failed
    };
    let failed: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("the worker catches panics")).collect()
    });
    assert!(failed.is_empty(), "failed rows: {failed:#?}");
}

#[test]
fn every_client_logs_in_and_receives_each_change_once() {
    for_every_row(|row, script| {
        let couchdb = couchdb();
        let howler = Howler::start(&couchdb);
        let cookie = row.log_in(script, "app", &howler, &password());
        assert!(cookie.ends_with("HttpOnly"), "the cookie is that of CouchDB: {cookie}");

        script.send_command(&json!({"do": "subscribe", "as": "app", "dbs": ["a/b", "plus+db", "plain", "end"]}));
        row.assert_plain_ack(&script.expect_ack("app", "subscribe"));
        for name in ["plain", "others", "a/b", "plus+db", "others", "plain"] {
            couchdb.update(name);
            if name != "others" {
                assert_eq!(script.expect("app", "change")["db"], name);
            }
        }
        script.send_command(&json!({"do": "unsubscribe", "as": "app", "dbs": ["plain", "never"]}));
        row.assert_plain_ack(&script.expect_ack("app", "unsubscribe"));
        couchdb.update("plain");
        couchdb.update("end");
        assert_eq!(script.expect("app", "change")["db"], "end", "no change of the unsubscribed database");
        script.send_command(&json!({"do": "heartbeat", "as": "app"}));
        assert_eq!(script.expect_ack("app", "heartbeat"), json!({"ok": true}));

        // The cookie logs in as received and as the bare pair.
        let pair = cookie.split(';').next().expect("a pair");
        row.log_in(script, "whole", &howler, &json!({"cookie": cookie}));
        row.log_in(script, "pair", &howler, &json!({"cookie": pair}));

        // A duplicate notification would have arrived by now.
        assert_eq!(script.take_others("app"), [] as [Value; 0]);
        script.send_command(&json!({"do": "log-out", "as": "app"}));
        row.assert_plain_ack(&script.expect_ack("app", "log-out"));
        row.assert_disconnected(&script.expect("app", "disconnect"), "1000");
    });
}

#[test]
fn every_client_receives_the_reason_of_a_refused_login() {
    for_every_row(|row, script| {
        let couchdb = couchdb();
        let howler = Howler::start(&couchdb);
        for (client, credentials) in [
            ("wrong password", json!({"username": USER, "password": "zq7-wrong"})),
            ("empty password", json!({"username": USER, "password": ""})),
            ("forged cookie", json!({"cookie": "AuthSession=bXl1c2VyOjVGQjQ6Zm9yZ2Vk; Version=1; Path=/; HttpOnly"})),
            ("malformed cookie", json!({"cookie": "malformed"})),
        ] {
            row.connect(script, client, &howler, &credentials);
            let refusal = &script.expect(client, "not-authenticated")["data"];
            assert_eq!(refusal["error"], true, "{client}");
            assert_eq!(refusal["errorName"], "NotAuthenticatedError", "{client}");
            assert!(refusal["errorMessage"].as_str().is_some_and(|text| !text.is_empty()), "{client}");
            row.assert_disconnected(&script.expect(client, "disconnect"), "4401");
        }
    });
}

#[test]
fn every_client_reconnects_after_a_restart() {
    for_every_row(|row, script| {
        let couchdb = couchdb();
        let port = lasting_port();
        // The transport's heartbeat runs all the time, in both directions.
        let options: &[&str] = &["--ping_interval", "250", "--ping_timeout", "15000"];
        let mut howler = Howler::start_on(port, &couchdb, options);
        let cookie = row.log_in(script, "app", &howler, &password());
        script.send_command(&json!({"do": "subscribe", "as": "app", "dbs": ["db"]}));
        row.assert_plain_ack(&script.expect_ack("app", "subscribe"));
        for (round, signal) in ["TERM", "KILL"].into_iter().enumerate() {
            howler.signal(signal);
            howler.wait();
            script.expect("app", "disconnect");
            howler = Howler::start_on(port, &couchdb, options);
            // Some apps open a second connection meanwhile, with the cookie that they received.
            let second = format!("second-{round}");
            row.log_in(script, &second, &howler, &json!({"cookie": cookie}));
            // The library reconnects by itself; the app subscribes again when it is authenticated.
            row.expect_authenticated(script, "app");
            row.assert_plain_ack(&script.expect_ack("app", "subscribe"));
            couchdb.update("db");
            assert_eq!(script.expect("app", "change")["db"], "db");
            // Not every library reports an end that the app requested.
            script.send_command(&json!({"do": "disconnect", "as": second}));
        }
        if matches!(row.0, SocketIoClient(_)) {
            for _ in 0..4 {
                script.expect("app", "alive");
            }
        }
        script.send_command(&json!({"do": "heartbeat", "as": "app"}));
        assert_eq!(script.expect_ack("app", "heartbeat"), json!({"ok": true}));
        let mut others = script.take_others("app");
        others.retain(|event| !["alive", "connect_error"].map(Value::from).contains(&event["event"]));
        assert_eq!(others, [] as [Value; 0], "the connection stayed, and each change arrived once");
    });
}

/// Tests every library with its default transport, and the newest one in every mode.
#[test]
fn every_client_is_served_over_tls() {
    let mut rows = ROWS.to_vec();
    rows.retain(|row| row.is_howler_v1() || row.1 == Default || row.0 == SocketIoClient(4));
    assert!(rows.len() >= 13, "{rows:?}");
    for_rows(&rows, &|row: Row| {
        let (couchdb, authority) = (couchdb(), Authority::new());
        let identity = Identity::new(&authority);
        let howler = Howler::start_with(&couchdb, &identity.options());
        let script = &mut row.script_trusting(Some(authority.file()));
        let cookie = row.log_in(script, "app", &howler, &password());
        script.send_command(&json!({"do": "subscribe", "as": "app", "dbs": ["db"]}));
        row.assert_plain_ack(&script.expect_ack("app", "subscribe"));
        for _ in 0..3 {
            couchdb.update("db");
            assert_eq!(script.expect("app", "change")["db"], "db");
        }
        // A renewed certificate breaks no connection, and new clients are served.
        howler.signal("HUP");
        howler.wait_for_line("SIGHUP: new connections");
        row.log_in(script, "second", &howler, &json!({"cookie": cookie}));
        script.send_command(&json!({"do": "heartbeat", "as": "app"}));
        assert_eq!(script.expect_ack("app", "heartbeat"), json!({"ok": true}));
        assert_eq!(script.take_others("app"), [] as [Value; 0]);
        script.send_command(&json!({"do": "log-out", "as": "app"}));
        row.assert_plain_ack(&script.expect_ack("app", "log-out"));
        row.assert_disconnected(&script.expect("app", "disconnect"), "1000");
    });
}

#[test]
fn a_client_that_does_not_trust_the_authority_does_not_connect() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let identity = Identity::new(&authority);
    let howler = Howler::start_with(&couchdb, &identity.options());
    for row in [Row(Ws, WebSocket, Plainly), Row(SocketIoClient(4), Default, Plainly)] {
        let script = &mut row.script();
        row.connect(script, "stranger", &howler, &password());
        script.expect("stranger", "connect_error");
        assert!(script.take_others("stranger").iter().all(|event| event["event"] != "connect"));
    }
    howler.wait_for_lines("No TLS with 127.0.0.1: ", 2);
}

/// Logs in as apps with an old client do. They await `connect` through a promise before they listen
/// for the answer to the login. They lose every packet that arrives before the promise settles, and
/// hang. The app computes for `busy_ms` at a time, and so reads all packets of that time at once.
fn logins(mode: Mode, parts: u64, count: u64, busy_ms: u64) {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut script = Row(SocketIoClient(2), mode, Plainly).script();
    let url = format!("http://{}", howler.address());
    let (mut authenticated, mut hung) = (0, 0);
    // In parts, so that slow logins do not look like a script that hangs.
    for _ in 0..parts {
        script.send_command(&json!({
            "do": "logins", "as": "all", "url": url, "query": password(),
            "count": count, "at_once": 10, "timeout_ms": 10_000, "busy_ms": busy_ms,
        }));
        let part = script.expect("all", "logins");
        authenticated += part["authenticated"].as_u64().expect("a number");
        hung += part["hung"].as_u64().expect("a number");
    }
    println!("{} logins, {mode:?}, {busy_ms} ms busy: {hung} hung", parts * count);
    assert_eq!((authenticated, hung), (parts * count, 0), "(authenticated, hung)");
}

#[test]
fn five_hundred_consecutive_logins_never_hang() {
    logins(WebSocket, 5, 100, 0);
}

#[test]
fn logins_of_a_busy_app_never_hang() {
    logins(WebSocket, 3, 10, 100);
}

#[test]
fn five_hundred_consecutive_logins_with_an_upgrade_never_hang() {
    logins(Default, 5, 100, 0);
    logins(Default, 3, 10, 100);
}
