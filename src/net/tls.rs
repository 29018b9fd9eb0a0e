//! How TLS is spoken, by rustls with ring, in versions 1.2 and 1.3: with CouchDB, trusting the roots of Mozilla that
//! are built in and those of the operator; and with clients, by the certificate of the operator.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, InvalidMessage,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};

use super::stream::Stream;
use super::trust::{self, Verifier};

/// What is spoken inside of TLS (ALPN), in both directions.
const HTTP: &[u8] = b"http/1.1";

/// The configuration of a client that trusts the built-in roots, and those of a PEM text.
///
/// # Errors
/// What is wrong with the PEM text.
pub fn client_config(extra_roots: Option<&[u8]>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let named = extra_roots.map(certificates).transpose()?.unwrap_or_default();
    for (number, certificate) in named.iter().enumerate() {
        roots.add(certificate.clone()).map_err(|error| broken_certificate(number, &error))?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier::new(roots, named, provider())?))
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(Arc::new(config))
}

/// As [`client_config`], with the roots in the file that `--ca_file` names. Blocks, as [`Identity::load`] does.
///
/// # Errors
/// What is wrong with the file.
pub fn couchdb_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let Some(path) = ca_file else { return client_config(None) };
    let pem = std::fs::read(path).map_err(|error| in_file("ca_file", path, &error))?;
    client_config(Some(&pem)).map_err(|error| in_file("ca_file", path, &error))
}

/// The name under which a host has to show its certificate.
///
/// # Errors
/// It can be nobody's name.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    // The zone of an address is ours: no certificate names it.
    match host.split('%').next().unwrap_or(host).parse::<IpAddr>() {
        Ok(ip) => Ok(ServerName::from(ip)),
        Err(_) => ServerName::try_from(host.to_owned()).map_err(io::Error::other),
    }
}

/// The configuration of a client that trusts a server which shows exactly the first certificate of a file, and has its
/// key, under whatever name: our own server, asked on this machine.
///
/// # Errors
/// What is wrong with the file.
pub fn pinned_config(certificate: &Path) -> Result<Arc<ClientConfig>, String> {
    let pem = std::fs::read(certificate).map_err(|error| in_file("tls_cert", certificate, &error))?;
    let chain = certificates(&pem).map_err(|error| in_file("tls_cert", certificate, &error))?;
    let provider = provider();
    let pinned = Pinned { certificate: chain[0].clone(), algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(Arc::new(config))
}

/// Trusts one certificate, byte by byte the same; neither its name nor its age matters then. That the server has its key
/// is verified as ever.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *shown == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// By what we show clients who we are: the files, and what was made of them last.
#[derive(Debug)]
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    config: Arc<ServerConfig>,
}

impl Identity {
    /// Reads the files. That blocks, as does [`Self::reload`]: they are small, on a local disk, and read when the
    /// server starts or an operator asks for it.
    ///
    /// # Errors
    /// Which file is not as it should be, and how it should be.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, String> {
        let config = read_config(certificate, key)?;
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), config })
    }

    /// Reads the files again, for the connections that come from here on. Nothing changes when that fails.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn reload(&mut self) -> Result<(), String> {
        self.config = read_config(&self.certificate, &self.key)?;
        Ok(())
    }

    /// The file of certificates.
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// TLS over a client's connection; the handshake is still to come.
    ///
    /// # Errors
    /// When rustls cannot set the session up.
    pub fn accept(&self, socket: TcpStream) -> io::Result<Stream> {
        Stream::tls_server(socket, Arc::clone(&self.config))
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
                "it is not the key of the first certificate in {}; the server's own comes first there, and those that \
                 vouch for it behind",
                certificate.display()
            ),
        ),
        Error::InvalidCertificate(_) => in_file("tls_cert", certificate, &broken_certificate(0, &error)),
        _ => in_file(
            "tls_key",
            key,
            &"its key is of a kind that is not known here; expected RSA with 2048 to 8192 bits, ECDSA with P-256 or P-384, \
              or Ed25519",
        ),
    })
}

fn in_file(option: &str, path: &Path, problem: &dyn std::fmt::Display) -> String {
    format!("--{option} {}: {problem}", path.display())
}

