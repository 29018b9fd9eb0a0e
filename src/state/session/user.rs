//! Who logged in. There is one in each session, so it is small: the name, and what it is still good with, stand in one
//! text, and the next check is known to the second.

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
    /// The second in which CouchDB is asked again whether the user is still logged in.
    check_at: u32,
    /// How long the name is, in bytes.
    name_length: u16,
    kind: Kind,
}

/// No check is to come.
const NEVER: u32 = u32::MAX;

/// What stands behind the name.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Nothing,
    Cookie,
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
            Kind::Cookie => Credentials::Cookie(Secret::new(behind)),
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
        (self.check_at != NEVER).then(|| Millis::from(self.check_at) * 1_000)
    }

    /// Has CouchDB asked at a moment, or up to a second later.
    pub(super) fn set_check_at(&mut self, at: Option<Millis>) {
        self.check_at = at.map_or(NEVER, |at| u32::try_from(at.div_ceil(1_000)).unwrap_or(NEVER));
    }

    fn set(&mut self, name: &str, credentials: &Credentials) {
        let (kind, behind) = match credentials {
            Credentials::Cookie(value) => (Kind::Cookie, value.reveal()),
            Credentials::Token(token) => (Kind::Token, token.reveal()),
            Credentials::Password { .. } | Credentials::TooLong | Credentials::Unusable => (Kind::Nothing, ""),
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
        assert_eq!(user.check_at(), Some(3_000));
        assert!(!format!("{user:?}").contains("jürgen"));
    }
}
