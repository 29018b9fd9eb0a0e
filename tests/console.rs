//! The console in headless Chromium, used with a mouse, with a keyboard alone, and on a phone.
//!
//! The tests leave pictures in `console` in cargo's folder for tests (`target/tmp`).

use couchdb_howler::demo;
use serde_json::{Value, json};

use crate::support::howler::{Howler, lasting_port};
use crate::support::script::Script;
use crate::support::{PASSWORD, USER, couchdb, retry};

struct Browser {
    script: Script,
}

impl Browser {
    fn start() -> Self {
        let mut script = Script::node("console.js", &[env!("CARGO_TARGET_TMPDIR")]);
        script.wait_until_ready("browser");
        Self { script }
    }

    /// Opens the console in a profile of its own.
    fn open(&mut self, name: &'static str, url: &str, how: &Value) -> Page<'_> {
        let mut command = how.clone();
        command["do"] = "open".into();
        command["as"] = name.into();
        command["url"] = url.into();
        self.script.send_command(&command);
        self.script.expect(name, "opened");
        Page { script: &mut self.script, name }
    }

    fn end(mut self) {
        self.script.send_command(&json!({"do": "end"}));
        self.script.expect("browser", "ended");
    }
}

struct Page<'a> {
    script: &'a mut Script,
    name: &'static str,
}

impl Page<'_> {
    fn send_command(&mut self, what: &str, command: &Value, answer: &str) -> Value {
        let mut command = command.clone();
        command["do"] = what.into();
        command["as"] = self.name.into();
        self.script.send_command(&command);
        self.script.expect(self.name, answer)
    }

    fn fill(&mut self, selector: &str, value: &str) {
        self.send_command("fill", &json!({"selector": selector, "value": value}), "done");
    }

    fn click(&mut self, selector: &str) {
        self.send_command("click", &json!({"selector": selector}), "done");
    }

    fn press(&mut self, keys: &[&str]) {
        self.send_command("press", &json!({"keys": keys}), "done");
    }

    fn type_text(&mut self, text: &str) {
        self.send_command("type", &json!({"text": text}), "done");
    }

    fn reload(&mut self) {
        self.send_command("reload", &json!({}), "done");
    }

    fn picture(&mut self, name: &str) {
        self.send_command("picture", &json!({"name": name}), "done");
    }

    fn look(&mut self) -> Value {
        self.send_command("look", &json!({}), "seen")
    }

    /// Waits until the page shows something.
    fn until(&mut self, what: &str, is_seen: impl Fn(&Value) -> bool) -> Value {
        retry(|| {
            let seen = self.look();
            let name = &self.name;
            if is_seen(&seen) { Ok(seen) } else { Err(format!("{name}: no {what}, but the page shows {seen:#}")) }
        })
    }

    fn log_in(&mut self, password: &str) {
        self.fill("#username", USER);
        self.fill("#password", password);
        self.click("#log-in button");
    }

    fn subscribe(&mut self, names: &str) {
        self.fill("#names", names);
        self.click("#subscribe button");
    }

    /// Asserts that axe-core finds no barriers.
    fn assert_accessible(&mut self) {
        let checked = self.send_command("check", &json!({}), "checked");
        assert!(checked["rules"].as_u64().is_some_and(|rules| rules > 10), "axe-core ran its rules: {checked}");
        assert_eq!(checked["violations"], json!([]), "{}: {checked:#}", self.name);
    }

    /// Asserts that the page reported no errors and loaded nothing from other origins.
    fn assert_quiet(&mut self) {
        assert_eq!(self.look()["complaints"], json!([]), "{}", self.name);
    }
}

/// Returns the URL with the name `localhost`, for cookies.
fn url(howler: &Howler) -> String {
    format!("http://localhost:{}/", howler.port())
}

fn is(seen: &Value, what: &str) -> bool {
    seen[what].as_bool().expect("the value is a boolean")
}

/// Returns the number of changes in the row of a database.
fn changes_of(seen: &Value, name: &str) -> Option<u64> {
    seen["rows"].as_array().expect("the page has rows").iter().find(|row| row["name"] == name)?["changes"].as_u64()
}

