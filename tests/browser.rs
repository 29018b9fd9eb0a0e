//! The browser bundles of `socket.io-client` in headless Chromium, on pages of another origin than
//! the server. They cover what Node.js clients lack: CORS, cookies and JSONP.

use serde_json::{Value, json};

use crate::support::howler::Howler;
use crate::support::script::Script;
use crate::support::{PASSWORD, USER, couchdb};

/// A running browser and its pages.
pub struct Browser {
    script: Script,
    /// The origin of the pages.
    origin: String,
}

impl Browser {
    pub fn start() -> Self {
        let mut script = Script::node("browser.js", &[env!("CARGO_TARGET_TMPDIR")]);
        let ready = script.wait_until_ready("browser");
        println!("Chromium {}", ready["version"].as_str().expect("the browser reports its version"));
        let origin = ready["origin"].as_str().expect("the browser reports the origin of its pages").to_owned();
        Self { script, origin }
    }

    /// Opens a page with a client that logs in as the user. Does not wait for the result.
    pub fn open(&mut self, page: &str, library: &str, url: &str, options: &Value) {
        let mut options = options.clone();
        options["query"] = json!({"username": USER, "password": PASSWORD});
        self.send_command(&json!({"do": "open", "as": page, "library": library, "url": url, "options": options}));
    }

    pub fn send_command(&mut self, command: &Value) {
        self.script.send_command(command);
    }

    pub fn expect(&mut self, page: &str, event: &str) -> Value {
        self.script.expect(page, event)
    }

    pub fn subscribe(&mut self, page: &str, databases: &[&str]) {
        self.send_command(&json!({"do": "subscribe", "as": page, "dbs": databases}));
        assert_eq!(self.script.expect_ack(page, "subscribe"), json!({}));
    }

    /// Returns the page's requests, cookies and console messages so far.
    pub fn report(&mut self, page: &str) -> Value {
        self.send_command(&json!({"do": "report", "as": page}));
        self.expect(page, "report")
    }

    pub fn close(&mut self, page: &str) {
        self.send_command(&json!({"do": "close", "as": page}));
        self.expect(page, "closed");
    }

    /// Shuts the browser down, so that no process or profile stays behind.
    pub fn end(mut self) {
        self.send_command(&json!({"do": "end"}));
        self.expect("browser", "ended");
    }
}

/// Returns the URL with the name `localhost`. With an address, the server would be another site, to
/// which browsers send no cookies.
fn url(howler: &Howler) -> String {
    format!("http://localhost:{}", howler.port())
}

fn number(report: &Value, what: &str) -> u64 {
    report[what].as_u64().expect("the count is a number")
}

/// The transports of a client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Polling,
    Jsonp,
    WebSocket,
    /// Polling, then an upgrade.
    Default,
}

use Mode::{Default, Jsonp, Polling, WebSocket};

/// The library, its mode, and whether requests carry cookies (`None`: the option is not set).
const ROWS: &[(&str, Mode, Option<bool>)] = &[
    ("sio2", Polling, Some(true)),
    ("sio2", Polling, Some(false)),
    ("sio2", Polling, None),
    ("sio2", Jsonp, None),
    ("sio2", WebSocket, None),
    ("sio2", Default, None),
    ("sio2", Default, Some(false)),
    ("sio4", Polling, Some(true)),
    ("sio4", Polling, Some(false)),
    ("sio4", Polling, None),
    ("sio4", WebSocket, None),
    ("sio4", Default, None),
    ("sio4", Default, Some(true)),
];

#[test]
fn page_of_another_origin_logs_in_and_receives_changes() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut browser = Browser::start();
    for (number, row) in ROWS.iter().enumerate() {
        let page = format!("page{number}");
        println!("{page}: {} {}", row.0, options(row.1, row.2));
        let mut change = |database: &str| couchdb.update(database);
        let report = use_page(&mut browser, &page, &url(&howler), *row, &mut change);
        assert_report(&report, *row);
    }
    browser.end();
}

fn options(mode: Mode, credentials: Option<bool>) -> Value {
    let mut options = match mode {
        Polling => json!({"transports": ["polling"]}),
        Jsonp => json!({"transports": ["polling"], "forceJSONP": true}),
        WebSocket => json!({"transports": ["websocket"]}),
        Default => json!({}),
    };
    if let Some(credentials) = credentials {
        options["withCredentials"] = credentials.into();
    }
    options
}

/// Runs an app from login to logout. Returns the report of its page.
fn use_page(
    browser: &mut Browser,
    page: &str,
    url: &str,
    (library, mode, credentials): (&str, Mode, Option<bool>),
    change: &mut dyn FnMut(&str),
) -> Value {
    browser.open(page, library, url, &options(mode, credentials));
    browser.expect(page, "connect");
    let event = browser.expect(page, "authenticated");
    assert!(event["data"]["cookie"].as_str().is_some_and(|cookie| cookie.starts_with("AuthSession=")), "{event}");
    if mode == Default {
        assert_eq!(browser.expect(page, "upgraded")["transport"], "websocket");
    }
    let database = format!("{page}/äöü-€-😀");
    browser.subscribe(page, &["__proto__", &database]);
    change(&database);
    let event = browser.expect(page, "change");
    assert_eq!(event["db"], database);
    assert_eq!(event["transport"], if matches!(mode, Polling | Jsonp) { "polling" } else { "websocket" });
    browser.send_command(&json!({"do": "heartbeat", "as": page}));
    assert_eq!(browser.expect(page, "ack")["data"], json!({"ok": true}));
    // Taken before the logout: the last poll may come after the close, and is rejected then.
    let report = browser.report(page);
    browser.send_command(&json!({"do": "log-out", "as": page}));
    assert_eq!(browser.expect(page, "ack")["data"], json!({}));
    assert_eq!(browser.expect(page, "disconnect")["reason"], "io server disconnect");
    browser.close(page);
    report
}

