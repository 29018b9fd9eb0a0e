//! The changes feed: no failure of the feed loses changes.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::Client;
use crate::support::couchdb::{Chunking, FeedFault, Options, RecordedRequest, SinceRefusal, StandIn};
use crate::support::howler::Howler;
use crate::support::http::Http;
use crate::support::{A_MOMENT, ANSWERED_WITHIN, PASSWORD, SOON, USER, couchdb, couchdb_with};

/// The log line of a feed that works.
const FOLLOWING: &str = "Following the changes feed of CouchDB.";

/// A stand-in for CouchDB, a server that follows it, and a client subscribed to `before`, `during`
/// and `after`.
struct Scene {
    client: Client,
    howler: Howler,
    couchdb: StandIn,
}

impl Scene {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(options: &[&str]) -> Self {
        Self::at(couchdb(), options)
    }

    fn at(couchdb: StandIn, options: &[&str]) -> Self {
        let howler = Howler::start_with(&couchdb, options);
        let client = Client::subscribed(howler.address(), &["before", "during", "after"]);
        Self { client, howler, couchdb }
    }

    /// Updates a database and asserts that the client is notified.
    fn is_notified(&mut self, database: &str) {
        self.couchdb.update(database);
        self.hears(database);
    }

    fn hears(&mut self, database: &str) {
        let change = self.client.next_change(SOON);
        assert_eq!(change.as_deref(), Some(database), "{}", self.howler.output());
    }

    /// Asserts that the client is notified of a change and of a resync, in any order.
    fn hears_with_resync(&mut self, database: &str) {
        let before = self.client.wait_for_resync();
        if before.is_empty() {
            return self.hears(database);
        }
        assert_eq!(before, [database], "{}", self.howler.output());
    }

    fn hears_nothing_more(&mut self) {
        assert_eq!(self.client.next_change(A_MOMENT), None, "{}", self.howler.output());
    }

    /// Asserts that the server logged this line once, and no other warning or error.
    fn said_once(&self, line: &str) {
        self.said(line);
        let problems = self.howler.count_logged("WARN") + self.howler.count_logged("ERROR");
        let own = usize::from(!self.howler.wait_for_line(line).contains("INFO"));
        assert_eq!(problems, own, "{}", self.howler.output());
    }

    /// Asserts that the server logged this line once.
    fn said(&self, line: &str) {
        self.howler.assert_logged(line, 1);
    }

    fn feed_requests(&self) -> Vec<RecordedRequest> {
        self.couchdb.requests().into_iter().filter(|request| request.target.contains("feed=continuous")).collect()
    }
}

/// Returns the `since` of a request.
fn since(request: &RecordedRequest) -> &str {
    request.target.split("since=").nth(1).expect("every feed request has since")
}

/// Breaks the feed. Asserts that the client is notified once of each change during and after the
/// break, and that one line is logged, even if the feed breaks again within a minute.
fn survives(fault: FeedFault, options: &[&str], line: &str) {
    let mut scene = Scene::with(options);
    scene.is_notified("before");
    scene.couchdb.break_feed(fault);
    scene.couchdb.update("during");
    scene.hears("during");
    scene.said_once(line);
    scene.howler.assert_logged(FOLLOWING, 2);
    // Break the feed three times, with only the response head in between.
    scene.couchdb.break_next_feed(fault);
    scene.couchdb.break_next_feed(fault);
    scene.couchdb.break_feed(fault);
    assert!(scene.couchdb.wait_for(SOON, |counters| counters.feed_requests == 5), "{}", scene.howler.output());
    scene.is_notified("after");
    scene.hears_nothing_more();
    scene.howler.assert_logged(line, 1);
    scene.howler.assert_logged(FOLLOWING, 2);
    assert_eq!(scene.couchdb.counters().pin_requests, 1, "the start is looked up once");
}

#[test]
fn reset_loses_no_changes() {
    survives(FeedFault::Reset, &[], "The changes feed is not connected: ");
}

#[test]
fn cut_between_chunks_loses_no_changes() {
    survives(FeedFault::Cut, &[], "CouchDB cut the changes feed: resuming it.");
}

#[test]
fn cut_within_a_chunk_loses_no_changes() {
    survives(FeedFault::CutMidChunk, &[], "CouchDB cut the changes feed: resuming it.");
}

