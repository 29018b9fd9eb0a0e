//! TLS as a server: the certificate and the key for clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{Error, InconsistentKeys, ServerConfig};

use super::pem::{broken_certificate, certificates, in_file, private_key};
use super::provider::{HTTP, provider};

/// The certificate and the key: their files, and the configuration that was read last.
#[derive(Debug)]
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    config: Arc<ServerConfig>,
}

impl Identity {
    /// Reads the files. It blocks, as [`Self::reload`] does: the files are small and local, and are
    /// read only at the start or on request of an operator.
    ///
    /// # Errors
    /// Returns the fault of a file, and what is expected.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, String> {
        let config = read_config(certificate, key)?;
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), config })
    }

    /// Reads the files again, for later connections. An error changes nothing.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn reload(&mut self) -> Result<(), String> {
        self.config = read_config(&self.certificate, &self.key)?;
        Ok(())
    }

    /// Returns the path of the certificates.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Returns the configuration for new connections.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}

fn read_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, String> {
    let read = |path: &Path, option: &str| std::fs::read(path).map_err(|error| in_file(option, path, &error));
    let (chain, secret) = (read(certificate, "tls_cert")?, read(key, "tls_key")?);
    let chain = certificates(&chain).map_err(|error| in_file("tls_cert", certificate, &error))?;
    let secret = private_key(&secret).map_err(|error| in_file("tls_key", key, &error))?;
    server_config(chain, secret).map_err(|error| match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => in_file(
            "tls_key",
            key,
            &format!(
                "it is not the key of the first certificate in {}; the server's own comes first there, then those \
                 that sign it",
                certificate.display()
            ),
        ),
        Error::InvalidCertificate(_) => in_file("tls_cert", certificate, &broken_certificate(0, &error)),
        _ => in_file(
            "tls_key",
            key,
            &"its key is of an unknown kind; expected RSA with 2048 to 8192 bits, ECDSA with P-256 or P-384, \
              or Ed25519",
        ),
    })
}

fn server_config(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP.to_vec()];
    // Clients keep their sessions, the server keeps nothing. Without the costly half of a
    // handshake, thousands of them reconnect soon after a network failure. Each connection brings
    // the ticket for the next one.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}
