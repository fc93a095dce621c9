//! The health gate: what a trial boot must show before it is confirmed.
//!
//! Every check must pass in one and the same round; rounds repeat until the deadline, since services
//! take their time to start. The deadline counts from the start of the boot by CLOCK_BOOTTIME, never by
//! the wall clock, which jumps on a board without a battery-backed clock.

use std::time::Duration;

use super::hooks;
use crate::{
    config::HealthConfig,
    platform::service_manager,
    update::{
        failure::{Class, Failure},
        machine::Written,
        slot::Slot,
    },
};

/// Least time for the checks however late the daemon started, so that it cannot fail without one round.
const LEAST_TIME: Duration = Duration::from_secs(5);

/// Runs the checks until all pass or the deadline is over. `boot_start` is the CLOCK_BOOTTIME at which the
/// trial boot began (zero on a real board); `say` is told what is waited for.
///
/// # Errors
/// The check that failed last, with its explanation.
pub async fn watch_health(
    config: &HealthConfig,
    written: &Written,
    running: Slot,
    boot_start: Duration,
    hub_connected: impl Fn() -> bool,
    say: impl Fn(String),
) -> Result<(), Failure> {
    let deadline = (boot_start + config.deadline).max(boottime() + LEAST_TIME);
    let mut told = String::new();
    loop {
        let left = deadline.saturating_sub(boottime());
        let round = one_round(config, written, running, &hub_connected);
        let reason = match tokio::time::timeout(left, round).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => reason,
            Err(_) if told.is_empty() => "the checks did not end before the deadline".to_owned(),
            Err(_) => format!("{told}, and the checks did not end before the deadline"),
        };
        let now = boottime();
        if now + config.interval >= deadline {
            return Err(Failure::new(
                "health-check-failed",
                Class::Final,
                format!(
                    "slot {running} booted but did not become healthy: {reason}; going back to slot {}",
                    running.other()
                ),
            ));
        }
        // Once for each reason: a round every few seconds would flood the journal.
        if told != reason {
            say(format!(
                "{reason}; the checks go on for up to {} s",
                (deadline - now).as_secs()
            ));
            told = reason;
        }
        tokio::time::sleep(config.interval).await;
    }
}

async fn one_round(
    config: &HealthConfig,
    written: &Written,
    running: Slot,
    hub_connected: &impl Fn() -> bool,
) -> Result<(), String> {
    for unit in &config.units {
        match service_manager::unit_active(unit).await {
            Ok(true) => {}
            Ok(false) => return Err(format!("unit {unit} is not active")),
            Err(error) => {
                return Err(format!(
                    "unit {unit} cannot be asked for: {}",
                    crate::update::failure::chain(&error)
                ));
            }
        }
    }
    if config.require_hub && !hub_connected() {
        return Err("there is no hub connection".to_owned());
    }
    let variables = [
        ("FWUPDATED_UPDATE_ID", written.job.id.clone()),
        ("FWUPDATED_SLOT", running.to_string()),
        (
            "FWUPDATED_VERSION",
            written.image.version.clone().unwrap_or_default(),
        ),
    ];
    let hooks = hooks::list(&config.hook_dir)
        .map_err(|error| format!("{} cannot be read: {error}", config.hook_dir.display()))?;
    for hook in hooks {
        let result = hooks::run(&hook, &variables, config.hook_timeout).await;
        if result.code != Some(0) {
            return Err(format!(
                "check {} failed: {}",
                result.name, result.explanation
            ));
        }
    }
    Ok(())
}

/// Time since the boot, suspended time included.
pub fn boottime() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(Duration::ZERO, Duration::from)
}
