//! Finds chunks of an image in other bytes, wherever they lie there: in the slot that runs, in what a slot held
//! before, in an older image. Pure: the caller brings the bytes and copies what was found.
//!
//! What is found is a hint. Whoever copies a chunk compares its digest first, so nothing here can make a wrong byte.

use super::{
    ChunkEntry,
    cut::{Cutter, is_zeros},
    index::ChunkDigest,
    limits::MIN_HOLE,
    manifest::Chunking,
    plan::Missing,
};

/// Nowhere yet.
const NOWHERE: u64 = u64::MAX;

/// The chunks that are looked for, and where they were found. 20 bytes for each.
pub struct Finder {
    /// Begin of the digest and number in the index, sorted.
    wanted: Vec<(u64, u32)>,
    places: Vec<u64>,
    left: usize,
}

impl Finder {
    /// Looks for all of `chunks` (with their numbers) that are `missing` and no holes.
    pub fn new(chunks: impl Iterator<Item = (usize, ChunkEntry)>, missing: &Missing) -> Self {
        let mut wanted = Vec::with_capacity(missing.len());
        wanted.extend(
            chunks
                .filter(|(number, chunk)| missing.contains(*number) && !chunk.zeros)
                .map(|(number, chunk)| {
                    let number = u32::try_from(number).expect("an index has fewer chunks");
                    (key(&chunk.digest), number)
                }),
        );
        wanted.sort_unstable();
        Self {
            places: vec![NOWHERE; wanted.len()],
            left: wanted.len(),
            wanted,
        }
    }

    /// Whether there is nothing left to find.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Bytes with this `digest` lie at `offset`. Whether they were looked for: what was found before counts.
    pub fn note(&mut self, digest: &ChunkDigest, offset: u64) -> bool {
        let key = key(digest);
        let first = self.wanted.partition_point(|(other, _)| *other < key);
        let same = self.wanted[first..].iter().take_while(|(k, _)| *k == key);
        let count = same.count();
        for place in &mut self.places[first..first + count] {
            if *place == NOWHERE {
                *place = offset;
                self.left -= 1;
            }
        }
        count > 0
    }

    /// As [`Finder::note`] for the bytes themselves. Holes are never looked for.
    pub fn look(&mut self, bytes: &[u8], offset: u64) -> bool {
        let hole = bytes.len() >= MIN_HOLE && is_zeros(bytes);
        !hole && self.note(&ChunkDigest::of(bytes), offset)
    }

    /// Number and place of each chunk that was found, by number.
    #[must_use]
    pub fn found(self) -> Vec<(usize, u64)> {
        let pairs = self.wanted.iter().zip(self.places);
        let found = pairs.filter(|(_, place)| *place != NOWHERE);
        let mut found: Vec<_> = found
            .map(|((_, number), place)| (*number as usize, place))
            .collect();
        found.sort_unstable();
        found
    }
}

fn key(digest: &ChunkDigest) -> u64 {
    u64::from_le_bytes(*digest.0.first_chunk().expect("16 bytes are more than 8"))
}

/// Cuts a stream that arrives piece by piece, each piece in a buffer with room in front for what the piece before
/// it left over.
pub struct PieceCutter {
    cutter: Cutter,
    rest: Vec<u8>,
    /// Where in the stream `rest` begins.
    at: u64,
}

/// One piece of a stream.
#[derive(Default)]
pub struct CutPiece {
    /// Room for what was left over, then the bytes of the piece.
    pub buffer: Vec<u8>,
    /// Whether it is the last one of the stream.
    pub last: bool,
    /// Where in the stream, and where in the buffer, the first chunk begins.
    first: (u64, usize),
    lengths: Vec<u32>,
}

impl PieceCutter {
    /// Cuts the stream that begins at `offset`, a multiple of the block, as an image with `chunking` is cut.
    #[must_use]
    pub fn new(chunking: &Chunking, offset: u64) -> Self {
        Self {
            cutter: Cutter::new(chunking),
            rest: Vec::new(),
            at: offset,
        }
    }

    /// How much room a piece needs in front, in bytes.
    #[must_use]
    pub fn room(&self) -> usize {
        self.cutter.lookahead()
    }

