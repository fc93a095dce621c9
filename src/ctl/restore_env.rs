//! `fwupdatectl restore-env`: writes a lost U-Boot environment anew, on this device.
//!
//! Works without the daemon, which does nothing without an environment. A good one is never overwritten.

use std::path::PathBuf;

use clap::Args;

use super::{exit, failed, output::line};
use crate::{
    config::Config,
    platform::{
        slots::Slots,
        uboot_env::{BACKUP, UbootBootloader},
    },
    update::{
        failure::{Class, Coded},
        slot::Slot,
    },
};

/// A slot that nobody knows to boot was to be confirmed.
#[derive(Debug, thiserror::Error)]
#[error(
    "slot {running} runs, and only that one is known to boot: slot {asked} may be half written. Give --slot {running}; \
     nothing was written"
)]
struct NotRunning {
    running: Slot,
    asked: Slot,
}

impl Coded for NotRunning {
    fn code(&self) -> &'static str {
        "env-slot-not-running"
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// What to write, and which slot is confirmed in it.
#[derive(Debug, Args)]
pub(super) struct RestoreEnv {
    /// Take the variables from FILE, such as u-boot-initial-env of the board's U-Boot [default: env.backup in the state
    /// directory]
    #[arg(long, value_name = "FILE", requires = "slot")]
    from: Option<PathBuf>,
    /// The slot that the environment shall name as confirmed: the one that runs [default: the one in env.backup]
    #[arg(long, value_name = "a|b")]
    slot: Option<Slot>,
}

/// Carries it out. Returns the exit code.
pub(super) fn run(command: &RestoreEnv, config: &Config) -> u8 {
    // In a rescue system none runs.
    let running = || {
        let slots = Slots::open(config.slots.as_ref()?, &config.bootloader).ok()?;
        slots.booted().ok().map(|booted| booted.slot)
    };
    if let Some(asked) = command.slot
        && let Some(running) = running()
        && running != asked
    {
        return failed(&NotRunning { running, asked }, exit::REFUSED);
    }
    let backup = || config.state.directory.join(BACKUP);
    let from = command.from.clone().unwrap_or_else(backup);
    let bootloader = UbootBootloader::configured(&config.bootloader, &config.state.directory);
    match bootloader.restore(&from, command.slot) {
        Ok(restored) => {
            line(format!(
                "the environment was written from {}: {} variables, slot {} is confirmed, no trial",
                from.display(),
                restored.variables,
                restored.confirmed
            ));
            exit::OK
        }
        Err(error) => failed(&error, exit::FAILED),
    }
}
