//! CPU time and memory of a process, read from `/proc`.

use std::path::Path;
use std::thread;
use std::time::Duration;

/// CPU time of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Exact time in nanoseconds, as counted by the scheduler.
    pub ns: u64,
    /// Times in user mode and in the kernel, in ticks: precise enough only for their ratio.
    pub user: u64,
    pub system: u64,
}

impl Usage {
    /// Waits until a process is idle, and returns its CPU time.
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

    /// Returns the CPU time of all threads of a process. The scheduler counts running threads only
    /// up to their last tick.
    pub fn of(process: u32) -> Self {
        let folder = format!("/proc/{process}");
        let stat = std::fs::read_to_string(format!("{folder}/stat")).expect("the process runs");
        let fields: Vec<&str> = stat.rsplit(") ").next().expect("the name is in parentheses").split(' ').collect();
        let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("the field is a number");
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
    let text = std::fs::read_to_string(task.join("schedstat")).expect("the kernel has schedstat");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("the field is a number")
}

/// Kernel memory and the number of TCP sockets on the whole machine.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Memory of the slab allocator (`Slab`) in bytes: sockets, their files and their entries in
    /// epoll.
    bytes: f64,
    sockets: f64,
}

impl Kernel {
    pub fn now() -> Self {
        let kib = number("/proc/meminfo", "Slab:", 0);
        // TCP: inuse 5 orphan 0 tw 0 alloc 7 mem 1
        Self { bytes: kib * 1024.0, sockets: number("/proc/net/sockstat", "TCP:", 7) }
    }

    /// Returns the kernel memory in bytes per socket added since `before`, by any process. A local
    /// connection has two sockets.
    pub fn of_a_socket_since(self, before: Self) -> f64 {
        (self.bytes - before.bytes) / (self.sockets - before.sockets).max(1.0)
    }
}

/// Returns a field of the line that starts with `line`.
fn number(file: &str, line: &str, field: usize) -> f64 {
    let text = std::fs::read_to_string(file).expect("the file exists on Linux");
    let fields = text.lines().find_map(|one| one.strip_prefix(line)).expect("Linux reports this line");
    fields.split_whitespace().nth(field).and_then(|number| number.parse().ok()).expect("the field is a number")
}

/// Returns the resident memory of a process in bytes.
pub fn resident(process: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("the process runs");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("Linux reports this line");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("the field is a number") * 1024
}
