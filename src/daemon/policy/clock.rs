//! The time for the policy, and whether it can be relied on: a board without a battery for its clock starts at the time of
//! its last shutdown, or earlier, until a time server is reached.

use std::{fs, path::Path};

use jiff::{Timestamp, tz::TimeZone};

use crate::{
    hub::credentials::check_clock,
    platform::service_manager,
    update::policy::{Clock, Rules},
};

/// Seconds by which a clock that was set from the battery-backed one may be off it.
const CLOSE: i64 = 60;

/// Reads the clock; what was found right once is not asked for again.
#[derive(Debug, Default)]
pub(super) struct ClockReader {
    was_set: bool,
}

impl ClockReader {
    pub(super) async fn read(&mut self, rules: &Rules) -> Clock {
        // Only windows depend on it.
        if !rules.windows.0.is_empty() && !self.was_set {
            let synchronised = service_manager::clock_is_synchronised().await;
            self.was_set = is_set(Timestamp::now(), synchronised.ok(), battery_backed());
        }
        Clock {
            now: Timestamp::now(),
            zone: rules.time_zone.clone().unwrap_or_else(TimeZone::system),
            is_set: self.was_set,
        }
    }
}

/// Whether `now` is the time: it was synchronised, or is that of a battery-backed clock. Where nobody can say whether it was
/// synchronised, it need only be possible.
fn is_set(now: Timestamp, synchronised: Option<bool>, battery_backed: Option<i64>) -> bool {
    let is_close = |seconds: i64| (now.as_second() - seconds).abs() <= CLOSE;
    check_clock(now).is_ok()
        && (synchronised.unwrap_or(true) || battery_backed.is_some_and(is_close))
}

/// What the clock shows that the kernel set its own from at boot, in Unix seconds.
fn battery_backed() -> Option<i64> {
    let read = |file: &Path| fs::read_to_string(file).ok();
    fs::read_dir("/sys/class/rtc")
        .ok()?
        .flatten()
        .find_map(|clock| {
            let was_used = read(&clock.path().join("hctosys"))?.trim() == "1";
            let seconds = read(&clock.path().join("since_epoch"))?
                .trim()
                .parse()
                .ok()?;
            was_used.then_some(seconds)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_set_by_a_time_server_or_a_battery_and_never_in_the_past() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let shows = now.as_second();
        assert!(is_set(now, Some(true), None));
        assert!(is_set(now, None, None), "nobody can say");
        assert!(is_set(now, Some(false), Some(shows - 60)));
        assert!(!is_set(now, Some(false), None), "no battery, no network");
        assert!(!is_set(now, Some(false), Some(61)), "its battery is empty");
        let past = "1970-01-01T00:01:00Z".parse().unwrap();
        assert!(!is_set(past, Some(true), Some(60)));
        assert!(!is_set(past, None, None));
    }
}
