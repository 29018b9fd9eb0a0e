//! All requests to CouchDB.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::login::Credentials;
use super::lookup;
use crate::wire::secret::Secret;
use crate::wire::url::{CouchUrl, percent_encode};

/// A changes feed.
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

/// Writes the requests to one CouchDB. All of them ask for JSON, since CouchDB redirects requests
/// for HTML to a login page.
#[derive(Clone, Debug)]
pub struct Requests {
    prefix: Box<str>,
    host: Box<str>,
    /// The `Authorization` field of the server's own admin.
    admin: Secret,
    /// The name and the password that CouchDB reads from that field.
    own: Option<(Box<str>, Secret)>,
}

impl Requests {
    /// Creates the writer of requests to the CouchDB at a URL, as the admin in the URL.
    pub fn new(url: &CouchUrl) -> Self {
        let pair = url.credentials.as_ref().map(|(user, password)| format!("{user}:{}", password.reveal()));
        let admin = pair.as_ref().map_or_else(String::new, |pair| {
            format!("Authorization: Basic {}\r\n", data_encoding::BASE64.encode(pair.as_bytes()))
        });
        // The name ends at the first colon (RFC 7617 section 2).
        let own = pair.as_ref().and_then(|pair| pair.split_once(':'));
        let own = own.map(|(name, password)| (name.into(), Secret::new(password)));
        Self { prefix: url.prefix.clone(), host: url.host_header().into(), admin: Secret::new(admin), own }
    }

    /// Returns whether a password is that of the server's own admin; None for another name. CouchDB
    /// compares names byte by byte.
    pub fn is_own_password(&self, name: &str, password: &str) -> Option<bool> {
        let (_, own) = self.own.as_ref().filter(|(own, _)| **own == *name)?;
        Some(own.matches(password))
    }

    /// Replaces the credentials `old` of the server in a request that was not sent yet. Requests
    /// with credentials of users stay unchanged.
    pub fn renew(&self, old: &Self, request: &mut Vec<u8>) {
        let head = memchr::memmem::find(request, b"\r\n\r\n").map_or(request.len(), |end| end + 2);
        let (old, new) = (old.admin.reveal().as_bytes(), self.admin.reveal().as_bytes());
        // A whole line, which no value of a field can hold.
        if let Some(start) = memchr::memmem::find(&request[..head], old).filter(|_| !old.is_empty()) {
            request.splice(start..start + old.len(), new.iter().copied());
        }
    }

    /// Writes a request for the current sequence of a feed. CouchDB responds at once.
    pub fn pin(&self, source: FeedSource) -> Vec<u8> {
        self.write("GET", &format!("{}?since=now&limit=1", source.path()), self.admin.reveal(), b"")
    }

    /// Writes a request for all changes since a sequence. The response stays open, with a heartbeat
    /// at the given interval in milliseconds.
    pub fn stream(&self, source: FeedSource, since: &str, heartbeat_ms: u64) -> Vec<u8> {
        let mut target = format!("{}?feed=continuous&heartbeat={heartbeat_ms}&since=", source.path());
        percent_encode(since, &mut target);
        self.write("GET", &target, self.admin.reveal(), b"")
    }

    /// Writes a request for the version of CouchDB, without credentials.
    pub fn welcome(&self) -> Vec<u8> {
        self.write("GET", "/", "", b"")
    }

    /// Writes a request for the user that the server's own credentials stand for.
    pub fn own_session(&self) -> Vec<u8> {
        self.write("GET", "/_session", self.admin.reveal(), b"")
    }

    /// Writes a request for the revisions of the event documents of databases.
    pub fn look_up<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<u8> {
        self.write("POST", "/_global_changes/_all_docs", self.admin.reveal(), &lookup::write_keys(names))
    }

    /// Writes a request for the `_security` of a database.
    pub fn security(&self, database: &str) -> Vec<u8> {
        let mut target = "/".to_owned();
        percent_encode(database, &mut target);
        target.push_str("/_security");
        self.write("GET", &target, self.admin.reveal(), b"")
    }

    /// Writes a request for the state of `_global_changes`, which holds the epoch.
    pub fn epoch(&self) -> Vec<u8> {
        self.write("GET", "/_global_changes", self.admin.reveal(), b"")
    }

    /// Writes a request for the names of the nodes.
    pub fn membership(&self) -> Vec<u8> {
        self.write("GET", "/_membership", self.admin.reveal(), b"")
    }

    /// Writes a request for the name of the node that responds.
    pub fn node_name(&self) -> Vec<u8> {
        self.write("GET", "/_node/_local", self.admin.reveal(), b"")
    }

    /// Writes a request for the uptime of a node; None for the node that responds.
    pub fn system(&self, node: Option<&str>) -> Vec<u8> {
        let mut target = "/_node/".to_owned();
        match node {
            Some(node) => percent_encode(node, &mut target),
            None => target.push_str("_local"),
        }
        target.push_str("/_system");
        self.write("GET", &target, self.admin.reveal(), b"")
    }

    /// Writes a request for a configuration value of the node that responds.
    pub fn config(&self, section: &str, key: &str) -> Vec<u8> {
        self.write("GET", &format!("/_node/_local/_config/{section}/{key}"), self.admin.reveal(), b"")
    }

    /// Writes a request that creates the `_global_changes` database.
    pub fn create_global_changes(&self) -> Vec<u8> {
        self.write("PUT", "/_global_changes", self.admin.reveal(), b"")
    }

    /// Writes a request that logs a user in, on behalf of a client at an address. None for
    /// credentials that no CouchDB could accept.
    ///
    /// A cookie is sent without the admin's credentials. With both, CouchDB would answer an invalid
    /// cookie with the name of the admin.
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

    /// Writes a request. `fields` are whole header lines.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_carry_required_fields_only() {
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
    fn waiting_requests_get_new_credentials() {
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
}
