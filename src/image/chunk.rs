//! One chunk from its frame: decompressed into bounded memory and compared with its signed digest.

use std::io;

use zstd::bulk::Decompressor;

use crate::update::digest::Sha256;

use super::{error::ImageError, index::ChunkEntry};

/// Decompresses chunks, reusing its working memory.
#[derive(Default)]
pub struct ChunkDecoder(Decompressor<'static>);

impl ChunkDecoder {
    /// A decoder with no memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the raw bytes of `chunk` into `out`, whose old content is lost. After an error `out` is
    /// empty: bytes that did not match never leave this function.
    ///
    /// # Errors
    /// When `frame` has another length, does not decompress to exactly the chunk's length, or the
    /// bytes have another SHA-256.
    pub fn decode_chunk(
        &mut self,
        chunk: &ChunkEntry,
        frame: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let result = self.decode(chunk, frame, out);
        if result.is_err() {
            out.clear();
        }
        result
    }

    fn decode(
        &mut self,
        chunk: &ChunkEntry,
        frame: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let offset = chunk.raw_offset;
        if frame.len() as u64 != u64::from(chunk.frame_len) {
            return Err(ImageError::ChunkLength {
                offset,
                expected: chunk.frame_len.into(),
                found: frame.len() as u64,
            });
        }
        // One-shot decompression into a slice: zstd can neither write past its end nor allocate a
        // window, whatever the frame's header says.
        out.resize(chunk.raw_len as usize, 0);
        let len = self
            .0
            .decompress_to_buffer(frame, out.as_mut_slice())
            .map_err(|source: io::Error| ImageError::ChunkDecode { offset, source })?;
        if len != out.len() {
            return Err(ImageError::ChunkLength {
                offset,
                expected: chunk.raw_len.into(),
                found: len as u64,
            });
        }
        check_digest(chunk, out)
    }
}

/// Compares bytes that came from elsewhere (a slot) with what `chunk` should hold.
///
/// # Errors
/// [`ImageError::ChunkDigest`].
pub fn check_digest(chunk: &ChunkEntry, raw: &[u8]) -> Result<(), ImageError> {
    let found = Sha256::of(raw);
    if found == chunk.sha256 {
        return Ok(());
    }
    Err(ImageError::ChunkDigest {
        offset: chunk.raw_offset,
        expected: chunk.sha256,
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::failure::Coded;

    fn chunk_of(raw: &[u8]) -> (ChunkEntry, Vec<u8>) {
        let frame = zstd::bulk::compress(raw, 3).unwrap();
        let chunk = ChunkEntry {
            raw_offset: 0,
            raw_len: u32::try_from(raw.len()).unwrap(),
            file_offset: 0,
            frame_len: u32::try_from(frame.len()).unwrap(),
            sha256: Sha256::of(raw),
        };
        (chunk, frame)
    }

    #[test]
    fn a_frame_that_holds_more_than_its_chunk_is_refused_without_writing_past_it() {
        let (mut chunk, frame) = chunk_of(&[7; 100_000]);
        chunk.raw_len = 512;
        let mut out = vec![1; 10];
        let error = ChunkDecoder::new()
            .decode_chunk(&chunk, &frame, &mut out)
            .unwrap_err();
        assert_eq!(error.code(), "image-chunk-decode");
        assert!(out.is_empty() && out.capacity() < 100_000);
    }

    #[test]
    fn wrong_lengths_and_wrong_bytes_are_told_apart() {
        let (chunk, frame) = chunk_of(b"right");
        let mut decoder = ChunkDecoder::new();
        let mut out = Vec::new();
        let longer = ChunkEntry {
            raw_len: 6,
            ..chunk
        };
        let other = ChunkEntry {
            sha256: Sha256::of(b"wrong"),
            ..chunk
        };
        for (chunk, frame, code) in [
            (&chunk, &frame[1..], "image-chunk-length"),
            (&longer, &frame[..], "image-chunk-length"),
            (&other, &frame[..], "image-chunk-digest"),
        ] {
            let error = decoder.decode_chunk(chunk, frame, &mut out).unwrap_err();
            assert_eq!(error.code(), code);
            assert!(out.is_empty());
        }
        decoder.decode_chunk(&chunk, &frame, &mut out).unwrap();
        assert_eq!(out, b"right");
    }
}
