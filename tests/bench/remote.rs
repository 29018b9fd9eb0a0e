//! A side of a comparison, as seen by the process that sends its orders.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde::de::DeserializeOwned;

use super::side::{Order, Setup, Started, Took};

/// A side in a process of its own, with file descriptors of its own. Dropping the value ends the
/// process.
pub struct Remote {
    child: Child,
    answers: BufReader<ChildStdout>,
    pub started: Started,
}

impl Remote {
    pub fn start(setup: &Setup) -> Self {
        let setup = serde_json::to_string(setup).expect("the value is plain data");
        let mut command = Command::new(std::env::current_exe().expect("the path of this binary is known"));
        let piped = command.args(["side", &setup]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().expect("the benchmark starts itself");
        let mut answers = BufReader::new(child.stdout.take().expect("the stream is piped"));
        let started = read(&mut answers);
        Self { child, answers, started }
    }

    /// Sends an order and waits for its result.
    pub fn order(&mut self, order: &Order) -> Took {
        let line = serde_json::to_string(order).expect("the value is plain data") + "\n";
        self.child.stdin.as_mut().expect("the stream is piped").write_all(line.as_bytes()).expect("the side reads");
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
        // The side and its server exit at the end of its standard input.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
