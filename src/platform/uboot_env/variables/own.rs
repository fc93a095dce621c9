//! Our own variables, for boards that boot with `packaging/uboot/boot.cmd`.
//!
//! The script counts during a trial alone, so that nothing has to be refilled, and takes the trial's variables away
//! when it is used up.

use super::{Variables, set, slot_in, trial};
use crate::{
    platform::uboot_env::{BootloaderError, codec::Env},
    update::{ports::BootState, slot::Slot},
};

/// The variables' names.
pub mod names {
    /// The confirmed slot.
    pub const SLOT: &str = "fwupdated_slot";
    /// The slot on trial.
    pub const TRIAL: &str = "fwupdated_trial";
    /// Boots left in the trial.
    pub const TRIES: &str = "fwupdated_tries";
    /// The update that armed the trial.
    pub const JOB: &str = "fwupdated_job";
}

/// `bootloader.variables = "fwupdated"`.
#[derive(Debug)]
pub(in crate::platform::uboot_env) struct Own;

fn end_trial(env: &mut Env) {
    for name in [names::TRIAL, names::TRIES, names::JOB] {
        env.remove(name);
    }
}

impl Variables for Own {
    fn state(&self, env: &Env) -> Result<BootState, BootloaderError> {
        let confirmed =
            slot_in(env, names::SLOT)?.ok_or(BootloaderError::NotInitialised(names::SLOT))?;
        let tries = env.get(names::TRIES).and_then(|tries| tries.parse().ok());
        // A trial of the confirmed slot is none: the boot script ends it.
        let pending = slot_in(env, names::TRIAL)?.filter(|slot| *slot != confirmed);
        Ok(BootState {
            confirmed,
            trial: pending.map(|slot| trial(env, slot, tries.unwrap_or(0))),
        })
    }

    fn mark_bad(&self, env: &mut Env, _slot: Slot) -> Result<(), BootloaderError> {
        end_trial(env);
        Ok(())
    }

    fn arm_trial(
        &self,
        env: &mut Env,
        slot: Slot,
        tries: u8,
        job: &str,
    ) -> Result<(), BootloaderError> {
        set(env, names::TRIAL, slot.name())?;
        set(env, names::TRIES, &tries.to_string())?;
        set(env, names::JOB, job)
    }

    fn mark_good(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError> {
        end_trial(env);
        set(env, names::SLOT, slot.name())
    }
}
