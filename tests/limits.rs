//! The limits of one client, of one address and of the whole server, each with its option, its
//! counter and the effect of exceeding it. Other clients are not affected.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Client, Received, frame};
use crate::support::couchdb::StandIn;
use crate::support::howler::{BINARY, Howler};
use crate::support::http::{Http, Poller, join, request};
use crate::support::{A_MOMENT, PASSWORD, SOON, USER, couchdb, wait_until};

/// Asserts that another client can log in and is notified of changes.
fn assert_serves(howler: &Howler, couchdb: &StandIn) {
    let mut client = Client::subscribed(howler.address(), &["served"]);
    couchdb.update("served");
    assert_eq!(client.next_change(SOON).as_deref(), Some("served"));
}

/// Starts a server with limits. The admin port serves its counters, so that reading them uses none
/// of the limited connections.
fn start(couchdb: &StandIn, options: &[&str]) -> Howler {
    Howler::start_with(couchdb, &[options, &["--admin_port", "0"]].concat())
}

/// Asserts that the server closes this number of connections for a reason. Waits for the last of
/// them to be counted.
fn assert_counted(howler: &Howler, reason: &str, count: u64) {
    assert_metric(howler, &format!("howler_closes_total{{reason=\"{reason}\"}}"), count);
}

fn assert_metric(howler: &Howler, name: &str, value: u64) {
    wait_until(&format!("{name} is {value}"), || howler.metric(name) >= value);
    assert_eq!(howler.metric(name), value, "{name}");
}

fn assert_closed(client: &mut Client, code: u16, reason: &str) {
    let (_, close) = client.receive_close(SOON);
    assert_eq!(close, Received::Close(code, reason.into()));
}

/// Opens a WebSocket of a client that a proxy reports at an address.
fn from(howler: &Howler, address: &str) -> Result<Client, String> {
    Client::try_open(howler.address(), "/howler", &format!("X-Forwarded-For: {address}\r\n"))
}

/// Waits until a client is accepted. The server notices closed connections with a delay.
fn open_soon(open: impl Fn() -> Result<Client, String>) -> Client {
    let deadline = Instant::now() + SOON;
    loop {
        match open() {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

#[test]
fn connections_beyond_the_total_limit_are_rejected() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_connections", "3"]);
    let mut clients: Vec<_> = (0..3).map(|_| Client::subscribed(howler.address(), &["db"])).collect();
    for _ in 0..5 {
        let refused = Client::try_open(howler.address(), "/howler", "").err().expect("the connection is rejected");
        assert!(!refused.contains("HTTP") || refused.starts_with("HTTP/1.1 503 "), "{refused}");
    }
    howler.assert_logged("is rejected: too many connections", 1);
    assert_counted(&howler, "too_many_connections", 5);
    couchdb.update("db");
    for client in &mut clients {
        assert_eq!(client.next_change(SOON).as_deref(), Some("db"), "connected clients are not affected");
    }
    clients.pop();
    open_soon(|| Client::try_open(howler.address(), "/howler", ""));
}

#[test]
fn unauthenticated_clients_are_evicted_at_the_connection_limit() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_connections", "4"]);
    let mut user = Client::subscribed(howler.address(), &["db"]);
    let mut half = Http::connect(howler.address());
    half.send_raw("GET / HTTP/1.1\r\n");
    let mut idle = Client::json(howler.address());
    let mut other = Client::json(howler.address());
    let mut first = Client::logged_in(howler.address());
    assert!(half.receive(SOON).is_none_or(|answer| answer.status == 503), "the oldest is evicted first");
    let mut second = Client::logged_in(howler.address());
    assert_closed(&mut idle, 1013, "evicted for newer clients without a login");
    assert_eq!(other.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}))["ok"], true);
    assert!(Client::try_open(howler.address(), "/howler", "").is_err(), "there is no client left to evict");
    assert_counted(&howler, "made_way", 2);
    assert_counted(&howler, "too_many_connections", 1);
    couchdb.update("db");
    assert_eq!(user.next_change(SOON).as_deref(), Some("db"));
    for client in [&mut first, &mut second, &mut other] {
        assert_eq!(client.ask(json!({"op": "heartbeat"}))["ok"], true);
    }
}

#[test]
fn connections_beyond_the_limit_of_an_address_are_rejected() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_connections_per_address", "2"]);
    let clients: Vec<_> = (0..2).map(|_| Client::logged_in(howler.address())).collect();
    let refused = Client::try_open(howler.address(), "/howler", "").err().expect("the connection is rejected");
    assert!(!refused.contains("HTTP") || refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert_counted(&howler, "too_many_of_address", 1);
    drop(clients);
    open_soon(|| Client::try_open(howler.address(), "/howler", ""));
}

