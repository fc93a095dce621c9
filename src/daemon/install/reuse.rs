//! Second stage: what the device has elsewhere is copied instead of fetched.
//!
//! Three places are searched: chunks of the image that are in place and occur again, the running slot, and what the
//! target slot held before. The last two are cut as the image was, so content is found wherever it moved to. A place
//! that looks unrelated in a sample is not read as a whole. What is found is read again and its digest compared before
//! it is written: the running slot is mounted and may change, and the target's old content goes under while it is
//! overwritten. What does not match then stays missing, which is no error.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::{filling::Filling, piece::Piece, pipeline::pipeline};
use crate::{
    daemon::meter::Cancel,
    image::{
        ChunkEntry,
        find::{CutPiece, Finder, PieceCutter},
        limits::BLOCK,
        manifest::{Chunking, GEAR},
    },
    platform::running_slot::RunningSlot,
    update::failure::Failure,
};

/// Old content is searched in pieces of so many bytes.
const SEARCH_PIECE: u64 = 1 << 20;
/// Chunks are copied in pieces of about so many bytes.
const COPY_PIECE: usize = 512 << 10;
/// Pieces under way.
const PIECES: usize = 3;
/// Samples of a place, each of so many bytes. A place of twice their sum or less is searched as a whole.
const SAMPLES: u64 = 32;
const SAMPLE: u64 = 1 << 20;

/// Copies what is found of the missing chunks; `running` are the partitions of the running slot.
///
/// # Errors
/// When someone wants it to stop, or the slot cannot be written.
pub fn reuse(filling: &mut Filling<'_>, running: &[PathBuf]) -> Result<(), Failure> {
    if filling.missing().is_empty() {
        return Ok(());
    }
    twins(filling)?;
    from_running(filling, running)?;
    from_target(filling)
}

/// Chunks that occur twice in the image, and are in place once.
///
/// # Errors
/// As [`reuse`].
pub fn twins(filling: &mut Filling<'_>) -> Result<(), Failure> {
    let mut finder = filling.finder();
    for (number, chunk) in filling.chunks() {
        if !chunk.zeros && !filling.missing().contains(number) {
            finder.note(&chunk.digest, chunk.raw_offset);
        }
    }
    copy_within(filling, finder.found())
}

fn from_running(filling: &mut Filling<'_>, paths: &[PathBuf]) -> Result<(), Failure> {
    let mut finder = filling.finder();
    if finder.is_done() {
        return Ok(());
    }
    let mut slot = match RunningSlot::open(paths) {
        Ok(slot) => slot,
        Err(error) => {
            tracing::warn!("the running slot cannot be read, so nothing is taken from it: {error}");
            return Ok(());
        }
    };
    let payload = &filling.header.manifest().payload;
    // A partition may be far larger than what was ever installed in it.
    let most = (2 * payload.size).max(2 * SAMPLES * SAMPLE);
    let parts: Vec<_> = slot
        .parts()
        .map(|part| part.start..part.end.min(part.start + most))
        .collect();
    let mut read = |offset: u64, buffer: &mut [u8]| slot.read(offset, buffer).is_ok();
    let (cancel, chunking) = (&filling.installer.cancel, filling.chunking());
    for part in parts {
        search(cancel, chunking, part, &mut read, &mut finder)?;
    }
    let found = finder.found();
    tracing::debug!(found = found.len(), "searched the running slot");
    let chunks = filling.chunks();
    copy(&Mutex::new(filling), chunks, found, read)
}

/// What the target held before, where it does not hold what it should.
fn from_target(filling: &mut Filling<'_>) -> Result<(), Failure> {
    let mut finder = filling.finder();
    if finder.is_done() {
        return Ok(());
    }
    let mut old: Vec<Range<u64>> = Vec::new();
    for (_, chunk) in filling
        .chunks()
        .filter(|(n, _)| filling.missing().contains(*n))
    {
        // Neighbours are searched along: a chunk is found only where the one before it ends.
        let start = chunk.raw_offset.saturating_sub(BLOCK as u64) / BLOCK as u64 * BLOCK as u64;
        let end = chunk.raw_offset + u64::from(chunk.raw_len);
        match old.last_mut() {
            Some(last) if start <= last.end + SAMPLE => last.end = end,
            _ => old.push(start..end),
        }
    }
    let (cancel, chunking) = (&filling.installer.cancel, filling.chunking());
    let target = &mut filling.target;
    let mut read = |offset: u64, buffer: &mut [u8]| target.read_at(offset, buffer).is_ok();
    for range in old {
        search(cancel, chunking, range, &mut read, &mut finder)?;
    }
    let found = finder.found();
    tracing::debug!(found = found.len(), "searched what the slot held before");
    copy_within(filling, found)
}

