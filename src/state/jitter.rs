//! Randomness that nobody has to guess: to spread what would else come at once. Not for secrets.

/// A small generator (xorshift64*), seeded from outside.
#[derive(Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A generator; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        number.checked_rem(bound).unwrap_or(0)
    }

    /// Between half of `span` and all of it.
    pub fn around(&mut self, span: u64) -> u64 {
        span / 2 + self.below(span - span / 2 + 1)
    }
}

/// Exponential backoff with jitter.
#[derive(Debug)]
pub struct Backoff {
    next: u64,
}

/// The first wait, in milliseconds.
const FIRST: u64 = 100;
/// The longest wait, in milliseconds.
const LONGEST: u64 = 30_000;

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// How long to wait now, in milliseconds; twice that, about, the next time.
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
    fn grows_from_a_tenth_of_a_second_to_half_a_minute() {
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