#[test]
fn limit_of_an_address_applies_to_clients_behind_a_proxy() {
    let couchdb = couchdb();
    let options = ["--max_connections_per_address", "2", "--trusted_proxies", "127.0.0.1"];
    let howler = start(&couchdb, &options);
    let clients: Vec<_> = (0..2).map(|_| from(&howler, "10.0.0.1").expect("the connection is accepted")).collect();
    let refused = from(&howler, "10.0.0.1").err().expect("the connection is rejected");
    assert!(refused.starts_with("HTTP/1.1 429 ") && refused.contains("too many connections"), "{refused}");
    assert!(refused.ends_with(".\n"), "{refused}");
    let _others: Vec<_> =
        (2..9).map(|last| from(&howler, &format!("10.0.0.{last}")).expect("the connection is accepted")).collect();
    let _six = [
        from(&howler, "2001:db8::1").expect("the connection is accepted"),
        from(&howler, "2001:db8::2").expect("the connection is accepted"),
    ];
    assert!(from(&howler, "2001:db8::3").is_err(), "an IPv6 network counts as one client");
    assert_counted(&howler, "too_many_of_address", 2);
    // One connection of the proxy carries requests of many clients.
    let mut shared = Http::connect(howler.address());
    for last in 2..20 {
        let fields = format!("X-Forwarded-For: 10.0.1.{last}\r\n");
        assert_eq!(shared.ask("GET", "/", &fields, b"").status, 200);
    }
    drop(clients);
    open_soon(|| from(&howler, "10.0.0.1"));
}

#[test]
fn unauthenticated_clients_beyond_the_limit_are_evicted() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_newcomers", "4"]);
    let mut user = Client::subscribed(howler.address(), &["db"]);
    let mut unauthenticated: Vec<_> = (0..10).map(|_| Client::json(howler.address())).collect();
    for early in &mut unauthenticated[..6] {
        assert_closed(early, 1013, "evicted for newer clients without a login");
    }
    assert_counted(&howler, "made_way", 6);
    for late in &mut unauthenticated[6..] {
        assert_eq!(late.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}))["ok"], true);
    }
    // Incomplete heads and polling sessions count, too.
    let mut half = Http::connect(howler.address());
    half.send_raw("GET /howler HTTP/1.1\r\n");
    let mut polling = Poller::open(howler.address(), 4, "");
    let _more: Vec<_> = (0..10).map(|_| Client::json(howler.address())).collect();
    let answer = half.receive(SOON).expect("a reply arrives");
    assert_eq!(answer.status, 503, "{answer:?}");
    polling.start_poll();
    let answer = polling.polls.receive(SOON);
    assert!(answer.is_none_or(|answer| answer.status != 200), "the session is evicted");
    couchdb.update("db");
    assert_eq!(user.next_change(SOON).as_deref(), Some("db"));
}

#[test]
fn clients_without_a_login_in_time_are_closed() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--login_timeout", "1"]);
    let begun = Instant::now();
    let mut client = Client::json(howler.address());
    assert_closed(&mut client, 4408, "no login in time");
    assert!((Duration::from_millis(900)..Duration::from_secs(9)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let mut fourth = Client::open(howler.address(), "/socket.io/?EIO=4&transport=websocket");
    assert_closed(&mut fourth, 4408, "no login in time");
    assert_counted(&howler, "log_in_timeout", 2);
    assert_serves(&howler, &couchdb);
}

#[test]
fn large_or_slow_requests_are_rejected() {
    let couchdb = couchdb();
    let options = ["--max_head", "1024", "--max_post", "2048", "--request_timeout", "1"];
    let howler = start(&couchdb, &options);
    let ask = |bytes: &str| {
        let mut http = Http::connect(howler.address());
        http.send_raw(bytes);
        let answer = http.receive(SOON).expect("a reply arrives");
        assert!(http.ends(), "{answer:?}");
        answer.status
    };
    let head = |length: usize| {
        let start = "GET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: ";
        format!("{start}{}\r\n\r\n", "y".repeat(length - start.len() - 4))
    };
    assert_eq!((ask(&head(1024)), ask(&head(1025)), ask(&head(9000))), (404, 431, 431));
    assert_eq!(ask(&head(9000)[..3000]), 431, "the rest is not awaited");
    let begun = Instant::now();
    assert_eq!(ask("GET /nothing HT"), 408);
    assert!(begun.elapsed() < Duration::from_secs(9), "{:?}", begun.elapsed());
    assert_counted(&howler, "head_too_large", 3);
    assert_counted(&howler, "request_timeout", 1);

    let open = Http::connect(howler.address()).get("/socket.io/?EIO=4&transport=polling");
    assert!(open.text().contains("\"maxPayload\":2048"), "{open:?}");
    let poller = Poller::logged_in(howler.address());
    let post = |length: usize, sent: usize| {
        let mut http = Http::connect(howler.address());
        let bytes = request("POST", &poller.target(), "", &vec![b'x'; length]);
        http.send_raw(&bytes[..bytes.len() - length + sent]);
        http.receive(SOON).map(|answer| answer.status)
    };
    assert_eq!(post(2049, 0), Some(413), "the declared length is too large");
    assert_eq!(post(2048, 100), None, "the rest does not come in time");
    let mut chunked = Http::connect(howler.address());
    let fields = "Transfer-Encoding: chunked\r\n";
    chunked.send_raw(format!("POST {} HTTP/1.1\r\nHost: a\r\n{fields}\r\n900\r\n", poller.target()));
    chunked.send_raw(vec![b'x'; 0x900]);
    assert_eq!(chunked.answer().status, 413);
    assert_counted(&howler, "body_too_large", 2);
    // A head, a body, and a connection of the poller without any request.
    assert_counted(&howler, "request_timeout", 3);
    assert_serves(&howler, &couchdb);
}

#[test]
fn large_messages_close_the_connection() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_message", "2048"]);
    let mut client = Client::logged_in(howler.address());
    let padded = |length: usize| {
        let start = "{\"op\":\"heartbeat\",\"id\":1,\"pad\":\"";
        format!("{start}{}\"}}", "x".repeat(length - start.len() - 2))
    };
    client.send(&padded(2048));
    assert_eq!(client.receive_json(SOON), Some(json!({"id": 1, "ok": true})));
    client.send(&padded(2049));
    assert_closed(&mut client, 1009, "message too big");
    let mut parts = Client::logged_in(howler.address());
    parts.send_raw(&frame(0x01, &[b'x'; 1500])).expect("the server reads");
    parts.send_raw(&frame(0x80, &[b'x'; 1500])).expect("the server reads");
    assert_closed(&mut parts, 1009, "message too big");
    assert_counted(&howler, "message_too_big", 2);
    assert_serves(&howler, &couchdb);
}

