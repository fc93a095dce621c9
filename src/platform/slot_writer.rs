//! THE PARTITION IS WRITTEN HERE.
//!
//! [`SlotWriter`] writes an image into a partition of the slot that is not running, a block device or a
//! regular file, past the page cache; [`SlotSet`] writes one image over several partitions. What a
//! writer guarantees:
//!
//! - **A half-written slot never mounts.** The head of the slot ([`HEAD_BYTES`]), where every file system
//!   keeps its superblock, is wiped and synced before the first other byte changes, held in memory, and
//!   written by [`SlotWriter::finish`] only after everything else is on the medium. At every instant the
//!   medium holds (a) the old contents, whole; or (b) a head whose first 4 KiB are being or have been
//!   wiped; or (c) the new contents, whole.
//! - **What is right is not written.** Units ([`UNIT`]) that hold the right bytes already are skipped, so
//!   that a slot that holds everything is not written at all, its head included. The reading that this
//!   takes is given up for a while where it finds nothing (a slot full of something else).
//! - **Neighbours survive.** Ranges that are not written keep what they hold, down to the byte: where a
//!   range ends inside a unit, the unit's other bytes are written back as they were; so is the part of
//!   the wiped head that the caller never wrote. Nothing behind the image is touched, nor discarded: a
//!   file system that is mounted there can trim itself, and what it does not know of is not ours.
//! - **The running root is refused**, as is anything mounted or held, whoever chose the slot.
//! - **Durable means durable.** After [`SlotWriter::sync`] everything is on the medium but the head and
//!   the units that wait for a neighbour (see [`Neighbours`]; at most 4 MiB of them); an error of a write
//!   or a sync is final, since after it nobody can say what the medium holds.
//!
//! How a caller uses it: for each range, [`SlotWriter::read_at`] and compare by digest; where it differs
//! [`SlotWriter::write_at`], or [`SlotWriter::zero_at`] for a hole; now and then [`SlotWriter::sync`]; at
//! the end [`SlotWriter::finish`], then [`read_back`]. Reading always shows what the slot will hold after
//! `finish`, the held head and all that waits included, so a range once found right stays right. **A
//! resume must compare everything again**, whatever was remembered: an interrupted run leaves the head
//! wiped, so its ranges compare as different and are written again.

mod counted;
mod device;
mod edges;
mod error;
mod gather;
mod holders;
mod medium;
mod read_back;
mod report;
mod set;
#[cfg(test)]
mod tests;
mod zero;

use std::path::Path;

use counted::Counted;
use device::{Access, DeviceMedium};
use edges::Edges;
use gather::{Gather, Glance};
use medium::{Medium, ceil, floor};
use tracing::debug;

pub(super) use medium::{AlignedBuf, BUFFER_ALIGN};

pub use error::SlotWriteError;
pub use holders::who_holds;
pub use read_back::{read_back, read_back_parts};
pub use report::WriteReport;
pub use set::{SlotPart, SlotSet};

/// How much of a slot's start is held back until all the rest is on the medium. Superblocks lie at 0
/// (xfs, squashfs, FAT), 1 KiB (ext4, f2fs with a second one at 5 KiB, erofs) and 64 KiB (btrfs, 4 KiB
/// long): 128 KiB covers them all.
pub const HEAD_BYTES: u64 = 128 * 1024;

/// What is compared, written and skipped as one, in bytes: the block of the usual file systems and of
/// flash; a multiple of every medium's block.
pub const UNIT: usize = 4096;

/// The part of the head that is wiped first and written last of all, on its own: the superblock of all
/// those but btrfs, which in turn keeps nothing else in the head.
const FIRST_BYTES: usize = 4096;

/// Writes are gathered into requests of this size: SD cards are slow with less, and 4 MiB is no faster.
const REQUEST_BYTES: usize = 1024 * 1024;

/// Which neighbours of a piece the caller is still going to write. The unit that a piece shares with such
/// a neighbour waits for it instead of being written twice. A wrong hint costs a write, never a byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// What lies right before the piece comes later.
    pub before: bool,
    /// What lies right behind the piece comes later.
    pub after: bool,
}

/// Where the slot's head is.
enum Head {
    /// On the medium, as it always was: nothing has been written yet.
    InPlace,
    /// Here; on the medium there are zeros.
    Held(AlignedBuf),
}

/// Writes one slot. Dropped without [`SlotWriter::finish`] it leaves a slot that does not mount, unless
/// nothing was written. All calls block; run them on a blocking thread, any one.
pub struct SlotWriter {
    slot: Counted,
    head: Head,
    gather: Gather,
    glance: Glance,
    edges: Edges,
    bounce: AlignedBuf,
    poisoned: bool,
}

