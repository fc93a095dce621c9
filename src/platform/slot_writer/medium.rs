//! What the slot writer needs from the thing it writes, and buffers that direct I/O accepts.

use std::io;

/// Alignment of every buffer: at least any device's demand on memory and any logical block size.
pub(in crate::platform) const BUFFER_ALIGN: usize = 4096;

/// Bytes at offsets, past any cache. Implemented by real files and devices, and in tests by one that
/// fails, loses power or has a bad sector on demand.
pub(super) trait Medium: Send {
    /// Size in bytes; a multiple of [`Medium::block`].
    fn capacity(&self) -> u64;

    /// Offsets and lengths of reads and writes are multiples of this (1: anything goes). A power of two,
    /// at most [`BUFFER_ALIGN`].
    fn block(&self) -> usize;

    /// Fills `buf` from `offset`, from the medium rather than a cache where there is a way.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `buf` at `offset`. Durable only after [`Medium::sync`].
    fn write(&mut self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes `length` bytes from `offset`, multiples of [`Medium::block`], zeros without their being written,
    /// if the medium can; false: it cannot, and any part of them may be zeros now. Durable only after
    /// [`Medium::sync`].
    fn zero(&mut self, offset: u64, length: u64) -> io::Result<bool>;

    /// Where, from `offset` up to `end`, the first byte may be that is not zero, as far as that is known
    /// without reading; `end`: there is none.
    fn next_data(&mut self, offset: u64, end: u64) -> u64;

    /// Everything written so far is on the medium, not in any cache, when this returns `Ok`.
    fn sync(&mut self) -> io::Result<()>;
}

/// A zeroed buffer that starts at a multiple of [`BUFFER_ALIGN`].
pub(in crate::platform) struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// A buffer of `len` zeros.
    pub(in crate::platform) fn new(len: usize) -> Self {
        // Allocated with room to slide the start up to the boundary; never reallocated afterwards.
        let bytes = vec![0; len + BUFFER_ALIGN];
        let start = bytes.as_ptr().align_offset(BUFFER_ALIGN);
        Self { bytes, start, len }
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// The largest multiple of `block` that is at most `offset`.
pub(super) fn floor(offset: u64, block: usize) -> u64 {
    offset - offset % block as u64
}

/// The smallest multiple of `block` that is at least `offset`.
pub(super) fn ceil(offset: u64, block: usize) -> u64 {
    floor(offset + (block as u64 - 1), block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_at_a_boundary_and_have_the_length_asked_for() {
        for len in [0, 1, 511, 4096, 1 << 20] {
            let buf = AlignedBuf::new(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr().addr() % BUFFER_ALIGN, 0);
        }
    }
}
