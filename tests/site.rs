//! The files that browsers load over HTTP: the client library and the console.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::client::Client;
use crate::support::howler::Howler;
use crate::support::http::{Answer, Http, request};
use crate::support::{SOON, couchdb, wait_until};

const LIBRARY: &[(&str, &str)] =
    &[("/howler.js", "text/javascript; charset=utf-8"), ("/howler.d.ts", "application/typescript; charset=utf-8")];
const CONSOLE: &[(&str, &str)] = &[
    ("/", "text/html; charset=utf-8"),
    ("/console.js", "text/javascript; charset=utf-8"),
    ("/console.css", "text/css; charset=utf-8"),
];

fn fetch(howler: &Howler, method: &str, target: &str, fields: &str) -> Answer {
    Http::connect(howler.address()).ask(method, target, fields, b"")
}

#[test]
fn files_have_their_types_and_security_headers() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut http = Http::connect(howler.address());
    for (path, content_type) in [LIBRARY, CONSOLE].concat() {
        let answer = http.get(path);
        assert_eq!((answer.status, answer.field("Content-Type")), (200, Some(content_type)), "{path}");
        assert_eq!(answer.field("Cache-Control"), Some("no-cache"), "{path}");
        assert_eq!(answer.field("X-Content-Type-Options"), Some("nosniff"), "{path}");
        assert_eq!(answer.field("Referrer-Policy"), Some("no-referrer"), "{path}");
        assert_eq!(answer.field("Connection"), Some("keep-alive"), "{path}");
        assert_eq!(answer.field("Set-Cookie"), None, "{path}");
        // The library is open to any origin, but never with credentials.
        let shared = LIBRARY.iter().any(|(library, _)| *library == path);
        let answer = http.ask("GET", path, "Origin: https://app.example.com\r\n", b"");
        assert_eq!(answer.field("Access-Control-Allow-Origin"), shared.then_some("*"), "{path}");
        assert_eq!(answer.field("Access-Control-Allow-Credentials"), None, "{path}");

        let name = if path == "/" { "index.html" } else { &path[1..] };
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/web").join(name);
        let content = std::fs::read_to_string(file).unwrap().replace("<!-- demo -->", "");
        assert!(answer.text() == content, "{path} differs from the file");

        let head = http.ask("HEAD", path, "", b"");
        assert_eq!((head.status, head.field("Content-Length")), (200, answer.field("Content-Length")), "{path}");
        assert_eq!(head.field("ETag"), answer.field("ETag"), "{path}");
    }
    assert_eq!(http.get("/howler.js?v=1").status, 200, "a query is ignored");
    assert_eq!(http.get("/index.html").status, 404);
    assert_eq!(http.get("/howler.js").field("X-TypeScript-Types"), Some("./howler.d.ts"));
}

#[test]
fn the_content_security_policy_allows_own_resources_only() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let page = fetch(&howler, "GET", "/", "");
    let policy = page.field("Content-Security-Policy").expect("the header is present");
    let directives: Vec<&str> = policy.split(';').map(str::trim).collect();
    for directive in [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ] {
        assert!(directives.contains(&directive), "{directive} in {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
    for inline in ["<style", " style=", "<script>", " onclick=", " onsubmit=", "javascript:"] {
        assert!(!page.text().contains(inline), "{inline}");
    }
    assert!(!page.text().contains("howler-demo"), "the page has no demo");
}

#[test]
fn a_file_is_sent_again_only_when_it_changed() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut http = Http::connect(howler.address());
    for (path, _) in [LIBRARY, CONSOLE].concat() {
        let tag = http.get(path).field("ETag").expect("the header is present").to_owned();
        assert!(tag.starts_with('"') && tag.ends_with('"'), "the tag is strong: {tag}");
        let length = http.get(path).body.len().to_string();
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()] {
            // All on one connection: a body would be read as the next response.
            let answer = http.ask("GET", path, &format!("If-None-Match: {known}\r\n"), b"");
            assert_eq!((answer.status, answer.body.len()), (304, 0), "{path} {known}");
            assert_eq!(answer.field("ETag"), Some(&*tag), "{path}");
            assert_eq!(answer.field("Content-Length"), Some(&*length), "the length is that of the file");
        }
        for other in ["\"other\"", "", &tag[1..]] {
            let answer = http.ask("GET", path, &format!("If-None-Match: {other}\r\n"), b"");
            assert_eq!((answer.status, answer.body.is_empty()), (200, false), "{path} {other}");
        }
        let head = http.ask("HEAD", path, &format!("If-None-Match: {tag}\r\n"), b"");
        assert_eq!(head.status, 304);
    }
}

#[test]
fn files_accept_get_and_head_only() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    for (path, _) in [LIBRARY, CONSOLE].concat() {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get"] {
            let answer = fetch(&howler, method, path, "");
            assert_eq!((answer.status, answer.field("Allow")), (405, Some("GET, HEAD")), "{method} {path}");
        }
        // The server does not read a posted body as the next request.
        let mut http = Http::connect(howler.address());
        assert_eq!(http.post(path, "GET / HTTP/1.1\r\n\r\n").status, 405);
        assert!(http.ends());
        assert_eq!(fetch(&howler, "GET", path, "Connection: close\r\n").field("Connection"), Some("close"));
    }
}

