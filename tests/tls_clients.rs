//! TLS for clients: both versions, real clients, certificates that change while the server runs,
//! and peers that send malformed records, stall, or connect to the wrong port.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use serde_json::json;

use crate::support::client::{Client, Received};
use crate::support::couchdb::StandIn;
use crate::support::howler::{BINARY, Howler, run};
use crate::support::http::{Http, Poller, request};
use crate::support::tls::{Authority, Identity};
use crate::support::wire::Target;
use crate::support::{A_MOMENT, PASSWORD, SOON, USER, couchdb, retry};

/// A server with a certificate, and what its clients need.
struct Served {
    authority: Authority,
    identity: Identity,
    couchdb: StandIn,
    howler: Howler,
}

impl Served {
    /// Starts a server with TLS on its only port.
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with a plain port and one for TLS.
    fn with_both_ports() -> Self {
        Self::start_with(&["--tls_port", "0"])
    }

    fn start_with(options: &[&str]) -> Self {
        let (authority, couchdb) = (Authority::new(), couchdb());
        let identity = Identity::new(&authority);
        let howler = Howler::start_with(&couchdb, &[&identity.options(), options].concat());
        let served = Self { authority, identity, couchdb, howler };
        // From now on the server keeps its connection to CouchDB for logins.
        Client::logged_in(served.target());
        served
    }

    fn address(&self) -> SocketAddr {
        self.howler.tls_address()
    }

    fn target(&self) -> Target {
        Target::tls(self.address(), self.authority.client(rustls::ALL_VERSIONS))
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address().port())
    }
}

/// Runs an installed program with some input until it ends.
fn run_program(program: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} does not start: {error}"));
    // The program may end without reading.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("the program ends")
}

fn curl(authority: &Authority, arguments: &[&str]) -> Output {
    let trust = ["--silent", "--show-error", "--max-time", "20", "--cacert", authority.file()];
    run_program("curl", &[&trust, arguments].concat(), b"")
}

/// Returns what `openssl s_client` prints about a connection.
fn s_client(served: &Served, options: &[&str]) -> String {
    let connect = format!("localhost:{}", served.address().port());
    let arguments = ["s_client", "-connect", &connect, "-CAfile", served.authority.file()];
    let output = run_program("openssl", &[&arguments, options].concat(), b"");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn curl_works_with_both_versions_and_reuses_its_connection() {
    let served = Served::start();
    let url = served.url() + "/howler.js";
    for versions in [&["--tlsv1.2", "--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        let print = "%{http_code} %{ssl_verify_result} %{num_connects} %{size_download}\n";
        let twice = ["-o", "/dev/null", "-o", "/dev/null", "-w", print, &url, &url];
        let output = curl(&served.authority, &[versions, &twice].concat());
        let size = Http::connect(served.target()).get("/howler.js").body.len();
        let expected = format!("200 0 1 {size}\n200 0 0 {size}\n");
        assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    }
    let output = curl(&served.authority, &["-v", "-o", "/dev/null", &url]);
    assert!(text(&output.stderr).contains("ALPN: server accepted http/1.1"), "{}", text(&output.stderr));
    let stranger = curl(&Authority::new(), &[&url]);
    assert_eq!(stranger.status.code(), Some(60), "curl rejects the unknown authority: {}", text(&stranger.stderr));
    served.howler.wait_for_line("the client does not trust the certificate in --tls_cert");
}

#[test]
fn openssl_accepts_the_versions_the_protocol_and_the_chain() {
    let served = Served::start();
    for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let output = s_client(&served, &[option, "-alpn", "http/1.1", "-verify_return_error"]);
        for line in [&format!("New, {version}"), "ALPN protocol: http/1.1", "Verify return code: 0 (ok)"] {
            assert!(output.contains(line), "{version}, {line}: {output}");
        }
        // A client that offers no protocol is served, too.
        let output = s_client(&served, &[option]);
        assert!(output.contains("No ALPN negotiated") && output.contains(&format!("New, {version}")), "{output}");
    }
    let old = s_client(&served, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]);
    assert!(old.contains("alert"), "{old}");
    served.howler.wait_for_line("the client speaks neither TLS 1.2 nor 1.3");
    let other = s_client(&served, &["-alpn", "h2"]);
    assert!(other.contains("alert no application protocol"), "{other}");
    served.howler.wait_for_line("another protocol than HTTP/1.1 (ALPN)");
    assert_eq!(
        served.howler.count_logged("WARN") + served.howler.count_logged("ERROR"),
        0,
        "failed handshakes are not logged as warnings"
    );
}

