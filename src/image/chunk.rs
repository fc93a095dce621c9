//! One chunk from its bytes: decompressed into bounded memory and compared with its signed digest.
//!
//! A chunk is one or more whole blocks of a zstd frame; the chunk that begins the frame has the frame's
//! head in front, the one that ends it the frame's checksum behind. To decode a chunk alone, its blocks
//! are put into a small frame of their own, with the raw bytes before the chunk as prefix.

use std::io;

use zstd::zstd_safe::{self, DCtx};

use super::{
    error::ImageError,
    index::{ChunkDigest, ChunkEntry},
};

/// Of a zstd frame (RFC 8878, 3.1.1).
pub(crate) const FRAME_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Of a zstd dictionary (RFC 8878, 5).
pub(crate) const DICTIONARY_MAGIC: [u8; 4] = 0xEC30_A437_u32.to_le_bytes();
/// Frame header descriptor of every frame: content size of four bytes, window descriptor, checksum.
pub(crate) const DESCRIPTOR: u8 = 0x84;
/// Magic, descriptor, window, content size.
pub(crate) const HEAD_LEN: usize = 10;
/// Window of 8 MiB, the most that every decoder must take (RFC 8878, 3.1.1.1.2).
const MAX_WINDOW: u8 = 13 << 3;
/// Content checksum at the end of a frame.
pub(crate) const CHECKSUM_LEN: usize = 4;
const BLOCK_HEAD: usize = 3;

/// Decompresses chunks, reusing its working memory.
pub struct ChunkDecoder {
    zstd: DCtx<'static>,
    /// The small frame.
    frame: Vec<u8>,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ChunkDecoder {
    /// A decoder with little memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            zstd: DCtx::create(),
            frame: Vec::new(),
        }
    }

    /// Puts the raw bytes of `chunk` into `out`, whose old content is lost. `bytes` are those of the file,
    /// `prefix` the `prefix_len` raw bytes of the image right before the chunk. After an error `out` is
    /// empty: bytes that did not match never leave this function.
    ///
    /// # Errors
    /// When `bytes` or `prefix` have another length than the index says, do not decompress to exactly the
    /// chunk's length, or the raw bytes have another digest.
    pub fn decode_chunk(
        &mut self,
        chunk: &ChunkEntry,
        prefix: &[u8],
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        out.clear();
        self.append_unverified(chunk, prefix, bytes, out)?;
        let verified = check_digest(chunk, out);
        if verified.is_err() {
            out.clear();
        }
        verified
    }

    /// As [`ChunkDecoder::decode_chunk`], but puts the bytes behind what `out` holds, which an error leaves as it
    /// was, and **does not compare the digest**: whoever calls this calls [`check_digest`] before anything else is
    /// done with the bytes, on another thread perhaps.
    ///
    /// # Errors
    /// As [`ChunkDecoder::decode_chunk`], but for the digest.
    pub fn append_unverified(
        &mut self,
        chunk: &ChunkEntry,
        prefix: &[u8],
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let before = out.len();
        let decoded = self.append(chunk, prefix, bytes, out);
        if decoded.is_err() {
            out.truncate(before);
        }
        decoded
    }

    fn append(
        &mut self,
        chunk: &ChunkEntry,
        prefix: &[u8],
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let offset = chunk.raw_offset;
        let check = |expected: u32, found: usize| {
            let (expected, found) = (expected.into(), found as u64);
            if expected == found {
                return Ok(());
            }
            Err(ImageError::ChunkLength {
                offset,
                expected,
                found,
            })
        };
        let failed = |why: String| ImageError::ChunkDecode {
            offset,
            source: io::Error::new(io::ErrorKind::InvalidData, why),
        };
        check(chunk.frame_len, bytes.len())?;
        check(chunk.prefix_len, prefix.len())?;
        self.wrap(chunk, bytes)
            .map_err(|why| failed(why.to_owned()))?;
        // One-shot decompression into a slice: zstd can neither write past its end nor allocate a
        // window, whatever the blocks say.
        let before = out.len();
        out.resize(before + chunk.raw_len as usize, 0);
        let len = decompress(&mut self.zstd, prefix, &self.frame, &mut out[before..])
            .map_err(|code| failed(zstd_safe::get_error_name(code).to_owned()))?;
        check(chunk.raw_len, len)
    }

    /// Makes the small frame of the chunk's blocks.
    fn wrap(&mut self, chunk: &ChunkEntry, bytes: &[u8]) -> Result<(), &'static str> {
        let blocks = match chunk.prefix_len {
            0 => take_head(bytes).ok_or("it does not begin with the head of a frame")?,
            _ => bytes,
        };
        let (blocks, last) = split_blocks(blocks).ok_or("it does not consist of whole blocks")?;
        small_frame(&mut self.frame, blocks, last, chunk.raw_len);
        Ok(())
    }
}

