//! The one changes feed: what to ask CouchDB next, what its lines mean, and when it counts as broken.
//!
//! ```text
//!    ┌─▶ Waiting ──▶ Dialing ──▶ Asking: (make _global_changes) ─▶ pin ─▶ stream ──▶ Streaming
//!    │  (backoff)                    │  where to start is known: stream at once         │
//!    └───────────────────────────────┴──────────── any break ───────────────────────────┘
//! ```
//!
//! A feed that was opened with `since=now` and breaks before its first line has nothing to resume
//! from. So the sequence to start from is asked for first (pinned), and every stream names one.

use std::borrow::Cow;
use std::fmt;
use std::mem::{Discriminant, discriminant};
use std::ops::Range;

use crate::state::jitter::{Backoff, Jitter};
use crate::state::log_throttle::{LogThrottles, MINUTE};
use crate::state::timers::Millis;
use crate::wire::couchdb::{self, ChangeKind, FeedLine, FeedSource, Requests};
use crate::wire::http::Response;
use crate::wire::lines::{Line, LineReader, MAX_LINE};
use crate::wire::positions::Revision;
use crate::wire::response::{Part, ResponseReader};

/// In place of a sequence: from what comes next.
const NOW: &str = "now";
/// So many heartbeats without a byte, and the feed counts as dead.
const MISSED_HEARTBEATS: u64 = 3;
/// Time for CouchDB to answer a question that is no stream, in milliseconds.
const ANSWER_WITHIN: Millis = 10_000;
/// When CouchDB turns out to be there, the feed is dialed after at most so long, in milliseconds.
const REDIAL_AFTER: Millis = 100;
/// A stream that stood for so long was a success, also when nothing changed meanwhile.
const STEADY_AFTER: Millis = 5_000;
/// After so many tries in a row that opened no stream, the start may be what CouchDB does not take: it is pinned again,
/// if that works.
const MAX_STREAM_TRIES: u32 = 10;
/// A feed that CouchDB ended in order counts as open for so long, in milliseconds: it is opened again at once.
const READY_AFTER_END: Millis = 5_000;
/// Ends in order that follow each other within this time are logged once, in milliseconds. A node in maintenance mode
/// ends the feed after every batch of lines.
const ENDS_TOLD_EVERY: Millis = 60_000;
/// Longest body of an answer that is no stream, in bytes. It holds a sequence.
const MAX_ANSWER: usize = 4 * MAX_LINE;

/// How to follow the feed.
#[derive(Clone, Debug)]
pub struct FeedSettings {
    /// Which of the two.
    pub source: FeedSource,
    /// How often CouchDB is to show that it is alive, in milliseconds; positive.
    pub heartbeat: Millis,
    /// Whether to make `_global_changes` where it is missing.
    pub create: bool,
}

/// What the feed wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedAction {
    /// Connect to CouchDB; the answer is [`Feed::handle_connected`] or [`Feed::handle_lost`].
    Dial,
    /// Write this to the connection.
    Send(Vec<u8>),
    /// Give the connection up.
    HangUp,
    /// From here on no change is missed, since the start of the next stream is known.
    Pinned,
    /// Changes are being followed; what may have happened since they were before.
    Opened(Continuity),
    /// CouchDB refused the credentials (401).
    Refused,
}

/// What lies between a stream of changes and the one before, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Continuity {
    /// Every change that CouchDB recorded comes in one of the two.
    Whole,
    /// There is a gap: this one starts from now. Positions tell what changed in it.
    Gap,
    /// CouchDB was away: what changed in the last half second before it stopped may not be recorded.
    Doubtful,
    /// `_global_changes` was missing meanwhile: changes were not recorded.
    Unrecorded,
}

/// What the next bytes of the connection are.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedPart<'a> {
    /// Lines, or parts of them, for [`Feed::next_line`].
    Content(&'a [u8]),
    /// Nothing for anybody else.
    Nothing,
    /// All input was used, or the connection is of no use any more.
    Done,
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// A database changed.
    Change(Cow<'a, str>, ChangeKind, Option<Revision>),
    /// Nothing for anybody else.
    Nothing,
    /// A line was passed over: it was too long.
    Skipped,
    /// A line is no JSON: for [`Feed::handle_broken_line`].
    Broken,
    /// The content is used up, or the connection is of no use any more.
    Done,
}

/// What went wrong, in words that tell the operator what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    Connection(String),
    Silent(Millis),
    Cut,
    Ended,
    Framing(String),
    BrokenLine,
    Unauthorized,
    Locked,
    Missing(bool),
    SinceRefused(u16),
    Status(u16),
    NoSequence,
}

/// What a log line is about. Each has a throttle of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LogCause {
    LongLine,
    BrokenLine,
    Creation,
    Problem(Discriminant<Problem>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Create,
    Pin,
    Stream,
}

#[derive(Debug)]
enum Phase {
    Waiting { until: Millis },
    Dialing,
    Asking { question: Question, deadline: Millis, head: Option<Response> },
    Streaming { since: Millis, deadline: Millis },
}

