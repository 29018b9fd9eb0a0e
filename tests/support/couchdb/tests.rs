//! Checks the stand-in over real sockets against the behaviour that was seen of CouchDB.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::clock::Clock;
use super::http::to_base64url;
use super::*;

const SOON: Duration = Duration::from_secs(10);
const ADMIN: &str = "Authorization: Basic YWRtaW46cGFzc3dvcmQ=\r\n";

/// A client that reads what a test expects.
struct Client {
    stream: TcpStream,
    bytes: Vec<u8>,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// Returns the value of the cookie.
    fn cookie(&self) -> Option<&str> {
        let value = self.header("Set-Cookie")?.strip_prefix("AuthSession=")?;
        value.split(';').next()
    }
}

impl Client {
    fn new(stand_in: &StandIn) -> Self {
        let stream = TcpStream::connect(stand_in.address()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { stream, bytes: Vec::new() }
    }

    fn send(&mut self, method: &str, target: &str, headers: &str, body: &str) {
        let length = body.len();
        let request =
            format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        self.stream.write_all(request.as_bytes()).unwrap();
    }

    fn ask(&mut self, method: &str, target: &str, headers: &str, body: &str) -> Reply {
        self.send(method, target, headers, body);
        self.reply(method != "HEAD")
    }

    fn get(&mut self, target: &str, headers: &str) -> Reply {
        self.ask("GET", target, headers, "")
    }

    fn reply(&mut self, with_body: bool) -> Reply {
        let head = self.head();
        let length = |line: &str| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok();
        let mut body = Vec::new();
        if !with_body {
        } else if head.contains("Transfer-Encoding: chunked") {
            while let Some(chunk) = self.chunk() {
                body.extend_from_slice(chunk.as_bytes());
            }
        } else if let Some(length) = head.lines().find_map(length) {
            body = self.take(length);
        }
        Reply { status: head[9..12].parse().unwrap(), head, body: String::from_utf8(body).unwrap() }
    }

    fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(self.take(1));
        }
        String::from_utf8(head).unwrap()
    }

    /// Reads a chunk; None is the zero chunk.
    fn chunk(&mut self) -> Option<String> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.take(1));
        }
        let size = std::str::from_utf8(&line).unwrap().trim_end();
        let size = usize::from_str_radix(size, 16).unwrap();
        let chunk = self.take(size);
        assert_eq!(self.take(2), b"\r\n");
        (size > 0).then(|| String::from_utf8(chunk).unwrap())
    }

    /// Reads the next chunk that is no heartbeat.
    fn event_chunk(&mut self) -> String {
        loop {
            let chunk = self.chunk().expect("the feed goes on");
            if chunk != "\n" {
                return chunk;
            }
        }
    }

    /// Reads this many lines from any number of chunks.
    fn lines(&mut self, count: usize) -> Vec<Value> {
        let mut text = String::new();
        while text.lines().filter(|line| !line.is_empty()).count() < count || !text.ends_with('\n') {
            text.push_str(&self.chunk().expect("the feed goes on"));
        }
        let lines = text.lines().filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.bytes.len() < count {
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer).expect("more is to come");
            assert!(read > 0, "ended after {:?}", String::from_utf8_lossy(&self.bytes));
            self.bytes.extend_from_slice(&buffer[..read]);
        }
        self.bytes.drain(..count).collect()
    }

    /// Reads up to the end of the connection, and returns the text and the error, if there is one.
    fn rest(&mut self) -> (String, Option<ErrorKind>) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let end = self.stream.read_to_end(&mut bytes).err();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (text, end.map(|error| error.kind()))
    }

    /// Opens the feed of changes and reads its head and first chunk.
    fn open_feed(stand_in: &StandIn, query: &str) -> Self {
        let mut client = Self::new(stand_in);
        let target = format!("/_global_changes/_changes?feed=continuous&{query}");
        client.send("GET", &target, ADMIN, "");
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(client.chunk().as_deref(), Some("\n"));
        client
    }
}

fn start() -> StandIn {
    StandIn::start(&Options::default()).unwrap()
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["id"].as_str().unwrap()).collect()
}

fn log_in(client: &mut Client, name: &str, password: &str, headers: &str) -> Reply {
    let headers = format!("{headers}Content-Type: application/json\r\n");
    let body = json!({"name": name, "password": password}).to_string();
    client.ask("POST", "/_session", &headers, &body)
}

fn who(client: &mut Client, cookie: &str, headers: &str) -> Value {
    let headers = format!("Cookie: a=b; AuthSession={cookie}\r\n{headers}");
    let reply = client.get("/_session", &headers);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["userCtx"]["name"].clone()
}

