//! Image files as the commands read them: what kind a file is, told before anything is made of it.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use crate::image::{ImageKind, PlainError, plain::DETECT_LEN};

use super::CommandError;

/// A file from its first byte on.
pub(super) type Input = Box<dyn Read + Send>;

/// The file, or standard input for `-`, and its kind.
///
/// # Errors
/// It cannot be read, or is surely no image.
pub(super) fn open(path: &Path) -> Result<(ImageKind, Input), CommandError> {
    let mut input: Input = if path == Path::new("-") {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(path).map_err(CommandError::file("open", path))?;
        Box::new(BufReader::with_capacity(1 << 20, file))
    };
    let mut head = Vec::with_capacity(DETECT_LEN);
    (&mut input)
        .take(DETECT_LEN as u64)
        .read_to_end(&mut head)
        .map_err(CommandError::file("read", path))?;
    let kind = ImageKind::detect(&head).map_err(CommandError::plain(path))?;
    Ok((kind, Box::new(io::Cursor::new(head).chain(input))))
}

/// What an error of [`crate::image::plain_decoder`] over the file means.
pub(super) fn failed(path: &Path, error: io::Error) -> CommandError {
    match error.downcast::<PlainError>() {
        Ok(error) => CommandError::plain(path)(error),
        Err(error) => CommandError::file("read", path)(error),
    }
}