#[test]
fn message_floods_close_the_session() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_message_rate", "2"]);
    let reason = "too many messages a second";
    let mut burst = Client::logged_in(howler.address());
    for _ in 0..35 {
        assert_eq!(burst.ask(json!({"op": "heartbeat"}))["ok"], true, "a burst is allowed");
    }
    let flood = |opcode: u8, payload: &[u8]| {
        let mut client = Client::logged_in(howler.address());
        for _ in 0..60 {
            if client.send_raw(&frame(opcode, payload)).is_err() {
                break;
            }
        }
        assert_closed(&mut client, 1008, reason);
    };
    flood(0x81, b"{\"op\":\"heartbeat\"}");
    flood(0x89, b"ping");
    flood(0x8a, b"pong");
    let mut fragments = Client::logged_in(howler.address());
    let _ = fragments.send_raw(&frame(0x01, b"x"));
    for _ in 0..60 {
        let _ = fragments.send_raw(&frame(0x00, b""));
    }
    assert_closed(&mut fragments, 1008, reason);
    let mut poller = Poller::logged_in(howler.address());
    poller.send(&["42[\"heartbeat\"]"; 20]);
    assert!(poller.is_known());
    let version = 3;
    poller.post(join(&["42[\"heartbeat\"]"; 30], version));
    assert!(!poller.is_known(), "the session is closed");
    assert_counted(&howler, "too_many_messages", 5);
    assert_eq!(burst.ask(json!({"op": "heartbeat"}))["ok"], true);
    assert_serves(&howler, &couchdb);
}

#[test]
fn subscriptions_and_name_lengths_are_limited() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_subscriptions", "3", "--max_name", "8"]);
    let mut client = Client::logged_in(howler.address());
    let subscribe = |client: &mut Client, names: &[&str]| client.ask(json!({"op": "subscribe", "dbs": names}));
    assert_eq!(subscribe(&mut client, &["a", "b", "12345678"])["ok"], true);
    let answer = subscribe(&mut client, &["a", "c"]);
    assert_eq!(answer["error"], "LimitError", "{answer}");
    assert_eq!(answer["message"], "a client may have 3 subscriptions and no more");
    assert_eq!(subscribe(&mut client, &["a", "b"])["ok"], true, "existing subscriptions may be repeated");
    let answer = subscribe(&mut client, &["123456789"]);
    assert_eq!(answer["message"], "a database name is longer than 8 bytes", "{answer}");
    couchdb.update("b");
    assert_eq!(client.next_change(SOON).as_deref(), Some("b"));
    for _ in 0..14 {
        assert_eq!(subscribe(&mut client, &["d"])["error"], "LimitError");
    }
    client.request(json!({"op": "subscribe", "dbs": ["d"]}));
    assert_closed(&mut client, 1008, "too many subscriptions");
    let mut socket_io = Client::socket_io_logged_in(howler.address());
    socket_io.send("427[\"subscribe\",[\"a\",\"b\",\"c\",\"d\"]]");
    let ack = socket_io.receive_text(SOON).expect("a reply arrives");
    assert!(ack.starts_with("437[") && ack.contains("LimitError"), "{ack}");
    assert_counted(&howler, "too_many_subscriptions", 1);
    assert_metric(&howler, "howler_subscriptions_refused_total", 18);
    assert_serves(&howler, &couchdb);
}

#[test]
fn too_many_unanswered_requests_close_the_connection() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_requests", "3"]);
    let mut client = Client::logged_in(howler.address());
    couchdb.set_lookup_delay(Duration::from_secs(3));
    for number in 0..4 {
        client.request(json!({"op": "subscribe", "dbs": [format!("slow-{number}")]}));
    }
    assert_closed(&mut client, 1008, "too many requests at once");
    assert_counted(&howler, "too_many_requests", 1);
    couchdb.set_lookup_delay(Duration::ZERO);
    couchdb.set_login_delay(Duration::from_secs(3));
    let mut early = Client::json(howler.address());
    early.request(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
    for _ in 0..4 {
        early.request(json!({"op": "heartbeat"}));
    }
    assert_closed(&mut early, 1008, "too many messages wait for an answer");
    assert_counted(&howler, "too_much_held", 1);
    couchdb.set_login_delay(Duration::ZERO);
    assert_serves(&howler, &couchdb);
}

