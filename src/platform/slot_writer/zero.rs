//! Holes: ranges of zeros, which a device can often make without being written.
//!
//! `fallocate` with `FALLOC_FL_PUNCH_HOLE` promises zeros afterwards, on a block device as on a file, and
//! frees the blocks where the device can; a device that cannot promise it refuses (SD cards do), and then
//! zeros are written. A plain discard promises nothing about what is read after it, and is never used.
//! Ranges that are zeros already are found by reading and left alone: reading wears nothing.

use super::{
    Neighbours, REQUEST_BYTES, SlotWriteError, SlotWriter, UNIT, at, hold_head,
    medium::{AlignedBuf, ceil, floor},
};

/// The device is not asked to zero more than this at once: it may take long, and cannot be stopped.
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// What is to be zeroed next: a range and, in it, the parts that are not zeros yet.
#[derive(Default)]
struct Span {
    start: u64,
    end: u64,
    differs: Vec<(u64, u64)>,
}

impl SlotWriter {
    /// Zeroes any range within the slot.
    pub(super) fn zero(&mut self, offset: u64, length: u64) -> Result<(), SlotWriteError> {
        static ZEROS: [u8; UNIT] = [0; UNIT];
        let end = offset + length;
        let mut start = offset;
        let head = self.head_length() as u64;
        while start < end.min(head) {
            let part = at((end.min(head) - start).min(UNIT as u64));
            self.put_in_head(start, &ZEROS[..part])?;
            start += part as u64;
        }
        if start >= end {
            return Ok(());
        }
        if self.gather.overlaps(start, end - start) {
            self.flush()?;
        }
        let inner_start = ceil(start, UNIT);
        let inner_end = if end == self.capacity() {
            end
        } else {
            floor(end, UNIT)
        };
        if inner_start >= inner_end {
            // Not one whole unit: at most two parts of one.
            let first = at(end.min(inner_start) - start);
            let both = Neighbours {
                before: true,
                after: true,
            };
            self.collect(start, &ZEROS[..first], both)?;
            return self.collect(
                start + first as u64,
                &ZEROS[..at(end - start) - first],
                both,
            );
        }
        let before = Neighbours {
            before: true,
            after: false,
        };
        self.collect(start, &ZEROS[..at(inner_start - start)], before)?;
        self.zero_units(inner_start, inner_end)?;
        let after = Neighbours {
            before: false,
            after: true,
        };
        self.collect(inner_end, &ZEROS[..at(end - inner_end)], after)
    }

    /// Zeroes whole units, behind the head.
    fn zero_units(&mut self, start: u64, end: u64) -> Result<(), SlotWriteError> {
        self.edges.forget(start..end);
        let mut span = Span::default();
        let mut offset = start;
        while offset < end {
            // Where a file has holes there is nothing to look at.
            let data = floor(self.slot.medium.next_data(offset, end), UNIT).max(offset);
            self.slot.report.bytes_skipped += data - offset;
            offset = data;
            let length = (end - offset).min(REQUEST_BYTES as u64);
            if length == 0 {
                break;
            }
            self.find_others(offset, at(length), &mut span)?;
            offset += length;
        }
        self.zero_span(&mut span)
    }

    /// Adds to `span` what is not zeros in `length` bytes from `offset`.
    fn find_others(
        &mut self,
        offset: u64,
        length: usize,
        span: &mut Span,
    ) -> Result<(), SlotWriteError> {
        let readable = self.slot.read(offset, &mut self.bounce[..length]).is_ok();
        let mut start = offset;
        for number in 0..length.div_ceil(UNIT) {
            let unit = &self.bounce[number * UNIT..length.min((number + 1) * UNIT)];
            let end = start + unit.len() as u64;
            if readable && unit.iter().all(|byte| *byte == 0) {
                self.slot.report.bytes_skipped += unit.len() as u64;
            } else {
                let far = start - span.end > REQUEST_BYTES as u64;
                if far || end - span.start > MOST_BYTES {
                    self.zero_span(span)?;
                }
                if span.differs.is_empty() {
                    span.start = start;
                }
                span.end = end;
                match span.differs.last_mut() {
                    Some((from, length)) if *from + *length == start => *length = end - *from,
                    _ => span.differs.push((start, end - start)),
                }
            }
            start = end;
        }
        Ok(())
    }

    fn zero_span(&mut self, span: &mut Span) -> Result<(), SlotWriteError> {
        let Span {
            start,
            end,
            differs,
        } = std::mem::take(span);
        if differs.is_empty() {
            return Ok(());
        }
        hold_head(&mut self.slot, &mut self.head)?;
        // Written zeros come from here; nothing else is in flight while a hole is made.
        let zeros = AlignedBuf::new(REQUEST_BYTES);
        self.slot.zero(start, end - start, &differs, &zeros)
    }
}
