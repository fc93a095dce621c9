//! An image in a file of this device, as the installer's thread reads it: the counterpart of a download.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex},
};

use crate::{
    daemon::meter::{Cancel, stopped},
    image::DetachedSignatures,
    platform::local_file::LocalFile,
    update::{failure::Failure, uri::PackageUri},
};

/// The file that was handed over with the update under way. Shared by the installers of one update.
#[derive(Clone, Default)]
pub struct HandedOver(Arc<Mutex<Option<Kept>>>);

/// The address, and the file that stands for it.
type Kept = (PackageUri, Arc<LocalFile>);

impl HandedOver {
    /// Keeps the file of another update, or none any more.
    pub fn keep(&self, file: Option<(PackageUri, LocalFile)>) {
        *self.0.lock().expect("no panic while held") =
            file.map(|(uri, file)| (uri, Arc::new(file)));
    }

    /// The file at `uri`: what was handed over, else, after a restart, what has its path now. `None` for an address
    /// elsewhere. Blocks.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&self, uri: &PackageUri) -> Result<Option<Arc<LocalFile>>, Failure> {
        let Some(path) = uri.path() else {
            return Ok(None);
        };
        if let Some((kept, file)) = &*self.0.lock().expect("no panic while held")
            && kept == uri
        {
            return Ok(Some(file.clone()));
        }
        let opened = LocalFile::open(&path, DetachedSignatures::MAX_LEN);
        let opened = opened.map_err(|error| Failure::from(&error))?;
        Ok(Some(Arc::new(opened)))
    }
}

/// Reads a part of the file.
pub struct Portion {
    file: Arc<LocalFile>,
    at: u64,
    end: u64,
    cancel: Cancel,
    failure: Arc<Mutex<Option<Failure>>>,
}

impl Portion {
    /// From byte `at` to `end` (exclusive), or to the end of the file. What goes wrong ends it and is put into
    /// `failure`.
    pub(super) fn new(
        file: Arc<LocalFile>,
        at: u64,
        end: Option<u64>,
        cancel: Cancel,
        failure: Arc<Mutex<Option<Failure>>>,
    ) -> Self {
        let end = end.unwrap_or(u64::MAX).min(file.len());
        Self {
            file,
            at,
            end,
            cancel,
            failure,
        }
    }
}

impl Read for Portion {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_sub(self.at);
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = match self.cancel.check() {
            Ok(()) => self.file.read_at(&mut buffer[..most], self.at),
            Err(_) => {
                *self.failure.lock().expect("no panic while held") = Some(stopped());
                return Ok(0);
            }
        };
        match read {
            Ok(count) => {
                self.at += count as u64;
                Ok(count)
            }
            Err(error) => {
                *self.failure.lock().expect("no panic while held") = Some(Failure::from(&error));
                Ok(0)
            }
        }
    }
}
