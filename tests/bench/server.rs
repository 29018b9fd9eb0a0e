//! The measured program as a child process: the server, the yardstick, or the obvious server on
//! Node.js.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};

use super::couchdb::CouchDb;

/// The measured program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// This binary of couchdb-howler.
    Howler(PathBuf),
    Yardstick,
    Node,
}

/// A running server. Dropping the value kills the process.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// Time from just before the start until the server logged that it listens.
    pub listened_after: Duration,
    /// The configuration of TLS clients, if the server speaks TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Server {
    pub fn start(target: &Target, couchdb: &CouchDb, tls: bool, options: &[String]) -> Self {
        let mut command = match target {
            Target::Howler(binary) => {
                let mut command = Command::new(binary);
                command.args(["--couchdb_url", &couchdb.url(), "--host", "0.0.0.0", "--port", "0"]);
                command.args(["--feed_heartbeat", "10000"]).args(options);
                command
            }
            Target::Yardstick => {
                let mut command = Command::new(std::env::current_exe().expect("the path of this binary is known"));
                command.arg("yardstick");
                command
            }
            Target::Node => {
                let mut command = Command::new("node");
                command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/obvious_server.js"));
                command.arg(couchdb.url());
                command
            }
        };
        let identity = tls.then(Identity::new);
        if let Some(identity) = &identity {
            command.arg("--tls_cert").arg(identity.folder.join("cert.pem"));
            command.arg("--tls_key").arg(identity.folder.join("key.pem"));
        }
        let began = Instant::now();
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the server starts");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains(" listens on ")).expect("the server logs where it listens");
        let listened_after = began.elapsed();
        let address =
            line.split(" listens on ").nth(1).and_then(|rest| rest.split(' ').next()).expect("the address is valid");
        let mut address: SocketAddr = address.parse().expect("the address is valid");
        address.set_ip(Ipv4Addr::LOCALHOST.into());
        // Print the warnings and errors that the server logs later.
        std::thread::spawn(move || {
            lines.filter(|line| !line.contains(" INFO ")).for_each(|line| eprintln!("{line}"));
        });
        Self { child, address, listened_after, tls: identity.map(|identity| Arc::clone(&identity.trusted)) }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A certificate for `localhost`. Dropping the value removes its files.
struct Identity {
    folder: PathBuf,
    trusted: Arc<ClientConfig>,
}

impl Identity {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("howler-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("the certificate is generated");
        std::fs::write(folder.join("cert.pem"), made.cert.pem()).expect("the folder is writable");
        std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("the folder is writable");
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("the certificate is its own root");
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring supports the versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { folder, trusted: Arc::new(config) }
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
