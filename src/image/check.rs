//! Checks a whole image from a stream, in constant memory: every chunk, the whole, the seek table and
//! that nothing follows; also that readers who know nothing of chunks get the same bytes.

use std::io::{self, Read, Write};

use ring::digest::{Context, SHA256};
use zstd::stream::write::Decoder;

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
    let mut plain = PlainReader::new()?;
    for chunk in header.chunks() {
        let bytes = read_vec(reader, chunk.frame_len.into(), "a chunk")?;
        let prefix = before.len() - chunk.prefix_len as usize;
        decoder.decode_chunk(&chunk, &before[prefix..], &bytes, &mut raw)?;
        payload.update(&raw);
        plain.take(&bytes)?;
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
    plain.finish(expected)?;
    header.seek_table().check(reader)?;
    match read_vec(reader, 1, "") {
        Err(ImageError::Truncated(_)) => Ok(()),
        Ok(_) => Err(ImageError::Trailing),
        Err(error) => Err(error),
    }
}

/// What `zstd -dc` makes of the frames.
struct PlainReader(Decoder<'static, Hasher>);

struct Hasher(Context);

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PlainReader {
    const PART: &'static str = "the zstd frame around a chunk";
    /// 8 MiB, the most that the format allows.
    const WINDOW_LOG: u32 = 23;

    fn new() -> Result<Self, ImageError> {
        let mut decoder = Decoder::new(Hasher(Context::new(&SHA256))).map_err(ImageError::Read)?;
        decoder
            .window_log_max(Self::WINDOW_LOG)
            .map_err(ImageError::Read)?;
        Ok(Self(decoder))
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.0
            .write_all(bytes)
            .map_err(|error| ImageError::malformed(Self::PART, error.to_string()))
    }

    fn finish(mut self, expected: Sha256) -> Result<(), ImageError> {
        self.0
            .flush()
            .map_err(|error| ImageError::malformed(Self::PART, error.to_string()))?;
        let found = Sha256::from_ring(&self.0.into_inner().0.finish());
        if found == expected {
            return Ok(());
        }
        let why = "`zstd -dc` would give other bytes than the chunks";
        Err(ImageError::malformed(Self::PART, why))
    }
}
