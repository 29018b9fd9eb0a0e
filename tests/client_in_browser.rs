//! The client library (`src/web/howler.js`) in headless Chromium, on pages that import it from the
//! server and on pages with a copy of their own. `client_library.rs` tests the rest in Node.js.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::client_library::Apps;
use crate::support::howler::{Howler, lasting_port};
use crate::support::script::Script;
use crate::support::tls::{Authority, TlsProxy};
use crate::support::{A_MOMENT, USER, couchdb};

fn start() -> Apps {
    let mut script = Script::node("howler_page.js", &[env!("CARGO_TARGET_TMPDIR")]);
    script.wait_until_ready("browser");
    Apps { script }
}

fn send_command(apps: &mut Apps, what: &str, page: &str, fields: &Value, answer: &str) -> Value {
    let mut command = fields.clone();
    command["do"] = what.into();
    command["as"] = page.into();
    apps.script.send_command(&command);
    apps.expect(page, answer)
}

/// Opens a page in a profile of its own, without a client.
fn open(apps: &mut Apps, page: &str, fields: &Value) {
    send_command(apps, "open", page, fields, "opened");
}

/// Sends a command to a page without waiting for a reply.
fn happen(apps: &mut Apps, page: &str, what: &str, fields: &Value) {
    let mut command = fields.clone();
    command["do"] = what.into();
    command["as"] = page.into();
    apps.script.send_command(&command);
}

/// Returns the cookies of a page.
fn cookies(apps: &mut Apps, page: &str) -> Vec<Value> {
    send_command(apps, "cookies", page, &json!({}), "cookies")["cookies"]
        .as_array()
        .expect("the value is a list")
        .clone()
}

/// Asserts that the console of a page contains nothing but the browser's reports of failed
/// connections.
fn assert_quiet(apps: &mut Apps, page: &str) {
    let received = send_command(apps, "complaints", page, &json!({}), "complaints");
    let complaints = received["complaints"].as_array().expect("the value is a list");
    let own =
        |text: &&Value| !text.as_str().expect("the complaint is a string").starts_with("WebSocket connection to ");
    let own: Vec<&Value> = complaints.iter().filter(own).collect();
    assert!(own.is_empty(), "{own:?}");
}

fn end(mut apps: Apps) {
    send_command(&mut apps, "end", "browser", &json!({}), "ended");
}

/// Returns the URL with the name `localhost`, so that pages and server belong to one site.
fn url(howler: &Howler) -> String {
    format!("http://localhost:{}", howler.port())
}

/// Returns the options of a client that does not reconnect by itself during a test.
fn patient() -> Value {
    json!({"third": {"backoff": {"initial": 3_000_000, "maximum": 3_000_000}}})
}

#[test]
fn session_is_stored_in_a_cookie_of_the_page() {
    const DAYS_30: f64 = 30.0 * 24.0 * 3600.0;
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut apps = start();
    let authority = Authority::new();
    let proxy =
        TlsProxy::start_before(howler.address(), authority.server(&["localhost"]), Ipv4Addr::LOCALHOST.into(), false);
    let (plain, secure) = (url(&howler), format!("https://localhost:{}", proxy.port()));
    let pages = [
        // A page of another origin, with the library from the server, and one with a copy of its
        // own.
        ("served", &plain, json!({"library": format!("{plain}/howler.js")})),
        ("own", &plain, json!({})),
        // A page of the server's origin, behind a TLS proxy.
        ("https", &secure, json!({"origin": secure})),
    ];
    for (page, url, fields) in pages {
        open(&mut apps, page, &fields);
        apps.make(page, url, &json!({}));
        apps.done(page, "subscribe", &json!(["db"]));
        assert_eq!(cookies(&mut apps, page), [] as [Value; 0], "{page}");
        apps.log_in(page);
        let kept = cookies(&mut apps, page);
        assert_eq!(kept.len(), 1, "{page}: {kept:?}");
        assert_eq!(kept[0]["name"], "couchdb-howler-session");
        let received = (&kept[0]["sameSite"], &kept[0]["secure"], &kept[0]["path"]);
        assert_eq!(received, (&json!("Lax"), &json!(url == &secure), &json!("/")), "{page}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let left = kept[0]["expires"].as_f64().unwrap() - now;
        assert!((DAYS_30 - 120.0..DAYS_30 + 120.0).contains(&left), "{left} s");
        couchdb.update("db");
        assert_eq!(apps.expect(page, "change")["db"], "db");

        // The app starts again and is still logged in. Then it logs out.
        send_command(&mut apps, "reload", page, &json!({}), "opened");
        apps.script.take_others(page);
        apps.make(page, url, &json!({}));
        apps.expect(page, "ready");
        apps.done(page, "logOut", &json!([]));
        assert_eq!(cookies(&mut apps, page), [] as [Value; 0], "{page}");
        apps.script.take_others(page);
        send_command(&mut apps, "reload", page, &json!({}), "opened");
        let before = couchdb.counters().session_requests;
        apps.make(page, url, &json!({}));
        assert!(!couchdb.wait_for(A_MOMENT, |seen| seen.session_requests > before), "no client logs in");
        assert_quiet(&mut apps, page);
    }
    end(apps);
}

#[test]
fn ended_session_leaves_no_cookie() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut apps = start();
    open(&mut apps, "a", &json!({}));
    apps.make("a", &url(&howler), &json!({}));
    apps.log_in("a");
    apps.expect("a", "ready");
    couchdb.remove_user(USER);
    send_command(&mut apps, "reload", "a", &json!({}), "opened");
    apps.make("a", &url(&howler), &json!({}));
    assert_eq!(apps.expect("a", "error")["error"]["name"], "NotAuthenticatedError");
    assert_eq!(cookies(&mut apps, "a"), [] as [Value; 0]);
    assert_quiet(&mut apps, "a");
    end(apps);
}

