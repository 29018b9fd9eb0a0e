//! The server as a child process.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::couchdb::StandIn;
use super::http::Http;
use super::{SECRET_MARK, SOON, retry};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_couchdb-howler");

/// Returns the static binary that `tests/run.sh` builds and names in an environment variable.
pub fn static_binary() -> PathBuf {
    let built = std::env::var_os("HOWLER_STATIC_BINARY").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/x86_64-unknown-linux-musl/release/couchdb-howler"),
        PathBuf::from,
    );
    assert!(
        built.is_file(),
        "{} is missing: cargo build --release --target x86_64-unknown-linux-musl",
        built.display()
    );
    built
}

/// A running server. Dropping it kills the server and searches its output for secrets.
pub struct Howler {
    child: Child,
    output: Arc<Output>,
    /// Addresses and their schemes, the plain port first.
    addresses: Vec<(SocketAddr, String)>,
}

#[derive(Default)]
struct Output {
    lines: Mutex<Vec<String>>,
    more: Condvar,
    /// How many of the two output streams have ended.
    ended: AtomicUsize,
}

impl Howler {
    /// Starts a server that follows a stand-in, and waits until its feed is open.
    pub fn start(couchdb: &StandIn) -> Self {
        Self::start_with(couchdb, &[])
    }

    /// Starts the same server with further options.
    pub fn start_with(couchdb: &StandIn, options: &[&str]) -> Self {
        // The number of feeds so far does not help: the stand-in may still count that of a server
        // that was killed.
        let feeds = couchdb.counters().feed_requests;
        let howler = Self::launch(&[&["--couchdb_url", &couchdb.url()], options].concat());
        assert!(
            couchdb.wait_for(SOON, |seen| seen.feed_requests > feeds && seen.open_feeds > 0),
            "the server opens its feed"
        );
        howler
    }

    /// Starts a server that follows a stand-in on a given port, so that it can take the place of
    /// another one.
    pub fn start_on(port: u16, couchdb: &StandIn, options: &[&str]) -> Self {
        // As above: the stand-in may still count the feed of a server that was killed.
        let feeds = couchdb.counters().feed_requests;
        let url = couchdb.url();
        let howler = Self::launch_command_on(port, Command::new(BINARY).args(["--couchdb_url", &url]).args(options));
        assert!(
            couchdb.wait_for(SOON, |seen| seen.feed_requests > feeds && seen.open_feeds > 0),
            "the server opens its feed"
        );
        howler
    }

    /// Starts a server with these options on a free port of the loopback address, unless they name
    /// a host. Its feed may not be open yet.
    pub fn launch(options: &[&str]) -> Self {
        Self::launch_command(Command::new(BINARY).args(options))
    }

    /// Starts a server by a command that the caller set up.
    pub fn launch_command(command: &mut Command) -> Self {
        Self::launch_command_on(0, command)
    }

