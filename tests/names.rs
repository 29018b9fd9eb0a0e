//! The host name of CouchDB: which nameservers are asked, how their answers are used, and that
//! every address is tried.

use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::client::Client;
use crate::support::couchdb::StandIn;
use crate::support::dns::{A, AAAA, Answer, Asked, NODATA, NXDOMAIN, NameServer, REFUSED, Root, SERVFAIL, addresses};
use crate::support::howler::{Howler, assert_no_secret};
use crate::support::proxy::Proxy;
use crate::support::tls::{Authority, TlsProxy, tls_url};
use crate::support::{SOON, couchdb, wait_until};
use crate::upstream::log_in_eight;

/// Creates a root folder whose `resolv.conf` lists these nameservers.
fn root(servers: &[&NameServer], rest: &str) -> Root {
    let lines: Vec<String> = servers.iter().map(|server| format!("nameserver {}\n", server.ip)).collect();
    Root::new(&(lines.concat() + rest), "127.0.0.1 localhost\n")
}

/// Returns what `check` reports about a host name.
fn look_up(root: &Root, name: &str) -> String {
    let url = format!("http://admin:zq7-secret@{name}:9");
    let output = root.command().args(["check", "--host", "127.0.0.1", "--port", "0", "-u", &url]).output();
    let output = String::from_utf8(output.expect("chroot runs").stdout).expect("text");
    assert_no_secret(&output);
    let line = output.lines().find_map(|line| line.split_once("  host name: ").map(|(_, said)| said.to_owned()));
    line.unwrap_or_else(|| panic!("{output}"))
}

/// Returns the URL of a stand-in with another host and port.
fn url_of(couchdb: &StandIn, host: &str, port: u16) -> String {
    couchdb.url().replace(&couchdb.address().to_string(), &format!("{host}:{port}"))
}

/// Asserts that a server follows a stand-in and logs clients in.
fn follows(howler: &Howler, couchdb: &StandIn) {
    assert!(couchdb.wait_for_feeds(1, SOON), "the feed is not open:\n{}", howler.output());
    let mut client = Client::subscribed(howler.address(), &["db"]);
    couchdb.update("db");
    assert_eq!(client.next_change(SOON).as_deref(), Some("db"));
}

#[test]
fn an_error_for_one_address_family_does_not_affect_the_other() {
    let server = NameServer::start();
    let root = root(&[&server], "options timeout:1 attempts:1\n");
    let bad = [
        Answer::Code(NXDOMAIN),
        Answer::Code(SERVFAIL),
        Answer::Code(REFUSED),
        Answer::Code(1),
        Answer::Code(4),
        Answer::Code(15),
        NODATA,
        Answer::Broken,
        Answer::Silence,
    ];
    for (number, bad) in bad.into_iter().enumerate() {
        let name = format!("couch{number}.test");
        server.answer(&name, A, addresses(&["127.0.0.1"]));
        server.answer(&name, AAAA, bad.clone());
        assert_eq!(look_up(&root, &name), format!("{name} is 127.0.0.1"), "AAAA: {bad:?}");
        server.answer(&name, A, bad.clone());
        server.answer(&name, AAAA, addresses(&["::1"]));
        assert_eq!(look_up(&root, &name), format!("{name} is ::1"), "A: {bad:?}");
    }
}

#[test]
fn a_name_without_an_ipv6_address_is_followed() {
    let (couchdb, server) = (couchdb(), NameServer::start());
    server.answer("couch.test", A, addresses(&["127.0.0.1"]));
    for bad in [Answer::Code(NXDOMAIN), Answer::Code(SERVFAIL), Answer::Code(REFUSED)] {
        server.answer("couch.test", AAAA, bad);
        let root = root(&[&server], "");
        let url = url_of(&couchdb, "couch.test", couchdb.address().port());
        let howler = Howler::launch_command(root.command().args(["--couchdb_url", &url]));
        follows(&howler, &couchdb);
        drop(howler);
        assert!(couchdb.wait_for_feeds(0, SOON));
    }
}

