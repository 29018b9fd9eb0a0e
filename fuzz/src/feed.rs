//! The feed as the server drives it, without a server. A script stands for CouchDB, the connection
//! and the clock, and the simulated CouchDB knows what the feed must report.
//!
//! A script consists of lines; a line that is no operation is skipped. Its first line may hold `D`
//! (the feed is `_db_updates`) and `C` (`_global_changes` is created if it is missing).
//!
//! ```text
//! @          a database changes
//! c          the connection opens          x          it cannot be opened
//! -          it breaks                     .          it ends silently
//! w12        the next 12 bytes that CouchDB has written arrive; w: all of them
//! =404       CouchDB answers the next request with this status alone; =404k keeps the connection open
//! R410       from here on CouchDB rejects streams with this status (300 to 599; else it closes the connection), but for
//!            those that start where one was pinned since; to the end
//! b          the next line is cut short    s          the next line is too long
//! h          an empty line                 e          the stream ends
//! M          _global_changes is deleted, or created by another program
//! u          another user of CouchDB fails r          CouchDB has answered another user
//! ~1234      time passes, in milliseconds; timeouts are handled when they are due
//! >text      these bytes arrive, with a line end for each |; from here on reports are not checked
//! ```

use std::collections::{BTreeSet, VecDeque};

use couchdb_howler::state::feed::{Continuity, Feed, FeedAction, FeedEvent, FeedPart, FeedSettings};
use couchdb_howler::state::jitter::Jitter;
use couchdb_howler::state::timers::Millis;
use couchdb_howler::wire::couchdb::{FeedSource, Requests};
use couchdb_howler::wire::http::{MAX_HEAD, parse_request};
use couchdb_howler::wire::lines::MAX_LINE;
use couchdb_howler::wire::url::{CouchUrl, query_pairs};

/// Longest time of a script, in milliseconds.
const MAX_OPERATIONS: usize = 300;
const MAX_LONG: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Closed,
    Dialing,
    Open,
}

struct World {
    feed: Feed,
    source: FeedSource,
    now: Millis,
    connection: Connection,
    /// Bytes that CouchDB has written on the connection and the feed has not read.
    written: VecDeque<u8>,
    /// Last change that was written to the stream, while there is one.
    streaming: Option<u64>,
    /// Start of the last stream.
    stream_from: u64,
    /// Number of the last change, and the changes that CouchDB has recorded.
    last: u64,
    recorded: BTreeSet<u64>,
    /// Whether `_global_changes` exists.
    exists: bool,
    /// Fault of the next bytes of CouchDB.
    statuses: VecDeque<(u16, bool)>,
    /// Status that rejects streams, None for a close, and the starts that were pinned since.
    refusal: Option<(Option<u16>, BTreeSet<u64>)>,
    /// Whether CouchDB closes the connection.
    closes: bool,
    cut: usize,
    long: usize,
    longs: usize,
    notified: BTreeSet<u64>,
    opened: bool,
    /// Changes up to this one need no report, since the feed reported a gap.
    excused: u64,
    /// Whether bytes arrived that CouchDB does not write.
    strange: bool,
}

/// Runs a script to its end, and on until the feed is followed again.
pub fn run(script: &str) {
    let options = script.lines().next().unwrap_or("");
    let source = if options.contains('D') { FeedSource::DbUpdates } else { FeedSource::GlobalChanges };
    let url = CouchUrl::parse("http://admin:secret@localhost:5984").expect("a URL");
    let settings = FeedSettings { source, heartbeat: 1_000, create: options.contains('C') };
    let mut world = World {
        feed: Feed::new(settings, Requests::new(&url), Jitter::new(7)),
        source,
        now: 0,
        connection: Connection::Closed,
        written: VecDeque::new(),
        streaming: None,
        stream_from: 0,
        last: 0,
        recorded: BTreeSet::new(),
        exists: true,
        statuses: VecDeque::new(),
        refusal: None,
        closes: false,
        cut: 0,
        long: 0,
        longs: 0,
        notified: BTreeSet::new(),
        opened: false,
        excused: 0,
        strange: false,
    };
    for line in script.lines().take(MAX_OPERATIONS) {
        world.operate(line);
        assert!(world.feed.followed_until() <= world.now);
    }
    world.settle();
}

