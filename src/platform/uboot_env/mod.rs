//! THE BOOT SLOT IS CHANGED HERE: in the U-Boot environment, byte-compatible with U-Boot, `fw_printenv`
//! and `fw_setenv`.
//!
//! | variable | meaning |
//! |---|---|
//! | `fwupdated_slot` | `a` or `b`: the confirmed slot |
//! | `fwupdated_trial` | the slot on trial; absent otherwise |
//! | `fwupdated_tries` | boots left in this trial |
//! | `fwupdated_job` | the update that armed it: its id and, behind a blank, its version |
//!
//! Each decision is **one** write ([`UbootEnv::update`]), read back before it counts. How the boot script
//! reads them: [`boot_decision`].

mod boot_model;
pub mod codec;
mod inspect;
mod location;
mod store;

use std::path::{Path, PathBuf};

pub use self::{
    boot_model::boot_decision,
    codec::{Env, VariableError},
    inspect::{CopySeen, CopyState, inspect},
    location::{Area, EnvLocation, LocationError},
    store::{EnvError, UbootEnv},
};
use crate::update::{
    failure::{Class, Coded, Failure},
    ports::{BootState, Bootloader, PendingTrial, SLOT_IS_CONFIRMED},
    slot::Slot,
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

/// Why the bootloader's decision cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum BootloaderError {
    /// The environment itself.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// Our variables were never set.
    #[error(
        "the U-Boot environment has no {}; this board was not set up for fwupdated. Install the boot script, then \
         run `fw_setenv {} a` (the slot that runs)",
        names::SLOT,
        names::SLOT
    )]
    NotInitialised,
    /// A variable of ours has a value that it cannot have.
    #[error(
        "the U-Boot variable {name} is `{value}`, it must be a or b; correct it with fw_setenv"
    )]
    Invalid {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
    /// A change that would take the confirmed slot away.
    #[error("slot {0} is the confirmed slot and cannot be disabled or put on trial")]
    Confirmed(Slot),
}

impl Coded for BootloaderError {
    fn code(&self) -> &'static str {
        match self {
            Self::Env(error) => error.code(),
            Self::NotInitialised => "bootloader-not-initialised",
            Self::Invalid { .. } => "bootloader-invalid",
            Self::Confirmed(_) => SLOT_IS_CONFIRMED,
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Env(error) => error.class(),
            Self::NotInitialised | Self::Invalid { .. } | Self::Confirmed(_) => Class::Final,
        }
    }
}

/// The port [`Bootloader`] over a U-Boot environment.
#[derive(Debug, Clone)]
pub struct UbootBootloader {
    config: PathBuf,
    lock: PathBuf,
}

impl UbootBootloader {
    /// The environment that the file `config` (`fw_env.config`) names, under the lock file `lock`. Touches
    /// nothing; both are looked at anew at each call.
    #[must_use]
    pub fn new(config: &Path, lock: &Path) -> Self {
        Self {
            config: config.to_owned(),
            lock: lock.to_owned(),
        }
    }

    fn env(&self) -> Result<UbootEnv, EnvError> {
        Ok(UbootEnv::new(EnvLocation::read(&self.config)?, &self.lock))
    }

    /// One decision: `change` may refuse, and then nothing is written.
    fn decide(
        &self,
        change: impl FnOnce(&mut Env) -> Result<(), BootloaderError>,
    ) -> Result<(), Failure> {
        let decided = || -> Result<(), BootloaderError> {
            self.env()?.update(|env| {
                let before = env.clone();
                let changed = change(env);
                if changed.is_err() {
                    *env = before;
                }
                changed
            })?
        };
        decided().map_err(|error| Failure::from(&error))
    }
}

fn slot_in(env: &Env, name: &'static str) -> Result<Option<Slot>, BootloaderError> {
    let Some(value) = env.get(name) else {
        return Ok(None);
    };
    let invalid = |_| BootloaderError::Invalid {
        name,
        value: value.chars().take(20).collect(),
    };
    value.parse().map(Some).map_err(invalid)
}

fn confirmed(env: &Env) -> Result<Slot, BootloaderError> {
    slot_in(env, names::SLOT)?.ok_or(BootloaderError::NotInitialised)
}

fn state(env: &Env) -> Result<BootState, BootloaderError> {
    let confirmed = confirmed(env)?;
    // A trial of the confirmed slot is none: the boot script ends it.
    let trial = slot_in(env, names::TRIAL)?
        .filter(|slot| *slot != confirmed)
        .map(|slot| PendingTrial {
            slot,
            tries_left: env
                .get(names::TRIES)
                .and_then(|tries| tries.parse().ok())
                .unwrap_or(0),
            job: env.get(names::JOB).map(str::to_owned),
        });
    Ok(BootState { confirmed, trial })
}

fn end_trial(env: &mut Env) {
    for name in [names::TRIAL, names::TRIES, names::JOB] {
        env.remove(name);
    }
}

impl Bootloader for UbootBootloader {
    fn state(&self) -> Result<BootState, Failure> {
        let read = || -> Result<BootState, BootloaderError> { state(&self.env()?.read()?) };
        read().map_err(|error| Failure::from(&error))
    }

