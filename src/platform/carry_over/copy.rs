//! Copies trees from the running system into a mounted root: contents, owners, modes, times of files, extended
//! attributes and access lists, and links as links. Hard links become files of their own.
//!
//! The source is walked by descriptors and no link is followed, so that a user who changes the tree meanwhile cannot
//! have another file copied. In the new root, a folder that is there stays, with what is in it; a file or link is
//! replaced.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use ring::digest::{Context, SHA256};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps,
        UTIME_OMIT, Uid, XattrFlags, chownat, fchmod, fchown, fgetxattr, fgetxattr_query,
        flistxattr, flistxattr_query, fsetxattr, fstat, futimens, mkdirat, openat, openat2,
        readlinkat, statat, symlinkat, unlinkat,
    },
    io::Errno,
};

use super::{Carried, CarryOverError};

/// Bytes copied at once.
const PIECE: usize = 128 << 10;

/// Attributes that are carried over; others are a file system's own.
const ATTRIBUTES: [&str; 4] = ["user.", "trusted.", "security.", "system.posix_acl_"];

/// A copy under way.
pub(super) struct Copy<'a> {
    from: &'a Path,
    root: &'a OwnedFd,
    carried: Carried,
    files: Vec<CopiedFile>,
}

/// A file to read back.
pub(super) struct CopiedFile {
    path: PathBuf,
    sha256: [u8; 32],
}

impl<'a> Copy<'a> {
    /// From the system at `from` into the one at `root`.
    pub(super) fn new(from: &'a Path, root: &'a OwnedFd) -> Self {
        Self {
            from,
            root,
            carried: Carried::default(),
            files: Vec::new(),
        }
    }

    /// What was copied, and the files to be read back.
    pub(super) fn finish(self) -> (Carried, Vec<CopiedFile>) {
        (self.carried, self.files)
    }

