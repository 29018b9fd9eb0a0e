//! The commands `check` and `healthcheck`: their results and their error messages.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::couchdb::{Options, StandIn};
use crate::support::howler::{Ended, Howler, run};
use crate::support::tls::{Authority, Identity, TlsProxy, tls_url};
use crate::support::{PASSWORD, SOON, USER, couchdb, couchdb_with};

/// Runs `check` on a free loopback port.
fn check(url: &str, options: &[&str]) -> Ended {
    run(&[&["check", "--host", "127.0.0.1", "--port", "0", "-u", url], options].concat(), &[])
}

/// Asserts that the last step fails with these words and that all other steps succeed.
fn fails(ended: &Ended, step: &str, words: &[&str]) {
    let lines: Vec<&str> = ended.stdout.lines().collect();
    let (last, others) = lines.split_last().expect("there is at least one line");
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(1), ""), "{}", ended.stdout);
    assert!(last.starts_with(&format!("FAILED  {step}: ")), "{step}: {}", ended.stdout);
    assert!(others.iter().all(|line| line.starts_with("ok      ")), "{}", ended.stdout);
    for word in words {
        assert!(last.contains(word), "{word} in {last}");
    }
}

/// Asserts that all steps succeed. Returns their names.
fn succeeds(ended: &Ended) -> Vec<String> {
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    let detail = |line: &str| line.strip_prefix("ok      ").or(line.strip_prefix("note    ")).map(str::to_owned);
    let step = |line: &str| detail(line).and_then(|rest| rest.split(": ").next().map(str::to_owned));
    ended.stdout.lines().map(|line| step(line).unwrap_or_else(|| panic!("{line}"))).collect()
}

#[test]
fn check_reports_how_restarts_are_detected() {
    let cluster = couchdb_with(Options { nodes: 3, ..Options::default() });
    let printed = |couchdb: &StandIn, options: &[&str]| check(&couchdb.url(), options).stdout;
    let merged = "ok      restarts: a cluster of 3 nodes, which say when they started";
    assert!(printed(&cluster, &[]).contains(&format!("{merged}; changes are merged for 800 ms (--merge_window)\n")));
    assert!(printed(&cluster, &["--merge_window", "0"]).contains(&format!("{merged}\n")));
    for status in [401, 403, 404, 503] {
        cluster.refuse_uptime(Some(status));
        let ended = check(&cluster.url(), &[]);
        let line = format!(
            "note    restarts: CouchDB does not say when it started (GET /_node/_local/_system: status {status})"
        );
        assert!(ended.code == Some(0) && ended.stdout.contains(&line), "{}", ended.stdout);
    }
}

/// Starts a server that answers every connection with these bytes after the first request. Without
/// bytes, it stays silent.
fn server(answer: &'static [u8]) -> SocketAddr {
    recording_server(answer).0
}

/// Starts such a server. Also returns the bytes that it receives.
fn recording_server(answer: &'static [u8]) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let received = Arc::new(Mutex::new(Vec::new()));
    let record = received.clone();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("the listener is bound");
    std::thread::spawn(move || {
        let mut kept: Vec<TcpStream> = Vec::new();
        for mut client in listener.incoming().map_while(Result::ok) {
            if answer.is_empty() {
                kept.push(client);
                continue;
            }
            // `check` first opens a connection without sending anything.
            let mut bytes = [0; 4096];
            let read = client.read(&mut bytes).unwrap_or(0);
            record.lock().expect("no thread panicked").extend_from_slice(&bytes[..read]);
            if read > 0 {
                let _ = client.write_all(answer);
            }
        }
    });
    (address, received)
}

fn url_of(address: SocketAddr) -> String {
    format!("http://admin:zq7-secret@{address}")
}

fn file(name: &str, content: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
    std::fs::write(&path, content).expect("the target folder is writable");
    path
}

#[test]
fn every_step_succeeds_with_a_working_couchdb() {
    let steps = ["configuration", "--port 0", "host name", "connection", "CouchDB", "login", "server admin"];
    let couchdb = couchdb();
    let global = [&steps[..], &["_global_changes", "restarts", "feed", "recording", "write delay"]].concat();
    assert_eq!(succeeds(&check(&couchdb.url(), &[])), global);
    let updates = [&steps[..], &["restarts", "feed", "recording", "write delay"]].concat();
    assert_eq!(succeeds(&check(&couchdb.url(), &["--feed", "db_updates"])), updates);
    let ended = check(&couchdb.url(), &[]);
    assert!(ended.stdout.contains("version 3.5.0 answers"), "{}", ended.stdout);
    assert!(ended.stdout.contains("restarts: CouchDB says when it started, so the server notices"), "{}", ended.stdout);
    assert!(couchdb.wait_for(SOON, |seen| seen.open_feeds == 0), "no feed stays open");
    couchdb.set_require_valid_user(true);
    assert_eq!(succeeds(&check(&couchdb.url(), &[])), global);
}

