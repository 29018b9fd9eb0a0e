//! TLS as a client: configurations for CouchDB, and for the server itself.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};

use super::pem::{broken_certificate, certificates, in_file};
use super::provider::{HTTP, provider};
use super::verifier::Verifier;

/// Returns the configuration of a client that trusts the built-in roots and those of a PEM text.
///
/// # Errors
/// Returns the fault of the PEM text.
pub fn client_config(extra_roots: Option<&[u8]>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let named = extra_roots.map(certificates).transpose()?.unwrap_or_default();
    for (number, certificate) in named.iter().enumerate() {
        roots.add(certificate.clone()).map_err(|error| broken_certificate(number, &error))?;
    }
    Ok(verified_by(Verifier::trusting_roots(roots, named, provider())?))
}

/// Returns the configuration for CouchDB, with the roots in the file of `--ca_file`. It blocks, as
/// [`Identity::load`](super::Identity::load) does.
///
/// # Errors
/// Returns the fault of the file.
pub fn couchdb_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let Some(path) = ca_file else { return client_config(None) };
    let pem = std::fs::read(path).map_err(|error| in_file("ca_file", path, &error))?;
    client_config(Some(&pem)).map_err(|error| in_file("ca_file", path, &error))
}

/// Returns the name that the certificate of a host must have.
///
/// # Errors
/// Returns an error if no certificate can have that name.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    // A zone is local to this machine, so no certificate has it.
    match host.split('%').next().unwrap_or(host).parse::<IpAddr>() {
        Ok(ip) => Ok(ServerName::from(ip)),
        Err(_) => ServerName::try_from(host.to_owned()).map_err(io::Error::other),
    }
}

/// Returns the configuration of a client that trusts only a server with the first certificate of a
/// file, under any name. It is for the server itself, on the same machine.
///
/// # Errors
/// Returns the fault of the file.
pub fn pinned_config(certificate: &Path) -> Result<Arc<ClientConfig>, String> {
    let pem = std::fs::read(certificate).map_err(|error| in_file("tls_cert", certificate, &error))?;
    let chain = certificates(&pem).map_err(|error| in_file("tls_cert", certificate, &error))?;
    Ok(verified_by(Verifier::pinned(chain[0].clone(), &provider())))
}

fn verified_by(verifier: Verifier) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP.to_vec()];
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explains_faulty_files_of_roots() {
        assert!(client_config(None).is_ok());
        assert!(client_config(Some(b"hello")).unwrap_err().contains("no certificate"));
        let broken = b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        assert!(client_config(Some(broken)).unwrap_err().contains("certificate 1"));
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        assert!(client_config(Some(key.cert.pem().as_bytes())).is_ok());
    }
}
