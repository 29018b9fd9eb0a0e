//! Memory of an idle client: its structs, and what they point to.

use super::connections::PEER_SIZE;
use super::ids::Handle;
use crate::net::connection::Connection;
use crate::state::session::Session;
use crate::state::subscriptions::Subscriptions;
use crate::state::table::Slot;

/// Bytes of a user's name and cookie, which share one allocation, as CouchDB makes them for names
/// of ten characters.
const TEXT: usize = 10 + 58;
/// Most bytes that an allocation takes in addition to its content.
const ALLOCATION: usize = 16;

#[test]
fn an_idle_client_is_small() {
    let structs = [("connection, in its slot", PEER_SIZE), ("session, in its slot", size_of::<Slot<Session>>())];
    // Vectors double: their unused part is only partly resident, and all of it is counted.
    let entries = [("entries in the timers", 2 * 2 * size_of::<Handle>()), ("name and cookie", TEXT + ALLOCATION)];
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