/// Returns whether the page shows this number of databases, all of them confirmed by the server.
fn is_subscribed(seen: &Value, databases: usize) -> bool {
    let rows = seen["rows"].as_array().expect("the page has rows");
    rows.len() == databases && rows.iter().all(|row| row["asked"] == false)
}

/// Returns the height of the highest bar of the graph.
fn highest(seen: &Value) -> f64 {
    seen["bars"].as_array().expect("the page has bars").iter().filter_map(Value::as_f64).fold(0.0, f64::max)
}

const DESKTOP: fn() -> Value = || json!({});

#[test]
fn user_logs_in_and_sees_changes() {
    const STRANGE: &str = "<img/src=x>&amp;\"'{}";
    let couchdb = couchdb();
    // The console works from its own origin even if it is not listed.
    let howler = Howler::start_with(&couchdb, &["--origins", "https://app.example.com"]);
    let mut browser = Browser::start();
    let mut page = browser.open("a", &url(&howler), &DESKTOP());
    let seen = page.look();
    assert!(is(&seen, "welcome") && !is(&seen, "console") && !is(&seen, "demo"), "{seen}");
    assert_eq!((&seen["focus"], &seen["kept"]), (&json!("username"), &json!([])), "{seen}");

    couchdb.fail_logins(Some(500));
    page.log_in(PASSWORD);
    let seen = page.until("the error message", |seen| seen["error"] != "");
    assert_eq!(seen["error"], "CouchDB cannot be reached at the moment. Try again soon.");
    couchdb.fail_logins(None);
    page.log_in("zq7-wrong");
    let seen = page.until("the rejection", |seen| seen["error"].as_str().is_some_and(|text| text.contains("correct")));
    assert_eq!(seen["error"], "User name or password is not correct.");
    assert!(is(&seen, "welcome") && !is(&seen, "console"), "{seen}");
    assert_eq!((&seen["focus"], &seen["cookies"]), (&json!("password"), &json!([])), "{seen}");

    page.log_in(PASSWORD);
    let seen = page.until("the console", |seen| seen["state"] == "Connected");
    assert!(is(&seen, "console") && !is(&seen, "welcome"), "{seen}");
    assert_eq!((&seen["user"], &seen["focus"]), (&json!(USER), &json!("names")), "{seen}");
    assert_eq!((highest(&seen), &seen["total"]), (0.0, &json!(0)), "{seen}");

    page.subscribe(&format!("garden,music/jazz\t{STRANGE} garden"));
    let seen = page.until("the databases", |seen| is_subscribed(seen, 3));
    let names: Vec<&Value> = seen["rows"].as_array().unwrap().iter().map(|row| &row["name"]).collect();
    assert_eq!(names, ["garden", "music/jazz", STRANGE]);
    for name in [STRANGE, "music/jazz"] {
        let before = page.look()["total"].as_u64().unwrap();
        couchdb.create_database(name);
        let seen = page.until("a change", |seen| seen["total"].as_u64() > Some(before));
        assert_eq!(seen["log"][0]["name"], name);
        assert_eq!(seen["log"][0]["kind"], "created");
        assert_eq!(changes_of(&seen, name), Some(1));
        assert!(highest(&seen) > 0.0, "the graph shows the change: {seen}");
    }
    couchdb.update("garden");
    let seen = page.until("a change", |seen| changes_of(seen, "garden") == Some(1));
    assert_eq!((&seen["minute"], &seen["total"], &seen["log"][0]["kind"]), (&json!(3), &json!(3), &json!("updated")));
    // The bar moves left over time.
    let last = |seen: &Value| seen["bars"].as_array().unwrap().iter().rposition(|bar| bar.as_f64() > Some(0.0));
    let at = last(&seen);
    page.until("the bar further left", |seen| last(seen) < at && seen["minute"] == 3);

    page.click("#rows tr:first-child button");
    let seen = page.look();
    assert_eq!((changes_of(&seen, "garden"), seen["rows"].as_array().unwrap().len()), (None, 2), "{seen}");
    couchdb.update("garden");
    couchdb.update("music/jazz");
    let seen = page.until("the change of the other database", |seen| changes_of(seen, "music/jazz") == Some(2));
    assert_eq!(seen["total"], 4, "{seen}");
    page.assert_quiet();
    browser.end();
}

