//! The bodies of polling requests: payloads of both versions, binary framing, JSONP.
//!
//! Asserted:
//! - packets that are written into one payload are the packets that it is split into, whatever is in them
//!   (version 3), or whatever but the separator (version 4);
//! - a payload that can be split is its packets and their framing, to the byte: nothing is left out, read twice
//!   or made up; and version 3 counts as JavaScript does;
//! - an answer to a JSONP callback is one script line with one JSON string, and that is the payload;
//! - the form post of a JSONP client is read as the text that the client meant; all of it in one piece, bounded by
//!   what came.

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
        // The input as packets, one a line.
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
    let joined = str::from_utf8(&joined).expect("texts make a text");
    assert_eq!(payload::split(joined, version).as_deref(), Some(packets));
}

fn check_split(text: &str, version: Version) {
    let Some(packets) = payload::split(text, version) else {
        assert_eq!(version, Version::V3, "any text is a payload of version 4");
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
        rest = rest[framing..].strip_prefix(packet).expect("the packet stands there");
    }
    assert_eq!(rest, "");
    assert!(!packets.is_empty());
}

fn check_binary(data: &[u8]) {
    if let Some(packets) = payload::split_binary(data) {
        let (mut anew, mut at) = (Vec::new(), 0);
        for packet in &packets {
            // As many digits as stand there: zeros may come first.
            let digits = data[at + 1..].iter().position(|byte| *byte == 0xff).expect("an end of the length");
            write_binary(&mut anew, packet.as_bytes(), digits);
            at = anew.len();
        }
        assert_eq!(anew, data);
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

    // As the client posts it: a backslash before an `n` is doubled, so to speak, then line ends become `\n`. A
    // backslash before a line end cannot be told from one before an `n`.
    if !text.contains("\\\n") {
        let escaped = text.replace("\\n", "\\\n").replace('\n', "\\n");
        let mut form = "d=".to_owned();
        url::percent_encode(&escaped, &mut form);
        assert_eq!(payload::unwrap_jsonp(&form).as_deref(), Some(text), "{form}");
    }
    if let Some(posted) = payload::unwrap_jsonp(text) {
        // What is not UTF-8 becomes three bytes.
        assert!(posted.len() <= 3 * text.len());
    }
}
