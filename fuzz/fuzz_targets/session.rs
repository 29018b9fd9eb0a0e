//! Sessions of every dialect at once, over one table of subscriptions, driven by a script of what clients, CouchDB
//! and the clock do. The script's language, the driver and the model are in `sessions.rs` of the library.
//!
//! Asserted:
//! - a request that is accepted is answered once, with its id and in the order of asking, before its turn or the
//!   log-in that it waits for is over; nothing else is answered;
//! - before the log-in, and after one that failed, nothing is told of any database, and nothing is subscribed to;
//! - `authenticated` and `not-authenticated` leave 25 ms or more after CONNECT, and DISCONNECT as long after a refusal;
//!   none of them in one write with what it follows;
//! - a change is told for what is subscribed to at that moment, once, by the next write, whatever comes in between;
//! - messages put aside and subscriptions stay within their limits, and only a session over them is closed for it;
//! - who is silent, or does not log in, is gone in time, and no timeout fires twice for the same moment;
//! - when everyone has left, nothing is left.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::sessions::run(&String::from_utf8_lossy(data));
});
