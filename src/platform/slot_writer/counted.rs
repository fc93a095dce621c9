//! The medium as the slot writer sees it: each failure with its place and words, each change counted.

use std::path::PathBuf;

use tracing::warn;

use super::{
    at,
    error::SlotWriteError,
    medium::{AlignedBuf, Medium},
    report::WriteReport,
};
use crate::update::events;

/// A slot's medium with its name and what was done to it.
pub(super) struct Counted {
    pub(super) device: PathBuf,
    pub(super) medium: Box<dyn Medium>,
    pub(super) report: WriteReport,
}

impl Counted {
    /// Size of the slot in bytes.
    pub(super) fn capacity(&self) -> u64 {
        self.medium.capacity()
    }

    /// Fills `buf` from `offset`, both multiples of the medium's block.
    pub(super) fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), SlotWriteError> {
        self.medium
            .read(offset, buf)
            .map_err(|source| SlotWriteError::Read {
                device: self.device.clone(),
                offset,
                length: buf.len(),
                source,
            })
    }

    /// Writes `bytes` at `offset`, both multiples of the medium's block.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SlotWriteError> {
        self.write(offset, bytes)?;
        self.report.bytes_written += bytes.len() as u64;
        Ok(())
    }

    /// Makes `length` bytes from `offset` zeros: by the device itself where it can, else as far as `differs`
    /// says, which gives the parts that are not zeros yet as offsets and lengths.
    pub(super) fn zero(
        &mut self,
        offset: u64,
        length: u64,
        differs: &[(u64, u64)],
        zeros: &AlignedBuf,
    ) -> Result<(), SlotWriteError> {
        let by_device = self.medium.zero(offset, length);
        let by_device =
            by_device.map_err(|source| self.write_failed(offset, at(length), source))?;
        if by_device {
            self.report.bytes_discarded += length;
            self.report.writes += 1;
            return Ok(());
        }
        for (offset, length) in differs {
            let (mut offset, mut left) = (*offset, at(*length));
            while left > 0 {
                let now = left.min(zeros.len());
                self.write(offset, &zeros[..now])?;
                self.report.bytes_zeroed += now as u64;
                offset += now as u64;
                left -= now;
            }
        }
        Ok(())
    }

    /// Everything written so far is on the medium.
    pub(super) fn barrier(&mut self) -> Result<(), SlotWriteError> {
        self.medium.sync().map_err(|source| SlotWriteError::Sync {
            device: self.device.clone(),
            source,
        })?;
        self.report.syncs += 1;
        Ok(())
    }

    /// Reads an aligned range whose neighbourhood is about to be written. A block that cannot be read
    /// becomes zeros: no caller can have found its contents right, and only writing can heal the sector.
    pub(super) fn salvage(&mut self, offset: u64, buf: &mut [u8]) {
        let Err(error) = self.medium.read(offset, buf) else {
            return;
        };
        let block = self.medium.block().max(512);
        let (start, mut offset) = (offset, offset);
        let mut lost = 0;
        for part in buf.chunks_mut(block) {
            if self.medium.read(offset, part).is_err() {
                part.fill(0);
                lost += part.len() as u64;
            }
            offset += part.len() as u64;
        }
        if lost > 0 {
            let device = self.device.display();
            warn!(
                message_id = events::MEDIUM_FAILING,
                "{device}: {lost} bytes at {start} cannot be read and become zeros: {error}"
            );
            self.report.bytes_unreadable += lost;
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SlotWriteError> {
        let written = self.medium.write(offset, bytes);
        written.map_err(|source| self.write_failed(offset, bytes.len(), source))?;
        self.report.writes += 1;
        Ok(())
    }

    fn write_failed(&self, offset: u64, length: usize, source: std::io::Error) -> SlotWriteError {
        SlotWriteError::Write {
            device: self.device.clone(),
            offset,
            length,
            source,
        }
    }
}
