//! The steps of `check` on the way to CouchDB, in the order of the server. The first step that
//! fails is the last one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::peer::{Answer, Peer, PeerError, Until, within};
use super::report::{Failure, Report};
use crate::config::Config;
use crate::net::{resolver, tls};
use crate::wire::couchdb::{self, FeedSource, Requests, Welcome};
use crate::wire::nodes;
use crate::wire::url::CouchUrl;

/// Time for a lookup. The resolver gives up silent nameservers after 10 s.
const LOOKUP_WITHIN: Duration = Duration::from_secs(12);
/// Time for a connection, and for a response.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Interval of heartbeats to request from the feed, in milliseconds. The first bytes arrive within
/// two of them.
const HEARTBEAT: u64 = 1_000;

/// Default of CouchDB's `max_write_delay`, in milliseconds.
const DEFAULT_WRITE_DELAY: u64 = 500;
/// A delay that users do not notice, in milliseconds.
const SHORT_WRITE_DELAY: u64 = 100;
/// Measured effect of delays.
const MEASURED: &str = "Measured from a write to the notification of a client: 500 ms: median 334 ms, 90 % within 490 ms; \
     100 ms: 76 and 126 ms; 50 ms: 55 and 79 ms; 20 ms: 45 and 51 ms. Its price in CPU of CouchDB for a write, at 60 \
     writes a second: 500 ms: 11 ms; 100 ms: 13.6 ms; 20 ms: 16 ms.";

const WRONG_PASSWORD: &str = "CouchDB rejects the name or the password (401): correct them in --couchdb_url, with \
     characters other than letters and digits as %XX";
const LOCKED: &str = "CouchDB has locked the name after too many wrong passwords (403): wait five minutes, and make \
     sure that no other program uses an old password";
const NO_ADMIN: &str = "the user in --couchdb_url is not a server admin: choose one from the section [admins] of CouchDB's \
     configuration";
const NO_GLOBAL_CHANGES: &str = "the database is missing: --create_global_changes creates it when the server starts, or \
     PUT /_global_changes as a server admin";
const CREATED_AT_START: &str = "the database is missing, and is created when the server starts";
const NO_SOURCE_OF_DB_UPDATES: &str = "the database _global_changes, from which CouchDB reads this feed, is missing (404): \
     --create_global_changes creates it when the server starts, or PUT /_global_changes as a server admin";
const NO_DB_UPDATES: &str = "there is no such feed (404): use --feed global_changes";
const NO_SEQUENCE: &str =
    "CouchDB does not return the sequence of its feed: does another server in front of it answer?";
const NAMELESS: &str = "the certificate is trusted because it is itself in --ca_file; it has no host name \
     (subjectAltName), so the holder of its key can answer under any name";
const WITHHELD: &str = "the feed is open, but no byte of it arrives: a proxy in front of CouchDB buffers responses until \
     they end; switch its buffering off, or name CouchDB itself in --couchdb_url";

/// Runs the steps and reports each of them.
pub(super) fn check(
    config: &Config,
    url: &CouchUrl,
    trust: &Arc<rustls::ClientConfig>,
    report: &mut Report<'_>,
) -> io::Result<()> {
    let host = &url.host;
    let Some(addresses) = report_outcome(report, "host name", look_up(url))? else { return Ok(()) };
    let plain = Peer { addresses, tls: None };
    let reached = plain.reach(ANSWER_WITHIN).map_err(|error| explain(&error, url));
    let reached = reached.map(|_| ((), format!("port {} of {host} accepts connections", url.port)));
    let Some(()) = report_outcome(report, "connection", reached)? else { return Ok(()) };
    let peer = if url.tls {
        let Some(peer) = report_outcome(report, "TLS", encrypt(plain, url, trust))? else { return Ok(()) };
        peer
    } else {
        plain
    };
    let target = CouchDb { url, peer, requests: Requests::new(url) };
    let Some(()) = report_outcome(report, "CouchDB", target.recognize())? else { return Ok(()) };
    let Some(roles) = report_outcome(report, "login", target.log_in())? else { return Ok(()) };
    let Some(()) = report_outcome(report, "server admin", is_admin(&roles))? else { return Ok(()) };
    if config.feed == FeedSource::GlobalChanges {
        let found = target.find_global_changes(config.create_global_changes);
        match report_outcome(report, "_global_changes", found)? {
            Some(true) => {}
            // There is no feed before the server creates the database.
            Some(false) | None => return Ok(()),
        }
    }
    target.report_restarts(config.merge_window_ms, report)?;
    let Some(()) = report_outcome(report, "feed", target.follow(config.feed, config.create_global_changes))? else {
        return Ok(());
    };
    let Some(()) = report_outcome(report, "recording", target.is_recording())? else { return Ok(()) };
    let delay = target.write_delay();
    if delay.is_short { report.ok("write delay", &delay.text) } else { report.note("write delay", &delay.text) }
}

