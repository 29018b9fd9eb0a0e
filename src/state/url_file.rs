//! When the file that holds the URL of CouchDB is read again: when an operator asks for it, and while
//! CouchDB refuses the credentials that were read last.
//!
//! ```text
//! idle ──a signal──▶ due ──handle_timeout──▶ reading ──handle_read──▶ idle
//!  └──a refusal──▶ due, at most once in REREAD_AFTER               └──still refused──▶ due
//! ```

use crate::state::timers::Millis;

/// Time between two reads while CouchDB refuses the credentials, in milliseconds: whatever rotates
/// secrets may write the file later than it changes the password.
pub const REREAD_AFTER: Millis = 5_000;

/// The times of one file.
#[derive(Debug, Default)]
pub struct UrlFile {
    /// When to read it.
    due: Option<Millis>,
    /// A refusal has it read no earlier than this.
    not_before: Millis,
    reading: bool,
    /// Whether CouchDB refused the credentials last.
    refused: bool,
    /// Whether an operator waits to see what came of it.
    asked: bool,
}

impl UrlFile {
    /// CouchDB refused the credentials (401).
    pub fn handle_refused(&mut self, now: Millis) {
        self.refused = true;
        let earliest = now.max(self.not_before);
        self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
    }

    /// CouchDB accepted the credentials.
    pub fn handle_accepted(&mut self) {
        if self.refused {
            self.refused = false;
            self.due = self.due.filter(|_| self.asked);
        }
    }

    /// An operator asks for it.
    pub fn handle_asked(&mut self, now: Millis) {
        self.asked = true;
        self.due = Some(now);
    }

    /// When [`UrlFile::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.due.filter(|_| !self.reading)
    }

    /// Whether the file is to be read now; then [`UrlFile::handle_read`] follows.
    pub fn handle_timeout(&mut self, now: Millis) -> bool {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return false;
        }
        self.due = None;
        self.reading = true;
        true
    }

    /// The file was read, or could not be; whether an operator asked for it.
    pub fn handle_read(&mut self, now: Millis) -> bool {
        self.reading = false;
        self.not_before = now + REREAD_AFTER;
        if self.refused && self.due.is_none() {
            self.due = Some(self.not_before);
        }
        // One who asked meanwhile is answered by the next read.
        let answered = self.asked && self.due.is_none_or(|due| due > now);
        self.asked &= !answered;
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_it_read_now_and_then_until_the_credentials_are_accepted() {
        let mut file = UrlFile::default();
        assert_eq!(file.poll_timeout(), None);
        file.handle_refused(100);
        file.handle_refused(101);
        assert!(file.handle_timeout(101));
        assert!(!file.handle_timeout(102), "it is being read");
        assert!(!file.handle_read(110), "nobody asked");
        assert_eq!(file.poll_timeout(), Some(110 + REREAD_AFTER));
        file.handle_refused(200);
        assert_eq!(file.poll_timeout(), Some(110 + REREAD_AFTER), "not so soon");
        assert!(!file.handle_timeout(5_000));
        assert!(file.handle_timeout(6_000));
        file.handle_accepted();
        assert!(!file.handle_read(6_001));
        assert_eq!(file.poll_timeout(), None);
    }

    #[test]
    fn an_operator_is_answered_at_once() {
        let mut file = UrlFile::default();
        file.handle_refused(0);
        assert!(file.handle_timeout(0) && !file.handle_read(1));
        file.handle_asked(10);
        file.handle_accepted();
        assert!(file.handle_timeout(10));
        // One who asks while it is being read has it read again: it may have been written meanwhile.
        file.handle_asked(11);
        assert_eq!(file.poll_timeout(), None);
        assert!(!file.handle_read(12));
        assert!(file.handle_timeout(12) && file.handle_read(13));
        assert_eq!(file.poll_timeout(), None);
    }
}
