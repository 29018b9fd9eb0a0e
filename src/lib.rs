//! couchdb-howler
pub mod wire;
