//! `image manifest`, `image verify` and `image inspect`: commands that only read, from a file or from
//! standard input, in memory that does not grow with the image.

use std::{fmt::Write as _, io::Write as _};

use indicatif::HumanBytes;
use serde_json::json;

use crate::image::{Header, ImageKind, ManifestFrame, TrustStore, check_payload};

use super::{
    CommandError, InspectArgs, ManifestArgs, VerifyArgs, input, output::Output, plain, print,
    progress_bar,
};

pub(super) fn manifest(args: &ManifestArgs) -> Result<(), CommandError> {
    let frame = ManifestFrame::read(&mut input::open(&args.file)?.1)
        .map_err(CommandError::image(&args.file))?;
    match &args.output {
        Some(path) => {
            let mut out = Output::create(path)?;
            out.file()
                .write_all(frame.manifest_bytes())
                .map_err(CommandError::file("write", path))?;
            out.finish()
        }
        None => print(frame.manifest_bytes()),
    }
}

pub(super) fn verify(args: &VerifyArgs) -> Result<(), CommandError> {
    let failed = CommandError::image(&args.file);
    let trust = TrustStore::from_files(&args.key)?;
    if args.threshold.get() > trust.key_ids().len() && !args.unsigned {
        return Err(CommandError::Usage(format!(
            "--threshold {} needs as many different keys; {} given",
            args.threshold,
            trust.key_ids().len()
        )));
    }
    let mut reader = match input::open(&args.file)? {
        (ImageKind::Manifest, reader) => reader,
        (ImageKind::Plain(kind), reader) => return plain::verify(args, &trust, kind, reader),
    };
    let frame = ManifestFrame::read(&mut reader).map_err(&failed)?;
    let manifest = if args.unsigned {
        frame.accept_unsigned()
    } else {
        frame.verify(&trust, args.threshold.get())
    };
    let header = manifest
        .and_then(|manifest| manifest.read_index(&mut reader))
        .map_err(&failed)?;
    let bar = progress_bar(header.manifest().payload.size, "Checking");
    let checked = check_payload(&header, &mut reader, &mut |done| bar.set_position(done));
    bar.finish_and_clear();
    checked.map_err(&failed)?;

    let signed = match header.signed_by() {
        [] => "signature NOT checked".to_owned(),
        ids => {
            let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
            format!("signed by {}", ids.join(", "))
        }
    };
    let manifest = header.manifest();
    let text = format!(
        "{}: good: {} {}, {}, {signed}\n",
        args.file.display(),
        manifest.name,
        manifest.version,
        HumanBytes(manifest.payload.size),
    );
    print(text.as_bytes())
}

pub(super) fn inspect(args: &InspectArgs) -> Result<(), CommandError> {
    let failed = CommandError::image(&args.file);
    let mut reader = match input::open(&args.file)? {
        (ImageKind::Manifest, reader) => reader,
        (ImageKind::Plain(kind), _) => return plain::inspect(args, kind),
    };
    let header = ManifestFrame::read(&mut reader)
        .and_then(|frame| frame.accept_unsigned())
        .and_then(|manifest| manifest.read_index(&mut reader))
        .map_err(&failed)?;
    let text = if args.json {
        as_json(&header)
    } else {
        as_text(&header)
    };
    print(text.as_bytes())
}

/// What the index comes to.
#[derive(Default)]
struct Figures {
    chunks: u64,
    frames: u64,
    holes: u64,
    hole_bytes: u64,
}

impl Figures {
    fn of(header: &Header) -> Self {
        let mut figures = Self::default();
        for chunk in header.chunks() {
            figures.chunks += 1;
            figures.frames += u64::from(chunk.prefix_len == 0);
            if chunk.zeros {
                figures.holes += 1;
                figures.hole_bytes += u64::from(chunk.raw_len);
            }
        }
        figures
    }
}

fn as_json(header: &Header) -> String {
    let figures = Figures::of(header);
    let signatures: Vec<_> = header
        .signatures()
        .iter()
        .map(|signature| json!({"kind": signature.kind.name(), "keyId": signature.key_id()}))
        .collect();
    // The manifest as signed: also members that this version does not know.
    let manifest: serde_json::Value =
        serde_json::from_slice(header.manifest_bytes()).unwrap_or_default();
    let document = json!({
        "manifest": manifest,
        "manifestSha256": header.digest(),
        "signatures": signatures,
        "payloadOffset": header.payload_offset(),
        "chunks": {
            "count": figures.chunks,
            "frames": figures.frames,
            "maxPrefix": header.index().max_prefix(),
            "holes": figures.holes,
            "holeBytes": figures.hole_bytes,
        },
        "fileSize": header.file_len(),
    });
    format!("{document:#}\n")
}

fn as_text(header: &Header) -> String {
    let manifest = header.manifest();
    let payload = &manifest.payload;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{name:<15} {value}");
    };
    line("Name", manifest.name.clone());
    line("Version", manifest.version.clone());
    line("Compatible", manifest.compatible.join(", "));
    line("Created", manifest.created.to_string());
    line("Security epoch", manifest.security_epoch.to_string());
    line(
        "Raw image",
        format!("{} ({} bytes)", HumanBytes(payload.size), payload.size),
    );
    line("  SHA-256", payload.sha256.to_string());
    if manifest.images.len() > 1 {
        for image in &manifest.images {
            let size = format!("{} ({} bytes)", HumanBytes(image.size), image.size);
            line(&format!("  {}", image.target), size);
            line("    SHA-256", image.sha256.to_string());
        }
    }
    let cut = match manifest.chunking.average {
        0 => manifest.chunking.method.clone(),
        size => format!(
            "{}, {} on average",
            manifest.chunking.method,
            HumanBytes(size.into())
        ),
    };
    let figures = Figures::of(header);
    line("Chunks", format!("{} ({cut})", figures.chunks));
    let prefix = HumanBytes(header.index().max_prefix().into());
    line(
        "  zstd frames",
        format!(
            "{}, chunks refer to at most {prefix} before them",
            figures.frames
        ),
    );
    line(
        "  holes",
        format!(
            "{} in {} chunks",
            HumanBytes(figures.hole_bytes),
            figures.holes
        ),
    );
    line(
        "File",
        format!(
            "{} ({} bytes)",
            HumanBytes(header.file_len()),
            header.file_len()
        ),
    );
    line("Manifest", format!("SHA-256 {}", header.digest()));
    if header.signatures().is_empty() {
        line("Signatures", "none".to_owned());
    }
    for signature in header.signatures().iter() {
        let key = match signature.key_id() {
            Some(key) => format!(" by key {key}"),
            None => String::new(),
        };
        line(
            "Signature",
            format!("{}{key}, not checked", signature.kind.name()),
        );
    }
    text
}
