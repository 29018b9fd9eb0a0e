//! Several instances on one machine that share a port.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::device::{Device, Notice};
use crate::support::howler::{Ended, Howler, lasting_port, run};
use crate::support::tls::{Authority, Identity};
use crate::support::wire::Target;
use crate::support::{SOON, couchdb};

/// Number of connections after which each instance almost certainly has one. It fails once in 10^19
/// runs with two instances, and once in 10^7 runs with four.
const ENOUGH: usize = 64;

/// Returns the error of an instance that cannot listen.
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
fn instances_share_client_ports_but_not_the_admin_port() {
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

    let admin = one.admin_address().expect("the instance has an admin address").port().to_string();
    let said = refused(&couchdb.url(), &["--port", "0", "--reuse_port", "--admin_port", &admin]);
    assert!(said.contains(&format!("port {admin} ")) && said.contains("--admin_port is not shared"), "{said}");
}

#[test]
fn port_is_shared_only_if_each_instance_has_the_option() {
    let couchdb = couchdb();
    let (shared, kept) = (Howler::start_with(&couchdb, &["--reuse_port"]), Howler::start(&couchdb));
    // The instance warns once that on the shared port another instance may answer.
    shared.assert_logged("WARN", 1);
    let port = shared.port().to_string();
    let said = refused(&couchdb.url(), &["--port", &port]);
    assert!(said.contains(&format!("port {port} ")) && said.contains("in use"), "{said}");
    let port = kept.port().to_string();
    let said = refused(&couchdb.url(), &["--port", &port, "--reuse_port"]);
    assert!(said.contains(&format!("port {port} ")) && said.contains("does not share it"), "{said}");
    // With port 0, each instance gets a port of its own.
    let another = Howler::start_with(&couchdb, &["--reuse_port"]);
    assert_ne!(another.port(), shared.port());
}

#[test]
fn check_reports_whether_the_port_can_be_shared() {
    let couchdb = couchdb();
    let (shared, kept) = (Howler::start_with(&couchdb, &["--reuse_port"]), Howler::start(&couchdb));
    let check = |port: u16| {
        let port = port.to_string();
        let options =
            ["check", "--couchdb_url", &couchdb.url(), "--host", "127.0.0.1", "--reuse_port", "--port", &port];
        let ended = run(&options, &[]);
        assert_eq!(ended.code, Some(0), "{}", ended.stdout);
        ended.stdout.lines().find(|line| line.contains(" --port ")).expect("there is a line about the port").to_owned()
    };
    let line = check(kept.port());
    assert!(line.starts_with("note ") && line.contains("does not share it"), "{line}");
    let line = check(shared.port());
    assert!(line.starts_with("ok ") && line.contains("is free"), "{line}");
}

const INSTANCES: usize = 4;
const CLIENTS: usize = 16_000;
/// Number of processes that run the clients. Each of them, and this process, has a descriptor limit
/// that suffices for a single instance only.
const SHARES: u8 = 4;
/// Number of clients of a share that log in at once.
const AT_ONCE: usize = 100;
/// The database of all clients, and the number of databases of which each client has one.
const SHARED: &str = "shared";
const GROUPS: usize = 10;
/// Longest time without answering pings.
const NOT_SILENT_FOR: Duration = Duration::from_secs(10);
/// Longest wait for an action of all clients.
const LONG: Duration = Duration::from_secs(120);
/// Environment variable with the address that a share's clients connect to, and the number of the
/// share.
const SHARE: &str = "HOWLER_TESTS_SHARE";

