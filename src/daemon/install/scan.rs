//! First stage: which chunks the slot holds at their place already. They are neither fetched nor written, which
//! is also how an interrupted installation goes on where it stopped.
//!
//! Reads and hashes overlap. What cannot be read counts as missing: writing is how a bad sector heals. A slot
//! of which a sample of chunks spread all over it matches in none is not read as a whole.

use super::{filling::Filling, piece::Piece, pipeline::pipeline};
use crate::{
    image::{ChunkEntry, check_digest},
    platform::slot_writer::SlotSet,
    update::failure::Failure,
};

/// Chunks are read in pieces of about this many bytes.
const PIECE: usize = 1 << 20;
/// Pieces under way.
const PIECES: usize = 3;
/// Chunks of a hole that are made at once, so that stopping does not take long.
const HOLE_CHUNKS: usize = 64;
/// One chunk is looked at in so many bytes, to see whether the slot holds anything of the image. Half of what a
/// restart may cost: what was written before an interruption is found.
const SAMPLE_STEP: u64 = 16 << 20;
/// At least so many chunks are looked at.
const SAMPLES: u64 = 64;

/// Finds the chunks that are in place.
///
/// # Errors
/// When someone wants it to stop.
pub fn scan(filling: &mut Filling<'_>) -> Result<(), Failure> {
    holes(filling)?;
    if !filling.resumed && !holds_something(filling)? {
        tracing::debug!("the slot holds nothing of the image");
        return Ok(());
    }
    let mut chunks = filling
        .chunks()
        .filter(|(_, chunk)| !chunk.zeros)
        .peekable();
    let cancel = &filling.installer.cancel;
    let (target, tally) = (&mut filling.target, &mut filling.tally);
    pipeline(
        (0..PIECES).map(|_| Piece::default()).collect(),
        |piece: &mut Piece| {
            cancel.check()?;
            take(piece, &mut chunks);
            read(piece, target);
            Ok(!piece.chunks.is_empty())
        },
        |piece| {
            piece.check();
            Ok(())
        },
        |piece| {
            piece.each(|number, chunk, _, good| {
                if good {
                    tally.found(number, chunk);
                }
                Ok(())
            })
        },
    )
}

/// Makes the image's holes, without reading what the slot holds where it knows better.
fn holes(filling: &mut Filling<'_>) -> Result<(), Failure> {
    let mut hole: Vec<(usize, ChunkEntry)> = Vec::new();
    for (number, chunk) in filling.chunks() {
        if chunk.zeros {
            hole.push((number, chunk));
        }
        if !chunk.zeros || hole.len() == HOLE_CHUNKS {
            filling.put_hole(&hole)?;
            hole.clear();
        }
    }
    filling.put_hole(&hole)
}

/// Looks at chunks all over the slot until one is in place.
fn holds_something(filling: &mut Filling<'_>) -> Result<bool, Failure> {
    let size = filling.header.manifest().payload.size;
    let step = (size / SAMPLES).clamp(1, SAMPLE_STEP);
    let (mut next, mut raw) = (0, Vec::new());
    for (_, chunk) in filling.chunks() {
        if chunk.zeros || chunk.raw_offset < next {
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

/// Fills `piece` with the next chunks, about [`PIECE`] bytes that lie together; none at the end.
fn take(
    piece: &mut Piece,
    chunks: &mut std::iter::Peekable<impl Iterator<Item = (usize, ChunkEntry)>>,
) {
    piece.clear();
    let (mut length, mut end) = (0, None);
    while length < PIECE
        && let Some((number, chunk)) =
            chunks.next_if(|(_, chunk)| end.is_none_or(|end| end == chunk.raw_offset))
    {
        length += chunk.raw_len as usize;
        end = Some(chunk.raw_offset + u64::from(chunk.raw_len));
        piece.chunks.push((number, chunk));
    }
    piece.raw.resize(length, 0);
}

/// Reads the chunks of `piece` at once, or, when that fails, each for itself.
fn read(piece: &mut Piece, target: &mut SlotSet) {
    let Some((_, first)) = piece.chunks.first() else {
        return;
    };
    let readable = target.read_at(first.raw_offset, &mut piece.raw).is_ok();
    let mut rest = &mut piece.raw[..];
    for (_, chunk) in &piece.chunks {
        let (raw, behind) = rest.split_at_mut(chunk.raw_len as usize);
        let good = readable || target.read_at(chunk.raw_offset, raw).is_ok();
        piece.good.push(good);
        rest = behind;
    }
}
