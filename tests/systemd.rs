//! Notifications to systemd, and sockets from it. The tests play the part of systemd.

use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::couchdb::StandIn;
use crate::support::howler::{BINARY, Howler};
use crate::support::http::Http;
use crate::support::tls::{Authority, Identity};
use crate::support::wire::Target;
use crate::support::{SOON, couchdb};

/// A socket that receives the server's notifications.
struct Listening(UnixDatagram);

impl Listening {
    fn at(path: &Path) -> Self {
        Self::on(UnixDatagram::bind(path).unwrap())
    }

    fn on(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(SOON)).unwrap();
        Self(socket)
    }

    /// Returns the next datagram.
    fn next(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("a notification of the server");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// Returns the next datagram that contains a line.
    fn wait_for(&self, line: &str) -> String {
        loop {
            let received = self.next();
            if received.lines().any(|one| one == line) {
                return received;
            }
        }
    }
}

/// Creates a folder with a short path, because the paths of sockets are limited.
fn folder() -> PathBuf {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let name = format!("howler-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir(&folder).unwrap();
    folder
}

/// Starts the server with an environment.
fn started(couchdb: &StandIn, environment: &[(&str, &str)]) -> Howler {
    let mut command = Command::new(BINARY);
    command.args(["--couchdb_url", &couchdb.url()]).env_clear().envs(environment.iter().copied());
    Howler::launch_command(&mut command)
}

#[test]
fn systemd_is_notified_of_start_and_stop() {
    let couchdb = couchdb();
    let folder = folder();
    let path = folder.join("notify");
    let abstract_name = format!("howler-test-{}", std::process::id());
    let abstract_socket =
        UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(abstract_name.as_bytes()).unwrap()).unwrap();
    for (name, listening) in [
        (path.to_str().unwrap().to_owned(), Listening::at(&path)),
        (format!("@{abstract_name}"), Listening::on(abstract_socket)),
    ] {
        let mut howler = started(&couchdb, &[("NOTIFY_SOCKET", &name)]);
        let ready = listening.next();
        assert!(ready.starts_with("READY=1\nSTATUS="), "{ready}");
        // The server is ready as it says.
        let _client = Client::logged_in(howler.address());
        howler.signal("TERM");
        let stopping = listening.next();
        assert!(
            stopping.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000\nSTATUS=Stopping, closing 1 "),
            "{stopping}"
        );
        assert_eq!(howler.wait().code(), Some(0));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_watchdog_is_notified_while_the_event_loop_runs() {
    let couchdb = couchdb();
    let folder = folder();
    let path = folder.join("notify");
    let listening = Listening::at(&path);
    let notify = ("NOTIFY_SOCKET", path.to_str().unwrap());
    let howler = started(&couchdb, &[notify, ("WATCHDOG_USEC", "400000")]);
    listening.wait_for("WATCHDOG=1");
    let client = Client::logged_in(howler.address());
    listening.wait_for("STATUS=Serving 1 clients.");
    let began = Instant::now();
    for _ in 0..3 {
        listening.wait_for("WATCHDOG=1");
    }
    assert!(began.elapsed() > Duration::from_millis(300), "not more often than every 200 ms: {:?}", began.elapsed());
    // A hung server sends no watchdog notification.
    howler.signal("STOP");
    listening.0.set_read_timeout(Some(Duration::from_millis(800))).unwrap();
    let silent = || listening.0.recv(&mut [0; 4096]).is_err();
    assert!(silent() || silent(), "no more notifications after one in flight");
    howler.signal("CONT");
    listening.0.set_read_timeout(Some(SOON)).unwrap();
    listening.wait_for("WATCHDOG=1");
    drop((client, howler));

    // systemd watches another process.
    let howler = started(&couchdb, &[notify, ("WATCHDOG_USEC", "100000"), ("WATCHDOG_PID", "1")]);
    listening.wait_for("READY=1");
    listening.0.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    assert!(listening.0.recv(&mut [0; 4096]).is_err());
    drop(howler);
    std::fs::remove_dir_all(folder).unwrap();
}

/// Passes sockets as systemd does: by descriptors from 3 on, and with the id of the process. A C
/// instead of an L passes a connected socket.
const LAUNCHER: &str = "\
import os, socket, sys
listening = []
for at, kind in enumerate(sys.argv[1]):
    one = socket.socket()
    one.bind(('127.0.0.1', 0))
    one.listen(16)
    port = one.getsockname()[1]
    if kind == 'C':
        kept = one
        one = socket.create_connection(('127.0.0.1', port))
    os.dup2(one.fileno(), 100 + at)
    listening.append(str(port))
for at in range(len(sys.argv[1])):
    os.dup2(100 + at, 3 + at, inheritable=True)
print('handed over:', ' '.join(listening), file=sys.stderr, flush=True)
os.environ['LISTEN_FDS'] = str(len(listening))
os.environ['LISTEN_PID'] = str(os.getpid() + int(os.environ.get('ANOTHER', '0')))
os.execv(sys.argv[2], sys.argv[2:])
";

/// Returns a command that starts the server through the launcher.
fn handed(sockets: &str, environment: &[(&str, &str)], couchdb: &StandIn, options: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", LAUNCHER, sockets, BINARY, "--couchdb_url", &couchdb.url()]).args(options);
    command.envs(environment.iter().copied());
    command
}

/// Returns the addresses of the launcher's sockets.
fn handed_over(howler: &Howler) -> Vec<SocketAddr> {
    let line = howler.wait_for_line("handed over: ");
    let ports = line.trim_start_matches("handed over: ").split(' ');
    ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()))).collect()
}

