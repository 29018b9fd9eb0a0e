//! Certificates of CouchDB made with common tools: which ones the server trusts, and the errors for
//! the others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};

use crate::support::client::Client;
use crate::support::howler::{Howler, run};
use crate::support::tls::TlsProxy;
use crate::support::{SOON, couchdb};

/// A temporary folder. Dropping the value removes it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("certificates-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).expect("the target folder is writable");
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("the path is UTF-8").to_owned()
    }

    /// Runs shell commands in the folder.
    fn shell(&self, commands: &str) {
        let output = Command::new("bash").args(["-euc", commands]).current_dir(&self.0).output().expect("bash runs");
        assert!(output.status.success(), "{commands}\n{}", String::from_utf8_lossy(&output.stderr));
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("the folder is writable");
    }

    /// Returns a TLS server with the certificate `cert.pem` and the key `key.pem`. Accepts any
    /// certificate.
    fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
        let chain = CertificateDer::pem_file_iter(self.0.join("cert.pem")).expect("the file exists");
        let chain: Vec<_> = chain.map(|one| one.expect("the file has valid certificates")).collect();
        let key = PrivateKeyDer::from_pem_file(self.0.join("key.pem")).expect("the file has a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = provider.key_provider.load_private_key(key).expect("ring supports the key");
        let resolver = SingleCertAndKey::from(CertifiedKey::new(chain, key));
        ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("ring supports the versions")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns the TLS line of `check` for the certificate in a folder and a file of trusted roots.
fn verdict(folder: &Folder, ca_file: &str) -> String {
    let couchdb = couchdb();
    let proxy = TlsProxy::start(&couchdb, folder.server(rustls::ALL_VERSIONS));
    let url = proxy.url(&couchdb, "localhost");
    let ended = run(&["check", "--host", "127.0.0.1", "--port", "0", "-u", &url, "--ca_file", ca_file], &[]);
    let line = ended.stdout.lines().find(|line| line.contains("  TLS: "));
    line.unwrap_or_else(|| panic!("{}", ended.stdout)).to_owned()
}

/// Asserts that the certificate in a folder is trusted, over both TLS versions, when `--ca_file`
/// contains it.
fn is_trusted(folder: &Folder, warns: bool, kind: &str) {
    let ca_file = folder.path("cert.pem");
    for version in [&TLS12, &TLS13] {
        let couchdb = couchdb();
        let proxy = TlsProxy::start(&couchdb, folder.server(&[version]));
        let url = proxy.url(&couchdb, "localhost");
        let howler = Howler::launch(&["--couchdb_url", &url, "--ca_file", &ca_file]);
        assert!(couchdb.wait_for_feeds(1, SOON), "{kind}, {version:?}:\n{}", howler.output());
        let mut client = Client::subscribed(howler.address(), &["db"]);
        couchdb.update("db");
        assert_eq!(client.next_change(SOON).as_deref(), Some("db"), "{kind}");
        if warns {
            howler.assert_logged("has no host name (subjectAltName)", 1);
        }
        assert_eq!(howler.count_logged("WARN"), usize::from(warns), "{kind}: {}", howler.output());
    }
    let said = verdict(folder, &ca_file);
    assert!(said.starts_with("ok      TLS: the certificate is trusted"), "{kind}: {said}");
    assert_eq!(said.contains("has no host name"), warns, "{kind}: {said}");
}

/// Asserts that the server and `check` reject the certificate in a folder with the same words.
fn is_refused(folder: &Folder, ca_file: &str, words: &[&str]) {
    let said = verdict(folder, ca_file);
    let problem = said.strip_prefix("FAILED  TLS: ").unwrap_or_else(|| panic!("{words:?}: {said}"));
    for word in words {
        assert!(problem.contains(word), "{word:?} in {problem}");
    }
    assert!(!problem.contains('\n') && problem.len() < 400, "{problem}");
    let couchdb = couchdb();
    let proxy = TlsProxy::start(&couchdb, folder.server(rustls::ALL_VERSIONS));
    let howler = Howler::launch(&["--couchdb_url", &proxy.url(&couchdb, "localhost"), "--ca_file", ca_file]);
    howler.wait_for_line(problem);
    assert_eq!(couchdb.counters().requests, 0, "no request goes to an untrusted server");
}

/// Makes a certificate of version 1, by whichever way the installed OpenSSL supports.
const VERSION_1: &str = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem
    openssl req -new -key key.pem -subj /CN=localhost -out request.pem
    openssl x509 -req -in request.pem -signkey key.pem -days 10 -out cert.pem
    openssl x509 -in cert.pem -noout -text | grep -q 'Version: 1 ' ||
        openssl req -x509 -x509v1 -key key.pem -subj /CN=localhost -days 10 -out cert.pem
    openssl x509 -in cert.pem -noout -text | grep -q 'Version: 1 '";

#[test]
fn openssl_certificates_listed_in_ca_file_are_trusted() {
    let new = "openssl req -x509 -nodes -days 365 -keyout key.pem -out cert.pem";
    let p256 = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=localhost";
    for (kind, commands, warns) in [
        ("marked as an authority", format!("{new} {p256} -addext subjectAltName=DNS:localhost"), false),
        (
            "marked as an authority, RSA",
            format!("{new} -newkey rsa:2048 -subj /CN=x -addext subjectAltName=DNS:localhost"),
            false,
        ),
        ("an authority without a host name", format!("{new} {p256}"), true),
        ("no host name", format!("{new} {p256} -addext basicConstraints=critical,CA:FALSE"), true),
        ("no name at all", format!("{new} -newkey ec -pkeyopt ec_paramgen_curve:P-384 -subj /"), true),
        ("version 1", VERSION_1.to_owned(), true),
        ("version 1, RSA", VERSION_1.replace("EC -pkeyopt ec_paramgen_curve:P-256", "RSA"), true),
        ("version 1, P-384", VERSION_1.replace("P-256", "P-384"), true),
        (
            "for clients alone",
            format!("{new} {p256} -addext subjectAltName=DNS:localhost -addext extendedKeyUsage=clientAuth"),
            false,
        ),
    ] {
        let folder = Folder::new();
        folder.shell(&commands);
        is_trusted(&folder, warns, kind);
    }
}

/// Returns a server certificate issued by an authority that the chain does not include, and the
/// path of the authority's certificate.
fn orphan(change: impl FnOnce(&mut CertificateParams)) -> (Folder, String) {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Authority of orphans");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("ring generates a key"))
        .expect("the parameters are valid");
    let mut params = CertificateParams::new(["localhost".to_owned()]).expect("the name is valid");
    change(&mut params);
    let key = KeyPair::generate().expect("ring generates a key");
    let certificate = params.signed_by(&key, &issuer).expect("the parameters are valid");
    let folder = Folder::new();
    folder.write("cert.pem", &certificate.pem());
    folder.write("key.pem", &key.serialize_pem());
    folder.write("authority.pem", &issuer.pem());
    let authority = folder.path("authority.pem");
    (folder, authority)
}

#[test]
fn certificate_of_unknown_authority_listed_in_ca_file_is_trusted() {
    let (folder, _) = orphan(|_| {});
    is_trusted(&folder, false, "issued by an unknown authority");
}

#[test]
fn certificate_listed_in_ca_file_still_needs_valid_dates_and_names() {
    let ca = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let (expired, _) = orphan(|params| {
        ca(params);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    is_refused(&expired, &expired.path("cert.pem"), &["has expired", "-days 365"]);
    let (early, _) = orphan(|params| {
        ca(params);
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        params.not_after = rcgen::date_time_ymd(2095, 1, 1);
    });
    is_refused(&early, &early.path("cert.pem"), &["is not valid yet", "clocks"]);
    let (elsewhere, _) = orphan(|params| {
        ca(params);
        params.subject_alt_names = CertificateParams::new(["db.example".to_owned()]).unwrap().subject_alt_names;
    });
    let words = ["not for the host in --couchdb_url, but for db.example", "subjectAltName=DNS:HOST"];
    is_refused(&elsewhere, &elsewhere.path("cert.pem"), &words);
}

#[test]
fn each_rejection_explains_how_to_make_a_valid_certificate() {
    let (folder, authority) = orphan(|_| {});
    let (other, stranger) = orphan(|_| {});
    is_refused(&folder, &stranger, &["another authority than the one of that name"]);
    folder.shell("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=stranger -keyout /dev/null -out stranger.pem");
    is_refused(&folder, &folder.path("stranger.pem"), &["unknown authority: --ca_file", "`openssl x509"]);
    assert!(verdict(&folder, &authority).contains("the certificate is trusted"));
    drop(other);
    let (expired, authority) = orphan(|params| {
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    });
    is_refused(&expired, &authority, &["has expired", "-days 365"]);
    let (marked, authority) = orphan(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    is_refused(
        &marked,
        &authority,
        &["(CA:TRUE)", "-addext basicConstraints=critical,CA:FALSE", "itself into --ca_file"],
    );
    let (nameless, authority) = orphan(|params| params.subject_alt_names.clear());
    is_refused(
        &nameless,
        &authority,
        &["has no host name", "-addext subjectAltName=DNS:HOST", "itself into --ca_file"],
    );
    let (client, authority) = orphan(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    is_refused(&client, &authority, &["is not for servers", "-addext extendedKeyUsage=serverAuth"]);
    let old = Folder::new();
    old.shell(VERSION_1);
    is_refused(&old, &authority, &["has version 1", "itself into --ca_file"]);
}

/// Returns the commands of the manual that make a certificate.
fn recipe() -> &'static str {
    let (_, rest) =
        include_str!("../src/manual/deploying.md").split_once("\n## TLS\n").expect("the manual has the section");
    rest.split_once("```sh\n").and_then(|(_, rest)| rest.split("```").next()).expect("the section has commands")
}

/// Runs the commands of the manual unchanged. Clients trust the certificate, and the server trusts
/// it as that of CouchDB.
#[test]
fn commands_of_the_manual_make_a_certificate_for_server_and_couchdb() {
    let block = recipe();
    let (openssl, rest) = block.split_once("couchdb-howler ").expect("the server is started after it");
    let folder = Folder::new();
    folder.shell(openssl);
    let text = Command::new("openssl").args(["x509", "-noout", "-text", "-in", &folder.path("cert.pem")]).output();
    let text = String::from_utf8(text.expect("openssl runs").stdout).expect("text");
    assert!(text.contains("CA:FALSE") && !text.contains("CA:TRUE"), "{text}");
    is_trusted(&folder, false, "the commands of the manual");

    let couchdb = couchdb();
    let (certificate, key) = (folder.path("cert.pem"), folder.path("key.pem"));
    assert!(rest.contains("--tls_cert cert.pem --tls_key key.pem"), "{rest}");
    let howler = Howler::start_with(&couchdb, &["--tls_cert", &certificate, "--tls_key", &key]);
    let curl = rest.lines().find(|line| line.starts_with("curl ")).expect("the commands include a client");
    let curl = curl.replace("localhost:3000", &format!("localhost:{}", howler.port()));
    folder.shell(&format!("{curl} --silent --fail --output script.js && test -s script.js"));
}