#[test]
fn all_addresses_are_found_and_both_families_alternate() {
    let server = NameServer::start();
    let root = root(&[&server], "");
    server.answer("couch.test", A, addresses(&["10.0.0.1", "10.0.0.2", "10.0.0.1"]));
    server.answer("couch.test", AAAA, addresses(&["fd00::1", "fd00::2", "fd00::3"]));
    assert!(look_up(&root, "couch.test").starts_with("couch.test is 10.0.0.1, fd00::1, 10.0.0.2, fd00::2, fd00::3"));
}

#[test]
fn a_name_that_is_not_found_says_why() {
    let (server, silent) = (NameServer::start(), NameServer::start());
    let one = root(&[&server], "");
    assert!(look_up(&one, "nowhere.test").contains("the name does not exist or has no address; check the host"));
    server.answer("nothing.test", A, NODATA);
    server.answer("nothing.test", AAAA, NODATA);
    assert!(look_up(&one, "nothing.test").contains("the name does not exist or has no address"));
    for (code, name) in [(SERVFAIL, "SERVFAIL"), (REFUSED, "REFUSED")] {
        server.answer("bad.test", A, Answer::Code(code));
        server.answer("bad.test", AAAA, Answer::Code(code));
        let said = look_up(&one, "bad.test");
        assert!(said.contains(&format!("{} does not answer the question ({name})", server.ip)), "{said}");
    }
    silent.answer("silent.test", A, Answer::Silence);
    silent.answer("silent.test", AAAA, Answer::Silence);
    let said = look_up(&root(&[&silent], "options timeout:1\nsearch a.test b.test\n"), "silent.test");
    assert!(said.contains(&format!("no nameserver answers ({})", silent.ip)), "{said}");
    assert!(silent.asked().len() <= 4, "a silent nameserver is not asked for other names: {:?}", silent.asked());
    assert!(look_up(&one, "a..test").contains("does not exist"));
}

#[test]
fn further_nameservers_are_asked_when_one_does_not_answer() {
    let (first, second) = (NameServer::start(), NameServer::start());
    second.answer("couch.test", A, addresses(&["127.0.0.1"]));
    let both = root(&[&first, &second], "");
    for bad in [Answer::Silence, Answer::Code(SERVFAIL), Answer::Code(REFUSED), Answer::Broken] {
        first.answer("couch.test", A, bad.clone());
        first.answer("couch.test", AAAA, bad.clone());
        assert_eq!(look_up(&both, "couch.test"), "couch.test is 127.0.0.1", "{bad:?}");
    }
    // Nothing listens at the first address.
    let gone = NameServer::start().ip;
    let conf = format!("nameserver {gone}\nnameserver {}\n", second.ip);
    assert_eq!(look_up(&Root::new(&conf, ""), "couch.test"), "couch.test is 127.0.0.1");
    // NXDOMAIN is an answer: the second nameserver is not asked.
    let before = second.asked().len();
    assert!(look_up(&both, "nowhere.test").contains("does not exist"));
    assert_eq!(second.asked().len(), before);
}

#[test]
fn short_names_are_searched_in_domains() {
    let server = NameServer::start();
    server.answer("couch.two.test", A, addresses(&["127.0.0.1"]));
    server.answer("couch.one.test", AAAA, Answer::Code(SERVFAIL));
    let names = |asked: Vec<Asked>| {
        let mut names: Vec<String> = asked.into_iter().map(|asked| asked.name).collect();
        names.dedup();
        names
    };
    let searching = root(&[&server], "search one.test two.test\n");
    assert_eq!(look_up(&searching, "couch"), "couch is 127.0.0.1");
    assert_eq!(names(server.asked()), ["couch.one.test", "couch.two.test"]);
    let seen = server.asked().len();
    assert!(look_up(&searching, "couch.x").contains("does not exist"));
    assert_eq!(names(server.asked()[seen..].to_vec()), ["couch.x", "couch.x.one.test", "couch.x.two.test"]);
    let seen = server.asked().len();
    let dotted = root(&[&server], "search one.test two.test\noptions ndots:5\n");
    assert!(look_up(&dotted, "couch.x").contains("does not exist"));
    assert_eq!(names(server.asked()[seen..].to_vec()), ["couch.x.one.test", "couch.x.two.test", "couch.x"]);
    let seen = server.asked().len();
    assert_eq!(look_up(&searching, "couch.two.test."), "couch.two.test. is 127.0.0.1");
    assert_eq!(names(server.asked()[seen..].to_vec()), ["couch.two.test"]);
}

