//! When an accepted update may go on: a random delay, then the hooks in `policy.d`.

use std::time::Duration;

use jiff::Timestamp;

use super::hooks;
use crate::{
    config::PolicyConfig,
    update::{
        failure::{Class, Failure},
        machine::Job,
    },
};

/// Longest run of one policy hook.
const HOOK_LIMIT: Duration = Duration::from_secs(60);
/// A hook's way to say "ask again later" (`EX_TEMPFAIL`).
const LATER: i32 = 75;

/// Waits until the policy lets `job` go on. `say` is told what is waited for.
///
/// # Errors
/// A hook refused the update.
pub async fn wait(
    config: &PolicyConfig,
    seed: &str,
    job: &Job,
    say: impl Fn(String),
) -> Result<(), Failure> {
    if job.request.force {
        return Ok(());
    }
    let delay = delay(config.random_delay, seed, &job.id);
    // Counted from the acceptance, so that a restart does not start it again.
    let waited = job.times.waiting.map_or(Duration::ZERO, |since| {
        Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or(Duration::ZERO)
    });
    if let Some(left) = delay.checked_sub(waited).filter(|left| !left.is_zero()) {
        say(format!(
            "waiting {} s (random delay of the policy)",
            left.as_secs()
        ));
        tokio::time::sleep(left).await;
    }
    let variables = [
        ("FWUPDATED_UPDATE_ID", job.id.clone()),
        (
            "FWUPDATED_VERSION",
            job.request.version.clone().unwrap_or_default(),
        ),
        ("FWUPDATED_URI", job.request.uri.to_string()),
    ];
    'ask: loop {
        let hooks = hooks::list(&config.hook_dir).map_err(|error| {
            let dir = config.hook_dir.display();
            Failure::new(
                "policy-hook-failed",
                Class::Final,
                format!("{dir} cannot be read: {error}; mend or remove it"),
            )
        })?;
        for hook in hooks {
            let result = hooks::run(&hook, &variables, HOOK_LIMIT).await;
            match result.code {
                Some(0) => {}
                Some(LATER) => {
                    say(format!(
                        "policy hook {} says later: {}",
                        result.name, result.explanation
                    ));
                    tokio::time::sleep(config.hook_interval).await;
                    continue 'ask;
                }
                _ => {
                    let message = format!(
                        "policy hook {} refused the update: {}",
                        result.name, result.explanation
                    );
                    return Err(Failure::new("policy-refused", Class::Final, message));
                }
            }
        }
        return Ok(());
    }
}

/// A delay below `most` that is this device's own for this update: the fleet spreads, a restart does not
/// draw again.
fn delay(most: Duration, seed: &str, job: &str) -> Duration {
    let digest = crate::update::digest::Sha256::of(format!("{seed}\n{job}").as_bytes());
    let number = u64::from_be_bytes(digest.0[..8].try_into().expect("eight bytes of thirty-two"));
    let millis = u128::from(number) * most.as_millis() / (u128::from(u64::MAX) + 1);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_random_delay_is_stable_bounded_and_spreads_a_fleet() {
        let most = Duration::from_secs(3600);
        let delays: Vec<_> = (0..1000)
            .map(|n| delay(most, &format!("pi-{n}"), "u1"))
            .collect();
        assert!(delays.iter().all(|d| *d < most));
        assert_eq!(delays[7], delay(most, "pi-7", "u1"));
        let early = delays.iter().filter(|d| **d < most / 4).count();
        assert!(
            (200..300).contains(&early),
            "{early} of 1000 in the first quarter"
        );
        assert_eq!(delay(Duration::ZERO, "x", "y"), Duration::ZERO);
    }
}
