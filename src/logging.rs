//! The log: one line an event on standard error, as text or as JSON.
//!
//! Logging never ends the server: a reader who is gone is not written to any more, and that is all. It is written without
//! a buffer, a line at once.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};

use crate::wire::json::write_string;

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Time, level, module and message.
    Text,
    /// A JSON object with `time`, `level`, `message`, and the fields of the event.
    Json,
}

/// Starts the log: what is less important than a level is left out.
///
/// # Errors
/// When it was started before.
pub fn start(level: LevelFilter, format: Format) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(Logger { level, format }))?;
    log::set_max_level(level);
    Ok(())
}

#[derive(Debug)]
struct Logger {
    level: LevelFilter,
    format: Format,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        #[allow(clippy::disallowed_methods, reason = "lines bear the date, which nothing else depends on")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = match self.format {
            Format::Text => text_line(record, now),
            Format::Json => json_line(record, now),
        };
        let _ = std::io::stderr().write_all(&line);
    }

    fn flush(&self) {}
}

fn text_line(record: &Record<'_>, now: Duration) -> Vec<u8> {
    let (time, level, target) = (timestamp(now), record.level(), record.target());
    format!("{time} {level:<5} [{target}] {}\n", record.args()).into_bytes()
}

fn json_line(record: &Record<'_>, now: Duration) -> Vec<u8> {
    let mut line = b"{\"time\":".to_vec();
    write_string(&mut line, &timestamp(now));
    line.extend_from_slice(b",\"level\":");
    write_string(&mut line, &record.level().as_str().to_ascii_lowercase());
    line.extend_from_slice(b",\"message\":");
    write_string(&mut line, &record.args().to_string());
    // Nothing that is visited here fails.
    let _ = record.key_values().visit(&mut Fields(&mut line));
    line.extend_from_slice(b"}\n");
    line
}

/// Appends fields to an object.
struct Fields<'a>(&'a mut Vec<u8>);

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let before = self.0.len();
        self.0.push(b',');
        write_string(self.0, key.as_str());
        self.0.push(b':');
        let start = self.0.len();
        value.visit(&mut Field(self.0))?;
        // What is not known is left out.
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
        write_string(self.0, &value.to_string());
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

/// A moment since 1970 in UTC, to the millisecond (RFC 3339).
fn timestamp(since: Duration) -> String {
    let seconds = since.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    let mut text = String::with_capacity(24);
    write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
        .expect("writing to a String cannot fail");
    text
}

/// The date so many days after the first of January 1970: years begin in March here, so that the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (1_795_459_624, "2026-11-23T18:47:04.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(timestamp(Duration::from_secs(seconds)), text);
        }
        assert_eq!(timestamp(Duration::from_millis(7)), "1970-01-01T00:00:00.007Z");
    }

    #[test]
    fn lines() {
        let fields: [(&str, Value<'_>); 3] =
            [("status", Value::from(200_u16)), ("user", Value::null()), ("path", Value::from("/a\"b\\\u{1}\u{2028}"))];
        let mut record = Record::builder();
        record.level(log::Level::Info).target("there").key_values(&fields);
        let at = Duration::from_secs(951_782_400);
        let json = json_line(&record.args(format_args!("one\ntwo \"ü\"")).build(), at);
        let text = String::from_utf8(json).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "time": "2000-02-29T00:00:00.000Z", "level": "info", "message": "one\ntwo \"ü\"",
            "status": 200, "path": "/a\"b\\\u{1}\u{2028}"
        });
        assert_eq!(value, expected);
        let text = text_line(&record.args(format_args!("hello")).build(), at);
        assert_eq!(String::from_utf8(text).unwrap(), "2000-02-29T00:00:00.000Z INFO  [there] hello\n");
    }
}
