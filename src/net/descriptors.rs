//! Descriptors: each connection needs one, and the system allows a process so many (setrlimit(2), `RLIMIT_NOFILE`).

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that are kept back from clients, beside one for each connection to CouchDB: files, ports, signals, and
/// connections that are about to be closed.
const KEPT_BACK: u64 = 192;

/// Raises the limit to what the process may raise it to, for most systems give little at first; the limit that holds.
/// None for no limit.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Where that is refused the old limit stays, and is told.
        let _ = setrlimit(Resource::Nofile, raised);
    }
    getrlimit(Resource::Nofile).current
}

/// How many clients there is room for below a limit, when so many connections lead to CouchDB.
pub fn room(limit: u64, upstreams: usize) -> usize {
    let upstreams = u64::try_from(upstreams).unwrap_or(u64::MAX);
    let room = limit.saturating_sub(KEPT_BACK).saturating_sub(upstreams).max(limit / 4).max(1);
    usize::try_from(room).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_descriptors_are_kept_back_and_never_all() {
        assert_eq!(room(20_000, 8), 19_800);
        assert_eq!(room(256, 8), 64);
        assert_eq!(room(0, 8), 1);
    }
}
