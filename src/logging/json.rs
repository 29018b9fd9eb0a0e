//! Lines as JSON objects.

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::line::Line;
use crate::wire::json::write_string;

/// UTC to the millisecond (RFC 3339).
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Appends a line with its line feed.
pub(super) fn write_line(out: &mut Vec<u8>, line: &Line) {
    out.extend_from_slice(b"{\"time\":");
    write_string(out, &timestamp(line.time));
    out.extend_from_slice(b",\"level\":");
    write_string(out, &line.level.as_str().to_ascii_lowercase());
    out.extend_from_slice(b",\"message\":");
    write_string(out, &line.message);
    out.extend_from_slice(&line.fields);
    out.extend_from_slice(b"}\n");
}

fn timestamp(time: OffsetDateTime) -> String {
    time.format(TIME).expect("the time has all components of the format")
}

#[cfg(test)]
mod tests {
    use log::Record;
    use log::kv::Value;

    use super::*;

    #[test]
    fn writes_utc_to_the_millisecond() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (7, "1970-01-01T00:00:00.007Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_459_624_999, "2026-11-23T18:47:04.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            let time = OffsetDateTime::from_unix_timestamp_nanos(milliseconds * 1_000_000).unwrap();
            assert_eq!(timestamp(time), text);
        }
    }

    #[test]
    fn line_is_an_object_with_the_fields_of_the_event() {
        let fields: [(&str, Value<'_>); 3] =
            [("status", Value::from(200_u16)), ("user", Value::null()), ("path", Value::from("/a\"b\\\u{1}\u{2028}"))];
        let mut record = Record::builder();
        record.level(log::Level::Info).target("there").key_values(&fields);
        let mut line = Line::capture(&record.args(format_args!("one\ntwo \"ü\"")).build(), true);
        line.time = OffsetDateTime::from_unix_timestamp(951_782_400).unwrap();
        let mut out = Vec::new();
        write_line(&mut out, &line);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "time": "2000-02-29T00:00:00.000Z", "level": "info", "message": "one\ntwo \"ü\"",
            "status": 200, "path": "/a\"b\\\u{1}\u{2028}"
        });
        assert_eq!(value, expected);
    }
}
