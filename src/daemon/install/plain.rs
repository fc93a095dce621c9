//! Fills a slot from a plain image: raw, gzip, xz, bzip2 or zstd, streamed through its decompressor; of a partition, or of
//! both as an update archive.
//!
//! One thread receives and decompresses, one hashes, one writes, so that network, processor and medium
//! overlap. Whether the file is the right one is known only at its end, so the slot's head is written only after digest
//! or signature matched. What is right already is not written again, and holes are zeroed: the writer sees to both.

use std::io::{self, Read};

use ring::digest;

use super::{
    Hashed, Installer, Start, error::InstallError, filling::CHECKPOINT, parts, pipeline::pipeline,
};
use crate::{
    daemon::source::Source,
    image::{DetachedVerifier, PlainError, PlainKind, archive, cut::is_zeros, plain_decoder},
    platform::{
        slot_writer::{SlotSet, SlotWriteError, SlotWriter},
        slots::InactiveSlot,
    },
    update::{digest::Sha256, failure::Failure, machine::Content, request::Request},
};

/// The raw image goes from thread to thread in blocks of so many bytes.
const BLOCK: usize = 256 << 10;
/// Blocks under way.
const BLOCKS: usize = 4;
/// Zeros are looked for in pieces of so many bytes: a shorter hole is cheaper written.
const PIECE: usize = 64 << 10;

/// Bytes of the boot partition in the image that `start` begins: its header was inspected, nothing more is read.
pub fn boot_size(source: &Source, kind: PlainKind, start: Start<'_>) -> Result<u64, Failure> {
    // The vendor's archives are compressed by zstd; of others the beginning would cost too much (bzip2: 900 kB).
    if kind != PlainKind::Zstd {
        return Ok(0);
    }
    let begun = plain_decoder(kind, start).and_then(archive::payload);
    Ok(begun.map_err(|error| explain(source, error))?.boot)
}

/// Why the image's bytes cannot be had.
fn explain(source: &Source, error: io::Error) -> Failure {
    source
        .take_failure()
        .unwrap_or_else(|| match PlainError::of(&error) {
            Some(error) => Failure::from(error),
            None => source.explain_io(&error),
        })
}

/// Writes the image that `start` begins, of which the first `boot` raw bytes are for the boot partition.
pub fn install(
    installer: &Installer,
    request: &Request,
    source: &Source,
    (kind, boot): (PlainKind, u64),
    start: Start<'_>,
    slot: &InactiveSlot,
) -> Result<Content, Failure> {
    let store = installer.trust_store()?;
    let signatures = installer.detached(source, request)?;
    let verifier = match &signatures {
        None => None,
        Some(signatures) => {
            let verifier = store.verify_detached(signatures, installer.trust.threshold);
            Some(verifier.map_err(|error| Failure::from(&error))?)
        }
    };
    let size = source.total().filter(|_| kind == PlainKind::Raw);
    let most = match size {
        Some(size) => size,
        None => SlotWriter::open(slot.path()).map_err(failed)?.capacity(),
    };
    let parts = parts(slot, boot, boot.saturating_add(most))?;
    let writer = SlotSet::open(&parts).map_err(failed)?;
    installer.meter.begin_writing(size.unwrap_or(0));
    let mut file = Signed {
        reader: Hashed::new(start),
        verifier,
    };
    let mut target = Target {
        installer,
        writer,
        size: 0,
        hole: 0,
        reused: 0,
        since_sync: 0,
    };
    let content = fill(source, (kind, boot), &mut file, &mut target)?;
    let Signed { reader, verifier } = file;
    if let Some(verifier) = verifier {
        verifier.finish().map_err(|error| Failure::from(&error))?;
    }
    if let Some(asked) = request.sha256 {
        reader.expect(asked, source)?;
    }
    installer.cancel.check()?;
    target.finish()?;
    Ok(content)
}

