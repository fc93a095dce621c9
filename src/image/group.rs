//! Compresses a run of chunks into zstd frames: the inner loop of a build.
//!
//! Chunks are linked where that is possible: many chunks share one frame, each made of whole blocks that
//! refer to nothing of the frame but the raw bytes right before them. Two things would tie a block to more:
//! the decoder's repeat offsets and its entropy tables, both left by earlier blocks. So each chunk is
//! compressed with a zstd dictionary (RFC 8878, 5) whose content is the bytes before the chunk, whose
//! tables have only codes that no block of ours can use, and whose repeat offsets point at bytes that match
//! nothing.
//!
//! That makes ties unlikely, and checks make them impossible: every chunk is decoded again as a device would
//! do it, and all frames as any zstd decoder would. A chunk that fails begins a new frame. So every file is
//! right both ways, or is not built.

use std::{hash::Hasher, io, mem, sync::LazyLock};

use twox_hash::XxHash64;
use zstd::zstd_safe::{self, CCtx, DCtx};

use crate::update::digest::Sha256;

use super::{
    chunk::{self, DESCRIPTOR, FRAME_MAGIC, HEAD_LEN, walk_blocks},
    index::{ChunkDigest, NewChunk},
    limits::MAX_FRAME,
};

/// Bytes that no image is likely to hold, twice. The first sequences of a chunk, which alone could use the
/// repeat offsets that it began with, are most likely within as many bytes.
static NOISE: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| {
    let noise = |salt: u8| {
        let block = |number: u8| Sha256::of(&[salt, number]).0;
        (0..64).flat_map(block).collect()
    };
    [noise(0), noise(1)]
});

/// So often is a group made again with one chunk less that is linked, before none is.
const TRIES: usize = 8;

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
#[derive(Debug, Default)]
pub(crate) struct Frames {
    pub(crate) bytes: Vec<u8>,
    pub(crate) chunks: Vec<NewChunk>,
}

/// Compresses groups, reusing its working memory.
pub(crate) struct GroupEncoder {
    zstd: CCtx<'static>,
    decoder: DCtx<'static>,
    level: i32,
    /// Most raw bytes before a chunk that it may refer to; 0: every chunk is a frame.
    max_prefix: usize,
    dictionary: Vec<u8>,
    compressed: Vec<u8>,
    frame: Vec<u8>,
    decoded: Vec<u8>,
}

/// The frame that is being filled.
struct Open {
    /// Where it begins in the bytes, and in the raw bytes.
    at: usize,
    raw_at: usize,
    /// Where its last block begins so far.
    last_block: usize,
}

impl GroupEncoder {
    pub(crate) fn new(level: i32, max_prefix: u32) -> Self {
        Self {
            zstd: CCtx::create(),
            decoder: DCtx::create(),
            level,
            max_prefix: max_prefix as usize,
            dictionary: Vec::new(),
            compressed: Vec::new(),
            frame: Vec::new(),
            decoded: Vec::new(),
        }
    }

    /// Makes the frames of a group.
    pub(crate) fn encode(&mut self, group: &Group) -> io::Result<Frames> {
        let mut alone = Vec::new();
        for _ in 0..TRIES {
            let frames = self.frames(group, self.max_prefix, &alone)?;
            let Some(wrong) = self.first_wrong_chunk(&frames, group) else {
                return Ok(frames);
            };
            // It depends on what only the chunks before it in the frame could tell.
            alone.push(wrong);
        }
        let frames = self.frames(group, 0, &[])?;
        match self.first_wrong_chunk(&frames, group) {
            None => Ok(frames),
            Some(_) => Err(io::Error::other("it does not decode what it encoded")),
        }
    }

