//! What CouchDB says and is asked: the lines of its changes feeds, the requests to it, and its
//! answers about sessions.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json;
use super::positions::{self, Revision};
use super::secret::Secret;
use super::url::{CouchUrl, percent_encode};

/// What happened to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was made.
    Created,
    /// A document of it was written.
    Updated,
    /// It was deleted.
    Deleted,
}

impl ChangeKind {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "created" => Some(Self::Created),
            "updated" => Some(Self::Updated),
            "deleted" => Some(Self::Deleted),
            _ => None,
        }
    }

    /// Its name: in the ids of event documents, and in what clients are told.
    pub fn text(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }

    /// The kind to tell when several changes of one database become one notification: that a
    /// database came or went says more than that it was written to, and of two such the later
    /// one counts. CouchDB gives the events of one tick in any order.
    #[must_use]
    pub fn merge(self, later: Self) -> Self {
        if later == Self::Updated { self } else { later }
    }
}

/// A line of a feed.
#[derive(Debug, PartialEq, Eq)]
pub enum FeedLine<'a> {
    /// An empty line: CouchDB is alive.
    Heartbeat,
    /// A database changed.
    Change {
        /// Its name, raw.
        database: Cow<'a, str>,
        /// What happened.
        kind: ChangeKind,
        /// The revision of the event document; None where the line has none, as in `_db_updates`.
        revision: Option<Revision>,
        /// The update sequence to resume from behind this line: opaque. None where the line has none: it
        /// is told all the same, and a resumed feed tells it again.
        seq: Option<Cow<'a, str>>,
    },
    /// A line about no database (a design document, `_dbs`, a tombstone); only its sequence counts.
    Other {
        /// The update sequence, when the line had one.
        seq: Option<Cow<'a, str>>,
    },
    /// The feed's own end.
    LastSeq {
        /// The update sequence to resume from.
        seq: Cow<'a, str>,
    },
}

/// A line of `_global_changes/_changes`, of `_db_updates`, or the last one of either.
#[derive(Deserialize)]
struct RawLine<'a> {
    #[serde(borrow)]
    seq: Option<&'a RawValue>,
    #[serde(borrow)]
    last_seq: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    changes: Option<&'a RawValue>,
    #[serde(default)]
    deleted: bool,
    #[serde(borrow)]
    db_name: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RawChange<'a> {
    #[serde(borrow)]
    rev: Cow<'a, str>,
}

/// Reads one line of either feed, without its line feed; None when it is not the JSON of one.
pub fn parse_feed_line(line: &[u8]) -> Option<FeedLine<'_>> {
    if line.iter().all(u8::is_ascii_whitespace) {
        return Some(FeedLine::Heartbeat);
    }
    parse_usual_line(line).or_else(|| parse_any_line(line))
}

/// The form in which CouchDB writes nearly every line, read in one pass:
/// `{"seq":"…","id":"updated:name","changes":[{"rev":"…"}]}`. None for all else, the broken included.
fn parse_usual_line(line: &[u8]) -> Option<FeedLine<'_>> {
    // Strings hold no control characters (RFC 8259 section 7).
    if least_byte(line)? < b' ' {
        return None;
    }
    let rest = std::str::from_utf8(line).ok()?.strip_prefix("{\"seq\":\"")?;
    let (seq, rest) = plain_string(rest)?;
    let (id, rest) = plain_string(rest.strip_prefix(",\"id\":\"")?)?;
    let (revision, rest) = plain_string(rest.strip_prefix(",\"changes\":[{\"rev\":\"")?)?;
    if rest != "}]}" {
        return None;
    }
    let (revision, seq) = (Revision::parse(revision), Some(Cow::Borrowed(seq)));
    Some(match id.strip_prefix("updated:") {
        Some(name) => change_of(Cow::Borrowed(name), Some(ChangeKind::Updated), revision, seq),
        None => change_of_document(Cow::Borrowed(id), revision, seq),
    })
}

/// The least byte, found many at a time; None for less than so many.
fn least_byte(bytes: &[u8]) -> Option<u8> {
    const MANY: usize = 32;
    let (blocks, _) = bytes.as_chunks::<MANY>();
    let mut least = *bytes.last_chunk::<MANY>()?;
    for block in blocks {
        for (least, byte) in least.iter_mut().zip(block) {
            *least = (*least).min(*byte);
        }
    }
    least.into_iter().min()
}

/// A JSON string without escapes up to its closing quotation mark, and what follows that.
fn plain_string(text: &str) -> Option<(&str, &str)> {
    let end = memchr::memchr2(b'"', b'\\', text.as_bytes())?;
    (text.as_bytes()[end] == b'"').then(|| (&text[..end], &text[end + 1..]))
}

fn parse_any_line(line: &[u8]) -> Option<FeedLine<'_>> {
    let raw: RawLine<'_> = json::parse_object(line)?;
    if let Some(seq) = raw.last_seq {
        return Some(FeedLine::LastSeq { seq: opaque(seq)? });
    }
    let seq = raw.seq.and_then(opaque);
    if raw.deleted {
        return Some(FeedLine::Other { seq });
    }
    match (raw.id, raw.db_name, raw.kind) {
        (Some(id), ..) => Some(change_of_document(id, raw.changes.and_then(winning_revision), seq)),
        (None, Some(name), Some(kind)) => Some(change_of(name, ChangeKind::parse(&kind), None, seq)),
        _ => Some(FeedLine::Other { seq }),
    }
}

