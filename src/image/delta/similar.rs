//! Where in the old payload something similar lies.
//!
//! Every place of the old payload is described by samples of its bytes: of all windows of some 20 bytes those
//! whose hash happens to begin with zeros, so that the same bytes give the same samples wherever they lie. For new
//! bytes the cells of the old payload are chosen one after the other, always the one that shares most samples
//! which no cell before had.
//!
//! The same input gives the same choice. Memory is bounded: a larger payload is sampled more sparsely.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::{REGION_UNIT, Region};

/// Bytes that a sample's hash depends on: 64 bits, moved by 3 for each byte.
const WINDOW: usize = 22;

/// Of so many places one is sampled, as a power of two, unless the payload is very large.
const RATE: u32 = 7;

/// Most samples in memory, 8 bytes each.
const MAX_SAMPLES: u64 = 16 << 20;

/// Bytes that occur at more places than this tell nothing about where to look.
const MAX_PLACES: usize = 64;

/// Regions are put together from cells of this many bytes.
const CELL: u64 = 16 * 1024;

/// A cell with fewer new samples than this is not worth its place in the table.
const LEAST_SHARED: usize = 2;

const UNIT: u64 = REGION_UNIT as u64;

/// A random number for each value of a byte: the same in every build, since deltas are reproducible.
const GEAR: [u64; 256] = gear();

const fn gear() -> [u64; 256] {
    let mut table = [0; 256];
    let mut seed: u64 = 0x6677_7570_6461_7465;
    let mut at = 0;
    while at < table.len() {
        // SplitMix64 (Steele, Lea, Flood 2014).
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        table[at] = z ^ (z >> 31);
        at += 1;
    }
    table
}

/// Tells `found` the position and hash of each sample of `bytes`.
fn samples(bytes: &[u8], rate: u32, mut found: impl FnMut(usize, u32)) {
    let (mut hash, mut last): (u64, u64) = (0, 0);
    for (position, byte) in bytes.iter().enumerate() {
        hash = (hash << 3).wrapping_add(GEAR[usize::from(*byte)]);
        let mixed = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        if mixed >> (64 - rate) == 0 && position + 1 >= WINDOW {
            // A run of the same byte is one sample, not thousands.
            if mixed != last {
                found(position, (mixed >> 16) as u32);
            }
            last = mixed;
        }
    }
}

/// Gathers the samples of the old payload.
#[derive(Debug)]
pub struct IndexBuilder {
    rate: u32,
    samples: Vec<u64>,
}

impl IndexBuilder {
    /// For an old payload of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        let mut rate = RATE;
        while size >> rate > MAX_SAMPLES {
            rate += 1;
        }
        Self {
            rate,
            samples: Vec::new(),
        }
    }

    /// Adds `bytes`, which lie at `offset` of the old payload.
    pub fn add(&mut self, offset: u64, bytes: &[u8]) {
        samples(bytes, self.rate, |position, hash| {
            let unit = (offset + position as u64) / UNIT;
            self.samples
                .push(u64::from(hash) << 32 | (unit & 0xFFFF_FFFF));
        });
    }

    /// Everything was added; `size` is that of the old payload.
    #[must_use]
    pub fn finish(mut self, size: u64) -> Index {
        let samples = &mut self.samples;
        samples.sort_unstable();
        samples.dedup();
        let mut kept = 0;
        let mut start = 0;
        while start < samples.len() {
            let hash = samples[start] >> 32;
            let len = samples[start..]
                .iter()
                .take_while(|sample| *sample >> 32 == hash)
                .count();
            if len <= MAX_PLACES {
                samples.copy_within(start..start + len, kept);
                kept += len;
            }
            start += len;
        }
        samples.truncate(kept);
        samples.shrink_to_fit();
        Index {
            rate: self.rate,
            samples: self.samples,
            size,
        }
    }
}

/// The samples of the old payload, by hash.
#[derive(Debug)]
pub struct Index {
    rate: u32,
    /// Hash in the upper half, place in units in the lower; sorted.
    samples: Vec<u64>,
    size: u64,
}

impl Index {
    /// The regions of the old payload that together share most with `bytes`: ascending, not touching each other,
    /// at most `limit` bytes.
    #[must_use]
    pub fn similar(&self, bytes: &[u8], limit: u64) -> Vec<Region> {
        let mut hashes = Vec::new();
        samples(bytes, self.rate, |_, hash| hashes.push(hash));
        hashes.sort_unstable();
        hashes.dedup();
        // By cell, the samples (as their numbers) that it shares.
        let mut cells: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (number, hash) in hashes.iter().enumerate() {
            let first = self
                .samples
                .partition_point(|sample| sample >> 32 < u64::from(*hash));
            for sample in &self.samples[first..] {
                if sample >> 32 != u64::from(*hash) {
                    break;
                }
                let shared = cells
                    .entry((sample & 0xFFFF_FFFF) * UNIT / CELL)
                    .or_default();
                if shared.last() != Some(&number) {
                    shared.push(number);
                }
            }
        }
        self.regions(choose(&cells, hashes.len(), limit / CELL))
    }

    /// Cells as regions, neighbours as one.
    fn regions(&self, mut cells: Vec<u64>) -> Vec<Region> {
        cells.sort_unstable();
        let mut regions: Vec<Region> = Vec::new();
        for cell in cells {
            let offset = cell * CELL;
            let len = CELL.min(self.size - offset);
            match regions.last_mut() {
                Some(last) if last.offset + u64::from(last.len) == offset => {
                    last.len += u32::try_from(len).expect("a cell is small");
                }
                _ => regions.push(Region {
                    offset,
                    len: u32::try_from(len).expect("a cell is small"),
                }),
            }
        }
        regions
    }
}

/// Up to `limit` cells that together have most of the samples.
fn choose(cells: &BTreeMap<u64, Vec<usize>>, samples: usize, limit: u64) -> Vec<u64> {
    let mut had = vec![false; samples];
    let mut chosen = Vec::new();
    let mut heap: BinaryHeap<_> = cells
        .iter()
        .map(|(cell, shared)| (shared.len(), Reverse(*cell)))
        .collect();
    while (chosen.len() as u64) < limit {
        let Some((promised, Reverse(cell))) = heap.pop() else {
            break;
        };
        if promised < LEAST_SHARED {
            break;
        }
        let shared = &cells[&cell];
        let now = shared.iter().filter(|number| !had[**number]).count();
        if now < promised {
            // What it shared was taken by others meanwhile; it may still be the best.
            heap.push((now, Reverse(cell)));
            continue;
        }
        for number in shared {
            had[*number] = true;
        }
        chosen.push(cell);
    }
    chosen
}
