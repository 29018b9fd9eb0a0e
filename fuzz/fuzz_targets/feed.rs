//! The changes feed from its start through every way in which it can break, driven by a script of
//! what CouchDB, the connection and the clock do. The script language, the driver and the simulated
//! CouchDB are in `feed.rs` of the library.
//!
//! Asserted:
//! - clients are notified of each change that CouchDB recorded, unless the feed reports a gap or
//!   skips a line;
//! - clients are notified of no other change;
//! - every stream names its start, which is a sequence that CouchDB gave;
//! - there is at most one connection and one request at a time;
//! - no timeout fires twice for the same time, and the feed recovers when CouchDB does.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::feed::run(&String::from_utf8_lossy(data));
});
