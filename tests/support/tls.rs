//! TLS: a private certificate authority, certificates in files, and a small proxy that terminates
//! TLS in front of a stand-in.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::couchdb::StandIn;

/// A private certificate authority with its certificate in a file. Dropping it removes the file.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let mut params = CertificateParams::default();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("Authority {number} of the tests"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let name = format!("authority-{}-{}.pem", std::process::id(), number);
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&file, issuer.pem()).expect("the target folder can be written");
        Self { issuer, file }
    }

    /// Returns the value for `--ca_file`.
    pub fn file(&self) -> &str {
        self.file.to_str().expect("a path in UTF-8")
    }

    /// Returns the configuration of a server with a certificate for names and addresses.
    pub fn server(&self, names: &[&str]) -> ServerConfig {
        self.server_with(names, false, rustls::ALL_VERSIONS)
    }

    /// Returns the configuration of a server whose certificate has expired, or that accepts only
    /// some versions of TLS.
    pub fn server_with(
        &self,
        names: &[&str],
        expired: bool,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ServerConfig {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names for a certificate");
        if expired {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("ring speaks them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("the key fits")
    }
}

impl Authority {
    /// Returns the configuration of a client that trusts only this authority.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).expect("it is a root");
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(versions)
            .expect("ring speaks them")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }

    /// Returns an intermediate authority and its certificate, signed by this authority.
    fn intermediate(&self) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Deputy of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        CertifiedIssuer::signed_by(params, KeyPair::generate().expect("a key"), &self.issuer).expect("a deputy")
    }
}

/// Files of a certificate for `localhost` and of its key. Dropping this removes the files.
pub struct Identity {
    folder: PathBuf,
    pub certificate: String,
    pub key: String,
    /// The certificate that the files hold now.
    pub current: CertificateDer<'static>,
}

impl Identity {
    pub fn new(authority: &Authority) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("identity-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).expect("the target folder can be written");
        let file = |name: &str| folder.join(name).to_str().expect("a path in UTF-8").to_owned();
        let (certificate, key) = (file("chain.pem"), file("key.pem"));
        let mut identity = Self { folder, certificate, key, current: CertificateDer::from(Vec::new()) };
        identity.renew(authority);
        identity
    }

    /// Returns the options for a server that uses the files.
    pub fn options(&self) -> [&str; 4] {
        ["--tls_cert", &self.certificate, "--tls_key", &self.key]
    }

    /// Replaces the certificate, as an operator does before the old one expires. An intermediate
    /// authority signs the new one, and its certificate, which clients do not have, is in the file
    /// as well.
    pub fn renew(&mut self, authority: &Authority) {
        let deputy = authority.intermediate();
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let params = CertificateParams::new(names).expect("names for a certificate");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &deputy).expect("a certificate");
        std::fs::write(&self.certificate, certificate.pem() + &deputy.pem()).expect("the file can be written");
        std::fs::write(&self.key, key.serialize_pem()).expect("the file can be written");
        self.current = certificate.der().clone();
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A proxy that accepts TLS connections and forwards them as plain ones to a stand-in or any other
/// server. When that server ends a connection, the proxy ends its own with `close_notify`.
pub struct TlsProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    to: SocketAddr,
    config: Arc<ServerConfig>,
    /// Whether every byte is a write of its own.
    byte_by_byte: bool,
    stopping: AtomicBool,
    clients: Mutex<Vec<TcpStream>>,
}

impl TlsProxy {
    pub fn start(couchdb: &StandIn, config: ServerConfig) -> Self {
        Self::start_at(couchdb, config, Ipv4Addr::LOCALHOST.into(), false)
    }

    pub fn start_at(couchdb: &StandIn, config: ServerConfig, host: IpAddr, byte_by_byte: bool) -> Self {
        Self::start_before(couchdb.address(), config, host, byte_by_byte)
    }

    pub fn start_before(to: SocketAddr, config: ServerConfig, host: IpAddr, byte_by_byte: bool) -> Self {
        Self::serve(to, config, SocketAddr::new(host, 0), byte_by_byte)
    }

