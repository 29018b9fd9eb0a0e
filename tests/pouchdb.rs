//! PouchDB on both sides. A PouchDB Server takes the place of CouchDB, which shows that the feed
//! and logins need nothing that only CouchDB has. The recipe of the manual runs unchanged in
//! Chromium, with the `pouchdb` bundle that apps load.

use std::process::Command;
use std::time::Instant;

use couchdb_howler::wire::url::percent_encode;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::howler::{BINARY, Howler, lasting_port};
use crate::support::script::Script;
use crate::support::{A_MOMENT, ADMIN, ADMIN_PASSWORD, PASSWORD, SOON, USER, retry, wait_until};

/// A PouchDB Server with a `_global_changes` database that is written as CouchDB does.
struct Server {
    script: Script,
    port: u64,
}

impl Server {
    fn start() -> Self {
        let mut script = Script::node("pouchdb_server.js", &[ADMIN, ADMIN_PASSWORD, USER, PASSWORD]);
        let ready = script.wait_until_ready("pouchdb");
        println!("PouchDB Server {}", ready["version"].as_str().expect("a version"));
        Self { script, port: ready["port"].as_u64().expect("a port") }
    }

    /// Returns the URL for pages.
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts a howler that follows this server, on a given port (0 for any).
    fn howler(&mut self, port: u16) -> Howler {
        self.howler_with(port, &[])
    }

    /// Starts a howler with further options.
    fn howler_with(&mut self, port: u16, further: &[&str]) -> Howler {
        let mut password = String::new();
        percent_encode(ADMIN_PASSWORD, &mut password);
        let url = format!("http://{ADMIN}:{password}@127.0.0.1:{}", self.port);
        // PouchDB Server sends the head of the feed with the first heartbeat.
        let options = ["--couchdb_url", &url, "--feed_heartbeat", "200"];
        let howler = Howler::launch_command_on(port, Command::new(BINARY).args(options).args(further));
        self.wait_for_feed();
        howler
    }

    /// Waits until the feed is opened and returns its request line.
    fn wait_for_feed(&mut self) -> String {
        loop {
            let request = self.script.expect("pouchdb", "request");
            let line = request["line"].as_str().expect("a line");
            if request["by"] == "howler" && line.contains("feed=continuous") {
                return line.to_owned();
            }
        }
    }

    fn ask(&mut self, command: &Value) -> Value {
        self.script.send_command(command);
        self.script.expect_ack("pouchdb", command["do"].as_str().expect("a command"))
    }

    fn create(&mut self, database: &str) {
        self.ask(&json!({"do": "create", "db": database}));
    }

    fn delete(&mut self, database: &str) {
        self.ask(&json!({"do": "delete", "db": database}));
    }

    /// Writes a document that holds a number.
    fn write(&mut self, database: &str, id: &str, number: u32) {
        self.ask(&json!({"do": "write", "db": database, "doc": {"_id": id, "number": number}}));
    }

    /// Waits until a document holds a number.
    fn wait_for(&mut self, database: &str, id: &str, number: u32) {
        retry(|| {
            let document = self.ask(&json!({"do": "read", "db": database, "id": id}));
            let is_there = document["number"] == number;
            if is_there { Ok(()) } else { Err(format!("no {id} with {number} in {database} but {document}")) }
        });
    }

    /// Waits until a page's request for changes is open.
    fn wait_for_pull(&mut self, database: &str) {
        let start = format!("GET /{database}/_changes");
        wait_until(&format!("a page asks for the changes of {database}"), || {
            self.requests().open.iter().any(|line| line.starts_with(&start))
        });
    }

    /// Returns the requests of pages since the last call.
    fn requests(&mut self) -> Requests {
        let requests = self.ask(&json!({"do": "requests"}));
        let lines = |which: &str| {
            let lines = requests[which].as_array().expect("an array").iter();
            lines.map(|line| line.as_str().expect("a line").to_owned()).collect()
        };
        Requests { done: lines("done"), open: lines("open") }
    }

    /// Waits until pages send no more requests and returns those sent until then.
    fn settle(&mut self) -> Vec<String> {
        let deadline = Instant::now() + SOON;
        let mut all = Vec::new();
        loop {
            // Proves that no request follows.
            std::thread::sleep(A_MOMENT);
            let requests = self.requests();
            let quiet = requests.done.is_empty() && requests.open.is_empty();
            all.extend(requests.done);
            if quiet {
                return all;
            }
            assert!(Instant::now() < deadline, "pages do not stop sending requests: {all:?}, {:?}", requests.open);
        }
    }
}

struct Requests {
    done: Vec<String>,
    open: Vec<String>,
}

