//! Several instances on one machine that share a port.

use crate::support::client::Client;
use crate::support::couchdb;
use crate::support::howler::{Ended, Howler, lasting_port, run};
use crate::support::tls::{Authority, Identity};
use crate::support::wire::Target;

/// Connections after which each instance has one: of two, but once in 10^19 times, of four, once in 10^7.
const ENOUGH: usize = 64;

/// What an instance says that cannot listen.
fn refused(couchdb_url: &str, options: &[&str]) -> String {
    let Ended { code, stderr, .. } =
        run(&[&["--couchdb_url", couchdb_url, "--host", "127.0.0.1"], options].concat(), &[]);
    assert_eq!((code, stderr.lines().count()), (Some(1), 1), "{stderr}");
    stderr
}

fn assert_share(instances: &[&Howler], target: &Target) {
    let clients: Vec<Client> = (0..ENOUGH).map(|_| Client::subscribed(target, &["db"])).collect();
    let shares: Vec<u64> = instances.iter().map(|howler| howler.metric("howler_connections")).collect();
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
    assert_eq!(shares.iter().sum::<u64>(), clients.len() as u64, "{shares:?}");
}

#[test]
fn instances_share_the_ports_of_clients_and_nothing_else() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let identity = Identity::new(&authority);
    let (port, tls_port) = (lasting_port(), lasting_port().to_string());
    let options = [&identity.options()[..], &["--reuse_port", "--tls_port", &tls_port, "--admin_port", "0"]].concat();
    let instances = [Howler::start_on(port, &couchdb, &options), Howler::start_on(port, &couchdb, &options)];
    let [one, other] = &instances;
    assert_eq!((one.address(), one.tls_address()), (other.address(), other.tls_address()));
    assert_ne!(one.admin_address(), other.admin_address());
    assert_share(&[one, other], &one.address().into());
    assert_share(&[one, other], &Target::tls(one.tls_address(), authority.client(&[&rustls::version::TLS13])));

    let admin = one.admin_address().expect("it has one").port().to_string();
    let said = refused(&couchdb.url(), &["--port", "0", "--reuse_port", "--admin_port", &admin]);
    assert!(said.contains(&format!("port {admin} ")) && said.contains("--admin_port is not shared"), "{said}");
}

#[test]
fn a_port_is_shared_only_when_each_instance_asks_for_it() {
    let couchdb = couchdb();
    let (shared, kept) = (Howler::start_with(&couchdb, &["--reuse_port"]), Howler::start(&couchdb));
    // It can be asked on the shared port alone, where another would answer as well.
    shared.assert_told("WARN", 1);
    let port = shared.port().to_string();
    let said = refused(&couchdb.url(), &["--port", &port]);
    assert!(said.contains(&format!("port {port} ")) && said.contains("in use"), "{said}");
    let port = kept.port().to_string();
    let said = refused(&couchdb.url(), &["--port", &port, "--reuse_port"]);
    assert!(said.contains(&format!("port {port} ")) && said.contains("does not share it"), "{said}");
    // A free port is free for each.
    let another = Howler::start_with(&couchdb, &["--reuse_port"]);
    assert_ne!(another.port(), shared.port());
}

#[test]
fn a_check_looks_whether_the_port_can_be_shared() {
    let couchdb = couchdb();
    let (shared, kept) = (Howler::start_with(&couchdb, &["--reuse_port"]), Howler::start(&couchdb));
    let check = |port: u16| {
        let port = port.to_string();
        let options =
            ["check", "--couchdb_url", &couchdb.url(), "--host", "127.0.0.1", "--reuse_port", "--port", &port];
        let ended = run(&options, &[]);
        assert_eq!(ended.code, Some(0), "{}", ended.stdout);
        ended.stdout.lines().find(|line| line.contains(" --port ")).expect("it is said").to_owned()
    };
    let line = check(kept.port());
    assert!(line.starts_with("note ") && line.contains("does not share it"), "{line}");
    let line = check(shared.port());
    assert!(line.starts_with("ok ") && line.contains("can be listened on"), "{line}");
}
