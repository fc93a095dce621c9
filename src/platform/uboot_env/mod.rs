//! THE BOOT SLOT IS CHANGED HERE: in the U-Boot environment, byte-compatible with U-Boot, `fw_printenv`
//! and `fw_setenv`.
//!
//! | variable of ours | meaning |
//! |---|---|
//! | `fwupdated_slot` | `a` or `b`: the confirmed slot |
//! | `fwupdated_trial` | the slot on trial; absent otherwise |
//! | `fwupdated_tries` | boots left in this trial |
//! | `fwupdated_job` | the update that armed it: its id and, behind a blank, its version |
//!
//! Each decision is **one** write ([`UbootEnv::update`]), read back before it counts. Before a slot is written, the
//! older copy too is brought to say what is in force ([`UbootEnv::forget_older`]). How the boot script
//! reads them: [`boot_decision`]. Boards that boot with RAUC's or Mender's scripts: `variables`. What is left when
//! the environment is lost: `marks`, `restore`.

mod boot_model;
pub mod codec;
mod flash;
mod inspect;
mod location;
mod marks;
mod restore;
mod store;
mod variables;

use std::path::{Path, PathBuf};

use tracing::warn;

pub use self::{
    boot_model::{boot_decision, boot_decision_with_mark},
    codec::{Env, VariableError},
    inspect::{CopySeen, CopyState, inspect},
    location::{Area, EnvLocation, LocationError},
    marks::{BACKUP, MARK, MarkError},
    restore::{Restored, SourceError},
    store::{EnvError, UbootEnv},
    variables::own::names,
};
use self::{
    marks::Marks,
    variables::{Change, Variables, decide, scheme},
};
use crate::{
    config::{BootVariables, BootloaderConfig, BootloaderKind},
    update::{
        failure::{Class, Coded, Failure},
        ports::{BootState, Bootloader, SLOT_IS_CONFIRMED},
        slot::Slot,
    },
};

/// Why the bootloader's decision cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum BootloaderError {
    /// The environment itself.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// The variables were never set.
    #[error(
        "the U-Boot environment has no {0}; this board was not set up for fwupdated. Install the boot script, then \
         run `fw_setenv {0} {first}` (the slot that runs)",
        first = if *.0 == names::SLOT { "a" } else { "NUMBER" }
    )]
    NotInitialised(&'static str),
    /// A variable has a value that it cannot have.
    #[error(
        "the U-Boot variable {name} is `{value}`, it must be {allowed}; correct it with fw_setenv"
    )]
    Invalid {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: String,
    },
    /// The board's U-Boot would never end a trial.
    #[error(
        "the U-Boot environment has no {0}, so a trial would never end; nothing was changed. Restore the variables of \
         the board's U-Boot (`env default` there, or u-boot-initial-env), or choose other bootloader.variables"
    )]
    NoFallback(&'static str),
    /// A change that would take the confirmed slot away.
    #[error("slot {0} is the confirmed slot and cannot be disabled or put on trial")]
    Confirmed(Slot),
    /// A second mark of the confirmed slot is wrong and cannot be put right.
    #[error(
        "{} still names slot {slot} as the confirmed one, so slot {slot} is not written: if the environment were lost, \
         it would boot half written. Make the file writable (mount the partition read-write, ReadWritePaths= of \
         the unit), or remove it", .file.display()
    )]
    StaleMark {
        /// The mark.
        file: PathBuf,
        /// The slot that was to be written.
        slot: Slot,
    },
    /// The file to restore from.
    #[error(transparent)]
    Source(SourceError),
}

impl BootloaderError {
    fn invalid(name: &'static str, value: &str, allowed: &str) -> Self {
        Self::Invalid {
            name,
            value: value.chars().take(20).collect(),
            allowed: allowed.to_owned(),
        }
    }
}

impl Coded for BootloaderError {
    fn code(&self) -> &'static str {
        match self {
            Self::Env(error) => error.code(),
            Self::NotInitialised(_) => "bootloader-not-initialised",
            Self::Invalid { .. } => "bootloader-invalid",
            Self::NoFallback(_) => "bootloader-no-fallback",
            Self::Confirmed(_) => SLOT_IS_CONFIRMED,
            Self::StaleMark { .. } => "bootloader-mark-stale",
            Self::Source(_) => "env-source",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Env(error) => error.class(),
            Self::StaleMark { .. } => Class::Wait,
            Self::NotInitialised(_)
            | Self::Invalid { .. }
            | Self::NoFallback(_)
            | Self::Confirmed(_)
            | Self::Source(_) => Class::Final,
        }
    }
}

/// The port [`Bootloader`] over a U-Boot environment.
#[derive(Debug)]
pub struct UbootBootloader {
    config: PathBuf,
    lock: PathBuf,
    variables: Box<dyn Variables>,
    marks: Marks,
}

impl UbootBootloader {
    /// The environment that the file `config` (`fw_env.config`) names, under the lock file `lock`, with our own
    /// variables and no second mark. Touches nothing; both are looked at anew at each call.
    #[must_use]
    pub fn new(config: &Path, lock: &Path) -> Self {
        Self {
            config: config.to_owned(),
            lock: lock.to_owned(),
            variables: scheme(BootVariables::Fwupdated, [0; 2]),
            marks: Marks::default(),
        }
    }

