//! Health, readiness and metrics, on the ports of clients and on a port of their own.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::client::{Client, Received};
use crate::support::howler::{Howler, assert_no_secret};
use crate::support::http::{Answer, Http, Poller};
use crate::support::tls::{Authority, Identity};
use crate::support::wire::Target;
use crate::support::{ADMIN, ADMIN_PASSWORD, PASSWORD, SOON, USER, couchdb, retry};

fn get(target: impl Into<Target>, path: &str) -> Answer {
    Http::connect(target).get(path)
}

/// Repeats a request until the response is as expected; the machine may be slow.
fn wait_for_response(target: impl Into<Target>, path: &str, is_right: impl Fn(&Answer) -> bool) -> Answer {
    let mut http = Http::connect(target);
    retry(|| {
        let answer = http.get(path);
        if is_right(&answer) { Ok(answer) } else { Err(format!("{path} stays {answer:?}\n{}", answer.text())) }
    })
}

/// Returns the value of a sample, which is named with its labels.
fn sample(page: &str, name: &str) -> u64 {
    let mut values = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = values.next().unwrap_or_else(|| panic!("no {name} in\n{page}"));
    assert_eq!(values.next(), None, "{name} appears twice");
    value.parse().unwrap_or_else(|_| panic!("{name} is {value}"))
}

/// Waits until a sample has a value and returns the page of metrics.
fn wait_for_sample(address: SocketAddr, name: &str, value: u64) -> String {
    let answer = wait_for_response(address, "/metrics", |answer| sample(answer.text(), name) == value);
    answer.text().to_owned()
}

#[test]
fn operator_paths_share_the_port_and_allow_no_origin() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    wait_for_response(howler.address(), "/readyz", |answer| answer.status == 200);
    // One connection for all requests: each response leaves it usable.
    let mut http = Http::connect(howler.address());
    for (path, content_type, start) in [
        ("/healthz", "text/plain; charset=utf-8", "ok\n"),
        ("/readyz", "text/plain; charset=utf-8", "ready\n"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", "# HELP howler_"),
    ] {
        let answer = http.ask("GET", path, "Origin: https://elsewhere.example\r\n", b"");
        assert_eq!((answer.status, answer.field("Content-Type")), (200, Some(content_type)), "{path}");
        assert!(answer.text().starts_with(start), "{path}: {}", answer.text());
        assert_eq!(answer.field("Access-Control-Allow-Origin"), None, "{path}");
        assert_eq!(answer.field("Cache-Control"), Some("no-store"), "{path}");
        let head = http.ask("HEAD", path, "", b"");
        assert_eq!(head.status, 200, "{path}");
        let length: usize = head.field("Content-Length").expect("there is a length").parse().expect("a number");
        assert!(length >= start.len(), "{path}");
        for method in ["POST", "OPTIONS", "DELETE"] {
            let answer = http.ask(method, path, "", b"");
            assert_eq!((answer.status, answer.field("Allow")), (405, Some("GET, HEAD")), "{method} {path}");
            assert_eq!(answer.field("Access-Control-Allow-Origin"), None, "{method} {path}");
        }
    }
    assert_eq!(get(howler.address(), "/healthz/").status, 404);
}

#[test]
fn operator_paths_are_served_over_tls() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let identity = Identity::new(&authority);
    let howler = Howler::start_with(&couchdb, &identity.options());
    let target = Target::tls(howler.tls_address(), authority.client(rustls::ALL_VERSIONS));
    assert_eq!(get(&target, "/healthz").text(), "ok\n");
    assert!(get(&target, "/metrics").text().contains("howler_connections 1\n"));
}

#[test]
fn readiness_follows_the_feed() {
    let couchdb = couchdb();
    couchdb.refuse();
    let howler = Howler::launch(&["--couchdb_url", &couchdb.url()]);
    let answer = get(howler.address(), "/readyz");
    assert_eq!((answer.status, answer.text().contains("is not open yet")), (503, true), "{}", answer.text());
    assert_eq!(get(howler.address(), "/healthz").status, 200, "the server is healthy");
    wait_for_sample(howler.address(), "howler_feed_up", 0);
    couchdb.accept_again().expect("its port is still free");
    wait_for_response(howler.address(), "/readyz", |answer| (answer.status, answer.text()) == (200, "ready\n"));
    wait_for_sample(howler.address(), "howler_feed_up", 1);
    couchdb.refuse();
    let down = wait_for_response(howler.address(), "/readyz", |answer| answer.status == 503);
    assert!(down.text().contains("is down") && down.text().lines().count() == 1, "{}", down.text());
    assert!(!down.text().contains(&couchdb.address().to_string()), "the address of CouchDB is not disclosed");
    let page = wait_for_sample(howler.address(), "howler_feed_up", 0);
    assert!(sample(&page, "howler_feed_breaks_total") >= 1);
}

