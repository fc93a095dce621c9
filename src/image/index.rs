//! The chunk index: where each chunk is, how long it is before and after compression, and its digest.
//!
//! Kept as the bytes of the file (some 20 a chunk), because memory on the device is scarce; entries are
//! made while iterating. A [`ChunkIndex`] that was read has the digest that the manifest says, lengths
//! within the limits, and chunks that add up to the partition images.

use std::fmt;

use crate::update::digest::Sha256;

use super::{
    error::ImageError,
    limits::{MAX_CHUNK, MAX_FRAME, MAX_INDEX, MAX_PREFIX},
    manifest::{IndexRef, Manifest},
};

/// First bytes of the index frame's content.
pub(crate) const INDEX_MAGIC: &[u8; 8] = b"FWUPDIDX";

const PART: &str = "the chunk index";
/// Magic, prefix.
const HEAD: usize = 12;
/// Two numbers of at least a byte, a digest.
const MIN_ENTRY: u64 = 18;
/// Two numbers of at most five bytes, a digest.
const MAX_ENTRY: u64 = 26;

/// The chunk is zeros only.
const ZEROS: u64 = 1;
/// A zstd frame begins with the chunk.
const STARTS_FRAME: u64 = 2;
const FLAG_BITS: u32 = 2;

/// The first 16 bytes of the SHA-256 of a chunk's raw bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkDigest(pub [u8; 16]);

impl ChunkDigest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let whole = Sha256::of(bytes).0;
        Self(*whole.first_chunk().expect("32 bytes are more than 16"))
    }
}

impl fmt::Display for ChunkDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkDigest({self})")
    }
}

/// One chunk: a piece of the raw image and the bytes of the file that hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Where its bytes belong in the raw image.
    pub raw_offset: u64,
    /// How many they are, 1 to [`MAX_CHUNK`].
    pub raw_len: u32,
    /// Where its compressed bytes begin in the file.
    pub file_offset: u64,
    /// How many they are, 1 to [`MAX_FRAME`].
    pub frame_len: u32,
    /// Of the raw bytes.
    pub digest: ChunkDigest,
    /// Raw bytes right before the chunk that its decoder needs, at most [`MAX_PREFIX`]. 0: the chunk
    /// begins a zstd frame and stands alone.
    pub prefix_len: u32,
    /// A hole: the chunk is zeros only and need not be fetched.
    pub zeros: bool,
}

/// All chunks of an image, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkIndex {
    /// The content of the index frame.
    bytes: Vec<u8>,
    chunks: usize,
}

