//! The image as the installer's thread reads it: blocking `Read`, fed by a download that runs as a task, or by a file
//! of this device ([`local`]).
//!
//! Memory is bounded by the queues between both. A download's failure travels behind its last byte, ends the
//! reader's stream and is kept whole aside, so that decoders in between cannot blur it.

pub mod local;

use std::{
    collections::VecDeque,
    io::{self, Read},
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::{Buf, Bytes};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::{AbortHandle, JoinHandle},
};
use tracing::Instrument as _;

use self::local::Portion;
use super::meter::{Cancel, Meter, stopped};
use crate::{
    image::DetachedSignatures,
    platform::{
        fetch::{ByteRange, Download, Fetcher, Validator},
        local_file::LocalFile,
    },
    update::{
        failure::{Class, Failure},
        uri::PackageUri,
    },
};

/// What may lie between downloads and installer, all of them together: this many pieces, each of at most so many
/// bytes. The HTTP library hands out whatever has arrived, which on a fast line is hundreds of KiB at a time.
const QUEUE: usize = 32;
const PIECE: usize = 64 << 10;
/// First and largest piece of a header, bytes. The index of a 1 GiB image has some 160 KiB.
const FIRST_WINDOW: u64 = 64 << 10;
const LARGEST_WINDOW: u64 = 4 << 20;

/// An image at an address. Every reader of one source reads the same version of the file.
pub struct Source {
    line: Arc<Line>,
    /// Read instead of anything from the network.
    file: Option<Arc<LocalFile>>,
    runtime: Handle,
    failure: Arc<Mutex<Option<Failure>>>,
    /// Where the windows of a header end at the latest.
    header_end: AtomicU64,
}

/// What downloads share.
struct Line {
    fetcher: Fetcher,
    uri: PackageUri,
    meter: Arc<Meter>,
    cancel: Cancel,
    seen: Mutex<Option<Seen>>,
}

/// Which version of the file was seen, and what its server can.
#[derive(Debug, Clone)]
pub struct Seen {
    validator: Validator,
    total: Option<u64>,
    ranges: bool,
}

/// What a download hands over: its bytes, and at the end perhaps a failure.
type Pieces = mpsc::Sender<Result<Bytes, Failure>>;

impl Source {
    /// A source whose downloads run on the present runtime; with a `file`, that is read instead. `seen`: the version
    /// that must be there still.
    pub fn new(
        fetcher: Fetcher,
        uri: PackageUri,
        file: Option<Arc<LocalFile>>,
        meter: Arc<Meter>,
        cancel: Cancel,
        seen: Option<Seen>,
    ) -> Self {
        let line = Line {
            fetcher: fetcher.afresh(),
            uri,
            meter,
            cancel,
            seen: Mutex::new(seen),
        };
        Self {
            line: Arc::new(line),
            file,
            runtime: Handle::current(),
            failure: Arc::default(),
            header_end: AtomicU64::new(u64::MAX),
        }
    }

    /// The version of the file that readers read, once the server said it.
    pub fn seen(&self) -> Option<Seen> {
        match &self.file {
            None => self.line.seen(),
            Some(file) => Some(Seen {
                validator: Validator::default(),
                total: Some(file.len()),
                ranges: true,
            }),
        }
    }

    /// Whether it is a file of this device.
    pub fn is_local(&self) -> bool {
        self.file.is_some()
    }

    /// The header ends at byte `end`: nothing behind it is asked for by [`Source::read_in_windows`].
    pub fn header_ends(&self, end: u64) {
        self.header_end.store(end, Relaxed);
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
        self.line.cancel.check()?;
        if let Some(file) = &self.file {
            return Ok(self.portion(file, start, end));
        }
        let (start, skip) = self.line.reachable(start);
        let download = self.runtime.block_on(self.line.open(start, end))?;
        let (sender, pieces) = mpsc::channel(QUEUE);
        let pump = self.line.clone().pump(download, sender);
        let task = self.runtime.spawn(pump.in_current_span());
        let length = end.map(|end| end.saturating_sub(start));
        Ok(self.reader(pieces, skip, length, &task))
    }

