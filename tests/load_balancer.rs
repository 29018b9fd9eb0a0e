//! Two servers behind HAProxy, which runs with the configuration that the README gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::support::howler::Howler;
use crate::support::script::Script;
use crate::support::{PASSWORD, SOON, USER, couchdb};

/// A running HAProxy. It is killed when this is dropped.
struct HaProxy {
    child: Child,
    port: u16,
    tls_port: u16,
}

impl HaProxy {
    /// Runs it before two servers, with the README's configuration.
    fn start(first: &Howler, second: &Howler) -> Self {
        let (port, tls_port) = (free_port(), free_port());
        let file = |end: &str| PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("haproxy-{port}.{end}"));
        let mut configuration = from_readme();
        for (written, meant) in [
            (" :3000\n", format!(" 127.0.0.1:{port}\n")),
            ("# bind :443 ", format!("bind 127.0.0.1:{tls_port} ")),
            ("/etc/haproxy/howler.pem", write_certificate(&file("pem"))),
            ("10.0.0.1:3000", first.address().to_string()),
            ("10.0.0.2:3000", second.address().to_string()),
        ] {
            assert_eq!(configuration.matches(written).count(), 1, "{written:?} in {configuration}");
            configuration = configuration.replace(written, &meant);
        }
        std::fs::write(file("cfg"), configuration).expect("the target folder can be written");
        let log = File::create(file("log")).expect("the target folder can be written");
        let child = Command::new(program())
            .arg("-db")
            .arg("-f")
            .arg(file("cfg"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("haproxy does not start ({error}): install Debian's package haproxy"));
        let mut haproxy = Self { child, port, tls_port };
        let began = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = haproxy.child.try_wait().expect("it is our child");
            assert!(
                ended.is_none() && began.elapsed() < SOON,
                "haproxy does not listen, see {}",
                file("log").display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        haproxy
    }

    fn url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    fn tls_url(&self) -> String {
        format!("https://localhost:{}", self.tls_port)
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    socket.expect("a port is free").port()
}

/// A certificate and its key in one file, as HAProxy wants them; the file's name.
fn write_certificate(file: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate can be made");
    std::fs::write(file, made.cert.pem() + &made.signing_key.serialize_pem())
        .expect("the target folder can be written");
    file.to_str().expect("a name in UTF-8").to_owned()
}

/// Debian keeps it where only root looks.
fn program() -> &'static str {
    let sbin = "/usr/sbin/haproxy";
    if Path::new(sbin).exists() { sbin } else { "haproxy" }
}

fn from_readme() -> String {
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("```haproxy\n").expect("the README has the configuration");
    assert!(!rest.contains("```haproxy"), "one alone");
    rest.split("```").next().expect("before its end").to_owned()
}

/// How many clients a server has when it stops.
fn stop(mut howler: Howler) -> usize {
    howler.signal("TERM");
    let line = howler.wait_for_line("Stopping: ");
    let clients = line.split("Stopping: ").nth(1).and_then(|rest| rest.split(' ').next());
    let clients = clients.and_then(|number| number.parse().ok()).expect("a number");
    assert!(howler.wait().success());
    clients
}

const CLIENTS: usize = 200;

#[test]
fn two_hundred_default_clients_are_shared_and_move_when_an_instance_stops() {
    let couchdb = couchdb();
    let first = Howler::start(&couchdb);
    let second = Howler::start(&couchdb);
    let haproxy = HaProxy::start(&first, &second);
    let mut fleet = Script::node("fleet.js", &[]);
    let began = Instant::now();
    fleet.tell(&json!({
        "do": "start", "name": "c", "count": CLIENTS, "url": haproxy.url(), "dbs": ["garden"],
        "query": {"username": USER, "password": PASSWORD},
    }));
    let names: Vec<String> = (0..CLIENTS).map(|number| format!("c{number}")).collect();
    let expect_subscribed = |fleet: &mut Script| {
        for name in &names {
            fleet.expect(name, "authenticated");
            assert_eq!(fleet.expect_ack(name, "subscribe"), json!({}));
        }
        println!("subscribed after {:?}", began.elapsed());
    };
    let expect_change = |fleet: &mut Script| {
        couchdb.update("garden");
        for name in &names {
            assert_eq!(fleet.expect(name, "change")["db"], "garden");
        }
    };
    expect_subscribed(&mut fleet);
    for name in &names {
        fleet.expect(name, "upgraded");
    }
    println!("upgraded after {:?}", began.elapsed());
    expect_change(&mut fleet);
    for name in &names {
        // No request went to the wrong instance: that would have ended the session.
        assert_eq!(fleet.take_others(name), Vec::<Value>::new(), "{name}");
    }

    let moving = stop(first);
    println!("{moving} clients of {CLIENTS} were at the first instance");
    assert!((CLIENTS / 4..=CLIENTS * 3 / 4).contains(&moving), "{moving}");
    // They find the second; those that are there already notice nothing.
    let mut seen = BTreeMap::<String, usize>::new();
    let mut moved = BTreeSet::new();
    while moved.len() < moving {
        assert!(began.elapsed() < 3 * SOON, "{} of {moving} moved: {seen:?}", moved.len());
        std::thread::sleep(Duration::from_millis(20));
        for name in &names {
            for event in fleet.take_others(name) {
                let kind = event["event"].as_str().expect("a name").to_owned();
                if kind == "ack" {
                    assert_eq!(event["data"], json!({}));
                    moved.insert(name);
                }
                *seen.entry(kind).or_default() += 1;
            }
        }
    }
    println!("moved after {:?}: {seen:?}", began.elapsed());
    assert_eq!(seen["disconnect"], moving, "{seen:?}");
    expect_change(&mut fleet);
    assert_eq!(stop(second), CLIENTS);
}

#[test]
fn pages_are_served_through_it_with_cookies_and_without() {
    serve_pages(HaProxy::url, "HTTP/1.1");
}

#[test]
fn pages_are_served_through_it_over_http_2() {
    serve_pages(HaProxy::tls_url, "HTTP/2.0");
}

fn serve_pages(url: fn(&HaProxy) -> String, version: &str) {
    let couchdb = couchdb();
    let first = Howler::start(&couchdb);
    let second = Howler::start(&couchdb);
    let haproxy = HaProxy::start(&first, &second);
    let mut browser = Browser::start();
    // Several of each, so that both instances get some.
    for round in 0..2 {
        for (library, options) in [
            ("sio2", json!({"withCredentials": true})),
            ("sio2", json!({"withCredentials": false, "transports": ["polling"]})),
            ("sio4", json!({"withCredentials": true, "transports": ["polling"]})),
            ("sio4", json!({})),
            ("sio4", json!({"transports": ["websocket"]})),
        ] {
            let page = format!("{round} {library} {options}");
            browser.open(&page, library, &url(&haproxy), &options);
            browser.expect(&page, "authenticated");
            browser.subscribe(&page, &[&page]);
            if options.get("transports").is_none() {
                browser.expect(&page, "upgraded");
            }
            couchdb.update(&page);
            assert_eq!(browser.expect(&page, "change")["db"], page.as_str());
            let report = browser.report(&page);
            assert_eq!(report["complaints"], json!([]), "{page}");
            let polls = options["transports"] != json!(["websocket"]);
            assert_eq!(report["versions"], if polls { json!([version]) } else { json!([]) }, "{page}");
        }
    }
    let (first, second) = (stop(first), stop(second));
    println!("{first} and {second} pages");
    assert!(first > 0 && second > 0 && first + second >= 10, "{first} and {second}");
    browser.end();
}
