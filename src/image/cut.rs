//! Where chunks end: content-defined, so that the same content is cut alike wherever it lies, in an image
//! and in the slot of a device that looks for what it has already.
//!
//! The rule is part of the format (`docs/reference/image-format.md`, "Cutting"): builder and device must
//! agree, and so must other implementations. Nothing depends on it but how much a device finds: what it
//! finds is compared by digest.

use std::sync::LazyLock;

use crate::update::digest::Sha256;

use super::{
    limits::{BLOCK, MAX_HOLE, MIN_HOLE},
    manifest::Chunking,
};

/// A number for each byte: the first 8 bytes, little-endian, of the SHA-256 of that one byte.
static GEAR: LazyLock<[u64; 256]> = LazyLock::new(|| {
    let mut table = [0; 256];
    for (byte, number) in (0..=u8::MAX).zip(&mut table) {
        let digest = Sha256::of(&[byte]).0;
        *number = u64::from_le_bytes(*digest.first_chunk().expect("32 bytes are more than 8"));
    }
    table
});

/// Cuts one stream of bytes, a partition or the image of one, from its beginning.
#[derive(Debug, Clone)]
pub struct Cutter {
    min: usize,
    average: usize,
    max: usize,
    /// Below this the rolling hash cuts a chunk that is shorter than the average.
    hard: u64,
    /// And a longer one.
    easy: u64,
    /// Bytes of the stream before the buffer.
    at: u64,
}

impl Cutter {
    /// A cutter at the beginning of a stream.
    #[must_use]
    pub fn new(chunking: &Chunking) -> Self {
        let average = u64::from(chunking.average).max(1);
        Self {
            min: chunking.min as usize,
            average: chunking.average as usize,
            max: (chunking.max as usize).max(1),
            hard: u64::MAX / average / 4,
            easy: (u64::MAX / average).saturating_mul(4),
            at: 0,
        }
    }

    /// Bytes that [`Cutter::next`] wants to see, while the stream has as many: a good buffer is several
    /// times as long.
    #[must_use]
    pub fn lookahead(&self) -> usize {
        (self.max + MIN_HOLE).max(MAX_HOLE)
    }

    /// Length of the next chunk, which begins where `buffer` does; the caller takes it off the front.
    /// `at_end`: nothing follows in the stream. `None`: more bytes are needed, or none are left.
    pub fn next(&mut self, buffer: &[u8], at_end: bool) -> Option<usize> {
        if buffer.is_empty() || (!at_end && buffer.len() < self.lookahead()) {
            return None;
        }
        let len = self.hole(buffer).unwrap_or_else(|| self.data(buffer));
        self.at += len as u64;
        Some(len)
    }

    /// Whole blocks of zeros, if there are enough of them at the front.
    fn hole(&self, buffer: &[u8]) -> Option<usize> {
        if !self.at.is_multiple_of(BLOCK as u64) {
            return None;
        }
        let blocks = buffer.chunks_exact(BLOCK).take(MAX_HOLE / BLOCK);
        let len = blocks.take_while(|block| is_zeros(block)).count() * BLOCK;
        (len >= MIN_HOLE).then_some(len)
    }

    fn data(&self, buffer: &[u8]) -> usize {
        let len = self.by_content(&buffer[..buffer.len().min(self.max)]);
        // A hole that begins within ends the chunk.
        let phase = BLOCK - (self.at % BLOCK as u64) as usize;
        (phase..len)
            .step_by(BLOCK)
            .find(|at| buffer.get(*at..at + MIN_HOLE).is_some_and(is_zeros))
            .unwrap_or(len)
    }

    fn by_content(&self, bytes: &[u8]) -> usize {
        let gear = &*GEAR;
        let normal = self.average.min(bytes.len());
        let start = self.min.min(normal);
        let mut hash = 0_u64;
        let mut roll = |byte: u8| {
            hash = (hash << 1).wrapping_add(gear[usize::from(byte)]);
            hash
        };
        for (at, byte) in (start..).zip(&bytes[start..normal]) {
            if roll(*byte) < self.hard {
                return at + 1;
            }
        }
        for (at, byte) in (normal..).zip(&bytes[normal..]) {
            if roll(*byte) < self.easy {
                return at + 1;
            }
        }
        bytes.len()
    }
}

