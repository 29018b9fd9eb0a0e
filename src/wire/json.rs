//! The JSON values that both dialects share.

use std::borrow::Cow;

use serde::Deserialize;

/// A string of a JSON text: borrowed where it holds no escape.
#[derive(Deserialize)]
pub(crate) struct Text<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// Reads a JSON object into a struct; None when it is something else. serde alone would take an
/// array of the fields' values for the struct too.
pub(crate) fn parse_object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    json.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(json).ok())?
}

/// Reads a JSON string; None when it is something else.
pub fn parse_string(json: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(json).ok().map(|text| text.0)
}

/// Appends a JSON string with its quotes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string always serializes into memory");
}