/// Decompresses `file` into the slot, to the file's end.
fn fill(
    source: &Source,
    (kind, boot): (PlainKind, u64),
    file: &mut (impl Read + Send),
    target: &mut Target<'_>,
) -> Result<Content, Failure> {
    let explain = |error| explain(source, error);
    let payload = plain_decoder(kind, file).and_then(archive::payload);
    let payload = payload.map_err(explain)?;
    if payload.boot != boot {
        return Err(match kind {
            PlainKind::Zstd => Failure::from(&InstallError::Changed {
                uri: source.uri().to_string(),
            }),
            _ => Failure::from(&PlainError::Archive(
                "with a boot partition it must be compressed by zstd",
            )),
        });
    }
    let mut decoder = payload.bytes;
    let mut context = digest::Context::new(&digest::SHA256);
    let cancel = &target.installer.cancel;
    pipeline(
        (0..BLOCKS).map(|_| Vec::with_capacity(BLOCK)).collect(),
        |block: &mut Vec<u8>| {
            cancel.check()?;
            block.clear();
            (&mut decoder)
                .take(BLOCK as u64)
                .read_to_end(block)
                .map_err(explain)?;
            // The end of a download that broke off must not pass for the end of the file.
            source.check()?;
            Ok(!block.is_empty())
        },
        |block| {
            context.update(block);
            Ok(())
        },
        |block| target.put(block),
    )?;
    Ok(Content {
        size: target.size,
        sha256: Sha256::from_ring(&context.finish()),
    })
}

/// The slot, and how far it is filled.
struct Target<'a> {
    installer: &'a Installer,
    writer: SlotSet,
    /// Raw bytes so far.
    size: u64,
    /// Of these, the zeros at the end that were not handed on yet.
    hole: u64,
    /// Bytes found right, as told to the meter.
    reused: u64,
    since_sync: u64,
}

impl Target<'_> {
    /// Puts the next bytes of the image into the slot.
    fn put(&mut self, block: &[u8]) -> Result<(), Failure> {
        self.installer.cancel.check()?;
        self.writer
            .check_fits(self.size + block.len() as u64)
            .map_err(failed)?;
        for piece in block.chunks(PIECE) {
            let length = piece.len() as u64;
            if is_zeros(piece) {
                self.hole += length;
            } else {
                self.zero()?;
                self.writer.write_at(self.size, piece).map_err(failed)?;
            }
            self.size += length;
            self.since_sync += length;
        }
        if self.hole >= CHECKPOINT {
            self.zero()?;
        }
        self.count();
        if self.since_sync >= CHECKPOINT {
            self.writer.sync().map_err(failed)?;
            self.since_sync = 0;
        }
        Ok(())
    }

    /// Hands the zeros at the end on.
    fn zero(&mut self) -> Result<(), Failure> {
        let hole = std::mem::take(&mut self.hole);
        if hole > 0 {
            let start = self.size - hole;
            self.writer.zero_at(start, hole).map_err(failed)?;
        }
        Ok(())
    }

    fn count(&mut self) {
        let (meter, report) = (&self.installer.meter, self.writer.report());
        meter.set_done(self.size);
        meter.add_reused(report.bytes_skipped - self.reused);
        self.reused = report.bytes_skipped;
        meter.set_wear(&report);
    }

    /// Makes the slot whole.
    fn finish(mut self) -> Result<(), Failure> {
        self.zero()?;
        self.count();
        let report = self.writer.finish().map_err(failed)?;
        self.installer.meter.set_wear(&report);
        self.installer
            .meter
            .add_reused(report.bytes_skipped - self.reused);
        Ok(())
    }
}

fn failed(error: SlotWriteError) -> Failure {
    Failure::from(&error)
}

/// Feeds everything that is read through it to the signature check.
struct Signed<'a, R> {
    reader: R,
    verifier: Option<DetachedVerifier<'a>>,
}

impl<R: Read> Read for Signed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&buffer[..count]);
        }
        Ok(count)
    }
}
