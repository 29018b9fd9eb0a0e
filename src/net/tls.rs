//! How TLS is spoken with CouchDB: rustls with ring, TLS 1.2 and 1.3, the roots of Mozilla that are
//! built in and those of the operator.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{CertificateError, ClientConfig, Error, InvalidMessage, RootCertStore};

/// The configuration of a client that trusts the built-in roots, and those of a PEM text.
///
/// # Errors
/// What is wrong with the PEM text.
pub fn client_config(extra_roots: Option<&[u8]>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(pem) = extra_roots {
        let mut found = 0;
        for (number, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let broken = |error: &dyn std::fmt::Display| format!("certificate {} of it is broken: {error}", number + 1);
            let certificate = certificate.map_err(|error| broken(&error))?;
            roots.add(certificate).map_err(|error| broken(&error))?;
            found += 1;
        }
        if found == 0 {
            return Err("it holds no certificate (-----BEGIN CERTIFICATE-----)".to_owned());
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What is wrong with the peer, in words that tell an operator what to do. They are the same whenever the
/// same goes wrong: no times, no counts.
pub fn explain(error: &Error) -> String {
    let text = match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is from an unknown authority: --ca_file takes the certificate of a private one"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is not for the host in --couchdb_url",
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired"
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "its certificate is not valid yet: check the clocks"
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the peer speaks no TLS: check https in --couchdb_url, and the port"
        }
        _ => return error.to_string(),
    };
    text.to_owned()
}

/// Fills a buffer with randomness that nobody can guess.
///
/// # Errors
/// When the system has none to give.
pub fn random_bytes(buffer: &mut [u8]) -> Result<(), String> {
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(buffer).map_err(|_| "the system gives no randomness".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_with_a_file_of_roots() {
        assert!(client_config(None).is_ok());
        assert!(client_config(Some(b"hello")).unwrap_err().contains("no certificate"));
        let broken = b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        assert!(client_config(Some(broken)).unwrap_err().contains("certificate 1"));
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        assert!(client_config(Some(key.cert.pem().as_bytes())).is_ok());
    }
}
