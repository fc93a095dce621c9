//! THE PARTITION IS WRITTEN HERE.
//!
//! [`SlotWriter`] writes an image into the slot that is not running, a block device or a regular file,
//! past the page cache. What it guarantees:
//!
//! - **A half-written slot never mounts.** The head of the slot ([`HEAD_BYTES`]), where every file system
//!   keeps its superblock, is wiped and synced before the first other byte changes, held in memory, and
//!   written by [`SlotWriter::finish`] only after everything else is on the medium. At every instant the
//!   medium holds (a) the old contents, whole; or (b) a head whose first 4 KiB are being or have been
//!   wiped; or (c) the new contents, whole. A slot that already holds everything is not written at all.
//! - **Neighbours survive.** Ranges that are not written keep what they hold, down to the byte: where a
//!   range ends inside a sector, the sector's other bytes are written back as they were; so is the part of
//!   the wiped head that the caller never wrote.
//! - **The running root is refused**, as is anything mounted or held, whoever chose the slot.
//! - **Durable means durable.** After [`SlotWriter::sync`] everything but the head is on the medium; an
//!   error of a write or a sync is final, since after it nobody can say what the medium holds.
//!
//! How a caller uses it: for each range in ascending order, [`SlotWriter::read_at`] and compare; where it
//! differs [`SlotWriter::write_at`]; now and then [`SlotWriter::sync`] and remember how far that was; at
//! the end [`SlotWriter::finish`], then [`read_back`]. Reading always shows what the slot will hold after
//! `finish`, the held head included, so a range once found right stays right. **A resume must start with
//! the head again**, whatever was remembered: an interrupted run leaves it wiped, so its ranges compare
//! as different and are written again; everything beyond [`HEAD_BYTES`] up to the last `sync` is there.

mod device;
mod medium;
#[cfg(test)]
mod tests;

