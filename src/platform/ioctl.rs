//! The three questions to a block device that have no safe wrapper: size, sector size, cache.
//!
//! The only file with `unsafe`; each call carries its proof. The request numbers are those of
//! `<linux/fs.h>`, group `0x12`.
#![allow(unsafe_code)]

use std::{fs::File, io, os::fd::AsRawFd};

use nix::{libc::c_int, request_code_none};

mod raw {
    use super::{c_int, request_code_none};

    // The kernel encodes BLKGETSIZE64 with `size_t` though it fills in 64 bits: with `u64` here the
    // number would be wrong on 32-bit ARM.
    nix::ioctl_read!(
        /// Size of the device in bytes.
        blkgetsize64, 0x12, 114, usize
    );
    nix::ioctl_read_bad!(
        /// Logical block size in bytes.
        blksszget, request_code_none!(0x12, 104), c_int
    );
    nix::ioctl_none_bad!(
        /// Write back and drop the device's page cache.
        blkflsbuf, request_code_none!(0x12, 97)
    );
}

/// The size of the block device `device`, in bytes.
///
/// # Errors
/// What the kernel says; `ENOTTY` when `device` is no block device.
pub fn device_size(device: &File) -> io::Result<u64> {
    let mut size: u64 = 0;
    // SAFETY: the descriptor is open for as long as `device` is borrowed. BLKGETSIZE64 writes exactly
    // eight bytes (put_u64 in the kernel, on 32 bit too) to the pointer, which names a live, aligned
    // `u64`; the cast only satisfies the macro, whose `usize` stands for the request number.
    unsafe { raw::blkgetsize64(device.as_raw_fd(), (&raw mut size).cast::<usize>()) }?;
    Ok(size)
}

/// The logical block size of the block device `device`, in bytes: what direct I/O must be aligned to.
///
/// # Errors
/// What the kernel says; `ENOTTY` when `device` is no block device.
pub fn logical_block_size(device: &File) -> io::Result<usize> {
    let mut size: c_int = 0;
    // SAFETY: the descriptor is open for as long as `device` is borrowed; BLKSSZGET writes one `int`
    // to the pointer, which names a live, aligned `c_int`.
    unsafe { raw::blksszget(device.as_raw_fd(), &raw mut size) }?;
    usize::try_from(size)
        .ok()
        .filter(|size| size.is_power_of_two())
        .ok_or_else(|| io::Error::other(format!("the kernel reports a sector size of {size}")))
}

/// Writes back and drops what the page cache holds of the block device `device`, so that the next
/// read comes from the medium. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// What the kernel says; `EACCES` without the capability.
pub fn flush_buffers(device: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `device` is borrowed; BLKFLSBUF takes no argument
    // and touches no memory of this process.
    unsafe { raw::blkflsbuf(device.as_raw_fd()) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_block_device_is_an_error_not_a_size() {
        let null = File::open("/dev/null").unwrap();
        assert!(device_size(&null).is_err());
        assert!(logical_block_size(&null).is_err());
        assert!(flush_buffers(&null).is_err());
    }
}