    /// Reads `ranges` of the file, one after the other, with up to `at_once` requests under way. Blocks only
    /// while bytes are read. For servers with ranges.
    pub fn read_ranges(
        &self,
        ranges: impl IntoIterator<Item = Range<u64>>,
        at_once: usize,
    ) -> Ahead<'_> {
        Ahead {
            source: self,
            ranges: ranges.into_iter().collect(),
            at_once: at_once.max(1),
            opened: VecDeque::new(),
        }
    }

    fn reader(
        &self,
        pieces: mpsc::Receiver<Result<Bytes, Failure>>,
        skip: u64,
        length: Option<u64>,
        task: &JoinHandle<()>,
    ) -> SourceReader {
        SourceReader::Arriving(Arriving {
            pieces,
            piece: Bytes::new(),
            skip,
            to_come: length,
            failure: self.failure.clone(),
            task: task.abort_handle(),
        })
    }

    fn portion(&self, file: &Arc<LocalFile>, start: u64, end: Option<u64>) -> SourceReader {
        let (cancel, failure) = (self.line.cancel.clone(), self.failure.clone());
        SourceReader::Portion(Portion::new(file.clone(), start, end, cancel, failure))
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
        self.seen().and_then(|seen| seen.total)
    }

    /// Whether the server serves parts of the file.
    pub fn supports_ranges(&self) -> bool {
        self.seen().is_some_and(|seen| seen.ranges)
    }

    /// The address, whose `Display` holds no secrets.
    pub fn uri(&self) -> &PackageUri {
        &self.line.uri
    }

    /// The detached signatures beside it; `None` when there are none. Blocks.
    ///
    /// # Errors
    /// They cannot be fetched, or are longer than `limit` bytes.
    pub fn signatures_beside(&self, limit: usize) -> Result<Option<Vec<u8>>, Failure> {
        let line = &self.line;
        line.cancel.check()?;
        if let Some(file) = &self.file {
            return Ok(file.signature().map(<[u8]>::to_vec));
        }
        let uri = line.uri.beside(DetachedSignatures::SUFFIX);
        self.runtime.block_on(async {
            tokio::select! {
                file = line.fetcher.get_small(&uri, limit) => file.map_err(|error| Failure::from(&error)),
                () = line.cancel.cancelled() => Err(stopped()),
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
                format!("{} cannot be read: {error}", self.uri()),
            )
        })
    }

    /// A file beside this one, whose name is that of this one and `suffix`, and which the update can do without: a
    /// server that keeps it back delays the update by a minute and costs the image's own patience nothing.
    #[must_use]
    pub fn beside(&self, suffix: &str) -> Self {
        let line = &self.line;
        let uri = line.uri.beside(suffix);
        Self {
            runtime: self.runtime.clone(),
            file: None,
            line: Arc::new(Line {
                fetcher: line.fetcher.for_an_extra(),
                uri,
                meter: line.meter.clone(),
                cancel: line.cancel.clone(),
                seen: Mutex::new(None),
            }),
            failure: Arc::default(),
            header_end: AtomicU64::new(u64::MAX),
        }
    }

    /// Keeps `failure` for whoever explains the error that stands for it.
    pub fn put_back(&self, failure: Failure) -> io::Error {
        self.keep(failure);
        io::Error::other("the download failed")
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

impl Line {
    fn seen(&self) -> Option<Seen> {
        self.seen.lock().expect("no panic while held").clone()
    }

    /// Where a download must begin so that byte `start` comes, and how many bytes come before that.
    fn reachable(&self, start: u64) -> (u64, u64) {
        match self.seen() {
            Some(seen) if !seen.ranges => (0, start),
            _ => (start, 0),
        }
    }

    /// Asks for a part of the file, of the version that was seen first.
    async fn open(&self, start: u64, end: Option<u64>) -> Result<Download, Failure> {
        let validator = self.seen().map(|seen| seen.validator);
        let range = ByteRange { start, end };
        let opening = self.fetcher.open(&self.uri, range, validator.as_ref());
        let download = tokio::select! {
            opened = opening => opened.map_err(|error| Failure::from(&error)),
            () = self.cancel.cancelled() => Err(stopped()),
        }?;
        let seen = Seen {
            validator: download.validator().clone(),
            total: download.total(),
            ranges: download.supports_ranges(),
        };
        self.seen
            .lock()
            .expect("no panic while held")
            .get_or_insert(seen);
        Ok(download)
    }

    /// Asks for a part of the file, and hands it over.
    async fn fetch(self: Arc<Self>, range: Range<u64>, sender: Pieces) {
        match self.open(range.start, Some(range.end)).await {
            Ok(download) => self.pump(download, sender).await,
            // A reader that is gone has what it wanted.
            Err(failure) => drop(sender.send(Err(failure)).await),
        }
    }

    async fn pump(self: Arc<Self>, mut download: Download, sender: Pieces) {
        loop {
            let piece = tokio::select! {
                piece = download.next_chunk() => piece.map_err(|error| Failure::from(&error)),
                () = self.cancel.cancelled() => Err(stopped()),
            };
            match piece {
                Ok(Some(mut piece)) => {
                    self.meter.add_downloaded(piece.len() as u64);
                    while !piece.is_empty() {
                        let part = piece.split_to(piece.len().min(PIECE));
                        // The reader has what it wanted and is gone.
                        if sender.send(Ok(part)).await.is_err() {
                            return;
                        }
                    }
                }
                Ok(None) => return,
                Err(failure) => return drop(sender.send(Err(failure)).await),
            }
        }
    }
}

/// See [`Source::read_ranges`]: gives a reader for each range, in order.
pub struct Ahead<'a> {
    source: &'a Source,
    ranges: VecDeque<Range<u64>>,
    at_once: usize,
    opened: VecDeque<SourceReader>,
}

