//! The URL of CouchDB as an operator types it, and requests made from it and from the credentials
//! of clients. The first line of an input is the URL, the rest is the text of a client.
//!
//! Asserted:
//! - nothing before the last `@` of a URL is ever shown, whether the URL is valid or not;
//! - the URL as shown parses to the same address;
//! - a cookie value has no character that could end its field or begin another cookie, and a token
//!   none that could end its field;
//! - every request is one head, which our own parser reads, and a body of the stated length;
//! - neither a login nor the request for CouchDB's welcome has the server's own credentials.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use couchdb_howler::wire::couchdb::{Credentials, FeedSource, MAX_CREDENTIAL, Requests};
use couchdb_howler::wire::http::{MAX_HEAD, parse_request};
use couchdb_howler::wire::secret::Secret;
use couchdb_howler::wire::url::{CouchUrl, mask_credentials, percent_decode, query_pairs};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    check_mask(&text);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, &text));
    check_cookie(rest);
    match CouchUrl::parse(first) {
        Ok(url) => {
            check_url(first, &url);
            check_requests(&url, rest);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn check_mask(text: &str) {
    let masked = mask_credentials(text);
    let Some(at) = text.rfind('@') else {
        assert_eq!(masked, text);
        return;
    };
    let head = masked.strip_suffix(&text[at..]).and_then(|head| head.strip_suffix("***")).expect("the mask");
    let scheme = head.strip_suffix("://");
    assert!(head.is_empty() || scheme.is_some_and(|s| s.bytes().all(|b| b.is_ascii_alphabetic())), "{masked}");
}

fn check_url(text: &str, url: &CouchUrl) {
    let place = |url: &CouchUrl| (url.tls, url.host.clone(), url.port, url.prefix.clone());
    let shown = url.to_string();
    assert_eq!(CouchUrl::parse(&shown).as_ref().map(place), Ok(place(url)), "{shown}");
    // The address is all text behind the last `@`.
    let (scheme, rest) = text.split_once("://").expect("a scheme");
    let bare = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    assert_eq!(CouchUrl::parse(&format!("{scheme}://{bare}")).as_ref().map(place), Ok(place(url)), "{shown}");
    assert_eq!(url.credentials.is_some(), rest.contains('@'));
    // Neither text shows the password: another password gives the same texts.
    if let Some((user, _)) = &url.credentials {
        let other = CouchUrl { credentials: Some((user.clone(), Secret::new("another"))), ..url.clone() };
        assert_eq!((other.to_string(), format!("{other:?}")), (shown, format!("{url:?}")));
    }
}

fn check_cookie(text: &str) {
    let secret = Secret::new(text);
    assert_eq!((format!("{secret} {secret:?}"), secret.is_empty()), ("*** ***".to_owned(), text.is_empty()));

    if let Credentials::Cookie(value) = Credentials::cookie(text) {
        let value = value.reveal();
        assert!(!value.is_empty() && text.contains(value));
        assert!(value.bytes().all(|b| b.is_ascii_graphic() && !b"\",;\\".contains(&b)), "{value:?}");
    }
    match Credentials::token(text) {
        Credentials::Token(token) => {
            assert_eq!(token.reveal(), text);
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b)) && !text.is_empty());
        }
        other if text.len() > MAX_CREDENTIAL => assert_eq!(other, Credentials::TooLong),
        other => assert_eq!(other, Credentials::UnusableToken),
    }
}

fn check_requests(url: &CouchUrl, text: &str) {
    let requests = Requests::new(url);
    for client in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        for credentials in
            [Credentials::password(text.into(), text.into()), Credentials::cookie(text), Credentials::token(text)]
        {
            let log_in = requests.log_in(&credentials, client);
            let unusable =
                matches!(credentials, Credentials::TooLong | Credentials::Unusable | Credentials::UnusableToken);
            assert_eq!(log_in.is_none(), unusable);
            assert!(credentials.len() <= 2 * MAX_CREDENTIAL);
            let Some(log_in) = log_in else { continue };
            let (fields, body) = check_request(&log_in, &format!("{}/_session", url.prefix));
            let given = match &credentials {
                Credentials::Cookie(value) => vec![format!("cookie: AuthSession={}", value.reveal())],
                Credentials::Token(token) => vec![format!("authorization: Bearer {}", token.reveal())],
                Credentials::Password { .. }
                | Credentials::TooLong
                | Credentials::Unusable
                | Credentials::UnusableToken => Vec::new(),
            };
            assert_eq!(credentials_in(&fields), given);
            if !body.is_empty() {
                let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
                assert_eq!(body, serde_json::json!({"name": text, "password": text}));
            }
        }
    }
    for source in [FeedSource::GlobalChanges, FeedSource::DbUpdates] {
        let stream = requests.stream(source, text, 1);
        let (_, request) = parse_request(&stream, MAX_HEAD).expect("our own head").expect("whole");
        let since: Vec<_> = query_pairs(request.query).filter(|(name, _)| name == "since").collect();
        assert_eq!(since, [("since".into(), text.into())]);
        let path = format!(
            "{}{}",
            url.prefix,
            match source {
                FeedSource::GlobalChanges => "/_global_changes/_changes",
                FeedSource::DbUpdates => "/_db_updates",
            }
        );
        check_request(&stream, &path);
        check_request(&requests.pin(source), &path);
    }
    let (_, body) =
        check_request(&requests.look_up(["a", text].into_iter()), &format!("{}/_global_changes/_all_docs", url.prefix));
    let keys = ["updated:", "created:", "deleted:"];
    let keys: Vec<String> = ["a", text].iter().flat_map(|name| keys.map(|kind| format!("{kind}{name}"))).collect();
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body, serde_json::json!({"keys": keys}));
    check_request(&requests.epoch(), &format!("{}/_global_changes", url.prefix));
    check_request(&requests.create_global_changes(), &format!("{}/_global_changes", url.prefix));
    check_request(&requests.own_session(), &format!("{}/_session", url.prefix));
    let (fields, _) = check_request(&requests.welcome(), &format!("{}/", url.prefix));
    assert!(credentials_in(&fields).is_empty(), "{fields:?}");
    let security = requests.security(text);
    let (_, request) = parse_request(&security, MAX_HEAD).expect("our own head").expect("whole");
    let name = request.path.strip_prefix(&*url.prefix).and_then(|path| path.strip_prefix('/'));
    let name = name.and_then(|path| path.strip_suffix("/_security")).expect("a path with the name");
    assert!(!name.contains('/') && request.query.is_empty());
    assert_eq!(percent_decode(name, false).as_deref(), Some(text));
}

fn credentials_in(fields: &[String]) -> Vec<&str> {
    let names = ["cookie:", "authorization:"];
    fields.iter().filter(|field| names.iter().any(|name| field.starts_with(name))).map(|field| &**field).collect()
}

/// Returns the fields of a request, with names in lower case, and its body.
fn check_request(bytes: &[u8], path: &str) -> (Vec<String>, String) {
    let text = std::str::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head end");
    assert!(!head.replace("\r\n", "").contains(['\r', '\n', '\0']), "{head:?}");
    let (length, request) = parse_request(bytes, MAX_HEAD).expect("our own head").expect("whole");
    assert_eq!((length, request.path), (head.len() + 4, path));
    assert_eq!(request.content_length, Some(body.len() as u64));
    let fields = head.lines().skip(1).map(|field| {
        let (name, value) = field.split_once(':').expect("a field");
        format!("{}:{value}", name.to_ascii_lowercase())
    });
    (fields.collect(), body.to_owned())
}
