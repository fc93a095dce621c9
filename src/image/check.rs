//! Checks a whole image from a stream, in constant memory: every chunk, the whole, the seek table and
//! that nothing follows.

use std::io::Read;

use ring::digest::{Context, SHA256};

use crate::update::digest::Sha256;

use super::{chunk::ChunkDecoder, error::ImageError, frame::read_vec, header::Header};

/// Reads the rest of an image whose `header` was read from `reader`, and checks all of it. `progress`
/// is told the raw bytes done.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_payload(
    header: &Header,
    reader: &mut impl Read,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImageError> {
    let mut decoder = ChunkDecoder::new();
    let mut raw = Vec::new();
    // The raw bytes before the chunk, as many as any chunk needs.
    let mut before = Vec::new();
    let mut payload = Context::new(&SHA256);
    for chunk in header.chunks() {
        let bytes = read_vec(reader, chunk.frame_len.into(), "a chunk")?;
        let prefix = before.len() - chunk.prefix_len as usize;
        decoder.decode_chunk(&chunk, &before[prefix..], &bytes, &mut raw)?;
        payload.update(&raw);
        before.extend_from_slice(&raw);
        let old = before
            .len()
            .saturating_sub(header.index().max_prefix() as usize);
        before.drain(..old);
        progress(chunk.raw_offset + u64::from(chunk.raw_len));
    }
    let found = Sha256::from_ring(&payload.finish());
    let expected = header.manifest().payload.sha256;
    if found != expected {
        return Err(ImageError::PayloadDigest { expected, found });
    }
    header.seek_table().check(reader)?;
    match read_vec(reader, 1, "") {
        Err(ImageError::Truncated(_)) => Ok(()),
        Ok(_) => Err(ImageError::Trailing),
        Err(error) => Err(error),
    }
}
