//! Messages that wait for the end of a log-in.

use super::rules::Rules;

/// The messages, in order.
#[derive(Debug, Default)]
pub(super) struct Held {
    messages: Vec<Box<str>>,
    bytes: usize,
}

impl Held {
    /// Puts a message aside; false when too many wait, or too many bytes.
    pub(super) fn push(&mut self, text: &str, rules: &Rules) -> bool {
        self.bytes += text.len();
        self.messages.push(text.into());
        self.bytes <= rules.max_message && self.messages.len() <= rules.requests
    }

    /// Returns the bytes of all messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the messages out.
    pub(super) fn into_messages(self) -> Vec<Box<str>> {
        self.messages
    }
}