    /// Starts a proxy on an address and a port.
    pub fn start_on(to: SocketAddr, config: ServerConfig, listen: SocketAddr) -> Self {
        Self::serve(to, config, listen, false)
    }

    fn serve(to: SocketAddr, config: ServerConfig, listen: SocketAddr, byte_by_byte: bool) -> Self {
        let listener = TcpListener::bind(listen).expect("a port is free");
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared {
            to,
            config: Arc::new(config),
            byte_by_byte,
            stopping: AtomicBool::new(false),
            clients: Mutex::default(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.stopping.load(Ordering::Acquire) {
                    return;
                }
                let shared = accepting.clone();
                std::thread::spawn(move || shared.serve(client));
            }
        });
        Self { address, shared }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Returns the URL of the stand-in behind the proxy, with a name of this machine.
    pub fn url(&self, couchdb: &StandIn, host: &str) -> String {
        tls_url(couchdb, &format!("{host}:{}", self.address.port()))
    }

    /// Ends all connections without `close_notify`, as an attacker could.
    pub fn cut(&self) {
        for client in self.shared.clients().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        self.cut();
    }
}

/// Returns the URL of a stand-in with another scheme and address.
pub fn tls_url(couchdb: &StandIn, address: &str) -> String {
    couchdb.url().replacen("http:", "https:", 1).replace(&couchdb.address().to_string(), address)
}

impl Shared {
    fn clients(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a connection until one side ends it. An error ends the connection.
    fn serve(self: Arc<Self>, client: TcpStream) {
        let _ = client.set_nodelay(true);
        let Ok(upstream) = TcpStream::connect(self.to) else { return };
        let _ = upstream.set_nodelay(true);
        self.clients().push(client.try_clone().expect("a descriptor"));
        let session = ServerConnection::new(self.config.clone()).expect("the configuration is good");
        let tunnel =
            Arc::new(Tunnel { session: Mutex::new(session), client, upstream, byte_by_byte: self.byte_by_byte });
        let downwards = tunnel.clone();
        let thread = std::thread::spawn(move || {
            let _ = downwards.carry_down();
            let _ = downwards.client.shutdown(Shutdown::Both);
        });
        let _ = tunnel.carry_up();
        let _ = tunnel.upstream.shutdown(Shutdown::Both);
        let _ = thread.join();
    }
}

/// A connection.
struct Tunnel {
    session: Mutex<ServerConnection>,
    client: TcpStream,
    upstream: TcpStream,
    byte_by_byte: bool,
}

impl Tunnel {
    /// Forwards data of the client to the stand-in.
    fn carry_up(&self) -> io::Result<()> {
        let mut bytes = [0; 16 * 1024];
        loop {
            let read = (&self.client).read(&mut bytes)?;
            let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            let mut rest = &bytes[..read];
            let mut plain = Vec::new();
            loop {
                session.read_tls(&mut rest)?;
                let state = session.process_new_packets();
                self.write_records(&mut session)?;
                let waiting = state.map_err(io::Error::other)?.plaintext_bytes_to_read();
                let start = plain.len();
                plain.resize(start + waiting, 0);
                session.reader().read_exact(&mut plain[start..])?;
                if rest.is_empty() {
                    break;
                }
            }
            drop(session);
            if read == 0 {
                return Ok(());
            }
            (&self.upstream).write_all(&plain)?;
        }
    }

    /// Forwards data of the stand-in to the client.
    fn carry_down(&self) -> io::Result<()> {
        let mut bytes = [0; 16 * 1024];
        loop {
            let read = (&self.upstream).read(&mut bytes).unwrap_or(0);
            let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
            if read == 0 {
                session.send_close_notify();
                return self.write_records(&mut session);
            }
            session.writer().write_all(&bytes[..read])?;
            self.write_records(&mut session)?;
        }
    }

    fn write_records(&self, session: &mut ServerConnection) -> io::Result<()> {
        let mut records = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut records)?;
        }
        let length = if self.byte_by_byte { 1 } else { records.len().max(1) };
        records.chunks(length).try_for_each(|part| (&self.client).write_all(part))
    }
}
