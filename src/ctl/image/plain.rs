//! `image verify` and `image inspect` for images without a manifest, whose signatures stand in
//! `FILE.minisig` beside them. In memory that does not grow with the image.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use indicatif::{HumanBytes, ProgressBar};
use ring::digest::{Context, SHA256};
use serde_json::json;

use crate::{
    image::{
        DetachedSignatures, DetachedVerifier, ImageError, PlainKind, TrustError, TrustStore,
        plain_decoder,
    },
    update::digest::Sha256,
};

use super::{
    CommandError, InspectArgs, VerifyArgs,
    input::{self, Input},
    print, progress_bar,
};

/// Checks a plain image as a device would: its signature, and that it unpacks to its end.
pub(super) fn verify(
    args: &VerifyArgs,
    trust: &TrustStore,
    kind: PlainKind,
    input: Input,
) -> Result<(), CommandError> {
    let untrusted = |error: TrustError| CommandError::image(&args.file)(error.into());
    let signatures = if args.unsigned {
        None
    } else {
        Some(signatures_of(&args.file)?)
    };
    let verifier = match &signatures {
        Some(signatures) => Some(
            trust
                .verify_detached(signatures, args.threshold.get())
                .map_err(untrusted)?,
        ),
        None => None,
    };
    let bar = progress_bar(size_of(&args.file).unwrap_or(0), "Checking");
    let mut file = Watched {
        input,
        digest: Context::new(&SHA256),
        verifier,
        bar: bar.clone(),
    };
    let raw = unpack(&args.file, kind, &mut file);
    bar.finish_and_clear();
    let raw = raw?;
    let signed = match file.verifier {
        None => "signature NOT checked".to_owned(),
        Some(verifier) => {
            let ids = verifier.finish().map_err(untrusted)?;
            let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
            format!("signed by {}", ids.join(", "))
        }
    };
    let text = format!(
        "{}: good: plain image ({kind}), {}, {signed}; SHA-256 of the file {}\n",
        args.file.display(),
        HumanBytes(raw),
        Sha256::from_ring(&file.digest.finish()),
    );
    print(text.as_bytes())
}

/// Says what can be seen without unpacking it.
pub(super) fn inspect(args: &InspectArgs, kind: PlainKind) -> Result<(), CommandError> {
    let size = size_of(&args.file);
    let beside = beside(&args.file).filter(|path| path.exists());
    if args.json {
        let document = json!({
            "plain": kind.to_string(),
            "fileSize": size,
            "signatureFile": beside.map(|path| path.display().to_string()),
        });
        return print(format!("{document:#}\n").as_bytes());
    }
    let size = match size {
        Some(size) => format!("{} ({size} bytes)", HumanBytes(size)),
        None => "unknown size".to_owned(),
    };
    let signature = match beside {
        Some(path) => format!("{}, not checked", path.display()),
        None => "none beside it; a request must then name the file's SHA-256".to_owned(),
    };
    let text = format!(
        "Manifest        none: a plain image ({kind}) says neither its version nor its boards\n\
         File            {size}\n\
         Signature       {signature}\n"
    );
    print(text.as_bytes())
}

/// Unpacks the file to its end; returns how many raw bytes it has.
fn unpack(path: &Path, kind: PlainKind, file: &mut Watched<'_>) -> Result<u64, CommandError> {
    let failed = |error| input::failed(path, error);
    let mut decoder = plain_decoder(kind, file).map_err(failed)?;
    io::copy(&mut decoder, &mut io::sink()).map_err(failed)
}

/// The signatures beside a plain image.
fn signatures_of(path: &Path) -> Result<DetachedSignatures, CommandError> {
    let Some(beside) = beside(path) else {
        return Err(CommandError::Usage(
            "the signature of a plain image lies beside it: name the file, or give --unsigned"
                .to_owned(),
        ));
    };
    let mut bytes = Vec::new();
    let read = File::open(&beside).and_then(|file| {
        file.take(DetachedSignatures::MAX_LEN as u64 + 1)
            .read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => DetachedSignatures::parse(&bytes)
            .map_err(|error| CommandError::image(&beside)(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CommandError::image(path)(
            ImageError::Trust(TrustError::Unsigned),
        )),
        Err(error) => Err(CommandError::file("read", &beside)(error)),
    }
}

/// Where the signatures of a plain image are; nowhere for standard input.
fn beside(path: &Path) -> Option<PathBuf> {
    (path != Path::new("-")).then(|| DetachedSignatures::beside(path))
}

fn size_of(path: &Path) -> Option<u64> {
    let file = fs::metadata(path).ok()?;
    file.is_file().then_some(file.len())
}

/// Feeds what is read through it to digest, signature check and progress bar.
struct Watched<'a> {
    input: Input,
    digest: Context,
    verifier: Option<DetachedVerifier<'a>>,
    bar: ProgressBar,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.digest.update(&buffer[..count]);
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&buffer[..count]);
        }
        self.bar.inc(count as u64);
        Ok(count)
    }
}