/// The feed.
#[derive(Debug)]
pub struct Feed {
    settings: FeedSettings,
    requests: Requests,
    phase: Phase,
    /// Where to resume; None until the start was pinned.
    since: Option<String>,
    /// Where in the content at hand a newer one stands: of many lines that come at once the last one's is copied.
    newer: Option<Range<usize>>,
    reader: ResponseReader,
    lines: LineReader,
    /// The body of an answer that is no stream.
    answer: Vec<u8>,
    backoff: Backoff,
    jitter: Jitter,
    /// The last problem; None once the feed proved itself, with a change or by standing for a while.
    problem: Option<Problem>,
    /// Whether the last problem was logged, and not suppressed by its throttle.
    problem_logged: bool,
    log: LogThrottles<LogCause>,
    /// Whether it was logged that the feed is followed, since there was something else to log.
    announced: bool,
    /// Where a broken line was met, so that the same one does not stop the feed for ever.
    broken_at: Option<String>,
    /// Tries in a row that opened no stream, for no reason that a new start could not mend.
    tries: u32,
    /// Whether the start was refused since the last stream.
    refused: bool,
    /// When CouchDB ended the last stream in order, if nothing else went wrong since.
    ended_at: Option<Millis>,
    /// Whether `_global_changes` was found missing and is to be made.
    must_create: bool,
    /// The worst since the last stream; None before the first.
    continuity: Option<Continuity>,
    /// When the last stream that broke gave its last byte.
    followed_until: Millis,
    /// The status of an answer that was not taken yet.
    status: Option<u16>,
}

impl Feed {
    /// A feed that dials as soon as its first timeout is handled.
    pub fn new(settings: FeedSettings, requests: Requests, jitter: Jitter) -> Self {
        Self {
            settings,
            requests,
            phase: Phase::Waiting { until: 0 },
            since: None,
            newer: None,
            reader: ResponseReader::new(),
            lines: LineReader::default(),
            answer: Vec::new(),
            backoff: Backoff::default(),
            jitter,
            problem: None,
            problem_logged: false,
            log: LogThrottles::new(MINUTE),
            announced: false,
            broken_at: None,
            tries: 0,
            refused: false,
            ended_at: None,
            must_create: false,
            continuity: None,
            followed_until: 0,
            status: None,
        }
    }

    /// Asks with other credentials from now on. What CouchDB refused is tried again at once.
    pub fn handle_credentials(&mut self, requests: Requests, now: Millis) {
        self.requests = requests;
        if let Phase::Waiting { until } = &mut self.phase {
            *until = (*until).min(now);
        }
        if matches!(self.problem, Some(Problem::Unauthorized | Problem::Locked)) {
            self.backoff.reset();
        }
    }

    /// Takes the status of an answer that has come since the last call.
    pub fn take_status(&mut self) -> Option<u16> {
        self.status.take()
    }

    /// Waits for a moment before CouchDB is connected to again; what was begun is given up.
    pub fn wait_until(&mut self, at: Millis) {
        self.phase = Phase::Waiting { until: at };
    }

    /// Until when changes were followed before the feed broke last; all that had happened by then, but for what was on
    /// its way, has come.
    pub fn followed_until(&self) -> Millis {
        self.followed_until
    }

    /// Whether changes are being followed right now.
    pub fn is_streaming(&self) -> bool {
        matches!(self.phase, Phase::Streaming { .. })
    }

    /// Returns whether changes are being followed, or will be in a moment: CouchDB has just ended the stream in order.
    pub fn is_ready(&self, now: Millis) -> bool {
        self.is_streaming() || self.ended_at.is_some_and(|at| now < at + READY_AFTER_END)
    }