#[test]
fn every_dialect_works_over_both_versions_whole_and_byte_by_byte() {
    let served = Served::start();
    for version in [&TLS12, &TLS13] {
        let whole = Target::tls(served.address(), served.authority.client(&[version]));
        for target in [whole.clone(), whole.byte_by_byte()] {
            let mut json = Client::subscribed(&target, &["db"]);
            let mut socket_io = Client::socket_io_logged_in(&target);
            socket_io.send("420[\"subscribe\",[\"db\"]]");
            assert_eq!(socket_io.receive_text(SOON).as_deref(), Some("430[{}]"));
            let mut poller = Poller::subscribed(&target, &["db"]);
            served.couchdb.update("db");
            assert_eq!(json.next_change(SOON).as_deref(), Some("db"));
            assert_eq!(socket_io.receive_text(SOON).as_deref(), Some("42[\"change\",\"db\"]"));
            assert_eq!(poller.next(), "42[\"change\",\"db\"]");
        }
    }
}

#[test]
fn both_ports_share_the_sessions_of_the_server() {
    let served = Served::with_both_ports();
    assert_ne!(served.howler.address(), served.address());
    let mut plain = Client::subscribed(served.howler.address(), &["db"]);
    let mut secure = Client::subscribed(served.target(), &["db"]);
    // A polling session may use both ports.
    let mut poller = Poller::subscribed(served.target(), &["db"]);
    poller.posts = Http::connect(served.howler.address());
    poller.send(&["421[\"heartbeat\",null]"]);
    assert_eq!(poller.next(), "431[{\"ok\":true}]");
    served.couchdb.update("db");
    for client in [&mut plain, &mut secure] {
        assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
    }
}

#[test]
fn returning_clients_resume_their_tls_session() {
    let served = Served::start();
    for version in [&TLS12, &TLS13] {
        let target = Target::tls(served.address(), served.authority.client(&[version]));
        for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
            let mut http = Http::connect(&target);
            assert_eq!(http.get("/howler.js").status, 200);
            assert_eq!(http.wire.session().handshake_kind(), Some(expected), "{version:?}");
        }
    }
}

/// Two hundred clients of all dialects, with the notification that each expects.
struct Crowd {
    clients: Vec<(Client, &'static str)>,
    pollers: Vec<Poller>,
}

impl Crowd {
    fn gather(target: &Target) -> Self {
        let mut clients = Vec::new();
        for _ in 0..80 {
            clients.push((Client::subscribed(target, &["db"]), "\"db\":\"db\""));
            let mut client = Client::socket_io_logged_in(target);
            client.send("420[\"subscribe\",[\"db\"]]");
            assert_eq!(client.receive_text(SOON).as_deref(), Some("430[{}]"));
            clients.push((client, "42[\"change\",\"db\"]"));
        }
        // Each poller holds two connections.
        let pollers = (0..20).map(|_| Poller::subscribed(target, &["db"])).collect();
        Self { clients, pollers }
    }

    fn start_polls(&mut self) {
        self.pollers.iter_mut().for_each(Poller::start_poll);
    }

    /// Asserts that each client receives a change on its existing connection.
    fn is_notified(&mut self, couchdb: &StandIn) {
        couchdb.update("db");
        for (client, expected) in &mut self.clients {
            let received = client.receive_text(SOON).expect("a change");
            assert!(received.contains(*expected), "{received}");
        }
        for poller in &mut self.pollers {
            assert_eq!(poller.finish_poll(), ["42[\"change\",\"db\"]"]);
            poller.send(&["421[\"heartbeat\",null]"]);
            assert_eq!(poller.next(), "431[{\"ok\":true}]");
        }
    }

