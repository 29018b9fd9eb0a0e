//! Subscriptions and positions as a server drives them, compared with a naive model. The input is a
//! script of clients, CouchDB and the clock. Its language, the driver and the model are in
//! `positions.rs` of the library.
//!
//! Assertions:
//! - a request is answered once, within five seconds, for the names that were not withdrawn;
//! - the positions of an answer include every delivered line and nothing that CouchDB does not
//!   have; `changed` lists exactly the positions to compare that differ;
//! - after all outstanding answers, every client was notified of all events of its databases, lost
//!   ones included, and its last position is the one of the database;
//! - if nothing was in doubt, out of order or unknown, each notification moves a position;
//! - one lookup at most is under way for a database, and its size is bounded;
//! - nothing is left some time after the last client has left.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::positions::run(&String::from_utf8_lossy(data));
});