impl SlotWriter {
    /// Opens the slot at `device` (a block device or a regular file) for writing, exclusively. Writes
    /// nothing.
    ///
    /// # Errors
    /// `slot-is-running-root`, `slot-held`, `slot-not-a-device`, `slot-open-failed`.
    pub fn open(device: &Path) -> Result<Self, SlotWriteError> {
        let medium = DeviceMedium::open(device, Access::Write)?;
        debug!(device = %device.display(), capacity = medium.capacity(), block = medium.block(), "slot opened");
        Ok(Self::over(device, Box::new(medium)))
    }

    fn over(device: &Path, medium: Box<dyn Medium>) -> Self {
        Self {
            slot: Counted {
                device: device.to_owned(),
                medium,
                report: WriteReport::default(),
            },
            head: Head::InPlace,
            gather: Gather::new(),
            glance: Glance::new(),
            edges: Edges::default(),
            bounce: AlignedBuf::new(REQUEST_BYTES),
            poisoned: false,
        }
    }

    /// Size of the slot in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.slot.capacity()
    }

    /// Bytes of data handed to the medium so far.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.slot.report.bytes_written
    }

    /// What was done so far.
    #[must_use]
    pub fn report(&self) -> WriteReport {
        self.slot.report
    }

    /// Whether an image of `image` bytes fits.
    ///
    /// # Errors
    /// `slot-too-small`.
    pub fn check_fits(&self, image: u64) -> Result<(), SlotWriteError> {
        let capacity = self.capacity();
        if image <= capacity {
            return Ok(());
        }
        Err(SlotWriteError::TooSmall {
            device: self.slot.device.clone(),
            image,
            capacity,
        })
    }

    /// Fills `buf` with what the slot holds at `offset`, as it will be after [`SlotWriter::finish`]; any
    /// offset and length within the slot. Comes from the medium, not from a cache.
    ///
    /// # Errors
    /// `slot-read-failed` (which leaves the writer usable: a sector that cannot be read may heal when it
    /// is written), `slot-too-small` past the end, and what [`SlotWriter::write_at`] may say.
    pub fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), SlotWriteError> {
        self.check_usable(offset, buf.len() as u64)?;
        // Before the head is looked for: the first write of all takes it off the medium.
        if self.gather.overlaps(offset, buf.len() as u64) {
            self.poisoning(Self::flush)?;
        }
        let (in_head, rest) = match &self.head {
            Head::InPlace => buf.split_at_mut(0),
            Head::Held(head) => {
                let (in_head, rest) = buf.split_at_mut(overlap(head.len(), offset, buf.len()));
                if !in_head.is_empty() {
                    in_head.copy_from_slice(&head[at(offset)..][..in_head.len()]);
                }
                (in_head, rest)
            }
        };
        let mut offset = offset + in_head.len() as u64;
        let block = self.slot.medium.block();
        for part in rest.chunks_mut(REQUEST_BYTES - 2 * BUFFER_ALIGN) {
            let start = floor(offset, block);
            let end = ceil(offset + part.len() as u64, block);
            let span = &mut self.bounce[..at(end - start)];
            self.slot.read(start, span)?;
            part.copy_from_slice(&span[at(offset - start)..][..part.len()]);
            self.edges.overlay(offset, part);
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// [`SlotWriter::write_piece`] without neighbours to come.
    ///
    /// # Errors
    /// As [`SlotWriter::write_piece`].
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SlotWriteError> {
        self.write_piece(offset, bytes, Neighbours::default())
    }

    /// Puts `bytes` at `offset`; any offset and length within the slot. Fast when offsets ascend, right in
    /// any order. Durable only after [`SlotWriter::sync`], and for the head after [`SlotWriter::finish`].
    ///
    /// # Errors
    /// `slot-too-small` past the end (nothing of it is written); `slot-write-failed`, `slot-sync-failed`,
    /// after which the writer is poisoned; `slot-poisoned`.
    pub fn write_piece(
        &mut self,
        offset: u64,
        bytes: &[u8],
        later: Neighbours,
    ) -> Result<(), SlotWriteError> {
        self.check_usable(offset, bytes.len() as u64)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.poisoning(|writer| {
            let length = overlap(writer.head_length(), offset, bytes.len());
            let (in_head, rest) = bytes.split_at(length);
            writer.put_in_head(offset, in_head)?;
            writer.collect(offset + in_head.len() as u64, rest, later)
        })
    }

    /// Makes `length` bytes from `offset` zeros; any offset and length within the slot. What is zeros
    /// already is left alone; else the device is told to zero it, which frees its blocks, and where it
    /// cannot, zeros are written. Durable as [`SlotWriter::write_piece`] says.
    ///
    /// # Errors
    /// As [`SlotWriter::write_piece`].
    pub fn zero_at(&mut self, offset: u64, length: u64) -> Result<(), SlotWriteError> {
        self.check_usable(offset, length)?;
        self.poisoning(|writer| writer.zero(offset, length))
    }

    /// Everything written so far is on the medium when this returns `Ok`, except the head and the units
    /// that wait for a neighbour.
    ///
    /// # Errors
    /// `slot-write-failed`, `slot-sync-failed`, after which the writer is poisoned; `slot-poisoned`.
    pub fn sync(&mut self) -> Result<(), SlotWriteError> {
        self.check_usable(0, 0)?;
        self.poisoning(|writer| {
            writer.flush()?;
            writer.slot.barrier()
        })
    }

    /// Makes the slot whole: everything else to the medium, then the head, its first block last. Syncs
    /// even when nothing was written, since what compared as right may come from an interrupted run and
    /// still be in the device's own cache.
    ///
    /// # Errors
    /// As [`SlotWriter::sync`]; the slot then does not mount.
    pub fn finish(mut self) -> Result<WriteReport, SlotWriteError> {
        self.settle()?;
        self.place_head()?;
        debug!(device = %self.slot.device.display(), report = ?self.slot.report, "slot finished");
        Ok(self.slot.report)
    }

    /// Everything but the head is on the medium when this returns `Ok`.
    fn settle(&mut self) -> Result<(), SlotWriteError> {
        self.check_usable(0, 0)?;
        self.poisoning(|writer| {
            writer.flush()?;
            while let Some((offset, half)) = writer.edges.first() {
                writer.fill_up(offset, &half)?;
            }
            writer.slot.barrier()
        })
    }

    /// Writes the head if it is held. Call after [`SlotWriter::settle`] only.
    fn place_head(&mut self) -> Result<(), SlotWriteError> {
        self.check_usable(0, 0)?;
        self.poisoning(|writer| {
            if let Head::Held(head) = std::mem::replace(&mut writer.head, Head::InPlace) {
                let (first, rest) = head.split_at(FIRST_BYTES.min(head.len()));
                if !rest.is_empty() {
                    writer.slot.put(FIRST_BYTES as u64, rest)?;
                    writer.slot.barrier()?;
                }
                writer.slot.put(0, first)?;
                writer.slot.barrier()?;
            }
            Ok(())
        })
    }

    fn check_usable(&self, offset: u64, length: u64) -> Result<(), SlotWriteError> {
        if self.poisoned {
            return Err(SlotWriteError::Poisoned {
                device: self.slot.device.clone(),
            });
        }
        self.check_fits(offset.saturating_add(length))
    }

    fn poisoning<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, SlotWriteError>,
    ) -> Result<T, SlotWriteError> {
        // Set for the duration, so that a panic inside counts as a failure too.
        self.poisoned = true;
        let done = work(self)?;
        self.poisoned = false;
        Ok(done)
    }

    fn head_length(&self) -> usize {
        at(HEAD_BYTES.min(self.capacity()))
    }

    /// Puts `bytes`, all of them in the head, at `offset`, unless they are there.
    fn put_in_head(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SlotWriteError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let place = at(offset)..at(offset) + bytes.len();
        if matches!(self.head, Head::InPlace) {
            let block = self.slot.medium.block();
            let start = floor(offset, block);
            let end = ceil(place.end as u64, block);
            let span = &mut self.bounce[..at(end - start)];
            let readable = self.slot.read(start, span).is_ok();
            if readable && &span[at(offset - start)..][..bytes.len()] == bytes {
                self.slot.report.bytes_skipped += bytes.len() as u64;
                return Ok(());
            }
        }
        hold_head(&mut self.slot, &mut self.head)?[place].copy_from_slice(bytes);
        Ok(())
    }
}

