//! Heads of HTTP messages, from clients (requests) and from CouchDB (responses), and the query of a
//! handshake.
//!
//! Asserted:
//! - a complete head does not depend on the bytes after it and is incomplete one byte earlier, and
//!   an invalid head stays invalid; checked at every prefix of short inputs, else at points taken
//!   from the input;
//! - a request head is no longer than its limit, with a small and a large limit;
//! - `head_is_complete` finds the end in a growing buffer exactly if it finds it in the whole, and
//!   finds every end that the parser finds;
//! - no text of a request has a control character, and path and query have no space either;
//! - white space that HTTP does not allow is not accepted in a length or coding of the body;
//! - the response to an upgrade is one head for any key, and every other response one head and its
//!   body;
//! - the query of a session has the values of its parameters, and an id in it is written as it was
//!   read;
//! - decoding undoes percent-encoding, alone and in a query.

#![no_main]

use std::borrow::Cow;
use std::collections::HashMap;

use couchdb_howler::wire::couchdb::{Credentials, MAX_CREDENTIAL};
use couchdb_howler::wire::engine_io::{self, Refusal, Sid, Transport, Version};
use couchdb_howler::wire::http::{
    Answer, BodyDecoder, HeadError, MAX_HEAD, MAX_RESPONSE_HEAD, Request, has_token, head_is_complete, parse_request,
    parse_response, write_response, write_upgrade,
};
use couchdb_howler::wire::url;
use couchdb_howler_fuzz::{WAYS, cuts};
use libfuzzer_sys::fuzz_target;

/// A limit that short inputs exceed.
const SMALL: usize = 128;

fuzz_target!(|data: &[u8]| {
    for max_head in [SMALL, MAX_HEAD] {
        prefixes_agree(data, max_head, |bytes| parse_request(bytes, max_head));
    }
    prefixes_agree(data, MAX_RESPONSE_HEAD, parse_response);
    ends_are_found(data);
    for max_head in [SMALL, MAX_HEAD] {
        match parse_request(data, max_head) {
            Ok(Some((length, request))) => check_request(&request, &data[..length]),
            Ok(None) => {}
            Err(error) => check_answer(error.status(), error.to_string().as_bytes(), data.len()),
        }
    }
    for refusal in [Refusal::Transport, Refusal::SessionId, Refusal::Method, Refusal::Request, Refusal::Version] {
        check_answer(400, refusal.body().as_bytes(), data.len());
    }
    check_answer(STATUSES[data.len() % STATUSES.len()], data, data.len() / 16);
    if let Ok(text) = std::str::from_utf8(data) {
        check_query(text);
        check_encoding(text);
    }
});

/// The statuses of responses, and an unused one.
const STATUSES: [u16; 14] = [200, 204, 304, 400, 403, 404, 405, 408, 413, 426, 431, 503, 505, 599];

/// Checks that a response is one head, followed by the body unless that is omitted.
fn check_answer(status: u16, body: &[u8], way: usize) {
    let (keep_alive, head_only, fields) = (way & 1 > 0, way & 2 > 0, [("Content-Type", "text/plain")]);
    let mut written = Vec::new();
    write_response(&mut written, &Answer { status, fields: &fields[way >> 2 & 1..], body, head_only, keep_alive });
    let (length, response) = parse_response(&written).expect("our own head").expect("whole");
    assert_eq!((response.status, response.keep_alive), (status, keep_alive));
    assert_eq!(&written[length..], if head_only { &[] } else { body });
    let bodiless = matches!(status, 204 | 304);
    assert_eq!(response.body, BodyDecoder::Length(if bodiless { 0 } else { body.len() as u64 }));
}

type Parsed<T> = Result<Option<(usize, T)>, HeadError>;

fn prefixes_agree<'a, T: PartialEq + std::fmt::Debug>(
    data: &'a [u8],
    max_head: usize,
    parse: impl Fn(&'a [u8]) -> Parsed<T>,
) {
    let whole = parse(data);
    if let Ok(Some((length, _))) = &whole {
        assert!(*length <= data.len().min(max_head));
        assert!(head_is_complete(&data[..*length], 0), "the end is not found");
        assert_eq!(parse(&data[..*length]), whole);
        assert_eq!(parse(&data[..*length - 1]), Ok(None));
    }
    let mut ends = if data.len() < 64 { (0..data.len()).collect() } else { cuts(data, 3) };
    ends.push(max_head.min(data.len()));
    for end in ends {
        match parse(&data[..end]) {
            Ok(None) => {}
            decided => assert_eq!(decided, whole, "{end}"),
        }
    }
}

fn ends_are_found(data: &[u8]) {
    for way in 0..WAYS {
        let mut seen = 0;
        for end in cuts(data, way) {
            let found = head_is_complete(&data[..end], seen);
            assert_eq!(found, head_is_complete(&data[..end], 0), "way {way}, {seen}..{end}");
            if found {
                break;
            }
            seen = end;
        }
    }
}

