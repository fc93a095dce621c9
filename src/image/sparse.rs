//! Android sparse images: a partition image without its holes. Gives the raw bytes, with zeros for what the image leaves
//! open.
//!
//! Guarantees: memory is bounded whatever the image says; every length is checked against what was announced, and the
//! CRC-32 chunks, where there are any, against the bytes. Source of the format: AOSP, `libsparse/sparse_format.h`.

use std::io::{self, Chain, Cursor, Read};

use super::plain::PlainError;

/// Begins a sparse image.
pub const MAGIC: u32 = 0xed26_ff3a;
/// The headers' lengths in version 1; later ones may be longer.
const FILE_HEADER: usize = 28;
const CHUNK_HEADER: usize = 12;
/// Longest header that is skipped to.
const LONGEST_HEADER: u16 = 4096;
const RAW: u16 = 0xcac1;
const FILL: u16 = 0xcac2;
const DONT_CARE: u16 = 0xcac3;
const CRC32: u16 = 0xcac4;

/// A partition image, sparse or not.
pub struct Sparse<R> {
    inner: Inner<R>,
}

enum Inner<R> {
    /// As it is, of a known length.
    Plain(Chain<Cursor<Vec<u8>>, R>, u64),
    Sparse(Chunks<R>),
}

/// What the rest of the present chunk consists of.
enum Now {
    /// So many bytes of the file.
    Raw(u64),
    /// So many bytes of a repeated pattern, which go on at this byte of it.
    Fill(u64, [u8; 4], usize),
}

struct Chunks<R> {
    reader: R,
    size: u64,
    block: u64,
    chunk_header: u16,
    chunks_left: u32,
    /// Raw bytes that chunks still have to bring.
    left: u64,
    now: Now,
    crc: crc32fast::Hasher,
}

impl<R: Read> Sparse<R> {
    /// An image of `length` bytes; reads its header.
    ///
    /// # Errors
    /// Those of `reader`, and [`PlainError::Sparse`].
    pub fn open(mut reader: R, length: u64) -> io::Result<Self> {
        let mut header = Vec::with_capacity(FILE_HEADER);
        (&mut reader)
            .take(FILE_HEADER as u64)
            .read_to_end(&mut header)?;
        if !header.starts_with(&MAGIC.to_le_bytes()) {
            let inner = Inner::Plain(Cursor::new(header).chain(reader), length);
            return Ok(Self { inner });
        }
        if header.len() < FILE_HEADER {
            return Err(refuse("it is cut off"));
        }
        let (major, header_length, chunk_header) =
            (u16_at(&header, 4), u16_at(&header, 8), u16_at(&header, 10));
        let (block, blocks, chunks) = (
            u32_at(&header, 12),
            u32_at(&header, 16),
            u32_at(&header, 20),
        );
        if major != 1 {
            return Err(refuse("its version is not 1"));
        }
        let fits =
            |length: u16, least: usize| (least..=LONGEST_HEADER.into()).contains(&length.into());
        if !fits(header_length, FILE_HEADER) || !fits(chunk_header, CHUNK_HEADER) {
            return Err(refuse("its headers have no length that can be"));
        }
        if block == 0 || block % 4 != 0 {
            return Err(refuse("its blocks have no length that can be"));
        }
        skip(&mut reader, u64::from(header_length) - FILE_HEADER as u64)?;
        let size = u64::from(block) * u64::from(blocks);
        Ok(Self {
            inner: Inner::Sparse(Chunks {
                reader,
                size,
                block: block.into(),
                chunk_header,
                chunks_left: chunks,
                left: size,
                now: Now::Raw(0),
                crc: crc32fast::Hasher::new(),
            }),
        })
    }

    /// Raw bytes of the whole image, as it announces them.
    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.inner {
            Inner::Plain(_, length) => *length,
            Inner::Sparse(chunks) => chunks.size,
        }
    }

    /// What is left of the source, of an image that was read to its end.
    #[must_use]
    pub fn into_inner(self) -> R {
        match self.inner {
            Inner::Plain(reader, _) => reader.into_inner().1,
            Inner::Sparse(chunks) => chunks.reader,
        }
    }
}

impl<R: Read> Read for Sparse<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Sparse(chunks) => chunks.read(buffer),
            Inner::Plain(reader, left) => {
                let read = reader.read(buffer)?;
                *left -= (read as u64).min(*left);
                if read == 0 && !buffer.is_empty() && *left > 0 {
                    return Err(refuse("it is cut off"));
                }
                Ok(read)
            }
        }
    }
}

impl<R: Read> Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while matches!(self.now, Now::Raw(0) | Now::Fill(0, ..)) {
            if self.chunks_left == 0 {
                return match self.left {
                    0 => Ok(0),
                    _ => Err(refuse("it has fewer blocks than it says")),
                };
            }
            self.chunks_left -= 1;
            self.begin_chunk()?;
        }
        let read = match &mut self.now {
            Now::Raw(left) => {
                let most = shorter(buffer.len(), *left);
                let read = self.reader.read(&mut buffer[..most])?;
                if read == 0 {
                    return Err(refuse("it is cut off"));
                }
                *left -= read as u64;
                read
            }
            Now::Fill(left, pattern, at) => {
                let most = shorter(buffer.len(), *left);
                for byte in &mut buffer[..most] {
                    *byte = pattern[*at % 4];
                    *at += 1;
                }
                *at %= 4;
                *left -= most as u64;
                most
            }
        };
        self.crc.update(&buffer[..read]);
        Ok(read)
    }

    fn begin_chunk(&mut self) -> io::Result<()> {
        let mut header = [0; CHUNK_HEADER];
        exactly(&mut self.reader, &mut header)?;
        skip(
            &mut self.reader,
            u64::from(self.chunk_header) - CHUNK_HEADER as u64,
        )?;
        let (kind, blocks, whole) = (u16_at(&header, 0), u32_at(&header, 4), u32_at(&header, 8));
        let raw = self.block * u64::from(blocks);
        let content = match kind {
            RAW => raw,
            FILL | CRC32 => 4,
            DONT_CARE => 0,
            _ => return Err(refuse("it has a chunk of an unknown kind")),
        };
        if u64::from(whole) != u64::from(self.chunk_header) + content {
            return Err(refuse("a chunk has not the length that it says"));
        }
        let mut four = [0; 4];
        if matches!(kind, FILL | CRC32) {
            exactly(&mut self.reader, &mut four)?;
        }
        if kind == CRC32 {
            return if u32::from_le_bytes(four) == self.crc.clone().finalize() {
                Ok(())
            } else {
                Err(refuse("its checksum does not match"))
            };
        }
        self.left = self
            .left
            .checked_sub(raw)
            .ok_or_else(|| refuse("it has more blocks than it says"))?;
        self.now = match kind {
            RAW => Now::Raw(raw),
            _ => Now::Fill(raw, four, 0),
        };
        Ok(())
    }
}

/// As many as the buffer has room for.
fn shorter(room: usize, left: u64) -> usize {
    usize::try_from(left).map_or(room, |left| left.min(room))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn exactly(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<()> {
    reader
        .read_exact(buffer)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => refuse("it is cut off"),
            _ => error,
        })
}

fn skip(reader: &mut impl Read, length: u64) -> io::Result<()> {
    let mut rest = [0; LONGEST_HEADER as usize];
    exactly(reader, &mut rest[..shorter(LONGEST_HEADER.into(), length)])
}

fn refuse(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, PlainError::Sparse(why))
}