    /// Finds the chunks that end in `piece`, whose bytes begin behind [`PieceCutter::room`].
    pub fn cut(&mut self, piece: &mut CutPiece) {
        let begin = self.room() - self.rest.len();
        piece.buffer[begin..][..self.rest.len()].copy_from_slice(&self.rest);
        piece.first = (self.at, begin);
        piece.lengths.clear();
        let mut at = begin;
        while let Some(length) = self.cutter.next(&piece.buffer[at..], piece.last) {
            piece
                .lengths
                .push(u32::try_from(length).expect("chunks are shorter"));
            at += length;
        }
        self.at += (at - begin) as u64;
        self.rest.clear();
        self.rest.extend_from_slice(&piece.buffer[at..]);
    }
}

impl CutPiece {
    /// The chunks of the piece: where in the stream each begins, and its bytes.
    pub fn chunks(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let (mut offset, mut at) = self.first;
        self.lengths.iter().map(move |length| {
            let length = *length as usize;
            let chunk = (offset, &self.buffer[at..at + length]);
            (offset, at) = (offset + length as u64, at + length);
            chunk
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn entry(raw: &[u8]) -> ChunkEntry {
        ChunkEntry {
            raw_offset: 0,
            raw_len: u32::try_from(raw.len()).unwrap(),
            file_offset: 0,
            frame_len: 1,
            digest: ChunkDigest::of(raw),
            prefix_len: 0,
            zeros: raw.len() >= MIN_HOLE && is_zeros(raw),
        }
    }

    /// Cuts `stream`, given in pieces of `step` bytes.
    fn cut(stream: &[u8], step: usize) -> Vec<(u64, Vec<u8>)> {
        let mut cutter = PieceCutter::new(&Chunking::content_defined(8192), 0);
        let mut piece = CutPiece::default();
        let mut cuts = Vec::new();
        let count = stream.len().div_ceil(step);
        for (number, bytes) in stream.chunks(step).enumerate() {
            piece.buffer.clear();
            piece.buffer.resize(cutter.room(), 0xEE);
            piece.buffer.extend_from_slice(bytes);
            piece.last = number + 1 == count;
            cutter.cut(&mut piece);
            cuts.extend(piece.chunks().map(|(at, bytes)| (at, bytes.to_vec())));
        }
        cuts
    }

    #[test]
    fn a_stream_is_cut_alike_whatever_its_pieces_and_nothing_of_it_is_lost() {
        let mut stream = noise(5 << 20, 1);
        stream[1_000_000..2_500_000].fill(0);
        let whole = cut(&stream, stream.len());
        for step in [600_000, 1 << 20, 3 << 20] {
            assert!(cut(&stream, step) == whole, "{step}");
        }
        let mut at = 0;
        for (offset, bytes) in &whole {
            assert_eq!(*offset, at as u64);
            assert!(stream[at..].starts_with(bytes));
            at += bytes.len();
        }
        assert_eq!(at, stream.len());
    }

    #[test]
    fn a_chunk_is_found_wherever_it_lies_and_so_are_its_twins() {
        let image = noise(1 << 20, 2);
        let entries: Vec<_> = cut(&image, 1 << 20)
            .iter()
            .map(|(_, raw)| entry(raw))
            .collect();
        let twice = || entries.iter().chain(&entries).copied().enumerate();
        let mut missing = Missing::all(2 * entries.len());
        missing.done(3);
        let mut finder = Finder::new(twice(), &missing);
        let old = [noise(100_000, 3), image].concat();
        for (offset, bytes) in cut(&old, 700_000) {
            finder.look(&bytes, offset);
        }
        let found = finder.found();
        // The first one or two are cut differently, since something else is before them.
        assert!(found.len() > 2 * entries.len() - 8, "{}", found.len());
        for (number, place) in found {
            assert_ne!(number, 3);
            let place = usize::try_from(place).unwrap();
            let entry = entries[number % entries.len()];
            let bytes = &old[place..][..entry.raw_len as usize];
            assert_eq!(ChunkDigest::of(bytes), entry.digest);
        }
    }

    #[test]
    fn holes_are_not_looked_for_and_the_first_place_counts() {
        let (hole, data) = (vec![0; MIN_HOLE], noise(5000, 4));
        let entries = [entry(&hole), entry(&data)];
        let mut finder = Finder::new(entries.iter().copied().enumerate(), &Missing::all(2));
        assert!(!finder.look(&hole, 0));
        assert!(!finder.is_done());
        assert!(finder.look(&data, 10));
        assert!(finder.is_done());
        assert!(finder.look(&data, 20));
        assert_eq!(finder.found(), [(1, 10)]);
    }
}