#[test]
fn every_step_succeeds_below_a_path_and_over_tls() {
    let authority = Authority::new();
    let couchdb = couchdb_with(Options { path_prefix: "/couch".to_owned(), ..Options::default() });
    let proxy = TlsProxy::start(&couchdb, authority.server(&["localhost"]));
    let identity = Identity::new(&authority);
    let options = [&["--ca_file", authority.file(), "--admin_port", "0"], &identity.options()[..]].concat();
    let steps = succeeds(&check(&proxy.url(&couchdb, "localhost"), &options));
    let expected = "configuration certificate trust --port+0 --admin_port+0 host+name connection TLS CouchDB login \
                    server+admin _global_changes restarts feed recording write+delay";
    assert_eq!(steps.iter().map(|step| step.replace(' ', "+")).collect::<Vec<_>>().join(" "), expected);
    // Without the path, the step fails.
    let url = proxy.url(&couchdb, "localhost").replace("/couch", "");
    fails(&check(&url, &options), "CouchDB", &["not below this path"]);
}

#[test]
fn demo_passes_without_couchdb() {
    let ended = run(&["check", "--demo", "--port", "0"], &[]);
    assert_eq!(succeeds(&ended), ["configuration", "--port 0", "CouchDB"]);
}

#[test]
fn invalid_options_of_check_are_usage_errors() {
    for options in
        [&["check"][..], &["check", "-u", "ftp://x"], &["chekc", "--demo"], &["check", "--demo", "--port", "x"]]
    {
        let ended = run(options, &[]);
        assert_eq!((ended.code, ended.stderr.lines().count(), ended.stdout.as_str()), (Some(2), 1, ""), "{options:?}");
    }
    assert!(run(&["chekc", "--demo"], &[]).stderr.contains("did you mean the command check?"));
    assert!(run(&["--help"], &[]).stdout.contains("\n  healthcheck\n"));
}

#[test]
fn unreachable_couchdb_is_named() {
    let ended = check("http://admin:zq7-secret@couchdb.invalid:5984", &[]);
    fails(&ended, "host name", &["couchdb.invalid", "check the host in --couchdb_url"]);
    let couchdb = couchdb();
    couchdb.refuse();
    let address = couchdb.address().to_string();
    fails(&check(&couchdb.url(), &[]), "connection", &[&address, "refused", "is CouchDB running"]);
}

#[test]
fn connecting_times_out() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("the listener is bound");
    // No process accepts. Once the queue is full, the kernel no longer answers.
    let mut queue = Vec::new();
    while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
        queue.push(one);
        assert!(queue.len() < 6_000, "the queue of the listener fills up");
    }
    fails(&check(&url_of(address), &[]), "connection", &["no answer from", "in time", "firewall"]);
}

#[test]
fn waiting_for_a_silent_server_times_out() {
    let silent = server(b"");
    fails(&check(&url_of(silent), &[]), "CouchDB", &["does not answer in time", "http://"]);
    let url = url_of(silent).replace("http:", "https:");
    fails(&check(&url, &[]), "TLS", &["does not answer in time", "https://"]);
}

#[test]
fn untrusted_server_receives_no_request() {
    let (couchdb, authority, stranger) = (couchdb(), Authority::new(), Authority::new());
    let proxy = TlsProxy::start(&couchdb, authority.server(&["localhost"]));
    let url = proxy.url(&couchdb, "localhost");
    for options in [&[][..], &["--ca_file", stranger.file()]] {
        let ended = check(&url, options);
        assert!(ended.stdout.lines().last().is_some_and(|line| line.contains("--ca_file")), "{}", ended.stdout);
        fails(&ended, "TLS", &["unknown authority"]);
    }
    let url = proxy.url(&couchdb, "127.0.0.1");
    fails(&check(&url, &["--ca_file", authority.file()]), "TLS", &["is not for the host in --couchdb_url"]);
    assert_eq!(couchdb.counters().requests, 0);
}

