//! The chunk index: where each chunk is, how long it is before and after compression, and its digest.
//!
//! Kept as the bytes of the file (40 a chunk), because memory on the device is scarce; entries are
//! made while iterating. A [`ChunkIndex`] that was read has the digest that the manifest says, lengths
//! within the limits, and raw lengths that add up to the payload.

use crate::update::digest::Sha256;

use super::{
    error::ImageError,
    limits::{MAX_CHUNK, MAX_FRAME, MAX_INDEX},
    manifest::{IndexRef, Manifest},
};

/// First bytes of the index frame's content.
pub(crate) const INDEX_MAGIC: &[u8; 8] = b"FWUPDIDX";

const PART: &str = "the chunk index";
/// Magic and count.
const HEAD: usize = 16;
/// Raw length, frame length, digest.
const ENTRY: usize = 40;

/// One chunk: a piece of the raw image and the zstd frame that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Where its bytes belong in the raw image.
    pub raw_offset: u64,
    /// How many they are, 1 to [`MAX_CHUNK`].
    pub raw_len: u32,
    /// Where its frame begins in the file.
    pub file_offset: u64,
    /// Length of the frame, 1 to [`MAX_FRAME`].
    pub frame_len: u32,
    /// Of the raw bytes.
    pub sha256: Sha256,
}

/// All chunks of an image, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkIndex {
    /// The content of the index frame.
    bytes: Vec<u8>,
}

impl ChunkIndex {
    /// How many chunks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        (self.bytes.len() - HEAD) / ENTRY
    }

    /// True without chunks, which no image has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The content of the index frame, as it is in the file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All chunks in order, when the first frame begins at `payload_offset` of the file.
    pub fn chunks(&self, payload_offset: u64) -> impl Iterator<Item = ChunkEntry> + '_ {
        let mut raw_offset = 0;
        let mut file_offset = payload_offset;
        self.bytes[HEAD..].chunks_exact(ENTRY).map(move |entry| {
            let (raw_len, rest) = take_u32(entry);
            let (frame_len, sha256) = take_u32(rest);
            let chunk = ChunkEntry {
                raw_offset,
                raw_len,
                file_offset,
                frame_len,
                sha256: Sha256(sha256.try_into().expect("an entry is 4 + 4 + 32 bytes")),
            };
            raw_offset += u64::from(raw_len);
            file_offset += u64::from(frame_len);
            chunk
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
            chunks: self.len() as u64,
            size: self.bytes.len() as u64,
        }
    }

    /// Checks the size before anything is read: at least one chunk, within the limit, no odd bytes.
    pub(crate) fn check_size(index: &IndexRef) -> Result<(), ImageError> {
        if index.size > MAX_INDEX {
            return Err(ImageError::TooLarge {
                what: PART,
                size: index.size,
                limit: MAX_INDEX,
            });
        }
        let size = index
            .chunks
            .checked_mul(ENTRY as u64)
            .and_then(|entries| entries.checked_add(HEAD as u64));
        if index.chunks == 0 || size != Some(index.size) {
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
        let index = Self { bytes };
        index.check(manifest)?;
        Ok(index)
    }

    fn check(&self, manifest: &Manifest) -> Result<(), ImageError> {
        if self.bytes.get(..8) != Some(INDEX_MAGIC) {
            return Err(ImageError::malformed(PART, "it has the wrong magic number"));
        }
        let count = u64::from_le_bytes(
            self.bytes
                .get(8..HEAD)
                .and_then(|count| count.try_into().ok())
                .ok_or(ImageError::Truncated(PART))?,
        );
        if manifest.index.chunks != count || self.reference() != manifest.index {
            let why = format!(
                "it counts {count} chunks, the manifest {}",
                manifest.index.chunks
            );
            return Err(ImageError::malformed(PART, why));
        }
        let mut total = 0;
        for chunk in self.chunks(0) {
            check_len("one chunk", chunk.raw_len, MAX_CHUNK)?;
            check_len("the frame of one chunk", chunk.frame_len, MAX_FRAME)?;
            // At most 1.6 million times 4 MiB: no overflow.
            total = chunk.raw_offset + u64::from(chunk.raw_len);
        }
        if total != manifest.payload.size {
            let why = format!(
                "its chunks have {total} bytes together, the payload has {}",
                manifest.payload.size
            );
            return Err(ImageError::malformed(PART, why));
        }
        Ok(())
    }
}