/// A sequence is a string here; other versions and hosts send numbers (so does PouchDB Server) and arrays. It goes
/// back as it came. None for a string with half of a surrogate pair.
fn opaque(seq: &RawValue) -> Option<Cow<'_, str>> {
    let text = seq.get();
    if text.starts_with('"') { json::parse_string(text) } else { Some(Cow::Borrowed(text)) }
}

/// The first of the `changes` of a line.
fn winning_revision(changes: &RawValue) -> Option<Revision> {
    let changes: Vec<RawChange<'_>> = serde_json::from_str(changes.get()).ok()?;
    Revision::parse(&changes.first()?.rev)
}

/// The change that an event document's id `kind:name` tells of. The name may hold further colons.
fn change_of_document<'a>(id: Cow<'a, str>, revision: Option<Revision>, seq: Option<Cow<'a, str>>) -> FeedLine<'a> {
    let Some(colon) = id.find(':') else { return FeedLine::Other { seq } };
    let kind = ChangeKind::parse(&id[..colon]);
    let name = match id {
        Cow::Borrowed(id) => Cow::Borrowed(&id[colon + 1..]),
        Cow::Owned(mut id) => Cow::Owned(id.split_off(colon + 1)),
    };
    change_of(name, kind, revision, seq)
}

fn change_of<'a>(
    database: Cow<'a, str>,
    kind: Option<ChangeKind>,
    revision: Option<Revision>,
    seq: Option<Cow<'a, str>>,
) -> FeedLine<'a> {
    match kind {
        // The table of databases itself: written on every create and delete.
        Some(kind) if database != "_dbs" && !database.is_empty() => FeedLine::Change { database, kind, revision, seq },
        _ => FeedLine::Other { seq },
    }
}

/// Reads the `last_seq` of an answer that is no stream.
pub fn parse_last_seq(body: &[u8]) -> Option<String> {
    let raw: RawLine<'_> = json::parse_object(body)?;
    opaque(raw.last_seq?).map(Cow::into_owned)
}

/// The feed to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedSource {
    /// `/_global_changes/_changes`.
    GlobalChanges,
    /// `/_db_updates`.
    DbUpdates,
}

impl FeedSource {
    fn path(self) -> &'static str {
        match self {
            Self::GlobalChanges => "/_global_changes/_changes",
            Self::DbUpdates => "/_db_updates",
        }
    }
}

/// Writes requests to one CouchDB. All ask for JSON (with HTML, CouchDB redirects to a login page).
#[derive(Clone, Debug)]
pub struct Requests {
    prefix: Box<str>,
    host: Box<str>,
    /// The `Authorization` field of the server's own admin.
    admin: Secret,
    /// The name and the password that CouchDB reads out of it.
    own: Option<(Box<str>, Secret)>,
}

impl Requests {
    /// Requests to the CouchDB at a URL, as the admin whom the URL names.
    pub fn new(url: &CouchUrl) -> Self {
        let pair = url.credentials.as_ref().map(|(user, password)| format!("{user}:{}", password.reveal()));
        let admin = pair.as_ref().map_or_else(String::new, |pair| {
            format!("Authorization: Basic {}\r\n", data_encoding::BASE64.encode(pair.as_bytes()))
        });
        // RFC 7617 section 2: the name ends at the first colon.
        let own = pair.as_ref().and_then(|pair| pair.split_once(':'));
        let own = own.map(|(name, password)| (name.into(), Secret::new(password)));
        Self { prefix: url.prefix.clone(), host: url.host_header().into(), admin: Secret::new(admin), own }
    }

    /// Returns whether a password is the one of the server's own admin; None for another name. CouchDB tells names apart
    /// by their bytes.
    pub fn is_own_password(&self, name: &str, password: &str) -> Option<bool> {
        let (_, own) = self.own.as_ref().filter(|(own, _)| **own == *name)?;
        Some(own.matches(password))
    }

    /// Puts these credentials of the server into a request that was written with others and was not
    /// sent yet. Requests with credentials of users stay as they are.
    pub fn renew(&self, old: &Self, request: &mut Vec<u8>) {
        let head = memchr::memmem::find(request, b"\r\n\r\n").map_or(request.len(), |end| end + 2);
        let (old, new) = (old.admin.reveal().as_bytes(), self.admin.reveal().as_bytes());
        // A whole line: no value of a field can hold it.
        if let Some(start) = memchr::memmem::find(&request[..head], old).filter(|_| !old.is_empty()) {
            request.splice(start..start + old.len(), new.iter().copied());
        }
    }

    /// Asks for the sequence that a feed opened now would start from; answered at once.
    pub fn pin(&self, source: FeedSource) -> Vec<u8> {
        self.write("GET", &format!("{}?since=now&limit=1", source.path()), self.admin.reveal(), b"")
    }

    /// Opens a feed that tells every change behind `since` and then stays open, with a heartbeat
    /// every so many milliseconds.
    pub fn stream(&self, source: FeedSource, since: &str, heartbeat_ms: u64) -> Vec<u8> {
        let mut target = format!("{}?feed=continuous&heartbeat={heartbeat_ms}&since=", source.path());
        percent_encode(since, &mut target);
        self.write("GET", &target, self.admin.reveal(), b"")
    }

