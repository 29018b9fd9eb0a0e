//! couchdb-howler
pub mod demo;
pub mod state;
pub mod wire;
