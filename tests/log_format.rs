//! The log as JSON: every line is an object with the documented fields.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::client::Client;
use crate::support::howler::{BINARY, Howler, run};
use crate::support::http::{Http, Poller};
use crate::support::{PASSWORD, SOON, USER, couchdb};

/// Parses the log of a server, one JSON object per line.
fn lines(howler: &Howler) -> Vec<Value> {
    let output = howler.output();
    output.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn fields(event: &Value) -> BTreeSet<&str> {
    event.as_object().expect("the line is an object").keys().map(String::as_str).collect()
}

/// Returns the events of a kind and asserts that they have the documented fields. Fields with a
/// question mark are optional.
fn events<'a>(lines: &'a [Value], kind: &str, documented: &[&str]) -> Vec<&'a Value> {
    let found = lines.iter().filter(|line| line["event"] == kind).collect::<Vec<_>>();
    let always = ["time", "level", "message", "event"];
    let may = documented.iter().map(|name| name.trim_start_matches('?')).chain(always).collect::<BTreeSet<_>>();
    let must = documented.iter().copied().filter(|name| !name.starts_with('?')).chain(always).collect::<BTreeSet<_>>();
    for event in &found {
        let fields = fields(event);
        assert!(fields.is_subset(&may) && fields.is_superset(&must), "{event}");
        assert_eq!(event["level"], "debug");
    }
    found
}

/// Returns whether a text is a time like 2026-11-24T03:58:26.123Z.
fn is_time(text: &str) -> bool {
    let shape = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
    shape == "0000-00-00T00:00:00.000Z"
}

#[test]
fn every_line_is_an_object_and_events_have_their_fields() {
    let couchdb = couchdb();
    let mut howler = Howler::start_with(&couchdb, &["--log_format", "json"]);
    let mut json = Client::subscribed(howler.address(), &["db", "other"]);
    let mut socket_io = Client::socket_io_logged_in(howler.address());
    let mut poller = Poller::subscribed(howler.address(), &["db"]);
    poller.start_poll();
    couchdb.update("db");
    assert_eq!(json.next_change(SOON).as_deref(), Some("db"));
    assert_eq!(poller.finish_poll(), [r#"42["change","db"]"#]);
    let mut http = Http::connect(howler.address());
    assert_eq!(http.get("/howler.js?token=zq7-in-the-query").status, 200);
    assert_eq!(http.get("/no%22where?password=zq7-in-the-query").status, 404);
    assert_eq!(http.get("/socket.io/?EIO=4&transport=polling&sid=zq7-no-session").status, 400);
    Http::connect(howler.address()).send_raw("\u{1}\u{2}\r\n\r\n");
    let refused = Client::json(howler.address());
    drop(refused);
    howler.wait_for_line("Session of 127.0.0.1 ended");
    howler.wait_for_line("No request");
    howler.signal("TERM");
    json.receive_close(SOON);
    socket_io.receive_close(SOON);
    drop((json, socket_io));
    assert_eq!(howler.wait().code(), Some(0));
    howler.wait_for_line("Stopped.");

    let lines = lines(&howler);
    for line in &lines {
        assert!(is_time(line["time"].as_str().unwrap()), "{line}");
        assert!(["error", "warn", "info", "debug"].contains(&line["level"].as_str().unwrap()), "{line}");
        assert!(!line["message"].as_str().unwrap().is_empty(), "{line}");
        assert!(!line.to_string().contains("in-the-query") && !line.to_string().contains("username="), "{line}");
    }
    let requests = events(&lines, "request", &["client", "status", "?method", "?path"]);
    let mut seen = requests
        .iter()
        .filter(|event| event["path"] != "/howler" && event["status"] != 101)
        .map(|event| (event["method"].as_str(), event["path"].as_str(), event["status"].as_u64().unwrap()))
        .collect::<Vec<_>>();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            (None, None, 400),
            (Some("GET"), Some("/howler.js"), 200),
            (Some("GET"), Some("/no%22where"), 404),
            (Some("GET"), Some("/socket.io/"), 400),
        ]
    );
    let upgrades = requests.iter().filter(|event| event["status"] == 101).count();
    assert_eq!(upgrades, 3, "each WebSocket logs a request");
    sessions_are_logged(&lines);
}

