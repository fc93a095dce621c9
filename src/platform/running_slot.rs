//! READS the slot that runs, for what an update can take from it. Writes nothing, holds nothing.
//!
//! The slot is mounted and may change while it is read, and what is read need not be one state of it: whoever uses
//! the bytes compares their digest. Reads go past the page cache where that is possible, so that an update does not
//! push out what the running system needs.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;

use super::slot_writer::{AlignedBuf, BUFFER_ALIGN};

/// Most bytes read at once.
const REQUEST: usize = 1 << 20;

/// The partitions of the running slot, one after the other.
pub struct RunningSlot {
    parts: Vec<Part>,
    bounce: AlignedBuf,
}

struct Part {
    file: File,
    /// Where it lies among all parts.
    range: Range<u64>,
    /// Offsets and lengths of reads are multiples of this.
    align: u64,
}

impl RunningSlot {
    /// Opens the block devices or files at `paths` for reading.
    ///
    /// # Errors
    /// When one cannot be opened or measured.
    pub fn open(paths: &[PathBuf]) -> io::Result<Self> {
        let mut start = 0;
        let mut parts = Vec::with_capacity(paths.len());
        for path in paths {
            let (mut file, align) = open(path)?;
            let end = start + file.seek(SeekFrom::End(0))?;
            parts.push(Part {
                file,
                range: start..end,
                align,
            });
            start = end;
        }
        Ok(Self {
            parts,
            bounce: AlignedBuf::new(REQUEST + 2 * BUFFER_ALIGN),
        })
    }

    /// Where each partition lies among all of them.
    pub fn parts(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.parts.iter().map(|part| part.range.clone())
    }

    /// Fills `buffer` with what lies at `offset`, within one partition.
    ///
    /// # Errors
    /// When it cannot be read, or not all of it is there.
    pub fn read(&mut self, mut offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let part = self.parts.iter().find(|part| part.range.contains(&offset));
        let part = part.ok_or(io::ErrorKind::UnexpectedEof)?;
        offset -= part.range.start;
        for piece in buffer.chunks_mut(REQUEST) {
            let start = offset - offset % part.align;
            let end = (offset + piece.len() as u64).next_multiple_of(part.align);
            let before = usize::try_from(offset - start).expect("less than a block");
            let length = usize::try_from(end - start).expect("not more than the buffer");
            let wanted = before + piece.len();
            read_up_to(&part.file, start, &mut self.bounce[..length], wanted)?;
            piece.copy_from_slice(&self.bounce[before..wanted]);
            offset += piece.len() as u64;
        }
        Ok(())
    }
}

/// Reads at least `wanted` bytes of `buffer`: a file may end inside its last block.
fn read_up_to(file: &File, offset: u64, buffer: &mut [u8], wanted: usize) -> io::Result<()> {
    let mut done = 0;
    loop {
        let count = file.read_at(&mut buffer[done..], offset + done as u64)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if done + count >= wanted {
            return Ok(());
        }
        // A direct read goes on at a block, so what came of a broken one is read again.
        let next = (done + count) / BUFFER_ALIGN * BUFFER_ALIGN;
        if next == done {
            return Err(io::Error::other("a read brought less than a block"));
        }
        done = next;
    }
}

/// Opens `path`, past the page cache if a first read shows that this works; says how reads must be aligned.
fn open(path: &Path) -> io::Result<(File, u64)> {
    let is_device = path.metadata()?.file_type().is_block_device();
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(path)
        .and_then(|file| {
            let count = file.read_at(&mut AlignedBuf::new(BUFFER_ALIGN), 0)?;
            // A device that ends inside such a block would need smaller ones.
            let whole = !is_device || (&file).seek(SeekFrom::End(0))? % BUFFER_ALIGN as u64 == 0;
            if count == BUFFER_ALIGN && whole {
                Ok(file)
            } else {
                Err(io::ErrorKind::Unsupported.into())
            }
        });
    match direct {
        Ok(file) => Ok((file, BUFFER_ALIGN as u64)),
        Err(_) => Ok((File::open(path)?, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_of_any_partition_is_read_also_at_an_odd_end() {
        let dir = tempfile::tempdir().unwrap();
        let contents: Vec<Vec<u8>> = [3 << 20, 10_001]
            .map(|length| (0..length).map(|n: u32| (n * 7 / 5) as u8).collect())
            .to_vec();
        let paths: Vec<_> = ["a", "b"].map(|name| dir.path().join(name)).to_vec();
        for (path, content) in paths.iter().zip(&contents) {
            std::fs::write(path, content).unwrap();
        }
        let mut slot = RunningSlot::open(&paths).unwrap();
        assert_eq!(
            slot.parts().collect::<Vec<_>>(),
            [0..3 << 20, 3 << 20..(3 << 20) + 10_001]
        );
        let all = contents.concat();
        for (offset, length) in [
            (0, 3 << 20),
            (1, 1),
            (4095, 2),
            (1_000_001, 2_000_003),
            (3 << 20, 10_001),
            ((3 << 20) + 10_000, 1),
        ] {
            let mut buffer = vec![0; length];
            slot.read(offset as u64, &mut buffer).unwrap();
            assert!(buffer == all[offset..offset + length], "{offset} {length}");
        }
        let end = all.len() as u64;
        assert!(slot.read(end - 1, &mut [0; 2]).is_err());
        assert!(slot.read(end, &mut [0]).is_err());
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert!(RunningSlot::open(&["/nonexistent".into()]).is_err());
    }
}
