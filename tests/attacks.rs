//! Attacks from the network. After each attack the server soon serves another client, has released
//! the memory that the attack took, and has logged no attacker in.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Client, Received, frame};
use crate::support::couchdb::StandIn;
use crate::support::howler::{Howler, static_binary};
use crate::support::http::{Http, Poller, request};
use crate::support::{ADMIN, SOON, couchdb, wait_until};

/// Another client is served within this time.
const SERVED_WITHIN: Duration = Duration::from_secs(2);
/// Memory that may stay in use after an attack, in KiB.
const MAY_STAY: u64 = 2 * 1024;
/// Time after which the server forgets what it keeps for returning clients: positions stay for a
/// minute.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(100);
/// An attacker with an account.
const MALLORY: &str = "mallory";
const MALLORYS_PASSWORD: &str = "zq7-mallory-secret";

/// The server under attack, and its state before.
struct Target {
    couchdb: StandIn,
    howler: Howler,
    resident: u64,
    logins: u64,
}

impl Target {
    fn new(options: &[&str]) -> Self {
        let couchdb = couchdb();
        couchdb.add_user(MALLORY, MALLORYS_PASSWORD, &[]);
        // The static binary, as deployed on the internet: its allocator returns free memory. The
        // metrics are on a port that is not attacked.
        let mut command = Command::new(static_binary());
        command.args(["--couchdb_url", &couchdb.url(), "--admin_port", "0"]).args(options);
        let howler = Howler::launch_command(&mut command);
        assert!(couchdb.wait_for(SOON, |seen| seen.open_feeds > 0), "the feed is not open");
        let mut target = Self { couchdb, howler, resident: 0, logins: 0 };
        // The first clients of each kind take memory for good, which is not part of an attack.
        for _ in 0..3 {
            target.serve();
        }
        target.resident = target.howler.resident_kib();
        target
    }

    fn address(&self) -> SocketAddr {
        self.howler.address()
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(self.address()).expect("the system accepts");
        socket.set_read_timeout(Some(SOON)).expect("a socket option");
        socket.set_write_timeout(Some(SOON)).expect("a socket option");
        socket
    }

    /// Logs a client in, subscribes, and waits for a change; returns how long that took.
    fn serve(&mut self) -> Duration {
        let begun = Instant::now();
        let mut client = Client::subscribed(self.address(), &["served"]);
        self.couchdb.update("served");
        assert_eq!(client.next_change(SOON).as_deref(), Some("served"));
        self.logins += 1;
        begun.elapsed()
    }

    /// Logs the attacker in with its own account, which is allowed.
    fn mallory(&mut self) -> Client {
        let mut client = Client::json(self.address());
        let log_in = json!({"op": "log-in", "username": MALLORY, "password": MALLORYS_PASSWORD});
        assert_eq!(client.ask(log_in)["ok"], true);
        self.logins += 1;
        client
    }

    /// Asserts after an attack that the server serves, has released memory, and has logged no one
    /// else in.
    fn assert_unharmed(&mut self, attack: &str) {
        // The machine is shared, so one quick attempt of several suffices.
        let times: Vec<Duration> = (0..3).map(|_| self.serve()).collect();
        assert!(times.iter().any(|took| *took < SERVED_WITHIN), "{attack}: {times:?}");
        let deadline = Instant::now() + FORGOTTEN_WITHIN;
        while self.howler.resident_kib() > self.resident + MAY_STAY {
            let (now, before) = (self.howler.resident_kib(), self.resident);
            assert!(Instant::now() < deadline, "{attack}: {now} KiB in use, {before} before");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(self.howler.metric("howler_log_ins_total"), self.logins, "{attack}: another client logged in");
        println!(
            "{attack}: served in {} ms, {} KiB more",
            times.iter().min().expect("some").as_millis(),
            self.howler.resident_kib().saturating_sub(self.resident)
        );
    }
}

/// Reads until the server ends the connection.
fn read_all(socket: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = socket.read(&mut bytes) {
        all.extend_from_slice(&bytes[..read]);
    }
    all
}

/// Sends bytes and returns the response. The server may end the connection before it has read all
/// bytes.
fn shout(target: &Target, bytes: &[u8]) -> String {
    let mut socket = target.connect();
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    String::from_utf8_lossy(&read_all(&mut socket)).into_owned()
}

/// Encodes each byte of a text as `%xx`.
fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |escaped, byte| escaped + &format!("%{byte:02x}"))
}