/// Takes the head off the medium before the first change anywhere: what it held (the caller may have found
/// parts of it right) is kept until `finish`.
fn hold_head<'a>(
    slot: &mut Counted,
    head: &'a mut Head,
) -> Result<&'a mut AlignedBuf, SlotWriteError> {
    if matches!(head, Head::InPlace) {
        let length = at(HEAD_BYTES.min(slot.capacity()));
        let mut held = AlignedBuf::new(length);
        slot.salvage(0, &mut held);
        if held.iter().any(|byte| *byte != 0) {
            let zeros = AlignedBuf::new(length);
            let (first, rest) = zeros.split_at(FIRST_BYTES.min(length));
            slot.put(0, first)?;
            if !rest.is_empty() {
                slot.barrier()?;
                slot.put(FIRST_BYTES as u64, rest)?;
            }
        }
        // Also when it was blank: the wiping of an interrupted run may still be in the device's cache.
        slot.barrier()?;
        *head = Head::Held(held);
    }
    match head {
        Head::Held(held) => Ok(held),
        Head::InPlace => unreachable!("the head was taken just above"),
    }
}

impl std::fmt::Debug for SlotWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotWriter")
            .field("device", &self.slot.device)
            .field("poisoned", &self.poisoned)
            .field("report", &self.slot.report)
            .finish_non_exhaustive()
    }
}

/// How many of the `length` bytes from `offset` lie in a head of `head` bytes.
fn overlap(head: usize, offset: u64, length: usize) -> usize {
    let room = (head as u64).saturating_sub(offset);
    length.min(at(room))
}

/// A distance within a buffer of ours, all of which are far smaller than any address space.
fn at(distance: u64) -> usize {
    usize::try_from(distance).expect("distances within a buffer fit its address space")
}
