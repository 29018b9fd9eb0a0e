//! Sessions of every dialect at once over one table of subscriptions. The input is a script of
//! clients, CouchDB and the clock. Its language, the driver and the model are in `sessions.rs` of
//! the library.
//!
//! Assertions:
//! - an accepted request is answered once, with its id and in order, before the end of its turn or
//!   of the login that it waits for; nothing else is answered;
//! - before a login and after a failed one the session has no subscription and no notification;
//! - `authenticated` and `not-authenticated` leave at least 25 ms after CONNECT, and DISCONNECT at
//!   least 25 ms after a rejection; none of them shares a write with the packet after it;
//! - a change of a database that is subscribed at that moment is notified once, by the next write;
//! - messages put aside and subscriptions stay within their limits, and only a session that exceeds
//!   them is closed for that;
//! - a session that is silent or does not log in is closed in time, and no timeout fires twice for
//!   the same moment;
//! - nothing is left after the last client has left.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    couchdb_howler_fuzz::sessions::run(&String::from_utf8_lossy(data));
});
