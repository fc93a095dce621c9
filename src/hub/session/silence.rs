//! Notices a connection on which nothing comes any more, which TCP alone would not for a quarter of an hour. Pure.
//!
//! A question that is not answered proves nothing: a hub that throttles takes its time. So it leads to a test of the
//! connection, and only a test that stays unanswered ends it.

use std::time::{Duration, Instant};

/// A hub that is there answers a test within this time.
const LONGEST: Duration = Duration::from_secs(30);

/// A network in trouble may need this.
const SHORTEST: Duration = Duration::from_secs(5);

/// How long a question may stay unanswered until the connection is tested.
const UNTESTED: Duration = Duration::from_secs(10);

/// Follows what was asked of the other side and whether anything came since.
#[derive(Debug)]
pub(super) struct Silence {
    patience: Duration,
    waiting: Option<Waiting>,
}

/// For anything to come.
#[derive(Debug, Clone, Copy)]
enum Waiting {
    /// Since the first question after which nothing came.
    Question(Instant),
    /// Since the connection was tested.
    Test(Instant),
}

impl Silence {
    /// With a test every `keep_alive`, a dead connection is noticed within one and a half of it (when that is at
    /// least 10 s), and within 40 s when something else waits for its answer.
    pub(super) fn new(keep_alive: Duration) -> Self {
        Self {
            patience: (keep_alive / 2).clamp(SHORTEST, LONGEST),
            waiting: None,
        }
    }

    /// How long a test may stay unanswered.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Something was sent that must be answered.
    pub(super) fn asked(&mut self, now: Instant) {
        self.waiting.get_or_insert(Waiting::Question(now));
    }

    /// A PINGREQ was sent.
    pub(super) fn tested(&mut self, now: Instant) {
        if !self.is_tested() {
            self.waiting = Some(Waiting::Test(now));
        }
    }

    /// Something came: the other side is there.
    pub(super) fn heard(&mut self) {
        self.waiting = None;
    }

    /// Whether a test is under way: then its deadline is the connection's end, else a test is due.
    pub(super) fn is_tested(&self) -> bool {
        matches!(self.waiting, Some(Waiting::Test(_)))
    }

    /// When something is to be done if nothing comes until then.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.map(|waiting| match waiting {
            Waiting::Question(since) => since + UNTESTED,
            Waiting::Test(since) => since + self.patience,
        })
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
            silence.tested(start + keep_alive);
            assert!(silence.is_tested());
            assert!(silence.deadline().unwrap() <= start + keep_alive * 3 / 2);
            assert!(silence.patience() <= Duration::from_secs(30));
        }
    }

    #[test]
    fn a_question_without_answer_leads_to_a_test_and_anything_that_comes_ends_both() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut silence = Silence::new(second * 60);
        silence.asked(start);
        silence.asked(start + second * 5);
        assert_eq!(silence.deadline(), Some(start + second * 10));
        assert!(!silence.is_tested());
        silence.tested(start + second * 10);
        silence.asked(start + second * 20);
        silence.tested(start + second * 30);
        assert!(silence.is_tested());
        assert_eq!(silence.deadline(), Some(start + second * 40));
        silence.heard();
        assert_eq!(silence.deadline(), None);
        silence.asked(start + second * 50);
        assert!(!silence.is_tested());
        assert_eq!(silence.deadline(), Some(start + second * 60));
    }
}
