//! The file that holds the URL of CouchDB: how it may be written, and when the server reads it
//! again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;

use crate::support::client::Client;
use crate::support::couchdb::{FeedFault, StandIn};
use crate::support::howler::{BINARY, Howler};
use crate::support::{ADMIN, SOON, couchdb};

/// The password that replaces the first one, plain and as written in the URL.
const NEW_PASSWORD: &str = "zq7-rotated%";
const NEW_IN_URL: &str = "zq7-rotated%25";

/// A file that holds a URL, removed on drop.
struct UrlFile(PathBuf);

impl UrlFile {
    fn new(content: &str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("url-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let file = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
        file.write(content);
        file
    }

    /// Replaces the file atomically, as tools that rotate secrets do.
    fn write(&self, content: &str) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, content).expect("the target folder can be written");
        std::fs::rename(new, &self.0).expect("the file can be renamed");
    }

    fn launch(&self) -> Howler {
        Howler::launch_command(Command::new(BINARY).env("HOWLER_COUCHDB_URL_FILE", &self.0))
    }

    /// Starts a server that reads the URL of a stand-in from a file.
    fn follow(couchdb: &StandIn) -> (Self, Howler) {
        let file = Self::new(&couchdb.url());
        let howler = file.launch();
        assert!(couchdb.wait_for_feeds(1, SOON), "{}", howler.output());
        // The server sends its first requests with the old password.
        assert!(couchdb.wait_for_request(SOON, |request| request.target == "/_global_changes").is_some());
        assert!(couchdb.wait_for(SOON, |seen| seen.in_flight == 0));
        (file, howler)
    }
}

impl Drop for UrlFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Returns the URL with the new password.
fn new_url(couchdb: &StandIn) -> String {
    format!("http://{ADMIN}:{NEW_IN_URL}@{}\n", couchdb.address())
}

/// Asserts that the feed and a lookup work.
fn works(howler: &Howler, couchdb: &StandIn, database: &str) {
    let deadline = Instant::now() + SOON;
    let mut client = Client::logged_in(howler.address());
    while client.ask(json!({"op": "subscribe", "dbs": [database]}))["dbs"][database].is_null() {
        assert!(Instant::now() < deadline, "no position:\n{}", howler.output());
    }
    assert!(couchdb.wait_for_feeds(1, SOON), "{}", howler.output());
    couchdb.update(database);
    assert_eq!(client.next_change(SOON).as_deref(), Some(database), "{}", howler.output());
}

#[test]
fn a_byte_order_mark_and_trailing_white_space_are_ignored() {
    for (mark, end) in [("\u{feff}", ""), ("", "\r\n"), ("\u{feff}", " \t\r\n\r\n"), ("", "\n\n  ")] {
        let couchdb = couchdb();
        let file = UrlFile::new(&format!("{mark}{}{end}", couchdb.url()));
        let howler = file.launch();
        assert!(couchdb.wait_for_feeds(1, SOON), "{mark:?}, {end:?}:\n{}", howler.output());
        works(&howler, &couchdb, "db");
    }
}

#[test]
fn a_rotated_password_is_used_after_sighup() {
    let couchdb = couchdb();
    let (file, howler) = UrlFile::follow(&couchdb);
    file.write(&new_url(&couchdb));
    assert!(couchdb.change_password(ADMIN, NEW_PASSWORD));
    howler.signal("HUP");
    howler.wait_for_line("Using the credentials for CouchDB that the file");
    couchdb.forget_requests();
    let feeds = couchdb.counters().feed_requests;
    couchdb.break_feed(FeedFault::Cut);
    assert!(couchdb.wait_for(SOON, |seen| seen.feed_requests > feeds), "{}", howler.output());
    works(&howler, &couchdb, "db");
    let asked = couchdb.requests();
    let mut sent: Vec<_> = asked.iter().filter_map(|request| request.header("Authorization")).collect();
    sent.sort_unstable();
    sent.dedup();
    let expected = data_encoding::BASE64.encode(format!("{ADMIN}:{NEW_PASSWORD}").as_bytes());
    assert_eq!(sent, [format!("Basic {expected}")]);
    assert_eq!(howler.count_lines("(401)"), 0, "{}", howler.output());
    howler.signal("HUP");
    howler.wait_for_line("holds what is in use already");
}

