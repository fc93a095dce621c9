//! Last stage: what the device does not have is downloaded.
//!
//! Network, decoder, digests and medium work at the same time: requests run ahead as tasks, one thread decodes, one
//! verifies, one writes. Chunks come in ascending order. A failure of the network explains why bytes ended early.

use std::io::Read;

use super::{error::InstallError, filling::Filling, pipeline::pipeline};
use crate::{
    daemon::source::Source,
    image::{ChunkDecoder, ChunkEntry, Header, Run, check_digest, runs},
    update::failure::Failure,
};

/// Chunks go from thread to thread in batches of about this many raw bytes.
const BATCH: usize = 512 << 10;
/// Batches under way.
const BATCHES: usize = 4;

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

/// Some chunks on their way to the slot.
#[derive(Default)]
struct Batch {
    chunks: Vec<(usize, ChunkEntry)>,
    /// Their raw bytes, one after the other.
    raw: Vec<u8>,
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
    let mut raw = Vec::new();
    let cancel = &filling.installer.cancel;
    pipeline(
        (0..BATCHES).map(|_| Batch::default()).collect(),
        |batch: &mut Batch| {
            batch.chunks.clear();
            batch.raw.clear();
            while batch.raw.len() < BATCH
                && let Some((number, chunk, frame)) = frames.next()?
            {
                cancel.check()?;
                if missing.contains(number) {
                    let decoded = decoder.decode_chunk(&chunk, &[], frame, &mut raw);
                    decoded.map_err(|error| Failure::from(&error))?;
                    batch.raw.extend_from_slice(&raw);
                    batch.chunks.push((number, chunk));
                }
            }
            Ok(!batch.chunks.is_empty())
        },
        |batch| batch.each(|_, chunk, raw| check_digest(chunk, raw).map_err(|e| Failure::from(&e))),
        |batch| batch.each(|number, chunk, raw| filling.put(number, chunk, raw)),
    )
}

impl Batch {
    fn each(
        &self,
        mut task: impl FnMut(usize, &ChunkEntry, &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut rest = &self.raw[..];
        for (number, chunk) in &self.chunks {
            let (raw, behind) = rest.split_at(chunk.raw_len as usize);
            task(*number, chunk, raw)?;
            rest = behind;
        }
        Ok(())
    }
}

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
    fn next(&mut self) -> Result<Option<(usize, ChunkEntry, &[u8])>, Failure> {
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
