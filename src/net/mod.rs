//! Sockets, TLS, files and name resolution. Nothing here knows what the bytes mean.

pub mod background;
pub mod blocking;
pub mod connection;
pub mod descriptors;
pub mod file_reader;
pub mod keep_alive;
pub mod listener;
mod nameservers;
pub mod resolver;
pub mod stream;
pub mod tls;
