//! Third stage: a static delta beside the image, when the device knows what its running slot was made from.
//!
//! Nothing about the delta is trusted and nothing depends on it. Each chunk that a patch makes is compared with the
//! signed index before it is written. Whatever is wrong (no delta there, another pair, damage, a running slot that
//! was changed) leaves chunks missing, which the next stage downloads; it is said once in the log and is no failure.
//! Failures of this stage are those of the medium, and someone's wish to stop.

use std::{
    io::{self, Read},
    iter::Peekable,
    ops::Range,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use super::{filling::Filling, piece::Piece, pipeline::pipeline, reuse};
use crate::{
    daemon::source::{Ahead, Source, SourceReader},
    image::{
        ChunkEntry, Missing,
        delta::{self, Delta, DeltaError, DeltaHead, OldPayload, Patch, PatchDecoder},
    },
    platform::running_slot::RunningSlot,
    update::failure::Failure,
};

/// Patches under way.
const PATCHES: usize = 3;
/// Frames that are not needed are fetched along, up to so many bytes, rather than asking again.
const GAP: u64 = 16 << 10;
/// After so many patches that did not apply, when they are most of those tried, the others are not tried.
const PATIENCE: u64 = 16;

/// Makes what a delta from exactly what was installed in the running slot, whose partitions are `running`, can make.
///
/// # Errors
/// When someone wants it to stop, or the medium fails.
pub fn apply(
    filling: &mut Filling<'_>,
    image: &Source,
    running: &[PathBuf],
) -> Result<(), Failure> {
    let Some(old) = filling.installer.installed else {
        return Ok(());
    };
    // Deltas are between images of one partition.
    // What is on a medium of this device costs nothing to read.
    let of_no_use = filling.missing().is_empty() || image.is_local();
    if of_no_use || filling.header.manifest().images.len() != 1 {
        return Ok(());
    }
    let source = image.beside(&delta::suffix(old.sha256));
    let before = filling.missing().len();
    let result = use_delta(filling, &source, running, &old)?;
    filling.installer.cancel.check()?;
    let made = before - filling.missing().len();
    if made > 0 {
        // A chunk that occurs twice is in the delta once.
        reuse::twins(filling)?;
    }
    match result {
        Ok(tried) if tried.failed == 0 => {
            tracing::info!("{}: used a static delta for {made} chunks", source.uri());
        }
        Ok(tried) => tracing::warn!(
            "{}: a static delta was of use only in part ({made} chunks; {} of {} patches failed): it is damaged, or the \
             running slot was changed since it was installed; the rest comes from the image",
            source.uri(),
            tried.failed,
            tried.patches
        ),
        // Most images have none.
        Err(failure) if failure.code == "image-not-found" => {
            tracing::debug!("{}: no static delta", source.uri());
        }
        Err(failure) => tracing::warn!(
            fwupdated_error_code = failure.code,
            "{}: no static delta is used beyond {made} chunks, the rest comes from the image: {failure}",
            source.uri()
        ),
    }
    Ok(())
}

/// How it went.
#[derive(Debug, Default, Clone, Copy)]
struct Tried {
    patches: u64,
    /// Of these, how many did not make all of their chunks.
    failed: u64,
}

impl Tried {
    fn hopeless(self) -> bool {
        self.failed >= PATIENCE && self.failed * 2 > self.patches
    }
}

/// The outer failure ends the update, the inner one only the use of the delta.
fn use_delta(
    filling: &mut Filling<'_>,
    source: &Source,
    running: &[PathBuf],
    old: &OldPayload,
) -> Result<Result<Tried, Failure>, Failure> {
    let delta = match open(filling, source, old) {
        Ok(delta) => delta,
        Err(failure) => return Ok(Err(failure)),
    };
    // The root file system is the last, and all that a delta is about.
    let root = &running[running.len().saturating_sub(1)..];
    let mut maker = match RunningSlot::open(root) {
        Ok(slot) => Maker::new(slot),
        Err(error) => return Ok(Err(source.explain_io(&error))),
    };
    let missing = filling.missing().clone();
    let wanted = wanted(&delta, filling.chunks(), &missing, source.supports_ranges());
    let mut frames = Frames::new(source, &wanted.runs, filling.installer.connections);
    let mut patches = delta
        .patches()
        .zip(&wanted.patches)
        .filter_map(|(patch, wanted)| wanted.then_some(patch));
    let mut chunks = filling.chunks();
    let cancel = filling.installer.cancel.clone();
    let hopeless = AtomicBool::new(false);
    let (mut tried, mut ended) = (Tried::default(), None);
    pipeline(
        (0..PATCHES).map(|_| Piece::default()).collect(),
        |piece: &mut Piece| {
            cancel.check()?;
            piece.clear();
            if hopeless.load(Relaxed) {
                return Ok(false);
            }
            let Some(patch) = patches.next() else {
                return Ok(false);
            };
            for number in patch.chunks.iter().cloned().flatten() {
                piece
                    .chunks
                    .extend(chunks.find(|(found, _)| *found == number));
            }
            match frames.read(&patch) {
                Ok(frame) => maker.make(&patch, frame, piece),
                Err(error) => {
                    // The server's own words, if it had any.
                    ended = Some(source.explain_io(&error));
                    return Ok(false);
                }
            }
            Ok(true)
        },
        |piece| {
            piece.check();
            Ok(())
        },
        |piece| {
            tried.patches += 1;
            tried.failed += u64::from(piece.good.iter().any(|good| !good));
            hopeless.store(tried.hopeless(), Relaxed);
            piece.each(
                |number, chunk, raw, good| match good && missing.contains(number) {
                    true => filling.put(number, chunk, raw),
                    false => Ok(()),
                },
            )
        },
    )?;
    Ok(ended.map_or(Ok(tried), Err))
}

/// Head and table, by requests that bring nothing else.
fn open(filling: &Filling<'_>, source: &Source, old: &OldPayload) -> Result<Delta, Failure> {
    let explain = |error: DeltaError| {
        source
            .take_failure()
            .unwrap_or_else(|| Failure::from(&error))
    };
    let mut reader = source.read(0, Some(delta::file::HEAD_LEN))?;
    let head = DeltaHead::read(&mut reader).map_err(explain)?;
    head.check_pair(old, filling.header).map_err(explain)?;
    let mut reader = source.read(delta::file::HEAD_LEN, Some(head.frames_offset()))?;
    head.read_table(&mut reader, filling.header)
        .map_err(explain)
}

/// Which patches are worth their bytes, and what to ask for so that their frames arrive.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// For each patch of the delta.
    patches: Vec<bool>,
    /// Parts of the file, ascending.
    runs: Vec<Range<u64>>,
}

