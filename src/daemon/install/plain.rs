//! Fills a slot from a plain image: raw, gzip, xz or zstd, streamed through its decompressor.
//!
//! Whether the file is the right one is known only at its end, so the slot's first block is written only
//! after digest or signature matched. Blocks that are right already are not written again.

use std::io::Read;

use ring::digest;

use super::{CHECKPOINT, Hashed, Installer, Start};
use crate::{
    daemon::source::Source,
    image::{DetachedVerifier, PlainError, PlainKind, plain_decoder},
    platform::{slot_writer::SlotWriter, slots::InactiveSlot},
    update::{digest::Sha256, failure::Failure, machine::Content, request::Request},
};

/// Block in which the image is compared and written, bytes.
const BLOCK: usize = 256 << 10;

/// Writes the image that `start` begins.
pub fn install(
    installer: &Installer,
    request: &Request,
    source: &Source,
    kind: PlainKind,
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
    let mut writer = SlotWriter::open(slot.path()).map_err(|error| Failure::from(&error))?;
    let size = source.total().filter(|_| kind == PlainKind::Raw);
    if let Some(size) = size {
        writer
            .check_fits(size)
            .map_err(|error| Failure::from(&error))?;
    }
    installer.meter.begin_writing(size.unwrap_or(0));
    let mut file = Signed {
        reader: Hashed::new(start),
        verifier,
    };
    let content = fill(installer, source, kind, &mut file, &mut writer)?;
    let Signed { reader, verifier } = file;
    if let Some(verifier) = verifier {
        verifier.finish().map_err(|error| Failure::from(&error))?;
    }
    if let Some(asked) = request.sha256 {
        reader.expect(asked, source)?;
    }
    installer.cancel.check()?;
    let report = writer.finish().map_err(|error| Failure::from(&error))?;
    installer.meter.set_wear(&report);
    Ok(content)
}

/// Decompresses `file` into the slot, to the file's end.
fn fill(
    installer: &Installer,
    source: &Source,
    kind: PlainKind,
    file: &mut (impl Read + Send),
    writer: &mut SlotWriter,
) -> Result<Content, Failure> {
    let explain = |error: std::io::Error| {
        source
            .take_failure()
            .unwrap_or_else(|| match PlainError::of(&error) {
                Some(error) => Failure::from(error),
                None => source.explain_io(&error),
            })
    };
    let mut decoder = plain_decoder(kind, file).map_err(explain)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let (mut block, mut old) = (Vec::with_capacity(BLOCK), vec![0; BLOCK]);
    let (mut size, mut since_sync) = (0, 0);
    loop {
        installer.cancel.check()?;
        block.clear();
        (&mut decoder)
            .take(BLOCK as u64)
            .read_to_end(&mut block)
            .map_err(explain)?;
        // The end of a download that broke off must not pass for the end of the file.
        source.check()?;
        if block.is_empty() {
            break;
        }
        let length = block.len() as u64;
        writer
            .check_fits(size + length)
            .map_err(|error| Failure::from(&error))?;
        context.update(&block);
        let old = &mut old[..block.len()];
        if writer.read_at(size, old).is_ok() && *old == block[..] {
            installer.meter.add_reused(length);
        } else {
            writer
                .write_at(size, &block)
                .map_err(|error| Failure::from(&error))?;
            since_sync += length;
        }
        size += length;
        installer.meter.set_done(size);
        installer.meter.set_wear(&writer.report());
        if since_sync >= CHECKPOINT {
            writer.sync().map_err(|error| Failure::from(&error))?;
            since_sync = 0;
        }
    }
    Ok(Content {
        size,
        sha256: Sha256::from_ring(&context.finish()),
    })
}

/// Feeds everything that is read through it to the signature check.
struct Signed<'a, R> {
    reader: R,
    verifier: Option<DetachedVerifier<'a>>,
}

impl<R: Read> Read for Signed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&buffer[..count]);
        }
        Ok(count)
    }
}
