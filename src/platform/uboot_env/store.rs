//! The environment on its medium: reads the copy in force, writes the other one.
//!
//! - A change is one write of one copy, synced and read back; only then is it in force. With two copies
//!   the one in force is never touched, so a power cut at any moment leaves the old or the new decision.
//!   With a single copy there is no such promise: `fwupdatectl` and the documentation say so.
//! - An environment that cannot be read is never written: a half guess would be trusted by U-Boot.
//! - All of it under the lock of `fw_printenv` and `fw_setenv`.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, PosixFadviseAdvice, posix_fadvise},
};

use super::{
    codec::{self, Copy, Env, VariableError},
    location::{Area, EnvLocation, LocationError},
};
use crate::{
    platform::ioctl,
    update::failure::{Class, Coded},
};

/// How long another holder of the lock is waited for. `fw_setenv` needs milliseconds.
const LOCK_LIMIT: Duration = Duration::from_secs(3);
/// The same for who only reads: the caller of a method waits for the answer meanwhile.
const READ_LOCK_LIMIT: Duration = Duration::from_millis(500);

/// Why the environment cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// Its place is not known.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// The lock is held.
    #[error("{} is held by another program (fw_setenv?); try again", .0.display())]
    Locked(PathBuf),
    /// The lock cannot be made.
    #[error("the lock {} cannot be taken; check bootloader.lock_file", .file.display())]
    Lock {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The lock's name belongs to something that is no file.
    #[error(
        "the lock {} is a link, a pipe, or another thing that is no regular file; remove it (`rm`), and look who made it",
        .0.display()
    )]
    LockNotAFile(PathBuf),
    /// The medium cannot be read.
    #[error("the U-Boot environment cannot be read from {}; check fw_env.config", .device.display())]
    Read {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No copy has a right CRC.
    #[error(
        "no good copy of the U-Boot environment at {places}; nothing was written. Check fw_env.config against the \
         board's U-Boot; if they agree, restore the environment with `fw_setenv -f` or write it from U-Boot (saveenv)"
    )]
    NoGoodCopy {
        /// Devices and offsets.
        places: String,
    },
    /// The medium cannot be written.
    #[error("the U-Boot environment cannot be written to {}; the old one is still in force if it has two copies", .device.display())]
    Write {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The medium returns something else than was written.
    #[error("the U-Boot environment on {} reads back wrong: the medium is failing; the old copy is still in force if there are two", .device.display())]
    ReadBack {
        /// The device.
        device: PathBuf,
    },
    /// Too many variables.
    #[error(
        "the U-Boot environment has no room for the change ({0} bytes); remove variables with fw_setenv"
    )]
    Full(usize),
    /// There is an environment already.
    #[error("there is a good U-Boot environment already; it is not overwritten")]
    Exists,
    /// A name or value that cannot be stored.
    #[error(transparent)]
    Variable(#[from] VariableError),
}

impl Coded for EnvError {
    fn code(&self) -> &'static str {
        match self {
            Self::Location(_) => "env-config",
            Self::Locked(_) | Self::Lock { .. } => "env-locked",
            Self::LockNotAFile(_) => "env-lock-not-a-file",
            Self::Read { .. } => "env-unreadable",
            Self::NoGoodCopy { .. } => "env-no-good-copy",
            Self::Write { .. } => "env-write-failed",
            Self::ReadBack { .. } => "env-read-back-mismatch",
            Self::Full(_) => "env-full",
            Self::Exists => "env-exists",
            Self::Variable(_) => "env-variable",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Locked(_) => Class::Retry,
            Self::Lock { .. } | Self::LockNotAFile(_) | Self::Read { .. } | Self::Write { .. } => {
                Class::Wait
            }
            Self::Location(_)
            | Self::NoGoodCopy { .. }
            | Self::ReadBack { .. }
            | Self::Full(_)
            | Self::Exists
            | Self::Variable(_) => Class::Final,
        }
    }
}

/// An environment on its medium.
#[derive(Debug, Clone)]
pub struct UbootEnv {
    location: EnvLocation,
    lock: PathBuf,
}

/// What was read.
struct Loaded {
    /// Which copy is in force.
    index: usize,
    /// It.
    copy: Copy,
}

impl UbootEnv {
    /// The environment at `location`, under the lock file `lock`. Touches nothing.
    #[must_use]
    pub fn new(location: EnvLocation, lock: &Path) -> Self {
        Self {
            location,
            lock: lock.to_owned(),
        }
    }

