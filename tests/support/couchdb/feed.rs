//! Feeds of changes: requests for them, and the thread that serves one.
//!
//! A continuous feed runs in the thread of its connection. It takes a batch from the log under the
//! lock, writes it without the lock, and then waits for more until a heartbeat is due.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::faults::{Chunking, FeedFault, SECOND_RESPONSE};
use super::global_changes::{Cursor, Event, GlobalChanges, mix, revision};
use super::http::{self, Request, Response, json_string, push_chunk};
use super::state::{OrderKind, Shared, State, wait};

/// Most lines that are taken under the lock at once.
const LINES_AT_ONCE: usize = 1_024;
/// Most lines of a replay in one chunk.
const LINES_OF_REPLAY: usize = 100;
/// Time after which a feed without heartbeats ends, unless the request has a `timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);
/// Interval for `heartbeat=true`.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(60);

/// The two feeds of CouchDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeedKind {
    /// `/_global_changes/_changes`
    Changes,
    /// `/_db_updates`
    DbUpdates,
}

/// A parsed request for a feed.
#[derive(Debug)]
pub(super) struct FeedRequest {
    kind: FeedKind,
    /// Whether the feed stays open.
    pub(super) continuous: bool,
    cursor: Cursor,
    heartbeat: Option<Duration>,
    timeout: Option<Duration>,
    /// Number of lines that may still be sent.
    left: Option<usize>,
    pub(super) headers: Vec<(&'static str, String)>,
}

/// The fate of the connection at the end of a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FeedEnd {
    /// It may carry another request: the zero chunk was sent.
    KeepAlive,
    /// It is closed.
    Close,
    /// It is reset.
    Reset,
}

impl FeedRequest {
    pub(super) fn parse(request: &Request, kind: FeedKind, global: &GlobalChanges) -> Result<Self, Response> {
        let bad_request = |reason: &str| Response::error(400, "bad_request", reason);
        let since = request.query("since").unwrap_or_else(|| "0".to_owned());
        let cursor =
            global.cursor(&since).ok_or_else(|| bad_request("Malformed sequence supplied in 'since' parameter."))?;
        let milliseconds = |text: &str| text.parse().map(Duration::from_millis).ok();
        let heartbeat = match request.query("heartbeat").as_deref() {
            None | Some("false") => None,
            Some("true") => Some(DEFAULT_HEARTBEAT),
            Some(text) => {
                let heartbeat = milliseconds(text).ok_or_else(|| {
                    bad_request("The heartbeat value should be a positive integer (in milliseconds).")
                })?;
                if heartbeat.is_zero() && kind == FeedKind::Changes {
                    return Err(bad_request("The heartbeat value should be a positive integer."));
                }
                // CouchDB sends heartbeats without a pause then. A thousand per second have the
                // same effect.
                Some(heartbeat.max(Duration::from_millis(1)))
            }
        };
        let timeout = match request.query("timeout") {
            None => heartbeat.is_none().then_some(DEFAULT_TIMEOUT),
            Some(text) => Some(milliseconds(&text).ok_or_else(|| bad_request("Invalid value for timeout"))?),
        };
        let left = match request.query("limit") {
            None => None,
            Some(text) => {
                let limit: usize = text.parse().map_err(|_| bad_request("Invalid value for limit"))?;
                Some(limit.max(1)) // that is what CouchDB makes of 0
            }
        };
        Ok(Self {
            kind,
            continuous: request.query("feed").as_deref() == Some("continuous") && request.method != "HEAD",
            cursor,
            heartbeat,
            timeout,
            left,
            headers: vec![("Content-Type", "application/json".to_owned())],
        })
    }

    /// Returns the response to `feed=normal`.
    pub(super) fn answer_at_once(&mut self, global: &GlobalChanges) -> Response {
        let mut lines: Vec<String> = Vec::new();
        let end = global.end();
        while self.left != Some(lines.len())
            && let Some(event) = self.cursor.next(global, end)
        {
            lines.extend(line(self.kind, &event));
        }
        let last_seq = self.cursor.seq();
        let mut pending = 0;
        while self.cursor.next(global, end).is_some() {
            pending += 1;
        }
        let lines = lines.join(",\n");
        let body = match self.kind {
            FeedKind::Changes => {
                format!("{{\"results\":[\n{lines}\n],\n\"last_seq\":\"{last_seq}\",\"pending\":{pending}}}")
            }
            FeedKind::DbUpdates => {
                format!("{{\"results\":[\n{lines}\n],\"last_seq\":\"{last_seq}\"}}")
            }
        };
        Response { chunked: true, headers: std::mem::take(&mut self.headers), ..Response::json(200, &body) }
    }
}

