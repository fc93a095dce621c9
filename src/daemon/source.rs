//! The image as the installer's thread reads it: blocking `Read`, fed by a download that runs as a task.
//!
//! Memory is bounded by the queue between both. A download's failure reaches the reader as an
//! `io::Error` and is kept whole aside, so that decoders in between cannot blur it.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex},
};

use bytes::{Buf, Bytes};
use tokio::{runtime::Handle, sync::mpsc};

use super::meter::{Cancel, Meter, stopped};
use crate::{
    platform::fetch::{ByteRange, Download, Fetcher, Validator},
    update::{
        failure::{Class, Failure},
        uri::PackageUri,
    },
};

/// What may lie between download and installer: this many pieces, each of at most so many bytes. The HTTP library
/// hands out whatever has arrived, which on a fast line is hundreds of KiB at a time.
const QUEUE: usize = 32;
const PIECE: usize = 64 << 10;
/// First and largest piece of a header, bytes. The index of a 1 GiB image has some 160 KiB.
const FIRST_WINDOW: u64 = 64 << 10;
const LARGEST_WINDOW: u64 = 4 << 20;

/// An image at an address. Every reader of one source reads the same version of the file.
pub struct Source {
    fetcher: Fetcher,
    uri: PackageUri,
    runtime: Handle,
    meter: Arc<Meter>,
    cancel: Cancel,
    seen: Mutex<Option<Seen>>,
    failure: Arc<Mutex<Option<Failure>>>,
}

#[derive(Clone)]
struct Seen {
    validator: Validator,
    total: Option<u64>,
    ranges: bool,
}

impl Source {
    /// A source whose downloads run on the present runtime.
    pub fn new(fetcher: Fetcher, uri: PackageUri, meter: Arc<Meter>, cancel: Cancel) -> Self {
        let (seen, failure) = (Mutex::new(None), Arc::default());
        Self {
            fetcher: fetcher.afresh(),
            uri,
            runtime: Handle::current(),
            meter,
            cancel,
            seen,
            failure,
        }
    }

    /// Reads the file from byte `start` up to `end` (exclusive), or to its end. Blocks until the server
    /// answered; not to be called from a task.
    ///
    /// A server without ranges is asked for the file from its first byte, and what lies before `start` is
    /// thrown away: the answer to a request for a part could not be told from another version's.
    ///
    /// # Errors
    /// When the server refuses, the file changed since the first call, or the retry budget is used up.
    pub fn read(&self, start: u64, end: Option<u64>) -> Result<SourceReader, Failure> {
        self.cancel.check()?;
        let expected = self.seen.lock().expect("no panic while held").clone();
        let skip = match &expected {
            Some(seen) if !seen.ranges => start,
            _ => 0,
        };
        let validator = expected.map(|seen| seen.validator);
        let start = start - skip;
        let range = ByteRange { start, end };
        let opening = self.fetcher.open(&self.uri, range, validator.as_ref());
        let download = self.runtime.block_on(async {
            tokio::select! {
                opened = opening => opened.map_err(|error| Failure::from(&error)),
                () = self.cancel.cancelled() => Err(stopped()),
            }
        })?;
        let seen = Seen {
            validator: download.validator().clone(),
            total: download.total(),
            ranges: download.supports_ranges(),
        };
        self.seen
            .lock()
            .expect("no panic while held")
            .get_or_insert(seen);
        let (sender, pieces) = mpsc::channel(QUEUE);
        self.runtime.spawn(pump(
            download,
            sender,
            self.meter.clone(),
            self.cancel.clone(),
            self.failure.clone(),
        ));
        Ok(SourceReader {
            pieces,
            piece: Bytes::new(),
            skip,
        })
    }