#[test]
fn sixteen_thousand_clients_of_four_instances_are_notified_once() {
    let began = Instant::now();
    let couchdb = couchdb();
    for name in std::iter::once(SHARED.to_owned()).chain((0..GROUPS).map(group)) {
        couchdb.update(&name);
    }
    let port = lasting_port();
    let options = ["--host", "0.0.0.0", "--reuse_port", "--admin_port", "0", "--drain_timeout", "2"];
    let start = || Howler::start_on(port, &couchdb, &options);
    let mut instances: Vec<Howler> = (0..INSTANCES).map(|_| start()).collect();
    let connections = |instances: &[Howler]| -> Vec<u64> {
        instances.iter().map(|howler| howler.metric("howler_connections")).collect()
    };
    let mut shares: Vec<Share> = (0..SHARES).map(|number| Share::start(port, number)).collect();
    assert_eq!(Share::answers(&mut shares), (CLIENTS, 0), "all clients are subscribed");
    let connected = began.elapsed();
    let spread = connections(&instances);
    assert_eq!(spread.iter().sum::<u64>(), CLIENTS as u64, "{spread:?}");
    let fair = (CLIENTS / INSTANCES) as u64;
    assert!(
        spread.iter().all(|count| (fair / 2..fair * 2).contains(count)),
        "each instance has a fair share: {spread:?}"
    );
    assert_eq!(couchdb.open_feeds(), INSTANCES, "one feed per instance");
    for _ in 0..2 {
        couchdb.update(SHARED);
        assert_eq!(Share::ask(&mut shares, SHARED), (CLIENTS, 0), "notified once, none reconnected");
    }
    let groups: Vec<String> = (0..GROUPS).map(group).collect();
    couchdb.update_many(&groups.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(Share::ask(&mut shares, "group"), (CLIENTS, 0));

    let mut stopped = instances.remove(0);
    stopped.signal("TERM");
    assert_eq!(stopped.wait().code(), Some(0));
    assert!(couchdb.wait_for(SOON, |seen| seen.open_feeds == INSTANCES - 1));
    couchdb.update(SHARED);
    let homeless = usize::try_from(spread[0]).expect("the count fits");
    assert_eq!(
        Share::ask(&mut shares, SHARED),
        (CLIENTS, homeless),
        "notified once, clients of the stopped instance reconnected"
    );
    let moved = connections(&instances);
    assert_eq!(moved.iter().sum::<u64>(), CLIENTS as u64, "{moved:?}");
    assert!(
        moved.iter().zip(&spread[1..]).all(|(now, before)| now > before),
        "each instance took some: {moved:?}, {spread:?}"
    );
    couchdb.update(SHARED);
    assert_eq!(Share::ask(&mut shares, SHARED), (CLIENTS, 0));

    // A new instance gets some of the new clients.
    instances.push(start());
    let _unauthenticated: Vec<Client> = (0..ENOUGH).map(|_| Client::json(instances[0].address())).collect();
    assert!(connections(&instances)[INSTANCES - 1] > 0);
    println!(
        "instances: {CLIENTS} clients were subscribed after {:.1} s, at the instances {spread:?}; then one was stopped: \
         {moved:?}; {:.1} s in total",
        connected.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    drop(instances);
}

/// A share of the clients, in a process of its own. It replies with the number of notified clients
/// and the number of clients that reconnected.
struct Share {
    child: Child,
    /// Its standard input, which is a socket.
    wire: BufReader<UnixStream>,
}

impl Share {
    fn start(port: u16, number: u8) -> Self {
        let (wire, input) = UnixStream::pair().expect("there are free descriptors");
        wire.set_read_timeout(Some(LONG)).expect("the socket is open");
        // Each share uses an address of its own. With one address, nearly all local ports would be
        // taken.
        let address = SocketAddr::from(([127, 0, 0, number + 1], port));
        let child = Command::new(std::env::current_exe().expect("the path of this binary is known"))
            .args(["--exact", "--ignored", "--nocapture", "instances::a_share_of_the_clients"])
            .env(SHARE, format!("{address} {number}"))
            .stdin(OwnedFd::from(input))
            .stdout(Stdio::null())
            .spawn()
            .expect("the test binary starts");
        Self { child, wire: BufReader::new(wire) }
    }

    /// Asks all shares whether their clients were notified of the change of a database. Returns the
    /// sums of their replies.
    fn ask(shares: &mut [Self], of: &str) -> (usize, usize) {
        for share in &mut *shares {
            writeln!(share.wire.get_mut(), "{of}").expect("the share reads");
        }
        Self::answers(shares)
    }

    fn answers(shares: &mut [Self]) -> (usize, usize) {
        shares.iter_mut().map(Self::answer).fold((0, 0), |sum, answer| (sum.0 + answer.0, sum.1 + answer.1))
    }

    fn answer(&mut self) -> (usize, usize) {
        let mut line = String::new();
        self.wire.read_line(&mut line).expect("the share answers");
        let (notified, back) =
            line.trim_end().split_once(' ').expect("a share of the clients failed, see its output above");
        (notified.parse().expect("the count is a number"), back.parse().expect("the count is a number"))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "started by the test above"]
fn a_share_of_the_clients() {
    let Ok(value) = std::env::var(SHARE) else { return };
    let (address, share) = value.split_once(' ').expect("the parent wrote the value");
    let (address, share): (SocketAddr, usize) =
        (address.parse().expect("the parent wrote the value"), share.parse().expect("the parent wrote the value"));
    let parent = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().expect("there are free descriptors"));
    parent.set_read_timeout(Some(NOT_SILENT_FOR)).expect("the socket is open");
    let mut parent = BufReader::new(parent);
    let mut members = Vec::new();
    let mut heard = Instant::now();
    for first in (0..CLIENTS / usize::from(SHARES)).step_by(AT_ONCE) {
        members.extend(connect(address, (first..first + AT_ONCE).map(|place| place + share * CLIENTS)));
        if heard.elapsed() > NOT_SILENT_FOR {
            members.iter_mut().for_each(Member::hear);
            heard = Instant::now();
        }
    }
    writeln!(parent.get_mut(), "{} 0", members.len()).expect("the parent reads");
    let mut line = String::new();
    loop {
        match parent.read_line(&mut line) {
            Ok(0) => return,
            Ok(_) => {
                let name = (line.trim_end() == SHARED).then_some(SHARED);
                for member in &mut members {
                    member.expect(name, address);
                }
                // Only now, so that late notifications are seen.
                let back = members.iter_mut().map(|member| member.expect_nothing(address)).filter(|back| *back).count();
                writeln!(parent.get_mut(), "{} {back}", members.len()).expect("the parent reads");
                line.clear();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                members.iter_mut().for_each(Member::hear);
            }
            Err(_) => return,
        }
    }
}

fn group(number: usize) -> String {
    format!("group-{}", number % GROUPS)
}

fn connect(address: SocketAddr, numbers: impl Iterator<Item = usize>) -> Vec<Member> {
    let mut members: Vec<Member> = numbers.map(Member::new).collect();
    for member in &mut members {
        member.device.begin_login(address).expect("the instances listen");
    }
    for member in &mut members {
        member.device.finish_login().expect("CouchDB answers in time");
    }
    for member in &mut members {
        assert_eq!(
            member.device.subscribe().expect("the client is connected").len(),
            2,
            "a client without positions gets both databases"
        );
    }
    members
}

/// A client and its notifications.
struct Member {
    device: Device,
    group: String,
    changed: Vec<String>,
    gone: bool,
    /// Whether the client reconnected since the last request.
    came_back: bool,
}

impl Member {
    fn new(number: usize) -> Self {
        let group = group(number);
        let device = Device::new([SHARED.to_owned(), group.clone()]);
        Self { device, group, changed: Vec::new(), gone: false, came_back: false }
    }

    /// Takes all messages that have arrived.
    fn hear(&mut self) {
        self.gone = self.gone || self.device.take_all(&mut self.changed).is_err();
    }

    /// Asserts that the client is notified of one change, or finds it after reconnecting.
    fn expect(&mut self, name: Option<&str>, address: SocketAddr) {
        let deadline = Instant::now() + LONG;
        while self.changed.is_empty() {
            assert!(Instant::now() < deadline, "timeout waiting for a notification");
            if self.gone {
                self.come_back(address);
                continue;
            }
            match self.device.next(SOON) {
                Ok(Notice::Change(name)) => self.changed.push(name),
                Ok(Notice::Nothing) => {}
                Ok(Notice::Everything) => panic!("unexpected resync"),
                Err(_) => self.gone = true,
            }
        }
        assert_eq!(self.changed, [name.unwrap_or(&self.group)]);
        self.changed.clear();
    }

    /// Asserts that there are no further notifications and that the client is connected. Returns
    /// whether it reconnected.
    fn expect_nothing(&mut self, address: SocketAddr) -> bool {
        self.hear();
        if self.gone {
            self.come_back(address);
        }
        assert_eq!(self.changed, [] as [&str; 0], "each client is notified once");
        std::mem::take(&mut self.came_back)
    }

    fn come_back(&mut self, address: SocketAddr) {
        let found = self.device.come_back(address).expect("other instances accept the client");
        self.changed.extend(found);
        (self.gone, self.came_back) = (false, true);
    }
}