#[test]
fn truncated_answers_are_retried_over_tcp() {
    let server = NameServer::start();
    let many: Vec<IpAddr> = (1..=12).map(|number| [10, 0, 0, number].into()).collect();
    server.answer("couch.test", A, Answer::Truncated(many));
    let shown = look_up(&root(&[&server], ""), "couch.test");
    assert!(shown.starts_with("couch.test is 10.0.0.1, ") && shown.contains("10.0.0.12"), "{shown}");
    let over_tcp: Vec<bool> =
        server.asked().iter().filter(|asked| asked.record == A).map(|asked| asked.over_tcp).collect();
    assert_eq!(over_tcp, [false, true]);
    let seen = server.asked().len();
    server.answer("couch.test", AAAA, Answer::Code(REFUSED));
    assert!(look_up(&root(&[&server], "options use-vc\n"), "couch.test").contains("10.0.0.12"));
    assert!(server.asked()[seen..].iter().all(|asked| asked.over_tcp));
}

#[test]
fn nameservers_may_have_ipv6_addresses() {
    let server = NameServer::start_at("::1".parse().expect("an address"));
    server.answer("couch.test", A, addresses(&["127.0.0.1"]));
    assert_eq!(look_up(&root(&[&server], ""), "couch.test"), "couch.test is 127.0.0.1");
    assert_eq!(look_up(&Root::new("nameserver ::1%lo\n", ""), "couch.test"), "couch.test is 127.0.0.1");
}

#[test]
fn the_rotate_option_alternates_nameservers() {
    let (first, second) = (NameServer::start(), NameServer::start());
    for server in [&first, &second] {
        server.answer("couch.test", A, addresses(&["127.0.0.1"]));
    }
    let couchdb = couchdb();
    couchdb.refuse();
    let root = root(&[&first, &second], "options rotate\n");
    let url = url_of(&couchdb, "couch.test", couchdb.address().port());
    let _howler = Howler::launch_command(root.command().args(["--couchdb_url", &url]));
    first.wait_for_question();
    second.wait_for_question();
}

#[test]
fn the_hosts_file_comes_first_with_aliases_and_both_families() {
    let server = NameServer::start();
    let hosts = "# 10.9.9.9 couch\n127.0.0.1 db.test couch Alias # x\n::1 couch\n10.0.0.2\tcouch\n";
    let root = Root::new(&format!("nameserver {}\n", server.ip), hosts);
    for (name, found) in [("couch", "127.0.0.1, ::1, 10.0.0.2"), ("ALIAS", "127.0.0.1"), ("db.test", "127.0.0.1")] {
        assert_eq!(look_up(&root, name), format!("{name} is {found}"));
    }
    assert_eq!(look_up(&root, "localhost"), "localhost is 127.0.0.1, ::1");
    assert_eq!(server.asked(), []);
}

#[test]
fn the_next_connection_uses_a_changed_address() {
    let (couchdb, server) = (couchdb(), NameServer::start());
    let old = Forwarder::start("127.0.11.1:0", couchdb.address());
    let port = old.address.port();
    let new = Forwarder::start(&format!("127.0.11.2:{port}"), couchdb.address());
    server.answer("couch.test", A, addresses(&["127.0.11.1"]));
    let root = root(&[&server], "");
    let howler = Howler::launch_command(root.command().args(["--couchdb_url", &url_of(&couchdb, "couch.test", port)]));
    follows(&howler, &couchdb);
    assert_eq!(new.connections.load(Ordering::Acquire), 0);
    // The old address still answers, as if it now belonged to another server.
    server.answer("couch.test", A, addresses(&["127.0.11.2"]));
    let before = old.connections.load(Ordering::Acquire);
    old.cut();
    new.wait_for_connections(1);
    follows(&howler, &couchdb);
    assert_eq!(old.connections.load(Ordering::Acquire), before);
}

