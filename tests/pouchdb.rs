//! PouchDB on both sides. A PouchDB Server takes the place of CouchDB, and shows that the feed and the log-ins need
//! nothing that only one of them has. And the recipe of the manual runs word for word in Chromium, with the
//! bundle of `pouchdb` that apps load.

use std::process::Command;
use std::time::Instant;

use couchdb_howler::wire::url::percent_encode;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::howler::{BINARY, Howler, lasting_port};
use crate::support::script::Script;
use crate::support::{A_MOMENT, ADMIN, ADMIN_PASSWORD, PASSWORD, SOON, USER};

/// A PouchDB Server with a `_global_changes` database that is written as CouchDB would.
struct Server {
    script: Script,
    port: u64,
}

impl Server {
    fn start() -> Self {
        let mut script = Script::node("pouchdb_server.js", &[ADMIN, ADMIN_PASSWORD, USER, PASSWORD]);
        let ready = script.wait_until_ready("pouchdb");
        println!("PouchDB Server {}", ready["version"].as_str().expect("its version"));
        Self { script, port: ready["port"].as_u64().expect("a port") }
    }

    /// Where pages find it.
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A server that follows it, on a port that is given (0 for any).
    fn howler(&mut self, port: u16) -> Howler {
        self.howler_with(port, &[])
    }

    /// The same with further options.
    fn howler_with(&mut self, port: u16, further: &[&str]) -> Howler {
        let mut password = String::new();
        percent_encode(ADMIN_PASSWORD, &mut password);
        let url = format!("http://{ADMIN}:{password}@127.0.0.1:{}", self.port);
        // The head of PouchDB Server's feed comes with the first heartbeat.
        let options = ["--couchdb_url", &url, "--feed_heartbeat", "200"];
        let howler = Howler::launch_command_on(port, Command::new(BINARY).args(options).args(further));
        self.wait_for_feed();
        howler
    }

    /// Waits until the feed is opened; its request.
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
        self.script.tell(command);
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
        let deadline = Instant::now() + SOON;
        loop {
            let document = self.ask(&json!({"do": "read", "db": database, "id": id}));
            if document["number"] == number {
                return;
            }
            assert!(Instant::now() < deadline, "no {id} with {number} in {database} but {document}");
            std::thread::sleep(A_MOMENT / 10);
        }
    }

    /// Waits until a page's question of what changed is open.
    fn wait_for_pull(&mut self, database: &str) {
        let deadline = Instant::now() + SOON;
        let start = format!("GET /{database}/_changes");
        while !self.requests().open.iter().any(|line| line.starts_with(&start)) {
            assert!(Instant::now() < deadline, "nobody asks what changed in {database}");
            std::thread::sleep(A_MOMENT / 10);
        }
    }

    /// The requests of pages that came since the last time.
    fn requests(&mut self) -> Requests {
        let requests = self.ask(&json!({"do": "requests"}));
        let lines = |which: &str| {
            let lines = requests[which].as_array().expect("an array").iter();
            lines.map(|line| line.as_str().expect("a line").to_owned()).collect()
        };
        Requests { done: lines("done"), open: lines("open") }
    }

    /// Waits until no page asks anything any more; what was asked until then.
    fn settle(&mut self) -> Vec<String> {
        let deadline = Instant::now() + SOON;
        let mut all = Vec::new();
        loop {
            std::thread::sleep(A_MOMENT);
            let requests = self.requests();
            let quiet = requests.done.is_empty() && requests.open.is_empty();
            all.extend(requests.done);
            if quiet {
                return all;
            }
            assert!(Instant::now() < deadline, "pages ask without end: {all:?}, {:?}", requests.open);
        }
    }
}

struct Requests {
    done: Vec<String>,
    open: Vec<String>,
}

#[test]
fn pouchdb_server_is_followed() {
    let mut server = Server::start();
    let howler = server.howler(0);
    let mut client = Client::subscribed(howler.address(), &["garden"]);
    server.create("garden");
    assert_change(&mut client, "garden", "created");
    for number in 1..4 {
        server.write("garden", "rose", number);
        assert_change(&mut client, "garden", "updated");
    }
    // Its sequences are numbers, and go back as they came.
    server.ask(&json!({"do": "cut"}));
    let feed = server.wait_for_feed();
    let since = feed.rsplit_once("since=").expect("where it resumes").1;
    assert!(since.parse::<u32>().is_ok_and(|since| since > 3), "{feed}");
    server.write("garden", "rose", 4);
    assert_change(&mut client, "garden", "updated");
    // What happened between two feeds is told by the second.
    server.ask(&json!({"do": "hold"}));
    server.ask(&json!({"do": "write", "db": "garden", "doc": {"_id": "lily"}}));
    server.ask(&json!({"do": "cut"}));
    server.ask(&json!({"do": "release"}));
    assert_change(&mut client, "garden", "updated");
    server.delete("garden");
    assert_change(&mut client, "garden", "deleted");
    howler.assert_told("Following the changes feed of CouchDB.", 2);
    assert_eq!(howler.count_told("WARN"), 1, "the first cut alone:\n{}", howler.output());
}

