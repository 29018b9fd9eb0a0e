//! The file that holds the URL of CouchDB with the server's own credentials.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::net::file_reader::FileReader;
use crate::state::timers::Millis;
use crate::state::url_file::UrlFile;

/// The file: when it is read, and its reader.
#[derive(Debug)]
pub(super) struct CredentialsFile {
    times: UrlFile,
    reader: FileReader,
    /// The problem of a file that cannot be used, so that it is logged once.
    problem: Option<String>,
}

impl CredentialsFile {
    pub(super) fn new(path: &Path, waker: Arc<mio::Waker>) -> Self {
        Self { times: UrlFile::default(), reader: FileReader::new(path, waker), problem: None }
    }

    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        self.times.poll_timeout()
    }

    /// Starts to read the file if it is time.
    pub(super) fn handle_timeout(&mut self, now: Millis) {
        if self.times.handle_timeout(now) {
            self.reader.start();
        }
    }

    /// Handles the status of a request with the server's own credentials.
    pub(super) fn handle_status(&mut self, status: u16, now: Millis) {
        match status {
            401 => self.times.handle_refused(now),
            // Responses that only a server admin gets.
            200..=299 | 404 => self.times.handle_accepted(),
            _ => {}
        }
    }

    /// Has the file read, as an operator asks by a signal.
    pub(super) fn reload(&mut self, now: Millis) {
        self.times.handle_asked(now);
    }

    /// Returns the content once it is read, and whether an operator asked for it.
    pub(super) fn take(&mut self, now: Millis) -> Option<(io::Result<String>, bool)> {
        let content = self.reader.take()?;
        Some((content, self.times.handle_read(now)))
    }

    /// Logs why the file cannot be used, once for each problem; always if an operator asked.
    pub(super) fn log_problem(&mut self, problem: String, asked: bool) {
        if asked || self.problem.as_ref() != Some(&problem) {
            log::error!("The file with --couchdb_url cannot be used, and the old URL stays in use: {problem}.");
        }
        self.problem = Some(problem);
    }

    /// Takes note that the file can be used.
    pub(super) fn clear_problem(&mut self) {
        self.problem = None;
    }
}
