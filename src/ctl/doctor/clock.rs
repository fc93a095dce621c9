//! Whether the clock can be right: tokens and certificates count by it.

use jiff::Timestamp;

use super::finding::Finding;
use crate::{
    hub::{credentials::check_clock, session::SessionError},
    platform::service_manager,
    update::failure::{Failure, chain},
};

const TOPIC: &str = "clock";

/// What was seen.
pub(super) struct Facts {
    now: Timestamp,
    /// Whether it is synchronised; or why that is not known.
    synchronised: Result<bool, String>,
}

pub(super) async fn gather() -> Facts {
    let synchronised = service_manager::clock_is_synchronised().await;
    Facts {
        now: Timestamp::now(),
        synchronised: synchronised.map_err(|error| chain(&error)),
    }
}

pub(super) fn judge(facts: &Facts) -> Finding {
    let time = crate::ctl::output::time(facts.now);
    if let Err(error) = check_clock(facts.now) {
        return Finding::failure(TOPIC, &Failure::from(&SessionError::from(error)));
    }
    match &facts.synchronised {
        Ok(true) => Finding::ok(TOPIC, format!("{time}, synchronised")),
        Ok(false) => Finding::warning(
            TOPIC,
            format!(
                "{time}, not synchronised: a clock that is hours off makes the hub refuse the device"
            ),
            "see `timedatectl`; install systemd-timesyncd or chrony, and let NTP through",
        ),
        Err(why) => Finding::ok(
            TOPIC,
            format!("{time} is plausible; whether it is synchronised cannot be asked ({why})"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::finding::Level;

    #[test]
    fn a_clock_in_the_past_is_an_error_and_one_that_nobody_sets_a_warning() {
        let at = |now: &str, synchronised| {
            let now = now.parse().unwrap();
            judge(&Facts { now, synchronised }).level
        };
        assert_eq!(at("1970-01-01T00:00:07Z", Ok(true)), Level::Error);
        assert_eq!(at("2027-01-01T00:00:00Z", Ok(true)), Level::Ok);
        assert_eq!(at("2027-01-01T00:00:00Z", Ok(false)), Level::Warning);
        assert_eq!(at("2027-01-01T00:00:00Z", Err("no bus".into())), Level::Ok);
    }
}