/// Returns pseudorandom bytes, the same in every run.
fn noise(length: usize, seed: &mut u64) -> Vec<u8> {
    let next = |_| {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        seed.to_le_bytes()[3]
    };
    (0..length).map(next).collect()
}

#[test]
fn slow_heads_and_bodies_time_out() {
    const TIMEOUT: Duration = Duration::from_secs(8);
    let timeout = TIMEOUT.as_secs().to_string();
    let mut target = Target::new(&["--request_timeout", &timeout]);
    let begun = Instant::now();
    let head = b"GET /socket.io/?EIO=3&transport=polling HTTP/1.1\r\nHost: a\r\nX-Slow: ";
    let mut heads: Vec<_> = (0..300).map(|_| target.connect()).collect();
    for socket in &mut heads {
        socket.write_all(head).expect("the server reads");
    }
    // One session each: a second post in the same session would be rejected immediately.
    let mut bodies: Vec<_> = (0..300).map(|_| Poller::open(target.address(), 4, "")).collect();
    for poller in &mut bodies {
        let whole = request("POST", &poller.target(), "", &[b'x'; 4_000]);
        poller.posts.send_raw(&whole[..whole.len() - 3_000]);
    }
    // While the bytes trickle in, others are served.
    for byte in b"slow" {
        if begun.elapsed() > TIMEOUT / 2 {
            // Bytes after the end of the connection would destroy the response in flight.
            break;
        }
        for (head, body) in heads.iter_mut().zip(&mut bodies) {
            let _ = head.write_all(&[*byte]);
            let _ = body.posts.wire.write_all(&[*byte]);
        }
        assert!(target.serve() < SOON);
    }
    let received = heads.iter_mut().map(read_all).filter(|answer| answer.starts_with(b"HTTP/1.1 408 ")).count();
    assert_eq!(received, 300, "each client receives a 408");
    for body in &mut bodies {
        assert!(body.posts.receive(SOON).is_none(), "an incomplete body gets no response");
    }
    assert!(target.howler.metric("howler_closes_total{reason=\"request_timeout\"}") >= 600);
    drop((heads, bodies));
    target.assert_unharmed("slow heads and bodies");
}

