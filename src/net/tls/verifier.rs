//! The rule which certificate of a server is trusted: one that leads to a root, as rustls decides,
//! one that is itself in `--ca_file`, or a pinned one.
//!
//! Operators make certificates with one command of `openssl`, which marks them as an authority
//! (`CA:TRUE`), gives them version 1, or leaves out the host name. rustls rejects these at the end
//! of a chain. A certificate that the operator named byte for byte needs no chain. Only its time,
//! its host names and the key of the server are left to check.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore, SignatureScheme};
use webpki::{EndEntityCert, RawPublicKeyEntity};

use super::validity::validity;

/// Verifies the certificate of a server.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The trusted certificates.
#[derive(Debug)]
enum Trust {
    /// Certificates that lead to a root, and the named certificates.
    Chain {
        library: Arc<WebPkiServerVerifier>,
        /// The certificates in `--ca_file`.
        named: Vec<CertificateDer<'static>>,
        /// Whether the log has the warning that the host name is not checked.
        warned: AtomicBool,
    },
    /// One certificate, byte for byte. Its name and its age do not matter.
    Pinned(CertificateDer<'static>),
}

impl Verifier {
    /// Creates a verifier that trusts these roots and the named certificates.
    pub(super) fn trusting_roots(
        roots: RootCertStore,
        named: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let algorithms = provider.signature_verification_algorithms;
        let library = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let library = library.map_err(|error| error.to_string())?;
        Ok(Self { trust: Trust::Chain { library, named, warned: AtomicBool::new(false) }, algorithms })
    }

    /// Creates a verifier that trusts one certificate.
    pub(super) fn pinned(certificate: CertificateDer<'static>, provider: &CryptoProvider) -> Self {
        Self { trust: Trust::Pinned(certificate), algorithms: provider.signature_verification_algorithms }
    }

    /// Returns the public key of a named certificate of version 1, which rustls cannot read.
    fn raw_key(&self, certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
        let Trust::Chain { named, .. } = &self.trust else { return None };
        if !is_version_1(certificate) || !named.contains(certificate) {
            return None;
        }
        webpki::anchor_from_trusted_cert(certificate).ok().map(|anchor| webpki::spki_for_anchor(&anchor))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.trust {
            Trust::Pinned(certificate) if shown == certificate => Ok(ServerCertVerified::assertion()),
            Trust::Pinned(_) => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
            Trust::Chain { library, named, warned } => {
                match library.verify_server_cert(shown, chain, name, ocsp, now) {
                    Err(refusal) if named.contains(shown) => verify_named(shown, name, now, refusal, warned),
                    verdict => verdict,
                }
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(key) = self.raw_key(certificate) else {
            return verify_tls12_signature(message, certificate, signed, &self.algorithms);
        };
        let broken = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let key = RawPublicKeyEntity::try_from(&key).map_err(broken)?;
        let mapping = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let Some((_, algorithms)) = mapping else {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        };
        // In TLS 1.2 the scheme does not name the curve of the key, so try all algorithms of the
        // scheme.
        let valid = algorithms.iter().any(|one| key.verify_signature(*one, message, signed.signature()).is_ok());
        valid.then(HandshakeSignatureValid::assertion).ok_or(CertificateError::BadSignature.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.raw_key(certificate) {
            Some(key) => verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms),
            None => verify_tls13_signature(message, certificate, signed, &self.algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies a named certificate that rustls rejected.
fn verify_named(
    shown: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
    refusal: Error,
    warned: &AtomicBool,
) -> Result<ServerCertVerified, Error> {
    // rustls may have rejected it before it checked the time.
    let Some((not_before, not_after)) = validity(shown) else { return Err(refusal) };
    if now.as_secs() < not_before {
        return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now.as_secs() > not_after {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    if has_no_name(shown) {
        if !warned.swap(true, Ordering::Relaxed) {
            log::warn!(
                "The certificate of CouchDB has no host name (subjectAltName). It is trusted because it is \
                 itself in --ca_file; the holder of its key can answer under any name."
            );
        }
    } else {
        verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
    }
    Ok(ServerCertVerified::assertion())
}

/// Returns whether a certificate has no host name that could be checked.
pub(in crate::net) fn has_no_name(certificate: &CertificateDer<'_>) -> bool {
    let any = ServerName::try_from("name.invalid").expect("a name");
    match ParsedCertificate::try_from(certificate) {
        Ok(parsed) => matches!(
            verify_server_name(&parsed, &any),
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }))
                if presented.is_empty()
        ),
        // Version 1 has no extensions, and so no names.
        Err(_) => is_version_1(certificate),
    }
}

fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    matches!(EndEntityCert::try_from(certificate), Err(webpki::Error::UnsupportedCertVersion))
}