    /// Asks who is there, without saying who asks.
    pub fn welcome(&self) -> Vec<u8> {
        self.write("GET", "/", "", b"")
    }

    /// Asks whom the server's own credentials are taken for.
    pub fn own_session(&self) -> Vec<u8> {
        self.write("GET", "/_session", self.admin.reveal(), b"")
    }

    /// Asks for the current revisions of the event documents of databases.
    pub fn look_up<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<u8> {
        self.write("POST", "/_global_changes/_all_docs", self.admin.reveal(), &positions::write_keys(names))
    }

    /// Asks who may read a database.
    pub fn security(&self, database: &str) -> Vec<u8> {
        let mut target = "/".to_owned();
        percent_encode(database, &mut target);
        target.push_str("/_security");
        self.write("GET", &target, self.admin.reveal(), b"")
    }

    /// Asks what `_global_changes` is, above all since when.
    pub fn epoch(&self) -> Vec<u8> {
        self.write("GET", "/_global_changes", self.admin.reveal(), b"")
    }

    /// Asks which nodes there are.
    pub fn membership(&self) -> Vec<u8> {
        self.write("GET", "/_membership", self.admin.reveal(), b"")
    }

    /// Asks for the name of the node that answers.
    pub fn node_name(&self) -> Vec<u8> {
        self.write("GET", "/_node/_local", self.admin.reveal(), b"")
    }

    /// Asks a node how long it has been up; None: the one that answers.
    pub fn system(&self, node: Option<&str>) -> Vec<u8> {
        let mut target = "/_node/".to_owned();
        match node {
            Some(node) => percent_encode(node, &mut target),
            None => target.push_str("_local"),
        }
        target.push_str("/_system");
        self.write("GET", &target, self.admin.reveal(), b"")
    }

    /// Asks the node that answers for a value of its configuration.
    pub fn config(&self, section: &str, key: &str) -> Vec<u8> {
        self.write("GET", &format!("/_node/_local/_config/{section}/{key}"), self.admin.reveal(), b"")
    }

    /// Makes the `_global_changes` database.
    pub fn create_global_changes(&self) -> Vec<u8> {
        self.write("PUT", "/_global_changes", self.admin.reveal(), b"")
    }

    /// Logs a user in, on behalf of the client at `client`. None for credentials that no CouchDB could
    /// accept. A cookie is sent alone, without the admin's credentials beside it: with them, CouchDB
    /// answers an invalid cookie with the admin's name.
    pub fn log_in(&self, credentials: &Credentials, client: IpAddr) -> Option<Vec<u8>> {
        let forwarded = format!("X-Forwarded-For: {}\r\n", client.to_canonical());
        match credentials {
            Credentials::Password { username, password } => {
                let body = serde_json::json!({"name": username, "password": password.reveal()}).to_string();
                Some(self.write("POST", "/_session", &forwarded, body.as_bytes()))
            }
            Credentials::Cookie(value) => {
                let fields = format!("{forwarded}Cookie: AuthSession={}\r\n", value.reveal());
                Some(self.write("GET", "/_session", &fields, b""))
            }
            Credentials::Token(token) => {
                let fields = format!("{forwarded}Authorization: Bearer {}\r\n", token.reveal());
                Some(self.write("GET", "/_session", &fields, b""))
            }
            Credentials::TooLong | Credentials::Unusable | Credentials::UnusableToken => None,
        }
    }

    /// `fields` are whole header lines.
    fn write(&self, method: &str, target: &str, fields: &str, body: &[u8]) -> Vec<u8> {
        let mut head = String::with_capacity(512);
        let _ = write!(
            head,
            "{method} {}{target} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\nUser-Agent: couchdb-howler/{}\r\n{fields}",
            self.prefix,
            self.host,
            env!("CARGO_PKG_VERSION"),
        );
        if method != "GET" {
            let _ = write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        head.push_str("\r\n");
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        request
    }
}

/// What a client logs in with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// A user name with its password. A missing one is empty, and refused by CouchDB.
    Password {
        /// The user's name.
        username: Box<str>,
        /// The password.
        password: Secret,
    },
    /// The value of an `AuthSession` cookie: characters that a `Cookie` field may hold.
    Cookie(Secret),
    /// A JSON web token (RFC 7519), for CouchDB to check: characters that a bearer token may hold.
    Token(Secret),
    /// A part of them is longer than [`MAX_CREDENTIAL`].
    TooLong,
    /// A token that is empty, or has characters that no bearer token has.
    UnusableToken,
    /// None at all, or a cookie that holds no `AuthSession`.
    #[default]
    Unusable,
}

/// Longest user name, password, cookie value and token, in bytes.
pub const MAX_CREDENTIAL: usize = 1024;

impl Credentials {
    /// Returns the credentials in a token: [`Self::UnusableToken`] when no `Authorization` field can hold it.
    pub fn token(text: &str) -> Self {
        // RFC 6750 section 2.1, b64token.
        let may_hold = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=');
        match text.len() {
            0 => Self::UnusableToken,
            1..=MAX_CREDENTIAL if text.bytes().all(may_hold) => Self::Token(Secret::new(text)),
            1..=MAX_CREDENTIAL => Self::UnusableToken,
            _ => Self::TooLong,
        }
    }

