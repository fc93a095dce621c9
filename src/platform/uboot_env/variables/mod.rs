//! Whose variables decide the slot: our own, RAUC's or Mender's. Pure: an environment to a boot decision, and back.
//!
//! | `bootloader.variables` | the board boots with | file |
//! |---|---|---|
//! | `fwupdated` | `packaging/uboot/boot.cmd` | [`own`] |
//! | `rauc` | RAUC's script (`contrib/uboot.sh` there) | [`rauc`] |
//! | `mender` | U-Boot's boot count and Mender's `altbootcmd` | [`mender`] |
//!
//! Each function of [`Variables`] changes an environment in memory; the caller stores it in one write. The models
//! of the three scripts, and the properties that hold for each, are in the tests.

mod mender;
pub(super) mod own;
mod rauc;
#[cfg(test)]
mod tests;

use std::fmt;

use super::codec::Env;
use crate::{
    config::BootVariables,
    platform::uboot_env::BootloaderError,
    update::{
        ports::{BootState, PendingTrial},
        slot::Slot,
    },
};

/// One scheme of variables. `slot` is never the confirmed one in [`Variables::mark_bad`] and
/// [`Variables::arm_trial`]: [`decide`] sees to that.
pub(super) trait Variables: fmt::Debug + Send + Sync {
    /// The decision that `env` holds.
    fn state(&self, env: &Env) -> Result<BootState, BootloaderError>;

    /// No boot chooses `slot`; its trial, if there is one, ends.
    fn mark_bad(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError>;

    /// The next `tries` boots choose `slot`, those after them the confirmed one.
    fn arm_trial(
        &self,
        env: &mut Env,
        slot: Slot,
        tries: u8,
        job: &str,
    ) -> Result<(), BootloaderError>;

    /// `slot` becomes the confirmed one, whatever was there before.
    fn mark_good(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError>;

    /// `slot` runs. Where the script counts the boots of the confirmed slot too, the counter is filled again.
    fn running(&self, _env: &mut Env, _slot: Slot) -> Result<(), BootloaderError> {
        Ok(())
    }
}

/// The scheme that the configuration names.
pub(super) fn scheme(variables: BootVariables, partitions: [u32; 2]) -> Box<dyn Variables> {
    match variables {
        BootVariables::Fwupdated => Box::new(own::Own),
        BootVariables::Rauc => Box::new(rauc::Rauc),
        BootVariables::Mender => Box::new(mender::Mender { partitions }),
    }
}

/// A change of the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change<'a> {
    MarkBad(Slot),
    ArmTrial { slot: Slot, tries: u8, job: &'a str },
    MarkGood(Slot),
    Running(Slot),
}

/// Carries `change` out on `env`. The confirmed slot is neither disabled nor put on trial; after an error `env` is
/// as it was.
pub(super) fn decide(
    variables: &dyn Variables,
    env: &mut Env,
    change: Change<'_>,
) -> Result<(), BootloaderError> {
    let mut changed = env.clone();
    let env_changed = &mut changed;
    if let Change::MarkBad(slot) | Change::ArmTrial { slot, .. } = change
        && variables.state(env)?.confirmed == slot
    {
        return Err(BootloaderError::Confirmed(slot));
    }
    match change {
        Change::MarkBad(slot) => variables.mark_bad(env_changed, slot),
        Change::ArmTrial { slot, tries, job } => variables.arm_trial(env_changed, slot, tries, job),
        Change::MarkGood(slot) => variables.mark_good(env_changed, slot),
        Change::Running(slot) => variables.running(env_changed, slot),
    }?;
    *env = changed;
    Ok(())
}

/// Sets `name`.
fn set(env: &mut Env, name: &str, value: &str) -> Result<(), BootloaderError> {
    env.set(name, value)
        .map_err(|error| BootloaderError::Env(error.into()))
}

/// The slot that the variable `name` holds, `a` or `b`.
fn slot_in(env: &Env, name: &'static str) -> Result<Option<Slot>, BootloaderError> {
    let Some(value) = env.get(name) else {
        return Ok(None);
    };
    let invalid = |_| BootloaderError::invalid(name, value, "`a` or `b`");
    value.parse().map(Some).map_err(invalid)
}

/// The trial of `slot`, with the job that our variable holds.
fn trial(env: &Env, slot: Slot, tries_left: u32) -> PendingTrial {
    PendingTrial {
        slot,
        tries_left: u8::try_from(tries_left).unwrap_or(u8::MAX),
        job: env.get(own::names::JOB).map(str::to_owned),
    }
}

/// A number as U-Boot reads it in base 10: the digits at the start, 0 without any.
fn number(text: &str) -> u32 {
    let digits = text.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
