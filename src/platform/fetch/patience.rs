//! How long to wait before asking again, when to stop asking, and what is too slow to be worth waiting for.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822};
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::Instant;

/// Upper bound of the first pause; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Fewer bytes a second, on average over a window of waiting, are no progress: else a server that drips one byte
/// before each time limit would hold the device for ever.
const LEAST_RATE: u64 = 1024;
/// The window, in silences (`fetch.read_timeout`): a slow link may have a bad minute.
const WINDOW: u32 = 10;

/// Counts attempts since the last new byte, and what comes while it is waited for.
#[derive(Debug)]
pub(super) struct Patience {
    longest_pause: Duration,
    give_up_after: Duration,
    /// From the first failure on: a reader who takes his time is no failure.
    gives_up_at: Option<Instant>,
    attempts: u32,
    /// New bytes since that failure.
    new_bytes: u64,
    window: Duration,
    /// Since the last judgement on the rate: how long was waited, and what came.
    waited: Duration,
    came: u64,
}

impl Patience {
    pub(super) fn new(
        longest_pause: Duration,
        give_up_after: Duration,
        longest_silence: Duration,
    ) -> Self {
        Self {
            longest_pause,
            give_up_after,
            gives_up_at: None,
            attempts: 0,
            new_bytes: 0,
            window: longest_silence * WINDOW,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// What a window must bring.
    fn least(&self) -> u64 {
        let bytes = u128::from(LEAST_RATE) * self.window.as_millis() / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// New bytes came. As many as a window must bring are a new start; fewer only make the next pause short.
    pub(super) fn progress(&mut self, bytes: u64) {
        self.attempts = 0;
        self.new_bytes = self.new_bytes.saturating_add(bytes);
        if self.new_bytes >= self.least() {
            self.gives_up_at = None;
        }
    }

    /// It was waited for the server; the time that a reader takes does not count.
    pub(super) fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Bytes came, whether new or sent again.
    pub(super) fn received(&mut self, bytes: u64) {
        self.came = self.came.saturating_add(bytes);
    }

    /// Once a window, if too little came in it: how many bytes, and in how long.
    pub(super) fn too_slow(&mut self) -> Option<(u64, Duration)> {
        if self.waited < self.window {
            return None;
        }
        let window = (
            std::mem::take(&mut self.came),
            std::mem::take(&mut self.waited),
        );
        (window.0 < self.least()).then_some(window)
    }

    /// Failed attempts since the last new byte.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// An attempt failed: how long to wait before the next, or `None` when there shall be none. Full
    /// jitter, so that a fleet does not come back in step, on top of what the server asked for; the last
    /// attempt falls on the moment of giving up.
    pub(super) fn pause(&mut self, now: Instant, asked_for: Option<Duration>) -> Option<Duration> {
        if self.gives_up_at.is_none() {
            self.new_bytes = 0;
        }
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

    const SILENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_drip_is_too_slow_once_a_window_and_a_slow_link_is_not() {
        let seconds = Duration::from_secs;
        // Bytes that come after each second of waiting, and how often that is too slow within the hour.
        for (rate, times) in [(0, 6), (1, 6), (1023, 6), (1024, 0), (100_000, 0)] {
            let mut patience = Patience::new(seconds(60), seconds(3600), SILENCE);
            let mut verdicts = Vec::new();
            for _ in 0..3600 {
                patience.waited(seconds(1));
                patience.received(rate);
                verdicts.extend(patience.too_slow());
            }
            assert_eq!(verdicts, vec![(rate * 600, seconds(600)); times], "{rate}");
        }
        // Nine silent minutes and then a good one are a bad link, but one that works.
        let mut patience = Patience::new(seconds(60), seconds(3600), SILENCE);
        patience.waited(seconds(540));
        patience.received(700_000);
        patience.waited(seconds(60));
        assert_eq!(patience.too_slow(), None);
    }

    #[test]
    fn a_drip_does_not_put_off_the_moment_of_giving_up() {
        let seconds = Duration::from_secs;
        let mut patience = Patience::new(seconds(60), seconds(3600), SILENCE);
        let (start, mut now) = (Instant::now(), Instant::now());
        loop {
            for _ in 0..11 {
                now += seconds(59);
                patience.waited(seconds(59));
                patience.received(1);
                patience.progress(1);
            }
            patience.too_slow().unwrap();
            let Some(pause) = patience.pause(now, None) else {
                break;
            };
            now += pause;
        }
        assert!(
            now - start < seconds(3600 + 2 * 11 * 60),
            "{:?}",
            now - start
        );
    }

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
        let mut patience = Patience::new(longest, Duration::from_secs(3600), SILENCE);
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
        let mut patience = Patience::new(seconds(1), seconds(100), SILENCE);
        let pause = patience.pause(start, Some(seconds(30))).unwrap();
        assert!((30..=31).contains(&pause.as_secs()), "{pause:?}");
        let pause = patience.pause(start, Some(seconds(1000))).unwrap();
        assert_eq!(pause, seconds(100));
        assert!(patience.pause(start + seconds(100), None).is_none());
        // Some bytes make the next pause short, but only as many as a window must bring are a new start.
        patience.progress(patience.least() - 1);
        assert_eq!(patience.attempts(), 0);
        assert!(patience.pause(start + seconds(100), None).is_none());
        patience.progress(1);
        // However long the reader took before the next failure.
        let later = start + seconds(5000);
        assert!(patience.pause(later, None).is_some());
        assert!(patience.pause(later + seconds(99), None).is_some());
        assert!(patience.pause(later + seconds(100), None).is_none());
    }
}