impl World {
    fn operate(&mut self, line: &str) {
        let Some(operation) = line.chars().next() else { return };
        let rest = &line[operation.len_utf8()..];
        match operation {
            '@' => self.change(),
            'c' if self.connection == Connection::Dialing => self.connect(),
            'x' if self.connection == Connection::Dialing => self.lose(Some("refused")),
            '-' if self.connection == Connection::Open => self.lose(Some("reset")),
            '.' if self.connection == Connection::Open => self.lose(None),
            'w' => self.deliver(rest.parse().unwrap_or(usize::MAX)),
            '=' => {
                let (status, keeps) = rest.strip_suffix('k').map_or((rest, false), |status| (status, true));
                let status = status.parse().ok().filter(|status| (200..600).contains(status));
                self.statuses.extend(status.map(|status| (status, keeps)));
            }
            'R' => {
                let status = rest.parse().ok().filter(|status| (300..600).contains(status));
                // A rejection for other reasons does not depend on the start.
                let blames_the_start = status.is_none_or(|status| !matches!(status, 401 | 403 | 404));
                if blames_the_start {
                    self.refusal = Some((status, BTreeSet::new()));
                }
            }
            'b' => self.cut += 1,
            's' if self.longs < MAX_LONG => {
                self.longs += 1;
                self.long += 1;
            }
            'h' if self.streaming.is_some() => self.write_chunk("\n"),
            'e' if self.streaming.take().is_some() => self.write("0\r\n\r\n"),
            'M' => {
                self.exists ^= true;
                if !self.exists && self.source == FeedSource::GlobalChanges {
                    self.recorded.clear();
                    if self.streaming.take().is_some() {
                        self.write("0\r\n\r\n");
                    }
                }
            }
            'u' => self.feed.handle_unreachable(),
            'r' => self.feed.handle_reachable(self.now),
            '~' => self.advance(rest.parse::<u16>().unwrap_or(0).into()),
            '>' if self.connection == Connection::Open => {
                self.strange = true;
                let bytes = rest.replace('|', "\r\n");
                self.take(bytes.as_bytes());
            }
            _ => {}
        }
    }

    // CouchDB.

    fn change(&mut self) {
        self.last += 1;
        if self.exists || self.source == FeedSource::DbUpdates {
            self.recorded.insert(self.last);
        }
        self.write_stream();
    }

    fn write(&mut self, text: &str) {
        self.written.extend(text.as_bytes());
    }

    fn write_chunk(&mut self, text: &str) {
        self.write(&format!("{:x}\r\n{text}\r\n", text.len()));
    }

