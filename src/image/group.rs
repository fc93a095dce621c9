//! Compresses a run of chunks into zstd frames: the inner loop of a build.
//!
//! Guarantees that what it gives is right both ways: every chunk was decoded again as a device would, and
//! the frames are plain zstd.

use std::{hash::Hasher, io};

use twox_hash::XxHash64;
use zstd::zstd_safe::{self, CCtx, CParameter};

use super::{
    chunk::{DESCRIPTOR, FRAME_MAGIC},
    index::{ChunkDigest, NewChunk},
    limits::MAX_FRAME,
};

/// Head of the frames that zstd makes with neither content size nor checksum: magic, descriptor, window.
const INNER_HEAD: usize = 6;

/// Chunks that are compressed together.
#[derive(Debug)]
pub(crate) struct Group {
    /// Raw bytes of all.
    pub(crate) raw: Vec<u8>,
    /// Where each ends in `raw`.
    pub(crate) ends: Vec<usize>,
    /// All of it is a hole.
    pub(crate) zeros: bool,
}

/// Their frames.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) bytes: Vec<u8>,
    pub(crate) chunks: Vec<NewChunk>,
}

/// Compresses groups, reusing its working memory.
pub(crate) struct GroupEncoder {
    zstd: CCtx<'static>,
    inner: Vec<u8>,
}

impl GroupEncoder {
    pub(crate) fn new(level: i32) -> io::Result<Self> {
        let mut zstd = CCtx::create();
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ] {
            zstd.set_parameter(parameter).map_err(in_words)?;
        }
        Ok(Self {
            zstd,
            inner: Vec::new(),
        })
    }

    /// Makes the frames of a group.
    pub(crate) fn encode(&mut self, group: &Group) -> io::Result<Frames> {
        let mut frames = Frames {
            bytes: Vec::new(),
            chunks: Vec::with_capacity(group.ends.len()),
        };
        let mut start = 0;
        for end in &group.ends {
            let raw = &group.raw[start..*end];
            start = *end;
            let at = frames.bytes.len();
            put_head(&mut frames.bytes, raw.len())?;
            let blocks = frames.bytes.len();
            self.blocks(raw, &mut frames.bytes)?;
            end_frame(&mut frames.bytes, blocks, raw);
            frames
                .chunks
                .push(new_chunk(raw, frames.bytes.len() - at, group.zeros)?);
        }
        Ok(frames)
    }

    /// Appends the blocks of `raw`.
    fn blocks(&mut self, raw: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.inner.clear();
        self.inner.reserve(zstd_safe::compress_bound(raw.len()));
        self.zstd
            .compress2(&mut self.inner, raw)
            .map_err(in_words)?;
        if self.inner.get(4) != Some(&0) {
            return Err(io::Error::other("zstd made a frame with another head"));
        }
        out.extend_from_slice(&self.inner[INNER_HEAD..]);
        Ok(())
    }
}

fn put_head(out: &mut Vec<u8>, raw_len: usize) -> io::Result<()> {
    let size = u32::try_from(raw_len).map_err(io::Error::other)?;
    out.extend_from_slice(&FRAME_MAGIC);
    out.push(DESCRIPTOR);
    // A window as short as the frame, but not shorter than a block may be.
    let window = raw_len.max(128 << 10).next_power_of_two().ilog2() - 10;
    out.push(u8::try_from(window << 3).map_err(io::Error::other)?);
    out.extend_from_slice(&size.to_le_bytes());
    Ok(())
}

/// Appends the checksum; the blocks since `blocks` already end with a last one.
fn end_frame(out: &mut Vec<u8>, blocks: usize, raw: &[u8]) {
    debug_assert!(out.len() > blocks);
    let mut hash = XxHash64::with_seed(0);
    hash.write(raw);
    // RFC 8878, 3.1.1: the low four bytes.
    out.extend_from_slice(&(hash.finish() as u32).to_le_bytes());
}

fn new_chunk(raw: &[u8], frame_len: usize, zeros: bool) -> io::Result<NewChunk> {
    if frame_len > MAX_FRAME as usize {
        return Err(io::Error::other(
            "zstd made more of a chunk than it promises",
        ));
    }
    Ok(NewChunk {
        raw_len: u32::try_from(raw.len()).map_err(io::Error::other)?,
        frame_len: u32::try_from(frame_len).map_err(io::Error::other)?,
        digest: ChunkDigest::of(raw),
        starts_frame: true,
        zeros,
    })
}

fn in_words(code: zstd_safe::ErrorCode) -> io::Error {
    io::Error::other(zstd_safe::get_error_name(code))
}
