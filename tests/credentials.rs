//! The server's own credentials at CouchDB. The server sends rejected credentials rarely enough
//! that CouchDB does not lock the account, and logs the rejection.

use std::time::Duration;

use serde_json::json;

use crate::support::client::Client;
use crate::support::couchdb::StandIn;
use crate::support::howler::{Howler, run};
use crate::support::http::Http;
use crate::support::{ADMIN, ADMIN_PASSWORD, SOON, USER, couchdb};

const REFUSED: &str = "the user in --couchdb_url must be a server admin";
const ACCEPTED: &str = "CouchDB accepts the name and the password in --couchdb_url again.";
const OTHER_PASSWORD: &str = "zq7-rotated";

/// Returns the number of requests with a name and password. The server always sends the same ones.
fn with_credentials(couchdb: &StandIn) -> usize {
    let requests = couchdb.requests();
    let basic = |value: &str| value.starts_with("Basic ");
    requests.iter().filter(|request| request.header("authorization").is_some_and(basic)).count()
}

/// Waits until the server has made all its attempts, and for some more time.
fn wait_for_tries(couchdb: &StandIn, howler: &Howler) {
    // Retries come 0.5 s, 2 s and 8 s after the first attempt.
    assert!(couchdb.wait_for(SOON, |_| howler.metric("howler_couchdb_refusals_total") >= 4), "{}", howler.output());
    // Proves that no fifth attempt follows.
    std::thread::sleep(Duration::from_secs(2));
}

fn is_locked(couchdb: &StandIn, password: &str) -> bool {
    let url = format!("http://{ADMIN}:{password}@{}", couchdb.address());
    let ended = run(&["check", "--host", "127.0.0.1", "--port", "0", "-u", &url], &[]);
    ended.stdout.contains("(403)")
}

fn readiness(howler: &Howler) -> (u16, String) {
    let answer = Http::connect(howler.address()).get("/readyz");
    (answer.status, answer.text().to_owned())
}

#[test]
fn wrong_password_does_not_lock_the_admin() {
    let couchdb = couchdb();
    couchdb.change_password(ADMIN, OTHER_PASSWORD);
    let howler = Howler::launch(&["--couchdb_url", &couchdb.url(), "--access", "members"]);
    // Clients log in and subscribe meanwhile.
    let mut client = Client::logged_in(howler.address());
    for name in ["a", "b", "c", "d", "e", "f"] {
        client.request(json!({"op": "subscribe", "dbs": [name]}));
    }
    wait_for_tries(&couchdb, &howler);
    assert_eq!(with_credentials(&couchdb), 4);
    howler.assert_logged(REFUSED, 1);
    let line = howler.wait_for_line(REFUSED);
    assert!(line.contains("--couchdb_url") && line.contains("locked the name for five minutes"), "{line}");
    assert_eq!(howler.count_logged("(401)"), 1, "{}", howler.output());
    let (status, text) = readiness(&howler);
    assert!(status == 503 && text.contains("refuses the name or the password"), "{status} {text}");
    assert!(!is_locked(&couchdb, OTHER_PASSWORD), "the admin can still log in");
}

#[test]
fn server_recovers_when_couchdb_accepts_the_password() {
    let couchdb = couchdb();
    couchdb.change_password(ADMIN, OTHER_PASSWORD);
    let howler = Howler::launch(&["--couchdb_url", &couchdb.url()]);
    howler.wait_for_line(REFUSED);
    couchdb.change_password(ADMIN, ADMIN_PASSWORD);
    howler.wait_for_line("Following the changes feed");
    howler.assert_logged(ACCEPTED, 1);
    assert_eq!(readiness(&howler).0, 200);
    couchdb.update("garden");
    let mut client = Client::subscribed(howler.address(), &["garden"]);
    couchdb.update("garden");
    assert_eq!(client.next_change(SOON).as_deref(), Some("garden"));
}

