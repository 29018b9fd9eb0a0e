//! Who logged in. There is one in each session, so it is small: the name, and what it is still good with, stand in one
//! text, and the next check is known to a tenth of a second.

use crate::state::timers::Millis;
use crate::wire::couchdb::{Credentials, Identity};
use crate::wire::secret::Secret;

/// Somebody who is logged in.
#[derive(Debug)]
pub(super) struct User {
    /// The name, and the cookie's value or the token right behind it.
    text: Secret,
    /// What the user is beside the name.
    pub(super) roles: Box<[Box<str>]>,
    /// When CouchDB is asked again whether the user is still logged in, in tenths of a second.
    check_at: u32,
    /// How long the name is, in bytes.
    name_length: u16,
    kind: Kind,
    /// Whether CouchDB could not be asked since it named the user last.
    doubtful: bool,
}

/// The unit of [`User::check_at`], in milliseconds.
const CHECK_UNIT: Millis = 100;
/// No check is to come.
const NEVER: u32 = u32::MAX;

/// What stands behind the name.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Nothing,
    Cookie,
    /// A cookie that came of a login by password, which the client has still.
    CookieByPassword,
    Token,
}

impl User {
    /// Somebody whom CouchDB has just named.
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

    /// The name.
    pub(super) fn name(&self) -> &str {
        &self.text.reveal()[..self.name_length as usize]
    }

    /// What the user is still good with.
    pub(super) fn credentials(&self) -> Credentials {
        let behind = &self.text.reveal()[self.name_length as usize..];
        match self.kind {
            Kind::Nothing => Credentials::Unusable,
            Kind::Cookie | Kind::CookieByPassword => Credentials::Cookie(Secret::new(behind)),
            Kind::Token => Credentials::Token(Secret::new(behind)),
        }
    }

    /// Replaces what the user is still good with. A password is not kept.
    pub(super) fn set_credentials(&mut self, credentials: &Credentials) {
        let name: Box<str> = self.name().into();
        self.set(&name, credentials);
    }

    /// When CouchDB is asked again whether the user is still logged in.
    pub(super) fn check_at(&self) -> Option<Millis> {
        (self.check_at != NEVER).then(|| Millis::from(self.check_at) * CHECK_UNIT)
    }

    /// Has CouchDB asked at a moment, or up to a tenth of a second later.
    pub(super) fn set_check_at(&mut self, at: Option<Millis>) {
        self.check_at = at.map_or(NEVER, |at| u32::try_from(at.div_ceil(CHECK_UNIT)).unwrap_or(NEVER));
    }

    /// Takes note that the user logged in with a password.
    pub(super) fn set_by_password(&mut self) {
        if matches!(self.kind, Kind::Cookie) {
            self.kind = Kind::CookieByPassword;
        }
    }

    /// Takes note that CouchDB has named the user again.
    pub(super) fn confirm(&mut self) {
        self.doubtful = false;
    }

    /// Takes note that CouchDB could not be asked in time.
    pub(super) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Whether a cookie that CouchDB does not accept any more may just have run out, while the client has a password.
    pub(super) fn may_have_run_out(&self) -> bool {
        self.doubtful && matches!(self.kind, Kind::CookieByPassword)
    }

    fn set(&mut self, name: &str, credentials: &Credentials) {
        let (kind, behind) = match credentials {
            // What it came of stays.
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
        self.name_length = u16::try_from(name.len()).expect("answers of CouchDB are shorter");
        self.text = Secret::new(format!("{name}{behind}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_it_was_given() {
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
    fn knows_whether_a_cookie_may_have_run_out() {
        let cookie = || Some(Secret::new("AuthSession=abc; Path=/"));
        let mut user = User::new(&Identity { name: "u".into(), roles: [].into(), cookie: cookie() });
        user.doubt();
        assert!(!user.may_have_run_out(), "the client has nothing but the cookie");
        user.set_by_password();
        assert!(user.may_have_run_out());
        user.confirm();
        assert!(!user.may_have_run_out());
        user.set_credentials(&Credentials::cookie("AuthSession=newer"));
        user.doubt();
        assert!(user.may_have_run_out() && user.credentials() == Credentials::cookie("AuthSession=newer"));
        user.set_credentials(&Credentials::token("x.y.z"));
        user.set_by_password();
        assert!(!user.may_have_run_out());
    }
}