fn wanted(
    delta: &Delta,
    mut chunks: impl Iterator<Item = (usize, ChunkEntry)>,
    missing: &Missing,
    ranges: bool,
) -> Wanted {
    let mut wanted = Wanted::default();
    for patch in delta.patches() {
        // What the image would cost for the same chunks.
        let mut saves = 0;
        for number in patch.chunks.iter().cloned().flatten() {
            let chunk = chunks.find(|(found, _)| *found == number);
            if let (Some((_, chunk)), true) = (chunk, missing.contains(number)) {
                saves += chunk.frame_len;
            }
        }
        let worth = saves > patch.frame_len;
        wanted.patches.push(worth);
        if !worth {
            continue;
        }
        let end = patch.frame_offset + u64::from(patch.frame_len);
        match wanted.runs.last_mut() {
            Some(run) if !ranges || patch.frame_offset - run.end <= GAP => run.end = end,
            _ => wanted.runs.push(patch.frame_offset..end),
        }
    }
    wanted
}

/// The frames of some patches as the network brings them.
struct Frames<'a> {
    readers: Ahead<'a>,
    runs: Peekable<std::slice::Iter<'a, Range<u64>>>,
    source: &'a Source,
    reader: Option<SourceReader>,
    /// Of the next byte that the reader gives.
    position: u64,
    frame: Vec<u8>,
}

impl<'a> Frames<'a> {
    fn new(source: &'a Source, runs: &'a [Range<u64>], connections: usize) -> Self {
        Self {
            readers: source.read_ranges(runs.iter().cloned(), connections),
            runs: runs.iter().peekable(),
            source,
            reader: None,
            position: 0,
            frame: Vec::new(),
        }
    }

    fn read(&mut self, patch: &Patch) -> io::Result<&[u8]> {
        if let Some(run) = self.runs.next_if(|run| run.start == patch.frame_offset) {
            self.position = run.start;
            self.reader = if self.source.supports_ranges() {
                self.readers.next()
            } else {
                let opened = self.source.read(run.start, Some(run.end));
                Some(opened.map_err(|failure| self.source.put_back(failure))?)
            };
        }
        let Some(reader) = &mut self.reader else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        // Frames in between that are not wanted.
        let gap = patch.frame_offset - self.position;
        io::copy(&mut reader.take(gap), &mut io::sink())?;
        self.frame.resize(patch.frame_len as usize, 0);
        reader.read_exact(&mut self.frame)?;
        self.position = patch.frame_offset + u64::from(patch.frame_len);
        Ok(&self.frame)
    }
}

/// Applies patches to the running slot.
struct Maker {
    old: RunningSlot,
    dictionary: Vec<u8>,
    decoder: PatchDecoder,
}

