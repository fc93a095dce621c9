//! Building an image: cut, compress on all cores, and put the parts together.
//!
//! - Memory is bounded by a few chunks for each thread, whatever the size of the input: compressed
//!   frames go to a scratch file, and to their place once the index in front of them is known.
//! - The same input and options give the same bytes, whatever the number of threads; signatures are
//!   added afterwards and are the only part that differs.

use std::{
    io::{self, Read, Write},
    num::NonZeroUsize,
    sync::{
        Mutex,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use jiff::Timestamp;
use ring::digest::{Context, SHA256};

use crate::update::digest::Sha256;

use super::{
    cut::{Cutter, is_zeros},
    error::ImageError,
    frame::{FRAME_HEAD, INDEX_FRAME, MANIFEST_FRAME, SeekTable, write_skippable},
    group::{Frames, Group, GroupEncoder},
    header::{Header, IMAGE_MAGIC},
    index::{ChunkDigest, ChunkIndex, IndexBuilder, NewChunk},
    limits::{
        AUTO_CHUNKS, DEFAULT_AVERAGE, DEFAULT_LEVEL, DEFAULT_PREFIX, FORMAT_VERSION, MAX_AVERAGE,
        MAX_MANIFEST, MAX_PREFIX, MIN_AVERAGE, MIN_HOLE, SECTOR,
    },
    manifest::{Chunking, Manifest, PartitionImage, Payload},
    signature::Signatures,
};

/// Groups that may be under way for each thread: enough to keep all busy, little enough for memory.
const GROUPS_PER_THREAD: usize = 2;

/// Chunks are compressed together until they have so many raw bytes.
const GROUP: usize = 4 << 20;

/// What an image shall say and how it shall be made.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Name of the product or project.
    pub name: String,
    /// Version of the firmware.
    pub version: String,
    /// Boards that can run it.
    pub compatible: Vec<String>,
    /// Time to be written into the manifest.
    pub created: Timestamp,
    /// Raised when older versions must not come back.
    pub security_epoch: u64,
    /// zstd level.
    pub level: i32,
    /// Average size of a chunk in bytes, 2 KiB to 256 KiB.
    pub chunk_size: u32,
    /// Raw bytes before a chunk that it may refer to, at most 1 MiB; 0: every chunk is a zstd frame.
    pub prefix: u32,
    /// Threads that compress; does not change the result.
    pub threads: NonZeroUsize,
}

impl BuildOptions {
    /// The defaults for what need not be said.
    #[must_use]
    pub fn new(name: &str, version: &str, compatible: &[&str], created: Timestamp) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            compatible: compatible.iter().map(|board| (*board).to_owned()).collect(),
            created,
            security_epoch: 0,
            level: DEFAULT_LEVEL,
            chunk_size: DEFAULT_AVERAGE,
            prefix: DEFAULT_PREFIX,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }

    fn check<R>(&self, parts: &[Part<R>]) -> Result<(), ImageError> {
        let chunk = self.chunk_size;
        if !(MIN_AVERAGE..=MAX_AVERAGE).contains(&chunk) {
            return Err(ImageError::Build(format!(
                "the chunk size is {chunk} bytes; it must be {MIN_AVERAGE} to {MAX_AVERAGE}"
            )));
        }
        if self.prefix > MAX_PREFIX {
            return Err(ImageError::Build(format!(
                "a prefix of {} bytes is too long; at most {MAX_PREFIX} are allowed",
                self.prefix
            )));
        }
        let levels = zstd::compression_level_range();
        if !levels.contains(&self.level) {
            return Err(ImageError::Build(format!(
                "there is no zstd level {}; levels are {} to {}",
                self.level,
                levels.start(),
                levels.end()
            )));
        }
        for Part { target, size, .. } in parts {
            if *size == 0 || !size.is_multiple_of(SECTOR) {
                return Err(ImageError::Build(format!(
                    "the image for {target} has {size} bytes, which is not a positive multiple of {SECTOR}: it is no partition image, or cut off"
                )));
            }
        }
        Ok(())
    }

    fn manifest(
        &self,
        payload: Payload,
        images: Vec<PartitionImage>,
        index: &ChunkIndex,
    ) -> Manifest {
        Manifest {
            format: FORMAT_VERSION,
            name: self.name.clone(),
            version: self.version.clone(),
            compatible: self.compatible.clone(),
            created: self.created,
            security_epoch: self.security_epoch,
            payload,
            images,
            chunking: Chunking::content_defined(self.chunk_size),
            index: index.reference(),
            critical_features: Vec::new(),
        }
    }
}