#[test]
fn the_console_can_be_turned_off() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--no_console"]);
    for (path, _) in CONSOLE {
        for method in ["GET", "HEAD", "POST"] {
            assert_eq!(fetch(&howler, method, path, "").status, 404, "{method} {path}");
        }
    }
    for (path, _) in LIBRARY {
        assert_eq!(fetch(&howler, "GET", path, "").status, 200, "{path}");
    }
    let howler = Howler::launch(&["--demo", "--no-console"]);
    howler.wait_for_line("Press Ctrl+C to stop the demo.");
    assert_eq!(fetch(&howler, "GET", "/", "").status, 404);
    assert!(!howler.output().contains("http://localhost"), "a page is recommended:\n{}", howler.output());
}

#[test]
fn the_origin_of_the_console_need_not_be_listed() {
    let couchdb = couchdb();
    let own = |howler: &Howler| format!("Origin: http://{}\r\n", howler.address());
    let howler = Howler::start_with(&couchdb, &["--origins", "https://app.example.com"]);
    assert!(Client::try_open(howler.address(), "/howler", &own(&howler)).is_ok());
    for other in ["Origin: https://evil.example.com\r\n", "Origin: null\r\n"] {
        let refused = Client::try_open(howler.address(), "/howler", other).err().expect("the handshake is rejected");
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    }
    // The console uses no other protocol.
    let answer = fetch(&howler, "GET", "/socket.io/?EIO=3&transport=polling", &own(&howler));
    assert_eq!(answer.status, 403);
    // Files belong to no session.
    assert_eq!(fetch(&howler, "GET", "/howler.js", "Origin: https://evil.example.com\r\n").status, 200);

    let howler = Howler::start_with(&couchdb, &["--no_console", "--origins", "https://app.example.com"]);
    assert!(Client::try_open(howler.address(), "/howler", &own(&howler)).is_err());
}

#[test]
fn a_client_that_requests_files_and_does_not_read_costs_little() {
    const STRANGERS: usize = 300;
    const TO_COUCHDB: usize = 8;
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let one = request("GET", "/howler.js", "", b"");
    let all = one.repeat(60 * 1024 / one.len());
    assert_eq!(fetch(&howler, "GET", "/", "").status, 200);
    let (before, descriptors) = (howler.resident_kib(), howler.descriptors());
    let strangers: Vec<Http> = (0..STRANGERS)
        .map(|_| {
            let mut stranger = Http::connect(howler.address());
            stranger.send_raw(&all);
            stranger
        })
        .collect();
    // The server answers this request after those of the slow clients, which it received before.
    assert_eq!(fetch(&howler, "GET", "/", "").status, 200);
    let grown = howler.resident_kib().saturating_sub(before);
    println!("{STRANGERS} clients that sent {} requests each and read nothing: {grown} KiB", all.len() / one.len());
    // Each slow client costs its waiting requests (60 KiB), but no complete response.
    assert!(grown < 100 * STRANGERS as u64, "{grown} KiB");
    drop(strangers);
    // Meanwhile the server may have opened a few more connections to CouchDB, which it keeps for a
    // while.
    wait_until("descriptors are closed", || howler.descriptors() <= descriptors + TO_COUCHDB);
}

#[test]
fn a_slow_reader_gets_every_response_complete_and_in_order() {
    // More than the buffers of any system take, so that most requests wait until responses are
    // read.
    const ROUNDS: usize = 400;
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let paths: Vec<&str> = [LIBRARY, CONSOLE].concat().iter().map(|(path, _)| *path).collect();
    let expected: Vec<Vec<u8>> = paths.iter().map(|path| fetch(&howler, "GET", path, "").body).collect();
    let mut socket = TcpStream::connect(howler.address()).unwrap();
    let requests: Vec<u8> =
        (0..ROUNDS).flat_map(|_| paths.iter().flat_map(|path| request("GET", path, "", b""))).collect();
    socket.write_all(&requests).unwrap();
    let (mut buffer, mut bytes, mut answers) = (Vec::new(), vec![0; 1_000], 0);
    socket.set_read_timeout(Some(SOON)).unwrap();
    while answers < ROUNDS * paths.len() {
        let read = socket.read(&mut bytes).expect("more responses follow");
        assert!(read > 0, "the connection ended after {answers} responses");
        buffer.extend_from_slice(&bytes[..read]);
        while let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) {
            let body = &expected[answers % paths.len()];
            if buffer.len() < end + body.len() {
                break;
            }
            assert!(buffer.starts_with(b"HTTP/1.1 200 OK\r\n"), "response {answers}");
            assert!(
                &buffer[end..end + body.len()] == body,
                "response {answers} is not {}",
                paths[answers % paths.len()]
            );
            buffer.drain(..end + body.len());
            answers += 1;
        }
    }
    assert!(buffer.is_empty());
}
