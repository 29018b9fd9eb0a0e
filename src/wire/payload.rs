//! The bodies of Engine.IO's polling requests: several packets in one text, in both versions, and
//! the two encodings for old browsers, binary framing and JSONP.

use std::io::Write as _;

use super::engine_io::Version;
use super::url;

/// Separator of packets in version 4.
const SEPARATOR: u8 = 0x1e;
/// Most digits of a length in version 3.
const MAX_DIGITS: usize = 6;

/// Appends a packet to a payload.
pub fn write_packet(out: &mut Vec<u8>, packet: &[u8], version: Version) {
    match version {
        Version::V3 => {
            let length = std::str::from_utf8(packet).map_or(packet.len(), utf16_length);
            let _ = write!(out, "{length}:");
        }
        Version::V4 if out.is_empty() => {}
        Version::V4 => out.push(SEPARATOR),
    }
    out.extend_from_slice(packet);
}

/// Splits a text payload into packets. None if it is malformed.
pub fn split(payload: &str, version: Version) -> Option<Vec<&str>> {
    match version {
        Version::V4 => Some(payload.split(char::from(SEPARATOR)).collect()),
        Version::V3 => {
            let (mut packets, mut rest) = (Vec::new(), payload);
            while !rest.is_empty() {
                let (digits, after) = rest.split_once(':')?;
                if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                // Numbers of so few digits cannot overflow.
                let end = utf16_index(after, digits.parse().ok()?)?;
                packets.push(&after[..end]);
                rest = &after[end..];
            }
            (!packets.is_empty()).then_some(packets)
        }
    }
}

/// Splits a payload with the binary framing of version 3, `\x00<digits>\xff<bytes>`, where the
/// value of each byte is a digit. None if it is malformed, or holds a binary packet (`\x01`).
pub fn split_binary(mut payload: &[u8]) -> Option<Vec<&str>> {
    let mut packets = Vec::new();
    while !payload.is_empty() {
        let rest = payload.strip_prefix(&[0])?;
        let digits = rest.iter().take(MAX_DIGITS + 1).take_while(|byte| **byte < 10).count();
        if digits == 0 || digits > MAX_DIGITS {
            return None;
        }
        let length = rest[..digits].iter().fold(0, |length, digit| length * 10 + usize::from(*digit));
        let rest = rest[digits..].strip_prefix(&[0xff])?;
        packets.push(std::str::from_utf8(rest.get(..length)?).ok()?);
        payload = &rest[length..];
    }
    (!packets.is_empty()).then_some(packets)
}

/// Wraps a payload for a JSONP callback: `___eio[number]("…");`.
pub fn wrap_jsonp(payload: &[u8], callback: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + payload.len() / 8 + 24);
    let _ = write!(out, "___eio[{callback}](");
    let text = String::from_utf8_lossy(payload);
    let mut json = Vec::new();
    super::json::write_string(&mut json, &text);
    // These two end a line in a script, but not in JSON.
    let json = String::from_utf8(json).expect("JSON is text");
    out.extend_from_slice(json.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029").as_bytes());
    out.extend_from_slice(b");");
    out
}

/// Returns the payload in the form post of a JSONP client, whose field `d` has escaped line ends.
/// None if that field is missing.
pub fn unwrap_jsonp(body: &str) -> Option<String> {
    let (_, data) = url::query_pairs(body).find(|(name, _)| name == "d")?;
    // `\\n` stands for `\n`, and `\n` for a line end.
    let mut out = String::with_capacity(data.len());
    let mut rest = &*data;
    while let Some(at) = rest.find("\\n") {
        let before = &rest[..at];
        if let Some(before) = before.strip_suffix('\\') {
            out.push_str(before);
            out.push_str("\\n");
        } else {
            out.push_str(before);
            out.push('\n');
        }
        rest = &rest[at + 2..];
    }
    out.push_str(rest);
    Some(out)
}

/// Returns the length of a text in UTF-16 code units, as JavaScript counts.
fn utf16_length(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

/// Returns the byte index behind a number of UTF-16 code units. None if the text is shorter, or the
/// index would split a character.
fn utf16_index(text: &str, units: usize) -> Option<usize> {
    let mut left = units;
    for (at, character) in text.char_indices() {
        if left == 0 {
            return Some(at);
        }
        left = left.checked_sub(character.len_utf16())?;
    }
    (left == 0).then_some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(packets: &[&str], version: Version) -> Vec<u8> {
        let mut out = Vec::new();
        for packet in packets {
            write_packet(&mut out, packet.as_bytes(), version);
        }
        out
    }

    const PACKETS: &[&str] = &["0{\"sid\":\"x\"}", "40", "4grün", "4\u{1f600}:1:2", "6"];

    #[test]
    fn payloads_round_trip() {
        for version in [Version::V3, Version::V4] {
            let payload = joined(PACKETS, version);
            assert_eq!(split(std::str::from_utf8(&payload).unwrap(), version).unwrap(), PACKETS);
        }
        assert_eq!(joined(&["40"], Version::V3), b"2:40");
        assert_eq!(joined(&["4\u{1f600}"], Version::V3), "3:4\u{1f600}".as_bytes(), "in JavaScript's units");
        assert_eq!(joined(&["40", "2"], Version::V4), b"40\x1e2");
    }

    #[test]
    fn rejects_prefixes_and_malformed_payloads() {
        let payload = joined(PACKETS, Version::V3);
        let payload = std::str::from_utf8(&payload).unwrap();
        let ends: Vec<usize> = (1..PACKETS.len()).map(|n| joined(&PACKETS[..n], Version::V3).len()).collect();
        for end in (0..payload.len()).filter(|end| payload.is_char_boundary(*end) && !ends.contains(end)) {
            assert_eq!(split(&payload[..end], Version::V3), None, "{end}");
        }
        for nonsense in ["x", "1", ":", "-1:a", "+1:a", "1:", "3:ab", "1:\u{1f600}", "9999999:a", "1:ab", " 1:a"] {
            assert_eq!(split(nonsense, Version::V3), None, "{nonsense}");
        }
    }

    #[test]
    fn splits_binary_framing() {
        let framed = b"\x00\x02\xff40\x00\x01\x01\xff42[\"grx\xc3\xbc\"]\x00\x01\xff2";
        assert_eq!(split_binary(framed), Some(vec!["40", "42[\"grx\u{fc}\"]", "2"]));
        for end in (0..framed.len()).filter(|end| ![5, 20].contains(end)) {
            assert_eq!(split_binary(&framed[..end]), None, "{end}");
        }
        for broken in
            [&b"\x01\x01\xff2"[..], b"\x00\xff", b"\x00\x01\xff\xff", b"\x00\x00\x00\x00\x00\x00\x00\x01\xff2", b"40"]
        {
            assert_eq!(split_binary(broken), None, "{broken:x?}");
        }
    }

    #[test]
    fn wraps_and_unwraps_jsonp() {
        assert_eq!(wrap_jsonp("2:40\u{2028}\"".as_bytes(), 7), br#"___eio[7]("2:40\u2028\"");"#);
        assert_eq!(unwrap_jsonp("d=2%3A40").as_deref(), Some("2:40"));
        assert_eq!(unwrap_jsonp("x=1&d=a%5Cnb%5C%5Cnc").as_deref(), Some("a\nb\\nc"));
        assert_eq!(unwrap_jsonp("e=2%3A40"), None);
    }
}