fn assert_report(report: &Value, (library, mode, credentials): (&str, Mode, Option<bool>)) {
    assert_eq!(report["complaints"], json!([]), "the browser's console is empty");
    assert_eq!(number(report, "websockets"), u64::from(matches!(mode, WebSocket | Default)), "{report}");
    if mode == WebSocket {
        return assert_eq!(report["requests"], json!({}));
    }
    // A preflight would cost each post a round trip. The clients' requests need none.
    assert!(report["requests"].get("OPTIONS").is_none(), "{report}");
    assert!(report["requests"]["GET"].as_u64() > Some(1), "{report}");
    let bears_cookies = mode == Jsonp || credentials.unwrap_or(library == "sio2");
    let cookies = if bears_cookies { json!(["io"]) } else { json!([]) };
    assert_eq!(report["cookies"], cookies, "{report}");
    assert_eq!(number(report, "with_cookie") > 0, bears_cookies, "{report}");
}

#[test]
fn page_of_another_site_works_without_cookies() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut browser = Browser::start();
    for (number, row) in [("sio2", Polling, Some(true)), ("sio4", Default, Some(true))].into_iter().enumerate() {
        let mut change = |database: &str| couchdb.update(database);
        let url = format!("http://{}", howler.address());
        let report = use_page(&mut browser, &format!("page{number}"), &url, row, &mut change);
        assert_eq!(report["cookies"], json!([]), "browsers store no cookies of another site: {report}");
        assert_eq!(report["complaints"], json!([]));
    }
    browser.end();
}

#[test]
fn pages_of_unlisted_origins_are_rejected() {
    let couchdb = couchdb();
    let mut howler = Howler::start_with(&couchdb, &["--origins", "http://localhost:1"]);
    let mut browser = Browser::start();
    let logins = couchdb.counters().session_requests;
    for (number, (library, mode)) in [
        ("sio2", Polling),
        ("sio2", WebSocket),
        ("sio2", Default),
        ("sio4", Polling),
        ("sio4", WebSocket),
        ("sio4", Default),
    ]
    .into_iter()
    .enumerate()
    {
        let page = format!("page{number}");
        browser.open(&page, library, &url(&howler), &options(mode, None));
        browser.expect(&page, "connect_error");
        let report = browser.report(&page);
        assert_ne!(report["complaints"], json!([]), "the browser reports the reason");
        assert_eq!(report["cookies"], json!([]));
        browser.close(&page);
    }
    // A request that needs a preflight fails, too.
    post_octets(&mut browser, "fetch", &howler);
    let answer = browser.expect("fetch", "fetched");
    assert!(answer["error"].as_str().is_some_and(|error| error.contains("Failed to fetch")), "{answer}");
    assert_eq!(couchdb.counters().session_requests, logins, "no client logged in");
    howler.signal("TERM");
    howler.wait_for_line("Stopping: 0 sessions are closed.");
    assert!(howler.wait().success());
    browser.end();
}

#[test]
fn pages_of_listed_origins_are_served() {
    let couchdb = couchdb();
    let mut browser = Browser::start();
    let origins = format!("https://app.example.com,{}", browser.origin);
    let howler = Howler::start_with(&couchdb, &["--origins", &origins]);
    for (number, row) in
        [("sio2", Default, None), ("sio2", WebSocket, None), ("sio4", Default, Some(true)), ("sio4", Polling, None)]
            .into_iter()
            .enumerate()
    {
        let mut change = |database: &str| couchdb.update(database);
        let report = use_page(&mut browser, &format!("page{number}"), &url(&howler), row, &mut change);
        assert_report(&report, row);
    }
    // Binary posts need a preflight. The page can read error responses.
    post_octets(&mut browser, "fetch", &howler);
    let answer = browser.expect("fetch", "fetched");
    assert_eq!(answer["status"], 400, "{answer}");
    assert_eq!(answer["body"], r#"{"code":1,"message":"Session ID unknown"}"#);
    browser.end();
}

fn post_octets(browser: &mut Browser, page: &str, howler: &Howler) {
    let options = json!({
        "method": "POST", "credentials": "include", "body": "x",
        "headers": {"Content-Type": "application/octet-stream"},
    });
    let url = format!("{}/socket.io/?EIO=3&transport=polling&sid=none", url(howler));
    browser.send_command(&json!({"do": "fetch", "as": page, "library": "sio2", "url": url, "options": options}));
}

#[test]
fn shutdown_disconnects_pages_and_closed_pages_end_sessions() {
    let couchdb = couchdb();
    let mut howler = Howler::start(&couchdb);
    let mut browser = Browser::start();
    let pages = [("sio2", Polling), ("sio2", Default), ("sio4", Polling), ("sio4", WebSocket)];
    for (library, mode) in pages.into_iter().chain([("sio2", WebSocket), ("sio4", Default)]) {
        let page = format!("{library}-{}", options(mode, None));
        browser.open(&page, library, &url(&howler), &options(mode, None));
        browser.expect(&page, "authenticated");
        if mode == Default {
            browser.expect(&page, "upgraded");
        }
    }
    for (closed, (library, mode)) in [("sio2", WebSocket), ("sio4", Default)].into_iter().enumerate() {
        browser.close(&format!("{library}-{}", options(mode, None)));
        howler.wait_for_lines("Session of ", closed + 1);
    }
    howler.signal("TERM");
    howler.wait_for_line("Stopping: 4 sessions are closed.");
    for (library, mode) in pages {
        let page = format!("{library}-{}", options(mode, None));
        browser.expect(&page, "disconnect");
    }
    assert!(howler.wait().success());
    browser.end();
}
