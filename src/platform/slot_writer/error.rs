//! Why a slot could not be written or read back, in words and with a code.

use std::{io, path::PathBuf};

use crate::update::failure::{Class, Coded};

/// Why a slot could not be written or read back.
#[derive(Debug, thiserror::Error)]
pub enum SlotWriteError {
    /// The image does not fit. Nothing was written.
    #[error(
        "the image needs {image} bytes but the slot {} holds {capacity}; build a smaller image or enlarge the partition",
        .device.display()
    )]
    TooSmall {
        /// The slot.
        device: PathBuf,
        /// Bytes the image needs.
        image: u64,
        /// Bytes the slot has.
        capacity: u64,
    },
    /// It runs the system. Nothing was touched.
    #[error(
        "refusing to write {}: it is mounted as / and runs this system; check slots.a and slots.b in the configuration",
        .device.display()
    )]
    RunningRoot {
        /// The slot.
        device: PathBuf,
    },
    /// Someone else has it. Nothing was touched.
    #[error("cannot use the slot {} now: {holder}; release it (umount, swapoff, losetup -d) and keep automounters away from it", .device.display())]
    Held {
        /// The slot.
        device: PathBuf,
        /// Who, in words.
        holder: String,
    },
    /// Neither a block device nor a regular file.
    #[error("the slot {} is neither a block device nor a regular file; check slots.a and slots.b in the configuration", .device.display())]
    NotASlot {
        /// The slot.
        device: PathBuf,
    },
    /// It cannot be opened.
    #[error("cannot open the slot {}; check that the partition exists and that this program may write it", .device.display())]
    Open {
        /// The slot.
        device: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A write failed; the slot stays without a head and does not mount.
    #[error("cannot write {length} bytes at {offset} of the slot {}; the medium may be failing (see dmesg)", .device.display())]
    Write {
        /// The slot.
        device: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// How much.
        length: usize,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A sync failed, so nobody knows what reached the medium; the slot stays without a head.
    #[error("the slot {} did not confirm that its data is on the medium; the medium may be failing (see dmesg)", .device.display())]
    Sync {
        /// The slot.
        device: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A read failed.
    #[error("cannot read {length} bytes at {offset} of the slot {}; the medium may be failing (see dmesg)", .device.display())]
    Read {
        /// The slot.
        device: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// How much.
        length: usize,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// An earlier write or sync of this writer failed.
    #[error("the slot {} is not written any further after an earlier error; start the installation again", .device.display())]
    Poisoned {
        /// The slot.
        device: PathBuf,
    },
}

impl Coded for SlotWriteError {
    fn code(&self) -> &'static str {
        match self {
            Self::TooSmall { .. } => "slot-too-small",
            Self::RunningRoot { .. } => "slot-is-running-root",
            Self::Held { .. } => "slot-held",
            Self::NotASlot { .. } => "slot-not-a-device",
            Self::Open { .. } => "slot-open-failed",
            Self::Write { .. } => "slot-write-failed",
            Self::Sync { .. } => "slot-sync-failed",
            Self::Read { .. } => "slot-read-failed",
            Self::Poisoned { .. } => "slot-poisoned",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Held { .. } => Class::Wait,
            Self::TooSmall { .. }
            | Self::RunningRoot { .. }
            | Self::NotASlot { .. }
            | Self::Open { .. }
            | Self::Write { .. }
            | Self::Sync { .. }
            | Self::Read { .. }
            | Self::Poisoned { .. } => Class::Final,
        }
    }
}
