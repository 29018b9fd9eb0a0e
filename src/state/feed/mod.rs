//! The changes feed: which request to send to CouchDB next, what its lines mean, and when it counts
//! as broken.
//!
//! ```text
//!    ┌─▶ Waiting ─▶ Dialing ─▶ Requesting: (create _global_changes) ─▶ pin ─▶ stream ─▶ Streaming
//!    │  (backoff)                  │  the start is known: stream at once               │
//!    └─────────────────────────────┴─────────────────── any break ─────────────────────┘
//! ```
//!
//! A feed that was opened with `since=now` and breaks before its first line has nothing to resume
//! from. So the feed first asks for the sequence to start from (the pin), and every stream names
//! one.

mod output;
mod phase;
mod problem;
mod problem_log;
mod sequence;

pub use output::{Continuity, FeedAction, FeedEvent, FeedPart};
use phase::{Phase, RequestKind};
use problem::Problem;
use problem_log::{FeedLog, LogCause};
use sequence::ResumePoint;

use crate::state::jitter::{Backoff, Jitter};
use crate::state::timers::Millis;
use crate::wire::couchdb::{self, FeedLine, FeedSource, Requests};
use crate::wire::http::Response;
use crate::wire::http::{Part, ResponseReader};
use crate::wire::lines::{Line, LineReader, MAX_LINE};

/// The value of `since` that stands for the current end of the feed.
const NOW: &str = "now";
/// Heartbeats without a byte after which the feed counts as dead.
const MISSED_HEARTBEATS: u64 = 3;
/// Time for CouchDB to answer a request other than the stream, in milliseconds.
const REPLY_TIMEOUT: Millis = 10_000;
/// Longest time to the next dial once another connection has reached CouchDB, in milliseconds.
const REDIAL_AFTER: Millis = 100;
/// Time after which a stream counts as a success even without a change, in milliseconds.
const STABLE_AFTER: Millis = 5_000;
/// Consecutive attempts without a stream after which the feed pins a new start, in case CouchDB
/// does not accept the old one.
const MAX_STREAM_ATTEMPTS: u32 = 10;
/// Time for which a feed that CouchDB ended in order still counts as open, in milliseconds. It is
/// reopened at once.
const READY_AFTER_END: Millis = 5_000;
/// Period within which orderly ends are logged once, in milliseconds. A node in maintenance mode
/// ends the feed after every batch of lines.
const END_LOG_PERIOD: Millis = 60_000;
/// Longest body of a reply other than the stream, in bytes. It holds a sequence.
const MAX_REPLY: usize = 4 * MAX_LINE;

/// How to follow the feed.
#[derive(Clone, Debug)]
pub struct FeedSettings {
    /// Endpoint of the feed.
    pub source: FeedSource,
    /// Interval of CouchDB's heartbeats, in milliseconds; positive.
    pub heartbeat: Millis,
    /// Whether to create `_global_changes` if it is missing.
    pub create: bool,
}

/// State machine of the feed.
#[derive(Debug)]
pub struct Feed {
    settings: FeedSettings,
    requests: Requests,
    phase: Phase,
    /// Sequence from which to resume.
    since: ResumePoint,
    reader: ResponseReader,
    lines: LineReader,
    /// Body of a reply other than the stream.
    reply: Vec<u8>,
    backoff: Backoff,
    jitter: Jitter,
    log: FeedLog,
    /// Sequence before the last malformed line: the same line must not stop the feed twice.
    malformed_after: Option<String>,
    /// Consecutive attempts without a stream for a reason that a new start may solve.
    attempts: u32,
    /// Whether CouchDB has refused the start since the last stream.
    start_refused: bool,
    /// Time at which CouchDB ended the last stream in order, unless something else has failed
    /// since.
    ended_at: Option<Millis>,
    /// Whether `_global_changes` is missing and has to be created.
    must_create: bool,
    /// Worst continuity since the last stream; None before the first stream.
    continuity: Option<Continuity>,
    /// Time of the last byte of the last stream that broke.
    followed_until: Millis,
    /// Status of the last reply, until [`Feed::take_status`].
    status: Option<u16>,
}

