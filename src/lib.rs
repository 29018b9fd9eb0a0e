//! couchdb-howler
pub mod config;
pub mod demo;
pub mod event_loop;
pub mod net;
pub mod server;
pub mod state;
pub mod wire;
