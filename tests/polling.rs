//! Engine.IO 3 over HTTP long polling, request by request, and the upgrade to a WebSocket.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::support::client::{Client, Received, frame};
use crate::support::howler::Howler;
use crate::support::http::{Http, Poller, join, request, split};
use crate::support::tls::{Authority, Identity};
use crate::support::wire::Target;
use crate::support::{A_MOMENT, PASSWORD, SOON, USER, couchdb, wait_until};

/// Least time between an event and the packet before it. Tests measure from before they request
/// that packet, because the time at which they read it proves nothing about the server.
const DISTANCE: Duration = Duration::from_millis(25);

fn handshake() -> String {
    format!("/socket.io/?username={USER}&password={PASSWORD}&EIO=3&transport=polling&t=Q89igtO&b64=1")
}

fn change(name: &str) -> String {
    format!("42[\"change\",\"{name}\"]")
}

#[test]
fn a_session_follows_the_recorded_exchange() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for round in 0..5 {
        let mut polls = Http::connect(howler.address());
        // Measured from before the server wrote the 40: the time at which the test reads it proves
        // nothing about the server.
        let connected = Instant::now();
        let answer = polls.get(&handshake());
        assert_eq!((answer.status, answer.field("Content-Type")), (200, Some("text/plain; charset=UTF-8")));
        let text = answer.text();
        let (length, rest) = text.split_once(':').unwrap();
        let (open, rest) = rest.split_at(length.parse().unwrap());
        let sid = open.strip_prefix("0{\"sid\":\"").and_then(|rest| rest.split('"').next()).unwrap();
        let expected =
            format!(r#"0{{"sid":"{sid}","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":5000}}"#);
        assert_eq!((open, rest), (&*expected, "2:40"), "the event is never in the response with the 40");
        assert_eq!(answer.field("Set-Cookie"), Some(&*format!("io={sid}; Path=/; HttpOnly; SameSite=Lax")));

        let target = format!("/socket.io/?EIO=3&transport=polling&t=Q89igtP&b64=1&sid={sid}");
        let answer = polls.get(&target);
        assert!(connected.elapsed() >= DISTANCE, "round {round}: {:?}", connected.elapsed());
        assert_eq!(answer.field("Set-Cookie"), Some(&*format!("io={sid}; Path=/; HttpOnly; SameSite=Lax")));
        let packets = split(answer.text(), 3);
        assert!(packets.len() == 1 && packets[0].starts_with("42[\"authenticated\",{\"cookie\":\"AuthSession="));

        let mut posts = Http::connect(howler.address());
        let answer = posts.post(&target, "26:420[\"subscribe\",[\"a\",\"b\"]]");
        assert_eq!((answer.status, answer.field("Content-Type"), answer.text()), (200, Some("text/html"), "ok"));
        assert!(answer.field("Set-Cookie").is_some());
        assert_eq!(polls.get(&target).text(), "7:430[{}]");
        polls.send("GET", &target, "", b"");
        assert!(polls.is_silent(Duration::from_millis(50)), "the poll is parked");
        couchdb.update("b");
        assert_eq!(polls.answer().text(), "16:42[\"change\",\"b\"]");
        assert_eq!(posts.post(&target, "1:2").text(), "ok");
        assert_eq!(polls.get(&target).text(), "1:3");
        assert_eq!(posts.post(&target, "6:2probe").text(), "ok");
        assert_eq!(polls.get(&target).text(), "6:3probe");
    }
}

#[test]
fn a_refused_login_arrives_in_polls_that_are_apart_in_time() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let began = Instant::now();
    let mut poller = Poller::open(howler.address(), 3, "username=nobody&password=zq7-no");
    assert_eq!(poller.packets.len(), 2);
    let refusal = poller.poll();
    assert!(refusal.len() == 1 && refusal[0].starts_with("42[\"not-authenticated\",{\"error\":true"), "{refusal:?}");
    assert!(began.elapsed() >= DISTANCE);
    // However late the client polls, the next response holds only the disconnect.
    assert_eq!(poller.poll(), ["41"]);
    assert!(began.elapsed() >= 2 * DISTANCE);
    assert_eq!(poller.poll(), ["1"], "the transport is closed after the disconnect");
    assert!(!poller.is_known());
}