/// Decompresses one whole frame with `prefix` in front of it.
pub(crate) fn decompress(
    zstd: &mut DCtx<'static>,
    prefix: &[u8],
    frame: &[u8],
    out: &mut [u8],
) -> Result<usize, zstd_safe::ErrorCode> {
    if prefix.starts_with(&DICTIONARY_MAGIC) {
        // Here zstd would take the image's bytes for a dictionary with tables of its own.
        let mut once = DCtx::create();
        once.ref_prefix(prefix)?;
        return once.decompress(out, frame);
    }
    zstd.decompress_using_dict(out, frame, prefix)
}

/// What follows the head of a frame of this format.
fn take_head(bytes: &[u8]) -> Option<&[u8]> {
    let (head, blocks) = bytes.split_first_chunk::<HEAD_LEN>()?;
    let right = head[..4] == FRAME_MAGIC && head[4] == DESCRIPTOR && head[5] <= MAX_WINDOW;
    right.then_some(blocks)
}

/// The blocks without the checksum that may follow, and where the last of them begins.
fn split_blocks(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let walk = walk_blocks(bytes)?;
    let behind = if walk.ends_frame { CHECKSUM_LEN } else { 0 };
    (bytes.len() - walk.end == behind).then_some((&bytes[..walk.end], walk.last))
}

/// What a run of blocks looks like from its block heads.
pub(crate) struct Walk {
    /// Where the last block begins.
    pub(crate) last: usize,
    /// Where it ends.
    pub(crate) end: usize,
    /// It says that it is the last of the frame.
    pub(crate) ends_frame: bool,
}

/// Goes from block to block, to the last one or the end of `bytes`. `None`: a block is cut off or of no
/// known kind.
pub(crate) fn walk_blocks(bytes: &[u8]) -> Option<Walk> {
    let mut at = 0;
    loop {
        let head = bytes.get(at..at + BLOCK_HEAD)?;
        let word = u32::from_le_bytes([head[0], head[1], head[2], 0]);
        let body = match (word >> 1) & 3 {
            // Run-length: one byte, whatever the size.
            1 => 1,
            3 => return None,
            _ => (word >> 3) as usize,
        };
        let end = at + BLOCK_HEAD + body;
        let ends_frame = word & 1 == 1;
        if end > bytes.len() {
            return None;
        }
        if ends_frame || end == bytes.len() {
            return Some(Walk {
                last: at,
                end,
                ends_frame,
            });
        }
        at = end;
    }
}

/// A frame of one segment around `blocks`, of which the last begins at `last`.
pub(crate) fn small_frame(out: &mut Vec<u8>, blocks: &[u8], last: usize, raw_len: u32) {
    // Content size of four bytes, single segment.
    const DESCRIPTOR: u8 = 0xA0;
    out.clear();
    out.extend_from_slice(&FRAME_MAGIC);
    out.push(DESCRIPTOR);
    out.extend_from_slice(&raw_len.to_le_bytes());
    let head = out.len();
    out.extend_from_slice(blocks);
    out[head + last] |= 1;
}

/// Compares bytes that came from elsewhere (a slot) with what `chunk` should hold.
///
/// # Errors
/// [`ImageError::ChunkDigest`].
pub fn check_digest(chunk: &ChunkEntry, raw: &[u8]) -> Result<(), ImageError> {
    let found = ChunkDigest::of(raw);
    if found == chunk.digest {
        return Ok(());
    }
    Err(ImageError::ChunkDigest {
        offset: chunk.raw_offset,
        expected: chunk.digest,
        found,
    })
}

#[cfg(test)]
#[path = "chunk/tests.rs"]
mod tests;