fn assert_change(client: &mut Client, database: &str, kind: &str) {
    let event = client.receive_json(SOON).expect("a change is told");
    assert_eq!(event["event"], "change", "{event}");
    assert_eq!(event["db"], database);
    assert_eq!(event["kind"], kind);
}

#[test]
fn positions_come_from_the_revisions_of_pouchdb_server() {
    let mut server = Server::start();
    let howler = server.howler(0);
    server.create("garden");
    server.write("garden", "rose", 1);
    let mut client = Client::logged_in(howler.address());
    let known = loop {
        let answer = client.ask(json!({"op": "subscribe", "dbs": ["garden"]}));
        let position = answer["dbs"]["garden"].clone();
        assert!(position.is_string(), "{answer}");
        // The event documents are written a beat after what they tell of.
        if position.as_str().is_some_and(|position| position.starts_with("1.1.")) {
            break position;
        }
        std::thread::sleep(A_MOMENT / 10);
    };
    let mut again = Client::logged_in(howler.address());
    let answer = again.ask(json!({"op": "subscribe", "dbs": {"garden": known}}));
    assert_eq!(answer["changed"], json!([]), "{answer}");
    server.write("garden", "rose", 2);
    let position = again.receive_json(SOON).expect("a change is told")["position"].clone();
    assert_ne!(position, known);
    let answer = Client::logged_in(howler.address()).ask(json!({"op": "subscribe", "dbs": {"garden": known}}));
    assert_eq!(answer["changed"], json!(["garden"]), "{answer}");
    // The same by another instance, which has seen nothing of it.
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
    assert!(cookie.starts_with("AuthSession="), "as PouchDB Server gave it");
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
        let text = by_cookie.receive_text(SOON).expect("the log-in goes on");
        assert!(text.starts_with(start), "{start}: {text}");
    }
    let mut refused = Client::socket_io(howler.address(), &format!("username={USER}&password=zq7-wrong"));
    for start in ["0{", "40", "42[\"not-authenticated\"", "41"] {
        let text = refused.receive_text(SOON).expect("the refusal is told");
        assert!(text.starts_with(start), "{start}: {text}");
    }

    // All of them hear of the same change.
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
        println!("Chromium {}", ready["version"].as_str().expect("its version"));
        Self { script, recipe: recipe() }
    }

    fn ask(&mut self, command: &Value) {
        self.script.tell(command);
        self.script.expect_ack(command["as"].as_str().unwrap_or("browser"), command["do"].as_str().expect("a command"));
    }

    /// Opens the app, in the profile of its last page if it had one.
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
        self.script.tell(&json!({"do": "find", "as": page, "db": database, "doc": document}));
        self.script.expect(page, "found");
        self.script.expect_ack(page, "find");
    }

    fn close(&mut self, page: &str) {
        self.ask(&json!({"do": "close", "as": page}));
    }

    /// Ends the browser in order, so that it leaves nothing behind.
    fn end(mut self) {
        self.ask(&json!({"do": "end"}));
    }
}

/// Returns the recipe of the manual, word for word.
fn recipe() -> String {
    let page = include_str!("../src/manual/pouchdb.md");
    let block = page.split("\n```js\n").nth(1).expect("a block of JavaScript");
    let recipe = block.split("\n```\n").next().expect("the part before its end");
    assert!(recipe.lines().count() <= 40, "the recipe fits a screen");
    recipe.to_owned()
}

#[test]
fn the_recipe_of_the_manual_replicates_what_changed() {
    let mut server = Server::start();
    server.create("garden");
    server.create("kitchen");
    server.write("garden", "rose", 1);
    let howler = server.howler(0);
    let mut browser = Browser::start();
    browser.open("app", howler.port(), &server.url(), &["garden", "kitchen"]);
    // What was there before.
    browser.wait_for("app", "garden", "rose", 1);
    // What is written there is pulled, what is written here is pushed.
    server.write("garden", "rose", 2);
    browser.wait_for("app", "garden", "rose", 2);
    browser.write("app", "kitchen", "soup", 1);
    server.wait_for("kitchen", "soup", 1);

    // Between changes nothing is asked, and nothing stays open: until howler tells of a change it is not known.
    server.settle();
    server.ask(&json!({"do": "hold"}));
    server.write("garden", "rose", 3);
    std::thread::sleep(A_MOMENT);
    let requests = server.requests();
    assert_eq!((requests.done, requests.open), (vec![], vec![]), "before howler tells of the change");
    server.ask(&json!({"do": "release"}));
    browser.wait_for("app", "garden", "rose", 3);
    let requests = server.settle();
    assert!(requests.iter().all(|line| !line.contains("kitchen")), "that did not change: {requests:#?}");
    browser.end();
}

