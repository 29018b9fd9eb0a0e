//! Errors of options, without the credentials that a value may hold.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::net::Ipv6Addr;

use super::given::{Given, Source};
use super::table::OptionRow;

use crate::wire::url::mask_credentials;

/// An error in one line. It names the option, shows the value without credentials, and says what
/// was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl OptionRow {
    pub(super) fn wrong(&self, source: &Source, problem: &str) -> ConfigError {
        let name = self.name;
        ConfigError::new(&match source {
            Source::CommandLine | Source::Default => format!("--{name}: {problem}"),
            Source::Environment(variable) => format!("--{name} (environment variable {variable}): {problem}"),
            Source::File(variable, path) => {
                let path = shown_url(&path.to_string_lossy());
                format!("--{name} (environment variable {variable}, file {path:?}): {problem}")
            }
        })
    }

    /// Returns the error for a wrong value. `reason` may be empty. The content of a file is not
    /// shown, since it may be any secret.
    pub(super) fn unusable(&self, given: &Given, reason: &str) -> ConfigError {
        let mut problem = format!("expected {}", self.expected());
        if !matches!(given.source, Source::File(..)) {
            let shown = if self.secret { shown_url(&given.text) } else { shown(&given.text) };
            write!(problem, ", got {shown:?}").expect("writing to a String cannot fail");
        }
        if !reason.is_empty() {
            write!(problem, ": {reason}").expect("writing to a String cannot fail");
        }
        self.wrong(&given.source, &problem)
    }
}

impl ConfigError {
    pub(super) fn new(text: &str) -> Self {
        Self(text.replace(char::is_control, " "))
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ConfigError {}

/// Returns the value of an option that should hold no credentials, masked in case it does.
fn shown(text: &str) -> String {
    if text.contains('@') || text.contains("://") { shown_url(text) } else { shorten(text) }
}

/// Returns a text that should be a URL, with everything masked that may be a credential.
///
/// The part before an `@` is masked. So is the part behind it, or the whole, unless it looks like
/// an address and a path: `http://admin:secret`, which lacks its host, is masked, and
/// `http://localhost:5984` is not.
pub(super) fn shown_url(text: &str) -> String {
    let masked = mask_credentials(text);
    let start = masked.rfind('@').map(|at| at + 1).or_else(|| masked.find("://").map(|at| at + 3)).unwrap_or(0);
    let (head, address) = masked.split_at(start);
    if looks_like_address(address) { shorten(&masked) } else { shorten(&format!("{head}***")) }
}

fn looks_like_address(text: &str) -> bool {
    let ipv6 = text.strip_prefix('[').and_then(|text| text.split_once(']'));
    let rest = ipv6.filter(|(host, _)| host.parse::<Ipv6Addr>().is_ok()).map_or(text, |(_, rest)| rest);
    let port_fits = rest.split_once(':').is_none_or(|(host, rest)| {
        let port = rest.split('/').next().unwrap_or_default();
        !host.contains('/') && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && !rest.contains(':')
    });
    port_fits && !rest.contains(['%', '?', '#'])
}

fn shorten(text: &str) -> String {
    let end = text.char_indices().nth(LONGEST_SHOWN).map(|(at, _)| at);
    end.map_or_else(|| text.to_owned(), |end| format!("{}...", &text[..end]))
}

/// Most characters of a wrong value in an error.
pub(super) const LONGEST_SHOWN: usize = 80;
