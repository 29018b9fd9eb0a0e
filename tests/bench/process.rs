//! What the system says of a process: the time that it used, and the memory that it holds.

use std::path::Path;
use std::thread;
use std::time::Duration;

/// Time of processors that a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Exactly, in nanoseconds, by the scheduler's own count.
    pub ns: u64,
    /// How much of it in the process itself and in the kernel, in ticks: only good for the shares of either.
    pub user: u64,
    pub system: u64,
}

impl Usage {
    /// What a process has used, once it rests.
    pub fn at_rest(process: u32) -> Self {
        let mut before = Self::of(process);
        loop {
            thread::sleep(Duration::from_millis(3));
            let now = Self::of(process);
            if now.ns == before.ns {
                return now;
            }
            before = now;
        }
    }

    /// What all threads of a process have used. The scheduler counts a thread that runs no further than its last tick.
    pub fn of(process: u32) -> Self {
        let folder = format!("/proc/{process}");
        let stat = std::fs::read_to_string(format!("{folder}/stat")).expect("the process runs");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("a name in parentheses").split(' ').collect();
        let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("a number");
        let tasks = std::fs::read_dir(format!("{folder}/task")).expect("the process runs");
        let ns = tasks.flatten().map(|task| run_time(&task.path())).sum();
        Self { ns, user: ticks(14), system: ticks(15) }
    }

    pub fn since(self, before: Self) -> Self {
        Self { ns: self.ns - before.ns, user: self.user - before.user, system: self.system - before.system }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.ns += other.ns;
        self.user += other.user;
        self.system += other.system;
    }
}

fn run_time(task: &Path) -> u64 {
    let text = std::fs::read_to_string(task.join("schedstat")).expect("the kernel counts the time of threads");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number")
}

/// What the kernel holds for sockets and all else, and for how many sockets of TCP, on the whole machine.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Memory in small pieces (`Slab`), in bytes: sockets, their files, their places in an epoll.
    bytes: f64,
    sockets: f64,
}

impl Kernel {
    pub fn now() -> Self {
        let kib = number("/proc/meminfo", "Slab:", 0);
        // TCP: inuse 5 orphan 0 tw 0 alloc 7 mem 1
        Self { bytes: kib * 1024.0, sockets: number("/proc/net/sockstat", "TCP:", 7) }
    }

    /// Bytes for each socket that is more than before, whoever has it. A connection within the machine has two.
    pub fn of_a_socket_since(self, before: Self) -> f64 {
        (self.bytes - before.bytes) / (self.sockets - before.sockets).max(1.0)
    }
}

/// A field behind the name of a line.
fn number(file: &str, line: &str, field: usize) -> f64 {
    let text = std::fs::read_to_string(file).expect("Linux has it");
    let fields = text.lines().find_map(|one| one.strip_prefix(line)).expect("Linux says so");
    fields.split_whitespace().nth(field).and_then(|number| number.parse().ok()).expect("a number")
}

/// Resident memory of a process in bytes.
pub fn resident(process: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("the process runs");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("Linux says so");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
}
