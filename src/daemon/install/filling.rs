//! The slot while it is being filled: what is missing, and the one way by which a chunk gets there.
//!
//! The stages ([`super::scan`], [`super::reuse`], [`super::fetch`]) share one [`Filling`], one after the other.
//! Each goes through the missing chunks in ascending order and gives those that it can make to
//! [`Filling::put`]. What they rely on: a chunk that is not in [`Filling::missing`] is at its place, and
//! [`Filling::read`] shows it there. What it relies on: only bytes whose digest matched are put.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Installer;
use crate::{
    daemon::meter::Meter,
    image::{ChunkEntry, Header, Missing},
    platform::{
        slot_writer::{SlotWriteError, SlotWriter, WriteReport},
        slots::InactiveSlot,
    },
    update::failure::Failure,
};

/// Bytes on the medium between two syncs: the most that a power cut makes us write again ...
pub const CHECKPOINT: u64 = 64 << 20;
/// ... and the longest time between two.
const CHECKPOINT_TIME: Duration = Duration::from_secs(30);

/// What is missing still, told to the meter.
pub struct Tally {
    missing: Missing,
    meter: Arc<Meter>,
}

impl Tally {
    /// Chunk `number` was found at its place.
    pub fn found(&mut self, number: usize, chunk: &ChunkEntry) {
        if self.done(number, chunk) {
            self.meter.add_reused(u64::from(chunk.raw_len));
        }
    }

    /// Chunk `number` is at its place; false when it was before.
    fn done(&mut self, number: usize, chunk: &ChunkEntry) -> bool {
        let news = self.missing.done(number);
        if news {
            self.meter.add_done(u64::from(chunk.raw_len));
        }
        news
    }
}

/// A slot, and which chunks of an image are not in it yet.
pub struct Filling<'a> {
    /// Counters, the wish to stop.
    pub installer: &'a Installer,
    /// The image.
    pub header: &'a Header,
    /// The slot.
    pub(super) target: SlotWriter,
    /// What is missing, and how far that is.
    pub(super) tally: Tally,
    /// This update wrote to the slot before.
    pub(super) resumed: bool,
    since_sync: u64,
    synced: Instant,
}

impl<'a> Filling<'a> {
    /// Opens `slot`, of which nothing is known. Writes nothing.
    ///
    /// # Errors
    /// When it cannot be written, or the image does not fit.
    pub fn open(
        installer: &'a Installer,
        header: &'a Header,
        slot: &InactiveSlot,
    ) -> Result<Self, Failure> {
        let target = SlotWriter::open(slot.path()).map_err(|error| Failure::from(&error))?;
        let size = header.manifest().payload.size;
        target
            .check_fits(size)
            .map_err(|error| Failure::from(&error))?;
        let resumed = installer.meter.progress().bytes_written > 0;
        installer.meter.begin_writing(size);
        Ok(Self {
            installer,
            header,
            target,
            tally: Tally {
                missing: Missing::all(header.index().len()),
                meter: installer.meter.clone(),
            },
            resumed,
            since_sync: 0,
            synced: Instant::now(),
        })
    }

    /// What is missing now.
    #[must_use]
    pub fn missing(&self) -> &Missing {
        &self.tally.missing
    }

    /// All chunks of the image with their numbers, in order. Borrows the image only.
    pub fn chunks(&self) -> impl Iterator<Item = (usize, ChunkEntry)> + use<'a> {
        self.header.chunks().enumerate()
    }

    /// Writes chunk `number`, whose bytes are `raw`: its digest matched. Syncs now and then.
    ///
    /// # Errors
    /// When someone wants it to stop, or the medium fails.
    pub fn put(&mut self, number: usize, chunk: &ChunkEntry, raw: &[u8]) -> Result<(), Failure> {
        self.installer.cancel.check()?;
        self.target
            .write_at(chunk.raw_offset, raw)
            .map_err(|error| Failure::from(&error))?;
        self.wrote(number, chunk)
    }

    fn wrote(&mut self, number: usize, chunk: &ChunkEntry) -> Result<(), Failure> {
        let length = u64::from(chunk.raw_len);
        self.tally.done(number, chunk);
        self.installer
            .meter
            .set_written(self.target.bytes_written());
        self.since_sync += length;
        if self.since_sync >= CHECKPOINT || self.synced.elapsed() >= CHECKPOINT_TIME {
            self.target.sync().map_err(|error| Failure::from(&error))?;
            (self.since_sync, self.synced) = (0, Instant::now());
        }
        Ok(())
    }

    /// What the slot holds at `offset` of the image, as it will be in the end.
    ///
    /// # Errors
    /// [`SlotWriteError`]; after `slot-read-failed` the filling can go on.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), SlotWriteError> {
        self.target.read_at(offset, buffer)
    }

    /// Makes the slot whole. Nothing is missing any more.
    ///
    /// # Errors
    /// When the medium fails.
    pub fn finish(self) -> Result<WriteReport, Failure> {
        debug_assert!(self.missing().is_empty(), "a chunk was forgotten");
        self.installer.cancel.check()?;
        let report = self
            .target
            .finish()
            .map_err(|error| Failure::from(&error))?;
        self.installer.meter.set_written(report.bytes_written);
        Ok(report)
    }
}
