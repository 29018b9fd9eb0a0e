//! A stand-in for CouchDB that costs next to nothing. One thread answers all requests. Senders
//! write prepared bytes into the changes feed as fast as the server reads them.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};

/// A database whose many members are listed by name.
pub const CROWDED: &str = "crowded";
/// Number of members of that database. The first is user [`USERS`].
const MEMBERS: usize = 3_700;
/// First user number that no measured client has.
pub const USERS: usize = 90_000;
/// Interval of the heartbeats in the feed.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The stand-in. Its threads live as long as the process.
pub struct CouchDb {
    address: SocketAddr,
    feed: Arc<Feed>,
}

/// The changes feed that the server follows.
#[derive(Default)]
pub struct Feed {
    stream: Mutex<Option<TcpStream>>,
    opened: Condvar,
}

impl CouchDb {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("the address is valid")).expect("a port is free");
        let address = listener.local_addr().expect("the listener is bound");
        let feed = Arc::new(Feed::default());
        let answering = Arc::clone(&feed);
        thread::spawn(move || answer_all(listener, &answering));
        let beating = Arc::clone(&feed);
        thread::spawn(move || {
            loop {
                thread::sleep(HEARTBEAT);
                beating.push(b"1\r\n\n\r\n");
            }
        });
        Self { address, feed }
    }

    pub fn url(&self) -> String {
        format!("http://admin:zq7-bench@{}", self.address)
    }

    /// Waits until the server follows the feed.
    pub fn wait_for_feed(&self) {
        let stream = self.feed.stream.lock().expect("no other thread panicked");
        let within = Duration::from_secs(20);
        let waited = self.feed.opened.wait_timeout_while(stream, within, |stream| stream.is_none());
        assert!(waited.expect("no other thread panicked").0.is_some(), "the server does not follow the feed");
    }

    /// Writes chunks of lines into the feed. Returns once the kernel has taken all bytes.
    pub fn push(&self, chunks: &[u8]) {
        self.feed.push(chunks);
    }

    /// Returns the feed, for another thread that writes to it.
    pub fn feed(&self) -> Arc<Feed> {
        Arc::clone(&self.feed)
    }
}

impl Feed {
    /// Writes chunks of lines. Returns once the kernel has taken all bytes.
    pub fn push(&self, chunks: &[u8]) {
        if let Some(stream) = self.stream.lock().expect("no other thread panicked").as_mut() {
            // The write fails when the server has stopped, which is not an error here.
            let _ = stream.write_all(chunks);
        }
    }
}

/// A connection of the server, and the beginning of an incomplete request.
struct Connection {
    socket: mio::net::TcpStream,
    begun: Vec<u8>,
}

/// Answers requests until the process ends.
fn answer_all(mut listener: TcpListener, feed: &Feed) {
    const LISTENER: Token = Token(0);
    let mut poll = Poll::new().expect("epoll is available");
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).expect("the socket is new");
    let mut connections: HashMap<Token, Connection> = HashMap::new();
    let mut events = Events::with_capacity(64);
    for token in 1.. {
        // Each turn accepts at most one connection. After that it polls without waiting, so that
        // the next turn accepts the next one.
        let accepted = match listener.accept() {
            Ok((mut socket, _)) => {
                let _ = socket.set_nodelay(true);
                poll.registry().register(&mut socket, Token(token), Interest::READABLE).expect("the socket is new");
                connections.insert(Token(token), Connection { socket, begun: Vec::new() });
                true
            }
            Err(_) => false,
        };
        match poll.poll(&mut events, accepted.then_some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled.expect("epoll is available"),
        }
        for event in &events {
            let Some(mut connection) = connections.remove(&event.token()) else { continue };
            match connection.serve() {
                Served::Stays => drop(connections.insert(event.token(), connection)),
                Served::Ended => {}
                Served::Follows => {
                    poll.registry().deregister(&mut connection.socket).expect("the socket is registered");
                    let stream = TcpStream::from(connection.socket);
                    stream.set_nonblocking(false).expect("the socket is open");
                    *feed.stream.lock().expect("no other thread panicked") = Some(stream);
                    feed.opened.notify_all();
                }
            }
        }
    }
}