    /// Asserts that clients receive nothing and stay connected.
    fn is_quiet(&mut self) {
        // Proves that nothing arrives.
        std::thread::sleep(A_MOMENT);
        for (client, _) in &mut self.clients {
            assert_eq!(client.receive(Duration::from_millis(1)), Received::Nothing);
        }
    }
}

/// Returns the certificate that the server presents on a new connection.
fn shown(served: &Served) -> Vec<u8> {
    let mut wire = served.target().connect().expect("the certificate is good");
    let chain = wire.session().peer_certificates().expect("the handshake is over");
    assert_eq!(chain.len(), 2, "the chain has the server's and the intermediate certificate");
    chain[0].to_vec()
}

#[test]
fn a_renewed_certificate_keeps_two_hundred_connections() {
    let mut served = Served::with_both_ports();
    let target = served.target();
    let mut crowd = Crowd::gather(&target);
    crowd.start_polls();
    let first = shown(&served);
    assert_eq!(first, served.identity.current.as_ref());

    served.identity.renew(&served.authority);
    assert_eq!(shown(&served), first, "the certificate changes only after SIGHUP");
    served.howler.signal("HUP");
    served.howler.wait_for_line("SIGHUP: new connections are shown the certificate in");
    let second = shown(&served);
    assert_ne!(second, first);
    assert_eq!(second, served.identity.current.as_ref());
    crowd.is_notified(&served.couchdb);

    // Unusable files change nothing.
    let (certificate, key) = (served.identity.certificate.clone(), served.identity.key.clone());
    let other = Identity::new(&served.authority);
    let not_its_key = "it is not the key of the first certificate";
    for (number, (file, content, problem)) in [
        (&key, std::fs::read(&other.key).unwrap(), not_its_key),
        (&key, b"zq7-nonsense".to_vec(), "it has no private key (-----BEGIN PRIVATE KEY-----"),
        (&certificate, b"zq7-nonsense".to_vec(), "it has no certificate (-----BEGIN CERTIFICATE-----)"),
        (&certificate, Vec::new(), "it has no certificate"),
    ]
    .into_iter()
    .enumerate()
    {
        crowd.start_polls();
        let good = std::fs::read(file).unwrap();
        std::fs::write(file, content).unwrap();
        served.howler.signal("HUP");
        let line = served.howler.wait_for_lines("SIGHUP: the old certificate stays in use. ", number + 1);
        assert!(line.contains("ERROR") && line.contains(file) && line.contains(problem), "{line}");
        assert_eq!(shown(&served), second);
        crowd.is_notified(&served.couchdb);
        std::fs::write(file, good).unwrap();
    }
    std::fs::remove_file(&certificate).unwrap();
    served.howler.signal("HUP");
    let line = served.howler.wait_for_lines("SIGHUP: the old certificate stays in use. ", 5);
    assert!(line.contains(&certificate) && line.contains("No such file"), "{line}");
    crowd.start_polls();
    crowd.is_notified(&served.couchdb);
    crowd.is_quiet();
    assert_eq!(served.howler.count_lines("Session of "), 1, "only the first client, which left, has ended");
    assert_eq!(served.howler.count_logged("ERROR"), 5);
}

#[test]
fn sighup_without_a_certificate_changes_nothing() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let mut client = Client::subscribed(howler.address(), &["db"]);
    howler.signal("HUP");
    howler.wait_for_line("SIGHUP: there is no certificate to be read again");
    couchdb.update("db");
    assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
}