    /// Reads the file from its start in growing pieces, each by a request of its own: for headers, whose
    /// end is not known before they are read. What a server sends beyond a header would be paid for and
    /// thrown away.
    pub fn read_in_windows(&self) -> Windows<'_> {
        Windows {
            source: self,
            next: Some(0),
            window: FIRST_WINDOW,
            reader: None,
        }
    }

    /// Length of the file in bytes, once the server said it.
    pub fn total(&self) -> Option<u64> {
        self.seen
            .lock()
            .expect("no panic while held")
            .as_ref()
            .and_then(|seen| seen.total)
    }

    /// Whether the server serves parts of the file.
    pub fn supports_ranges(&self) -> bool {
        self.seen
            .lock()
            .expect("no panic while held")
            .as_ref()
            .is_some_and(|seen| seen.ranges)
    }

    /// The address, whose `Display` holds no secrets.
    pub fn uri(&self) -> &PackageUri {
        &self.uri
    }

    /// A small file beside this one; `None` when there is none. Blocks.
    ///
    /// # Errors
    /// It cannot be fetched, or is longer than `limit` bytes.
    pub fn small_file_beside(
        &self,
        suffix: &str,
        limit: usize,
    ) -> Result<Option<Vec<u8>>, Failure> {
        self.cancel.check()?;
        let uri = self.uri.beside(suffix);
        self.runtime.block_on(async {
            tokio::select! {
                file = self.fetcher.get_small(&uri, limit) => file.map_err(|error| Failure::from(&error)),
                () = self.cancel.cancelled() => Err(stopped()),
            }
        })
    }

    /// Fails when a download ended before its time: the end of a stream is then not the end of the file.
    ///
    /// # Errors
    /// The download's own.
    pub fn check(&self) -> Result<(), Failure> {
        self.take_failure().map_or(Ok(()), Err)
    }

    /// What an input error of a reader means.
    pub fn explain_io(&self, error: &io::Error) -> Failure {
        self.take_failure().unwrap_or_else(|| {
            Failure::new(
                "image-read-failed",
                Class::Retry,
                format!("{} cannot be read: {error}", self.uri),
            )
        })
    }

    fn has_failed(&self) -> bool {
        self.failure.lock().expect("no panic while held").is_some()
    }

    fn keep(&self, failure: Failure) {
        *self.failure.lock().expect("no panic while held") = Some(failure);
    }

    /// The failure that ended a download, if one did: it explains an error of whoever read from it.
    pub fn take_failure(&self) -> Option<Failure> {
        self.failure.lock().expect("no panic while held").take()
    }
}

async fn pump(
    mut download: Download,
    sender: mpsc::Sender<Bytes>,
    meter: Arc<Meter>,
    cancel: Cancel,
    failure: Arc<Mutex<Option<Failure>>>,
) {
    loop {
        let piece = tokio::select! {
            piece = download.next_chunk() => piece.map_err(|error| Failure::from(&error)),
            () = cancel.cancelled() => Err(stopped()),
        };
        match piece {
            Ok(Some(mut piece)) => {
                meter.add_downloaded(piece.len() as u64);
                while !piece.is_empty() {
                    let part = piece.split_to(piece.len().min(PIECE));
                    // The reader has what it wanted and is gone.
                    if sender.send(part).await.is_err() {
                        return;
                    }
                }
            }
            Ok(None) => return,
            Err(error) => {
                // Dropping the sender then ends the reader's stream, which finds the failure here.
                *failure.lock().expect("no panic while held") = Some(error);
                return;
            }
        }
    }
}

/// See [`Source::read_in_windows`].
pub struct Windows<'a> {
    source: &'a Source,
    /// Where the next request begins; `None` when there will be no other.
    next: Option<u64>,
    window: u64,
    reader: Option<SourceReader>,
}

impl Read for Windows<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(reader) = &mut self.reader {
                let count = reader.read(buffer)?;
                // A download that failed must not be asked again: its failure explains the end.
                if count > 0 || buffer.is_empty() || self.source.has_failed() {
                    return Ok(count);
                }
            }
            let start = match (self.next, self.source.total()) {
                (Some(start), total) if total.is_none_or(|total| start < total) => start,
                _ => return Ok(0),
            };
            // A server without ranges sends everything anyway: once more, then, and not again for each
            // window.
            let windows = start == 0 || self.source.supports_ranges();
            let end = windows.then_some(start + self.window);
            let reader = self.source.read(start, end).map_err(|failure| {
                self.source.keep(failure);
                io::Error::other("the download failed")
            })?;
            self.reader = Some(reader);
            (self.next, self.window) = (end, (self.window * 2).min(LARGEST_WINDOW));
        }
    }
}

/// Reads one download. Its end is the end of the file or of the download; [`Source::take_failure`] tells.
pub struct SourceReader {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    /// Bytes still to be thrown away.
    skip: u64,
}

impl Read for SourceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(mut piece) => {
                    let unwanted = usize::try_from(self.skip).unwrap_or(usize::MAX);
                    let unwanted = unwanted.min(piece.len());
                    piece.advance(unwanted);
                    self.skip -= unwanted as u64;
                    self.piece = piece;
                }
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