    /// The credentials in a user name and a password.
    pub fn password(username: Cow<'_, str>, password: Cow<'_, str>) -> Self {
        if username.len().max(password.len()) > MAX_CREDENTIAL {
            return Self::TooLong;
        }
        Self::Password { username: username.into(), password: Secret::new(password) }
    }

    /// Returns how many bytes of text they hold.
    pub fn len(&self) -> usize {
        match self {
            Self::Password { username, password } => username.len() + password.reveal().len(),
            Self::Cookie(text) | Self::Token(text) => text.reveal().len(),
            Self::TooLong | Self::Unusable | Self::UnusableToken => 0,
        }
    }

    /// Returns whether they hold no text.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the error for credentials that CouchDB does not accept, or need not be asked for.
    pub fn error(&self) -> LoginError {
        match self {
            Self::TooLong => LoginError::TooLong,
            Self::Token(_) | Self::UnusableToken => LoginError::BadToken,
            Self::Password { .. } | Self::Cookie(_) | Self::Unusable => LoginError::NotAuthenticated,
        }
    }

    /// The credentials in a cookie text: a whole `Set-Cookie` value as CouchDB gave it, a `Cookie`
    /// value with others beside it, or the bare `AuthSession=…` pair. Nothing but the value of
    /// `AuthSession` is kept.
    pub fn cookie(text: &str) -> Self {
        // RFC 6265 section 4.1.1, cookie-octet.
        let octet = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b';' | b'\\');
        text.split(';')
            .find_map(|part| part.trim().strip_prefix("AuthSession="))
            .filter(|value| !value.is_empty() && value.bytes().all(octet))
            .map_or(Self::Unusable, |value| {
                if value.len() > MAX_CREDENTIAL { Self::TooLong } else { Self::Cookie(Secret::new(value)) }
            })
    }
}

/// Who logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name.
    pub name: Box<str>,
    /// The user's roles.
    pub roles: Box<[Box<str>]>,
    /// The cookie that is valid now: CouchDB's `Set-Cookie` value as it came, or the pair that
    /// the client gave. None for a token.
    pub cookie: Option<Secret>,
}

/// Why a log-in failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginError {
    /// CouchDB does not know these credentials.
    NotAuthenticated,
    /// CouchDB does not accept this token.
    BadToken,
    /// CouchDB has locked the name after too many wrong passwords.
    Locked,
    /// CouchDB could not be asked, or could not say.
    Unavailable,
    /// Too many others are before this one.
    Overloaded,
    /// Too many logins from the client's address failed; the next one may come after so many milliseconds.
    AddressLimit(u64),
    /// Too many logins under the name failed, from whatever addresses; likewise.
    NameLimit(u64),
    /// A part of the credentials is longer than [`MAX_CREDENTIAL`]; CouchDB was not asked.
    TooLong,
}

impl LoginError {
    /// Whether CouchDB does not accept the credentials, whatever they are.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::NotAuthenticated | Self::BadToken)
    }

    /// The name that clients know the error by.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAuthenticated | Self::BadToken => "NotAuthenticatedError",
            Self::Locked => "AccountLockedError",
            Self::Unavailable | Self::Overloaded => "ServiceUnavailableError",
            Self::AddressLimit(_) | Self::NameLimit(_) | Self::TooLong => "LimitError",
        }
    }

    /// Returns after how many milliseconds the client may try again, where the error itself says so.
    pub fn retry_after(self) -> Option<u64> {
        match self {
            Self::AddressLimit(wait) | Self::NameLimit(wait) => Some(wait),
            _ => None,
        }
    }

    /// The same in words.
    pub fn message(self) -> &'static str {
        match self {
            Self::NotAuthenticated => "The name, password or cookie is not correct.",
            Self::BadToken => "The token is not correct, or it has expired.",
            Self::Locked => "The account is locked for some minutes after too many wrong passwords.",
            Self::TooLong => "A user name, password, cookie or token may have 1024 bytes and no more.",
            Self::Unavailable => "The database server cannot be asked at the moment.",
            Self::Overloaded => "Too many clients log in at the moment.",
            Self::AddressLimit(_) => "Too many failed logins from this address.",
            Self::NameLimit(_) => "Too many failed logins under this name.",
        }
    }
}

#[derive(Deserialize)]
struct SessionBody<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(default)]
    roles: Box<[Box<str>]>,
    #[serde(borrow, rename = "userCtx")]
    user: Option<UserContext<'a>>,
}

#[derive(Deserialize)]
struct UserContext<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(default)]
    roles: Box<[Box<str>]>,
}

