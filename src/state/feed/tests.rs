use std::cell::Cell;

use super::*;
use crate::state::log_throttle::MINUTE;
use crate::wire::url::CouchUrl;

const HEARTBEAT: Millis = 1000;
const PINNED: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 43\r\n\r\n{\"results\":[],\"last_seq\":\"7-a\",\"pending\":0}";
const OPENED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n";
const MISSING: &[u8] = b"HTTP/1.1 404 Object Not Found\r\nContent-Length: 2\r\n\r\n{}";
const MADE: &[u8] = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";

const PIN: &str = "GET /_global_changes/_changes?since=now&limit=1";

fn refusal(status: u16) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}").into_bytes()
}

thread_local! {
    static LOGGED: Cell<Vec<(log::Level, String)>> = const { Cell::new(Vec::new()) };
}

/// Keeps the log lines of each test's thread.
struct Capture;

impl log::Log for Capture {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut lines = LOGGED.take();
        lines.push((record.level(), record.args().to_string()));
        LOGGED.set(lines);
    }

    fn flush(&self) {}
}

/// Returns the lines that were logged for operators since the last call.
fn logged() -> Vec<String> {
    let lines = LOGGED.take().into_iter();
    lines.filter(|(level, _)| *level < log::Level::Debug).map(|(_, text)| text).collect()
}

/// A feed with a clock of its own, driven as the server drives it.
struct Rig {
    feed: Feed,
    now: Millis,
    actions: Vec<FeedAction>,
    changes: Vec<String>,
    opened: Vec<Continuity>,
    pins: usize,
}

impl Rig {
    fn new(source: FeedSource, create: bool) -> Self {
        let _ = log::set_logger(&Capture);
        log::set_max_level(log::LevelFilter::Trace);
        let url = CouchUrl::parse("http://admin:secret@db.example:5984").expect("a URL");
        let settings = FeedSettings { source, heartbeat: HEARTBEAT, create };
        let feed = Feed::new(settings, Requests::new(&url), Jitter::new(1));
        Self { feed, now: 0, actions: Vec::new(), changes: Vec::new(), opened: Vec::new(), pins: 0 }
    }

    /// Creates a feed that streams from `7-a`.
    fn streaming() -> Self {
        let mut rig = Self::new(FeedSource::GlobalChanges, false);
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        rig.give(PINNED);
        rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
        rig.give(OPENED);
        assert!(rig.feed.is_streaming());
        logged();
        rig
    }

    /// Waits for the backoff; returns how long it took.
    fn dial(&mut self) -> Millis {
        let due = self.feed.poll_timeout().expect("the feed will dial");
        if due > 0 {
            self.feed.handle_timeout(due - 1, &mut self.actions);
            assert_eq!(self.actions, [], "not before its time");
        }
        self.feed.handle_timeout(due, &mut self.actions);
        assert_eq!(self.actions.drain(..).collect::<Vec<_>>(), [FeedAction::Dial]);
        assert_eq!(self.feed.poll_timeout(), None, "the connection has its own time limit");
        due - std::mem::replace(&mut self.now, due)
    }

    fn connect(&mut self, request: &str) {
        self.feed.handle_connected(self.now, &mut self.actions);
        self.asks(request);
    }

    /// Expects one request and nothing else.
    fn asks(&mut self, request: &str) {
        let actions: Vec<_> = self.actions.drain(..).collect();
        let [FeedAction::Send(bytes)] = &actions[..] else { panic!("not one request: {actions:?}") };
        let text = String::from_utf8_lossy(bytes);
        assert!(text.starts_with(&format!("{request} HTTP/1.1\r\n")), "{text}");
    }

    fn closes(&mut self) {
        self.actions.retain(|action| *action != FeedAction::Refused);
        assert_eq!(self.actions.drain(..).collect::<Vec<_>>(), [FeedAction::Close]);
        assert!(!self.feed.is_streaming());
    }

