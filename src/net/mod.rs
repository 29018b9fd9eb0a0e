//! Sockets, TLS and name look-up. What the bytes mean is nobody's business here.

pub mod blocking;
pub mod connection;
pub mod descriptors;
pub mod listener;
pub mod resolver;
pub mod stream;
pub mod tls;
mod trust;
