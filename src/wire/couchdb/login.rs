//! Logins: the credentials of a client, and CouchDB's response to them.

use std::borrow::Cow;

use serde::Deserialize;

use crate::wire::json;
use crate::wire::secret::Secret;

/// The credentials of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// A user name and a password. A missing one is empty, and rejected by CouchDB.
    Password {
        /// Name of the user.
        username: Box<str>,
        /// Password of the user.
        password: Secret,
    },
    /// Value of an `AuthSession` cookie. It holds only characters that a `Cookie` field may hold.
    Cookie(Secret),
    /// A JSON web token (RFC 7519) for CouchDB to check. It holds only characters of a bearer
    /// token.
    Token(Secret),
    /// Credentials with a part longer than [`MAX_CREDENTIAL`].
    TooLong,
    /// A token that is empty or holds a character that no bearer token has.
    UnusableToken,
    /// No credentials, or a cookie without an `AuthSession`.
    #[default]
    Unusable,
}

/// Longest user name, password, cookie value or token, in bytes.
pub const MAX_CREDENTIAL: usize = 1024;

impl Credentials {
    /// Creates credentials from a token; [`Self::UnusableToken`] if no `Authorization` field can
    /// hold it.
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

    /// Creates credentials from a user name and a password.
    pub fn password(username: Cow<'_, str>, password: Cow<'_, str>) -> Self {
        if username.len().max(password.len()) > MAX_CREDENTIAL {
            return Self::TooLong;
        }
        Self::Password { username: username.into(), password: Secret::new(password) }
    }

    /// Returns the length of the text that the credentials hold, in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Password { username, password } => username.len() + password.reveal().len(),
            Self::Cookie(text) | Self::Token(text) => text.reveal().len(),
            Self::TooLong | Self::Unusable | Self::UnusableToken => 0,
        }
    }

    /// Returns whether the credentials hold no text.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the error for credentials that CouchDB rejects, or would reject.
    pub fn error(&self) -> LoginError {
        match self {
            Self::TooLong => LoginError::TooLong,
            Self::Token(_) | Self::UnusableToken => LoginError::BadToken,
            Self::Password { .. } | Self::Cookie(_) | Self::Unusable => LoginError::NotAuthenticated,
        }
    }

    /// Creates credentials from a cookie text: a whole `Set-Cookie` value as CouchDB sent it, a
    /// `Cookie` value with several cookies, or the bare `AuthSession=…` pair. Only the value of
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

/// A user that CouchDB authenticated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the user.
    pub name: Box<str>,
    /// Roles of the user.
    pub roles: Box<[Box<str>]>,
    /// Current cookie: CouchDB's `Set-Cookie` value as sent, or the pair that the client gave. None
    /// for a token.
    pub cookie: Option<Secret>,
}

/// The reason why a login failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginError {
    /// CouchDB rejects the credentials.
    NotAuthenticated,
    /// CouchDB rejects the token.
    BadToken,
    /// CouchDB has locked the account after too many wrong passwords.
    Locked,
    /// CouchDB could not be reached, or its response does not settle the login.
    Unavailable,
    /// Too many logins wait.
    Overloaded,
    /// Too many logins from the address of the client failed. The next one may follow after this
    /// time, in milliseconds.
    AddressLimit(u64),
    /// Too many logins under the name failed, from any address. The next one may follow after this
    /// time, in milliseconds.
    NameLimit(u64),
    /// A part of the credentials is longer than [`MAX_CREDENTIAL`]. CouchDB was not asked.
    TooLong,
}

