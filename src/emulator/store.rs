//! The state directory: policies and one file for each device, so that a restart goes on. Jobs and
//! configurations keep their own files in it.
//!
//! A file is written beside its place and renamed into it, so it is always whole.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tracing::error;

use crate::hub::Record;
use crate::percent;
use crate::policies::Policies;
use crate::start_error::StartError;

/// A state directory in use.
pub(crate) struct Store {
    root: PathBuf,
    devices: PathBuf,
}

impl Store {
    /// Opens `directory`, makes what is missing, and reads what is there.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Policies, Vec<Record>), StartError> {
        let devices = directory.join("devices");
        fs::create_dir_all(&devices).map_err(|source| StartError::state(directory, source))?;
        let policies_file = directory.join("policies.json");
        let policies = match read(&policies_file)? {
            Some(policies) => policies,
            None => {
                let policies = Policies::generate();
                write_json(&policies_file, &policies)
                    .map_err(|source| StartError::state(&policies_file, source))?;
                policies
            }
        };
        let records = read_all(&devices)?;
        let root = directory.to_owned();
        Ok((Self { root, devices }, policies, records))
    }

    /// Reads the file called `name`, if it is there.
    pub(crate) fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StartError> {
        read(&self.root.join(name))
    }

    /// Reads every file of a folder, in no order; none when it is not there.
    pub(crate) fn load_all<T: DeserializeOwned>(&self, folder: &str) -> Result<Vec<T>, StartError> {
        let folder = self.root.join(folder);
        match folder.exists() {
            true => read_all(&folder),
            false => Ok(Vec::new()),
        }
    }

    /// Writes a file called `name`. A failure is logged: the hub goes on from memory.
    pub(crate) fn save(&self, name: &str, value: &impl serde::Serialize) {
        let path = self.root.join(name);
        let written = match path.parent() {
            Some(folder) => fs::create_dir_all(folder).and_then(|()| write_json(&path, value)),
            None => write_json(&path, value),
        };
        if let Err(error) = written {
            error!(
                "cannot save {}: {error}; changes since the last save are lost at the next start",
                path.display()
            );
        }
    }

    /// Writes a device's record. A failure is logged: the hub goes on from memory.
    pub(crate) fn save_device(&self, record: &Record) {
        let path = self.device_file(&record.identity.id);
        if let Err(error) = write_json(&path, record) {
            error!(
                "cannot save {}: {error}; changes since the last save are lost at the next start",
                path.display()
            );
        }
    }

    /// Removes a device's record.
    pub(crate) fn remove_device(&self, id: &str) {
        let path = self.device_file(id);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            error!(
                "cannot remove {}: {error}; the device comes back at the next start",
                path.display()
            );
        }
    }

    fn device_file(&self, id: &str) -> PathBuf {
        // Encoded once more so that no id is `.` or `..`, and every id of 128 characters still fits
        // a file name of 255 bytes in all but contrived cases.
        self.devices.join(format!("{}.json", percent::encode(id)))
    }
}

fn read_all<T: DeserializeOwned>(folder: &Path) -> Result<Vec<T>, StartError> {
    let failed = |source| StartError::state(folder, source);
    let mut records = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
            && let Some(record) = read(&path)?
        {
            records.push(record);
        }
    }
    Ok(records)
}

/// The document in a file; `None` when there is no file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StartError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StartError::state(path, source)),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|source| StartError::BadState {
            path: path.to_owned(),
            source,
        })
}

/// Replaces a file by one with this document.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> io::Result<()> {
    write_atomically(path, &serde_json::to_vec_pretty(value)?, 0o600)
}

/// Replaces `path` by a file with `content`, readable as `mode` says, all at once.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let _ = fs::remove_file(&aside);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&aside)?;
    // No sync: the hub must answer fast, and a development tool may lose its last second in a power cut.
    file.write_all(content)?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::registry::Identity;

    fn record(id: &str) -> Record {
        Record::new(Identity::new(id, None).unwrap())
    }

    #[test]
    fn what_was_saved_is_there_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let (store, policies, records) = Store::open(directory.path()).unwrap();
        assert!(records.is_empty());
        for id in ["pi-01", "a:b*?", "gone", "..", "."] {
            store.save_device(&record(id));
        }
        store.remove_device("gone");
        store.remove_device("never there");
        let (_, again, mut records) = Store::open(directory.path()).unwrap();
        records.sort_by(|a, b| a.identity.id.cmp(&b.identity.id));
        let ids: Vec<_> = records
            .iter()
            .map(|record| record.identity.id.as_str())
            .collect();
        assert_eq!(ids, [".", "..", "a:b*?", "pi-01"]);
        assert_eq!(again.owner_key(), policies.owner_key());
    }

    #[test]
    fn a_broken_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("policies.json"), "{").unwrap();
        let error = Store::open(directory.path()).err().unwrap();
        assert!(error.to_string().contains("policies.json"), "{error}");
    }

    #[test]
    fn secrets_are_readable_by_their_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        Store::open(directory.path()).unwrap();
        let file = directory.path().join("policies.json");
        assert_eq!(
            fs::metadata(file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
