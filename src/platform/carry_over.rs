//! FILES OF THE RUNNING SYSTEM ARE COPIED INTO THE NEW ONE HERE, before it is armed: identity, keys, and what else
//! the operator lists.
//!
//! - **All or nothing.** Any failure is the caller's to give the slot up for: nothing half copied is ever armed.
//! - **What counts is on the medium.** When all is copied, the file system is synced and unmounted, mounted again
//!   read-only, and every file is read back and compared.
//! - **Nothing leads out of the new root.** Every path in it is resolved by the kernel as if it were `/`
//!   (`RESOLVE_IN_ROOT`, openat2(2)): a link in an image cannot make us write to the running system.
//! - **Nothing stays behind.** The file system is mounted to a descriptor (fsmount(2), Linux 5.2), nowhere in the
//!   tree: when the process ends, however, it is unmounted, and nobody else ever sees it.

mod copy;
mod file_system;
mod pattern;

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, openat, syncfs},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

pub use file_system::FileSystem;

use super::{busy::patiently, slots::InactiveSlot};
use crate::update::failure::{Class, Coded};

/// Why files could not be carried over.
#[derive(Debug, thiserror::Error)]
pub enum CarryOverError {
    /// A stand-in for a slot.
    #[error("{} is a regular file, which cannot be mounted; carry_over.paths needs block devices as slots", .0.display())]
    NotADevice(PathBuf),
    /// An image that cannot be changed.
    #[error(
        "{} holds {kind}, which cannot be written to, so that nothing can be carried over; empty carry_over.paths, and \
         keep what must outlive an update on a partition that both slots share", .device.display()
    )]
    ReadOnly {
        /// The slot.
        device: PathBuf,
        /// Its file system.
        kind: &'static str,
    },
    /// No file system that is known here.
    #[error(
        "the file system on {} is none that files can be carried over to (ext4, btrfs, xfs, f2fs); build the image with \
         one of these, or empty carry_over.paths", .0.display()
    )]
    Unknown(PathBuf),
    /// The kernel does not mount it.
    #[error("the new file system on {} cannot be mounted; check the image with fsck, and the kernel's log (`dmesg`)", .device.display())]
    Mount {
        /// The slot.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The running system's file.
    #[error("{} cannot be read to be carried over; repair it, or take it out of carry_over.paths", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No room.
    #[error(
        "the new root file system has no room left for {}, which is to be carried over; make the image's file system \
         larger, or carry_over.paths shorter", .0.display()
    )]
    Full(PathBuf),
    /// The new system's file.
    #[error("{} cannot be written into the new root file system", .path.display())]
    Write {
        /// The file or folder, as it is named there.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The medium returns something else.
    #[error("{} reads back otherwise than it was written into the new root file system: the medium is failing", .0.display())]
    ReadBack(PathBuf),
}

impl Coded for CarryOverError {
    fn code(&self) -> &'static str {
        match self {
            Self::NotADevice(_) => "carry-over-not-a-device",
            Self::ReadOnly { .. } => "carry-over-read-only",
            Self::Unknown(_) => "carry-over-file-system",
            Self::Mount { .. } => "carry-over-mount",
            Self::Read { .. } => "carry-over-read",
            Self::Full(_) => "carry-over-full",
            Self::Write { .. } => "carry-over-write",
            Self::ReadBack(_) => "carry-over-read-back-mismatch",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// What was carried over.
#[derive(Debug, Default)]
pub struct Carried {
    /// Regular files, folders and links.
    pub entries: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Sockets, pipes and devices, which were left out.
    pub left_out: Vec<PathBuf>,
}

/// Copies what `patterns` name from the running system into `slot`'s root file system. Blocks.
///
/// # Errors
/// [`CarryOverError`]; the slot must not be booted then.
pub fn carry_over(patterns: &[String], slot: &InactiveSlot) -> Result<Carried, CarryOverError> {
    carry(Path::new("/"), patterns, slot.path())
}

fn carry(from: &Path, patterns: &[String], device: &Path) -> Result<Carried, CarryOverError> {
    let mount_failed = |source| CarryOverError::Mount {
        device: device.to_owned(),
        source,
    };
    let meta = fs::metadata(device).map_err(mount_failed)?;
    if !meta.file_type().is_block_device() {
        return Err(CarryOverError::NotADevice(device.to_owned()));
    }
    let kind = match FileSystem::detect(device).map_err(mount_failed)? {
        FileSystem::Writable(kind) => kind,
        FileSystem::ReadOnly(kind) => {
            let device = device.to_owned();
            return Err(CarryOverError::ReadOnly { device, kind });
        }
        FileSystem::Unknown => return Err(CarryOverError::Unknown(device.to_owned())),
    };
    let (carried, files) = {
        let root = mount(device, kind, Access::Write)?;
        let mut copy = copy::Copy::new(from, &root);
        for pattern in patterns {
            let found = pattern::expand(from, pattern);
            let found = found.map_err(|(path, source)| CarryOverError::Read { path, source })?;
            for path in found {
                copy.take(&path)?;
            }
        }
        let whole = openat(&root, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let synced = whole.and_then(|root| syncfs(&root));
        synced.map_err(|errno| CarryOverError::Write {
            path: "/".into(),
            source: errno.into(),
        })?;
        copy.finish()
    };
    // Unmounted now, so that nothing is read from the cache.
    let root = mount(device, kind, Access::Read)?;
    for file in &files {
        file.check(&root)?;
    }
    Ok(carried)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// The root of the file system on `device`; unmounted when it and all that was opened below it is closed.
fn mount(device: &Path, kind: &'static str, access: Access) -> Result<OwnedFd, CarryOverError> {
    let mounted = || {
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", device)?;
        if access == Access::Read {
            fsconfig_set_flag(&context, "ro")?;
        }
        fsconfig_create(&context)?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        if access == Access::Read {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    // Until the last mount is gone for good, the kernel refuses one with other access.
    patiently(mounted, |errno| *errno == Errno::BUSY).map_err(|errno| match errno {
        Errno::ROFS => CarryOverError::ReadOnly {
            device: device.to_owned(),
            kind,
        },
        errno => CarryOverError::Mount {
            device: device.to_owned(),
            source: errno.into(),
        },
    })
}

#[cfg(test)]
mod tests;
