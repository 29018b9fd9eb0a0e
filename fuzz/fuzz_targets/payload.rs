//! The bodies of polling requests: payloads of both versions, binary framing, JSONP.
//!
//! Asserted:
//! - packets written into one payload are the packets that it splits into: any packets in version
//!   3, and those without the separator in version 4;
//! - a payload that splits consists of exactly its packets and their framing; version 3 counts
//!   lengths as JavaScript does;
//! - a JSONP response is one script line with one JSON string, which is the payload;
//! - the form post of a JSONP client decodes to the client's text, completely and with a length
//!   limited by that of the post.

#![no_main]

use std::str;

use couchdb_howler::wire::engine_io::Version;
use couchdb_howler::wire::{payload, url};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    check_binary(data);
    let text = String::from_utf8_lossy(data);
    for version in [Version::V3, Version::V4] {
        check_split(&text, version);
        // The lines of the input as packets.
        check_joined(&text.split('\n').collect::<Vec<_>>(), version);
    }
    check_jsonp(data, &text);
});

fn check_joined(packets: &[&str], version: Version) {
    let separator = |packet: &&str| version == Version::V4 && (packet.is_empty() || packet.contains('\x1e'));
    if packets.iter().any(separator) {
        return;
    }
    let mut joined = Vec::new();
    for packet in packets {
        payload::write_packet(&mut joined, packet.as_bytes(), version);
    }
    let joined = str::from_utf8(&joined).expect("a text");
    assert_eq!(payload::split(joined, version).as_deref(), Some(packets));
}

fn check_split(text: &str, version: Version) {
    let Some(packets) = payload::split(text, version) else {
        assert_eq!(version, Version::V3, "version 4 accepts any text");
        return;
    };
    let mut rest = text;
    for (number, packet) in packets.iter().enumerate() {
        let framing = match version {
            Version::V3 => {
                let (length, _) = rest.split_once(':').expect("a length");
                assert_eq!(length.parse(), Ok(packet.encode_utf16().count()));
                length.len() + 1
            }
            Version::V4 => usize::from(number > 0),
        };
        rest = rest[framing..].strip_prefix(packet).expect("the payload has the packet");
    }
    assert_eq!(rest, "");
    assert!(!packets.is_empty());
}

fn check_binary(data: &[u8]) {
    if let Some(packets) = payload::split_binary(data) {
        let (mut rewritten, mut at) = (Vec::new(), 0);
        for packet in &packets {
            // The same number of digits as in the input, which may have leading zeros.
            let digits = data[at + 1..].iter().position(|byte| *byte == 0xff).expect("an end of the length");
            write_binary(&mut rewritten, packet.as_bytes(), digits);
            at = rewritten.len();
        }
        assert_eq!(rewritten, data);
    }
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let mut framed = Vec::new();
    for line in &lines {
        write_binary(&mut framed, line, line.len().to_string().len());
    }
    let texts: Option<Vec<&str>> = lines.iter().map(|line| str::from_utf8(line).ok()).collect();
    assert_eq!(payload::split_binary(&framed), texts);
}

fn write_binary(out: &mut Vec<u8>, packet: &[u8], digits: usize) {
    out.push(0);
    out.extend(format!("{:0digits$}", packet.len()).bytes().map(|digit| digit - b'0'));
    out.push(0xff);
    out.extend_from_slice(packet);
}

fn check_jsonp(data: &[u8], text: &str) {
    let callback = data.iter().fold(0_u32, |number, byte| number.rotate_left(5) ^ u32::from(*byte));
    let script = String::from_utf8(payload::wrap_jsonp(data, callback)).expect("text");
    assert!(!script.contains(['\n', '\r', '\u{2028}', '\u{2029}']), "{script:?}");
    assert!(script.len() <= 6 * data.len() + 32);
    let json = script.strip_prefix(&format!("___eio[{callback}](")).and_then(|rest| rest.strip_suffix(");"));
    assert_eq!(serde_json::from_str::<String>(json.expect("a call")).ok().as_deref(), Some(text));

    // Encodes as the client does: it doubles a backslash before an `n`, then replaces line ends by
    // `\n`. A backslash before a line end is ambiguous.
    if !text.contains("\\\n") {
        let escaped = text.replace("\\n", "\\\n").replace('\n', "\\n");
        let mut form = "d=".to_owned();
        url::percent_encode(&escaped, &mut form);
        assert_eq!(payload::unwrap_jsonp(&form).as_deref(), Some(text), "{form}");
    }
    if let Some(posted) = payload::unwrap_jsonp(text) {
        // An invalid byte of UTF-8 becomes three bytes.
        assert!(posted.len() <= 3 * text.len());
    }
}