#[test]
fn random_bytes_are_rejected() {
    let mut target = Target::new(&[]);
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    for length in [1, 2, 3, 5, 16, 100, 1_000, 20_000, 100_000] {
        for _ in 0..20 {
            let answer = shout(&target, &noise(length, &mut seed));
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
    }
    for bytes in [
        &b"\0\0\0\0"[..],
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"*1\r\n$4\r\nPING\r\n",
    ] {
        let answer = shout(&target, bytes);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 "), "{bytes:?}: {answer}");
        assert!(!answer.contains("101 Switching"), "{bytes:?}: {answer}");
    }
    for _ in 0..100 {
        let mut client = Client::json(target.address());
        let _ = client.send_raw(&noise(300, &mut seed));
        drop(client);
    }
    target.assert_unharmed("garbage");
}

#[test]
fn oversized_requests_and_messages_are_rejected() {
    let mut target = Target::new(&[]);
    let status = |bytes: &[u8]| shout(&target, bytes).split(' ').nth(1).map(str::to_owned);
    let get = |path: &str, fields: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes();
    let long = "x".repeat(1_000_000);
    assert_eq!(status(&get(&format!("/{long}"), "")).as_deref(), Some("431"), "a target");
    assert_eq!(status(&get("/", &format!("X: {long}\r\n"))).as_deref(), Some("431"), "a field");
    assert_eq!(status(&get("/", &format!("{long}: x\r\n"))).as_deref(), Some("431"), "the name of a field");
    assert_eq!(status(&get("/", &"X: y\r\n".repeat(65))).as_deref(), Some("431"), "many fields");
    let query = format!("/socket.io/?EIO=3&transport=polling&username={}", "u".repeat(15_000));
    assert_eq!(Http::connect(target.address()).get(&query).status, 200, "a long name is no error");

    let poller = Poller::logged_in(target.address());
    target.logins += 1;
    let post = |fields: &str, body: &[u8]| {
        let head = format!("POST {} HTTP/1.1\r\nHost: a\r\n{fields}\r\n", poller.target());
        shout(&target, &[head.as_bytes(), body].concat()).split(' ').nth(1).map(str::to_owned)
    };
    assert_eq!(post("Content-Length: 99999999999\r\n", b"").as_deref(), Some("413"));
    assert_eq!(post("Content-Length: 99999999999999999999999\r\n", b"").as_deref(), Some("400"));
    let chunked = "Transfer-Encoding: chunked\r\n";
    let chunk = [&b"100001\r\n"[..], &vec![b'x'; 0x10_0001], b"\r\n"].concat();
    assert_eq!(post(chunked, &chunk).as_deref(), Some("413"));
    assert_eq!(post(chunked, b"ffffffffffffffffff\r\n").as_deref(), Some("400"));
    assert_eq!(post(chunked, format!("1;{long}\r\nx").as_bytes()).as_deref(), Some("400"));

    let closes = |target: &mut Target, bytes: &[u8]| {
        let mut client = target.mallory();
        let _ = client.send_raw(bytes);
        match client.receive_close(SOON).1 {
            Received::Close(code, _) => Some(code),
            _ => None,
        }
    };
    let huge = [&[0x81, 0xff][..], &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0; 4]].concat();
    assert_eq!(closes(&mut target, &huge), Some(1009), "a length of 2^63 - 1 bytes");
    let negative = [&[0x81, 0xff][..], &[0xff; 8], &[0; 4]].concat();
    assert!(matches!(closes(&mut target, &negative), Some(1002 | 1009)));
    assert!(matches!(closes(&mut target, &frame(0x81, &vec![b'x'; 1_048_577])), Some(1009) | None));
    assert_eq!(closes(&mut target, &frame(0x89, &[b'p'; 126])), Some(1002), "a long ping");
    let mut client = target.mallory();
    let too_long = "n".repeat(300);
    assert_eq!(client.ask(json!({"op": "subscribe", "dbs": [too_long]}))["error"], "LimitError");
    let mut many = target.mallory();
    let names: Vec<String> = (0..10_001).map(|number| format!("{number}")).collect();
    let refused = names.chunks(4_000).map(|part| many.ask(json!({"op": "subscribe", "dbs": part})));
    assert_eq!(refused.last().expect("three")["error"], "LimitError");
    let mut deep = target.mallory();
    for text in [format!("{}1{}", "[".repeat(30_000), "]".repeat(30_000)), "{\"a\":".repeat(10_000)] {
        deep.send(&text);
        assert_eq!(deep.receive_json(SOON).expect("an answer")["error"], "TypeError");
    }
    drop((client, many, deep, poller));
    target.assert_unharmed("oversize everything");
}

