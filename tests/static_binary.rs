//! The static build, alone in an empty root folder as in a minimal container image.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::support::client::Client;
use crate::support::howler::{Howler, static_binary};
use crate::support::tls::{Authority, TlsProxy};
use crate::support::{SOON, couchdb};

/// A root folder that holds the binary and the files of the test only.
struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("root-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the target folder can be written");
        std::fs::copy(static_binary(), folder.join("couchdb-howler")).expect("the binary can be copied");
        Self(folder)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("chroot");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg(&self.0).arg("/couchdb-howler");
        command
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_static_binary_needs_no_other_files() {
    let couchdb = couchdb();
    let authority = Authority::new();
    let proxy = TlsProxy::start(&couchdb, authority.server(&["localhost"]));
    let root = Root::new("https");
    std::fs::copy(authority.file(), root.0.join("ca.pem")).unwrap();
    // The folder has neither a hosts file nor `resolv.conf`; `localhost` resolves without them.
    let url = proxy.url(&couchdb, "localhost");
    let howler = Howler::launch_command(root.command().args(["--couchdb_url", &url, "--ca_file", "/ca.pem"]));
    assert!(couchdb.wait_for_feeds(1, SOON), "{}", howler.output());
    let mut client = Client::subscribed(howler.address(), &["db"]);
    couchdb.update("db");
    assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
    let size = std::fs::metadata(static_binary()).unwrap().len();
    println!("static binary: {size} bytes, {} KiB resident with one client", howler.resident_kib());
    assert!(size <= 3_200_000, "{size} bytes");

    // With a hosts file, any name resolves.
    drop((client, howler));
    assert!(couchdb.wait_for_feeds(0, SOON));
    std::fs::create_dir(root.0.join("etc")).unwrap();
    std::fs::write(root.0.join("etc/hosts"), "127.0.0.1 couch.internal\n").unwrap();
    let proxy = TlsProxy::start(&couchdb, authority.server(&["couch.internal"]));
    let url = proxy.url(&couchdb, "couch.internal");
    let howler = Howler::launch_command(root.command().args(["--couchdb_url", &url, "--ca_file", "/ca.pem"]));
    assert!(couchdb.wait_for_feeds(1, SOON), "{}", howler.output());
}

#[test]
fn the_start_time_of_the_static_binary_is_printed() {
    let couchdb = couchdb();
    let root = Root::new("start");
    let mut times: Vec<_> = (0..11)
        .map(|_| {
            let began = Instant::now();
            let howler = Howler::launch_command(root.command().args(["--couchdb_url", &couchdb.url()]));
            let took = began.elapsed();
            drop(howler);
            took
        })
        .collect();
    times.sort();
    // The time is printed and not checked, because machines are shared.
    println!("from the start of chroot to the line that names the port: median {:.1} ms", times[5].as_secs_f64() * 1e3);
}
