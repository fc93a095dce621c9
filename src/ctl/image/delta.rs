//! `image delta`, and the deltas that `image build --base` makes: a file beside the new image for devices that run
//! a certain older one.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use indicatif::HumanBytes;
use serde_json::json;

use crate::image::{
    ChunkDecoder, Header, ImageError, ImageKind, ManifestFrame, Part, PlainKind,
    delta::{self, BuiltDelta, DeltaOptions},
    manifest::ROOTFS,
    plain::DETECT_LEN,
};

use super::{
    CommandError, DeltaArgs, build,
    output::{self, Output},
    print, progress_bar,
};

/// How the patches shall be made.
pub(super) struct Wish {
    pub(super) level: i32,
    pub(super) threads: Option<NonZeroUsize>,
}

pub(super) fn delta(args: &DeltaArgs) -> Result<(), CommandError> {
    let wish = Wish {
        level: args.level,
        threads: args.threads,
    };
    let made = make(&args.old, &args.new, args.output.as_deref(), &wish)?;
    let text = if args.json {
        format!("{:#}\n", made.as_json())
    } else {
        made.as_text()
    };
    print(text.as_bytes())
}

/// A delta that is in its place.
pub(super) struct MadeDelta {
    path: PathBuf,
    len: u64,
    built: BuiltDelta,
    /// What a device fetches before any frame: all in front of the new image's first chunk.
    header_len: u64,
    image_len: u64,
}

impl MadeDelta {
    fn as_json(&self) -> serde_json::Value {
        json!({
            "file": self.path,
            "size": self.len,
            "tableSize": self.built.table_len(),
            "patches": self.built.patches,
            "patchedBytes": self.built.raw,
            "oldPayload": {"size": self.built.old.size, "sha256": self.built.old.sha256},
            "headerSize": self.header_len,
            "downloadSize": self.header_len + self.len,
            "imageSize": self.image_len,
        })
    }

    pub(super) fn as_text(&self) -> String {
        format!(
            "{}: {}, {} patches for {} that the old image does not hold; with the header a device fetches {}, the \
             whole image has {}\n",
            self.path.display(),
            HumanBytes(self.len),
            self.built.patches,
            HumanBytes(self.built.raw),
            HumanBytes(self.header_len + self.len),
            HumanBytes(self.image_len),
        )
    }
}

/// Makes the delta from `old` to the image `new`, at `output` or where devices look for it.
pub(super) fn make(
    old: &Path,
    new: &Path,
    output: Option<&Path>,
    wish: &Wish,
) -> Result<MadeDelta, CommandError> {
    let (mut reader, header) = open_image(new)?;
    let beside = output.unwrap_or(new);
    // Where the output goes is tried before the long work.
    let mut frames = output::scratch(beside)?;
    let (raw, size) = open_old(old, beside)?;
    let defaults = DeltaOptions::default();
    let options = DeltaOptions {
        level: wish.level,
        threads: wish.threads.unwrap_or(defaults.threads),
    };
    let bar = progress_bar(size + header.manifest().payload.size, "Comparing");
    let built = delta::build(
        &raw,
        size,
        &header,
        &mut reader,
        &options,
        &mut BufWriter::with_capacity(1 << 20, &mut frames),
        &mut |done| bar.set_position(done),
    );
    bar.finish_and_clear();
    let built = built.map_err(CommandError::image(new))?;

    let path = match output {
        Some(path) => path.to_owned(),
        None => {
            let mut name = new.as_os_str().to_owned();
            name.push(delta::suffix(built.old.sha256));
            name.into()
        }
    };
    frames
        .seek(SeekFrom::Start(0))
        .map_err(CommandError::file("read a file beside", &path))?;
    let mut out = Output::create(&path)?;
    let len = built
        .assemble(&mut frames, out.file())
        .map_err(CommandError::image(&path))?;
    out.finish()?;
    Ok(MadeDelta {
        path,
        len,
        built,
        header_len: header.payload_offset(),
        image_len: header.file_len(),
    })
}

/// An image with manifest, read up to its first chunk. Who signed it does not matter here: devices check that.
fn open_image(path: &Path) -> Result<(BufReader<File>, Header), CommandError> {
    let file = File::open(path).map_err(CommandError::file("open", path))?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let header = ManifestFrame::read(&mut reader)
        .and_then(|frame| frame.accept_unsigned())
        .and_then(|manifest| manifest.read_index(&mut reader))
        .map_err(CommandError::image(path))?;
    Ok((reader, header))
}

/// The raw bytes of `path` and their size: an image with manifest is decompressed into a file beside `beside`.
fn open_old(path: &Path, beside: &Path) -> Result<(File, u64), CommandError> {
    let failed = || CommandError::file("read", path);
    let Part {
        input: mut file,
        size,
        ..
    } = build::open(path, ROOTFS)?;
    let mut head = Vec::new();
    (&mut file)
        .take(DETECT_LEN as u64)
        .read_to_end(&mut head)
        .map_err(failed())?;
    file.seek(SeekFrom::Start(0)).map_err(failed())?;
    match ImageKind::detect(&head).map_err(|error| CommandError::Usage(error.to_string()))? {
        ImageKind::Plain(PlainKind::Raw) => Ok((file, size)),
        ImageKind::Plain(_) => Err(CommandError::Usage(format!(
            "{} is compressed and no image made by `fwupdatectl image build`; decompress it first",
            path.display()
        ))),
        ImageKind::Manifest => {
            drop(file);
            let (mut reader, header) = open_image(path)?;
            if header.manifest().images.len() != 1 {
                return Err(CommandError::Usage(format!(
                    "a delta is between images of one partition, and {} has several",
                    path.display()
                )));
            }
            let mut raw = output::scratch(beside)?;
            unpack(&header, &mut reader, &mut raw).map_err(CommandError::image(path))?;
            Ok((raw, header.manifest().payload.size))
        }
    }
}

/// Writes the raw bytes of an image. Holes stay holes.
fn unpack(header: &Header, reader: &mut impl Read, raw: &mut File) -> Result<(), ImageError> {
    let mut decoder = ChunkDecoder::new();
    let (mut frame, mut bytes, mut before) = (Vec::new(), Vec::new(), Vec::new());
    let bar = progress_bar(header.manifest().payload.size, "Decompressing");
    for chunk in header.chunks() {
        frame.resize(chunk.frame_len as usize, 0);
        reader
            .read_exact(&mut frame)
            .map_err(|error| ImageError::reading("a chunk", error))?;
        let prefix = before.len() - chunk.prefix_len as usize;
        decoder.decode_chunk(&chunk, &before[prefix..], &frame, &mut bytes)?;
        delta::build::keep_last(&mut before, &bytes, header.index().max_prefix());
        let end = chunk.raw_offset + u64::from(chunk.raw_len);
        if chunk.zeros {
            raw.seek(SeekFrom::Start(end)).map_err(ImageError::Write)?;
        } else {
            raw.write_all(&bytes).map_err(ImageError::Write)?;
        }
        bar.set_position(end);
    }
    bar.finish_and_clear();
    output::extend(raw, header.manifest().payload.size).map_err(ImageError::Write)
}