    /// Writes every change behind the last one that was written.
    fn write_stream(&mut self) {
        while let Some(from) = self.streaming
            && let Some(number) = self.recorded.range(from + 1..).next().copied()
        {
            self.streaming = Some(number);
            let mut line = match self.source {
                FeedSource::GlobalChanges => {
                    format!(r#"{{"seq":"{number}","id":"updated:d{number}","changes":[{{"rev":"1-a"}}]}}"#)
                }
                FeedSource::DbUpdates => format!(r#"{{"db_name":"d{number}","type":"updated","seq":"{number}"}}"#),
            };
            if self.cut > 0 {
                self.cut -= 1;
                line.truncate(line.len() / 2);
            } else if self.long > 0 {
                self.long -= 1;
                line.push_str(&" ".repeat(MAX_LINE));
            }
            line.push('\n');
            self.write_chunk(&line);
        }
    }

    /// Handles a request of the feed.
    fn answer(&mut self, request: &[u8]) {
        assert_eq!(self.connection, Connection::Open, "asked without a connection");
        let (length, asked) = parse_request(request, MAX_HEAD).expect("a request").expect("whole");
        assert_eq!((length, self.streaming), (request.len(), None), "one question at a time");
        self.written.clear();
        if let Some((status, keeps)) = self.statuses.pop_front() {
            let connection = if keeps { "keep-alive" } else { "close" };
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\nConnection: {connection}\r\n\r\n");
            if asked.query.contains("feed=continuous") && status == 200 {
                self.stream_from = self.since(asked.query);
            }
            return self.write(&(head + "{}"));
        }
        if asked.method == "PUT" {
            let status = if std::mem::replace(&mut self.exists, true) { 412 } else { 201 };
            return self.write(&format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}"));
        }
        if !self.exists && self.source == FeedSource::GlobalChanges {
            return self.write("HTTP/1.1 404 X\r\nContent-Length: 2\r\n\r\n{}");
        }
        if asked.query.contains("feed=continuous") {
            let from = self.since(asked.query);
            if let Some((status, pinned)) = &self.refusal
                && !pinned.contains(&from)
            {
                match status {
                    Some(status) => self.write(&format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}")),
                    None => self.closes = true,
                }
                return;
            }
            (self.streaming, self.stream_from) = (Some(from), from);
            self.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            return self.write_stream();
        }
        if let Some((_, pinned)) = &mut self.refusal {
            pinned.insert(self.last);
        }
        let body = format!(r#"{{"results":[],"last_seq":"{}","pending":0}}"#, self.last);
        self.write(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }

    fn since(&self, query: &str) -> u64 {
        let (_, since) = query_pairs(query).find(|(name, _)| name == "since").expect("every stream names a start");
        if since == "now" {
            assert_eq!(self.source, FeedSource::DbUpdates, "the start is pinned");
            return self.last;
        }
        since.parse().unwrap_or_else(|_| {
            assert!(self.strange, "a sequence that was never given: {since}");
            self.last
        })
    }

    // The connection and the clock.

    fn connect(&mut self) {
        self.connection = Connection::Open;
        let mut actions = Vec::new();
        self.feed.handle_connected(self.now, &mut actions);
        self.perform(actions);
    }

    fn hang_up(&mut self) {
        self.connection = Connection::Closed;
        self.written.clear();
        self.streaming = None;
        self.closes = false;
    }

    fn lose(&mut self, error: Option<&str>) {
        self.hang_up();
        let mut actions = Vec::new();
        self.feed.handle_lost(error, self.now, &mut actions);
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<FeedAction>) {
        for action in actions {
            match action {
                FeedAction::Dial => {
                    assert_eq!(self.connection, Connection::Closed, "dialed twice");
                    self.connection = Connection::Dialing;
                }
                FeedAction::Send(request) => self.answer(&request),
                FeedAction::Close => self.hang_up(),
                FeedAction::Pinned | FeedAction::Refused => {}
                FeedAction::Opened(continuity) => {
                    assert_eq!(self.connection, Connection::Open, "opened without a connection");
                    // A change before the first stream is not missed.
                    if !std::mem::replace(&mut self.opened, true) || continuity >= Continuity::Gap {
                        self.excused = self.excused.max(self.stream_from);
                    }
                }
            }
        }
    }

    fn advance(&mut self, millis: Millis) {
        let end = self.now + millis;
        while let Some(at) = self.feed.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let mut actions = Vec::new();
            self.feed.handle_timeout(self.now, &mut actions);
            assert!(!actions.is_empty(), "a timeout of nothing");
            self.perform(actions);
            assert!(self.feed.poll_timeout().is_none_or(|at| at > self.now), "a timeout that does not pass");
        }
        self.now = end;
    }

    fn deliver(&mut self, bytes: usize) {
        if self.closes {
            return self.lose(None);
        }
        let bytes: Vec<u8> = self.written.drain(..bytes.min(self.written.len())).collect();
        self.take(&bytes);
    }

    /// Performs the actions of the feed, as the server does.
    fn take(&mut self, mut input: &[u8]) {
        if input.is_empty() || self.connection != Connection::Open {
            return;
        }
        let mut actions = Vec::new();
        loop {
            let (used, part) = self.feed.handle_bytes(input, self.now, &mut actions);
            input = &input[used..];
            let content = match part {
                FeedPart::Done => break,
                FeedPart::Nothing => continue,
                FeedPart::Content(content) => content,
            };
            // A stream is opened before a line of it arrives.
            self.perform(std::mem::take(&mut actions));
            let mut place = 0;
            loop {
                let (used, notified) = self.feed.next_line(content, place, self.now);
                place += used;
                match notified {
                    FeedEvent::Change(name, ..) => {
                        let number = name.strip_prefix('d').and_then(|number| number.parse().ok());
                        assert!(self.strange || number.is_some_and(|it| (1..=self.last).contains(&it)), "{name}");
                        self.notified.extend(number);
                    }
                    FeedEvent::Nothing => {}
                    FeedEvent::Skipped => self.excused = self.last,
                    FeedEvent::Done => break,
                    FeedEvent::Malformed => {
                        if !self.feed.handle_malformed_line(self.now, &mut actions) {
                            break;
                        }
                        self.excused = self.last;
                    }
                }
            }
        }
        self.perform(actions);
    }

    /// Removes all faults, and asserts that the feed recovers and has reported everything.
    fn settle(&mut self) {
        self.statuses.clear();
        (self.exists, self.cut, self.long) = (true, 0, 0);
        // If CouchDB rejects the start, the feed tries ten times.
        for _ in 0..400 {
            assert!(self.feed.is_ready(self.now) || !self.feed.is_streaming());
            if self.connection == Connection::Dialing {
                self.connect();
            } else if !self.written.is_empty() || self.closes {
                self.deliver(usize::MAX);
            } else if self.feed.is_streaming() && self.streaming.is_some() {
                break;
            } else if let Some(at) = self.feed.poll_timeout() {
                self.advance(at.saturating_sub(self.now));
            }
        }
        assert!(self.feed.is_streaming(), "not followed again");
        if !self.strange {
            let missing = self.recorded.range(self.excused + 1..).find(|number| !self.notified.contains(number));
            assert_eq!(missing, None, "not notified, and no gap");
        }
    }
}
