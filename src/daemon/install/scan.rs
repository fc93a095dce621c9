//! First stage: which chunks the slot holds at their place already. They are neither fetched nor written, which
//! is also how an interrupted installation goes on where it stopped.
//!
//! Reads and hashes overlap. What cannot be read counts as missing: writing is how a bad sector heals. A slot
//! of which a sample of chunks spread all over it matches in none is not read as a whole.

use super::{filling::Filling, pipeline::pipeline};
use crate::{
    image::{ChunkEntry, check_digest},
    platform::slot_writer::SlotWriter,
    update::failure::Failure,
};

/// Chunks are read in pieces of about this many bytes.
const PIECE: usize = 1 << 20;
/// Pieces under way.
const PIECES: usize = 3;
/// One chunk is looked at in so many bytes, to see whether the slot holds anything of the image. Half of what a
/// restart may cost: what was written before an interruption is found.
const SAMPLE_STEP: u64 = 16 << 20;
/// At least so many chunks are looked at.
const SAMPLES: u64 = 64;

/// Consecutive chunks of the slot.
#[derive(Default)]
struct Piece {
    chunks: Vec<(usize, ChunkEntry)>,
    bytes: Vec<u8>,
    /// Which of them could be read, then which hold what they should.
    good: Vec<bool>,
}

/// Finds the chunks that are in place.
///
/// # Errors
/// When someone wants it to stop.
pub fn scan(filling: &mut Filling<'_>) -> Result<(), Failure> {
    if !filling.resumed && !holds_something(filling)? {
        tracing::debug!("the slot holds nothing of the image");
        return Ok(());
    }
    let mut chunks = filling.chunks();
    let pool = (0..PIECES).map(|_| Piece::default()).collect();
    let cancel = &filling.installer.cancel;
    let (target, tally) = (&mut filling.target, &mut filling.tally);
    pipeline(
        pool,
        |piece: &mut Piece| {
            cancel.check()?;
            piece.take(&mut chunks);
            piece.read(target);
            Ok(!piece.chunks.is_empty())
        },
        |piece| {
            piece.check();
            Ok(())
        },
        |piece| {
            for ((number, chunk), _) in piece
                .chunks
                .iter()
                .zip(&piece.good)
                .filter(|(_, good)| **good)
            {
                tally.found(*number, chunk);
            }
            Ok(())
        },
    )
}

/// Looks at chunks all over the slot until one is in place.
fn holds_something(filling: &mut Filling<'_>) -> Result<bool, Failure> {
    let size = filling.header.manifest().payload.size;
    let step = (size / SAMPLES).clamp(1, SAMPLE_STEP);
    let (mut next, mut raw) = (0, Vec::new());
    for (_, chunk) in filling.chunks() {
        if chunk.raw_offset < next {
            continue;
        }
        filling.installer.cancel.check()?;
        next = chunk.raw_offset + step;
        raw.resize(chunk.raw_len as usize, 0);
        if filling.target.read_at(chunk.raw_offset, &mut raw).is_ok()
            && check_digest(&chunk, &raw).is_ok()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Piece {
    /// Becomes the next chunks, about [`PIECE`] bytes of them; none at the end.
    fn take(&mut self, chunks: &mut impl Iterator<Item = (usize, ChunkEntry)>) {
        self.chunks.clear();
        let mut length = 0;
        while length < PIECE
            && let Some((number, chunk)) = chunks.next()
        {
            length += chunk.raw_len as usize;
            self.chunks.push((number, chunk));
        }
        self.bytes.resize(length, 0);
    }

    /// Reads them at once, or, when that fails, each for itself.
    fn read(&mut self, target: &mut SlotWriter) {
        let Some((_, first)) = self.chunks.first() else {
            return;
        };
        let readable = target.read_at(first.raw_offset, &mut self.bytes).is_ok();
        self.good.clear();
        let mut rest = &mut self.bytes[..];
        for (_, chunk) in &self.chunks {
            let (bytes, behind) = rest.split_at_mut(chunk.raw_len as usize);
            let good = readable || target.read_at(chunk.raw_offset, bytes).is_ok();
            self.good.push(good);
            rest = behind;
        }
    }

    fn check(&mut self) {
        let mut rest = &self.bytes[..];
        for ((_, chunk), good) in self.chunks.iter().zip(&mut self.good) {
            let (bytes, behind) = rest.split_at(chunk.raw_len as usize);
            *good = *good && check_digest(chunk, bytes).is_ok();
            rest = behind;
        }
    }
}