fn check_request(request: &Request<'_>, head: &[u8]) {
    let plain = |text: &str| !text.bytes().any(|b| b.is_ascii_control() && b != b'\t');
    let visible = |text: &str| !text.bytes().any(|b| b.is_ascii_control() || b == b' ');
    assert!(!request.method.is_empty());
    assert!(visible(request.method) && visible(request.path) && visible(request.query));
    for field in [
        request.content_type,
        request.origin,
        request.forwarded_for,
        request.websocket_key,
        request.websocket_version,
        request.websocket_protocol,
    ] {
        assert!(field.is_none_or(plain), "{field:?}");
    }
    assert_eq!(request.content_length.is_none(), request.body() == BodyDecoder::chunked());
    check_framing(request, head);
    let protocol = request.websocket_protocol.is_some_and(|p| has_token(p, "howler.v1")).then_some("howler.v1");
    let mut answer = Vec::new();
    write_upgrade(&mut answer, request.websocket_key.unwrap_or(""), protocol);
    let (length, response) = parse_response(&answer).expect("our own head").expect("whole");
    assert_eq!((length, response.status), (answer.len(), 101));
    check_query(request.query);
}

/// Checks the length of the body by the strictest reading of the two fields.
fn check_framing(request: &Request<'_>, head: &[u8]) {
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let value: &[u8] = line[colon + 1..].trim_ascii();
        if line[..colon].eq_ignore_ascii_case(b"content-length") {
            lengths.push(value);
        } else if line[..colon].eq_ignore_ascii_case(b"transfer-encoding") {
            codings.push(value);
        }
    }
    match (&lengths[..], &codings[..]) {
        ([], []) => assert_eq!(request.content_length, Some(0)),
        ([length], []) => {
            assert!(length.iter().all(u8::is_ascii_digit));
            let length = std::str::from_utf8(length).expect("digits").parse().expect("a number");
            assert_eq!(request.content_length, Some(length));
        }
        ([], [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked"), "{coding:?}");
            assert_eq!(request.content_length, None);
        }
        _ => panic!("a body with two lengths was accepted"),
    }
}

fn check_query(query: &str) {
    for (name, value) in url::query_pairs(query) {
        let mut rewritten = String::new();
        url::percent_encode(&name, &mut rewritten);
        rewritten.push('=');
        url::percent_encode(&value, &mut rewritten);
        let pairs: Vec<_> = url::query_pairs(&rewritten).collect();
        assert_eq!(pairs, [(name, value)]);
    }
    check_parameters(query);
}

/// Checks the parameters of Engine.IO; the last of duplicates counts.
fn check_parameters(query: &str) {
    let mut given: HashMap<Cow<'_, str>, Cow<'_, str>> = url::query_pairs(query).collect();
    let parsed = engine_io::parse_query(query);
    let known = given.get("transport").is_some_and(|name| ["polling", "websocket"].contains(&&**name));
    let query = match parsed {
        Ok(query) => query,
        Err(Refusal::Transport) => return assert!(!known),
        Err(Refusal::SessionId) => return assert!(known && Sid::parse(&given["sid"]).is_none()),
        Err(refusal) => panic!("{refusal:?} does not depend on the query"),
    };
    assert!(known && (query.transport == Transport::Polling) == (given["transport"] == "polling"));
    let version = given.get("EIO").map_or("3", |version| version);
    assert_eq!(
        query.version,
        [("3", Version::V3), ("4", Version::V4)].into_iter().find(|v| v.0 == version).map(|v| v.1)
    );
    assert_eq!(query.sid.map(|sid| sid.to_string()), given.remove("sid").map(Cow::into_owned));
    assert!(query.jsonp.is_none() || given["j"].contains(|c: char| c.is_ascii_digit()));
    let has_cookie = given.get("cookie").is_some_and(|cookie| !cookie.is_empty());
    let has_token = given.get("token").is_some_and(|token| !token.is_empty());
    match query.credentials {
        Credentials::Cookie(value) => {
            assert!(has_cookie && value.reveal().bytes().all(|b| b.is_ascii_graphic() && b != b';'));
        }
        Credentials::Token(token) => {
            assert!(!has_cookie && token.reveal() == given["token"]);
            assert!(token.reveal().bytes().all(|b| b.is_ascii_graphic()));
        }
        Credentials::Password { username, password } => {
            assert!(!has_cookie && !has_token);
            let mut text = |name| given.remove(name).unwrap_or_default();
            assert_eq!((text("username"), text("password")), ((&*username).into(), password.reveal().into()));
        }
        Credentials::TooLong => assert!(given.values().any(|value| value.len() > MAX_CREDENTIAL)),
        Credentials::UnusableToken => assert!(!has_cookie && has_token),
        Credentials::Unusable => {
            assert!(has_cookie || !given.contains_key("username") && !given.contains_key("password"));
        }
    }
}

fn check_encoding(text: &str) {
    let mut encoded = String::new();
    url::percent_encode(text, &mut encoded);
    assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
    for form in [false, true] {
        assert_eq!(url::percent_decode(&encoded, form).as_deref(), Some(text));
        let _ = url::percent_decode(text, form);
    }
}
