//! Long lists of names that a server works on over turns, compared with a naive model. The input is
//! a script of clients and CouchDB. Its language, the driver and the model are in `lists.rs` of the
//! library.
//!
//! Assertions:
//! - the messages of a session are handled in order, and each request is answered once: with the
//!   names that were requested and not withdrawn, whatever happens half-way;
//! - a session without work is subscribed to exactly the names of its answers, also after a list
//!   failed, was withdrawn, or the user changed;
//! - a session is notified of each change of a database that its answers name;
//! - between two turns of a session every other session with work has a turn;
//! - the databases of an ended session are known until each of its subscriptions has ended, and its
//!   slot is not reused before;
//! - nothing is left after the last client has left.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::lists::run(&String::from_utf8_lossy(data));
});
