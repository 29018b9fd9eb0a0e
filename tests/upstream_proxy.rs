//! A proxy between CouchDB and the server that writes malformed header lines.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

use crate::support::client::Client;
use crate::support::howler::Howler;
use crate::support::{SOON, couchdb};

/// Starts a proxy that inserts lines after the status line of each response.
fn sloppy_proxy(to: SocketAddr, lines: &str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("the listener is bound");
    let lines = lines.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(to) else { continue };
            let (mut up, mut to_server) = (client.try_clone().expect("a clone"), server.try_clone().expect("a clone"));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut up, &mut to_server);
                let _ = to_server.shutdown(Shutdown::Both);
            });
            let (lines, mut server, mut client) = (lines.clone(), server, client);
            std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                // The stand-in writes a head in one piece.
                while let Ok(read @ 1..) = server.read(&mut buffer) {
                    let text = String::from_utf8_lossy(&buffer[..read]);
                    let mut parts = text.split_inclusive("HTTP/1.1 ");
                    let mut changed = parts.next().unwrap_or("").to_owned();
                    for part in parts {
                        changed.push_str(&part.replacen("\r\n", &format!("\r\n{lines}"), 1));
                    }
                    if client.write_all(changed.as_bytes()).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

#[test]
fn malformed_header_lines_that_curl_accepts_do_not_break_logins_or_the_feed() {
    for lines in [
        "X-Proxy : a\r\n".to_owned(),
        "no colon\r\n: no name\r\nX Y: a\r\n".to_owned(),
        "X-Proxy: a\r\n folded\r\n".to_owned(),
        "X-Proxy: a\r\n".repeat(200),
    ] {
        let couchdb = couchdb();
        let proxy = sloppy_proxy(couchdb.address(), &lines);
        let url = couchdb.url().replace(&couchdb.address().to_string(), &proxy.to_string());
        let howler = Howler::launch(&["--couchdb_url", &url, "--access", "members"]);
        assert!(couchdb.wait_for_feeds(1, SOON), "{lines}\n{}", howler.output());
        assert!(couchdb.create_database_for("db", &[crate::support::USER]));
        let mut client = Client::subscribed(howler.address(), &["db"]);
        couchdb.update("db");
        assert_eq!(client.next_change(SOON).as_deref(), Some("db"), "{lines}");
        assert_eq!(howler.count_logged("WARN"), 0, "{}", howler.output());
    }
}