#[test]
fn everything_works_with_the_keyboard_alone() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut browser = Browser::start();
    let mut page = browser.open("a", &url(&howler), &DESKTOP());
    page.type_text(USER);
    page.press(&["Tab"]);
    page.type_text(PASSWORD);
    page.press(&["Enter"]);
    page.until("the console", |seen| seen["state"] == "Connected");
    page.type_text("one two, three");
    page.press(&["Enter"]);
    let seen = page.until("the databases", |seen| is_subscribed(seen, 3));
    assert_eq!(seen["focus"], "names", "the focus stays in the field");
    // Past the submit button to the buttons of the rows.
    page.press(&["Tab", "Tab", "Tab"]);
    assert_eq!(page.look()["focus"], "Unsubscribe from two");
    page.press(&["Enter"]);
    let seen = page.look();
    assert_eq!((&seen["focus"], changes_of(&seen, "two")), (&json!("Unsubscribe from three"), None));
    page.press(&["Space"]);
    assert_eq!(page.look()["focus"], "Unsubscribe from one", "removing the last row focuses the row before it");
    page.press(&["Enter"]);
    assert_eq!(page.look()["focus"], "names");
    page.press(&["Enter"]);
    assert_eq!(page.look()["names_error"], "Type the name of a database.");

    let names: Vec<String> = (0..60).map(|number| format!("db{number}")).collect();
    page.type_text(&names.join(" "));
    page.press(&["Enter"]);
    page.until("the databases", |seen| is_subscribed(seen, 60));
    page.press(&["Shift+Tab"]);
    assert_eq!(page.look()["focus"], "log-out");
    for name in &names {
        couchdb.update(name);
    }
    page.until("all changes", |seen| seen["total"] == 60);
    // After the buttons of 60 rows the focus reaches the list, which scrolls.
    page.press(&[&["Tab"; 62][..], &["Tab", "Tab"]].concat());
    assert_eq!(page.look()["focus"], "scroll");
    page.press(&["PageDown"]);
    page.until("the scrolled list", |seen| seen["scrolled"].as_f64() > Some(0.0));
    page.press(&["Shift+Tab"]);
    assert_eq!(page.look()["focus"], "clear");
    page.press(&["Enter"]);
    let seen = page.look();
    assert_eq!((&seen["log"], &seen["total"]), (&json!([]), &json!(60)));
    page.press(&[&["Shift+Tab"; 63][..]].concat());
    assert_eq!(page.look()["focus"], "log-out");
    page.press(&["Enter"]);
    let seen = page.until("the login form", |seen| is(seen, "welcome"));
    assert_eq!(seen["focus"], "username");
    page.assert_quiet();
    browser.end();
}

#[test]
fn reload_keeps_the_session_and_logout_leaves_nothing() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut browser = Browser::start();
    let mut page = browser.open("a", &url(&howler), &DESKTOP());
    page.log_in(PASSWORD);
    page.until("the console", |seen| seen["state"] == "Connected");
    page.subscribe("private-garden");
    page.until("the database", |seen| is_subscribed(seen, 1));
    page.reload();
    let seen = page.until("the console again", |seen| seen["state"] == "Connected");
    assert_eq!((&seen["user"], changes_of(&seen, "private-garden")), (&json!(USER), Some(0)), "{seen}");
    assert_eq!(seen["cookies"], json!(["couchdb-howler-session"]));
    couchdb.update("private-garden");
    page.until("a change", |seen| changes_of(seen, "private-garden") == Some(1));

    page.click("#log-out");
    let seen = page.until("the end of the session", |seen| seen["cookies"] == json!([]));
    howler.wait_for_line("Session of ");
    for again in [false, true] {
        if again {
            page.reload();
        }
        let seen = page.until("the login form", |seen| is(seen, "welcome"));
        assert!(!is(&seen, "console"), "{seen}");
        let content = seen["content"].as_str().unwrap();
        assert!(!content.contains("private-garden") && !content.contains(USER), "{content}");
        assert_eq!((&seen["kept"], &seen["cookies"], &seen["state"]), (&json!([]), &json!([]), &json!("")), "{seen}");
    }
    assert_eq!(seen["focus"], "username");
    // The next user inherits nothing.
    page.log_in(PASSWORD);
    let seen = page.until("the console", |seen| seen["state"] == "Connected");
    assert_eq!((&seen["rows"], &seen["log"], &seen["total"]), (&json!([]), &json!([]), &json!(0)), "{seen}");
    page.assert_quiet();
    browser.end();
}

