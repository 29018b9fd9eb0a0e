//! What an idle client takes here: the structs that there are for each, and what they point to.

use super::{Peer, Timer};
use crate::net::connection::Connection;
use crate::state::session::Session;
use crate::state::subscriptions::Subscriptions;
use crate::state::table::Slot;

/// A user's name and cookie, in one allocation: as CouchDB makes them for names of ten characters.
const TEXT: usize = 10 + 58;
/// Most that an allocation takes beside what was asked for.
const ALLOCATION: usize = 16;

#[test]
fn an_idle_client_is_small() {
    let structs =
        [("connection, in its slot", size_of::<Slot<Peer>>()), ("session, in its slot", size_of::<Slot<Session>>())];
    // Vectors double: what is not used of them is only partly resident, and all of it is counted.
    let entries = [("entries in the timers", 2 * 2 * size_of::<Timer>()), ("name and cookie", TEXT + ALLOCATION)];
    let subscriptions = Subscriptions::sizes();
    let mut total = 0;
    for (name, size) in structs.into_iter().chain(entries).chain(subscriptions.iter().copied()) {
        total += size;
        println!("{size:4}  {name}");
    }
    println!("{total:4}  in all");
    for (name, size) in
        [("… of the connection: socket and what waits", size_of::<Connection>())].into_iter().chain(Session::sizes())
    {
        println!("{size:4}  {name}");
    }
    assert!(total <= 560, "an idle client with a database of its own takes {total} bytes");
}