#[test]
fn ambiguous_requests_are_rejected() {
    let mut target = Target::new(&[]);
    let poller = Poller::logged_in(target.address());
    target.logins += 1;
    let path = poller.target();
    let inner = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for fields in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Content-Length: 4\r\nContent-Length: 40\r\n",
        "Content-Length: 4\r\nContent-Length: 4\r\n",
        "Content-Length: 4, 4\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x4\r\n",
        "Content-Length: 4 4\r\n",
        "Content-Length:\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Content-Length:\r\n 4\r\n",
        "X: a\r\n Content-Length: 4\r\n",
        "Content-Length : 4\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: 4\rX: y\r\n",
        "Host: b\r\n",
    ] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n0\r\n\r\n{inner}");
        let answer = shout(&target, head.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 "), "{fields:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{fields:?}: the bytes behind it are read: {answer}");
        assert!(answer.contains("Connection: close"), "{fields:?}: {answer}");
    }
    // Chunk sizes that two readers may read differently.
    for body in
        ["0x5\r\nhello\r\n0\r\n\r\n", "+5\r\nhello\r\n0\r\n\r\n", "5 \nhello\r\n0\r\n\r\n", "5\nhello\n0\n\n", "-1\r\n"]
    {
        let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}{inner}");
        let answer = shout(&target, head.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 ") && !answer.contains("404"), "{body:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{body:?}: {answer}");
    }
    drop(poller);
    target.assert_unharmed("smuggling shapes");
}

#[test]
fn floods_of_frames_and_pings_close_the_connection() {
    let mut target = Target::new(&[]);
    for (opcode, payload) in
        [(0x81, &b"{\"op\":\"heartbeat\"}"[..]), (0x81, b""), (0x89, &[b'p'; 125]), (0x8a, b""), (0x01, b"")]
    {
        let mut one = frame(opcode, payload);
        if opcode == 0x01 {
            one.extend(frame(0x00, b"").repeat(1_000));
        }
        let flood = one.repeat(if opcode == 0x01 { 1 } else { 3_000 });
        let mut clients: Vec<_> = (0..10).map(|_| target.mallory()).collect();
        for client in &mut clients {
            for part in flood.chunks(16 * 1024) {
                if client.send_raw(part).is_err() {
                    break;
                }
            }
            if opcode == 0x01 {
                let _ = client.send_raw(&frame(0x00, b"").repeat(3_000));
            }
        }
        for client in &mut clients {
            let end = client.receive_close(SOON).1;
            assert!(matches!(end, Received::Close(1008, _) | Received::End), "{opcode:x}: {end:?}");
        }
    }
    assert!(target.howler.metric("howler_closes_total{reason=\"too_many_messages\"}") >= 40);
    target.assert_unharmed("floods of frames and pings");
}

#[test]
fn floods_of_subscriptions_close_the_connection() {
    let mut target = Target::new(&[]);
    let mut clients: Vec<_> = (0..5).map(|_| target.mallory()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        // Consecutive rejections close the connection, and the last ones follow the replies to all
        // allowed subscriptions.
        for round in 0..200 {
            let names: Vec<_> = (0..500).map(|name| format!("flood-{number}-{round}-{name}")).collect();
            let message = json!({"op": "subscribe", "dbs": names}).to_string();
            if client.send_raw(&frame(0x81, message.as_bytes())).is_err() {
                break;
            }
        }
    }
    for client in &mut clients {
        let end = client.receive_close(SOON).1;
        assert!(matches!(end, Received::Close(1008, _) | Received::End), "{end:?}");
    }
    drop(clients);
    // Clients that subscribe to as many databases as they may, and leave.
    for _ in 0..5 {
        let mut client = target.mallory();
        for round in 0..20 {
            let names: Vec<_> = (0..500).map(|name| format!("coming-and-going-{round}-{name}")).collect();
            assert_eq!(client.ask(json!({"op": "subscribe", "dbs": names}))["ok"], true);
        }
    }
    target.assert_unharmed("floods of subscriptions");
}

#[test]
fn ten_thousand_short_connections_leave_no_memory_in_use() {
    let mut target = Target::new(&[]);
    for number in 0..10_000 {
        let mut socket = target.connect();
        match number % 4 {
            0 => {}
            1 => drop(socket.write_all(b"GET /howler HTTP/1.1\r\nHost")),
            2 => drop(socket.shutdown(Shutdown::Write)),
            _ => drop(socket.write_all(b"GET /howler HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")),
        }
    }
    target.assert_unharmed("10,000 short connections");
    assert!(target.howler.metric("howler_connections_accepted_total") >= 10_000);
}

#[test]
fn unmasked_and_reserved_frames_close_the_connection() {
    let mut target = Target::new(&[]);
    let masked = |first: u8| frame(first, b"{}");
    let mut broken: Vec<Vec<u8>> = vec![
        b"\x81\x02{}".to_vec(),
        b"\x81\x00".to_vec(),
        masked(0x80),
        frame(0x09, b"x"),
        frame(0x08, b""),
        [masked(0x01), masked(0x81)].concat(),
        [&[0x81, 0xfe, 0x00, 0x02][..], &[0; 6]].concat(),
        frame(0x88, b"\x03"),
        frame(0x88, b"\x03\xed"),
        frame(0x88, b"\x00\x00"),
    ];
    broken.extend((0x83..=0x87).chain(0x8b..=0x8f).map(masked));
    broken.extend([0xc1, 0xa1, 0x91, 0xf1, 0x41, 0xc9].map(masked));
    for bytes in &broken {
        for logged_in in [false, true] {
            let mut client = if logged_in { target.mallory() } else { Client::json(target.address()) };
            let _ = client.send_raw(bytes);
            let (_, end) = client.receive_close(SOON);
            assert!(matches!(end, Received::Close(1002, _)), "{bytes:x?}: {end:?}");
        }
    }
    target.assert_unharmed("unmasked and reserved frames");
}

#[test]
fn invalid_utf8_closes_the_connection_at_every_split() {
    let mut target = Target::new(&[]);
    let bad: [&[u8]; 8] =
        [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x92", b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\x80"];
    for bytes in bad {
        let text = [b"{\"op\":\"heartbeat\",\"x\":\"", bytes, b"\"}"].concat();
        for at in 0..=text.len() {
            let mut client = Client::json(target.address());
            let _ = client.send_raw(&[frame(0x01, &text[..at]), frame(0x80, &text[at..])].concat());
            assert!(matches!(client.receive_close(SOON).1, Received::Close(1007, _)), "{bytes:x?} at {at}");
        }
        for at in 0..text.len() {
            let mut client = Client::json(target.address());
            let whole = frame(0x81, &text);
            let _ = client.send_raw(&whole[..at]);
            let _ = client.send_raw(&whole[at..]);
            assert!(matches!(client.receive_close(SOON).1, Received::Close(1007, _)), "{bytes:x?} at {at}");
        }
    }
    target.assert_unharmed("invalid UTF-8 at every split");
}

#[test]
fn floods_of_wrong_logins_do_not_block_others() {
    let mut target = Target::new(&[]);
    target.couchdb.set_login_delay(Duration::from_millis(20));
    let forged = |number: usize| match number % 4 {
        0 => json!({"op": "log-in", "username": "victim", "password": format!("zq7-guess-{number}")}),
        1 => json!({"op": "log-in", "username": format!("user-{number}"), "password": "zq7-guess"}),
        2 => json!({"op": "log-in", "cookie": format!("AuthSession=Zm9yZ2Vk{number}")}),
        _ => json!({"op": "log-in", "token": format!("eyJhbGciOiJub25lIn0.e30.{number}")}),
    };
    let mut clients: Vec<_> = (0..500).map(|_| Client::json(target.address())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.request(forged(number));
    }
    for client in &mut clients {
        let (texts, _) = client.receive_close(SOON);
        assert!(texts.iter().all(|text| !text.contains("\"ok\":true")), "{texts:?}");
    }
    drop(clients);
    target.couchdb.set_login_delay(Duration::ZERO);
    // The client that is served afterwards has the address of the attacker. It logs in with a
    // cookie, which wrong passwords cannot block.
    let mut flood: Vec<_> = (0..200).map(|_| Client::json(target.address())).collect();
    for (number, client) in flood.iter_mut().enumerate() {
        client.request(forged(4 * number + 2));
    }
    drop(flood);
    target.assert_unharmed("floods of logins");
}

#[test]
fn forged_cookies_do_not_log_in() {
    // The server's URL has the credentials of an admin, which must not replace an invalid cookie.
    let mut target = Target::new(&[]);
    let hex = "bXl1c2VyOjVGMDAwMDAwOgAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let cookies = [
        String::new(),
        "AuthSession=".to_owned(),
        "AuthSession=\"\"".to_owned(),
        format!("AuthSession={hex}"),
        format!("AuthSession={hex}; AuthSession={hex}"),
        format!("AuthSession={hex}\r\nAuthorization: Basic YWRtaW46YWRtaW4="),
        format!("AuthSession={hex}\nX: y"),
        "AuthSession=YWRtaW46NUYwMDAwMDA6".to_owned(),
        "authsession=x".to_owned(),
        "other=x".to_owned(),
        ADMIN.to_owned(),
    ];
    for cookie in &cookies {
        let mut client = Client::json(target.address());
        client.request(json!({"op": "log-in", "cookie": cookie}));
        let (texts, end) = client.receive_close(SOON);
        assert!(texts.iter().all(|text| text.contains("error") && !text.contains("\"ok\"")), "{cookie:?}: {texts:?}");
        assert!(matches!(end, Received::Close(4401 | 1008, _)) || !texts.is_empty(), "{cookie:?}: {end:?}");
        let escaped = escape(cookie);
        for version in [3, 4] {
            let query = format!("/socket.io/?EIO={version}&transport=websocket&cookie={escaped}");
            let mut client = Client::open(target.address(), &query);
            if version == 4 {
                client.send("40");
            }
            let (texts, _) = client.receive_close(SOON);
            assert!(texts.iter().all(|text| !text.contains("\"authenticated\"")), "{cookie:?}: {texts:?}");
        }
        let mut http = Http::connect(target.address());
        let fields = "Cookie: AuthSession=x\r\nAuthorization: Basic YWRtaW46YWRtaW4=\r\n";
        assert_eq!(http.ask("GET", "/socket.io/?EIO=3&transport=polling", fields, b"").status, 200);
    }
    for request in target.couchdb.requests() {
        let is_login = request.target.starts_with("/_session");
        let names_admin = request
            .headers
            .iter()
            .any(|(name, value)| name.eq_ignore_ascii_case("authorization") && value.starts_with("Basic "));
        assert!(!is_login || !names_admin, "a login request has the admin's credentials");
    }
    target.assert_unharmed("forged cookies");
}

