//! State that survives a power cut: JSON documents replaced as a whole, an append-only history, and the
//! lock that keeps a second daemon out. And files for others to read, that are whole at every instant.
//!
//! [`StateFile::save`] writes a new file beside the old one, syncs it, renames it over the old one, and
//! syncs the folder: at every instant the old or the new document is there, whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Serialize, de::DeserializeOwned};

use super::busy::patiently;
use crate::update::failure::{Class, Coded};

/// Largest document that is read, bytes. Ours have a few KiB.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Lines that the history keeps.
const HISTORY_LINES: usize = 200;

/// Why state could not be kept or found.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system is full.
    #[error("no space left to save {}; free some on that file system", .file.display())]
    Full {
        /// The file.
        file: PathBuf,
    },
    /// It cannot be written.
    #[error("{} cannot be saved; check the state directory", .file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is written, but its folder cannot be synced.
    #[error(
        "the new {} is in place, but its folder cannot be synced, so that a power cut may bring the one before back; \
         check the medium (`dmesg`)", .file.display()
    )]
    NotSynced {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("{} cannot be read; check the state directory", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a document of ours. The parser's own words would quote it, and it holds secrets.
    #[error("{} is damaged (line {line}, column {column})", .file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where, from 1; 0 when that is not known.
        line: usize,
        /// Likewise.
        column: usize,
    },
    /// Another daemon runs.
    #[error("another fwupdated uses {}; stop it first (systemctl stop fwupdated)", .directory.display())]
    Locked {
        /// The state directory.
        directory: PathBuf,
    },
}

impl StateError {
    /// True when the file is there and readable but not understood.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. })
    }

    fn write(file: &Path, source: io::Error) -> Self {
        let file = file.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { file },
            _ => Self::Write { file, source },
        }
    }
}

impl Coded for StateError {
    fn code(&self) -> &'static str {
        match self {
            Self::Full { .. } => "state-disk-full",
            Self::Write { .. } => "state-write-failed",
            Self::NotSynced { .. } => "state-not-synced",
            Self::Read { .. } => "state-read-failed",
            Self::Corrupt { .. } => "state-corrupt",
            Self::Locked { .. } => "state-locked",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Full { .. } | Self::Write { .. } | Self::NotSynced { .. } | Self::Read { .. } => {
                Class::Wait
            }
            Self::Corrupt { .. } | Self::Locked { .. } => Class::Final,
        }
    }
}

/// One JSON document.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
}

impl StateFile {
    /// The document at `path`. Touches nothing.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The document; `None` when there is none yet.
    ///
    /// # Errors
    /// `state-read-failed`, `state-corrupt`.
    pub fn load<T: DeserializeOwned>(&self) -> Result<Option<T>, StateError> {
        let read = |source| StateError::Read {
            file: self.path.clone(),
            source,
        };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(read(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_DOCUMENT)
            .read_to_end(&mut text)
            .map_err(read)?;
        let document: Result<T, serde_json::Error> = serde_json::from_slice(&text);
        document.map(Some).map_err(|error| StateError::Corrupt {
            file: self.path.clone(),
            line: error.line(),
            column: error.column(),
        })
    }

    /// Makes `document` durable in place of the one before.
    ///
    /// # Errors
    /// `state-disk-full`, `state-write-failed`: the one before then still stands. `state-not-synced`: the new one
    /// stands, but may be lost in a power cut.
    pub fn save<T: Serialize>(&self, document: &T) -> Result<(), StateError> {
        let failed = |source| StateError::write(&self.path, source);
        let mut text = serde_json::to_vec_pretty(document).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        replace(&self.path, &text)
    }

    /// Tries whether a document could be saved now, without touching the one that stands.
    ///
    /// # Errors
    /// As [`StateFile::save`].
    pub fn check_writable(&self) -> Result<(), StateError> {
        let probe = self.path.with_extension("probe");
        // As much as a document may need while an update runs.
        let tried = write_synced(&probe, &[b' '; 16 << 10]);
        let removed = match fs::remove_file(&probe) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        tried
            .and(removed)
            .map_err(|source| StateError::write(&self.path, source))
    }

    /// Moves the document aside, as `NAME.suffix`, over an earlier one of that name.
    ///
    /// # Errors
    /// `state-write-failed`.
    pub fn move_aside(&self, suffix: &str) -> Result<PathBuf, StateError> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{suffix}"));
        let aside = self.path.with_file_name(name);
        fs::rename(&self.path, &aside).map_err(|source| StateError::write(&self.path, source))?;
        Ok(aside)
    }
}

/// Writes aside, syncs, renames, syncs the new name.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    replace_and(sync_name, path, bytes)
}

fn replace_and(
    sync_name: impl FnOnce(&Path) -> io::Result<()>,
    path: &Path,
    bytes: &[u8],
) -> Result<(), StateError> {
    rename_over(path, |aside| write_synced(aside, bytes))
        .map_err(|source| StateError::write(path, source))?;
    sync_name(path).map_err(|source| StateError::NotSynced {
        file: path.to_owned(),
        source,
    })
}

