//! Cryptography and randomness, by ring.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

/// The protocol inside TLS (ALPN), in both directions.
pub(super) const HTTP: &[u8] = b"http/1.1";

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Fills a buffer with random bytes that nobody can guess.
///
/// # Errors
/// Returns an error if the system has no randomness.
pub fn random_bytes(buffer: &mut [u8]) -> Result<(), String> {
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(buffer).map_err(|_| "the system has no randomness".to_owned())
}
