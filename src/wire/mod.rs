//! Bytes ↔ values: parsers and writers of all protocols.
//!
//! A parser takes bytes and returns a value with the number of bytes used, "need more", or an
//! error. None of them touches sockets, the clock, the environment or randomness.

pub mod couchdb;
pub mod database_name;
pub mod dns;
pub mod engine_io;
pub mod howler_v1;
pub mod http;
pub mod json;
pub mod lines;
pub mod name_list;
pub mod nodes;
pub mod payload;
pub mod positions;
pub mod resolv_conf;
pub mod secret;
pub mod security;
pub mod socket_io;
pub mod url;
pub mod websocket;
