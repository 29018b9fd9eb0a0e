//! Routes: the targets of requests, the access to them, and the responses.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::accounts::Identity;
use super::faults::SinceRefusal;
use super::feed::{FeedKind, FeedRequest};
use super::global_changes::{GlobalChanges, revision};
use super::http::{self, Request, Response, json_string, unquote};
use super::rejections;
use super::sessions;
use super::state::{Database, Shared, State};

/// The result of a request.
#[derive(Debug)]
pub(super) enum Answer {
    Response(Response),
    Feed(Box<FeedRequest>),
    /// The connection ends without a response.
    Close,
}

/// Answers a request after the delay that a test asked for. That of logins was read when the
/// request arrived.
pub(super) fn answer(shared: &Shared, request: &Request, login_delay: Duration) -> Answer {
    let path = request.path();
    let Some(path) = path.strip_prefix(shared.path_prefix.as_str()).and_then(|path| path.strip_prefix('/')) else {
        return Answer::Response(rejections::missing());
    };
    let segments: Vec<String> = path.split('/').map(unquote).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if segments == ["_session"] && shared.lock().faults.forbid_logins {
        return Answer::Response(Response {
            headers: vec![("Content-Type", "text/html".to_owned())],
            ..Response::json(403, "<html><body>Forbidden</body></html>")
        });
    }
    if let Some(status) = fault(shared, request, &segments, login_delay) {
        return Answer::Response(rejections::fault(status));
    }
    if let Some(response) = other_security(shared, request, &segments) {
        return Answer::Response(response);
    }
    let now = shared.clock.now();
    let mut answer = shared.change(|state| {
        if request.wants_page() && feed_kind(&segments).is_some() {
            return Answer::Response(rejections::redirect_to_login());
        }
        let identity = match state.accounts.authenticate(request, now) {
            Ok(identity) => identity,
            Err(refusal) => return Answer::Response(rejections::reject(refusal)),
        };
        let logs_in = request.method == "POST" && segments == ["_session"];
        if state.require_valid_user && identity.name.is_none() && !logs_in && segments != ["_up"] {
            return Answer::Response(rejections::unauthorized("Authentication required."));
        }
        let mut answer = route(state, request, &segments, &identity, now);
        if let Some(cookie) = identity.renewed {
            renew(&mut answer, cookie);
        }
        answer
    });
    if let Answer::Response(response) = &mut answer
        && response.status == 401
        && request.wants_page()
    {
        *response = rejections::redirect_to_login();
    }
    answer
}

/// Waits for the delay of this kind of request, and returns the status that it is to fail with.
fn fault(shared: &Shared, request: &Request, segments: &[&str], login_delay: Duration) -> Option<u16> {
    let is_access = matches!((request.method.as_str(), segments), ("GET" | "HEAD", [_] | [_, "_security"]))
        && !matches!(segments[0], "" | "_membership");
    let is_session = segments == ["_session"];
    let is_lookup = segments == ["_global_changes", "_all_docs"];
    let delay = {
        let mut state = shared.lock();
        if is_session {
            login_delay
        } else if is_lookup {
            state.counters.lookup_requests += 1;
            state.faults.lookup_delay
        } else if is_access {
            state.counters.access_requests += 1;
            state.faults.access_delay
        } else {
            Duration::ZERO
        }
    };
    shared.pause(request.connection, delay);
    if is_access {
        shared.observe(|_| ());
        shared.wait_while(request.connection, |state| state.faults.access_held);
    }
    let mut state = shared.lock();
    if is_session {
        state.faults.login_status
    } else if is_lookup {
        state.faults.lookup_status
    } else if feed_kind(segments).is_some() {
        if request.query("feed").as_deref() == Some("continuous") {
            state.counters.feed_requests += 1;
        } else {
            state.counters.pin_requests += 1;
        }
        state.faults.take_feed_refusal()
    } else if matches!(segments, ["_node", _, "_config", ..]) {
        state.faults.config_status
    } else if is_access {
        state.faults.access_status
    } else {
        None
    }
}

