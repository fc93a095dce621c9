//! Why the Raspberry Pi's firmware cannot be told which slot to boot: each reason with its code and a remedy.

use std::{io, path::PathBuf};

use super::autoboot;
use crate::update::{
    failure::{Class, Coded},
    ports::SLOT_IS_CONFIRMED,
    slot::Slot,
};

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
