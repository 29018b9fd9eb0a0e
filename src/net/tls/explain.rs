//! Errors of TLS, with the cure for the operator. The words are the same for the same
//! error, without times or counts, so that the log can limit repetitions.

use std::fmt::Write as _;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError, PeerIncompatible};

/// Explains an error with a server, which is CouchDB or the server itself.
pub(in crate::net) fn explain_server(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => explain_certificate(error),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "the peer does not speak TLS: check https in --couchdb_url, and the port".to_owned()
        }
        // The alerts of a server that has a key on an unknown curve, such as P-521, or speaks old
        // TLS only.
        Error::AlertReceived(AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion)
        | Error::PeerIncompatible(_) => format!(
            "the peer speaks neither TLS 1.2 nor 1.3 in a supported way ({error}): its key should be RSA or ECDSA \
             on P-256 or P-384, as `openssl req -x509 -newkey rsa:2048` makes it"
        ),
        _ => error.to_string(),
    }
}

/// Explains an error with a client.
pub(in crate::net) fn explain_client(error: &Error) -> String {
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
        Error::NoApplicationProtocol => "the client requires another protocol than HTTP/1.1 (ALPN)",
        _ => return error.to_string(),
    };
    text.to_owned()
}

/// Explains why a certificate of CouchDB is rejected, and how to make a valid one.
fn explain_certificate(error: &CertificateError) -> String {
    let text = match error {
        CertificateError::UnknownIssuer => {
            "its certificate is from an unknown authority: --ca_file takes the certificate of a private one, or the \
             server's own as `openssl x509 -in FILE` prints it"
        }
        CertificateError::BadSignature => {
            "its certificate does not match: another authority than the one of that name in --ca_file signed it, or its \
             RSA key has under 2048 bits (make one with `openssl req -x509 -newkey rsa:2048`)"
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "its certificate has no host name: make one with `openssl req -x509 -addext subjectAltName=DNS:HOST` \
             (IP:ADDRESS for an address), or put that certificate itself into --ca_file"
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
             extendedKeyUsage=serverAuth`, or put that certificate itself into --ca_file"
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "its certificate has a signature that is not accepted, such as SHA-1: make one with `openssl req -x509 \
             -sha256`"
        }
        CertificateError::BadEncoding => {
            "its certificate is malformed: make one with `openssl req -x509 -addext subjectAltName=DNS:HOST`"
        }
        CertificateError::UnhandledCriticalExtension => {
            "its certificate has an unknown critical extension: make one with `openssl req -x509 -addext \
             basicConstraints=critical,CA:FALSE`"
        }
        CertificateError::ApplicationVerificationFailure => {
            "it has another certificate than the one in --tls_cert: SIGHUP makes it read that file again"
        }
        CertificateError::Other(OtherError(error)) => return explain_other(error.downcast_ref(), error),
        error => return Error::InvalidCertificate(error.clone()).to_string(),
    };
    text.to_owned()
}

/// Explains errors for which rustls has no names.
fn explain_other(known: Option<&webpki::Error>, error: &dyn std::fmt::Display) -> String {
    let text = match known {
        Some(webpki::Error::CaUsedAsEndEntity) => {
            "its certificate is marked as that of an authority (CA:TRUE): make one with `openssl req -x509 -addext \
             basicConstraints=critical,CA:FALSE`, or put that certificate itself into --ca_file"
        }
        Some(webpki::Error::UnsupportedCertVersion) => {
            "its certificate has version 1: make one of version 3 with `openssl req -x509 -addext \
             subjectAltName=DNS:HOST`, or put that certificate itself into --ca_file"
        }
        Some(webpki::Error::EndEntityUsedAsCa) => {
            "its certificate is signed by one that is not an authority: make that with `openssl req -x509 \
             -addext basicConstraints=critical,CA:TRUE`"
        }
        Some(webpki::Error::UnsupportedCriticalExtension) => {
            return explain_certificate(&CertificateError::UnhandledCriticalExtension);
        }
        _ => return format!("its certificate is rejected: {error}"),
    };
    text.to_owned()
}

/// Returns the first names of a certificate, shortened and escaped, since the peer chose them.
fn shown_names(presented: &[String]) -> String {
    let mut text = String::new();
    for name in presented.iter().take(3) {
        // rustls writes them as `DnsName("a.example")`.
        let name = name.split('"').nth(1).unwrap_or(name);
        let name: String = name.chars().take(80).flat_map(char::escape_default).collect();
        let _ = write!(text, "{} {name}", if text.is_empty() { ", but for" } else { "," });
    }
    if presented.len() > 3 {
        text.push_str(" and others");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_names_of_peers_short_and_escaped() {
        let names = |names: &[&str]| shown_names(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(names(&[]), "");
        assert_eq!(names(&["DnsName(\"a.example\")", "DnsName(\"b\")"]), ", but for a.example, b");
        let long = "x".repeat(1000);
        let shown = names(&["a\nb", &long, "c", "d"]);
        assert!(shown.starts_with(", but for a\\nb, xxx") && shown.ends_with(", c and others"), "{shown}");
        assert!(shown.len() < 150);
    }
}