    /// Chunks whose numbers are in `alone` begin a frame, and so do those that cannot be linked.
    fn frames(&mut self, group: &Group, max_prefix: usize, alone: &[usize]) -> io::Result<Frames> {
        let mut frames = Frames::default();
        let mut open: Option<Open> = None;
        let mut start = 0;
        for (number, end) in group.ends.iter().enumerate() {
            let raw = &group.raw[start..*end];
            let linked = match &open {
                Some(frame) if !alone.contains(&number) => {
                    let from = frame.raw_at.max(start.saturating_sub(max_prefix));
                    from < start && self.compress(&group.raw[from..start], raw)?
                }
                _ => false,
            };
            if !linked {
                if let Some(frame) = open.take() {
                    close(&mut frames, frame, &group.raw[..start])?;
                }
                if !self.compress(&[], raw)? {
                    return Err(io::Error::other("it does not decode what it encoded"));
                }
            }
            let at = frames.bytes.len();
            let frame = open.get_or_insert_with(|| {
                put_head(&mut frames.bytes);
                Open {
                    at,
                    raw_at: start,
                    last_block: 0,
                }
            });
            let (blocks, last) = blocks_of(&self.compressed)?;
            frame.last_block = frames.bytes.len() + last;
            frames.bytes.extend_from_slice(blocks);
            // More blocks may follow.
            frames.bytes[frame.last_block] &= !1;
            frames.chunks.push(NewChunk {
                raw_len: short(raw.len())?,
                frame_len: frame_len(frames.bytes.len() - at)?,
                digest: ChunkDigest::of(raw),
                starts_frame: !linked,
                zeros: group.zeros,
            });
            start = *end;
        }
        if let Some(frame) = open {
            close(&mut frames, frame, &group.raw[..start])?;
        }
        Ok(frames)
    }

    /// Compresses `raw` with `prefix` before it. False if a device would not get it back.
    fn compress(&mut self, prefix: &[u8], raw: &[u8]) -> io::Result<bool> {
        self.dictionary.clear();
        if !prefix.is_empty() {
            put_dictionary(&mut self.dictionary, &NOISE[0], prefix)?;
        }
        self.compressed.clear();
        let most = zstd_safe::compress_bound(raw.len());
        self.compressed.reserve(most);
        self.zstd
            .compress_using_dict(&mut self.compressed, raw, &self.dictionary, self.level)
            .map_err(in_words)?;
        let (blocks, last) = blocks_of(&self.compressed)?;
        chunk::small_frame(&mut self.frame, blocks, last, short(raw.len())?);
        self.decoded.resize(raw.len(), 0);
        let decoded = chunk::decompress(&mut self.decoder, prefix, &self.frame, &mut self.decoded);
        if decoded != Ok(raw.len()) || self.decoded != raw {
            return Ok(false);
        }
        if prefix.is_empty() {
            return Ok(true);
        }
        // With other bytes where the repeat offsets point, it must make no difference.
        self.dictionary.clear();
        put_dictionary(&mut self.dictionary, &NOISE[1], prefix)?;
        let (out, frame) = (&mut self.decoded[..], &self.frame);
        let decoded = self
            .decoder
            .decompress_using_dict(out, frame, &self.dictionary);
        Ok(decoded == Ok(raw.len()) && self.decoded == raw)
    }

    /// Decodes the frames as any zstd decoder would; names the first chunk that comes out wrong.
    fn first_wrong_chunk(&mut self, frames: &Frames, group: &Group) -> Option<usize> {
        let mut decoded = mem::take(&mut self.decoded);
        decoded.clear();
        decoded.resize(group.raw.len(), 0);
        let len = self.decoder.decompress(&mut decoded[..], &frames.bytes);
        let wrong = if len == Ok(group.raw.len()) && decoded == group.raw {
            None
        } else {
            // What came out before an error is there all the same.
            let at = decoded.iter().zip(&group.raw).position(|(a, b)| a != b);
            let at = at.unwrap_or(group.raw.len() - 1);
            Some(group.ends.partition_point(|end| *end <= at))
        };
        self.decoded = decoded;
        wrong
    }
}