#[test]
fn clean_end_loses_no_changes() {
    survives(FeedFault::CleanEnd, &[], "CouchDB ended the changes feed: resuming it.");
}

#[test]
fn second_response_within_the_first_loses_no_changes() {
    survives(FeedFault::Garbage, &[], "The changes feed is broken: a chunk has no valid size.");
}

#[test]
fn invalid_chunk_size_loses_no_changes() {
    survives(FeedFault::BadChunkSize, &[], "The changes feed is broken: a chunk has no valid size");
}

#[test]
fn silence_loses_no_changes() {
    survives(FeedFault::Silence, &["--feed_heartbeat", "200"], "CouchDB was silent for 600 ms: opening the changes");
}

#[test]
fn quiet_feed_with_heartbeats_stays_open() {
    for source in ["global_changes", "db_updates"] {
        let mut scene = Scene::with(&["--feed", source, "--feed_heartbeat", "300"]);
        scene.howler.wait_for_line(FOLLOWING);
        // Longer than three heartbeats.
        for _ in 0..4 {
            scene.hears_nothing_more();
        }
        scene.is_notified("after");
        assert_eq!(scene.couchdb.counters().feed_requests, 1, "{source}:\n{}", scene.howler.output());
        assert_eq!(scene.howler.count_logged("WARN"), 0, "{source}");
    }
}

/// Rejects some requests for the feed at the start, and some later.
fn survives_refusals(status: u16, times: [usize; 2], line: &str) {
    let couchdb = couchdb();
    couchdb.fail_feed(status, times[0]);
    let howler = Howler::launch(&["--couchdb_url", &couchdb.url()]);
    assert!(couchdb.wait_for_feeds(1, SOON), "{}", howler.output());
    let client = Client::subscribed(howler.address(), &["before", "during", "after"]);
    let mut scene = Scene { client, howler, couchdb };
    scene.said_once(line);
    scene.is_notified("before");
    scene.couchdb.fail_feed(status, times[1]);
    scene.couchdb.break_feed(FeedFault::CleanEnd);
    scene.couchdb.update("during");
    scene.hears("during");
    scene.is_notified("after");
    scene.hears_nothing_more();
    scene.howler.assert_logged(line, 1);
}

#[test]
fn temporarily_rejected_password_loses_no_changes() {
    // Rejects four requests in 300 s.
    survives_refusals(401, [2, 1], "(401): the user in --couchdb_url must be a server admin, with the right password.");
}

#[test]
fn temporarily_locked_admin_loses_no_changes() {
    survives_refusals(403, [1, 2], "(403): the user in --couchdb_url is locked out for some minutes after too many");
}

#[test]
fn internal_errors_lose_no_changes() {
    survives_refusals(500, [3, 3], "CouchDB answers the changes feed with status 500: trying again.");
}

#[test]
fn unknown_sequence_makes_the_feed_start_from_now() {
    let mut scene = Scene::new();
    scene.is_notified("before");
    scene.couchdb.fail_feed(400, 1);
    scene.couchdb.break_feed(FeedFault::Cut);
    scene.howler.wait_for_lines(FOLLOWING, 2);
    scene.is_notified("after");
    scene.said("CouchDB does not know the sequence to resume from (400): following the feed from now on; changes may");
    assert_eq!(scene.couchdb.counters().pin_requests, 2);
}

/// CouchDB rejects the start of the feed. Asserts that the client is notified of changes meanwhile.
fn survives_a_refused_start(refusal: SinceRefusal, line: &str) {
    let mut scene = Scene::new();
    scene.is_notified("before");
    let answer = scene.client.ask(json!({"op": "subscribe", "dbs": ["before", "during", "after"]}));
    assert!(answer["dbs"]["during"].is_string(), "the reply has the positions: {answer}");
    scene.couchdb.refuse_since(Some(refusal));
    scene.couchdb.break_feed(FeedFault::Cut);
    scene.couchdb.update("during");
    // If the cause may be another than the start, the server makes ten attempts with backoff, which
    // take more than a minute.
    let change = scene.client.next_change(6 * SOON);
    assert_eq!(change.as_deref(), Some("during"), "{}", scene.howler.output());
    scene.is_notified("after");
    scene.hears_nothing_more();
    scene.said(line);
    assert_eq!(scene.couchdb.counters().pin_requests, 2);
}