#[test]
fn confusing_http_and_https_is_reported() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let url = tls_url(&couchdb, &couchdb.address().to_string());
    fails(&check(&url, &[]), "TLS", &["does not speak TLS: check https in --couchdb_url"]);
    let proxy = TlsProxy::start(&couchdb, authority.server(&["localhost"]));
    let url = proxy.url(&couchdb, "localhost").replacen("https:", "http:", 1);
    fails(&check(&url, &[]), "CouchDB", &["https:// in --couchdb_url"]);
    let nginx = server(
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 54\r\n\r\nThe plain HTTP request was sent to HTTPS port (nginx)\n",
    );
    fails(&check(&url_of(nginx), &[]), "CouchDB", &["https:// in --couchdb_url"]);
    let redirect = server(b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://a/\r\nContent-Length: 0\r\n\r\n");
    fails(&check(&url_of(redirect), &[]), "CouchDB", &["redirect (status 301)", "https://"]);
}

#[test]
fn other_servers_are_reported_and_receive_no_password() {
    for (answer, words) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<p>Hi</p>"[..], "is not CouchDB"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "(status 404) is not CouchDB"),
        (b"HTTP/1.1 200 OK\r\n\r\n{\"version\":\"zq7-1\"}", "is not CouchDB"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "does not reach it (status 502)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "ends the connection"),
    ] {
        let (address, received) = recording_server(answer);
        fails(&check(&url_of(address), &[]), "CouchDB", &[words]);
        let received = received.lock().expect("no thread panicked").clone();
        let received = String::from_utf8(received).expect("the request is UTF-8");
        assert!(received.starts_with("GET / HTTP/1.1\r\n") && !received.contains("Authorization"), "{received}");
    }
}

#[test]
fn rejected_logins_are_reported() {
    let couchdb = couchdb();
    let with = |user: &str, password: &str| format!("http://{user}:{password}@{}", couchdb.address());
    fails(&check(&with("admin", "zq7-wrong"), &[]), "login", &["(401)", "--couchdb_url"]);
    fails(&check(&with("nobody", "zq7-wrong"), &[]), "login", &["(401)"]);
    fails(&check(&with(USER, PASSWORD), &[]), "server admin", &["is not a server admin"]);
    for (status, words) in [(403, "locked the name"), (500, "cannot answer (status 500)")] {
        couchdb.fail_logins(Some(status));
        fails(&check(&couchdb.url(), &[]), "login", &[words]);
    }
}

#[test]
fn missing_global_changes_is_reported() {
    let couchdb = couchdb_with(Options { global_changes: false, ..Options::default() });
    fails(&check(&couchdb.url(), &[]), "_global_changes", &["is missing", "--create_global_changes"]);
    let ended = check(&couchdb.url(), &["--create_global_changes"]);
    assert_eq!(succeeds(&ended).last().map(String::as_str), Some("_global_changes"));
    assert!(ended.stdout.contains("is created when the server starts"), "{}", ended.stdout);
    fails(&check(&couchdb.url(), &[]), "_global_changes", &["is missing"]);
}

#[test]
fn rejected_or_buffered_feed_is_reported() {
    let couchdb = couchdb();
    couchdb.fail_feed(500, 1);
    fails(&check(&couchdb.url(), &[]), "feed", &["cannot answer (status 500)"]);
    fails(
        &check(&url_of(buffering_proxy(&couchdb)).replace("admin:zq7-secret", &credentials(&couchdb)), &[]),
        "feed",
        &["switch its buffering off"],
    );
}

fn credentials(couchdb: &StandIn) -> String {
    let url = couchdb.url();
    url.split("://").nth(1).and_then(|rest| rest.split('@').next()).expect("the URL has credentials").to_owned()
}

/// Starts a proxy that forwards a response only when it is complete.
fn buffering_proxy(couchdb: &StandIn) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let (address, to) = (listener.local_addr().expect("the listener is bound"), couchdb.address());
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                let read = client.read(&mut request).unwrap_or(0);
                if read == 0 {
                    return;
                }
                let Ok(mut upstream) = TcpStream::connect(to) else { return };
                let head = String::from_utf8_lossy(&request[..read]).replacen("\r\n", "\r\nConnection: close\r\n", 1);
                let _ = upstream.write_all(head.as_bytes());
                let mut answer = Vec::new();
                // The feed never ends, so none of its bytes are forwarded.
                let _ = upstream.set_read_timeout(Some(Duration::from_secs(30)));
                if upstream.read_to_end(&mut answer).is_ok() {
                    let _ = client.write_all(&answer);
                }
            });
        }
    });
    address
}

