//! Sockets, TLS, files and the lookup of names. What the bytes mean is nobody's business here.

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
