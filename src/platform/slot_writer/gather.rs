//! Gathers pieces into large aligned requests, and writes of them what the medium does not hold yet.

use std::ops::Range;

use super::{
    Head, Neighbours, REQUEST_BYTES, SlotWriteError, SlotWriter, UNIT, at,
    edges::Half,
    hold_head,
    medium::{AlignedBuf, ceil, floor},
};

/// Bytes waiting to become one aligned request. Never touches the head.
pub(super) struct Gather {
    buf: AlignedBuf,
    /// Offset of `buf[0]`, a multiple of [`UNIT`].
    start: u64,
    /// Where the bytes begin in `buf`, less than [`UNIT`].
    first: usize,
    /// Where they end; 0: nothing waits.
    end: usize,
    /// Whether what lies before the first and behind the last byte is still to come.
    later: Neighbours,
}

impl Gather {
    pub(super) fn new() -> Self {
        Self {
            buf: AlignedBuf::new(REQUEST_BYTES),
            start: 0,
            first: 0,
            end: 0,
            later: Neighbours::default(),
        }
    }

    pub(super) fn overlaps(&self, offset: u64, length: u64) -> bool {
        let waiting = self.start + self.first as u64..self.start + self.end as u64;
        self.end > 0 && offset < waiting.end && waiting.start < offset + length
    }
}

/// Whether to look at what the medium holds before it is written over. Looking costs as much reading as there
/// is to write, so it has to pay: as long as one look in five finds something right, each request is looked
/// at; where looks find nothing they become rare, down to one byte in 64, until one finds something again.
pub(super) struct Glance {
    /// Looks that may still find nothing before they become rare.
    credit: u32,
    /// The next pause is so many times as long as the request that was looked at.
    pause: u32,
    /// Bytes that are still to be written without a look.
    left: u64,
}

impl Glance {
    const CREDIT: u32 = 4;
    const MOST_CREDIT: u32 = 16;
    const LONGEST: u32 = 63;

    pub(super) fn new() -> Self {
        Self {
            credit: Self::CREDIT,
            pause: 0,
            left: 0,
        }
    }

    /// Whether to look at a request of `length` bytes, which is written next.
    fn due(&mut self, length: usize) -> bool {
        let due = self.left == 0;
        self.left = self.left.saturating_sub(length as u64);
        due
    }

    /// A request of `all` bytes was looked at, and `right` of them were right.
    fn learn(&mut self, right: usize, all: usize) {
        if right * 32 >= all {
            self.credit = (self.credit + Self::CREDIT).min(Self::MOST_CREDIT);
            (self.pause, self.left) = (0, 0);
        } else if self.credit > 0 {
            self.credit -= 1;
        } else {
            self.pause = (self.pause * 2 + 1).min(Self::LONGEST);
            self.left = u64::from(self.pause) * all as u64;
        }
    }
}

