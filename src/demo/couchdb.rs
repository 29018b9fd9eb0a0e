//! The CouchDB of the demo: replies to the requests that this server sends. It touches neither
//! sockets nor the clock.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::databases::{Databases, Event, SharedDatabases};
use crate::wire::{json, url};

/// Name of the user who may log in to the demo.
pub const USER: &str = "demo";
/// Password of [`USER`].
pub const PASSWORD: &str = "demo";
const ADMIN: &str = "admin";
const NODE: &str = "couchdb@127.0.0.1";

/// The part of every revision and sequence that this server must not look into.
const OPAQUE: &str = "967a00dff5e02add41819138abb3284d";
/// Pause between heartbeats of a feed whose reader names none.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(60);

/// A request, as far as the demo reads it.
#[derive(Debug, Default)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) authorization: &'a str,
    pub(super) cookie: &'a str,
    pub(super) body: &'a [u8],
    pub(super) content_length: usize,
}

impl<'a> Request<'a> {
    /// Reads a request. The head is without the empty line at its end.
    pub(super) fn parse(head: &'a str, body: &'a [u8]) -> Self {
        let mut lines = head.lines();
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
        let mut request = Self { method, target, body, ..Self::default() };
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            match name {
                "Authorization" => request.authorization = value,
                "Cookie" => request.cookie = value,
                "Content-Length" => request.content_length = value.parse().unwrap_or(usize::MAX),
                _ => {}
            }
        }
        request
    }
}

/// The reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// A status, the value of `Set-Cookie`, and JSON.
    Json(u16, Option<String>, String),
    /// The feed from here on.
    Feed(Feed),
}

/// A continuous feed that a reader asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Feed {
    pub(super) kind: FeedKind,
    /// Position of the last event that the reader has.
    pub(super) since: u64,
    /// Pause after which an empty line shows that the feed is alive.
    pub(super) heartbeat: Duration,
}

/// The two feeds of CouchDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FeedKind {
    /// `/_global_changes/_changes`
    GlobalChanges,
    /// `/_db_updates`
    DbUpdates,
}

/// A CouchDB with an admin, one user, and databases that this user may read.
#[derive(Debug)]
pub(super) struct CouchDb {
    pub(super) databases: SharedDatabases,
    /// Password of the admin, and cookie of the user.
    secret: String,
    /// Time of the start, in seconds since 1970.
    started: u64,
}

impl CouchDb {
    /// `random` is not to be known to others, `now` is in seconds since 1970.
    pub(super) fn new(databases: &[&str], random: u64, now: u64) -> Self {
        Self { databases: SharedDatabases::new(databases), secret: format!("{random:016x}"), started: now }
    }

    /// Returns the URL with the name and password of the admin.
    pub(super) fn url(&self, address: SocketAddr) -> String {
        format!("http://{ADMIN}:{}@{address}", self.secret)
    }