#[test]
fn every_kind_of_key_from_openssl_is_accepted() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("keys-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
    let (key, certificate) = (file("key.pem"), file("cert.pem"));
    let openssl = |line: &str| {
        let output = run_program("openssl", &line.split_whitespace().collect::<Vec<_>>(), b"");
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    };
    let couchdb = couchdb();
    for (make, begin) in [
        ("genrsa -traditional -out", "BEGIN RSA PRIVATE KEY"),
        ("genpkey -algorithm RSA -out", "BEGIN PRIVATE KEY"),
        // The file starts with a section of parameters.
        ("ecparam -genkey -name prime256v1 -out", "BEGIN EC PRIVATE KEY"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out", "BEGIN PRIVATE KEY"),
        ("genpkey -algorithm ED25519 -out", "BEGIN PRIVATE KEY"),
    ] {
        openssl(&format!("{make} {key}"));
        assert!(std::fs::read_to_string(&key).unwrap().contains(begin), "{make}");
        openssl(&format!(
            "req -x509 -new -key {key} -subj /CN=localhost -addext subjectAltName=DNS:localhost -out {certificate}"
        ));
        let howler = Howler::start_with(&couchdb, &["--tls_cert", &certificate, "--tls_key", &key]);
        let url = format!("https://localhost:{}/howler.js", howler.tls_address().port());
        let output =
            run_program("curl", &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &certificate, &url], b"");
        assert_eq!(text(&output.stdout), "200", "{make}: {}", text(&output.stderr));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn unusable_files_are_reported_at_the_start() {
    let authority = Authority::new();
    let (good, other) = (Identity::new(&authority), Identity::new(&authority));
    let encrypted = format!("{}.encrypted", good.key);
    let arguments = ["pkcs8", "-topk8", "-in", &good.key, "-out", &encrypted, "-passout", "pass:zq7-pass"];
    assert!(run_program("openssl", &arguments, b"").status.success());
    for (certificate, key, named, problem) in [
        ("/nowhere/cert.pem", &*good.key, "--tls_cert /nowhere/cert.pem: ", "No such file"),
        (&*good.certificate, "/nowhere/key.pem", "--tls_key /nowhere/key.pem: ", "No such file"),
        (&good.key, &good.key, "--tls_cert ", "it has no certificate"),
        (&good.certificate, &good.certificate, "--tls_key ", "it has no private key"),
        (&good.certificate, &encrypted, "--tls_key ", "its key is encrypted"),
        (&good.certificate, &other.key, "--tls_key ", "it is not the key of the first certificate in"),
    ] {
        let ended = run(
            &["-u", "http://admin:zq7-secret@localhost:1", "-p", "0", "--tls_cert", certificate, "--tls_key", key],
            &[],
        );
        assert_eq!((ended.code, ended.stderr.lines().count()), (Some(1), 1), "{}", ended.stderr);
        assert!(ended.stderr.contains(named) && ended.stderr.contains(problem), "{problem}: {}", ended.stderr);
    }
    let ended = run(&["-u", "http://admin:zq7-secret@localhost:1", "--tls_cert", &good.certificate], &[]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--tls_cert: expected --tls_key beside it"), "{}", ended.stderr);
}

#[test]
fn the_wrong_port_answers_with_a_hint() {
    let served = Served::with_both_ports();
    let (plain, tls) = (served.howler.address(), served.address());
    for _ in 0..3 {
        // Plain HTTP to the port of TLS.
        let answer = Http::connect(tls).get("/");
        assert_eq!((answer.status, answer.field("Connection")), (400, Some("close")));
        assert!(answer.text().contains("not plain HTTP: use https:// and wss://"), "{}", answer.text());
        // TLS to the plain port.
        let mut http = Http::connect(plain);
        http.send_raw(CLIENT_HELLO);
        let answer = http.answer();
        assert_eq!(answer.status, 400);
        let hint = format!("not TLS: use http:// and ws://; TLS is spoken on port {}.", tls.port());
        assert!(answer.text().contains(&hint), "{}", answer.text());
        assert!(http.ends());
    }
    served.howler.wait_for_line("speaks plain HTTP to the port of TLS: it has to use https:// or wss://.");
    served.howler.wait_for_line(&format!("it has to use http:// or ws://; TLS is spoken on port {}.", tls.port()));
    assert_eq!(served.howler.count_logged("WARN"), 2, "each hint is logged once: {}", served.howler.output());

    // Messages that real clients show.
    let output = curl(&served.authority, &[&format!("http://localhost:{}/", tls.port())]);
    assert!(text(&output.stdout).starts_with("This port speaks HTTPS"), "{}", text(&output.stderr));
    let output = curl(&served.authority, &[&format!("https://localhost:{}/", plain.port())]);
    assert!(text(&output.stderr).contains("wrong version number"), "{}", text(&output.stderr));
    // The server is unaffected.
    let mut client = Client::subscribed(served.target(), &["db"]);
    served.couchdb.update("db");
    assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
}

/// Start of a `ClientHello`: a record, a message of 508 bytes, version 1.2.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

#[test]
fn a_stalled_handshake_times_out() {
    let served = Served::start();
    let before = idle_descriptors(&served.howler);
    let began = Instant::now();
    let stalled: Vec<TcpStream> = [&b""[..], &CLIENT_HELLO[..1], CLIENT_HELLO]
        .into_iter()
        .cycle()
        .take(30)
        .map(|said| {
            let mut socket = TcpStream::connect(served.address()).expect("the server listens");
            socket.write_all(said).expect("the server reads");
            socket
        })
        .collect();
    // Other clients are served meanwhile.
    let mut client = Client::subscribed(served.target(), &["db"]);
    served.couchdb.update("db");
    assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
    for mut socket in stalled {
        socket.set_read_timeout(Some(SOON)).unwrap();
        // The server does not answer an incomplete handshake.
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
    assert!(began.elapsed() >= Duration::from_secs(9), "closed too early: {:?}", began.elapsed());
    drop(client);
    wait_for_descriptors(&served.howler, before);
}

/// Returns the number of descriptors when no client is connected any more.
fn idle_descriptors(howler: &Howler) -> usize {
    howler.wait_for_line("Session of 127.0.0.1 ended");
    let mut last = howler.descriptors();
    loop {
        // Proves that no further descriptor is closed.
        std::thread::sleep(A_MOMENT);
        let now = howler.descriptors();
        if std::mem::replace(&mut last, now) == now {
            return now;
        }
    }
}

fn wait_for_descriptors(howler: &Howler, count: usize) {
    retry(|| match howler.descriptors() {
        now if now > count => Err(format!("{now} descriptors, not {count}")),
        _ => Ok(()),
    });
}

#[test]
fn malformed_records_get_an_alert() {
    let served = Served::start();
    let before = idle_descriptors(&served.howler);
    for said in [
        // A record that is too long, an empty one, an incomplete ClientHello.
        &b"\x16\x03\x01\xff\xff0123456789"[..],
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x08\x01\x00\x00\x02\x03\x03\x03\x03",
    ] {
        let mut socket = TcpStream::connect(served.address()).expect("the server listens");
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.write_all(said).expect("the server reads");
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("an end, not a reset");
        assert!(matches!(*answer, [0x15, _, _, 0, 2, 2, _]), "no fatal alert: {answer:?} to {said:?}");
    }
    served.howler.wait_for_lines("No TLS with 127.0.0.1: ", 3);
    wait_for_descriptors(&served.howler, before);
    Client::logged_in(served.target());
}

#[test]
fn a_malformed_record_after_the_handshake_ends_only_that_connection() {
    let served = Served::start();
    let mut other = Client::subscribed(served.target(), &["db"]);
    let mut http = Http::connect(served.target());
    assert_eq!(http.get("/howler.js").status, 200);
    http.wire.socket().write_all(b"\x17\x03\x03\x00\x20this was encrypted by nobody, no").unwrap();
    let error = http.wire.read(&mut [0; 100]).expect_err("an alert");
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    served.couchdb.update("db");
    assert_eq!(other.next_change(SOON).as_deref(), Some("db"));
}

#[test]
fn traffic_keys_may_be_updated_at_any_time() {
    let served = Served::start();
    let target = Target::tls(served.address(), served.authority.client(&[&TLS13]));
    let mut http = Http::connect(&target);
    let expected = http.get("/howler.js").body;
    for _ in 0..20 {
        http.wire.session().refresh_traffic_keys().expect("the handshake is over");
        assert!(http.get("/howler.js").body == expected);
    }
}

#[test]
fn both_sides_send_close_notify() {
    let served = Served::start();
    let before = idle_descriptors(&served.howler);
    // The server's end: reading fails if the bytes before it are incomplete.
    let mut http = Http::connect(served.target());
    http.send_raw(request("GET", "/howler.js", "Connection: close\r\n", b""));
    let answer = http.answer();
    assert_eq!(answer.status, 200);
    assert_eq!(http.wire.read(&mut [0; 100]).expect("close_notify arrives"), 0);
    drop(http);
    // The server answers the client's `close_notify` with its own.
    let mut http = Http::connect(served.target());
    assert_eq!(http.get("/howler.js").status, 200);
    http.wire.session().send_close_notify();
    http.wire.flush_session();
    assert_eq!(http.wire.read(&mut [0; 100]).expect("close_notify arrives"), 0);
    drop(http);
    // A client that is cut off ends its session and leaves nothing behind.
    let mut client = Client::subscribed(served.target(), &["db"]);
    client.socket().shutdown(Shutdown::Both).unwrap();
    assert!(matches!(client.receive(SOON), Received::End));
    served.howler.wait_for_lines("Session of 127.0.0.1 ended: connection lost.", 2);
    // Shutdown.
    wait_for_descriptors(&served.howler, before);
    let mut client = Client::subscribed(served.target(), &["db"]);
    let mut howler = served.howler;
    howler.signal("TERM");
    let (texts, close) = client.receive_close(SOON);
    assert!(texts[0].contains("goodbye"), "{texts:?}");
    assert_eq!(close, Received::Close(1001, "shutting down".into()));
    drop(client);
    assert_eq!(howler.wait().code(), Some(0));
}

#[test]
fn large_responses_reach_a_slow_reader_completely() {
    let served = Served::start();
    let expected = Http::connect(served.target()).get("/howler.js").body;
    let mut http = Http::connect(served.target());
    // More than all buffers of the system hold.
    let count = 400;
    let requests = request("GET", "/howler.js", "", b"").repeat(count);
    http.send_raw(&requests);
    // This client reads nothing for a while, which does not affect others.
    let mut client = Client::subscribed(served.target(), &["db"]);
    served.couchdb.update("db");
    assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
    for number in 0..count {
        let answer = http.answer();
        assert!(answer.body == expected, "response {number} is incomplete");
    }
}

#[test]
fn a_client_that_does_not_read_misses_nothing() {
    let served = Served::start();
    let mut client = Client::logged_in(served.target());
    let names: Vec<String> = (0..8_000).map(|number| format!("{}-{number}", "long".repeat(50))).collect();
    for part in names.chunks(200) {
        assert_eq!(client.ask(json!({"op": "subscribe", "dbs": part}))["ok"], true);
    }
    let mut other = Client::subscribed(served.target(), &["last"]);
    served.couchdb.update_many(&names.iter().map(String::as_str).collect::<Vec<_>>());
    served.couchdb.update("last");
    assert_eq!(other.next_change(SOON).as_deref(), Some("last"));
    let mut received: Vec<String> = names.iter().map(|_| client.next_change(SOON).expect("a change")).collect();
    received.sort();
    received.dedup();
    assert_eq!(received.len(), names.len(), "each database once");
}

#[test]
fn three_hundred_clients_receive_each_change_once() {
    let served = Served::start();
    let target = served.target();
    let mut clients: Vec<Client> = (0..300).map(|_| Client::subscribed(&target, &["db"])).collect();
    for _ in 0..3 {
        served.couchdb.update("db");
        for client in &mut clients {
            assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
        }
    }
    // Proves that no second notification follows.
    std::thread::sleep(A_MOMENT);
    for client in &mut clients {
        assert_eq!(client.receive(Duration::from_millis(1)), Received::Nothing);
    }
}

#[test]
fn an_idle_connection_costs_little() {
    for version in [&TLS12, &TLS13] {
        // Each version gets a fresh server, as a used one has free memory that hides the cost.
        let served = Served::start();
        let target = Target::tls(served.address(), served.authority.client(&[version]));
        // The first clients also pay for what all share.
        let mut clients: Vec<Client> = (0..100).map(|_| Client::subscribed(&target, &["db"])).collect();
        let before = served.howler.resident_kib();
        clients.extend((0..600).map(|_| Client::subscribed(&target, &["db"])));
        let after = served.howler.resident_kib();
        let each = after.saturating_sub(before) * 1024 / 600;
        println!("{version:?}: {each} bytes resident for each idle connection over TLS, its session included");
        assert!(each <= 12 * 1024, "{each}");
    }
}

#[test]
fn a_polling_session_logs_in_by_the_auth_object_and_upgrades_over_tls() {
    let served = Served::start();
    let mut poller = Poller::open(served.target(), 4, "");
    poller.send(&[&format!("40{}", json!({"username": USER, "password": PASSWORD}))]);
    let packets: Vec<String> = (0..3).map(|_| poller.next()).collect();
    assert!(packets[2].starts_with("42[\"authenticated\""), "{packets:?}");
    // The upgrade uses a second TLS connection.
    let mut websocket = Client::open(served.target(), &poller.websocket_target());
    websocket.send("2probe");
    assert_eq!(websocket.receive_text(SOON).as_deref(), Some("3probe"));
    websocket.send("5");
    websocket.send("421[\"heartbeat\",null]");
    assert_eq!(websocket.receive_text(SOON).as_deref(), Some("431[{\"ok\":true}]"));
}

#[test]
fn the_example_of_the_manual_works() {
    let page = include_str!("../src/manual/deploying.md");
    let (_, section) = page.split_once("## TLS\n").expect("the page has the section");
    let (_, script) = section.split_once("```sh\n").expect("the example");
    let (script, _) = script.split_once("```").expect("the end of the example");
    let script = script.replace("\\\n", " ");
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("readme-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let couchdb = couchdb();
    let mut running = None;
    for line in script.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words[0] == "couchdb-howler" {
            assert_eq!(words[1], "--couchdb_url");
            let mut command = Command::new(BINARY);
            command.current_dir(&folder).args(["--couchdb_url", &couchdb.url()]).args(&words[3..]);
            running = Some(Howler::launch_command(&mut command));
            continue;
        }
        let port = running.as_ref().map_or(3000, Howler::port);
        let line = line.replace(":3000/", &format!(":{port}/"));
        let output = Command::new("sh").args(["-c", &line]).current_dir(&folder).output().expect("a shell");
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        if running.is_some() {
            assert!(text(&output.stdout).contains("howler"), "the file is served");
        }
    }
    assert!(running.is_some(), "{script}");
    std::fs::remove_dir_all(folder).unwrap();
}