#[test]
fn log_out_is_acknowledged_with_the_disconnect() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::subscribed(howler.address(), &["db"]);
    poller.start_poll();
    poller.send(&[r#"425["log-out",null]"#]);
    couchdb.update("db");
    assert_eq!(poller.finish_poll(), ["435[{}]", "41"]);
    assert_eq!(poller.poll(), ["1"]);
    assert!(!poller.is_known());
    // The client ends the session.
    for end in ["1", "41"] {
        let mut poller = Poller::subscribed(howler.address(), &["db"]);
        poller.start_poll();
        poller.send(&[end]);
        if end == "1" {
            assert_eq!(poller.finish_poll(), ["1"]);
            assert!(!poller.is_known());
        } else {
            couchdb.update("db");
            assert!(poller.polls.is_silent(A_MOMENT), "no change after the disconnect");
        }
    }
}

#[test]
fn lengths_count_utf_16_units() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let names = ["grün", "smile\u{1f600}", "plain"];
    let mut poller = Poller::logged_in(howler.address());
    // Several packets in one post, in order.
    let subscribe = r#"421["subscribe",["grün","smile😀"]]"#;
    let body = format!("{}:{subscribe}", subscribe.chars().count() + 1);
    let body = body + r#"16:422["heartbeat"]26:423["subscribe",["plain"]]"#;
    assert_eq!(poller.post(&body).status, 200, "{body}");
    assert_eq!(poller.poll(), ["431[{}]", r#"432[{"ok":true}]"#, "433[{}]"]);
    for name in names {
        poller.start_poll();
        couchdb.update(name);
        let expected = change(name);
        assert_eq!(poller.polls.answer().text(), format!("{}:{expected}", expected.encode_utf16().count()));
    }
}

#[test]
fn binary_framing_is_decoded() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::logged_in(howler.address());
    let target = poller.target();
    let octets = "Content-Type: application/octet-stream\r\n";
    let mut body = b"\x00\x02\x06\xff421[\"subscribe\",[\"db\xc3\xbc\"]]".to_vec();
    body[2] = u8::try_from(body.len() - 4 - 20).unwrap();
    body.extend(b"\x00\x01\x06\xff422[\"heartbeat\"]\x00\x01\xff2");
    let answer = poller.posts.ask("POST", &target, octets, &body);
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    assert_eq!(poller.poll(), ["431[{}]", r#"432[{"ok":true}]"#, "3"]);
    couchdb.update("dbü");
    assert_eq!(poller.poll(), [change("dbü")]);
    // Text framing in a binary body is an error, and so is a binary packet.
    for broken in [&b"1:2"[..], b"\x01\x02\xff\x04\x01", b"\x00\x01\xff2\x01\x02\xff\x04\x01", b"\x00\x02\xff2", b""] {
        let mut poller = Poller::logged_in(howler.address());
        let target = poller.target();
        poller.start_poll();
        let answer = poller.posts.ask("POST", &target, octets, broken);
        assert_eq!((answer.status, answer.refusal()), (400, Some(3)), "{broken:?}");
        assert_eq!(poller.finish_poll(), ["1"]);
        assert!(!poller.is_known());
    }
}

#[test]
fn a_post_that_cannot_be_decoded_closes_the_session() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for broken in [
        &b""[..],
        b"abc",
        b"2",
        b"1:",
        b"3:ab",
        b"1:22",
        b"1:2x",
        b"0:",
        b"10:b4AAAA",
        b"7:bAQIDBA",
        b"1:\xff",
        b"1:7",
        b"1:2\x1e2",
        "2:4\u{1f600}".as_bytes(),
    ] {
        let mut poller = Poller::open(howler.address(), 3, "username=nobody");
        poller.start_poll();
        let answer = poller.post(broken);
        assert_eq!((answer.status, answer.refusal()), (400, Some(3)), "{broken:?}");
        assert_eq!(answer.field("Access-Control-Allow-Origin"), Some("*"));
        assert_eq!(poller.finish_poll(), ["1"], "{broken:?}");
        assert!(!poller.is_known());
    }
    // A well-formed payload with a malformed packet: the server accepts it, then closes the
    // session.
    let mut poller = Poller::logged_in(howler.address());
    poller.start_poll();
    poller.send(&["42{}"]);
    assert_eq!(poller.finish_poll(), ["1"]);
}

#[test]
fn bodies_are_limited_and_may_be_chunked() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--max_post", "65536"]);
    let mut poller = Poller::logged_in(howler.address());
    let target = poller.target();
    let longest = "x".repeat(64 * 1024 - "65528:42[\"\"]".len());
    let longest = join(&[&format!("42[\"{longest}\"]")], 3);
    assert_eq!(longest.len(), 64 * 1024);
    assert_eq!(poller.post(&longest).status, 200);
    assert_eq!(poller.post(longest.clone() + "1:2").status, 413);
    assert!(poller.posts.ends(), "the server ignores what follows such a body");

    let chunked = "Transfer-Encoding: chunked\r\n";
    let head = format!("POST {target} HTTP/1.1\r\nHost: a\r\n{chunked}\r\n");
    let mut posts = Http::connect(howler.address());
    for part in [&*head, "1", "\r\n1\r\n2;x=", "y\r\n:2\r\n", "0\r\n", "X: y\r\n\r"] {
        posts.send_raw(part);
        assert!(posts.is_silent(Duration::from_millis(10)));
    }
    posts.send_raw("\n");
    assert_eq!(posts.answer().text(), "ok");
    assert_eq!(poller.poll(), ["3"]);
    posts.send_raw(head.clone() + "10001\r\n" + &"x".repeat(0x10001));
    assert_eq!(posts.answer().status, 413);
    assert!(posts.ends());
    assert!(poller.is_known(), "the session continues");
    let mut posts = Http::connect(howler.address());
    posts.send_raw(head + "x\r\n");
    assert_eq!(posts.answer().refusal(), Some(3));
    assert!(posts.ends() && !poller.is_known(), "a broken body cannot be decoded");
}

#[test]
fn two_concurrent_polls_or_posts_close_the_session() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::logged_in(howler.address());
    poller.start_poll();
    assert!(poller.polls.is_silent(Duration::from_millis(50)));
    let answer = Http::connect(howler.address()).get(&poller.target());
    assert_eq!((answer.status, answer.refusal()), (400, Some(3)));
    assert_eq!(poller.polls.answer().text(), "1:1");
    assert!(!poller.is_known());

    let mut poller = Poller::logged_in(howler.address());
    poller.start_poll();
    let post = request("POST", &poller.target(), "", b"1:2");
    let (first, last) = post.split_at(post.len() - 1);
    poller.posts.send_raw(first);
    assert!(poller.posts.is_silent(Duration::from_millis(50)));
    let mut second = Http::connect(howler.address());
    let answer = second.post(&poller.target(), "1:2");
    assert_eq!((answer.status, answer.refusal()), (400, Some(3)));
    assert!(second.ends());
    assert_eq!(poller.polls.answer().text(), "1:1");
    poller.posts.send_raw(last);
    assert_eq!(poller.posts.answer().refusal(), Some(1), "the session has ended");
    assert!(!poller.is_known());
}