/// Reads the answer to [`Requests::log_in`]: its status, its `AuthSession` field, its body.
///
/// # Errors
/// [`LoginError`], for everything that does not name a user.
pub fn read_login(
    credentials: &Credentials,
    status: u16,
    set_cookie: Option<Secret>,
    body: &[u8],
) -> Result<Identity, LoginError> {
    match status {
        200 => {}
        400 | 401 => return Err(credentials.error()),
        403 if is_lockout(body) => return Err(LoginError::Locked),
        // Such as a 403 of something in front of CouchDB.
        _ => return Err(LoginError::Unavailable),
    }
    let body: SessionBody<'_> = json::parse_object(body).ok_or(LoginError::Unavailable)?;
    match credentials {
        Credentials::Password { username, .. } => {
            // CouchDB sets an empty cookie where it lets nobody in.
            let cookie =
                set_cookie.filter(|c| !c.reveal().starts_with("AuthSession=;")).ok_or(LoginError::Unavailable)?;
            let name = named(body.name).unwrap_or_else(|| username.clone());
            Ok(Identity { name, roles: body.roles, cookie: Some(cookie) })
        }
        Credentials::Cookie(_) | Credentials::Token(_) => {
            let user = user_of(body).ok_or(credentials.error())?;
            let cookie = match credentials {
                Credentials::Cookie(value) => {
                    Some(set_cookie.unwrap_or_else(|| Secret::new(format!("AuthSession={}", value.reveal()))))
                }
                _ => None,
            };
            Ok(Identity { cookie, ..user })
        }
        Credentials::TooLong | Credentials::Unusable | Credentials::UnusableToken => Err(credentials.error()),
    }
}

#[derive(Deserialize)]
struct ErrorBody<'a> {
    #[serde(borrow)]
    error: Cow<'a, str>,
    #[serde(borrow)]
    reason: Cow<'a, str>,
}

/// Returns whether the body of an answer with status 403 says that the account is locked.
fn is_lockout(body: &[u8]) -> bool {
    json::parse_object(body).is_some_and(|body: ErrorBody<'_>| {
        body.error == "forbidden" && body.reason.starts_with("Account is temporarily locked")
    })
}

/// Whom a request with credentials is taken for. The status is 200 for an invalid cookie too: the name alone says who it
/// is.
fn user_of(body: SessionBody<'_>) -> Option<Identity> {
    let user = body.user?;
    Some(Identity { name: named(user.name)?, roles: user.roles, cookie: None })
}

/// Reads the answer to [`Requests::own_session`] when it is 200: the roles. None when CouchDB saw no credentials.
pub fn read_own_roles(body: &[u8]) -> Option<Box<[Box<str>]>> {
    json::parse_object(body).and_then(user_of).map(|user| user.roles)
}

/// The section of CouchDB's configuration that is about its feeds of changes.
pub const GLOBAL_CHANGES_SECTION: &str = "global_changes";
/// Whether CouchDB records changes at all; `true` by default.
pub const UPDATE_DB: &str = "update_db";
/// Up to how many milliseconds later CouchDB records a change.
pub const MAX_WRITE_DELAY: &str = "max_write_delay";

/// Reads the answer to [`Requests::config`] when it is 200: the value.
pub fn read_config(body: &[u8]) -> Option<String> {
    serde_json::from_slice(body).ok()
}

/// The life of a cookie by its `Max-Age` (RFC 6265 section 5.2.2), in milliseconds; None where a `Set-Cookie` value has
/// none.
pub fn cookie_life(set_cookie: &str) -> Option<u64> {
    let attributes = set_cookie.split(';').skip(1).filter_map(|attribute| attribute.split_once('='));
    let ages = attributes.filter(|(name, _)| name.trim().eq_ignore_ascii_case("max-age"));
    // The last one counts.
    ages.last().and_then(|(_, seconds)| seconds.trim().parse::<u64>().ok()?.checked_mul(1_000))
}

#[derive(Deserialize)]
struct WelcomeBody<'a> {
    #[serde(borrow)]
    couchdb: Option<Cow<'a, str>>,
    #[serde(borrow)]
    version: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
}

/// What the answer to [`Requests::welcome`] shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// A CouchDB, of this version.
    CouchDb(Box<str>),
    /// A CouchDB, most likely, that says this is wrong: a word such as `unauthorized`.
    Error(Box<str>),
    /// Something else.
    Stranger,
}

/// Reads the answer to [`Requests::welcome`].
pub fn read_welcome(body: &[u8]) -> Welcome {
    match json::parse_object::<WelcomeBody<'_>>(body) {
        Some(WelcomeBody { couchdb: Some(_), version, .. }) => {
            // It is shown: nothing but what versions are made of, and not much of it.
            let fits = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
            let version: String = version.unwrap_or_default().chars().filter(fits).take(32).collect();
            Welcome::CouchDb(version.into())
        }
        Some(WelcomeBody { error: Some(error), .. }) => Welcome::Error(error.into()),
        _ => Welcome::Stranger,
    }
}