/// The raw image of one partition.
#[derive(Debug)]
pub struct Part<R> {
    /// `boot` or `rootfs`.
    pub target: &'static str,
    /// Its bytes.
    pub input: R,
    /// How many they are.
    pub size: u64,
}

/// The average size of a chunk, in bytes, for this much data without holes: small chunks find more on a
/// device, and each costs memory there.
#[must_use]
pub fn chunk_size_for(data: u64) -> u32 {
    const STEP: u64 = 1024;
    let size = data.div_ceil(AUTO_CHUNKS).next_multiple_of(STEP);
    let size = size.clamp(DEFAULT_AVERAGE.into(), MAX_AVERAGE.into());
    u32::try_from(size).expect("clamped to 32 bits")
}

/// An image whose frames are in the scratch file: ready to be signed and put together.
#[derive(Debug)]
pub struct BuiltImage {
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    index: ChunkIndex,
}

impl BuiltImage {
    /// What the image says.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bytes to be signed.
    #[must_use]
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// Writes the whole file: `frames` is the scratch file, read from its beginning. Gives the length.
    ///
    /// # Errors
    /// When reading or writing fails.
    pub fn assemble(
        &self,
        signatures: &Signatures,
        frames: &mut impl Read,
        out: &mut impl Write,
    ) -> Result<u64, ImageError> {
        assemble(&self.manifest_bytes, signatures, &self.index, frames, out)
    }
}

