//! CouchDB's responses about logins, about itself, and about access to a database. An input is the
//! body of a response.
//!
//! Asserted:
//! - each response is read as a naive reader of its tree of values does, or is rejected;
//! - only a response with status 200 that names a user logs anyone in, and a password only with a
//!   cookie;
//! - a version for display contains only characters of version numbers;
//! - a database may be read by those on its lists, and an unreadable list admits no one.

#![no_main]

use couchdb_howler::wire::couchdb::{
    Credentials, Identity, LoginError, Welcome, read_login, read_own_roles, read_welcome,
};
use couchdb_howler::wire::secret::Secret;
use couchdb_howler::wire::security::{Security, is_server_admin, is_system};
use couchdb_howler_fuzz::confuses_trees;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

type Roles = Box<[Box<str>]>;
/// A user's name, if there is one, and roles.
type User = (Option<Box<str>>, Roles);

fuzz_target!(|data: &[u8]| {
    check_statuses(data);
    if confuses_trees(data) {
        return;
    }
    check_lockout(data);
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        // A tree of values limits depth and numbers also in fields that the reader skips. A
        // truncated body is no response.
        let nothing = read_own_roles(data).is_none() && Security::parse(data).is_none();
        return assert!(data.trim_ascii_end().ends_with(b"}") || nothing && read_welcome(data) == Welcome::Other);
    };
    let rewritten = value.to_string();
    check_login(data, &rewritten, &value);
    check_welcome(data, &rewritten, &value);
    check_security(data, &rewritten, &value);
});

fn check_statuses(body: &[u8]) {
    for (status, error) in [
        (400, LoginError::NotAuthenticated),
        (401, LoginError::NotAuthenticated),
        (404, LoginError::Unavailable),
        (500, LoginError::Unavailable),
    ] {
        let cookie = Some(Secret::new("AuthSession=abc"));
        assert_eq!(read_login(&Credentials::cookie("AuthSession=x"), status, cookie, body), Err(error));
        let error = if error.is_refusal() { LoginError::BadToken } else { error };
        assert_eq!(read_login(&Credentials::token("a.b.c"), status, None, body), Err(error));
    }
}

/// Only a body that says so locks an account; other responses with this status are not from
/// CouchDB.
fn check_lockout(body: &[u8]) {
    let read = read_login(&Credentials::cookie("AuthSession=x"), 403, None, body);
    assert!(matches!(read, Err(LoginError::Locked | LoginError::Unavailable)), "{read:?}");
    // A tree keeps the last of two fields with one name; the reader rejects the response.
    if let (Err(LoginError::Locked), Ok(value)) = (&read, serde_json::from_slice::<Value>(body)) {
        let reason = value["reason"].as_str().unwrap_or_default();
        assert!(value["error"] == "forbidden" && reason.starts_with("Account is temporarily locked"), "{value}");
    }
}

fn check_login(data: &[u8], rewritten: &str, value: &Value) {
    let naive = session(value);
    for credentials in [
        Credentials::Password { username: "typed".into(), password: Secret::new("p") },
        Credentials::cookie("AuthSession=given"),
        Credentials::token("a.b.c"),
        Credentials::Unusable,
    ] {
        for set in [None, Some("AuthSession=; Version=1"), Some("AuthSession=set; Version=1")] {
            let read = |body: &[u8]| read_login(&credentials, 200, set.map(Secret::new), body);
            let expected = log_in(&credentials, set, naive.clone());
            assert_eq!(read(rewritten.as_bytes()), expected, "{rewritten}");
            // The reader rejects a duplicate key, which the rewritten body no longer has.
            let read = read(data);
            assert!(read == expected || read.is_err(), "{read:?}");
        }
    }
    let user = naive.and_then(|(_, user)| user).and_then(|(name, roles)| named(name).map(|_| roles));
    assert_eq!(read_own_roles(rewritten.as_bytes()), user, "{rewritten}");
    let read = read_own_roles(data);
    assert!(read.is_none() || read == user, "{read:?}");
}

/// Returns the login that the body grants, or its error.
fn log_in(
    credentials: &Credentials,
    set: Option<&str>,
    body: Option<(User, Option<User>)>,
) -> Result<Identity, LoginError> {
    let ((name, roles), user) = body.ok_or(LoginError::Unavailable)?;
    let set = set.map(Secret::new);
    let with_password = matches!(credentials, Credentials::Password { .. });
    if with_password {
        let cookie = set.filter(|set| set.reveal().contains("=set")).ok_or(LoginError::Unavailable)?;
        return Ok(Identity { name: named(name).unwrap_or("typed".into()), roles, cookie: Some(cookie) });
    }
    let refused = match credentials {
        Credentials::Token(_) => LoginError::BadToken,
        _ => LoginError::NotAuthenticated,
    };
    let (name, roles) = user.filter(|_| *credentials != Credentials::Unusable).ok_or(refused)?;
    let name = named(name).ok_or(refused)?;
    let by_cookie = matches!(credentials, Credentials::Cookie(_));
    let cookie = by_cookie.then(|| set.unwrap_or(Secret::new("AuthSession=given")));
    Ok(Identity { name, roles, cookie })
}

fn named(name: Option<Box<str>>) -> Option<Box<str>> {
    name.filter(|name| !name.is_empty())
}