enum Served {
    Stays,
    Ended,
    /// The connection has become the feed.
    Follows,
}

impl Connection {
    /// Answers the requests that have arrived.
    fn serve(&mut self) -> Served {
        let mut bytes = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => return Served::Ended,
                Ok(read) => self.begun.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Served::Stays,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Served::Ended,
            }
            while let Some((used, answer)) = request(&self.begun) {
                self.begun.drain(..used);
                if write_all(&mut self.socket, &answer.bytes).is_err() {
                    return Served::Ended;
                }
                if answer.follows {
                    return Served::Follows;
                }
            }
        }
    }
}

/// Writes all bytes. Replies to lookups may be longer than the socket buffer; the server reads them
/// meanwhile.
fn write_all(socket: &mut mio::net::TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_micros(100)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

struct Answer {
    bytes: Vec<u8>,
    /// Whether the connection becomes the feed after this reply.
    follows: bool,
}

/// Returns the length of the first request in the buffer and the reply to it, or `None` if the
/// request is incomplete.
fn request(buffer: &[u8]) -> Option<(usize, Answer)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(start) = head.parse(buffer).expect("the server speaks HTTP") else { return None };
    let field = |name: &str| head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    let length =
        field("content-length").map_or("0", |field| std::str::from_utf8(field.value).expect("the length is a number"));
    let end = start + length.parse::<usize>().expect("the length is a number");
    let body = buffer.get(start..end)?;
    Some((
        end,
        answer(head.method.expect("the request is complete"), head.path.expect("the request is complete"), body),
    ))
}

fn answer(method: &str, path: &str, body: &[u8]) -> Answer {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let body = match (method, path) {
        ("GET", "/_global_changes/_changes") if query.contains("feed=continuous") => {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\n\r\n";
            return Answer { bytes: head.into(), follows: true };
        }
        ("GET", "/_global_changes/_changes") => json!({"results": [], "last_seq": "0-g1AAAACb", "pending": 0}),
        ("GET", "/_global_changes") => json!({"db_name": "_global_changes", "instance_start_time": "1795459624"}),
        ("POST", "/_global_changes/_all_docs") => rows(body),
        ("GET", path) if path.trim_start_matches('/').starts_with(CROWDED) => {
            let names: Vec<String> = (0..MEMBERS).map(|number| format!("user-{:05}", USERS + number)).collect();
            json!({"admins": {"names": [], "roles": []}, "members": {"names": names, "roles": []}})
        }
        // All users may read all other databases.
        ("GET", path) if path.ends_with("/_security") => json!({}),
        ("POST", "/_session") => {
            let name =
                serde_json::from_slice::<HashMap<String, Value>>(body).expect("the body is JSON")["name"].clone();
            json!({"ok": true, "name": name, "roles": []})
        }
        _ => json!({"error": "not_found", "reason": "missing"}),
    };
    let status = if body.get("error").is_some() { "404 Object Not Found" } else { "200 OK" };
    let cookie = if path == "/_session" {
        "Set-Cookie: AuthSession=bXl1c2VyOjY3NDJBMEIwOvS2sT3mMgAzv9M2c4sVfSpTnIoB; Version=1; \
         Expires=Tue, 24-Nov-2026 04:10:00 GMT; Max-Age=600; Path=/; HttpOnly\r\n"
    } else {
        ""
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{cookie}Content-Length: {}\r\n\r\n",
        body.len()
    );
    Answer { bytes: (head + &body).into(), follows: false }
}

/// Returns positions: each database was updated once, and its creation was not recorded.
fn rows(body: &[u8]) -> Value {
    let asked: HashMap<String, Vec<String>> = serde_json::from_slice(body).expect("the body is JSON");
    let rows = asked["keys"].iter().map(|key| {
        if key.starts_with("updated:") {
            json!({"id": key, "key": key, "value": {"rev": "1-967a00dff5e02add41819138abb3284d"}})
        } else {
            json!({"key": key, "error": "not_found"})
        }
    });
    json!({"total_rows": 1, "offset": 0, "rows": rows.collect::<Vec<_>>()})
}