use std::{
    io,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use device::{Access, DeviceMedium};
use medium::{AlignedBuf, BUFFER_ALIGN, Medium, ceil, floor};
use tracing::{debug, warn};

use crate::update::{
    digest::Sha256,
    failure::{Class, Coded},
};

/// How much of a slot's start is held back until all the rest is on the medium. Superblocks lie at 0
/// (xfs, squashfs, FAT), 1 KiB (ext4, f2fs with a second one at 5 KiB, erofs) and 64 KiB (btrfs, 4 KiB
/// long): 128 KiB covers them all.
pub const HEAD_BYTES: u64 = 128 * 1024;

/// The part of the head that is wiped first and written last of all, on its own: the superblock of all
/// those but btrfs, which in turn keeps nothing else in the head.
const FIRST_BYTES: usize = 4096;

/// Writes are gathered into requests of this size: SD cards are slow with less, and 4 MiB is no faster.
const REQUEST_BYTES: usize = 1024 * 1024;

/// Why a slot could not be written or read back.
#[derive(Debug, thiserror::Error)]
pub enum SlotWriteError {
    /// The image does not fit. Nothing was written.
    #[error(
        "the image needs {image} bytes but the slot {} holds {capacity}; build a smaller image or enlarge the partition",
        .device.display()
    )]
    TooSmall {
        /// The slot.
        device: PathBuf,
        /// Bytes the image needs.
        image: u64,
        /// Bytes the slot has.
        capacity: u64,
    },
    /// It runs the system. Nothing was touched.
    #[error(
        "refusing to write {}: it is mounted as / and runs this system; check slots.a and slots.b in the configuration",
        .device.display()
    )]
    RunningRoot {
        /// The slot.
        device: PathBuf,
    },
    /// Someone else has it. Nothing was touched.
    #[error("cannot use the slot {} now: {holder}; release it (umount, swapoff, losetup -d) and keep automounters away from it", .device.display())]
    Held {
        /// The slot.
        device: PathBuf,
        /// Who, in words.
        holder: String,
    },
    /// Neither a block device nor a regular file.
    #[error("the slot {} is neither a block device nor a regular file; check slots.a and slots.b in the configuration", .device.display())]
    NotASlot {
        /// The slot.
        device: PathBuf,
    },
    /// It cannot be opened.
    #[error("cannot open the slot {}; check that the partition exists and that this program may write it", .device.display())]
    Open {
        /// The slot.
        device: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A write failed; the slot stays without a head and does not mount.
    #[error("cannot write {length} bytes at {offset} of the slot {}; the medium may be failing (see dmesg)", .device.display())]
    Write {
        /// The slot.
        device: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// How much.
        length: usize,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A sync failed, so nobody knows what reached the medium; the slot stays without a head.
    #[error("the slot {} did not confirm that its data is on the medium; the medium may be failing (see dmesg)", .device.display())]
    Sync {
        /// The slot.
        device: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A read failed.
    #[error("cannot read {length} bytes at {offset} of the slot {}; the medium may be failing (see dmesg)", .device.display())]
    Read {
        /// The slot.
        device: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// How much.
        length: usize,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// An earlier write or sync of this writer failed.
    #[error("the slot {} is not written any further after an earlier error; start the installation again", .device.display())]
    Poisoned {
        /// The slot.
        device: PathBuf,
    },
}

impl Coded for SlotWriteError {
    fn code(&self) -> &'static str {
        match self {
            Self::TooSmall { .. } => "slot-too-small",
            Self::RunningRoot { .. } => "slot-is-running-root",
            Self::Held { .. } => "slot-held",
            Self::NotASlot { .. } => "slot-not-a-device",
            Self::Open { .. } => "slot-open-failed",
            Self::Write { .. } => "slot-write-failed",
            Self::Sync { .. } => "slot-sync-failed",
            Self::Read { .. } => "slot-read-failed",
            Self::Poisoned { .. } => "slot-poisoned",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Held { .. } => Class::Wait,
            Self::TooSmall { .. }
            | Self::RunningRoot { .. }
            | Self::NotASlot { .. }
            | Self::Open { .. }
            | Self::Write { .. }
            | Self::Sync { .. }
            | Self::Read { .. }
            | Self::Poisoned { .. } => Class::Final,
        }
    }
}

/// What a finished writer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteReport {
    /// Bytes handed to the medium, the wiping of the head included. 0: the slot held everything already.
    pub bytes_written: u64,
    /// Write requests.
    pub writes: u64,
    /// Syncs that the medium confirmed.
    pub syncs: u64,
    /// Bytes that could not be read where the neighbourhood of a write was to be kept, and became zeros.
    pub bytes_unreadable: u64,
}

/// Where the slot's head is.
enum Head {
    /// On the medium, as it always was: nothing has been written yet.
    InPlace,
    /// Here; on the medium there are zeros.
    Held(AlignedBuf),
}

/// Bytes waiting to become one aligned request. Never touches the head.
struct Gather {
    buf: AlignedBuf,
    /// Offset of `buf[0]`, a multiple of the medium's block.
    start: u64,
    /// Bytes in use; 0: nothing waits.
    len: usize,
}

/// Writes one slot. Dropped without [`SlotWriter::finish`] it leaves a slot that does not mount, unless
/// nothing was written. All calls block; run them on a blocking thread.
pub struct SlotWriter {
    device: PathBuf,
    medium: Box<dyn Medium>,
    head: Head,
    gather: Gather,
    bounce: AlignedBuf,
    poisoned: bool,
    report: WriteReport,
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
            device: device.to_owned(),
            medium,
            head: Head::InPlace,
            gather: Gather {
                buf: AlignedBuf::new(REQUEST_BYTES),
                start: 0,
                len: 0,
            },
            bounce: AlignedBuf::new(REQUEST_BYTES),
            poisoned: false,
            report: WriteReport {
                bytes_written: 0,
                writes: 0,
                syncs: 0,
                bytes_unreadable: 0,
            },
        }
    }

    /// Size of the slot in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.medium.capacity()
    }

    /// Bytes handed to the medium so far.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.report.bytes_written
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
            device: self.device.clone(),
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
        self.check_usable(offset, buf.len())?;
        let (in_head, rest) = match &self.head {
            Head::InPlace => buf.split_at_mut(0),
            Head::Held(head) => {
                let (in_head, rest) = buf.split_at_mut(overlap(head, offset, buf.len()));
                if !in_head.is_empty() {
                    in_head.copy_from_slice(&head[at(offset)..][..in_head.len()]);
                }
                (in_head, rest)
            }
        };
        let mut offset = offset + in_head.len() as u64;
        let waiting = self.gather.start..self.gather.start + self.gather.len as u64;
        if offset < waiting.end && waiting.start < offset + rest.len() as u64 {
            self.poisoning(Self::flush)?;
        }
        let block = self.medium.block();
        for part in rest.chunks_mut(REQUEST_BYTES - 2 * BUFFER_ALIGN) {
            let start = floor(offset, block);
            let end = ceil(offset + part.len() as u64, block);
            let span = &mut self.bounce[..at(end - start)];
            self.medium
                .read(start, span)
                .map_err(|source| SlotWriteError::Read {
                    device: self.device.clone(),
                    offset: start,
                    length: span.len(),
                    source,
                })?;
            part.copy_from_slice(&span[at(offset - start)..][..part.len()]);
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Puts `bytes` at `offset`; any offset and length within the slot. Fast when offsets ascend, right in
    /// any order. Durable only after [`SlotWriter::sync`], and for the head after [`SlotWriter::finish`].
    ///
    /// # Errors
    /// `slot-too-small` past the end (nothing of it is written); `slot-write-failed`, `slot-sync-failed`,
    /// after which the writer is poisoned; `slot-poisoned`.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SlotWriteError> {
        self.check_usable(offset, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.poisoning(|writer| {
            let head = writer.hold_head()?;
            let (in_head, rest) = bytes.split_at(overlap(head, offset, bytes.len()));
            if !in_head.is_empty() {
                head[at(offset)..][..in_head.len()].copy_from_slice(in_head);
            }
            writer.collect(offset + in_head.len() as u64, rest)
        })
    }

    /// Everything written so far, except the head, is on the medium when this returns `Ok`.
    ///
    /// # Errors
    /// `slot-write-failed`, `slot-sync-failed`, after which the writer is poisoned; `slot-poisoned`.
    pub fn sync(&mut self) -> Result<(), SlotWriteError> {
        self.check_usable(0, 0)?;
        self.poisoning(|writer| {
            writer.flush()?;
            writer.barrier()
        })
    }

    /// Makes the slot whole: everything else to the medium, then the head, its first block last. Syncs
    /// even when nothing was written, since what compared as right may come from an interrupted run and
    /// still be in the device's own cache.
    ///
    /// # Errors
    /// As [`SlotWriter::sync`]; the slot then does not mount.
    pub fn finish(mut self) -> Result<WriteReport, SlotWriteError> {
        self.sync()?;
        if let Head::Held(head) = std::mem::replace(&mut self.head, Head::InPlace) {
            let (first, rest) = head.split_at(FIRST_BYTES.min(head.len()));
            if !rest.is_empty() {
                self.put(FIRST_BYTES as u64, rest)?;
                self.barrier()?;
            }
            self.put(0, first)?;
            self.barrier()?;
        }
        debug!(device = %self.device.display(), report = ?self.report, "slot finished");
        Ok(self.report)
    }

    fn check_usable(&self, offset: u64, length: usize) -> Result<(), SlotWriteError> {
        if self.poisoned {
            return Err(SlotWriteError::Poisoned {
                device: self.device.clone(),
            });
        }
        self.check_fits(offset.saturating_add(length as u64))
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

    /// Takes the head off the medium before the first change anywhere: what it held (the caller may have
    /// found parts of it right) is kept here until `finish`.
    fn hold_head(&mut self) -> Result<&mut AlignedBuf, SlotWriteError> {
        if matches!(self.head, Head::InPlace) {
            let length = at(HEAD_BYTES.min(self.capacity()));
            let mut head = AlignedBuf::new(length);
            self.salvage(0, &mut head)?;
            if head.iter().any(|byte| *byte != 0) {
                let zeros = AlignedBuf::new(length);
                let (first, rest) = zeros.split_at(FIRST_BYTES.min(length));
                self.put(0, first)?;
                if !rest.is_empty() {
                    self.barrier()?;
                    self.put(FIRST_BYTES as u64, rest)?;
                }
            }
            // Also when it was blank: the wiping of an interrupted run may still be in the device's cache.
            self.barrier()?;
            self.head = Head::Held(head);
        }
        match &mut self.head {
            Head::Held(head) => Ok(head),
            Head::InPlace => unreachable!("the head was taken just above"),
        }
    }

    /// Adds `bytes` (none of them in the head) to the request that is being gathered.
    fn collect(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), SlotWriteError> {
        while !bytes.is_empty() {
            if self.gather.len > 0 && offset != self.gather.start + self.gather.len as u64 {
                self.flush()?;
            }
            if self.gather.len == 0 {
                self.begin(offset)?;
            }
            let room = REQUEST_BYTES - self.gather.len;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.gather.buf[self.gather.len..][..now.len()].copy_from_slice(now);
            self.gather.len += now.len();
            offset += now.len() as u64;
            bytes = later;
            if self.gather.len == REQUEST_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Starts a request at `offset`; when that is inside a block, with the bytes before it as they are.
    fn begin(&mut self, offset: u64) -> Result<(), SlotWriteError> {
        let block = self.medium.block();
        let start = floor(offset, block);
        let before = at(offset - start);
        if before > 0 {
            let mut edge = AlignedBuf::new(block);
            self.salvage(start, &mut edge)?;
            self.gather.buf[..before].copy_from_slice(&edge[..before]);
        }
        self.gather.start = start;
        self.gather.len = before;
        Ok(())
    }

    /// Hands what was gathered to the medium; where it ends inside a block, with the bytes after it as
    /// they are.
    fn flush(&mut self) -> Result<(), SlotWriteError> {
        let Gather { start, len, .. } = self.gather;
        if len == 0 {
            return Ok(());
        }
        let block = self.medium.block();
        let whole = at(floor(len as u64, block));
        let padded = at(ceil(len as u64, block));
        if padded > len {
            let mut edge = AlignedBuf::new(block);
            self.salvage(start + whole as u64, &mut edge)?;
            self.gather.buf[len..padded].copy_from_slice(&edge[len - whole..]);
        }
        let buf = std::mem::replace(&mut self.gather.buf, AlignedBuf::new(0));
        let written = self.put(start, &buf[..padded]);
        self.gather.buf = buf;
        self.gather.len = 0;
        written
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SlotWriteError> {
        self.medium
            .write(offset, bytes)
            .map_err(|source| SlotWriteError::Write {
                device: self.device.clone(),
                offset,
                length: bytes.len(),
                source,
            })?;
        self.report.bytes_written += bytes.len() as u64;
        self.report.writes += 1;
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), SlotWriteError> {
        self.medium.sync().map_err(|source| SlotWriteError::Sync {
            device: self.device.clone(),
            source,
        })?;
        self.report.syncs += 1;
        Ok(())
    }

    /// Reads an aligned range whose neighbourhood is about to be written. A block that cannot be read
    /// becomes zeros: no caller can have found its contents right, and only writing can heal the sector.
    fn salvage(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), SlotWriteError> {
        let Err(error) = self.medium.read(offset, buf) else {
            return Ok(());
        };
        let block = self.medium.block().max(512);
        let mut offset = offset;
        let mut lost = 0;
        for part in buf.chunks_mut(block) {
            if self.medium.read(offset, part).is_err() {
                part.fill(0);
                lost += part.len() as u64;
            }
            offset += part.len() as u64;
        }
        if lost > 0 {
            warn!(device = %self.device.display(), lost, %error, "unreadable sectors become zeros");
            self.report.bytes_unreadable += lost;
        }
        Ok(())
    }
}

impl std::fmt::Debug for SlotWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlotWriter")
            .field("device", &self.device)
            .field("poisoned", &self.poisoned)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

/// How many of the `length` bytes from `offset` lie in the head.
fn overlap(head: &[u8], offset: u64, length: usize) -> usize {
    let room = (head.len() as u64).saturating_sub(offset);
    length.min(at(room))
}

/// A distance within a buffer of ours, all of which are far smaller than any address space.
fn at(distance: u64) -> usize {
    usize::try_from(distance).expect("distances within a buffer fit its address space")
}

/// The SHA-256 of the first `length` bytes of the slot at `device`, read from the medium past every
/// cache. `progress` is told how many bytes are done after each piece and may stop it: then `None`. Call
/// after [`SlotWriter::finish`]: the slot is opened exclusively, so nobody can mount it meanwhile.
///
/// # Errors
/// `slot-too-small` when the slot is shorter than `length`; `slot-held`, `slot-not-a-device`,
/// `slot-open-failed`, `slot-read-failed`.
pub fn read_back(
    device: &Path,
    length: u64,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Option<Sha256>, SlotWriteError> {
    let mut medium = DeviceMedium::open(device, Access::Read)?;
    if length > medium.capacity() {
        return Err(SlotWriteError::TooSmall {
            device: device.to_owned(),
            image: length,
            capacity: medium.capacity(),
        });
    }
    let failed = |offset: u64, length: usize, source| SlotWriteError::Read {
        device: device.to_owned(),
        offset,
        length,
        source,
    };
    medium.drop_cache().map_err(|source| failed(0, 0, source))?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buf = AlignedBuf::new(REQUEST_BYTES);
    let mut done = 0;
    while done < length {
        let wanted = at((length - done).min(REQUEST_BYTES as u64));
        // The slot ends at a block boundary, so the padding is inside it.
        let padded = at(ceil(wanted as u64, medium.block()));
        medium
            .read(done, &mut buf[..padded])
            .map_err(|source| failed(done, padded, source))?;
        context.update(&buf[..wanted]);
        done += wanted as u64;
        if progress(done).is_break() {
            return Ok(None);
        }
    }
    Ok(Some(Sha256::from_ring(&context.finish())))
}
