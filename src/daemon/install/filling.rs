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

use super::{Installer, parts};
use crate::{
    daemon::meter::Meter,
    image::{ChunkEntry, Header, Missing, find::Finder, manifest::Chunking},
    platform::{
        slot_writer::{Neighbours, SlotSet, SlotWriteError, WriteReport},
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
    pub(super) target: SlotSet,
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
        let size = header.manifest().payload.size;
        let boot = header.manifest().boot().map_or(0, |boot| boot.size);
        let parts = parts(slot, boot, size)?;
        let target = SlotSet::open(&parts).map_err(|error| Failure::from(&error))?;
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

    /// How the image was cut.
    #[must_use]
    pub fn chunking(&self) -> &'a Chunking {
        &self.header.manifest().chunking
    }

    /// Something that looks for what is missing.
    #[must_use]
    pub fn finder(&self) -> Finder {
        Finder::new(self.chunks(), self.missing())
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
        let later = Neighbours {
            before: number > 0 && self.missing().contains(number - 1),
            after: self.missing().contains(number + 1),
        };
        self.target
            .write_piece(chunk.raw_offset, raw, later)
            .map_err(|error| Failure::from(&error))?;
        self.tally.done(number, chunk);
        self.checkpoint(u64::from(chunk.raw_len))
    }

    /// Makes the hole that the chunks of `hole` are, one after the other. What is zeros already stays as it is.
    ///
    /// # Errors
    /// As [`Filling::put`].
    pub fn put_hole(&mut self, hole: &[(usize, ChunkEntry)]) -> Result<(), Failure> {
        let Some((_, first)) = hole.first() else {
            return Ok(());
        };
        self.installer.cancel.check()?;
        let length = hole.iter().map(|(_, chunk)| u64::from(chunk.raw_len)).sum();
        self.target
            .zero_at(first.raw_offset, length)
            .map_err(|error| Failure::from(&error))?;
        for (number, chunk) in hole {
            self.tally.found(*number, chunk);
        }
        self.checkpoint(length)
    }

    /// `length` bytes more are in place: syncs when it is time to.
    fn checkpoint(&mut self, length: u64) -> Result<(), Failure> {
        self.installer.meter.set_wear(&self.target.report());
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
    ///
    /// # Panics
    /// When something is missing.
    pub fn finish(self) -> Result<WriteReport, Failure> {
        assert!(self.missing().is_empty(), "a chunk was forgotten");
        self.installer.cancel.check()?;
        let report = self
            .target
            .finish()
            .map_err(|error| Failure::from(&error))?;
        self.installer.meter.set_wear(&report);
        Ok(report)
    }
}