/// Writes bytes repeatedly until the server stops reading, closes, or has read 16 MiB.
fn pour(socket: &mut TcpStream, bytes: &[u8]) {
    socket.set_write_timeout(Some(Duration::from_millis(200))).expect("a socket option");
    let mut left = 16 * 1024 * 1024;
    while left > 0 {
        match socket.write(bytes) {
            Ok(written @ 1..) => left -= written.min(left),
            _ => return,
        }
    }
}

#[test]
fn pipelined_handshakes_and_polls_take_limited_memory() {
    let mut target = Target::new(&[]);
    let handshakes = b"GET /socket.io/?EIO=4&transport=polling HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1_000);
    let mut sockets: Vec<_> = (0..20).map(|_| target.connect()).collect();
    for socket in &mut sockets {
        pour(socket, &handshakes);
    }
    let poller = Poller::open(target.address(), 4, "");
    let polls = request("GET", &poller.target(), "", b"").repeat(1_000);
    let mut parked: Vec<_> = (0..5).map(|_| target.connect()).collect();
    for socket in &mut parked {
        pour(socket, &polls);
    }
    let grown = target.howler.resident_kib().saturating_sub(target.resident);
    assert!(grown < 25 * 1024, "{grown} KiB for 25 connections");
    assert!(target.serve() < SERVED_WITHIN);
    drop((sockets, parked, poller));
    target.assert_unharmed("pipelined handshakes and polls");
}