/// Returns a line without its line feed; None for documents that `_db_updates` leaves out.
fn line(kind: FeedKind, event: &Event) -> Option<String> {
    let Event { id, seq, .. } = event;
    match kind {
        FeedKind::Changes => Some(format!(
            r#"{{"seq":"{seq}","id":{},"changes":[{{"rev":"{}"}}]}}"#,
            json_string(id),
            revision(event.revision)
        )),
        FeedKind::DbUpdates => {
            let (what, name) = id.split_once(':')?;
            matches!(what, "created" | "updated" | "deleted").then(|| {
                let name = json_string(name);
                format!(r#"{{"db_name":{name},"type":"{what}","seq":"{seq}"}}"#)
            })
        }
    }
}

/// Serves a continuous feed until it ends.
pub(super) fn run(shared: &Shared, stream: &TcpStream, request: &Request, feed: FeedRequest) -> FeedEnd {
    shared.observe(|state| state.counters.open_feeds += 1);
    let mut server = Server {
        shared,
        connection: request.connection,
        head: head(shared, request, &feed),
        out: Output { stream, chunking: Chunking::Normal, bytes: Vec::new() },
        beats: 0,
        last_written: shared.clock.now(),
        last_event: shared.clock.now(),
        silent: false,
        spoil: None,
        feed,
    };
    let end = server.run().unwrap_or(FeedEnd::Close);
    shared.observe(|state| {
        state.counters.open_feeds -= 1;
        if let Some(link) = state.links.get_mut(&request.connection) {
            link.feed = None;
        }
    });
    end
}

fn head(shared: &Shared, request: &Request, feed: &FeedRequest) -> String {
    let now = shared.clock.now();
    let mut head = http::head(200, &feed.headers, request, now);
    head.push_str("Transfer-Encoding: chunked\r\n\r\n");
    head
}

/// A continuous feed, and the thread that serves it.
struct Server<'a> {
    shared: &'a Shared,
    connection: u64,
    /// The head of the response until it is sent.
    head: String,
    feed: FeedRequest,
    out: Output<'a>,
    beats: u64,
    last_written: Duration,
    last_event: Duration,
    /// Whether nothing is sent any more.
    silent: bool,
    /// A fault for the next line.
    spoil: Option<FeedFault>,
}

/// The next step of a feed.
enum Step {
    Lines(Vec<Vec<u8>>),
    Order(OrderKind),
    Heartbeat,
    /// The time or the lines are used up, or the database was deleted.
    CleanEnd,
    Gone,
}

