//! A client in another language as a child process: commands in, events out, one line of JSON each.
//! `tests/clients/socket_io.js` documents the vocabulary.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use serde_json::Value;

use super::SOON;

/// A running script. Dropping it kills the script.
pub struct Script {
    child: Child,
    commands: ChildStdin,
    lines: Receiver<Value>,
    /// Events that arrived while the test waited for others.
    events: Vec<Value>,
    errors: Arc<Mutex<String>>,
}

impl Script {
    /// Starts a script of `tests/clients` in node.
    pub fn node(file: &str, arguments: &[&str]) -> Self {
        Self::node_trusting(None, file, arguments)
    }

    /// Starts a script in node that trusts the authority with the certificate in a file.
    pub fn node_trusting(authority: Option<&str>, file: &str, arguments: &[&str]) -> Self {
        assert_installed();
        Self::start(Path::new("node"), file, arguments, authority)
    }

    /// Starts a script of `tests/clients` in a virtual environment, `py-v4` or `py-v5`. It may
    /// trust the authority with the certificate in a file.
    pub fn python_trusting(authority: Option<&str>, environment: &str, file: &str, arguments: &[&str]) -> Self {
        assert_installed();
        Self::start(&target().join(environment).join("bin/python"), file, arguments, authority)
    }

    fn start(program: &Path, file: &str, arguments: &[&str], authority: Option<&str>) -> Self {
        // Each library reads one of these variables.
        let trust = ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "WEBSOCKET_CLIENT_CA_BUNDLE"];
        let mut child = Command::new(program)
            .envs(trust.iter().filter_map(|name| Some((name, authority?))))
            .arg(clients().join(file))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{} does not start ({error}): run tests/clients/install.sh", program.display())
            });
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(event).is_err() {
                    return;
                }
            }
        });
        let errors = Arc::new(Mutex::new(String::new()));
        collect(child.stderr.take().expect("piped"), errors.clone());
        let commands = child.stdin.take().expect("piped");
        Self { child, commands, lines, events: Vec::new(), errors }
    }

    /// Sends a command.
    pub fn send_command(&mut self, command: &Value) {
        if let Err(error) = writeln!(self.commands, "{command}") {
            self.fail(&format!("the script took no more commands ({error})"));
        }
    }

    /// Waits until the script, or the program that it starts, is ready or has ended, and returns
    /// that event. On a busy machine an interpreter or a browser takes longer to start than
    /// anything that a server does.
    pub fn wait_until_ready(&mut self, of: &str) -> Value {
        while let Ok(value) = self.lines.recv() {
            if value["of"] == of && value["event"] == "ready" {
                return value;
            }
            self.events.push(value);
        }
        self.fail("the script ended");
    }

    /// Waits for an event of one of its clients, and keeps the other events.
    pub fn expect(&mut self, client: &str, event: &str) -> Value {
        let deadline = Instant::now() + SOON;
        let wanted = |value: &Value| value["of"] == client && value["event"] == event;
        if let Some(at) = self.events.iter().position(wanted) {
            return self.events.remove(at);
        }
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(value) if wanted(&value) => return value,
                Ok(value) => self.events.push(value),
                Err(error) => self.fail(&format!("no {event:?} of {client:?} ({error})")),
            }
        }
    }

    /// Waits for the acknowledgement of a command, and returns its content.
    pub fn expect_ack(&mut self, client: &str, command: &str) -> Value {
        let mut ack = self.expect(client, "ack");
        if ack["to"] != command {
            self.fail(&format!("not the acknowledgement of {command:?}: {ack}"));
        }
        ack["data"].take()
    }

    /// Takes the events of one of its clients that no test has waited for.
    pub fn take_others(&mut self, client: &str) -> Vec<Value> {
        self.events.extend(self.lines.try_iter());
        self.events.extract_if(.., |event| event["of"] == client).collect()
    }

    fn fail(&self, problem: &str) -> ! {
        let events: Vec<String> = self.events.iter().map(Value::to_string).collect();
        let events = events.join("\n");
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        panic!("{problem}\nother events:\n{events}\nstderr of the script:\n{errors}")
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut stream: impl Read + Send + 'static, errors: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut bytes) {
            errors.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    });
}

/// Fails a test without its clients: it is not skipped.
pub fn assert_installed() {
    static PROBLEM: OnceLock<Option<String>> = OnceLock::new();
    let problem = PROBLEM.get_or_init(|| {
        let check =
            Command::new(clients().join("install.sh")).arg("--check").env("CARGO_TARGET_DIR", target()).output();
        match check {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Some(format!("tests/clients/install.sh does not run: {error}")),
        }
    });
    if let Some(problem) = problem {
        panic!("the clients of the tests are not installed, run tests/clients/install.sh: {problem}");
    }
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Returns the target folder, in which the virtual environments are.
pub fn target() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo makes it in the target folder")
}
