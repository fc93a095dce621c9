//! `[policy]`, merged -> valid.

use std::time::Duration;

use jiff::tz::TimeZone;

use super::{Checked, DAY, MINUTE, TENTH, Wrong, duration, is_stand_in, needed_path};
use crate::{
    config::{
        raw::{MAX_INHIBIT, REBOOT_NOTICE, RawBootloader, RawDuration, RawPolicy},
        valid::PolicyConfig,
    },
    update::{policy::Rules, window::Windows},
};

pub(super) fn policy(raw: &RawPolicy, bootloader: &RawBootloader) -> Checked<PolicyConfig> {
    // A stand-in for a board must not hold up, and not warn, the users of the machine that it runs on.
    let is_stand_in = is_stand_in(bootloader);
    let unless_stand_in = |set: Option<RawDuration>, usual| {
        set.unwrap_or(if is_stand_in {
            RawDuration(Duration::ZERO)
        } else {
            usual
        })
    };
    Ok(PolicyConfig {
        rules: Rules {
            windows: Windows(raw.windows.clone()),
            time_zone: time_zone(&raw.time_zone)?,
            start: raw.start,
            approval: raw.approval,
            random_delay: duration(
                "policy.random_delay",
                raw.random_delay,
                Duration::ZERO..=DAY * 7,
            )?,
            reboot: raw.reboot,
            max_deferral: duration(
                "policy.max_deferral",
                raw.max_deferral,
                Duration::ZERO..=DAY * 365,
            )?,
        },
        hook_dir: needed_path("policy.hook_dir", &raw.hook_dir)?,
        hook_interval: duration("policy.hook_interval", raw.hook_interval, TENTH..=DAY)?,
        reboot_notice: duration(
            "policy.reboot_notice",
            unless_stand_in(raw.reboot_notice, REBOOT_NOTICE),
            Duration::ZERO..=MINUTE * 15,
        )?,
        max_inhibit: duration(
            "policy.max_inhibit",
            unless_stand_in(raw.max_inhibit, MAX_INHIBIT),
            Duration::ZERO..=DAY * 30,
        )?,
    })
}

fn time_zone(name: &str) -> Checked<Option<TimeZone>> {
    if name.is_empty() {
        return Ok(None);
    }
    TimeZone::get(name).map(Some).map_err(|_| {
        Wrong::new(
            "policy.time_zone",
            format!(
                "is `{name}`, which /usr/share/zoneinfo does not have; give a name such as \"Europe/Berlin\" (`timedatectl \
                 list-timezones`), or \"\" for the system's own zone. The package tzdata brings them"
            ),
        )
    })
}