#[test]
fn rejected_requests_have_the_codes_of_engine_io() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let _json = Client::logged_in(howler.address());
    let mut live = Poller::logged_in(howler.address());
    let mut ended = Poller::logged_in(howler.address());
    ended.send(&["1"]);
    let sid = &live.sid;
    // The first bytes of a sid locate the session; the rest cannot be guessed.
    let mut forged = vec![sid_with(sid, |bytes| bytes[19] ^= 1), sid_with(sid, |bytes| bytes[8] ^= 1)];
    forged.push(sid_with(sid, |bytes| bytes[3] ^= 1));
    // A session of the other dialect has no id, not even one without random bytes.
    forged.extend((0..8).map(|index| {
        sid_with(sid, |bytes| {
            bytes[3] = index;
            bytes[8..].fill(0);
        })
    }));
    let mut connection = Http::connect(howler.address());
    let mut expect = |method: &str, query: &str, body: &str| {
        let answer = connection.ask(method, &format!("/socket.io/?{query}"), "", b"");
        assert_eq!((answer.status, answer.text()), (400, body), "{method} {query}");
        assert_eq!(answer.field("Content-Type"), Some("application/json"));
        assert_eq!(answer.field("Access-Control-Allow-Origin"), Some("*"));
        if answer.field("Connection") == Some("close") {
            connection = Http::connect(howler.address());
        }
    };
    for transport in ["", "EIO=3", "EIO=3&transport=", "transport=constructor", "transport=flashsocket&EIO=4"] {
        expect("GET", transport, r#"{"code":0,"message":"Transport unknown"}"#);
    }
    let unknown = r#"{"code":1,"message":"Session ID unknown"}"#;
    for sid in [&*ended.sid, "", "x", "GfpBe6QCXluYghFXAAAE"].into_iter().chain(forged.iter().map(|sid| &**sid)) {
        expect("GET", &format!("EIO=3&transport=polling&sid={sid}"), unknown);
        expect("POST", &format!("EIO=3&transport=polling&sid={sid}"), unknown);
    }
    for method in ["POST", "PUT", "DELETE"] {
        expect(method, "EIO=3&transport=polling", r#"{"code":2,"message":"Bad handshake method"}"#);
    }
    let bad = r#"{"code":3,"message":"Bad request"}"#;
    expect("GET", "EIO=3&transport=websocket", bad);
    expect("GET", &format!("EIO=3&transport=websocket&sid={sid}"), bad);
    expect("PUT", &format!("EIO=3&transport=polling&sid={sid}"), bad);
    for version in ["5", "2", "", "x", "03"] {
        let body = r#"{"code":5,"message":"Unsupported protocol version"}"#;
        expect("GET", &format!("EIO={version}&transport=polling"), body);
    }
    live.send(&["2"]);
    assert_eq!(live.next(), "3", "none of these affected the session");
}

/// Returns an id with some of its bytes changed.
fn sid_with(sid: &str, change: impl Fn(&mut [u8])) -> String {
    let mut bytes = data_encoding::BASE64URL_NOPAD.decode(sid.as_bytes()).expect("ids are base64");
    change(&mut bytes);
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}

#[test]
fn only_socket_io_paths_and_known_methods_are_served() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut connection = Http::connect(howler.address());
    let bare = connection.get(&handshake().replace("/?", "?"));
    assert!(bare.status == 200 && bare.text().ends_with("2:40"), "the slash is optional");
    assert_eq!(connection.get("/socket.io/?transport=polling").status, 200, "EIO defaults to 3");
    for path in ["/nothing", "/socket.io/x?transport=polling", "/socket.iox", "/engine.io/?EIO=3&transport=polling"] {
        let answer = connection.get(path);
        assert_eq!((answer.status, answer.field("Access-Control-Allow-Origin")), (404, Some("*")), "{path}");
    }
    let mut poller = Poller::logged_in(howler.address());
    poller.start_poll();
    for target in [&*poller.target(), "/socket.io/?transport=polling", "/nothing"] {
        let answer = connection.ask("HEAD", target, "", b"");
        assert!(answer.status >= 400 && answer.body.is_empty(), "{target}: {answer:?}");
    }
    assert!(connection.is_silent(Duration::from_millis(20)), "no body follows");
    poller.send(&["2"]);
    assert_eq!(poller.finish_poll(), ["3"]);
}