    /// What the configuration says, with the saved environment in `state_directory`. Touches nothing.
    #[must_use]
    pub fn configured(config: &BootloaderConfig, state_directory: &Path) -> Self {
        Self {
            variables: scheme(config.variables, config.partitions),
            marks: Marks {
                mark_file: config.mark_file.clone(),
                apart_from_root: config.kind != BootloaderKind::File,
                backup: Some(state_directory.join(BACKUP)),
            },
            ..Self::new(&config.env_config, &config.lock_file)
        }
    }

    fn env(&self) -> Result<UbootEnv, EnvError> {
        Ok(UbootEnv::new(EnvLocation::read(&self.config)?, &self.lock))
    }

    fn variables(&self) -> &dyn Variables {
        self.variables.as_ref()
    }

    /// One decision in one write; when it is refused, nothing is written. The second marks follow it.
    fn decide(&self, change: Change<'_>) -> Result<(), BootloaderError> {
        let env = self.env()?;
        let changed = env.update(|env| -> Result<Env, BootloaderError> {
            decide(self.variables(), env, change)?;
            Ok(env.clone())
        })??;
        // During a trial they stay what they are.
        if !matches!(change, Change::ArmTrial { .. }) {
            for error in self.marks.refresh(self.variables(), &changed, env.size()) {
                warn!("a second mark of the confirmed slot is not up to date: {error}");
            }
        }
        match change {
            Change::MarkBad(slot) => self.forget(slot, &env),
            _ => Ok(()),
        }
    }

    /// Before `slot` is written: nothing that may come into force one day still names it, neither the older copy of
    /// the environment nor a second mark.
    fn forget(&self, slot: Slot, env: &UbootEnv) -> Result<(), BootloaderError> {
        env.forget_older()?;
        match self.marks.naming(self.variables(), slot) {
            Some(file) => Err(BootloaderError::StaleMark {
                file: file.to_owned(),
                slot,
            }),
            None => Ok(()),
        }
    }
}

impl Bootloader for UbootBootloader {
    fn state(&self) -> Result<BootState, Failure> {
        let read = || self.variables.state(&self.env()?.read()?);
        read().map_err(|error: BootloaderError| Failure::from(&error))
    }

    fn running(&mut self, slot: Slot) -> Result<(), Failure> {
        self.decide(Change::Running(slot))
            .map_err(|error| Failure::from(&error))
    }

    fn mark_bad(&mut self, slot: Slot) -> Result<(), Failure> {
        self.decide(Change::MarkBad(slot))
            .map_err(|error| Failure::from(&error))
    }

    fn arm_trial(&mut self, slot: Slot, tries: u8, job: &str) -> Result<(), Failure> {
        self.decide(Change::ArmTrial { slot, tries, job })
            .map_err(|error| Failure::from(&error))
    }

    fn mark_good(&mut self, slot: Slot) -> Result<(), Failure> {
        self.decide(Change::MarkGood(slot))
            .map_err(|error| Failure::from(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::ports::PendingTrial;

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
    fn each_preset_decides_in_one_write_and_before_a_slot_is_written_no_copy_names_it() {
        let initial = [
            (BootVariables::Fwupdated, &[("fwupdated_slot", "a")][..]),
            (BootVariables::Rauc, &[("BOOT_ORDER", "A B")]),
            (
                BootVariables::Mender,
                &[("mender_boot_part", "2"), ("altbootcmd", "run x")],
            ),
        ];
        for (variables, initial) in initial {
            let dir = tempfile::tempdir().unwrap();
            let mut bootloader = bootloader(dir.path(), initial);
            bootloader.variables = scheme(variables, [2, 3]);
            let (mut confirmed, mut before) = (Slot::A, bytes(dir.path()));
            for update in 0..4 {
                let spare = confirmed.other();
                bootloader.running(confirmed).unwrap();
                bootloader.mark_bad(spare).unwrap();
                let marked = bytes(dir.path());
                for bad in [0x100, 0x1100] {
                    let mut torn = marked.clone();
                    torn[bad] ^= 1;
                    std::fs::write(dir.path().join("env"), torn).unwrap();
                    let state = bootloader.state().unwrap();
                    assert_eq!((state.confirmed, state.trial), (confirmed, None));
                }
                std::fs::write(dir.path().join("env"), &marked).unwrap();
                if update == 0 {
                    bootloader.mark_bad(spare).unwrap();
                    assert_eq!(bytes(dir.path()), marked, "so already: {variables:?}");
                }
                before = marked;
                for good in [false, true] {
                    if good {
                        bootloader.mark_good(spare).unwrap();
                    } else {
                        bootloader.arm_trial(spare, 3, "u1").unwrap();
                    }
                    let after = bytes(dir.path());
                    let halves = [0..0x1000, 0x1000..0x2000];
                    let changed = |half: &&std::ops::Range<usize>| {
                        before[(*half).clone()] != after[(*half).clone()]
                    };
                    assert_eq!(halves.iter().filter(changed).count(), 1, "{variables:?}");
                    before = after;
                }
                confirmed = spare;
            }
            assert_eq!(bytes(dir.path()), before);
        }
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
