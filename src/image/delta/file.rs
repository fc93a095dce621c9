//! Head and table of a delta. Nothing is allocated before its length was compared with a limit, and the table is
//! checked as a whole, against the index of the new image, before any of it is used.

use std::{io::Read, ops::Range};

use super::{
    DELTA_VERSION, DeltaError, MAX_DICTIONARY, MAX_PATCH, MAX_REGIONS, MAX_TABLE, OldPayload,
    REGION_UNIT,
};
use crate::{
    image::{ChunkEntry, Header, limits::MAX_FRAME},
    update::digest::Sha256,
};

/// First bytes of the file.
const MAGIC: &[u8; 8] = b"FWUPDLTA";

/// Magic, version, size and digest of the old payload, digest of the new manifest, lengths of the table.
pub const HEAD_LEN: u64 = 8 + 4 + 8 + 32 + 32 + 4 + 4;

const UNIT: u64 = REGION_UNIT as u64;

/// A part of the old payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Its place, in bytes.
    pub offset: u64,
    /// Its length, in bytes.
    pub len: u32,
}

/// Which chunks of the new image a frame makes, from which regions of the old payload.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patch {
    /// Numbers of the chunks, ascending; their raw bytes lie one after the other in the frame.
    pub chunks: Vec<Range<usize>>,
    /// The dictionary is these, one after the other.
    pub regions: Vec<Region>,
    /// Place of the frame in the file.
    pub frame_offset: u64,
    /// Its length.
    pub frame_len: u32,
}

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaHead {
    /// The payload that regions are of.
    pub old: OldPayload,
    /// SHA-256 of the manifest of the image whose chunks are made.
    pub manifest: Sha256,
    table_len: u32,
    packed_len: u32,
}

impl DeltaHead {
    /// Reads the head.
    ///
    /// # Errors
    /// It is none, or one of another version, or its lengths are beyond the limits.
    pub fn read(reader: &mut impl Read) -> Result<Self, DeltaError> {
        let mut bytes = [0; HEAD_LEN as usize];
        reader
            .read_exact(&mut bytes)
            .map_err(|error| DeltaError::reading("its head", error))?;
        let mut rest = &bytes[..];
        if &take::<8>(&mut rest) != MAGIC {
            return Err(DeltaError::NotADelta);
        }
        let version = u32::from_le_bytes(take(&mut rest));
        if version != DELTA_VERSION {
            return Err(DeltaError::Version(version));
        }
        let old = OldPayload {
            size: u64::from_le_bytes(take(&mut rest)),
            sha256: Sha256(take(&mut rest)),
        };
        let manifest = Sha256(take(&mut rest));
        let table_len = u32::from_le_bytes(take(&mut rest));
        let packed_len = u32::from_le_bytes(take(&mut rest));
        limit("the table", table_len.into(), MAX_TABLE)?;
        limit("the compressed table", packed_len.into(), MAX_TABLE)?;
        Ok(Self {
            old,
            manifest,
            table_len,
            packed_len,
        })
    }

    /// Refuses a delta from another old payload or to another new image.
    ///
    /// # Errors
    /// [`DeltaError::OtherPair`].
    pub fn check_pair(&self, old: &OldPayload, header: &Header) -> Result<(), DeltaError> {
        let other = |what, found: Sha256, expected: Sha256| {
            Err(DeltaError::OtherPair {
                what,
                found: found.to_string(),
                expected: expected.to_string(),
            })
        };
        if self.old != *old {
            return other("old payload", self.old.sha256, old.sha256);
        }
        if self.manifest != header.digest() {
            return other("new image", self.manifest, header.digest());
        }
        Ok(())
    }

