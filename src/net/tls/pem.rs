//! Certificates and keys as PEM (RFC 7468).

use std::path::Path;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Reads the certificates of a PEM text, at least one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem)
        .enumerate()
        .map(|(number, certificate)| certificate.map_err(|error| broken_certificate(number, &pem_problem(&error))))
        .collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        return Err("it has no certificate (-----BEGIN CERTIFICATE-----)".to_owned());
    }
    Ok(found)
}

pub(super) fn broken_certificate(number: usize, error: &dyn std::fmt::Display) -> String {
    format!("its certificate {} is malformed: {error}", number + 1)
}

/// Reads the first private key of a PEM text.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound if memchr::memmem::find(pem, b"-----BEGIN ENCRYPTED PRIVATE KEY-----").is_some() => {
            "its key is encrypted; expected a plain one, as `openssl pkey -in FILE -out FILE` makes it".to_owned()
        }
        pem::Error::NoItemsFound => "it has no private key (-----BEGIN PRIVATE KEY-----, -----BEGIN RSA PRIVATE \
             KEY----- or -----BEGIN EC PRIVATE KEY-----)"
            .to_owned(),
        error => format!("its key is malformed: {}", pem_problem(&error)),
    })
}

/// Describes the fault of a PEM text without quoting it, since it may hold a key.
fn pem_problem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "the line -----END ...----- is missing",
        pem::Error::IllegalSectionStart { .. } => "the line -----BEGIN ...----- is incomplete",
        pem::Error::Base64Decode(_) => "the text between its lines is not base64",
        _ => "it is not PEM",
    }
}

pub(super) fn in_file(option: &str, path: &Path, problem: &dyn std::fmt::Display) -> String {
    format!("--{option} {}: {problem}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explains_faulty_private_keys() {
        let pem = |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
        for (text, problem) in [
            (String::new(), "no private key (-----BEGIN PRIVATE KEY-----"),
            (pem("CERTIFICATE", "aGVsbG8="), "no private key"),
            (pem("ENCRYPTED PRIVATE KEY", "aGVsbG8="), "is encrypted"),
            (pem("PRIVATE KEY", "zq7%"), "is malformed: the text between its lines is not base64"),
            (
                "-----BEGIN PRIVATE KEY-----\naGVsbG8=\n".to_owned(),
                "is malformed: the line -----END ...----- is missing",
            ),
            (
                "-----BEGIN PRIVATE KEY----\nzq7=\n".to_owned(),
                "is malformed: the line -----BEGIN ...----- is incomplete",
            ),
        ] {
            let error = private_key(text.as_bytes()).unwrap_err();
            assert!(error.contains(problem) && !error.contains("zq7") && !error.contains("[45"), "{error}");
        }
        let kinds = [("PRIVATE KEY", 8), ("RSA PRIVATE KEY", 1), ("EC PRIVATE KEY", 0)];
        for (name, kind) in kinds {
            // openssl may write parameters or a certificate in front of a key.
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