fn take_u32(bytes: &[u8]) -> (u32, &[u8]) {
    let (head, rest) = bytes
        .split_first_chunk()
        .expect("callers give whole entries");
    (u32::from_le_bytes(*head), rest)
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

/// Collects an index chunk by chunk while an image is built.
#[derive(Debug)]
pub(crate) struct IndexBuilder(Vec<u8>);

impl IndexBuilder {
    pub(crate) fn new() -> Self {
        let mut bytes = INDEX_MAGIC.to_vec();
        bytes.extend_from_slice(&[0; 8]);
        Self(bytes)
    }

    /// Lengths are bounded by the chunk size that the builder checked.
    pub(crate) fn push(&mut self, raw_len: u32, frame_len: u32, sha256: Sha256) {
        self.0.extend_from_slice(&raw_len.to_le_bytes());
        self.0.extend_from_slice(&frame_len.to_le_bytes());
        self.0.extend_from_slice(&sha256.0);
    }

    pub(crate) fn finish(mut self) -> ChunkIndex {
        let count = ((self.0.len() - HEAD) / ENTRY) as u64;
        self.0[8..HEAD].copy_from_slice(&count.to_le_bytes());
        ChunkIndex { bytes: self.0 }
    }

    /// Most chunks that fit the limit.
    pub(crate) const MAX_CHUNKS: u64 = (MAX_INDEX - HEAD as u64) / ENTRY as u64;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{image::manifest::tests::sample, update::failure::Coded};

    fn signed_for(index: &ChunkIndex, size: u64) -> Manifest {
        let mut manifest = sample();
        manifest.payload.size = size;
        manifest.images[0].size = size;
        manifest.index = index.reference();
        manifest
    }

    fn index_of(entries: &[(u32, u32)]) -> ChunkIndex {
        let mut builder = IndexBuilder::new();
        for (raw, frame) in entries {
            builder.push(*raw, *frame, Sha256::of(&raw.to_le_bytes()));
        }
        builder.finish()
    }

    #[test]
    fn offsets_are_sums_of_the_lengths_before() {
        let index = index_of(&[(512, 20), (1024, 700)]);
        let parsed = ChunkIndex::parse(index.bytes.clone(), &signed_for(&index, 1536)).unwrap();
        let offsets: Vec<_> = parsed
            .chunks(1000)
            .map(|c| (c.raw_offset, c.raw_len, c.file_offset, c.frame_len))
            .collect();
        assert_eq!(offsets, [(0, 512, 1000, 20), (512, 1024, 1020, 700)]);
        assert_eq!(parsed.frames_len(), 720);
    }

    #[test]
    fn lengths_beyond_the_limits_and_wrong_sums_are_refused() {
        for (entries, code) in [
            (&[(0, 20), (512, 20)], "image-malformed"),
            (&[(512, 0), (512, 20)], "image-malformed"),
            (&[(512, 20), (513, 20)], "image-malformed"),
            (&[(512, 20), (MAX_CHUNK + 1, 20)], "image-limit-exceeded"),
            (&[(512, 20), (512, MAX_FRAME + 1)], "image-limit-exceeded"),
            (&[(u32::MAX, 20), (512, 20)], "image-limit-exceeded"),
        ] {
            let index = index_of(entries);
            let error =
                ChunkIndex::parse(index.bytes.clone(), &signed_for(&index, 1024)).unwrap_err();
            assert_eq!(error.code(), code, "{entries:?}");
        }
    }

    #[test]
    fn an_index_that_was_not_signed_is_refused() {
        let index = index_of(&[(512, 20)]);
        let manifest = signed_for(&index, 512);
        let mut bytes = index.bytes;
        *bytes.last_mut().unwrap() ^= 1;
        let error = ChunkIndex::parse(bytes, &manifest).unwrap_err();
        assert_eq!(error.code(), "image-index-digest");
    }

    proptest! {
        #[test]
        fn a_signed_but_arbitrary_index_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), count in any::<u64>(),
        ) {
            let mut manifest = sample();
            manifest.index = IndexRef {
                sha256: Sha256::of(&bytes), chunks: count, size: bytes.len() as u64,
            };
            let _ = ChunkIndex::check_size(&manifest.index);
            let _ = ChunkIndex::parse(bytes, &manifest);
        }
    }
}