    /// Reads the table, which follows the head, and checks all of it against the index of the new image.
    ///
    /// # Errors
    /// It is cut off or damaged, or asks for more than the limits allow.
    pub fn read_table(self, reader: &mut impl Read, header: &Header) -> Result<Delta, DeltaError> {
        let mut packed = Vec::new();
        reader
            .take(self.packed_len.into())
            .read_to_end(&mut packed)
            .map_err(|error| DeltaError::reading("its table", error))?;
        if packed.len() < self.packed_len as usize {
            return Err(DeltaError::Truncated("its table"));
        }
        let table = zstd::bulk::decompress(&packed, self.table_len as usize)
            .map_err(|_| DeltaError::Malformed("it does not decompress"))?;
        if table.len() != self.table_len as usize {
            return Err(DeltaError::Malformed("it has another length"));
        }
        let delta = Delta { head: self, table };
        delta.check(header)?;
        Ok(delta)
    }

    /// Place of the first frame in the file.
    #[must_use]
    pub fn frames_offset(&self) -> u64 {
        HEAD_LEN + u64::from(self.packed_len)
    }
}

/// A delta whose table was checked. It is kept as it is in the file and read patch by patch, so that it takes
/// little memory.
#[derive(Debug, Clone)]
pub struct Delta {
    head: DeltaHead,
    table: Vec<u8>,
}

impl Delta {
    /// What its first bytes say.
    #[must_use]
    pub fn head(&self) -> &DeltaHead {
        &self.head
    }

    /// The patches, in the order of their chunks and of their frames.
    pub fn patches(&self) -> impl Iterator<Item = Patch> + '_ {
        // Every entry was read once by `check`.
        self.entries().map_while(Result::ok)
    }

    fn entries(&self) -> Entries<'_> {
        Entries {
            rest: &self.table,
            chunk: 0,
            unit: 0,
            frame: self.head.frames_offset(),
            old_size: self.head.old.size,
        }
    }

    fn check(&self, header: &Header) -> Result<(), DeltaError> {
        let mut chunks = header.chunks();
        // The number of the next chunk that `chunks` gives.
        let mut next = 0;
        for patch in self.entries() {
            let patch = patch?;
            let mut raw = 0;
            for run in &patch.chunks {
                for number in run.clone() {
                    let chunk = chunks.nth(number - next);
                    let chunk: ChunkEntry =
                        chunk.ok_or(DeltaError::Malformed("it names a chunk that is not there"))?;
                    next = number + 1;
                    raw += u64::from(chunk.raw_len);
                    limit("a patch", raw, MAX_PATCH)?;
                }
            }
        }
        Ok(())
    }
}

struct Entries<'a> {
    rest: &'a [u8],
    /// Behind the last chunk of the entry before.
    chunk: usize,
    /// Behind the last region of the entry before, in units.
    unit: u64,
    frame: u64,
    old_size: u64,
}

impl Iterator for Entries<'_> {
    type Item = Result<Patch, DeltaError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let entry = self.read();
        if entry.is_err() {
            self.rest = &[];
        }
        Some(entry)
    }
}

