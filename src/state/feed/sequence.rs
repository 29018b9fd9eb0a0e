//! The sequence from which the feed resumes.

use std::ops::Range;

/// Sequence of the last line; none until the start is pinned.
#[derive(Debug, Default)]
pub(super) struct ResumePoint {
    since: Option<String>,
    /// Range of a newer sequence in the current content. Only the last sequence of many lines in
    /// one piece is copied.
    newer: Option<Range<usize>>,
}

impl ResumePoint {
    /// Returns the sequence.
    pub(super) fn get(&self) -> Option<&str> {
        self.since.as_deref()
    }

    /// Replaces the sequence and returns the one before.
    pub(super) fn replace(&mut self, seq: &str) -> Option<String> {
        self.since.replace(seq.to_owned())
    }

    /// Forgets the sequence.
    pub(super) fn clear(&mut self) {
        self.since = None;
    }

    /// Takes the sequence of a line in the current content.
    pub(super) fn advance(&mut self, seq: &str, content: &[u8]) {
        self.newer = range_in(content, seq);
        if self.newer.is_none() {
            self.copy(seq);
        }
    }

    /// Copies the newest sequence out of the content, at its end.
    pub(super) fn settle(&mut self, content: &[u8]) {
        let newer = self.newer.take().and_then(|range| content.get(range));
        if let Some(seq) = newer.and_then(|seq| std::str::from_utf8(seq).ok()) {
            self.copy(seq);
        }
    }

    /// Replaces the sequence, without an allocation if it fits.
    fn copy(&mut self, seq: &str) {
        let kept = self.since.get_or_insert_default();
        kept.clear();
        kept.push_str(seq);
    }
}

/// Returns the range of a text in the content; None if the text is stored elsewhere.
fn range_in(content: &[u8], text: &str) -> Option<Range<usize>> {
    let start = text.as_ptr().addr().checked_sub(content.as_ptr().addr())?;
    let end = start.checked_add(text.len())?;
    (end <= content.len()).then_some(start..end)
}