impl Maker {
    fn new(old: RunningSlot) -> Self {
        Self {
            old,
            dictionary: Vec::new(),
            decoder: PatchDecoder::new(),
        }
    }

    /// Puts into `piece`, whose chunks are there, their bytes; none of them is good when `patch` cannot make them.
    fn make(&mut self, patch: &Patch, frame: &[u8], piece: &mut Piece) {
        let len = piece.chunks.iter().map(|(_, chunk)| chunk.raw_len).sum();
        let made = self.dictionary(patch).is_ok()
            && self
                .decoder
                .decode(&self.dictionary, frame, len, &mut piece.raw)
                .is_ok();
        piece.raw.resize(len as usize, 0);
        piece.good.resize(piece.chunks.len(), made);
    }

    fn dictionary(&mut self, patch: &Patch) -> io::Result<()> {
        self.dictionary.clear();
        for region in &patch.regions {
            let start = self.dictionary.len();
            self.dictionary.resize(start + region.len as usize, 0);
            self.old
                .read(region.offset, &mut self.dictionary[start..])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::image::{
        self, BuildOptions, Header, ManifestFrame, Part, Signatures,
        delta::{DeltaOptions, build},
        manifest::ROOTFS,
    };

    /// An old payload in which nothing is as in the new one, a delta of several patches between them, and the header
    /// of the new image.
    fn pair() -> (Delta, Header) {
        let mut state = 1_u64;
        let old: Vec<u8> = (0..2 << 20)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect();
        let mut new = old.clone();
        new.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
        let part = Part {
            target: ROOTFS,
            input: &new[..],
            size: new.len() as u64,
        };
        let options = BuildOptions::new("n", "1", &["b"], Timestamp::UNIX_EPOCH);
        let (mut frames, mut file) = (Vec::new(), Vec::new());
        let built = image::build(vec![part], &options, &mut frames, &mut |_| {}).unwrap();
        built
            .assemble(&Signatures::none(), &mut &frames[..], &mut file)
            .unwrap();
        let mut reader = &file[..];
        let frame = ManifestFrame::read(&mut reader).unwrap();
        let manifest = frame.accept_unsigned().unwrap();
        let header = manifest.read_index(&mut reader).unwrap();

        let (size, options) = (old.len() as u64, DeltaOptions::default());
        let (mut frames, mut file) = (Vec::new(), Vec::new());
        let built = build(
            &old[..],
            size,
            &header,
            &mut reader,
            &options,
            &mut frames,
            &mut |_| {},
        );
        built
            .unwrap()
            .assemble(&mut &frames[..], &mut file)
            .unwrap();
        let mut reader = &file[..];
        let head = DeltaHead::read(&mut reader).unwrap();
        (head.read_table(&mut reader, &header).unwrap(), header)
    }

    fn plan(pair: &(Delta, Header), missing: &Missing, ranges: bool) -> Wanted {
        wanted(&pair.0, pair.1.chunks().enumerate(), missing, ranges)
    }

    #[test]
    fn only_frames_that_are_worth_it_are_asked_for_and_neighbours_at_once() {
        let pair = pair();
        let patches: Vec<_> = pair.0.patches().collect();
        assert!(patches.len() >= 6);
        let all = Missing::all(pair.1.index().len());
        let found = plan(&pair, &all, true);
        assert!(found.patches.iter().all(|wanted| *wanted));
        let last = patches.last().unwrap();
        let end = last.frame_offset + u64::from(last.frame_len);
        let whole = patches[0].frame_offset..end;
        assert_eq!(found.runs, std::slice::from_ref(&whole));

        // Only the first and the last are missing: far apart they are two requests, but one to a server that has no
        // ranges.
        let mut ends = all.clone();
        for patch in &patches[1..patches.len() - 1] {
            for number in patch.chunks.iter().cloned().flatten() {
                ends.done(number);
            }
        }
        let between = last.frame_offset - patches[1].frame_offset;
        let found = plan(&pair, &ends, true);
        assert_eq!(found.runs.len(), if between > GAP { 2 } else { 1 });
        assert_eq!(found.patches.iter().filter(|wanted| **wanted).count(), 2);
        assert_eq!(plan(&pair, &ends, false).runs.len(), 1);

        let mut none = all;
        for number in 0..pair.1.index().len() {
            none.done(number);
        }
        assert_eq!(plan(&pair, &none, true).runs, []);
    }

    #[test]
    fn a_delta_that_never_applies_is_given_up() {
        let tried = |patches, failed| Tried { patches, failed }.hopeless();
        assert!(!tried(PATIENCE - 1, PATIENCE - 1));
        assert!(tried(PATIENCE, PATIENCE));
        assert!(!tried(1000, 2 * PATIENCE));
    }
}