#[test]
fn counters_and_gauges_change() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let at = howler.address();
    let before = get(at, "/metrics").text().to_owned();
    for name in ["howler_sessions_logged_in", "howler_subscriptions", "howler_changes_total", "howler_log_ins_total"] {
        assert_eq!(sample(&before, name), 0, "{name}");
    }
    assert!(sample(&before, "process_resident_memory_bytes") > 1_000_000);
    assert!(sample(&before, "howler_start_time_seconds") > 1_700_000_000);
    let mut json = Client::subscribed(at, &["db", "other"]);
    let socket_io = Client::socket_io_logged_in(at);
    let poller = Poller::subscribed(at, &["db"]);
    let page = wait_for_sample(at, "howler_sessions_logged_in", 3);
    for (name, value) in [
        ("howler_sessions{dialect=\"howler_v1\",transport=\"websocket\"}", 1),
        ("howler_sessions{dialect=\"engine_io_3\",transport=\"websocket\"}", 1),
        ("howler_sessions{dialect=\"engine_io_3\",transport=\"polling\"}", 1),
        ("howler_sessions{dialect=\"engine_io_4\",transport=\"polling\"}", 0),
        ("howler_subscriptions", 3),
        ("howler_databases_watched", 2),
        ("howler_log_ins_total", 3),
        ("howler_log_ins_failed_total", 0),
        ("howler_couchdb_requests_pending{queue=\"log_ins\"}", 0),
    ] {
        assert_eq!(sample(&page, name), value, "{name}");
    }
    couchdb.update("db");
    assert_eq!(json.next_change(SOON).as_deref(), Some("db"));
    let page = wait_for_sample(at, "howler_changes_total", 1);
    assert!(sample(&page, "howler_notifications_total") >= 1);
    let mut wrong = Client::json(at);
    let answer = wrong.ask(json!({"op": "log-in", "username": USER, "password": "zq7-wrong"}));
    assert_eq!(answer["error"], "NotAuthenticatedError");
    let page = wait_for_sample(at, "howler_log_ins_failed_total", 1);
    assert_eq!(sample(&page, "howler_closes_total{reason=\"not_authenticated\"}"), 1);
    json.send("{\"op\":\"log-out\"}");
    assert!(matches!(json.receive_close(SOON).1, Received::Close(..)));
    let page = wait_for_sample(at, "howler_closes_total{reason=\"logged_out\"}", 1);
    assert_eq!(sample(&page, "howler_subscriptions"), 1);
    // Look at sessions only: connections that only fetched this page count as closed, too.
    let session = "howler_sessions{dialect=\"engine_io_3\",transport=\"websocket\"}";
    let vanished = "howler_closes_total{reason=\"client_vanished\"}";
    let before_end = sample(&page, vanished);
    drop(socket_io);
    let page = wait_for_sample(at, session, 0);
    assert!(sample(&page, vanished) > before_end);
    assert!(sample(&page, "howler_connections_accepted_total") > sample(&before, "howler_connections_accepted_total"));
    assert!(sample(&page, "howler_connections") >= 1, "the connection of this request");
    drop(poller);
}

#[test]
fn metrics_contain_no_secrets_and_no_names() {
    let couchdb = couchdb();
    couchdb.add_user("zq7-sparrow", PASSWORD, &[]);
    let howler = Howler::start(&couchdb);
    let _client = Client::subscribed(howler.address(), &["private-db"]);
    let _other = Client::socket_io(howler.address(), &format!("username=zq7-sparrow&password={PASSWORD}"));
    couchdb.update("private-db");
    let page = wait_for_sample(howler.address(), "howler_log_ins_total", 2);
    assert_no_secret(&page);
    for word in ["private-db", USER, ADMIN_PASSWORD, "127.0.0.1", "sparrow", &format!("{ADMIN}:")] {
        assert!(!page.contains(word), "{word} in\n{page}");
    }
}

