//! Half-filled units: the first and the last few bytes of pieces whose neighbours are still to come.
//!
//! Chunks end anywhere, the medium takes whole units. A unit that two chunks share would be written twice
//! when they come at different times; here its first half waits for the second. Pure: holds bytes, does
//! no I/O.

use std::{collections::BTreeMap, ops::Range};

use super::{UNIT, at};

/// So many units wait at most (4 MiB). Further ones are written at once, with what the medium holds.
const MOST: usize = 1024;

/// A unit of which some bytes are known.
pub(super) struct Half {
    bytes: Box<[u8]>,
    /// Disjoint, ascending, not touching.
    known: Vec<Range<usize>>,
}

impl Half {
    /// A unit of which nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; UNIT].into_boxed_slice(),
            known: Vec::new(),
        }
    }

    /// Takes `bytes` in at `start`, over what was known there.
    pub(super) fn learn(&mut self, start: usize, bytes: &[u8]) {
        let mut new = start..start + bytes.len();
        self.bytes[new.clone()].copy_from_slice(bytes);
        self.known.retain(|old| {
            let apart = old.end < new.start || new.end < old.start;
            if !apart {
                new = old.start.min(new.start)..old.end.max(new.end);
            }
            apart
        });
        let place = self.known.partition_point(|old| old.start < new.start);
        self.known.insert(place, new);
    }

    /// The parts of a unit of `length` bytes that are not known.
    pub(super) fn gaps(&self, length: usize) -> Vec<Range<usize>> {
        let mut gaps = Vec::new();
        let mut start = 0;
        for known in &self.known {
            if start < known.start {
                gaps.push(start..known.start);
            }
            start = known.end;
        }
        if start < length {
            gaps.push(start..length);
        }
        gaps
    }

    /// How many bytes are known.
    pub(super) fn known(&self) -> usize {
        self.known.iter().map(ExactSizeIterator::len).sum()
    }

    /// Puts what is known over `unit`; true when that changed anything.
    pub(super) fn overlay(&self, unit: &mut [u8]) -> bool {
        let mut changed = false;
        for known in &self.known {
            let (old, new) = (&mut unit[known.clone()], &self.bytes[known.clone()]);
            changed |= old != new;
            old.copy_from_slice(new);
        }
        changed
    }
}

/// The waiting units by their offset.
#[derive(Default)]
pub(super) struct Edges(BTreeMap<u64, Half>);

impl Edges {
    /// Takes out what is known of the unit at `offset`.
    pub(super) fn take(&mut self, offset: u64) -> Option<Half> {
        self.0.remove(&offset)
    }

    /// Lets the unit at `offset` wait.
    pub(super) fn wait(&mut self, offset: u64, half: Half) {
        self.0.insert(offset, half);
    }

    /// Forgets the units within `range`, which newer bytes replace as a whole.
    pub(super) fn forget(&mut self, range: Range<u64>) {
        // An empty range may be the wrong way round: the units at both ends of a piece are one.
        while range.start < range.end
            && let Some((offset, _)) = self.0.range(range.clone()).next()
        {
            let offset = *offset;
            self.0.remove(&offset);
        }
    }

    /// Whether another unit may wait. To put one that waits in another's place would not help: each would
    /// be a request of its own.
    pub(super) fn have_room(&self) -> bool {
        self.0.len() < MOST
    }

    /// Takes out the first unit.
    pub(super) fn first(&mut self) -> Option<(u64, Half)> {
        self.0.pop_first()
    }

    /// Puts what waits over `buf`, which shows the slot from `offset`.
    pub(super) fn overlay(&self, offset: u64, buf: &mut [u8]) {
        let end = offset + buf.len() as u64;
        let from = offset.saturating_sub(UNIT as u64 - 1);
        for (unit, half) in self.0.range(from..end.max(from)) {
            for known in &half.known {
                let start = (unit + known.start as u64).max(offset);
                let stop = (unit + known.end as u64).min(end);
                if start < stop {
                    buf[at(start - offset)..at(stop - offset)]
                        .copy_from_slice(&half.bytes[at(start - unit)..at(stop - unit)]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_and_the_newer_bytes_win() {
        let mut half = Half::new();
        half.learn(100, &[1; 50]);
        half.learn(300, &[2; 10]);
        assert_eq!(half.gaps(UNIT), [0..100, 150..300, 310..UNIT]);
        half.learn(140, &[3; 160]);
        assert_eq!(half.gaps(UNIT), [0..100, 310..UNIT]);
        half.learn(0, &[4; 100]);
        half.learn(310, &vec![5; UNIT - 310]);
        assert!(half.gaps(UNIT).is_empty());
        let mut unit = vec![9; UNIT];
        assert!(half.overlay(&mut unit));
        assert!(!half.overlay(&mut unit));
        assert_eq!(
            [
                unit[99],
                unit[139],
                unit[140],
                unit[299],
                unit[300],
                unit[UNIT - 1]
            ],
            [4, 1, 3, 3, 2, 5]
        );
    }

    #[test]
    fn what_waits_shows_in_any_window_on_the_slot() {
        let mut edges = Edges::default();
        let mut half = Half::new();
        half.learn(10, &[7; 20]);
        edges.wait(UNIT as u64, half);
        for (offset, length) in [
            (0, 3 * UNIT),
            (UNIT + 15, 5),
            (UNIT + 5, 10),
            (UNIT + 29, 9),
        ] {
            let mut buf = vec![0; length];
            edges.overlay(offset as u64, &mut buf);
            for (place, byte) in buf.iter().enumerate() {
                let known = (UNIT + 10..UNIT + 30).contains(&(offset + place));
                assert_eq!(*byte, if known { 7 } else { 0 }, "{offset} {place}");
            }
        }
        edges.forget(0..UNIT as u64);
        assert!(edges.take(UNIT as u64).is_some());
    }

    #[test]
    fn no_more_wait_than_may() {
        let mut edges = Edges::default();
        for number in 0..MOST as u64 {
            assert!(edges.have_room());
            edges.wait(number * UNIT as u64, Half::new());
        }
        assert!(!edges.have_room());
        assert_eq!(edges.first().unwrap().0, 0);
        assert!(edges.have_room());
    }
}
