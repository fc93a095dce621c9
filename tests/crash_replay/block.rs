//! A medium that is written by the sector, as a power cut may leave it.
//!
//! Of what was written since the last sync any part may be there, by the sector of 512 bytes and in any order: so a
//! sector holds what was durable, or what any of the writes since then put there, independently of all others. Where
//! a claim is made about every such state of a slot, it is made for each sector ([`Block::surely`]): that covers all
//! combinations without counting them out.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use crate::support::random::Random;

/// What a medium writes whole or not at all, bytes.
pub(crate) const SECTOR: usize = 512;
/// More states than these are not counted out, but drawn.
const MOST_STATES: usize = 4096;

/// A medium that is written by the sector.
#[derive(Clone)]
pub(crate) struct Block {
    durable: Vec<u8>,
    /// Since the last sync, oldest first.
    pending: Vec<(u64, Arc<[u8]>)>,
}

impl Block {
    /// A medium that holds this, durably.
    pub(crate) fn new(durable: Vec<u8>) -> Self {
        Self {
            durable,
            pending: Vec::new(),
        }
    }

    /// Whether every state holds `expected` in `range`.
    pub(crate) fn surely(&self, range: Range<usize>, expected: &[u8]) -> bool {
        let wrong = |(offset, bytes): &(u64, Arc<[u8]>)| {
            let offset = usize::try_from(*offset).unwrap();
            let (from, to) = (range.start.max(offset), range.end.min(offset + bytes.len()));
            from < to
                && bytes[from - offset..to - offset]
                    != expected[from - range.start..to - range.start]
        };
        self.durable[range.clone()] == *expected && !self.pending.iter().any(wrong)
    }

    /// Whether some state holds `expected`, whole sectors, in `range`.
    pub(crate) fn may_hold(&self, range: Range<usize>, expected: &[u8]) -> bool {
        range
            .step_by(SECTOR)
            .zip(expected.chunks(SECTOR))
            .all(|(sector, expected)| {
                self.versions(sector / SECTOR)
                    .iter()
                    .any(|version| version == expected)
            })
    }

    /// What a sector may hold; what was durable comes first, what was written last comes last.
    fn versions(&self, sector: usize) -> Vec<Vec<u8>> {
        let (start, end) = (
            sector * SECTOR,
            self.durable.len().min((sector + 1) * SECTOR),
        );
        let mut latest = self.durable[start..end].to_vec();
        let mut versions = vec![latest.clone()];
        for (offset, bytes) in &self.pending {
            let offset = usize::try_from(*offset).unwrap();
            let (from, to) = (start.max(offset), end.min(offset + bytes.len()));
            if from < to {
                latest[from - start..to - start]
                    .copy_from_slice(&bytes[from - offset..to - offset]);
                versions.retain(|version| *version != latest);
                versions.push(latest.clone());
            }
        }
        versions
    }

    /// The sectors of which more than one version is possible, with all of them.
    fn open(&self) -> Vec<(usize, Vec<Vec<u8>>)> {
        let mut touched = BTreeSet::new();
        for (offset, bytes) in &self.pending {
            let offset = usize::try_from(*offset).unwrap();
            touched.extend(offset / SECTOR..(offset + bytes.len()).div_ceil(SECTOR));
        }
        let all = touched
            .into_iter()
            .map(|sector| (sector, self.versions(sector)));
        all.filter(|(_, versions)| versions.len() > 1).collect()
    }

    /// How many sectors may hold something else than they durably do.
    pub(crate) fn open_sectors(&self) -> usize {
        let differing = |(offset, bytes): &(u64, Arc<[u8]>)| {
            let durable = &self.durable[usize::try_from(*offset).unwrap()..][..bytes.len()];
            let sectors = durable.chunks(SECTOR).zip(bytes.chunks(SECTOR));
            sectors.filter(|(old, new)| old != new).count()
        };
        self.pending.iter().map(differing).sum()
    }

    /// Every state, or very many drawn by chance where there are more.
    pub(crate) fn every(&self, random: &mut Random) -> Vec<Vec<u8>> {
        let open = self.open();
        let count = open
            .iter()
            .try_fold(1_usize, |count, (_, versions)| {
                count.checked_mul(versions.len())
            })
            .filter(|count| *count <= MOST_STATES);
        let state = |mut number: usize| {
            let mut state = self.durable.clone();
            for (sector, versions) in &open {
                put(&mut state, *sector, &versions[number % versions.len()]);
                number /= versions.len();
            }
            state
        };
        match count {
            Some(count) => (0..count).map(state).collect(),
            None => (0..MOST_STATES).map(|_| self.any(random)).collect(),
        }
    }

    /// Some state: everything lost, everything kept, whole writes lost, torn at one place, or any sectors.
    pub(crate) fn any(&self, random: &mut Random) -> Vec<u8> {
        let mut state = self.durable.clone();
        let way = random.below(5);
        let torn = random.below(self.pending.len().max(1) as u64);
        for (number, (offset, bytes)) in (0..).zip(&self.pending) {
            let all = bytes.len().div_ceil(SECTOR) as u64;
            let cut = random.below(all + 1);
            let lost = random.below(2) == 0;
            for (sector, piece) in (0..).zip(bytes.chunks(SECTOR)) {
                let kept = match way {
                    0 => false,
                    1 => true,
                    2 => !lost,
                    3 => number < torn || (number == torn && sector < cut),
                    _ => random.below(2) == 0,
                };
                if kept {
                    let start = usize::try_from(*offset).unwrap()
                        + SECTOR * usize::try_from(sector).unwrap();
                    state[start..start + piece.len()].copy_from_slice(piece);
                }
            }
        }
        state
    }

    /// With nothing that was written since the last sync.
    pub(crate) fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// With all that was written.
    pub(crate) fn latest(&self) -> Vec<u8> {
        let mut all = self.clone();
        all.sync();
        all.durable
    }

    /// Bytes are handed to it.
    pub(crate) fn write(&mut self, offset: u64, bytes: Arc<[u8]>) {
        self.pending.push((offset, bytes));
    }

    /// All that was written is durable.
    pub(crate) fn sync(&mut self) {
        for (offset, bytes) in self.pending.drain(..) {
            let offset = usize::try_from(offset).unwrap();
            self.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

fn put(state: &mut [u8], sector: usize, bytes: &[u8]) {
    state[sector * SECTOR..][..bytes.len()].copy_from_slice(bytes);
}