/// Looks for chunks in `range` of what `read` gives; what cannot be read holds none.
fn search(
    cancel: &Cancel,
    chunking: &Chunking,
    range: Range<u64>,
    read: &mut (impl FnMut(u64, &mut [u8]) -> bool + Send),
    finder: &mut Finder,
) -> Result<(), Failure> {
    if chunking.method != GEAR
        || finder.is_done()
        || !related(cancel, chunking, &range, read, finder)?
    {
        return Ok(());
    }
    let mut cutter = PieceCutter::new(chunking, range.start);
    let room = cutter.room();
    let mut at = range.start;
    let done = AtomicBool::new(false);
    pipeline(
        (0..PIECES).map(|_| CutPiece::default()).collect(),
        |piece: &mut CutPiece| {
            cancel.check()?;
            if at >= range.end || done.load(Relaxed) {
                return Ok(false);
            }
            fill(piece, room, at, SEARCH_PIECE.min(range.end - at), read);
            at += SEARCH_PIECE;
            piece.last = at >= range.end;
            Ok(true)
        },
        |piece| {
            cutter.cut(piece);
            Ok(())
        },
        |piece| {
            for (offset, bytes) in piece.chunks() {
                finder.look(bytes, offset);
            }
            done.store(finder.is_done(), Relaxed);
            Ok(())
        },
    )
}

/// Whether samples from all over `range` hold anything that is looked for.
fn related(
    cancel: &Cancel,
    chunking: &Chunking,
    range: &Range<u64>,
    read: &mut impl FnMut(u64, &mut [u8]) -> bool,
    finder: &mut Finder,
) -> Result<bool, Failure> {
    let length = range.end.saturating_sub(range.start);
    if length <= 2 * SAMPLES * SAMPLE {
        return Ok(length > 0);
    }
    let mut piece = CutPiece::default();
    piece.last = true;
    let step = (length - SAMPLE) / (SAMPLES - 1) / BLOCK as u64 * BLOCK as u64;
    for number in 0..SAMPLES {
        cancel.check()?;
        let at = range.start + number * step;
        let mut cutter = PieceCutter::new(chunking, at);
        fill(&mut piece, cutter.room(), at, SAMPLE, read);
        cutter.cut(&mut piece);
        let mut found = false;
        for (offset, bytes) in piece.chunks() {
            found |= finder.look(bytes, offset);
        }
        if found {
            return Ok(true);
        }
    }
    tracing::debug!("nothing of the image in samples of {length} bytes");
    Ok(false)
}

fn fill(
    piece: &mut CutPiece,
    room: usize,
    at: u64,
    length: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> bool,
) {
    let length = usize::try_from(length).expect("a piece fits memory");
    piece.buffer.resize(room + length, 0);
    let bytes = &mut piece.buffer[room..];
    if !read(at, bytes) {
        bytes.fill(0);
    }
}

/// Copies chunks from other places of the target.
fn copy_within(filling: &mut Filling<'_>, found: Vec<(usize, u64)>) -> Result<(), Failure> {
    let chunks = filling.chunks();
    let filling = Mutex::new(filling);
    let read = |offset: u64, buffer: &mut [u8]| {
        let mut filling = filling.lock().expect("no panic while held");
        filling.target.read_at(offset, buffer).is_ok()
    };
    copy(&filling, chunks, found, read)
}

/// Writes those chunks of `found` (number and place) whose bytes, as `read` gives them, match.
fn copy(
    filling: &Mutex<&mut Filling<'_>>,
    mut chunks: impl Iterator<Item = (usize, ChunkEntry)> + Send,
    found: Vec<(usize, u64)>,
    mut read: impl FnMut(u64, &mut [u8]) -> bool + Send,
) -> Result<(), Failure> {
    let mut found = found.into_iter();
    let mut places = Vec::new();
    let meter = {
        let filling = filling.lock().expect("no panic while held");
        filling.installer.meter.clone()
    };
    pipeline(
        (0..PIECES).map(|_| Piece::default()).collect(),
        |piece: &mut Piece| {
            piece.clear();
            places.clear();
            let mut length = 0;
            while length < COPY_PIECE
                && let Some((number, place)) = found.next()
            {
                let chunk = chunks.find(|(other, _)| *other == number);
                let chunk = chunk.expect("found chunks ascend and are of the image");
                length += chunk.1.raw_len as usize;
                piece.chunks.push(chunk);
                places.push(place);
            }
            piece.raw.resize(length, 0);
            read_all(piece, &places, &mut read);
            Ok(!piece.chunks.is_empty())
        },
        |piece| {
            piece.check();
            Ok(())
        },
        |piece| {
            let mut filling = filling.lock().expect("no panic while held");
            piece.each(|number, chunk, raw, good| {
                if good {
                    filling.put(number, chunk, raw)?;
                    meter.add_reused(u64::from(chunk.raw_len));
                }
                Ok(())
            })
        },
    )
}

/// Reads the bytes of all chunks of `piece` from their `places`, those that lie together at once.
fn read_all(piece: &mut Piece, places: &[u64], read: &mut impl FnMut(u64, &mut [u8]) -> bool) {
    let mut rest = &mut piece.raw[..];
    let mut next = 0;
    while next < places.len() {
        let start = places[next];
        let (mut count, mut length) = (0, 0);
        while places.get(next + count) == Some(&(start + length)) {
            length += u64::from(piece.chunks[next + count].1.raw_len);
            count += 1;
        }
        let length = usize::try_from(length).expect("part of a piece");
        let (bytes, behind) = rest.split_at_mut(length);
        let good = read(start, bytes);
        piece.good.extend(std::iter::repeat_n(good, count));
        (rest, next) = (behind, next + count);
    }
}