#[test]
fn rejected_start_is_replaced_at_once() {
    for status in [410, 413, 414, 422, 431] {
        let line = format!("CouchDB does not know the sequence to resume from ({status}): following the feed from now");
        survives_a_refused_start(SinceRefusal::Status(status), &line);
    }
}

const REPINNED: &str = "CouchDB did not open the changes feed where it broke in 10 attempts: following it from now on;";

#[test]
fn start_that_opens_no_stream_is_replaced_after_ten_attempts() {
    // Each takes a minute, so all run at once.
    let refusals = [SinceRefusal::Status(500), SinceRefusal::Status(302), SinceRefusal::Close];
    let scenes = refusals.map(|refusal| thread::spawn(move || survives_a_refused_start(refusal, REPINNED)));
    for scene in scenes {
        scene.join().expect("the start is pinned again");
    }
}

#[test]
fn node_in_maintenance_mode_is_followed_without_warnings() {
    let mut scene = Scene::new();
    scene.is_notified("before");
    scene.couchdb.set_maintenance(true);
    for round in 0..40 {
        scene.is_notified(["before", "during", "after"][round % 3]);
        let page = Http::connect(scene.howler.address()).get("/readyz");
        assert_eq!(page.status, 200, "{}", page.text());
    }
    scene.hears_nothing_more();
    assert!(scene.couchdb.counters().feed_requests > 30);
    assert_eq!(scene.howler.count_logged("CouchDB ended the changes feed"), 1);
    assert!(scene.howler.count_logged(FOLLOWING) <= 2);
    assert_eq!(scene.howler.count_logged("WARN") + scene.howler.count_logged("ERROR"), 0);
    assert_eq!(scene.howler.metric("howler_resyncs_total"), 0);
}

#[test]
fn feed_starts_when_the_operator_creates_global_changes() {
    let couchdb = couchdb_with(Options { global_changes: false, ..Options::default() });
    let howler = Howler::launch(&["--couchdb_url", &couchdb.url()]);
    let client = Client::subscribed(howler.address(), &["before", "during", "after"]);
    let mut scene = Scene { client, howler, couchdb };
    scene.howler.wait_for_lines("Next try in", 2);
    scene.said_once(
        "no _global_changes database (404): create it with PUT /_global_changes, or start with \
                     --create_global_changes. Trying again.",
    );
    scene.couchdb.create_database("_global_changes");
    // Events before the database existed are unknown, so each subscribed database counts as
    // changed.
    let received: BTreeSet<_> = (0..3).map(|_| scene.client.next_change(SOON)).collect();
    assert_eq!(received.len(), 3, "{received:?}");
    scene.is_notified("after");
    scene.said("--create_global_changes");
}

#[test]
fn server_creates_global_changes_on_request() {
    let couchdb = couchdb_with(Options { global_changes: false, ..Options::default() });
    let mut scene = Scene::at(couchdb, &["--create_global_changes"]);
    scene.is_notified("after");
    scene.said_once("CouchDB has no _global_changes database: creating it.");
    // The server also creates the database when it is deleted while the feed is open.
    scene.couchdb.delete_database("_global_changes");
    assert!(scene.couchdb.wait_for(SOON, |counters| counters.feed_requests == 3 && counters.open_feeds == 1));
    assert!(scene.client.wait_for_resync().is_empty());
    scene.is_notified("after");
    scene.howler.assert_logged("creating it.", 1);
}

#[test]
fn recreated_global_changes_cause_a_resync() {
    let mut scene = Scene::new();
    scene.is_notified("before");
    scene.couchdb.delete_database("_global_changes");
    scene.howler.wait_for_lines("Next try in", 1);
    scene.couchdb.create_database("_global_changes");
    scene.couchdb.update("during");
    scene.hears_with_resync("during");
    scene.is_notified("after");
    scene.said("--create_global_changes");
    scene.said("_global_changes is not the database that it was");
    scene.said("CouchDB ended the changes feed");
}

