//! The health gate: what a trial boot must show before it is confirmed.
//!
//! Every check must pass in one and the same round; rounds repeat until the deadline, since services
//! take their time to start. The deadline counts from the start of the boot by CLOCK_BOOTTIME, never by
//! the wall clock, which jumps on a board without a battery-backed clock. It ends a check that is still
//! under way: nothing holds back the decision.

use std::time::Duration;

use super::{hooks, saved::Baseline};
use crate::{
    config::HealthConfig,
    platform::service_manager,
    update::{
        failure::{Class, Failure},
        machine::Written,
        slot::Slot,
    },
};

/// Least time for the checks however late the daemon started (or all of a deadline that is shorter), so that
/// a slot cannot fail without one round.
const LEAST_TIME: Duration = Duration::from_secs(30);

/// What the checks are made against.
pub struct Trial<'a> {
    /// The update.
    pub written: &'a Written,
    /// The slot on trial, which runs.
    pub running: Slot,
    /// How things stood before; `None` when that is not known (the state did not come along).
    pub baseline: Option<&'a Baseline>,
}

/// Runs the checks until all pass or the deadline is over. `boot_start` is the CLOCK_BOOTTIME at which the
/// trial boot began (zero on a real board); `say` is told what is waited for.
///
/// # Errors
/// The check that failed last, with its explanation.
pub async fn watch_health(
    config: &HealthConfig,
    trial: &Trial<'_>,
    boot_start: Duration,
    hub_connected: impl Fn() -> bool,
    say: impl Fn(String),
) -> Result<(), Failure> {
    let least = LEAST_TIME.min(config.deadline);
    let deadline = (boot_start + config.deadline).max(boottime() + least);
    let mut last = None;
    loop {
        let mut running_check = String::new();
        let round = one_round(config, trial, &hub_connected, &mut running_check);
        let left = deadline.saturating_sub(boottime());
        let (reason, over) = match tokio::time::timeout(left, round).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(reason)) => (reason, boottime() + config.interval >= deadline),
            Err(_) => (cut_off(&running_check, last.as_deref()), true),
        };
        if over {
            return Err(Failure::new(
                "health-check-failed",
                Class::Final,
                format!(
                    "slot {} booted but did not become healthy: {reason}; going back to slot {}",
                    trial.running,
                    trial.running.other()
                ),
            ));
        }
        // Once for each reason: a round every few seconds would flood the journal.
        if last.as_ref() != Some(&reason) {
            say(format!(
                "{reason}; the checks go on for up to {} s",
                deadline.saturating_sub(boottime()).as_secs()
            ));
            last = Some(reason);
        }
        tokio::time::sleep(config.interval).await;
    }
}

/// The reason when the deadline came while `check` was under way. What failed in the round before it is what
/// most likely ails the slot.
fn cut_off(check: &str, last: Option<&str>) -> String {
    match last {
        Some(last) => format!("{last}; and at the deadline {check} had not ended"),
        None => format!("{check} had not ended at the deadline"),
    }
}

