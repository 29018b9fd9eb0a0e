//! The rule for reading a database: its `_security` object, as an admin sees it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json;

/// The `_security` of a database. A part of it that is malformed admits no user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    is_public: bool,
    admins: Group,
    members: Group,
    /// Users in Cloudant's own key.
    listed: Names,
}

impl Security {
    /// Parses the response to `GET /{db}/_security`. None if it is no JSON object.
    ///
    /// Members are under `members`, or under the legacy key `readers` if `members` is missing
    /// (`get_members` in CouchDB's `couch_db.erl`). Cloudant has a key of its own, `cloudant`.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let raw: RawSecurity<'_> = json::parse_object(body)?;
        let admins = raw.admins.read();
        let (members, listed) = match (raw.members, raw.cloudant) {
            (Once::Missing, cloudant) => (raw.readers.read(), cloudant),
            (members, _) => (members.read(), Once::Missing),
        };
        let is_public = matches!(listed, Once::Missing) && members.is_empty();
        Some(Self { is_public, admins, members, listed: listed.read_listed() })
    }

    /// Returns whether a user may read the database. Every user may if it has no members.
    pub fn may_read(&self, name: &str, roles: &[Box<str>]) -> bool {
        is_server_admin(roles)
            || self.is_public
            || self.members.has(name, roles)
            || self.admins.has(name, roles)
            || self.listed.contains(name)
    }

    /// Returns the approximate memory of the object, in bytes.
    pub fn bytes(&self) -> usize {
        let sets = [&self.admins.names, &self.admins.roles, &self.members.names, &self.members.roles, &self.listed];
        size_of::<Self>() + sets.into_iter().map(Names::bytes).sum::<usize>()
    }
}

/// Names and roles that are admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Group {
    names: Names,
    roles: Names,
    /// Whether a part of the group is malformed.
    is_broken: bool,
}

impl Group {
    fn has(&self, name: &str, roles: &[Box<str>]) -> bool {
        self.names.contains(name) || roles.iter().any(|role| self.roles.contains(role))
    }

    fn is_empty(&self) -> bool {
        !self.is_broken && self.names.is_empty() && self.roles.is_empty()
    }
}

/// A set of names with lookups in constant time.
#[derive(Clone, Debug)]
enum Names {
    Few(Box<[Box<str>]>),
    Many(Box<ManyNames>),
}

/// Names in one text, each followed by [`END`].
#[derive(Clone, Debug)]
struct ManyNames {
    text: Box<str>,
    /// Start and end of each name in `text`.
    places: HashTable<(u32, u32)>,
    hasher: RandomState,
}

/// Most names that are searched one by one.
const FEW: usize = 8;
/// Follows each name. No user or role of CouchDB has this character in its name.
const END: char = '\0';

impl Default for Names {
    fn default() -> Self {
        Self::Few([].into())
    }
}

impl Names {
    fn new(names: &[Cow<'_, str>]) -> Self {
        if names.len() <= FEW {
            return Self::Few(names.iter().map(|name| (&**name).into()).collect());
        }
        let mut text = String::with_capacity(names.iter().map(|name| name.len() + 1).sum());
        let hasher = RandomState::new();
        let mut places = HashTable::with_capacity(names.len());
        for name in names {
            let start = place(text.len());
            text.push_str(name);
            let end = place(text.len());
            text.push(END);
            let hash = |&(start, end): &(u32, u32)| hasher.hash_one(&text[start as usize..end as usize]);
            let is_same = |&(start, end): &(u32, u32)| text[start as usize..end as usize] == **name;
            places.entry(hasher.hash_one(&**name), is_same, hash).or_insert((start, end));
        }
        Self::Many(Box::new(ManyNames { text: text.into(), places, hasher }))
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Few(names) => names.iter().any(|one| **one == *name),
            Self::Many(many) => {
                let is_same = |&(start, end): &(u32, u32)| many.text[start as usize..end as usize] == *name;
                many.places.find(many.hasher.hash_one(name), is_same).is_some()
            }
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Few(names) if names.is_empty())
    }

