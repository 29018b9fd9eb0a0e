//! Bytes ↔ values. Every parser here takes bytes and returns what it found and how much it used,
//! "need more", or an error; none knows a socket, a clock, the environment or randomness.

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