/// Reports the outcome of a step. Returns what it found.
fn report_outcome<T>(
    report: &mut Report<'_>,
    step: &str,
    outcome: Result<(T, String), Failure>,
) -> io::Result<Option<T>> {
    match outcome {
        Ok((found, detail)) => report.ok(step, &detail).map(|()| Some(found)),
        Err(failure) => report.failed(step, &failure).map(|()| None),
    }
}

/// The result of a step, with the words for the report.
type Outcome<T> = Result<(T, String), Failure>;

fn fail<T>(problem: &str) -> Outcome<T> {
    Err(Failure(problem.to_owned()))
}

fn look_up(url: &CouchUrl) -> Outcome<Vec<SocketAddr>> {
    let (host, port) = (url.host.clone(), url.port);
    let advice = "check the host in --couchdb_url, and that this machine (or the network of its container) knows it";
    match within(LOOKUP_WITHIN, move || resolver::look_up(&host, port)) {
        None => fail(&format!("{} cannot be looked up: no answer in time; {advice}", url.host)),
        Some(Err(error)) => fail(&format!("{}: {error}; {advice}", url.host)),
        Some(Ok(found)) if found.is_empty() => fail(&format!("{} has no address; {advice}", url.host)),
        Some(Ok(found)) => {
            let shown = found.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ");
            Ok((found, format!("{} is {shown}", url.host)))
        }
    }
}

fn encrypt(plain: Peer, url: &CouchUrl, trust: &Arc<rustls::ClientConfig>) -> Outcome<Peer> {
    let name = tls::server_name(&url.host).map_err(|error| Failure(format!("{}: {error}", url.host)))?;
    let peer = Peer { tls: Some((Arc::clone(trust), name)), ..plain };
    let nameless = peer.reach(ANSWER_WITHIN).map_err(|error| explain(&error, url))?;
    let verdict = if nameless { NAMELESS } else { "the certificate is trusted" };
    Ok((peer, verdict.to_owned()))
}

fn is_admin(roles: &[Box<str>]) -> Outcome<()> {
    if roles.iter().any(|role| &**role == "_admin") {
        return Ok(((), "the user in --couchdb_url is a server admin".to_owned()));
    }
    fail(NO_ADMIN)
}

/// A CouchDB that accepts connections.
struct CouchDb<'a> {
    url: &'a CouchUrl,
    peer: Peer,
    requests: Requests,
}

