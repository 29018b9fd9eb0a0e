//! Shutdown: the server closes its clients one after the other, so that they do not all reconnect
//! at once.
//!
//! ```text
//! begin            all closed              over
//!   │  spread: evenly  │ CLOSE_TIME: last replies │
//!   ├─────────────────▶├─────────────────────────▶│   at the timeout, or sooner with few clients
//! ```
//!
//! A client gets its `goodbye` together with its close. Until then it is notified of changes. If
//! all clients got `goodbye` at once, those that act on it would leave at once, which the spread
//! avoids. A client that the server has not reached when it is killed reconnects by its own rules,
//! as after any break.

use crate::state::jitter::Jitter;
use crate::state::pacing::Pacer;
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Time per client if there are few, in milliseconds.
const PER_CLIENT: Millis = 5;
/// Time for the last clients to receive and answer their close, in milliseconds.
const CLOSE_TIME: Millis = 1_000;
/// Shortest wait that clients are asked for before they reconnect, in milliseconds, so that another
/// server can take over.
const MIN_WAIT: Millis = 1_000;
/// Longest time over which the waits spread the reconnects of all clients, in milliseconds. A
/// longer drain spreads them further.
const RECONNECT_SPREAD: Millis = 10_000;

/// The sessions that are being closed.
#[derive(Debug)]
pub struct Drain {
    order: Vec<Key>,
    closed: usize,
    pacer: Pacer,
    /// Range from which clients draw their wait, in milliseconds.
    wait: Millis,
    /// End of the drain.
    until: Millis,
    /// Whether [`Drain::next`] has reported that all sessions are closed.
    finished: bool,
}

/// The sessions and connections that are due.
#[derive(Debug, PartialEq, Eq)]
pub struct DueSessions<'a> {
    /// Sessions to close now.
    pub sessions: &'a [Key],
    /// Whether connections without a session are to close too, because no session is left. True
    /// once.
    pub others: bool,
}

impl Drain {
    /// Starts to close these sessions; `within` is the time in milliseconds.
    pub fn begin(sessions: Vec<Key>, within: Millis, now: Millis) -> Self {
        let wanted = sessions.len() as Millis * PER_CLIENT;
        // Half of a short time is reserved for the last replies.
        let spread = wanted.min(within.saturating_sub(CLOSE_TIME.min(within.div_ceil(2))));
        // The waits spread the reconnects as far as the closes do not.
        let wait = wanted.min(RECONNECT_SPREAD).saturating_sub(spread).max(MIN_WAIT);
        let pacer = Pacer::new(sessions.len(), spread, now);
        Self { order: sessions, closed: 0, pacer, wait, until: now + within, finished: false }
    }

    /// Returns the sessions that are due.
    pub fn next(&mut self, now: Millis) -> DueSessions<'_> {
        let from = self.closed;
        self.closed += self.pacer.take_due(now);
        let all = self.all_closed();
        DueSessions {
            sessions: &self.order[from..self.closed],
            others: all && !std::mem::replace(&mut self.finished, all),
        }
    }

    /// Returns whether all sessions were closed.
    pub fn all_closed(&self) -> bool {
        self.closed == self.order.len()
    }

    /// Returns whether the drain has ended.
    pub fn is_over(&self, now: Millis) -> bool {
        self.until <= now
    }

    /// Returns when [`Drain::next`] or the end is due.
    pub fn poll_timeout(&self) -> Millis {
        self.pacer.poll_timeout().map_or(self.until, |next| next.min(self.until))
    }

    /// Returns how long a client is to wait before it reconnects, in milliseconds.
    pub fn retry_after(&self, jitter: &mut Jitter) -> Millis {
        MIN_WAIT + jitter.below(self.wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u32) -> Vec<Key> {
        (0..count).map(|index| Key { index, generation: 0 }).collect()
    }

    /// Returns when the last client is closed, and when each reconnects.
    fn drain(count: u32, within: Millis) -> (Millis, Vec<Millis>) {
        let mut drain = Drain::begin(keys(count), within, 100);
        let (mut now, mut last, mut back) = (100, 0, Vec::new());
        let (mut jitter, mut others_reported) = (Jitter::new(5), 0);
        loop {
            let due_now = drain.next(now);
            let (due, others) = (due_now.sessions.len(), due_now.others);
            assert!(!others || drain.all_closed());
            others_reported += usize::from(others);
            for _ in 0..due {
                last = now - 100;
                back.push(now - 100 + drain.retry_after(&mut jitter));
            }
            if drain.is_over(now) {
                assert!(drain.all_closed() && others_reported == 1, "{count} within {within}");
                return (last, back);
            }
            let next = drain.poll_timeout();
            assert!(next > now && next <= 100 + within, "{next} after {now}");
            now = next;
        }
    }

    #[test]
    fn few_clients_are_closed_at_once_and_many_over_the_whole_time() {
        for (count, within, from, to) in [
            (0, 10_000, 0, 0),
            (3, 10_000, 0, 40),
            (1_000, 10_000, 4_900, 5_020),
            (10_000, 10_000, 8_900, 9_020),
            (40_000, 600_000, 199_000, 200_020),
            (10_000, 1_000, 450, 520),
            (10_000, 1, 0, 1),
            (10_000, 0, 0, 0),
        ] {
            let (last, back) = drain(count, within);
            assert!((from..=to).contains(&last), "{count} within {within}: {last}");
            assert_eq!(back.len(), count as usize);
        }
    }

    #[test]
    fn clients_reconnect_evenly() {
        for (count, within) in [(20_000, 0), (20_000, 10_000), (20_000, 60_000), (1_000, 2_000)] {
            let (_, back) = drain(count, within);
            assert!(back.iter().all(|at| *at >= MIN_WAIT));
            let end = back.iter().max().unwrap() + 1;
            let slots = usize::try_from((end - MIN_WAIT) / 1_000).unwrap() + 1;
            let mut counts = vec![0; slots];
            for at in &back {
                counts[usize::try_from((at - MIN_WAIT) / 1_000).unwrap()] += 1;
            }
            let most = counts.iter().max().unwrap();
            let fair = back.len() * 1_000 / usize::try_from(end - MIN_WAIT).unwrap();
            assert!(*most <= fair * 3 / 2 + 50, "{count} within {within}: {counts:?}");
        }
    }

    #[test]
    fn a_late_event_loop_closes_all_clients() {
        let mut drain = Drain::begin(keys(2_000), 5_000, 0);
        assert_eq!(drain.next(9_000), DueSessions { sessions: &keys(2_000), others: true });
        assert!(drain.all_closed() && drain.is_over(9_000));
    }
}