    /// Returns the memory of the names besides the set itself, in bytes.
    fn bytes(&self) -> usize {
        match self {
            Self::Few(names) => names.iter().map(|name| size_of::<Box<str>>() + name.len()).sum(),
            Self::Many(many) => size_of::<ManyNames>() + many.text.len() + many.places.allocation_size(),
        }
    }
}

/// Compares the lists that the sets were made from. Lists in different order count as different.
impl PartialEq for Names {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Few(one), Self::Few(other)) => one == other,
            (Self::Many(one), Self::Many(other)) => one.text == other.text,
            _ => false,
        }
    }
}

impl Eq for Names {}

/// Returns a place in a text of CouchDB. Such texts are far shorter than 4 GiB.
fn place(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// The value of a key in an object.
#[derive(Default)]
enum Once<'a> {
    #[default]
    Missing,
    Value(&'a RawValue),
    /// The key is present more than once. Parsers differ in which one counts.
    Twice,
}

impl<'a> Once<'a> {
    fn put(&mut self, value: &'a RawValue) {
        *self = if matches!(self, Self::Missing) { Self::Value(value) } else { Self::Twice };
    }

    /// Reads a group. A missing group is empty.
    fn read(self) -> Group {
        let group: Option<RawGroup<'_>> = match self {
            Self::Missing => return Group::default(),
            Self::Value(value) => json::parse_object(value.get().as_bytes()),
            Self::Twice => None,
        };
        let Some(RawGroup { names, roles }) = group else { return Group { is_broken: true, ..Group::default() } };
        let (names, roles) = (names.read_names(), roles.read_names());
        let is_broken = names.is_none() || roles.is_none();
        Group { names: names.unwrap_or_default(), roles: roles.unwrap_or_default(), is_broken }
    }

    /// Reads an array of names. None if it is something else or holds something else.
    fn read_names(self) -> Option<Names> {
        match self {
            Self::Missing => Some(Names::default()),
            Self::Value(value) => {
                let names: Vec<json::Text<'_>> = serde_json::from_str(value.get()).ok()?;
                let names: Vec<Cow<'_, str>> = names.into_iter().map(|name| name.0).collect();
                (!names.iter().any(|name| name.contains(END))).then(|| Names::new(&names))
            }
            Self::Twice => None,
        }
    }

    /// Reads Cloudant's object of names with their roles. Returns the names that may read.
    fn read_listed(self) -> Names {
        let Self::Value(value) = self else { return Names::default() };
        let listed: HashMap<Cow<'_, str>, &RawValue> = json::parse_object(value.get().as_bytes()).unwrap_or_default();
        let may_read = |roles: &RawValue| {
            let roles: Vec<json::Text<'_>> = serde_json::from_str(roles.get()).unwrap_or_default();
            roles.iter().any(|role| CLOUDANT_READERS.contains(&&*role.0))
        };
        let mut names: Vec<_> = listed.into_iter().filter(|(_, roles)| may_read(roles)).map(|(name, _)| name).collect();
        names.retain(|name| !name.contains(END));
        names.sort_unstable();
        Names::new(&names)
    }
}

/// Roles of Cloudant that may read.
const CLOUDANT_READERS: [&str; 2] = ["_reader", "_admin"];

#[derive(Default)]
struct RawSecurity<'a> {
    admins: Once<'a>,
    members: Once<'a>,
    readers: Once<'a>,
    cloudant: Once<'a>,
}

#[derive(Default)]
struct RawGroup<'a> {
    names: Once<'a>,
    roles: Once<'a>,
}

/// An object with known keys.
trait Keys<'a>: Default {
    fn key(&mut self, name: &str) -> Option<&mut Once<'a>>;
}

