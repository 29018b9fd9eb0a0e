//! The changes feed from its start through every way in which it can break, driven by a script of what CouchDB, the
//! connection and the clock do. The script's language, the driver and the simulated CouchDB are in `feed.rs` of the
//! library.
//!
//! Asserted:
//! - a change that CouchDB recorded is told, unless the feed says that there is a gap, or skips a line;
//! - nothing is told that did not happen;
//! - every stream names where it starts, and that is a sequence which CouchDB gave;
//! - there is one connection and one question at a time;
//! - no timeout fires twice for the same moment, and when CouchDB is well the feed is followed again.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::feed::run(&String::from_utf8_lossy(data));
});
