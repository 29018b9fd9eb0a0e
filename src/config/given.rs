//! The text that was given for an option.

use std::path::PathBuf;

/// A text and its source. It may be a secret, so the type has no `Debug`.
pub(super) struct Given {
    pub(super) text: String,
    pub(super) source: Source,
}

pub(super) enum Source {
    CommandLine,
    Environment(String),
    /// The variable, and the file that it names.
    File(String, PathBuf),
    Default,
}
