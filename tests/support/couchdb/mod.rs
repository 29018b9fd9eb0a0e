//! A stand-in for CouchDB: the part of CouchDB's HTTP interface that the server uses, with the
//! oddities that were seen on the wire, and with faults on demand.
//!
//! It is a small server with blocking threads, and shares no code with the server under test, so
//! that a mistake in one does not hide in the other. It stores no documents and only counts writes.
//!
//! ```text
//! stand_in ──▶ listener ──▶ connection ─┬▶ routes ──▶ sessions ──▶ rejections
//! (handle)   (one thread)  (one each)   └▶ feed
//!
//! all of these ──▶ state (one lock) ──▶ accounts, global_changes, nodes, faults ──▶ http, clock
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
mod options;
mod rejections;
mod routes;
mod sessions;
mod stand_in;
mod state;
mod tests;

pub use faults::{Chunking, FeedFault, SinceRefusal};
pub use options::Options;
pub use stand_in::StandIn;
pub use state::RecordedRequest;
