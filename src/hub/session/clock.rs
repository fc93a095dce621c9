//! Notices that the wall clock was set, by comparing it with the monotonic one. Pure.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// A difference that no drift explains.
const JUMP: Duration = Duration::from_secs(60);

/// Compares two clocks.
#[derive(Debug)]
pub(super) struct ClockWatch {
    wall: Timestamp,
    monotonic: Instant,
}

impl ClockWatch {
    pub(super) fn new(wall: Timestamp, monotonic: Instant) -> Self {
        Self { wall, monotonic }
    }

    /// True once for each time the wall clock was set by more than a minute.
    pub(super) fn jumped(&mut self, wall: Timestamp, monotonic: Instant) -> bool {
        let elapsed = monotonic.saturating_duration_since(self.monotonic);
        let shown = wall.duration_since(self.wall);
        let off = shown - jiff::SignedDuration::try_from(elapsed).unwrap_or_default();
        *self = Self { wall, monotonic };
        off.unsigned_abs() > JUMP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_noticed_once_and_time_passing_is_not() {
        let (wall, start) = (Timestamp::UNIX_EPOCH, Instant::now());
        let hour = Duration::from_secs(3600);
        let mut watch = ClockWatch::new(wall, start);
        assert!(!watch.jumped(wall + hour, start + hour));
        assert!(watch.jumped(wall + hour * 100, start + hour));
        assert!(!watch.jumped(wall + hour * 101, start + hour * 2));
        assert!(watch.jumped(wall, start + hour * 2), "also backwards");
        assert!(!watch.jumped(wall + Duration::from_secs(30), start + hour * 2));
    }
}
