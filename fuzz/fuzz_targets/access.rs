//! Permissions as a server drives them, compared with a naive model. The input is a script of
//! clients, CouchDB, the feed and the clock. Its language, the driver and the model are in
//! `access.rs` of the library.
//!
//! Assertions:
//! - a subscriber is not notified of a database in doubt or of one that it may not read, also while
//!   subscribers are reconsidered and when roles change;
//! - a request is answered once, within five seconds;
//! - a database that is not known to exist looks like one that is missing;
//! - CouchDB receives no question about a name that it cannot have, no two at once about one
//!   database, and not too many at once;
//! - after all outstanding answers, every subscriber may read its databases and was notified of
//!   their changes;
//! - nothing is left after the last client has left.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::access::run(&String::from_utf8_lossy(data));
});
