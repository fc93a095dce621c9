//! Pauses with jitter, so that a fleet does not act in step.
//!
//! The randomness only has to differ between devices; it protects nothing. It is seeded from outside,
//! which keeps the users of this file deterministic in tests.

use std::time::Duration;

/// A small seeded source of randomness (SplitMix64). Not for secrets.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// The source that `seed` determines.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A duration from `low` to `high`; `low` when `high` is not above it.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        // 53 bits make a fraction in [0, 1) that a double holds exactly.
        #[allow(clippy::cast_precision_loss)]
        let fraction = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        low + high.saturating_sub(low).mul_f64(fraction)
    }

    /// A duration from zero to `high`.
    pub fn up_to(&mut self, high: Duration) -> Duration {
        self.between(Duration::ZERO, high)
    }
}

/// Exponential back-off with full jitter: the n-th pause is a random time up to `first * 2^n`, at most
/// up to `longest`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// Pauses up to `first`, then up to twice that, and so on, never above `longest`.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        let first = first.min(longest);
        Self {
            first,
            longest,
            ceiling: first,
        }
    }

    /// The next pause.
    pub fn pause(&mut self, jitter: &mut Jitter) -> Duration {
        let pause = jitter.up_to(self.ceiling);
        self.ceiling = self.ceiling.saturating_mul(2).min(self.longest);
        pause
    }

    /// A pause of the longest step, for what is unlikely to mend soon: between half of `longest` and
    /// all of it.
    pub fn longest(&mut self, jitter: &mut Jitter) -> Duration {
        self.ceiling = self.longest;
        jitter.between(self.longest / 2, self.longest)
    }

    /// It works again: the next pause is a first one.
    pub fn reset(&mut self) {
        self.ceiling = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_grow_to_the_longest_and_start_over_after_a_reset() {
        let mut jitter = Jitter::seeded(7);
        let mut backoff = Backoff::new(SECOND, SECOND * 8);
        for ceiling in [1, 2, 4, 8, 8, 8] {
            let (mut probe, mut top) = (backoff.clone(), Duration::ZERO);
            for _ in 0..200 {
                probe.ceiling = backoff.ceiling;
                let pause = probe.pause(&mut jitter);
                assert!(pause <= SECOND * ceiling);
                top = top.max(pause);
            }
            assert!(top > SECOND * ceiling / 2, "the jitter uses the whole step");
            backoff.pause(&mut jitter);
        }
        backoff.reset();
        assert!(backoff.pause(&mut jitter) <= SECOND);
        assert!(backoff.longest(&mut jitter) >= SECOND * 4);
    }

    #[test]
    fn two_seeds_give_two_sequences() {
        let sequence = |seed| {
            let mut jitter = Jitter::seeded(seed);
            [(); 4].map(|()| jitter.up_to(SECOND))
        };
        assert_ne!(sequence(1), sequence(2));
        assert_eq!(sequence(1), sequence(1));
    }
}
