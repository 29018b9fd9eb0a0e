//! Subscriptions and positions together, as a server drives them, against a naive model, driven by a script of what
//! clients, CouchDB and the clock do. The script's language, the driver and the model are in `positions.rs` of the library.
//!
//! Asserted:
//! - a request is answered once, within five seconds, for the names that were not withdrawn, and nothing else is;
//! - an answer's positions hold every line that was delivered, and nothing that CouchDB does not have; `changed` is
//!   exactly what is to be compared and is not the same;
//! - when all that was under way has come, every client was told of everything that happened to its databases, lost
//!   events included, and every position that it was given last is where its database stands;
//! - where nothing was in doubt, out of order or not known, nothing is told that moves no position;
//! - of each database one look-up is under way at most, and of bounded size;
//! - when everyone has left for long enough, nothing is left.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::positions::run(&String::from_utf8_lossy(data));
});