#[test]
fn logins_beyond_the_queue_are_rejected() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--login_queue", "2", "--login_concurrency", "1"]);
    couchdb.set_login_delay(Duration::from_millis(700));
    let mut clients: Vec<_> = (0..4).map(|_| Client::json(howler.address())).collect();
    let log_in = json!({"op": "log-in", "cookie": "AuthSession=bXl1c2VyOjVFOnh4eA"});
    clients[0].request(log_in.clone());
    assert!(couchdb.wait_for(SOON, |seen| seen.session_requests > 0), "CouchDB receives a login");
    // One login runs, two wait, and the last one is rejected at once.
    for client in &mut clients[1..] {
        client.request(log_in.clone());
    }
    let answers: Vec<_> = clients.iter_mut().map(|client| client.answer(1)).collect();
    let (overloaded, others): (Vec<_>, Vec<_>) =
        answers.iter().partition(|answer| answer["error"] == "ServiceUnavailableError");
    assert_eq!((overloaded.len(), others.len()), (1, 3), "{answers:?}");
    assert!(overloaded[0]["retry_after_ms"].as_u64().is_some_and(|wait| wait >= 5_000), "{overloaded:?}");
    assert_metric(&howler, "howler_log_ins_overloaded_total", 1);
    // Clients that leave free their places.
    drop(clients);
    couchdb.set_login_delay(Duration::ZERO);
    assert_serves(&howler, &couchdb);
}

fn limited(descriptors: u32, couchdb: &StandIn, options: &[&str]) -> Howler {
    let script = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &script, BINARY, "--couchdb_url", &couchdb.url()]).args(options);
    Howler::launch_command(&mut command)
}

fn connect_many(address: SocketAddr, count: usize) -> Vec<std::net::TcpStream> {
    (0..count).map(|_| std::net::TcpStream::connect(address).expect("the kernel accepts the connection")).collect()
}

#[test]
fn descriptor_limit_is_logged_and_respected() {
    let couchdb = couchdb();
    let howler = limited(300, &couchdb, &["--max_connections", "5000"]);
    howler.assert_logged("--max_connections is 5000, but 300 descriptors (RLIMIT_NOFILE) suffice for 91 clients", 1);
    let _idle = connect_many(howler.address(), 400);
    assert_serves(&howler, &couchdb);
    assert_eq!(howler.count_lines("No more clients can be accepted"), 0);
    let roomy = limited(1000, &couchdb, &[]);
    roomy.assert_logged("1000 descriptors (RLIMIT_NOFILE) suffice for 791 clients", 1);
}

#[test]
fn soft_descriptor_limit_is_raised() {
    let couchdb = couchdb();
    let script = "ulimit -S -n 100; exec \"$0\" \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, BINARY, "--couchdb_url", &couchdb.url()]);
    let howler = Howler::launch_command(&mut command);
    howler.wait_for_line("descriptors (RLIMIT_NOFILE) suffice for");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", howler.id())).expect("Linux reports the limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("the limit is listed");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[3], words[4], "soft and hard: {line}");
}

#[test]
fn accepting_pauses_when_descriptors_run_out() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    let mut user = Client::subscribed(howler.address(), &["db"]);
    let set = |limit: usize| {
        let id = howler.id().to_string();
        let set = Command::new("prlimit").args(["--pid", &id, &format!("--nofile={limit}:")]).status();
        assert!(set.expect("prlimit runs").success());
    };
    set(howler.descriptors());
    let _waiting = std::net::TcpStream::connect(howler.address()).expect("the kernel accepts the connection");
    howler.wait_for_line("No more clients can be accepted for the moment");
    couchdb.update("db");
    assert_eq!(user.next_change(SOON).as_deref(), Some("db"), "connected clients are not affected");
    set(1_000);
    assert_serves(&howler, &couchdb);
    assert!(howler.count_lines("No more clients can be accepted") < 100, "the accept loop does not spin");
    assert!((1..100).contains(&howler.metric("howler_accept_pauses_total")), "each pause is counted");
    assert_eq!(user.next_event(A_MOMENT), None);
}

#[test]
fn rejected_client_that_keeps_sending_is_cut() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    let garbage = b"\x00".repeat(64 * 1024);
    for first in ["\x00", "GET /howler HTTP/1.1\r\n\r\n", "BREW / HTTP/9.9\r\n\r\n"] {
        let mut socket = std::net::TcpStream::connect(howler.address()).expect("the kernel accepts the connection");
        socket.set_write_timeout(Some(SOON)).expect("the socket is open");
        socket.write_all(first.as_bytes()).expect("the server reads");
        let sent = std::iter::from_fn(|| socket.write(&garbage).ok()).take(1_000).sum::<usize>();
        // Socket buffers hold more bytes than the server reads.
        assert!(sent < 32 * 1024 * 1024, "{first:?}: {sent} bytes were taken");
    }
    assert_metric(&howler, "howler_connections_cut_total", 3);
    assert_serves(&howler, &couchdb);
}