impl LoginError {
    /// Returns whether CouchDB rejects the credentials.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::NotAuthenticated | Self::BadToken)
    }

    /// Returns the name of the error in the protocols.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotAuthenticated | Self::BadToken => "NotAuthenticatedError",
            Self::Locked => "AccountLockedError",
            Self::Unavailable | Self::Overloaded => "ServiceUnavailableError",
            Self::AddressLimit(_) | Self::NameLimit(_) | Self::TooLong => "LimitError",
        }
    }

    /// Returns the time until the next attempt, in milliseconds, if the error determines it.
    pub fn retry_after(self) -> Option<u64> {
        match self {
            Self::AddressLimit(wait) | Self::NameLimit(wait) => Some(wait),
            _ => None,
        }
    }

    /// Returns the message for the client.
    pub fn message(self) -> &'static str {
        match self {
            Self::NotAuthenticated => "The name, password or cookie is not correct.",
            Self::BadToken => "The token is not correct, or it has expired.",
            Self::Locked => "The account is locked for some minutes after too many wrong passwords.",
            Self::TooLong => "A user name, password, cookie or token may have 1024 bytes and no more.",
            Self::Unavailable => "The database server cannot be reached at the moment.",
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

/// Reads the response to [`Requests::log_in`](super::Requests::log_in): its status, its
/// `AuthSession` field and its body.
///
/// # Errors
/// Returns a [`LoginError`] unless the response names a user.
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
        // Such as a 403 of a proxy in front of CouchDB.
        _ => return Err(LoginError::Unavailable),
    }
    let body: SessionBody<'_> = json::parse_object(body).ok_or(LoginError::Unavailable)?;
    match credentials {
        Credentials::Password { username, .. } => {
            // CouchDB sets an empty cookie if it rejects the credentials.
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

/// Returns whether the body of a response with status 403 says that the account is locked.
fn is_lockout(body: &[u8]) -> bool {
    json::parse_object(body).is_some_and(|body: ErrorBody<'_>| {
        body.error == "forbidden" && body.reason.starts_with("Account is temporarily locked")
    })
}

/// Returns the user that a request was authenticated as. An invalid cookie yields status 200 as
/// well, but no name.
fn user_of(body: SessionBody<'_>) -> Option<Identity> {
    let user = body.user?;
    Some(Identity { name: named(user.name)?, roles: user.roles, cookie: None })
}

/// Reads the roles off a response of status 200 to
/// [`Requests::own_session`](super::Requests::own_session). None if CouchDB saw no credentials.
pub fn read_own_roles(body: &[u8]) -> Option<Box<[Box<str>]>> {
    json::parse_object(body).and_then(user_of).map(|user| user.roles)
}

/// Returns the `Max-Age` of a `Set-Cookie` value (RFC 6265 section 5.2.2), in milliseconds.
pub fn cookie_life(set_cookie: &str) -> Option<u64> {
    let attributes = set_cookie.split(';').skip(1).filter_map(|attribute| attribute.split_once('='));
    let ages = attributes.filter(|(name, _)| name.trim().eq_ignore_ascii_case("max-age"));
    // The last one counts.
    ages.last().and_then(|(_, seconds)| seconds.trim().parse::<u64>().ok()?.checked_mul(1_000))
}

fn named(name: Option<Cow<'_, str>>) -> Option<Box<str>> {
    name.filter(|name| !name.is_empty()).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn cookie_of(identity: &Identity) -> &str {
        identity.cookie.as_ref().map_or("-", Secret::reveal)
    }

    #[test]
    fn reads_responses_to_logins() {
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
    fn reads_roles_of_own_session() {
        let roles = |body: &str| read_own_roles(body.as_bytes()).map(|roles| roles.len());
        assert_eq!(roles(r#"{"ok":true,"userCtx":{"name":"admin","roles":["_admin"]}}"#), Some(1));
        assert_eq!(roles(r#"{"ok":true,"userCtx":{"name":"me","roles":[]}}"#), Some(0));
        for body in [r#"{"ok":true,"userCtx":{"name":null,"roles":["_admin"]}}"#, r#"{"ok":true}"#, "", "[]"] {
            assert_eq!(roles(body), None, "{body}");
        }
    }

    #[test]
    fn reads_max_age_of_cookies() {
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
}
