//! Writes a lost environment anew: on demand, whole, and only where no good copy is left.
//!
//! From the saved copy in the state directory, or from a file such as U-Boot's `u-boot-initial-env` on a board that
//! never had one. A file from elsewhere does not know which slot is confirmed: the caller says it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    BootloaderError, EnvError, UbootBootloader,
    codec::{self, Env},
    variables::{Change, decide},
};
use crate::update::slot::Slot;

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 4 << 20;

/// What was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Restored {
    /// The confirmed slot in it.
    pub confirmed: Slot,
    /// How many variables it has.
    pub variables: usize,
}

/// Why a file cannot be taken for an environment.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It is not there, or unreadable.
    #[error(
        "{} cannot be read; give another file with --from, such as the u-boot-initial-env of the board's U-Boot, and \
         the slot that runs with --slot", .file.display()
    )]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no environment.
    #[error(
        "{} is no environment: neither a copy with a right checksum nor lines of `name=value`; nothing was written", .0.display()
    )]
    NotOne(PathBuf),
}

impl UbootBootloader {
    /// Writes the environment from `file`, with no trial, and `slot` (else what `file` says) confirmed. Blocks.
    ///
    /// # Errors
    /// `env-exists` when a good copy is left; `env-source` when `file` is no environment; `bootloader-not-initialised` when
    /// neither names the slot; those of a write.
    pub fn restore(&self, file: &Path, slot: Option<Slot>) -> Result<Restored, BootloaderError> {
        let mut env = read(file)?;
        let variables = self.variables();
        let confirmed = match slot {
            Some(slot) => slot,
            None => variables.state(&env)?.confirmed,
        };
        decide(variables, &mut env, Change::MarkGood(confirmed))?;
        self.env()?.restore(&env)?;
        Ok(Restored {
            confirmed,
            variables: env.len(),
        })
    }
}

fn read(file: &Path) -> Result<Env, BootloaderError> {
    let unreadable = |source| SourceError::Unreadable {
        file: file.to_owned(),
        source,
    };
    let size = fs::metadata(file).map_err(unreadable)?.len();
    let bytes = if size <= MAX_FILE {
        fs::read(file).map_err(unreadable)?
    } else {
        Vec::new()
    };
    let copy = codec::decode(&bytes, false).or_else(|| codec::decode(&bytes, true));
    match copy {
        Some(copy) => Ok(copy.env),
        None => Ok(lines(&bytes).ok_or_else(|| SourceError::NotOne(file.to_owned()))?),
    }
}

/// `name=value` lines, as `mkenvimage` takes them: `#` begins a comment, empty lines count for nothing.
fn lines(bytes: &[u8]) -> Option<Env> {
    let mut env = Env::default();
    for line in std::str::from_utf8(bytes).ok()?.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=')?;
        env.set(name, value).ok()?;
    }
    (env.len() > 0).then_some(env)
}

impl From<SourceError> for BootloaderError {
    fn from(error: SourceError) -> Self {
        Self::Source(error)
    }
}

impl From<codec::VariableError> for BootloaderError {
    fn from(error: codec::VariableError) -> Self {
        Self::Env(EnvError::from(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_taken_as_mkenvimage_takes_it() {
        let env = lines(b"# U-Boot\nbootcmd=run a; b=c\n\nempty=\n").unwrap();
        assert_eq!(env.iter().collect::<Vec<_>>(), [("bootcmd", "run a; b=c")]);
        for text in [
            &b""[..],
            b"# nothing\n",
            b"no variable\n",
            b"\xff=1\n",
            b"=1\n",
        ] {
            assert_eq!(lines(text), None, "{text:?}");
        }
    }
}
