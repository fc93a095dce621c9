//! Fills a slot from an image with a manifest.
//!
//! Chunks that the slot already holds are found by reading it: they are neither fetched nor written, which
//! is also how an interrupted download goes on where it stopped. The others are fetched in runs, and each
//! is verified before it is written.

use std::{io::Read, ops::Range};

use super::{CHECKPOINT, Hashed, Installer, Start, error::InstallError};
use crate::{
    daemon::source::Source,
    image::{ChunkDecoder, ChunkEntry, Header, check_digest},
    platform::{slot_writer::SlotWriter, slots::InactiveSlot},
    update::{failure::Failure, machine::Content, request::Request},
};

/// Up to this many bytes of frames that are not needed are fetched rather than starting a new request.
const COALESCE: u64 = 64 << 10;

/// Writes what is missing; `start` stands behind the header.
pub fn install(
    installer: &Installer,
    request: &Request,
    source: &Source,
    header: &Header,
    start: Hashed<Start<'_>>,
    slot: &InactiveSlot,
) -> Result<Content, Failure> {
    let payload = &header.manifest().payload;
    let mut writer = SlotWriter::open(slot.path()).map_err(|error| Failure::from(&error))?;
    writer
        .check_fits(payload.size)
        .map_err(|error| Failure::from(&error))?;
    installer.meter.begin_writing(payload.size);
    let needed = missing(installer, header, &mut writer)?;
    let mut filling = Filling {
        installer,
        source,
        header,
        needed: &needed,
        writer,
        since_sync: 0,
        decoder: ChunkDecoder::new(),
    };
    match request.sha256 {
        // A digest of the whole file can only be checked by reading the whole file.
        Some(asked) => {
            let mut whole = start;
            filling.run(0..needed.len(), &mut whole)?;
            whole.expect(asked, source)?;
        }
        None => {
            drop(start);
            for run in runs(header.chunks(), &needed, source.supports_ranges()) {
                let mut reader = source.read(run.bytes.start, Some(run.bytes.end))?;
                filling.run(run.chunks, &mut reader)?;
            }
        }
    }
    installer.cancel.check()?;
    let report = filling
        .writer
        .finish()
        .map_err(|error| Failure::from(&error))?;
    installer.meter.set_written(report.bytes_written);
    Ok(Content {
        size: payload.size,
        sha256: payload.sha256,
    })
}

/// Which chunks the slot does not hold at their place.
fn missing(
    installer: &Installer,
    header: &Header,
    writer: &mut SlotWriter,
) -> Result<Vec<bool>, Failure> {
    let mut buffer = Vec::new();
    let mut needed = Vec::with_capacity(header.index().len());
    for chunk in header.chunks() {
        installer.cancel.check()?;
        buffer.resize(chunk.raw_len as usize, 0);
        // What cannot be read must be written: that is also how a bad sector heals.
        let readable = writer.read_at(chunk.raw_offset, &mut buffer).is_ok();
        let present = readable && check_digest(&chunk, &buffer).is_ok();
        if present {
            installer.meter.add_reused(u64::from(chunk.raw_len));
            installer.meter.add_done(u64::from(chunk.raw_len));
        }
        needed.push(!present);
    }
    Ok(needed)
}

/// Consecutive chunks, fetched by one request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    /// Their numbers.
    chunks: Range<usize>,
    /// Their bytes in the file.
    bytes: Range<u64>,
}

/// What to fetch: everything needed, small gaps included; all in one run where the server has no ranges,
/// since it sends everything up to the last chunk anyway.
fn runs(chunks: impl Iterator<Item = ChunkEntry>, needed: &[bool], ranges: bool) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (number, chunk) in chunks.enumerate().filter(|(number, _)| needed[*number]) {
        let end = chunk.file_offset + u64::from(chunk.frame_len);
        match runs.last_mut() {
            Some(run) if !ranges || chunk.file_offset - run.bytes.end <= COALESCE => {
                run.chunks.end = number + 1;
                run.bytes.end = end;
            }
            _ => runs.push(Run {
                chunks: number..number + 1,
                bytes: chunk.file_offset..end,
            }),
        }
    }
    runs
}