impl Feed {
    /// Creates a feed that dials when its first timeout is handled.
    pub fn new(settings: FeedSettings, requests: Requests, jitter: Jitter) -> Self {
        Self {
            settings,
            requests,
            phase: Phase::Waiting { until: 0 },
            since: ResumePoint::default(),
            reader: ResponseReader::new(),
            lines: LineReader::default(),
            reply: Vec::new(),
            backoff: Backoff::default(),
            jitter,
            log: FeedLog::default(),
            malformed_after: None,
            attempts: 0,
            start_refused: false,
            ended_at: None,
            must_create: false,
            continuity: None,
            followed_until: 0,
            status: None,
        }
    }

    /// Uses other credentials from now on. A refused request is retried at once.
    pub fn handle_credentials(&mut self, requests: Requests, now: Millis) {
        self.requests = requests;
        if let Phase::Waiting { until } = &mut self.phase {
            *until = (*until).min(now);
        }
        if matches!(self.log.problem(), Some(Problem::Unauthorized | Problem::Locked)) {
            self.backoff.reset();
        }
    }

    /// Takes the status of a reply that has arrived since the last call.
    pub fn take_status(&mut self) -> Option<u16> {
        self.status.take()
    }

    /// Drops the current attempt and waits until `at` before the next dial.
    pub fn wait_until(&mut self, at: Millis) {
        self.phase = Phase::Waiting { until: at };
    }

    /// Returns the time until which changes were followed before the feed broke last. All earlier
    /// changes have arrived, except for those that were in flight.
    pub fn followed_until(&self) -> Millis {
        self.followed_until
    }

    /// Returns whether changes are being followed.
    pub fn is_streaming(&self) -> bool {
        matches!(self.phase, Phase::Streaming { .. })
    }

    /// Returns whether changes are being followed, or will be in a moment because CouchDB has just
    /// ended the stream in order.
    pub fn is_ready(&self, now: Millis) -> bool {
        self.is_streaming() || self.ended_at.is_some_and(|at| now < at + READY_AFTER_END)
    }