    /// The variables in force. Blocks.
    ///
    /// # Errors
    /// [`EnvError`].
    pub fn read(&self) -> Result<Env, EnvError> {
        let _lock = self.lock(READ_LOCK_LIMIT)?;
        Ok(self.load()?.copy.env)
    }

    /// Changes the variables by `change` in one write; writes nothing when nothing changed. Blocks.
    ///
    /// # Errors
    /// [`EnvError`]: the variables of before are then still in force.
    pub fn update<T>(&self, change: impl FnOnce(&mut Env) -> T) -> Result<T, EnvError> {
        let _lock = self.lock(LOCK_LIMIT)?;
        let Loaded { index, copy } = self.load()?;
        let mut env = copy.env.clone();
        let result = change(&mut env);
        if env != copy.env {
            let (index, flags) = if self.location.is_redundant() {
                (1 - index, copy.flags.wrapping_add(1))
            } else {
                (0, 0)
            };
            self.store(index, &Copy { flags, env })?;
        }
        Ok(result)
    }

    /// Writes a first environment where there is no good copy: for a new device, never to "repair" one.
    /// Blocks.
    ///
    /// # Errors
    /// `env-exists`, and those of a write.
    pub fn initialise<'a>(
        &self,
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), EnvError> {
        let _lock = self.lock(LOCK_LIMIT)?;
        match self.load() {
            Ok(_) => return Err(EnvError::Exists),
            Err(EnvError::NoGoodCopy { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut env = Env::default();
        for (name, value) in variables {
            env.set(name, value)?;
        }
        for index in 0..self.location.0.len() {
            // The first copy is in force; the second equals it, so that losing either changes nothing.
            self.store(
                index,
                &Copy {
                    flags: u8::from(index == 0),
                    env: env.clone(),
                },
            )?;
        }
        Ok(())
    }

    fn lock(&self, limit: Duration) -> Result<Flock<File>, EnvError> {
        let failed = |source| EnvError::Lock {
            file: self.lock.clone(),
            source,
        };
        let began = Instant::now();
        loop {
            let file = self.lock_file()?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(lock),
                Err((_, nix::Error::EWOULDBLOCK)) if began.elapsed() < limit => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err((_, nix::Error::EWOULDBLOCK)) => {
                    return Err(EnvError::Locked(self.lock.clone()));
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }

    /// Anyone may put something at the lock's name, as its folder is open to all: a link is not followed, a
    /// pipe is not waited for, and only a regular file is taken. An existing one is only read: a user who ran
    /// `fw_printenv` may own it, and in a sticky folder the kernel then refuses to open it for writing with
    /// O_CREAT, to root too (`fs.protected_regular`).
    fn lock_file(&self) -> Result<File, EnvError> {
        let safely = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
        let read = || {
            let mut options = OpenOptions::new();
            options.read(true).custom_flags(safely).open(&self.lock)
        };
        let opened = match read() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut new = OpenOptions::new();
                new.write(true).create_new(true).mode(0o644);
                match new.custom_flags(safely).open(&self.lock) {
                    // Another program was faster.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => read(),
                    made => made,
                }
            }
            opened => opened,
        };
        let failed = |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
            // A link, or a socket.
            Some(Errno::ELOOP | Errno::ENXIO) => EnvError::LockNotAFile(self.lock.clone()),
            _ => EnvError::Lock {
                file: self.lock.clone(),
                source,
            },
        };
        let file = opened.map_err(failed)?;
        if file.metadata().map_err(failed)?.is_file() {
            Ok(file)
        } else {
            Err(EnvError::LockNotAFile(self.lock.clone()))
        }
    }

    /// Reads all copies and picks the one in force. A copy that cannot be read at all counts as bad.
    fn load(&self) -> Result<Loaded, EnvError> {
        let redundant = self.location.is_redundant();
        let mut unreadable = None;
        let mut copies = Vec::new();
        for area in &self.location.0 {
            let bytes = read_area(area);
            copies.push(match bytes {
                Ok(bytes) => codec::decode(&bytes, redundant),
                Err(source) => {
                    unreadable = Some(EnvError::Read {
                        device: area.device.clone(),
                        source,
                    });
                    None
                }
            });
        }
        let mut good = copies
            .into_iter()
            .enumerate()
            .filter_map(|(index, copy)| Some((index, copy?)));
        match (good.next(), good.next()) {
            (Some((_, first)), Some((_, second))) => {
                let index = codec::newer([first.flags, second.flags]);
                Ok(Loaded {
                    index,
                    copy: if index == 0 { first } else { second },
                })
            }
            (Some((index, copy)), None) => Ok(Loaded { index, copy }),
            (None, _) => Err(unreadable.unwrap_or_else(|| {
                let place =
                    |area: &Area| format!("{} offset {:#x}", area.device.display(), area.offset);
                let places: Vec<_> = self.location.0.iter().map(place).collect();
                EnvError::NoGoodCopy {
                    places: places.join(" and "),
                }
            })),
        }
    }

    fn store(&self, index: usize, copy: &Copy) -> Result<(), EnvError> {
        let area = &self.location.0[index];
        let bytes = codec::encode(copy, area.size, self.location.is_redundant());
        let bytes = bytes.ok_or(EnvError::Full(area.size))?;
        let failed = |source| EnvError::Write {
            device: area.device.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&area.device)
            .map_err(failed)?;
        let offset = absolute(area, &file).map_err(failed)?;
        file.write_all_at(&bytes, offset).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        drop_cache(&file).map_err(failed)?;
        let found = read_area(area).map_err(failed)?;
        if found == bytes {
            Ok(())
        } else {
            Err(EnvError::ReadBack {
                device: area.device.clone(),
            })
        }
    }
}

pub(super) fn read_area(area: &Area) -> io::Result<Vec<u8>> {
    let file = File::open(&area.device)?;
    let offset = absolute(area, &file)?;
    let mut bytes = vec![0; area.size];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The offset from the start of the device.
fn absolute(area: &Area, file: &File) -> io::Result<u64> {
    if let Ok(offset) = u64::try_from(area.offset) {
        return Ok(offset);
    }
    let meta = file.metadata()?;
    let length = if meta.file_type().is_block_device() {
        ioctl::device_size(file)?
    } else {
        meta.len()
    };
    length
        .checked_sub(area.offset.unsigned_abs())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("it has {length} bytes, fewer than the negative offset"),
            )
        })
}

