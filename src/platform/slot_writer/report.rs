//! What writing cost the medium.

use std::ops::AddAssign;

/// What a writer did so far. Flash wears by what is written: `bytes_written + bytes_zeroed` is the wear,
/// the other counts say what it was spared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteReport {
    /// Bytes of data handed to the medium, the wiping of the head included.
    pub bytes_written: u64,
    /// Of the bytes given to the writer, those that it did not write, since the slot held them already.
    pub bytes_skipped: u64,
    /// Zeros handed to the medium for holes, where the device cannot zero by itself.
    pub bytes_zeroed: u64,
    /// Bytes that the device was told to zero, which frees the blocks where it can.
    pub bytes_discarded: u64,
    /// Requests that wrote or zeroed.
    pub writes: u64,
    /// Syncs that the medium confirmed.
    pub syncs: u64,
    /// Bytes that could not be read where the neighbourhood of a write was to be kept, and became zeros.
    pub bytes_unreadable: u64,
}

impl WriteReport {
    /// Whether anything on the medium was changed.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.writes > 0
    }
}

impl AddAssign for WriteReport {
    fn add_assign(&mut self, other: Self) {
        self.bytes_written += other.bytes_written;
        self.bytes_skipped += other.bytes_skipped;
        self.bytes_zeroed += other.bytes_zeroed;
        self.bytes_discarded += other.bytes_discarded;
        self.writes += other.writes;
        self.syncs += other.syncs;
        self.bytes_unreadable += other.bytes_unreadable;
    }
}