impl Entries<'_> {
    fn read(&mut self) -> Result<Patch, DeltaError> {
        let mut patch = Patch::default();
        let runs = self.number()?;
        if runs == 0 {
            return Err(DeltaError::Malformed("a patch makes nothing"));
        }
        // Each takes two bytes at least: no more are allocated than there can be.
        limit(
            "runs",
            runs,
            u32::try_from(self.rest.len()).unwrap_or(u32::MAX),
        )?;
        for _ in 0..runs {
            let (gap, count) = (self.number()?, self.number()?);
            let start = (self.chunk as u64).checked_add(gap);
            let end = start.and_then(|start| start.checked_add(count));
            let (Some(start), Some(end)) = (start, end.filter(|end| *end <= u64::from(u32::MAX)))
            else {
                return Err(DeltaError::Malformed("a chunk's number is too large"));
            };
            if count == 0 {
                return Err(DeltaError::Malformed("a run of chunks is empty"));
            }
            let range = start as usize..end as usize;
            self.chunk = range.end;
            patch.chunks.push(range);
        }
        let regions = self.number()?;
        limit("regions", regions, MAX_REGIONS as u32)?;
        let mut dictionary = 0;
        for _ in 0..regions {
            let region = self.region()?;
            dictionary += u64::from(region.len);
            limit("a dictionary", dictionary, MAX_DICTIONARY)?;
            patch.regions.push(region);
        }
        let len = self.number()?;
        limit("a frame", len, MAX_FRAME)?;
        patch.frame_offset = self.frame;
        patch.frame_len = len as u32;
        self.frame += len;
        Ok(patch)
    }

    fn region(&mut self) -> Result<Region, DeltaError> {
        let outside = DeltaError::Malformed("a region is not within the old payload");
        let (moved, units) = (self.number()?, self.number()?);
        let moved = (moved >> 1) as i64 ^ -((moved & 1) as i64);
        let Some(unit) = self.unit.checked_add_signed(moved) else {
            return Err(outside);
        };
        let offset = unit.checked_mul(UNIT);
        let Some(offset) = offset.filter(|offset| *offset < self.old_size) else {
            return Err(outside);
        };
        let len = units.saturating_mul(UNIT).min(self.old_size - offset);
        limit("a region", len, MAX_DICTIONARY)?;
        if units == 0 || (units - 1).saturating_mul(UNIT) >= self.old_size - offset {
            return Err(outside);
        }
        self.unit = unit + units;
        Ok(Region {
            offset,
            len: len as u32,
        })
    }

    /// An unsigned LEB128 number.
    fn number(&mut self) -> Result<u64, DeltaError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let Some((byte, rest)) = self.rest.split_first() else {
                return Err(DeltaError::Malformed("it ends in the middle of an entry"));
            };
            self.rest = rest;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DeltaError::Malformed("a number is too long"))
    }
}

fn limit(what: &'static str, size: u64, limit: u32) -> Result<(), DeltaError> {
    if size > u64::from(limit) {
        return Err(DeltaError::TooLarge {
            what,
            size,
            limit: limit.into(),
        });
    }
    Ok(())
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, more) = rest
        .split_first_chunk::<N>()
        .expect("the head has a fixed length");
    *rest = more;
    *first
}

/// Puts a table together, patch by patch.
#[derive(Debug, Default)]
pub(super) struct TableBuilder {
    bytes: Vec<u8>,
    chunk: usize,
    unit: u64,
    pub(super) patches: u64,
    pub(super) frames_len: u64,
}

impl TableBuilder {
    /// Adds a patch; its place in the file follows from those before.
    pub(super) fn push(&mut self, chunks: &[Range<usize>], regions: &[Region], frame_len: u32) {
        self.number(chunks.len() as u64);
        for run in chunks {
            self.number((run.start - self.chunk) as u64);
            self.number(run.len() as u64);
            self.chunk = run.end;
        }
        self.number(regions.len() as u64);
        for region in regions {
            let (unit, units) = (region.offset / UNIT, u64::from(region.len).div_ceil(UNIT));
            let moved = unit.wrapping_sub(self.unit) as i64;
            self.number((moved << 1 ^ moved >> 63) as u64);
            self.number(units);
            self.unit = unit + units;
        }
        self.number(frame_len.into());
        self.patches += 1;
        self.frames_len += u64::from(frame_len);
    }

    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Head and compressed table.
    pub(super) fn finish(&self, old: &OldPayload, manifest: Sha256) -> Result<Vec<u8>, DeltaError> {
        limit("the table", self.bytes.len() as u64, MAX_TABLE)?;
        let mut compressor = zstd::bulk::Compressor::new(19).map_err(DeltaError::Read)?;
        compressor
            .include_checksum(true)
            .map_err(DeltaError::Read)?;
        let packed = compressor.compress(&self.bytes).map_err(DeltaError::Read)?;
        let mut head = Vec::new();
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&DELTA_VERSION.to_le_bytes());
        head.extend_from_slice(&old.size.to_le_bytes());
        head.extend_from_slice(&old.sha256.0);
        head.extend_from_slice(&manifest.0);
        head.extend_from_slice(&(self.bytes.len() as u32).to_le_bytes());
        head.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        head.extend_from_slice(&packed);
        Ok(head)
    }
}
