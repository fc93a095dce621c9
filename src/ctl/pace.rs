//! How fast an update goes and how long its stage still takes, by what was seen of it. Pure: times are passed in.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::output::bytes;

/// The speed is that of the last so long: steady enough to read, soon enough to tell of a change.
const WINDOW: Duration = Duration::from_secs(15);
/// Over less than this it would be chance.
const LEAST: Duration = Duration::from_secs(1);

/// What was seen of one stage.
#[derive(Debug, Default)]
pub(super) struct Pace {
    stage: String,
    seen: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// At `now`, `done` of `total` bytes of `stage` are done. Gives `12.3 MB/s, 1 min 20 s left`; nothing while that
    /// cannot be told.
    pub(super) fn see(
        &mut self,
        stage: &str,
        (done, total): (u64, u64),
        now: Instant,
    ) -> Option<String> {
        let backwards = self.seen.back().is_some_and(|(_, before)| done < *before);
        if stage != self.stage || backwards {
            stage.clone_into(&mut self.stage);
            self.seen.clear();
        }
        self.seen.push_back((now, done));
        // The one before the window begins is its beginning.
        while (self.seen.get(1)).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.seen.pop_front();
        }
        let (since, before) = *self.seen.front()?;
        let took = now.duration_since(since);
        if took < LEAST {
            return None;
        }
        let a_second = u128::from(done - before) * 1000 / took.as_millis();
        let speed = format!("{}/s", bytes(u64::try_from(a_second).unwrap_or(u64::MAX)));
        let left = u128::from(total.saturating_sub(done)).checked_div(a_second);
        Some(match left {
            Some(left) => format!("{speed}, {} left", spoken(left)),
            None => speed,
        })
    }
}

/// `45 s`, `1 min 20 s`, `2 h 5 min`.
fn spoken(seconds: u128) -> String {
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
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut at = |seconds: u64, done: u64| {
            let now = start + Duration::from_secs(seconds);
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
        let start = Instant::now();
        let mut pace = Pace::default();
        let mut at = |seconds: u64, stage: &str, done: u64| {
            let now = start + Duration::from_secs(seconds);
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