/// Makes the next read come from the medium.
fn drop_cache(file: &File) -> io::Result<()> {
    if fs::File::metadata(file)?.file_type().is_block_device() {
        return ioctl::flush_buffers(file);
    }
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 0x1000;

    fn env(dir: &Path, copies: usize) -> UbootEnv {
        let file = dir.join("env");
        fs::write(&file, vec![0xff; SIZE * copies]).unwrap();
        let lines: Vec<_> = (0..copies)
            .map(|n| format!("{} {:#x} {SIZE:#x}", file.display(), n * SIZE))
            .collect();
        let location = EnvLocation::parse(Path::new("c"), &lines.join("\n")).unwrap();
        UbootEnv::new(location, &dir.join("lock"))
    }

    fn damage(dir: &Path, at: usize) {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(dir.join("env"))
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 0xff], at as u64).unwrap();
    }

    #[test]
    fn the_copy_in_force_is_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path(), 2);
        env.initialise([("n", "0")]).unwrap();
        for number in 1..600 {
            let before = fs::read(dir.path().join("env")).unwrap();
            let in_force = env.load().unwrap().index;
            env.update(|vars| vars.set("n", &number.to_string()).unwrap())
                .unwrap();
            let after = fs::read(dir.path().join("env")).unwrap();
            let range = in_force * SIZE..(in_force + 1) * SIZE;
            assert_eq!(before[range.clone()], after[range], "write {number}");
            assert_eq!(
                env.read().unwrap().get("n"),
                Some(number.to_string().as_str())
            );
        }
    }

    #[test]
    fn a_torn_copy_falls_back_to_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path(), 2);
        env.initialise([("n", "old")]).unwrap();
        env.update(|vars| vars.set("n", "new").unwrap()).unwrap();
        let newest = env.load().unwrap().index;
        damage(dir.path(), newest * SIZE + 40);
        assert_eq!(env.read().unwrap().get("n"), Some("old"));
        // The next change goes over the torn copy and leaves the good one.
        env.update(|vars| vars.set("n", "again").unwrap()).unwrap();
        assert_eq!(env.load().unwrap().index, newest);
        assert_eq!(env.read().unwrap().get("n"), Some("again"));
    }

    #[test]
    fn an_environment_that_cannot_be_read_is_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path(), 2);
        env.initialise([("n", "1")]).unwrap();
        damage(dir.path(), 40);
        damage(dir.path(), SIZE + 40);
        let before = fs::read(dir.path().join("env")).unwrap();
        let error = env.update(|vars| vars.set("n", "2").unwrap()).unwrap_err();
        assert_eq!(error.code(), "env-no-good-copy");
        assert_eq!(fs::read(dir.path().join("env")).unwrap(), before);
    }

    #[test]
    fn a_change_that_changes_nothing_or_does_not_fit_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path(), 2);
        env.initialise([("n", "1")]).unwrap();
        let before = fs::read(dir.path().join("env")).unwrap();
        env.update(|vars| vars.set("n", "1").unwrap()).unwrap();
        let error = env
            .update(|vars| vars.set("big", &"x".repeat(SIZE)).unwrap())
            .unwrap_err();
        assert_eq!(error.code(), "env-full");
        assert_eq!(
            env.initialise([("n", "2")]).unwrap_err().code(),
            "env-exists"
        );
        assert_eq!(fs::read(dir.path().join("env")).unwrap(), before);
    }

    #[test]
    fn a_single_copy_and_a_negative_offset_work_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        fs::write(&file, vec![0; 3 * SIZE]).unwrap();
        let text = format!("{} -{SIZE:#x} {SIZE:#x}", file.display());
        let location = EnvLocation::parse(Path::new("c"), &text).unwrap();
        let env = UbootEnv::new(location, &dir.path().join("lock"));
        env.initialise([("a", "b")]).unwrap();
        env.update(|vars| vars.set("a", "c").unwrap()).unwrap();
        assert_eq!(env.read().unwrap().get("a"), Some("c"));
        let bytes = fs::read(&file).unwrap();
        assert!(
            bytes[..2 * SIZE].iter().all(|b| *b == 0),
            "only the last copy's place was written"
        );
    }

    #[test]
    fn a_held_lock_is_waited_for_and_then_named() {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path(), 1);
        env.initialise([("a", "b")]).unwrap();
        let held = env.lock(LOCK_LIMIT).unwrap();
        let waiting = env.clone();
        let reader = std::thread::spawn(move || waiting.read());
        std::thread::sleep(Duration::from_millis(100));
        drop(held);
        reader.join().unwrap().unwrap();
        let _held = env.lock(LOCK_LIMIT).unwrap();
        assert_eq!(env.read().unwrap_err().code(), "env-locked");
    }

    #[test]
    fn what_is_no_file_at_the_locks_name_is_neither_waited_for_nor_followed() {
        use std::os::unix::{fs::symlink, net::UnixListener};
        type Make = fn(&Path);
        let made: [(&str, Make); 5] = [
            ("a pipe", |lock| {
                nix::unistd::mkfifo(lock, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
            }),
            ("a link to a file", |lock| {
                let target = lock.with_extension("target");
                fs::write(&target, "").unwrap();
                symlink(target, lock).unwrap();
            }),
            ("a link to nothing", |lock| {
                symlink(lock.with_extension("nothing"), lock).unwrap();
            }),
            ("a socket", |lock| drop(UnixListener::bind(lock).unwrap())),
            ("a folder", |lock| fs::create_dir(lock).unwrap()),
        ];
        for (what, make) in made {
            let dir = tempfile::tempdir().unwrap();
            let env = env(dir.path(), 2);
            env.initialise([("n", "1")]).unwrap();
            let lock = dir.path().join("lock");
            fs::remove_file(&lock).unwrap();
            make(&lock);
            let (done, finished) = std::sync::mpsc::channel();
            let changed = env.clone();
            std::thread::spawn(move || {
                let read = changed.read().unwrap_err().code();
                let update = changed.update(|env| env.set("n", "2").unwrap());
                let _ = done.send((read, update.unwrap_err().code()));
            });
            let codes = finished.recv_timeout(Duration::from_secs(60));
            let refused = "env-lock-not-a-file";
            assert_eq!(codes.expect(what), (refused, refused), "{what}");
            assert!(!lock.with_extension("nothing").exists(), "{what}: followed");
            assert_eq!(env.load().unwrap().copy.env.get("n"), Some("1"), "{what}");
        }
    }
}