    /// When [`Feed::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Dialing => None,
            Phase::Asking { deadline, .. } | Phase::Streaming { deadline, .. } => Some(deadline),
        }
    }

    /// Does what the time asks for.
    pub fn handle_timeout(&mut self, now: Millis, actions: &mut Vec<FeedAction>) {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        match self.phase {
            Phase::Waiting { .. } => {
                self.phase = Phase::Dialing;
                actions.push(FeedAction::Dial);
            }
            Phase::Asking { question: Question::Pin, .. }
                if self.settings.source == FeedSource::DbUpdates && self.since.is_none() =>
            {
                self.start_from_now(now, actions);
            }
            Phase::Asking { question, .. } => self.fail(Problem::Silent(self.patience_for(question)), now, actions),
            _ => self.fail(Problem::Silent(self.patience()), now, actions),
        }
    }

    /// The connection stands: asks what is to be asked first.
    pub fn handle_connected(&mut self, now: Millis, actions: &mut Vec<FeedAction>) {
        let question = match self.since {
            _ if self.must_create => Question::Create,
            None => Question::Pin,
            Some(_) if self.tries >= MAX_STREAM_TRIES => Question::Pin,
            Some(_) => Question::Stream,
        };
        self.ask(question, now, actions);
    }

    /// The connection could not be made, or broke; `error` says how, None for an end without a word.
    pub fn handle_lost(&mut self, error: Option<&str>, now: Millis, actions: &mut Vec<FeedAction>) {
        let at_end = error.is_none() && self.reader.ends_with_connection();
        match (&self.phase, error) {
            (Phase::Waiting { .. }, _) => {}
            (Phase::Dialing, _) => {
                self.worsen(Continuity::Doubtful);
                self.fail(Problem::Connection(error.unwrap_or("the connection was closed").to_owned()), now, actions);
            }
            (Phase::Asking { .. }, None) if at_end => self.handle_answer(now, actions),
            (Phase::Streaming { .. }, None) if at_end => self.fail(Problem::Ended, now, actions),
            (_, None) => self.fail(Problem::Cut, now, actions),
            (_, Some(error)) => self.fail(Problem::Connection(error.to_owned()), now, actions),
        }
    }

    /// Takes the next part off what the connection gave; how many bytes were used, and the part.
    pub fn handle_bytes<'a>(
        &mut self,
        input: &'a [u8],
        now: Millis,
        actions: &mut Vec<FeedAction>,
    ) -> (usize, FeedPart<'a>) {
        if matches!(self.phase, Phase::Waiting { .. } | Phase::Dialing) {
            return (input.len(), FeedPart::Done);
        }
        let (used, part) = match self.reader.next(input) {
            Ok(step) => step,
            Err(error) => {
                self.fail(Problem::Framing(error.to_string()), now, actions);
                return (input.len(), FeedPart::Done);
            }
        };
        let patience = self.patience();
        if let Phase::Streaming { deadline, .. } = &mut self.phase {
            *deadline = now + patience;
        }
        let part = match part {
            Part::NeedMore => FeedPart::Done,
            Part::Head(head) => {
                self.handle_head(head, now, actions);
                FeedPart::Nothing
            }
            Part::Data(data) if self.is_streaming() => FeedPart::Content(data),
            Part::Data(data) => {
                if self.answer.len() + data.len() <= MAX_ANSWER {
                    self.answer.extend_from_slice(data);
                }
                FeedPart::Nothing
            }
            Part::End if self.is_streaming() => {
                self.fail(Problem::Ended, now, actions);
                FeedPart::Done
            }
            Part::End => {
                self.handle_answer(now, actions);
                FeedPart::Done
            }
        };
        (used, part)
    }

    /// Takes the line of the stream's content that begins at a place in it; how many bytes were used, and what it says.
    /// To be called for the whole of the content, until [`Told::Done`] or a broken line that is not passed over.
    pub fn next_line<'a>(&'a mut self, content: &'a [u8], place: usize, now: Millis) -> (usize, Told<'a>) {
        let Phase::Streaming { since: started, .. } = self.phase else {
            return (content.len() - place, Told::Done);
        };
        let (used, line) = self.lines.next(&content[place..]);
        let line = match line {
            Line::NeedMore => {
                settle(&mut self.since, &mut self.newer, content);
                return (used, Told::Done);
            }
            Line::Complete(line) => line,
            Line::TooLong => {
                if let Some(more) = self.log.of(LogCause::LongLine).pass(now) {
                    log::warn!("Skipped a line of the changes feed that is over {MAX_LINE} bytes{more}.");
                }
                return (used, Told::Skipped);
            }
        };
        let parsed = couchdb::parse_feed_line(line);
        if matches!(parsed, Some(FeedLine::Change { .. })) || now >= started + STEADY_AFTER {
            self.backoff.reset();
            self.problem = None;
        }
        if !self.announced && parsed.is_some() {
            self.announced = true;
            log::info!("Following the changes feed of CouchDB.");
        }
        let (told, seq) = match parsed {
            Some(FeedLine::Change { database, kind, revision, seq }) => (Told::Change(database, kind, revision), seq),
            Some(FeedLine::Other { seq }) => (Told::Nothing, seq),
            Some(FeedLine::LastSeq { seq }) => (Told::Nothing, Some(seq)),
            Some(FeedLine::Heartbeat) => (Told::Nothing, None),
            None => {
                settle(&mut self.since, &mut self.newer, content);
                (Told::Broken, None)
            }
        };
        if let Some(seq) = seq {
            self.newer = place_in(content, &seq);
            if self.newer.is_none() {
                remember(&mut self.since, &seq);
            }
        }
        (used, told)
    }

    /// Handles [`Told::Broken`]: the feed is read again from the last complete line. When that ends at the
    /// same line, it is passed over; true then.
    pub fn handle_broken_line(&mut self, now: Millis, actions: &mut Vec<FeedAction>) -> bool {
        if self.broken_at.is_some() && self.broken_at == self.since {
            if let Some(more) = self.log.of(LogCause::BrokenLine).pass(now) {
                log::warn!("Skipped a line of the changes feed that is no JSON, twice{more}.");
            }
            return true;
        }
        self.broken_at.clone_from(&self.since);
        self.fail(Problem::BrokenLine, now, actions);
        false
    }

    fn handle_head(&mut self, head: Response, now: Millis, actions: &mut Vec<FeedAction>) {
        let deadline = now + self.patience();
        let Phase::Asking { question, head: known, .. } = &mut self.phase else { return };
        self.status = Some(head.status);
        if *question == Question::Stream && head.status == 200 {
            self.lines = LineReader::default();
            (self.tries, self.refused) = (0, false);
            self.phase = Phase::Streaming { since: now, deadline };
            let continuity = self.continuity.replace(Continuity::Whole);
            actions.push(FeedAction::Opened(continuity.unwrap_or(Continuity::Whole)));
        } else {
            *known = Some(head);
        }
    }

    /// Handles a whole answer that is no stream.
    fn handle_answer(&mut self, now: Millis, actions: &mut Vec<FeedAction>) {
        let Phase::Asking { question, head: Some(head), .. } = &self.phase else {
            return self.fail(Problem::Cut, now, actions);
        };
        let (question, status, keep_alive) = (*question, head.status, head.keep_alive);
        match (question, status) {
            (Question::Create, 201 | 202 | 412) => {
                self.must_create = false;
                if status != 412 {
                    // Just made: whatever is in it by now is news.
                    self.since = Some("0".to_owned());
                }
                let question = if self.since.is_none() { Question::Pin } else { Question::Stream };
                self.go_on(question, keep_alive, now, actions);
            }
            (Question::Pin, 200) => match couchdb::parse_last_seq(&self.answer) {
                Some(seq) => {
                    self.replace_start(seq);
                    actions.push(FeedAction::Pinned);
                    self.go_on(Question::Stream, keep_alive, now, actions);
                }
                None if self.settings.source == FeedSource::DbUpdates => self.start_from_now(now, actions),
                None => self.fail(Problem::NoSequence, now, actions),
            },
            (_, 404) => {
                self.worsen(Continuity::Unrecorded);
                self.must_create = self.settings.create;
                if self.must_create && question != Question::Create {
                    if let Some(more) = self.log.of(LogCause::Creation).pass(now) {
                        log::warn!("CouchDB has no _global_changes database: making it{more}.");
                    }
                    return self.go_on(Question::Create, keep_alive, now, actions);
                }
                self.fail(Problem::Missing(self.settings.create), now, actions);
            }
            // Besides: what is gone, and a sequence that makes the request too long for what stands before CouchDB.
            (Question::Stream, 400 | 410 | 413 | 414 | 422 | 431) => {
                self.since = None;
                self.worsen(Continuity::Gap);
                if std::mem::replace(&mut self.refused, true) {
                    // The start that was pinned because of that, too.
                    return self.fail(Problem::SinceRefused(status), now, actions);
                }
                self.log_problem(Problem::SinceRefused(status), 0, now);
                self.go_on(Question::Pin, keep_alive, now, actions);
            }
            (Question::Pin, 400 | 405 | 501) if self.settings.source == FeedSource::DbUpdates => {
                self.start_from_now(now, actions);
            }
            (_, 401) => {
                actions.push(FeedAction::Refused);
                self.fail(Problem::Unauthorized, now, actions);
            }
            (_, 403) => self.fail(Problem::Locked, now, actions),
            _ => {
                if matches!(status, 502..=504) {
                    // What stands before CouchDB answers for it while it is away.
                    self.worsen(Continuity::Doubtful);
                }
                self.fail(Problem::Status(status), now, actions);
            }
        }
    }

    fn worsen(&mut self, continuity: Continuity) {
        // What happened before the first stream is no loss: nobody was told that this server knows.
        self.continuity = self.continuity.map(|worst| worst.max(continuity));
    }

    /// CouchDB could not be connected to by somebody else. When nothing is followed, it may be back before the feed would
    /// have noticed.
    pub fn handle_unreachable(&mut self) {
        if !self.is_streaming() {
            self.worsen(Continuity::Doubtful);
        }
    }

    /// CouchDB has just answered somebody else: what could not be connected is tried again soon.
    pub fn handle_reachable(&mut self, now: Millis) {
        if let (Phase::Waiting { until }, Some(Problem::Connection(_))) = (&mut self.phase, &self.problem) {
            *until = (*until).min(now + self.jitter.around(REDIAL_AFTER));
        }
    }

    /// Some hosts of `_db_updates` do not tell where it stands: it is opened without a pin then.
    fn start_from_now(&mut self, now: Millis, actions: &mut Vec<FeedAction>) {
        self.replace_start(NOW.to_owned());
        actions.push(FeedAction::Pinned);
        self.go_on(Question::Stream, false, now, actions);
    }

    /// Where to start was pinned; what is between that and where the feed broke is missed, if it was open before.
    fn replace_start(&mut self, seq: String) {
        if self.since.replace(seq).is_some() {
            log::warn!(
                "CouchDB did not open the changes feed where it broke in {MAX_STREAM_TRIES} tries: following it from \
                 now on; changes may have been missed."
            );
            self.worsen(Continuity::Gap);
        }
        self.tries = 0;
    }

    /// Asks on the same connection where CouchDB keeps it open, else on a new one.
    fn go_on(&mut self, question: Question, keep_alive: bool, now: Millis, actions: &mut Vec<FeedAction>) {
        if keep_alive {
            return self.ask(question, now, actions);
        }
        self.phase = Phase::Dialing;
        actions.extend([FeedAction::HangUp, FeedAction::Dial]);
    }

    fn ask(&mut self, question: Question, now: Millis, actions: &mut Vec<FeedAction>) {
        let FeedSettings { source, heartbeat, .. } = self.settings;
        let request = match question {
            Question::Create => self.requests.create_global_changes(),
            Question::Pin => self.requests.pin(source),
            Question::Stream => self.requests.stream(source, self.since.as_deref().unwrap_or(NOW), heartbeat),
        };
        let patience = self.patience_for(question);
        self.reader = ResponseReader::new();
        self.answer = Vec::new();
        self.phase = Phase::Asking { question, deadline: now + patience, head: None };
        actions.push(FeedAction::Send(request));
    }

    fn patience(&self) -> Millis {
        self.settings.heartbeat * MISSED_HEARTBEATS
    }

    fn patience_for(&self, question: Question) -> Millis {
        // The head of `_db_updates` is held back until its first heartbeat.
        if question == Question::Stream { self.patience() } else { ANSWER_WITHIN.min(self.patience()) }
    }

    /// The feed broke: it is tried again after the backoff.
    fn fail(&mut self, problem: Problem, now: Millis, actions: &mut Vec<FeedAction>) {
        if let Phase::Streaming { deadline, .. } = self.phase {
            self.followed_until = deadline.saturating_sub(self.patience());
        }
        if self.since.as_deref() == Some(NOW) {
            // There is nothing to resume from.
            self.worsen(Continuity::Gap);
        }
        match self.phase {
            Phase::Asking { question: Question::Stream, .. } if problem.may_be_the_start() => self.tries += 1,
            // The start was not at fault, or not alone: it is tried in turn with a new one.
            Phase::Asking { question: Question::Pin, .. } if self.since.is_some() => {
                self.tries = self.tries.saturating_sub(1);
            }
            _ => {}
        }
        let is_end = problem == Problem::Ended;
        let ends_again = is_end && self.ended_at.is_some_and(|at| now < at + ENDS_TOLD_EVERY);
        self.ended_at = is_end.then_some(now);
        let wait = self.backoff.wait(&mut self.jitter);
        if ends_again {
            log::debug!("{problem} Next try in {wait} ms.");
        } else {
            self.log_problem(problem, wait, now);
        }
        self.phase = Phase::Waiting { until: now + wait };
        self.reader = ResponseReader::new();
        self.answer = Vec::new();
        actions.push(FeedAction::HangUp);
    }

    /// Logs a problem unless it was logged already, or another one of its kind shortly before.
    fn log_problem(&mut self, problem: Problem, wait: Millis, now: Millis) {
        let again = self.problem_logged && self.problem.as_ref() == Some(&problem);
        let due = if again { None } else { self.log.of(LogCause::Problem(discriminant(&problem))).pass(now) };
        match due {
            Some(more) => {
                log::log!(problem.level(), "{problem}{more}");
                self.announced = false;
            }
            None => log::debug!("{problem} Next try in {wait} ms."),
        }
        self.problem_logged = again || due.is_some();
        self.problem = Some(problem);
    }
}