/// Repeats a question until there is an answer.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let (_sender, receiver) = std::sync::mpsc::channel::<()>();
    let clock = Clock::start();
    while clock.elapsed() < SOON {
        if let Some(found) = ask() {
            return found;
        }
        let _ = receiver.recv_timeout(Duration::from_millis(50));
    }
    panic!("no answer within {SOON:?}");
}

mod feeds {
    use super::*;

    #[test]
    fn changes_are_chunks_of_whole_lines() {
        let stand_in = start();
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        assert!(stand_in.wait_for_feeds(1, SOON));
        stand_in.update("a/b");
        let chunk = feed.chunk().unwrap();
        assert!(chunk.starts_with(r#"{"seq":"3-g1AAAA"#), "{chunk}");
        let rest = r#"","id":"updated:a/b","changes":[{"rev":"1-967a00dff5e02add41819138abb3284d"}]}"#;
        assert!(chunk.trim_end().ends_with(rest) && chunk.ends_with("}\n"), "{chunk}");
        stand_in.create_database("plus+db");
        let chunk = feed.chunk().unwrap();
        assert_eq!(chunk.lines().count(), 2);
        assert!(chunk.contains("created:plus+db") && chunk.contains("updated:_dbs"));
    }

    #[test]
    fn many_updates_are_one_chunk() {
        let stand_in = start();
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        let names: Vec<String> = (0..3_000).map(|number| format!("db{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        stand_in.update_many(&names);
        assert_eq!(feed.chunk().unwrap().lines().count(), 3_000);
    }

    #[test]
    fn feed_without_changes_sends_heartbeats() {
        let stand_in = start();
        let mut feed = Client::open_feed(&stand_in, "heartbeat=20&since=now");
        for _ in 0..3 {
            assert_eq!(feed.chunk().as_deref(), Some("\n"));
        }
        stand_in.update("a");
        assert!(feed.event_chunk().contains("updated:a"));
    }

    #[test]
    fn feed_without_heartbeat_ends_and_keeps_the_connection() {
        let stand_in = start();
        stand_in.update("a");
        let mut feed = Client::open_feed(&stand_in, "timeout=30&since=now");
        let last: Value = serde_json::from_str(&feed.chunk().unwrap()).unwrap();
        assert_eq!(last["pending"], 0);
        assert_eq!(last["last_seq"], stand_in.last_seq().unwrap());
        assert_eq!(feed.chunk().as_deref(), Some("\n"));
        assert_eq!(feed.chunk(), None);
        assert_eq!(feed.get("/_up", "").status, 200);
        assert_eq!(stand_in.open_feeds(), 0);
    }

    #[test]
    fn db_updates_sends_its_head_with_the_first_line() {
        let stand_in = start();
        let mut client = Client::new(&stand_in);
        let target = "/_db_updates?feed=continuous&heartbeat=60000&since=now";
        client.send("GET", target, ADMIN, "");
        assert!(stand_in.wait_for_feeds(1, SOON));
        client.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(client.stream.read(&mut [0]).is_err());
        client.stream.set_read_timeout(Some(SOON)).unwrap();
        stand_in.write_event_document("_design/views");
        stand_in.create_database("t1");
        assert!(client.head().starts_with("HTTP/1.1 200 OK"));
        let line: Value = serde_json::from_str(&client.chunk().unwrap()).unwrap();
        assert_eq!(line["db_name"], "t1");
        assert_eq!(line["type"], "created");
        let line: Value = serde_json::from_str(&client.chunk().unwrap()).unwrap();
        assert_eq!(line["db_name"], "_dbs");
        assert_eq!(line["seq"], stand_in.last_seq().unwrap());
        stand_in.break_feed(FeedFault::CleanEnd);
        let last: Value = serde_json::from_str(&client.chunk().unwrap()).unwrap();
        assert_eq!(last.as_object().unwrap().keys().collect::<Vec<_>>(), ["last_seq"]);
        assert_eq!(client.chunk(), None);
    }

    #[test]
    fn db_updates_starts_with_a_heartbeat_and_sends_more() {
        let stand_in = start();
        let mut client = Client::new(&stand_in);
        client.send("GET", "/_db_updates?feed=continuous&heartbeat=20&since=now", ADMIN, "");
        client.head();
        assert_eq!(client.chunk().as_deref(), Some("\n"));
        assert_eq!(client.chunk().as_deref(), Some("\n"));
    }

    #[test]
    fn replay_holds_each_document_once() {
        let stand_in = start();
        for _ in 0..5 {
            stand_in.update_many(&["a", "b", "c"]);
        }
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=0");
        let lines = feed.lines(3);
        let mut sorted = ids(&lines);
        sorted.sort_unstable();
        assert_eq!(sorted, ["updated:a", "updated:b", "updated:c"]);
        assert!(lines.iter().all(|line| { line["changes"][0]["rev"].as_str().unwrap().starts_with("5-") }));
        let seq = lines[1]["seq"].as_str().unwrap();
        let mut resumed = Client::open_feed(&stand_in, &format!("heartbeat=60000&since={seq}"));
        assert_eq!(resumed.lines(1)[0]["id"], lines[2]["id"]);
    }

    #[test]
    fn request_for_the_last_position_ends_at_once() {
        let stand_in = start();
        stand_in.update("a");
        let mut client = Client::new(&stand_in);
        let pin = client.get("/_global_changes/_changes?since=now&limit=1", ADMIN).json();
        let seq = stand_in.last_seq().unwrap();
        assert_eq!(pin, json!({"results": [], "last_seq": seq, "pending": 0}));
        let pin = client.get("/_db_updates?since=now&limit=1", ADMIN).json();
        assert_eq!(pin, json!({"results": [], "last_seq": seq}));
        stand_in.update_many(&["b", "c"]);
        let target = format!("/_global_changes/_changes?since={seq}&limit=1");
        let page = client.get(&target, ADMIN).json();
        assert_eq!(page["results"].as_array().unwrap().len(), 1);
        assert_eq!(page["pending"], 1);
        assert_eq!(stand_in.counters().pin_requests, 3);
    }

    #[test]
    fn feed_requests_are_rejected_as_by_couchdb() {
        let stand_in = start();
        stand_in.add_user("u", "p", &[]);
        let mut client = Client::new(&stand_in);
        for feed in ["/_global_changes/_changes", "/_db_updates"] {
            for since in ["bogus", "", "1", "-1"] {
                let reply = client.get(&format!("{feed}?since={since}"), ADMIN);
                let reason = "Malformed sequence supplied in 'since' parameter.";
                assert_eq!(reply.status, 400);
                assert_eq!(reply.json(), json!({"error": "bad_request", "reason": reason}));
            }
            for headers in ["", "Authorization: Basic dTpw\r\n"] {
                let reply = client.get(feed, headers);
                assert_eq!(reply.status, 401);
                assert_eq!(reply.json()["reason"], "You are not a server admin.");
            }
            let reply = client.get(feed, "Authorization: Basic YWRtaW46eA==\r\n");
            assert_eq!(reply.status, 401);
            assert_eq!(reply.json()["reason"], "Name or password is incorrect.");
            let reply = client.get(feed, &format!("Accept: text/html\r\n{ADMIN}"));
            assert_eq!(reply.status, 302);
        }
        let reply = client.get("/_global_changes/_changes?feed=continuous&heartbeat=0", ADMIN);
        assert_eq!(reply.status, 400);
        stand_in.delete_database("_global_changes");
        let reply = client.get("/_global_changes/_changes", ADMIN);
        assert_eq!(reply.status, 404);
        assert_eq!(reply.json()["reason"], "Database does not exist.");
        stand_in.create_database("_global_changes");
        stand_in.fail_feed(500, 2);
        assert_eq!(client.get("/_global_changes/_changes?since=now", ADMIN).status, 500);
        assert_eq!(client.get("/_db_updates?feed=continuous", ADMIN).status, 500);
        assert_eq!(client.get("/_db_updates?since=now", ADMIN).status, 200);
    }

    #[test]
    fn tick_makes_one_line_of_many_events() {
        let stand_in = StandIn::start(&Options { tick: Duration::from_millis(200), ..Options::default() }).unwrap();
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        for _ in 0..50 {
            stand_in.update("a");
        }
        stand_in.update("b");
        let mut lines = feed.lines(2);
        lines.sort_by_key(|line| line["id"].to_string());
        assert_eq!(ids(&lines), ["updated:a", "updated:b"]);
        let revision = stand_in.revision("updated:a").unwrap();
        assert!(revision <= 2, "{revision}");
        stand_in.update("a");
        stand_in.restart(true).unwrap();
        assert_eq!(stand_in.revision("updated:a"), Some(revision));
    }

    #[test]
    fn deleted_global_changes_ends_its_feeds_and_restarts_revisions() {
        let stand_in = start();
        stand_in.update_many(&["a", "a"]);
        let old = stand_in.last_seq().unwrap();
        let mut client = Client::new(&stand_in);
        let before = client.get("/_global_changes", ADMIN).json();
        assert_eq!(before["db_name"], "_global_changes");
        assert_eq!(before["update_seq"], old);
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        assert_eq!(client.ask("DELETE", "/_global_changes", ADMIN, "").status, 200);
        assert!(feed.chunk().unwrap().starts_with("{\"last_seq\":"));
        assert_eq!(feed.chunk().as_deref(), Some("\n"));
        assert_eq!(feed.chunk(), None);
        assert_eq!(feed.get("/_global_changes", ADMIN).status, 404);
        stand_in.update("lost");
        assert_eq!(client.ask("PUT", "/_global_changes", ADMIN, "").status, 201);
        assert_eq!(client.ask("PUT", "/_global_changes", ADMIN, "").status, 412);
        let after = client.get("/_global_changes", ADMIN).json();
        assert_ne!(after["instance_start_time"], before["instance_start_time"]);
        stand_in.update("a");
        let mut feed = Client::open_feed(&stand_in, &format!("heartbeat=60000&since={old}"));
        let lines = feed.lines(1);
        assert_eq!(ids(&lines), ["updated:a"]);
        assert!(lines[0]["changes"][0]["rev"].as_str().unwrap().starts_with("1-"));
    }

    #[test]
    fn a_hundred_thousand_updates_are_sent() {
        let stand_in = start();
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            loop {
                let read = feed.stream.read(&mut buffer).unwrap();
                if contains(&buffer[..read], b"updated:last") {
                    return;
                }
                assert!(read > 0);
            }
        });
        let names: Vec<String> = (0..500).map(|number| format!("db{number}")).collect();
        for round in 0..if cfg!(debug_assertions) { 100_000 } else { 1_000_000 } {
            stand_in.update(&names[round % names.len()]);
        }
        // Three times, because a read may split one of them.
        stand_in.update_many(&["last", "last", "last"]);
        reader.join().unwrap();
    }

    fn contains(haystack: &[u8], needle: &[u8]) -> bool {
        haystack.windows(needle.len()).any(|window| window == needle)
    }
}

mod faults {
    use super::*;

    #[test]
    fn every_chunking_carries_the_same_lines() {
        let stand_in = start();
        for chunking in [Chunking::OneByte, Chunking::SplitEvery(7), Chunking::Merge] {
            stand_in.set_chunking(chunking);
            let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
            stand_in.update_many(&["a", "b"]);
            stand_in.update("c");
            assert_eq!(ids(&feed.lines(3)), ["updated:a", "updated:b", "updated:c"]);
        }
        stand_in.set_chunking(Chunking::OneByte);
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        stand_in.update("a");
        assert_eq!(feed.chunk().as_deref(), Some("{"));
    }

    #[test]
    fn injected_bytes_appear_between_the_lines() {
        let stand_in = start();
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        assert!(stand_in.wait_for_feeds(1, SOON));
        stand_in.update("a");
        stand_in.inject_line(b"{\"id\":\"none\"}");
        stand_in.update("b");
        stand_in.inject_raw(b"3\r\nxyz\r\n");
        assert!(feed.chunk().unwrap().contains("updated:a"));
        assert_eq!(feed.chunk().as_deref(), Some("{\"id\":\"none\"}\n"));
        assert!(feed.chunk().unwrap().contains("updated:b"));
        assert_eq!(feed.chunk().as_deref(), Some("xyz"));
    }

    fn broken(stand_in: &StandIn, fault: FeedFault) -> Client {
        let feed = Client::open_feed(stand_in, "heartbeat=60000&since=now");
        assert!(stand_in.wait_for_feeds(1, SOON));
        stand_in.break_feed(fault);
        feed
    }

    #[test]
    fn faults_end_feeds() {
        let stand_in = start();
        let (text, end) = broken(&stand_in, FeedFault::Reset).rest();
        assert_eq!((text.as_str(), end), ("", Some(ErrorKind::ConnectionReset)));
        let (text, end) = broken(&stand_in, FeedFault::Cut).rest();
        assert_eq!((text.as_str(), end), ("", None));
        let (text, end) = broken(&stand_in, FeedFault::CutMidChunk).rest();
        assert!(text.starts_with("d6\r\n{\"seq\":") && text.len() < 0xd6, "{text}");
        assert_eq!(end, None);
        let mut feed = broken(&stand_in, FeedFault::CleanEnd);
        assert!(feed.chunk().unwrap().contains("last_seq"));
        assert_eq!(feed.chunk().as_deref(), Some("\n"));
        assert_eq!(feed.chunk(), None);
        assert!(feed.get("/", "").json()["couchdb"] == "Welcome");
        assert!(stand_in.wait_for_feeds(0, SOON));
    }

    #[test]
    fn faults_spoil_feeds() {
        let stand_in = start();
        let mut feed = broken(&stand_in, FeedFault::BrokenJson);
        assert!(serde_json::from_str::<Value>(&feed.chunk().unwrap()).is_err());
        stand_in.break_feed(FeedFault::HugeLine(100_000));
        assert_eq!(feed.chunk().unwrap().len(), 100_000);
        stand_in.break_feed(FeedFault::SpoilNextLine);
        stand_in.update_many(&["a", "b"]);
        let lines = feed.event_chunk();
        let mut whole = lines.lines().map(|line| serde_json::from_str::<Value>(line).is_ok());
        assert_eq!((whole.next(), whole.next()), (Some(false), Some(true)));
        stand_in.break_feed(FeedFault::PadNextLine(70_000));
        stand_in.update("a");
        let line = feed.event_chunk();
        assert!(line.len() > 70_000 && serde_json::from_str::<Value>(&line).is_ok());
        stand_in.break_feed(FeedFault::Garbage);
        let second = feed.reply(true);
        assert_eq!(second.status, 500);
        assert_eq!(second.json()["error"], "nodedown");
        drop(feed);
        assert!(stand_in.wait_for_feeds(0, SOON));
        let mut feed = broken(&stand_in, FeedFault::BadChunkSize);
        assert_eq!(feed.take(5), b"xyz\r\n");
        stand_in.update("a");
        stand_in.break_feed(FeedFault::Cut);
        assert_eq!(feed.rest(), (String::new(), None));
    }

    #[test]
    fn silent_feed_stays_open() {
        let stand_in = start();
        stand_in.break_next_feed(FeedFault::Silence);
        let mut feed = Client::open_feed(&stand_in, "heartbeat=20&since=now");
        feed.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        stand_in.update("a");
        assert_eq!(feed.rest(), (String::new(), Some(ErrorKind::WouldBlock)));
        assert_eq!(stand_in.open_feeds(), 1);
        drop(feed);
        assert!(stand_in.wait_for_feeds(0, SOON));
    }

    #[test]
    fn refused_connections_are_accepted_again() {
        let stand_in = start();
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        stand_in.refuse();
        assert_eq!(feed.rest(), (String::new(), None));
        let refused = TcpStream::connect(stand_in.address()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        stand_in.accept_again().unwrap();
        assert_eq!(Client::new(&stand_in).get("/", "").status, 200);
        stand_in.pause_accepting();
        let mut client = Client::new(&stand_in);
        client.send("GET", "/", "", "");
        client.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(client.stream.read(&mut [0]).is_err());
        client.stream.set_read_timeout(Some(SOON)).unwrap();
        stand_in.accept_again().unwrap();
        assert_eq!(client.reply(true).status, 200);
    }

    #[test]
    fn restart_keeps_cookies_and_revisions_but_not_lost_events() {
        let stand_in = start();
        stand_in.add_user("u", "p", &[]);
        let reply = log_in(&mut Client::new(&stand_in), "u", "p", "");
        let cookie = reply.cookie().unwrap();
        stand_in.update("a");
        stand_in.lose_next_events(true);
        stand_in.update("a");
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        stand_in.restart(true).unwrap();
        stand_in.lose_next_events(false);
        assert_eq!(feed.rest(), (String::new(), None));
        assert_eq!(stand_in.revision("updated:a"), Some(1));
        assert_eq!(who(&mut Client::new(&stand_in), cookie, ""), "u");
    }

    #[test]
    fn dropping_the_stand_in_ends_feeds_and_delays() {
        let stand_in = start();
        let mut feed = Client::open_feed(&stand_in, "heartbeat=60000&since=now");
        stand_in.set_login_delay(Duration::from_secs(3_600));
        let mut waiting = Client::new(&stand_in);
        waiting.send("GET", "/_session", "", "");
        assert!(stand_in.wait_for(SOON, |counters| counters.sessions_in_flight == 1));
        let clock = Clock::start();
        drop(stand_in);
        assert!(clock.elapsed() < Duration::from_secs(3));
        assert_eq!(feed.rest().1, None);
        waiting.rest();
    }

    #[test]
    fn two_hundred_connections_are_counted() {
        let stand_in = start();
        stand_in.set_login_delay(Duration::from_millis(300));
        let mut clients: Vec<Client> = (0..200).map(|_| Client::new(&stand_in)).collect();
        for client in &mut clients {
            client.send("GET", "/_session", "", "");
        }
        assert!(stand_in.wait_for(SOON, |counters| counters.open_connections == 200));
        for client in &mut clients {
            assert_eq!(client.reply(true).status, 200);
        }
        let counters = stand_in.counters();
        assert_eq!(counters.in_flight, 0);
        assert!(counters.peak_sessions_in_flight > 1);
        assert_eq!(counters.session_requests, 200);
        drop(clients);
        assert!(stand_in.wait_for(SOON, |counters| counters.open_connections == 0));
    }
}

mod sessions {
    use super::*;

    #[test]
    fn login_sets_a_cookie_that_names_the_user() {
        let stand_in = start();
        stand_in.add_user("myuser", "p&=ä", &["gardener"]);
        let mut client = Client::new(&stand_in);
        let reply = log_in(&mut client, "myuser", "p&=ä", "");
        assert_eq!(reply.status, 200);
        let expected = json!({"ok": true, "name": "myuser", "roles": ["gardener"]});
        assert_eq!(reply.json(), expected);
        let set = reply.header("Set-Cookie").unwrap();
        assert!(set.starts_with("AuthSession=bXl1c2Vy"), "{set}");
        assert!(set.ends_with(" GMT; Max-Age=600; Path=/; HttpOnly"), "{set}");
        let cookie = reply.cookie().unwrap().to_owned();
        let headers = format!("Cookie: AuthSession={cookie}\r\n");
        let reply = client.get("/_session", &headers);
        assert_eq!(reply.json()["info"]["authenticated"], "cookie");
        assert_eq!(reply.header("Set-Cookie"), None);
        let form = "Content-Type: application/x-www-form-urlencoded\r\n";
        let body = "name=myuser&password=p%26%3D%C3%A4";
        assert_eq!(client.ask("POST", "/_session", form, body).status, 200);
        let reply = client.ask("DELETE", "/_session", &headers, "");
        assert_eq!(reply.cookie(), Some(""));
        assert_eq!(who(&mut client, &cookie, ""), "myuser");
    }

    #[test]
    fn rejected_logins_have_a_reason() {
        let stand_in = start();
        let mut client = Client::new(&stand_in);
        let reply = log_in(&mut client, "nobody", "x", "");
        assert_eq!(reply.status, 401);
        assert_eq!(reply.cookie(), Some(""));
        let expected = json!({"error": "unauthorized", "reason": "Name or password is incorrect."});
        assert_eq!(reply.json(), expected);
        let json = "Content-Type: application/json\r\n";
        for (body, status) in [
            (r#"{"password":"x"}"#, 400),
            (r#"{"name":1,"password":"x"}"#, 500),
            (r#"{"name":"u","password":null}"#, 500),
            ("[]", 400),
            ("{", 400),
        ] {
            assert_eq!(client.ask("POST", "/_session", json, body).status, status, "{body}");
        }
        let reply = client.ask("POST", "/_session", json, "{}");
        assert_eq!(reply.json()["reason"], "request body must contain a username");
        let plain = "Content-Type: text/plain\r\n";
        assert_eq!(client.ask("POST", "/_session", plain, "{}").status, 415);
        stand_in.fail_logins(Some(503));
        assert_eq!(log_in(&mut client, "nobody", "x", "").status, 503);
        assert_eq!(client.get("/_session", "").status, 503);
    }

    #[test]
    fn invalid_cookies_name_no_user() {
        let stand_in = start();
        stand_in.add_user("u", "p", &[]);
        let mut client = Client::new(&stand_in);
        let cookie = log_in(&mut client, "u", "p", "").cookie().unwrap().to_owned();
        let forged = to_base64url(b"u:18F00000000:0123456789abcdef");
        for bad in ["", forged.as_str()] {
            assert_eq!(who(&mut client, bad, ""), Value::Null);
            // CouchDB was seen to accept credentials beside an invalid cookie.
            assert_eq!(who(&mut client, bad, ADMIN), "admin");
        }
        assert_eq!(who(&mut client, &cookie, ADMIN), "u");
        for malformed in ["!", "bogus", &to_base64url(b"a:b"), &to_base64url(b"a:zz:c")] {
            let reply = client.get("/_session", &format!("Cookie: AuthSession={malformed}\r\n"));
            assert_eq!(reply.status, 400, "{malformed}");
            let reason = "Malformed AuthSession cookie. Please clear your cookies.";
            assert_eq!(reply.json()["reason"], reason);
        }
        stand_in.change_password("u", "q");
        assert_eq!(who(&mut client, &cookie, ""), Value::Null);
        let cookie = log_in(&mut client, "u", "q", "").cookie().unwrap().to_owned();
        stand_in.set_require_valid_user(true);
        assert_eq!(who(&mut client, &cookie, ""), "u");
        stand_in.remove_user("u");
        let reply = client.get("/_session", &format!("Cookie: AuthSession={cookie}\r\n"));
        assert_eq!(reply.status, 401);
        stand_in.set_require_valid_user(false);
        assert_eq!(who(&mut client, &cookie, ""), Value::Null);
    }

    #[test]
    fn cookies_are_renewed_and_expire() {
        let stand_in = StandIn::start(&Options { cookie_life: Duration::from_secs(4), ..Options::default() }).unwrap();
        stand_in.add_user("u", "p", &[]);
        let mut client = Client::new(&stand_in);
        let old = log_in(&mut client, "u", "p", "").cookie().unwrap().to_owned();
        let headers = format!("Cookie: AuthSession={old}\r\n");
        let fresh = until(|| client.get("/_up", &headers).cookie().map(str::to_owned));
        assert_ne!(fresh, old);
        assert_eq!(who(&mut client, &old, ""), "u");
        until(|| who(&mut client, &old, "").is_null().then_some(()));
    }

    #[test]
    fn five_wrong_passwords_lock_a_name_for_one_address() {
        let stand_in =
            StandIn::start(&Options { lockout: Some(Duration::from_secs(2)), ..Options::default() }).unwrap();
        stand_in.add_user("u", "p", &[]);
        let mut client = Client::new(&stand_in);
        // The last address counts, which the nearest proxy wrote.
        let from = "X-Forwarded-For: 10.0.0.1, 192.0.2.1\r\n";
        for _ in 0..5 {
            assert_eq!(log_in(&mut client, "u", "x", from).status, 401);
        }
        let reply = log_in(&mut client, "u", "p", from);
        assert_eq!(reply.status, 403);
        assert!(reply.json()["reason"].as_str().unwrap().starts_with("Account is temporarily"));
        assert_eq!(log_in(&mut client, "u", "p", "").status, 200);
        assert_eq!(log_in(&mut client, "admin", "password", from).status, 200);
        let basic = format!("{from}Authorization: Basic dTpw\r\n");
        assert_eq!(client.get("/", &basic).status, 403);
        assert_eq!(stand_in.lockouts(), 1);
        until(|| (log_in(&mut client, "u", "p", from).status == 200).then_some(()));
        assert_eq!(log_in(&mut client, "u", "x", from).status, 401, "earlier failures no longer count");
    }

    #[test]
    fn wrong_passwords_count_within_a_time_of_the_first() {
        let lockout = Duration::from_millis(300);
        let mut accounts = super::super::accounts::Accounts::new(Duration::from_secs(600), Some(lockout));
        let mut is_refused = |at| accounts.log_in("u", "x", "peer", Duration::from_millis(at)).is_err();
        assert!([0, 100, 200, 299, 300, 400, 500, 599].into_iter().all(&mut is_refused));
        assert_eq!(accounts.lockouts, 0);
        for at in 700..705 {
            let _ = accounts.log_in("u", "x", "peer", Duration::from_millis(at));
        }
        assert_eq!(accounts.lockouts, 1);
    }

    /// Clients of an untrusted peer count as one, and the server's own admin is no exception.
    #[test]
    fn untrusted_peer_is_locked_out_itself() {
        let address = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
        let stand_in = StandIn::start(&Options { address, ..Options::default() }).unwrap();
        let mut client = Client::new(&stand_in);
        for host in 0..5 {
            assert_eq!(client.get("/_up", ADMIN).status, 200);
            let from = format!("X-Forwarded-For: 192.0.2.{host}\r\n");
            assert_eq!(log_in(&mut client, "admin", "x", &from).status, 401);
        }
        assert_eq!(client.get("/_db_updates?since=now", ADMIN).status, 403);
        assert_eq!(stand_in.lockouts(), 1);
    }

    #[test]
    fn tokens_name_their_user_until_they_expire() {
        let stand_in = start();
        stand_in.add_token("abc", "t", &["_admin"]);
        let mut client = Client::new(&stand_in);
        let token = "Authorization: Bearer abc\r\n";
        assert_eq!(client.get("/_session", token).json()["userCtx"]["name"], "t");
        assert_eq!(client.get("/_db_updates?since=now", token).status, 200);
        assert_eq!(client.get("/_session", "Authorization: Bearer x\r\n").status, 400);
        stand_in.expire_token("abc");
        assert_eq!(client.get("/_session", token).status, 401);
    }
}

mod databases {
    use super::*;

    #[test]
    fn only_members_read() {
        let stand_in = start();
        stand_in.add_user("in", "p", &["r"]);
        stand_in.add_user("out", "p", &[]);
        let mut client = Client::new(&stand_in);
        assert_eq!(client.ask("PUT", "/a%2Fb", ADMIN, "").status, 201);
        assert_eq!(client.ask("PUT", "/a%2Fb", ADMIN, "").status, 412);
        assert_eq!(client.ask("PUT", "/x", "", "").status, 401);
        let security = r#"{"members":{"names":[],"roles":["r"]}}"#;
        let member = "Authorization: Basic aW46cA==\r\n";
        let stranger = "Authorization: Basic b3V0OnA=\r\n";
        assert_eq!(client.get("/a%2Fb/_security", member).status, 403);
        let target = "/a%2Fb/_security";
        assert_eq!(client.ask("PUT", target, ADMIN, security).status, 200);
        for (method, target) in [("HEAD", "/a%2Fb"), ("GET", "/a%2Fb"), ("GET", target)] {
            assert_eq!(client.ask(method, target, member, "").status, 200, "{target}");
            assert_eq!(client.ask(method, target, stranger, "").status, 403);
            assert_eq!(client.ask(method, target, "", "").status, 401);
        }
        assert_eq!(client.get("/none/_security", member).status, 404);
        for name in ["_global_changes", "_dbs"] {
            let target = format!("/{name}/_security");
            assert_eq!(client.get(&target, member).status, 401);
        }
        assert_eq!(client.ask("POST", "/_dbs_info", member, "{}").status, 401);
        stand_in.set_security("a/b", json!({}));
        assert_eq!(client.get(target, stranger).body.trim(), "{}");
        stand_in.fail_access(Some(500));
        assert_eq!(client.get(target, stranger).status, 500);
    }

    #[test]
    fn database_is_created_for_some_or_for_everyone() {
        let stand_in = start();
        stand_in.add_user("u", "p", &[]);
        stand_in.create_database_for("hers", &["she"]);
        stand_in.create_database_for("ours", &[]);
        let mut client = Client::new(&stand_in);
        let user = "Authorization: Basic dTpw\r\n";
        assert_eq!(client.get("/hers/_security", user).status, 403);
        assert_eq!(client.get("/ours/_security", user).status, 200);
        assert_eq!(client.get("/ours/_security", "").status, 200);
    }

    #[test]
    fn writes_increase_revisions_of_event_documents() {
        let stand_in = start();
        let mut client = Client::new(&stand_in);
        client.ask("PUT", "/a", ADMIN, "");
        assert_eq!(client.ask("POST", "/a", ADMIN, "{}").status, 201);
        assert_eq!(client.ask("PUT", "/a/doc", ADMIN, "{}").status, 201);
        assert_eq!(client.ask("PUT", "/a/_local/x", ADMIN, "{}").status, 201);
        assert_eq!(client.ask("PUT", "/a/_local%2Fx", ADMIN, "{}").status, 201);
        assert_eq!(client.ask("PUT", "/none/doc", ADMIN, "{}").status, 404);
        client.ask("PUT", "/a/_security", ADMIN, "{}");
        client.ask("DELETE", "/a", ADMIN, "");
        client.ask("PUT", "/a", ADMIN, "");
        let keys = r#"{"keys":["updated:a","created:a","deleted:a","updated:b","updated:_dbs"]}"#;
        let reply = client.ask("POST", "/_global_changes/_all_docs", ADMIN, keys);
        let rows = reply.json()["rows"].clone();
        let count = |row: usize| {
            let rev = rows[row]["value"]["rev"].as_str().unwrap();
            rev.split('-').next().unwrap().parse::<u32>().unwrap()
        };
        assert_eq!([count(0), count(1), count(2), count(4)], [2, 2, 1, 3]);
        assert_eq!(rows[3], json!({"key": "updated:b", "error": "not_found"}));
    }

    #[test]
    fn paths_start_with_the_prefix() {
        let stand_in = StandIn::start(&Options { path_prefix: "/couch".to_owned(), ..Options::default() }).unwrap();
        assert!(stand_in.url().ends_with("/couch"));
        let mut client = Client::new(&stand_in);
        assert_eq!(client.get("/couch/", "").json()["couchdb"], "Welcome");
        assert_eq!(client.get("/couch/_session", "").status, 200);
        assert_eq!(client.get("/_session", "").status, 404);
        assert_eq!(client.get("/couchy/_session", "").status, 404);
    }

    #[test]
    fn requests_are_recorded_and_odd_ones_rejected() {
        let stand_in = start();
        let mut client = Client::new(&stand_in);
        let chunked = "POST /_session HTTP/1.1\r\nX-A: 1\r\nContent-Type: application/json\r\n\
            Transfer-Encoding: chunked\r\n\r\n3\r\n{\"n\r\n1\r\n\"\r\n0\r\n\r\nGET /%zz/x/y HTTP/1.1\r\n\r\n";
        client.stream.write_all(chunked.as_bytes()).unwrap();
        assert_eq!(client.reply(true).status, 400);
        assert_eq!(client.reply(true).status, 404);
        let seen = stand_in.wait_for_request(SOON, |seen| seen.method == "POST").unwrap();
        assert_eq!(seen.body, b"{\"n\"");
        assert_eq!(seen.header("x-a"), Some("1"));
        assert_eq!(stand_in.requests().len(), 2);
        for odd in ["\0\0\r\n\r\n", "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"] {
            let mut client = Client::new(&stand_in);
            client.stream.write_all(odd.as_bytes()).unwrap();
            assert_eq!(client.reply(true).status, 400);
            assert_eq!(client.rest().0, "");
        }
        for odd in ["*", "//", "/?", "/a//b", "/%2F", "http://x/"] {
            let status = client.get(odd, ADMIN).status;
            assert!((200..500).contains(&status), "{odd}");
        }
    }
}