#[test]
fn unusable_files_and_hosts_are_reported() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let (one, other) = (Identity::new(&authority), Identity::new(&authority));
    let failed = |ended: &Ended, line: &str| {
        assert_eq!(ended.code, Some(1), "{}", ended.stdout);
        let lines: Vec<&str> = ended.stdout.lines().filter(|line| line.starts_with("FAILED")).collect();
        assert!(lines.len() == 1 && lines[0].contains(line), "{line} in {}", ended.stdout);
    };
    let ended = check(&couchdb.url(), &["--tls_cert", one.options()[1], "--tls_key", other.options()[3]]);
    failed(&ended, "certificate: --tls_key ");
    assert!(ended.stdout.contains("ok      feed: "), "the other steps still run: {}", ended.stdout);
    failed(&check(&couchdb.url(), &["--tls_cert", "/nowhere", "--tls_key", "/nowhere"]), "--tls_cert /nowhere: ");
    let nonsense = file("ca.pem", "zq7-nonsense");
    let ended = check(&couchdb.url(), &["--ca_file", nonsense.to_str().expect("the path is UTF-8")]);
    failed(&ended, "no certificate");
    std::fs::remove_file(nonsense).expect("the file was written above");
    let ended = check(&couchdb.url(), &["--host", "192.0.2.1"]);
    failed(&ended, "--host must be an address of this machine");
}

#[test]
fn port_in_use_is_a_note_and_no_failure() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let port = howler.port().to_string();
    let ended = check(&couchdb.url(), &["--port", &port]);
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    let line =
        ended.stdout.lines().find(|line| line.starts_with("note    --port ")).expect("there is a line about the port");
    assert!(line.contains(&port) && line.contains("is in use"), "{line}");
}

/// Runs `healthcheck` with these options. Returns its exit code and its line.
fn health(options: &[&str]) -> (Option<i32>, String) {
    let ended = run(&[&["healthcheck"], options].concat(), &[]);
    assert_eq!((ended.stdout.lines().count(), ended.stderr.as_str()), (1, ""), "{}", ended.stdout);
    (ended.code, ended.stdout.trim().to_owned())
}

#[test]
fn running_server_is_healthy() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let identity = Identity::new(&authority);
    let tls = identity.options();
    for options in [vec![], tls.to_vec(), [&tls[..], &["--tls_port", "0"]].concat()] {
        let howler = Howler::start_with(&couchdb, &options);
        let port = howler.port().to_string();
        let mut same = [&options[..], &["--port", &port]].concat();
        if let Some(at) = same.iter().position(|option| *option == "0") {
            // Any port but 0 will do, since `healthcheck` does not use it.
            same[at] = "1";
        }
        let (code, line) = health(&same);
        assert_eq!((code, line.as_str()), (Some(0), &*format!("healthy: 127.0.0.1:{port}")), "{options:?}");
        assert_eq!(howler.count_logged("WARN"), 0, "{}", howler.output());
    }
}

#[test]
fn healthcheck_reads_the_environment_of_the_server() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--admin_port", "0"]);
    let line = howler.wait_for_line("health and metrics are on ");
    let address: SocketAddr = line
        .split("health and metrics are on ")
        .nth(1)
        .and_then(|rest| rest.split(';').next())
        .unwrap()
        .parse()
        .unwrap();
    let (port, admin) = (howler.port().to_string(), address.port().to_string());
    let environment = [
        ("HOWLER_PORT", &*port),
        ("HOWLER_ADMIN_PORT", &admin),
        ("HOWLER_COUCHDB_URL_FILE", "/nowhere"),
        ("HOWLER_FEED", "x"),
    ];
    let ended = run(&["healthcheck"], &environment);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), &*format!("healthy: {address}\n")), "{}", ended.stderr);
    // The client port no longer answers health checks.
    let ended = run(&["healthcheck"], &environment[..1]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("another server (status 404)"), "{}", ended.stdout);
}

#[test]
fn stopped_or_foreign_server_is_unhealthy_within_three_seconds() {
    let couchdb = couchdb();
    let howler = Howler::start(&couchdb);
    let port = howler.port().to_string();
    howler.signal("STOP");
    let began = Instant::now();
    let (code, line) = health(&["-p", &port]);
    let took = began.elapsed();
    howler.signal("CONT");
    assert_eq!((code, line.as_str()), (Some(1), &*format!("unhealthy: 127.0.0.1:{port}: no answer in time")));
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(health(&["-p", &port]).0, Some(0));
    drop(howler);
    let (code, line) = health(&["-p", &port]);
    assert_eq!(code, Some(1));
    assert!(line.starts_with("unhealthy: 127.0.0.1:") && line.contains("refused"), "{line}");
    let other = server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").port().to_string();
    let (code, line) = health(&["-p", &other]);
    assert!(code == Some(1) && line.contains("belongs to another server"), "{line}");
}

