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

use self::{
    autoboot::{Autoboot, Note},
    firmware::ThisBoot,
};
use crate::update::{
    failure::{Class, Coded, Failure},
    ports::{BootState, Bootloader, PendingTrial, SLOT_IS_CONFIRMED},
    slot::Slot,
};

/// What the kernel must be rebooted with, as one argument: partition 0 is "by `autoboot.txt`".
pub const REBOOT_ARGUMENT: &str = "0 tryboot";
/// The stand-ins' partition numbers, in tests: regular files have none.
const STAND_IN_PARTITIONS: [u8; 2] = [2, 3];

/// Why the firmware's decision cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TrybootError {
    /// No device-tree cells, or an EEPROM without `tryboot_a_b`.
    #[error(
        "this board's firmware cannot try a slot: {why}. Update it (`rpi-eeprom-update -a`, or newer files on the boot \
         partition), or use U-Boot (bootloader.kind = \"uboot\")"
    )]
    Unsupported {
        /// What is missing.
        why: &'static str,
    },
    /// The partition that was booted is not the one that should have been.
    #[error(
        "the firmware booted partition {booted}, and slot {slot} boots from partition {partition}: the boot partitions and \
         root file systems are mixed up, or the firmware is too old to say. Nothing was changed. Compare slots.*.boot, \
         autoboot.txt and root= in the boot partitions' cmdline.txt"
    )]
    WrongPartition {
        /// By the device tree.
        booted: u32,
        /// The slot in question.
        slot: Slot,
        /// Its boot partition.
        partition: u8,
    },
    /// The file cannot be read.
    #[error("{} cannot be read; is its partition mounted, as bootloader.autoboot says?", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither it nor its copy can be used.
    #[error(
        "{} is missing or damaged, so is its copy, and this boot does not tell which slot is good; write it anew, with the \
         partition you trust: `[all]`, `tryboot_a_b=1`, `boot_partition=...`", .file.display()
    )]
    Invalid {
        /// The file.
        file: PathBuf,
    },
    /// It names a partition that no slot boots from.
    #[error(
        "{} boots partition {partition}, which is neither slot's; correct it, or slots.a.boot and slots.b.boot", .file.display()
    )]
    Foreign {
        /// The file.
        file: PathBuf,
        /// The partition.
        partition: u8,
    },
    /// It lies where the firmware does not look.
    #[error(
        "{} is not on {wanted}, where the firmware looks for it; mount the disk's first FAT partition and correct \
         bootloader.autoboot", .file.display()
    )]
    Elsewhere {
        /// The file.
        file: PathBuf,
        /// What it should be on.
        wanted: &'static str,
    },
    /// It cannot be written.
    #[error(
        "{} cannot be written; the old decision is still in force. Mount its partition writable", .file.display()
    )]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The medium returns something else than was written.
    #[error("{} reads back wrong: the medium is failing; replace it", .file.display())]
    ReadBack {
        /// The file.
        file: PathBuf,
    },
    /// No room.
    #[error(
        "{} has no room: its own lines and ours together exceed {} bytes; take lines out", .file.display(), autoboot::LENGTH
    )]
    TooLong {
        /// The file.
        file: PathBuf,
    },
    /// The boot partition would not boot.
    #[error(
        "the boot partition of slot {slot} ({}) is not fit to be tried: {why}. Build the image with a complete boot \
         partition (`fwupdatectl image build --boot`)", .device.display()
    )]
    BootFiles {
        /// The slot.
        slot: Slot,
        /// Its boot partition.
        device: PathBuf,
        /// What is missing.
        why: String,
    },
    /// A boot partition has no number.
    #[error(
        "{} is no partition of a disk, so that the firmware cannot boot it; set slots.*.boot to partitions", .device.display()
    )]
    NoNumber {
        /// The device.
        device: PathBuf,
    },
    /// A change that would take the confirmed slot away.
    #[error("slot {0} is the confirmed slot and cannot be disabled or put on trial")]
    Confirmed(Slot),
    /// A reboot into a trial that is not armed.
    #[error("no trial is armed in {}; someone ended it meanwhile. Start the update again", .file.display())]
    NotArmed {
        /// The file.
        file: PathBuf,
    },
}

impl Coded for TrybootError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unsupported { .. } => "tryboot-unsupported",
            Self::WrongPartition { .. } => "tryboot-wrong-partition",
            Self::Read { .. } => "autoboot-unreadable",
            Self::Invalid { .. } => "autoboot-invalid",
            Self::Foreign { .. } => "autoboot-foreign",
            Self::Elsewhere { .. } => "autoboot-elsewhere",
            Self::Write { .. } => "autoboot-write-failed",
            Self::ReadBack { .. } => "autoboot-read-back-mismatch",
            Self::TooLong { .. } => "autoboot-too-long",
            Self::BootFiles { .. } => "tryboot-boot-files",
            Self::NoNumber { .. } => "tryboot-no-partition",
            Self::Confirmed(_) => SLOT_IS_CONFIRMED,
            Self::NotArmed { .. } => "tryboot-not-armed",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Read { .. } | Self::Write { .. } => Class::Wait,
            Self::Unsupported { .. }
            | Self::WrongPartition { .. }
            | Self::Invalid { .. }
            | Self::Foreign { .. }
            | Self::Elsewhere { .. }
            | Self::ReadBack { .. }
            | Self::TooLong { .. }
            | Self::BootFiles { .. }
            | Self::NoNumber { .. }
            | Self::Confirmed(_)
            | Self::NotArmed { .. } => Class::Final,
        }
    }
}

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
    /// Finds the boot partitions' numbers, and heals an `autoboot.txt` that was lost. `boot` are the boot partitions of
    /// slots a and b; a `stand_in` has regular files for them, and `autoboot.txt` in any folder.
    ///
    /// # Errors
    /// [`TrybootError`].
    pub fn open(
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
        let bootloader = Self {
            file: file.to_owned(),
            device_tree: device_tree.to_owned(),
            boot: [(boot_a, a), (boot_b, b)],
            stand_in,
        };
        bootloader.heal()?;
        Ok(bootloader)
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