impl<'a> Keys<'a> for RawSecurity<'a> {
    fn key(&mut self, name: &str) -> Option<&mut Once<'a>> {
        match name {
            "admins" => Some(&mut self.admins),
            "members" => Some(&mut self.members),
            "readers" => Some(&mut self.readers),
            "cloudant" => Some(&mut self.cloudant),
            _ => None,
        }
    }
}

impl<'a> Keys<'a> for RawGroup<'a> {
    fn key(&mut self, name: &str) -> Option<&mut Once<'a>> {
        match name {
            "names" => Some(&mut self.names),
            "roles" => Some(&mut self.roles),
            _ => None,
        }
    }
}

/// Visits an object key by key. Derived code of serde would reject a repeated key.
struct ObjectVisitor<T>(T);

impl<'de, T: Keys<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<T, A::Error> {
        while let Some(json::Text(name)) = map.next_key()? {
            match self.0.key(&name) {
                Some(value) => value.put(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(self.0)
    }
}

impl<'de> Deserialize<'de> for RawSecurity<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(Self::default()))
    }
}

impl<'de> Deserialize<'de> for RawGroup<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(Self::default()))
    }
}

/// Longest `_security` that is read, in bytes.
pub const MAX_SECURITY: usize = 1024 * 1024;

/// The reason why a user may not subscribe to a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The user may not read the database.
    NotReader,
    /// The `_security` is longer than [`MAX_SECURITY`], so only server admins may subscribe.
    TooLarge,
    /// Memory for the `_security` is exhausted, so only server admins may subscribe.
    NoRoom,
}

impl Refusal {
    /// Returns the message for the client.
    pub fn message(self) -> &'static str {
        match self {
            Self::NotReader => "you may not read this database",
            Self::TooLarge => "the _security of this database is larger than 1 MiB, so only server admins may watch it",
            Self::NoRoom => {
                "all large _security objects take more than 64 MiB together, so only server admins may watch this \
                 database at the moment"
            }
        }
    }
}

/// Role of server admins.
const SERVER_ADMIN: &str = "_admin";

/// Returns whether a user with these roles may read everything.
pub fn is_server_admin(roles: &[Box<str>]) -> bool {
    roles.iter().any(|role| **role == *SERVER_ADMIN)
}

