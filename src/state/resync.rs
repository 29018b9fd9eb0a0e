//! Notifies all clients that changes may have been lost. They are notified in random order and
//! spread over a time, so that CouchDB does not get the requests of all clients at once.

use crate::state::jitter::Jitter;
use crate::state::pacing::Pacer;
use crate::state::table::Key;
use crate::state::timers::Millis;

/// Conditions for the notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Never.
    Off,
    /// When changes may have been lost for good.
    Lost,
    /// Whenever the feed was interrupted.
    Always,
}

/// Time for a large number of clients, in milliseconds.
const SPREAD: Millis = 5_000;
/// Time per client if there are few, in milliseconds.
const PER_CLIENT: Millis = 5;

/// The clients that are being notified.
#[derive(Debug)]
pub struct StaggeredResync {
    /// Reason, as a text for the client's developer.
    pub reason: &'static str,
    /// Whether the epoch has changed.
    pub other_epoch: bool,
    order: Vec<Key>,
    notified: usize,
    pacer: Pacer,
}

impl StaggeredResync {
    /// Starts to notify these sessions.
    pub fn new(reason: &'static str, mut sessions: Vec<Key>, now: Millis, jitter: &mut Jitter) -> Self {
        for last in (1..sessions.len()).rev() {
            let other = usize::try_from(jitter.below(last as u64 + 1)).expect("below the length of a Vec");
            sessions.swap(last, other);
        }
        let pacer = Pacer::new(sessions.len(), SPREAD.min(sessions.len() as Millis * PER_CLIENT), now);
        Self { reason, other_epoch: false, order: sessions, notified: 0, pacer }
    }

    /// Returns when the next sessions are due; None if all were notified.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.pacer.poll_timeout()
    }

    /// Returns the sessions that are due.
    pub fn next(&mut self, now: Millis) -> &[Key] {
        let from = self.notified;
        self.notified += self.pacer.take_due(now);
        &self.order[from..self.notified]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::pacing::STEP;

    fn keys(count: u32) -> Vec<Key> {
        (0..count).map(|index| Key { index, generation: 0 }).collect()
    }

    #[test]
    fn every_client_is_notified_once_spread_over_the_time() {
        for count in [1, 7, 1000, 30_000] {
            let mut resync = StaggeredResync::new("", keys(count), 500, &mut Jitter::new(3));
            let mut notified = Vec::new();
            let mut most = 0;
            while let Some(at) = resync.poll_timeout() {
                let now = resync.next(at);
                most = most.max(now.len());
                notified.extend_from_slice(now);
                assert!(!now.is_empty() && at <= 500 + SPREAD + STEP, "{at}");
            }
            assert!(most <= 4 + count as usize / 100, "{most} of {count} at once");
            assert!(count < 1000 || notified[..100] != keys(100), "in random order");
            notified.sort_unstable();
            assert_eq!(notified, keys(count));
        }
        assert_eq!(StaggeredResync::new("", Vec::new(), 0, &mut Jitter::new(3)).poll_timeout(), None);
    }
}