impl Iterator for Ahead<'_> {
    type Item = SourceReader;

    fn next(&mut self) -> Option<SourceReader> {
        while self.opened.len() < self.at_once
            && let Some(range) = self.ranges.pop_front()
        {
            let Source {
                line,
                runtime,
                file,
                ..
            } = self.source;
            if let Some(file) = file {
                let portion = self.source.portion(file, range.start, Some(range.end));
                self.opened.push_back(portion);
                continue;
            }
            let length = range.end.saturating_sub(range.start);
            let (sender, pieces) = mpsc::channel((QUEUE / self.at_once).max(2));
            let fetch = line.clone().fetch(range, sender);
            let task = runtime.spawn(fetch.in_current_span());
            let reader = self.source.reader(pieces, 0, Some(length), &task);
            self.opened.push_back(reader);
        }
        self.opened.pop_front()
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
            let most = self.source.header_end.load(Relaxed).max(start + 1);
            let end = windows.then_some((start + self.window).min(most));
            let reader = self.source.read(start, end).map_err(|failure| {
                self.source.keep(failure);
                io::Error::other("the download failed")
            })?;
            self.reader = Some(reader);
            (self.next, self.window) = (end, (self.window * 2).min(LARGEST_WINDOW));
        }
    }
}

/// Reads a range. Its end is the end of the range, of the file or of the download; [`Source::take_failure`] tells.
pub enum SourceReader {
    /// From the network.
    Arriving(Arriving),
    /// From a file of this device.
    Portion(Portion),
}

impl Read for SourceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Arriving(arriving) => arriving.read(buffer),
            Self::Portion(portion) => portion.read(buffer),
        }
    }
}

/// Reads one download.
pub struct Arriving {
    pieces: mpsc::Receiver<Result<Bytes, Failure>>,
    piece: Bytes,
    /// Bytes still to be thrown away.
    skip: u64,
    /// Bytes that the download still owes, where that is known.
    to_come: Option<u64>,
    failure: Arc<Mutex<Option<Failure>>>,
    task: AbortHandle,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // It may wait for a server, for whom nobody waits any more. One that has all its bytes only hands its
        // connection back, for the next request to use.
        if self.to_come != Some(0) {
            self.task.abort();
        }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(Ok(mut piece)) => {
                    let came = piece.len() as u64;
                    self.to_come = self.to_come.map(|left| left.saturating_sub(came));
                    let unwanted = usize::try_from(self.skip).unwrap_or(usize::MAX);
                    let unwanted = unwanted.min(piece.len());
                    piece.advance(unwanted);
                    self.skip -= unwanted as u64;
                    self.piece = piece;
                }
                Some(Err(failure)) => {
                    *self.failure.lock().expect("no panic while held") = Some(failure);
                    return Ok(0);
                }
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
