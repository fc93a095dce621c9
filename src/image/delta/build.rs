//! Makes a static delta: finds what the old payload does not hold, where something similar lies, and compresses
//! the one against the other on all cores.
//!
//! - Memory is bounded: samples of the old payload ([`super::similar`]), digests of its chunks, and a few patches
//!   for each thread. The old payload is read where it lies.
//! - The same input and options give the same bytes, whatever the number of threads.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read, Write},
    num::NonZeroUsize,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use ring::digest::{Context, SHA256};

use super::{
    MAX_REGIONS,
    file::{HEAD_LEN, Region, TableBuilder},
    patch,
    similar::{Index, IndexBuilder},
};
use crate::{
    image::{ChunkDecoder, ChunkDigest, Cutter, Header, ImageError},
    update::digest::Sha256,
};

/// zstd level of patches when none is given: a delta is made once for a pair, and every device of the fleet fetches it.
pub const DEFAULT_LEVEL: i32 = 19;

/// Missing chunks are gathered up to this many raw bytes before they are made by one patch.
const GROUP: usize = 256 * 1024;

/// Most bytes of a dictionary.
const DICTIONARY: u64 = 512 * 1024;

/// The old payload is read in pieces of this many bytes.
const PIECE: usize = 1 << 20;

/// Patches that may be under way for each thread: enough to keep all busy, little enough for memory.
const PATCHES_PER_THREAD: usize = 3;

/// Which payload a delta starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OldPayload {
    /// Its length in bytes.
    pub size: u64,
    /// Its digest.
    pub sha256: Sha256,
}

