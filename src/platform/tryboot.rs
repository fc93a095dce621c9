//! THE BOOT SLOT IS CHANGED HERE on boards that the Raspberry Pi's own firmware boots: in `autoboot.txt`.
//!
//! | file | line | means |
//! |---|---|---|
//! | `autoboot.txt` | `[all] boot_partition=` | the confirmed slot's boot partition |
//! | | `[tryboot] boot_partition=` | the other slot's: a reboot with the flag `tryboot` boots it once |
//! | `autoboot.bak` | | a copy, which heals a file that the medium lost |
//! | `fwupdated.txt` | `trial=b armed job=...` | a trial that the firmware was not asked for yet |
//! | | `trial=b started job=...` | the reboot with the flag was asked for: only its outcome is unknown |
//!
//! Guarantees:
//! - Each decision is **one** sector, synced and read back ([`file`]).
//! - `autoboot.txt` changes when a slot is confirmed, and only then (and once on a board that comes without `[tryboot]`):
//!   both slots boot at that time, so that even a sector that is lost leads the firmware to a slot that boots.
//! - The firmware's flag does not outlive the next boot, so the intent is the one on the medium: a trial that was armed
//!   but never started is armed again at the next start ([`Bootloader::trial_not_started`]). A trial gets one boot.
//! - Without file and copy, the slot that the firmware chose by itself becomes the confirmed one.

pub mod autoboot;
mod boot_files;
mod error;
mod file;
mod firmware;

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::{
        stat::{major, minor},
        statfs::{MSDOS_SUPER_MAGIC, statfs},
    },
};
use tracing::warn;

pub use self::error::TrybootError;
use self::{
    autoboot::{Autoboot, Note},
    firmware::ThisBoot,
};
use crate::update::{
    failure::Failure,
    ports::{BootState, Bootloader, PendingTrial},
    slot::Slot,
};

/// What the kernel must be rebooted with, as one argument: partition 0 is "by `autoboot.txt`".
pub const REBOOT_ARGUMENT: &str = "0 tryboot";
/// The stand-ins' partition numbers, in tests: regular files have none.
const STAND_IN_PARTITIONS: [u8; 2] = [2, 3];

type Result<T> = std::result::Result<T, TrybootError>;

/// The port [`Bootloader`] over `autoboot.txt`.
#[derive(Debug)]
pub struct TrybootBootloader {
    file: PathBuf,
    device_tree: PathBuf,
    /// The boot partitions of slots a and b, and their numbers.
    boot: [(PathBuf, u8); 2],
    stand_in: bool,
}

impl TrybootBootloader {
    /// As [`TrybootBootloader::look_only`], and heals an `autoboot.txt` that was lost.
    ///
    /// # Errors
    /// [`TrybootError`].
    pub fn open(
        file: &Path,
        device_tree: &Path,
        boot: [PathBuf; 2],
        stand_in: bool,
    ) -> Result<Self> {
        let bootloader = Self::look_only(file, device_tree, boot, stand_in)?;
        bootloader.heal()?;
        Ok(bootloader)
    }

    /// Finds the boot partitions' numbers and changes nothing. `boot` are the boot partitions of slots a and b; a
    /// `stand_in` has regular files for them, and `autoboot.txt` in any folder.
    ///
    /// # Errors
    /// [`TrybootError`].
    pub fn look_only(
        file: &Path,
        device_tree: &Path,
        boot: [PathBuf; 2],
        stand_in: bool,
    ) -> Result<Self> {
        let [a, b] = if stand_in {
            STAND_IN_PARTITIONS
        } else {
            [number(&boot[0])?, number(&boot[1])?]
        };
        let [boot_a, boot_b] = boot;
        Ok(Self {
            file: file.to_owned(),
            device_tree: device_tree.to_owned(),
            boot: [(boot_a, a), (boot_b, b)],
            stand_in,
        })
    }

    /// The copy beside the file.
    fn copy(&self) -> PathBuf {
        self.file.with_extension("bak")
    }

    /// The trial's note beside the file.
    fn note_file(&self) -> PathBuf {
        self.file.with_file_name("fwupdated.txt")
    }

    /// The pending trial that is written down. One that cannot be read is none: no reboot gets the flag then.
    fn note(&self) -> Option<Note> {
        Note::parse(&file::read(&self.note_file()).ok()??)
    }

    fn write_note(&self, note: Option<&Note>) -> Result<()> {
        if self.note().as_ref() == note {
            return Ok(());
        }
        self.put(&self.note_file(), &Note::render(note))
    }

    fn partition(&self, slot: Slot) -> u8 {
        self.boot(slot).1
    }