impl ChunkIndex {
    /// How many chunks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks
    }

    /// True without chunks, which no image has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks == 0
    }

    /// The content of the index frame, as it is in the file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The most raw bytes before a chunk that a decoder needs.
    #[must_use]
    pub fn max_prefix(&self) -> u32 {
        let bytes = self.bytes[8..HEAD].first_chunk().expect("four bytes");
        u32::from_le_bytes(*bytes)
    }

    /// All chunks in order, when the first frame begins at `payload_offset` of the file.
    pub fn chunks(&self, payload_offset: u64) -> Chunks<'_> {
        Chunks {
            rest: &self.bytes[HEAD..],
            max_prefix: self.max_prefix(),
            raw_offset: 0,
            file_offset: payload_offset,
            in_frame: 0,
        }
    }

    /// All zstd frames in order: compressed and raw length of each, in bytes.
    pub(crate) fn frames(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut chunks = self.chunks(0).peekable();
        std::iter::from_fn(move || {
            let first = chunks.next()?;
            let mut frame = (u64::from(first.frame_len), u64::from(first.raw_len));
            while let Some(next) = chunks.next_if(|next| next.prefix_len > 0) {
                frame.0 += u64::from(next.frame_len);
                frame.1 += u64::from(next.raw_len);
            }
            Some(frame)
        })
    }

    /// Length of all frames together, in bytes.
    #[must_use]
    pub fn frames_len(&self) -> u64 {
        self.chunks(0).map(|chunk| u64::from(chunk.frame_len)).sum()
    }

    /// What a manifest says of this index.
    pub(crate) fn reference(&self) -> IndexRef {
        IndexRef {
            sha256: Sha256::of(&self.bytes),
            chunks: self.chunks as u64,
            size: self.bytes.len() as u64,
        }
    }

    /// Checks the size before anything is read: at least one chunk, within the limit.
    pub(crate) fn check_size(index: &IndexRef) -> Result<(), ImageError> {
        if index.size > MAX_INDEX {
            return Err(ImageError::TooLarge {
                what: PART,
                size: index.size,
                limit: MAX_INDEX,
            });
        }
        let possible = |entry: u64| {
            let entries = index.chunks.checked_mul(entry)?;
            entries.checked_add(HEAD as u64)
        };
        let fits = possible(MIN_ENTRY).is_some_and(|least| least <= index.size)
            && possible(MAX_ENTRY).is_some_and(|most| most >= index.size);
        if index.chunks == 0 || !fits {
            return Err(ImageError::ManifestValue {
                field: "index.size",
                why: format!("is {} for {} chunks", index.size, index.chunks),
            });
        }
        Ok(())
    }

    /// Takes the content of the index frame, if it is what `manifest` was signed with.
    pub(crate) fn parse(bytes: Vec<u8>, manifest: &Manifest) -> Result<Self, ImageError> {
        let found = Sha256::of(&bytes);
        let expected = manifest.index.sha256;
        if found != expected {
            return Err(ImageError::IndexDigest { expected, found });
        }
        if bytes.get(..8) != Some(INDEX_MAGIC) {
            return Err(ImageError::malformed(PART, "it has the wrong magic number"));
        }
        if bytes.len() < HEAD {
            return Err(ImageError::Truncated(PART));
        }
        let mut index = Self { bytes, chunks: 0 };
        index.chunks = index.check(manifest)?;
        Ok(index)
    }

    /// Checks every entry and counts them.
    fn check(&self, manifest: &Manifest) -> Result<usize, ImageError> {
        if self.max_prefix() > MAX_PREFIX {
            return Err(ImageError::TooLarge {
                what: "the prefix of a chunk",
                size: self.max_prefix().into(),
                limit: MAX_PREFIX.into(),
            });
        }
        let mut ends = manifest.image_ends().peekable();
        let (mut count, mut total, mut frame) = (0_u64, 0_u64, 0_u64);
        let mut chunks = self.chunks(0);
        while !chunks.rest.is_empty() {
            let chunk = chunks
                .next()
                .ok_or_else(|| ImageError::malformed(PART, format!("entry {count} is none")))?;
            check_len("one chunk", chunk.raw_len, MAX_CHUNK)?;
            check_len("the frame of one chunk", chunk.frame_len, MAX_FRAME)?;
            // Seek table and frame heads have 32 bits for a frame.
            let starts = chunk.prefix_len == 0;
            frame = if starts { 0 } else { frame } + u64::from(chunk.frame_len);
            if frame > u64::from(u32::MAX) || chunks.in_frame > u64::from(u32::MAX) {
                return Err(ImageError::malformed(PART, "a frame has 4 GiB or more"));
            }
            count += 1;
            // At most a million times 4 MiB: no overflow.
            total = chunk.raw_offset + u64::from(chunk.raw_len);
            match ends.next_if(|end| *end <= total) {
                Some(end) if end != total => {
                    let why = format!("chunk {} spans two partition images", count - 1);
                    return Err(ImageError::malformed(PART, why));
                }
                _ => {}
            }
        }
        if count != manifest.index.chunks {
            let why = format!(
                "it has {count} chunks, the manifest counts {}",
                manifest.index.chunks
            );
            return Err(ImageError::malformed(PART, why));
        }
        if total != manifest.payload.size {
            let why = format!(
                "its chunks have {total} bytes together, the payload has {}",
                manifest.payload.size
            );
            return Err(ImageError::malformed(PART, why));
        }
        Ok(usize::try_from(count).expect("no more than the bytes of the index"))
    }
}

