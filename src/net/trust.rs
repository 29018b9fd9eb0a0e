//! Which certificate of CouchDB is trusted: one that leads to a root, as the library decides, or
//! one that stands itself in `--ca_file`.
//!
//! Operators make certificates with one command of `openssl`, which marks them as an authority
//! (`CA:TRUE`), gives them version 1, or leaves the host name out. The library accepts none of
//! these at the end of a chain. A certificate that the operator named byte for byte needs no chain:
//! what is left to check is its time, the host names that it holds, and that the server has its
//! key.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, PeerMisbehaved, RootCertStore, SignatureScheme,
};
use webpki::{EndEntityCert, RawPublicKeyEntity};

/// Verifies the certificate of CouchDB.
#[derive(Debug)]
pub(super) struct Verifier {
    library: Arc<WebPkiServerVerifier>,
    /// The certificates in `--ca_file`.
    named: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Whether it was logged that the host name is not checked.
    warned: AtomicBool,
}

impl Verifier {
    /// A verifier that trusts these roots, and the named certificates themselves.
    pub(super) fn new(
        roots: RootCertStore,
        named: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let algorithms = provider.signature_verification_algorithms;
        let library = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let library = library.map_err(|error| error.to_string())?;
        Ok(Self { library, named, algorithms, warned: AtomicBool::new(false) })
    }

    /// The public key of a named certificate that the library cannot read as one of a server: it
    /// reads version 3 alone.
    fn raw_key(&self, certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
        if !is_version_1(certificate) || !self.named.contains(certificate) {
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
        let refusal = match self.library.verify_server_cert(shown, chain, name, ocsp, now) {
            Err(refusal) if self.named.contains(shown) => refusal,
            verdict => return verdict,
        };
        // The library may have refused it before it looked at its time.
        let Some((not_before, not_after)) = validity(shown) else { return Err(refusal) };
        if now.as_secs() < not_before {
            return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
        }
        if now.as_secs() > not_after {
            return Err(Error::InvalidCertificate(CertificateError::Expired));
        }
        if holds_no_name(shown) {
            if !self.warned.swap(true, Ordering::Relaxed) {
                log::warn!(
                    "The certificate of CouchDB holds no host name (subjectAltName). It is trusted because it stands \
                     itself in --ca_file; whoever has its key can answer under any name."
                );
            }
        } else {
            verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let Some(key) = self.raw_key(certificate) else {
            return self.library.verify_tls12_signature(message, certificate, signed);
        };
        let broken = |_| Error::InvalidCertificate(CertificateError::BadEncoding);
        let key = RawPublicKeyEntity::try_from(&key).map_err(broken)?;
        let mapping = self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
        let Some((_, algorithms)) = mapping else {
            return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
        };
        // In TLS 1.2 the scheme does not say which curve the key is on: one of the algorithms fits
        // the key.
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
            None => self.library.verify_tls13_signature(message, certificate, signed),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.library.supported_verify_schemes()
    }
}

/// Whether a certificate holds no host name, so that there is none to check.
pub(super) fn holds_no_name(certificate: &CertificateDer<'_>) -> bool {
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

/// Says why a certificate of CouchDB is refused and how a good one is made. The text is the same
/// whenever the same is wrong: no times, no counts.
pub(super) fn explain(error: &CertificateError) -> String {
    let text = match error {
        CertificateError::UnknownIssuer => {
            "its certificate is from an unknown authority: --ca_file takes the certificate of a private one, or the \
             server's own as `openssl x509 -in FILE` prints it"
        }
        CertificateError::BadSignature => {
            "its certificate does not fit: it is from another authority than the one of that name in --ca_file, or its \
             RSA key has under 2048 bits (make one with `openssl req -x509 -newkey rsa:2048`)"
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "its certificate holds no host name: make one with `openssl req -x509 -addext subjectAltName=DNS:HOST` \
             (IP:ADDRESS for an address), or name that certificate itself in --ca_file"
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            return format!(
                "its certificate is not for the host in --couchdb_url{}: make one with `openssl req -x509 -addext \
                 subjectAltName=DNS:HOST` (IP:ADDRESS for an address)",
                shown_names(presented)
            );
        }
        CertificateError::NotValidForName => {
            "its certificate is not for the host in --couchdb_url: make one with `openssl req -x509 -addext \
             subjectAltName=DNS:HOST` (IP:ADDRESS for an address)"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: make a new one with `openssl req -x509 -days 365`, or check the clocks"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: check the clocks, or make one with `openssl req -x509 -days 365`"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for servers: make one with `openssl req -x509 -addext \
             extendedKeyUsage=serverAuth`, or name that certificate itself in --ca_file"
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "its certificate is signed in a way that is not accepted, such as SHA-1: make one with `openssl req -x509 \
             -sha256`"
        }
        CertificateError::BadEncoding => {
            "its certificate is broken: make one with `openssl req -x509 -addext subjectAltName=DNS:HOST`"
        }
        CertificateError::UnhandledCriticalExtension => {
            "its certificate has a critical extension that is not known here: make one with `openssl req -x509 -addext \
             basicConstraints=critical,CA:FALSE`"
        }
        CertificateError::ApplicationVerificationFailure => {
            "it shows another certificate than the one in --tls_cert: SIGHUP makes it read that again"
        }
        CertificateError::Other(OtherError(error)) => return explain_other(error.downcast_ref(), error),
        error => return Error::InvalidCertificate(error.clone()).to_string(),
    };
    text.to_owned()
}

/// The same for errors that the TLS library has no names for.
fn explain_other(known: Option<&webpki::Error>, error: &dyn std::fmt::Display) -> String {
    let text = match known {
        Some(webpki::Error::CaUsedAsEndEntity) => {
            "its certificate is marked as that of an authority (CA:TRUE): make one with `openssl req -x509 -addext \
             basicConstraints=critical,CA:FALSE`, or name that certificate itself in --ca_file"
        }
        Some(webpki::Error::UnsupportedCertVersion) => {
            "its certificate has version 1: make one of version 3 with `openssl req -x509 -addext \
             subjectAltName=DNS:HOST`, or name that certificate itself in --ca_file"
        }
        Some(webpki::Error::EndEntityUsedAsCa) => {
            "its certificate is vouched for by one that is none of an authority: make that with `openssl req -x509 \
             -addext basicConstraints=critical,CA:TRUE`"
        }
        Some(webpki::Error::UnsupportedCriticalExtension) => {
            return explain(&CertificateError::UnhandledCriticalExtension);
        }
        _ => return format!("its certificate is refused: {error}"),
    };
    text.to_owned()
}

/// The names of a certificate, as far as there is room for them. The peer chose them.
fn shown_names(presented: &[String]) -> String {
    let mut text = String::new();
    for name in presented.iter().take(3) {
        // As the library prints them: `DnsName("a.example")`.
        let name = name.split('"').nth(1).unwrap_or(name);
        let name: String = name.chars().take(80).flat_map(char::escape_default).collect();
        let _ = write!(text, "{} {name}", if text.is_empty() { ", but for" } else { "," });
    }
    if presented.len() > 3 {
        text.push_str(" and others");
    }
    text
}

/// The first and the last second in which a certificate is valid, since 1970 (RFC 5280 section
/// 4.1). None where it is not laid out as a certificate is.
fn validity(certificate: &[u8]) -> Option<(u64, u64)> {
    let (SEQUENCE, certificate, _) = next_value(certificate)? else { return None };
    let (SEQUENCE, mut rest, _) = next_value(certificate)? else { return None };
    // The version, which version 1 leaves out.
    if let (VERSION, _, after) = next_value(rest)? {
        rest = after;
    }
    for expected in [INTEGER, SEQUENCE, SEQUENCE] {
        let (tag, _, after) = next_value(rest)?;
        if tag != expected {
            return None;
        }
        rest = after;
    }
    let (SEQUENCE, validity, _) = next_value(rest)? else { return None };
    let (first, not_before, validity) = next_value(validity)?;
    let (last, not_after, _) = next_value(validity)?;
    Some((seconds(first, not_before)?, seconds(last, not_after)?))
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// Splits the first value off a DER encoding (X.690): its tag, its content, and what is behind it.
fn next_value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], mut rest) = der.split_first_chunk()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        // No certificate needs more than three bytes for a length.
        let count = usize::from(first & 0x7f);
        let (bytes, after) = (count <= 3).then(|| rest.split_at_checked(count))??;
        length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        rest = after;
    }
    let (content, after) = rest.split_at_checked(length)?;
    Some((tag, content, after))
}