/// `check` says at any time which one is under way.
async fn one_round(
    config: &HealthConfig,
    trial: &Trial<'_>,
    hub_connected: &impl Fn() -> bool,
    check: &mut String,
) -> Result<(), String> {
    for unit in &config.units {
        *check = format!("the question for unit {unit}");
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
    let before = trial.baseline.and_then(|it| it.failed_units.as_deref());
    if let Some(before) = before.filter(|_| config.newly_failed_units) {
        "the question for failed units".clone_into(check);
        let now = service_manager::failed_units().await;
        let now = now.map_err(|error| crate::update::failure::chain(&error))?;
        newly_failed(before, &now)?;
    }
    // Where it is not known whether there was one, the operator's wish counts.
    let was_connected = trial.baseline.is_none_or(|it| it.hub_connected);
    if config.require_hub && was_connected && !hub_connected() {
        return Err("there is no hub connection".to_owned());
    }
    let variables = [
        ("FWUPDATED_UPDATE_ID", trial.written.job.id.clone()),
        ("FWUPDATED_SLOT", trial.running.to_string()),
        (
            "FWUPDATED_VERSION",
            trial.written.image.version.clone().unwrap_or_default(),
        ),
    ];
    let hooks = hooks::list(&config.hook_dir)
        .map_err(|error| format!("{} cannot be read: {error}", config.hook_dir.display()))?;
    for hook in hooks {
        *check = format!("check {}", hook.name());
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

/// What failed since `before`, if anything.
fn newly_failed(before: &[String], now: &[String]) -> Result<(), String> {
    let new: Vec<_> = now
        .iter()
        .filter(|unit| !before.contains(unit))
        .map(String::as_str)
        .collect();
    match new.as_slice() {
        [] => Ok(()),
        [unit] => Err(format!(
            "unit {unit} has failed, which it had not before the update"
        )),
        units => Err(format!(
            "units {} have failed, which they had not before the update",
            units.join(", ")
        )),
    }
}

/// How things stand now, to be compared after the update.
pub async fn baseline(config: &HealthConfig, hub_connected: bool) -> Baseline {
    let failed_units = match config.newly_failed_units {
        true => service_manager::failed_units().await.map_err(|error| {
            tracing::warn!(
                "which units have failed is not known, so that the trial boot cannot be held against it: {}",
                crate::update::failure::chain(&error)
            );
        }),
        false => Err(()),
    };
    Baseline {
        failed_units: failed_units.ok(),
        hub_connected,
    }
}

/// Time since the boot, suspended time included.
pub fn boottime() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, path::Path, sync::Mutex, time::Instant};

    use super::*;
    use crate::update::{
        digest::Sha256,
        machine::{Content, ImageFacts, Job},
        request::{Origin, Request},
        status::Times,
    };

    fn written() -> Written {
        Written {
            job: Job {
                id: "u1".into(),
                request: Request::new("https://store/x.img.zst".parse().unwrap(), Origin::Method),
                target: Slot::B,
                from_version: None,
                times: Times::default(),
                consent: crate::update::policy::Consent::default(),
            },
            image: ImageFacts {
                version: None,
                size: None,
                boot_size: 0,
                manifest: None,
                security_epoch: 0,
            },
            content: Content {
                size: 9,
                sha256: Sha256::of(b"x"),
            },
        }
    }

    fn config(dir: &Path, deadline: Duration) -> HealthConfig {
        HealthConfig {
            deadline,
            units: Vec::new(),
            hook_dir: dir.to_owned(),
            hook_timeout: Duration::from_secs(600),
            interval: Duration::from_millis(100),
            newly_failed_units: true,
            require_hub: false,
        }
    }

    fn script(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The outcome, and what was said meanwhile.
    async fn watch(config: &HealthConfig) -> (Result<(), Failure>, Vec<String>) {
        let said = Mutex::new(Vec::new());
        let say = |text| said.lock().unwrap().push(text);
        let written = written();
        let trial = Trial {
            written: &written,
            running: Slot::B,
            baseline: None,
        };
        let result = watch_health(config, &trial, boottime(), || true, say).await;
        (result, said.into_inner().unwrap())
    }

    #[tokio::test]
    async fn a_hub_is_missed_only_where_there_was_one_or_nobody_knows() {
        let dir = tempfile::tempdir().unwrap();
        let config = HealthConfig {
            require_hub: true,
            ..config(dir.path(), Duration::from_secs(1))
        };
        for (before, passes) in [(Some(true), false), (Some(false), true), (None, false)] {
            let baseline = before.map(|hub_connected| Baseline {
                failed_units: None,
                hub_connected,
            });
            let written = written();
            let trial = Trial {
                written: &written,
                running: Slot::B,
                baseline: baseline.as_ref(),
            };
            let result = watch_health(&config, &trial, boottime(), || false, |_| {}).await;
            assert_eq!(result.is_ok(), passes, "{before:?}");
        }
    }

    #[test]
    fn only_what_failed_since_the_update_counts() {
        let units = |names: &[&str]| names.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        let before = units(&["a.service", "b.mount"]);
        assert_eq!(newly_failed(&before, &units(&["b.mount"])), Ok(()));
        assert_eq!(newly_failed(&before, &before), Ok(()));
        let reason = newly_failed(&before, &units(&["a.service", "c.service"])).unwrap_err();
        assert_eq!(
            reason,
            "unit c.service has failed, which it had not before the update"
        );
        let reason = newly_failed(&[], &before).unwrap_err();
        assert!(reason.contains("a.service, b.mount"), "{reason}");
    }

    #[tokio::test]
    async fn the_deadline_ends_a_check_that_hangs_and_names_it() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "10-fine", "exit 0");
        script(dir.path(), "20-hangs", "sleep 600");
        let start = Instant::now();
        let (result, _) = watch(&config(dir.path(), Duration::from_secs(2))).await;
        assert!(start.elapsed() < Duration::from_secs(60));
        let message = result.unwrap_err().message;
        assert!(
            message.contains("check 20-hangs had not ended at the deadline"),
            "{message}"
        );
    }

    #[tokio::test]
    async fn a_check_that_failed_before_the_deadline_cut_the_next_round_is_still_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let seen = dir.path().join("seen.txt");
        script(
            dir.path(),
            "10-slow",
            &format!("test ! -e {} || sleep 600", seen.display()),
        );
        script(
            dir.path(),
            "20-app",
            &format!("touch {}; echo the app is down; exit 1", seen.display()),
        );
        let (result, said) = watch(&config(dir.path(), Duration::from_secs(4))).await;
        let message = result.unwrap_err().message;
        assert!(
            message.contains("check 20-app failed: the app is down"),
            "{message}"
        );
        assert!(
            message.contains("at the deadline check 10-slow had not ended"),
            "{message}"
        );
        assert_eq!(said.len(), 1, "{said:?}");
    }

    #[tokio::test]
    async fn a_check_that_cannot_be_looked_at_is_not_skipped() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("10-gone")).unwrap();
        script(dir.path(), "20-fine", "exit 0");
        let (result, _) = watch(&config(dir.path(), Duration::from_secs(1))).await;
        let message = result.unwrap_err().message;
        assert!(message.contains("check 10-gone failed"), "{message}");
    }
}