/// Replaces the sequence without allocating where it fits.
fn remember(since: &mut Option<String>, seq: &str) {
    let kept = since.get_or_insert_default();
    kept.clear();
    kept.push_str(seq);
}

/// Remembers the sequence that stands in the content.
fn settle(since: &mut Option<String>, newer: &mut Option<Range<usize>>, content: &[u8]) {
    let newer = newer.take().and_then(|place| content.get(place));
    if let Some(seq) = newer.and_then(|seq| std::str::from_utf8(seq).ok()) {
        remember(since, seq);
    }
}

/// Where in the content a text stands; None where it is somewhere else.
fn place_in(content: &[u8], text: &str) -> Option<Range<usize>> {
    let start = text.as_ptr().addr().checked_sub(content.as_ptr().addr())?;
    let end = start.checked_add(text.len())?;
    (end <= content.len()).then_some(start..end)
}

impl Problem {
    /// What goes away by itself is a warning; what an operator must mend is an error.
    fn level(&self) -> log::Level {
        match self {
            Self::Missing(_) => log::Level::Error,
            Self::Ended => log::Level::Info,
            // The owner of the credentials logs these, whoever notices first.
            Self::Unauthorized | Self::Locked => log::Level::Debug,
            _ => log::Level::Warn,
        }
    }
}