/// Reads a time of a certificate as seconds since 1970; those before that are 0.
fn seconds(tag: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z").filter(|digits| digits.iter().all(u8::is_ascii_digit))?;
    let (years, rest) = digits.split_at_checked(match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    })?;
    let number = |digits: &[u8]| digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'));
    let year = match (tag, number(years)) {
        (UTC_TIME, year @ 50..) => 1900 + year,
        (UTC_TIME, year) => 2000 + year,
        (_, year) => year,
    };
    let rest: &[u8; 10] = rest.try_into().ok()?;
    let [month, day, hour, minute, second] = [0, 2, 4, 6, 8].map(|at| number(&rest[at..at + 2]));
    // Days in the civil calendar; the year begins in March, so that leap days are at its end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = days + (month * 153 + 2) / 5 + day - 1 - 719_468;
    Some(u64::try_from(days * 86_400 + hour * 3_600 + minute * 60 + second).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_times_of_certificates() {
        for (tag, text, expected) in [
            (UTC_TIME, &b"700101000000Z"[..], Some(0)),
            (UTC_TIME, b"491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, b"500101000000Z", Some(0)),
            (UTC_TIME, b"000301000000Z", Some(951_868_800)),
            (GENERALIZED_TIME, b"20000229120000Z", Some(951_825_600)),
            (GENERALIZED_TIME, b"20261129054932Z", Some(1_795_931_372)),
            (GENERALIZED_TIME, b"99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, b"20261129054932Z", None),
            (UTC_TIME, b"700101000000+", None),
            (UTC_TIME, b"7001010000Z", None),
            (INTEGER, b"700101000000Z", None),
        ] {
            assert_eq!(seconds(tag, text), expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn reads_the_validity_of_certificates_and_of_no_prefix() {
        let mut params = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2001, 2, 3);
        params.not_after = rcgen::date_time_ymd(2070, 1, 1);
        let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone();
        assert_eq!(validity(&der), Some((981_158_400, 3_155_760_000)));
        for end in 0..der.len() {
            assert_eq!(validity(&der[..end]), None, "{end}");
        }
    }

    #[test]
    fn names_of_peers_are_shown_short_and_escaped() {
        let names = |names: &[&str]| shown_names(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&[]), "");
        assert_eq!(names(&["DnsName(\"a.example\")", "DnsName(\"b\")"]), ", but for a.example, b");
        let long = "x".repeat(1000);
        let shown = names(&["a\nb", &long, "c", "d"]);
        assert!(shown.starts_with(", but for a\\nb, xxx") && shown.ends_with(", c and others"), "{shown}");
        assert!(shown.len() < 150);
    }
}
