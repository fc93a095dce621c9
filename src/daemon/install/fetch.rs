//! Last stage: what the device does not have is downloaded, once: a chunk that occurs again later in the image is
//! read from the slot then.
//!
//! Network, decoder, digests and medium work at the same time: requests run ahead as tasks, one thread decodes, one
//! verifies, one writes. Chunks come in ascending order. A failure of the network explains why bytes ended early.

use std::{io::Read, iter::Peekable, slice, sync::Mutex};

use super::{
    error::InstallError, filling::Filling, piece::Piece, pipeline::pipeline, prefix::Prefix,
};
use crate::{
    daemon::source::Source,
    image::{
        ChunkDecoder, ChunkEntry, Header, Plan, Repeat, Run, check_digest,
        plan::{PIECE, PIECES},
    },
    update::failure::Failure,
};

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
    let plan = Plan::new(header.chunks(), filling.missing(), source.supports_ranges());
    tracing::debug!(
        missing = filling.missing().len(),
        repeats = plan.repeats.len(),
        requests = plan.runs.len(),
        bytes = plan.bytes(),
        "fetching"
    );
    match &plan.runs[..] {
        [] => Ok(()),
        [only] => {
            let mut reader = source.read(only.bytes.start, Some(only.bytes.end))?;
            fill(filling, source, &plan, |buffer, _| {
                reader.read_exact(buffer)
            })
        }
        _ => {
            let ranges = plan.runs.iter().map(|run| run.bytes.clone());
            let mut readers = source.read_ranges(ranges, connections);
            let mut current = None;
            fill(filling, source, &plan, |buffer, begins| {
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
    let plan = Plan {
        runs: all.into_iter().collect(),
        repeats: Vec::new(),
    };
    fill(filling, source, &plan, |buffer, _| whole.read_exact(buffer))
}

/// Brings the missing chunks of `plan` into the slot. `read` gives the next bytes of the file; it is told when they
/// begin a run.
fn fill(
    filling: &mut Filling<'_>,
    source: &Source,
    plan: &Plan,
    read: impl FnMut(&mut [u8], bool) -> std::io::Result<()> + Send,
) -> Result<(), Failure> {
    let header = filling.header;
    let missing = filling.missing().clone();
    let mut coming = Coming {
        header,
        source,
        runs: plan.runs.iter().peekable(),
        repeats: plan.repeats.iter().peekable(),
        read,
        chunks: header.chunks().enumerate(),
        frame: Vec::new(),
    };
    let mut decoder = ChunkDecoder::new();
    let mut prefix = Prefix::new(header.index().max_prefix());
    let cancel = filling.installer.cancel.clone();
    let meter = filling.installer.meter.clone();
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
                && let Some((number, chunk, from)) = coming.next()?
            {
                cancel.check()?;
                if !missing.contains(number) {
                    continue;
                }
                let at = piece.raw.len();
                // Of a repeat too: what links to it may need what is before it.
                let before = prefix
                    .before(chunk.raw_offset, chunk.prefix_len, in_place)
                    .map_err(|error| Failure::from(&error))?;
                match from {
                    Arrival::Frame(bytes) => {
                        decoder
                            .append_unverified(&chunk, before, bytes, &mut piece.raw)
                            .map_err(|error| Failure::from(&error))?;
                    }
                    Arrival::Repeat(place) => {
                        piece.raw.resize(at + chunk.raw_len as usize, 0);
                        in_place(place, &mut piece.raw[at..])
                            .map_err(|error| Failure::from(&error))?;
                        // Before others are decoded with it, so that nobody blames the file.
                        check_digest(&chunk, &piece.raw[at..])
                            .map_err(|_| Failure::from(&InstallError::Forgotten { place }))?;
                        meter.add_reused(u64::from(chunk.raw_len));
                    }
                }
                prefix.went_by(chunk.raw_offset, &piece.raw[at..]);
                piece.chunks.push((number, chunk));
                piece.good.push(true);
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

/// What a chunk is made from.
enum Arrival<'a> {
    /// Its bytes of the file.
    Frame(&'a [u8]),
    /// What it repeats, which lies there in the image.
    Repeat(u64),
}

/// The chunks of a plan in order, as the network brings them and what they repeat is in place.
struct Coming<'a, I, R> {
    header: &'a Header,
    source: &'a Source,
    runs: Peekable<slice::Iter<'a, Run>>,
    repeats: Peekable<slice::Iter<'a, Repeat>>,
    read: R,
    chunks: I,
    frame: Vec<u8>,
}

impl<I, R> Coming<'_, I, R>
where
    I: Iterator<Item = (usize, ChunkEntry)>,
    R: FnMut(&mut [u8], bool) -> std::io::Result<()>,
{
    fn next(&mut self) -> Result<Option<(usize, ChunkEntry, Arrival<'_>)>, Failure> {
        for (number, chunk) in &mut self.chunks {
            if let Some(repeat) = self.repeats.next_if(|repeat| repeat.number == number) {
                return Ok(Some((number, chunk, Arrival::Repeat(repeat.place))));
            }
            while self.runs.next_if(|run| run.chunks.end <= number).is_some() {}
            let Some(run) = self.runs.peek().filter(|run| run.chunks.contains(&number)) else {
                continue;
            };
            self.frame.resize(chunk.frame_len as usize, 0);
            if (self.read)(&mut self.frame, run.chunks.start == number).is_err() {
                return Err(self.ended_early(&chunk));
            }
            return Ok(Some((number, chunk, Arrival::Frame(&self.frame))));
        }
        Ok(None)
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