#[test]
fn connections_are_kept_or_closed_as_requested() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::logged_in(howler.address());
    let target = poller.target();
    let mut one = Http::connect(howler.address());
    for _ in 0..3 {
        let answer = one.post(&target, "1:2");
        assert_eq!((answer.text(), answer.field("Connection")), ("ok", Some("keep-alive")));
        assert_eq!(one.get(&target).text(), "1:3");
    }
    let answer = one.ask("POST", &target, "Connection: close\r\n", b"1:2");
    assert_eq!((answer.text(), answer.field("Connection")), ("ok", Some("close")));
    assert!(one.ends());
    let mut parked = Http::connect(howler.address());
    assert_eq!(poller.next(), "3");
    parked.send("GET", &target, "Connection: close\r\n", b"");
    assert!(parked.is_silent(Duration::from_millis(20)));
    poller.send(&["2"]);
    assert_eq!(parked.answer().text(), "1:3");
    assert!(parked.ends());
    // HTTP/1.0 closes the connection unless the client asks to keep it.
    for (field, kept) in [("", false), ("Connection: keep-alive\r\n", true)] {
        let mut old = Http::connect(howler.address());
        old.send_raw(format!("POST {target} HTTP/1.0\r\n{field}Content-Length: 3\r\n\r\n1:2"));
        assert_eq!(old.answer().text(), "ok");
        if kept {
            old.send_raw(format!("GET {target} HTTP/1.0\r\n\r\n"));
            assert_eq!(old.answer().text(), "1:3");
        } else {
            assert!(old.ends());
            assert_eq!(poller.next(), "3");
            continue;
        }
        assert!(old.ends());
    }
}

#[test]
fn requests_may_be_pipelined() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::subscribed(howler.address(), &["db"]);
    let (get, post) = (request("GET", &poller.target(), "", b""), request("POST", &poller.target(), "", b"1:2"));
    let mut one = Http::connect(howler.address());
    // Two posts in one write, and split in two at any byte.
    let twice = [&*post, &*post].concat();
    for at in (0..twice.len()).step_by(7) {
        one.send_raw(&twice[..at]);
        one.send_raw(&twice[at..]);
        assert_eq!((one.answer().text(), one.answer().text()), ("ok", "ok"), "{at}");
        let packets = [poller.next(), poller.next()];
        assert_eq!(packets, ["3", "3"]);
    }
    // A post behind a poll waits for the response to the poll; the server answers it directly after
    // that.
    one.send_raw([&*get, &*post].concat());
    assert!(one.is_silent(Duration::from_millis(50)));
    couchdb.update("db");
    assert_eq!(one.answer().text(), format!("{}:{}", change("db").len(), change("db")));
    assert_eq!(one.answer().text(), "ok");
    assert_eq!(poller.next(), "3");
    // The post arrives in parts while the poll is parked, with another poll behind it.
    one.send_raw(&get);
    assert!(one.is_silent(Duration::from_millis(20)));
    let (start, end) = post.split_at(post.len() / 2);
    one.send_raw(start);
    assert!(one.is_silent(Duration::from_millis(20)));
    couchdb.update("db");
    assert_eq!(one.answer().text(), format!("{}:{}", change("db").len(), change("db")));
    one.send_raw([end, &*get].concat());
    assert_eq!(one.answer().text(), "ok");
    assert_eq!(one.answer().text(), "1:3");
    // Two polls in one write are not concurrent: the server reads the second after it answered the
    // first.
    one.send_raw([&*get, &*get].concat());
    for _ in 0..2 {
        assert!(one.is_silent(Duration::from_millis(20)));
        couchdb.update("db");
        assert_eq!(one.answer().text(), format!("{}:{}", change("db").len(), change("db")));
    }
}