#[test]
fn promtool_accepts_the_metrics() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let page = get(howler.address(), "/metrics");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (Debian package prometheus)");
    promtool.stdin.take().expect("piped").write_all(&page.body).expect("promtool reads its input");
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{}", page.text());
}

#[test]
fn the_admin_port_serves_operator_paths_only_and_other_ports_none() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let identity = Identity::new(&authority);
    let options = [&identity.options()[..], &["--admin_port", "0"]].concat();
    let howler = Howler::start_with(&couchdb, &options);
    let admin = howler.admin_address().expect("there is an admin port");
    let clients = Target::tls(howler.tls_address(), authority.client(rustls::ALL_VERSIONS));
    // Plain HTTP, even where clients use TLS.
    wait_for_response(admin, "/readyz", |answer| answer.status == 200);
    assert_eq!(get(admin, "/healthz").text(), "ok\n");
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(&clients, path).status, 404, "{path}");
    }
    for path in ["/", "/howler", "/howler.js", "/socket.io/?EIO=4&transport=polling", "/elsewhere"] {
        let answer = get(admin, path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.text().contains("/metrics") && answer.text().contains("--port"), "{path}: {}", answer.text());
    }
    assert!(Client::try_open(admin, "/howler", "").is_err(), "the admin port accepts no clients");
}

#[test]
fn operators_do_not_count_as_clients() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--admin_port", "0"]);
    let admin = howler.admin_address().expect("there is an admin port");
    let mut first = Http::connect(admin);
    let page = first.get("/metrics").text().to_owned();
    let gone = |page: &str| sample(page, "howler_closes_total{reason=\"served\"}");
    assert_eq!((sample(&page, "howler_connections"), sample(&page, "howler_connections_accepted_total")), (0, 0));
    // Connections that close after a response, at their end or after a bad request do not count.
    let mut closing = Http::connect(admin);
    assert_eq!(closing.ask("GET", "/healthz", "Connection: close\r\n", b"").status, 200);
    let mut nonsense = Http::connect(admin);
    nonsense.send_raw("\x01\x02\r\n\r\n");
    assert_eq!(nonsense.answer().status, 400);
    drop(Http::connect(admin));
    // Above the limit of connections, those that were idle longest are evicted, and the one in use
    // stays.
    let idle: Vec<Http> = (0..200)
        .map(|number| {
            let mut one = Http::connect(admin);
            if number % 20 == 0 {
                assert_eq!(first.get("/healthz").status, 200, "{number}");
            }
            assert_eq!(one.get("/healthz").status, 200, "{number}");
            one
        })
        .collect();
    assert!(howler.descriptors() < 64 + 40, "{}", howler.descriptors());
    let after = first.get("/metrics").text().to_owned();
    assert_eq!((sample(&after, "howler_connections"), gone(&after)), (0, 0));
    for reason in ["bad_request", "client_vanished"] {
        assert_eq!(sample(&after, &format!("howler_closes_total{{reason=\"{reason}\"}}")), 0, "{reason}");
    }
    let _client = Client::logged_in(howler.address());
    assert_eq!(sample(first.get("/metrics").text(), "howler_connections"), 1);
    drop(idle);
}

#[test]
fn operators_are_served_until_the_server_ends() {
    let couchdb = couchdb();
    let mut howler = Howler::start_with(&couchdb, &["--admin_port", "0"]);
    let admin = howler.admin_address().expect("there is an admin port");
    let mut kept = Http::connect(admin);
    wait_for_response(admin, "/readyz", |answer| answer.status == 200);
    assert_eq!(kept.get("/readyz").status, 200);
    // This client never closes its side, and so delays the shutdown.
    let silent = Client::logged_in(howler.address());
    howler.signal("TERM");
    howler.wait_for_line("Stopping");
    for answer in [kept.get("/readyz"), get(admin, "/readyz")] {
        assert_eq!((answer.status, answer.text()), (503, "not ready: the server is stopping\n"));
    }
    assert_eq!(get(admin, "/healthz").status, 200);
    // The drain closes clients one after the other, this one included.
    wait_for_sample(admin, "howler_closes_total{reason=\"shutting_down\"}", 1);
    // Connections of operators do not delay the shutdown.
    let _idle = Http::connect(admin);
    drop(silent);
    assert_eq!(howler.wait().code(), Some(0));
}
