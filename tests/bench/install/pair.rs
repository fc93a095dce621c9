//! What can be computed about two releases without any tool: blocks that differ, what RAUC's adaptive mode would fetch.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    path::Path,
};

use fwupdated::update::digest::Sha256;

/// RAUC's adaptive mode works on blocks of this size (`block-hash-index`).
const BLOCK: usize = 4096;
/// squashfs compresses so much at a time.
const SQUASH: usize = 128 << 10;

/// Calls `each` with every piece of `size` bytes of a file and its number; the last may be shorter.
fn pieces(
    path: &Path,
    size: usize,
    mut each: impl FnMut(usize, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut piece = Vec::with_capacity(size);
    for number in 0.. {
        piece.clear();
        (&mut file).take(size as u64).read_to_end(&mut piece)?;
        if piece.is_empty() {
            break;
        }
        each(number, &piece)?;
    }
    Ok(())
}

/// Bytes of blocks of 4 KiB that differ between two images.
pub(crate) fn differing(old: &Path, new: &Path) -> io::Result<u64> {
    let mut other = File::open(old)?;
    let mut before = Vec::new();
    let mut differ = 0;
    pieces(new, BLOCK, |_, block| {
        before.clear();
        (&mut other)
            .take(block.len() as u64)
            .read_to_end(&mut before)?;
        differ += if before == block {
            0
        } else {
            block.len() as u64
        };
        Ok(())
    })?;
    Ok(differ)
}

/// What RAUC's adaptive mode would fetch for `new` on a device that runs `old`: the index (32 bytes a block) and every squashfs
/// block of the bundle, compressed by zstd, in which a block of 4 KiB lies that is nowhere in the old image. Requests are not counted.
pub(crate) fn rauc_adaptive(old: &Path, new: &Path) -> io::Result<u64> {
    let mut known = HashSet::new();
    pieces(old, BLOCK, |_, block| {
        known.insert(Sha256::of(block).to_string());
        Ok(())
    })?;
    let mut bytes = 0;
    pieces(new, SQUASH, |_, squash| {
        bytes += 32 * squash.len().div_ceil(BLOCK) as u64;
        let missing = squash
            .chunks(BLOCK)
            .any(|block| !known.contains(&Sha256::of(block).to_string()));
        if missing {
            bytes += zstd::bulk::compress(squash, 15)?.len() as u64;
        }
        Ok(())
    })?;
    Ok(bytes)
}