    fn give(&mut self, mut input: &[u8]) {
        loop {
            let (used, part) = self.feed.handle_bytes(input, self.now, &mut self.actions);
            self.actions.retain(|action| match action {
                FeedAction::Opened(continuity) => {
                    self.opened.push(*continuity);
                    false
                }
                FeedAction::Pinned => {
                    self.pins += 1;
                    false
                }
                _ => true,
            });
            input = &input[used..];
            let content = match part {
                FeedPart::Done => return,
                FeedPart::Nothing => continue,
                FeedPart::Content(content) => content,
            };
            let mut place = 0;
            loop {
                let (used, event) = self.feed.next_line(content, place, self.now);
                place += used;
                match event {
                    FeedEvent::Change(name, kind, _) => self.changes.push(format!("{kind:?} {name}")),
                    FeedEvent::Nothing | FeedEvent::Skipped => {}
                    FeedEvent::Done => break,
                    FeedEvent::Malformed => {
                        if !self.feed.handle_malformed_line(self.now, &mut self.actions) {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Feeds lines as one chunk.
    fn give_lines(&mut self, lines: &str) {
        self.give(&chunk(lines));
    }
}

fn chunk(content: &str) -> Vec<u8> {
    format!("{:x}\r\n{content}\r\n", content.len()).into_bytes()
}

fn line(seq: &str, id: &str) -> String {
    format!("{{\"seq\":\"{seq}\",\"id\":\"{id}\",\"changes\":[{{\"rev\":\"1-9\"}}]}}\n")
}

#[test]
fn pins_streams_and_resumes_behind_the_last_line() {
    let mut rig = Rig::streaming();
    rig.give_lines(&(line("8-b", "updated:a") + &line("9-c", "updated:_dbs")));
    assert_eq!(rig.changes, ["Updated a"]);
    rig.feed.handle_lost(None, rig.now, &mut rig.actions);
    rig.closes();
    let wait = rig.dial();
    assert!((50..=100).contains(&wait), "{wait}");
    rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=9-c");
    assert_eq!(logged(), ["CouchDB cut the changes feed: resuming it."]);
}

#[test]
fn a_stream_that_breaks_before_its_first_line_restarts_at_the_pin() {
    let mut rig = Rig::streaming();
    for _ in 0..3 {
        rig.feed.handle_lost(None, rig.now, &mut rig.actions);
        rig.closes();
        rig.dial();
        rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
    }
}

#[test]
fn requests_use_a_new_connection_when_couchdb_closes_the_old_one() {
    let mut rig = Rig::new(FeedSource::GlobalChanges, false);
    rig.dial();
    rig.connect("GET /_global_changes/_changes?since=now&limit=1");
    rig.give(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"last_seq\":\"7-a\"}");
    assert_eq!(rig.actions, [], "the end of the connection ends the answer");
    rig.feed.handle_lost(None, rig.now, &mut rig.actions);
    let done = [FeedAction::Pinned, FeedAction::Close, FeedAction::Dial];
    assert_eq!(rig.actions.drain(..).collect::<Vec<_>>(), done);
    rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
    // A cut connection is no orderly end.
    let mut rig = Rig::new(FeedSource::GlobalChanges, false);
    rig.dial();
    rig.connect("GET /_global_changes/_changes?since=now&limit=1");
    rig.give(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"last_seq\":\"7-a\"}");
    rig.feed.handle_lost(Some("reset"), rig.now, &mut rig.actions);
    rig.closes();
    rig.dial();
    rig.connect("GET /_global_changes/_changes?since=now&limit=1");
}

#[test]
fn creates_global_changes_and_streams_it_from_the_start() {
    let mut rig = Rig::new(FeedSource::GlobalChanges, true);
    rig.dial();
    rig.connect("GET /_global_changes/_changes?since=now&limit=1");
    rig.give(MISSING);
    rig.asks("PUT /_global_changes");
    rig.give(MADE);
    rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=0");
}

#[test]
fn resumes_in_global_changes_that_another_client_created() {
    let mut rig = Rig::streaming();
    rig.feed.settings.create = true;
    rig.give(b"0\r\n\r\n");
    rig.closes();
    rig.dial();
    rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
    rig.give(MISSING);
    rig.asks("PUT /_global_changes");
    // Changes up to here come after the old sequence in the new database, and before a pin.
    rig.give(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 2\r\n\r\n{}");
    rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
    // Without a sequence there is nothing to resume.
    let mut rig = Rig::new(FeedSource::GlobalChanges, true);
    rig.dial();
    rig.connect("GET /_global_changes/_changes?since=now&limit=1");
    rig.give(MISSING);
    rig.asks("PUT /_global_changes");
    rig.give(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 2\r\n\r\n{}");
    rig.asks("GET /_global_changes/_changes?since=now&limit=1");
}

#[test]
fn retries_the_creation_of_global_changes() {
    let mut rig = Rig::new(FeedSource::GlobalChanges, true);
    rig.dial();
    rig.connect("GET /_global_changes/_changes?since=now&limit=1");
    rig.give(MISSING);
    rig.asks("PUT /_global_changes");
    rig.give(MISSING);
    rig.closes();
    rig.dial();
    rig.connect("PUT /_global_changes");
    rig.feed.handle_lost(Some("reset"), rig.now, &mut rig.actions);
    rig.closes();
    rig.dial();
    rig.connect("PUT /_global_changes");
    rig.give(MADE);
    rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=0");
}

#[test]
fn a_refused_sequence_is_replaced_by_a_new_pin_at_once() {
    for status in [400, 410, 413, 414, 422, 431] {
        let mut rig = Rig::streaming();
        rig.give(b"0\r\n\r\n");
        rig.closes();
        rig.dial();
        rig.connect(STREAM);
        rig.give(&refusal(status));
        rig.asks(PIN);
        rig.give(PINNED);
        rig.asks(STREAM);
        // A new pin that CouchDB refuses as well is no reason to hurry.
        rig.give(&refusal(status));
        rig.closes();
        assert!(rig.dial() > 0);
        rig.connect(PIN);
        rig.give(PINNED);
        rig.asks(STREAM);
        rig.give(OPENED);
        assert_eq!(rig.opened.last(), Some(&Continuity::Gap), "{status}");
    }
}

#[test]
fn a_start_without_a_stream_in_ten_attempts_is_replaced_by_a_new_pin() {
    let answers: [Option<Vec<u8>>; 3] = [Some(refusal(500)), Some(refusal(302)), None];
    for answer in &answers {
        let mut rig = Rig::streaming();
        rig.feed.handle_lost(None, rig.now, &mut rig.actions);
        rig.closes();
        let fail = |rig: &mut Rig, question: &str| {
            rig.dial();
            rig.connect(question);
            match answer {
                Some(answer) => rig.give(answer),
                None => rig.feed.handle_lost(None, rig.now, &mut rig.actions),
            }
            rig.closes();
        };
        for _ in 0..MAX_STREAM_ATTEMPTS {
            fail(&mut rig, STREAM);
        }
        // CouchDB does not answer: the start is kept, and the attempts alternate with a new one.
        fail(&mut rig, PIN);
        fail(&mut rig, STREAM);
        rig.dial();
        rig.connect(PIN);
        rig.give(&String::from_utf8_lossy(PINNED).replace("7-a", "9-c").into_bytes());
        rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=9-c");
        rig.give(OPENED);
        assert_eq!(rig.opened.last(), Some(&Continuity::Gap));
    }
}

#[test]
fn a_stream_that_ends_after_every_line_stays_ready_and_logs_little() {
    let mut rig = Rig::streaming();
    logged();
    for number in 0..200 {
        let seq = format!("{number}-x");
        rig.give_lines(&line(&seq, "updated:a"));
        rig.give_lines(&format!("{{\"last_seq\":\"{seq}\",\"pending\":0}}\n"));
        rig.give(b"0\r\n\r\n");
        rig.closes();
        assert!(rig.feed.is_ready(rig.now));
        assert!(rig.dial() <= 100);
        assert!(rig.feed.is_ready(rig.now));
        rig.connect(&format!("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since={seq}"));
        rig.give(OPENED);
        rig.now += 400;
    }
    assert_eq!(logged(), ["CouchDB ended the changes feed: resuming it.", "Following the changes feed of CouchDB.",]);
    rig.give(b"0\r\n\r\n");
    rig.closes();
    rig.dial();
    rig.feed.handle_lost(Some("connection refused"), rig.now, &mut rig.actions);
    assert!(!rig.feed.is_ready(rig.now), "another problem followed");
}

#[test]
fn db_updates_that_cannot_be_pinned_start_from_now() {
    let refusals: [&[u8]; 3] = [
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 405 Method Not Allowed\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    ];
    for refusal in refusals.map(Some).into_iter().chain([None]) {
        let mut rig = Rig::new(FeedSource::DbUpdates, false);
        rig.dial();
        rig.connect("GET /_db_updates?since=now&limit=1");
        match refusal {
            Some(refusal) => rig.give(refusal),
            None => rig.feed.handle_timeout(3 * HEARTBEAT, &mut rig.actions),
        }
        rig.actions.retain(|action| *action != FeedAction::Pinned);
        assert_eq!(rig.actions.drain(..).collect::<Vec<_>>(), [FeedAction::Close, FeedAction::Dial]);
        rig.connect("GET /_db_updates?feed=continuous&heartbeat=1000&since=now");
    }
}

#[test]
fn a_stream_is_dead_after_three_missed_heartbeats() {
    let mut rig = Rig::streaming();
    let opened = rig.now;
    rig.now += 2 * HEARTBEAT;
    rig.give(&chunk("\n")[..1]);
    assert_eq!(rig.feed.poll_timeout(), Some(opened + 5 * HEARTBEAT), "any byte is a sign of life");
    rig.now = opened + 5 * HEARTBEAT - 1;
    rig.feed.handle_timeout(rig.now, &mut rig.actions);
    assert!(rig.feed.is_streaming() && rig.actions.is_empty());
    rig.feed.handle_timeout(rig.now + 1, &mut rig.actions);
    rig.closes();
    assert_silent_for(3_000);
}

/// Expects one line about a silent CouchDB, with advice about proxies.
fn assert_silent_for(milliseconds: Millis) {
    let lines = logged();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with(&format!("CouchDB was silent for {milliseconds} ms: ")), "{lines:?}");
    assert!(lines[0].contains("couchdb-howler check") && lines[0].contains("proxy"), "{lines:?}");
}

#[test]
fn requests_other_than_the_stream_have_a_timeout_of_their_own() {
    let mut rig = Rig::new(FeedSource::GlobalChanges, false);
    rig.feed.settings.heartbeat = 10_000;
    rig.dial();
    rig.connect("GET /_global_changes/_changes?since=now&limit=1");
    assert_eq!(rig.feed.poll_timeout(), Some(REPLY_TIMEOUT));
    rig.feed.handle_timeout(REPLY_TIMEOUT, &mut rig.actions);
    rig.closes();
    assert_silent_for(10_000);
}

#[test]
fn backoff_grows_until_a_change_comes_or_the_stream_is_stable() {
    let mut rig = Rig::streaming();
    let mut spans = Vec::new();
    for _ in 0..10 {
        rig.feed.handle_lost(None, rig.now, &mut rig.actions);
        rig.closes();
        spans.push(rig.dial());
        rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
        rig.give(OPENED);
    }
    let longest = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000];
    assert!(spans.iter().zip(longest).all(|(span, most)| (most / 2..=most).contains(span)), "{spans:?}");
    assert_eq!(logged(), ["CouchDB cut the changes feed: resuming it.", "Following the changes feed of CouchDB."]);
    for proof in [line("8-b", "updated:a"), "\n".to_owned()] {
        rig.now += if proof == "\n" { STABLE_AFTER } else { 1 };
        rig.give_lines(&proof);
        rig.feed.handle_lost(None, rig.now, &mut rig.actions);
        rig.closes();
        let wait = rig.dial();
        assert!((50..=100).contains(&wait), "{proof:?}: {wait}");
        rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=8-b");
        rig.give(OPENED);
        assert!(logged().is_empty(), "one line per kind and minute");
    }
    rig.now += MINUTE;
    rig.give_lines(&line("9-c", "updated:a"));
    rig.feed.handle_lost(None, rig.now, &mut rig.actions);
    rig.closes();
    rig.dial();
    rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=9-c");
    rig.give(OPENED);
    let cut = "CouchDB cut the changes feed: resuming it. (2 more in the last 2 minutes)";
    assert_eq!(logged(), [cut, "Following the changes feed of CouchDB."]);
}

#[test]
fn each_error_status_is_logged_once_with_advice() {
    for (status, words) in [
        (404, "create it with PUT /_global_changes, or start with --create_global_changes."),
        (500, "with status 500"),
        (302, "with status 302"),
    ] {
        let mut rig = Rig::new(FeedSource::GlobalChanges, false);
        for _ in 0..4 {
            rig.dial();
            rig.connect("GET /_global_changes/_changes?since=now&limit=1");
            rig.give(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}").as_bytes());
            rig.closes();
        }
        let lines = logged();
        assert!(lines.len() == 1 && lines[0].contains(words) && !lines[0].contains("  "), "{lines:?}");
    }
}

#[test]
fn a_problem_of_another_kind_is_logged_too() {
    let mut rig = Rig::new(FeedSource::GlobalChanges, false);
    for error in [Some("refused"), Some("refused"), None, Some("refused")] {
        rig.dial();
        rig.feed.handle_lost(error, rig.now, &mut rig.actions);
        rig.closes();
    }
    assert_eq!(logged().len(), 1, "one line per kind and minute");
    rig.dial();
    rig.now += MINUTE;
    rig.feed.handle_lost(Some("refused"), rig.now, &mut rig.actions);
    rig.closes();
    assert_eq!(logged().len(), 1, "a suppressed problem is logged after its minute");
    rig.dial();
    rig.connect("GET /_global_changes/_changes?since=now&limit=1");
    rig.give(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwelcome");
    rig.closes();
    assert!(logged()[0].contains("is not from CouchDB (no last_seq)"));
}

#[test]
fn bytes_after_the_end_are_ignored() {
    let mut rig = Rig::streaming();
    rig.feed.handle_lost(None, rig.now, &mut rig.actions);
    rig.closes();
    rig.give(&chunk(&line("8-b", "updated:a")));
    rig.feed.handle_lost(Some("late"), rig.now, &mut rig.actions);
    assert!(rig.actions.is_empty() && rig.changes.is_empty());
}

#[test]
fn every_split_of_an_exchange_gives_the_same_changes() {
    let lines = [
        chunk(&line("8-b", "created:a/b")),
        chunk("\n"),
        chunk(&(line("9-c", "updated:plus+db") + &line("5-d", "_design/x"))),
        // A line that ends in another chunk than it starts in.
        chunk(&line("6-e", "deleted:a/b")[..20]),
        chunk(&line("6-e", "deleted:a/b")[20..]),
    ];
    let end: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}";
    let stream = [OPENED, &lines.concat(), end].concat();
    for at in 0..=PINNED.len() {
        let mut rig = Rig::new(FeedSource::GlobalChanges, false);
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        rig.give(&PINNED[..at]);
        rig.give(&PINNED[at..]);
        rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
    }
    let check = |parts: &[&[u8]]| {
        let mut rig = Rig::new(FeedSource::GlobalChanges, false);
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        rig.give(PINNED);
        rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
        for part in parts {
            rig.give(part);
        }
        rig.closes();
        assert_eq!(rig.changes, ["Created a/b", "Updated plus+db", "Deleted a/b"]);
        rig.dial();
        rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=6-e");
    };
    for a in 0..=stream.len() {
        for b in (a..=stream.len()).step_by(7) {
            check(&[&stream[..a], &stream[a..b], &stream[b..]]);
        }
    }
    check(&stream.chunks(1).collect::<Vec<_>>());
}

/// Returns the continuity of the stream that opens after some trouble.
fn continuity_after(trouble: impl FnOnce(&mut Rig)) -> Continuity {
    let mut rig = Rig::streaming();
    assert_eq!((&rig.opened[..], rig.pins), (&[Continuity::Whole][..], 1), "the first stream has no gap");
    trouble(&mut rig);
    rig.give(OPENED);
    rig.opened[1]
}

const STREAM: &str = "GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a";

#[test]
fn reports_the_continuity_between_two_streams() {
    let cut = |rig: &mut Rig| {
        rig.feed.handle_lost(None, rig.now, &mut rig.actions);
        rig.closes();
        rig.dial();
    };
    let refused = |rig: &mut Rig| {
        rig.feed.handle_lost(Some("connection refused"), rig.now, &mut rig.actions);
        rig.closes();
        rig.dial();
    };
    let since_refused = |rig: &mut Rig| {
        rig.connect(STREAM);
        rig.give(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}");
        rig.asks(PIN);
        rig.give(PINNED);
        rig.asks(STREAM);
    };
    let whole = continuity_after(|rig| {
        cut(rig);
        rig.connect(STREAM);
    });
    assert_eq!(whole, Continuity::Whole);
    let away = continuity_after(|rig| {
        cut(rig);
        refused(rig);
        rig.connect(STREAM);
    });
    assert_eq!(away, Continuity::Doubtful);
    let missed_by_others = continuity_after(|rig| {
        rig.feed.handle_unreachable();
        cut(rig);
        rig.feed.handle_unreachable();
        rig.connect(STREAM);
    });
    assert_eq!(missed_by_others, Continuity::Doubtful);
    let only_busy = continuity_after(|rig| {
        rig.feed.handle_unreachable();
        cut(rig);
        rig.connect(STREAM);
    });
    assert_eq!(only_busy, Continuity::Whole, "CouchDB answered the feed meanwhile");
    let gateway = continuity_after(|rig| {
        cut(rig);
        rig.connect(STREAM);
        rig.give(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\n{}");
        rig.closes();
        rig.dial();
        rig.connect(STREAM);
    });
    assert_eq!(gateway, Continuity::Doubtful);
    let gap = continuity_after(|rig| {
        cut(rig);
        since_refused(rig);
    });
    assert_eq!(gap, Continuity::Gap);
    let worst = continuity_after(|rig| {
        cut(rig);
        refused(rig);
        since_refused(rig);
    });
    assert_eq!(worst, Continuity::Doubtful, "the worse of the two");
    let missing = continuity_after(|rig| {
        cut(rig);
        rig.connect(STREAM);
        rig.give(MISSING);
        rig.closes();
        rig.dial();
        rig.connect(STREAM);
    });
    assert_eq!(missing, Continuity::Unrecorded);
}

#[test]
fn a_feed_without_a_pin_reports_a_gap_when_it_breaks_early() {
    let mut rig = Rig::new(FeedSource::DbUpdates, false);
    rig.dial();
    rig.connect("GET /_db_updates?since=now&limit=1");
    rig.give(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
    rig.actions.clear();
    for _ in 0..2 {
        rig.connect("GET /_db_updates?feed=continuous&heartbeat=1000&since=now");
        rig.give(OPENED);
        rig.feed.handle_lost(None, rig.now, &mut rig.actions);
        rig.closes();
        rig.dial();
    }
    assert_eq!(rig.opened, [Continuity::Whole, Continuity::Gap]);
}

#[test]
fn dials_soon_after_another_connection_reached_couchdb() {
    let mut rig = Rig::streaming();
    for _ in 0..10 {
        rig.feed.handle_lost(Some("connection refused"), rig.now, &mut rig.actions);
        rig.closes();
        if rig.feed.poll_timeout().is_some_and(|at| at > rig.now + 10_000) {
            break;
        }
        rig.dial();
    }
    assert!(rig.feed.poll_timeout().expect("it waits") > rig.now + 10_000);
    rig.feed.handle_reachable(rig.now);
    assert!(rig.feed.poll_timeout().expect("it waits") <= rig.now + REDIAL_AFTER);
}

#[test]
fn a_malformed_line_is_read_again_once() {
    let mut rig = Rig::streaming();
    rig.give_lines(&(line("8-b", "updated:a") + "{\"seq\":\"9-c\",\"id\n" + &line("9-c", "updated:lost?")));
    rig.closes();
    rig.dial();
    rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=8-b");
    rig.give(OPENED);
    rig.give_lines(&("{\"seq\":\"9-c\",\"id\n".to_owned() + &line("9-c", "updated:found")));
    assert!(rig.feed.is_streaming());
    assert_eq!(rig.changes, ["Updated a", "Updated found"]);
}

#[test]
fn a_feed_of_malformed_lines_logs_one_line_per_minute() {
    let mut rig = Rig::streaming();
    let broken = chunk(&"no JSON {\n".repeat(1_000));
    let mut lines = Vec::new();
    for _ in 0..20 {
        rig.give(&broken);
        if !rig.feed.is_streaming() {
            rig.closes();
            rig.dial();
            rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
            rig.give(OPENED);
        }
        lines.append(&mut logged());
    }
    let twice = "Skipped a line of the changes feed that is not JSON, twice.";
    let announced = "Following the changes feed of CouchDB.";
    assert_eq!(lines, ["A line of the changes feed is not JSON: reading it again.", announced, twice]);
    rig.now += MINUTE;
    rig.give(&broken);
    let lines = logged();
    assert!(lines.len() == 1 && lines[0].contains("18,999 more in the last minute"), "{lines:?}");
}

#[test]
fn a_line_that_is_too_long_is_skipped() {
    let mut rig = Rig::streaming();
    rig.give_lines(&("x".repeat(MAX_LINE + 1) + "\n" + &line("8-b", "updated:a")));
    assert_eq!(rig.changes, ["Updated a"]);
    assert_eq!(logged(), ["Skipped a line of the changes feed that is over 65536 bytes."]);
}
