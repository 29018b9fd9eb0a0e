//! The dates of HTTP.

use time::{Date, Month};

/// Parses a date (RFC 9110 section 5.6.7, IMF-fixdate) into seconds since 1970.
pub fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let (_, rest) = text.split_once(", ")?;
    let mut parts = rest.split(' ');
    let (day, month, year) = (number(parts.next()?)?, parts.next()?, number(parts.next()?)?);
    let (day, year) = (u8::try_from(day).ok()?, i32::try_from(year).ok()?);
    let (time, zone) = (parts.next()?, parts.next()?);
    let mut clock = time.split(':').map(number);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let month = MONTHS.chunks(3).position(|name| name == month.as_bytes())? + 1;
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let in_range = (1970..10_000).contains(&year) && hour < 24 && minute < 60 && second <= 60;
    if !in_range || zone != "GMT" || parts.next().is_some() || clock.next().is_some() {
        return None;
    }
    let date = Date::from_calendar_date(year, month, day).ok()?;
    let midnight = u64::try_from(date.midnight().assume_utc().unix_timestamp()).ok()?;
    Some(midnight + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_dates_of_the_calendar() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 29 Feb 2024 00:00:00 GMT", 1_709_164_800),
            ("Fri, 31 Dec 1999 23:59:60 GMT", 946_684_800),
        ] {
            assert_eq!(parse_date(text), Some(seconds), "{text}");
            for end in 0..text.len() {
                assert_eq!(parse_date(&text[..end]), None, "{}", &text[..end]);
            }
        }
        for bad in [
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 08:49:37 GMT ",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "1994-11-06T08:49:37Z",
        ] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }
}
