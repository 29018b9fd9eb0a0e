//! What an idle client takes here: the structs that there are for each, and what they point to.

use std::net::IpAddr;

use super::{Peer, Protocol, Timer};
use crate::net::connection::Connection;
use crate::net::stream::Stream;
use crate::state::session::Session;
use crate::state::subscriptions::Subscriptions;
use crate::state::table::Slot;
use crate::wire::websocket::Decoder;

#[test]
fn an_idle_client_is_small() {
    let parts = [
        ("connection, in its slot", size_of::<Slot<Peer>>()),
        ("… stream", size_of::<Stream>()),
        ("… stream and what waits", size_of::<Connection>()),
        ("… protocol", size_of::<Protocol>()),
        ("… decoder", size_of::<Decoder>()),
        ("… address", size_of::<IpAddr>()),
        ("session, in its slot", size_of::<Slot<Session>>()),
        ("entry in the timers", size_of::<Timer>()),
    ];
    for (name, size) in parts {
        println!("{size:4}  {name}");
    }
    for (name, size) in Session::sizes().into_iter().chain(Subscriptions::sizes()) {
        println!("{size:4}  {name}");
    }
}