#[test]
fn an_abandoned_poll_loses_nothing() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::subscribed(howler.address(), &["a", "b"]);
    // One connection for all these requests, so that it does not add to the counted ends.
    let mut operator = Http::connect(howler.address());
    let mut ends = || -> u64 {
        let page = operator.get("/metrics");
        let counts = page.text().lines().filter(|line| line.starts_with("howler_closes_total{"));
        counts.map(|line| line.split(' ').nth(1).expect("a number").parse::<u64>().expect("a number")).sum()
    };
    let mut give_up = |connection: &mut Http| {
        let before = ends();
        *connection = Http::connect(howler.address());
        wait_until("the server notices the end", || ends() > before);
    };
    for _ in 0..3 {
        poller.start_poll();
        assert!(poller.polls.is_silent(Duration::from_millis(20)));
        give_up(&mut poller.polls);
        couchdb.update("a");
        couchdb.update("b");
        let mut changes = [poller.next(), poller.next()];
        changes.sort();
        assert_eq!(changes, [change("a"), change("b")]);
    }
    // A post that the client gave up half sent does not block another.
    let post = request("POST", &poller.target(), "", b"1:2");
    poller.posts.send_raw(&post[..post.len() - 1]);
    assert!(poller.posts.is_silent(Duration::from_millis(20)));
    give_up(&mut poller.posts);
    poller.send(&["2"]);
    assert_eq!(poller.next(), "3");
}

#[test]
fn a_session_that_does_not_poll_ends_and_keeps_each_database_once() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--ping_interval", "300", "--ping_timeout", "700"]);
    let mut poller = Poller::subscribed(howler.address(), &["a", "b"]);
    for _ in 0..100 {
        couchdb.update_many(&["a", "b", "a"]);
    }
    // A session that pings lives on without polling, and then receives each database once.
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(1300) {
        poller.send(&["6"]);
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut changes = poller.poll();
    changes.sort();
    assert_eq!(changes, [change("a"), change("b")]);
    // Polls do not keep a session alive: the parked poll receives the close.
    let began = Instant::now();
    poller.start_poll();
    assert_eq!(poller.finish_poll(), ["1"]);
    assert!(began.elapsed() < Duration::from_secs(5) && began.elapsed() > Duration::from_millis(200));
    assert!(!poller.is_known());
    // A session without any request ends without a response.
    let poller = Poller::subscribed(howler.address(), &["a"]);
    howler.wait_for_lines("closed: ping timeout", 2);
    assert!(!poller.is_known());
}

#[test]
fn replies_that_are_not_polled_for_are_limited() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::logged_in(howler.address());
    let heartbeats = vec![r#"421["heartbeat",null]"#; 500];
    let payload = join(&heartbeats, 3);
    let mut posts = 0;
    let refused = loop {
        let answer = poller.post(&payload);
        if answer.status != 200 {
            break answer;
        }
        posts += 1;
        assert!(posts < 100, "no post is rejected");
        if answer.field("Connection") == Some("close") {
            poller.posts = Http::connect(howler.address());
        }
    };
    assert_eq!(refused.refusal(), Some(1), "the session is closed");
    assert!(posts > 3, "a burst is allowed: {posts}");
    assert!(howler.resident_kib() < 64 * 1024);
}

#[test]
fn jsonp_wraps_packets_and_decodes_forms() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut polls = Http::connect(howler.address());
    let answer = polls.get(&format!("{}&j=0", handshake()));
    assert_eq!(answer.field("Content-Type"), Some("text/javascript; charset=UTF-8"));
    let unwrap = |text: &str, number: u32| -> String {
        let json = text.strip_prefix(&format!("___eio[{number}](")).and_then(|rest| rest.strip_suffix(");"));
        serde_json::from_str(json.expect("a call")).expect("a string")
    };
    let packets = split(&unwrap(answer.text(), 0), 3);
    let sid = packets[0].split('"').nth(3).unwrap();
    assert_eq!(packets[1], "40");
    let target = format!("/socket.io/?EIO=3&transport=polling&sid={sid}");
    let answer = polls.get(&format!("{target}&j=1"));
    assert!(unwrap(answer.text(), 1).contains(":42[\"authenticated\","));
    // A line end in a name is `\n` in JSON, which the form escapes once more.
    let packet = r#"421["subscribe",["a\nb","c"]]"#;
    let escaped = format!("{}:{packet}", packet.len()).replace("\\n", "\\\\n");
    let form = escaped.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat();
    let fields = "Content-Type: application/x-www-form-urlencoded\r\n";
    let mut posts = Http::connect(howler.address());
    let answer = posts.ask("POST", &format!("{target}&j=2"), fields, format!("d={form}").as_bytes());
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    let answer = polls.get(&format!("{target}&j=3"));
    assert_eq!(answer.text(), "___eio[3](\"7:431[{}]\");");
    couchdb.update("c");
    assert_eq!(polls.get(&format!("{target}&j=4")).text(), r#"___eio[4]("16:42[\"change\",\"c\"]");"#);
    // A form without the field `d` cannot be decoded.
    let answer = posts.ask("POST", &format!("{target}&j=5"), fields, b"e=1%3A2");
    assert_eq!(answer.refusal(), Some(3));
    assert_eq!(polls.get(&format!("{target}&j=6")).refusal(), Some(1));
}

