//! A PouchDB Server in the place of CouchDB: the feed and the log-ins need nothing that only one of them has.

use std::process::Command;

use couchdb_howler::wire::url::percent_encode;
use serde_json::{Value, json};

use crate::support::client::Client;
use crate::support::howler::{BINARY, Howler};
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
        let ready = script.expect("pouchdb", "ready");
        println!("PouchDB Server {}", ready["version"].as_str().expect("its version"));
        Self { script, port: ready["port"].as_u64().expect("a port") }
    }

    /// A server that follows it, on a port that is given (0 for any).
    fn howler(&mut self, port: u16) -> Howler {
        let mut password = String::new();
        percent_encode(ADMIN_PASSWORD, &mut password);
        let url = format!("http://{ADMIN}:{password}@127.0.0.1:{}", self.port);
        // The head of PouchDB Server's feed comes with the first heartbeat.
        let options = ["--couchdb_url", &url, "--feed_heartbeat", "200"];
        let howler = Howler::launch_command_on(port, Command::new(BINARY).args(options));
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
    howler.assert_told("Following the changes feed of CouchDB.", 3);
    assert_eq!(howler.count_told("WARN"), 2, "the cuts alone:\n{}", howler.output());
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
