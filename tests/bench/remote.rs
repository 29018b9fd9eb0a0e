//! A side of a comparison, as seen by who orders it about.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde::de::DeserializeOwned;

use super::side::{Order, Setup, Started, Took};

/// A side in a process of its own, so that each has its own descriptors; it ends when this is dropped.
pub struct Remote {
    child: Child,
    answers: BufReader<ChildStdout>,
    pub started: Started,
}

impl Remote {
    pub fn start(setup: &Setup) -> Self {
        let setup = serde_json::to_string(setup).expect("plain data");
        let mut command = Command::new(std::env::current_exe().expect("it runs"));
        let piped = command.args(["side", &setup]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().expect("the benchmark starts itself");
        let mut answers = BufReader::new(child.stdout.take().expect("piped"));
        let started = read(&mut answers);
        Self { child, answers, started }
    }

    /// Has an order carried out.
    pub fn order(&mut self, order: &Order) -> Took {
        let line = serde_json::to_string(order).expect("plain data") + "\n";
        self.child.stdin.as_mut().expect("piped").write_all(line.as_bytes()).expect("the side reads");
        read(&mut self.answers)
    }
}

fn read<T: DeserializeOwned>(answers: &mut BufReader<ChildStdout>) -> T {
    let mut line = String::new();
    answers.read_line(&mut line).expect("the side writes text");
    serde_json::from_str(&line).unwrap_or_else(|_| panic!("a side of the benchmark failed, see above"))
}

impl Drop for Remote {
    fn drop(&mut self) {
        // The end of its orders ends it, and its server with it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