fn server_config(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![HTTP.to_vec()];
    // Clients that come again keep the session between times, we keep nothing: without the costly half of a handshake,
    // thousands of them are back soon after a break of the network. Each connection brings the ticket for the next.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates of a PEM text, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem)
        .enumerate()
        .map(|(number, certificate)| certificate.map_err(|error| broken_certificate(number, &pem_problem(&error))))
        .collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        return Err("it holds no certificate (-----BEGIN CERTIFICATE-----)".to_owned());
    }
    Ok(found)
}

fn broken_certificate(number: usize, error: &dyn std::fmt::Display) -> String {
    format!("certificate {} of it is broken: {error}", number + 1)
}

/// The first private key of a PEM text.
fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound if memchr::memmem::find(pem, b"-----BEGIN ENCRYPTED PRIVATE KEY-----").is_some() => {
            "its key is encrypted; expected one that is not, as `openssl pkey -in FILE -out FILE` makes it".to_owned()
        }
        pem::Error::NoItemsFound => "it holds no private key (-----BEGIN PRIVATE KEY-----, -----BEGIN RSA PRIVATE \
             KEY----- or -----BEGIN EC PRIVATE KEY-----)"
            .to_owned(),
        error => format!("its key is broken: {}", pem_problem(&error)),
    })
}

/// What is wrong with a PEM text, without a word of it: it may hold a key.
fn pem_problem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "the line -----END ...----- is missing",
        pem::Error::IllegalSectionStart { .. } => "the line -----BEGIN ...----- is not whole",
        pem::Error::Base64Decode(_) => "what is between its lines is no base64",
        _ => "it is no PEM",
    }
}

/// What is wrong with the peer, in words that tell an operator what to do. They are the same whenever the
/// same goes wrong: no times, no counts.
pub fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => trust::explain(error),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the peer speaks no TLS: check https in --couchdb_url, and the port".to_owned()
        }
        // What a server says whose key is on a curve that is not known here, such as P-521, or that
        // speaks old TLS alone.
        Error::AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion)
        | Error::PeerIncompatible(_) => format!(
            "the peer speaks neither TLS 1.2 nor 1.3 in a way that is known here ({error}): its key should be RSA or ECDSA \
             on P-256 or P-384, as `openssl req -x509 -newkey rsa:2048` makes it"
        ),
        _ => error.to_string(),
    }
}

/// What is wrong between a client and us, in words that tell an operator what to do.
pub fn explain_client(error: &Error) -> String {
    let text = match error {
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired,
        ) => return format!("the client does not trust the certificate in --tls_cert ({error})"),
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired,
        ) => "the client speaks neither TLS 1.2 nor 1.3",
        Error::NoApplicationProtocol => "the client wants to speak something else than HTTP/1.1 (ALPN)",
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

    #[test]
    fn says_what_is_wrong_with_a_private_key() {
        let pem = |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
        for (text, problem) in [
            (String::new(), "no private key (-----BEGIN PRIVATE KEY-----"),
            (pem("CERTIFICATE", "aGVsbG8="), "no private key"),
            (pem("ENCRYPTED PRIVATE KEY", "aGVsbG8="), "is encrypted"),
            (pem("PRIVATE KEY", "zq7%"), "is broken: what is between its lines is no base64"),
            ("-----BEGIN PRIVATE KEY-----\naGVsbG8=\n".to_owned(), "is broken: the line -----END ...----- is missing"),
            ("-----BEGIN PRIVATE KEY----\nzq7=\n".to_owned(), "is broken: the line -----BEGIN ...----- is not whole"),
        ] {
            let error = private_key(text.as_bytes()).unwrap_err();
            assert!(error.contains(problem) && !error.contains("zq7") && !error.contains("[45"), "{error}");
        }
        let kinds = [("PRIVATE KEY", 8), ("RSA PRIVATE KEY", 1), ("EC PRIVATE KEY", 0)];
        for (name, kind) in kinds {
            // As openssl writes them: parameters in front, or a certificate.
            let text = pem("EC PARAMETERS", "aGVsbG8=") + &pem("CERTIFICATE", "aGVsbG8=") + &pem(name, "aGVsbG8=");
            let found = match private_key(text.as_bytes()).unwrap() {
                PrivateKeyDer::Pkcs8(_) => 8,
                PrivateKeyDer::Pkcs1(_) => 1,
                _ => 0,
            };
            assert_eq!(found, kind, "{name}");
        }
    }
}
