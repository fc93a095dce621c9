//! `image sign`: adds signatures by rewriting the file, whose first frame grows.

use std::{
    fs::{self, File},
    path::Path,
};

use crate::image::{self, Header, ManifestFrame, Signature};

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
    let header = read_header(&mut file, &path)?;

    let mut signatures = header.signatures().clone();
    let mut added = Vec::new();
    for (key, path) in keys.iter().zip(&args.key) {
        let signature = build::sign(key, header.manifest_bytes(), header.manifest(), path)?;
        added.push(signature);
    }
    for path in &args.signature {
        let bytes = fs::read(path).map_err(CommandError::file("read the signature", path))?;
        let signature = Signature::from_file_content(&bytes).map_err(CommandError::image(path))?;
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

/// A signature is only added to what can be an image: its index must be the manifest's.
fn read_header(file: &mut File, path: &Path) -> Result<Header, CommandError> {
    ManifestFrame::read(file)
        .and_then(|frame| frame.accept_unsigned())
        .and_then(|manifest| manifest.read_index(file))
        .map_err(CommandError::image(path))
}
