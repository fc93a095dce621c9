//! The zstd frames that carry no payload: skippable frames and the seek table.
//!
//! Sources: RFC 8878 section 3.1.2 (skippable frames) and `zstd_seekable_compression_format.md` 0.1.0
//! in zstd's sources (seek table). Any zstd decoder skips all of them.

use std::io::{self, Read, Write};

use super::{error::ImageError, index::ChunkIndex};

/// The manifest frame. 0x184D2A50 to 0x184D2A5F are skippable; zstd's own tools use 50 and 5E.
pub(crate) const MANIFEST_FRAME: u32 = 0x184D_2A5A;
/// The index frame.
pub(crate) const INDEX_FRAME: u32 = 0x184D_2A5B;
/// The seek table of the seekable format.
const SEEK_TABLE_FRAME: u32 = 0x184D_2A5E;
/// Last bytes of a seekable file.
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Magic number and length in front of the content of a skippable frame, in bytes.
pub(crate) const FRAME_HEAD: u64 = 8;
/// What follows the entries: count, descriptor byte (0: entries without checksums), magic.
const SEEK_TABLE_FOOT: u64 = 9;

/// Reads the magic number and content length of a skippable frame. Whether they are the right ones
/// is the caller's business.
pub(crate) fn read_head(
    reader: &mut impl Read,
    what: &'static str,
) -> Result<(u32, u32), ImageError> {
    let magic = read_u32(reader, what)?;
    Ok((magic, read_u32(reader, what)?))
}

pub(crate) fn read_u32(reader: &mut impl Read, what: &'static str) -> Result<u32, ImageError> {
    Ok(u32::from_le_bytes(read_array(reader, what)?))
}

pub(crate) fn read_array<const N: usize>(
    reader: &mut impl Read,
    what: &'static str,
) -> Result<[u8; N], ImageError> {
    let mut bytes = [0; N];
    reader
        .read_exact(&mut bytes)
        .map_err(|error| ImageError::reading(what, error))?;
    Ok(bytes)
}

/// Reads `len` bytes, which the caller has compared with a limit. Memory grows as bytes arrive, so
/// that a length without bytes behind it costs nothing.
pub(crate) fn read_vec(
    reader: &mut impl Read,
    len: u64,
    what: &'static str,
) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    reader
        .by_ref()
        .take(len)
        .read_to_end(&mut bytes)
        .map_err(|error| ImageError::reading(what, error))?;
    if (bytes.len() as u64) < len {
        return Err(ImageError::Truncated(what));
    }
    Ok(bytes)
}

/// Writes a skippable frame around `parts`, whose limits the caller has checked.
pub(crate) fn write_skippable(
    out: &mut impl Write,
    magic: u32,
    parts: &[&[u8]],
) -> Result<u64, ImageError> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len)
        .map_err(|_| ImageError::Build("a frame would be longer than 4 GiB".to_owned()))?;
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(ImageError::Write);
    write(&magic.to_le_bytes())?;
    write(&len.to_le_bytes())?;
    for part in parts {
        write(part)?;
    }
    Ok(FRAME_HEAD + u64::from(len))
}

/// The seek table of an image: one entry (compressed size, decompressed size) for every frame before
/// it, our two skippable frames included, so that a generic reader's offsets are right.
pub(crate) struct SeekTable<'a> {
    pub(crate) manifest_frame: u64,
    pub(crate) index_frame: u64,
    pub(crate) index: &'a ChunkIndex,
}

impl SeekTable<'_> {
    fn frames(&self) -> u64 {
        self.index.frames().count() as u64 + 2
    }

    /// Length of the whole frame, in bytes.
    pub(crate) fn len(&self) -> u64 {
        FRAME_HEAD + self.frames() * 8 + SEEK_TABLE_FOOT
    }

    /// The table in small pieces, in order.
    fn pieces(&self) -> impl Iterator<Item = [u8; 8]> + '_ {
        let short = |len: u64| u32::try_from(len).expect("limits keep every frame below 4 GiB");
        let head = (SEEK_TABLE_FRAME, short(self.len() - FRAME_HEAD));
        let skippable = [self.manifest_frame, self.index_frame].map(|len| (short(len), 0));
        let frames = self.index.frames();
        std::iter::once(head)
            .chain(skippable)
            .chain(frames.map(move |(len, raw)| (short(len), short(raw))))
            .map(|(first, second)| pair(first, second))
    }

    fn foot(&self) -> [u8; SEEK_TABLE_FOOT as usize] {
        let count = u32::try_from(self.frames()).expect("limits keep the count below 2^32");
        let mut foot = [0; SEEK_TABLE_FOOT as usize];
        foot[..4].copy_from_slice(&count.to_le_bytes());
        foot[5..].copy_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
        foot
    }

    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut out = io::BufWriter::new(out);
        for piece in self.pieces() {
            out.write_all(&piece)?;
        }
        out.write_all(&self.foot())?;
        out.flush()
    }

    /// Reads as many bytes as the table has and compares.
    pub(crate) fn check(&self, reader: &mut impl Read) -> Result<(), ImageError> {
        const PART: &str = "the seek table";
        let mut reader = io::BufReader::new(reader.take(self.len()));
        for piece in self.pieces() {
            if read_array(&mut reader, PART)? != piece {
                return Err(ImageError::SeekTable);
            }
        }
        if read_array(&mut reader, PART)? != self.foot() {
            return Err(ImageError::SeekTable);
        }
        Ok(())
    }
}

fn pair(first: u32, second: u32) -> [u8; 8] {
    let both = u64::from(second) << 32 | u64::from(first);
    both.to_le_bytes()
}