/// The entries of a [`ChunkIndex`].
#[derive(Debug, Clone)]
pub struct Chunks<'a> {
    rest: &'a [u8],
    max_prefix: u32,
    raw_offset: u64,
    file_offset: u64,
    /// Raw bytes of the frame so far.
    in_frame: u64,
}

impl Iterator for Chunks<'_> {
    type Item = ChunkEntry;

    /// `None` at the end, and for bytes that are no entry, which `check` refuses.
    fn next(&mut self) -> Option<ChunkEntry> {
        let (raw_len, rest) = take_number(self.rest)?;
        let (coded, rest) = take_number(rest)?;
        let (digest, rest) = rest.split_first_chunk()?;
        let raw_len = u32::try_from(raw_len).ok()?;
        let frame_len = u32::try_from(coded >> FLAG_BITS).ok()?;
        let starts = coded & STARTS_FRAME != 0;
        // A chunk that links to something before it must have something to link to.
        if starts {
            self.in_frame = 0;
        } else if self.in_frame == 0 || self.max_prefix == 0 {
            return None;
        }
        let prefix = self.in_frame.min(self.max_prefix.into());
        let chunk = ChunkEntry {
            raw_offset: self.raw_offset,
            raw_len,
            file_offset: self.file_offset,
            frame_len,
            digest: ChunkDigest(*digest),
            prefix_len: u32::try_from(prefix).expect("not more than a 32-bit number"),
            zeros: coded & ZEROS != 0,
        };
        self.raw_offset += u64::from(raw_len);
        self.file_offset += u64::from(frame_len);
        self.in_frame += u64::from(raw_len);
        self.rest = rest;
        Some(chunk)
    }
}

/// A number in LEB128: seven bits a byte, the lowest first, the eighth bit set in all bytes but the last.
/// At most five bytes, and not more than needed: every number has one form.
fn take_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (place, byte) in bytes.iter().take(5).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            let shortest = *byte != 0 || place == 0;
            return shortest.then_some((number, &bytes[place + 1..]));
        }
    }
    None
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn check_len(what: &'static str, len: u32, limit: u32) -> Result<(), ImageError> {
    if len > limit {
        return Err(ImageError::TooLarge {
            what,
            size: len.into(),
            limit: limit.into(),
        });
    }
    if len == 0 {
        return Err(ImageError::malformed(PART, format!("{what} has no bytes")));
    }
    Ok(())
}

/// What the builder knows of a chunk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewChunk {
    pub(crate) raw_len: u32,
    pub(crate) frame_len: u32,
    pub(crate) digest: ChunkDigest,
    /// A zstd frame begins with it.
    pub(crate) starts_frame: bool,
    pub(crate) zeros: bool,
}

/// Collects an index chunk by chunk while an image is built.
#[derive(Debug)]
pub(crate) struct IndexBuilder {
    bytes: Vec<u8>,
    chunks: usize,
}

impl IndexBuilder {
    pub(crate) fn new(max_prefix: u32) -> Self {
        let mut bytes = INDEX_MAGIC.to_vec();
        bytes.extend_from_slice(&max_prefix.to_le_bytes());
        Self { bytes, chunks: 0 }
    }

    /// Lengths are bounded by the chunking that the builder checked.
    pub(crate) fn push(&mut self, chunk: &NewChunk) -> Result<(), ImageError> {
        put_number(&mut self.bytes, chunk.raw_len.into());
        let mut coded = u64::from(chunk.frame_len) << FLAG_BITS;
        if chunk.starts_frame {
            coded |= STARTS_FRAME;
        }
        if chunk.zeros {
            coded |= ZEROS;
        }
        put_number(&mut self.bytes, coded);
        self.bytes.extend_from_slice(&chunk.digest.0);
        self.chunks += 1;
        if self.bytes.len() as u64 > MAX_INDEX {
            return Err(ImageError::Build(format!(
                "more than {} chunks are too many; choose a larger chunk size",
                self.chunks - 1
            )));
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> ChunkIndex {
        let Self { bytes, chunks } = self;
        ChunkIndex { bytes, chunks }
    }
}

#[cfg(test)]
#[path = "index/tests.rs"]
mod tests;
