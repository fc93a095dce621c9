//! What is asked of a device and has no safe wrapper: of a block device its size, sector size and cache; of raw flash
//! its shape, its bad blocks, and to erase a block.
//!
//! The only file with `unsafe`; each call carries its proof. The request numbers are those of
//! `<linux/fs.h>`, group `0x12`, and `<mtd/mtd-abi.h>`, group `M`.
#![allow(unsafe_code)]

use std::{fs::File, io, os::fd::AsRawFd};

use nix::{
    libc::{c_int, loff_t},
    request_code_none,
};

mod raw {
    use super::{c_int, loff_t, request_code_none};

    /// `struct mtd_info_user`.
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct MtdInfoUser {
        pub(super) kind: u8,
        pub(super) flags: u32,
        pub(super) size: u32,
        pub(super) erase_size: u32,
        pub(super) write_size: u32,
        pub(super) oob_size: u32,
        pub(super) padding: u64,
    }

    /// `struct erase_info_user`.
    #[repr(C)]
    pub(super) struct EraseInfoUser {
        pub(super) start: u32,
        pub(super) length: u32,
    }

    nix::ioctl_read!(
        /// Type and sizes of a flash device.
        memgetinfo, b'M', 1, MtdInfoUser
    );
    nix::ioctl_write_ptr!(
        /// Erases blocks.
        memerase, b'M', 2, EraseInfoUser
    );
    nix::ioctl_write_ptr!(
        /// Lifts the write protection of blocks.
        memunlock, b'M', 6, EraseInfoUser
    );
    nix::ioctl_write_ptr!(
        /// Whether a block is bad: 0 or 1.
        memgetbadblock, b'M', 11, loff_t
    );

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

/// What a flash device is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MtdInfo {
    /// Its type: `MTD_NORFLASH` and so on in `<mtd/mtd-abi.h>`.
    pub kind: u8,
    /// Bytes of the whole device.
    pub size: u64,
    /// Bytes of an erase block.
    pub erase_size: u32,
    /// Bytes of the smallest write: 1 for NOR, a page for NAND.
    pub write_size: u32,
}

/// The shape of the flash device `device`.
///
/// # Errors
/// What the kernel says; `ENOTTY` when `device` is no MTD.
pub fn mtd_info(device: &File) -> io::Result<MtdInfo> {
    let mut info = raw::MtdInfoUser::default();
    // SAFETY: the descriptor is open for as long as `device` is borrowed; MEMGETINFO fills in one
    // `struct mtd_info_user`, and the pointer names a live, aligned one with the same layout.
    unsafe { raw::memgetinfo(device.as_raw_fd(), &raw mut info) }?;
    Ok(MtdInfo {
        kind: info.kind,
        size: info.size.into(),
        erase_size: info.erase_size,
        write_size: info.write_size,
    })
}

/// Erases `length` bytes from `start` on, both multiples of the erase size.
///
/// # Errors
/// What the kernel says.
pub fn mtd_erase(device: &File, start: u64, length: u32) -> io::Result<()> {
    let blocks = blocks(start, length)?;
    // SAFETY: the descriptor is open for as long as `device` is borrowed; MEMERASE reads one
    // `struct erase_info_user`, and the pointer names a live, aligned one with the same layout.
    unsafe { raw::memerase(device.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// Lifts the write protection of `length` bytes from `start` on.
///
/// # Errors
/// What the kernel says; `EOPNOTSUPP` where there is no such protection.
pub fn mtd_unlock(device: &File, start: u64, length: u32) -> io::Result<()> {
    let blocks = blocks(start, length)?;
    // SAFETY: as in `mtd_erase`; MEMUNLOCK reads the same structure.
    unsafe { raw::memunlock(device.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// Whether the block at `start` is bad; never on flash without bad blocks.
///
/// # Errors
/// What the kernel says.
pub fn mtd_block_is_bad(device: &File, start: u64) -> io::Result<bool> {
    let start = loff_t::try_from(start).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for as long as `device` is borrowed; MEMGETBADBLOCK reads one
    // `loff_t`, and the pointer names a live, aligned one.
    match unsafe { raw::memgetbadblock(device.as_raw_fd(), &raw const start) } {
        Ok(bad) => Ok(bad != 0),
        Err(nix::Error::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn blocks(start: u64, length: u32) -> io::Result<raw::EraseInfoUser> {
    let start = u32::try_from(start).map_err(io::Error::other)?;
    Ok(raw::EraseInfoUser { start, length })
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
        assert!(mtd_info(&null).is_err());
        assert!(mtd_erase(&null, 0, 1).is_err());
        assert!(mtd_unlock(&null, 0, 1).is_err());
        assert!(mtd_block_is_bad(&null, 0).is_err());
    }

    #[test]
    fn structures_have_the_size_that_their_request_numbers_say() {
        assert_eq!(size_of::<raw::MtdInfoUser>(), 32);
        assert_eq!(size_of::<raw::EraseInfoUser>(), 8);
    }
}