impl SlotWriter {
    /// Adds `bytes` (none of them in the head) to the request that is being gathered.
    pub(super) fn collect(
        &mut self,
        mut offset: u64,
        mut bytes: &[u8],
        later: Neighbours,
    ) -> Result<(), SlotWriteError> {
        while !bytes.is_empty() {
            if self.gather.end > 0 && offset != self.gather.start + self.gather.end as u64 {
                self.flush()?;
            }
            let gather = &mut self.gather;
            if gather.end == 0 {
                gather.start = floor(offset, UNIT);
                gather.first = at(offset - gather.start);
                gather.end = gather.first;
                gather.later.before = later.before;
            }
            // Requests end where a multiple of their size does: that is where flash has its own borders.
            let room = REQUEST_BYTES - at(gather.start % REQUEST_BYTES as u64) - gather.end;
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            gather.buf[gather.end..][..now.len()].copy_from_slice(now);
            gather.end += now.len();
            gather.later.after = later.after;
            offset += now.len() as u64;
            bytes = rest;
            if now.len() == room {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Hands what was gathered to the medium, whole units of it; a unit whose rest is still to come waits.
    pub(super) fn flush(&mut self) -> Result<(), SlotWriteError> {
        let (start, end) = (self.gather.start, std::mem::take(&mut self.gather.end));
        if end == 0 {
            return Ok(());
        }
        let room = at((self.capacity() - start).min(REQUEST_BYTES as u64));
        let (mut from, mut to) = (0, at(ceil(end as u64, UNIT)).min(room));
        let (first, last) = (self.gather.first, at(floor(end as u64, UNIT)));
        let whole = ceil(first as u64, UNIT);
        self.edges.forget(start + whole..start + last as u64);
        // What only the medium knows, in the first and the last unit.
        let mut unknown: Vec<Range<usize>> = Vec::new();
        let mut partial = Vec::new();
        if first > 0 {
            partial.push(0);
        }
        if last < to && (first == 0 || last > 0) {
            partial.push(last);
        }
        for unit in partial {
            let unit_end = (unit + UNIT).min(room);
            let new = unit.max(first)..unit_end.min(end);
            let mut half = self.edges.take(start + unit as u64).unwrap_or(Half::new());
            half.learn(new.start - unit, &self.gather.buf[new.clone()]);
            half.overlay(&mut self.gather.buf[unit..unit_end]);
            let gaps = half.gaps(unit_end - unit);
            let comes_later = |gap: &Range<usize>| match unit + gap.start < new.start {
                true => self.gather.later.before,
                false => self.gather.later.after,
            };
            if self.edges.have_room() && gaps.iter().any(comes_later) {
                self.edges.wait(start + unit as u64, half);
                if unit == 0 {
                    from = unit_end
                } else {
                    to = unit
                }
            } else {
                unknown.extend(gaps.into_iter().map(|gap| unit + gap.start..unit + gap.end));
            }
        }
        if from < to {
            self.write_what_differs(from..to, &unknown)?;
        }
        Ok(())
    }

    /// Writes `range` of the gathered buffer after its `unknown` parts were filled from the medium; only
    /// the units that differ from the medium where it is looked at.
    fn write_what_differs(
        &mut self,
        range: Range<usize>,
        unknown: &[Range<usize>],
    ) -> Result<(), SlotWriteError> {
        let Self {
            slot,
            head,
            gather,
            glance,
            bounce,
            ..
        } = self;
        let (offset, length) = (gather.start + range.start as u64, range.len());
        // A slot that was not touched yet may hold everything, and then must stay untouched.
        let look = matches!(head, Head::InPlace) || glance.due(length);
        let held = &mut bounce[range.clone()];
        // What cannot be read is written: that is how a bad sector heals.
        let looked = look && slot.read(offset, held).is_ok();
        for part in unknown {
            if !looked {
                let unit = part.start / UNIT * UNIT;
                let unit = unit..(unit + UNIT).min(range.end);
                slot.salvage(gather.start + unit.start as u64, &mut bounce[unit]);
            }
            gather.buf[part.clone()].copy_from_slice(&bounce[part.clone()]);
        }
        if !looked {
            hold_head(slot, head)?;
            return slot.put(offset, &gather.buf[range]);
        }
        let (runs, right) = differing(&gather.buf[range.clone()], &bounce[range.clone()]);
        for run in &runs {
            hold_head(slot, head)?;
            let run = range.start + run.start..range.start + run.end;
            slot.put(gather.start + run.start as u64, &gather.buf[run])?;
        }
        let written = |place: usize| runs.iter().any(|run| run.contains(&(place - range.start)));
        glance.learn(right, length);
        // What the medium itself gave to a unit that stays was not to be written.
        let filled = unknown.iter().filter(|part| !written(part.start));
        let filled: usize = filled.map(ExactSizeIterator::len).sum();
        slot.report.bytes_skipped += (right - filled) as u64;
        Ok(())
    }

    /// Writes a unit that waited in vain, with what the medium holds around it.
    pub(super) fn fill_up(&mut self, offset: u64, half: &Half) -> Result<(), SlotWriteError> {
        let length = at((self.capacity() - offset).min(UNIT as u64));
        let unit = &mut self.bounce[..length];
        self.slot.salvage(offset, unit);
        if half.overlay(unit) {
            hold_head(&mut self.slot, &mut self.head)?;
            return self.slot.put(offset, unit);
        }
        self.slot.report.bytes_skipped += half.known() as u64;
        Ok(())
    }
}

/// Ranges of whole units in which `new` and `old` differ, and the length of all others together.
fn differing(new: &[u8], old: &[u8]) -> (Vec<Range<usize>>, usize) {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let (mut start, mut right) = (0, 0);
    for (new, old) in new.chunks(UNIT).zip(old.chunks(UNIT)) {
        let end = start + new.len();
        if new == old {
            right += new.len();
        } else {
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        start = end;
    }
    (runs, right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_whole_units_and_end_where_the_first_equal_one_is() {
        let old = vec![0; 5 * UNIT + 100];
        let mut new = old.clone();
        for place in [UNIT, 2 * UNIT + 5, 5 * UNIT + 99] {
            new[place] = 1;
        }
        let (runs, right) = differing(&new, &old);
        assert_eq!(runs, [UNIT..3 * UNIT, 5 * UNIT..5 * UNIT + 100]);
        assert_eq!(right, 3 * UNIT);
    }

    #[test]
    fn looking_becomes_rare_where_it_finds_nothing_and_comes_back_at_once() {
        let mut glance = Glance::new();
        let mut looks = 0;
        for _ in 0..1000 {
            if glance.due(UNIT) {
                looks += 1;
                glance.learn(0, UNIT);
            }
        }
        // Four on credit, then after pauses of 1, 3, 7, 15, 31 and 63 requests, and of 63 ever after.
        let rare = 1000 - 4 - (2 + 4 + 8 + 16 + 32);
        assert_eq!(looks, 4 + 5 + (rare + 63) / 64);
        glance.learn(UNIT, 8 * UNIT);
        assert!(glance.due(UNIT) && glance.due(UNIT));
    }

    #[test]
    fn looking_goes_on_while_one_look_in_five_finds_something() {
        let mut glance = Glance::new();
        for number in 0..1000 {
            assert!(glance.due(UNIT));
            glance.learn(if number % 5 == 4 { UNIT } else { 0 }, 10 * UNIT);
        }
    }
}
