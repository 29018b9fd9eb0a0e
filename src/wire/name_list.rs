//! The database names of one message, in two or three allocations for any number of names.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::positions::Given;

/// A list of database names, none of them empty, each with the position that the client gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameList {
    text: String,
    /// End of each name in `text`.
    ends: Vec<u32>,
    /// Positions of the names; empty if the message has none.
    given: Vec<Given>,
}

impl NameList {
    /// Parses a JSON array of non-empty strings. None if it is something else.
    pub fn parse(json: &str) -> Option<Self> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let list = deserializer.deserialize_seq(ListVisitor).ok()?;
        deserializer.end().ok()?;
        Some(list)
    }

    /// Parses such an array, or a JSON object of positions (strings or null) by name.
    pub fn parse_with_positions(json: &str) -> Option<Self> {
        if !json.starts_with('{') {
            return Self::parse(json);
        }
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let list = deserializer.deserialize_map(ListVisitor).ok()?;
        deserializer.end().ok()?;
        Some(list)
    }

    /// Returns the number of names, duplicates included.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns a name and its position.
    pub fn get(&self, number: usize) -> Option<(&str, Given)> {
        let end = *self.ends.get(number)?;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        let given = self.given.get(number).copied().unwrap_or_default();
        Some((&self.text[start as usize..end as usize], given))
    }

    /// Returns the names and positions in the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Given)> {
        (0..self.len()).filter_map(|number| self.get(number))
    }

    /// Returns the length of the longest name, in bytes.
    pub fn longest(&self) -> usize {
        self.iter().map(|(name, _)| name.len()).max().unwrap_or(0)
    }

    fn push(&mut self, name: &str) -> bool {
        self.text.push_str(name);
        // A message is far shorter than 4 GiB.
        u32::try_from(self.text.len()).is_ok_and(|end| {
            self.ends.push(end);
            !name.is_empty()
        })
    }
}

/// Collects names for tests, empty ones included.
impl<'a> FromIterator<(&'a str, Option<&'a str>)> for NameList {
    fn from_iter<I: IntoIterator<Item = (&'a str, Option<&'a str>)>>(names: I) -> Self {
        let mut list = Self::default();
        for (name, position) in names {
            list.push(name);
            list.given.push(Given::of(position));
        }
        if list.given.iter().all(|given| *given == Given::Nothing) {
            list.given = Vec::new();
        }
        list
    }
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = NameList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("non-empty database names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<NameList, A::Error> {
        let mut list = NameList::default();
        while names.next_element_seed(NextName(&mut list))?.is_some() {}
        Ok(list)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut names: A) -> Result<NameList, A::Error> {
        let mut list = NameList::default();
        while names.next_key_seed(NextName(&mut list))?.is_some() {
            list.given.push(names.next_value_seed(NextPosition)?);
        }
        Ok(list)
    }
}

/// Parses a name straight into the list, so that a name with escapes needs no allocation of its
/// own.
struct NextName<'a>(&'a mut NameList);

impl<'de> DeserializeSeed<'de> for NextName<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NextName<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a non-empty database name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<(), E> {
        if self.0.push(name) { Ok(()) } else { Err(E::custom("an empty name")) }
    }
}

/// Parses the position of a name, or null.
struct NextPosition;

impl<'de> DeserializeSeed<'de> for NextPosition {
    type Value = Given;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Given, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for NextPosition {
    type Value = Given;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a position or null")
    }

    fn visit_unit<E: Error>(self) -> Result<Given, E> {
        Ok(Given::Nothing)
    }

    fn visit_str<E: Error>(self, position: &str) -> Result<Given, E> {
        Ok(Given::of(Some(position)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::positions::Position;

    fn names(list: &NameList) -> Vec<&str> {
        list.iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn parses_arrays_of_names() {
        let list = NameList::parse(r#" ["a","b\/c","gr\u00fcn","__proto__","a"] "#).expect("names");
        assert_eq!(names(&list), ["a", "b/c", "grün", "__proto__", "a"]);
        assert_eq!((list.len(), list.longest(), list.get(5)), (5, 9, None));
        assert!(list.iter().all(|(_, given)| given == Given::Nothing));
        assert!(NameList::parse("[]").is_some_and(|list| list.is_empty()));
        for wrong in ["", "null", "\"a\"", "{}", r#"["a",1]"#, r#"["a",""]"#, r#"["a""#, r#"["a"]x"#, r#"["a",null]"#] {
            assert_eq!(NameList::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn parses_positions() {
        let list = NameList::parse_with_positions(r#"{"a":"1.2.3","b":null,"c":"x"}"#).expect("names");
        let position = Position { counts: [1, 2, 3], ..Position::default() };
        let expected = [("a", Given::At(position)), ("b", Given::Nothing), ("c", Given::Foreign)];
        assert_eq!(list.iter().collect::<Vec<_>>(), expected);
        assert_eq!(names(&NameList::parse_with_positions(r#"["a","b"]"#).expect("names")), ["a", "b"]);
        for wrong in [r#"{"":null}"#, r#"{"a":1}"#, r#"{"a":"#, r#"{"a":null}}"#, "7"] {
            assert_eq!(NameList::parse_with_positions(wrong), None, "{wrong}");
        }
    }
}
