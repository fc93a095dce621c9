//! The bandwidth limit (`fetch.rate_limit`): one bucket that all downloads of the daemon draw from.
//!
//! Guarantees: over any time T, at most rate x (T + [`CREDIT`]) bytes plus one piece for each download are read.
//! Bytes are paid for after they came, by waiting before the next read; what the server sends meanwhile fills
//! the receive window, which is what slows it down. Who came first reads first, so downloads share evenly.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// What an idle time may save up: enough to hide that timers are late, too little to be a burst.
const CREDIT: Duration = Duration::from_millis(100);

/// A limit, shared by reference.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_second: u64,
    /// Until when everything that came is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Rate {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            paid: Mutex::new(None),
        }
    }

    /// `bytes` came at `now`: from when on whoever got them may read again.
    pub(super) fn take(&self, bytes: u64, now: Instant) -> Instant {
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let start = paid.map_or(now, |paid| paid.max(earliest));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let until = start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *paid = Some(until);
        until
    }

    /// From when on a new request may be sent: many small files must not outrun the limit.
    pub(super) fn free_at(&self) -> Option<Instant> {
        *self.paid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lets downloads read pieces for so many simulated seconds; when which of them read how much.
    fn simulate(seconds: u64, rate: u64, pieces: &[u64]) -> Vec<(Duration, usize, u64)> {
        let bucket = Rate::new(rate);
        let start = Instant::now();
        let mut next = vec![start; pieces.len()];
        let mut read = Vec::new();
        loop {
            let (who, &now) = next.iter().enumerate().min_by_key(|(_, at)| **at).unwrap();
            if now - start > Duration::from_secs(seconds) {
                return read;
            }
            read.push((now - start, who, pieces[who]));
            next[who] = bucket.take(pieces[who], now).max(now);
        }
    }

    #[test]
    fn downloads_share_the_limit_and_none_starves() {
        let rate = 100_000;
        let read = simulate(600, rate, &[16_384, 16_384, 16_384, 16_384]);
        let all: u64 = read.iter().map(|(_, _, bytes)| bytes).sum();
        let expected = rate * 600;
        assert!(all.abs_diff(expected) < 5 * 16_384 + rate / 10, "{all}");
        for who in 0..4 {
            let own: u64 = read.iter().filter(|r| r.1 == who).map(|r| r.2).sum();
            assert!(
                own.abs_diff(expected / 4) < 2 * 16_384 + rate / 10,
                "{who}: {own}"
            );
        }
    }

    #[test]
    fn what_was_not_used_is_not_made_up_for() {
        let bucket = Rate::new(1000);
        let start = Instant::now();
        assert_eq!(bucket.free_at(), None);
        assert_eq!(bucket.take(500, start), start + Duration::from_millis(500));
        // Ten minutes later: a tenth of a second is all that was saved.
        let later = start + Duration::from_secs(600);
        assert_eq!(bucket.take(500, later), later + Duration::from_millis(400));
        // Two who come at once wait one after the other.
        assert_eq!(bucket.take(500, later), later + Duration::from_millis(900));
        assert_eq!(bucket.free_at(), Some(later + Duration::from_millis(900)));
    }

    proptest! {
        #[test]
        fn no_second_is_over_the_limit_by_more_than_a_piece_for_each(
            rate in 16_384_u64..10_000_000,
            pieces in prop::collection::vec(1000_u64..65_536, 1..6),
        ) {
            let read = simulate(3, rate, &pieces);
            let slack = rate / 10 + pieces.iter().sum::<u64>();
            for (index, (from, ..)) in read.iter().enumerate().step_by(read.len() / 20 + 1) {
                let within = |at: &Duration| *at <= *from + Duration::from_secs(1);
                let bytes: u64 = read[index..].iter().take_while(|r| within(&r.0)).map(|r| r.2).sum();
                prop_assert!(bytes <= rate + slack, "{bytes} in the second from {from:?}");
            }
        }
    }
}
