//! Which chunks a device still needs, and the requests that bring them. Pure: the installer acts on it, and
//! `image diff` tells with the same code what a device would download.
//!
//! [`runs`] guarantees that every missing chunk lies in exactly one run, that runs ascend and do not overlap,
//! and that each begins and ends with a missing chunk.

use std::ops::Range;

use super::ChunkEntry;

/// A request costs its headers and a share of a round trip: gaps up to this many bytes are always cheaper.
const REQUEST_COSTS: u64 = 4 << 10;
/// So many requests are fine, whatever they cost: with those for the header, fewer than 400.
const MAX_RUNS: usize = 390;
/// For fewer requests, gaps up to this many bytes are fetched along ...
const LARGE_GAP: u64 = 64 << 10;
/// ... as long as all gaps together are at most this share of what is needed, in percent.
const EXTRA_PERCENT: u64 = 6;
/// From this share of all frames on, in percent, one stream is better than many requests.
const WHOLE_PERCENT: u64 = 85;

/// The chunks of one image that are not in place yet, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    bits: Vec<u64>,
    count: usize,
}

impl Missing {
    /// All of `count` chunks.
    #[must_use]
    pub fn all(count: usize) -> Self {
        let mut bits = vec![u64::MAX; count.div_ceil(64)];
        if let Some(last) = bits.last_mut()
            && !count.is_multiple_of(64)
        {
            *last = (1 << (count % 64)) - 1;
        }
        Self { bits, count }
    }

    /// Whether chunk `number` is missing.
    #[must_use]
    pub fn contains(&self, number: usize) -> bool {
        let word = self.bits.get(number / 64);
        word.is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Chunk `number` is in place now; false when it was already.
    pub fn done(&mut self, number: usize) -> bool {
        let was = self.contains(number);
        if was {
            self.bits[number / 64] &= !(1 << (number % 64));
            self.count -= 1;
        }
        was
    }

    /// How many are missing.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether all chunks are in place.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Chunks that one request brings: `chunks` of the index, of which those that are not missing are thrown away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Numbers of the first chunk and of the one behind the last.
    pub chunks: Range<usize>,
    /// Their bytes in the file.
    pub bytes: Range<u64>,
}

/// What to ask for so that all of `missing` arrives: few requests that bring little else. One single run without
/// `ranges` (a server that cannot serve parts sends everything anyway) or when nearly all is needed.
#[must_use]
pub fn runs(chunks: impl Iterator<Item = ChunkEntry>, missing: &Missing, ranges: bool) -> Vec<Run> {
    let (mut runs, mut total): (Vec<Run>, u64) = (Vec::new(), 0);
    for (number, chunk) in chunks.enumerate() {
        total += u64::from(chunk.frame_len);
        if !missing.contains(number) {
            continue;
        }
        let end = chunk.file_offset + u64::from(chunk.frame_len);
        match runs.last_mut() {
            Some(run) if run.bytes.end == chunk.file_offset => {
                (run.chunks.end, run.bytes.end) = (number + 1, end);
            }
            _ => runs.push(Run {
                chunks: number..number + 1,
                bytes: chunk.file_offset..end,
            }),
        }
    }
    let needed = runs.iter().map(|run| run.bytes.end - run.bytes.start).sum();
    let largest = if !ranges || needed * 100 > total * WHOLE_PERCENT {
        u64::MAX
    } else {
        largest_gap(&runs, needed)
    };
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.bytes.start - last.bytes.end <= largest => {
                (last.chunks.end, last.bytes.end) = (run.chunks.end, run.bytes.end);
            }
            _ => joined.push(run),
        }
    }
    joined
}

/// The largest gap between two of `runs` that is fetched along, in bytes: the smallest gaps are closed first, so
/// that the requests are as few as wanted for the fewest bytes.
fn largest_gap(runs: &[Run], needed: u64) -> u64 {
    let gaps = runs
        .windows(2)
        .map(|two| two[1].bytes.start - two[0].bytes.end);
    let mut gaps: Vec<u64> = gaps.collect();
    gaps.sort_unstable();
    let (mut left, mut extra, mut largest) = (runs.len(), 0, 0);
    for gap in gaps {
        let few = left <= MAX_RUNS;
        let dear = (extra + gap) * 100 > needed * EXTRA_PERCENT;
        if gap > REQUEST_COSTS && (few || dear || gap > LARGE_GAP) {
            // All gaps of one length are closed, or none.
            return if gap == largest && dear {
                gap - 1
            } else {
                largest
            };
        }
        (left, extra, largest) = (left - 1, extra + gap, gap);
    }
    largest
}

#[cfg(test)]
mod tests;
