//! The demo: a small CouchDB with a few databases, one user, and a writer that keeps changing them.
//!
//! It replies to the requests of this server and to nothing else, and stores no documents. The
//! stand-in that the tests use, with the oddities and faults of a real CouchDB, is in
//! `tests/support/couchdb`.
//!
//! ```text
//! Demo ──▶ connection (a thread each) ──▶ couchdb ──▶ databases ◀── writer (a thread)
//! ```

mod connection;
mod couchdb;
mod databases;
mod writer;

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use couchdb::CouchDb;
pub use couchdb::{PASSWORD, USER};
use time::OffsetDateTime;

/// Databases that always exist.
const DATABASES: [&str; 5] = ["garden", "kitchen", "letters", "music/jazz", "orders+2026"];

/// A running demo. Its threads live as long as the process.
#[derive(Debug)]
pub struct Demo {
    address: SocketAddr,
    couchdb: Arc<CouchDb>,
}

impl Demo {
    /// Starts a CouchDB on a free port of the loopback address, and a writer that changes a
    /// database about every second.
    ///
    /// # Errors
    /// If no port can be bound, or if a thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        // The keys of RandomState are random, so other users of the machine cannot guess the hash.
        let random = RandomState::new().hash_one(address);
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let couchdb = Arc::new(CouchDb::new(&DATABASES, random, u64::try_from(now).unwrap_or(0)));
        let served = Arc::clone(&couchdb);
        spawn("demo-listener", move || {
            for stream in listener.incoming().flatten() {
                let couchdb = Arc::clone(&served);
                // An error ends the connection, and the server opens another one.
                let _ = spawn("demo-connection", move || drop(connection::serve(&stream, &couchdb)));
            }
        })?;
        let written = Arc::clone(&couchdb);
        spawn("demo-writer", move || writer::run(&written.databases, &DATABASES))?;
        Ok(Self { address, couchdb })
    }

    /// Returns the URL of the CouchDB, with the name and password of its admin.
    pub fn url(&self) -> String {
        self.couchdb.url(self.address)
    }

    /// Returns the databases that always exist. [`USER`] may read each of them.
    pub fn databases(&self) -> &'static [&'static str] {
        &DATABASES
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;
    use crate::wire::couchdb::{FeedSource, Requests};
    use crate::wire::url::CouchUrl;

    #[test]
    fn the_feed_sends_changes_of_the_writer() {
        let demo = Demo::start().unwrap();
        let url = CouchUrl::parse(&demo.url()).unwrap();
        let mut stream = TcpStream::connect(demo.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&Requests::new(&url).stream(FeedSource::GlobalChanges, "now", 60_000)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while !line.starts_with("{\"seq\":") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the feed ended");
        }
        // The same connection serves one request after the other.
        let mut other = TcpStream::connect(demo.address).unwrap();
        let requests = [Requests::new(&url).membership(), Requests::new(&url).epoch()].concat();
        other.write_all(&requests).unwrap();
        other.shutdown(std::net::Shutdown::Write).unwrap();
        let mut replies = String::new();
        other.read_to_string(&mut replies).unwrap();
        assert_eq!(replies.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{replies}");
    }
}
