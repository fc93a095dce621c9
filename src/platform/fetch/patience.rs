//! How long to wait before asking again, and when to stop asking.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822};
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::Instant;

/// Upper bound of the first pause; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Counts attempts since the last new byte.
#[derive(Debug)]
pub(super) struct Patience {
    longest_pause: Duration,
    give_up_after: Duration,
    /// From the first failure on: a reader who takes his time is no failure.
    gives_up_at: Option<Instant>,
    attempts: u32,
}

impl Patience {
    pub(super) fn new(longest_pause: Duration, give_up_after: Duration) -> Self {
        Self {
            longest_pause,
            give_up_after,
            gives_up_at: None,
            attempts: 0,
        }
    }

    /// A new byte came.
    pub(super) fn progress(&mut self) {
        self.attempts = 0;
        self.gives_up_at = None;
    }

    /// Failed attempts since the last new byte.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// An attempt failed: how long to wait before the next, or `None` when there shall be none. Full
    /// jitter, so that a fleet does not come back in step, on top of what the server asked for; the last
    /// attempt falls on the moment of giving up.
    pub(super) fn pause(&mut self, now: Instant, asked_for: Option<Duration>) -> Option<Duration> {
        let gives_up_at = *self.gives_up_at.get_or_insert(now + self.give_up_after);
        let left = gives_up_at.saturating_duration_since(now);
        if left.is_zero() {
            return None;
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.attempts.min(20));
        self.attempts += 1;
        let jitter = doubled.min(self.longest_pause).mul_f64(dice());
        Some((asked_for.unwrap_or_default() + jitter).min(left))
    }
}

/// A random number from 0 to 1.
fn dice() -> f64 {
    let mut bytes = [0; 4];
    match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX),
        // Without randomness devices are still apart by when they started.
        Err(_) => 0.5,
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date, taken relative to the server's own
/// `Date` so that a wrong clock here does no harm.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let wait = text(RETRY_AFTER)?;
    if let Ok(seconds) = wait.parse::<u32>() {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    let parse = |text: &str| rfc2822::DateTimeParser::new().parse_timestamp(text).ok();
    let until = parse(wait)?;
    let now = text(DATE).and_then(parse).unwrap_or_else(Timestamp::now);
    Some(until.duration_since(now).try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(wait: &str, date: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, wait.parse().unwrap());
        if let Some(date) = date {
            headers.insert(DATE, date.parse().unwrap());
        }
        headers
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_by_the_servers_clock() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        for (wait, seconds) in [
            ("120", Some(120)),
            ("0", Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-5", None),
        ] {
            let found = retry_after(&headers(wait, date));
            assert_eq!(found, seconds.map(Duration::from_secs), "{wait}");
        }
        // Without the server's date it is this device's clock that counts: long past.
        let found = retry_after(&headers("Sun, 06 Nov 1994 08:49:37 GMT", None));
        assert_eq!(found, Some(Duration::ZERO));
    }

    #[test]
    fn pauses_grow_to_the_longest_and_end_when_patience_does() {
        let longest = Duration::from_secs(60);
        let started = Instant::now();
        let mut now = started;
        let mut patience = Patience::new(longest, Duration::from_secs(3600));
        let mut pauses = Vec::new();
        while let Some(pause) = patience.pause(now, None) {
            let bound = FIRST_PAUSE.saturating_mul(1 << pauses.len().min(20));
            assert!(pause <= bound.min(longest), "{pauses:?} {pause:?}");
            now += pause;
            pauses.push(pause);
        }
        assert_eq!(now - started, Duration::from_secs(3600));
        let mean = pauses.iter().sum::<Duration>() / u32::try_from(pauses.len()).unwrap();
        assert!(mean > Duration::from_secs(15), "{mean:?}");
    }

    #[test]
    fn what_the_server_asks_for_is_waited_but_not_longer_than_patience() {
        let seconds = Duration::from_secs;
        let start = Instant::now();
        let mut patience = Patience::new(seconds(1), seconds(100));
        let pause = patience.pause(start, Some(seconds(30))).unwrap();
        assert!((30..=31).contains(&pause.as_secs()), "{pause:?}");
        let pause = patience.pause(start, Some(seconds(1000))).unwrap();
        assert_eq!(pause, seconds(100));
        assert!(patience.pause(start + seconds(100), None).is_none());
        patience.progress();
        assert_eq!(patience.attempts(), 0);
        // However long the reader took before the next failure.
        let later = start + seconds(5000);
        assert!(patience.pause(later, None).is_some());
        assert!(patience.pause(later + seconds(99), None).is_some());
        assert!(patience.pause(later + seconds(100), None).is_none());
    }
}
