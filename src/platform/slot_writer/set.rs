//! One image over several partitions of a slot, one after the other.
//!
//! Offsets are those of the payload. Each partition keeps the promises of [`SlotWriter`]; together:
//! **no partition gets its head before all data of all partitions is on the medium**, and the root file
//! system gets its own last of all. So a slot in which every partition has its head holds one image, whole.

use std::path::{Path, PathBuf};

use super::{Neighbours, SlotWriteError, SlotWriter, WriteReport, at};

/// A partition of a slot and how much of the payload goes into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotPart {
    /// A block device or a regular file.
    pub device: PathBuf,
    /// Bytes of the payload, from the partition's begin.
    pub length: u64,
    /// The root file system: gets its head last.
    pub rootfs: bool,
}

impl SlotPart {
    /// The root file system's partition.
    #[must_use]
    pub fn new(device: &Path, length: u64) -> Self {
        Self {
            device: device.to_owned(),
            length,
            rootfs: true,
        }
    }

    /// A partition that is not the root file system, as that of the boot files.
    #[must_use]
    pub fn other(device: &Path, length: u64) -> Self {
        Self {
            rootfs: false,
            ..Self::new(device, length)
        }
    }
}

/// A part that is open.
struct Open {
    writer: SlotWriter,
    /// Where the part begins in the payload.
    start: u64,
    length: u64,
    rootfs: bool,
}

/// Writes one slot of several partitions. Dropped without [`SlotSet::finish`] it leaves a slot that does
/// not mount, unless nothing was written.
pub struct SlotSet {
    parts: Vec<Open>,
}

impl SlotSet {
    /// Opens all `parts` (at least one, in the order of the payload) for writing, exclusively. Writes
    /// nothing.
    ///
    /// # Errors
    /// As [`SlotWriter::open`], and `slot-too-small` when a part does not fit its partition.
    ///
    /// # Panics
    /// When `parts` is empty.
    pub fn open(parts: &[SlotPart]) -> Result<Self, SlotWriteError> {
        let writers = parts.iter().map(|part| SlotWriter::open(&part.device));
        Self::over(parts, writers.collect::<Result<_, _>>()?)
    }

    pub(super) fn over(
        parts: &[SlotPart],
        writers: Vec<SlotWriter>,
    ) -> Result<Self, SlotWriteError> {
        assert!(!parts.is_empty(), "a slot has at least one partition");
        let mut start = 0;
        let mut open = Vec::with_capacity(parts.len());
        for (part, writer) in parts.iter().zip(writers) {
            writer.check_fits(part.length)?;
            open.push(Open {
                writer,
                start,
                length: part.length,
                rootfs: part.rootfs,
            });
            start += part.length;
        }
        Ok(Self { parts: open })
    }

    /// Size of the payload: of all parts together.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.parts.iter().map(|part| part.length).sum()
    }

    /// Whether a payload of `length` bytes fits the parts.
    ///
    /// # Errors
    /// `slot-too-small`.
    pub fn check_fits(&self, length: u64) -> Result<(), SlotWriteError> {
        let capacity = self.length();
        if length <= capacity {
            return Ok(());
        }
        let last = self
            .parts
            .last()
            .expect("a slot has at least one partition");
        Err(SlotWriteError::TooSmall {
            device: last.writer.slot.device.clone(),
            image: length,
            capacity,
        })
    }

    /// What was done so far, all parts together.
    #[must_use]
    pub fn report(&self) -> WriteReport {
        let mut sum = WriteReport::default();
        for part in &self.parts {
            sum += part.writer.report();
        }
        sum
    }

    /// [`SlotWriter::read_at`] at an offset of the payload.
    ///
    /// # Errors
    /// As [`SlotWriter::read_at`]; `slot-too-small` behind the payload's end.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), SlotWriteError> {
        let mut rest = buf;
        let length = rest.len() as u64;
        self.each(offset, length, |writer, place, length| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(at(length));
            rest = later;
            writer.read_at(place, now)
        })
    }

    /// [`SlotWriter::write_at`] at an offset of the payload.
    ///
    /// # Errors
    /// As [`SlotWriter::write_piece`]; `slot-too-small` behind the payload's end.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SlotWriteError> {
        self.write_piece(offset, bytes, Neighbours::default())
    }

    /// [`SlotWriter::write_piece`] at an offset of the payload.
    ///
    /// # Errors
    /// As [`SlotWriter::write_piece`]; `slot-too-small` behind the payload's end.
    pub fn write_piece(
        &mut self,
        offset: u64,
        bytes: &[u8],
        later: Neighbours,
    ) -> Result<(), SlotWriteError> {
        let mut rest = bytes;
        let ends: Vec<(u64, u64)> = self.parts.iter().map(|p| (p.start, p.length)).collect();
        let mut offset = offset;
        self.each(offset, bytes.len() as u64, |writer, place, length| {
            let (now, more) = rest.split_at(at(length));
            rest = more;
            // Nothing lies before a partition's first byte, nor behind its part's last.
            let ends_here = ends
                .iter()
                .any(|(start, part)| offset - place == *start && place + length == *part);
            offset += length;
            let later = Neighbours {
                before: later.before && place > 0,
                after: later.after && !ends_here,
            };
            writer.write_piece(place, now, later)
        })
    }

    /// [`SlotWriter::zero_at`] at an offset of the payload.
    ///
    /// # Errors
    /// As [`SlotWriter::zero_at`]; `slot-too-small` behind the payload's end.
    pub fn zero_at(&mut self, offset: u64, length: u64) -> Result<(), SlotWriteError> {
        self.each(offset, length, SlotWriter::zero_at)
    }

    /// [`SlotWriter::sync`] of every part.
    ///
    /// # Errors
    /// As [`SlotWriter::sync`].
    pub fn sync(&mut self) -> Result<(), SlotWriteError> {
        self.parts
            .iter_mut()
            .try_for_each(|part| part.writer.sync())
    }

    /// Makes the slot whole: all data of all parts to the medium, then their heads, that of the root file
    /// system last.
    ///
    /// # Errors
    /// As [`SlotWriter::finish`]; the slot then does not mount.
    pub fn finish(mut self) -> Result<WriteReport, SlotWriteError> {
        for part in &mut self.parts {
            part.writer.settle()?;
        }
        for rootfs in [false, true] {
            for part in self.parts.iter_mut().filter(|part| part.rootfs == rootfs) {
                part.writer.place_head()?;
            }
        }
        Ok(self.report())
    }

    /// Calls `act` with each part that `length` bytes from `offset` lie in: its writer, the offset in its
    /// partition, and how many bytes of the range are in it.
    fn each(
        &mut self,
        offset: u64,
        length: u64,
        mut act: impl FnMut(&mut SlotWriter, u64, u64) -> Result<(), SlotWriteError>,
    ) -> Result<(), SlotWriteError> {
        let end = offset.saturating_add(length);
        self.check_fits(end)?;
        for part in &mut self.parts {
            let from = offset.max(part.start);
            let to = end.min(part.start + part.length);
            if from < to {
                act(&mut part.writer, from - part.start, to - from)?;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let writers = self.parts.iter().map(|part| &part.writer);
        f.debug_list().entries(writers).finish()
    }
}
