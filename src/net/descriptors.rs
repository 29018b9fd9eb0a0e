//! File descriptors. Each connection needs one, and the system limits their number for a process
//! (setrlimit(2), `RLIMIT_NOFILE`).

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors kept back for files, ports, signals and closing connections, besides one for each
/// connection to CouchDB.
const KEPT_BACK: u64 = 192;

/// Raises the limit as far as the process may, since most systems start low. Returns the new limit;
/// None if there is none.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        // If the system rejects it, the old limit stays and is returned.
        let _ = setrlimit(Resource::Nofile, raised);
    }
    getrlimit(Resource::Nofile).current
}

/// Returns the number of clients below a limit, besides connections to CouchDB.
pub fn room(limit: u64, upstreams: usize) -> usize {
    let upstreams = u64::try_from(upstreams).unwrap_or(u64::MAX);
    let room = limit.saturating_sub(KEPT_BACK).saturating_sub(upstreams).max(limit / 4).max(1);
    usize::try_from(room).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_some_descriptors_back_but_not_all() {
        assert_eq!(room(20_000, 8), 19_800);
        assert_eq!(room(256, 8), 64);
        assert_eq!(room(0, 8), 1);
    }
}