impl Server<'_> {
    fn run(&mut self) -> io::Result<FeedEnd> {
        if self.feed.kind == FeedKind::Changes {
            self.write_chunks(&[b"\n".to_vec()])?;
        }
        loop {
            match self.next_step() {
                Step::Gone => return Ok(FeedEnd::Close),
                Step::CleanEnd => {
                    self.end_cleanly()?;
                    return Ok(FeedEnd::KeepAlive);
                }
                Step::Heartbeat => {
                    self.beats += 1;
                    self.write_chunks(&[b"\n".to_vec()])?;
                }
                Step::Lines(mut chunks) => {
                    self.last_event = self.shared.clock.now();
                    if let (Some(fault), Some(chunk)) = (self.spoil.take(), chunks.first_mut()) {
                        spoil_first_line(chunk, fault);
                    }
                    self.write_chunks(&chunks)?;
                    if self.shared.lock().faults.maintenance && !self.silent {
                        self.end_cleanly()?;
                        return Ok(FeedEnd::KeepAlive);
                    }
                }
                Step::Order(order) => {
                    if let Some(end) = self.obey(&order)? {
                        return Ok(end);
                    }
                }
            }
        }
    }

    /// Waits until there is something to do.
    fn next_step(&mut self) -> Step {
        let mut state = self.shared.lock();
        loop {
            if state.is_gone(self.connection) {
                return Step::Gone;
            }
            if let Some(step) = self.due(&mut state) {
                return step;
            }
            let now = self.shared.clock.now();
            let timeout = self.feed.timeout.map(|timeout| self.last_event + timeout);
            let heartbeat = self.heartbeat().map(|beat| self.last_written + beat);
            let left = match (timeout, heartbeat) {
                _ if self.silent => DEFAULT_TIMEOUT,
                (Some(at), _) if at <= now => return Step::CleanEnd,
                (_, Some(at)) if at <= now => return Step::Heartbeat,
                (Some(one), Some(other)) => one.min(other).saturating_sub(now),
                (Some(at), None) | (None, Some(at)) => at.saturating_sub(now),
                (None, None) => DEFAULT_TIMEOUT,
            };
            state = wait(&self.shared.changed, state, left);
        }
    }

    /// Returns the next step if there is one without waiting.
    fn due(&mut self, state: &mut State) -> Option<Step> {
        self.out.chunking = state.faults.chunking;
        let orders = state.links.get_mut(&self.connection)?.feed.as_mut()?;
        let cursor = &self.feed.cursor;
        let global = state.global.as_ref();
        let Some(global) = global.filter(|global| global.incarnation == cursor.incarnation) else {
            return (!self.silent).then_some(Step::CleanEnd);
        };
        if orders.front().is_some_and(|order| cursor.reached(order.at)) {
            return orders.pop_front().map(|order| Step::Order(order.what));
        }
        let end = orders.front().map_or(global.end(), |order| order.at);
        let chunks = self.feed.gather(global, end);
        if !chunks.is_empty() {
            return Some(Step::Lines(chunks));
        }
        (self.feed.left == Some(0)).then_some(Step::CleanEnd)
    }

    /// Returns the pause before the next heartbeat. It is irregular for `_db_updates`.
    fn heartbeat(&self) -> Option<Duration> {
        let interval = self.feed.heartbeat?;
        match self.feed.kind {
            FeedKind::Changes => Some(interval),
            FeedKind::DbUpdates => {
                let percent = u32::try_from(mix(self.beats) % 91).unwrap_or(0);
                Some(interval + interval * percent / 100)
            }
        }
    }

    fn obey(&mut self, order: &OrderKind) -> io::Result<Option<FeedEnd>> {
        match order {
            OrderKind::Line(line) => {
                self.last_event = self.shared.clock.now();
                self.write_chunks(&[line.to_vec()])?;
                Ok(None)
            }
            OrderKind::Raw(bytes) => {
                self.write_raw(bytes)?;
                Ok(None)
            }
            OrderKind::Break(fault) => self.break_down(*fault),
        }
    }

    fn break_down(&mut self, fault: FeedFault) -> io::Result<Option<FeedEnd>> {
        let seq = self.feed.cursor.seq();
        match fault {
            FeedFault::Reset => return Ok(Some(FeedEnd::Reset)),
            FeedFault::Cut => return Ok(Some(FeedEnd::Close)),
            FeedFault::CutMidChunk => {
                self.write_raw(format!("d6\r\n{{\"seq\":\"{seq}\",\"id\":\"upd").as_bytes())?;
                return Ok(Some(FeedEnd::Close));
            }
            FeedFault::CleanEnd => {
                self.end_cleanly()?;
                return Ok(Some(FeedEnd::KeepAlive));
            }
            FeedFault::Garbage => self.write_raw(SECOND_RESPONSE.as_bytes())?,
            FeedFault::BadChunkSize => self.write_raw(b"xyz\r\n")?,
            FeedFault::Silence => {}
            FeedFault::BrokenJson => {
                self.write_chunks(&[format!("{{\"seq\":\"{seq}\",\"id\":\"upda\n").into_bytes()])?;
                return Ok(None);
            }
            FeedFault::BrokenLines(count) => {
                self.write_chunks(&[b"no JSON {{{\n".repeat(count)])?;
                return Ok(None);
            }
            FeedFault::HugeLine(length) => {
                self.write_chunks(&[huge_line(length)])?;
                return Ok(None);
            }
            FeedFault::SpoilNextLine | FeedFault::PadNextLine(_) => {
                self.spoil = Some(fault);
                return Ok(None);
            }
        }
        self.silent = true;
        Ok(None)
    }

    fn end_cleanly(&mut self) -> io::Result<()> {
        if self.silent {
            return Ok(());
        }
        let last_seq = self.feed.cursor.seq();
        let chunks = match self.feed.kind {
            FeedKind::Changes => {
                vec![format!("{{\"last_seq\":\"{last_seq}\",\"pending\":0}}\n").into_bytes(), b"\n".to_vec()]
            }
            FeedKind::DbUpdates => vec![format!("{{\"last_seq\":\"{last_seq}\"}}\n").into_bytes()],
        };
        self.write_chunks(&chunks)?;
        self.out.bytes.extend_from_slice(b"0\r\n\r\n");
        self.out.flush()
    }

    fn write_chunks(&mut self, chunks: &[Vec<u8>]) -> io::Result<()> {
        if self.silent {
            return Ok(());
        }
        self.write_head();
        self.out.push(chunks);
        self.last_written = self.shared.clock.now();
        self.out.flush()
    }

    fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.silent {
            return Ok(());
        }
        self.write_head();
        self.out.bytes.extend_from_slice(bytes);
        self.last_written = self.shared.clock.now();
        self.out.flush()
    }

    fn write_head(&mut self) {
        let head = std::mem::take(&mut self.head);
        self.out.bytes.extend_from_slice(head.as_bytes());
    }
}