#[test]
fn any_request_detects_a_changed_password() {
    let couchdb = couchdb();
    let howler = Howler::start_with(&couchdb, &["--access", "members"]);
    let names: Vec<String> = (0..40).map(|number| format!("db-{number}")).collect();
    for name in &names {
        couchdb.create_database_for(name, &[USER]);
    }
    let mut clients: Vec<_> = (0..8).map(|_| Client::logged_in(howler.address())).collect();
    assert_eq!(readiness(&howler).0, 200);
    couchdb.change_password(ADMIN, OTHER_PASSWORD);
    couchdb.forget_requests();
    // The feed stays open, and the permission lookups of many clients fail at once.
    for (client, names) in clients.iter_mut().zip(names.chunks(5)) {
        for name in names {
            client.request(json!({"op": "subscribe", "dbs": [name]}));
        }
    }
    howler.wait_for_line(REFUSED);
    assert_eq!(readiness(&howler).0, 503);
    assert_eq!(couchdb.open_feeds(), 1, "the open feed continues");
    // Proves that no fifth attempt follows.
    std::thread::sleep(Duration::from_secs(12));
    assert!((1..=4).contains(&with_credentials(&couchdb)), "{}", with_credentials(&couchdb));
    howler.assert_logged(REFUSED, 1);
    assert!(!is_locked(&couchdb, OTHER_PASSWORD));
}

#[test]
fn permission_lookups_resume_when_the_password_is_accepted_again() {
    let couchdb = couchdb();
    couchdb.create_database_for("garden", &[USER]);
    let howler = Howler::start_with(&couchdb, &["--access", "members"]);
    let mut client = Client::logged_in(howler.address());
    couchdb.change_password(ADMIN, OTHER_PASSWORD);
    let id = client.request(json!({"op": "subscribe", "dbs": ["garden"]}));
    howler.wait_for_line(REFUSED);
    couchdb.change_password(ADMIN, ADMIN_PASSWORD);
    howler.wait_for_line(ACCEPTED);
    let answer = client.answer(id);
    assert!(answer["ok"] == true || answer["error"] == "ServiceUnavailableError", "{answer}");
    let answer = client.ask(json!({"op": "subscribe", "dbs": ["garden"]}));
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(readiness(&howler).0, 200);
    couchdb.update("garden");
    assert_eq!(client.next_change(SOON).as_deref(), Some("garden"));
}

#[test]
fn locked_admin_is_handled_like_a_wrong_password() {
    let couchdb = couchdb();
    couchdb.fail_feed(403, 1_000);
    let howler = Howler::launch(&["--couchdb_url", &couchdb.url()]);
    wait_for_tries(&couchdb, &howler);
    assert_eq!(with_credentials(&couchdb), 4);
    howler.assert_logged("(403)", 1);
    assert_eq!(readiness(&howler).0, 503);
}

#[test]
fn server_warns_if_couchdb_records_no_changes() {
    let couchdb = couchdb();
    couchdb.set_config("global_changes", "update_db", Some("false"));
    let howler = Howler::start(&couchdb);
    let line = howler.wait_for_line("update_db is false");
    assert!(line.contains("WARN") && line.contains("couchdb-howler check"), "{line}");
    assert_eq!(readiness(&howler).0, 200);
    // A CouchDB that refuses only this request does not count as one that rejects the credentials.
    for status in [401, 403, 404, 500] {
        let couchdb = crate::support::couchdb();
        couchdb.fail_config(Some(status));
        let howler = Howler::start(&couchdb);
        let asked = |request: &crate::support::couchdb::RecordedRequest| request.target.contains("update_db");
        assert!(couchdb.wait_for_request(SOON, asked).is_some());
        let mut client = Client::subscribed(howler.address(), &["garden"]);
        couchdb.update("garden");
        assert_eq!(client.next_change(SOON).as_deref(), Some("garden"));
        assert_eq!((readiness(&howler).0, howler.count_logged("WARN")), (200, 0), "{status}: {}", howler.output());
    }
}
