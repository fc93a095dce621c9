//! Last stage: what the device does not have is downloaded.
//!
//! Network, decoder, digests and medium work at the same time: requests run ahead as tasks, one thread decodes, one
//! verifies, one writes. Chunks come in ascending order. A failure of the network explains why bytes ended early.

use std::{io::Read, sync::Mutex};

use super::{
    error::InstallError, filling::Filling, piece::Piece, pipeline::pipeline, prefix::Prefix,
};
use crate::{
    daemon::source::Source,
    image::{ChunkDecoder, ChunkEntry, Header, Run, check_digest, runs},
    update::failure::Failure,
};

/// Chunks go from thread to thread in pieces of about so many raw bytes.
const PIECE: usize = 512 << 10;
/// Pieces under way.
const PIECES: usize = 4;

/// Downloads what is missing, up to `connections` requests at a time.
///
/// # Errors
/// Any failure of download, verification or medium.
pub fn fetch(
    filling: &mut Filling<'_>,
    source: &Source,
    connections: usize,
) -> Result<(), Failure> {
    let header = filling.header;
    let runs = runs(header.chunks(), filling.missing(), source.supports_ranges());
    let requests = runs.len();
    let bytes: u64 = runs.iter().map(|run| run.bytes.end - run.bytes.start).sum();
    tracing::debug!(
        missing = filling.missing().len(),
        requests,
        bytes,
        "fetching"
    );
    match &runs[..] {
        [] => Ok(()),
        [only] => {
            let mut reader = source.read(only.bytes.start, Some(only.bytes.end))?;
            fill(filling, source, &runs, |buffer, _| {
                reader.read_exact(buffer)
            })
        }
        _ => {
            let ranges = runs.iter().map(|run| run.bytes.clone());
            let mut readers = source.read_ranges(ranges, connections);
            let mut current = None;
            fill(filling, source, &runs, |buffer, begins| {
                if begins {
                    current = readers.next();
                }
                match &mut current {
                    Some(reader) => reader.read_exact(buffer),
                    None => Err(std::io::ErrorKind::UnexpectedEof.into()),
                }
            })
        }
    }
}

/// Takes what is missing from the whole file, read once from its first chunk on by `whole`.
///
/// # Errors
/// As [`fetch`].
pub fn from_stream(
    filling: &mut Filling<'_>,
    source: &Source,
    whole: &mut (impl Read + Send),
) -> Result<(), Failure> {
    let last = filling.chunks().last();
    let all = last.map(|(number, last)| Run {
        chunks: 0..number + 1,
        bytes: filling.header.payload_offset()..last.file_offset + u64::from(last.frame_len),
    });
    let runs: Vec<_> = all.into_iter().collect();
    fill(filling, source, &runs, |buffer, _| whole.read_exact(buffer))
}

/// Brings the missing chunks of `runs` into the slot. `read` gives the next bytes of the file; it is told when they
/// begin a run.
fn fill(
    filling: &mut Filling<'_>,
    source: &Source,
    runs: &[Run],
    read: impl FnMut(&mut [u8], bool) -> std::io::Result<()> + Send,
) -> Result<(), Failure> {
    let header = filling.header;
    let missing = filling.missing().clone();
    let mut frames = Frames {
        header,
        source,
        runs: runs.iter(),
        read,
        left: 0..0,
        chunks: header.chunks().enumerate(),
        frame: Vec::new(),
    };
    let mut decoder = ChunkDecoder::new();
    let mut prefix = Prefix::new(header.index().max_prefix());
    let cancel = filling.installer.cancel.clone();
    let filling = Mutex::new(filling);
    // What is in place there stays as it is, so it can be read while others write.
    let in_place = |offset: u64, buffer: &mut [u8]| {
        let mut filling = filling.lock().expect("no panic while held");
        filling.read(offset, buffer)
    };
    pipeline(
        (0..PIECES).map(|_| Piece::default()).collect(),
        |piece: &mut Piece| {
            piece.clear();
            while piece.raw.len() < PIECE
                && let Some((number, chunk, bytes)) = frames.next()?
            {
                cancel.check()?;
                if missing.contains(number) {
                    let before = prefix
                        .before(chunk.raw_offset, chunk.prefix_len, in_place)
                        .map_err(|error| Failure::from(&error))?;
                    let at = piece.raw.len();
                    decoder
                        .append_unverified(&chunk, before, bytes, &mut piece.raw)
                        .map_err(|error| Failure::from(&error))?;
                    prefix.went_by(chunk.raw_offset, &piece.raw[at..]);
                    piece.chunks.push((number, chunk));
                    piece.good.push(true);
                }
            }
            Ok(!piece.chunks.is_empty())
        },
        |piece| {
            piece.each(|_, chunk, raw, _| {
                check_digest(chunk, raw).map_err(|error| Failure::from(&error))
            })
        },
        |piece| {
            let mut filling = filling.lock().expect("no panic while held");
            piece.each(|number, chunk, raw, _| filling.put(number, chunk, raw))
        },
    )
}

/// A chunk's number, its entry, and its bytes of the file.
type Arrived<'a> = (usize, ChunkEntry, &'a [u8]);

/// The chunks of some runs as the network brings them.
struct Frames<'a, I, R> {
    header: &'a Header,
    source: &'a Source,
    runs: std::slice::Iter<'a, Run>,
    read: R,
    /// Numbers of the chunks still to come in this run.
    left: std::ops::Range<usize>,
    chunks: I,
    frame: Vec<u8>,
}

impl<I, R> Frames<'_, I, R>
where
    I: Iterator<Item = (usize, ChunkEntry)>,
    R: FnMut(&mut [u8], bool) -> std::io::Result<()>,
{
    fn next(&mut self) -> Result<Option<Arrived<'_>>, Failure> {
        let begins = self.left.is_empty();
        if begins {
            match self.runs.next() {
                Some(run) => self.left = run.chunks.clone(),
                None => return Ok(None),
            }
        }
        let wanted = self.left.start;
        let found = self.chunks.find(|(number, _)| *number == wanted);
        let (number, chunk) = found.expect("runs ascend and consist of chunks of the image");
        self.frame.resize(chunk.frame_len as usize, 0);
        if (self.read)(&mut self.frame, begins).is_err() {
            return Err(self.ended_early(&chunk));
        }
        self.left.start += 1;
        Ok(Some((number, chunk, &self.frame)))
    }

    fn ended_early(&self, chunk: &ChunkEntry) -> Failure {
        let got = self
            .source
            .total()
            .map_or(chunk.file_offset, |total| total.min(chunk.file_offset));
        let (uri, want) = (self.source.uri().to_string(), self.header.file_len());
        let truncated = InstallError::Truncated { uri, got, want };
        self.source
            .take_failure()
            .unwrap_or_else(|| Failure::from(&truncated))
    }
}