/// Makes `bytes` the content of `path`, durably, with exactly this mode.
///
/// # Errors
/// The file cannot be written; the one before then still stands.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    rename_over(path, |aside| write_with(aside, bytes, mode)?.sync_all())?;
    sync_name(path)
}

/// The same for what is written again and again and may be lost with the power: it costs the medium nothing by itself.
///
/// # Errors
/// As [`replace_file`].
pub fn replace_unsynced(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    rename_over(path, |aside| write_with(aside, bytes, mode).map(drop))
}

/// Has a file written beside `path` and puts it in its place. A failure leaves no litter that takes up space.
fn rename_over(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let aside = path.with_extension("new");
    let renamed = write(&aside).and_then(|()| fs::rename(&aside, path));
    if renamed.is_err() {
        // It may not exist; the error that matters is the first one.
        let _ = fs::remove_file(&aside);
    }
    renamed
}

/// Makes durable that `path` is the file that was renamed to it. On most file systems the folder says so. On FAT the
/// name that was there before keeps its entry, and where the new content starts is written with the file: without the
/// first sync a power cut seconds later brings the old content back, on clusters that are free already.
fn sync_name(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()?;
    sync_folder(path)
}

/// Syncs the folder that `path` is in.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = create(path, 0o600)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn create(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
}

fn write_with(path: &Path, bytes: &[u8], mode: u32) -> io::Result<File> {
    let mut file = create(path, mode)?;
    // Whatever the umask, and before anything is in it.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    Ok(file)
}

/// Whether `directory` is part of the running root file system, which an update replaces.
///
/// # Errors
/// It cannot be looked at.
pub fn is_on_root(directory: &Path) -> io::Result<bool> {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    Ok(device(directory)? == device(Path::new("/"))?)
}

/// Lines of JSON, the newest last; bounded.
#[derive(Debug, Clone)]
pub struct History {
    path: PathBuf,
}

impl History {
    /// The history at `path`. Touches nothing.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Adds a line; the oldest go when there are too many.
    ///
    /// # Errors
    /// `state-disk-full`, `state-write-failed`, `state-read-failed`.
    pub fn append<T: Serialize>(&self, entry: &T) -> Result<(), StateError> {
        let failed = |source| StateError::write(&self.path, source);
        let line = serde_json::to_string(entry).map_err(|error| failed(error.into()))?;
        let mut lines = self.lines()?;
        if lines.len() >= HISTORY_LINES || self.is_torn()? {
            lines.push(line);
            let keep = lines.split_off(lines.len().saturating_sub(HISTORY_LINES));
            let text = keep.join("\n") + "\n";
            return replace(&self.path, text.as_bytes());
        }
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(failed)?;
        file.write_all(format!("{line}\n").as_bytes())
            .map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    /// The whole lines that are JSON, oldest first.
    ///
    /// # Errors
    /// `state-read-failed`.
    pub fn lines(&self) -> Result<Vec<String>, StateError> {
        let read = |source| StateError::Read {
            file: self.path.clone(),
            source,
        };
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(read(error)),
        };
        let mut lines = Vec::new();
        for line in BufReader::new(file.take(MAX_DOCUMENT)).split(b'\n') {
            let line = line.map_err(read)?;
            // A line torn by a power cut is not JSON.
            if let Ok(text) = String::from_utf8(line)
                && serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok()
            {
                lines.push(text);
            }
        }
        Ok(lines)
    }

    /// The last `count` entries, newest first; what is understood of them.
    ///
    /// # Errors
    /// `state-read-failed`.
    pub fn newest<T: DeserializeOwned>(&self, count: usize) -> Result<Vec<T>, StateError> {
        let lines = self.lines()?;
        let entries = lines.iter().rev().map(|line| serde_json::from_str(line));
        Ok(entries.filter_map(Result::ok).take(count).collect())
    }

    fn is_torn(&self) -> Result<bool, StateError> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(bytes.last().is_some_and(|last| *last != b'\n')),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StateError::Read {
                file: self.path.clone(),
                source,
            }),
        }
    }
}

/// Held while a daemon uses a state directory; given back when dropped or when the process ends, however.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: Flock<File>,
}