fn named(name: Option<Cow<'_, str>>) -> Option<Box<str>> {
    name.filter(|name| !name.is_empty()).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_a_couchdb_by_its_welcome() {
        let welcome = |body: &str| read_welcome(body.as_bytes());
        assert_eq!(
            welcome(r#"{"couchdb":"Welcome","version":"3.5.0","git_sha":"1"}"#),
            Welcome::CouchDb("3.5.0".into())
        );
        assert_eq!(welcome(r#"{"couchdb":"Welcome"}"#), Welcome::CouchDb("".into()));
        let hostile = format!(r#"{{"couchdb":"Welcome","version":"\u001b[31m 1.0 {}"}}"#, "x".repeat(99));
        assert_eq!(welcome(&hostile), Welcome::CouchDb(format!("31m1.0{}", "x".repeat(26)).into()));
        assert_eq!(welcome(r#"{"error":"unauthorized","reason":"no"}"#), Welcome::Error("unauthorized".into()));
        for body in ["", "ok", "[]", "{}", "<html>", r#"{"couchdb":1}"#, r#"{"version":"1"}"#] {
            assert_eq!(welcome(body), Welcome::Stranger, "{body}");
        }
    }

    #[test]
    fn reads_the_roles_of_its_own_session() {
        let roles = |body: &str| read_own_roles(body.as_bytes()).map(|roles| roles.len());
        assert_eq!(roles(r#"{"ok":true,"userCtx":{"name":"admin","roles":["_admin"]}}"#), Some(1));
        assert_eq!(roles(r#"{"ok":true,"userCtx":{"name":"me","roles":[]}}"#), Some(0));
        for body in [r#"{"ok":true,"userCtx":{"name":null,"roles":["_admin"]}}"#, r#"{"ok":true}"#, "", "[]"] {
            assert_eq!(roles(body), None, "{body}");
        }
    }

    fn change<'a>(database: &'a str, kind: ChangeKind, seq: &'a str) -> FeedLine<'a> {
        FeedLine::Change { database: database.into(), kind, revision: None, seq: Some(seq.into()) }
    }

    fn revised<'a>(database: &'a str, kind: ChangeKind, revision: &str, seq: &'a str) -> FeedLine<'a> {
        let revision = Revision::parse(revision);
        FeedLine::Change { database: database.into(), kind, revision, seq: Some(seq.into()) }
    }

    fn other(seq: &str) -> FeedLine<'_> {
        FeedLine::Other { seq: Some(seq.into()) }
    }

    #[test]
    fn reads_the_lines_of_both_feeds() {
        use ChangeKind::{Created, Deleted, Updated};
        for (line, expected) in [
            (
                r#"{"seq":"4-g1A","id":"created:t1","changes":[{"rev":"1-967a"}]}"#,
                revised("t1", Created, "1-967a", "4-g1A"),
            ),
            (r#"{"seq":"8-x","id":"updated:a/b","changes":[{"rev":"1-9"}]}"#, revised("a/b", Updated, "1-9", "8-x")),
            (
                r#"{"seq":"8-x","id":"deleted:plus+db:x","changes":[{"rev":"1-9"}]}"#,
                revised("plus+db:x", Deleted, "1-9", "8-x"),
            ),
            (
                r#"{"seq":"8-x","id":"updated:_users","changes":[{"rev":"1-9"}]}"#,
                revised("_users", Updated, "1-9", "8-x"),
            ),
            (r#"{"seq":"9-y","id":"updated:_dbs","changes":[{"rev":"1-9"}]}"#, other("9-y")),
            (r#"{"seq":"9-y","id":"_design/a:b","changes":[{"rev":"1-9"}]}"#, other("9-y")),
            (r#"{"seq":"9-y","id":"updated:","changes":[{"rev":"1-9"}]}"#, other("9-y")),
            (r#"{"seq":"9-y","id":"nothing","changes":[{"rev":"1-9"}]}"#, other("9-y")),
            (r#"{"seq":"9-y","id":"updated:a","changes":[{"rev":"2-9"}],"deleted":true}"#, other("9-y")),
            (
                r#"{"seq":"9-\u0079","id":"updated:gr\u00fcn","changes":[{"rev":"1-9"}]}"#,
                revised("grün", Updated, "1-9", "9-y"),
            ),
            (
                r#"{"id":"updated:a","seq":12,"changes":[{"rev":"1-9"},{"rev":"2-8"}]}"#,
                revised("a", Updated, "1-9", "12"),
            ),
            (r#"{"seq":"1","id":"updated:a","changes":[{"rev":"x"}]}"#, change("a", Updated, "1")),
            (r#"{"seq":[1,"x"],"id":"updated:a","changes":[]}"#, change("a", Updated, r#"[1,"x"]"#)),
            (
                r#"{"seq":null,"id":"updated:a","changes":[]}"#,
                FeedLine::Change { database: "a".into(), kind: Updated, revision: None, seq: None },
            ),
            (r#"{"seq":null,"id":"nothing","changes":[]}"#, FeedLine::Other { seq: None }),
            (r#"{"db_name":"t1","type":"created","seq":"4-g"}"#, change("t1", Created, "4-g")),
            (r#"{"db_name":"t1","type":"ddoc_updated","seq":"4-g"}"#, other("4-g")),
            (r#"{"db_name":"_dbs","type":"updated","seq":"4-g"}"#, other("4-g")),
            (r#"{"last_seq":"200-z","pending":0}"#, FeedLine::LastSeq { seq: "200-z".into() }),
            (r#"{"last_seq":"200-z"}"#, FeedLine::LastSeq { seq: "200-z".into() }),
            ("", FeedLine::Heartbeat),
            ("\r", FeedLine::Heartbeat),
        ] {
            assert_eq!(parse_feed_line(line.as_bytes()), Some(expected), "{line}");
        }
    }

    /// PouchDB Server counts its sequences in numbers, and writes them last.
    #[test]
    fn reads_the_numbers_of_pouchdb_server() {
        let line = br#"{"id":"updated:garden","changes":[{"rev":"1-a57534680eeb10ad905f2bfe73cfd97e"}],"seq":1}"#;
        let expected = revised("garden", ChangeKind::Updated, "1-a57534680eeb10ad905f2bfe73cfd97e", "1");
        assert_eq!(parse_feed_line(line), Some(expected));
        assert_eq!(parse_last_seq(b"{\"results\":[],\"last_seq\":0}\n").as_deref(), Some("0"));
    }

    #[test]
    fn every_prefix_of_a_line_is_broken() {
        for line in [
            r#"{"seq":"4-g1A","id":"created:t1","changes":[{"rev":"1-967a"}]}"#,
            r#"{"db_name":"t1","type":"created","seq":"4-g"}"#,
        ] {
            for end in 1..line.len() {
                assert_eq!(parse_feed_line(&line.as_bytes()[..end]), None, "{}", &line[..end]);
            }
        }
        for broken in [
            &b"\xff"[..],
            b"[]",
            b"[\"4-g\",null,\"updated:a\",false,null,null]",
            b"{\"seq\":\"\xff\",\"id\":\"updated:a\",\"changes\":[{\"rev\":\"1\"}]}",
            b"{\"seq\":\"a\nb\",\"id\":\"updated:a\",\"changes\":[{\"rev\":\"1\"}]}",
        ] {
            assert_eq!(parse_feed_line(broken), None);
        }
    }

    #[test]
    fn the_quick_and_the_general_reader_agree() {
        for line in [
            r#"{"seq":"4-g1A","id":"created:t1","changes":[{"rev":"1-967a"}]}"#,
            r#"{"seq":"4-g1A","id":"_design/x","changes":[{"rev":"1-967a"}]}"#,
            r#"{"seq":"","id":"updated:ü","changes":[{"rev":""}]}"#,
        ] {
            let quick = parse_usual_line(line.as_bytes());
            assert!(quick.is_some(), "{line}");
            assert_eq!(quick, parse_any_line(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn kinds_merge() {
        use ChangeKind::{Created, Deleted, Updated};
        assert_eq!(Created.merge(Updated), Created);
        assert_eq!(Updated.merge(Deleted), Deleted);
        assert_eq!(Created.merge(Deleted), Deleted);
        assert_eq!(Updated.merge(Updated), Updated);
    }

    #[test]
    fn cookies_are_reduced_to_their_value() {
        let value = |text| match Credentials::cookie(text) {
            Credentials::Cookie(value) => value.reveal().to_owned(),
            _ => "-".to_owned(),
        };
        assert_eq!(value("AuthSession=bXl1-_=; Version=1; Path=/; HttpOnly"), "bXl1-_=");
        assert_eq!(value("AuthSession=abc"), "abc");
        assert_eq!(value("a=b; AuthSession=abc"), "abc");
        for useless in [
            "",
            "abc",
            "AuthSession=",
            "AuthSession=; Version=1",
            "authsession=x",
            "AuthSession=a b",
            "AuthSession=a\r\nX: y",
        ] {
            assert_eq!(Credentials::cookie(useless), Credentials::Unusable, "{useless}");
        }
    }

    #[test]
    fn requests_carry_what_they_must_and_no_more() {
        let requests = Requests::new(&CouchUrl::parse("http://admin:pw@h:5984/pre").unwrap());
        let client: IpAddr = "::ffff:10.1.2.3".parse().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let stream = text(requests.stream(FeedSource::GlobalChanges, "4-a+b=", 10_000));
        assert!(stream.starts_with("GET /pre/_global_changes/_changes?feed=continuous&heartbeat=10000&since=4-a%2Bb%3D HTTP/1.1\r\nHost: h:5984\r\n"));
        assert!(stream.contains("Authorization: Basic YWRtaW46cHc=\r\n"));
        let password = Credentials::Password { username: "a\"b".into(), password: Secret::new("x") };
        let log_in = text(requests.log_in(&password, client).unwrap());
        assert!(
            log_in.contains("X-Forwarded-For: 10.1.2.3\r\n") && log_in.ends_with(r#"{"name":"a\"b","password":"x"}"#)
        );
        assert!(!log_in.contains("Authorization"));
        let cookie = text(requests.log_in(&Credentials::cookie("AuthSession=abc; Path=/"), client).unwrap());
        assert!(cookie.starts_with("GET /pre/_session ") && cookie.contains("Cookie: AuthSession=abc\r\n"));
        assert!(!cookie.contains("Authorization"), "the admin's name would answer for an invalid cookie");
        assert_eq!(requests.log_in(&Credentials::Unusable, client), None);
        let token = text(requests.log_in(&Credentials::token("a.b.c"), client).unwrap());
        assert!(token.starts_with("GET /pre/_session ") && token.contains("Authorization: Bearer a.b.c\r\n"));
        assert!(!token.contains("Basic") && !token.contains("Cookie"));
        for useless in ["", "a b", "a\r\nX: y"] {
            assert_eq!(Credentials::token(useless), Credentials::UnusableToken);
        }
        assert_eq!(requests.log_in(&Credentials::UnusableToken, client), None);
        let security = text(requests.security("a/b+c"));
        assert!(security.starts_with("GET /pre/a%2Fb%2Bc/_security ") && security.contains("Basic"), "{security}");
    }

    #[test]
    fn requests_that_wait_get_new_credentials() {
        let requests = |url: &str| Requests::new(&CouchUrl::parse(url).unwrap());
        let (old, new) = (requests("http://admin:hunter2@db"), requests("http://root:a-longer-password@db"));
        let body = ["Authorization: Basic YWRtaW46aHVudGVyMg=="];
        for (write, has_body) in [
            (&(|requests: &Requests| requests.security("a/b")) as &dyn Fn(&Requests) -> Vec<u8>, false),
            (&|requests| requests.epoch(), false),
            (&|requests| requests.look_up(body.into_iter()), true),
            (&|requests| requests.welcome(), false),
        ] {
            let mut request = write(&old);
            new.renew(&old, &mut request);
            assert_eq!(request, write(&new), "{has_body}");
        }
        let user = Credentials::Password { username: "admin".into(), password: Secret::new("hunter2") };
        let written = old.log_in(&user, [127, 0, 0, 1].into()).unwrap();
        let mut request = written.clone();
        new.renew(&old, &mut request);
        assert_eq!(request, written);
    }

    fn cookie_of(identity: &Identity) -> &str {
        identity.cookie.as_ref().map_or("-", Secret::reveal)
    }

    #[test]
    fn log_in_answers() {
        let password = Credentials::Password { username: "u".into(), password: Secret::new("x") };
        let cookie = Credentials::cookie("AuthSession=abc");
        let set = || Some(Secret::new("AuthSession=new; Path=/"));
        let ok = br#"{"ok":true,"name":"myuser","roles":[]}"#;
        let identity = read_login(&password, 200, set(), ok).unwrap();
        assert_eq!((&*identity.name, cookie_of(&identity)), ("myuser", "AuthSession=new; Path=/"));
        assert_eq!(read_login(&password, 200, None, ok), Err(LoginError::Unavailable));
        assert_eq!(read_login(&password, 200, Some(Secret::new("AuthSession=; x")), ok), Err(LoginError::Unavailable));
        assert_eq!(read_login(&password, 401, set(), b"{}"), Err(LoginError::NotAuthenticated));
        let locked = br#"{"error":"forbidden","reason":"Account is temporarily locked due to multiple authentication failures"}"#;
        assert_eq!(read_login(&password, 403, None, locked), Err(LoginError::Locked));
        let others: [&[u8]; 4] =
            [b"", b"<html>", b"{}", br#"{"error":"forbidden","reason":"You are not allowed to be here."}"#];
        for body in others {
            assert_eq!(read_login(&password, 403, None, body), Err(LoginError::Unavailable));
        }
        assert_eq!(read_login(&password, 500, None, b""), Err(LoginError::Unavailable));
        let good = br#"{"ok":true,"userCtx":{"name":"myuser","roles":[]},"info":{"authenticated":"cookie"}}"#;
        let nobody = br#"{"ok":true,"userCtx":{"name":null,"roles":[]},"info":{}}"#;
        assert_eq!(cookie_of(&read_login(&cookie, 200, None, good).unwrap()), "AuthSession=abc");
        assert_eq!(cookie_of(&read_login(&cookie, 200, set(), good).unwrap()), "AuthSession=new; Path=/");
        let token = Credentials::token("a.b-c.d_e");
        assert_eq!(read_login(&token, 200, None, good).unwrap().cookie, None);
        assert_eq!(read_login(&token, 200, None, nobody), Err(LoginError::BadToken));
        for status in [400, 401] {
            assert_eq!(read_login(&token, status, None, b"{}"), Err(LoginError::BadToken));
        }
        assert_eq!(LoginError::BadToken.name(), LoginError::NotAuthenticated.name());
        let roles = br#"{"ok":true,"userCtx":{"name":"u","roles":["a","_admin"]}}"#;
        assert_eq!(*read_login(&cookie, 200, None, roles).unwrap().roles, ["a".into(), "_admin".into()]);
        assert_eq!(read_login(&cookie, 200, None, nobody), Err(LoginError::NotAuthenticated));
        assert_eq!(read_login(&cookie, 200, None, b"<html>"), Err(LoginError::Unavailable));
        assert_eq!(read_login(&cookie, 200, None, br#"[null,{"name":"myuser"}]"#), Err(LoginError::Unavailable));
        assert_eq!(read_login(&cookie, 200, None, ok), Err(LoginError::NotAuthenticated));
    }

    #[test]
    fn reads_the_life_of_cookies() {
        for (cookie, life) in [
            (
                "AuthSession=a; Version=1; Expires=Sun, 06 Nov 1994 08:49:37 GMT; Max-Age=600; Path=/; HttpOnly",
                Some(600_000),
            ),
            ("AuthSession=a; max-age = 4", Some(4_000)),
            ("AuthSession=a; Max-Age=1; Max-Age=2", Some(2_000)),
            ("AuthSession=a; Max-Age=", None),
            ("AuthSession=a; Max-Age=-1", None),
            ("AuthSession=a; Max-Age=99999999999999999999", None),
            ("AuthSession=Max-Age=600", None),
            ("AuthSession=a", None),
            ("", None),
        ] {
            assert_eq!(cookie_life(cookie), life, "{cookie}");
        }
    }

    #[test]
    fn reads_configuration() {
        assert_eq!(read_config(b"\"500\"\n").as_deref(), Some("500"));
        assert_eq!(read_config(b"{\"error\":\"not_found\"}"), None);
    }

    #[test]
    fn pins() {
        assert_eq!(parse_last_seq(br#"{"results":[],"last_seq":"9-a","pending":0}"#).as_deref(), Some("9-a"));
        assert_eq!(parse_last_seq(b"{}"), None);
        assert_eq!(parse_last_seq(br#"[null,"9-a",null,false,null,null]"#), None, "no object");
    }
}