#[test]
fn a_rotated_password_is_used_after_the_feed_got_401() {
    let couchdb = couchdb();
    let (file, howler) = UrlFile::follow(&couchdb);
    file.write(&new_url(&couchdb));
    assert!(couchdb.change_password(ADMIN, NEW_PASSWORD));
    couchdb.break_feed(FeedFault::Cut);
    howler.wait_for_line("Using the credentials for CouchDB that the file");
    works(&howler, &couchdb, "db");
}

#[test]
fn a_rotated_password_is_used_after_a_lookup_got_401() {
    let couchdb = couchdb();
    let (file, howler) = UrlFile::follow(&couchdb);
    file.write(&new_url(&couchdb));
    assert!(couchdb.change_password(ADMIN, NEW_PASSWORD));
    let feeds = couchdb.counters().feed_requests;
    works(&howler, &couchdb, "db");
    howler.wait_for_line("Using the credentials for CouchDB that the file");
    assert_eq!(couchdb.counters().feed_requests, feeds, "the feed stays open");
}

#[test]
fn a_file_written_after_the_401_is_read() {
    let couchdb = couchdb();
    let (file, howler) = UrlFile::follow(&couchdb);
    assert!(couchdb.change_password(ADMIN, NEW_PASSWORD));
    couchdb.break_feed(FeedFault::Cut);
    howler.wait_for_line("(401)");
    // Prevents more attempts, which would lock the account.
    couchdb.refuse();
    file.write(&new_url(&couchdb));
    howler.wait_for_line("Using the credentials for CouchDB that the file");
    couchdb.accept_again().expect("the port is free");
    works(&howler, &couchdb, "db");
}

#[test]
fn a_wrong_password_of_a_user_does_not_reload_the_file() {
    let couchdb = couchdb();
    let (file, howler) = UrlFile::follow(&couchdb);
    file.write("zq7-nonsense");
    let mut client = Client::json(howler.address());
    let answer = client.ask(json!({"op": "log-in", "username": "nobody", "password": "zq7-wrong"}));
    assert_eq!(answer["error"], "NotAuthenticatedError");
    works(&howler, &couchdb, "db");
    assert_eq!(howler.count_lines("--couchdb_url"), 0, "{}", howler.output());
}

#[test]
fn an_unusable_file_changes_nothing_and_is_not_logged() {
    let couchdb = couchdb();
    let (file, howler) = UrlFile::follow(&couchdb);
    let elsewhere = new_url(&couchdb).replace(&couchdb.address().to_string(), "db.example:1");
    for (number, (content, problem)) in [
        ("", "it must start with http:// or https://"),
        ("zq7-secret", "it must start with http:// or https://"),
        ("http://admin:zq7-secret@ho st", "spaces or control characters"),
        ("http://db.example", "the credentials of a server admin are missing"),
        (&elsewhere, "it names another CouchDB (http://db.example:1), which takes a restart"),
    ]
    .into_iter()
    .enumerate()
    {
        file.write(content);
        howler.signal("HUP");
        let line = howler.wait_for_lines("cannot be used, and the old URL stays in use", number + 1);
        assert!(line.contains(problem) && line.contains("ERROR"), "{content:?}: {line}");
    }
    std::fs::remove_file(&file.0).expect("the file exists");
    howler.signal("HUP");
    let line = howler.wait_for_lines("cannot be used, and the old URL stays in use", 6);
    assert!(line.contains("No such file"), "{line}");
    works(&howler, &couchdb, "db");
}

#[test]
fn a_file_that_blocks_reading_does_not_block_the_server() {
    let couchdb = couchdb();
    let (file, howler) = UrlFile::follow(&couchdb);
    std::fs::remove_file(&file.0).expect("the file exists");
    assert!(Command::new("mkfifo").arg(&file.0).status().expect("mkfifo runs").success());
    howler.signal("HUP");
    works(&howler, &couchdb, "db");
    assert!(couchdb.change_password(ADMIN, NEW_PASSWORD));
    std::fs::write(&file.0, new_url(&couchdb)).expect("the file is open for reading");
    howler.wait_for_line("Using the credentials for CouchDB that the file");
    works(&howler, &couchdb, "db2");
}