#[test]
fn reload_catches_up_with_exactly_the_missed_changes() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut apps = start();
    let names: Vec<String> = (0..100).map(|number| format!("db{number}")).collect();
    let with_positions = json!({"positions": "app:"});
    open(&mut apps, "a", &json!({}));
    apps.make("a", &url(&howler), &with_positions);
    apps.done("a", "subscribe", &json!([names]));
    apps.log_in("a");
    apps.expect("a", "ready");
    for database in ["db1", "db2", "db3"] {
        couchdb.update(database);
        apps.expect("a", "change");
    }
    for round in 0..3_usize {
        // Changes while the page is away or starting.
        apps.done("a", "stop", &json!([]));
        let changed: Vec<&str> = names.iter().skip(round).step_by(7).map(String::as_str).collect();
        couchdb.update_many(&changed);
        send_command(&mut apps, "reload", "a", &json!({}), "opened");
        apps.make("a", &url(&howler), &with_positions);
        // Subscribes after the login has begun.
        apps.done("a", "subscribe", &json!([names]));
        apps.expect("a", "ready");
        let received = apps.changed("a", changed.len());
        assert_eq!(received, changed.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>());
    }
    // A reload as users do it, without `stop`.
    send_command(&mut apps, "reload", "a", &json!({}), "opened");
    apps.script.take_others("a");
    couchdb.update("db50");
    apps.make("a", &url(&howler), &with_positions);
    apps.done("a", "subscribe", &json!([names]));
    apps.expect("a", "ready");
    assert_eq!(apps.changed("a", 1), BTreeSet::from(["db50".to_owned()]));
    assert_quiet(&mut apps, "a");
    end(apps);
}

#[test]
fn client_reconnects_at_once_when_the_page_is_online_or_shown() {
    let couchdb = couchdb();
    let port = lasting_port();
    let mut howler = Howler::start_on(port, &couchdb, &[]);
    let mut apps = start();
    for page in ["online", "shown"] {
        open(&mut apps, page, &json!({}));
        apps.make(page, &url(&howler), &patient());
        apps.log_in(page);
        apps.expect(page, "ready");
    }
    drop(howler);
    for page in ["online", "shown"] {
        apps.expect(page, "disconnect");
        apps.script.take_others(page);
    }
    howler = Howler::start_on(port, &couchdb, &[]);
    let before = couchdb.counters().session_requests;
    // A hidden page does not reconnect at once.
    happen(&mut apps, "shown", "hide", &json!({"is": true}));
    happen(&mut apps, "shown", "page-event", &json!({"event": "online", "on": "window"}));
    assert!(!couchdb.wait_for(A_MOMENT, |seen| seen.session_requests > before), "no client reconnects by itself");
    happen(&mut apps, "online", "page-event", &json!({"event": "online", "on": "window"}));
    apps.expect("online", "ready");
    happen(&mut apps, "shown", "hide", &json!({"is": false}));
    apps.expect("shown", "ready");
    for page in ["online", "shown"] {
        assert!(apps.is_connected(page));
        apps.done(page, "stop", &json!([]));
        apps.script.take_others(page);
        // A stopped client stays stopped.
        happen(&mut apps, page, "page-event", &json!({"event": "online", "on": "window"}));
        assert_eq!(apps.others(page), [] as [Value; 0]);
        assert!(!apps.is_connected(page));
        assert_quiet(&mut apps, page);
    }
    howler.wait_for_lines("Session of ", 2);
    end(apps);
}

#[test]
fn page_that_becomes_visible_checks_its_connection() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let proxy = crate::support::proxy::Proxy::start(howler.address());
    let mut apps = start();
    open(&mut apps, "a", &json!({}));
    let third = json!({"heartbeatMilliseconds": 4_000, "backoff": {"initial": 20, "maximum": 100}});
    apps.make("a", &proxy.url(), &json!({"third": third}));
    apps.done("a", "subscribe", &json!(["db"]));
    apps.log_in("a");
    apps.expect("a", "ready");
    couchdb.update("db");
    apps.expect("a", "change");
    proxy.silence();
    let slept = std::time::Instant::now();
    couchdb.update("db");
    happen(&mut apps, "a", "hide", &json!({"is": false}));
    apps.expect("a", "disconnect");
    let found = slept.elapsed();
    println!("found after {found:?}");
    // Without a check when the page wakes, this takes 6 s.
    assert!(found.as_millis() < 4_000, "{found:?}");
    apps.expect("a", "ready");
    assert_eq!(apps.expect("a", "change")["db"], "db");
    end(apps);
}