#[test]
fn ended_session_leads_to_the_login_form() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut browser = Browser::start();
    let mut page = browser.open("a", &url(&howler), &DESKTOP());
    page.log_in(PASSWORD);
    page.until("the console", |seen| seen["state"] == "Connected");
    page.subscribe("garden");
    page.until("the database", |seen| is_subscribed(seen, 1));
    couchdb.remove_user(USER);
    page.reload();
    let seen = page.until("the login form", |seen| is(seen, "welcome"));
    assert_eq!(seen["error"], "Your session has ended. Log in again.");
    assert!(!seen["content"].as_str().unwrap().contains("garden"), "{seen}");
    assert_eq!((&seen["kept"], &seen["cookies"], &seen["state"]), (&json!([]), &json!([]), &json!("")));
    page.assert_quiet();
    browser.end();
}

#[test]
fn console_reconnects_when_the_server_returns() {
    let couchdb = couchdb();
    let port = lasting_port();
    let howler = Howler::start_on(port, &couchdb, &[]);
    let mut browser = Browser::start();
    let mut page = browser.open("a", &url(&howler), &DESKTOP());
    page.log_in(PASSWORD);
    page.until("the console", |seen| seen["state"] == "Connected");
    page.subscribe("garden");
    page.until("the subscription", |seen| is_subscribed(seen, 1));
    couchdb.update("garden");
    page.until("a change", |seen| changes_of(seen, "garden") == Some(1));
    drop(howler);
    let seen = page.until("the lost connection", |seen| seen["state"] == "Reconnecting…");
    assert_eq!(seen["reconnects"], 0);
    assert!(is(&seen, "console"), "the console stays visible: {seen}");
    let howler = Howler::start_on(port, &couchdb, &[]);
    let seen = page.until("the connection", |seen| seen["state"] == "Connected");
    assert_eq!((&seen["reconnects"], &seen["problem"]), (&json!(1), &json!("")), "{seen}");
    let before = changes_of(&seen, "garden");
    couchdb.update("garden");
    page.until("a change", |seen| changes_of(seen, "garden") > before);

    // The session ends while the server is away.
    couchdb.remove_user(USER);
    drop(howler);
    page.until("the lost connection", |seen| seen["state"] == "Reconnecting…");
    let _howler = Howler::start_on(port, &couchdb, &[]);
    let seen = page.until("the login form", |seen| is(seen, "welcome"));
    assert_eq!(seen["error"], "Your session has ended. Log in again.");
    assert!(!seen["content"].as_str().unwrap().contains("garden") && !is(&seen, "console"), "{seen}");
    assert_eq!((&seen["kept"], &seen["cookies"]), (&json!([]), &json!([])));
    // The browser reports each failed connection.
    let seen = page.look();
    let complaints = seen["complaints"].as_array().unwrap();
    let own = |text: &&Value| !text.as_str().unwrap().starts_with("WebSocket connection to 'ws://localhost:");
    assert_eq!(complaints.iter().filter(own).count(), 0, "{complaints:?}");
    browser.end();
}