/// Whether all bytes are zero; quick to say no.
#[must_use]
pub fn is_zeros(bytes: &[u8]) -> bool {
    let (head, rest) = bytes.split_at(bytes.len().min(16));
    let (words, tail) = rest.as_chunks::<64>();
    head.iter().all(|byte| *byte == 0)
        && words
            .iter()
            .all(|word| word.iter().fold(0, |all, byte| all | byte) == 0)
        && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chunking() -> Chunking {
        Chunking::content_defined(8192)
    }

    /// Lengths of all chunks when the stream arrives `step` bytes at a time.
    fn cut(bytes: &[u8], step: usize) -> Vec<usize> {
        let mut cutter = Cutter::new(&chunking());
        let (mut from, mut to, mut lengths) = (0, 0, Vec::new());
        loop {
            match cutter.next(&bytes[from..to], to == bytes.len()) {
                Some(len) => {
                    lengths.push(len);
                    from += len;
                }
                None if to == bytes.len() => return lengths,
                None => to = (to + step).min(bytes.len()),
            }
        }
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut byte = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        (0..len).map(|_| byte()).collect()
    }

    #[test]
    fn the_documented_vectors_hold() {
        assert_eq!(GEAR[0], 0x987a_b3ff_9c0b_346e);
        assert_eq!(GEAR[255], 0xd040_19aa_e60a_10a8);
        assert_eq!(
            cut(&noise(100_000, 1), 1 << 20),
            [
                14903, 8582, 11680, 9836, 8570, 8321, 9879, 8983, 8875, 9023, 1348
            ]
        );
    }

    #[test]
    fn content_is_cut_alike_after_something_was_inserted() {
        let old = noise(600_000, 1);
        let new = [&noise(1000, 2), &old[..]].concat();
        let ends = |lengths: &[usize]| -> Vec<usize> {
            lengths
                .iter()
                .scan(0, |at, len| {
                    *at += len;
                    Some(*at)
                })
                .collect()
        };
        let before = ends(&cut(&old, 1 << 20));
        let after = ends(&cut(&new, 1 << 20));
        let same = before
            .iter()
            .filter(|end| after.contains(&(*end + 1000)))
            .count();
        assert!(
            before.len() > 40 && same + 5 > before.len(),
            "{same} of {}",
            before.len()
        );
    }

    #[test]
    fn a_hole_is_cut_out_on_block_boundaries() {
        let mut bytes = noise(3 << 20, 3);
        bytes[100_000..1_500_000].fill(0);
        let mut at = 0;
        let mut zeros = Vec::new();
        for len in cut(&bytes, 1 << 20) {
            if is_zeros(&bytes[at..at + len]) {
                zeros.push(at..at + len);
            }
            at += len;
        }
        let start = 100_000_usize.next_multiple_of(BLOCK);
        let end = 1_500_000 / BLOCK * BLOCK;
        assert_eq!(zeros, [start..start + MAX_HOLE, start + MAX_HOLE..end]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn cuts_depend_on_the_bytes_alone_and_keep_their_bounds(
            seed in any::<u64>(), len in 0..3_000_000_usize, step in 1..2_000_000_usize,
            hole in 0..3_000_000_usize, hole_len in 0..400_000_usize,
        ) {
            let mut bytes = noise(len, seed);
            let hole = hole.min(len)..(hole + hole_len).min(len);
            bytes[hole].fill(0);
            let lengths = cut(&bytes, step);
            prop_assert_eq!(&lengths, &cut(&bytes, usize::MAX / 2));
            prop_assert_eq!(lengths.iter().sum::<usize>(), len);
            let mut at = 0;
            for len in lengths {
                let longest = if is_zeros(&bytes[at..at + len]) { MAX_HOLE } else { 65536 };
                prop_assert!(len > 0 && len <= longest);
                at += len;
            }
        }
    }
}
