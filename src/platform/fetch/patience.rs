//! How long to wait before asking again, when to stop asking, and what is too slow to be worth waiting for.
//! Pure: the time comes from the caller.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822};
use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::Instant;

/// Upper bound of the first pause; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest `Retry-After` that is heeded: a server's mistake must not silence a device for days.
const LONGEST_ASKED_FOR: Duration = Duration::from_secs(30 * 60);

/// Fewer bytes a second, on average over a window of waiting, are no progress: else a server that drips one byte
/// before each time limit would hold the device for ever.
const LEAST_RATE: u64 = 1024;
/// The window, in silences (`fetch.read_timeout`): a slow link may have a bad minute.
const WINDOW: u32 = 10;

/// What comes while it is waited for.
#[derive(Debug)]
struct Window {
    length: Duration,
    /// What it must bring.
    least: u64,
    /// Since the last judgement: how long was waited, and what came.
    waited: Duration,
    came: u64,
}

impl Window {
    fn new(longest_silence: Duration, rate: u64) -> Self {
        let length = longest_silence * WINDOW;
        let least = u128::from(rate) * length.as_millis() / 1000;
        Self {
            length,
            least: u64::try_from(least).unwrap_or(u64::MAX),
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// Once a window, if too little came in it: how many bytes, and in how long.
    fn too_slow(&mut self) -> Option<(u64, Duration)> {
        if self.waited < self.length {
            return None;
        }
        let window = (
            std::mem::take(&mut self.came),
            std::mem::take(&mut self.waited),
        );
        (window.0 < self.least).then_some(window)
    }
}

/// What the downloads of one update may cost together in time: each of many small ranges would else begin with
/// a patience of its own, and a server that never gives anything whole would hold the device for ever.
#[derive(Debug)]
pub(super) struct Budget {
    give_up_after: Duration,
    /// From the first failure on: a reader who takes his time is no failure.
    gives_up_at: Option<Instant>,
    /// New bytes since that failure.
    new_bytes: u64,
    window: Window,
    /// Until when waiting was counted: time that several wait at once counts once.
    counted: Option<Instant>,
}

impl Budget {
    pub(super) fn new(give_up_after: Duration, longest_silence: Duration) -> Self {
        Self {
            give_up_after,
            gives_up_at: None,
            new_bytes: 0,
            window: Window::new(longest_silence, LEAST_RATE),
            counted: None,
        }
    }

    /// New bytes came. As many as a window must bring are a new start; fewer only make the next pause short.
    pub(super) fn progress(&mut self, bytes: u64) {
        self.new_bytes = self.new_bytes.saturating_add(bytes);
        if self.new_bytes >= self.window.least {
            self.gives_up_at = None;
        }
    }

    /// It was waited for a server from `began` on; the time that a reader takes does not count.
    pub(super) fn waited(&mut self, began: Instant, until: Instant) {
        let from = self.counted.map_or(began, |counted| counted.max(began));
        self.window.waited += until.saturating_duration_since(from);
        self.counted = self.counted.max(Some(until));
    }

    /// Bytes came, whether new or sent again.
    pub(super) fn received(&mut self, bytes: u64) {
        self.window.came = self.window.came.saturating_add(bytes);
    }

    /// See [`Patience::too_slow`], of all downloads together.
    pub(super) fn too_slow(&mut self) -> Option<(u64, Duration)> {
        self.window.too_slow()
    }

    /// An attempt failed: for how long it may still be tried; zero when no longer.
    pub(super) fn left(&mut self, now: Instant) -> Duration {
        if self.gives_up_at.is_none() {
            self.new_bytes = 0;
        }
        let gives_up_at = *self.gives_up_at.get_or_insert(now + self.give_up_after);
        gives_up_at.saturating_duration_since(now)
    }
}

/// Counts one download's attempts since its last new byte, and what comes while it is waited for.
#[derive(Debug)]
pub(super) struct Patience {
    longest_pause: Duration,
    attempts: u32,
    window: Window,
}

impl Patience {
    /// `connections`: how many share the least rate.
    pub(super) fn new(
        longest_pause: Duration,
        longest_silence: Duration,
        connections: usize,
    ) -> Self {
        let share = LEAST_RATE / u64::try_from(connections.max(1)).unwrap_or(u64::MAX);
        Self {
            longest_pause,
            attempts: 0,
            window: Window::new(longest_silence, share),
        }
    }

    /// A new byte came.
    pub(super) fn progress(&mut self) {
        self.attempts = 0;
    }

    /// See [`Budget::waited`].
    pub(super) fn waited(&mut self, time: Duration) {
        self.window.waited += time;
    }

    /// Bytes came, whether new or sent again.
    pub(super) fn received(&mut self, bytes: u64) {
        self.window.came = self.window.came.saturating_add(bytes);
    }

    /// Once a window, if too little came in it: how many bytes, and in how long.
    pub(super) fn too_slow(&mut self) -> Option<(u64, Duration)> {
        self.window.too_slow()
    }

    /// Failed attempts since the last new byte.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// An attempt failed and there is time `left`: how long to wait before the next. Full jitter, so that a
    /// fleet does not come back in step, on top of what the server asked for; the last attempt falls on the
    /// moment of giving up.
    pub(super) fn pause(&mut self, left: Duration, asked_for: Option<Duration>) -> Duration {
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.attempts.min(20));
        self.attempts += 1;
        let jitter = doubled.min(self.longest_pause).mul_f64(dice());
        let asked_for = asked_for.unwrap_or_default().min(LONGEST_ASKED_FOR);
        (asked_for + jitter).min(left)
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
    let wait = text(headers, RETRY_AFTER)?;
    if wait.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has are a long time too.
        let seconds = wait.parse::<u32>().unwrap_or(u32::MAX);
        return (!wait.is_empty()).then(|| Duration::from_secs(seconds.into()));
    }
    let until = http_date(wait)?;
    Some(
        until
            .duration_since(server_time(headers))
            .try_into()
            .unwrap_or_default(),
    )
}

/// What time it is by the server's clock, or by this device's where the server says nothing.
pub(super) fn server_time(headers: &HeaderMap) -> Timestamp {
    text(headers, DATE)
        .and_then(http_date)
        .unwrap_or_else(Timestamp::now)
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn http_date(text: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[cfg(test)]
mod tests;
