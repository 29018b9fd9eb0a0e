//! The turn of the loop. No other module reads the clock.

use std::io::{self, Read as _};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::net::UnixStream;
use mio::{Events, Interest, Poll};

use crate::server::{RELOAD_SIGNALS, STOP_SIGNALS, Server};
use crate::state::timers::Millis;
use crate::systemd::Notifier;

/// Most events in one turn.
const EVENTS: usize = 1024;

/// The ends of pipes from the signal handlers, which write a byte for each signal.
#[derive(Debug)]
pub struct Signals {
    /// Signals to stop.
    pub stop: UnixStream,
    /// Signals to read the certificate and the file with CouchDB's URL again.
    pub reload: UnixStream,
}

/// The clock: milliseconds since the start of the process.
#[derive(Debug)]
struct Clock {
    start: Instant,
}

impl Clock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn start() -> Self {
        Self { start: Instant::now() }
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn now(&self) -> Millis {
        let elapsed = Instant::now().duration_since(self.start).as_millis();
        Millis::try_from(elapsed).unwrap_or(Millis::MAX)
    }
}

/// Returns the time in seconds since 1970, for the start of the process.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn unix_seconds() -> u64 {
    // A clock before 1970 is wrong in any case.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Runs the server until it is stopped: the first signal starts the shutdown, the second one ends
/// at once.
///
/// # Errors
/// When the poll fails.
pub fn run(mut server: Server, mut poll: Poll, mut signals: Signals, mut notifier: Notifier) -> io::Result<()> {
    poll.registry().register(&mut signals.stop, STOP_SIGNALS, Interest::READABLE)?;
    poll.registry().register(&mut signals.reload, RELOAD_SIGNALS, Interest::READABLE)?;
    let clock = Clock::start();
    let mut events = Events::with_capacity(EVENTS);
    let mut stop_signals = 0;
    notifier.ready(clock.now());
    loop {
        let now = clock.now();
        let next = [server.poll_timeout(), notifier.poll_timeout()].into_iter().flatten().min();
        let timeout = next.map(|at| Duration::from_millis(at.saturating_sub(now)));
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        let now = clock.now();
        server.begin_turn(now);
        for event in &events {
            match event.token() {
                STOP_SIGNALS => stop_signals += count_signals(&mut signals.stop),
                // One reload, however many signals came.
                RELOAD_SIGNALS => {
                    count_signals(&mut signals.reload);
                    server.reload(now);
                }
                _ => server.ready(event, now),
            }
        }
        match stop_signals {
            0 => {}
            1 => {
                server.shut_down(now);
                notifier.stopping(server.client_count(), server.drain_within(), now);
            }
            _ => return Ok(()),
        }
        server.run_unfinished(now);
        server.expire_timers(now);
        server.send_lookups(now);
        server.flush_dirty(now);
        server.drain_clients(now);
        server.review_clients(now);
        server.reap_closed();
        notifier.handle_timeout(now, server.client_count());
        if server.is_drained(now) {
            return Ok(());
        }
    }
}

fn count_signals(signals: &mut UnixStream) -> usize {
    let (mut buffer, mut count) = ([0; 16], 0);
    while let Ok(read @ 1..) = signals.read(&mut buffer) {
        count += read;
    }
    count
}
