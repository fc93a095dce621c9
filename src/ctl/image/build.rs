//! `image build`.

use std::{
    env,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileTypeExt,
    path::Path,
};

use indicatif::HumanBytes;
use jiff::Timestamp;
use nix::{
    errno::Errno,
    unistd::{self, Whence},
};

use crate::image::{
    self, BuildOptions, Manifest, Part, Signatures, SigningKey, chunk_size_for,
    cut::is_zeros,
    limits::BLOCK,
    manifest::{BOOT, ROOTFS},
};

use super::{
    BuildArgs, CommandError, keys,
    output::{self, Output},
    print, progress_bar,
};

pub(super) fn build(args: &BuildArgs) -> Result<(), CommandError> {
    // Everything that can be refused is refused before the long work.
    let keys = args
        .key
        .iter()
        .map(|path| keys::load(path, &args.password))
        .collect::<Result<Vec<_>, _>>()?;
    let mut options = options(args)?;
    let mut parts = Vec::new();
    if let Some(boot) = &args.boot {
        parts.push(open(boot, BOOT)?);
    }
    parts.push(open(&args.rootfs, ROOTFS)?);
    let size = parts.iter().map(|part| part.size).sum();
    if args.chunk_size.is_none() {
        let mut data = 0;
        for (part, path) in parts.iter_mut().zip(args.boot.iter().chain([&args.rootfs])) {
            let found = data_len(&mut part.input, part.size);
            data += found.map_err(CommandError::file("read", path))?;
        }
        options.chunk_size = chunk_size_for(data);
    }
    let mut out = Output::create(&args.output)?;
    let mut frames = output::scratch(&args.output)?;

    let failed = CommandError::image(&args.rootfs);
    let bar = progress_bar(size, "Compressing");
    let mut progress = |done| bar.set_position(done);
    let built = image::build(parts, &options, &mut frames, &mut progress).map_err(&failed)?;
    bar.finish_and_clear();

    let mut signatures = Signatures::none();
    for (key, path) in keys.iter().zip(&args.key) {
        let signature = sign(key, built.manifest_bytes(), built.manifest(), path)?;
        signatures.add(signature).map_err(&failed)?;
    }
    frames
        .seek(SeekFrom::Start(0))
        .map_err(CommandError::file("read a file beside", &args.output))?;
    let len = built
        .assemble(&signatures, &mut frames, out.file())
        .map_err(CommandError::image(&args.output))?;
    out.finish()?;

    let signed = match keys.as_slice() {
        [] => "not signed (devices refuse it; add a signature with `fwupdatectl image sign`)"
            .to_owned(),
        keys => {
            let ids: Vec<_> = keys.iter().map(|key| key.id().to_string()).collect();
            format!("signed by {}", ids.join(", "))
        }
    };
    let text = format!(
        "{}: {} {}, {} of {} in {} chunks, {signed}\n",
        args.output.display(),
        options.name,
        options.version,
        HumanBytes(len),
        HumanBytes(size),
        built.manifest().index.chunks,
    );
    print(text.as_bytes())
}

/// A signature by `key`, with what it is for in its trusted comment.
pub(super) fn sign(
    key: &SigningKey,
    message: &[u8],
    manifest: &Manifest,
    path: &Path,
) -> Result<image::Signature, CommandError> {
    let comment = format!("image {} {}", manifest.name, manifest.version);
    key.sign(message, &comment)
        .map_err(|source| CommandError::SecretKey {
            path: path.display().to_string(),
            source,
        })
}

fn options(args: &BuildArgs) -> Result<BuildOptions, CommandError> {
    let created = match args.created {
        Some(time) => time,
        None => default_time()?,
    };
    let boards: Vec<_> = args.compatible.iter().map(String::as_str).collect();
    let defaults = BuildOptions::new(&args.name, &args.version, &boards, created);
    Ok(BuildOptions {
        security_epoch: args.security_epoch,
        level: args.level,
        chunk_size: args.chunk_size.unwrap_or(defaults.chunk_size),
        threads: args.threads.unwrap_or(defaults.threads),
        ..defaults
    })
}

/// `SOURCE_DATE_EPOCH` (reproducible-builds.org), else now; whole seconds.
fn default_time() -> Result<Timestamp, CommandError> {
    let seconds = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().ok(),
        Err(_) => Some(Timestamp::now().as_second()),
    };
    seconds
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .ok_or_else(|| {
            CommandError::Usage("SOURCE_DATE_EPOCH is not a number of seconds".to_owned())
        })
}

/// Bytes that are no hole: the content counts, so that a sparse file and its full copy give the same image.
fn data_len(file: &mut File, size: u64) -> io::Result<u64> {
    let mut data = 0;
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    while at < size {
        // Where the file system knows of a hole there is nothing to read.
        at = match unistd::lseek64(
            &*file,
            i64::try_from(at).map_err(io::Error::other)?,
            Whence::SeekData,
        ) {
            Ok(next) => u64::try_from(next).map_err(io::Error::other)?,
            // No data up to the end.
            Err(Errno::ENXIO) => break,
            // A device, or a file system that cannot say.
            Err(_) => at,
        } / BLOCK as u64
            * BLOCK as u64;
        file.seek(SeekFrom::Start(at))?;
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..])? {
                0 => break,
                len => filled += len,
            }
        }
        if filled == 0 {
            break;
        }
        let blocks = buffer[..filled].chunks(BLOCK);
        data += blocks.filter(|block| !is_zeros(block)).count() as u64 * BLOCK as u64;
        at += filled as u64;
    }
    file.rewind()?;
    Ok(data)
}

/// The input and its size in bytes: of a regular file or a block device.
fn open(path: &Path, target: &'static str) -> Result<Part<File>, CommandError> {
    let failed = || CommandError::file("read", path);
    let mut file = File::open(path).map_err(failed())?;
    let kind = file.metadata().map_err(failed())?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(CommandError::Usage(format!(
            "{} is neither a file nor a block device; the size of a partition image must be known before it is read",
            path.display()
        )));
    }
    // Also right for block devices, whose metadata say 0.
    let size = file.seek(SeekFrom::End(0)).map_err(failed())?;
    file.seek(SeekFrom::Start(0)).map_err(failed())?;
    Ok(Part {
        target,
        input: file,
        size,
    })
}
