//! Long lists of names as a server works on them over turns, against a naive model, driven by a script of what clients
//! and CouchDB do. The script's language, the driver and the model are in `lists.rs` of the library.
//!
//! Asserted:
//! - the messages of a session are handled in order, and each request is answered once: with the names that were asked
//!   for and not taken back, whatever happens half way;
//! - a session that has no work is subscribed to exactly what its answers say, also after a list failed, was withdrawn
//!   or the user became another;
//! - a session is notified of each change of a database that its answers name;
//! - between two turns of a session every other one that has work has a turn;
//! - the databases of a session that has ended are known until each of its subscriptions has ended, and its slot is used
//!   by no other before;
//! - when everyone has left, nothing is left.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::lists::run(&String::from_utf8_lossy(data));
});