#[test]
fn list_of_changes_is_bounded_and_announcements_are_few() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut browser = Browser::start();
    let mut page = browser.open("a", &url(&howler), &DESKTOP());
    page.log_in(PASSWORD);
    page.until("the console", |seen| seen["state"] == "Connected");
    let names: Vec<String> = (0..500).map(|number| format!("db{number}")).collect();
    page.subscribe(&names.join("\n"));
    page.until("the databases", |seen| is_subscribed(seen, 500));
    for name in &names {
        couchdb.update(name);
    }
    let seen = page.until("all changes", |seen| seen["total"] == 500);
    assert_eq!(seen["log"].as_array().unwrap().len(), 200);
    assert!(seen["rows"].as_array().unwrap().iter().all(|row| row["changes"] == 1));
    // One or two sentences announce all of them.
    let seen = page.until("the announcement", |seen| seen["announcement"] != "");
    let said = seen["announcement"].as_str().unwrap();
    assert!(said.contains("more changes, the latest of db"), "{said}");
    page.assert_quiet();
    browser.end();
}

#[test]
fn console_works_below_a_path_of_a_proxy() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut browser = Browser::start();
    browser.script.send_command(&json!({"do": "proxy", "as": "p", "to": howler.port(), "prefix": "/tools/howler"}));
    let proxied = browser.script.expect("p", "proxied");
    let mut page = browser.open("a", proxied["url"].as_str().unwrap(), &DESKTOP());
    page.log_in(PASSWORD);
    page.until("the console", |seen| seen["state"] == "Connected");
    page.subscribe("garden");
    page.until("the database", |seen| is_subscribed(seen, 1));
    couchdb.update("garden");
    page.until("a change", |seen| changes_of(seen, "garden") == Some(1));
    page.assert_quiet();
    browser.end();
}

#[test]
fn demo_shows_live_data_after_one_click() {
    let howler = Howler::launch(&["--demo"]);
    howler.wait_for_line(&format!("http://localhost:{}/", howler.port()));
    let mut browser = Browser::start();
    let mut page = browser.open("a", &url(&howler), &DESKTOP());
    assert!(is(&page.look(), "demo"));
    page.click("#use-demo");
    let seen = page.until("changes", |seen| seen["total"].as_u64() > Some(2));
    assert_eq!((&seen["user"], &seen["state"]), (&json!(demo::USER), &json!("Connected")), "{seen}");
    assert!(changes_of(&seen, "garden").is_some() && changes_of(&seen, "music/jazz").is_some(), "{seen}");
    assert!(highest(&seen) > 0.0);
    page.assert_quiet();
    browser.end();
}

/// Checks every state of the page on each screen size in both color schemes.
#[test]
fn every_state_is_accessible_on_every_screen() {
    let howler = Howler::launch(&["--demo"]);
    howler.wait_for_line("Press Ctrl+C to stop the demo.");
    let mut browser = Browser::start();
    for (screen, width, height) in [("desktop", 1280, 860), ("phone", 390, 844), ("narrow", 320, 640)] {
        for scheme in ["light", "dark"] {
            let how = json!({"width": width, "height": height, "scheme": scheme, "motion": "reduce"});
            let mut page = browser.open("a", &url(&howler), &how);
            let picture = |page: &mut Page<'_>, state: &str| {
                page.picture(&format!("{screen}-{scheme}-{state}"));
                page.assert_accessible();
                let seen = page.look();
                assert!(seen["overflow"].as_i64() <= Some(0), "{screen} scrolls sideways: {}", seen["overflow"]);
                assert_eq!(seen["outside"], json!([]), "{screen}: content overflows its card");
                if width < 600 {
                    assert_eq!(seen["small"], json!([]), "no touch target is too small");
                }
            };
            picture(&mut page, "welcome");
            page.log_in("zq7-wrong");
            page.until("the rejection", |seen| seen["error"] != "");
            picture(&mut page, "refused");
            page.click("#use-demo");
            page.until("the console", |seen| seen["state"] == "Connected");
            page.click("#subscribe button");
            page.subscribe(
                "a-database-whose-name-is-so-long-that-it-does-not-fit-into-one-line-of-the-table/nor-into-the-list",
            );
            page.until("changes", |seen| seen["total"].as_u64() > Some(1));
            picture(&mut page, "console");
            page.assert_quiet();
        }
    }
    browser.end();
}
