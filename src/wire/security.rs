//! Who may read a database: its `_security` object, as an admin reads it.

use serde::Deserialize;

use super::json;

/// Who is let in by name or by role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Group {
    names: Box<[Box<str>]>,
    roles: Box<[Box<str>]>,
}

/// The `_security` of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Security {
    admins: Group,
    members: Group,
}

/// The role of server admins.
const SERVER_ADMIN: &str = "_admin";

impl Group {
    fn has(&self, name: &str, roles: &[Box<str>]) -> bool {
        self.names.iter().any(|one| **one == *name) || self.roles.iter().any(|one| roles.contains(one))
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.roles.is_empty()
    }
}

impl Security {
    /// Reads the answer to `GET /{db}/_security`; None when it is none.
    pub fn parse(body: &[u8]) -> Option<Self> {
        json::parse_object(body)
    }

    /// Whether a user may read the database. With no member named, everyone may.
    pub fn may_read(&self, name: &str, roles: &[Box<str>]) -> bool {
        is_server_admin(roles)
            || self.members.is_empty()
            || self.members.has(name, roles)
            || self.admins.has(name, roles)
    }
}

/// Whether someone with these roles may read everything.
pub fn is_server_admin(roles: &[Box<str>]) -> bool {
    roles.iter().any(|role| **role == *SERVER_ADMIN)
}

/// Whether a database is one of CouchDB's own, which only server admins may watch.
pub fn is_system(database: &str) -> bool {
    database.starts_with('_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(security: &str, name: &str, roles: &[&str]) -> bool {
        let roles: Vec<Box<str>> = roles.iter().map(|role| (*role).into()).collect();
        Security::parse(security.as_bytes()).expect("a security object").may_read(name, &roles)
    }

    #[test]
    fn members_and_admins_may_read() {
        let security = r#"{"admins":{"names":["boss"],"roles":["chiefs"]},"members":{"names":["u"],"roles":["team"]}}"#;
        for (name, roles, expected) in [
            ("u", &[][..], true),
            ("v", &["team"], true),
            ("boss", &[], true),
            ("v", &["x", "chiefs"], true),
            ("v", &["_admin"], true),
            ("v", &[], false),
            ("U", &[], false),
            ("team", &["u"], false),
        ] {
            assert_eq!(may(security, name, roles), expected, "{name} {roles:?}");
        }
    }

    #[test]
    fn without_members_everyone_may_and_a_new_database_has_admins_alone() {
        for everyone in ["{}", r#"{"members":{}}"#, r#"{"members":{"names":[],"roles":[]},"admins":{"names":["x"]}}"#] {
            assert!(may(everyone, "u", &[]), "{everyone}");
        }
        let fresh = r#"{"members":{"roles":["_admin"]},"admins":{"roles":["_admin"]},"cloudant":{}}"#;
        assert!(!may(fresh, "u", &[]) && may(fresh, "root", &["_admin"]));
        assert!(is_system("_users") && !is_system("a_b"));
    }

    #[test]
    fn what_is_no_security_object_is_none() {
        for bad in
            ["", "[]", "null", "{", r#"{"members":7}"#, r#"{"members":{"names":"u"}}"#, r#"{"admins":{"roles":[1]}}"#]
        {
            assert_eq!(Security::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