#[test]
fn a_passed_socket_replaces_the_port() {
    let couchdb = couchdb();
    // The port is taken, so the server must not try to listen there.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let howler = Howler::launch_command_on(port, &mut handed("L", &[], &couchdb, &[]));
    let places = handed_over(&howler);
    assert_eq!(howler.address(), places[0]);
    let mut clients = [Client::subscribed(places[0], &["db"]), Client::subscribed(places[0], &["db"])];
    couchdb.update("db");
    assert!(clients.iter_mut().all(|client| client.next_change(SOON).as_deref() == Some("db")));
}

#[test]
fn two_sockets_serve_plain_http_and_tls() {
    let couchdb = couchdb();
    let authority = Authority::new();
    let identity = Identity::new(&authority);
    for (names, http, https) in [("", 0, 1), ("a.socket:a.socket", 0, 1), ("https:http", 1, 0)] {
        let environment = [("LISTEN_FDNAMES", names)];
        let howler = Howler::launch_command(&mut handed("LL", &environment, &couchdb, &identity.options()));
        let places = handed_over(&howler);
        assert_eq!((howler.address(), howler.tls_address()), (places[http], places[https]), "{names}");
        assert_eq!(Http::connect(places[http]).get("/howler.js").status, 200);
        let tls = Target::tls(places[https], authority.client(&[&rustls::version::TLS13]));
        assert_eq!(Http::connect(&tls).get("/howler.js").status, 200);
    }
    // A single socket is for TLS if plain HTTP is off, or if its name is `https` beside a port
    // of plain HTTP.
    let howler = Howler::launch_command(&mut handed("L", &[], &couchdb, &identity.options()));
    assert_eq!(howler.tls_address(), handed_over(&howler)[0]);
    let options = [&identity.options()[..], &["--tls_port", "0"]].concat();
    let howler = Howler::launch_command(&mut handed("L", &[("LISTEN_FDNAMES", "https")], &couchdb, &options));
    assert_eq!(howler.tls_address(), handed_over(&howler)[0]);
    assert_ne!(howler.address(), howler.tls_address());
}

#[test]
fn a_socket_named_admin_serves_operators() {
    let couchdb = couchdb();
    let howler = Howler::launch_command(&mut handed("LL", &[("LISTEN_FDNAMES", "admin:http")], &couchdb, &[]));
    let places = handed_over(&howler);
    assert_eq!(howler.address(), places[1]);
    let status = |place: SocketAddr| Http::connect(place).get("/healthz").status;
    assert_eq!((status(places[0]), status(places[1])), (200, 404));
}

#[test]
fn sockets_for_another_process_are_ignored() {
    let couchdb = couchdb();
    let howler = Howler::launch_command(&mut handed("L", &[("ANOTHER", "1")], &couchdb, &[]));
    assert_ne!(howler.address(), handed_over(&howler)[0]);
}

#[test]
fn unusable_sockets_are_reported() {
    let couchdb = couchdb();
    for (sockets, names, words) in [
        ("LL", "", &["HTTPS", "--tls_cert"][..]),
        ("LLL", "", &["more sockets", "LISTEN_FDS"]),
        ("LL", "http:http", &["two sockets", "http"]),
        ("C", "", &["socket 1", "connected", "Accept="]),
    ] {
        let command = handed(sockets, &[("LISTEN_FDNAMES", names)], &couchdb, &["--port", "0"]);
        // `timeout` ends a server that runs on where it should fail.
        let ended = Command::new("timeout")
            .args(["--foreground", "60"])
            .arg(command.get_program())
            .args(command.get_args())
            .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .output()
            .unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{sockets} {names}: {said}");
        let last = said.lines().last().unwrap();
        assert!(words.iter().all(|word| last.contains(word)), "{sockets} {names}: {said}");
    }
}
