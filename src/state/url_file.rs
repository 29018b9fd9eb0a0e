//! Schedule for reading the file with the URL of CouchDB: on request of an operator, and while
//! CouchDB refuses the credentials that it contained last.
//!
//! ```text
//! idle ──a signal──▶ due ──handle_timeout──▶ reading ──handle_read──▶ idle
//!  └──a refusal──▶ due, at most once in REREAD_AFTER               └──still refused──▶ due
//! ```

use crate::state::timers::Millis;

/// Time between two reads while CouchDB refuses the credentials, in milliseconds. A rotation of
/// secrets may write the file later than it changes the password.
pub const REREAD_AFTER: Millis = 5_000;

/// Schedule of one file.
#[derive(Debug, Default)]
pub struct UrlFile {
    /// Time of the next read.
    due: Option<Millis>,
    /// Earliest read because of a refusal.
    not_before: Millis,
    reading: bool,
    /// Whether CouchDB refused the last credentials.
    refused: bool,
    /// Whether an operator waits for the result.
    asked: bool,
}

impl UrlFile {
    /// Handles a refusal of the credentials (401).
    pub fn handle_refused(&mut self, now: Millis) {
        self.refused = true;
        let earliest = now.max(self.not_before);
        self.due = Some(self.due.map_or(earliest, |due| due.min(earliest)));
    }

    /// Handles an acceptance of the credentials.
    pub fn handle_accepted(&mut self) {
        if self.refused {
            self.refused = false;
            self.due = self.due.filter(|_| self.asked);
        }
    }

    /// Handles the request of an operator.
    pub fn handle_asked(&mut self, now: Millis) {
        self.asked = true;
        self.due = Some(now);
    }

    /// Returns when [`UrlFile::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.due.filter(|_| !self.reading)
    }

    /// Returns whether to read the file now. [`UrlFile::handle_read`] follows.
    pub fn handle_timeout(&mut self, now: Millis) -> bool {
        if self.poll_timeout().is_none_or(|at| now < at) {
            return false;
        }
        self.due = None;
        self.reading = true;
        true
    }

    /// Handles the end of a read, successful or not. Returns whether an operator had asked for it.
    pub fn handle_read(&mut self, now: Millis) -> bool {
        self.reading = false;
        self.not_before = now + REREAD_AFTER;
        if self.refused && self.due.is_none() {
            self.due = Some(self.not_before);
        }
        // The next read answers a request that came during this one.
        let answered = self.asked && self.due.is_none_or(|due| due > now);
        self.asked &= !answered;
        answered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_causes_reads_until_couchdb_accepts_the_credentials() {
        let mut file = UrlFile::default();
        assert_eq!(file.poll_timeout(), None);
        file.handle_refused(100);
        file.handle_refused(101);
        assert!(file.handle_timeout(101));
        assert!(!file.handle_timeout(102), "a read is in progress");
        assert!(!file.handle_read(110), "no operator asked");
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
    fn a_request_of_an_operator_is_served_at_once() {
        let mut file = UrlFile::default();
        file.handle_refused(0);
        assert!(file.handle_timeout(0) && !file.handle_read(1));
        file.handle_asked(10);
        file.handle_accepted();
        assert!(file.handle_timeout(10));
        // A request during a read causes another one, since the file may have changed meanwhile.
        file.handle_asked(11);
        assert_eq!(file.poll_timeout(), None);
        assert!(!file.handle_read(12));
        assert!(file.handle_timeout(12) && file.handle_read(13));
        assert_eq!(file.poll_timeout(), None);
    }
}
