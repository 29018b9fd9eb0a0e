//! Two servers behind a proxy that runs with its file from `tests/deploy`: HAProxy, nginx, Caddy.

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
use crate::support::{PASSWORD, SOON, USER, couchdb, retry};

/// A running proxy, killed on drop.
struct Proxy {
    child: Child,
    port: u16,
    tls_port: u16,
}

impl Proxy {
    fn haproxy(first: &Howler, second: &Howler) -> Self {
        let (port, tls_port) = (free_port(), free_port());
        let configuration = Configuration::new("haproxy.cfg", port)
            .replace(" :3000\n", &format!(" 127.0.0.1:{port}\n"))
            .replace("# bind :443 ", &format!("bind 127.0.0.1:{tls_port} "))
            .replace("/etc/haproxy/howler.pem", &write_certificate(&file("haproxy.pem", port)))
            .instances(first, second);
        let arguments = ["-db", "-f", &configuration.write()].map(str::to_owned);
        Self::start("haproxy", &arguments, port, tls_port)
    }

    fn nginx(first: &Howler, second: &Howler) -> Self {
        let port = free_port();
        let name = |end: &str| file(end, port).to_str().expect("a name in UTF-8").to_owned();
        let configuration = Configuration::new("nginx.conf", port)
            .replace("listen 80;", &format!("listen 127.0.0.1:{port};"))
            .replace("/var/log/nginx/error.log", &name("nginx-error.log"))
            .replace("/var/log/nginx/access.log", &name("nginx-access.log"))
            .replace("/run/nginx.pid", &name("nginx.pid"))
            .replace("worker_rlimit_nofile 65536;\n", "")
            .replace("worker_connections 32768;", "worker_connections 1024;")
            .instances(first, second);
        let arguments = ["-g", "daemon off; master_process off;", "-c", &configuration.write()].map(str::to_owned);
        Self::start("nginx", &arguments, port, port)
    }

    fn caddy(first: &Howler, second: &Howler) -> Self {
        let port = free_port();
        let configuration = Configuration::new("Caddyfile", port)
            .replace("\tlog {\n", "\tadmin off\n\tlog {\n")
            .replace("howler.example.com {", &format!("http://:{port} {{\n\tbind 127.0.0.1"))
            .instances(first, second);
        let arguments = ["run", "--adapter", "caddyfile", "--config", &configuration.write()].map(str::to_owned);
        Self::start("caddy", &arguments, port, port)
    }

