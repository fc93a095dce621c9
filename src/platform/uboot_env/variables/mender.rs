//! Mender's variables, for boards whose U-Boot counts boots (`CONFIG_BOOTCOUNT_ENV`) and falls back with Mender's
//! `altbootcmd`.
//!
//! | variable | meaning |
//! |---|---|
//! | `mender_boot_part`, `mender_boot_part_hex` | number of the partition that boots, decimal and hexadecimal |
//! | `upgrade_available` | 1: the boots are counted |
//! | `bootcount` | boots counted |
//! | `bootlimit` | beyond it U-Boot runs `altbootcmd`, which goes back to the other partition and sets `upgrade_available=0` |
//! | `fwupdated_job` | ours: the update that armed the trial |
//!
//! Nothing is counted outside a trial. The confirmed slot of a trial is *the other partition*: no variable names it.

use super::{Variables, number, own::names, set, trial};
use crate::{
    platform::uboot_env::{BootloaderError, codec::Env},
    update::{ports::BootState, slot::Slot},
};

const PART: &str = "mender_boot_part";
const PART_HEX: &str = "mender_boot_part_hex";
const AVAILABLE: &str = "upgrade_available";
const COUNT: &str = "bootcount";
const LIMIT: &str = "bootlimit";
/// What ends a trial; without it one would never end.
const FALLBACK: &str = "altbootcmd";

/// `bootloader.variables = "mender"`.
#[derive(Debug)]
pub(super) struct Mender {
    /// Partition numbers of the slots a and b.
    pub(super) partitions: [u32; 2],
}

impl Mender {
    fn partition(&self, slot: Slot) -> u32 {
        match slot {
            Slot::A => self.partitions[0],
            Slot::B => self.partitions[1],
        }
    }

    /// `slot` boots, and boots are not counted.
    fn settle(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError> {
        self.choose(env, slot)?;
        set(env, AVAILABLE, "0")?;
        set(env, COUNT, "0")?;
        env.remove(names::JOB);
        Ok(())
    }

    fn choose(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError> {
        let partition = self.partition(slot);
        set(env, PART, &partition.to_string())?;
        set(env, PART_HEX, &format!("{partition:x}"))
    }
}

fn value(env: &Env, name: &str) -> u32 {
    env.get(name).map_or(0, number)
}

impl Variables for Mender {
    fn state(&self, env: &Env) -> Result<BootState, BootloaderError> {
        let part = env.get(PART).ok_or(BootloaderError::NotInitialised(PART))?;
        let chosen = Slot::ALL
            .into_iter()
            .find(|slot| part == self.partition(*slot).to_string());
        let [a, b] = self.partitions;
        let allowed = format!("`{a}` or `{b}`, as bootloader.partitions says");
        let chosen = chosen.ok_or_else(|| BootloaderError::invalid(PART, part, &allowed))?;
        if value(env, AVAILABLE) == 0 {
            return Ok(BootState {
                confirmed: chosen,
                trial: None,
            });
        }
        let left = value(env, LIMIT).saturating_sub(value(env, COUNT));
        Ok(BootState {
            confirmed: chosen.other(),
            trial: Some(trial(env, chosen, left)),
        })
    }

    fn mark_bad(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError> {
        self.settle(env, slot.other())
    }

    fn arm_trial(
        &self,
        env: &mut Env,
        slot: Slot,
        tries: u8,
        job: &str,
    ) -> Result<(), BootloaderError> {
        if env.get(FALLBACK).is_none_or(str::is_empty) {
            return Err(BootloaderError::NoFallback(FALLBACK));
        }
        self.choose(env, slot)?;
        set(env, AVAILABLE, "1")?;
        set(env, COUNT, "0")?;
        set(env, LIMIT, &tries.to_string())?;
        set(env, names::JOB, job)
    }

    fn mark_good(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError> {
        self.settle(env, slot)
    }
}