#[test]
fn cors_headers_allow_the_origin_of_the_request() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::logged_in(howler.address());
    let target = poller.target();
    let origin = "Origin: https://app.example.com\r\n";
    poller.send(&["2"]);
    let mut connection = Http::connect(howler.address());
    for (method, target, body) in [
        ("GET", &*handshake(), ""),
        ("GET", &target, ""),
        ("POST", &target, "1:2"),
        ("PUT", &target, ""),
        ("GET", "/socket.io/?transport=x", ""),
        ("OPTIONS", &target, ""),
        ("POST", &target, "broken"),
    ] {
        let answer = connection.ask(method, target, origin, body.as_bytes());
        assert_eq!(answer.field("Access-Control-Allow-Origin"), Some("https://app.example.com"), "{method} {target}");
        assert_eq!(answer.field("Access-Control-Allow-Credentials"), Some("true"));
        if method == "OPTIONS" {
            assert!(matches!(answer.status, 200 | 204) && answer.body.is_empty());
            assert_eq!(answer.field("Access-Control-Allow-Headers"), Some("Content-Type"));
            let methods = answer.field("Access-Control-Allow-Methods").unwrap();
            assert!(methods.contains("GET") && methods.contains("POST"));
            assert_eq!(answer.field("Connection"), Some("keep-alive"));
        }
        let plain = connection.ask("GET", "/socket.io/?transport=polling", "", b"");
        assert_eq!(plain.field("Access-Control-Allow-Origin"), Some("*"));
        assert_eq!(plain.field("Access-Control-Allow-Credentials"), None);
    }
    let answer = connection.ask("POST", &target, origin, &vec![b'x'; 70_000]);
    assert_eq!(answer.field("Access-Control-Allow-Origin"), Some("https://app.example.com"), "{answer:?}");
}

#[test]
fn unlisted_origins_are_rejected() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--origins", "https://app.example.com,http://localhost:8080"]);
    let address = howler.address();
    let mut poller = Poller::logged_in(address);
    for origin in ["https://evil.example", "https://app.example.com.evil.example", "http://app.example.com", "null"] {
        let field = format!("Origin: {origin}\r\n");
        let mut connection = Http::connect(address);
        let target = poller.target();
        for (method, target) in [("GET", &*handshake()), ("GET", &target), ("POST", &target), ("OPTIONS", &target)] {
            let answer = connection.ask(method, target, &field, b"");
            assert_eq!(answer.status, 403, "{origin}: {method} {target}");
        }
        for path in ["/howler", "/socket.io/?EIO=3&transport=websocket", "/socket.io/?EIO=4&transport=websocket"] {
            let refused = Client::try_open(address, path, &field).err().expect("refused");
            assert!(refused.starts_with("HTTP/1.1 403 "), "{origin} {path}: {refused}");
        }
        let refused = Client::try_open(address, &poller.websocket_target(), &field).err().expect("refused");
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    }
    poller.send(&["2"]);
    assert_eq!(poller.next(), "3", "requests without an Origin pass, and the session is unaffected");
    for origin in ["https://app.example.com", "http://localhost:8080"] {
        let field = format!("Origin: {origin}\r\n");
        let answer = Http::connect(address).ask("GET", &handshake(), &field, b"");
        assert_eq!((answer.status, answer.field("Access-Control-Allow-Origin")), (200, Some(origin)));
        for path in ["/howler", "/socket.io/?EIO=3&transport=websocket"] {
            assert!(Client::try_open(address, path, &field).is_ok());
        }
    }
    assert!(Client::try_open(address, "/howler", "").is_ok());
}