    fn mark_bad(&mut self, slot: Slot) -> Result<(), Failure> {
        self.decide(|env| {
            if confirmed(env)? == slot {
                return Err(BootloaderError::Confirmed(slot));
            }
            end_trial(env);
            Ok(())
        })
    }

    fn arm_trial(&mut self, slot: Slot, tries: u8, job: &str) -> Result<(), Failure> {
        self.decide(|env| {
            if confirmed(env)? == slot {
                return Err(BootloaderError::Confirmed(slot));
            }
            let set =
                |env: &mut Env, name, value: &str| env.set(name, value).map_err(EnvError::from);
            set(env, names::TRIAL, slot.name())?;
            set(env, names::TRIES, &tries.to_string())?;
            set(env, names::JOB, job)?;
            Ok(())
        })
    }

    fn mark_good(&mut self, slot: Slot) -> Result<(), Failure> {
        self.decide(|env| {
            env.set(names::SLOT, slot.name()).map_err(EnvError::from)?;
            end_trial(env);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bootloader(dir: &Path, variables: &[(&str, &str)]) -> UbootBootloader {
        let file = dir.join("env");
        std::fs::write(&file, vec![0; 0x2000]).unwrap();
        let config = dir.join("fw_env.config");
        std::fs::write(
            &config,
            format!("{0} 0 0x1000\n{0} 0x1000 0x1000\n", file.display()),
        )
        .unwrap();
        let bootloader = UbootBootloader::new(&config, &dir.join("lock"));
        bootloader
            .env()
            .unwrap()
            .initialise(variables.iter().copied())
            .unwrap();
        bootloader
    }

    fn bytes(dir: &Path) -> Vec<u8> {
        std::fs::read(dir.join("env")).unwrap()
    }

    #[test]
    fn a_trial_is_armed_confirmed_and_ended_each_in_one_write() {
        let dir = tempfile::tempdir().unwrap();
        let mut bootloader = bootloader(dir.path(), &[("fwupdated_slot", "a"), ("bootcmd", "x")]);
        let halves = |a: &[u8], b: &[u8]| {
            [a[..0x1000] != b[..0x1000], a[0x1000..] != b[0x1000..]]
                .iter()
                .filter(|c| **c)
                .count()
        };
        let mut before = bytes(dir.path());
        for step in 0..3 {
            match step {
                0 => bootloader.arm_trial(Slot::B, 3, "u1").unwrap(),
                1 => bootloader.mark_good(Slot::B).unwrap(),
                _ => bootloader.arm_trial(Slot::A, 2, "u2").unwrap(),
            }
            let after = bytes(dir.path());
            assert_eq!(halves(&before, &after), 1, "step {step}");
            before = after;
        }
        let trial = PendingTrial {
            slot: Slot::A,
            tries_left: 2,
            job: Some("u2".into()),
        };
        assert_eq!(
            bootloader.state().unwrap(),
            BootState {
                confirmed: Slot::B,
                trial: Some(trial)
            }
        );
        bootloader.mark_bad(Slot::A).unwrap();
        assert_eq!(
            bootloader.state().unwrap(),
            BootState {
                confirmed: Slot::B,
                trial: None
            }
        );
        assert_eq!(
            bootloader.env().unwrap().read().unwrap().get("bootcmd"),
            Some("x")
        );
    }

    #[test]
    fn what_is_so_already_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut bootloader = bootloader(dir.path(), &[("fwupdated_slot", "a")]);
        let before = bytes(dir.path());
        bootloader.mark_bad(Slot::B).unwrap();
        bootloader.mark_good(Slot::A).unwrap();
        assert_eq!(bytes(dir.path()), before);
    }

    #[test]
    fn the_confirmed_slot_is_never_disabled_or_put_on_trial() {
        let dir = tempfile::tempdir().unwrap();
        let mut bootloader = bootloader(dir.path(), &[("fwupdated_slot", "a")]);
        let before = bytes(dir.path());
        assert_eq!(
            bootloader.mark_bad(Slot::A).unwrap_err().code,
            "slot-is-confirmed"
        );
        assert_eq!(
            bootloader.arm_trial(Slot::A, 3, "u").unwrap_err().code,
            "slot-is-confirmed"
        );
        assert_eq!(bytes(dir.path()), before);
    }

    #[test]
    fn a_board_without_our_variables_is_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let mut bootloader = bootloader(dir.path(), &[("bootcmd", "x")]);
        let failure = bootloader.arm_trial(Slot::B, 3, "u").unwrap_err();
        assert_eq!(failure.code, "bootloader-not-initialised");
        assert!(
            failure.message.contains("fw_setenv fwupdated_slot a"),
            "{failure}"
        );
        let other = tempfile::tempdir().unwrap();
        let bootloader = super::tests::bootloader(other.path(), &[("fwupdated_slot", "left")]);
        assert_eq!(bootloader.state().unwrap_err().code, "bootloader-invalid");
    }

    #[test]
    fn a_job_id_that_the_environment_cannot_hold_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut bootloader = bootloader(dir.path(), &[("fwupdated_slot", "a")]);
        let before = bytes(dir.path());
        assert_eq!(
            bootloader.arm_trial(Slot::B, 3, "a\0b").unwrap_err().code,
            "env-variable"
        );
        assert_eq!(bytes(dir.path()), before);
    }
}