#[test]
fn unauthenticated_clients_take_limited_memory() {
    let mut target = Target::new(&["--max_unauthenticated_memory", "4"]);
    target.couchdb.set_login_delay(Duration::from_secs(3));
    // During a login the server accepts the longest messages.
    let mut clients: Vec<_> = (0..60)
        .map(|number| {
            let credentials = format!("username=stranger-{number}&password=zq7-none");
            Client::socket_io(target.address(), &credentials)
        })
        .collect();
    let partial = frame(0x81, &vec![b'x'; 1_000_000]);
    for client in &mut clients {
        let _ = client.send_raw(&partial[..500_000]);
    }
    // These clients have not begun to log in.
    let mut strangers: Vec<_> = (0..200).map(|_| Client::json(target.address())).collect();
    for stranger in &mut strangers {
        let _ = stranger.send_raw(&partial[..60_000]);
    }
    let mut pollers: Vec<_> = (0..50).map(|_| Poller::open(target.address(), 4, "")).collect();
    for poller in &mut pollers {
        let _ = poller.post(vec![b'x'; 60_000]);
    }
    wait_until("the largest clients are evicted", || {
        target.howler.metric("howler_unauthenticated_bytes") <= 4 * 1024 * 1024
    });
    assert!(target.howler.metric("howler_closes_total{reason=\"made_way\"}") > 0);
    target.couchdb.set_login_delay(Duration::ZERO);
    drop((clients, strangers, pollers));
    target.assert_unharmed("clients that take memory without a login");
}