/// Returns whether a database is CouchDB's own, which only server admins may read.
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
    fn database_without_members_is_public_and_new_ones_are_for_admins() {
        for everyone in ["{}", r#"{"members":{}}"#, r#"{"members":{"names":[],"roles":[]},"admins":{"names":["x"]}}"#] {
            assert!(may(everyone, "u", &[]), "{everyone}");
        }
        let fresh = r#"{"members":{"roles":["_admin"]},"admins":{"roles":["_admin"]},"cloudant":{}}"#;
        assert!(!may(fresh, "u", &[]) && may(fresh, "root", &["_admin"]));
        assert!(is_system("_users") && !is_system("a_b"));
    }

    #[test]
    fn readers_replace_missing_members() {
        let legacy = r#"{"admins":{"names":["boss"]},"readers":{"names":["u1"],"roles":["team"]}}"#;
        assert!(may(legacy, "u1", &[]) && may(legacy, "x", &["team"]) && may(legacy, "boss", &[]));
        assert!(!may(legacy, "u2", &["u1"]));
        assert!(may(r#"{"readers":{"names":[],"roles":[]}}"#, "u2", &[]), "no member is named");
        for members in [r#"{"names":["u2"]}"#, r#"{"names":["u2"],"roles":[]}"#] {
            let both = format!(r#"{{"readers":{{"names":["u1"]}},"members":{members}}}"#);
            assert!(may(&both, "u2", &[]) && !may(&both, "u1", &[]), "members count alone: {both}");
        }
        for broken in ["null", "7", "[]", r#"{"names":null}"#] {
            let both = format!(r#"{{"members":{broken},"readers":{{"names":["u1"]}}}}"#);
            assert!(!may(&both, "u1", &[]), "{both}");
        }
    }

    #[test]
    fn cloudant_object_admits_listed_users() {
        let listed = r#"{"cloudant":{"u1":["_reader"],"boss":["_writer","_admin"],"w":["_writer"],"e":[],"n":null}}"#;
        assert!(may(listed, "u1", &[]) && may(listed, "boss", &[]) && may(listed, "x", &["_admin"]));
        for name in ["u2", "w", "e", "n", "_reader", "cloudant"] {
            assert!(!may(listed, name, &["u1"]), "{name}");
        }
        for closed in ["{}", "null", "[]", "7", r#"{"u":"_reader"}"#] {
            let closed = format!(r#"{{"admins":{{"names":["boss"]}},"cloudant":{closed}}}"#);
            assert!(!may(&closed, "u", &[]) && may(&closed, "boss", &[]), "{closed}");
        }
        let with_readers = r#"{"cloudant":{"u1":["_reader"]},"readers":{"names":["u2"]}}"#;
        assert!(may(with_readers, "u1", &[]) && may(with_readers, "u2", &[]) && !may(with_readers, "u3", &[]));
        let with_members = r#"{"cloudant":{"u1":["_reader"]},"members":{"names":["u2"]}}"#;
        assert!(!may(with_members, "u1", &[]) && may(with_members, "u2", &[]));
    }

    #[test]
    fn malformed_part_admits_no_user() {
        for members in [
            "7",
            "null",
            "[]",
            r#""u""#,
            r#"{"names":"u"}"#,
            r#"{"names":null}"#,
            r#"{"names":[1]}"#,
            r#"{"names":["u",1]}"#,
            r#"{"names":[["u"]]}"#,
            r#"{"names":{"u":1}}"#,
            r#"{"names":[],"roles":{}}"#,
            r#"{"names":[],"names":[]}"#,
            r#"{"names":["u\u0000"]}"#,
        ] {
            let security = format!(r#"{{"admins":{{"names":["boss"]}},"members":{members}}}"#);
            assert!(!may(&security, "u", &[]) && !may(&security, "1", &[]), "{security}");
            assert!(may(&security, "boss", &[]) && may(&security, "x", &["_admin"]), "{security}");
        }
        let twice = r#"{"members":{"names":["u"]},"members":{}}"#;
        assert!(!may(twice, "u", &[]) && !may(twice, "v", &[]));
        assert!(!may(r#"{"admins":{"roles":[1]},"members":{"names":["v"]}}"#, "u", &["1"]));
        let partly = r#"{"members":{"names":["u"],"roles":7}}"#;
        assert!(may(partly, "u", &[]) && !may(partly, "v", &["7"]));
    }

    #[test]
    fn long_lists_are_sets() {
        let names: Vec<String> = (0..5_000).map(|number| format!("\"user-{number}\"")).collect();
        let of = |names: &[String]| format!(r#"{{"members":{{"names":[{0}],"roles":[{0},{0}]}}}}"#, names.join(","));
        let many = of(&names);
        assert!(may(&many, "user-0", &[]) && may(&many, "user-4999", &[]) && may(&many, "x", &["user-77"]));
        assert!(!may(&many, "user-5000", &[]) && !may(&many, "user-", &[]) && !may(&many, "", &[]));
        let parse = |text: &str| Security::parse(text.as_bytes()).expect("a security object");
        assert_eq!(parse(&many), parse(&many));
        assert_ne!(parse(&many), parse(&of(&names[1..])));
        assert_ne!(parse(&of(&names[..2])), parse(&of(&names[..3])));
    }

    #[test]
    fn rejects_anything_but_an_object() {
        for bad in ["", "[]", "null", "{", "7", "<html>", r#"{"members":}"#, "{}{}", r#"["admins"]"#] {
            assert_eq!(Security::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
