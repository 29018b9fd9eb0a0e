//! Messages that wait for the end of a login.

use super::rules::Rules;

/// Deferred messages, in order.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    messages: Vec<Box<str>>,
    bytes: usize,
}

impl Deferred {
    /// Appends a message. Returns false if the messages exceed a limit.
    pub(super) fn push(&mut self, text: &str, rules: &Rules) -> bool {
        self.bytes += text.len();
        self.messages.push(text.into());
        self.bytes <= rules.max_message && self.messages.len() <= rules.requests
    }

    /// Returns the total length of the messages, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the messages.
    pub(super) fn into_messages(self) -> Vec<Box<str>> {
        self.messages
    }
}
