//! When an accepted update may start: waits until the policy allows it, then asks the hooks in `policy.d`. What is decided,
//! is decided in [`crate::update::policy`]; here are the clock, the waiting and the programs.

mod clock;
pub mod reboot;

use std::time::Duration;

use jiff::Timestamp;

use self::clock::ClockReader;
use super::hooks;
use crate::{
    config::PolicyConfig,
    update::{
        failure::{Class, Failure},
        machine::Job,
        policy::{self, Verdict, Wait},
    },
};

/// Longest run of one policy hook.
const HOOK_LIMIT: Duration = Duration::from_secs(60);
/// A hook's way to say "ask again later" (`EX_TEMPFAIL`).
const LATER: i32 = 75;
/// A time of day is waited for in pieces: the clock may be set meanwhile.
const PIECE: Duration = Duration::from_secs(60);
/// How often is looked whether something has ended that has no known end.
const LOOK: Duration = Duration::from_secs(10);

/// Waits until the policy lets `job` start. `say` is told what is waited for.
///
/// # Errors
/// A hook refused the update.
pub async fn wait(
    config: &PolicyConfig,
    seed: &str,
    job: &Job,
    say: impl Fn(String),
) -> Result<(), Failure> {
    let mut clock = ClockReader::default();
    loop {
        let clock = clock.read(&config.rules).await;
        if let Verdict::Wait(wait) = policy::start(&config.rules, job, seed, &clock) {
            say(wait.to_string());
            pause(&wait).await;
            continue;
        }
        if job.request.force || job.consent.now {
            return Ok(());
        }
        match ask_hooks(config, job).await? {
            None => return Ok(()),
            Some(later) => {
                say(later);
                // By then a window may have closed.
                tokio::time::sleep(config.hook_interval).await;
            }
        }
    }
}

/// Until the answer may be another one.
async fn pause(wait: &Wait) {
    if wait.is_for_a_person() {
        // Whose word begins the wait anew.
        return std::future::pending().await;
    }
    let left = wait.ends().map(|end| end.duration_since(Timestamp::now()));
    let left = left.map_or(LOOK, |left| Duration::try_from(left).unwrap_or_default());
    tokio::time::sleep(left.min(PIECE)).await;
}

/// Why a hook wants to be asked again later, if one does.
///
/// # Errors
/// One refused the update.
async fn ask_hooks(config: &PolicyConfig, job: &Job) -> Result<Option<String>, Failure> {
    let variables = [
        ("FWUPDATED_UPDATE_ID", job.id.clone()),
        (
            "FWUPDATED_VERSION",
            job.request.version.clone().unwrap_or_default(),
        ),
        ("FWUPDATED_URI", job.request.uri.to_string()),
    ];
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
                return Ok(Some(format!(
                    "policy hook {} says later: {}",
                    result.name, result.explanation
                )));
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
    Ok(None)
}
