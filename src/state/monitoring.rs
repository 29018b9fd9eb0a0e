//! Endpoints for operators: liveness, readiness and metrics. The functions are pure, and their
//! output contains no name of a user or a database.

use std::io::Write as _;

use super::metrics::{CloseReason, Metrics};
use super::routes::{Answer, text};
use super::session::{Dialect, Session, Transport};
use crate::wire::engine_io::Version;

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/healthz`: whether the event loop runs. Any response means that it does.
    Health,
    /// `/readyz`: whether clients are served well.
    Readiness,
    /// `/metrics`: counters and gauges.
    Metrics,
}

/// Response to [`Endpoint::Metrics`] without its body, which is in the text format of Prometheus.
pub const METRICS: Answer =
    Answer { status: 200, content_type: "text/plain; version=0.0.4; charset=utf-8", field: None, body: "" };
/// Response to [`Endpoint::Health`].
pub const HEALTHY: Answer = text(200, "ok\n");
/// Response to another method.
pub const METHOD_NOT_ALLOWED: Answer =
    Answer { field: Some(("Allow", "GET, HEAD")), ..text(405, "Only GET and HEAD are answered here.\n") };
/// Response to other paths on a port for operators.
pub const NOT_FOUND: Answer = text(
    404,
    "Only /healthz, /readyz and /metrics are served here. Clients connect to the other port (--port).
",
);

/// Returns the endpoint of a path.
pub fn endpoint(path: &str) -> Option<Endpoint> {
    match path {
        "/healthz" => Some(Endpoint::Health),
        "/readyz" => Some(Endpoint::Readiness),
        "/metrics" => Some(Endpoint::Metrics),
        _ => None,
    }
}

/// Readiness of the server, or the reason against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Clients are served well.
    Ready,
    /// The feed was never open.
    NotOpenYet,
    /// The feed was open and is down.
    FeedDown,
    /// CouchDB refuses the server's own credentials.
    Refused,
    /// The server is shutting down.
    Stopping,
}

impl Readiness {
    /// Returns the response to [`Endpoint::Readiness`]. It does not contain the address of CouchDB,
    /// since anyone may read it.
    pub fn answer(self) -> Answer {
        match self {
            Self::Ready => text(200, "ready\n"),
            Self::NotOpenYet => text(503, "not ready: the changes feed of CouchDB is not open yet, see the log\n"),
            Self::FeedDown => text(503, "not ready: the changes feed of CouchDB is down, see the log\n"),
            Self::Refused => {
                text(503, "not ready: CouchDB refuses the name or the password in --couchdb_url, see the log\n")
            }
            Self::Stopping => text(503, "not ready: the server is stopping\n"),
        }
    }
}

/// Number of sessions by dialect and transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionCounts {
    counts: [[u64; TRANSPORTS.len()]; DIALECTS.len()],
    logged_in: u64,
}

const DIALECTS: [&str; 3] = ["howler_v1", "engine_io_3", "engine_io_4"];
const TRANSPORTS: [&str; 2] = ["websocket", "polling"];

impl SessionCounts {
    /// Counts a session.
    pub fn count(&mut self, session: &Session) {
        let dialect = match session.dialect() {
            Dialect::Json => 0,
            Dialect::SocketIo(Version::V3) => 1,
            Dialect::SocketIo(Version::V4) => 2,
        };
        let transport = match session.transport {
            Transport::WebSocket(_) => 0,
            Transport::Polling(_) => 1,
        };
        self.counts[dialect][transport] += 1;
        self.logged_in += u64::from(session.is_active());
    }
}

/// Current values for the exposition.
#[derive(Debug)]
pub struct Gauges<'a> {
    /// Start of the process, in seconds since 1970.
    pub started: u64,
    /// Whether the feed is open.
    pub feed_up: bool,
    /// Connections of clients.
    pub connections: usize,
    /// Unauthenticated clients, and the memory that is held for them, in bytes.
    pub unauthenticated: (usize, usize),
    /// Whether the process uses more memory than the limit.
    pub memory_full: bool,
    /// Sessions.
    pub sessions: &'a SessionCounts,
    /// Subscriptions of all sessions.
    pub subscriptions: usize,
    /// Databases with a subscriber.
    pub databases: usize,
    /// Stored names of databases.
    pub names: usize,
    /// Remembered subscriptions of broken sessions.
    pub remembered: usize,
    /// Databases whose `_security` waits to be read, and the memory of those that were read, in
    /// bytes.
    pub access: (usize, usize),
    /// Waiting and in-flight requests to CouchDB by purpose.
    pub requests: &'a [(&'static str, usize)],
    /// Resident memory of the process in bytes, if the system reports it.
    pub resident_memory: Option<u64>,
}

/// Returns all metrics in the text format of Prometheus.
pub fn exposition(metrics: &Metrics, gauges: &Gauges<'_>) -> Vec<u8> {
    let mut page = Page { out: Vec::with_capacity(ROOM) };
    page.family("howler_build_info", "gauge", "The version that runs; always 1.");
    page.labelled("howler_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.gauge("howler_start_time_seconds", "When the process started, in seconds since 1970.", gauges.started);
    page.gauge("howler_feed_up", "Whether the changes feed of CouchDB is open.", gauges.feed_up.into());
    page.gauge("howler_connections", "Connections of clients.", gauges.connections as u64);
    let (clients, bytes) = gauges.unauthenticated;
    page.gauge("howler_unauthenticated_clients", "Clients that have not begun to log in.", clients as u64);
    page.gauge("howler_unauthenticated_bytes", "Memory held for clients that are not logged in.", bytes as u64);
    page.gauge("howler_memory_full", "Whether more memory is used than --max_memory.", gauges.memory_full.into());
    page.family("howler_sessions", "gauge", "Sessions by dialect and transport.");
    for (dialect, counts) in DIALECTS.iter().zip(&gauges.sessions.counts) {
        for (transport, count) in TRANSPORTS.iter().zip(counts) {
            page.labelled("howler_sessions", &[("dialect", dialect), ("transport", transport)], *count);
        }
    }
    page.gauge("howler_sessions_logged_in", "Sessions that are logged in.", gauges.sessions.logged_in);
    page.gauge("howler_subscriptions", "Subscriptions of all sessions.", gauges.subscriptions as u64);
    page.gauge("howler_databases_watched", "Databases with a subscriber.", gauges.databases as u64);
    page.gauge("howler_names_stored", "Stored names of databases, each once.", gauges.names as u64);
    let help = "Subscriptions of broken sessions that are remembered.";
    page.gauge("howler_catch_up_subscriptions", help, gauges.remembered as u64);
    let (questions, bytes) = gauges.access;
    page.gauge("howler_access_questions_waiting", "Databases whose _security waits to be read.", questions as u64);
    page.gauge("howler_security_bytes", "Memory of the _security objects that are kept.", bytes as u64);
    let name = "howler_couchdb_requests_pending";
    page.family(name, "gauge", "Requests to CouchDB that wait or are in flight, except the feed.");
    for (queue, count) in gauges.requests {
        page.labelled(name, &[("queue", queue)], *count as u64);
    }
    if let Some(bytes) = gauges.resident_memory {
        page.gauge("process_resident_memory_bytes", "Resident memory in bytes.", bytes);
    }
    metrics.for_each_counter(|name, help, value| {
        page.family(name, "counter", help);
        page.labelled(name, &[], value);
    });
    let name = "howler_closes_total";
    page.family(name, "counter", "Connections and sessions that ended, by reason.");
    let mut label = String::new();
    for reason in CloseReason::ALL {
        label.clear();
        write_snake(reason.name(), &mut label);
        page.labelled(name, &[("reason", &label)], metrics.closes(*reason));
    }
    page.out
}

/// Approximate length of an exposition, in bytes.
const ROOM: usize = 10 * 1024;

/// Buffer of the exposition.
struct Page {
    out: Vec<u8>,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.trim();
        write!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect("writing to a Vec cannot fail");
    }

    /// Label values are constants of the server, so they need no escaping.
    fn labelled(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.out.extend_from_slice(name.as_bytes());
        for (number, (label, text)) in labels.iter().enumerate() {
            let before = if number == 0 { '{' } else { ',' };
            write!(self.out, "{before}{label}=\"{text}\"").expect("writing to a Vec cannot fail");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        writeln!(self.out, "{after} {value}").expect("writing to a Vec cannot fail");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.labelled(name, &[], value);
    }
}

/// Writes `LikeThis` as `like_this`.
fn write_snake(name: &str, out: &mut String) {
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(letter.to_ascii_lowercase());
    }
}

/// Returns the resident memory in bytes from Linux's `/proc/self/status` or its beginning (proc(5):
/// `VmRSS:  1234 kB`).
pub fn resident_memory(status: &[u8]) -> Option<u64> {
    let (_, rest) = std::str::from_utf8(status).ok()?.split_once("\nVmRSS:")?;
    let (number, _) = rest.trim_start().split_once(" kB\n")?;
    number.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(metrics: &Metrics, sessions: &SessionCounts) -> String {
        let gauges = Gauges {
            started: 1_700_000_000,
            feed_up: true,
            connections: 5,
            unauthenticated: (2, 700),
            memory_full: true,
            sessions,
            subscriptions: 6,
            databases: 4,
            names: 7,
            remembered: 3,
            access: (8, 9_000),
            requests: &[("log_ins", 3), ("checks", 0)],
            resident_memory: Some(4096),
        };
        String::from_utf8(exposition(metrics, &gauges)).unwrap()
    }

    #[test]
    #[allow(clippy::field_reassign_with_default, reason = "one of its fields is private")]
    fn every_metric_is_exposed_once_with_help_and_type() {
        let mut metrics = Metrics::default();
        metrics.changes = 12;
        for reason in CloseReason::ALL {
            metrics.count_close(*reason);
        }
        let sessions = SessionCounts { counts: [[1, 0], [2, 3], [0, 4]], logged_in: 9 };
        let text = page(&metrics, &sessions);
        assert!(text.len() < ROOM, "one allocation: {}", text.len());
        for line in [
            "howler_start_time_seconds 1700000000",
            "howler_feed_up 1",
            "howler_connections 5",
            "howler_unauthenticated_clients 2",
            "howler_unauthenticated_bytes 700",
            "howler_memory_full 1",
            "howler_sessions{dialect=\"howler_v1\",transport=\"websocket\"} 1",
            "howler_sessions{dialect=\"engine_io_3\",transport=\"polling\"} 3",
            "howler_sessions{dialect=\"engine_io_4\",transport=\"websocket\"} 0",
            "howler_sessions_logged_in 9",
            "howler_subscriptions 6",
            "howler_databases_watched 4",
            "howler_names_stored 7",
            "howler_catch_up_subscriptions 3",
            "howler_couchdb_requests_pending{queue=\"log_ins\"} 3",
            "process_resident_memory_bytes 4096",
            "# TYPE howler_changes_total counter",
            "# HELP howler_changes_total Lines of the feed that contain a change.",
            "howler_changes_total 12",
            "howler_closes_total{reason=\"client_closed\"} 1",
            "howler_closes_total{reason=\"invalid_utf8\"} 1",
        ] {
            assert_eq!(text.lines().filter(|one| *one == line).count(), 1, "{line} in\n{text}");
        }
        let closes = text.lines().filter(|line| line.starts_with("howler_closes_total{")).count();
        assert_eq!(closes, CloseReason::ALL.len());
        metrics.for_each_counter(|name, _, _| assert!(text.contains(&format!("\n{name} ")), "{name}"));
    }

    #[test]
    fn samples_are_unique_and_follow_their_family() {
        let text = page(&Metrics::default(), &SessionCounts::default());
        let (mut family, mut seen) = ("", Vec::new());
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) {
                family = name;
            }
            let sample = line.split(' ').next().unwrap();
            if sample != "#" {
                assert_eq!(sample.split('{').next(), Some(family), "{line}");
                assert!(!seen.contains(&sample), "{line}");
                seen.push(sample);
            }
        }
        assert!(seen.len() > 40);
    }

    #[test]
    fn parses_the_resident_memory_of_linux() {
        let status = b"Name:\thowler\nVmHWM:\t    2000 kB\nVmRSS:\t    1234 kB\nRssAnon:\t 900 kB\n";
        assert_eq!(resident_memory(status), Some(1234 * 1024));
        for end in 0..status.len() - 15 {
            assert!(resident_memory(&status[..end]).is_none_or(|bytes| bytes == 1234 * 1024), "{end}");
        }
        assert_eq!(resident_memory(b"Name:\tx\n"), None);
    }

    #[test]
    fn readiness_contains_the_reason() {
        for (readiness, status, word) in [
            (Readiness::Ready, 200, "ready"),
            (Readiness::NotOpenYet, 503, "not open yet"),
            (Readiness::FeedDown, 503, "is down"),
            (Readiness::Refused, 503, "--couchdb_url"),
            (Readiness::Stopping, 503, "stopping"),
        ] {
            let answer = readiness.answer();
            assert!(answer.status == status && answer.body.contains(word) && answer.body.lines().count() == 1);
        }
    }
}
