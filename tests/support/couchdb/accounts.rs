//! Who asks: users, cookies, bearer tokens and the lockout after wrong passwords.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::http::{Request, from_base64, http_date, json_string, to_base64url};

/// After so many wrong passwords for one name from one address the name is locked there.
const WRONG_PASSWORDS: u32 = 5;

/// Users, tokens and what is remembered of failures.
#[derive(Debug)]
pub(super) struct Accounts {
    users: HashMap<String, User>,
    tokens: HashMap<String, Token>,
    failures: HashMap<(String, String), Failures>,
    cookie_life: Duration,
    lockout: Option<Duration>,
    /// How often a name was locked.
    pub(super) lockouts: usize,
    /// Keys the codes of cookies. A stand-in for CouchDB's HMAC: nobody who cannot read this
    /// process can forge one, but it is not cryptography.
    secret: RandomState,
    salts: u64,
}

#[derive(Debug)]
struct User {
    password: String,
    roles: Vec<String>,
    /// New with each password: that is why cookies end with the password they were given for.
    salt: u64,
}

#[derive(Debug)]
struct Token {
    name: String,
    roles: Vec<String>,
    expired: bool,
}

/// Wrong passwords for a name from a peer.
#[derive(Debug)]
struct Failures {
    count: u32,
    /// When they are forgotten: some time after the first of them, or after the one that locked the name.
    until: Duration,
}

/// Who made a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    pub(super) name: Option<String>,
    pub(super) roles: Vec<String>,
    pub(super) method: Option<&'static str>,
    /// A fresh cookie, because the one that was sent is older than a tenth of its life.
    pub(super) renewed: Option<String>,
}

impl Identity {
    pub(super) fn is_admin(&self) -> bool {
        self.roles.iter().any(|role| role == "_admin")
    }

    /// `"name":…,"roles":…` of an answer.
    pub(super) fn to_json(&self) -> String {
        let name = self.name.as_deref().map_or_else(|| "null".to_owned(), json_string);
        let roles = serde_json::Value::from(self.roles.clone());
        format!(r#""name":{name},"roles":{roles}"#)
    }
}

/// Why a request is refused before anyone looks at what it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Unknown name or wrong password.
    Incorrect,
    /// Too many wrong passwords.
    Locked,
    /// The cookie is not base64url of `a:b:c`.
    MalformedCookie,
    /// A bearer token nobody knows.
    BadToken,
    /// A bearer token that was good once.
    ExpiredToken,
}

impl Accounts {
    pub(super) fn new(cookie_life: Duration, lockout: Option<Duration>) -> Self {
        Self {
            users: HashMap::new(),
            tokens: HashMap::new(),
            failures: HashMap::new(),
            cookie_life,
            lockout,
            lockouts: 0,
            secret: RandomState::new(),
            salts: 0,
        }
    }

    /// Adds a user or makes a new one of it.
    pub(super) fn add_user(&mut self, name: &str, password: &str, roles: &[&str]) {
        self.salts += 1;
        let user = User {
            password: password.to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            salt: self.salts,
        };
        self.users.insert(name.to_owned(), user);
    }

    pub(super) fn remove_user(&mut self, name: &str) -> bool {
        self.users.remove(name).is_some()
    }

    pub(super) fn change_password(&mut self, name: &str, password: &str) -> bool {
        self.salts += 1;
        let salt = self.salts;
        self.users.get_mut(name).is_some_and(|user| {
            password.clone_into(&mut user.password);
            user.salt = salt;
            true
        })
    }

    pub(super) fn add_token(&mut self, token: &str, name: &str, roles: &[&str]) {
        let value = Token {
            name: name.to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            expired: false,
        };
        self.tokens.insert(token.to_owned(), value);
    }

    pub(super) fn expire_token(&mut self, token: &str) -> bool {
        self.tokens.get_mut(token).is_some_and(|token| !std::mem::replace(&mut token.expired, true))
    }

    /// A restarted CouchDB remembers no wrong passwords.
    pub(super) fn forget_failures(&mut self) {
        self.failures.clear();
    }