    /// Replies to a request at a time, in seconds since 1970.
    pub(super) fn reply(&self, request: &Request<'_>, now: u64) -> Reply {
        let (path, query) = request.target.split_once('?').unwrap_or((request.target, ""));
        let user = self.identify(request);
        if path == "/_session" {
            return if request.method == "POST" { self.log_in(request.body) } else { session(user) };
        }
        if user != Some(ADMIN) {
            return error(401, "unauthorized", "You are not a server admin.");
        }
        let databases = self.databases.lock();
        match path {
            "/_global_changes/_changes" => feed(FeedKind::GlobalChanges, query, &databases),
            "/_db_updates" => feed(FeedKind::DbUpdates, query, &databases),
            "/_global_changes/_all_docs" => revisions(request.body, &databases),
            // Counts start again with the process, so this has to differ.
            "/_global_changes" => {
                ok(format!(r#"{{"db_name":"_global_changes","instance_start_time":"{}"}}"#, self.started))
            }
            "/_membership" => ok(format!(r#"{{"all_nodes":["{NODE}"],"cluster_nodes":["{NODE}"]}}"#)),
            "/_node/_local" => ok(format!(r#"{{"name":"{NODE}"}}"#)),
            "/_node/_local/_system" => ok(format!(r#"{{"uptime":{}}}"#, now.saturating_sub(self.started))),
            _ => match path.strip_suffix("/_security").and_then(|path| url::percent_decode(path.get(1..)?, false)) {
                Some(name) if databases.contains(&name) => {
                    ok(format!(r#"{{"members":{{"names":["{USER}"],"roles":[]}}}}"#))
                }
                Some(_) => error(404, "not_found", "Database does not exist."),
                // This includes values of the configuration: all of them have their defaults.
                None => error(404, "not_found", "missing"),
            },
        }
    }

    /// Returns the name of the user who sent a request; None without valid credentials.
    fn identify(&self, request: &Request<'_>) -> Option<&'static str> {
        let basic = data_encoding::BASE64.encode(format!("{ADMIN}:{}", self.secret).as_bytes());
        if request.cookie.strip_prefix("AuthSession=") == Some(&*self.secret) {
            Some(USER)
        } else if request.authorization.strip_prefix("Basic ") == Some(&*basic) {
            Some(ADMIN)
        } else {
            None
        }
    }

    fn log_in(&self, body: &[u8]) -> Reply {
        match json::parse_object::<Login<'_>>(body) {
            Some(login) if (&*login.name, &*login.password) == (USER, PASSWORD) => {
                let cookie = format!("AuthSession={}; Version=1; Path=/; HttpOnly", self.secret);
                Reply::Json(200, Some(cookie), format!(r#"{{"ok":true,"name":"{USER}","roles":[]}}"#))
            }
            _ => error(401, "unauthorized", "Name or password is incorrect."),
        }
    }
}

#[derive(Deserialize)]
struct Login<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    password: Cow<'a, str>,
}

/// Replies to the question who the sender of a request is.
fn session(user: Option<&str>) -> Reply {
    let name = user.map_or_else(|| "null".to_owned(), |name| format!("\"{name}\""));
    let roles = if user == Some(ADMIN) { "\"_admin\"" } else { "" };
    ok(format!(r#"{{"ok":true,"userCtx":{{"name":{name},"roles":[{roles}]}}}}"#))
}

fn feed(kind: FeedKind, query: &str, databases: &Databases) -> Reply {
    let parameter = |name| url::query_pairs(query).find(|(key, _)| key == name).map(|(_, value)| value);
    let since = match parameter("since").as_deref() {
        Some("now") => databases.last_seq(),
        since => since.and_then(|seq| seq.split_once('-')?.0.parse().ok()).unwrap_or(0),
    };
    if parameter("feed").as_deref() != Some("continuous") {
        return ok(format!(r#"{{"results":[],"last_seq":"{since}-{OPAQUE}","pending":0}}"#));
    }
    let heartbeat = parameter("heartbeat").and_then(|milliseconds| milliseconds.parse().ok());
    Reply::Feed(Feed { kind, since, heartbeat: heartbeat.map_or(DEFAULT_HEARTBEAT, Duration::from_millis) })
}

impl Feed {
    /// Returns the lines of all events that the reader does not have yet; empty if there are none.
    pub(super) fn next_lines(&mut self, databases: &Databases) -> String {
        let mut lines = String::new();
        for (id, Event { count, seq }) in databases.events_since(self.since) {
            let _ = match (self.kind, id.split_once(':')) {
                (FeedKind::DbUpdates, Some((kind, name))) => {
                    writeln!(lines, r#"{{"db_name":"{name}","type":"{kind}","seq":"{seq}-{OPAQUE}"}}"#)
                }
                _ => writeln!(
                    lines,
                    r#"{{"seq":"{seq}-{OPAQUE}","id":"{id}","changes":[{{"rev":"{count}-{OPAQUE}"}}]}}"#
                ),
            };
        }
        self.since = databases.last_seq();
        lines
    }
}

#[derive(Deserialize)]
struct Keys<'a> {
    #[serde(borrow)]
    keys: Vec<Cow<'a, str>>,
}

/// Replies with the revisions of event documents.
fn revisions(body: &[u8], databases: &Databases) -> Reply {
    let Some(Keys { keys }) = json::parse_object(body) else {
        return error(400, "bad_request", "`keys` body member must be an array.");
    };
    let mut rows = String::new();
    for id in keys {
        let separator = if rows.is_empty() { "" } else { "," };
        let mut key = Vec::new();
        json::write_string(&mut key, &id);
        let key = String::from_utf8_lossy(&key);
        let _ = match databases.event(&id) {
            Some(Event { count, .. }) => {
                write!(rows, r#"{separator}{{"id":{key},"key":{key},"value":{{"rev":"{count}-{OPAQUE}"}}}}"#)
            }
            None => write!(rows, r#"{separator}{{"key":{key},"error":"not_found"}}"#),
        };
    }
    ok(format!(r#"{{"rows":[{rows}]}}"#))
}

fn ok(body: String) -> Reply {
    Reply::Json(200, None, body)
}

fn error(status: u16, error: &str, reason: &str) -> Reply {
    Reply::Json(status, None, format!(r#"{{"error":"{error}","reason":"{reason}"}}"#))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::wire::couchdb::{Credentials, FeedSource, Requests, lookup, parse_last_seq, read_epoch, read_login};
    use crate::wire::nodes;
    use crate::wire::secret::Secret;
    use crate::wire::url::CouchUrl;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn couchdb() -> CouchDb {
        CouchDb::new(&["music/jazz", "a+b"], 1, 100)
    }

    /// Requests of this server's own admin.
    fn requests(couchdb: &CouchDb) -> Requests {
        Requests::new(&CouchUrl::parse(&couchdb.url((Ipv4Addr::LOCALHOST, 80).into())).unwrap())
    }

    /// Passes a request as it is written for the wire.
    fn ask(couchdb: &CouchDb, request: &[u8]) -> Reply {
        let text = std::str::from_utf8(request).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        couchdb.reply(&Request::parse(head, body.as_bytes()), 107)
    }

    fn json_of(reply: Reply) -> (u16, Option<Secret>, String) {
        match reply {
            Reply::Json(status, cookie, body) => (status, cookie.map(Secret::new), body),
            Reply::Feed(feed) => panic!("{feed:?}"),
        }
    }

    #[test]
    fn the_user_logs_in_with_password_and_cookie() {
        let couchdb = couchdb();
        let log_in = |credentials: &Credentials| {
            let request = requests(&couchdb).log_in(credentials, CLIENT).unwrap();
            let (status, cookie, body) = json_of(ask(&couchdb, &request));
            read_login(credentials, status, cookie, body.as_bytes())
        };
        let password = |password| Credentials::password(USER.into(), password);
        let identity = log_in(&password(PASSWORD.into())).unwrap();
        assert_eq!(&*identity.name, USER);
        let cookie = identity.cookie.unwrap();
        assert_eq!(&*log_in(&Credentials::cookie(cookie.reveal())).unwrap().name, USER);
        for wrong in
            [password("x".into()), password("".into()), Credentials::cookie("AuthSession=1"), Credentials::token("t")]
        {
            assert_eq!(log_in(&wrong).err(), Some(wrong.error()));
        }
    }

    #[test]
    fn a_feed_starts_after_the_position_of_its_reader() {
        let couchdb = couchdb();
        let source = FeedSource::GlobalChanges;
        let (status, _, pin) = json_of(ask(&couchdb, &requests(&couchdb).pin(source)));
        let pin = parse_last_seq(pin.as_bytes()).unwrap();
        assert_eq!((status, &*pin), (200, &*format!("2-{OPAQUE}")));
        couchdb.databases.change(|databases| databases.update("music/jazz"));
        let Reply::Feed(mut feed) = ask(&couchdb, &requests(&couchdb).stream(source, &pin, 500)) else { panic!() };
        assert_eq!(feed.heartbeat, Duration::from_millis(500));
        let line = format!(
            "{{\"seq\":\"3-{OPAQUE}\",\"id\":\"updated:music/jazz\",\"changes\":[{{\"rev\":\"1-{OPAQUE}\"}}]}}\n"
        );
        assert_eq!(feed.next_lines(&couchdb.databases.lock()), line);
        assert_eq!(feed.next_lines(&couchdb.databases.lock()), "");
        let Reply::Feed(mut feed) = ask(&couchdb, &requests(&couchdb).stream(FeedSource::DbUpdates, &pin, 500)) else {
            panic!()
        };
        let line = format!("{{\"db_name\":\"music/jazz\",\"type\":\"updated\",\"seq\":\"3-{OPAQUE}\"}}\n");
        assert_eq!(feed.next_lines(&couchdb.databases.lock()), line);
    }

    #[test]
    fn revisions_are_those_of_the_feed() {
        let couchdb = couchdb();
        couchdb.databases.change(|databases| databases.update("a+b"));
        couchdb.databases.change(|databases| databases.update("a+b"));
        let names = ["a+b", "no\"ne"];
        let (_, _, body) = json_of(ask(&couchdb, &requests(&couchdb).look_up(names.into_iter())));
        let rows = lookup::read_rows(body.as_bytes(), names.into_iter()).unwrap();
        let numbers = rows.iter().map(|row| row.map(|revision| revision.number));
        assert!(numbers.eq([[2, 1, 0], [0; 3]]), "{rows:?}");
    }

    #[test]
    fn the_admin_reads_members_and_the_node() {
        let couchdb = couchdb();
        let requests = requests(&couchdb);
        let ask = |request: Vec<u8>| json_of(ask(&couchdb, &request));
        for name in ["music/jazz", "a+b"] {
            let (status, _, body) = ask(requests.security(name));
            assert_eq!((status, &*body), (200, r#"{"members":{"names":["demo"],"roles":[]}}"#), "{name}");
        }
        for request in [requests.security("none"), requests.config("global_changes", "update_db")] {
            assert_eq!(ask(request).0, 404);
        }
        let (_, _, body) = ask(requests.epoch());
        assert_eq!(read_epoch(body.as_bytes()), Some(Some("100".into())));
        assert_eq!(nodes::read_membership(ask(requests.membership()).2.as_bytes()), Some(vec![NODE.into()]));
        assert_eq!(nodes::read_node_name(ask(requests.node_name()).2.as_bytes()), Some(NODE.into()));
        assert_eq!(nodes::read_uptime(ask(requests.system(None)).2.as_bytes()), Some(7));
    }

    #[test]
    fn others_read_nothing() {
        for (target, authorization) in
            [("/_db_updates", ""), ("/music%2Fjazz/_security", "Basic eA=="), ("", ""), ("/", "")]
        {
            let request = Request { method: "GET", target, authorization, ..Request::default() };
            assert_eq!(json_of(couchdb().reply(&request, 107)).0, 401, "{target}");
        }
    }
}
