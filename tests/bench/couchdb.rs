//! A CouchDB that costs next to nothing: one thread answers whatever the server asks, and the stream of the
//! changes feed is written to by who has changes, with prepared bytes, as fast as they are taken.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};

/// A database that many may read, each by name.
pub const CROWDED: &str = "crowded";
/// Members of that database, the first of them this user.
const MEMBERS: usize = 3_700;
/// Numbers of users that no measured client has.
pub const USERS: usize = 90_000;
/// How often the feed shows that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The stand-in; its threads live as long as the process.
pub struct CouchDb {
    address: SocketAddr,
    feed: Arc<Feed>,
}

/// The stream that the server follows.
#[derive(Default)]
pub struct Feed {
    stream: Mutex<Option<TcpStream>>,
    opened: Condvar,
}

impl CouchDb {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
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

    /// Waits until somebody follows the feed.
    pub fn wait_for_feed(&self) {
        let stream = self.feed.stream.lock().expect("nobody panicked");
        let within = Duration::from_secs(20);
        let waited = self.feed.opened.wait_timeout_while(stream, within, |stream| stream.is_none());
        assert!(waited.expect("nobody panicked").0.is_some(), "nobody follows the feed");
    }

    /// Writes chunks of lines into the feed; returns when all are handed to the system.
    pub fn push(&self, chunks: &[u8]) {
        self.feed.push(chunks);
    }

    /// The feed alone, for another thread that writes into it.
    pub fn feed(&self) -> Arc<Feed> {
        Arc::clone(&self.feed)
    }
}

impl Feed {
    /// Writes chunks of lines; returns when all are handed to the system.
    pub fn push(&self, chunks: &[u8]) {
        if let Some(stream) = self.stream.lock().expect("nobody panicked").as_mut() {
            // A server that was stopped is no fault of the stand-in.
            let _ = stream.write_all(chunks);
        }
    }
}

/// A connection of the server, and what came of a request that is not all there.
struct Connection {
    socket: mio::net::TcpStream,
    begun: Vec<u8>,
}

/// Answers until the process ends.
fn answer_all(mut listener: TcpListener, feed: &Feed) {
    const LISTENER: Token = Token(0);
    let mut poll = Poll::new().expect("epoll is there");
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).expect("a fresh socket");
    let mut connections: HashMap<Token, Connection> = HashMap::new();
    let mut events = Events::with_capacity(64);
    for token in 1.. {
        // Each turn accepts at most one; who waits beside it is there in the next one, which does not wait then.
        let accepted = match listener.accept() {
            Ok((mut socket, _)) => {
                let _ = socket.set_nodelay(true);
                poll.registry().register(&mut socket, Token(token), Interest::READABLE).expect("a fresh socket");
                connections.insert(Token(token), Connection { socket, begun: Vec::new() });
                true
            }
            Err(_) => false,
        };
        match poll.poll(&mut events, accepted.then_some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled.expect("epoll is there"),
        }
        for event in &events {
            let Some(mut connection) = connections.remove(&event.token()) else { continue };
            match connection.serve() {
                Served::Stays => drop(connections.insert(event.token(), connection)),
                Served::Ended => {}
                Served::Follows => {
                    poll.registry().deregister(&mut connection.socket).expect("it was registered");
                    let stream = TcpStream::from(connection.socket);
                    stream.set_nonblocking(false).expect("a socket");
                    *feed.stream.lock().expect("nobody panicked") = Some(stream);
                    feed.opened.notify_all();
                }
            }
        }
    }
}

enum Served {
    Stays,
    Ended,
    /// From here on it is the feed.
    Follows,
}

impl Connection {
    /// Answers what has come.
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

/// Answers to look-ups may be longer than what the system takes at once; the server reads them meanwhile.
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
    /// From here on the connection is the feed.
    follows: bool,
}

/// The answer to the first request in the buffer, and how long that is; None while it is not all there.
fn request(buffer: &[u8]) -> Option<(usize, Answer)> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(start) = head.parse(buffer).expect("the server speaks HTTP") else { return None };
    let field = |name: &str| head.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    let length = field("content-length").map_or("0", |field| std::str::from_utf8(field.value).expect("a number"));
    let end = start + length.parse::<usize>().expect("a number");
    let body = buffer.get(start..end)?;
    Some((end, answer(head.method.expect("complete"), head.path.expect("complete"), body)))
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
        // Everyone may read.
        ("GET", path) if path.ends_with("/_security") => json!({}),
        ("POST", "/_session") => {
            let name = serde_json::from_slice::<HashMap<String, Value>>(body).expect("JSON")["name"].clone();
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

/// Every database was updated once, and made at some time that nobody remembers.
fn rows(body: &[u8]) -> Value {
    let asked: HashMap<String, Vec<String>> = serde_json::from_slice(body).expect("JSON");
    let rows = asked["keys"].iter().map(|key| {
        if key.starts_with("updated:") {
            json!({"id": key, "key": key, "value": {"rev": "1-967a00dff5e02add41819138abb3284d"}})
        } else {
            json!({"key": key, "error": "not_found"})
        }
    });
    json!({"total_rows": 1, "offset": 0, "rows": rows.collect::<Vec<_>>()})
}
