//! Which chunks a device still needs, and how it gets them. Pure: the installer acts on it, and `image diff` tells
//! with the same code what a device would download.
//!
//! A [`Plan`] guarantees that every missing chunk is either in exactly one run or a repeat, that runs ascend and do
//! not overlap, that each begins and ends with a missing chunk, and that what a repeat repeats is fetched so long
//! before that it has reached the slot.

use std::{collections::HashMap, ops::Range};

use super::{ChunkDigest, ChunkEntry};

/// The installer passes chunks on in pieces of about so many raw bytes, each at most one chunk longer ...
pub const PIECE: usize = 512 << 10;
/// ... of which so many are under way: the chunks before these are in the slot.
pub const PIECES: usize = 4;
/// A request costs its headers and a share of a round trip: gaps up to this many bytes are always cheaper.
const REQUEST_COSTS: u64 = 4 << 10;
/// So many requests are fine, whatever they cost: with those for the header, fewer than 400.
const MAX_RUNS: usize = 390;
/// For fewer requests, gaps up to this many bytes are fetched along ...
const LARGE_GAP: u64 = 64 << 10;
/// ... as long as all gaps together are at most this share of what is needed, in percent.
const EXTRA_PERCENT: u64 = 13;
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

/// A missing chunk that need not be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeat {
    /// Its number in the index.
    pub number: usize,
    /// Where in the image the same bytes lie once more. When all chunks before this one are dealt with in order, they
    /// are in the slot.
    pub place: u64,
}

/// How all that is missing gets into the slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What to ask for, ascending.
    pub runs: Vec<Run>,
    /// What to copy within the slot, ascending. No run contains any of them.
    pub repeats: Vec<Repeat>,
}

impl Plan {
    /// The plan that brings all of `missing`: few requests that fetch little else. One single run without `ranges` (a
    /// server that cannot serve parts sends everything anyway) or when nearly all is needed.
    #[must_use]
    pub fn new(
        chunks: impl Iterator<Item = ChunkEntry> + Clone,
        missing: &Missing,
        ranges: bool,
    ) -> Self {
        let mut repeats = repeats(chunks.clone(), missing);
        let mut fetched = missing.clone();
        for repeat in &repeats {
            fetched.done(repeat.number);
        }
        let runs = runs(chunks, &fetched, ranges);
        // What arrives anyway is decoded, which costs the medium nothing.
        let mut behind = runs.iter().peekable();
        repeats.retain(|repeat| {
            while behind
                .next_if(|run| run.chunks.end <= repeat.number)
                .is_some()
            {}
            behind
                .peek()
                .is_none_or(|run| repeat.number < run.chunks.start)
        });
        Self { runs, repeats }
    }

    /// Whether chunk `number` is copied within the slot.
    #[must_use]
    pub fn is_repeat(&self, number: usize) -> bool {
        let found = self.repeats.binary_search_by_key(&number, |it| it.number);
        found.is_ok()
    }

    /// Bytes of the file that are fetched.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let lengths = self.runs.iter().map(|run| run.bytes.end - run.bytes.start);
        lengths.sum()
    }
}

/// Missing chunks that are the same as one before them, which will have reached the slot.
fn repeats(chunks: impl Iterator<Item = ChunkEntry> + Clone, missing: &Missing) -> Vec<Repeat> {
    let wanted = || {
        let numbered = chunks.clone().enumerate();
        numbered.filter(|(number, chunk)| missing.contains(*number) && !chunk.zeros)
    };
    // Most chunks occur once: part of the digest tells which may not, so that only these cost more memory.
    let part = |digest: &ChunkDigest| digest.0[..8].try_into().map_or(0, u64::from_le_bytes);
    let mut parts: Vec<u64> = wanted().map(|(_, chunk)| part(&chunk.digest)).collect();
    parts.sort_unstable();
    let mut several: Vec<u64> = parts
        .windows(2)
        .filter(|two| two[0] == two[1])
        .map(|two| two[0])
        .collect();
    several.dedup();
    drop(parts);
    let longest = wanted().map(|(_, chunk)| chunk.raw_len).max().unwrap_or(0);
    let under_way = PIECES as u64 * (PIECE as u64 + u64::from(longest));
    // Where each lies first, and how much went by when it had.
    let mut first = HashMap::new();
    let (mut repeats, mut went_by) = (Vec::new(), 0);
    for (number, chunk) in wanted() {
        if several.binary_search(&part(&chunk.digest)).is_ok() {
            let end = went_by + u64::from(chunk.raw_len);
            let (place, then) = *first
                .entry((chunk.digest, chunk.raw_len))
                .or_insert((chunk.raw_offset, end));
            if went_by >= then + under_way {
                repeats.push(Repeat { number, place });
            }
        }
        went_by += u64::from(chunk.raw_len);
    }
    repeats
}

/// The requests that bring all of `missing`.
fn runs(chunks: impl Iterator<Item = ChunkEntry>, missing: &Missing, ranges: bool) -> Vec<Run> {
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
