//! `image diff`: what a device that runs OLD downloads to install NEW.
//!
//! The same code as on the device says what is found in OLD and which requests bring the rest. The figures
//! hold for a device whose other slot has nothing of NEW; one that has something of it downloads less.

use std::path::Path;

use indicatif::HumanBytes;
use serde_json::json;

use crate::image::{
    ChunkEntry, Header, ImageKind, ManifestFrame, Missing, Plan,
    find::Finder,
    manifest::{PartitionImage, ROOTFS},
};

use super::{
    CommandError, DiffArgs,
    input::{self, Input},
    old::{self, Old},
    print,
};

pub(super) fn diff(args: &DiffArgs) -> Result<(), CommandError> {
    let new = header(&args.new)?;
    let difference = Difference::between(&args.old, &new)?;
    let text = if args.json {
        format!("{:#}\n", difference.as_json(&new))
    } else {
        difference.as_text(args, &new)
    };
    print(text.as_bytes())
}

/// The header of an image with a manifest.
fn header(path: &Path) -> Result<Header, CommandError> {
    match input::open(path)? {
        (ImageKind::Manifest, mut input) => read_header(path, &mut input),
        (ImageKind::Plain(kind), _) => Err(CommandError::Usage(format!(
            "{} is a plain image ({kind}): without a manifest a device downloads all of it, whatever it has",
            path.display()
        ))),
    }
}

fn read_header(path: &Path, input: &mut Input) -> Result<Header, CommandError> {
    ManifestFrame::read(input)
        .and_then(|frame| frame.accept_unsigned())
        .and_then(|manifest| manifest.read_index(input))
        .map_err(CommandError::image(path))
}

/// Some chunks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Part {
    chunks: u64,
    /// Raw bytes.
    bytes: u64,
}

impl Part {
    fn add(&mut self, chunk: &ChunkEntry) {
        self.chunks += 1;
        self.bytes += u64::from(chunk.raw_len);
    }

    fn as_json(self) -> serde_json::Value {
        json!({"chunks": self.chunks, "bytes": self.bytes})
    }
}

/// Where the chunks of NEW come from. Each is in one part.
#[derive(Debug, Default)]
struct Difference {
    /// In OLD at the same place of the same partition.
    same_place: Part,
    /// Elsewhere in OLD.
    moved: Part,
    /// Zeros, which are neither copied nor fetched.
    holes: Part,
    /// Once more in NEW than is fetched.
    repeated: Part,
    /// Fetched.
    missing: Part,
    requests: u64,
    /// Bytes of the frames that are fetched, gaps included.
    payload: u64,
    /// Of these, frames that are not needed, fetched to save requests.
    gaps: u64,
}

impl Difference {
    fn between(old: &Path, new: &Header) -> Result<Self, CommandError> {
        let mut missing = Missing::all(new.index().len());
        let mut this = Self::default();
        for (number, chunk) in new.chunks().enumerate().filter(|(_, chunk)| chunk.zeros) {
            missing.done(number);
            this.holes.add(&chunk);
        }
        let mut finder = Finder::new(new.chunks().enumerate(), &missing);
        let elsewhere = match input::open(old)? {
            // Cut by the same rule, so its index says what a search of its raw bytes would find.
            (ImageKind::Manifest, mut input) => {
                let header = read_header(old, &mut input)?;
                if header.manifest().chunking == new.manifest().chunking {
                    old::by_index(&header, new, &mut finder)
                } else {
                    let images = header.manifest().images.clone();
                    let old = Old::open(old, images)?;
                    old.search(new, &mut finder)?
                }
            }
            _ => {
                let images = vec![whole_as_rootfs(new)];
                Old::open(old, images)?.search(new, &mut finder)?
            }
        };
        for (number, _) in finder.found() {
            missing.done(number);
        }
        let plan = Plan::new(new.chunks(), &missing, true);
        let mut needed = 0;
        for (number, chunk) in new.chunks().enumerate().filter(|(_, chunk)| !chunk.zeros) {
            match () {
                () if plan.is_repeat(number) => this.repeated.add(&chunk),
                () if missing.contains(number) => {
                    this.missing.add(&chunk);
                    needed += u64::from(chunk.frame_len);
                }
                () if elsewhere.contains(number) => this.moved.add(&chunk),
                () => this.same_place.add(&chunk),
            }
        }
        this.requests = plan.runs.len() as u64;
        this.payload = plan.bytes();
        this.gaps = this.payload - needed;
        Ok(this)
    }

    /// Everything that is downloaded, in bytes.
    fn download(&self, new: &Header) -> u64 {
        new.payload_offset() + self.payload
    }

    fn as_json(&self, new: &Header) -> serde_json::Value {
        json!({
            "version": new.manifest().version,
            "samePlace": self.same_place.as_json(),
            "moved": self.moved.as_json(),
            "holes": self.holes.as_json(),
            "repeated": self.repeated.as_json(),
            "missing": self.missing.as_json(),
            "download": {
                "bytes": self.download(new),
                "headerBytes": new.payload_offset(),
                "payloadBytes": self.payload,
                "gapBytes": self.gaps,
                "requests": self.requests,
            },
            "fileSize": new.file_len(),
            "share": share(self.download(new), new.file_len()),
        })
    }

    fn as_text(&self, args: &DiffArgs, new: &Header) -> String {
        let size = new.manifest().payload.size;
        let line = |name: &str, part: Part| {
            format!(
                "{name:<15} {} ({:.1} %) in {} chunks\n",
                HumanBytes(part.bytes),
                100.0 * share(part.bytes, size),
                part.chunks
            )
        };
        let download = self.download(new);
        [
            format!(
                "{} {} on a device that runs {}\n",
                new.manifest().name,
                new.manifest().version,
                args.old.display()
            ),
            line("Same place", self.same_place),
            line("Moved", self.moved),
            line("Holes", self.holes),
            line("Repeated", self.repeated),
            line("Missing", self.missing),
            format!(
                "{:<15} {} ({download} bytes), {:.1} % of the file of {}\n",
                "Download",
                HumanBytes(download),
                100.0 * share(download, new.file_len()),
                HumanBytes(new.file_len()),
            ),
            format!(
                "{:<15} header {}, chunks {} in {} requests, {} of them to save requests\n",
                "  of it",
                HumanBytes(new.payload_offset()),
                HumanBytes(self.payload),
                self.requests,
                HumanBytes(self.gaps),
            ),
        ]
        .concat()
    }
}

/// A file system without a manifest is that of the partition `rootfs`, searched as far as a device does.
fn whole_as_rootfs(new: &Header) -> PartitionImage {
    PartitionImage {
        target: ROOTFS.to_owned(),
        size: 2 * new.manifest().payload.size,
        ..new.manifest().rootfs().clone()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share to be read by people")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}
