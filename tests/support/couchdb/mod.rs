//! A stand-in for CouchDB: as much of CouchDB's HTTP as this
//! server meets, with the oddities that were seen on the wire, and with faults on demand.
//!
//! It is a small server of its own, with threads that block, and shares no code with the server it
//! stands beside: a mistake in one does not hide in the other. It stores no documents, it only
//! counts writes.
//!
//! ```text
//! stand_in  the handle ──▶ listener ──▶ connection ──▶ routes ─┬▶ sessions, accounts
//!                           (one thread)  (a thread each)      └▶ feed ──▶ global_changes
//!                                   all of them ──▶ state (one lock), faults, http, clock
//! ```

mod accounts;
mod clock;
mod connection;
mod faults;
mod feed;
mod global_changes;
mod http;
mod listener;
mod nodes;
mod routes;
mod sessions;
mod stand_in;
mod state;
mod tests;

pub use faults::{Chunking, FeedFault, SinceRefusal};
pub use stand_in::{Options, StandIn};
pub use state::RecordedRequest;
