//! Output files that appear complete or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::CommandError;

/// A file in the making, beside its destination so that one rename finishes it.
pub(super) struct Output {
    temp: NamedTempFile,
    path: PathBuf,
}

impl Output {
    pub(super) fn create(path: &Path) -> Result<Self, CommandError> {
        // The usual mode of a new file, less the umask: images and manifests are no secrets.
        let temp = tempfile::Builder::new()
            .prefix(".fwupdatectl-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder(path))
            .map_err(CommandError::file("create a file beside", path))?;
        Ok(Self {
            temp,
            path: path.to_owned(),
        })
    }

    pub(super) fn file(&mut self) -> &mut File {
        self.temp.as_file_mut()
    }

    /// Makes the file durable, then visible under its name.
    pub(super) fn finish(self) -> Result<(), CommandError> {
        let Self { temp, path } = self;
        let failed = CommandError::file("write", &path);
        let moved = temp
            .as_file()
            .sync_all()
            .and_then(|()| temp.persist(&path).map_err(|error| error.error))
            .and_then(|_| File::open(folder(&path))?.sync_all());
        moved.map_err(failed)
    }
}

/// A file without a name, gone when closed, on the file system where the output will be.
pub(super) fn scratch(path: &Path) -> Result<File, CommandError> {
    tempfile::tempfile_in(folder(path)).map_err(CommandError::file("create a file beside", path))
}

/// Gives a scratch file its length, where it ends in a hole.
pub(super) fn extend(scratch: &File, length: u64) -> io::Result<()> {
    scratch.set_len(length)
}

/// Creates a file that must not exist yet, with exactly this mode.
pub(super) fn create_new(path: &Path, mode: u32, text: &str) -> Result<(), CommandError> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
                .inspect_err(|_| {
                    // Half a key is worse than none.
                    let _ = fs::remove_file(path);
                })
        });
    written.map_err(CommandError::file("create", path))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
