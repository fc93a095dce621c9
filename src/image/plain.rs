//! Images without a manifest: what kind a file is, and its raw bytes as a stream.
//!
//! - The kind comes from the first bytes, never from the name. What is surely no partition image (an
//!   error page, an archive, an empty file) is refused here and not written as if it were raw.
//! - Memory is bounded: xz gets [`XZ_MEMORY`], zstd a window of 2^[`ZSTD_WINDOW_LOG`] bytes; gzip and bzip2
//!   need at most 32 KiB and 3.7 MiB by their nature. How *much* comes out is for the caller to bound: a
//!   few bytes can decompress to terabytes.
//! - `Ok(0)` from the stream means that the file was complete to its last byte: concatenated streams
//!   are followed, cut-off ones and bytes behind the end are errors, and so is a length that is not
//!   whole sectors.
//!
//! Nothing here makes a plain image trustworthy; that takes a digest or a detached signature.

#[cfg(test)]
mod tests;

use std::{
    error::Error,
    fmt,
    io::{self, BufReader, Read},
};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use liblzma::{
    read::XzDecoder,
    stream::{CONCATENATED, Stream},
};

use crate::update::failure::{Class, Coded};

use super::{frame::MANIFEST_FRAME, header::IMAGE_MAGIC, limits::SECTOR};

/// Bytes of the file that [`ImageKind::detect`] looks at; fewer only if the file is shorter.
pub const DETECT_LEN: usize = 512;

/// Most memory for xz, in bytes: enough for `xz -6`, its default (9 MiB), not for -7 (17 MiB) to -9.
pub const XZ_MEMORY: u64 = 10 * 1024 * 1024;

/// Largest zstd window, as a power of two: 8 MiB, enough for `zstd -19`, not for `--long` or `--ultra -20`.
pub const ZSTD_WINDOW_LOG: u32 = 23;

/// A file cannot be used as an image without a manifest.
#[derive(Debug, thiserror::Error)]
pub enum PlainError {
    /// Nothing there.
    #[error("the image file is empty; the address or the upload is wrong")]
    Empty,
    /// Readable text: an error page, a login page, a JSON error.
    #[error(
        "the file is text{0}, not an image; the server may have sent an error page, check the address"
    )]
    Text(&'static str),
    /// A known format that is not installed.
    #[error(
        "the file is {0}, which cannot be installed; use a raw image, or one compressed by gzip, xz, bzip2 or zstd"
    )]
    Unsupported(&'static str),
    /// A tar archive that holds something else than a slot's partitions.
    #[error(
        "the file is an archive that cannot be installed: {0}. One holds `system`, and before it `boot` if the slots have \
         boot partitions, as update.tar.zst of rpi-image-gen does"
    )]
    Archive(&'static str),
    /// A member of it is a damaged sparse image.
    #[error("an Android sparse image in the archive is damaged: {0}; fetch or make it again")]
    Sparse(&'static str),
    /// The raw image is not whole sectors.
    #[error(
        "the raw image has {0} bytes, which is not a positive multiple of {SECTOR}: it is cut off, or no partition image"
    )]
    NotSectors(u64),
    /// It does not decompress.
    #[error(
        "the {kind} image is damaged or cut off, or bytes follow its end; fetch or make it again"
    )]
    Corrupt {
        /// How it was compressed.
        kind: PlainKind,
        /// What the decompressor says.
        #[source]
        source: io::Error,
    },
    /// It needs more memory than a device has to spare.
    #[error(
        "the {kind} image needs more memory to decompress than a device has to spare ({limit}); compress it with {advice}"
    )]
    Memory {
        /// How it was compressed.
        kind: PlainKind,
        /// How much may be needed.
        limit: &'static str,
        /// What would fit.
        advice: &'static str,
    },
}

impl PlainError {
    /// The error of the image itself in what a decoder's `read` gave; `None` when its source failed.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Whether a raw image can have `size` bytes.
    ///
    /// # Errors
    /// [`PlainError::NotSectors`].
    pub fn check_size(size: u64) -> Result<(), Self> {
        if size > 0 && size.is_multiple_of(SECTOR) {
            Ok(())
        } else {
            Err(Self::NotSectors(size))
        }
    }
}

impl Coded for PlainError {
    fn code(&self) -> &'static str {
        match self {
            Self::Empty => "plain-empty",
            Self::Text(_) => "plain-text",
            Self::Unsupported(_) => "plain-format-unsupported",
            Self::NotSectors(_) => "plain-not-sectors",
            Self::Archive(_) => "plain-archive",
            Self::Sparse(_) => "plain-sparse",
            Self::Corrupt { .. } => "plain-corrupt",
            Self::Memory { .. } => "plain-memory",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Corrupt { .. } | Self::Sparse(_) => Class::Retry,
            Self::Empty
            | Self::Text(_)
            | Self::Unsupported(_)
            | Self::NotSectors(_)
            | Self::Archive(_)
            | Self::Memory { .. } => Class::Final,
        }
    }
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// An image with a manifest: for [`super::ManifestFrame::read`].
    Manifest,
    /// One without: for [`plain_decoder`].
    Plain(PlainKind),
}

/// How a plain image is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainKind {
    /// Not at all.
    Raw,
    /// gzip, one or more members.
    Gzip,
    /// xz, one or more streams.
    Xz,
    /// bzip2, one or more streams.
    Bzip2,
    /// zstd, one or more frames.
    Zstd,
}

impl fmt::Display for PlainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Zstd => "zstd",
        })
    }
}

