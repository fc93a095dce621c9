//! `image sign`: adds signatures by rewriting the file, whose first frame grows; a plain image's go into
//! `FILE.minisig` beside it.

use std::{
    fs::{self, File},
    io::{Read, Seek, Write},
    path::Path,
};

use crate::image::{
    self, DetachedSignatures, Header, ImageError, ImageKind, ManifestFrame, Signature, SigningKey,
    plain::DETECT_LEN,
};

use super::{CommandError, SignArgs, build, keys, output::Output, print};

pub(super) fn sign(args: &SignArgs) -> Result<(), CommandError> {
    let keys = args
        .key
        .iter()
        .map(|path| keys::load(path, &args.password))
        .collect::<Result<Vec<_>, _>>()?;
    // A link stays a link: the file it points to is replaced.
    let path = fs::canonicalize(&args.file).map_err(CommandError::file("open", &args.file))?;
    let mut file = File::open(&path).map_err(CommandError::file("open", &path))?;
    if is_plain(&mut file, &path)? {
        return sign_plain(args, &keys, &mut file);
    }
    let header = read_header(&mut file, &path)?;

    let mut signatures = header.signatures().clone();
    let mut added = Vec::new();
    for (key, path) in keys.iter().zip(&args.key) {
        let signature = build::sign(key, header.manifest_bytes(), header.manifest(), path)?;
        added.push(signature);
    }
    for path in &args.signature {
        let bytes = fs::read(path).map_err(CommandError::file("read the signature", path))?;
        let signature = Signature::from_file_content(&bytes).map_err(|_| {
            CommandError::Usage(format!(
                "{} is no signature: it has neither minisign's four lines nor a DER signature as `openssl dgst -sha256 -sign` makes it",
                path.display()
            ))
        })?;
        added.push(signature);
    }
    let mut names = Vec::new();
    for signature in added {
        names.push(match signature.key_id() {
            Some(key) => key.to_string(),
            None => signature.kind.name().to_owned(),
        });
        signatures
            .add(signature)
            .map_err(CommandError::image(&path))?;
    }

    let mut out = Output::create(&path)?;
    let mode = file.metadata().map(|data| data.permissions());
    mode.and_then(|mode| out.file().set_permissions(mode))
        .map_err(CommandError::file("set the mode of a file beside", &path))?;
    // Reading the header left the file at the first chunk.
    image::sign_again(&header, &signatures, &mut file, out.file())
        .map_err(CommandError::image(&path))?;
    out.finish()?;
    let text = format!(
        "{}: added {}; {} signature(s) in all\n",
        args.file.display(),
        names.join(", "),
        signatures.iter().count(),
    );
    print(text.as_bytes())
}

/// A signature is only added to what can be an image: its index must be the manifest's, and all of it there.
fn read_header(file: &mut File, path: &Path) -> Result<Header, CommandError> {
    let failed = CommandError::image(path);
    let header = ManifestFrame::read(file)
        .and_then(|frame| frame.accept_unsigned())
        .and_then(|manifest| manifest.read_index(file))
        .map_err(&failed)?;
    let data = file.metadata().map_err(CommandError::file("read", path))?;
    if data.len() < header.file_len() {
        return Err(failed(ImageError::Truncated("the chunks")));
    }
    Ok(header)
}

/// Whether the file is an image without a manifest.
fn is_plain(file: &mut File, path: &Path) -> Result<bool, CommandError> {
    let failed = || CommandError::file("read", path);
    let mut head = Vec::new();
    let read = (&mut *file).take(DETECT_LEN as u64).read_to_end(&mut head);
    read.map_err(failed())?;
    file.rewind().map_err(failed())?;
    let kind = ImageKind::detect(&head).map_err(CommandError::plain(path))?;
    Ok(matches!(kind, ImageKind::Plain(_)))
}

fn sign_plain(args: &SignArgs, keys: &[SigningKey], file: &mut File) -> Result<(), CommandError> {
    if !args.signature.is_empty() {
        let text = format!(
            "{} has no manifest, so its signatures stand beside it: put them, one after the other, into {0}.minisig",
            args.file.display()
        );
        return Err(CommandError::Usage(text));
    }
    let path = DetachedSignatures::beside(&args.file);
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    let mut out = Output::create(&path)?;
    let mut names = Vec::new();
    for (key, key_file) in keys.iter().zip(&args.key) {
        file.rewind()
            .map_err(CommandError::file("read", &args.file))?;
        let signature = key.sign(&mut *file, &format!("plain image {name}"));
        let signature = signature.map_err(|source| CommandError::SecretKey {
            path: key_file.display().to_string(),
            source,
        })?;
        out.file()
            .write_all(&signature.bytes)
            .map_err(CommandError::file("write", &path))?;
        names.push(key.id().to_string());
    }
    out.finish()?;
    let text = format!(
        "{}: signed by {}; serve it beside the image, which has no manifest\n",
        path.display(),
        names.join(", "),
    );
    print(text.as_bytes())
}
