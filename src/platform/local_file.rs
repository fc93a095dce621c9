//! An image in a file of this device, such as one on a USB stick: opened by whoever asks for the update and handed
//! over, or by its path.
//!
//! What was handed over is read through the descriptor, so that neither the daemon's sandbox nor a file that takes its
//! place hides it. It ends with the daemon's process: a daemon that starts again opens the path, and may find another
//! file, or none. Nothing is believed of a file that is not believed of a server's: the same checks are made.
//!
//! Guarantee: only regular files are read, so that no device, pipe or socket can hold the daemon up.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl, open},
    sys::stat::Mode,
};

use crate::{
    image::DetachedSignatures,
    update::failure::{Class, Coded},
};

/// Why a file cannot be installed from.
#[derive(Debug, thiserror::Error)]
pub enum LocalFileError {
    /// It is not there, or not for us.
    #[error(
        "{} cannot be opened by fwupdated; an update from a file goes on after a restart only if the file still has its \
         name and the daemon can see it (not below /tmp): start it again with `fwupdatectl install`", path.display()
    )]
    Open {
        /// The path.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// It is a folder, a device, a pipe.
    #[error("{} is no regular file that can be read; name the file of the image", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// Its medium fails, or was pulled out.
    #[error("{} cannot be read at byte {at}; is its medium still there?", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Where.
        at: u64,
        /// The system's words.
        source: io::Error,
    },
}

impl Coded for LocalFileError {
    fn code(&self) -> &'static str {
        match self {
            Self::Open { .. } => "local-file-open",
            Self::Kind { .. } => "local-file-kind",
            Self::Read { .. } => "local-file-read",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// An open file, and the detached signature beside it.
#[derive(Debug)]
pub struct LocalFile {
    path: PathBuf,
    file: File,
    len: u64,
    signature: Option<Vec<u8>>,
}

impl LocalFile {
    /// Opens the file at `path`, and reads its signature's if there is one of at most `limit` bytes. Blocks.
    ///
    /// # Errors
    /// [`LocalFileError`].
    pub fn open(path: &Path, limit: usize) -> Result<Self, LocalFileError> {
        // A pipe that nobody writes to would keep the open from returning.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let open = |path: &Path| {
            let opened = open(path, flags, Mode::empty()).map_err(io::Error::from);
            opened.map_err(|source| LocalFileError::Open {
                path: path.to_owned(),
                source,
            })
        };
        let beside = DetachedSignatures::beside(path);
        let signature = match open(&beside).and_then(|fd| Self::regular(&beside, fd)) {
            Ok((file, _)) => {
                let mut signature = Vec::new();
                let read = file.take(limit as u64 + 1).read_to_end(&mut signature);
                read.map_err(|source| LocalFileError::Read {
                    path: beside,
                    at: 0,
                    source,
                })?;
                signature
            }
            Err(_) => Vec::new(),
        };
        Self::handed_over(path, open(path)?, signature)
    }

    /// The file that somebody opened at `path`, with the content of its signature's file, which is empty when there is
    /// none.
    ///
    /// # Errors
    /// [`LocalFileError::Kind`].
    pub fn handed_over(
        path: &Path,
        fd: OwnedFd,
        signature: Vec<u8>,
    ) -> Result<Self, LocalFileError> {
        let (file, len) = Self::regular(path, fd)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            len,
            signature: (!signature.is_empty()).then_some(signature),
        })
    }

    fn regular(path: &Path, fd: OwnedFd) -> Result<(File, u64), LocalFileError> {
        let mode = fcntl(&fd, FcntlArg::F_GETFL).map_or(OFlag::O_WRONLY, OFlag::from_bits_retain);
        let readable = !mode.intersects(OFlag::O_WRONLY | OFlag::O_PATH);
        let file = File::from(fd);
        match file.metadata() {
            Ok(meta) if meta.is_file() && readable => Ok((file, meta.len())),
            _ => Err(LocalFileError::Kind {
                path: path.to_owned(),
            }),
        }
    }

    /// Its length when it was opened, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The content of the detached signature beside it, if there is one.
    #[must_use]
    pub fn signature(&self) -> Option<&[u8]> {
        self.signature.as_deref()
    }

    /// Reads what is at byte `at`, as far as it comes at once; nothing at the end of the file. Blocks.
    ///
    /// # Errors
    /// [`LocalFileError::Read`].
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<usize, LocalFileError> {
        self.file
            .read_at(buffer, at)
            .map_err(|source| LocalFileError::Read {
                path: self.path.clone(),
                at,
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_anywhere_with_the_signature_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.img");
        fs::write(&path, b"0123456789").unwrap();
        assert!(LocalFile::open(&path, 10).unwrap().signature().is_none());
        fs::write(dir.path().join("x.img.minisig"), b"signed").unwrap();
        let file = LocalFile::open(&path, 10).unwrap();
        assert_eq!((file.len(), file.signature()), (10, Some(&b"signed"[..])));
        let mut buffer = [0; 4];
        assert_eq!(file.read_at(&mut buffer, 8).unwrap(), 2);
        assert_eq!(&buffer[..2], b"89");
        assert_eq!(file.read_at(&mut buffer, 10).unwrap(), 0);
    }

    #[test]
    fn what_is_no_readable_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let code = |path: &Path| LocalFile::open(path, 10).unwrap_err().code();
        assert_eq!(code(&path), "local-file-kind");
        assert_eq!(code(dir.path()), "local-file-kind");
        assert_eq!(code(Path::new("/dev/zero")), "local-file-kind");
        assert_eq!(code(&dir.path().join("absent")), "local-file-open");
        let write_only = File::create(dir.path().join("w")).unwrap();
        let handed = LocalFile::handed_over(&path, write_only.into(), Vec::new());
        assert_eq!(handed.unwrap_err().code(), "local-file-kind");
    }
}