/// Returns the response that a test set in place of a database's `_security`.
fn other_security(shared: &Shared, request: &Request, segments: &[&str]) -> Option<Response> {
    let ("GET", [name, "_security"]) = (request.method.as_str(), segments) else { return None };
    let state = shared.lock();
    let (status, body) = state.faults.security_answers.get(*name)?;
    let response = Response::json(*status, body);
    let redirects = (300..400).contains(status);
    Some(if redirects { response.with("Location", "/_utils/".to_owned()) } else { response })
}

fn feed_kind(segments: &[&str]) -> Option<FeedKind> {
    match segments {
        ["_global_changes", "_changes"] => Some(FeedKind::Changes),
        ["_db_updates"] => Some(FeedKind::DbUpdates),
        _ => None,
    }
}

/// Adds a new cookie, unless the response sets one already.
fn renew(answer: &mut Answer, cookie: String) {
    let headers = match answer {
        Answer::Response(response) => &mut response.headers,
        Answer::Feed(feed) => &mut feed.headers,
        Answer::Close => return,
    };
    if !headers.iter().any(|(name, _)| *name == "Set-Cookie") {
        headers.push(("Set-Cookie", cookie));
    }
}

fn route(state: &mut State, request: &Request, segments: &[&str], identity: &Identity, now: Duration) -> Answer {
    if let Some(kind) = feed_kind(segments) {
        return feed(state, request, kind, identity);
    }
    let method = request.method.as_str();
    let response = match (method, segments) {
        ("GET" | "HEAD", [""]) => welcome(),
        ("GET" | "HEAD", ["_up"]) => Response::json(200, r#"{"status":"ok","seeds":{}}"#),
        ("POST", ["_session"]) => sessions::log_in(state, request, now),
        ("GET" | "HEAD", ["_session"]) => sessions::show(identity),
        ("DELETE", ["_session"]) => sessions::log_out(),
        (_, ["_session"]) => rejections::not_allowed("GET,HEAD,POST,DELETE"),
        (_, ["_all_dbs" | "_dbs_info" | "_membership"] | ["_global_changes" | "_dbs" | "_node", ..])
            if !identity.is_admin() =>
        {
            rejections::not_admin()
        }
        (_, ["_node", _, "_config", section, key]) => config(state, request, section, key),
        ("GET", ["_membership"] | ["_node", ..]) => nodes(state, &segments[1..], now),
        ("GET", ["_all_dbs"]) => all_databases(state),
        ("POST", ["_dbs_info"]) => Response::json(200, "[]"),
        (_, ["_global_changes", rest @ ..]) => global_changes(state, request, rest),
        (_, [name]) => database(state, method, name, identity),
        (_, [name, "_security"]) => security(state, request, name, identity),
        ("POST", [name, "_bulk_docs"]) | ("PUT" | "DELETE", [name, _]) => {
            write(state, method, name, segments.get(1).copied(), identity)
        }
        ("PUT" | "DELETE", [name, "_local", _]) => write(state, method, name, Some("_local/"), identity),
        ("PUT" | "DELETE", [name, "_design", view]) => write(state, method, name, Some(view), identity),
        (_, [name, ..]) => match readable(state, name, identity) {
            Ok(_) => rejections::missing(),
            Err(response) => response,
        },
        (_, []) => rejections::missing(),
    };
    Answer::Response(response)
}

fn feed(state: &mut State, request: &Request, kind: FeedKind, identity: &Identity) -> Answer {
    let parsed = if !identity.is_admin() {
        Err(rejections::not_admin())
    } else if !matches!(request.method.as_str(), "GET" | "HEAD" | "POST") {
        Err(rejections::not_allowed("GET,HEAD,POST"))
    } else {
        match &state.global {
            Some(global) => FeedRequest::parse(request, kind, global),
            None => Err(rejections::no_database()),
        }
    };
    if parsed.as_ref().is_ok_and(|feed| feed.continuous)
        && let Some(refusal) = state.faults.since_refusal
        && request.query("since").is_none_or(|since| !state.faults.pinned.contains(&since))
    {
        return match refusal {
            SinceRefusal::Status(status @ 300..=399) => {
                let elsewhere = "http://127.0.0.1:9/elsewhere".to_owned();
                Answer::Response(Response::json(status, "").with("Location", elsewhere))
            }
            SinceRefusal::Status(status) => Answer::Response(rejections::fault(status)),
            SinceRefusal::Close => Answer::Close,
        };
    }
    match (parsed, &state.global) {
        (Ok(mut feed), Some(global)) if !feed.continuous => {
            if state.faults.since_refusal.is_some() {
                state.faults.pinned.push(global.last_seq());
            }
            Answer::Response(feed.answer_at_once(global))
        }
        (Ok(feed), _) => {
            state.open_feed(request.connection);
            Answer::Feed(Box::new(feed))
        }
        (Err(response), _) => Answer::Response(response),
    }
}

/// Replies to `_membership`, and to requests about a node.
fn nodes(state: &mut State, path: &[&str], now: Duration) -> Response {
    if let Some(status) = state.nodes.refusal {
        return rejections::fault(status);
    }
    match path {
        [] => {
            let names = |up: bool| -> Vec<&str> {
                let nodes = state.nodes.all.iter().filter(|node| node.is_up || !up);
                nodes.map(|node| node.name.as_str()).collect()
            };
            let membership = serde_json::json!({"all_nodes": names(true), "cluster_nodes": names(false)});
            Response::json(200, &membership.to_string())
        }
        [name, rest @ ..] => {
            let clock_error = state.nodes.clock_error;
            let now = state.nodes.calendar(now);
            let Some(node) = state.nodes.find(name) else {
                return Response::error(404, "not_found", &format!("no such node: {name}"));
            };
            match rest {
                [] => Response::json(200, &serde_json::json!({"name": node.name}).to_string()),
                ["_system"] => {
                    let uptime = now.saturating_sub(node.started).as_secs();
                    let shown = now.as_secs().saturating_add_signed(clock_error);
                    let date = http::http_date(Duration::from_secs(shown));
                    let system = format!(r#"{{"uptime":{uptime},"memory":{{"other":26200472}},"run_queue":0}}"#);
                    Response::json(200, &system).with("Date", date)
                }
                _ => rejections::missing(),
            }
        }
    }
}

/// Serves `_global_changes` as an ordinary database, for admins.
fn global_changes(state: &mut State, request: &Request, rest: &[&str]) -> Response {
    match (request.method.as_str(), rest) {
        ("PUT", []) if state.create_global_changes() => Response::json(201, r#"{"ok":true}"#),
        ("PUT", []) => rejections::database_exists(),
        ("DELETE", []) if state.delete_database("_global_changes") => Response::json(200, r#"{"ok":true}"#),
        (method, rest) => match &mut state.global {
            None => rejections::no_database(),
            Some(global) => match (method, rest) {
                ("GET" | "HEAD", []) => global_info(global),
                ("GET" | "HEAD", ["_security"]) => Response::json(200, "{}"),
                ("GET" | "HEAD", ["_all_docs"]) => {
                    let keys: Vec<Value> = global.ids().into_iter().map(Value::from).collect();
                    all_docs(global, &keys)
                }
                ("POST", ["_all_docs"]) => match keys_of(&request.body) {
                    Some(keys) => all_docs(global, &keys),
                    None => Response::error(400, "bad_request", "`keys` body member must be an array."),
                },
                ("PUT", [id]) => write_event_document(global, id),
                ("PUT", ["_design", view]) => write_event_document(global, &format!("_design/{view}")),
                _ => rejections::missing(),
            },
        },
    }
}

fn write_event_document(global: &mut GlobalChanges, id: &str) -> Response {
    global.record([id]);
    let rev = revision(global.revision(id).unwrap_or(1));
    let id = json_string(id);
    Response::json(201, &format!(r#"{{"ok":true,"id":{id},"rev":"{rev}"}}"#))
}

fn global_info(global: &GlobalChanges) -> Response {
    Response::json(
        200,
        &format!(
            r#"{{"instance_start_time":"{}","db_name":"_global_changes","purge_seq":"0-0","update_seq":"{}","sizes":{{"file":0,"external":0,"active":0}},"props":{{}},"doc_del_count":0,"doc_count":{},"disk_format_version":8,"compact_running":false,"cluster":{{"q":2,"n":1,"w":1,"r":1}}}}"#,
            global.incarnation,
            global.last_seq(),
            global.ids().len(),
        ),
    )
}

fn keys_of(body: &[u8]) -> Option<Vec<Value>> {
    match serde_json::from_slice::<Value>(body).ok()?.get_mut("keys") {
        Some(Value::Array(keys)) => Some(std::mem::take(keys)),
        _ => None,
    }
}

fn all_docs(global: &GlobalChanges, keys: &[Value]) -> Response {
    let total = global.ids().len();
    let mut body = format!("{{\"total_rows\":{total},\"offset\":null,\"rows\":[\r\n");
    for (place, key) in keys.iter().enumerate() {
        if place > 0 {
            body.push_str(",\r\n");
        }
        let found = key.as_str().and_then(|id| global.revision(id));
        let _ = match found {
            Some(count) => write!(body, r#"{{"id":{key},"key":{key},"value":{{"rev":"{}"}}}}"#, revision(count)),
            None => write!(body, r#"{{"key":{key},"error":"not_found"}}"#),
        };
    }
    body.push_str("\r\n]}");
    Response { chunked: true, ..Response::json(200, &body) }
}

/// Serves a value of the configuration. A write returns the value before it. Defaults count as
/// missing.
fn config(state: &mut State, request: &Request, section: &str, key: &str) -> Response {
    let old = state.config_value(section, key).map(json_string);
    let place = (section.to_owned(), key.to_owned());
    match request.method.as_str() {
        "GET" | "HEAD" => old
            .map_or_else(|| Response::error(404, "not_found", "unknown_config_value"), |old| Response::json(200, &old)),
        "PUT" => match serde_json::from_slice::<String>(&request.body) {
            Ok(value) => {
                state.config.insert(place, value);
                Response::json(200, &old.unwrap_or_else(|| "\"\"".to_owned()))
            }
            Err(_) => Response::error(400, "bad_request", "invalid UTF-8 JSON"),
        },
        "DELETE" => match state.config.remove(&place) {
            Some(old) => Response::json(200, &json_string(&old)),
            None => Response::error(404, "not_found", "unknown_config_value"),
        },
        _ => rejections::not_allowed("DELETE,GET,HEAD,PUT"),
    }
}

fn all_databases(state: &State) -> Response {
    let mut names: Vec<&str> = state.databases.keys().map(String::as_str).collect();
    if state.global.is_some() {
        names.push("_global_changes");
    }
    names.sort_unstable();
    Response::json(200, &Value::from(names).to_string())
}

fn database(state: &mut State, method: &str, name: &str, identity: &Identity) -> Response {
    match method {
        "GET" | "HEAD" => match readable(state, name, identity) {
            Ok(database) => Response::json(
                200,
                &format!(
                    r#"{{"instance_start_time":"0","db_name":{},"update_seq":"{}","doc_count":{}}}"#,
                    json_string(name),
                    database.writes,
                    database.writes
                ),
            ),
            Err(response) => response,
        },
        "PUT" | "DELETE" if !identity.is_admin() => rejections::not_admin(),
        "PUT" if !is_legal_name(name) => Response::error(
            400,
            "illegal_database_name",
            "Only lowercase characters (a-z), digits (0-9), and any of the characters _, $, (, ), +, -, and / are allowed. Must begin with a letter.",
        ),
        "PUT" if state.create_database(name) => Response::json(201, r#"{"ok":true}"#),
        "PUT" => rejections::database_exists(),
        "DELETE" if state.delete_database(name) => Response::json(200, r#"{"ok":true}"#),
        "DELETE" => rejections::no_database(),
        "POST" => write(state, method, name, None, identity),
        _ => rejections::not_allowed("DELETE,GET,HEAD,POST,PUT"),
    }
}

fn is_legal_name(name: &str) -> bool {
    matches!(name, "_users" | "_replicator")
        || name.starts_with(|first: char| first.is_ascii_lowercase())
            && name
                .chars()
                .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "_$()+-/".contains(letter))
}

fn security(state: &mut State, request: &Request, name: &str, identity: &Identity) -> Response {
    let database = match readable(state, name, identity) {
        Ok(database) => database,
        Err(response) => return response,
    };
    match request.method.as_str() {
        "GET" | "HEAD" => Response::json(200, &database.security.to_string()),
        "PUT" if !identity.is_admin() => rejections::unauthorized("You are not a db or server admin."),
        "PUT" => match serde_json::from_slice::<Value>(&request.body) {
            Ok(security) if security.is_object() => {
                database.security = security;
                Response::json(200, r#"{"ok":true}"#)
            }
            _ => Response::error(400, "bad_request", "invalid UTF-8 JSON"),
        },
        _ => rejections::not_allowed("GET,HEAD,PUT"),
    }
}

/// Counts a write of a document and stores nothing. A `_local` document fires no event.
fn write(state: &mut State, method: &str, name: &str, id: Option<&str>, identity: &Identity) -> Response {
    let writes = match readable(state, name, identity) {
        Ok(database) => {
            database.writes += 1;
            database.writes
        }
        Err(response) => return response,
    };
    if !id.is_some_and(|id| id.starts_with("_local")) {
        state.fire([format!("updated:{name}")]);
    }
    let status = if method == "DELETE" { 200 } else { 201 };
    if id == Some("_bulk_docs") {
        return Response::json(status, "[]");
    }
    let id = id.map_or_else(|| format!("{writes:032x}"), str::to_owned);
    Response::json(
        status,
        &format!(
            r#"{{"ok":true,"id":{},"rev":"{}"}}"#,
            json_string(&id),
            revision(u32::try_from(writes).unwrap_or(u32::MAX))
        ),
    )
}

/// Returns the database if it exists and the user may read it.
fn readable<'a>(state: &'a mut State, name: &str, identity: &Identity) -> Result<&'a mut Database, Response> {
    let database = state.databases.get_mut(name).ok_or_else(rejections::no_database)?;
    if is_member(&database.security, identity) {
        Ok(database)
    } else if identity.name.is_none() {
        Err(rejections::unauthorized("You are not authorized to access this db."))
    } else {
        let reason = "You are not allowed to access this db.";
        Err(Response::error(403, "forbidden", reason))
    }
}

fn is_member(security: &Value, identity: &Identity) -> bool {
    let list = |group: &str, kind: &str| -> Vec<&str> {
        let names = security.get(group).and_then(|group| group.get(kind));
        let names = names.and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let listed = |group: &str| {
        let roles = list(group, "roles");
        identity.name.as_deref().is_some_and(|name| list(group, "names").contains(&name))
            || identity.roles.iter().any(|role| roles.contains(&role.as_str()))
    };
    let members = if security.get("members").is_some() { "members" } else { "readers" };
    let open = list(members, "names").is_empty() && list(members, "roles").is_empty();
    identity.is_admin() || open || listed(members) || listed("admins")
}

fn welcome() -> Response {
    Response::json(
        200,
        r#"{"couchdb":"Welcome","version":"3.5.0","git_sha":"11f0d3643","uuid":"00000000000000000000000000000000","features":["access-ready","partitioned","pluggable-storage-engines","reshard","scheduler"],"vendor":{"name":"couchdb-howler, a stand-in"}}"#,
    )
}