/// Decodes, verifies and writes.
struct Filling<'a> {
    installer: &'a Installer,
    source: &'a Source,
    header: &'a Header,
    needed: &'a [bool],
    writer: SlotWriter,
    since_sync: u64,
    decoder: ChunkDecoder,
}

impl Filling<'_> {
    /// Takes the frames of the chunks `run` from `reader`, one after the other.
    fn run(&mut self, run: Range<usize>, reader: &mut impl Read) -> Result<(), Failure> {
        let meter = &self.installer.meter;
        let (mut frame, mut raw, mut prefix) = (Vec::new(), Vec::new(), Vec::new());
        for (number, chunk) in self
            .header
            .chunks()
            .enumerate()
            .take(run.end)
            .skip(run.start)
        {
            self.installer.cancel.check()?;
            frame.resize(chunk.frame_len as usize, 0);
            if reader.read_exact(&mut frame).is_err() {
                return Err(self.ended_early(&chunk));
            }
            if !self.needed[number] {
                continue;
            }
            // What is there already, or was written just now.
            prefix.resize(chunk.prefix_len as usize, 0);
            let before = chunk.raw_offset - u64::from(chunk.prefix_len);
            let read = self.writer.read_at(before, &mut prefix);
            read.map_err(|error| Failure::from(&error))?;
            let decoded = self.decoder.decode_chunk(&chunk, &prefix, &frame, &mut raw);
            decoded.map_err(|error| Failure::from(&error))?;
            let written = self.writer.write_at(chunk.raw_offset, &raw);
            written.map_err(|error| Failure::from(&error))?;
            meter.add_done(u64::from(chunk.raw_len));
            meter.set_written(self.writer.bytes_written());
            self.since_sync += u64::from(chunk.raw_len);
            if self.since_sync >= CHECKPOINT {
                self.writer.sync().map_err(|error| Failure::from(&error))?;
                self.since_sync = 0;
            }
        }
        Ok(())
    }

    fn ended_early(&self, chunk: &ChunkEntry) -> Failure {
        let got = self
            .source
            .total()
            .map_or(chunk.file_offset, |total| total.min(chunk.file_offset));
        let (uri, want) = (self.source.uri().to_string(), self.header.file_len());
        let truncated = InstallError::Truncated { uri, got, want };
        self.source
            .take_failure()
            .unwrap_or_else(|| Failure::from(&truncated))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ChunkDigest;

    fn chunks(lengths: &[u32]) -> Vec<ChunkEntry> {
        let mut file_offset = 1000;
        let entries = lengths.iter().enumerate().map(|(number, frame_len)| {
            let entry = ChunkEntry {
                raw_offset: number as u64 * 4096,
                raw_len: 4096,
                file_offset,
                frame_len: *frame_len,
                digest: ChunkDigest::of(b""),
                prefix_len: 0,
                zeros: false,
            };
            file_offset += u64::from(*frame_len);
            entry
        });
        entries.collect()
    }

    #[test]
    fn small_gaps_are_fetched_along_and_large_ones_start_a_new_request() {
        let far = u32::try_from(COALESCE).unwrap() + 1;
        let chunks = chunks(&[10, 20, 30, far, 40]);
        let needed = [true, false, true, false, true];
        let found = runs(chunks.iter().copied(), &needed, true);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0],
            Run {
                chunks: 0..3,
                bytes: 1000..1060
            }
        );
        assert_eq!(found[1].chunks, 4..5);
    }

    #[test]
    fn a_server_without_ranges_is_asked_once_and_nothing_needed_means_no_request() {
        let far = u32::try_from(COALESCE).unwrap() + 1;
        let chunks = chunks(&[10, far, 30]);
        let found = runs(chunks.iter().copied(), &[true, false, true], false);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].chunks, 0..3);
        assert!(runs(chunks.iter().copied(), &[false; 3], true).is_empty());
    }
}
