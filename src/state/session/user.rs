//! The user of a session.
//!
//! Each session has one, so it is small: the name and the credentials are stored in one text, and
//! the next check in tenths of a second.

use crate::state::timers::Millis;
use crate::wire::couchdb::{Credentials, Identity};
use crate::wire::secret::Secret;

/// A user who is logged in.
#[derive(Debug)]
pub(super) struct User {
    /// Name, directly followed by the value of the cookie or the token.
    text: Secret,
    /// Roles of the user.
    pub(super) roles: Box<[Box<str>]>,
    /// Time of the next check whether the user is still logged in, in tenths of a second.
    check_at: u32,
    /// Length of the name, in bytes.
    name_length: u16,
    kind: Kind,
    /// Whether the last check got no reply from CouchDB.
    doubtful: bool,
}

/// Unit of [`User::check_at`], in milliseconds.
const CHECK_UNIT: Millis = 100;
/// Value for no check.
const NEVER: u32 = u32::MAX;

/// Kind of the text after the name.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Nothing,
    Cookie,
    /// A cookie from a login with a password, which the client still has.
    CookieByPassword,
    Token,
}

impl User {
    /// Creates the user of a confirmed login.
    pub(super) fn new(identity: &Identity) -> Self {
        let mut user = Self {
            text: Secret::default(),
            roles: identity.roles.clone(),
            check_at: NEVER,
            name_length: 0,
            kind: Kind::Nothing,
            doubtful: false,
        };
        let cookie = identity.cookie.as_ref();
        let cookie = cookie.map_or(Credentials::Unusable, |cookie| Credentials::cookie(cookie.reveal()));
        user.set(&identity.name, &cookie);
        user
    }

    /// Returns the name.
    pub(super) fn name(&self) -> &str {
        &self.text.reveal()[..self.name_length as usize]
    }

    /// Returns the credentials for the next check.
    pub(super) fn credentials(&self) -> Credentials {
        let behind = &self.text.reveal()[self.name_length as usize..];
        match self.kind {
            Kind::Nothing => Credentials::Unusable,
            Kind::Cookie | Kind::CookieByPassword => Credentials::Cookie(Secret::new(behind)),
            Kind::Token => Credentials::Token(Secret::new(behind)),
        }
    }

    /// Replaces the credentials. A password is not kept.
    pub(super) fn set_credentials(&mut self, credentials: &Credentials) {
        let name: Box<str> = self.name().into();
        self.set(&name, credentials);
    }

    /// Returns the time of the next check.
    pub(super) fn check_at(&self) -> Option<Millis> {
        (self.check_at != NEVER).then(|| Millis::from(self.check_at) * CHECK_UNIT)
    }

    /// Schedules the next check, up to a tenth of a second later.
    pub(super) fn set_check_at(&mut self, at: Option<Millis>) {
        self.check_at = at.map_or(NEVER, |at| u32::try_from(at.div_ceil(CHECK_UNIT)).unwrap_or(NEVER));
    }

    /// Notes that the user logged in with a password.
    pub(super) fn set_by_password(&mut self) {
        if matches!(self.kind, Kind::Cookie) {
            self.kind = Kind::CookieByPassword;
        }
    }

    /// Notes that CouchDB has confirmed the user.
    pub(super) fn confirm(&mut self) {
        self.doubtful = false;
    }

    /// Notes that CouchDB could not be asked in time.
    pub(super) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Returns whether a rejected cookie may simply have expired, for a client that has a password.
    pub(super) fn may_have_expired(&self) -> bool {
        self.doubtful && matches!(self.kind, Kind::CookieByPassword)
    }

    fn set(&mut self, name: &str, credentials: &Credentials) {
        let (kind, behind) = match credentials {
            // A renewed cookie keeps its origin.
            Credentials::Cookie(value) if matches!(self.kind, Kind::CookieByPassword) => {
                (Kind::CookieByPassword, value.reveal())
            }
            Credentials::Cookie(value) => (Kind::Cookie, value.reveal()),
            Credentials::Token(token) => (Kind::Token, token.reveal()),
            Credentials::Password { .. }
            | Credentials::TooLong
            | Credentials::Unusable
            | Credentials::UnusableToken => (Kind::Nothing, ""),
        };
        self.kind = kind;
        self.name_length = u16::try_from(name.len()).expect("replies of CouchDB are shorter");
        self.text = Secret::new(format!("{name}{behind}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_the_credentials_that_were_set() {
        let roles: Box<[Box<str>]> = ["a".into()].into();
        let cookie = Some(Secret::new("AuthSession=abc; Path=/"));
        let mut user = User::new(&Identity { name: "jürgen".into(), roles: roles.clone(), cookie });
        assert_eq!((user.name(), &user.roles), ("jürgen", &roles));
        assert_eq!(user.credentials(), Credentials::cookie("AuthSession=abc"));
        for credentials in [Credentials::token("x.y.z"), Credentials::Unusable, Credentials::cookie("AuthSession=d")] {
            user.set_credentials(&credentials);
            assert_eq!((user.name(), user.credentials()), ("jürgen", credentials));
        }
        assert_eq!(user.check_at(), None);
        user.set_check_at(Some(2_001));
        assert_eq!(user.check_at(), Some(2_100));
        user.set_check_at(Some(Millis::from(u32::MAX) * CHECK_UNIT));
        assert_eq!(user.check_at(), None, "in 13 years");
        assert!(!format!("{user:?}").contains("jürgen"));
    }

    #[test]
    fn detects_cookies_that_may_have_expired() {
        let cookie = || Some(Secret::new("AuthSession=abc; Path=/"));
        let mut user = User::new(&Identity { name: "u".into(), roles: [].into(), cookie: cookie() });
        user.doubt();
        assert!(!user.may_have_expired(), "the client has nothing but the cookie");
        user.set_by_password();
        assert!(user.may_have_expired());
        user.confirm();
        assert!(!user.may_have_expired());
        user.set_credentials(&Credentials::cookie("AuthSession=newer"));
        user.doubt();
        assert!(user.may_have_expired() && user.credentials() == Credentials::cookie("AuthSession=newer"));
        user.set_credentials(&Credentials::token("x.y.z"));
        user.set_by_password();
        assert!(!user.may_have_expired());
    }
}