#[test]
fn the_feed_of_pouchdb_server_is_followed() {
    let mut server = Server::start();
    let howler = server.howler(0);
    let mut client = Client::subscribed(howler.address(), &["garden"]);
    server.create("garden");
    assert_change(&mut client, "garden", "created");
    for number in 1..4 {
        server.write("garden", "rose", number);
        assert_change(&mut client, "garden", "updated");
    }
    // The sequences of PouchDB Server are numbers, and the server sends them back unchanged.
    server.ask(&json!({"do": "cut"}));
    let feed = server.wait_for_feed();
    let since = feed.rsplit_once("since=").expect("the sequence").1;
    assert!(since.parse::<u32>().is_ok_and(|since| since > 3), "{feed}");
    server.write("garden", "rose", 4);
    assert_change(&mut client, "garden", "updated");
    // The second feed reports what happened between the two.
    server.ask(&json!({"do": "hold"}));
    server.ask(&json!({"do": "write", "db": "garden", "doc": {"_id": "lily"}}));
    server.ask(&json!({"do": "cut"}));
    server.ask(&json!({"do": "release"}));
    assert_change(&mut client, "garden", "updated");
    server.delete("garden");
    assert_change(&mut client, "garden", "deleted");
    howler.assert_logged("Following the changes feed of CouchDB.", 2);
    assert_eq!(howler.count_logged("WARN"), 1, "only the first cut is logged:\n{}", howler.output());
}

fn assert_change(client: &mut Client, database: &str, kind: &str) {
    let event = client.receive_json(SOON).expect("a notification of the change");
    assert_eq!(event["event"], "change", "{event}");
    assert_eq!(event["db"], database);
    assert_eq!(event["kind"], kind);
}

#[test]
fn positions_are_read_from_revisions_of_pouchdb_server() {
    let mut server = Server::start();
    let howler = server.howler(0);
    server.create("garden");
    server.write("garden", "rose", 1);
    let mut client = Client::logged_in(howler.address());
    // The server writes event documents shortly after the change.
    let known = retry(|| {
        let answer = client.ask(json!({"op": "subscribe", "dbs": ["garden"]}));
        let position = answer["dbs"]["garden"].clone();
        let is_written = position.as_str().expect("a position").starts_with("1.1.");
        if is_written { Ok(position) } else { Err(format!("the position stays {position}")) }
    });
    let mut again = Client::logged_in(howler.address());
    let answer = again.ask(json!({"op": "subscribe", "dbs": {"garden": known}}));
    assert_eq!(answer["changed"], json!([]), "{answer}");
    server.write("garden", "rose", 2);
    let position = again.receive_json(SOON).expect("a notification of the change")["position"].clone();
    assert_ne!(position, known);
    let answer = Client::logged_in(howler.address()).ask(json!({"op": "subscribe", "dbs": {"garden": known}}));
    assert_eq!(answer["changed"], json!(["garden"]), "{answer}");
    // The same at another instance, which has not seen the changes.
    let other = server.howler(0);
    let answer = Client::logged_in(other.address()).ask(json!({"op": "subscribe", "dbs": {"garden": position}}));
    assert_eq!(answer["changed"], json!([]), "{answer}");
}