    fn boot(&self, slot: Slot) -> &(PathBuf, u8) {
        match slot {
            Slot::A => &self.boot[0],
            Slot::B => &self.boot[1],
        }
    }

    fn slot(&self, partition: u8) -> Result<Slot> {
        let slot = Slot::ALL
            .into_iter()
            .find(|slot| self.partition(*slot) == partition);
        slot.ok_or_else(|| TrybootError::Foreign {
            file: self.file.clone(),
            partition,
        })
    }

    fn this_boot(&self) -> Result<ThisBoot> {
        firmware::this_boot(&self.device_tree).map_err(|why| TrybootError::Unsupported { why })
    }

    /// That the firmware booted from `slot`'s boot partition.
    fn check_booted(&self, slot: Slot) -> Result<()> {
        let (booted, partition) = (self.this_boot()?.partition, self.partition(slot));
        if booted == u32::from(partition) {
            return Ok(());
        }
        Err(TrybootError::WrongPartition {
            booted,
            slot,
            partition,
        })
    }

    /// The present decision: of the file, else of its copy, else what this boot tells.
    fn load(&self) -> Result<Autoboot> {
        if !self.stand_in {
            check_place(&self.file, &self.boot[0].0)?;
        }
        for path in [self.file.clone(), self.copy()] {
            match file::read(&path) {
                Ok(bytes) => {
                    if let Some(found) = bytes.as_deref().and_then(Autoboot::parse) {
                        return Ok(found);
                    }
                }
                // What the medium does not give back, it does not give the firmware either.
                Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => {}
                Err(source) => return Err(TrybootError::Read { file: path, source }),
            }
        }
        let boot = self.this_boot()?;
        let running = u8::try_from(boot.partition)
            .ok()
            .filter(|_| !boot.tryboot)
            .and_then(|partition| self.slot(partition).ok());
        let running = running.ok_or_else(|| TrybootError::Invalid {
            file: self.file.clone(),
        })?;
        Ok(Autoboot::new(
            self.partition(running),
            self.partition(running.other()),
        ))
    }

    /// Writes the file anew when it is missing or damaged, and the copy when it differs.
    fn heal(&self) -> Result<()> {
        let decision = self.load()?;
        let holds = |path: &Path| {
            let found = file::read(path).ok().flatten();
            found.as_deref().and_then(Autoboot::parse).as_ref() == Some(&decision)
        };
        if !holds(&self.file) {
            warn!(
                "{} was missing or damaged; writing it anew: partition {} boots",
                self.file.display(),
                decision.default
            );
            self.write(&self.file, &decision)?;
        }
        if !holds(&self.copy())
            && let Err(error) = self.write(&self.copy(), &decision)
        {
            warn!("the copy of autoboot.txt cannot be kept: {error}");
        }
        Ok(())
    }

    fn write(&self, path: &Path, decision: &Autoboot) -> Result<()> {
        let file = || path.to_owned();
        let bytes = decision
            .render()
            .map_err(|_| TrybootError::TooLong { file: file() })?;
        self.put(path, &bytes)
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = || path.to_owned();
        match file::write(path, bytes) {
            Ok(true) => Ok(()),
            Ok(false) => Err(TrybootError::ReadBack { file: file() }),
            Err(source) => Err(TrybootError::Write {
                file: file(),
                source,
            }),
        }
    }

    /// Changes `autoboot.txt`, unless it says so already.
    fn decide(&self, before: &Autoboot, default: Slot) -> Result<()> {
        let mut decision = before.clone();
        decision.default = self.partition(default);
        decision.flagged = self.partition(default.other());
        if decision == *before {
            return Ok(());
        }
        self.write(&self.file, &decision)?;
        // The decision is in force; the copy only heals a medium that loses it.
        if let Err(error) = self.write(&self.copy(), &decision) {
            warn!("the copy of autoboot.txt cannot be kept: {error}");
        }
        Ok(())
    }

    fn confirmed(&self, decision: &Autoboot) -> Result<Slot> {
        self.slot(decision.default)
    }

    /// Refuses when `slot` is the confirmed one.
    fn check_unconfirmed(&self, decision: &Autoboot, slot: Slot) -> Result<()> {
        if self.confirmed(decision)? == slot {
            return Err(TrybootError::Confirmed(slot));
        }
        Ok(())
    }

    fn look(&self) -> Result<BootState> {
        let boot = self.this_boot()?;
        let confirmed = self.confirmed(&self.load()?)?;
        let other = confirmed.other();
        // Without a note (someone else's tool) the flag itself tells.
        let tried_now = boot.tryboot && boot.partition == u32::from(self.partition(other));
        let (tries_left, job) = match self.note() {
            Some(note) if note.slot == other => (Some(u8::from(!note.started)), Some(note.job)),
            _ => (tried_now.then_some(0), None),
        };
        let trial = tries_left.map(|tries_left| PendingTrial {
            slot: other,
            tries_left,
            job,
        });
        Ok(BootState { confirmed, trial })
    }

