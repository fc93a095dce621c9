//! Tells a hub that closes a connection now and then from another client that uses the same identity: each
//! connection of the one ends that of the other, for ever. Pure.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Connections shorter than this, so many in a row, are ended by someone who wants the connection back at once.
const SHORT: (Duration, u32) = (Duration::from_secs(10), 3);

/// So many ended within this time are ended by someone who waits longer. A hub that is moved or restarted does it
/// once or twice.
const OFTEN: (Duration, usize) = (Duration::from_secs(20 * 60), 5);

/// The recent connections that the other side ended.
#[derive(Debug, Default)]
pub(super) struct Contest {
    short_in_a_row: u32,
    ends: VecDeque<Instant>,
}

impl Contest {
    /// The other side ended a connection that `stood`, now. How many it were of late, if they show another client.
    pub(super) fn ended(&mut self, stood: Duration, now: Instant) -> Option<usize> {
        self.short_in_a_row = match stood < SHORT.0 {
            true => self.short_in_a_row.saturating_add(1),
            false => 0,
        };
        self.ends.push_back(now);
        self.ends
            .retain(|end| now.saturating_duration_since(*end) < OFTEN.0);
        let shown = self.short_in_a_row >= SHORT.1 || self.ends.len() >= OFTEN.1;
        shown.then_some(self.ends.len())
    }

    /// The network itself is in trouble, so what ended before may have been its doing.
    pub(super) fn network_failed(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_client_that_wants_the_connection_back_is_noticed_however_long_it_waits() {
        // Stood, then our pause.
        for (stood, pause, after) in [(0, 1, 3), (9, 4, 3), (15, 60, 5), (60, 1, 5), (240, 1, 5)] {
            let mut contest = Contest::default();
            let mut now = Instant::now();
            let mut ends = 0;
            loop {
                now += SECOND * (stood + pause);
                ends += 1;
                if contest.ended(SECOND * stood, now).is_some() {
                    break;
                }
            }
            assert_eq!(ends, after, "{stood} s");
        }
    }

    #[test]
    fn a_hub_that_closes_now_and_then_is_not_one() {
        let mut contest = Contest::default();
        let mut now = Instant::now();
        for _ in 0..100 {
            now += SECOND * 400;
            assert_eq!(contest.ended(SECOND * 399, now), None);
        }
        assert!(
            contest.ends.len() <= 4,
            "what was long ago is not remembered"
        );
    }

    #[test]
    fn a_network_that_comes_and_goes_is_not_one() {
        let mut contest = Contest::default();
        let mut now = Instant::now();
        for _ in 0..10 {
            now += SECOND * 5;
            assert_eq!(contest.ended(SECOND * 4, now), None);
            now += SECOND * 5;
            assert_eq!(contest.ended(SECOND * 4, now), None);
            contest.network_failed();
        }
    }
}