#[test]
fn text_lines_have_time_level_module_and_message_without_colors() {
    let couchdb = couchdb();
    let mut command = Command::new(BINARY);
    command.args(["--couchdb_url", &couchdb.url()]).env("CLICOLOR_FORCE", "1");
    let mut howler = Howler::launch_command(&mut command);
    assert_eq!(Http::connect(howler.address()).get("/nowhere").status, 404);
    howler.wait_for_line("/nowhere");
    howler.signal("TERM");
    assert_eq!(howler.wait().code(), Some(0));
    howler.wait_for_line("Stopped.");
    let output = howler.output();
    for line in output.lines() {
        let (time, rest) = line.split_once(' ').expect("the line has a time");
        assert!(is_time(time), "{line}");
        let (level, rest) = rest.split_at(5);
        assert!(["ERROR", "WARN ", "INFO ", "DEBUG"].contains(&level), "{line}");
        let (target, message) =
            rest.strip_prefix(" [").and_then(|rest| rest.split_once("] ")).expect("the line has a target");
        assert!(target.starts_with("couchdb_howler") && !message.is_empty(), "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
    }
    assert!(output.contains("DEBUG [couchdb_howler::server::connections::respond] GET /nowhere: 404"), "{output}");
}

fn sessions_are_logged(lines: &[Value]) {
    let documented =
        ["client", "?user", "dialect", "transport", "subscriptions", "notifications", "duration_s", "reason"];
    let ended = events(lines, "session-end", &documented);
    let summary = |event: &&Value| {
        assert_eq!(event["client"], "127.0.0.1");
        assert!(event["duration_s"].is_u64());
        let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
        let number = |name: &str| event[name].as_u64().unwrap();
        let texts = [text("dialect"), text("transport"), text("user"), text("reason")].join(" ");
        (texts, number("subscriptions"), number("notifications"))
    };
    let mut ended = ended.iter().map(summary).collect::<Vec<_>>();
    ended.sort();
    let expected = [
        (format!("engine.io-3 polling {USER} shutting down"), 1, 1),
        (format!("engine.io-3 websocket {USER} shutting down"), 0, 0),
        ("howler.v1 websocket - connection lost".to_owned(), 0, 0),
        (format!("howler.v1 websocket {USER} shutting down"), 2, 1),
    ];
    assert_eq!(ended, expected);
}

#[test]
fn default_level_logs_no_requests() {
    let couchdb = couchdb();
    // The helper of the tests sets another log level, so this server is started without it.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = couchdb.url();
    let mut server = Server::start(&["json", "--couchdb_url", &url, "--port", &free.to_string()]);
    let address = ([127, 0, 0, 1], free).into();
    let mut client = first_client(address);
    assert_eq!(client.ask(serde_json::json!({"op": "log-in", "username": USER, "password": PASSWORD}))["ok"], true);
    drop(client);
    assert_eq!(Http::connect(address).get("/").status, 200);
    assert_eq!(server.stop(), Some(0));
    let mut said = String::new();
    server.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    crate::support::howler::assert_no_secret(&said);
    assert!(said.contains("Stopped.") && !said.contains("\"event\""), "{said}");
}

/// Connects to a server that may not listen yet.
fn first_client(address: std::net::SocketAddr) -> Client {
    let began = std::time::Instant::now();
    loop {
        match Client::try_open(address, "/howler", "") {
            Ok(mut client) => {
                assert_eq!(client.receive_json(SOON).unwrap()["event"], "hello");
                return client;
            }
            Err(error) => assert!(began.elapsed() < SOON, "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A server started without the helper's options. Dropping the value kills the process.
struct Server(Child);

impl Server {
    fn start(options: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["--host", "127.0.0.1", "--log_format"]).args(options);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts"))
    }

    /// Shuts the server down. Returns its exit code.
    fn stop(&mut self) -> Option<i32> {
        assert!(Command::new("kill").arg(self.0.id().to_string()).status().unwrap().success());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Closes the log's pipes. The server keeps running.
#[test]
fn server_keeps_running_when_its_log_is_closed() {
    let couchdb = couchdb();
    for format in ["text", "json"] {
        let feeds = couchdb.counters().feed_requests;
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (url, free) = (couchdb.url(), free.to_string());
        let mut server = Server::start(&[format, "--log_level", "debug", "--couchdb_url", &url, "--port", &free]);
        drop((server.0.stdout.take(), server.0.stderr.take()));
        assert!(couchdb.wait_for(SOON, |seen| seen.feed_requests > feeds));
        let mut client = first_client(([127, 0, 0, 1], free.parse::<u16>().unwrap()).into());
        assert_eq!(client.ask(serde_json::json!({"op": "log-in", "username": USER, "password": PASSWORD}))["ok"], true);
        drop(client);
        assert_eq!(server.stop(), Some(0), "{format}");
    }
}

#[test]
fn startup_errors_are_plain_text_lines() {
    let ended = run(&["--log_format", "json", "-u", "http://a:zq7-b@c", "--port", "x"], &[]);
    assert_eq!((ended.code, ended.stderr.lines().count()), (Some(2), 1));
    assert!(ended.stderr.starts_with("couchdb-howler: --port: "), "{}", ended.stderr);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let options = ["--log_format", "json", "-u", "http://a:zq7-b@c", "--host", "127.0.0.1", "-p", &port];
    let ended = run(&options, &[]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.starts_with("couchdb-howler: cannot listen"), "{}", ended.stderr);
}