#[test]
fn outage_of_seconds_loses_no_changes() {
    let mut scene = Scene::new();
    scene.is_notified("before");
    scene.couchdb.refuse();
    scene.couchdb.update("during");
    scene.howler.wait_for_lines("Next try in", 3);
    scene.couchdb.accept_again().expect("the port is still free");
    scene.hears("during");
    scene.is_notified("after");
    scene.hears_nothing_more();
    scene.said("CouchDB cut the changes feed");
    scene.said("The changes feed is not connected: ");
    assert_eq!(scene.howler.count_logged("WARN"), 2, "{}", scene.howler.output());
}

#[test]
fn restart_of_couchdb_loses_no_changes() {
    let couchdb = couchdb_with(Options { tick: Duration::from_millis(50), ..Options::default() });
    let mut scene = Scene::at(couchdb, &[]);
    for _ in 0..3 {
        scene.is_notified("before");
        scene.couchdb.update("during");
        scene.couchdb.restart(false).expect("the port is still free");
        scene.hears_with_resync("during");
        scene.is_notified("after");
    }
    scene.hears_nothing_more();
    assert_eq!(scene.couchdb.counters().pin_requests, 1);
}

#[test]
fn any_chunking_delivers_all_changes() {
    let cuttings = [
        Chunking::OneByte,
        Chunking::SplitEvery(2),
        Chunking::SplitEvery(7),
        Chunking::SplitEvery(300),
        Chunking::Merge,
    ];
    for source in ["global_changes", "db_updates"] {
        for chunking in cuttings {
            let couchdb = couchdb();
            couchdb.set_chunking(chunking);
            let mut scene = Scene::at(couchdb, &["--feed", source, "--feed_heartbeat", "500"]);
            scene.couchdb.update_many(&["before", "during", "elsewhere", "after"]);
            let received: BTreeSet<_> = (0..3).map(|_| scene.client.next_change(SOON)).collect();
            assert_eq!(received.len(), 3, "{chunking:?}: {received:?}");
            scene.couchdb.break_feed(FeedFault::CleanEnd);
            scene.is_notified("before");
            assert_eq!(scene.howler.count_logged("WARN"), 0, "{chunking:?}:\n{}", scene.howler.output());
        }
    }
}

