//! Texts that must never be printed.

use std::fmt;

/// A password, a cookie or a header with credentials. Every format prints it as `***`, so that no
/// log line, error or panic can hold it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(Box<str>);

impl Secret {
    /// Wraps a text. Only [`Secret::reveal`] returns it.
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the text, to be sent and nothing else.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Compares with a text, in a time that depends on the length of that text alone.
    pub fn matches(&self, text: &str) -> bool {
        let own = self.0.as_bytes();
        let differs = |(place, byte): (usize, u8)| byte ^ own.get(place).copied().unwrap_or(!byte);
        let differing = text.bytes().enumerate().map(differs).fold(0, |all, one| std::hint::black_box(all | one));
        differing == 0 && text.len() == own.len()
    }

    /// Returns whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_stars() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.reveal(), "hunter2");
    }

    #[test]
    fn matches_equal_text_only() {
        let secret = Secret::new("hunter2");
        assert!(secret.matches("hunter2") && Secret::default().matches(""));
        for other in ["", "hunter", "hunter22", "hunter3", "Hunter2", "hunter2\0", "\u{0}"] {
            assert!(!secret.matches(other), "{other:?}");
        }
        assert!(!Secret::default().matches("\0"));
    }
}
