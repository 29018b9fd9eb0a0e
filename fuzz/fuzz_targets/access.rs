//! Permissions as a server drives them, against a naive model, driven by a script of what clients, CouchDB, the feed and
//! the clock do. The script's language, the driver and the model are in `access.rs` of the library.
//!
//! Asserted:
//! - no subscriber is notified of a database in doubt, nor of one that it may not read, also while subscribers are
//!   reconsidered and when roles change;
//! - a request is answered once, within five seconds;
//! - a database that is not known to exist looks like one that is missing;
//! - CouchDB is never asked about a name that it cannot have, about a database twice at once, or about too many at once;
//! - when all that was under way has come, whoever subscribes may read the database, and was notified of its changes;
//! - when everyone has left, nothing is left.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::access::run(&String::from_utf8_lossy(data));
});