impl Problem {
    /// Whether another start of the stream might help.
    fn may_be_the_start(&self) -> bool {
        !matches!(self, Self::Unauthorized | Self::Locked | Self::Missing(_) | Self::SinceRefused(_))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => write!(f, "The changes feed is not connected: {error}. Trying again."),
            Self::Silent(ms) => write!(
                f,
                "CouchDB was silent for {ms} ms: opening the changes feed again. If this goes on, run `couchdb-howler \
                 check`: a proxy in front of CouchDB may hold the feed back.",
            ),
            Self::Cut => f.write_str("CouchDB cut the changes feed: resuming it."),
            Self::Ended => f.write_str("CouchDB ended the changes feed: resuming it."),
            Self::Framing(error) => write!(f, "The changes feed is broken: {error}. Resuming it."),
            Self::BrokenLine => f.write_str("A line of the changes feed is no JSON: reading it again."),
            Self::Unauthorized => f.write_str("CouchDB refuses the changes feed (401)."),
            Self::Locked => f.write_str("CouchDB refuses the changes feed (403)."),
            Self::Missing(false) => f.write_str(
                "CouchDB has no _global_changes database (404): make it with PUT /_global_changes, or start with \
                 --create_global_changes. Trying again.",
            ),
            Self::Missing(true) => f.write_str(
                "CouchDB answers 404 although --create_global_changes is set: check the path in --couchdb_url. \
                 Trying again.",
            ),
            Self::SinceRefused(status) => write!(
                f,
                "CouchDB does not know the sequence to resume from ({status}): following the feed from now on; \
                 changes may have been missed.",
            ),
            Self::Status(status) => write!(f, "CouchDB answers the changes feed with status {status}: trying again."),
            Self::NoSequence => f.write_str(
                "What answers the changes feed is no CouchDB (no last_seq): check the address and path in \
                 --couchdb_url. Trying again.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
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

    /// Keeps what the thread of each test logs.
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

    /// What an operator was told since the last call.
    fn told() -> Vec<String> {
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

        /// A feed that streams from `7-a`.
        fn streaming() -> Self {
            let mut rig = Self::new(FeedSource::GlobalChanges, false);
            rig.dial();
            rig.connect("GET /_global_changes/_changes?since=now&limit=1");
            rig.give(PINNED);
            rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
            rig.give(OPENED);
            assert!(rig.feed.is_streaming());
            told();
            rig
        }

        /// Waits for the backoff; how long that was.
        fn dial(&mut self) -> Millis {
            let due = self.feed.poll_timeout().expect("it will dial");
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

        fn hangs_up(&mut self) {
            self.actions.retain(|action| *action != FeedAction::Refused);
            assert_eq!(self.actions.drain(..).collect::<Vec<_>>(), [FeedAction::HangUp]);
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
                    let (used, told) = self.feed.next_line(content, place, self.now);
                    place += used;
                    match told {
                        Told::Change(name, kind, _) => self.changes.push(format!("{kind:?} {name}")),
                        Told::Nothing | Told::Skipped => {}
                        Told::Done => break,
                        Told::Broken => {
                            if !self.feed.handle_broken_line(self.now, &mut self.actions) {
                                break;
                            }
                        }
                    }
                }
            }
        }

        /// Gives lines as one chunk.
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
        rig.hangs_up();
        let wait = rig.dial();
        assert!((50..=100).contains(&wait), "{wait}");
        rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=9-c");
        assert_eq!(told(), ["CouchDB cut the changes feed: resuming it."]);
    }

    #[test]
    fn a_stream_that_breaks_before_its_first_line_is_opened_again_where_it_was_pinned() {
        let mut rig = Rig::streaming();
        for _ in 0..3 {
            rig.feed.handle_lost(None, rig.now, &mut rig.actions);
            rig.hangs_up();
            rig.dial();
            rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
        }
    }

    #[test]
    fn asks_on_a_new_connection_where_couchdb_closes_the_old_one() {
        let mut rig = Rig::new(FeedSource::GlobalChanges, false);
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        rig.give(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"last_seq\":\"7-a\"}");
        assert_eq!(rig.actions, [], "the end of the connection ends the answer");
        rig.feed.handle_lost(None, rig.now, &mut rig.actions);
        let done = [FeedAction::Pinned, FeedAction::HangUp, FeedAction::Dial];
        assert_eq!(rig.actions.drain(..).collect::<Vec<_>>(), done);
        rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
        // A cut is no such end.
        let mut rig = Rig::new(FeedSource::GlobalChanges, false);
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        rig.give(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"last_seq\":\"7-a\"}");
        rig.feed.handle_lost(Some("reset"), rig.now, &mut rig.actions);
        rig.hangs_up();
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
    }

    #[test]
    fn makes_global_changes_and_takes_all_that_is_in_it_for_news() {
        let mut rig = Rig::new(FeedSource::GlobalChanges, true);
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        rig.give(MISSING);
        rig.asks("PUT /_global_changes");
        rig.give(MADE);
        rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=0");
    }

    #[test]
    fn resumes_in_global_changes_that_somebody_else_made_meanwhile() {
        let mut rig = Rig::streaming();
        rig.feed.settings.create = true;
        rig.give(b"0\r\n\r\n");
        rig.hangs_up();
        rig.dial();
        rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
        rig.give(MISSING);
        rig.asks("PUT /_global_changes");
        // What was written to the new one up to here is behind the old position, and before a pin.
        rig.give(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 2\r\n\r\n{}");
        rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
        // Without a position there is nothing to resume.
        let mut rig = Rig::new(FeedSource::GlobalChanges, true);
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        rig.give(MISSING);
        rig.asks("PUT /_global_changes");
        rig.give(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 2\r\n\r\n{}");
        rig.asks("GET /_global_changes/_changes?since=now&limit=1");
    }

    #[test]
    fn goes_on_trying_to_make_it() {
        let mut rig = Rig::new(FeedSource::GlobalChanges, true);
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        rig.give(MISSING);
        rig.asks("PUT /_global_changes");
        rig.give(MISSING);
        rig.hangs_up();
        rig.dial();
        rig.connect("PUT /_global_changes");
        rig.feed.handle_lost(Some("reset"), rig.now, &mut rig.actions);
        rig.hangs_up();
        rig.dial();
        rig.connect("PUT /_global_changes");
        rig.give(MADE);
        rig.asks("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=0");
    }

    #[test]
    fn a_sequence_that_is_refused_is_pinned_again_at_once() {
        for status in [400, 410, 413, 414, 422, 431] {
            let mut rig = Rig::streaming();
            rig.give(b"0\r\n\r\n");
            rig.hangs_up();
            rig.dial();
            rig.connect(STREAM);
            rig.give(&refusal(status));
            rig.asks(PIN);
            rig.give(PINNED);
            rig.asks(STREAM);
            // A start that was just pinned and is refused, too, is no reason to hurry.
            rig.give(&refusal(status));
            rig.hangs_up();
            assert!(rig.dial() > 0);
            rig.connect(PIN);
            rig.give(PINNED);
            rig.asks(STREAM);
            rig.give(OPENED);
            assert_eq!(rig.opened.last(), Some(&Continuity::Gap), "{status}");
        }
    }

    #[test]
    fn a_start_that_opens_no_stream_in_ten_tries_is_pinned_again_if_that_works() {
        let answers: [Option<Vec<u8>>; 3] = [Some(refusal(500)), Some(refusal(302)), None];
        for answer in &answers {
            let mut rig = Rig::streaming();
            rig.feed.handle_lost(None, rig.now, &mut rig.actions);
            rig.hangs_up();
            let fail = |rig: &mut Rig, question: &str| {
                rig.dial();
                rig.connect(question);
                match answer {
                    Some(answer) => rig.give(answer),
                    None => rig.feed.handle_lost(None, rig.now, &mut rig.actions),
                }
                rig.hangs_up();
            };
            for _ in 0..MAX_STREAM_TRIES {
                fail(&mut rig, STREAM);
            }
            // CouchDB answers nothing: the start is kept, and tried in turn with a new one.
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
    fn a_stream_that_ends_after_every_line_is_quiet_and_ready() {
        let mut rig = Rig::streaming();
        told();
        for number in 0..200 {
            let seq = format!("{number}-x");
            rig.give_lines(&line(&seq, "updated:a"));
            rig.give_lines(&format!("{{\"last_seq\":\"{seq}\",\"pending\":0}}\n"));
            rig.give(b"0\r\n\r\n");
            rig.hangs_up();
            assert!(rig.feed.is_ready(rig.now));
            assert!(rig.dial() <= 100);
            assert!(rig.feed.is_ready(rig.now));
            rig.connect(&format!("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since={seq}"));
            rig.give(OPENED);
            rig.now += 400;
        }
        assert_eq!(told(), ["CouchDB ended the changes feed: resuming it.", "Following the changes feed of CouchDB.",]);
        rig.give(b"0\r\n\r\n");
        rig.hangs_up();
        rig.dial();
        rig.feed.handle_lost(Some("connection refused"), rig.now, &mut rig.actions);
        assert!(!rig.feed.is_ready(rig.now), "something else is wrong");
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
            assert_eq!(rig.actions.drain(..).collect::<Vec<_>>(), [FeedAction::HangUp, FeedAction::Dial]);
            rig.connect("GET /_db_updates?feed=continuous&heartbeat=1000&since=now");
        }
    }

    #[test]
    fn three_missed_heartbeats_mean_dead() {
        let mut rig = Rig::streaming();
        let opened = rig.now;
        rig.now += 2 * HEARTBEAT;
        rig.give(&chunk("\n")[..1]);
        assert_eq!(rig.feed.poll_timeout(), Some(opened + 5 * HEARTBEAT), "any byte is a sign of life");
        rig.now = opened + 5 * HEARTBEAT - 1;
        rig.feed.handle_timeout(rig.now, &mut rig.actions);
        assert!(rig.feed.is_streaming() && rig.actions.is_empty());
        rig.feed.handle_timeout(rig.now + 1, &mut rig.actions);
        rig.hangs_up();
        assert_silent_for(3_000);
    }

    /// Expects one line about a silence, and that it says what helps against a proxy.
    fn assert_silent_for(milliseconds: Millis) {
        let lines = told();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(&format!("CouchDB was silent for {milliseconds} ms: ")), "{lines:?}");
        assert!(lines[0].contains("couchdb-howler check") && lines[0].contains("proxy"), "{lines:?}");
    }

    #[test]
    fn a_question_without_an_answer_has_its_own_time() {
        let mut rig = Rig::new(FeedSource::GlobalChanges, false);
        rig.feed.settings.heartbeat = 10_000;
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        assert_eq!(rig.feed.poll_timeout(), Some(ANSWER_WITHIN));
        rig.feed.handle_timeout(ANSWER_WITHIN, &mut rig.actions);
        rig.hangs_up();
        assert_silent_for(10_000);
    }

    #[test]
    fn backoff_grows_until_a_change_comes_or_the_stream_stands() {
        let mut rig = Rig::streaming();
        let mut spans = Vec::new();
        for _ in 0..10 {
            rig.feed.handle_lost(None, rig.now, &mut rig.actions);
            rig.hangs_up();
            spans.push(rig.dial());
            rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
            rig.give(OPENED);
        }
        let longest = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000];
        assert!(spans.iter().zip(longest).all(|(span, most)| (most / 2..=most).contains(span)), "{spans:?}");
        assert_eq!(told(), ["CouchDB cut the changes feed: resuming it.", "Following the changes feed of CouchDB."]);
        for proof in [line("8-b", "updated:a"), "\n".to_owned()] {
            rig.now += if proof == "\n" { STEADY_AFTER } else { 1 };
            rig.give_lines(&proof);
            rig.feed.handle_lost(None, rig.now, &mut rig.actions);
            rig.hangs_up();
            let wait = rig.dial();
            assert!((50..=100).contains(&wait), "{proof:?}: {wait}");
            rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=8-b");
            rig.give(OPENED);
            assert!(told().is_empty(), "one line of a kind and minute");
        }
        rig.now += MINUTE;
        rig.give_lines(&line("9-c", "updated:a"));
        rig.feed.handle_lost(None, rig.now, &mut rig.actions);
        rig.hangs_up();
        rig.dial();
        rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=9-c");
        rig.give(OPENED);
        let cut = "CouchDB cut the changes feed: resuming it. (2 more in the last 2 minutes)";
        assert_eq!(told(), [cut, "Following the changes feed of CouchDB."]);
    }

    #[test]
    fn each_refusal_is_told_once_in_words_that_help() {
        for (status, words) in [
            (404, "make it with PUT /_global_changes, or start with --create_global_changes."),
            (500, "with status 500"),
            (302, "with status 302"),
        ] {
            let mut rig = Rig::new(FeedSource::GlobalChanges, false);
            for _ in 0..4 {
                rig.dial();
                rig.connect("GET /_global_changes/_changes?since=now&limit=1");
                rig.give(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}").as_bytes());
                rig.hangs_up();
            }
            let lines = told();
            assert!(lines.len() == 1 && lines[0].contains(words) && !lines[0].contains("  "), "{lines:?}");
        }
    }

    #[test]
    fn a_refusal_of_another_kind_is_told_too() {
        let mut rig = Rig::new(FeedSource::GlobalChanges, false);
        for error in [Some("refused"), Some("refused"), None, Some("refused")] {
            rig.dial();
            rig.feed.handle_lost(error, rig.now, &mut rig.actions);
            rig.hangs_up();
        }
        assert_eq!(told().len(), 1, "one line of a kind and minute");
        rig.dial();
        rig.now += MINUTE;
        rig.feed.handle_lost(Some("refused"), rig.now, &mut rig.actions);
        rig.hangs_up();
        assert_eq!(told().len(), 1, "what was suppressed is logged when its minute is over");
        rig.dial();
        rig.connect("GET /_global_changes/_changes?since=now&limit=1");
        rig.give(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwelcome");
        rig.hangs_up();
        assert!(told()[0].contains("is no CouchDB (no last_seq)"));
    }

    #[test]
    fn what_comes_after_the_end_is_nobodys() {
        let mut rig = Rig::streaming();
        rig.feed.handle_lost(None, rig.now, &mut rig.actions);
        rig.hangs_up();
        rig.give(&chunk(&line("8-b", "updated:a")));
        rig.feed.handle_lost(Some("late"), rig.now, &mut rig.actions);
        assert!(rig.actions.is_empty() && rig.changes.is_empty());
    }

    #[test]
    fn every_split_of_an_exchange_gives_the_same() {
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
            rig.hangs_up();
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

    /// What is said of the stream that opens behind some trouble.
    fn continuity_after(trouble: impl FnOnce(&mut Rig)) -> Continuity {
        let mut rig = Rig::streaming();
        assert_eq!((&rig.opened[..], rig.pins), (&[Continuity::Whole][..], 1), "nothing was followed before");
        trouble(&mut rig);
        rig.give(OPENED);
        rig.opened[1]
    }

    const STREAM: &str = "GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a";

    #[test]
    fn says_what_may_be_missing_between_two_streams() {
        let cut = |rig: &mut Rig| {
            rig.feed.handle_lost(None, rig.now, &mut rig.actions);
            rig.hangs_up();
            rig.dial();
        };
        let refused = |rig: &mut Rig| {
            rig.feed.handle_lost(Some("connection refused"), rig.now, &mut rig.actions);
            rig.hangs_up();
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
        assert_eq!(only_busy, Continuity::Whole, "it answered the feed meanwhile");
        let gateway = continuity_after(|rig| {
            cut(rig);
            rig.connect(STREAM);
            rig.give(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\n\r\n{}");
            rig.hangs_up();
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
            rig.hangs_up();
            rig.dial();
            rig.connect(STREAM);
        });
        assert_eq!(missing, Continuity::Unrecorded);
    }

    #[test]
    fn a_feed_that_cannot_be_pinned_may_miss_something_when_it_breaks_early() {
        let mut rig = Rig::new(FeedSource::DbUpdates, false);
        rig.dial();
        rig.connect("GET /_db_updates?since=now&limit=1");
        rig.give(b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
        rig.actions.clear();
        for _ in 0..2 {
            rig.connect("GET /_db_updates?feed=continuous&heartbeat=1000&since=now");
            rig.give(OPENED);
            rig.feed.handle_lost(None, rig.now, &mut rig.actions);
            rig.hangs_up();
            rig.dial();
        }
        assert_eq!(rig.opened, [Continuity::Whole, Continuity::Gap]);
    }

    #[test]
    fn dials_soon_when_couchdb_turns_out_to_be_there() {
        let mut rig = Rig::streaming();
        for _ in 0..10 {
            rig.feed.handle_lost(Some("connection refused"), rig.now, &mut rig.actions);
            rig.hangs_up();
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
    fn a_broken_line_is_read_again_once() {
        let mut rig = Rig::streaming();
        rig.give_lines(&(line("8-b", "updated:a") + "{\"seq\":\"9-c\",\"id\n" + &line("9-c", "updated:lost?")));
        rig.hangs_up();
        rig.dial();
        rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=8-b");
        rig.give(OPENED);
        rig.give_lines(&("{\"seq\":\"9-c\",\"id\n".to_owned() + &line("9-c", "updated:found")));
        assert!(rig.feed.is_streaming());
        assert_eq!(rig.changes, ["Updated a", "Updated found"]);
    }

    #[test]
    fn a_feed_of_broken_lines_logs_one_line_per_minute() {
        let mut rig = Rig::streaming();
        let broken = chunk(&"no JSON {\n".repeat(1_000));
        let mut lines = Vec::new();
        for _ in 0..20 {
            rig.give(&broken);
            if !rig.feed.is_streaming() {
                rig.hangs_up();
                rig.dial();
                rig.connect("GET /_global_changes/_changes?feed=continuous&heartbeat=1000&since=7-a");
                rig.give(OPENED);
            }
            lines.append(&mut told());
        }
        let twice = "Skipped a line of the changes feed that is no JSON, twice.";
        let announced = "Following the changes feed of CouchDB.";
        assert_eq!(lines, ["A line of the changes feed is no JSON: reading it again.", announced, twice]);
        rig.now += MINUTE;
        rig.give(&broken);
        let lines = told();
        assert!(lines.len() == 1 && lines[0].contains("18,999 more in the last minute"), "{lines:?}");
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over() {
        let mut rig = Rig::streaming();
        rig.give_lines(&("x".repeat(MAX_LINE + 1) + "\n" + &line("8-b", "updated:a")));
        assert_eq!(rig.changes, ["Updated a"]);
        assert_eq!(told(), ["Skipped a line of the changes feed that is over 65536 bytes."]);
    }
}
