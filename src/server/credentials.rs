//! The server's own credentials: read again from the file that holds the URL of CouchDB, so that a
//! rotated password needs no restart.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Server;
use crate::net::file_reader::FileReader;
use crate::state::timers::Millis;
use crate::state::url_file::UrlFile;
use crate::wire::couchdb::Requests;
use crate::wire::url::CouchUrl;

/// The file that holds the URL.
#[derive(Debug)]
pub(super) struct CredentialsFile {
    times: UrlFile,
    reader: FileReader,
    /// What was said last of a file that cannot be used, so that it is said once.
    problem: Option<String>,
}

impl CredentialsFile {
    pub(super) fn new(path: &Path, waker: Arc<mio::Waker>) -> Self {
        Self { times: UrlFile::default(), reader: FileReader::new(path, waker), problem: None }
    }

    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        self.times.poll_timeout()
    }
}

impl Server {
    /// CouchDB answered a request that carried the server's own credentials.
    pub(super) fn handle_admin_answer(&mut self, status: u16, now: Millis) {
        let Some(file) = &mut self.upstream.credentials_file else { return };
        match status {
            401 => file.times.handle_refused(now),
            // Those that CouchDB gives to a server admin alone.
            200..=299 | 404 => file.times.handle_accepted(),
            _ => {}
        }
    }

    /// Has the file read again, as an operator asks by a signal; whether there is one.
    pub(super) fn reload_credentials(&mut self, now: Millis) -> bool {
        let Some(file) = &mut self.upstream.credentials_file else { return false };
        file.times.handle_asked(now);
        true
    }

    pub(super) fn expire_credentials(&mut self, now: Millis) {
        if let Some(file) = &mut self.upstream.credentials_file
            && file.times.handle_timeout(now)
        {
            file.reader.start();
        }
    }

    /// The file may have been read.
    pub(super) fn handle_credentials_file(&mut self, now: Millis) {
        while let Some(file) = &mut self.upstream.credentials_file
            && let Some(content) = file.reader.take()
        {
            let asked = file.times.handle_read(now);
            self.take_credentials(content, asked, now);
        }
    }

    fn take_credentials(&mut self, content: io::Result<String>, asked: bool, now: Millis) {
        let url = content.map_err(|error| error.to_string());
        let url = url.and_then(|text| CouchUrl::parse_file(&text).map_err(|error| error.to_string()));
        let url = match url {
            Ok(url) if !url.is_same_place(&self.upstream.url) => {
                let problem = format!("it names another CouchDB ({url}), which takes a restart");
                return self.tell_problem(problem, asked);
            }
            Ok(url) => url,
            Err(problem) => return self.tell_problem(problem, asked),
        };
        if let Some(file) = &mut self.upstream.credentials_file {
            file.problem = None;
        }
        if url == self.upstream.url {
            if asked {
                log::info!("SIGHUP: the file with --couchdb_url holds what is in use already.");
            }
            return;
        }
        log::info!("Using the credentials for CouchDB that the file with --couchdb_url holds now.");
        let old = std::mem::replace(&mut self.upstream.requests, Requests::new(&url));
        self.upstream.url = url;
        let requests = &self.upstream.requests;
        for queue in &mut self.upstream.queues {
            queue.pool.for_each_waiting(|request| requests.renew(&old, request));
        }
        self.handle_admin_credentials();
        self.upstream.feed.handle_credentials(self.upstream.requests.clone(), now);
    }

    /// Says why the file is of no use; while it is read now and then, once for each problem.
    fn tell_problem(&mut self, problem: String, asked: bool) {
        let Some(file) = &mut self.upstream.credentials_file else { return };
        if asked || file.problem.as_ref() != Some(&problem) {
            log::error!("The file with --couchdb_url cannot be used, and the old URL stays in use: {problem}.");
        }
        file.problem = Some(problem);
    }
}