#[test]
fn forwarded_addresses_of_untrusted_proxies_are_logged_once() {
    const WARNING: &str = "127.0.0.1 is not in --trusted_proxies: all clients behind that address count as one";
    let couchdb = couchdb();
    for options in [&[][..], &["--trusted_proxies", "10.0.0.0/8"]] {
        let howler = start(&couchdb, options);
        assert_serves(&howler, &couchdb);
        assert_eq!(howler.count_logged("X-Forwarded-For"), 0);
        for last in 1..6 {
            drop(from(&howler, &format!("192.0.2.{last}")).expect("the client is accepted"));
        }
        howler.assert_logged(WARNING, 1);
    }
    let trusting = start(&couchdb, &["--trusted_proxies", "127.0.0.1"]);
    drop(from(&trusting, "192.0.2.1").expect("the client is accepted"));
    assert_serves(&trusting, &couchdb);
    assert_eq!(trusting.count_logged("X-Forwarded-For"), 0);
}

#[test]
fn long_epochs_and_positions_take_no_memory() {
    const REQUESTS: usize = 250;
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    let mut client = Client::logged_in(howler.address());
    let before = howler.resident_kib();
    couchdb.set_lookup_delay(Duration::from_secs(3));
    let long = "9".repeat(30_000);
    for number in 0..REQUESTS {
        let name = format!("db-{number}");
        client.request(json!({"op": "subscribe", "dbs": {name: long}, "epoch": long}));
    }
    assert!(couchdb.wait_for(SOON, |seen| seen.lookup_requests > 0), "positions are looked up");
    client.send_raw(&frame(0x89, b"read")).expect("the server reads");
    while client.receive(SOON) != Received::Pong(b"read".to_vec()) {}
    let held = howler.resident_kib().saturating_sub(before);
    assert!(held < 4 * 1024, "{held} KiB are held");
    couchdb.set_lookup_delay(Duration::ZERO);
    for _ in 0..REQUESTS {
        let answer = client.receive_json(SOON).expect("a reply arrives");
        let names: Vec<&String> = answer["dbs"].as_object().expect("the reply has positions").keys().collect();
        assert_eq!(answer["changed"], json!(names), "a position that is too long counts as changed: {answer}");
    }
}

/// Returns pipelined handshakes of polling sessions.
fn handshakes(fields: &str) -> Vec<u8> {
    request("GET", "/socket.io/?EIO=4&transport=polling", fields, b"").repeat(500)
}

/// Writes the bytes repeatedly until the server stops reading or closes, up to `most` bytes.
fn pour(socket: &mut std::net::TcpStream, bytes: &[u8], most: usize) {
    socket.set_write_timeout(Some(A_MOMENT)).expect("the socket is open");
    let mut written = 0;
    while let (true, Ok(more @ 1..)) = (written < most, socket.write(bytes)) {
        written += more;
    }
}

#[test]
fn pipelined_requests_take_little_memory() {
    const EACH: u64 = 1024;
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    assert_serves(&howler, &couchdb);
    let mut user = Client::subscribed(howler.address(), &["db"]);
    let poller = Poller::logged_in(howler.address());
    let polls = request("GET", &poller.target(), "", b"").repeat(500);
    let post = request("POST", &poller.target(), "", b"1:2").repeat(500);
    let inputs = [handshakes(""), polls.clone(), [&polls[..polls.len() / 500], &post].concat()];
    let before = howler.resident_kib();
    let mut sockets = connect_many(howler.address(), 12);
    for (number, socket) in sockets.iter_mut().enumerate() {
        // The poll is parked, so the requests pipelined after it wait.
        pour(socket, &inputs[number % 3], 16 * 1024 * 1024);
    }
    let held = howler.resident_kib().saturating_sub(before);
    assert!(held < 12 * EACH, "{held} KiB are held for 12 connections");
    couchdb.update("db");
    assert_eq!(user.next_change(SOON).as_deref(), Some("db"));
    assert_serves(&howler, &couchdb);
}