/// Compresses `parts` (`rootfs`, or `boot` and `rootfs`) into frames, one after the other. `progress` is
/// told the raw bytes done.
///
/// # Errors
/// When the options are impossible, an input is shorter than its size, or reading or writing fails.
pub fn build<R: Read + Send>(
    parts: Vec<Part<R>>,
    options: &BuildOptions,
    frames: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<BuiltImage, ImageError> {
    options.check(&parts)?;
    let mut size = 0_u64;
    for part in &parts {
        size = size
            .checked_add(part.size)
            .ok_or_else(|| ImageError::Build("the images are too large together".to_owned()))?;
    }
    // Words in the manifest are checked before the long work, with digests yet unknown.
    let unknown = Sha256([0; 32]);
    let image = |part: &Part<R>| PartitionImage {
        target: part.target.to_owned(),
        size: part.size,
        sha256: unknown,
    };
    let payload = |sha256| Payload { size, sha256 };
    let mut one_chunk = IndexBuilder::new(0);
    one_chunk.push(&NewChunk {
        raw_len: 1,
        frame_len: 1,
        digest: ChunkDigest([0; 16]),
        starts_frame: true,
        zeros: false,
    })?;
    let mut images: Vec<_> = parts.iter().map(image).collect();
    check_manifest(&options.manifest(payload(unknown), images.clone(), &one_chunk.finish()))?;

    let (digests, index) = compress_all(parts, options, frames, progress)?;
    for (image, sha256) in images.iter_mut().zip(digests.parts) {
        image.sha256 = sha256;
    }
    let manifest = options.manifest(payload(digests.payload), images, &index);
    let manifest_bytes = check_manifest(&manifest)?;
    Ok(BuiltImage {
        manifest,
        manifest_bytes,
        index,
    })
}

fn check_manifest(manifest: &Manifest) -> Result<Vec<u8>, ImageError> {
    manifest.check()?;
    let bytes = manifest.to_bytes();
    if bytes.len() > MAX_MANIFEST as usize {
        return Err(ImageError::Build(format!(
            "the manifest would have {} bytes; at most {MAX_MANIFEST} are allowed",
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// A group on its way to a thread that compresses it, and where its frames are awaited.
struct Job {
    group: Group,
    done: SyncSender<io::Result<Frames>>,
}

/// Of the raw bytes.
struct Digests {
    payload: Sha256,
    parts: Vec<Sha256>,
}

/// One thread reads, several compress, this one writes. The queue of awaited frames keeps the order
/// and, being bounded, the memory: the reader stops while it is full. When one side fails it drops its
/// end of a channel and the others run out of work.
fn compress_all<R: Read + Send>(
    parts: Vec<Part<R>>,
    options: &BuildOptions,
    out: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<(Digests, ChunkIndex), ImageError> {
    let threads = options.threads.get();
    let depth = threads * GROUPS_PER_THREAD;
    thread::scope(|scope| {
        let (to_workers, jobs) = sync_channel::<Job>(depth);
        let (to_writer, awaited) = sync_channel(depth);
        let jobs = std::sync::Arc::new(Mutex::new(jobs));
        for _ in 0..threads {
            let jobs = std::sync::Arc::clone(&jobs);
            scope.spawn(move || compress_jobs(&jobs, options));
        }
        // The workers hold the only ends now: when they are gone the reader notices.
        drop(jobs);
        let chunking = Chunking::content_defined(options.chunk_size);
        let reader = scope.spawn(move || {
            let mut sink = |group| {
                let (done, frames) = sync_channel(1);
                to_writer.send(frames).is_ok() && to_workers.send(Job { group, done }).is_ok()
            };
            read_parts(parts, &chunking, &mut sink)
        });

        let written = write_frames(awaited, options.prefix, out, progress);
        let read = reader.join().expect("reading does not panic");
        // A reader that failed is the cause of a short index, so its error comes first.
        Ok((read?, written?))
    })
}

/// Reads and cuts. `sink` says false when nobody wants more: the writer failed and says why.
fn read_parts<R: Read>(
    parts: Vec<Part<R>>,
    chunking: &Chunking,
    sink: &mut dyn FnMut(Group) -> bool,
) -> Result<Digests, ImageError> {
    let mut payload = Context::new(&SHA256);
    let mut digests = Vec::new();
    for part in parts {
        let mut image = Context::new(&SHA256);
        let mut seen = |bytes: &[u8]| {
            payload.update(bytes);
            image.update(bytes);
        };
        if !read_part(part, chunking, &mut seen, sink)? {
            break;
        }
        digests.push(Sha256::from_ring(&image.finish()));
    }
    Ok(Digests {
        payload: Sha256::from_ring(&payload.finish()),
        parts: digests,
    })
}

fn read_part<R: Read>(
    part: Part<R>,
    chunking: &Chunking,
    seen: &mut dyn FnMut(&[u8]),
    sink: &mut dyn FnMut(Group) -> bool,
) -> Result<bool, ImageError> {
    let Part {
        target,
        mut input,
        size,
    } = part;
    let mut cutter = Cutter::new(chunking);
    let mut left = size;
    let mut buffer = Vec::new();
    loop {
        // Whole chunks of the buffer become groups; the rest is taken along to the next round.
        let wanted = left.min((GROUP + cutter.lookahead() - buffer.len()) as u64);
        let before = buffer.len();
        let got = input
            .by_ref()
            .take(wanted)
            .read_to_end(&mut buffer)
            .map_err(ImageError::Read)?;
        if (got as u64) < wanted {
            let done = size - left + got as u64;
            return Err(ImageError::Build(format!(
                "the image for {target} ended after {done} of {size} bytes; was it changed meanwhile?"
            )));
        }
        seen(&buffer[before..]);
        left -= wanted;
        let mut done = 0;
        let mut group_start = 0;
        let mut ends = Vec::new();
        while let Some(len) = cutter.next(&buffer[done..], left == 0) {
            let chunk = done..done + len;
            let zeros = len >= MIN_HOLE && is_zeros(&buffer[chunk.clone()]);
            let mut cut = |range: std::ops::Range<usize>, ends: Vec<usize>, zeros| {
                let raw = buffer[range].to_vec();
                ends.is_empty() || sink(Group { raw, ends, zeros })
            };
            if zeros {
                if !cut(group_start..done, std::mem::take(&mut ends), false)
                    || !cut(chunk.clone(), vec![len], true)
                {
                    return Ok(false);
                }
                group_start = chunk.end;
            } else {
                ends.push(chunk.end - group_start);
            }
            done = chunk.end;
        }
        if !ends.is_empty() {
            let raw = buffer[group_start..done].to_vec();
            let zeros = false;
            if !sink(Group { raw, ends, zeros }) {
                return Ok(false);
            }
        }
        buffer.drain(..done);
        if left == 0 {
            return Ok(true);
        }
    }
}

fn compress_jobs(jobs: &Mutex<Receiver<Job>>, options: &BuildOptions) {
    let mut encoder = GroupEncoder::new(options.level, options.prefix);
    loop {
        let next = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        let Ok(Job { group, done }) = next else {
            return;
        };
        // Nobody waits for the answer when the writer failed.
        let _ = done.send(encoder.encode(&group));
    }
}

fn write_frames(
    awaited: Receiver<Receiver<io::Result<Frames>>>,
    max_prefix: u32,
    out: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<ChunkIndex, ImageError> {
    let mut index = IndexBuilder::new(max_prefix);
    let mut raw_done = 0;
    let mut out = io::BufWriter::with_capacity(1 << 20, out);
    for frames in awaited {
        // A thread that ended without an answer was ended by another error.
        let Ok(frames) = frames.recv() else { break };
        let frames = frames.map_err(|error| ImageError::Build(format!("zstd failed: {error}")))?;
        out.write_all(&frames.bytes).map_err(ImageError::Write)?;
        for chunk in &frames.chunks {
            index.push(chunk)?;
            raw_done += u64::from(chunk.raw_len);
        }
        progress(raw_done);
    }
    out.flush().map_err(ImageError::Write)?;
    Ok(index.finish())
}

/// Writes the image of `header` with other signatures; `frames` gives the chunks' frames.
///
/// # Errors
/// When reading or writing fails, or `frames` ends early.
pub fn sign_again(
    header: &Header,
    signatures: &Signatures,
    frames: &mut impl Read,
    out: &mut impl Write,
) -> Result<u64, ImageError> {
    assemble(
        header.manifest_bytes(),
        signatures,
        header.index(),
        frames,
        out,
    )
}

fn assemble(
    manifest: &[u8],
    signatures: &Signatures,
    index: &ChunkIndex,
    frames: &mut impl Read,
    out: &mut impl Write,
) -> Result<u64, ImageError> {
    let signatures = signatures.encode();
    let short = |part: &[u8]| {
        u32::try_from(part.len())
            .expect("manifest and signatures were checked against their limits")
    };
    let manifest_frame = write_skippable(
        out,
        MANIFEST_FRAME,
        &[
            IMAGE_MAGIC,
            &FORMAT_VERSION.to_le_bytes(),
            &short(manifest).to_le_bytes(),
            &short(&signatures).to_le_bytes(),
            manifest,
            &signatures,
        ],
    )?;
    let index_frame = write_skippable(out, INDEX_FRAME, &[index.as_bytes()])?;
    debug_assert_eq!(index_frame, FRAME_HEAD + index.as_bytes().len() as u64);
    let frames_len = index.frames_len();
    let copied = io::copy(&mut frames.take(frames_len), out).map_err(ImageError::Write)?;
    if copied != frames_len {
        return Err(ImageError::Truncated("a chunk"));
    }
    let table = SeekTable {
        manifest_frame,
        index_frame,
        index,
    };
    table.write(out).map_err(ImageError::Write)?;
    Ok(manifest_frame + index_frame + frames_len + table.len())
}
