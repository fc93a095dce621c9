//! Notices a connection on which nothing comes any more, which TCP alone would not for a quarter of an hour. Pure.

use std::time::{Duration, Instant};

/// A hub that is there answers within this time, whatever was asked.
const LONGEST: Duration = Duration::from_secs(30);

/// A network in trouble may need this.
const SHORTEST: Duration = Duration::from_secs(5);

/// Follows what was asked of the other side and whether anything came since.
#[derive(Debug)]
pub(super) struct Silence {
    patience: Duration,
    /// When the first question was asked after which nothing came.
    since: Option<Instant>,
}

impl Silence {
    /// With a ping every `keep_alive`, a dead connection is noticed within one and a half of it (when that is at
    /// least 10 s), and within 30 s when something else waits for its answer.
    pub(super) fn new(keep_alive: Duration) -> Self {
        let patience = (keep_alive / 2).clamp(SHORTEST, LONGEST);
        Self {
            patience,
            since: None,
        }
    }

    /// How long it waits.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Something was sent that must be answered.
    pub(super) fn asked(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// Something came: the other side is there.
    pub(super) fn heard(&mut self) {
        self.since = None;
    }

    /// When the connection counts as dead if nothing comes until then.
    pub(super) fn deadline(&self) -> Option<Instant> {
        Some(self.since? + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_connection_is_noticed_within_one_and_a_half_keep_alives() {
        let start = Instant::now();
        for seconds in [10, 60, 180, 230] {
            let keep_alive = Duration::from_secs(seconds);
            let mut silence = Silence::new(keep_alive);
            assert_eq!(silence.deadline(), None, "nothing was asked");
            silence.asked(start + keep_alive);
            assert!(silence.deadline().unwrap() <= start + keep_alive * 3 / 2);
            assert!(silence.patience() <= Duration::from_secs(30));
        }
    }

    #[test]
    fn the_first_question_counts_until_anything_comes() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut silence = Silence::new(second * 60);
        silence.asked(start);
        silence.asked(start + second * 20);
        assert_eq!(silence.deadline(), Some(start + second * 30));
        silence.heard();
        assert_eq!(silence.deadline(), None);
        silence.asked(start + second * 40);
        assert_eq!(silence.deadline(), Some(start + second * 70));
    }
}