/// Something whose bytes can be read at any place, from several threads.
pub trait ReadAt: Sync {
    /// Fills `buffer` from byte `offset`.
    ///
    /// # Errors
    /// It ends before, or cannot be read.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = start
            .checked_add(buffer.len())
            .and_then(|end| self.get(start..end));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// How a delta shall be made.
#[derive(Debug, Clone, Copy)]
pub struct DeltaOptions {
    /// zstd level of the patches.
    pub level: i32,
    /// Threads that compress; does not change the result.
    pub threads: NonZeroUsize,
}

impl Default for DeltaOptions {
    fn default() -> Self {
        Self {
            level: DEFAULT_LEVEL,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// A delta whose frames are in the scratch file.
#[derive(Debug)]
pub struct BuiltDelta {
    /// The payload it starts from.
    pub old: OldPayload,
    /// How many patches it has.
    pub patches: u64,
    /// Raw bytes of the new image that its patches make.
    pub raw: u64,
    /// Length of all frames.
    pub frames_len: u64,
    head: Vec<u8>,
}

impl BuiltDelta {
    /// Writes the whole file: `frames` is the scratch file, read from its beginning. Gives the length.
    ///
    /// # Errors
    /// When reading or writing fails.
    pub fn assemble(
        &self,
        frames: &mut impl Read,
        out: &mut impl Write,
    ) -> Result<u64, ImageError> {
        out.write_all(&self.head).map_err(ImageError::Write)?;
        let copied = io::copy(&mut frames.take(self.frames_len), out).map_err(ImageError::Write)?;
        if copied != self.frames_len {
            return Err(ImageError::Truncated("a patch"));
        }
        out.flush().map_err(ImageError::Write)?;
        Ok(self.head.len() as u64 + copied)
    }

    /// Length of head and table.
    #[must_use]
    pub fn table_len(&self) -> u64 {
        debug_assert!(self.head.len() as u64 >= HEAD_LEN);
        self.head.len() as u64
    }
}

/// Makes the delta from the payload of `size` bytes in `old` to the image of `header`, whose frames `new` gives.
/// Frames go to `frames`; `progress` is told the raw bytes done, of old and new together.
///
/// # Errors
/// When the level is none of zstd's, the new image is damaged, or reading or writing fails.
pub fn build(
    old: &(impl ReadAt + ?Sized),
    size: u64,
    header: &Header,
    new: &mut impl Read,
    options: &DeltaOptions,
    frames: &mut (impl Write + Send),
    progress: &mut dyn FnMut(u64),
) -> Result<BuiltDelta, ImageError> {
    let levels = zstd::compression_level_range();
    if !levels.contains(&options.level) {
        return Err(ImageError::Build(format!(
            "there is no zstd level {}; levels are {} to {}",
            options.level,
            levels.start(),
            levels.end()
        )));
    }
    if header.manifest().images.len() != 1 {
        return Err(ImageError::Build(
            "a delta is between images of one partition, and the new image has several".to_owned(),
        ));
    }
    let Scanned {
        sha256,
        held,
        index,
    } = scan(old, size, header, progress)?;
    let mut table = TableBuilder::default();
    let raw = thread::scope(|scope| {
        let depth = options.threads.get() * PATCHES_PER_THREAD;
        let (to_workers, jobs) = sync_channel::<Job>(depth);
        let (to_writer, awaited) = sync_channel(depth);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..options.threads.get() {
            let jobs = Arc::clone(&jobs);
            let index = &index;
            scope.spawn(move || make_patches(&jobs, old, index, options.level));
        }
        // The workers hold the only ends now: when they are gone the reader notices.
        drop(jobs);
        let table = &mut table;
        let writer = scope.spawn(move || write_patches(awaited, table, frames));
        let mut groups = Groups {
            to_workers,
            to_writer,
            job: None,
            raw: 0,
        };
        let read = read_missing(header, new, held, &mut groups, &mut |done| {
            progress(size + done);
        });
        let raw = groups.raw;
        drop(groups);
        let written = writer.join().expect("writing does not panic");
        // The reader stops early when the writer failed, and then has no error of its own.
        read.and(written).map(|()| raw)
    })?;
    let old = OldPayload { size, sha256 };
    let head = table
        .finish(&old, header.digest())
        .map_err(|error| ImageError::Build(format!("the delta is too large: {error}")))?;
    Ok(BuiltDelta {
        old,
        patches: table.patches,
        raw,
        frames_len: table.frames_len,
        head,
    })
}

/// What is known of the old payload.
struct Scanned {
    sha256: Sha256,
    /// Digests of the chunks that a device finds in it by itself.
    held: HashSet<ChunkDigest>,
    index: Index,
}

/// Reads the old payload twice at the same time: for samples, and for digests.
fn scan(
    old: &(impl ReadAt + ?Sized),
    size: u64,
    header: &Header,
    progress: &mut dyn FnMut(u64),
) -> Result<Scanned, ImageError> {
    thread::scope(|scope| {
        let index = scope.spawn(move || {
            let mut index = IndexBuilder::new(size);
            pieces(old, size, &mut |offset, piece| index.add(offset, piece))?;
            Ok::<_, ImageError>(index.finish(size))
        });
        let mut whole = Context::new(&SHA256);
        let mut held = HashSet::new();
        let mut cutter = Cutter::new(&header.manifest().chunking);
        let mut pending = Vec::new();
        let digests = pieces(old, size, &mut |offset, piece| {
            whole.update(piece);
            pending.extend_from_slice(piece);
            let mut cut = 0;
            let at_end = offset + piece.len() as u64 == size;
            while let Some(len) = cutter.next(&pending[cut..], at_end) {
                held.insert(ChunkDigest::of(&pending[cut..cut + len]));
                cut += len;
            }
            pending.drain(..cut);
            progress(offset);
        });
        let index = index.join().expect("sampling does not panic");
        digests?;
        Ok(Scanned {
            sha256: Sha256::from_ring(&whole.finish()),
            held,
            index: index?,
        })
    })
}

fn pieces(
    old: &(impl ReadAt + ?Sized),
    size: u64,
    found: &mut dyn FnMut(u64, &[u8]),
) -> Result<(), ImageError> {
    let mut buffer = vec![0; PIECE];
    let mut offset = 0;
    while offset < size {
        let len = usize::try_from(size - offset).unwrap_or(PIECE).min(PIECE);
        old.read_exact_at(&mut buffer[..len], offset)
            .map_err(ImageError::Read)?;
        found(offset, &buffer[..len]);
        offset += len as u64;
    }
    Ok(())
}

/// Chunks on their way to a thread that makes them a patch, and where it is awaited.
struct Job {
    chunks: Vec<Range<usize>>,
    raw: Vec<u8>,
    done: SyncSender<Result<Made, ImageError>>,
}

struct Made {
    chunks: Vec<Range<usize>>,
    regions: Vec<Region>,
    frame: Vec<u8>,
}

/// Gathers missing chunks until they are worth a patch.
struct Groups {
    to_workers: SyncSender<Job>,
    to_writer: SyncSender<Receiver<Result<Made, ImageError>>>,
    job: Option<(Vec<Range<usize>>, Vec<u8>)>,
    raw: u64,
}

impl Groups {
    /// False when nobody wants more: the writer failed and says why.
    fn add(&mut self, number: usize, raw: &[u8]) -> bool {
        if self
            .job
            .as_ref()
            .is_some_and(|(_, before)| before.len() + raw.len() > GROUP)
            && !self.send()
        {
            return false;
        }
        let (chunks, bytes) = self.job.get_or_insert_default();
        match chunks.last_mut() {
            Some(run) if run.end == number => run.end += 1,
            _ => chunks.push(number..number + 1),
        }
        bytes.extend_from_slice(raw);
        self.raw += raw.len() as u64;
        true
    }

    fn send(&mut self) -> bool {
        let Some((chunks, raw)) = self.job.take() else {
            return true;
        };
        let (done, made) = sync_channel(1);
        self.to_writer.send(made).is_ok() && self.to_workers.send(Job { chunks, raw, done }).is_ok()
    }
}

fn read_missing(
    header: &Header,
    new: &mut impl Read,
    mut held: HashSet<ChunkDigest>,
    groups: &mut Groups,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImageError> {
    let mut decoder = ChunkDecoder::new();
    let (mut frame, mut raw) = (Vec::new(), Vec::new());
    // The raw bytes before the chunk, as many as any chunk needs.
    let mut before = Vec::new();
    for (number, chunk) in header.chunks().enumerate() {
        frame.resize(chunk.frame_len as usize, 0);
        new.read_exact(&mut frame)
            .map_err(|error| ImageError::reading("a chunk", error))?;
        let prefix = before.len() - chunk.prefix_len as usize;
        decoder.decode_chunk(&chunk, &before[prefix..], &frame, &mut raw)?;
        keep_last(&mut before, &raw, header.index().max_prefix());
        // What occurs again, a device copies.
        if !chunk.zeros && held.insert(chunk.digest) && !groups.add(number, &raw) {
            break;
        }
        progress(chunk.raw_offset + u64::from(chunk.raw_len));
    }
    groups.send();
    Ok(())
}

/// Adds `raw`, and keeps the last `len` bytes.
pub(crate) fn keep_last(bytes: &mut Vec<u8>, raw: &[u8], len: u32) {
    bytes.extend_from_slice(raw);
    let old = bytes.len().saturating_sub(len as usize);
    bytes.drain(..old);
}

fn make_patches(
    jobs: &Mutex<Receiver<Job>>,
    old: &(impl ReadAt + ?Sized),
    index: &Index,
    level: i32,
) {
    loop {
        let next = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        let Ok(Job { chunks, raw, done }) = next else {
            return;
        };
        let made = make_patch(old, index, level, &raw).map(|(regions, frame)| Made {
            chunks,
            regions,
            frame,
        });
        // Nobody waits for the answer when the writer failed.
        let _ = done.send(made);
    }
}

fn make_patch(
    old: &(impl ReadAt + ?Sized),
    index: &Index,
    level: i32,
    raw: &[u8],
) -> Result<(Vec<Region>, Vec<u8>), ImageError> {
    let regions = index.similar(raw, DICTIONARY);
    debug_assert!(regions.len() <= MAX_REGIONS);
    let mut dictionary = Vec::new();
    for region in &regions {
        let start = dictionary.len();
        dictionary.resize(start + region.len as usize, 0);
        old.read_exact_at(&mut dictionary[start..], region.offset)
            .map_err(ImageError::Read)?;
    }
    let frame = patch::encode(&dictionary, raw, level)
        .map_err(|why| ImageError::Build(format!("zstd failed: {why}")))?;
    Ok((regions, frame))
}

fn write_patches(
    awaited: Receiver<Receiver<Result<Made, ImageError>>>,
    table: &mut TableBuilder,
    out: &mut impl Write,
) -> Result<(), ImageError> {
    for made in awaited {
        // A thread that ended without an answer was ended by another error.
        let Ok(made) = made.recv() else { break };
        let made = made?;
        out.write_all(&made.frame).map_err(ImageError::Write)?;
        let len = u32::try_from(made.frame.len()).expect("a patch has a few MiB at most");
        table.push(&made.chunks, &made.regions, len);
    }
    out.flush().map_err(ImageError::Write)
}