impl CouchDb<'_> {
    fn ask(&self, request: Vec<u8>) -> Result<Answer, Failure> {
        self.peer.ask(request, Until::End, ANSWER_WITHIN).map_err(|error| explain(&error, self.url))
    }

    /// Checks whether the server is CouchDB, before it gets a password.
    fn recognize(&self) -> Outcome<()> {
        let answer = self.ask(self.requests.welcome())?;
        match (answer.status, couchdb::read_welcome(&answer.body)) {
            (200, Welcome::CouchDb(version)) => Ok(((), format!("version {version} answers"))),
            (401, Welcome::Error(error)) if &*error == "unauthorized" => {
                Ok(((), "CouchDB answers, and shows its version to logged-in users only".to_owned()))
            }
            (404, Welcome::Error(_)) => fail("CouchDB is not below this path (404): check the path in --couchdb_url"),
            (status @ 300..=399, _) => fail(&format!(
                "there is a redirect (status {status}): name its target in --couchdb_url, with https:// if it leads \
                 there"
            )),
            (400, _) if memchr::memmem::find(&answer.body, b"HTTPS").is_some() => fail(&speaks_tls()),
            (status @ 502..=504, _) => {
                fail(&format!("the proxy in front of CouchDB does not reach it (status {status}): is CouchDB running?"))
            }
            (status, _) => fail(&format!(
                "the server that answers (status {status}) is not CouchDB: check the host, the port and the path in \
                 --couchdb_url"
            )),
        }
    }

    fn log_in(&self) -> Outcome<Box<[Box<str>]>> {
        let answer = self.ask(self.requests.own_session())?;
        match answer.status {
            200 => match couchdb::read_own_roles(&answer.body) {
                Some(roles) => Ok((roles, "CouchDB accepts the name and the password".to_owned())),
                None => {
                    fail("CouchDB did not see the name and the password: does a proxy remove them (Authorization)?")
                }
            },
            _ => rejected(answer.status),
        }
    }

    /// Checks whether the database exists. Returns false if the server will create it.
    fn find_global_changes(&self, creates: bool) -> Outcome<bool> {
        match self.ask(self.requests.epoch())?.status {
            200 => Ok((true, "the database exists".to_owned())),
            404 if creates => Ok((false, CREATED_AT_START.to_owned())),
            404 => fail(NO_GLOBAL_CHANGES),
            status => rejected(status),
        }
    }

    /// Reports how the server will notice restarts of CouchDB. The server runs either way.
    fn report_restarts(&self, merge_window: Option<u64>, report: &mut Report<'_>) -> io::Result<()> {
        let ask = |request| self.peer.ask(request, Until::End, ANSWER_WITHIN).ok();
        let membership = ask(self.requests.membership()).filter(|answer| answer.status == 200);
        let count = membership.and_then(|answer| nodes::read_membership(&answer.body)).map_or(1, |nodes| nodes.len());
        let system = ask(self.requests.system(None));
        let status = system.as_ref().map_or_else(|| "no answer".to_owned(), |it| format!("status {}", it.status));
        let says = system.is_some_and(|answer| answer.status == 200 && nodes::read_uptime(&answer.body).is_some());
        match (says, count) {
            (true, 1) => report.ok("restarts", "CouchDB says when it started, so the server notices every restart"),
            (true, count) => {
                let merged =
                    if merge_window.is_none() { "; changes are merged for 800 ms (--merge_window)" } else { "" };
                report.ok("restarts", &format!("a cluster of {count} nodes, which say when they started{merged}"))
            }
            (false, _) => report.note(
                "restarts",
                &format!(
                    "CouchDB does not say when it started (GET /_node/_local/_system: {status}), like hosted ones: \
                     after every outage clients resync, and a restart that a proxy hides is missed"
                ),
            ),
        }
    }

    /// Opens the feed with the requests of the server.
    fn follow(&self, source: FeedSource, creates: bool) -> Outcome<()> {
        let pinned = self.peer.ask(self.requests.pin(source), Until::End, ANSWER_WITHIN);
        let since = match pinned {
            // Some hosts do not return a sequence for this feed. The server then starts at the
            // current one.
            Err(PeerError::Silent | PeerError::Withheld) if source == FeedSource::DbUpdates => "now".to_owned(),
            Err(error) => return Err(explain(&error, self.url)),
            Ok(Answer { status: 200, body, .. }) => match couchdb::parse_last_seq(&body) {
                Some(since) => since,
                None => return fail(NO_SEQUENCE),
            },
            // CouchDB reads this feed from the database.
            Ok(Answer { status: 404, .. }) if source == FeedSource::DbUpdates => {
                return match self.ask(self.requests.epoch())?.status {
                    404 if creates => Ok(((), CREATED_AT_START.to_owned())),
                    404 => fail(NO_SOURCE_OF_DB_UPDATES),
                    _ => fail(NO_DB_UPDATES),
                };
            }
            Ok(Answer { status, .. }) => return rejected(status),
        };
        match self.peer.ask(self.requests.stream(source, &since, HEARTBEAT), Until::Content, ANSWER_WITHIN) {
            Ok(Answer { status: 200, .. }) => Ok(((), "the feed can be followed".to_owned())),
            Ok(Answer { status, .. }) => rejected(status),
            Err(PeerError::Silent | PeerError::Withheld) => fail(WITHHELD),
            Err(error) => Err(explain(&error, self.url)),
        }
    }
}

/// The delay before CouchDB records a change, for the report.
struct WriteDelay {
    is_short: bool,
    text: String,
}