#[test]
fn server_with_another_certificate_than_the_file_is_unhealthy() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let mut identity = Identity::new(&authority);
    let howler = Howler::start_with(&couchdb, &identity.options());
    let port = howler.port().to_string();
    identity.renew(&authority);
    let options = [&identity.options()[..], &["--port", &port]].concat();
    let (code, line) = health(&options);
    assert!(code == Some(1) && line.contains("another certificate than the one in --tls_cert: SIGHUP"), "{line}");
    howler.signal("HUP");
    howler.wait_for_line("new connections are shown the certificate");
    assert_eq!(health(&options).0, Some(0));
    // TLS on one side only.
    let (code, line) = health(&["--port", &port]);
    assert!(code == Some(1) && line.contains("belongs to another server"), "{line}");
    let plain = Howler::start(&couchdb);
    let (code, line) = health(&[&identity.options()[..], &["--port", &plain.port().to_string()]].concat());
    assert!(code == Some(1) && line.contains("does not speak TLS"), "{line}");
}

#[test]
fn invalid_options_of_healthcheck_are_usage_errors() {
    for options in [&["--port", "0"][..], &["--port", "x"], &["--bogus"], &["now"]] {
        let ended = run(&[&["healthcheck"], options].concat(), &[]);
        assert_eq!((ended.code, ended.stderr.lines().count(), ended.stdout.as_str()), (Some(2), 1, ""), "{options:?}");
    }
    let ended = run(&["healtcheck"], &[]);
    assert!(
        ended.code == Some(2) && ended.stderr.contains("did you mean the command healthcheck?"),
        "{}",
        ended.stderr
    );
}

#[test]
fn write_delay_is_reported_with_its_effect_and_cost() {
    let couchdb = couchdb();
    let line = |ended: &Ended| {
        let lines = ended.stdout.lines().filter(|line| line.contains("  write delay: ")).collect::<Vec<_>>();
        assert_eq!((lines.len(), ended.code), (1, Some(0)), "{}", ended.stdout);
        lines[0].to_owned()
    };
    let default = line(&check(&couchdb.url(), &[]));
    for words in ["note  ", "500 ms", "334 ms", "max_write_delay = 100 below [global_changes]", "CPU", "11 ms"] {
        assert!(default.contains(words), "{words}: {default}");
    }
    // The printed command works unchanged.
    let command = format!(
        "curl -u ADMIN -X PUT http://{}/_node/_local/_config/global_changes/max_write_delay -d '\"100\"'",
        couchdb.address()
    );
    assert!(default.contains(&command), "{default}");
    for (value, verdict) in [("750", "note"), ("100", "ok"), ("20", "ok")] {
        couchdb.set_config("global_changes", "max_write_delay", Some(value));
        let line = line(&check(&couchdb.url(), &[]));
        assert!(line.starts_with(verdict) && line.contains(&format!(" {value} ms after the write")), "{line}");
    }
    couchdb.fail_config(Some(403));
    let refused = line(&check(&couchdb.url(), &[]));
    assert!(refused.starts_with("note") && refused.contains("does not say") && refused.contains("403"), "{refused}");
}

#[test]
fn couchdb_without_update_events_is_reported() {
    let couchdb = couchdb();
    couchdb.set_config("global_changes", "update_db", Some("false"));
    for feed in ["global_changes", "db_updates"] {
        let words = ["update_db is false", "update_db = true below [global_changes]", "curl -u ADMIN -X PUT"];
        fails(&check(&couchdb.url(), &["--feed", feed]), "recording", &words);
    }
    couchdb.set_config("global_changes", "update_db", Some("true"));
    succeeds(&check(&couchdb.url(), &[]));
}

#[test]
fn missing_database_behind_db_updates_is_reported() {
    let couchdb = couchdb_with(Options { global_changes: false, ..Options::default() });
    let options = ["--feed", "db_updates"];
    fails(
        &check(&couchdb.url(), &options),
        "feed",
        &["_global_changes, from which CouchDB reads this feed, is missing", "--create_global_changes"],
    );
    let ended = check(&couchdb.url(), &["--feed", "db_updates", "--create_global_changes"]);
    assert!(ended.code == Some(0) && ended.stdout.contains("is created when the server starts"), "{}", ended.stdout);
}
