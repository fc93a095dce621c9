//! Some chunks on their way through the threads of a stage.

use crate::{
    image::{ChunkEntry, check_digest},
    update::failure::Failure,
};

/// Chunks and their raw bytes.
#[derive(Default)]
pub struct Piece {
    /// With their numbers, in order.
    pub chunks: Vec<(usize, ChunkEntry)>,
    /// Their bytes, one after the other.
    pub raw: Vec<u8>,
    /// Which of them are what the index says, as far as that is known.
    pub good: Vec<bool>,
}

impl Piece {
    /// Holds nothing any more, but keeps its memory.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.raw.clear();
        self.good.clear();
    }

    /// Compares the digests of those that are good so far.
    pub fn check(&mut self) {
        let mut rest = &self.raw[..];
        for ((_, chunk), good) in self.chunks.iter().zip(&mut self.good) {
            let (raw, behind) = rest.split_at(chunk.raw_len as usize);
            *good = *good && check_digest(chunk, raw).is_ok();
            rest = behind;
        }
    }

    /// Calls `task` with each chunk, its bytes, and whether it is good.
    ///
    /// # Errors
    /// The first of `task`.
    pub fn each(
        &self,
        mut task: impl FnMut(usize, &ChunkEntry, &[u8], bool) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut rest = &self.raw[..];
        for ((number, chunk), good) in self.chunks.iter().zip(&self.good) {
            let (raw, behind) = rest.split_at(chunk.raw_len as usize);
            task(*number, chunk, raw, *good)?;
            rest = behind;
        }
        Ok(())
    }
}