    /// Starts a server by a command, on a given port.
    pub fn launch_command_on(port: u16, command: &mut Command) -> Self {
        if !command.get_args().any(|argument| argument == "--host") {
            command.args(["--host", "127.0.0.1"]);
        }
        let mut child = command
            .args(["--port", &port.to_string(), "--log_level", "debug"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let output = Arc::new(Output::default());
        let file = Arc::new(Mutex::new(output_file()));
        collect(child.stdout.take().expect("piped"), output.clone(), file.clone());
        collect(child.stderr.take().expect("piped"), output.clone(), file);
        let mut howler = Self { child, output, addresses: Vec::new() };
        let line = howler.wait_for_line("listens on ");
        let listens = line.split("listens on ").nth(1).and_then(|rest| rest.split(';').next()).expect("checked above");
        howler.addresses = listens
            .split(" and ")
            .map(|one| {
                let (address, scheme) = one.split_once(' ').expect("the line names the scheme behind each address");
                (address.parse().expect("an address"), scheme.trim_matches(['(', ')']).to_owned())
            })
            .collect();
        howler
    }

    /// Returns the address of the first port.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0].0
    }

    /// Returns the URL of the first port. For TLS it holds the name that the certificates of the
    /// tests are for.
    pub fn url(&self) -> String {
        let (address, scheme) = &self.addresses[0];
        if scheme == "https" { format!("https://localhost:{}", address.port()) } else { format!("http://{address}") }
    }

    /// Returns the address of the TLS port.
    pub fn tls_address(&self) -> SocketAddr {
        let tls = self.addresses.iter().find(|(_, scheme)| scheme == "https");
        tls.expect("it has a certificate").0
    }

    pub fn port(&self) -> u16 {
        self.address().port()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns everything that the server has printed so far.
    pub fn output(&self) -> String {
        self.output.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Returns the number of printed lines that contain a text.
    pub fn count_lines(&self, text: &str) -> usize {
        let lines = self.output.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.contains(text)).count()
    }

    /// Returns the number of lines that contain a text and are meant for operators: debug lines do
    /// not count.
    pub fn count_logged(&self, text: &str) -> usize {
        let lines = self.output.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| line.contains(text) && !line.contains("DEBUG")).count()
    }

    /// Expects a line for operators to be printed exactly this many times. Waits for it, because
    /// output arrives later than what the server sends to clients.
    pub fn assert_logged(&self, text: &str, times: usize) {
        self.wait_for_lines(text, times);
        assert_eq!(self.count_logged(text), times, "{text}:\n{}", self.output());
    }

    /// Waits for a line that contains a text, from the start of the output.
    pub fn wait_for_line(&self, text: &str) -> String {
        self.wait_for_lines(text, 1)
    }

    /// Waits for this many lines that contain a text, and returns the last of them.
    pub fn wait_for_lines(&self, text: &str, count: usize) -> String {
        let deadline = Instant::now() + SOON;
        let mut lines = self.output.lines.lock().expect("no test holds it");
        loop {
            if let Some(line) = lines.iter().filter(|line| line.contains(text)).nth(count - 1) {
                return line.clone();
            }
            let ended = self.output.ended.load(Ordering::Acquire) == 2;
            let left = if ended { Duration::ZERO } else { deadline.saturating_duration_since(Instant::now()) };
            assert!(!left.is_zero(), "no line with {text:?} (x{count}) in:\n{}", lines.join("\n"));
            lines = self.output.more.wait_timeout(lines, left).expect("no test holds it").0;
        }
    }

    /// Sends a signal, by its name.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits until the server ends.
    pub fn wait(&mut self) -> ExitStatus {
        retry(|| {
            let status = self.child.try_wait().expect("it is our child");
            status.ok_or_else(|| format!("the server does not end:\n{}", self.output()))
        })
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux says so");
        line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
    }

    /// Returns the address that `--admin_port 0` was bound to.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        let line = self.wait_for_line("listens on ");
        let rest = line.split("health and metrics are on ").nth(1)?;
        rest.split(';').next()?.parse().ok()
    }

    /// Returns the value of a counter or gauge. Labels are part of its name.
    pub fn metric(&self, name: &str) -> u64 {
        let page = Http::connect(self.admin_address().unwrap_or_else(|| self.address())).get("/metrics");
        let mut values = page.text().lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = values.next().unwrap_or_else(|| panic!("no {name} in\n{}", page.text()));
        assert_eq!(values.next(), None, "{name} stands twice");
        value.parse().unwrap_or_else(|_| panic!("{name} is {value}"))
    }

    /// Returns the number of open file descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).expect("it runs").count()
    }
}

impl Drop for Howler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let output = self.output();
        if !std::thread::panicking() {
            assert!(!output.contains("panicked"), "the server panicked:\n{output}");
            assert_no_secret(&output);
        }
    }
}

/// Returns a free port that stays free between one server and the next. It lies below the ephemeral
/// ports: an outgoing connection could take one of those meanwhile, or connect to itself.
pub fn lasting_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 97;
    loop {
        let offset = (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let port = 20_000 + u16::try_from(offset).expect("below 12000");
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Searches the output of a server for passwords and cookies.
pub fn assert_no_secret(output: &str) {
    for secret in [SECRET_MARK, "AuthSession=", "Basic "] {
        if let Some(line) = output.lines().find(|line| line.contains(secret)) {
            panic!("a secret ({secret}) was printed: {line}");
        }
    }
}

/// The output and exit code of a run of the binary that ends by itself.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs the binary until it ends, with only the given environment.
pub fn run(options: &[&str], environment: &[(&str, &str)]) -> Ended {
    let output = Command::new(BINARY)
        .args(options)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints text");
    let ended = Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    let mut file = output_file();
    let _ = writeln!(file, "{}{}", ended.stdout, ended.stderr);
    assert_no_secret(&ended.stdout);
    assert_no_secret(&ended.stderr);
    ended
}

/// Returns a file for the output of one server, kept after the tests.
fn output_file() -> File {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("output");
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    File::create(folder.join(format!("{}-{number}.log", std::process::id()))).expect("the file can be made")
}

fn collect(stream: impl Read + Send + 'static, output: Arc<Output>, file: Arc<Mutex<File>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Ok(mut file) = file.lock() {
                let _ = writeln!(file, "{line}");
            }
            output.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            output.more.notify_all();
        }
        output.ended.fetch_add(1, Ordering::AcqRel);
        output.more.notify_all();
    });
}
