//! Random numbers that spread load, and backoff. They are predictable, so not for secrets.

/// A small generator (xorshift64*), seeded by the caller.
#[derive(Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// Creates a generator; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Returns a number below `bound`, or 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        number.checked_rem(bound).unwrap_or(0)
    }

    /// Returns a number from half of `span` to `span`.
    pub fn around(&mut self, span: u64) -> u64 {
        span / 2 + self.below(span - span / 2 + 1)
    }
}

/// Exponential backoff with jitter.
#[derive(Debug)]
pub struct Backoff {
    next: u64,
}

/// First wait, in milliseconds.
const FIRST: u64 = 100;
/// Longest wait, in milliseconds.
const LONGEST: u64 = 30_000;

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// Returns the next wait in milliseconds, about twice as long as the one before.
    pub fn wait(&mut self, jitter: &mut Jitter) -> u64 {
        let span = self.next;
        self.next = (span * 2).min(LONGEST);
        jitter.around(span)
    }

    /// Starts again with the first wait.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_from_100_ms_to_30_s() {
        let mut jitter = Jitter::new(7);
        let mut backoff = Backoff::default();
        for span in [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
            let wait = backoff.wait(&mut jitter);
            assert!((span / 2..=span).contains(&wait), "{wait} of {span}");
        }
        backoff.reset();
        assert!(backoff.wait(&mut jitter) <= 100);
        assert_eq!(jitter.below(0), 0);
    }
}