#[test]
fn the_recipe_of_the_readme_catches_up() {
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

    // What changed while howler was down.
    drop(howler);
    browser.script.expect("app", "disconnect");
    server.write("garden", "rose", 2);
    let _howler = server.howler(port);
    browser.script.expect("app", "ready");
    browser.wait_for("app", "garden", "rose", 2);
    assert_pulled_alone(&server.settle(), "garden");

    // What changed while the page was closed.
    browser.close("app");
    server.write("garden", "rose", 3);
    browser.open("app", port, &server.url(), &["garden", "kitchen"]);
    browser.wait_for("app", "garden", "rose", 3);
    assert_pulled_alone(&server.settle(), "garden");

    // What changed while there was no network, on both sides.
    browser.ask(&json!({"do": "network", "as": "app", "offline": true}));
    server.write("garden", "rose", 4);
    browser.write("app", "kitchen", "soup", 1);
    browser.ask(&json!({"do": "network", "as": "app", "offline": false}));
    browser.wait_for("app", "garden", "rose", 4);
    server.wait_for("kitchen", "soup", 1);
    browser.end();
}

#[test]
fn the_recipe_of_the_manual_replicates_a_database_once_at_a_time() {
    let mut server = Server::start();
    server.create("garden");
    let howler = server.howler(0);
    let mut browser = Browser::start();
    browser.open("app", howler.port(), &server.url(), &["garden"]);
    server.write("garden", "rose", 1);
    browser.wait_for("app", "garden", "rose", 1);
    server.settle();
    browser.script.take_others("app");

    // A pull has begun, and waits for the server.
    server.ask(&json!({"do": "stall"}));
    server.write("garden", "rose", 2);
    browser.script.expect("app", "change");
    server.wait_for_pull("garden");
    // More changes come, and something to push.
    for number in 3..5 {
        server.write("garden", "rose", number);
        browser.script.expect("app", "change");
    }
    browser.write("app", "garden", "lily", 1);
    std::thread::sleep(A_MOMENT);
    let requests = server.requests();
    assert_eq!(requests.open.len(), 1, "{:?}", requests.open);
    assert_eq!(requests.done, Vec::<String>::new());

    server.ask(&json!({"do": "resume"}));
    browser.wait_for("app", "garden", "rose", 4);
    server.wait_for("garden", "lily", 1);
    // A run that finds something asks again whether that was all. The first does; both changes meanwhile make one run
    // more, which finds nothing; what was pushed is a change, too, and found by the third.
    let requests = server.settle();
    assert_eq!(count_pulls(&requests), 2 + 1 + 2, "{requests:#?}");
    browser.end();
}

#[test]
fn the_recipe_of_the_readme_heeds_a_resync() {
    let mut server = Server::start();
    server.create("garden");
    let howler = server.howler_with(0, &["--resync", "always"]);
    let mut browser = Browser::start();
    browser.open("app", howler.port(), &server.url(), &["garden"]);
    server.write("garden", "rose", 1);
    browser.wait_for("app", "garden", "rose", 1);
    // The event is lost with the feed.
    server.ask(&json!({"do": "hold"}));
    server.write("garden", "rose", 2);
    server.ask(&json!({"do": "cut"}));
    browser.script.expect("app", "resync");
    browser.wait_for("app", "garden", "rose", 2);
    browser.end();
}

/// Expects that a page pulled from that database, and from no other.
fn assert_pulled_alone(requests: &[String], database: &str) {
    let start = format!("GET /{database}/");
    let of_it: Vec<String> = requests.iter().filter(|line| line.starts_with(&start)).cloned().collect();
    assert!(count_pulls(&of_it) > 0, "{requests:#?}");
    assert_eq!(count_pulls(requests), count_pulls(&of_it), "{requests:#?}");
}

/// How often a page asked what changed in a database.
fn count_pulls(requests: &[String]) -> usize {
    requests.iter().filter(|line| line.starts_with("GET ") && line.contains("/_changes")).count()
}