impl DirectoryLock {
    /// Makes the directory if need be (0700) and locks it.
    ///
    /// # Errors
    /// `state-locked`, `state-write-failed`.
    pub fn acquire(directory: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::write(directory, source);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let path = directory.join("lock");
        let lock = || -> io::Result<_> {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
            locked.map_err(|(_, errno)| errno.into())
        };
        // A program that a daemon was about to start when it was killed holds its lock for a moment longer.
        let is_locked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        match patiently(lock, is_locked) {
            Ok(lock) => Ok(Self { _file: lock }),
            Err(error) if is_locked(&error) => Err(StateError::Locked {
                directory: directory.to_owned(),
            }),
            Err(error) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &tempfile::TempDir) -> StateFile {
        StateFile::new(dir.path().join("state.json"))
    }

    #[test]
    fn a_document_replaces_the_one_before_and_only_its_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        assert_eq!(file.load::<Vec<u32>>().unwrap(), None);
        file.save(&vec![1, 2]).unwrap();
        file.save(&vec![3]).unwrap();
        assert_eq!(file.load::<Vec<u32>>().unwrap(), Some(vec![3]));
        assert_eq!(
            fs::metadata(file.path()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no litter");
    }

    #[test]
    fn a_damaged_document_is_told_apart_and_can_be_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        fs::write(file.path(), "{\"half\":").unwrap();
        let error = file.load::<serde_json::Value>().unwrap_err();
        assert!(error.is_corrupt());
        let aside = file.move_aside("damaged").unwrap();
        assert!(aside.ends_with("state.json.damaged"));
        assert_eq!(file.load::<serde_json::Value>().unwrap(), None);
    }

    #[test]
    fn a_leftover_of_an_interrupted_save_is_ignored_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        file.save(&1).unwrap();
        fs::write(dir.path().join("state.new"), "torn").unwrap();
        assert_eq!(file.load::<u32>().unwrap(), Some(1));
        file.save(&2).unwrap();
        assert_eq!(file.load::<u32>().unwrap(), Some(2));
    }

    #[test]
    fn a_failed_sync_of_the_folder_says_that_the_new_document_stands() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        file.save(&1).unwrap();
        let fails = |_: &Path| Err(io::Error::from_raw_os_error(5));
        let error = replace_and(fails, file.path(), b"2").unwrap_err();
        assert_eq!(error.code(), "state-not-synced");
        assert!(error.to_string().contains("is in place"), "{error}");
        assert_eq!(file.load::<u32>().unwrap(), Some(2));
        // A failure before that leaves the old one, and says so by its code.
        fs::create_dir(dir.path().join("state.new")).unwrap();
        let error = replace_and(|_| panic!("too early"), file.path(), b"3").unwrap_err();
        assert_eq!(error.code(), "state-write-failed");
        assert_eq!(file.load::<u32>().unwrap(), Some(2));
    }

    /// Past the test runner's capture: a skipped test must not look like one that passed.
    fn skipped(why: &str) {
        let _ = writeln!(std::io::stderr(), "SKIPPED: full file system: {why}");
    }

    #[test]
    fn on_a_full_file_system_the_old_document_stands() {
        if !nix::unistd::geteuid().is_root() {
            skipped("only root can mount a small tmpfs");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(dir.path())
            .status()
            .unwrap();
        if !mounted.success() {
            skipped("this machine does not let us mount a tmpfs");
            return;
        }
        let file = file(&dir);
        file.save(&1).unwrap();
        file.check_writable().unwrap();
        fs::write(dir.path().join("ballast"), vec![0; 1 << 20]).unwrap_err();
        let saved = file.save(&vec![7_u64; 4000]);
        let checked = file.check_writable();
        let loaded = file.load::<u32>();
        let unmounted = std::process::Command::new("umount")
            .arg(dir.path())
            .status()
            .unwrap();
        assert!(unmounted.success());
        assert_eq!(saved.unwrap_err().code(), "state-disk-full");
        assert_eq!(checked.unwrap_err().code(), "state-disk-full");
        assert_eq!(loaded.unwrap(), Some(1));
    }

    #[test]
    fn the_history_is_bounded_and_survives_a_torn_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::new(dir.path().join("history.jsonl"));
        for number in 0..HISTORY_LINES + 5 {
            history.append(&number).unwrap();
        }
        let lines = history.lines().unwrap();
        assert_eq!(lines.len(), HISTORY_LINES);
        assert_eq!(lines.last().unwrap(), &(HISTORY_LINES + 4).to_string());
        let newest = [HISTORY_LINES + 4, HISTORY_LINES + 3];
        assert_eq!(history.newest::<usize>(2).unwrap(), newest);
        let mut torn = fs::read(dir.path().join("history.jsonl")).unwrap();
        torn.extend_from_slice(b"{\"id\":");
        fs::write(dir.path().join("history.jsonl"), torn).unwrap();
        history.append(&"next").unwrap();
        assert_eq!(history.lines().unwrap().last().unwrap(), "\"next\"");
    }

    #[test]
    fn a_second_daemon_is_kept_out_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirectoryLock::acquire(&dir.path().join("state")).unwrap();
        let second = DirectoryLock::acquire(&dir.path().join("state")).unwrap_err();
        assert_eq!(second.code(), "state-locked");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(150));
                drop(first);
            });
            DirectoryLock::acquire(&dir.path().join("state")).unwrap();
        });
    }
}