    /// Who made this request, in CouchDB's order: a good cookie first; a bad one counts as none,
    /// and then the `Authorization` header decides.
    pub(super) fn authenticate(&mut self, request: &Request, now: Duration) -> Result<Identity, Refusal> {
        if let Some(cookie) = session_cookie(request)
            && !cookie.is_empty()
            && let Some(identity) = self.check_cookie(cookie, now)?
        {
            return Ok(identity);
        }
        let header = request.header("authorization").unwrap_or_default();
        let (scheme, credentials) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.check_token(credentials.trim());
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Ok(Identity::default());
        }
        let decoded = from_base64(credentials.trim()).and_then(|pair| String::from_utf8(pair).ok());
        let Some((name, password)) = decoded.as_deref().and_then(|pair| pair.split_once(':')) else {
            return Err(Refusal::Incorrect);
        };
        let mut identity = self.log_in(name, password, &request.client(), now)?;
        identity.method = Some("default");
        Ok(identity)
    }

    /// Checks a password and counts the wrong ones.
    pub(super) fn log_in(
        &mut self,
        name: &str,
        password: &str,
        client: &str,
        now: Duration,
    ) -> Result<Identity, Refusal> {
        self.failures.retain(|_, failures| failures.until > now);
        let key = (name.to_owned(), client.to_owned());
        let wrong_before = self.failures.get(&key).map_or(0, |failures| failures.count);
        if wrong_before >= WRONG_PASSWORDS {
            return Err(Refusal::Locked);
        }
        if let Some(user) = self.users.get(name)
            && user.password == password
        {
            return Ok(Identity {
                name: Some(name.to_owned()),
                roles: user.roles.clone(),
                method: Some("cookie"),
                renewed: None,
            });
        }
        if let Some(lockout) = self.lockout {
            let failures = self.failures.entry(key).or_insert(Failures { count: 0, until: now + lockout });
            failures.count += 1;
            if failures.count >= WRONG_PASSWORDS {
                failures.until = now + lockout;
                self.lockouts += 1;
            }
        }
        Err(Refusal::Incorrect)
    }

    /// The value of a `Set-Cookie` that logs this user in.
    pub(super) fn new_cookie(&self, name: &str, now: Duration) -> String {
        let value = self.users.get(name).map(|user| self.cookie_value(name, user.salt, now.as_millis()));
        format!(
            "AuthSession={}; Version=1; Expires={}; Max-Age={}; Path=/; HttpOnly",
            value.unwrap_or_default(),
            http_date(now + self.cookie_life),
            self.cookie_life.as_millis().div_ceil(1_000),
        )
    }

    fn cookie_value(&self, name: &str, salt: u64, milliseconds: u128) -> String {
        let code = self.secret.hash_one((name, salt, milliseconds));
        to_base64url(format!("{name}:{milliseconds:X}:{code:016x}").as_bytes())
    }

    /// `Ok(None)` for a cookie that is forged, expired, or of nobody.
    fn check_cookie(&self, cookie: &str, now: Duration) -> Result<Option<Identity>, Refusal> {
        let decoded = from_base64(cookie).ok_or(Refusal::MalformedCookie)?;
        let decoded = String::from_utf8_lossy(&decoded);
        let mut parts = decoded.splitn(3, ':');
        let (Some(name), Some(time), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Refusal::MalformedCookie);
        };
        let made = u64::from_str_radix(time, 16).map_err(|_| Refusal::MalformedCookie)?;
        let Some(user) = self.users.get(name) else {
            return Ok(None);
        };
        if self.cookie_value(name, user.salt, u128::from(made)) != cookie {
            return Ok(None);
        }
        let age = now.saturating_sub(Duration::from_millis(made));
        if age >= self.cookie_life {
            return Ok(None);
        }
        let renewed = (age > self.cookie_life / 10).then(|| self.new_cookie(name, now));
        Ok(Some(Identity { name: Some(name.to_owned()), roles: user.roles.clone(), method: Some("cookie"), renewed }))
    }

    fn check_token(&self, token: &str) -> Result<Identity, Refusal> {
        let token = self.tokens.get(token).ok_or(Refusal::BadToken)?;
        if token.expired {
            return Err(Refusal::ExpiredToken);
        }
        Ok(Identity { name: Some(token.name.clone()), roles: token.roles.clone(), method: Some("jwt"), renewed: None })
    }
}

/// The value of the cookie `AuthSession`, quoted or not.
fn session_cookie(request: &Request) -> Option<&str> {
    request.header("cookie")?.split(';').find_map(|pair| {
        let value = pair.trim().strip_prefix("AuthSession=")?;
        Some(value.trim_matches('"'))
    })
}
