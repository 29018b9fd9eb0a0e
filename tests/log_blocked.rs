//! A standard error that is not read, or closed: the server continues and counts the lines that it
//! could not log.

use std::io::{BufRead as _, BufReader, PipeWriter, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::support::couchdb::StandIn;
use crate::support::howler::{BINARY, assert_no_secret};
use crate::support::http::Http;
use crate::support::{SOON, couchdb, retry, wait_until};

const DROPPED: &str = "howler_log_lines_dropped_total";

/// A server whose standard error is a pipe that the test reads when it chooses to.
struct Server {
    child: Child,
    stderr: Option<ChildStderr>,
    address: SocketAddr,
}

impl Server {
    /// Starts a server that logs at `debug`, and waits until it listens.
    fn start(couchdb: &StandIn, format: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = Command::new(BINARY)
            .args(["--couchdb_url", &couchdb.url(), "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--log_level", "debug", "--log_format", format])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = child.stderr.take();
        let server = Self { child, stderr, address: ([127, 0, 0, 1], port).into() };
        wait_until("the server listens", || std::net::TcpStream::connect(server.address).is_ok());
        server
    }

    /// Sends requests, each of which logs one long line, until lines are dropped.
    fn fill_the_log(&self) {
        let mut http = Http::connect(self.address);
        let target = format!("/{}", "nowhere/".repeat(50));
        for _ in 0..100 {
            for _ in 0..200 {
                assert_eq!(http.get(&target).status, 404);
            }
            if self.dropped() > 0 {
                return;
            }
        }
        panic!("no line was dropped");
    }

    fn dropped(&self) -> u64 {
        let page = Http::connect(self.address).get("/metrics");
        let mut values = page.text().lines().filter_map(|line| line.strip_prefix(DROPPED)?.strip_prefix(' '));
        values.next().expect("the metric exists").parse().expect("the value is a number")
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the server runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux reports VmRSS");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("the value is a number")
    }

    fn has_thread(&self, name: &str) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the server runs");
        threads
            .flatten()
            .any(|thread| std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name))
    }

    /// Sends SIGTERM and waits for the exit.
    fn stop(&mut self) -> ExitStatus {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        retry(|| {
            let status = self.child.try_wait().expect("the child can be waited for");
            status.ok_or_else(|| "timeout waiting for the server to exit".to_owned())
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn unread_log_blocks_neither_clients_nor_sigterm() {
    let couchdb = couchdb();
    for format in ["text", "json"] {
        let mut server = Server::start(&couchdb, format);
        let before = server.resident_kib();
        server.fill_the_log();
        let grown = server.resident_kib().saturating_sub(before);
        assert!(grown < 16 * 1024, "{format}: the queue grew by {grown} KiB");
        assert_eq!(server.stop().code(), Some(0), "{format}");
        let mut log = String::new();
        server.stderr.take().expect("stderr is piped").read_to_string(&mut log).expect("the log is UTF-8");
        assert_no_secret(&log);
        let first = log.lines().next().expect("the log has a line");
        assert!(first.contains("listens on") && first.contains(&server.address.to_string()), "{first}");
    }
}

#[test]
fn number_of_dropped_lines_is_logged_once_the_log_is_read() {
    let couchdb = couchdb();
    for format in ["text", "json"] {
        let mut server = Server::start(&couchdb, format);
        server.fill_the_log();
        let dropped = server.dropped();
        let mut lines = BufReader::new(server.stderr.take().expect("stderr is piped")).lines();
        let line = lines
            .by_ref()
            .map(|line| line.expect("the log is UTF-8"))
            .find(|line| line.contains("log lines were dropped"));
        let line = line.expect("the number of dropped lines is logged");
        assert!(line.to_ascii_uppercase().contains("WARN"), "{line}");
        let number = line.split(" log lines").next().and_then(|before| before.rsplit([' ', '"']).next()?.parse().ok());
        assert!(number.is_some_and(|number: u64| number >= dropped), "{dropped}: {line}");
        // From here on no lines are missing.
        assert_eq!(Http::connect(server.address).get("/read-again").status, 404);
        let line = lines.by_ref().map(|line| line.expect("the log is UTF-8")).find(|line| line.contains("/read-again"));
        assert!(line.is_some(), "{format}");
        std::thread::spawn(move || lines.count());
        assert_eq!(server.stop().code(), Some(0), "{format}");
    }
}

#[test]
fn lines_are_dropped_and_counted_when_the_reader_is_gone() {
    let couchdb = couchdb();
    for format in ["text", "json"] {
        let mut server = Server::start(&couchdb, format);
        drop(server.stderr.take());
        let mut http = Http::connect(server.address);
        let began = Instant::now();
        while server.dropped() < 10 {
            assert_eq!(http.get("/nowhere").status, 404);
            assert!(began.elapsed() < SOON, "{format}: timeout waiting for dropped lines");
        }
        assert!(server.has_thread("log"), "{format}: a panic in this thread would end a release build");
        assert_eq!(server.stop().code(), Some(0), "{format}");
    }
}

#[test]
fn startup_error_ends_the_process_even_if_stderr_is_full() {
    let (reader, mut writer) = std::io::pipe().expect("the pipe opens");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // Fills the pipe, as another process that shares it could.
    while takes_more(&writer) {
        writer.write_all(&[b'x'; 4096]).expect("the reader is open");
    }
    for (options, code) in [(vec!["--port", "x"], 2), (vec!["-u", "http://a:zq7-b@c", "-p", &*port], 1)] {
        let mut child = Command::new(BINARY)
            .args(options)
            .args(["--host", "127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(writer.try_clone().expect("there is a free descriptor"))
            .spawn()
            .expect("the binary starts");
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("the child can be waited for") {
                break status;
            }
            if began.elapsed() > SOON {
                let _ = child.kill();
                panic!("timeout waiting for the process to exit");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(status.code(), Some(code));
    }
    drop(reader);
}

/// Returns whether a write to a pipe would not block.
fn takes_more(pipe: &PipeWriter) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("the pipe can be polled") > 0
}
