//! `autoboot.txt` on its FAT partition: read, and changed in place.
//!
//! Guarantee: at every instant the medium holds the old or the new content, as long as a 512-byte sector is written
//! whole or not at all. The file is one sector and keeps its size, so that a change touches no allocation table; the
//! only other sector that changes is that of the folder, for the file's time. A rename would change the folder and
//! both tables in an order that nobody promises. Whatever is written is synced and read back from the medium.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::autoboot::LIMIT;

/// No file of ours is longer; more than this is read of none.
const MOST: u64 = 4096;

/// The content; `None` when there is no such file.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MOST).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(bytes))
}

/// Replaces the content. `Ok(false)` when the medium returns something else than was written.
pub(super) fn write(path: &Path, content: &[u8]) -> io::Result<bool> {
    // Not truncated: an empty file in between would boot whatever the firmware finds first.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if length < content.len() {
        grow(&file, length as u64, content.len())?;
    }
    // Blank lines instead of a shorter file: the end of the old one must not be read after the new one.
    let mut content = content.to_vec();
    content.resize(length.clamp(content.len(), LIMIT), b'\n');
    file.write_all_at(&content, 0)?;
    if length > LIMIT {
        file.set_len(LIMIT as u64)?;
    }
    file.sync_all()?;
    // A new file's name must last as well.
    if length == 0
        && let Some(folder) = path.parent()
    {
        File::open(folder)?.sync_all()?;
    }
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(read(path)? == Some(content))
}

/// Makes a shorter file as long as it will be, with the same meaning: first what it holds is written again, which
/// zeroes the rest of its sector, then blank lines are appended. So a power cut before, between and after size and
/// content leaves the old lines, followed by nothing, zeros or blank lines.
fn grow(file: &File, length: u64, to: usize) -> io::Result<()> {
    let mut content = Vec::new();
    file.take(MOST).read_to_end(&mut content)?;
    file.write_all_at(&content, 0)?;
    file.sync_all()?;
    let blank = vec![b'\n'; to - content.len().min(to)];
    file.write_all_at(&blank, length)?;
    file.sync_all()
}