    /// Copies what is at `path`, relative to both roots. Folders above it that are missing are made as they are
    /// in the running system.
    pub(super) fn take(&mut self, path: &Path) -> Result<(), CarryOverError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut above: Vec<_> = folder
            .ancestors()
            .filter(|it| !it.as_os_str().is_empty())
            .collect();
        above.reverse();
        for folder in above {
            match self.folder(folder) {
                Ok(_) => {}
                Err(Errno::NOENT) => {
                    let source = self.open_source(&CWD, &self.from.join(folder), folder)?;
                    self.make_folder(folder, &source)?;
                }
                Err(errno) => return Err(cannot_write(folder)(errno)),
            }
        }
        let source = self.open_source(&CWD, &self.from.join(folder), folder)?;
        self.entry(&source, path, None)
    }

    /// The entry of the folder `source` that `path` ends in. What is mounted on a folder within the tree, so that it
    /// lies on another `device` than that, is not part of it.
    fn entry(
        &mut self,
        source: &OwnedFd,
        path: &Path,
        device: Option<u64>,
    ) -> Result<(), CarryOverError> {
        let name = path.file_name().unwrap_or_default();
        let stat = statat(source, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(self.cannot_read(path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let source = self.open_source(source, Path::new(name), path)?;
                self.make_folder(path, &source)?;
                #[allow(clippy::useless_conversion, reason = "32 bit on some of our targets")]
                let here = u64::from(stat.st_dev);
                if device.is_none_or(|device| device == here) {
                    for child in self.children(&source, path)? {
                        self.entry(&source, &path.join(child), Some(here))?;
                    }
                }
            }
            FileType::RegularFile => self.file(source, name, path)?,
            FileType::Symlink => self.link(source, name, path, &stat)?,
            _ => {
                self.carried.left_out.push(Path::new("/").join(path));
                return Ok(());
            }
        }
        self.carried.entries += 1;
        Ok(())
    }

    fn children(&self, folder: &OwnedFd, path: &Path) -> Result<Vec<PathBuf>, CarryOverError> {
        let mut names = Vec::new();
        for entry in Dir::read_from(folder).map_err(self.cannot_read(path))? {
            let entry = entry.map_err(self.cannot_read(path))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(PathBuf::from(OsStr::from_bytes(name)));
            }
        }
        names.sort();
        Ok(names)
    }

    fn file(&mut self, source: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), CarryOverError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = openat(source, name, flags, Mode::empty());
        let mut from = File::from(opened.map_err(self.cannot_read(path))?);
        let folder = self.folder_of(path)?;
        remove(&folder, name).map_err(cannot_write(path))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = openat(&folder, name, flags, Mode::RUSR | Mode::WUSR);
        let mut to = File::from(made.map_err(cannot_write(path))?);
        let mut digest = Context::new(&SHA256);
        let mut piece = vec![0; PIECE];
        loop {
            let count = from
                .read(&mut piece)
                .map_err(|error| self.unreadable(path, error))?;
            if count == 0 {
                break;
            }
            digest.update(&piece[..count]);
            to.write_all(&piece[..count])
                .map_err(|error| unwritable(path, error))?;
            self.carried.bytes += count as u64;
        }
        let stat = self.attributes(&from, &to, path)?;
        let modified = Timespec {
            tv_sec: stat.st_mtime as _,
            tv_nsec: stat.st_mtime_nsec as _,
        };
        let untouched = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        };
        let times = Timestamps {
            last_access: untouched,
            last_modification: modified,
        };
        futimens(&to, &times).map_err(cannot_write(path))?;
        let sha256 = digest.finish().as_ref().try_into().expect("32 bytes");
        self.files.push(CopiedFile {
            path: path.to_owned(),
            sha256,
        });
        Ok(())
    }

    fn link(
        &self,
        source: &OwnedFd,
        name: &OsStr,
        path: &Path,
        stat: &Stat,
    ) -> Result<(), CarryOverError> {
        let leads_to = readlinkat(source, name, Vec::new()).map_err(self.cannot_read(path))?;
        let folder = self.folder_of(path)?;
        let (uid, gid) = owner(stat);
        remove(&folder, name)
            .and_then(|()| symlinkat(&leads_to, &folder, name))
            .and_then(|()| chownat(&folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
            .map_err(cannot_write(path))
    }

    /// Makes sure that there is a folder `path`, as `source` is.
    fn make_folder(&self, path: &Path, source: &OwnedFd) -> Result<(), CarryOverError> {
        let folder = self.folder_of(path)?;
        match mkdirat(&folder, path.file_name().unwrap_or_default(), Mode::RWXU) {
            // One that is there, or a link to one.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(cannot_write(path)(errno)),
        }
        let made = self.folder(path).map_err(cannot_write(path))?;
        self.attributes(source, &made, path).map(drop)
    }

    fn folder_of(&self, path: &Path) -> Result<OwnedFd, CarryOverError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        self.folder(folder).map_err(cannot_write(path))
    }

    /// A folder of the new system, wherever links within it lead.
    fn folder(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        in_root(self.root, path, flags)
    }

    /// A folder of the running system; `path` is what it is called in an error.
    fn open_source(
        &self,
        at: &impl AsFd,
        name: &Path,
        path: &Path,
    ) -> Result<OwnedFd, CarryOverError> {
        // The last name is never followed: links are copied as such before one comes here.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let flags = if name.is_absolute() {
            flags
        } else {
            flags | OFlags::NOFOLLOW
        };
        openat(at, name, flags, Mode::empty()).map_err(self.cannot_read(path))
    }

    /// Owner, mode, extended attributes and access lists.
    fn attributes(
        &self,
        from: &impl AsFd,
        to: &impl AsFd,
        path: &Path,
    ) -> Result<Stat, CarryOverError> {
        let stat = fstat(from).map_err(self.cannot_read(path))?;
        let (uid, gid) = owner(&stat);
        // In this order: a new owner takes away what a mode may have.
        fchown(to, uid, gid).map_err(cannot_write(path))?;
        fchmod(to, Mode::from_raw_mode(stat.st_mode)).map_err(cannot_write(path))?;
        for name in self.attribute_names(from, path)? {
            let mut value = vec![0; fgetxattr_query(from, &*name).map_err(self.cannot_read(path))?];
            let length = fgetxattr(from, &*name, &mut value[..]).map_err(self.cannot_read(path))?;
            fsetxattr(to, &*name, &value[..length], XattrFlags::empty())
                .map_err(cannot_write(path))?;
        }
        Ok(stat)
    }

    fn attribute_names(&self, of: &impl AsFd, path: &Path) -> Result<Vec<Vec<u8>>, CarryOverError> {
        let listed = || {
            let mut names = vec![0; flistxattr_query(of)?];
            let length = flistxattr(of, &mut names[..])?;
            names.truncate(length);
            Ok(names)
        };
        let names = match listed() {
            Ok(names) => names,
            Err(Errno::OPNOTSUPP) => Vec::new(),
            Err(errno) => return Err(self.cannot_read(path)(errno)),
        };
        let ours = |name: &&[u8]| {
            ATTRIBUTES
                .iter()
                .any(|kind| name.starts_with(kind.as_bytes()))
        };
        Ok(names
            .split(|byte| *byte == 0)
            .filter(ours)
            .map(<[u8]>::to_vec)
            .collect())
    }

    fn cannot_read(&self, path: &Path) -> impl Fn(Errno) -> CarryOverError {
        let path = self.from.join(path);
        move |errno| CarryOverError::Read {
            path: path.clone(),
            source: errno.into(),
        }
    }

    fn unreadable(&self, path: &Path, source: io::Error) -> CarryOverError {
        let path = self.from.join(path);
        CarryOverError::Read { path, source }
    }
}

impl CopiedFile {
    /// Compares what is in the file system at `root`.
    pub(super) fn check(&self, root: &OwnedFd) -> Result<(), CarryOverError> {
        let path = Path::new("/").join(&self.path);
        let mut digest = Context::new(&SHA256);
        let read = || {
            let opened = in_root(
                root,
                &self.path,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            )?;
            let mut file = File::from(opened);
            let mut piece = vec![0; PIECE];
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(()),
                    count => digest.update(&piece[..count]),
                }
            }
        };
        let read: io::Result<()> = { read }();
        if read.is_err() || digest.finish().as_ref() != self.sha256 {
            return Err(CarryOverError::ReadBack(path));
        }
        Ok(())
    }
}

fn in_root(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags, Mode::empty(), within)
}

/// Removes a file or link, if there is one. A folder stays, and is in the way.
fn remove(folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

fn cannot_write(path: &Path) -> impl Fn(Errno) -> CarryOverError {
    let path = path.to_owned();
    move |errno| unwritable(&path, errno.into())
}

fn unwritable(path: &Path, source: io::Error) -> CarryOverError {
    let path = Path::new("/").join(path);
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CarryOverError::Full(path),
        _ => CarryOverError::Write { path, source },
    }
}
