//! Throttles log lines that a peer can cause at any rate.
//!
//! The first line of a cause passes at once. Further lines are suppressed and counted until the
//! period is over, and the next line contains the count. A throttle does not know the text: the
//! caller appends [`Suppressed`] to it.

use std::fmt;

use log::Level;

use super::timers::Millis;

/// One minute, in milliseconds.
pub const MINUTE: Millis = 60_000;
/// Ten minutes, in milliseconds.
pub const TEN_MINUTES: Millis = 10 * MINUTE;

/// Lets one line of one cause pass per period.
#[derive(Clone, Debug)]
pub struct LogThrottle {
    period: Millis,
    /// Time of the last line that passed.
    passed: Option<Millis>,
    suppressed: u64,
}

impl LogThrottle {
    /// Creates a throttle with a period in milliseconds.
    pub const fn new(period: Millis) -> Self {
        Self { period, passed: None, suppressed: 0 }
    }

    /// Decides about one line: returns the text to append to it, or `None` to suppress it.
    pub fn pass(&mut self, now: Millis) -> Option<Suppressed> {
        let within = match self.passed {
            Some(passed) if now < passed.saturating_add(self.period) => {
                self.suppressed = self.suppressed.saturating_add(1);
                return None;
            }
            Some(passed) => now - passed,
            None => 0,
        };
        self.passed = Some(now);
        Some(Suppressed { count: std::mem::take(&mut self.suppressed), within })
    }

    /// Decides about one line that stays visible to developers: returns `level` and the text to
    /// append, or `debug` and an empty text if operators are not to see the line.
    pub fn level(&mut self, level: Level, now: Millis) -> (Level, Suppressed) {
        self.pass(now).map_or((Level::Debug, Suppressed::NONE), |suppressed| (level, suppressed))
    }
}

/// Lets one line per cause and period pass. There must be few causes, since each takes memory.
#[derive(Clone, Debug)]
pub struct LogThrottles<C> {
    period: Millis,
    causes: Vec<(C, LogThrottle)>,
}

impl<C: PartialEq> LogThrottles<C> {
    /// Creates throttles with a period in milliseconds.
    pub const fn new(period: Millis) -> Self {
        Self { period, causes: Vec::new() }
    }

    /// Returns the throttle of a cause.
    pub fn of(&mut self, cause: C) -> &mut LogThrottle {
        let at = self.causes.iter().position(|(known, _)| *known == cause).unwrap_or_else(|| {
            self.causes.push((cause, LogThrottle::new(self.period)));
            self.causes.len() - 1
        });
        &mut self.causes[at].1
    }
}

/// Number of suppressed lines since the last one that passed. Displays as ` (1,234 more in the last
/// minute)`, or as nothing if there were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suppressed {
    count: u64,
    /// Milliseconds since the last line.
    within: Millis,
}

impl Suppressed {
    const NONE: Self = Self { count: 0, within: 0 };
}

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return Ok(());
        }
        f.write_str(" (")?;
        write_grouped(f, self.count)?;
        match (self.within + MINUTE / 2) / MINUTE {
            0 | 1 => f.write_str(" more in the last minute)"),
            minutes => write!(f, " more in the last {minutes} minutes)"),
        }
    }
}

/// Writes a number with a comma after each three digits.
fn write_grouped(f: &mut fmt::Formatter<'_>, number: u64) -> fmt::Result {
    if number < 1000 {
        return write!(f, "{number}");
    }
    write_grouped(f, number / 1000)?;
    write!(f, ",{:03}", number % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_period_passes_and_counts_the_suppressed_ones() {
        let mut throttle = LogThrottle::new(MINUTE);
        let mut at = |now| throttle.pass(now).map(|suppressed| suppressed.to_string());
        assert_eq!(at(7), Some(String::new()));
        assert_eq!((at(7), at(8), at(6 + MINUTE)), (None, None, None));
        assert_eq!(at(7 + MINUTE), Some(" (3 more in the last minute)".to_owned()));
        assert_eq!(at(7 + 2 * MINUTE), Some(String::new()));
        for _ in 0..1_234 {
            assert_eq!(at(8 + 2 * MINUTE), None);
        }
        assert_eq!(at(7 + 5 * MINUTE), Some(" (1,234 more in the last 3 minutes)".to_owned()));
    }

    #[test]
    fn suppressed_lines_stay_visible_to_developers() {
        let mut throttle = LogThrottle::new(TEN_MINUTES);
        assert_eq!(throttle.level(Level::Warn, 0), (Level::Warn, Suppressed::NONE));
        assert_eq!(throttle.level(Level::Warn, TEN_MINUTES - 1), (Level::Debug, Suppressed::NONE));
        let (level, suppressed) = throttle.level(Level::Error, TEN_MINUTES);
        assert_eq!((level, &*suppressed.to_string()), (Level::Error, " (1 more in the last 10 minutes)"));
    }

    #[test]
    fn causes_are_independent() {
        let mut throttles = LogThrottles::new(MINUTE);
        assert!(throttles.of("a").pass(0).is_some() && throttles.of("b").pass(1).is_some());
        assert!(throttles.of("a").pass(2).is_none() && throttles.of("b").pass(MINUTE).is_none());
        assert!(throttles.of("a").pass(MINUTE).is_some() && throttles.of("b").pass(MINUTE + 1).is_some());
        assert_eq!(throttles.causes.len(), 2);
    }

    #[test]
    fn numbers_are_grouped() {
        let text = |count, within| Suppressed { count, within }.to_string();
        assert_eq!(text(1_000_007, 1_000), " (1,000,007 more in the last minute)");
        assert_eq!(text(999, 89_999), " (999 more in the last minute)");
        assert_eq!(text(1, 90_000), " (1 more in the last 2 minutes)");
        assert_eq!(text(u64::MAX, MINUTE).matches(',').count(), 6);
    }
}