    /// Returns when [`Feed::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Dialing => None,
            Phase::Requesting { deadline, .. } | Phase::Streaming { deadline, .. } => Some(deadline),
        }
    }

    /// Handles a timeout: dials, or ends a wait that took too long.
    pub fn handle_timeout(&mut self, now: Millis, actions: &mut Vec<FeedAction>) {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return;
        }
        match self.phase {
            Phase::Waiting { .. } => {
                self.phase = Phase::Dialing;
                actions.push(FeedAction::Dial);
            }
            Phase::Requesting { kind: RequestKind::Pin, .. }
                if self.settings.source == FeedSource::DbUpdates && self.since.get().is_none() =>
            {
                self.start_from_now(now, actions);
            }
            Phase::Requesting { kind, .. } => self.fail(Problem::Silent(self.timeout_of(kind)), now, actions),
            _ => self.fail(Problem::Silent(self.silence_limit()), now, actions),
        }
    }

    /// Handles the connection: sends the first request.
    pub fn handle_connected(&mut self, now: Millis, actions: &mut Vec<FeedAction>) {
        let kind = match self.since.get() {
            _ if self.must_create => RequestKind::Create,
            None => RequestKind::Pin,
            Some(_) if self.attempts >= MAX_STREAM_ATTEMPTS => RequestKind::Pin,
            Some(_) => RequestKind::Stream,
        };
        self.send_request(kind, now, actions);
    }

    /// Handles a connection that could not be made or broke. `error` is None if the peer closed it.
    pub fn handle_lost(&mut self, error: Option<&str>, now: Millis, actions: &mut Vec<FeedAction>) {
        let at_end = error.is_none() && self.reader.ends_with_connection();
        match (&self.phase, error) {
            (Phase::Waiting { .. }, _) => {}
            (Phase::Dialing, _) => {
                self.worsen(Continuity::Doubtful);
                self.fail(Problem::Connection(error.unwrap_or("the connection was closed").to_owned()), now, actions);
            }
            (Phase::Requesting { .. }, None) if at_end => self.handle_reply(now, actions),
            (Phase::Streaming { .. }, None) if at_end => self.fail(Problem::Ended, now, actions),
            (_, None) => self.fail(Problem::Cut, now, actions),
            (_, Some(error)) => self.fail(Problem::Connection(error.to_owned()), now, actions),
        }
    }

    /// Takes the next part of the received bytes. Returns the number of bytes used and the part.
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
        let silence_limit = self.silence_limit();
        if let Phase::Streaming { deadline, .. } = &mut self.phase {
            *deadline = now + silence_limit;
        }
        let part = match part {
            Part::NeedMore => FeedPart::Done,
            Part::Head(head) => {
                self.handle_head(head, now, actions);
                FeedPart::Nothing
            }
            Part::Data(data) if self.is_streaming() => FeedPart::Content(data),
            Part::Data(data) => {
                if self.reply.len() + data.len() <= MAX_REPLY {
                    self.reply.extend_from_slice(data);
                }
                FeedPart::Nothing
            }
            Part::End if self.is_streaming() => {
                self.fail(Problem::Ended, now, actions);
                FeedPart::Done
            }
            Part::End => {
                self.handle_reply(now, actions);
                FeedPart::Done
            }
        };
        (used, part)
    }

    /// Takes the line of the stream's content that begins at `offset`. Returns the number of bytes
    /// used and what the line says.
    ///
    /// The caller goes through the whole content, until [`FeedEvent::Done`] or a malformed line
    /// that is not skipped.
    pub fn next_line<'a>(&'a mut self, content: &'a [u8], offset: usize, now: Millis) -> (usize, FeedEvent<'a>) {
        let Phase::Streaming { since: started, .. } = self.phase else {
            return (content.len() - offset, FeedEvent::Done);
        };
        let (used, line) = self.lines.next(&content[offset..]);
        let line = match line {
            Line::NeedMore => {
                self.since.settle(content);
                return (used, FeedEvent::Done);
            }
            Line::Complete(line) => line,
            Line::TooLong => {
                if let Some(more) = self.log.pass(LogCause::LongLine, now) {
                    log::warn!("Skipped a line of the changes feed that is over {MAX_LINE} bytes{more}.");
                }
                return (used, FeedEvent::Skipped);
            }
        };
        let parsed = couchdb::parse_feed_line(line);
        if matches!(parsed, Some(FeedLine::Change { .. })) || now >= started + STABLE_AFTER {
            self.backoff.reset();
            self.log.clear_problem();
        }
        if parsed.is_some() {
            self.log.announce();
        }
        let (event, seq) = match parsed {
            Some(FeedLine::Change { database, kind, revision, seq }) => {
                (FeedEvent::Change(database, kind, revision), seq)
            }
            Some(FeedLine::Other { seq }) => (FeedEvent::Nothing, seq),
            Some(FeedLine::LastSeq { seq }) => (FeedEvent::Nothing, Some(seq)),
            Some(FeedLine::Heartbeat) => (FeedEvent::Nothing, None),
            None => {
                self.since.settle(content);
                (FeedEvent::Malformed, None)
            }
        };
        if let Some(seq) = seq {
            self.since.advance(&seq, content);
        }
        (used, event)
    }

    /// Handles [`FeedEvent::Malformed`]: the feed is read again from the last complete line.
    /// Returns true if it fails at the same line again, which is then skipped.
    pub fn handle_malformed_line(&mut self, now: Millis, actions: &mut Vec<FeedAction>) -> bool {
        if self.malformed_after.is_some() && self.malformed_after.as_deref() == self.since.get() {
            if let Some(more) = self.log.pass(LogCause::MalformedLine, now) {
                log::warn!("Skipped a line of the changes feed that is not JSON, twice{more}.");
            }
            return true;
        }
        self.malformed_after = self.since.get().map(str::to_owned);
        self.fail(Problem::MalformedLine, now, actions);
        false
    }

    fn handle_head(&mut self, head: Response, now: Millis, actions: &mut Vec<FeedAction>) {
        let deadline = now + self.silence_limit();
        let Phase::Requesting { kind, head: known, .. } = &mut self.phase else { return };
        self.status = Some(head.status);
        if *kind == RequestKind::Stream && head.status == 200 {
            self.lines = LineReader::default();
            (self.attempts, self.start_refused) = (0, false);
            self.phase = Phase::Streaming { since: now, deadline };
            let continuity = self.continuity.replace(Continuity::Whole);
            actions.push(FeedAction::Opened(continuity.unwrap_or(Continuity::Whole)));
        } else {
            *known = Some(head);
        }
    }

    /// Handles a complete reply other than the stream.
    fn handle_reply(&mut self, now: Millis, actions: &mut Vec<FeedAction>) {
        let Phase::Requesting { kind, head: Some(head), .. } = &self.phase else {
            return self.fail(Problem::Cut, now, actions);
        };
        let (kind, status, keep_alive) = (*kind, head.status, head.keep_alive);
        match (kind, status) {
            (RequestKind::Create, 201 | 202 | 412) => {
                self.must_create = false;
                if status != 412 {
                    // The database is new, so its whole content is news.
                    self.since.replace("0");
                }
                let kind = if self.since.get().is_none() { RequestKind::Pin } else { RequestKind::Stream };
                self.send_next(kind, keep_alive, now, actions);
            }
            (RequestKind::Pin, 200) => match couchdb::parse_last_seq(&self.reply) {
                Some(seq) => {
                    self.replace_start(&seq);
                    actions.push(FeedAction::Pinned);
                    self.send_next(RequestKind::Stream, keep_alive, now, actions);
                }
                None if self.settings.source == FeedSource::DbUpdates => self.start_from_now(now, actions),
                None => self.fail(Problem::NoSequence, now, actions),
            },
            (_, 404) => self.handle_missing(kind, keep_alive, now, actions),
            // Also statuses for an expired start, and for a sequence that makes the request too
            // long for a proxy.
            (RequestKind::Stream, 400 | 410 | 413 | 414 | 422 | 431) => {
                self.handle_start_refused(status, keep_alive, now, actions);
            }
            (RequestKind::Pin, 400 | 405 | 501) if self.settings.source == FeedSource::DbUpdates => {
                self.start_from_now(now, actions);
            }
            (_, 401) => {
                actions.push(FeedAction::Refused);
                self.fail(Problem::Unauthorized, now, actions);
            }
            (_, 403) => self.fail(Problem::Locked, now, actions),
            _ => {
                if matches!(status, 502..=504) {
                    // A proxy answers for CouchDB while CouchDB is away.
                    self.worsen(Continuity::Doubtful);
                }
                self.fail(Problem::Status(status), now, actions);
            }
        }
    }

    /// Handles a missing `_global_changes`: creates it if the settings say so.
    fn handle_missing(&mut self, kind: RequestKind, keep_alive: bool, now: Millis, actions: &mut Vec<FeedAction>) {
        self.worsen(Continuity::Unrecorded);
        self.must_create = self.settings.create;
        if self.must_create && kind != RequestKind::Create {
            if let Some(more) = self.log.pass(LogCause::Creation, now) {
                log::warn!("CouchDB has no _global_changes database: creating it{more}.");
            }
            return self.send_next(RequestKind::Create, keep_alive, now, actions);
        }
        self.fail(Problem::Missing(self.settings.create), now, actions);
    }

    /// Handles a start that CouchDB refuses.
    fn handle_start_refused(&mut self, status: u16, keep_alive: bool, now: Millis, actions: &mut Vec<FeedAction>) {
        self.since.clear();
        self.worsen(Continuity::Gap);
        if std::mem::replace(&mut self.start_refused, true) {
            // CouchDB has also refused the start that replaced the first one.
            return self.fail(Problem::SinceRefused(status), now, actions);
        }
        self.log.handle_problem(Problem::SinceRefused(status), 0, now);
        self.send_next(RequestKind::Pin, keep_alive, now, actions);
    }

    fn worsen(&mut self, continuity: Continuity) {
        // Changes before the first stream are no loss: no client was connected yet.
        self.continuity = self.continuity.map(|worst| worst.max(continuity));
    }

    /// Handles a failed dial of another connection. While nothing is followed, CouchDB may have
    /// been away without the feed having noticed.
    pub fn handle_unreachable(&mut self) {
        if !self.is_streaming() {
            self.worsen(Continuity::Doubtful);
        }
    }

    /// Handles a reply of CouchDB on another connection: a feed that could not connect dials soon.
    pub fn handle_reachable(&mut self, now: Millis) {
        if let Phase::Waiting { until } = &mut self.phase
            && matches!(self.log.problem(), Some(Problem::Connection(_)))
        {
            *until = (*until).min(now + self.jitter.around(REDIAL_AFTER));
        }
    }

    /// Starts the stream without a pin, for hosts of `_db_updates` that do not report their
    /// sequence.
    fn start_from_now(&mut self, now: Millis, actions: &mut Vec<FeedAction>) {
        self.replace_start(NOW);
        actions.push(FeedAction::Pinned);
        self.send_next(RequestKind::Stream, false, now, actions);
    }

    /// Replaces the start by a pinned sequence. If there was one, the changes in between are
    /// missed.
    fn replace_start(&mut self, seq: &str) {
        if self.since.replace(seq).is_some() {
            log::warn!(
                "CouchDB did not open the changes feed where it broke in {MAX_STREAM_ATTEMPTS} attempts: following it from \
                 now on; changes may have been missed."
            );
            self.worsen(Continuity::Gap);
        }
        self.attempts = 0;
    }

    /// Sends the next request, on the same connection if CouchDB keeps it open.
    fn send_next(&mut self, kind: RequestKind, keep_alive: bool, now: Millis, actions: &mut Vec<FeedAction>) {
        if keep_alive {
            return self.send_request(kind, now, actions);
        }
        self.phase = Phase::Dialing;
        actions.extend([FeedAction::Close, FeedAction::Dial]);
    }

    fn send_request(&mut self, kind: RequestKind, now: Millis, actions: &mut Vec<FeedAction>) {
        let FeedSettings { source, heartbeat, .. } = self.settings;
        let request = match kind {
            RequestKind::Create => self.requests.create_global_changes(),
            RequestKind::Pin => self.requests.pin(source),
            RequestKind::Stream => self.requests.stream(source, self.since.get().unwrap_or(NOW), heartbeat),
        };
        let silence_limit = self.timeout_of(kind);
        self.reader = ResponseReader::new();
        self.reply = Vec::new();
        self.phase = Phase::Requesting { kind, deadline: now + silence_limit, head: None };
        actions.push(FeedAction::Send(request));
    }

    fn silence_limit(&self) -> Millis {
        self.settings.heartbeat * MISSED_HEARTBEATS
    }

    fn timeout_of(&self, kind: RequestKind) -> Millis {
        // CouchDB holds back the head of `_db_updates` until its first heartbeat.
        if kind == RequestKind::Stream { self.silence_limit() } else { REPLY_TIMEOUT.min(self.silence_limit()) }
    }

    /// Handles a break: the feed waits for the backoff and dials again.
    fn fail(&mut self, problem: Problem, now: Millis, actions: &mut Vec<FeedAction>) {
        if let Phase::Streaming { deadline, .. } = self.phase {
            self.followed_until = deadline.saturating_sub(self.silence_limit());
        }
        if self.since.get() == Some(NOW) {
            // There is no sequence to resume from.
            self.worsen(Continuity::Gap);
        }
        match self.phase {
            Phase::Requesting { kind: RequestKind::Stream, .. } if problem.may_be_the_start() => self.attempts += 1,
            // The start is not at fault, or not alone, so the attempts alternate between it and a
            // new one.
            Phase::Requesting { kind: RequestKind::Pin, .. } if self.since.get().is_some() => {
                self.attempts = self.attempts.saturating_sub(1);
            }
            _ => {}
        }
        let is_end = problem == Problem::Ended;
        let ends_again = is_end && self.ended_at.is_some_and(|at| now < at + END_LOG_PERIOD);
        self.ended_at = is_end.then_some(now);
        let wait = self.backoff.wait(&mut self.jitter);
        if ends_again {
            log::debug!("{problem} Next try in {wait} ms.");
        } else {
            self.log.handle_problem(problem, wait, now);
        }
        self.phase = Phase::Waiting { until: now + wait };
        self.reader = ResponseReader::new();
        self.reply = Vec::new();
        actions.push(FeedAction::Close);
    }
}

#[cfg(test)]
mod tests;
