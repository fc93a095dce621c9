//! How fast an update goes and how long its stage still takes, by what was seen of it. Pure: times are passed in.

use std::time::Duration;

use super::output::bytes;
use crate::update::pace;

/// Steady enough to read, soon enough to tell of a change.
const WINDOW: Duration = Duration::from_secs(15);

/// What was seen of one stage.
#[derive(Debug)]
pub(super) struct Pace(pace::Pace<String>);

impl Default for Pace {
    fn default() -> Self {
        Self(pace::Pace::over(WINDOW))
    }
}

impl Pace {
    /// At `now`, `done` of `total` bytes of `stage` are done. Gives `12.3 MB/s, 1 min 20 s left`; nothing while that
    /// cannot be told.
    pub(super) fn see(
        &mut self,
        stage: &str,
        (done, total): (u64, u64),
        now: Duration,
    ) -> Option<String> {
        let a_second = self.0.see(stage.to_owned(), done, now)?;
        let speed = format!("{}/s", bytes(a_second));
        Some(match total.saturating_sub(done).checked_div(a_second) {
            Some(left) => format!("{speed}, {} left", spoken(left)),
            None => speed,
        })
    }
}

/// `45 s`, `1 min 20 s`, `2 h 5 min`.
fn spoken(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    #[test]
    fn speed_and_time_left_follow_the_last_seconds() {
        let mut pace = Pace::default();
        let mut at = |seconds: u64, done: u64| {
            let now = Duration::from_secs(seconds);
            pace.see("downloading", (done * MB, 300 * MB), now)
        };
        assert_eq!(at(0, 0), None);
        assert_eq!(at(10, 20).as_deref(), Some("2.0 MB/s, 2 min 20 s left"));
        assert_eq!(at(20, 120).as_deref(), Some("6.0 MB/s, 30 s left"));
        // What lies long behind counts no more.
        assert_eq!(at(30, 220).as_deref(), Some("10.0 MB/s, 8 s left"));
        assert_eq!(at(60, 220).as_deref(), Some("0 B/s"));
    }

    #[test]
    fn another_stage_or_a_new_beginning_is_measured_anew() {
        let mut pace = Pace::default();
        let mut at = |seconds: u64, stage: &str, done: u64| {
            let now = Duration::from_secs(seconds);
            pace.see(stage, (done, 100), now)
        };
        at(0, "downloading", 0);
        assert!(at(2, "downloading", 50).is_some());
        assert_eq!(at(4, "downloadComplete", 50), None);
        assert!(at(6, "downloadComplete", 60).is_some());
        assert_eq!(at(8, "downloadComplete", 10), None);
    }

    #[test]
    fn times_are_spoken_in_two_units() {
        let times = [0, 59, 60, 3599, 3600, 7500].map(spoken);
        let expected = [
            "0 s",
            "59 s",
            "1 min 0 s",
            "59 min 59 s",
            "1 h 0 min",
            "2 h 5 min",
        ];
        assert_eq!(times, expected);
    }
}
