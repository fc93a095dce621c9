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
    codec::{self, Copy, Env, FLAG_ACTIVE, FlagScheme, VariableError},
    flash::{self, Flash as _, Mtd},
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
         board's U-Boot; if they agree, the environment is lost: write it anew from the saved copy with \
         `fwupdatectl restore-env`"
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
    #[error(
        "there is a good U-Boot environment already; it is not overwritten; change it with fw_setenv"
    )]
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
    /// What the other copy says, if it is good.
    older: Option<Env>,
    /// What the flags mean.
    scheme: FlagScheme,
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
        let loaded = self.load()?;
        let mut env = loaded.copy.env.clone();
        let result = change(&mut env);
        if env != loaded.copy.env {
            self.replace(&loaded, env)?;
        }
        Ok(result)
    }

    /// Lets the copy that is not in force say the same as the one in force: what it said before is then forgotten,
    /// and cannot come back when the one in force is damaged. Writes nothing when that is so already. Blocks.
    ///
    /// # Errors
    /// [`EnvError`]: the copy in force is then as it was.
    pub fn forget_older(&self) -> Result<(), EnvError> {
        let _lock = self.lock(LOCK_LIMIT)?;
        let loaded = self.load()?;
        let same = loaded.older.as_ref() == Some(&loaded.copy.env);
        if same || !self.location.is_redundant() {
            return Ok(());
        }
        self.replace(&loaded, loaded.copy.env.clone())
    }

    /// Puts `env` in force in place of what was `loaded`: one write of the other copy, where there are two.
    fn replace(&self, loaded: &Loaded, env: Env) -> Result<(), EnvError> {
        let Loaded { index, copy, .. } = loaded;
        if !self.location.is_redundant() {
            return self.store(0, &Copy { flags: 0, env });
        }
        let flags = match loaded.scheme {
            FlagScheme::Counter => copy.flags.wrapping_add(1),
            FlagScheme::Boolean => FLAG_ACTIVE,
        };
        self.store(1 - index, &Copy { flags, env })?;
        match loaded.scheme {
            FlagScheme::Counter => Ok(()),
            FlagScheme::Boolean => self.make_obsolete(*index),
        }
    }

    /// Writes a first environment of `variables`, as [`UbootEnv::restore`].
    ///
    /// # Errors
    /// As there.
    pub fn initialise<'a>(
        &self,
        variables: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), EnvError> {
        let mut env = Env::default();
        for (name, value) in variables {
            env.set(name, value)?;
        }
        self.restore(&env)
    }

    /// Writes `env` where there is no good copy: one that was lost, or never there. Blocks.
    ///
    /// # Errors
    /// `env-exists`, and those of a write.
    pub fn restore(&self, env: &Env) -> Result<(), EnvError> {
        let _lock = self.lock(LOCK_LIMIT)?;
        match self.load() {
            Ok(_) => return Err(EnvError::Exists),
            Err(EnvError::NoGoodCopy { .. }) => {}
            Err(error) => return Err(error),
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

    /// Bytes of one copy.
    pub(super) fn size(&self) -> usize {
        self.location.0[0].size
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
        let mut scheme = FlagScheme::Counter;
        for area in &self.location.0 {
            copies.push(
                match Medium::open(area, false).and_then(|medium| {
                    scheme = medium.flag_scheme();
                    medium.read(area)
                }) {
                    Ok(bytes) => codec::decode(&bytes, redundant),
                    Err(source) => {
                        unreadable = Some(EnvError::Read {
                            device: area.device.clone(),
                            source,
                        });
                        None
                    }
                },
            );
        }
        let mut good = copies
            .into_iter()
            .enumerate()
            .filter_map(|(index, copy)| Some((index, copy?)));
        match (good.next(), good.next()) {
            (Some((_, first)), Some((_, second))) => {
                let index = codec::newer([first.flags, second.flags], scheme);
                let (copy, older) = if index == 0 {
                    (first, second)
                } else {
                    (second, first)
                };
                Ok(Loaded {
                    index,
                    copy,
                    older: Some(older.env),
                    scheme,
                })
            }
            (Some((index, copy)), None) => Ok(Loaded {
                index,
                copy,
                older: None,
                scheme,
            }),
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
        let medium = Medium::open(area, true).map_err(failed)?;
        medium.write(area, &bytes).map_err(failed)?;
        let found = Medium::open(area, false)
            .and_then(|medium| medium.read(area))
            .map_err(failed)?;
        if found == bytes {
            Ok(())
        } else {
            Err(EnvError::ReadBack {
                device: area.device.clone(),
            })
        }
    }

    /// On flash with boolean flags: the copy `index` is no longer in force.
    fn make_obsolete(&self, index: usize) -> Result<(), EnvError> {
        let area = &self.location.0[index];
        Medium::open(area, true)
            .and_then(|medium| match &medium {
                Medium::Flash(mtd) => flash::make_obsolete(mtd, medium.start(area)?),
                Medium::Plain(_) => Ok(()),
            })
            .map_err(|source| EnvError::Write {
                device: area.device.clone(),
                source,
            })
    }
}

/// A copy's bytes, good or not.
pub(super) fn read_area(area: &Area) -> io::Result<Vec<u8>> {
    Medium::open(area, false)?.read(area)
}

/// What a copy lies on, opened.
enum Medium {
    /// A block device or a file.
    Plain(File),
    /// Raw flash.
    Flash(Mtd),
}

impl Medium {
    fn open(area: &Area, write: bool) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .open(&area.device)?;
        if file.metadata()?.file_type().is_char_device() {
            Ok(Self::Flash(Mtd::new(file)?))
        } else {
            Ok(Self::Plain(file))
        }
    }

    fn flag_scheme(&self) -> FlagScheme {
        match self {
            Self::Plain(_) => FlagScheme::Counter,
            Self::Flash(mtd) => flash::flag_scheme(mtd),
        }
    }

    fn read(&self, area: &Area) -> io::Result<Vec<u8>> {
        let start = self.start(area)?;
        let mut bytes = vec![0; area.size];
        match self {
            Self::Plain(file) => file.read_exact_at(&mut bytes, start)?,
            Self::Flash(mtd) => mtd.read(&mut bytes, start)?,
        }
        Ok(bytes)
    }

    /// Writes a copy; durable when it returns, and the next read comes from the medium.
    fn write(&self, area: &Area, bytes: &[u8]) -> io::Result<()> {
        let start = self.start(area)?;
        match self {
            Self::Plain(file) => {
                file.write_all_at(bytes, start)?;
                file.sync_all()?;
                drop_cache(file)
            }
            Self::Flash(mtd) => flash::write_copy(mtd, bytes, start),
        }
    }

    /// The first byte of `area`, from the start of the device.
    fn start(&self, area: &Area) -> io::Result<u64> {
        if let Ok(offset) = u64::try_from(area.offset) {
            return Ok(offset);
        }
        let length = match self {
            Self::Flash(mtd) => mtd.info().size,
            Self::Plain(file) => {
                let meta = file.metadata()?;
                if meta.file_type().is_block_device() {
                    ioctl::device_size(file)?
                } else {
                    meta.len()
                }
            }
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
}

/// Makes the next read come from the medium.
fn drop_cache(file: &File) -> io::Result<()> {
    if fs::File::metadata(file)?.file_type().is_block_device() {
        return ioctl::flush_buffers(file);
    }
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from)
}

#[cfg(test)]
mod tests;