/// A dictionary with `prefix` as its content, for compressing blocks that need no dictionary but `prefix`.
/// The repeat offsets point at the beginning of `noise`, which stands before it.
fn put_dictionary(out: &mut Vec<u8>, noise: &[u8], prefix: &[u8]) -> io::Result<()> {
    // Literals: only `~` and DEL, a bit each (direct weights, 127 of them and the last implied).
    const LITERALS: u8 = 127 + 127;
    // FSE descriptions, each with two codes of the same probability: offset codes 30 and 31 (a
    // gigabyte and more), match length codes 51 and 52, literal length codes 34 and 35 (32 KiB and more).
    const TABLES: [&[u8]; 3] = [
        &[0x10, 0xfe, 0xff, 0x37, 0x7e],
        &[0x10, 0xfe, 0xff, 0xff, 0xff, 0x8d, 0x1f],
        &[0x10, 0xfe, 0xff, 0x7f, 0xe2, 0x07],
    ];
    out.extend_from_slice(&chunk::DICTIONARY_MAGIC);
    // No id: the frame's head stays without one.
    out.extend_from_slice(&[0; 4]);
    out.push(LITERALS);
    out.extend_from_slice(&[0; 63]);
    // Weights of 125 and 126.
    out.push(0x01 << 4);
    for table in TABLES {
        out.extend_from_slice(table);
    }
    let farthest = short(noise.len() + prefix.len())?;
    for _ in 0..3 {
        out.extend_from_slice(&farthest.to_le_bytes());
    }
    out.extend_from_slice(noise);
    out.extend_from_slice(prefix);
    Ok(())
}

/// The blocks of a frame that zstd made without checksum, and where the last of them begins.
fn blocks_of(frame: &[u8]) -> io::Result<(&[u8], usize)> {
    let other = || io::Error::other("it made a frame of an unknown form");
    let descriptor = *frame.get(4).ok_or_else(other)?;
    let single = descriptor >> 5 & 1;
    let content_size = match descriptor >> 6 {
        0 => usize::from(single),
        flag => 1 << flag,
    };
    // Checksum, dictionary id, reserved bit: none was asked for.
    if descriptor & 0x0f != 0 {
        return Err(other());
    }
    let head = 5 + usize::from(1 - single) + content_size;
    let blocks = frame.get(head..).ok_or_else(other)?;
    match walk_blocks(blocks) {
        Some(walk) if walk.ends_frame && walk.end == blocks.len() => Ok((blocks, walk.last)),
        _ => Err(other()),
    }
}

/// The head of a frame, whose window and content size are not yet known.
fn put_head(out: &mut Vec<u8>) {
    out.extend_from_slice(&FRAME_MAGIC);
    out.push(DESCRIPTOR);
    out.extend_from_slice(&[0; 5]);
}

/// Completes the frame that holds the end of `raw`.
fn close(frames: &mut Frames, open: Open, raw: &[u8]) -> io::Result<()> {
    let raw = &raw[open.raw_at..];
    let bytes = &mut frames.bytes;
    bytes[open.last_block] |= 1;
    let mut hash = XxHash64::with_seed(0);
    hash.write(raw);
    // RFC 8878, 3.1.1: the low four bytes.
    let checksum = (hash.finish() as u32).to_le_bytes();
    bytes.extend_from_slice(&checksum);
    let head = &mut bytes[open.at..open.at + HEAD_LEN];
    // A window as long as the frame, but not shorter than a block may be (RFC 8878, 3.1.1.1.2).
    let exponent = raw.len().max(128 << 10).next_power_of_two().ilog2() - 10;
    head[5] = u8::try_from(exponent << 3).map_err(io::Error::other)?;
    head[6..].copy_from_slice(&short(raw.len())?.to_le_bytes());
    if let Some(last) = frames.chunks.last_mut() {
        last.frame_len = frame_len(last.frame_len as usize + checksum.len())?;
    }
    Ok(())
}

fn frame_len(len: usize) -> io::Result<u32> {
    if len > MAX_FRAME as usize {
        return Err(io::Error::other("it made more of a chunk than it promises"));
    }
    short(len)
}

fn short(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(io::Error::other)
}

fn in_words(code: zstd_safe::ErrorCode) -> io::Error {
    io::Error::other(zstd_safe::get_error_name(code))
}

#[cfg(test)]
#[path = "group/tests.rs"]
mod tests;
