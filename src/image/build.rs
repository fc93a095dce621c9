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
use zstd::bulk::Compressor;

use crate::update::digest::Sha256;

use super::{
    error::ImageError,
    frame::{FRAME_HEAD, INDEX_FRAME, MANIFEST_FRAME, SeekTable, write_skippable},
    header::{Header, IMAGE_MAGIC},
    index::{ChunkIndex, IndexBuilder},
    limits::{
        DEFAULT_CHUNK, DEFAULT_LEVEL, FORMAT_VERSION, MAX_CHUNK, MAX_FRAME, MAX_MANIFEST,
        MIN_CHUNK, SECTOR,
    },
    manifest::{Chunking, Manifest, PartitionImage, Payload, ROOTFS},
    signature::Signatures,
};

/// Chunks that may be under way for each thread: enough to keep all busy, little enough for memory.
const CHUNKS_PER_THREAD: usize = 3;

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
    /// Size of a chunk in bytes: a multiple of 4 KiB, 4 KiB to 4 MiB.
    pub chunk_size: u32,
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
            chunk_size: DEFAULT_CHUNK,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }

    fn check(&self, size: u64) -> Result<(), ImageError> {
        let chunk = self.chunk_size;
        if !(MIN_CHUNK..=MAX_CHUNK).contains(&chunk) || !chunk.is_multiple_of(MIN_CHUNK) {
            return Err(ImageError::Build(format!(
                "the chunk size is {chunk} bytes; it must be a multiple of {MIN_CHUNK} up to {MAX_CHUNK}"
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
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(ImageError::Build(format!(
                "the root file system has {size} bytes, which is not a positive multiple of {SECTOR}: it is no partition image, or cut off"
            )));
        }
        if size.div_ceil(chunk.into()) > IndexBuilder::MAX_CHUNKS {
            return Err(ImageError::Build(format!(
                "{size} bytes are too many chunks of {chunk}; choose a larger chunk size"
            )));
        }
        Ok(())
    }

    fn manifest(&self, payload: Payload, index: &ChunkIndex) -> Manifest {
        let Payload { size, sha256 } = payload;
        Manifest {
            format: FORMAT_VERSION,
            name: self.name.clone(),
            version: self.version.clone(),
            compatible: self.compatible.clone(),
            created: self.created,
            security_epoch: self.security_epoch,
            payload,
            images: vec![PartitionImage {
                target: ROOTFS.to_owned(),
                size,
                sha256,
            }],
            chunking: Chunking {
                method: "fixed".to_owned(),
                size: Some(self.chunk_size),
            },
            index: index.reference(),
            critical_features: Vec::new(),
        }
    }
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

/// Compresses `size` bytes of `input` into frames, one after the other. `progress` is told the raw
/// bytes done.
///
/// # Errors
/// When the options are impossible, the input is shorter than `size`, or reading or writing fails.
pub fn build(
    input: impl Read + Send,
    size: u64,
    options: &BuildOptions,
    frames: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<BuiltImage, ImageError> {
    options.check(size)?;
    // Words in the manifest are checked before the long work, with digests yet unknown.
    let unknown = Payload {
        size,
        sha256: Sha256([0; 32]),
    };
    let mut one_chunk = IndexBuilder::new();
    one_chunk.push(1, 1, unknown.sha256);
    check_manifest(&options.manifest(unknown, &one_chunk.finish()))?;

    let (sha256, index) = compress_all(input, size, options, frames, progress)?;
    let manifest = options.manifest(Payload { size, sha256 }, &index);
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

/// A chunk on its way to a thread that compresses it, and where its frame is awaited.
struct Job {
    raw: Vec<u8>,
    done: SyncSender<io::Result<Frame>>,
}

struct Frame {
    raw_len: u32,
    sha256: Sha256,
    bytes: Vec<u8>,
}

/// One thread reads, several compress, this one writes. The queue of awaited frames keeps the order
/// and, being bounded, the memory: the reader stops while it is full. When one side fails it drops its
/// end of a channel and the others run out of work.
fn compress_all(
    input: impl Read + Send,
    size: u64,
    options: &BuildOptions,
    out: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<(Sha256, ChunkIndex), ImageError> {
    let threads = options.threads.get();
    let depth = threads * CHUNKS_PER_THREAD;
    thread::scope(|scope| {
        let (to_workers, jobs) = sync_channel::<Job>(depth);
        let (to_writer, awaited) = sync_channel(depth);
        let jobs = std::sync::Arc::new(Mutex::new(jobs));
        for _ in 0..threads {
            let jobs = std::sync::Arc::clone(&jobs);
            scope.spawn(move || compress_jobs(&jobs, options.level));
        }
        // The workers hold the only ends now: when they are gone the reader notices.
        drop(jobs);
        let chunk_size = options.chunk_size;
        let reader =
            scope.spawn(move || read_chunks(input, size, chunk_size, &to_workers, &to_writer));

        let written = write_frames(awaited, out, progress);
        let read = reader.join().expect("reading does not panic");
        // A reader that failed is the cause of a short index, so its error comes first.
        Ok((read?, written?))
    })
}

fn read_chunks(
    mut input: impl Read,
    size: u64,
    chunk_size: u32,
    to_workers: &SyncSender<Job>,
    to_writer: &SyncSender<Receiver<io::Result<Frame>>>,
) -> Result<Sha256, ImageError> {
    let mut payload = Context::new(&SHA256);
    let mut left = size;
    while left > 0 {
        let len = left.min(chunk_size.into());
        let mut raw = vec![0; usize::try_from(len).expect("a chunk has at most 4 MiB")];
        input.read_exact(&mut raw).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                ImageError::Build(format!(
                    "the root file system ended after {} of {size} bytes; was it changed meanwhile?",
                    size - left
                ))
            } else {
                ImageError::Read(error)
            }
        })?;
        payload.update(&raw);
        left -= len;
        let (done, frame) = sync_channel(1);
        if to_writer.send(frame).is_err() || to_workers.send(Job { raw, done }).is_err() {
            // The writer failed and says why.
            break;
        }
    }
    Ok(Sha256::from_ring(&payload.finish()))
}

fn compress_jobs(jobs: &Mutex<Receiver<Job>>, level: i32) {
    let mut compressor = None;
    loop {
        let next = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        let Ok(Job { raw, done }) = next else { return };
        // Nobody waits for the answer when the writer failed.
        let _ = done.send(compress(&mut compressor, level, &raw));
    }
}

fn compress(
    compressor: &mut Option<Compressor<'static>>,
    level: i32,
    raw: &[u8],
) -> io::Result<Frame> {
    let compressor = match compressor {
        Some(compressor) => compressor,
        None => {
            let mut new = Compressor::new(level)?;
            // Without the manifest, for `zstd -dc | dd`, this is what finds a damaged frame.
            new.include_checksum(true)?;
            compressor.insert(new)
        }
    };
    let bytes = compressor.compress(raw)?;
    if bytes.len() > MAX_FRAME as usize {
        return Err(io::Error::other(
            "zstd made a frame longer than it promises",
        ));
    }
    Ok(Frame {
        raw_len: u32::try_from(raw.len()).map_err(io::Error::other)?,
        sha256: Sha256::of(raw),
        bytes,
    })
}

fn write_frames(
    awaited: Receiver<Receiver<io::Result<Frame>>>,
    out: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<ChunkIndex, ImageError> {
    let mut index = IndexBuilder::new();
    let mut raw_done = 0;
    let mut out = io::BufWriter::with_capacity(1 << 20, out);
    for frame in awaited {
        // A thread that ended without an answer was ended by another error.
        let Ok(frame) = frame.recv() else { break };
        let frame = frame.map_err(|error| ImageError::Build(format!("zstd failed: {error}")))?;
        out.write_all(&frame.bytes).map_err(ImageError::Write)?;
        let frame_len = u32::try_from(frame.bytes.len()).expect("checked by `compress`");
        index.push(frame.raw_len, frame_len, frame.sha256);
        raw_done += u64::from(frame.raw_len);
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