#[test]
fn logins_follow_the_name_when_all_pooled_connections_broke_silently() {
    let (couchdb, server) = (couchdb(), NameServer::start());
    let old = Proxy::start(couchdb.address());
    let port = old.address().port();
    let new = Forwarder::start(&format!("127.0.11.3:{port}"), couchdb.address());
    server.answer("couch.test", A, addresses(&["127.0.0.1"]));
    let root = root(&[&server], "");
    let howler = Howler::launch_command(root.command().args(["--couchdb_url", &url_of(&couchdb, "couch.test", port)]));
    follows(&howler, &couchdb);
    couchdb.set_login_delay(Duration::from_millis(300));
    let _clients = log_in_eight(&couchdb, &howler);
    couchdb.set_login_delay(Duration::ZERO);
    server.answer("couch.test", A, addresses(&["127.0.11.3"]));
    old.silence();
    // A login that finds only dead connections fails after five seconds.
    log_in_eight(&couchdb, &howler);
    assert!(new.connections.load(Ordering::Acquire) > 0);
}

#[test]
fn every_address_is_tried_by_feed_and_logins() {
    let couchdb = couchdb();
    let good = Forwarder::start("127.0.12.3:0", couchdb.address());
    let port = good.address.port();
    let hosts = "127.0.12.1 couch.test\n::1 couch.test\n127.0.12.3 couch.test\n";
    let root = Root::new("", hosts);
    let howler = Howler::launch_command(root.command().args(["--couchdb_url", &url_of(&couchdb, "couch.test", port)]));
    follows(&howler, &couchdb);
    assert_eq!(howler.count_logged("WARN"), 0, "{}", howler.output());
}

#[test]
fn an_address_that_closes_each_connection_is_tried_last() {
    let couchdb = couchdb();
    let good = Forwarder::start("127.0.15.2:0", couchdb.address());
    let closes = TcpListener::bind(("127.0.15.1", good.address.port())).expect("the port is free");
    std::thread::spawn(move || closes.incoming().map_while(Result::ok).for_each(drop));
    let root = Root::new("", "127.0.15.1 couch.test\n127.0.15.2 couch.test\n");
    let url = url_of(&couchdb, "couch.test", good.address.port());
    let howler = Howler::launch_command(root.command().args(["--couchdb_url", &url]));
    follows(&howler, &couchdb);
}

#[test]
fn an_address_without_a_valid_certificate_is_skipped() {
    let (couchdb, authority, stranger) = (couchdb(), Authority::new(), Authority::new());
    let good = TlsProxy::start_at(&couchdb, authority.server(&["couch.test"]), [127, 0, 13, 4].into(), false);
    let at = |last: u8| SocketAddr::from(([127, 0, 13, last], good.port()));
    let _wrong = TlsProxy::start_on(couchdb.address(), stranger.server(&["couch.test"]), at(1));
    let _plain = Forwarder::start(&at(2).to_string(), couchdb.address());
    let hosts: Vec<String> = (1..=4).map(|last| format!("{} couch.test\n", at(last).ip())).collect();
    let root = Root::new("", &hosts.concat());
    root.write("ca.pem", &std::fs::read_to_string(authority.file()).expect("the file exists"));
    let url = tls_url(&couchdb, &format!("couch.test:{}", good.port()));
    let options = ["--couchdb_url", &url, "--ca_file", "/ca.pem"];
    let howler = Howler::launch_command(root.command().args(options));
    follows(&howler, &couchdb);
    assert_eq!(howler.count_logged("WARN"), 0, "{}", howler.output());
    let output = root.command().args(["check", "--host", "127.0.0.1", "--port", "0"]).args(options).output();
    let output = String::from_utf8(output.expect("chroot runs").stdout).expect("text");
    assert!(output.contains("ok      feed: "), "{output}");
    // When no address works, the log names the problem of each, once.
    drop((howler, good));
    let howler = Howler::launch_command(root.command().args(options));
    howler.wait_for_lines("Next try in", 3);
    howler.assert_logged("unknown authority: --ca_file", 1);
    howler.assert_logged("does not speak TLS", 1);
    howler.assert_logged("WARN", 1);
}