impl FeedRequest {
    /// Returns the next lines, one payload per chunk. A batch is never split.
    fn gather(&mut self, global: &GlobalChanges, end: usize) -> Vec<Vec<u8>> {
        let mut chunks: Vec<Vec<u8>> = Vec::new();
        let (mut lines, mut lines_in_chunk) = (0, 0);
        let mut open_batch = None;
        while self.left != Some(0)
            && let Some(event) = self.cursor.next(global, end)
        {
            let batch = event.batch;
            if let Some(line) = line(self.kind, &event) {
                let joins = self.kind == FeedKind::Changes
                    && open_batch == Some(batch)
                    && (batch.is_some() || lines_in_chunk < LINES_OF_REPLAY);
                if !joins {
                    chunks.push(Vec::new());
                    lines_in_chunk = 0;
                }
                let chunk = chunks.last_mut().expect("one was pushed for the first line");
                chunk.extend_from_slice(line.as_bytes());
                chunk.push(b'\n');
                open_batch = Some(batch);
                lines_in_chunk += 1;
                lines += 1;
                self.left = self.left.map(|left| left - 1);
            }
            if lines >= LINES_AT_ONCE && !self.cursor.continues(global, batch) {
                break;
            }
        }
        chunks
    }
}

/// Returns a valid line of this many bytes with its line feed, or a short one if they are too few.
fn huge_line(length: usize) -> Vec<u8> {
    let (start, end) = (r#"{"seq":"1-"#, "\",\"id\":\"updated:huge\",\"changes\":[]}\n");
    let padding = length.saturating_sub(start.len() + end.len());
    format!("{start}{}{end}", "A".repeat(padding)).into_bytes()
}

/// Cuts off the first line of a chunk in its middle, or makes the line longer.
fn spoil_first_line(chunk: &mut Vec<u8>, fault: FeedFault) {
    let length = chunk.iter().position(|byte| *byte == b'\n').unwrap_or(chunk.len());
    if let FeedFault::PadNextLine(more) = fault {
        // An unknown field before the closing brace.
        let field = format!(",\"pad\":\"{}\"", "A".repeat(more));
        chunk.splice(length - 1..length - 1, field.into_bytes());
    } else {
        chunk.drain(length / 2..length);
    }
}

/// Bytes for a socket, split as the test asked for.
struct Output<'a> {
    stream: &'a TcpStream,
    chunking: Chunking,
    bytes: Vec<u8>,
}

impl Output<'_> {
    /// Adds payloads as chunks.
    fn push(&mut self, payloads: &[Vec<u8>]) {
        match self.chunking {
            Chunking::Normal => payloads.iter().for_each(|payload| push_chunk(&mut self.bytes, payload)),
            Chunking::Merge => push_chunk(&mut self.bytes, &payloads.concat()),
            Chunking::OneByte => self.push_cut(&payloads.concat(), 1),
            Chunking::SplitEvery(length) => self.push_cut(&payloads.concat(), length),
        }
    }

    fn push_cut(&mut self, payload: &[u8], length: usize) {
        for part in payload.chunks(length.max(1)) {
            push_chunk(&mut self.bytes, part);
        }
    }

    /// Writes all chunks. The socket does not delay small writes.
    fn flush(&mut self) -> io::Result<()> {
        use io::Write as _;
        let length = match self.chunking {
            Chunking::Normal | Chunking::Merge => self.bytes.len(),
            Chunking::OneByte => 1,
            Chunking::SplitEvery(length) => length,
        };
        let mut stream = self.stream;
        for part in self.bytes.chunks(length.max(1)) {
            stream.write_all(part)?;
        }
        self.bytes.clear();
        Ok(())
    }
}
