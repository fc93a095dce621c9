//! How fast an update goes, for `STATUS=`: image bytes a second over the last moments. Pure; the time is passed in.

use std::time::Duration;

use crate::update::{
    pace,
    status::{Stage, UpdateReport},
};

/// Long enough for a steady figure, short enough to show a stall.
const WINDOW: Duration = Duration::from_secs(10);

/// What was seen of one stage of one update.
#[derive(Debug)]
pub struct Pace(pace::Pace<(String, Stage)>);

impl Default for Pace {
    fn default() -> Self {
        Self(pace::Pace::over(WINDOW))
    }
}

impl Pace {
    /// Takes in what the status says at `now`, and gives the pace in bytes a second: of the image, as they come to lie in
    /// the slot (downloading) or are read back (downloadComplete). `None` in other stages, and as long as nothing can
    /// be said.
    pub fn observe(&mut self, now: Duration, update: Option<&UpdateReport>) -> Option<u64> {
        let update = update.filter(|update| {
            matches!(update.stage, Stage::Downloading | Stage::DownloadComplete)
        })?;
        let of = (update.id.clone(), update.stage);
        self.0.see(of, update.progress.bytes_done, now)
    }
}

/// `3.4 MB/s`, `120 kB/s`.
#[must_use]
pub fn rate(bytes_a_second: u64) -> String {
    let kilo = bytes_a_second / 1000;
    match kilo {
        0..1000 => format!("{kilo} kB/s"),
        _ => format!("{}.{} MB/s", kilo / 1000, kilo % 1000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::{
        request::Origin,
        slot::Slot,
        status::{Progress, Times},
    };

    fn update(id: &str, stage: Stage, bytes_done: u64) -> UpdateReport {
        UpdateReport {
            id: id.to_owned(),
            origin: Origin::Method,
            uri: "https://images.example/x".to_owned(),
            target: Slot::B,
            version: None,
            from_version: None,
            stage,
            detail: None,
            progress: Progress {
                bytes_done,
                ..Progress::default()
            },
            times: Times::default(),
            error: None,
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_pace_is_that_of_the_last_ten_seconds_and_a_stall_brings_it_to_nothing() {
        let mut pace = Pace::default();
        let mut at = |second, bytes| {
            pace.observe(
                seconds(second),
                Some(&update("u", Stage::Downloading, bytes)),
            )
        };
        assert_eq!(at(0, 0), None);
        assert_eq!(at(2, 4_000_000), Some(2_000_000));
        assert_eq!(at(10, 20_000_000), Some(2_000_000));
        // Slower since: what was before the window no longer counts.
        assert_eq!(at(20, 21_000_000), Some(100_000));
        assert_eq!(at(40, 21_000_000), Some(0));
    }

    #[test]
    fn another_stage_another_update_or_a_new_beginning_is_measured_anew() {
        let mut pace = Pace::default();
        let first = update("u", Stage::Downloading, 5_000);
        assert_eq!(pace.observe(seconds(0), Some(&first)), None);
        assert_eq!(pace.observe(seconds(1), Some(&first)), Some(0));
        let read_back = update("u", Stage::DownloadComplete, 9_000);
        assert_eq!(pace.observe(seconds(2), Some(&read_back)), None);
        assert_eq!(pace.observe(seconds(3), Some(&read_back)), Some(0));
        let again = update("u", Stage::DownloadComplete, 0);
        assert_eq!(pace.observe(seconds(4), Some(&again)), None);
        let second = update("v", Stage::DownloadComplete, 0);
        assert_eq!(pace.observe(seconds(9), Some(&second)), None);
        for idle in [None, Some(&update("v", Stage::Trial, 7))] {
            assert_eq!(pace.observe(seconds(20), idle), None);
        }
    }

    #[test]
    fn it_is_written_in_decimal_units() {
        assert_eq!(rate(0), "0 kB/s");
        assert_eq!(rate(999_999), "999 kB/s");
        assert_eq!(rate(3_456_000), "3.4 MB/s");
    }
}