#[test]
fn a_websocket_takes_over_the_session() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::subscribed(howler.address(), &["db"]);
    poller.start_poll();
    let mut websocket = Client::open(howler.address(), &poller.websocket_target());
    assert_eq!(websocket.receive_text(Duration::from_millis(50)), None, "nothing is sent before the probe");
    websocket.send("2probe");
    assert_eq!(websocket.receive_text(SOON).as_deref(), Some("3probe"));
    assert_eq!(poller.polls.answer().text(), "1:6", "the parked poll is answered");
    // Until the client completes the upgrade, the session stays on polling.
    poller.send(&[r#"421["heartbeat",null]"#]);
    assert_eq!(poller.poll(), [r#"431[{"ok":true}]"#]);
    poller.send(&["2"]);
    websocket.send("5");
    assert_eq!(websocket.receive_text(SOON).as_deref(), Some("3"), "packets that were not polled for arrive here");
    couchdb.update("db");
    assert_eq!(websocket.receive_text(SOON), Some(change("db")));
    for method in ["GET", "POST"] {
        let answer = Http::connect(howler.address()).ask(method, &poller.target(), "", b"1:2");
        assert_eq!((answer.status, answer.refusal()), (400, Some(3)), "{method} on a session that was upgraded");
    }
    let again = Client::try_open(howler.address(), &poller.websocket_target(), "").err().expect("refused");
    assert!(again.starts_with("HTTP/1.1 400 "), "{again}");
    websocket.send("2x");
    assert_eq!(websocket.receive_text(SOON).as_deref(), Some("3x"));
    websocket.send(r#"425["log-out",null]"#);
    let (texts, close) = websocket.receive_close(SOON);
    assert_eq!(texts, ["435[{}]", "41"]);
    assert!(matches!(close, Received::Close(1000, _)));
}

#[test]
fn an_immediate_upgrade_keeps_the_order_of_the_first_packets() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for _ in 0..5 {
        let connected = Instant::now();
        let mut poller = Poller::open(howler.address(), 3, &format!("username={USER}&password={PASSWORD}"));
        let mut websocket = Client::open(howler.address(), &poller.websocket_target());
        websocket
            .send_raw(&[frame(0x81, b"2probe"), frame(0x81, b"5"), frame(0x81, br#"421["heartbeat"]"#)].concat())
            .unwrap();
        assert_eq!(websocket.receive_text(SOON).as_deref(), Some("3probe"));
        assert!(websocket.receive_text(SOON).unwrap().starts_with("42[\"authenticated\""));
        assert!(connected.elapsed() >= DISTANCE);
        assert_eq!(websocket.receive_text(SOON).as_deref(), Some(r#"431[{"ok":true}]"#));
        assert_eq!(poller.packets.drain(..).skip(1).collect::<Vec<_>>(), ["40"]);
    }
}

#[test]
fn nothing_is_lost_during_an_upgrade() {
    const CHANGES: usize = 300;
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for round in 0..4_u32 {
        let names: Vec<String> = (0..CHANGES).map(|number| format!("r{round}-{number:03}")).collect();
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        let mut poller = Poller::subscribed(howler.address(), &names);
        let mut came: Vec<String> = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for name in &names {
                    couchdb.update(name);
                    std::thread::sleep(Duration::from_micros(500));
                }
            });
            while came.len() < CHANGES / 10 {
                came.extend(poller.poll());
            }
            let mut websocket = Client::open(howler.address(), &poller.websocket_target());
            poller.start_poll();
            // Vary the time, with and without a parked poll.
            std::thread::sleep(Duration::from_millis(u64::from(round) * 7));
            websocket.send("2probe");
            assert_eq!(websocket.receive_text(SOON).as_deref(), Some("3probe"));
            came.extend(poller.finish_poll());
            if round % 2 == 0 {
                poller.start_poll();
                websocket.send("5");
                came.extend(poller.finish_poll());
            } else {
                websocket.send("5");
            }
            came.retain(|packet| packet != "6");
            while came.len() < CHANGES {
                came.push(websocket.receive_text(SOON).unwrap_or_else(|| panic!("only {} came", came.len())));
            }
            assert_eq!(websocket.receive_text(Duration::from_millis(50)), None);
        });
        let mut counts = HashMap::<_, usize>::new();
        for packet in &came {
            *counts.entry(packet.clone()).or_default() += 1;
        }
        for name in &names {
            assert_eq!(counts.get(&change(name)), Some(&1), "round {round}: {name}");
        }
    }
}

#[test]
fn a_post_in_flight_during_the_upgrade_is_processed() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::logged_in(howler.address());
    let body = join(&[r#"421["subscribe",["db"]]"#], 3);
    let post = request("POST", &poller.target(), "", body.as_bytes());
    let (start, end) = post.split_at(post.len() - 9);
    poller.posts.send_raw(start);
    let mut websocket = Client::open(howler.address(), &poller.websocket_target());
    for (sent, answer) in [("2probe", "3probe"), ("5", ""), ("2", "3")] {
        websocket.send(sent);
        if !answer.is_empty() {
            assert_eq!(websocket.receive_text(SOON).as_deref(), Some(answer));
        }
    }
    poller.posts.send_raw(end);
    assert_eq!(poller.posts.answer().text(), "ok");
    assert_eq!(websocket.receive_text(SOON).as_deref(), Some("431[{}]"));
    couchdb.update("db");
    assert_eq!(websocket.receive_text(SOON), Some(change("db")));
}

#[test]
fn failed_upgrades_do_not_affect_the_session() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let address = howler.address();
    let mut poller = Poller::subscribed(address, &["db"]);
    let goes_on = |poller: &mut Poller| {
        poller.start_poll();
        couchdb.update("db");
        assert_eq!(poller.finish_poll(), [change("db")]);
    };
    // Another packet instead of a probe, or the upgrade packet without a probe.
    for other in [&b"5"[..], b"2", b"4", br#"421["log-out",null]"#, b"", b"3probe"] {
        let mut websocket = Client::open(address, &poller.websocket_target());
        websocket.send_raw(&frame(0x81, other)).unwrap();
        let (texts, _) = websocket.receive_close(SOON);
        assert_eq!(texts, Vec::<String>::new(), "{other:?}");
        goes_on(&mut poller);
    }
    // Frames that would close an upgraded session.
    for bytes in [frame(0x82, b"2probe"), frame(0x88, b"\x03\xe8"), b"\xff\xff".to_vec(), frame(0x81, b"\xff")] {
        let mut websocket = Client::open(address, &poller.websocket_target());
        websocket.send_raw(&bytes).unwrap();
        assert!(matches!(websocket.receive_close(SOON).1, Received::Close(..) | Received::End));
        goes_on(&mut poller);
    }
    // Another packet instead of the upgrade packet after the probe.
    let mut websocket = Client::open(address, &poller.websocket_target());
    websocket.send("2probe");
    assert_eq!(websocket.receive_text(SOON).as_deref(), Some("3probe"));
    websocket.send("2");
    websocket.receive_close(SOON);
    goes_on(&mut poller);
    // A second WebSocket is rejected while the first is probing, and accepted after the first is
    // lost.
    let mut first = Client::open(address, &poller.websocket_target());
    first.send("2probe");
    assert_eq!(first.receive_text(SOON).as_deref(), Some("3probe"));
    let second = Client::try_open(address, &poller.websocket_target(), "").err().expect("refused");
    assert!(second.starts_with("HTTP/1.1 400 ") && second.contains("\"code\":3"), "{second}");
    assert_eq!(poller.poll(), ["6"], "polls are answered");
    drop(first);
    let deadline = Instant::now() + SOON;
    let mut websocket = loop {
        match Client::try_open(address, &poller.websocket_target(), "") {
            Ok(websocket) => break websocket,
            Err(refused) => assert!(Instant::now() < deadline, "{refused}"),
        }
    };
    goes_on(&mut poller);
    websocket.send("2probe");
    assert_eq!(websocket.receive_text(SOON).as_deref(), Some("3probe"));
    websocket.send("5");
    couchdb.update("db");
    assert_eq!(websocket.receive_text(SOON), Some(change("db")));
    // A session that ends during an upgrade also closes the WebSocket.
    let mut poller = Poller::logged_in(address);
    let mut websocket = Client::open(address, &poller.websocket_target());
    poller.send(&["1"]);
    assert!(matches!(websocket.receive(SOON), Received::End | Received::Close(..)));
    let gone = Client::try_open(address, &poller.websocket_target(), "").err().expect("refused");
    assert!(gone.contains("\"code\":1"), "{gone}");
}

#[test]
fn an_incomplete_upgrade_times_out() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut poller = Poller::subscribed(howler.address(), &["db"]);
    let mut other = Poller::subscribed(howler.address(), &["other"]);
    let began = Instant::now();
    let mut silent = Client::open(howler.address(), &poller.websocket_target());
    let mut probed = Client::open(howler.address(), &other.websocket_target());
    probed.send("2probe");
    assert_eq!(probed.receive_text(SOON).as_deref(), Some("3probe"));
    for websocket in [&mut silent, &mut probed] {
        assert!(matches!(websocket.receive(SOON), Received::End | Received::Close(..)));
        assert!(began.elapsed() > Duration::from_secs(9), "{:?}", began.elapsed());
    }
    for (poller, name) in [(&mut poller, "db"), (&mut other, "other")] {
        poller.start_poll();
        assert!(poller.polls.is_silent(Duration::from_millis(50)), "the poll is parked again");
        couchdb.update(name);
        assert_eq!(poller.finish_poll(), [change(name)]);
    }
}

/// Returns the attributes of the session cookie, without its name and value.
fn cookie_attributes(howler: &Howler, target: impl Into<Target>, fields: &str) -> String {
    let mut http = Http::connect(target);
    let answer = http.ask("GET", "/socket.io/?EIO=4&transport=polling", fields, b"");
    assert_eq!(answer.status, 200, "{answer:?}\n{}", howler.output());
    let cookie = answer.field("Set-Cookie").expect("a cookie");
    assert!(cookie.starts_with("io="), "{cookie}");
    cookie.split_once("; ").expect("attributes").1.to_owned()
}

#[test]
fn the_session_cookie_is_limited_to_its_site_and_to_tls() {
    let couchdb = couchdb();
    let proxied = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n";
    for (option, plain, secure) in [
        ("lax", "; SameSite=Lax", "; SameSite=Lax; Secure"),
        ("strict", "; SameSite=Strict", "; SameSite=Strict; Secure"),
        // Browsers drop `SameSite=None` without `Secure`.
        ("none", "", "; SameSite=None; Secure"),
    ] {
        let options = ["--cookie_same_site", option, "--trusted_proxies", "127.0.0.1"];
        let howler = Howler::start_with(&couchdb, &options);
        assert_eq!(cookie_attributes(&howler, howler.address(), ""), format!("Path=/; HttpOnly{plain}"));
        assert_eq!(cookie_attributes(&howler, howler.address(), proxied), format!("Path=/; HttpOnly{secure}"));
        let plain_proxied = "X-Forwarded-Proto: http, https\r\n";
        assert_eq!(cookie_attributes(&howler, howler.address(), plain_proxied), format!("Path=/; HttpOnly{plain}"));
    }
    let howler = Howler::start(&couchdb);
    let untrusted = cookie_attributes(&howler, howler.address(), proxied);
    assert_eq!(untrusted, "Path=/; HttpOnly; SameSite=Lax", "the address is not a trusted proxy");
    let authority = Authority::new();
    let identity = Identity::new(&authority);
    let howler = Howler::start_with(&couchdb, &identity.options());
    let target = Target::tls(howler.address(), authority.client(rustls::ALL_VERSIONS));
    assert_eq!(cookie_attributes(&howler, target, ""), "Path=/; HttpOnly; SameSite=Lax; Secure");
}
