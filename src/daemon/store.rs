//! The state directory: `state.json`, `history.jsonl`, and the lock that keeps a second daemon out.

use std::{path::Path, sync::Arc};

use super::saved::{SCHEMA, Saved};
use crate::{
    config::StateConfig,
    platform::state_file::{DirectoryLock, History, StateFile},
    update::{
        failure::{Class, Failure},
        status::UpdateReport,
    },
};

/// The state directory, held by this process. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    file: StateFile,
    history: History,
    _lock: DirectoryLock,
}

impl Store {
    /// Opens the directory and locks it.
    ///
    /// # Errors
    /// It cannot be made or written, or another daemon holds it.
    pub fn open(config: &StateConfig) -> Result<Self, Failure> {
        let directory: &Path = &config.directory;
        let lock = DirectoryLock::acquire(directory).map_err(|error| Failure::from(&error))?;
        let file = StateFile::new(directory.join("state.json"));
        let history = History::new(directory.join("history.jsonl"));
        Ok(Self(Arc::new(Inner {
            file,
            history,
            _lock: lock,
        })))
    }

    /// What survived; a fresh document at the first start. A file that cannot be understood is moved aside,
    /// with a warning in the result: the bootloader still knows what matters most.
    ///
    /// # Errors
    /// The file exists and cannot be read, or was written by a newer fwupdated.
    pub fn load(&self) -> Result<(Saved, Option<Failure>), Failure> {
        match self.0.file.load::<Saved>() {
            Ok(None) => Ok((Saved::default(), None)),
            Ok(Some(saved)) if saved.version > SCHEMA => Err(Failure::new(
                "state-too-new",
                Class::Final,
                format!(
                    "{} has schema {}, this fwupdated knows {SCHEMA}; install the newer fwupdated again",
                    self.0.file.path().display(),
                    saved.version
                ),
            )),
            Ok(Some(saved)) => Ok((saved, None)),
            Err(error) if error.is_corrupt() => {
                let failure = Failure::from(&error);
                self.0
                    .file
                    .quarantine()
                    .map_err(|error| Failure::from(&error))?;
                Ok((Saved::default(), Some(failure)))
            }
            Err(error) => Err(Failure::from(&error)),
        }
    }

    /// Makes `saved` durable. Blocks.
    ///
    /// # Errors
    /// The old document then still stands.
    pub fn save(&self, saved: &Saved) -> Result<(), Failure> {
        self.0
            .file
            .save(saved)
            .map_err(|error| Failure::from(&error))
    }

    /// Tries whether a document could be saved now. Blocks.
    ///
    /// # Errors
    /// Why not.
    pub fn check_writable(&self) -> Result<(), Failure> {
        self.0
            .file
            .check_writable()
            .map_err(|error| Failure::from(&error))
    }

    /// Adds a line to the history. Blocks.
    ///
    /// # Errors
    /// It could not be written.
    pub fn append_history(&self, report: &UpdateReport) -> Result<(), Failure> {
        self.0
            .history
            .append(report)
            .map_err(|error| Failure::from(&error))
    }
}