#[test]
fn a_silent_address_is_skipped() {
    let (couchdb, authority) = (couchdb(), Authority::new());
    let good = TlsProxy::start_at(&couchdb, authority.server(&["couch.test"]), [127, 0, 14, 2].into(), false);
    let _silent = TcpListener::bind(("127.0.14.1", good.port())).expect("the port is free");
    let root = Root::new("", "127.0.14.1 couch.test\n127.0.14.2 couch.test\n");
    root.write("ca.pem", &std::fs::read_to_string(authority.file()).expect("the file exists"));
    let url = tls_url(&couchdb, &format!("couch.test:{}", good.port()));
    let howler = Howler::launch_command(root.command().args(["--couchdb_url", &url, "--ca_file", "/ca.pem"]));
    follows(&howler, &couchdb);
}

#[test]
fn ipv6_addresses_may_have_zones() {
    let couchdb = couchdb();
    let mut hosts = vec!["[::1%25lo]".to_owned(), "[::1%251]".to_owned()];
    // The link-local address of this machine, if it has one.
    let interfaces = std::fs::read_to_string("/proc/net/if_inet6").expect("the machine has IPv6");
    let link = interfaces.lines().find(|line| line.starts_with("fe80")).map(|line| {
        let number = u128::from_str_radix(&line[..32], 16).expect("an address");
        (std::net::Ipv6Addr::from(number), line.split_whitespace().last().expect("a name").to_owned())
    });
    if let Some((address, interface)) = &link {
        hosts.push(format!("[{address}%25{interface}]"));
    }
    let forwarder = Forwarder::start("[::]:0", couchdb.address());
    for host in hosts {
        let url = url_of(&couchdb, &host, forwarder.address.port());
        let howler = Howler::launch(&["--couchdb_url", &url]);
        follows(&howler, &couchdb);
        let shown = couchdb.requests().iter().all(|request| !request.header("Host").unwrap_or("%").contains('%'));
        assert!(shown, "the Host header has no zone");
        howler.wait_for_line(&format!("CouchDB is at http://{host}"));
        drop(howler);
        assert!(couchdb.wait_for_feeds(0, SOON));
    }
    let howler = Howler::launch(&["--couchdb_url", "http://admin:zq7-secret@[fe80::1%25nowhere0]:5984"]);
    howler.wait_for_line("there is no interface \"nowhere0\"");
}

/// Forwards connections from a chosen address to a server and counts them.
struct Forwarder {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    ends: Arc<Mutex<Vec<TcpStream>>>,
    stopped: Arc<AtomicBool>,
}

impl Forwarder {
    fn start(listen: &str, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(listen).expect("the address is free");
        let address = listener.local_addr().expect("the listener is bound");
        let (connections, ends, stopped) =
            (Arc::<AtomicUsize>::default(), Arc::default(), Arc::<AtomicBool>::default());
        let forwarder = Self { address, connections, ends, stopped };
        let (count, ends, stopped) =
            (forwarder.connections.clone(), Arc::clone(&forwarder.ends), forwarder.stopped.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                count.fetch_add(1, Ordering::AcqRel);
                let Ok(server) = TcpStream::connect(to) else { continue };
                let copy = |from: &TcpStream, to: &TcpStream| {
                    let (mut from, mut to) = (from.try_clone().expect("a clone"), to.try_clone().expect("a clone"));
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                };
                copy(&client, &server);
                copy(&server, &client);
                ends.lock().expect("the lock is not poisoned").extend([client, server]);
            }
        });
        forwarder
    }

    fn cut(&self) {
        for end in self.ends.lock().expect("the lock is not poisoned").drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    fn wait_for_connections(&self, count: usize) {
        wait_until("a connection goes to the new address", || self.connections.load(Ordering::Acquire) >= count);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        self.cut();
    }
}
