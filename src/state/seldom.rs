//! Things that strangers can bring about as often as they like, and of which an operator wants to hear now and then.

use super::timers::Millis;

/// Between two times that the operator hears of it, in milliseconds.
const PAUSE: Millis = 10 * 60_000;

/// When it was told last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seldom {
    told: Option<Millis>,
}

impl Seldom {
    /// Whether the operator is to hear of it this time.
    pub fn is_due(&mut self, now: Millis) -> bool {
        let due = self.told.is_none_or(|told| now >= told + PAUSE);
        if due {
            self.told = Some(now);
        }
        due
    }

    /// How important it is this time.
    pub fn level(&mut self, now: Millis) -> log::Level {
        if self.is_due(now) { log::Level::Warn } else { log::Level::Debug }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_told_at_once_and_then_after_pauses() {
        let mut seldom = Seldom::default();
        let due = |seldom: &mut Seldom, now| seldom.is_due(now);
        assert!(due(&mut seldom, 7) && !due(&mut seldom, 7) && !due(&mut seldom, 6 + PAUSE));
        assert_eq!(seldom.level(7 + PAUSE), log::Level::Warn);
        assert_eq!(seldom.level(8 + PAUSE), log::Level::Debug);
    }
}
