//! A line in the queue: a bounded copy of a record.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, Record};
use time::OffsetDateTime;

use crate::wire::json::write_string;

/// Longest message, in bytes. A longer one is cut and marked.
const MAX_MESSAGE: usize = 2048;
/// Longest value of a field, in bytes. A longer one is cut and marked.
const MAX_VALUE: usize = 1024;

/// The parts of a record that are logged.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) time: OffsetDateTime,
    pub(super) level: Level,
    pub(super) target: Cow<'static, str>,
    pub(super) message: String,
    /// Fields of the event as members of a JSON object, each with a leading comma.
    pub(super) fields: Vec<u8>,
}

impl Line {
    /// Copies a record, with its fields only if the format shows them.
    pub(super) fn capture(record: &Record<'_>, with_fields: bool) -> Self {
        let module = record.module_path_static().filter(|module| *module == record.target());
        let target = module.map_or_else(|| record.target().to_owned().into(), Cow::Borrowed);
        let mut fields = Vec::new();
        if with_fields {
            // The visitor below never fails.
            let _ = record.key_values().visit(&mut Fields(&mut fields));
        }
        let message = cut(record.args(), MAX_MESSAGE);
        Self { time: OffsetDateTime::now_utc(), level: record.level(), target, message, fields }
    }

    /// Returns the approximate memory of the line, in bytes.
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.message.len() + self.fields.len()
    }
}

/// Appends the fields of a record to an object.
struct Fields<'a>(&'a mut Vec<u8>);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let before = self.0.len();
        self.0.push(b',');
        write_string(self.0, key.as_str());
        self.0.push(b':');
        let start = self.0.len();
        value.visit(&mut Field(self.0))?;
        // Leave out null.
        if self.0.len() == start {
            self.0.truncate(before);
        }
        Ok(())
    }
}

/// Appends a value.
struct Field<'a>(&'a mut Vec<u8>);

impl VisitValue<'_> for Field<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        write_string(self.0, &cut(&value, MAX_VALUE));
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0.extend_from_slice(value.to_string().as_bytes());
        Ok(())
    }
}

/// Formats a value, cut to a number of bytes.
fn cut(value: &dyn fmt::Display, room: usize) -> String {
    let mut bounded = Bounded { text: String::new(), room, cut: 0 };
    // Writing to it never fails. A value whose formatting fails is cut there.
    let _ = write!(bounded, "{value}");
    let Bounded { mut text, cut, .. } = bounded;
    if cut > 0 {
        let _ = write!(text, "… [{cut} bytes cut]");
    }
    text
}

/// Keeps a number of bytes and counts the others.
struct Bounded {
    text: String,
    room: usize,
    cut: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let mut end = part.len().min(self.room);
        while !part.is_char_boundary(end) {
            end -= 1;
        }
        self.text.push_str(&part[..end]);
        self.room -= end;
        if end < part.len() {
            self.room = 0;
            self.cut += part.len() - end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_and_marks_long_texts() {
        assert_eq!(cut(&"12345", 5), "12345");
        assert_eq!(cut(&"123456", 5), "12345… [1 bytes cut]");
        assert_eq!(cut(&"1234ü6", 5), "1234… [3 bytes cut]");
        assert_eq!(cut(&format_args!("{}{}{}", "12", "ü", "345"), 3), "12… [5 bytes cut]");
    }

    #[test]
    fn bounds_every_line() {
        let long = "\u{1}".repeat(100_000);
        let fields: [(&str, Value<'_>); 2] = [("path", Value::from(&*long)), ("user", Value::from_display(&long))];
        let line = |text: &str, with_fields| {
            let mut builder = Record::builder();
            builder.target("t").key_values(&fields);
            Line::capture(&builder.args(format_args!("{text}")).build(), with_fields)
        };
        let (line, short) = (line(&long, true), line("short", false));
        assert!(line.message.starts_with(&long[..MAX_MESSAGE]), "{}", line.message.len());
        assert!(line.message.ends_with("… [97952 bytes cut]"));
        assert!(line.size() < 20 * 1024, "{}", line.size());
        assert!(short.fields.is_empty() && short.size() < 200);
    }

    #[test]
    fn the_target_is_borrowed_where_it_is_the_module() {
        let mut builder = Record::builder();
        builder.target("a::b").module_path_static(Some("a::b"));
        assert!(matches!(Line::capture(&builder.build(), false).target, Cow::Borrowed("a::b")));
        builder.target("other");
        assert_eq!(Line::capture(&builder.build(), false).target, "other");
    }
}
