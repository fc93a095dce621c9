//! Opens a slot's device or file, and refuses one that runs the system or that someone else holds.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, posix_fadvise},
    unistd::{Whence, lseek64},
};
use rustix::fs::{FallocateFlags, fallocate};
use tracing::debug;

use super::{
    SlotWriteError,
    holders::{holder_of, refuse_held_file, refuse_running_root},
    medium::{AlignedBuf, BUFFER_ALIGN, Medium, floor},
};
use crate::platform::{busy::patiently, ioctl};

/// What a slot is opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading back.
    Read,
    /// Writing: the running root is refused.
    Write,
}

/// A block device or a regular file, with direct I/O where the medium allows it.
pub(super) struct DeviceMedium {
    file: File,
    capacity: u64,
    block: usize,
    is_device: bool,
    /// Until it refused, the device is taken to be able to zero ranges by itself.
    zeroes: bool,
}

impl DeviceMedium {
    /// Opens `path` exclusively: a block device with O_EXCL, a regular file with a lock.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, SlotWriteError> {
        let failed = |source: io::Error| SlotWriteError::Open {
            device: path.to_owned(),
            source,
        };
        let meta = fs::metadata(path).map_err(failed)?;
        let is_device = meta.file_type().is_block_device();
        if !is_device && !meta.is_file() {
            return Err(SlotWriteError::NotASlot {
                device: path.to_owned(),
            });
        }
        if access == Access::Write {
            refuse_running_root(path, &meta)?;
        }
        let (file, direct) = open_direct(path, access, is_device)
            .map_err(|error| held_or(path, &meta, error, failed))?;
        let opened = file.metadata().map_err(failed)?;
        if (opened.dev(), opened.ino(), opened.rdev()) != (meta.dev(), meta.ino(), meta.rdev()) {
            return Err(failed(io::Error::other(
                "it was replaced by another device or file while it was being opened",
            )));
        }
        if !is_device {
            refuse_held_file(path, &file, &meta)?;
        }
        let (capacity, block) = if is_device {
            let size = ioctl::device_size(&file).map_err(failed)?;
            let block = ioctl::logical_block_size(&file).map_err(failed)?;
            // Only whole sectors can be reached; a loop device over an odd file reports more.
            (floor(size, block), block)
        } else {
            (opened.len(), BUFFER_ALIGN)
        };
        let mut medium = Self {
            file,
            capacity,
            block: 1,
            is_device,
            zeroes: true,
        };
        if direct {
            medium.try_direct(block).map_err(failed)?;
        }
        Ok(medium)
    }

    /// Keeps O_DIRECT when a first read with it works, else turns it off for good: some file systems
    /// accept the flag and refuse the transfer, and an odd length has no aligned end.
    fn try_direct(&mut self, block: usize) -> io::Result<()> {
        let usable = block <= BUFFER_ALIGN && self.capacity.is_multiple_of(block as u64);
        if usable {
            let mut probe = AlignedBuf::new(block);
            match self.file.read_at(&mut probe, 0) {
                Err(error) if is(&error, Errno::EINVAL) => {}
                // Any other error is not about the flag; whoever reads that place will meet it again.
                Ok(_) | Err(_) => {
                    self.block = block;
                    return Ok(());
                }
            }
        }
        let flags = fcntl(&self.file, FcntlArg::F_GETFL)?;
        let flags = OFlag::from_bits_retain(flags) & !OFlag::O_DIRECT;
        fcntl(&self.file, FcntlArg::F_SETFL(flags))?;
        Ok(())
    }

    fn buffered(&self) -> bool {
        self.block == 1
    }

    /// Forgets what the page cache holds, so that the next read comes from the medium. Direct I/O needs
    /// no such help.
    pub(super) fn drop_cache(&self) -> io::Result<()> {
        if !self.buffered() {
            return Ok(());
        }
        if self.is_device {
            ioctl::flush_buffers(&self.file)
        } else {
            // Only clean pages are dropped: write back first.
            self.file.sync_data()?;
            posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
            Ok(())
        }
    }
}

impl Drop for DeviceMedium {
    fn drop(&mut self) {
        if !self.is_device {
            // Closing is not enough: a process that is just being started still has a copy of the descriptor,
            // and would hold the lock a moment longer. Where unlocking fails, closing is all there is.
            let _ = self.file.unlock();
        }
    }
}

impl Medium for DeviceMedium {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn block(&self) -> usize {
        self.block
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn zero(&mut self, offset: u64, length: u64) -> io::Result<bool> {
        if !self.zeroes {
            return Ok(false);
        }
        // The kernel promises zeros in the range afterwards, or refuses: on a block device this is a
        // write-zeroes request that may unmap, never one that it would write out itself.
        // Not nix's: its offsets are of 32 bits on 32-bit ARM, and slots are larger than 2 GiB.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zeroed = fallocate(&self.file, flags, offset, length);
        if let Err(errno) = zeroed {
            // Whatever the reason: zeros are then written, over what may be zeroed in part; a medium that fails
            // will say so there.
            debug!(%errno, "the device does not zero by itself");
            self.zeroes = false;
        }
        Ok(self.zeroes)
    }

    fn next_data(&mut self, offset: u64, end: u64) -> u64 {
        if self.is_device {
            return offset;
        }
        // The position that this moves is used by nobody: reads and writes say where.
        let data =
            signed(offset).and_then(|offset| Ok(lseek64(&self.file, offset, Whence::SeekData)?));
        match data {
            Ok(data) => u64::try_from(data).map_or(offset, |data| data.clamp(offset, end)),
            // Nothing but a hole up to the end of the file.
            Err(error) if is(&error, Errno::ENXIO) => end,
            Err(_) => offset,
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        // The length never changes, so data is all there is to sync; for a device this also flushes its
        // own write cache.
        self.file.sync_data()?;
        if self.buffered() && !self.is_device {
            posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
        Ok(())
    }
}

fn signed(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::Error::from(Errno::EFBIG))
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno as i32)
}

fn open_direct(path: &Path, access: Access, is_device: bool) -> io::Result<(File, bool)> {
    // O_EXCL without O_CREAT: the kernel refuses a device that is mounted or claimed, and nobody can
    // mount or claim it while it is open.
    let exclusive = if is_device {
        OFlag::O_EXCL
    } else {
        OFlag::empty()
    };
    let open = |flags: OFlag| {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(access == Access::Write)
            .custom_flags(flags.bits());
        patiently(|| options.open(path), |error| is(error, Errno::EBUSY))
    };
    match open(exclusive | OFlag::O_DIRECT) {
        Ok(file) => Ok((file, true)),
        Err(error) if is(&error, Errno::EINVAL) => open(exclusive).map(|file| (file, false)),
        Err(error) => Err(error),
    }
}

fn held_or(
    path: &Path,
    meta: &Metadata,
    error: io::Error,
    otherwise: impl FnOnce(io::Error) -> SlotWriteError,
) -> SlotWriteError {
    if is(&error, Errno::EBUSY) {
        SlotWriteError::Held {
            device: path.to_owned(),
            holder: holder_of(meta.rdev()),
        }
    } else {
        otherwise(error)
    }
}