impl CouchDb<'_> {
    /// Checks whether CouchDB records changes at all. If it does not say so, only the feed shows
    /// it.
    fn is_recording(&self) -> Outcome<()> {
        match self.config(couchdb::UPDATE_DB) {
            Ok(Some(value)) if value == "false" => fail(&format!(
                "CouchDB records no change, since update_db is false in its configuration, and no client would be \
                 notified: {}",
                self.advice(couchdb::UPDATE_DB, "true")
            )),
            Ok(_) => Ok(((), "CouchDB records changes".to_owned())),
            Err(why) => Ok(((), format!("the feed is open; CouchDB does not say whether update_db is on ({why})"))),
        }
    }

    /// Reads the delay before CouchDB records a change, and its effect on clients.
    fn write_delay(&self) -> WriteDelay {
        let found = self.config(couchdb::MAX_WRITE_DELAY);
        let (milliseconds, origin) = match &found {
            Ok(None) => (DEFAULT_WRITE_DELAY, "the default of"),
            Ok(Some(value)) => match value.trim().parse() {
                Ok(milliseconds) => (milliseconds, "set by"),
                Err(_) => return WriteDelay { is_short: false, text: "max_write_delay is not a number".to_owned() },
            },
            Err(why) => {
                let text = format!(
                    "CouchDB does not say its max_write_delay ({why}), like hosted ones: by default a change is recorded up \
                     to {DEFAULT_WRITE_DELAY} ms after the write. {MEASURED}"
                );
                return WriteDelay { is_short: false, text };
            }
        };
        let mut text =
            format!("CouchDB records a change up to {milliseconds} ms after the write ({origin} max_write_delay). ");
        let is_short = milliseconds <= SHORT_WRITE_DELAY;
        text.push_str(MEASURED);
        if !is_short {
            text.push_str(" To lower it, on each node: ");
            text.push_str(&self.advice(couchdb::MAX_WRITE_DELAY, &SHORT_WRITE_DELAY.to_string()));
        }
        WriteDelay { is_short, text }
    }

    /// Reads a value of the section about changes; None if it is not set.
    ///
    /// # Errors
    /// Returns the reason why CouchDB does not say.
    fn config(&self, key: &str) -> Result<Option<String>, String> {
        let request = self.requests.config(couchdb::GLOBAL_CHANGES_SECTION, key);
        match self.peer.ask(request, Until::End, ANSWER_WITHIN) {
            Ok(Answer { status: 200, body, .. }) => match couchdb::read_config(&body) {
                Some(value) => Ok(Some(value)),
                None => Err("status 200, but no value".to_owned()),
            },
            Ok(Answer { status: 404, .. }) => Ok(None),
            Ok(Answer { status, .. }) => Err(format!("status {status}")),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Describes how to set a value, by a request or in a file.
    fn advice(&self, key: &str, value: &str) -> String {
        let CouchUrl { tls, prefix, .. } = self.url;
        let (scheme, host) = (if *tls { "https" } else { "http" }, self.url.host_header());
        let section = couchdb::GLOBAL_CHANGES_SECTION;
        format!(
            "curl -u ADMIN -X PUT {scheme}://{host}{prefix}/_node/_local/_config/{section}/{key} -d '\"{value}\"', or \
             {key} = {value} below [{section}] in local.ini"
        )
    }
}

/// Returns the failure for a status of rejection.
fn rejected<T>(status: u16) -> Outcome<T> {
    match status {
        401 => fail(WRONG_PASSWORD),
        403 => fail(LOCKED),
        500..=599 => fail(&format!("CouchDB cannot answer (status {status}): see its log")),
        _ => fail(&format!("CouchDB rejects the request (status {status}): see its log")),
    }
}

fn speaks_tls() -> String {
    "the port speaks TLS: write https:// in --couchdb_url".to_owned()
}

/// Returns the failure for an error of a connection, with advice.
fn explain(error: &PeerError, url: &CouchUrl) -> Failure {
    let CouchUrl { host, port, .. } = url;
    Failure(match error {
        PeerError::Connect(address, error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => format!(
                "nobody listens at {address} (connection refused): is CouchDB running, and on port {port}? In a container, \
                 localhost is the container itself"
            ),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => format!(
                "no answer from {address} in time: is it the right address, and does a firewall let this machine through \
                 to port {port}?"
            ),
            _ => format!("{address} cannot be reached: {error}"),
        },
        PeerError::Tls(problem) => problem.clone(),
        PeerError::Silent => format!(
            "port {port} of {host} accepts connections but does not answer in time: is it CouchDB, and does it speak {}?",
            if url.tls { "TLS (https://)" } else { "plain HTTP (http://)" }
        ),
        PeerError::Withheld => "a response began but did not end in time: see CouchDB's log".to_owned(),
        PeerError::Closed if url.tls => {
            format!("port {port} of {host} ends the connection: does it speak TLS (https://)?")
        }
        PeerError::Closed => format!(
            "port {port} of {host} ends the connection without an answer: if it speaks TLS, write https:// in \
             --couchdb_url"
        ),
        PeerError::SpeaksTls => speaks_tls(),
        PeerError::NotHttp => {
            format!("port {port} of {host} does not speak HTTP: check host and port in --couchdb_url")
        }
    })
}