    fn disable(&self, slot: Slot) -> Result<()> {
        self.check_unconfirmed(&self.load()?, slot)?;
        self.write_note(None)
    }

    fn arm(&self, slot: Slot, job: &str) -> Result<()> {
        let decision = self.load()?;
        self.check_unconfirmed(&decision, slot)?;
        self.check_booted(slot.other())?;
        let (device, partition) = self.boot(slot);
        boot_files::check(device, *partition).map_err(|why| TrybootError::BootFiles {
            slot,
            device: device.clone(),
            why,
        })?;
        self.decide(&decision, slot.other())?;
        self.write_note(Some(&Note {
            slot,
            started: false,
            job: job.to_owned(),
        }))
    }

    fn start(&self) -> Result<()> {
        let Some(note) = self.look()?.trial.and(self.note()) else {
            return Err(TrybootError::NotArmed {
                file: self.note_file(),
            });
        };
        self.write_note(Some(&Note {
            started: true,
            ..note
        }))
    }

    fn confirm(&self, slot: Slot) -> Result<()> {
        // What is proved good is the root file system together with the boot partition that started it.
        self.check_booted(slot)?;
        self.decide(&self.load()?, slot)?;
        // Confirmed. A note of this slot means nothing any more; one that stays says nothing.
        if let Err(error) = self.write_note(None) {
            warn!("the note of the trial that ended cannot be removed: {error}");
        }
        Ok(())
    }
}

type Answer<T> = std::result::Result<T, Failure>;

impl Bootloader for TrybootBootloader {
    fn state(&self) -> Answer<BootState> {
        self.look().map_err(|error| Failure::from(&error))
    }

    fn mark_bad(&mut self, slot: Slot) -> Answer<()> {
        self.disable(slot).map_err(|error| Failure::from(&error))
    }

    /// `tries` is 1: [`crate::config`] sees to it.
    fn arm_trial(&mut self, slot: Slot, _tries: u8, job: &str) -> Answer<()> {
        self.arm(slot, job).map_err(|error| Failure::from(&error))
    }

    fn mark_good(&mut self, slot: Slot) -> Answer<()> {
        self.confirm(slot).map_err(|error| Failure::from(&error))
    }

    fn start_trial(&mut self) -> Answer<Option<&'static str>> {
        self.start().map_err(|error| Failure::from(&error))?;
        Ok(Some(REBOOT_ARGUMENT))
    }

    fn trial_not_started(&self) -> Answer<bool> {
        let trial = self.state()?.trial;
        Ok(trial.is_some_and(|trial| trial.tries_left > 0))
    }
}

/// The sysfs folder of a block device.
fn sysfs(device: u64) -> io::Result<PathBuf> {
    fs::canonicalize(format!(
        "/sys/dev/block/{}:{}",
        major(device),
        minor(device)
    ))
}

/// The number of a partition on its disk.
fn number(device: &Path) -> Result<u8> {
    let find = || -> Option<u8> {
        let meta = fs::metadata(device).ok()?;
        if !meta.file_type().is_block_device() {
            return None;
        }
        let number = fs::read_to_string(sysfs(meta.rdev()).ok()?.join("partition")).ok()?;
        number.trim().parse().ok()
    };
    find().ok_or_else(|| TrybootError::NoNumber {
        device: device.to_owned(),
    })
}

/// That the file lies on a FAT partition of the disk that `boot` is a partition of: the folder of a partition that is
/// not mounted looks just like it.
fn check_place(file: &Path, boot: &Path) -> Result<()> {
    let elsewhere = |wanted| TrybootError::Elsewhere {
        file: file.to_owned(),
        wanted,
    };
    let unreadable = |source| TrybootError::Read {
        file: file.to_owned(),
        source,
    };
    let folder = file.parent().unwrap_or(Path::new("/"));
    let kind = statfs(folder).map_err(|error| unreadable(error.into()))?;
    if kind.filesystem_type() != MSDOS_SUPER_MAGIC {
        return Err(elsewhere("a FAT file system"));
    }
    let disk = |device| sysfs(device).ok()?.parent().map(Path::to_owned);
    let own = fs::metadata(folder).map_err(unreadable)?.dev();
    let of_boot = fs::metadata(boot).map_err(unreadable)?.rdev();
    match (disk(own), disk(of_boot)) {
        (Some(own), Some(other)) if own == other => Ok(()),
        _ => Err(elsewhere("the disk with the slots")),
    }
}

#[cfg(test)]
mod tests;