#[test]
fn thousand_lines_in_one_chunk_are_notified_once_each() {
    let mut scene = Scene::new();
    let names: Vec<String> = (0..1000).map(|number| format!("db-{number}")).collect();
    assert_eq!(scene.client.ask(json!({"op": "subscribe", "dbs": names}))["ok"], true);
    scene.couchdb.update_many(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut received: Vec<_> =
        names.iter().map(|_| scene.client.next_change(SOON).expect("a change arrives")).collect();
    let mut expected = names.clone();
    received.sort();
    expected.sort();
    assert_eq!(received, expected);
    scene.hears_nothing_more();
}

#[test]
fn line_that_is_no_json_is_read_again_and_then_skipped() {
    let mut scene = Scene::new();
    scene.is_notified("before");
    scene.couchdb.break_feed(FeedFault::BrokenJson);
    scene.couchdb.update("during");
    scene.hears("during");
    scene.hears_nothing_more();
    scene.said_once("A line of the changes feed is not JSON: reading it again.");
    assert_eq!(scene.couchdb.counters().feed_requests, 2);
    // A line that stays broken does not stop the feed.
    scene.couchdb.break_next_feed(FeedFault::BrokenJson);
    scene.couchdb.break_feed(FeedFault::BrokenJson);
    scene.howler.wait_for_line("Skipped");
    scene.is_notified("after");
    scene.said("Skipped a line of the changes feed that is not JSON, twice.");
    assert_eq!(scene.couchdb.counters().feed_requests, 3, "the feed continued");
}

#[test]
fn feed_of_broken_lines_logs_few_lines() {
    const BROKEN: usize = 350_000;
    let mut scene = Scene::new();
    scene.is_notified("before");
    scene.couchdb.break_next_feed(FeedFault::BrokenLines(BROKEN));
    scene.couchdb.break_feed(FeedFault::BrokenJson);
    let began = std::time::Instant::now();
    while scene.howler.metric("howler_feed_lines_skipped_total") < BROKEN as u64 - 1 {
        assert!(began.elapsed() < SOON, "{}", scene.howler.output());
    }
    scene.is_notified("after");
    scene.said("Skipped a line of the changes feed that is not JSON, twice.");
    assert_eq!(scene.howler.count_lines("not JSON"), 2, "{}", scene.howler.output());
    // The resyncs and lookups that follow are not logged one by one, either.
    let others = scene.howler.count_logged("INFO") + scene.howler.count_logged("WARN");
    assert!(others < 20, "{}", scene.howler.output());
}

#[test]
fn line_that_is_too_long_is_skipped() {
    let mut scene = Scene::new();
    assert_eq!(scene.client.ask(json!({"op": "subscribe", "dbs": ["huge"]}))["ok"], true);
    scene.couchdb.break_feed(FeedFault::HugeLine(60_000));
    scene.hears("huge");
    scene.couchdb.break_feed(FeedFault::HugeLine(200_000));
    scene.is_notified("after");
    scene.hears_nothing_more();
    scene.said_once("Skipped a line of the changes feed that is over 65536 bytes.");
    assert_eq!(scene.couchdb.counters().feed_requests, 1, "the feed continued");
}

#[test]
fn db_updates_feed_loses_no_changes() {
    let mut scene = Scene::with(&["--feed", "db_updates", "--feed_heartbeat", "200"]);
    scene.is_notified("before");
    for fault in [FeedFault::Reset, FeedFault::CutMidChunk, FeedFault::CleanEnd, FeedFault::Garbage, FeedFault::Silence]
    {
        scene.couchdb.break_feed(fault);
        scene.couchdb.update("during");
        scene.hears("during");
        scene.is_notified("after");
    }
    scene.hears_nothing_more();
    assert!(scene.feed_requests().iter().all(|request| request.target.starts_with("/_db_updates?")));
}

#[test]
fn lines_about_no_database_cause_no_notification() {
    let mut scene = Scene::new();
    let names = ["_dbs", "views", "_design/views", "gone", "", "nothing", "_users"];
    assert_eq!(scene.client.ask(json!({"op": "subscribe", "dbs": &names[..4]}))["ok"], true);
    assert_eq!(scene.client.ask(json!({"op": "subscribe", "dbs": &names[5..]}))["ok"], true);
    scene.couchdb.write_event_document("_design/views");
    scene.couchdb.write_event_document("nothing");
    scene.couchdb.write_event_document("updated:_dbs");
    scene.couchdb.write_event_document("renamed:views");
    let seq = scene.couchdb.last_seq().expect("there is a sequence");
    for line in [
        format!(r#"{{"seq":"{seq}","id":"updated:gone","changes":[{{"rev":"2-9"}}],"deleted":true}}"#),
        format!(r#"{{"seq":"{seq}","changes":[]}}"#),
        format!(r#"{{"seq":"{seq}","id":"updated:","changes":[]}}"#),
        "{}".to_owned(),
    ] {
        scene.couchdb.inject_line(line.as_bytes());
    }
    scene.is_notified("_users");
    scene.is_notified("after");
    scene.hears_nothing_more();
    assert_eq!(scene.couchdb.counters().feed_requests, 1);
    assert_eq!(scene.howler.count_logged("WARN"), 0, "{}", scene.howler.output());
}

#[test]
fn feed_that_breaks_before_its_first_change_resumes_at_its_start() {
    let couchdb = couchdb();
    couchdb.update("long ago");
    let pinned = couchdb.last_seq().expect("there is a sequence");
    let mut scene = Scene::at(couchdb, &[]);
    scene.couchdb.break_next_feed(FeedFault::Cut);
    scene.couchdb.break_feed(FeedFault::Cut);
    scene.couchdb.update("during");
    scene.hears("during");
    let requests = scene.feed_requests();
    assert!(requests.len() >= 2 && requests[..2].iter().all(|request| since(request) == pinned), "{requests:?}");
    assert_eq!(scene.couchdb.counters().pin_requests, 1);
}

// Logins

fn log_in() -> serde_json::Value {
    json!({"op": "log-in", "username": USER, "password": PASSWORD})
}

#[test]
fn logins_are_answered_in_time_while_couchdb_is_away() {
    let couchdbs: Vec<_> = (0..5).map(|_| couchdb()).collect();
    let howlers: Vec<_> = couchdbs.iter().map(Howler::start).collect();
    couchdbs[0].refuse();
    couchdbs[1].pause_accepting();
    couchdbs[2].set_login_delay(Duration::from_secs(60));
    couchdbs[3].fail_logins(Some(500));
    couchdbs[4].fail_logins(Some(503));
    let started = Instant::now();
    let mut waiting = Vec::new();
    for howler in &howlers {
        // More than the server sends at once: queued logins wait no longer.
        for _ in 0..12 {
            let mut client = Client::json(howler.address());
            waiting.push((client.request(log_in()), client));
        }
    }
    for (id, client) in &mut waiting {
        let answer = client.answer(*id);
        assert_eq!(answer["error"], "ServiceUnavailableError", "{answer}");
    }
    let took = started.elapsed();
    assert!(took < ANSWERED_WITHIN, "{took:?}");
    for (couchdb, howler) in couchdbs.iter().zip(&howlers) {
        couchdb.set_login_delay(Duration::ZERO);
        couchdb.fail_logins(None);
        couchdb.accept_again().expect("the port is still free");
        let mut client = Client::subscribed(howler.address(), &["after"]);
        couchdb.update("after");
        assert_eq!(client.next_change(SOON).as_deref(), Some("after"));
    }
}

#[test]
fn login_succeeds_after_a_short_outage() {
    let scene = Scene::new();
    scene.couchdb.refuse();
    let mut client = Client::json(scene.howler.address());
    let id = client.request(log_in());
    scene.howler.wait_for_lines("A connection for logins failed", 3);
    scene.couchdb.accept_again().expect("the port is still free");
    assert_eq!(client.answer(id)["ok"], true);
}

#[test]
fn logins_beyond_the_concurrency_limit_queue() {
    let scene = Scene::new();
    scene.couchdb.set_login_delay(Duration::from_millis(20));
    let mut clients: Vec<_> = (0..100).map(|_| Client::json(scene.howler.address())).collect();
    let ids: Vec<_> = clients.iter_mut().map(|client| client.request(log_in())).collect();
    for (client, id) in clients.iter_mut().zip(ids) {
        assert_eq!(client.answer(id)["ok"], true);
    }
    let counters = scene.couchdb.counters();
    assert_eq!(counters.peak_sessions_in_flight, 8, "exactly the allowed number of logins run at once");
    assert!(counters.peak_connections <= 12, "{counters:?}");
    assert_eq!(counters.session_requests, 101, "each login is sent once");
}

#[test]
fn cookie_is_checked_without_others_and_with_the_client_address() {
    let scene = Scene::new();
    let mut client = Client::json(scene.howler.address());
    let cookie = client.ask(log_in())["cookie"].as_str().expect("the reply has a cookie").to_owned();
    let pair = cookie.split(';').next().expect("split returns at least one item");
    let mut again = Client::json(scene.howler.address());
    let text = format!("other=1; {pair}; more=2");
    assert_eq!(again.ask(json!({"op": "log-in", "cookie": text}))["ok"], true);
    let asked = scene.couchdb.requests();
    let sessions = || asked.iter().filter(|request| request.target == "/_session");
    let check = sessions().find(|request| request.method == "GET").expect("CouchDB received the check");
    assert_eq!(check.header("Cookie"), Some(pair));
    for request in sessions() {
        assert_eq!(request.header("Authorization"), None);
        assert_eq!(request.header("X-Forwarded-For"), Some("127.0.0.1"));
        assert_eq!(request.header("Accept"), Some("application/json"));
    }
}

#[test]
fn connections_closed_by_couchdb_between_logins_are_no_failure() {
    let scene = Scene::new();
    for _ in 0..3 {
        let mut clients: Vec<_> = (0..10).map(|_| Client::json(scene.howler.address())).collect();
        let ids: Vec<_> = clients.iter_mut().map(|client| client.request(log_in())).collect();
        for (client, id) in clients.iter_mut().zip(ids) {
            assert_eq!(client.answer(id)["ok"], true);
        }
        scene.couchdb.restart(false).expect("the port is still free");
    }
    assert_eq!(scene.howler.count_lines("A login failed"), 0);
}
