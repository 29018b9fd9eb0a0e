//! The end of the server: clients are seen off one after the other, so that they do not all come back at once.
//!
//! ```text
//! begin            all seen off            over
//!   │  spread: evenly  │ FAREWELL: the last close │
//!   ├─────────────────▶├─────────────────────────▶│      never later than the timeout, sooner with few clients
//! ```
//!
//! A client gets its `goodbye` together with its close, not with the signal. Until its turn comes it is told of changes
//! as ever; told at once, every client that takes `goodbye` for its cue would leave at once, which is what spreading is
//! to avoid; and one whose server is killed before its turn comes back by its own rules, as after any break.

use crate::state::jitter::Jitter;
use crate::state::pace::Pace;
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Few clients are seen off faster: so many milliseconds for each.
const EACH: Millis = 5;
/// What is left for the last clients to take their close and to answer it, in milliseconds.
const FAREWELL: Millis = 1_000;
/// Clients are asked to stay away for this long at least, in milliseconds: so that another server can take the place.
const AWAY: Millis = 1_000;
/// Time over which the clients of one server come back at most, in milliseconds, as far as it is up to the wait that
/// they are told; a longer drain spreads them further.
const COME_BACK: Millis = 10_000;

/// The clients that are still to be seen off.
#[derive(Debug)]
pub struct Drain {
    order: Vec<Key>,
    seen_off: usize,
    pace: Pace,
    /// Over how long clients draw their time to come back.
    wait: Millis,
    /// When nobody is waited for any more.
    until: Millis,
    /// Whether it was said that every session had its turn.
    finished: bool,
}

/// Whose turn it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Leaving<'a> {
    /// The sessions to see off now.
    pub sessions: &'a [Key],
    /// Whether connections without one are to end with them: none is left to wait for. Said once.
    pub rest: bool,
}

impl Drain {
    /// Sees these sessions off within so many milliseconds.
    pub fn begin(sessions: Vec<Key>, within: Millis, now: Millis) -> Self {
        let wanted = sessions.len() as Millis * EACH;
        // Of little time half is left.
        let spread = wanted.min(within.saturating_sub(FAREWELL.min(within.div_ceil(2))));
        // What the closes do not spread the waits do.
        let wait = wanted.min(COME_BACK).saturating_sub(spread).max(AWAY);
        let pace = Pace::new(sessions.len(), spread, now);
        Self { order: sessions, seen_off: 0, pace, wait, until: now + within, finished: false }
    }

    /// Whose turn it is now.
    pub fn next(&mut self, now: Millis) -> Leaving<'_> {
        let from = self.seen_off;
        self.seen_off += self.pace.take_due(now);
        let all = self.all_seen_off();
        Leaving { sessions: &self.order[from..self.seen_off], rest: all && !std::mem::replace(&mut self.finished, all) }
    }

    /// Whether every session had its turn.
    pub fn all_seen_off(&self) -> bool {
        self.seen_off == self.order.len()
    }

    /// Whether nobody is waited for any more.
    pub fn is_over(&self, now: Millis) -> bool {
        self.until <= now
    }

    /// When something is to be done.
    pub fn poll_timeout(&self) -> Millis {
        self.pace.poll_timeout().map_or(self.until, |next| next.min(self.until))
    }

    /// How long a client is asked to stay away, in milliseconds: as spread as the closes are not.
    pub fn retry_after(&self, jitter: &mut Jitter) -> Millis {
        AWAY + jitter.below(self.wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u32) -> Vec<Key> {
        (0..count).map(|index| Key { index, generation: 0 }).collect()
    }

    /// When the last client is seen off, and when each comes back.
    fn drain(count: u32, within: Millis) -> (Millis, Vec<Millis>) {
        let mut drain = Drain::begin(keys(count), within, 100);
        let (mut now, mut last, mut back) = (100, 0, Vec::new());
        let (mut jitter, mut rests) = (Jitter::new(5), 0);
        loop {
            let leaving = drain.next(now);
            let (due, rest) = (leaving.sessions.len(), leaving.rest);
            assert!(!rest || drain.all_seen_off());
            rests += usize::from(rest);
            for _ in 0..due {
                last = now - 100;
                back.push(now - 100 + drain.retry_after(&mut jitter));
            }
            if drain.is_over(now) {
                assert!(drain.all_seen_off() && rests == 1, "{count} within {within}");
                return (last, back);
            }
            let next = drain.poll_timeout();
            assert!(next > now && next <= 100 + within, "{next} after {now}");
            now = next;
        }
    }

    #[test]
    fn few_are_seen_off_at_once_and_many_in_all_the_time() {
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
    fn they_come_back_evenly() {
        for (count, within) in [(20_000, 0), (20_000, 10_000), (20_000, 60_000), (1_000, 2_000)] {
            let (_, back) = drain(count, within);
            assert!(back.iter().all(|at| *at >= AWAY));
            let end = back.iter().max().unwrap() + 1;
            let slots = usize::try_from((end - AWAY) / 1_000).unwrap() + 1;
            let mut counts = vec![0; slots];
            for at in &back {
                counts[usize::try_from((at - AWAY) / 1_000).unwrap()] += 1;
            }
            let most = counts.iter().max().unwrap();
            let fair = back.len() * 1_000 / usize::try_from(end - AWAY).unwrap();
            assert!(*most <= fair * 3 / 2 + 50, "{count} within {within}: {counts:?}");
        }
    }

    #[test]
    fn a_loop_that_comes_late_sees_all_off() {
        let mut drain = Drain::begin(keys(2_000), 5_000, 0);
        assert_eq!(drain.next(9_000), Leaving { sessions: &keys(2_000), rest: true });
        assert!(drain.all_seen_off() && drain.is_over(9_000));
    }
}