/// Returns the user of the body itself and the one of its `userCtx`; None if one of them has
/// another shape.
fn session(value: &Value) -> Option<(User, Option<User>)> {
    let body = value.as_object()?;
    let user = match body.get("userCtx") {
        None | Some(Value::Null) => None,
        // An array of the values of all fields stands for an object.
        Some(Value::Array(values)) if (1..=2).contains(&values.len()) => {
            Some((text(values.first())?, list(values.get(1))?))
        }
        Some(Value::Object(user)) => Some((text(user.get("name"))?, list(user.get("roles"))?)),
        Some(_) => return None,
    };
    Some(((text(body.get("name"))?, list(body.get("roles"))?), user))
}

fn text(value: Option<&Value>) -> Option<Option<Box<str>>> {
    match value {
        None | Some(Value::Null) => Some(None),
        Some(value) => value.as_str().map(|text| Some(text.into())),
    }
}

fn list(value: Option<&Value>) -> Option<Roles> {
    let Some(value) = value else { return Some([].into()) };
    value.as_array()?.iter().map(|text| text.as_str().map(Into::into)).collect()
}

fn check_welcome(data: &[u8], rewritten: &str, value: &Value) {
    let field = |name| text(value.as_object()?.get(name));
    let expected = match (field("couchdb"), field("version"), field("error")) {
        (Some(Some(_)), Some(version), Some(_)) => {
            let version = version.unwrap_or_default();
            let shown: String = version.chars().filter(|c| c.is_ascii_alphanumeric() || ".-+_".contains(*c)).collect();
            Welcome::CouchDb(shown[..shown.len().min(32)].into())
        }
        (Some(None), Some(_), Some(Some(error))) => Welcome::Error(error),
        _ => Welcome::Other,
    };
    assert_eq!(read_welcome(rewritten.as_bytes()), expected, "{rewritten}");
    let read = read_welcome(data);
    assert!(read == Welcome::Other || read == expected, "{read:?}");
}

/// The names and the roles of a group, and whether all of it was readable.
struct Group {
    names: Vec<Box<str>>,
    roles: Vec<Box<str>>,
    is_whole: bool,
}

impl Group {
    fn is_empty(&self) -> bool {
        self.is_whole && self.names.is_empty() && self.roles.is_empty()
    }
}

fn group(value: Option<&Value>) -> Group {
    let readable = |value: Option<&Value>| {
        let read = list(value).filter(|list| !list.iter().any(|name| name.contains('\0')));
        (read.is_some(), read.unwrap_or_default().into_vec())
    };
    match value {
        None => Group { names: Vec::new(), roles: Vec::new(), is_whole: true },
        Some(Value::Object(group)) => {
            let (names, roles) = (readable(group.get("names")), readable(group.get("roles")));
            Group { names: names.1, roles: roles.1, is_whole: names.0 && roles.0 }
        }
        Some(_) => Group { names: Vec::new(), roles: Vec::new(), is_whole: false },
    }
}

/// Returns the users on the list of Cloudant's key who may read.
fn listed(value: &Value) -> Vec<Box<str>> {
    let may_read = |roles: &Value| {
        let roles = list(Some(roles)).unwrap_or_default();
        roles.iter().any(|role| ["_reader", "_admin"].contains(&&**role))
    };
    let listed = value.as_object().into_iter().flatten().filter(|(_, roles)| may_read(roles));
    listed.map(|(name, _)| name.as_str().into()).filter(|name: &Box<str>| !name.contains('\0')).collect()
}

fn check_security(data: &[u8], rewritten: &str, value: &Value) {
    let Some(body) = value.as_object() else { return assert_eq!(Security::parse(data), None) };
    let security = Security::parse(rewritten.as_bytes()).expect("an object");
    let admins = group(body.get("admins"));
    let members = group(body.get("members").or(body.get("readers")));
    let cloudant = body.get("cloudant").filter(|_| !body.contains_key("members"));
    let listed = cloudant.map(listed).unwrap_or_default();
    let everyone = members.is_empty() && cloudant.is_none();
    let names =
        |name: &str| [&admins.names, &members.names, &listed].iter().any(|list| list.iter().any(|n| **n == *name));
    let roles = |role: &str| [&admins.roles, &members.roles].iter().any(|list| list.iter().any(|r| **r == *role));
    let words = [&admins.names, &admins.roles, &members.names, &members.roles, &listed];
    let words: Vec<&Box<str>> = words.into_iter().flat_map(|list| list.iter().take(16)).collect();
    // A duplicate key admits no one by its value, and the rewritten body has it once.
    let as_read = Security::parse(data);
    for word in words.into_iter().chain([&"_admin".into(), &"u".into()]) {
        let role = std::slice::from_ref(word);
        let nobody = "nobody else has this name";
        assert_eq!(security.may_read(word, &[]), everyone || names(word), "{word}");
        let may = everyone || names(nobody) || roles(word) || **word == *"_admin";
        assert_eq!(security.may_read(nobody, role), may, "{word}");
        if let Some(as_read) = as_read.as_ref().filter(|_| !everyone) {
            assert!(!as_read.may_read(word, &[]) || security.may_read(word, &[]) || is_ambiguous(data), "{word}");
        }
        assert_eq!(is_server_admin(role), **word == *"_admin");
        assert_eq!(is_system(word), word.bytes().next() == Some(b'_'));
    }
}

/// Returns whether an object may have duplicate keys, so that the tree of values has only the last
/// one.
fn is_ambiguous(data: &[u8]) -> bool {
    let count = |key: &str| data.windows(key.len()).filter(|part| *part == key.as_bytes()).count();
    data.contains(&b'\\')
        || ["admins", "members", "readers", "cloudant", "names", "roles"].iter().any(|key| count(key) > 1)
}