#[test]
fn flood_of_one_address_does_not_evict_clients_of_others() {
    let couchdb = couchdb();
    let howler =
        start(&couchdb, &["--max_newcomers", "60", "--trusted_proxies", "127.0.0.1", "--login_timeout", "120"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stopped = || stop.load(std::sync::atomic::Ordering::Acquire);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..8 {
            scope.spawn(|| {
                let bytes = handshakes("X-Forwarded-For: 192.0.2.1\r\n");
                while !stopped() {
                    let Ok(mut socket) = std::net::TcpStream::connect(howler.address()) else { continue };
                    pour(&mut socket, &bytes, 256 * 1024);
                    // The attack uses many sessions, not many connections.
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
        wait_until("there are evictions", || howler.metric("howler_closes_total{reason=\"made_way\"}") >= 100);
        let mut clients: Vec<_> = (0..12)
            .map(|number| {
                let mut client = from(&howler, &format!("198.51.100.{number}")).expect("the client is accepted");
                assert_eq!(client.receive_json(SOON).expect("hello arrives")["event"], "hello");
                client
            })
            .collect();
        let evicted = howler.metric("howler_closes_total{reason=\"made_way\"}");
        wait_until("there are more evictions", || {
            howler.metric("howler_closes_total{reason=\"made_way\"}") >= evicted + 500
        });
        for client in &mut clients {
            let answer = client.ask(json!({"op": "log-in", "username": USER, "password": PASSWORD}));
            assert_eq!(answer["ok"], true, "{answer}");
        }
    });
}

/// Stops threads, even when an assertion fails.
struct StopOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Release);
    }
}

#[test]
fn unauthenticated_sessions_of_a_connection_are_limited() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    let mut http = Http::connect(howler.address());
    let handshake = "/socket.io/?EIO=4&transport=polling";
    for _ in 0..8 {
        assert_eq!(http.get(handshake).status, 200);
    }
    let rejected = http.get(handshake);
    assert_eq!((rejected.status, rejected.field("Retry-After")), (429, Some("5")), "{rejected:?}");
    assert!(http.ends());
    assert_counted(&howler, "too_many_sessions", 1);
    assert_eq!(Http::connect(howler.address()).get(handshake).status, 200, "another connection is served");
    // Logged-in sessions do not count.
    let mut http = Http::connect(howler.address());
    for number in 0..20 {
        let open = http.get(&format!("/socket.io/?EIO=3&transport=polling&username={USER}&password={PASSWORD}"));
        assert_eq!(open.status, 200, "{number}");
        let sid = open
            .field("Set-Cookie")
            .and_then(|cookie| cookie.strip_prefix("io=")?.split(';').next())
            .expect("the reply has a session id");
        let answer = http.get(&format!("/socket.io/?EIO=3&transport=polling&sid={sid}"));
        assert!(answer.text().contains("authenticated"), "{answer:?}");
    }
    assert_counted(&howler, "too_many_sessions", 1);
    assert_serves(&howler, &couchdb);
}

#[test]
fn polling_sessions_of_an_address_are_limited() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_connections_per_address", "3"]);
    let mut http = Http::connect(howler.address());
    let handshake = "/socket.io/?EIO=4&transport=polling";
    let open = http.get(handshake);
    assert_eq!((open.status, http.get(handshake).status), (200, 200));
    let rejected = http.get(handshake);
    assert_eq!((rejected.status, rejected.field("Retry-After")), (429, Some("5")), "{rejected:?}");
    assert_counted(&howler, "too_many_of_address", 1);
    let refused = Client::try_open(howler.address(), "/howler", "").err().expect("the connection is rejected");
    assert!(!refused.contains("HTTP") || refused.starts_with("HTTP/1.1 429 "), "{refused}");
    let sid = open.text().split('"').nth(3).expect("the reply has a session id").to_owned();
    assert_eq!(http.post(&format!("{handshake}&sid={sid}"), "1").status, 200, "the session ends");
    assert_eq!(http.get(handshake).status, 200);
    // Behind a trusted proxy the client's own address counts.
    let howler = start(&couchdb, &["--max_connections_per_address", "3", "--trusted_proxies", "127.0.0.1"]);
    let mut http = Http::connect(howler.address());
    for last in 0..30 {
        let fields = format!("X-Forwarded-For: 192.0.2.{last}\r\n");
        assert_eq!(http.ask("GET", handshake, &fields, b"").status, 200);
    }
    let fields = "X-Forwarded-For: 192.0.2.29\r\n";
    let answers: Vec<u16> = (0..2).map(|_| http.ask("GET", handshake, fields, b"").status).collect();
    assert_eq!(answers, [200, 429], "the address is limited, not the proxy's connection");
    assert_eq!(http.ask("GET", handshake, "X-Forwarded-For: 192.0.2.77\r\n", b"").status, 200);
}

#[test]
fn messages_before_the_login_are_limited() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    let padded = |start: &str, length: usize| format!("{start}{}", "x".repeat(length - start.len()));
    let mut client = Client::json(howler.address());
    client.send(&padded("{", 4096));
    assert_eq!(client.receive_json(SOON).expect("a reply arrives")["error"], "TypeError");
    client.send(&padded("{", 4097));
    assert_closed(&mut client, 1009, "message too big");
    let mut parts = Client::json(howler.address());
    parts.send_raw(&frame(0x01, &[b'x'; 4000])).expect("the server reads");
    parts.send_raw(&frame(0x00, &[b'x'; 97])).expect("the server reads");
    assert_closed(&mut parts, 1009, "message too big");
    let mut fourth = Client::open(howler.address(), "/socket.io/?EIO=4&transport=websocket");
    fourth.receive_text(SOON).expect("the open packet arrives");
    fourth.send_raw(&frame(0x81, &vec![b'x'; 60_000])[..20]).expect("the server reads");
    assert_closed(&mut fourth, 1009, "message too big");
    let mut poller = Poller::open(howler.address(), 4, "");
    assert_eq!(poller.post(padded("44", 4097)).status, 413);
    assert!(poller.is_known(), "the session continues");
    assert_counted(&howler, "message_too_big", 3);
    assert_counted(&howler, "body_too_large", 1);
    let mut user = Client::logged_in(howler.address());
    let heartbeat = |length: usize| {
        let start = "{\"op\":\"heartbeat\",\"id\":1,\"pad\":\"";
        format!("{}\"}}", padded(start, length - 2))
    };
    user.send(&heartbeat(1024 * 1024));
    assert_eq!(user.receive_json(SOON), Some(json!({"id": 1, "ok": true})));
    // The head of the frame is enough: the server closes the connection before the rest arrives.
    user.send_raw(&frame(0x81, heartbeat(1024 * 1024 + 1).as_bytes())[..20]).expect("the server reads");
    assert_closed(&mut user, 1009, "message too big");
}