impl ImageKind {
    /// Looks at the first [`DETECT_LEN`] bytes of a file, or all if there are fewer.
    ///
    /// # Errors
    /// When the file is surely nothing that can be installed.
    pub fn detect(first: &[u8]) -> Result<Self, PlainError> {
        const ZSTD: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
        let [m0, rest @ ..] = MANIFEST_FRAME.to_le_bytes();
        let plain = |kind| Ok(Self::Plain(kind));
        match first {
            [] => Err(PlainError::Empty),
            [0x1f, 0x8b, ..] => plain(PlainKind::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => plain(PlainKind::Xz),
            // The digit is the size of its blocks.
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => plain(PlainKind::Bzip2),
            _ if first.starts_with(&ZSTD) => plain(PlainKind::Zstd),
            // Any skippable frame (0x184D2A50 to 5F, the low half byte first) begins a zstd file.
            [low, others @ ..] if low & 0xf0 == m0 & 0xf0 && others.starts_with(&rest) => {
                let ours = *low == m0 && first.get(8..16) == Some(IMAGE_MAGIC);
                Ok(if ours {
                    Self::Manifest
                } else {
                    Self::Plain(PlainKind::Zstd)
                })
            }
            _ => match other_format(first) {
                Some(error) => Err(error),
                None => plain(PlainKind::Raw),
            },
        }
    }
}

/// Formats that must not be taken for a raw image.
fn other_format(first: &[u8]) -> Option<PlainError> {
    const FORMATS: [(usize, &[u8], &str); 8] = [
        (0, b"PK\x03\x04", "a zip archive"),
        (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (0, b"LZIP", "compressed by lzip"),
        (0, b"\x04\x22\x4d\x18", "compressed by lz4"),
        (0, b"\x3a\xff\x26\xed", "an Android sparse image"),
        (0, b"QFI\xfb", "a qcow2 disk image"),
        (0, b"0707", "a cpio archive"),
        (257, b"ustar", "a tar archive"),
    ];
    for (at, magic, name) in FORMATS {
        if first.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return Some(PlainError::Unsupported(name));
        }
    }
    let first = &first[..first.len().min(DETECT_LEN)];
    let text = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n' | 0x80..);
    if !first.iter().all(text) {
        return None;
    }
    // No file system and no boot sector begins with 512 bytes of text.
    let start = String::from_utf8_lossy(first).to_lowercase();
    let start = start.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    let html = ["<!doctype html", "<html", "<head", "<body"];
    Some(if html.iter().any(|tag| start.starts_with(tag)) {
        PlainError::Text(" (HTML)")
    } else if start.starts_with("<?xml") {
        PlainError::Text(" (XML)")
    } else if start.starts_with('{') {
        PlainError::Text(" (JSON)")
    } else {
        PlainError::Text("")
    })
}

/// The raw bytes of a plain image, from the file's bytes from its beginning. Errors of `reader` come
/// out as they went in; for all others [`PlainError::of`] gives the reason.
///
/// # Errors
/// When the decompressor cannot start, which means that memory is short.
pub fn plain_decoder<'a>(
    kind: PlainKind,
    reader: impl Read + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let source = BufReader::with_capacity(128 * 1024, Source(reader));
    let decoder: Box<dyn Read + Send + 'a> = match kind {
        PlainKind::Raw => Box::new(source),
        PlainKind::Gzip => Box::new(MultiGzDecoder::new(source)),
        PlainKind::Xz => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)?;
            Box::new(XzDecoder::new_stream(source, stream))
        }
        PlainKind::Bzip2 => Box::new(MultiBzDecoder::new(source)),
        PlainKind::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    };
    Ok(Box::new(Sectors {
        kind,
        decoder,
        len: 0,
    }))
}

/// Marks the errors of the file's source, to tell them from those of the decompressor above.
struct Source<R>(R);

#[derive(Debug)]
struct SourceError(io::Error);

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for SourceError {}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0
            .read(buf)
            .map_err(|error| io::Error::new(error.kind(), SourceError(error)))
    }
}

/// Counts the raw bytes, and says in our words what went wrong.
struct Sectors<D> {
    kind: PlainKind,
    decoder: D,
    len: u64,
}

impl<D: Read> Read for Sectors<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self
            .decoder
            .read(buf)
            .map_err(|error| explain(self.kind, error))?;
        self.len += read as u64;
        if read == 0 && !buf.is_empty() {
            PlainError::check_size(self.len)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        Ok(read)
    }
}

fn explain(kind: PlainKind, error: io::Error) -> io::Error {
    let error = match error.downcast::<SourceError>() {
        Ok(SourceError(source)) => return source,
        Err(error) => error,
    };
    let too_much = |error: &io::Error| {
        matches!(
            error.get_ref().and_then(|inner| inner.downcast_ref()),
            Some(liblzma::stream::Error::MemLimit)
        ) || zstd_window(error)
    };
    let plain = if too_much(&error) {
        let (limit, advice) = match kind {
            PlainKind::Xz => ("10 MiB", "`xz -6`"),
            _ => ("a window of 8 MiB", "`zstd -19` without --long"),
        };
        PlainError::Memory {
            kind,
            limit,
            advice,
        }
    } else {
        PlainError::Corrupt {
            kind,
            source: error,
        }
    };
    io::Error::new(io::ErrorKind::InvalidData, plain)
}

/// True for zstd's refusal of a frame with a larger window than allowed.
fn zstd_window(error: &io::Error) -> bool {
    // The binding has no constant for it at this level; the text is ZSTD_getErrorName's.
    error
        .to_string()
        .contains("Frame requires too much memory for decoding")
}
