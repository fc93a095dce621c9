//! RAUC's variables, for boards that boot with its U-Boot script.
//!
//! | variable | meaning |
//! |---|---|
//! | `BOOT_ORDER` | `A B`: the slots that may boot, in order |
//! | `BOOT_A_LEFT`, `BOOT_B_LEFT` | boots left of a slot; it is passed over at 0 |
//! | `fwupdated_trial`, `fwupdated_job` | ours: which slot is on trial, and the update that armed it |
//!
//! That script counts **every** boot, the confirmed slot's too, and when no slot of the order has boots left it gives
//! all of them three again. So a counter alone disables nothing for good: from the first update on, the order names the
//! confirmed slot alone outside a trial, and its counter is filled at each start of the daemon ([`Variables::running`]). In a trial the order is
//! the new slot, then the confirmed one.

use super::{Variables, number, own::names, set, trial};
use crate::{
    platform::uboot_env::{BootloaderError, codec::Env},
    update::{ports::BootState, slot::Slot},
};

const ORDER: &str = "BOOT_ORDER";
/// What the script takes an unset counter for.
const UNSET_LEFT: u32 = 3;
/// Boots that the confirmed slot may fail to reach the daemon. The script counts down with `setexpr`, which is
/// hexadecimal, and compares with `test`, which is decimal in its older versions: one digit means the same to both.
const FULL: u32 = 9;

/// `bootloader.variables = "rauc"`.
#[derive(Debug)]
pub(super) struct Rauc;

fn name(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "A",
        Slot::B => "B",
    }
}

fn counter(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "BOOT_A_LEFT",
        Slot::B => "BOOT_B_LEFT",
    }
}

fn left(env: &Env, slot: Slot) -> u32 {
    env.get(counter(slot)).map_or(UNSET_LEFT, number)
}

fn set_left(env: &mut Env, slot: Slot, left: u32) -> Result<(), BootloaderError> {
    set(env, counter(slot), &left.to_string())
}

fn order(env: &Env) -> Result<Vec<Slot>, BootloaderError> {
    let value = env.get(ORDER).unwrap_or("A B");
    let slots = value.split_whitespace().map(|word| match word {
        "A" => Some(Slot::A),
        "B" => Some(Slot::B),
        _ => None,
    });
    slots
        .collect::<Option<Vec<_>>>()
        .filter(|slots| !slots.is_empty())
        .ok_or_else(|| BootloaderError::invalid(ORDER, value, "made of the names `A` and `B`"))
}

/// `slot` alone may boot, and has all its boots.
fn only(env: &mut Env, slot: Slot) -> Result<(), BootloaderError> {
    set(env, ORDER, name(slot))?;
    set_left(env, slot, FULL)?;
    set_left(env, slot.other(), 0)?;
    for name in [names::TRIAL, names::JOB] {
        env.remove(name);
    }
    Ok(())
}

impl Variables for Rauc {
    fn state(&self, env: &Env) -> Result<BootState, BootloaderError> {
        let order = order(env)?;
        // Someone may have changed the order since: the trial counts only as it was armed.
        let pending = env
            .get(names::TRIAL)
            .and_then(|slot| slot.parse::<Slot>().ok())
            .filter(|slot| order == [*slot, slot.other()]);
        if let Some(slot) = pending {
            return Ok(BootState {
                confirmed: slot.other(),
                trial: Some(trial(env, slot, left(env, slot))),
            });
        }
        let bootable = order.iter().find(|slot| left(env, **slot) > 0);
        Ok(BootState {
            confirmed: *bootable.unwrap_or(&order[0]),
            trial: None,
        })
    }

    fn mark_bad(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError> {
        only(env, slot.other())
    }

    fn arm_trial(
        &self,
        env: &mut Env,
        slot: Slot,
        tries: u8,
        job: &str,
    ) -> Result<(), BootloaderError> {
        let confirmed = slot.other();
        set(env, ORDER, &format!("{} {}", name(slot), name(confirmed)))?;
        set_left(env, slot, tries.into())?;
        set_left(env, confirmed, FULL)?;
        set(env, names::TRIAL, slot.name())?;
        set(env, names::JOB, job)
    }

    fn mark_good(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError> {
        only(env, slot)
    }

    fn running(&self, env: &mut Env, slot: Slot) -> Result<(), BootloaderError> {
        let on_trial = self.state(env)?.trial.is_some_and(|t| t.slot == slot);
        if on_trial {
            return Ok(());
        }
        set_left(env, slot, FULL)
    }
}