#[test]
fn users_of_pouchdb_server_log_in() {
    let mut server = Server::start();
    let howler = server.howler(0);
    server.create("garden");

    let mut client = Client::json(howler.address());
    let answer = client.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
    assert_eq!(answer["username"], USER, "{answer}");
    let cookie = answer["cookie"].as_str().expect("a cookie").to_owned();
    assert!(cookie.starts_with("AuthSession="), "the cookie is that of PouchDB Server");
    let mut again = Client::json(howler.address());
    let answer = again.ask(json!({"op": "log-in", "cookie": cookie}));
    assert_eq!(answer["username"], USER, "{answer}");
    for credentials in [
        json!({"username": USER, "password": "zq7-wrong"}),
        json!({"username": "nobody", "password": PASSWORD}),
        json!({"cookie": "AuthSession=bXl1c2VyOjZCMDREQzY0OtcMx9RFLX31f_RsWDHp6xRi8Ov2"}),
        json!({"cookie": "AuthSession=zq7-no-cookie"}),
    ] {
        let mut request = credentials.clone();
        request["op"] = "log-in".into();
        let answer = Client::json(howler.address()).ask(request);
        assert_eq!(answer["error"], "NotAuthenticatedError", "{credentials}: {answer}");
    }

    let mut old = Client::socket_io_logged_in(howler.address());
    let mut encoded = String::new();
    percent_encode(&cookie, &mut encoded);
    let mut by_cookie = Client::socket_io(howler.address(), &format!("cookie={encoded}"));
    for start in ["0{", "40", "42[\"authenticated\",{\"cookie\":\"AuthSession="] {
        let text = by_cookie.receive_text(SOON).expect("the login continues");
        assert!(text.starts_with(start), "{start}: {text}");
    }
    let mut refused = Client::socket_io(howler.address(), &format!("username={USER}&password=zq7-wrong"));
    for start in ["0{", "40", "42[\"not-authenticated\"", "41"] {
        let text = refused.receive_text(SOON).expect("a reply to the login");
        assert!(text.starts_with(start), "{start}: {text}");
    }

    // All of them are notified of the same change.
    for client in [&mut client, &mut again] {
        assert_eq!(client.ask(json!({"op": "subscribe", "dbs": ["garden"]}))["ok"], true);
    }
    for client in [&mut old, &mut by_cookie] {
        client.send(r#"420["subscribe",["garden"]]"#);
        assert_eq!(client.receive_text(SOON).as_deref(), Some("430[{}]"));
    }
    server.write("garden", "rose", 1);
    for client in [&mut client, &mut again] {
        assert_eq!(client.next_change(SOON).as_deref(), Some("garden"));
    }
    for client in [&mut old, &mut by_cookie] {
        assert_eq!(client.receive_text(SOON).as_deref(), Some(r#"42["change","garden"]"#));
    }
}

/// A browser in which the recipe runs.
struct Browser {
    script: Script,
    recipe: String,
}

impl Browser {
    fn start() -> Self {
        let mut script = Script::node("pouchdb_page.js", &[env!("CARGO_TARGET_TMPDIR")]);
        let ready = script.wait_until_ready("browser");
        println!("Chromium {}", ready["version"].as_str().expect("a version"));
        Self { script, recipe: recipe() }
    }

    fn ask(&mut self, command: &Value) {
        self.script.send_command(command);
        self.script.expect_ack(command["as"].as_str().unwrap_or("browser"), command["do"].as_str().expect("a command"));
    }

    /// Opens the app, in the profile of its previous page if there was one.
    fn open(&mut self, page: &str, howler: u16, couchdb: &str, names: &[&str]) {
        let howler = format!("http://127.0.0.1:{howler}");
        let options = json!({
            "howler": howler, "couchdb": couchdb, "username": USER, "password": PASSWORD, "names": names,
        });
        let library = format!("{howler}/howler.js");
        self.ask(&json!({"do": "open", "as": page, "recipe": self.recipe, "library": library, "options": options}));
        self.script.expect(page, "ready");
    }

    /// Writes a document to a local database.
    fn write(&mut self, page: &str, database: &str, id: &str, number: u32) {
        self.ask(&json!({"do": "write", "as": page, "db": database, "doc": {"_id": id, "number": number}}));
    }

    /// Waits until a document of a local database holds a number.
    fn wait_for(&mut self, page: &str, database: &str, id: &str, number: u32) {
        let document = json!({"_id": id, "number": number});
        self.script.send_command(&json!({"do": "find", "as": page, "db": database, "doc": document}));
        self.script.expect(page, "found");
        self.script.expect_ack(page, "find");
    }

    fn close(&mut self, page: &str) {
        self.ask(&json!({"do": "close", "as": page}));
    }

    /// Closes the browser in order, so that it leaves no files behind.
    fn end(mut self) {
        self.ask(&json!({"do": "end"}));
    }
}

/// Returns the recipe of the manual unchanged.
fn recipe() -> String {
    let page = include_str!("../src/manual/pouchdb.md");
    let block = page.split("\n```js\n").nth(1).expect("a block of JavaScript");
    let recipe = block.split("\n```\n").next().expect("the block before its end");
    assert!(recipe.lines().count() <= 40, "the recipe fits a screen");
    recipe.to_owned()
}

#[test]
fn the_recipe_of_the_manual_replicates_changed_databases() {
    let mut server = Server::start();
    server.create("garden");
    server.create("kitchen");
    server.write("garden", "rose", 1);
    let howler = server.howler(0);
    let mut browser = Browser::start();
    browser.open("app", howler.port(), &server.url(), &["garden", "kitchen"]);
    // The document existed before the page opened.
    browser.wait_for("app", "garden", "rose", 1);
    // Changes at the server are pulled, local changes are pushed.
    server.write("garden", "rose", 2);
    browser.wait_for("app", "garden", "rose", 2);
    browser.write("app", "kitchen", "soup", 1);
    server.wait_for("kitchen", "soup", 1);

    // Between changes the page sends no requests and keeps none open: it learns of a change only
    // from howler.
    server.settle();
    server.ask(&json!({"do": "hold"}));
    server.write("garden", "rose", 3);
    // Proves that no request follows the change.
    std::thread::sleep(A_MOMENT);
    let requests = server.requests();
    assert_eq!((requests.done, requests.open), (vec![], vec![]), "before howler notifies the page of the change");
    server.ask(&json!({"do": "release"}));
    browser.wait_for("app", "garden", "rose", 3);
    let requests = server.settle();
    assert!(
        requests.iter().all(|line| !line.contains("kitchen")),
        "requests for a database that did not change: {requests:#?}"
    );
    browser.end();
}

#[test]
fn the_recipe_of_the_manual_catches_up() {
    let mut server = Server::start();
    server.create("garden");
    server.create("kitchen");
    let port = lasting_port();
    let howler = server.howler(port);
    let mut browser = Browser::start();
    browser.open("app", port, &server.url(), &["garden", "kitchen"]);
    server.write("garden", "rose", 1);
    browser.wait_for("app", "garden", "rose", 1);
    server.settle();

    // A change while howler is down.
    drop(howler);
    browser.script.expect("app", "disconnect");
    server.write("garden", "rose", 2);
    let _howler = server.howler(port);
    browser.script.expect("app", "ready");
    browser.wait_for("app", "garden", "rose", 2);
    assert_pulled_alone(&server.settle(), "garden");

    // A change while the page is closed.
    browser.close("app");
    server.write("garden", "rose", 3);
    browser.open("app", port, &server.url(), &["garden", "kitchen"]);
    browser.wait_for("app", "garden", "rose", 3);
    assert_pulled_alone(&server.settle(), "garden");

    // Changes on both sides while there is no network.
    browser.ask(&json!({"do": "network", "as": "app", "offline": true}));
    server.write("garden", "rose", 4);
    browser.write("app", "kitchen", "soup", 1);
    browser.ask(&json!({"do": "network", "as": "app", "offline": false}));
    browser.wait_for("app", "garden", "rose", 4);
    server.wait_for("kitchen", "soup", 1);
    browser.end();
}

#[test]
fn the_recipe_of_the_manual_runs_one_replication_per_database() {
    let mut server = Server::start();
    server.create("garden");
    let howler = server.howler(0);
    let mut browser = Browser::start();
    browser.open("app", howler.port(), &server.url(), &["garden"]);
    server.write("garden", "rose", 1);
    browser.wait_for("app", "garden", "rose", 1);
    server.settle();
    browser.script.take_others("app");

    // A pull has begun and waits for the server.
    server.ask(&json!({"do": "stall"}));
    server.write("garden", "rose", 2);
    browser.script.expect("app", "change");
    server.wait_for_pull("garden");
    // More changes arrive, and there is something to push.
    for number in 3..5 {
        server.write("garden", "rose", number);
        browser.script.expect("app", "change");
    }
    browser.write("app", "garden", "lily", 1);
    // Proves that no second request follows.
    std::thread::sleep(A_MOMENT);
    let requests = server.requests();
    assert_eq!(requests.open.len(), 1, "{:?}", requests.open);
    assert_eq!(requests.done, Vec::<String>::new());

    server.ask(&json!({"do": "resume"}));
    browser.wait_for("app", "garden", "rose", 4);
    server.wait_for("garden", "lily", 1);
    // A run that finds changes asks again whether there are more. The first run does that; both
    // changes during it cause one more run, which finds nothing. The pushed document is a change,
    // too, and the third run finds it.
    let requests = server.settle();
    assert_eq!(count_pulls(&requests), 2 + 1 + 2, "{requests:#?}");
    browser.end();
}

#[test]
fn the_recipe_of_the_manual_obeys_a_resync() {
    let mut server = Server::start();
    server.create("garden");
    let howler = server.howler_with(0, &["--resync", "always"]);
    let mut browser = Browser::start();
    browser.open("app", howler.port(), &server.url(), &["garden"]);
    server.write("garden", "rose", 1);
    browser.wait_for("app", "garden", "rose", 1);
    // The feed is cut before it sends the event.
    server.ask(&json!({"do": "hold"}));
    server.write("garden", "rose", 2);
    server.ask(&json!({"do": "cut"}));
    browser.script.expect("app", "resync");
    browser.wait_for("app", "garden", "rose", 2);
    browser.end();
}

/// Asserts that a page pulled from this database only.
fn assert_pulled_alone(requests: &[String], database: &str) {
    let start = format!("GET /{database}/");
    let of_it: Vec<String> = requests.iter().filter(|line| line.starts_with(&start)).cloned().collect();
    assert!(count_pulls(&of_it) > 0, "{requests:#?}");
    assert_eq!(count_pulls(requests), count_pulls(&of_it), "{requests:#?}");
}

/// Counts how often a page asked for the changes of a database.
fn count_pulls(requests: &[String]) -> usize {
    requests.iter().filter(|line| line.starts_with("GET ") && line.contains("/_changes")).count()
}