#[test]
fn long_subscription_during_a_login_is_accepted() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    couchdb.set_login_delay(Duration::from_secs(1));
    let names: Vec<String> = (0..1_500).map(|number| format!("db-{number:050}")).collect();
    let subscribe = format!("421[\"subscribe\",{}]", json!(names));
    assert!(subscribe.len() > 80_000);
    let mut client = Client::socket_io(howler.address(), &format!("username={USER}&password={PASSWORD}"));
    client.send(&subscribe);
    let ack = std::iter::from_fn(|| client.receive_text(SOON)).find(|text| text.starts_with("431"));
    assert_eq!(ack.as_deref(), Some("431[{}]"));
    let mut poller = Poller::open(howler.address(), 3, &format!("username={USER}&password={PASSWORD}"));
    poller.send(&[&subscribe]);
    while poller.next() != "431[{}]" {}
    let mut fourth = Client::open(howler.address(), "/socket.io/?EIO=4&transport=websocket");
    fourth.send(&format!("40{{\"username\":\"{USER}\",\"password\":\"{PASSWORD}\"}}"));
    fourth.send(&subscribe);
    let ack = std::iter::from_fn(|| fourth.receive_text(SOON)).find(|text| text.starts_with("431"));
    assert_eq!(ack.as_deref(), Some("431[{}]"));
    couchdb.update(&names[1_499]);
    let change = client.receive_text(SOON).expect("a change arrives");
    assert!(change.contains(&names[1_499]), "{change}");
}

#[test]
fn long_credentials_are_rejected_without_asking_couchdb() {
    const MESSAGE: &str = "A user name, password, cookie or token may have 1024 bytes and no more.";
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    let long = |length: usize| "p".repeat(length);
    for (length, error) in [(1024, "NotAuthenticatedError"), (1025, "LimitError")] {
        for log_in in [
            json!({"op": "log-in", "username": USER, "password": long(length)}),
            json!({"op": "log-in", "username": long(length), "password": "x"}),
            json!({"op": "log-in", "token": long(length)}),
            json!({"op": "log-in", "cookie": format!("AuthSession={}", long(length))}),
        ] {
            let mut client = Client::json(howler.address());
            let asked = couchdb.counters().session_requests;
            let answer = client.ask(log_in);
            assert_eq!(answer["error"], error, "{answer}");
            assert_eq!(answer["message"] == MESSAGE, error == "LimitError", "{answer}");
            assert_closed(&mut client, 4401, "not authenticated");
            assert!(error != "LimitError" || couchdb.counters().session_requests == asked, "CouchDB receives no login");
        }
    }
    for query in [format!("username={USER}&password={}", long(1025)), format!("token={}", long(15_000))] {
        let mut client = Client::socket_io(howler.address(), &query);
        let (texts, _) = client.receive_close(SOON);
        let refusal = texts.iter().find(|text| text.starts_with("42[\"not-authenticated\"")).expect("a reply arrives");
        assert!(refusal.contains("LimitError") && refusal.contains(MESSAGE), "{refusal}");
    }
    assert_serves(&howler, &couchdb);
}

#[test]
fn memory_of_unauthenticated_clients_is_limited() {
    const MIB: u64 = 1024 * 1024;
    let couchdb = couchdb();
    let howler = start(&couchdb, &["--max_unauthenticated_memory", "1"]);
    couchdb.set_login_delay(Duration::from_secs(5));
    let partial = frame(0x81, &vec![b'x'; 100_000]);
    let mut clients: Vec<_> = (0..40)
        .map(|number| {
            let mut client = Client::socket_io(howler.address(), &format!("username=user-{number}&password=zq7-none"));
            let _ = client.send_raw(&partial[..64_000]);
            client
        })
        .collect();
    let (_, close) = clients[0].receive_close(SOON);
    assert_eq!(
        close,
        Received::Close(1013, "evicted for newer clients without a login".into()),
        "the oldest is evicted first"
    );
    let deadline = Instant::now() + SOON;
    while howler.metric("howler_unauthenticated_bytes") > MIB {
        assert!(Instant::now() < deadline, "timeout waiting for the memory to shrink below the limit");
    }
    assert!(howler.metric("howler_closes_total{reason=\"made_way\"}") >= 20);
    couchdb.set_login_delay(Duration::ZERO);
    drop(clients);
    // CouchDB still processes the logins of closed connections.
    let deadline = Instant::now() + SOON;
    let log_in = json!({"op": "log-in", "username": USER, "password": PASSWORD});
    while Client::json(howler.address()).ask(log_in.clone())["ok"] != true {
        assert!(Instant::now() < deadline, "timeout waiting for other logins to succeed");
    }
    assert_serves(&howler, &couchdb);
}

