//! Users, cookies, bearer tokens, and the lockout after wrong passwords.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::http::{Request, from_base64, http_date, json_string, to_base64url};

/// Wrong passwords for a name from one address before the name is locked for that address.
const WRONG_PASSWORDS: u32 = 5;

/// Users, tokens and failed logins.
#[derive(Debug)]
pub(super) struct Accounts {
    users: HashMap<String, User>,
    tokens: HashMap<String, Token>,
    failures: HashMap<(String, String), Failures>,
    cookie_life: Duration,
    lockout: Option<Duration>,
    /// Number of lockouts so far.
    pub(super) lockouts: usize,
    /// Key for the codes of cookies. It takes the place of CouchDB's HMAC: only this process knows
    /// it, but it is no cryptography.
    secret: RandomState,
    salts: u64,
}

#[derive(Debug)]
struct User {
    password: String,
    roles: Vec<String>,
    /// Changes with the password, so that older cookies become invalid.
    salt: u64,
}

#[derive(Debug)]
struct Token {
    name: String,
    roles: Vec<String>,
    expired: bool,
}

/// Wrong passwords for a name from an address.
#[derive(Debug)]
struct Failures {
    count: u32,
    /// Time at which they are forgotten, counted from the first one, or from the one that locked
    /// the name.
    until: Duration,
}

/// The user who sent a request.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    pub(super) name: Option<String>,
    pub(super) roles: Vec<String>,
    pub(super) method: Option<&'static str>,
    /// A new cookie, if the one of the request is older than a tenth of its lifetime.
    pub(super) renewed: Option<String>,
}

impl Identity {
    pub(super) fn is_admin(&self) -> bool {
        self.roles.iter().any(|role| role == "_admin")
    }

    /// Returns `"name":…,"roles":…` for a response.
    pub(super) fn to_json(&self) -> String {
        let name = self.name.as_deref().map_or_else(|| "null".to_owned(), json_string);
        let roles = serde_json::Value::from(self.roles.clone());
        format!(r#""name":{name},"roles":{roles}"#)
    }
}

/// The reason to reject a request before its target is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Unknown name or wrong password.
    Incorrect,
    /// Too many wrong passwords.
    Locked,
    /// The cookie is not base64url of `a:b:c`.
    MalformedCookie,
    /// An unknown bearer token.
    BadToken,
    /// An expired bearer token.
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

    /// Adds a user, or replaces the user of that name.
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

    /// Gives cookies another life, including those that are out.
    pub(super) fn set_cookie_life(&mut self, life: Duration) {
        self.cookie_life = life;
    }

    /// Forgets wrong passwords, as a restarted CouchDB does.
    pub(super) fn forget_failures(&mut self) {
        self.failures.clear();
    }

    /// Returns the sender of a request, in CouchDB's order: a valid cookie first, then the
    /// `Authorization` header. An invalid cookie counts as none.
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

    /// Returns the value of a `Set-Cookie` that logs the user in.
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

    /// Checks a cookie; `Ok(None)` if it is forged or expired, or if there is no such user.
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

/// Returns the value of the cookie `AuthSession`, which may be quoted.
fn session_cookie(request: &Request) -> Option<&str> {
    request.header("cookie")?.split(';').find_map(|pair| {
        let value = pair.trim().strip_prefix("AuthSession=")?;
        Some(value.trim_matches('"'))
    })
}