    /// Starts the program and waits until it listens.
    fn start(program: &str, arguments: &[String], port: u16, tls_port: u16) -> Self {
        let log_name = file(&format!("{program}.log"), port);
        let log = File::create(&log_name).expect("the target folder can be written");
        let child = Command::new(path_of(program))
            .args(arguments)
            // Caddy keeps its state in the home folder.
            .env("HOME", env!("CARGO_TARGET_TMPDIR"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{program} does not start ({error}): install its Debian package"));
        let mut proxy = Self { child, port, tls_port };
        retry(|| {
            let ended = proxy.child.try_wait().expect("the proxy is a child process");
            let silent = format!("{program} does not listen, see {}", log_name.display());
            assert!(ended.is_none(), "{silent}");
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|_| silent)
        });
        proxy
    }

    fn url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    fn tls_url(&self) -> String {
        format!("https://localhost:{}", self.tls_port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of `tests/deploy` with the ports and paths of this test in place of those for users.
struct Configuration {
    text: String,
    path: PathBuf,
}

impl Configuration {
    fn new(name: &str, port: u16) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/deploy").join(name);
        let text = std::fs::read_to_string(path).expect("the file exists");
        Self { text, path: file(name, port) }
    }

    fn replace(mut self, written: &str, meant: &str) -> Self {
        assert_eq!(self.text.matches(written).count(), 1, "{written:?} in {}", self.text);
        self.text = self.text.replace(written, meant);
        self
    }

    fn instances(self, first: &Howler, second: &Howler) -> Self {
        self.replace("10.0.0.1:3000", &first.address().to_string())
            .replace("10.0.0.2:3000", &second.address().to_string())
    }

    /// Writes the file and returns its name.
    fn write(self) -> String {
        std::fs::write(&self.path, self.text).expect("the target folder can be written");
        self.path.to_str().expect("a name in UTF-8").to_owned()
    }
}

fn file(name: &str, port: u16) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("proxy-{port}-{name}"))
}

fn free_port() -> u16 {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
    socket.expect("a port is free").port()
}

/// Writes a certificate and its key to one file, as HAProxy requires; returns the file's name.
fn write_certificate(file: &Path) -> String {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate can be made");
    std::fs::write(file, made.cert.pem() + &made.signing_key.serialize_pem())
        .expect("the target folder can be written");
    file.to_str().expect("a name in UTF-8").to_owned()
}

/// Debian installs servers in a folder that only root's PATH has.
fn path_of(program: &str) -> PathBuf {
    let in_sbin = Path::new("/usr/sbin").join(program);
    if in_sbin.exists() { in_sbin } else { program.into() }
}

/// Stops a server and returns the number of its clients.
fn stop(mut howler: Howler) -> usize {
    howler.signal("TERM");
    let line = howler.wait_for_line("Stopping: ");
    let clients = line.split("Stopping: ").nth(1).and_then(|rest| rest.split(' ').next());
    let clients = clients.and_then(|number| number.parse().ok()).expect("a number");
    assert!(howler.wait().success());
    clients
}

const CLIENTS: usize = 200;
/// Number of clients that each have their own address.
const ADDRESSES: usize = 40;

#[test]
fn haproxy_distributes_clients_and_moves_them_when_an_instance_stops() {
    let couchdb = couchdb();
    let first = Howler::start(&couchdb);
    let second = Howler::start(&couchdb);
    let proxy = Proxy::haproxy(&first, &second);
    let mut fleet = Script::node("fleet.js", &[]);
    let began = Instant::now();
    fleet.send_command(&json!({
        "do": "start", "name": "c", "count": CLIENTS, "url": proxy.url(), "dbs": ["garden"],
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
        // A request to the wrong instance would have ended the session.
        assert_eq!(fleet.take_others(name), Vec::<Value>::new(), "{name}");
    }

    let moving = stop(first);
    println!("{moving} clients of {CLIENTS} were at the first instance");
    assert!((CLIENTS / 4..=CLIENTS * 3 / 4).contains(&moving), "{moving}");
    // These clients move to the second instance; those already there notice nothing.
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
fn nginx_distributes_addresses_and_moves_them_when_an_instance_stops() {
    clients_are_shared_by_address(Proxy::nginx);
}

#[test]
fn caddy_distributes_addresses_and_moves_them_when_an_instance_stops() {
    clients_are_shared_by_address(Proxy::caddy);
}

fn clients_are_shared_by_address(start: fn(&Howler, &Howler) -> Proxy) {
    let couchdb = couchdb();
    let first = Howler::start(&couchdb);
    let second = Howler::start(&couchdb);
    let proxy = start(&first, &second);
    let mut fleet = Script::node("fleet.js", &[]);
    fleet.send_command(&json!({
        "do": "start", "name": "c", "count": ADDRESSES, "url": proxy.url().replace("localhost", "127.0.0.1"),
        "dbs": ["garden"], "addresses": true, "query": {"username": USER, "password": PASSWORD},
    }));
    let names: Vec<String> = (0..ADDRESSES).map(|number| format!("c{number}")).collect();
    for name in &names {
        fleet.expect(name, "authenticated");
        assert_eq!(fleet.expect_ack(name, "subscribe"), json!({}));
        fleet.expect(name, "upgraded");
    }
    couchdb.update("garden");
    for name in &names {
        assert_eq!(fleet.expect(name, "change")["db"], "garden");
        assert_eq!(fleet.take_others(name), Vec::<Value>::new(), "{name}");
    }
    let moving = stop(first);
    println!("{moving} clients of {ADDRESSES} were at the first instance");
    assert!((1..ADDRESSES).contains(&moving), "{moving}");
    let began = Instant::now();
    let mut moved = BTreeSet::new();
    while moved.len() < moving {
        assert!(began.elapsed() < 3 * SOON, "{} of {moving} moved", moved.len());
        std::thread::sleep(Duration::from_millis(20));
        for name in &names {
            let events = fleet.take_others(name);
            if events.iter().any(|event| event["event"] == "ack") {
                moved.insert(name);
            }
        }
    }
    couchdb.update("garden");
    for name in &names {
        assert_eq!(fleet.expect(name, "change")["db"], "garden");
    }
    assert_eq!(stop(second), ADDRESSES);
}

#[test]
fn haproxy_serves_pages_with_and_without_cookies() {
    serve_pages(Proxy::url, "HTTP/1.1");
}

#[test]
fn haproxy_serves_pages_over_http_2() {
    serve_pages(Proxy::tls_url, "HTTP/2.0");
}

fn serve_pages(url: fn(&Proxy) -> String, version: &str) {
    let couchdb = couchdb();
    let first = Howler::start(&couchdb);
    let second = Howler::start(&couchdb);
    let proxy = Proxy::haproxy(&first, &second);
    let mut browser = Browser::start();
    // Several pages of each kind, so that both instances get some.
    for round in 0..2 {
        for (library, options) in [
            ("sio2", json!({"withCredentials": true})),
            ("sio2", json!({"withCredentials": false, "transports": ["polling"]})),
            ("sio4", json!({"withCredentials": true, "transports": ["polling"]})),
            ("sio4", json!({})),
            ("sio4", json!({"transports": ["websocket"]})),
        ] {
            let page = format!("{round} {library} {options}");
            browser.open(&page, library, &url(&proxy), &options);
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