#[test]
fn unauthenticated_polling_session_takes_little_memory() {
    let couchdb = couchdb();
    let howler = start(&couchdb, &[]);
    let connect = format!("40/{}", "n".repeat(900));
    let mut pollers: Vec<_> = (0..10).map(|number| Poller::open(howler.address(), 3 + number % 2, "")).collect();
    for (number, poller) in pollers.iter_mut().enumerate() {
        let payload = join(&[&*connect; 4], if number % 2 == 0 { 3 } else { 4 });
        let posts = (0..20).take_while(|_| poller.post(&payload).status == 200).count();
        assert!(posts < 5, "{posts} posts accepted without polling for replies");
    }
    assert!(howler.metric("howler_unauthenticated_bytes") < 10 * 8 * 1024);
    assert_serves(&howler, &couchdb);
}

#[test]
fn subscriptions_of_a_user_are_limited() {
    const MESSAGE: &str = "a user may have 5 subscriptions over all sessions and no more";
    let couchdb = couchdb();
    couchdb.add_user("other", PASSWORD, &[]);
    let howler = start(&couchdb, &["--max_subscriptions_per_user", "5"]);
    let subscribe = |client: &mut Client, names: &[&str]| client.ask(json!({"op": "subscribe", "dbs": names}));
    let mut first = Client::logged_in(howler.address());
    let mut second = Client::logged_in(howler.address());
    assert_eq!(subscribe(&mut first, &["a", "b", "c"])["ok"], true);
    assert_eq!(subscribe(&mut second, &["a", "b"])["ok"], true);
    let answer = subscribe(&mut second, &["d"]);
    assert_eq!((&answer["error"], &answer["message"]), (&json!("LimitError"), &json!(MESSAGE)));
    assert_eq!(subscribe(&mut second, &["a", "b"])["ok"], true, "existing subscriptions may be repeated");
    assert_eq!(first.ask(json!({"op": "unsubscribe", "dbs": ["c"]}))["ok"], true);
    assert_eq!(subscribe(&mut second, &["d"])["ok"], true);
    assert_eq!(subscribe(&mut first, &["e"])["error"], "LimitError");
    let mut other = Client::json(howler.address());
    assert_eq!(other.ask(json!({"op": "log-in", "username": "other", "password": PASSWORD}))["ok"], true);
    assert_eq!(subscribe(&mut other, &["a", "b", "c", "d", "e"])["ok"], true, "another user has its own limit");
    drop(second);
    let deadline = Instant::now() + SOON;
    while subscribe(&mut first, &["e", "f", "g"])["ok"] != true {
        assert!(Instant::now() < deadline, "timeout waiting for the end of a session to free its subscriptions");
        // Stays below the message rate of a client.
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(howler.metric("howler_subscriptions_refused_total") >= 2);
    assert_serves(&start(&couchdb, &["--max_subscriptions_per_user", "0"]), &couchdb);
}

#[test]
fn memory_limit_rejects_clients_and_keeps_connected_ones() {
    let couchdb = couchdb();
    let small = start(&couchdb, &["--max_memory", "1"]);
    let deadline = Instant::now() + SOON;
    let rejected = loop {
        match Client::try_open(small.address(), "/howler", "") {
            Err(rejected) if rejected.starts_with("HTTP/1.1 503 ") => break rejected,
            _ => assert!(Instant::now() < deadline, "timeout waiting for a rejected connection"),
        }
    };
    assert!(rejected.contains("Retry-After: ") && rejected.contains("too much memory in use"), "{rejected}");
    assert_eq!(small.metric("howler_memory_full"), 1);
    small.assert_logged("More memory is used than --max_memory", 1);
    drop(small);

    let mebibytes = start(&couchdb, &[]).resident_kib() / 1024;
    let howler = start(&couchdb, &["--max_memory", &(mebibytes + 12).to_string()]);
    let mut user = Client::subscribed(howler.address(), &["db"]);
    let mut holders: Vec<_> = (0..40).map(|_| Client::logged_in(howler.address())).collect();
    let mut idle = Client::json(howler.address());
    let mut late = Client::json(howler.address());
    let partial = frame(0x81, &vec![b'x'; 1_000_000]);
    for holder in &mut holders {
        let _ = holder.send_raw(&partial[..900_000]);
    }
    let deadline = Instant::now() + SOON;
    while howler.metric("howler_memory_full") != 1 {
        assert!(Instant::now() < deadline, "timeout waiting for the memory limit");
        late.request(json!({"op": "heartbeat"}));
    }
    assert_closed(&mut idle, 1013, "evicted for newer clients without a login");
    let answer = user.ask(json!({"op": "subscribe", "dbs": ["more"]}));
    assert_eq!(answer["error"], "ServiceUnavailableError", "{answer}");
    assert!(answer["retry_after_ms"].as_u64().is_some_and(|wait| wait >= 5_000), "{answer}");
    assert!(Client::try_open(howler.address(), "/howler", "").is_err(), "new connections are rejected");
    couchdb.update("db");
    assert_eq!(user.next_change(SOON).as_deref(), Some("db"), "connected clients are served");
    assert_eq!(user.ask(json!({"op": "unsubscribe", "dbs": ["db"]}))["ok"], true);
    assert!(howler.metric("howler_memory_rejections_total") >= 2);
}
