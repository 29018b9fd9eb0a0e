//! The measurements of a side, one for each order: from the first byte written to the feed to the
//! last notification.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::clients::Stopwatch;
use super::lines;
use super::process::Usage;
use super::side::{Side, Took};

/// Number of prepared lines, which are written repeatedly.
const PREPARED_LINES: usize = 20_000;
/// Distance between the clients of consecutive changes.
const STRIDE: usize = 7_919;

impl Side {
    pub fn fan_out(&mut self, rounds: u64) -> Took {
        let mut took = Took::default();
        let clients = self.setup.clients as u64;
        for round in 1..=rounds {
            let line = self.write_lines(std::iter::once(None));
            (self.fleet.tally.first, self.fleet.tally.last) = (None, None);
            let sent = Instant::now();
            Self::push(&self.couchdb, &mut self.wire, &line);
            self.fleet
                .run_until("a change that all clients are notified of", |tally| tally.notified >= round * clients);
            let after = |at: Option<Instant>| (at.expect("a client was notified") - sent).as_secs_f64() * 1e3;
            took.first_ms.push(after(self.fleet.tally.first));
            took.last_ms.push(after(self.fleet.tally.last));
        }
        took
    }

    pub fn rest(&mut self, pings: u64) -> Took {
        self.fleet.tally.pings = 0;
        let all = pings * self.setup.clients as u64;
        let before = Usage::of(self.server.id());
        self.fleet.run_until("a ping for each client", |tally| tally.pings >= all);
        Took { ns: Usage::of(self.server.id()).since(before).ns, ..Took::default() }
    }

    pub fn pace(&mut self, changes: usize, per_second: usize) -> Took {
        let clients = self.setup.clients;
        let whose: Vec<usize> = (0..changes).map(|change| change * STRIDE % clients).collect();
        let prepared: Vec<Vec<u8>> =
            whose.iter().map(|&number| self.write_lines(std::iter::once(Some(number)))).collect();
        let start = Instant::now();
        let sent: Arc<[AtomicU64]> = (0..clients).map(|_| AtomicU64::new(0)).collect();
        let stopwatch = Stopwatch { start, sent: Arc::clone(&sent), nanoseconds: Vec::with_capacity(changes) };
        self.fleet.tally.stopwatch = Some(stopwatch);
        let (fleet, couchdb, wire) = (&mut self.fleet, &self.couchdb, &mut self.wire);
        thread::scope(|scope| {
            scope.spawn(|| {
                let interval = Duration::from_secs(1) / u32::try_from(per_second).expect("the rate is small enough");
                for (change, (number, line)) in (0..).zip(whose.iter().zip(&prepared)) {
                    thread::sleep((start + interval * change).saturating_duration_since(Instant::now()));
                    sent[*number].store(start.elapsed().as_nanos() as u64, Ordering::Release);
                    Self::push(couchdb, wire, line);
                }
            });
            fleet.run_until("all changes of single clients", |tally| tally.notified >= changes as u64);
        });
        let stopwatch = self.fleet.tally.stopwatch.take().expect("the stopwatch is set above");
        Took { latencies: stopwatch.nanoseconds, ..Took::default() }
    }

    pub fn burst(&mut self, changes: usize) -> Took {
        let clients = self.setup.clients;
        let lines = self.write_lines((0..changes).map(|change| Some(change * STRIDE % clients)));
        self.fleet.tally.expected.clone_from(&self.own);
        self.fleet.tally.arrived = 0;
        let (fleet, couchdb, wire) = (&mut self.fleet, &self.couchdb, &mut self.wire);
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| Self::push(couchdb, wire, &lines));
            fleet.run_until("the last change of each client", |tally| tally.arrived >= clients);
        });
        let seconds = began.elapsed().as_secs_f64();
        self.fleet.tally.expected.clear();
        Took { seconds, ..Took::default() }
    }

    /// Measures one change of each database of one client. Counts the writes of the server if
    /// strace is installed and permitted.
    pub fn many(&mut self, databases: usize) -> Took {
        let trace = Trace::start(self.server.id());
        self.own[0] += 1;
        let mut text = String::new();
        for number in 0..databases {
            self.lines.write(&mut text, &lines::one_of_many(number), self.own[0]);
        }
        let lines = lines::chunked(&text);
        let (fleet, couchdb) = (&mut self.fleet, &self.couchdb);
        thread::scope(|scope| {
            scope.spawn(|| couchdb.push(&lines));
            fleet.run_until("all databases of one client", |tally| tally.notified >= databases as u64);
        });
        Took { writes: trace.and_then(Trace::finish), ..Took::default() }
    }

    pub fn feed(&mut self, lines: usize) -> Took {
        let (mut text, mut prepared_lines) = (String::new(), 0);
        while prepared_lines < lines.min(PREPARED_LINES) {
            self.lines.write(&mut text, &lines::own(1_000_000 + prepared_lines), 2);
            prepared_lines += 1;
        }
        let prepared = lines::chunked(&text);
        let last = self.write_lines(std::iter::once(Some(0)));
        let (fleet, couchdb) = (&mut self.fleet, &self.couchdb);
        let began = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..lines / prepared_lines {
                    couchdb.push(&prepared);
                }
                couchdb.push(&last);
            });
            fleet.run_until("the change behind all lines", |tally| tally.notified >= 1);
        });
        Took { seconds: began.elapsed().as_secs_f64(), ..Took::default() }
    }
}

/// Counts the writes of a process with strace.
struct Trace {
    child: Child,
}

impl Trace {
    /// Attaches strace to a process. Returns `None` if that fails.
    fn start(process: u32) -> Option<Self> {
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-e", "trace=write,writev,sendto,sendmsg", "-p", &process.to_string()]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
            let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the server runs");
            let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:")).map(str::trim);
            if tracer.is_some_and(|tracer| tracer != "0") {
                // strace stops the process once the scheduler runs it, then lets it wait again.
                thread::sleep(Duration::from_millis(300));
                return Some(Self { child });
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// Returns the number of writes, or `None` if there were none because strace attached too late.
    fn finish(mut self) -> Option<u64> {
        let status = Command::new("kill").args(["-s", "INT", &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
        let mut summary = String::new();
        let mut stderr = self.child.stderr.take().expect("stderr is piped");
        stderr.read_to_string(&mut summary).expect("strace prints text");
        let _ = self.child.wait();
        // Columns: % time, seconds, usecs/call, calls, errors (if any), syscall.
        let writes = |row: &&str| ["write", "writev", "sendto", "sendmsg"].iter().any(|call| row.ends_with(call));
        let calls = |row: &str| row.split_whitespace().nth(3)?.parse::<u64>().ok();
        Some(summary.lines().filter(writes).filter_map(calls).sum()).filter(|calls| *calls > 0)
    }
}
