//! What a device holds already: an older image, or the bytes of a partition, searched for the chunks of a
//! new image as a device searches the slot that it runs.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;

use crate::image::{
    ChunkEntry, Header, ImageKind, Missing, PlainKind,
    find::{CutPiece, Finder, PieceCutter},
    index::ChunkDigest,
    manifest::PartitionImage,
    plain_decoder,
};

use super::{
    CommandError,
    input::{self, Input},
    progress_bar,
};

/// Bytes that are searched at a time.
const PIECE: usize = 4 << 20;

/// The raw bytes of what a device runs.
pub(super) struct Old {
    path: PathBuf,
    raw: Box<dyn Read + Send>,
    /// The partitions that follow each other in it.
    images: Vec<PartitionImage>,
}

impl Old {
    /// Opens an image of any kind, or a block device. `images` says which partitions it consists of.
    pub(super) fn open(path: &Path, images: Vec<PartitionImage>) -> Result<Self, CommandError> {
        let (kind, input): (ImageKind, Input) = input::open(path)?;
        let kind = match kind {
            // An image with a manifest is a zstd file too.
            ImageKind::Manifest => PlainKind::Zstd,
            ImageKind::Plain(kind) => kind,
        };
        let raw = plain_decoder(kind, input).map_err(CommandError::file("read", path))?;
        Ok(Self {
            path: path.to_owned(),
            raw,
            images,
        })
    }

    /// Looks for what `finder` wants of `new`. Returns the chunks that are not at their place.
    pub(super) fn search(
        mut self,
        new: &Header,
        finder: &mut Finder,
    ) -> Result<Missing, CommandError> {
        let mut places = Places::new(new);
        let bar = progress_bar(new.manifest().payload.size, "Searching");
        for image in std::mem::take(&mut self.images) {
            let start = places.begin(&image.target);
            self.search_partition(image.size, new, finder, &bar, |offset, bytes| {
                if let Some(start) = start {
                    places.see(start + offset, &ChunkDigest::of(bytes));
                }
            })?;
        }
        bar.finish_and_clear();
        Ok(places.elsewhere)
    }

    fn search_partition(
        &mut self,
        size: u64,
        new: &Header,
        finder: &mut Finder,
        bar: &ProgressBar,
        mut found: impl FnMut(u64, &[u8]),
    ) -> Result<(), CommandError> {
        let mut cutter = PieceCutter::new(&new.manifest().chunking, 0);
        let mut piece = CutPiece::default();
        let (room, mut left) = (cutter.room(), size);
        while !piece.last {
            piece.buffer.clear();
            piece.buffer.resize(room, 0);
            let wanted = left.min(PIECE as u64);
            let read = (&mut self.raw)
                .take(wanted)
                .read_to_end(&mut piece.buffer)
                .map_err(|error| input::failed(&self.path, error))?;
            left -= read as u64;
            piece.last = left == 0 || read < PIECE;
            cutter.cut(&mut piece);
            for (offset, bytes) in piece.chunks() {
                if finder.look(bytes, offset) {
                    found(offset, bytes);
                }
            }
            bar.inc(read as u64);
        }
        Ok(())
    }
}

/// The same for an image that was cut as `new` was, by its index.
pub(super) fn by_index(old: &Header, new: &Header, finder: &mut Finder) -> Missing {
    let mut places = Places::new(new);
    let mut end = 0;
    let mut chunks = old.chunks().peekable();
    for image in &old.manifest().images {
        let begin = end;
        end += image.size;
        let start = places.begin(&image.target);
        while let Some(chunk) = chunks.next_if(|chunk| chunk.raw_offset < end) {
            if !chunk.zeros
                && finder.note(&chunk.digest, chunk.raw_offset)
                && let Some(start) = start
            {
                places.see(start + (chunk.raw_offset - begin), &chunk.digest);
            }
        }
    }
    places.elsewhere
}

/// Tells chunks that are at their place from those that are elsewhere.
struct Places<'a> {
    new: &'a Header,
    /// Those that were not seen at their place.
    elsewhere: Missing,
    chunks: Box<dyn Iterator<Item = (usize, ChunkEntry)> + 'a>,
    next: Option<(usize, ChunkEntry)>,
}

impl<'a> Places<'a> {
    fn new(new: &'a Header) -> Self {
        let mut chunks = new.chunks().enumerate();
        Self {
            new,
            elsewhere: Missing::all(new.index().len()),
            next: chunks.next(),
            chunks: Box::new(chunks),
        }
    }

    /// A partition begins: where its image begins in the payload of the new image, if it has one.
    fn begin(&mut self, target: &str) -> Option<u64> {
        let images = &self.new.manifest().images;
        let number = images.iter().position(|image| image.target == target)?;
        Some(images[..number].iter().map(|image| image.size).sum())
    }

    /// Bytes with `digest` are where the payload's byte `offset` belongs. Offsets ascend.
    fn see(&mut self, offset: u64, digest: &ChunkDigest) {
        while let Some((number, chunk)) = self.next
            && chunk.raw_offset <= offset
        {
            if chunk.raw_offset == offset && chunk.digest == *digest {
                self.elsewhere.done(number);
            }
            self.next = self.chunks.next();
        }
    }
}
