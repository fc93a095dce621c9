//! What file system a partition holds, by its magic number.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Magic numbers: name, offset, bytes, whether it can be written to. Sources: the kernel's
/// `include/uapi/linux/magic.h` and the file systems' headers.
const KNOWN: [(&str, usize, &[u8], bool); 8] = [
    ("ext4", 0x438, &[0x53, 0xef], true),
    ("btrfs", 0x1_0040, b"_BHRfS_M", true),
    ("xfs", 0, b"XFSB", true),
    ("f2fs", 0x400, &[0x10, 0x20, 0xf5, 0xf2], true),
    ("squashfs", 0, b"hsqs", false),
    ("erofs", 0x400, &[0xe2, 0xe1, 0xf5, 0xe0], false),
    ("cramfs", 0, &[0x45, 0x3d, 0xcd, 0x28], false),
    ("romfs", 0, b"-rom1fs-", false),
];

/// Enough for each of them.
const HEAD: usize = 0x1_0048;

/// What a partition holds. The names are those that mount(8) takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// One that can be written to.
    Writable(&'static str),
    /// One that is made once and only read.
    ReadOnly(&'static str),
    /// None of those.
    Unknown,
}

impl FileSystem {
    /// What the device or file at `path` holds.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn detect(path: &Path) -> io::Result<Self> {
        let mut head = Vec::with_capacity(HEAD);
        File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
        Ok(Self::of(&head))
    }

    fn of(head: &[u8]) -> Self {
        let fits =
            |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
        let found = KNOWN
            .iter()
            .find(|(_, offset, magic, _)| fits(*offset, magic));
        match found {
            Some((name, _, _, true)) => Self::Writable(name),
            Some((name, _, _, false)) => Self::ReadOnly(name),
            None => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_system_is_known_by_its_magic_and_nothing_else_is() {
        for (name, offset, magic, writable) in KNOWN {
            let mut head = vec![0; HEAD];
            head[offset..offset + magic.len()].copy_from_slice(magic);
            let expected = match writable {
                true => FileSystem::Writable(name),
                false => FileSystem::ReadOnly(name),
            };
            assert_eq!(FileSystem::of(&head), expected);
            assert_eq!(FileSystem::of(&head[..offset]), FileSystem::Unknown);
        }
        assert_eq!(FileSystem::of(&[]), FileSystem::Unknown);
    }
}
