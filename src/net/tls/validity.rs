//! The validity of a certificate, which rustls does not return.

use time::{Date, Month};

/// Returns the first and the last second in which a certificate is valid, since 1970 (RFC 5280
/// section 4.1). None if it is malformed.
pub(super) fn validity(certificate: &[u8]) -> Option<(u64, u64)> {
    let (SEQUENCE, certificate, _) = next_value(certificate)? else { return None };
    let (SEQUENCE, mut rest, _) = next_value(certificate)? else { return None };
    // Certificates of version 1 have no version field.
    if let (VERSION, _, after) = next_value(rest)? {
        rest = after;
    }
    for expected in [INTEGER, SEQUENCE, SEQUENCE] {
        let (tag, _, after) = next_value(rest)?;
        if tag != expected {
            return None;
        }
        rest = after;
    }
    let (SEQUENCE, validity, _) = next_value(rest)? else { return None };
    let (first, not_before, validity) = next_value(validity)?;
    let (last, not_after, _) = next_value(validity)?;
    Some((seconds(first, not_before)?, seconds(last, not_after)?))
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// Splits the first value off a DER encoding (X.690): its tag, its content, and the rest.
fn next_value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], mut rest) = der.split_first_chunk()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        // No certificate needs more than three bytes for a length.
        let count = usize::from(first & 0x7f);
        let (bytes, after) = (count <= 3).then(|| rest.split_at_checked(count))??;
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    let (content, after) = rest.split_at_checked(length)?;
    Some((tag, content, after))
}

/// Parses a time of a certificate into seconds since 1970; earlier times are 0.
fn seconds(tag: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let (years, rest) = digits.split_at_checked(match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    })?;
    let number = |digits: &[u8]| digits.iter().fold(0, |number, digit| number * 10 + i32::from(digit - b'0'));
    let year = match (tag, number(years)) {
        (UTC_TIME, year @ 50..) => 1900 + year,
        (UTC_TIME, year) => 2000 + year,
        (_, year) => year,
    };
    let rest: &[u8; 10] = rest.try_into().ok()?;
    let [month, day] = [0, 2].map(|at| number(&rest[at..at + 2]));
    let [hour, minute, second] = [4, 6, 8].map(|at| i64::from(number(&rest[at..at + 2])));
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(year, month, u8::try_from(day).ok()?).ok()?;
    let midnight = date.midnight().assume_utc().unix_timestamp();
    Some(u64::try_from(midnight + hour * 3_600 + minute * 60 + second).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_times_of_certificates() {
        for (tag, text, expected) in [
            (UTC_TIME, &b"700101000000Z"[..], Some(0)),
            (UTC_TIME, b"491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, b"500101000000Z", Some(0)),
            (UTC_TIME, b"000301000000Z", Some(951_868_800)),
            (GENERALIZED_TIME, b"20000229120000Z", Some(951_825_600)),
            (GENERALIZED_TIME, b"20261129054932Z", Some(1_795_931_372)),
            (GENERALIZED_TIME, b"99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, b"20261129054932Z", None),
            (UTC_TIME, b"700101000000+", None),
            (UTC_TIME, b"7001010000Z", None),
            (INTEGER, b"700101000000Z", None),
        ] {
            assert_eq!(seconds(tag, text), expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn parses_validity_and_rejects_every_prefix() {
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 2, 3);
        params.not_after = rcgen::date_time_ymd(2070, 1, 1);
        let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone();
        assert_eq!(validity(&der), Some((981_158_400, 3_155_760_000)));
        for end in 0..der.len() {
            assert_eq!(validity(&der[..end]), None, "{end}");
        }
    }
}
