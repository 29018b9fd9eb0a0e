//! Options and environment variables of the real binary.

use std::net::TcpListener;
use std::process::Command;

use crate::support::client::Client;
use crate::support::howler::{BINARY, Howler, run};
use crate::support::{ADMIN_PASSWORD, SOON, couchdb};

#[test]
fn help_and_version_are_printed() {
    for ended in
        [run(&["--help"], &[]), run(&["-h"], &[]), run(&[], &[("help", "true")]), run(&[], &[("HOWLER_HELP", "true")])]
    {
        assert_eq!(ended.code, Some(0));
        assert!(
            ended.stdout.contains("--couchdb_url") && ended.stdout.contains("HOWLER_COUCHDB_URL"),
            "{}",
            ended.stdout
        );
    }
    for ended in [run(&["--version"], &[]), run(&["-v"], &[]), run(&[], &[("version", "true")])] {
        assert_eq!((ended.code, ended.stdout.trim()), (Some(0), env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn invalid_options_are_reported_in_one_line() {
    let url = "http://admin:zq7-secret@localhost:1";
    for (options, environment, words) in [
        (vec![], vec![], vec!["--couchdb_url", "missing"]),
        (vec!["--couchdb_url", "ftp://a:zq7-b@c"], vec![], vec!["--couchdb_url", "http"]),
        (vec!["--couchdb_url=http://a:zq7-b@c:99999"], vec![], vec!["--couchdb_url", "port"]),
        (vec!["-u", "http://zq7-user:zq7-b"], vec![], vec!["--couchdb_url"]),
        (vec!["-u", url, "--port", "x"], vec![], vec!["--port", "x", "65535"]),
        (vec!["-u", url, "--log-level=loud"], vec![], vec!["--log_level", "loud", "error"]),
        (vec!["-u", url, "--feed", "both"], vec![], vec!["--feed", "both", "db_updates"]),
        (vec!["-u", url, "--couchdburl"], vec![], vec!["--couchdburl", "--couchdb_url"]),
        (vec!["-u", url, "here"], vec![], vec!["here"]),
        (vec!["-u", url], vec![("HOWLER_DEMO", "maybe")], vec!["HOWLER_DEMO", "maybe"]),
        (vec![], vec![("couchdb_url", "zq7-nonsense@")], vec!["couchdb_url"]),
        (
            vec![],
            vec![("HOWLER_COUCHDB_URL_FILE", "/nowhere/at/all")],
            vec!["HOWLER_COUCHDB_URL_FILE", "/nowhere/at/all"],
        ),
    ] {
        let ended = run(&options, &environment);
        assert_eq!((ended.code, ended.stderr.lines().count()), (Some(2), 1), "{options:?}: {}", ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "{options:?}: {word} in {}", ended.stderr);
        }
    }
}

#[test]
fn port_in_use_is_reported_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let ended = run(&["-u", "http://admin:zq7-secret@localhost:1", "--host", "127.0.0.1", "-p", &port], &[]);
    assert_eq!((ended.code, ended.stderr.lines().count()), (Some(1), 1), "{}", ended.stderr);
    assert!(ended.stderr.contains(&port) && ended.stderr.contains("in use"), "{}", ended.stderr);
}

#[test]
fn missing_ca_file_is_reported() {
    let ended = run(&["-u", "https://admin:zq7-secret@localhost:1", "--port", "0", "--ca_file", "/nowhere"], &[]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("--ca_file /nowhere: "), "{}", ended.stderr);
}

/// Passes the URL from each possible source.
#[test]
fn url_comes_from_option_environment_or_file() {
    let couchdb = couchdb();
    let url = couchdb.url();
    assert!(!url.contains(ADMIN_PASSWORD), "the password must be escaped in the URL");
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("couchdb_url");
    std::fs::write(&file, format!("{url}\n")).unwrap();
    for (name, value) in [
        ("HOWLER_COUCHDB_URL", url.as_str()),
        ("couchdb_url", &url),
        ("--couchdb_url", &url),
        ("HOWLER_COUCHDB_URL_FILE", file.to_str().unwrap()),
    ] {
        let feeds = couchdb.open_feeds();
        let howler = Howler::launch_command(Command::new(BINARY).env_clear().env(name, value));
        assert!(couchdb.wait_for_feeds(feeds + 1, SOON), "{name}");
        drop(howler);
        assert!(couchdb.wait_for_feeds(feeds, SOON), "{name}");
    }
    std::fs::remove_file(file).unwrap();
}

#[test]
fn demo_runs_without_other_options() {
    let howler = Howler::launch(&["--demo"]);
    howler.wait_for_line("Press Ctrl+C to stop the demo.");
    let output = howler.output();
    assert!(output.contains(&format!("websocat ws://localhost:{}/howler", howler.port())), "{output}");
    let mut client = Client::json(howler.address());
    // The printed messages work unchanged.
    for line in output.lines().filter(|line| line.trim_start().starts_with('{')) {
        client.send(line.trim());
        assert_eq!(client.receive_json(SOON).unwrap()["ok"], true, "{line}");
    }
    assert!(client.next_change(SOON).is_some());
}
