//! What can be wrong with an image, in words for the person who has to do something about it.

use std::io;

use crate::update::{
    digest::Sha256,
    failure::{Class, Coded},
};

use super::{index::ChunkDigest, limits::FORMAT_VERSION, trust::TrustError};

/// An image cannot be read, trusted or built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The source of the image failed.
    #[error("cannot read the image")]
    Read(#[source] io::Error),
    /// The image ended too early.
    #[error("the image ends in the middle of {0}; the copy is incomplete, fetch it again")]
    Truncated(&'static str),
    /// Does not begin with a manifest frame.
    #[error(
        "this is not an image made by `fwupdatectl image build`: it does not begin with a manifest"
    )]
    NotAnImage,
    /// Made for a newer reader.
    #[error(
        "the image has format version {0}, this program reads version {FORMAT_VERSION}; update fwupdated first, or build the image with an older fwupdatectl"
    )]
    FormatVersion(u32),
    /// A length is beyond what any honest image has.
    #[error(
        "the image claims {size} bytes for {what}, at most {limit} are allowed; it is damaged or hostile"
    )]
    TooLarge {
        /// What the length is of.
        what: &'static str,
        /// The length claimed.
        size: u64,
        /// The longest allowed.
        limit: u64,
    },
    /// The frames do not have the structure of the format.
    #[error("{what} is damaged: {why}; fetch or build the image again")]
    Malformed {
        /// Which part.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The manifest is not JSON of the right shape.
    #[error("the image's manifest cannot be understood; build the image again")]
    ManifestSyntax(#[source] serde_json::Error),
    /// A value in the manifest is impossible.
    #[error("`{field}` in the image's manifest {why}; build the image again")]
    ManifestValue {
        /// Where.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The manifest says that a reader must know something that this one does not.
    #[error(
        "the image needs the feature {0:?}, which this fwupdated does not know; update fwupdated first"
    )]
    CriticalFeature(String),
    /// Images for partitions that this version does not write, or in another order.
    #[error(
        "the image has parts for other partitions than `boot` (optional) and `rootfs`, or in another order, at {0:?}; build the image again, or update fwupdated first"
    )]
    Target(String),
    /// The chunk index is not the one that was signed.
    #[error(
        "the chunk index has SHA-256 {found}, the signed manifest says {expected}; the copy is damaged, fetch it again"
    )]
    IndexDigest {
        /// By the manifest.
        expected: Sha256,
        /// Of the index in the file.
        found: Sha256,
    },
    /// A chunk does not decompress.
    #[error("the chunk at byte {offset} of the image does not decompress; fetch it again")]
    ChunkDecode {
        /// Of the raw image.
        offset: u64,
        /// What zstd says.
        #[source]
        source: io::Error,
    },
    /// A chunk has the wrong length.
    #[error(
        "the chunk at byte {offset} of the image has {found} bytes instead of {expected}; fetch it again"
    )]
    ChunkLength {
        /// Of the raw image.
        offset: u64,
        /// By the index.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A chunk has other bytes than those signed for.
    #[error(
        "the chunk at byte {offset} of the image has digest {found} instead of {expected}; the copy is damaged, fetch it again"
    )]
    ChunkDigest {
        /// Of the raw image.
        offset: u64,
        /// By the index.
        expected: ChunkDigest,
        /// Of the bytes that came.
        found: ChunkDigest,
    },
    /// All chunks are right and the whole is not: the image was built wrong.
    #[error(
        "the raw image has SHA-256 {found}, the manifest says {expected}, although every chunk is right; build the image again"
    )]
    PayloadDigest {
        /// By the manifest.
        expected: Sha256,
        /// Of the bytes decompressed.
        found: Sha256,
    },
    /// The table for generic zstd readers is wrong.
    #[error(
        "the seek table at the end of the image is not the one its chunks call for; build the image again"
    )]
    SeekTable,
    /// Something follows the seek table.
    #[error("there are bytes after the end of the image; the copy is damaged, fetch it again")]
    Trailing,
    /// The signatures do not make the image trustworthy.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Options or input of a build that cannot become an image.
    #[error("cannot build the image: {0}")]
    Build(String),
    /// The image cannot be written while it is built or signed.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
}

impl ImageError {
    /// `error` while reading `what`: the end of the file is [`ImageError::Truncated`].
    pub(crate) fn reading(what: &'static str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated(what),
            _ => Self::Read(error),
        }
    }

    pub(crate) fn malformed(what: &'static str, why: impl Into<String>) -> Self {
        Self::Malformed {
            what,
            why: why.into(),
        }
    }
}

impl Coded for ImageError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "image-read",
            Self::Truncated(_) => "image-truncated",
            Self::NotAnImage => "image-not-recognised",
            Self::FormatVersion(_) => "image-format-version",
            Self::TooLarge { .. } => "image-limit-exceeded",
            Self::Malformed { .. } => "image-malformed",
            Self::ManifestSyntax(_) => "image-manifest-syntax",
            Self::ManifestValue { .. } => "image-manifest-value",
            Self::CriticalFeature(_) => "image-feature-unknown",
            Self::Target(_) => "image-target-unsupported",
            Self::IndexDigest { .. } => "image-index-digest",
            Self::ChunkDecode { .. } => "image-chunk-decode",
            Self::ChunkLength { .. } => "image-chunk-length",
            Self::ChunkDigest { .. } => "image-chunk-digest",
            Self::PayloadDigest { .. } => "image-payload-digest",
            Self::SeekTable => "image-seek-table",
            Self::Trailing => "image-trailing-bytes",
            Self::Trust(error) => error.code(),
            Self::Build(_) => "image-build",
            Self::Write(_) => "image-write",
        }
    }

    fn class(&self) -> Class {
        match self {
            // What a damaged or broken-off transfer looks like.
            Self::Read(_)
            | Self::Truncated(_)
            | Self::IndexDigest { .. }
            | Self::ChunkDecode { .. }
            | Self::ChunkLength { .. }
            | Self::ChunkDigest { .. } => Class::Retry,
            Self::Write(_) => Class::Wait,
            Self::Trust(error) => error.class(),
            Self::NotAnImage
            | Self::FormatVersion(_)
            | Self::TooLarge { .. }
            | Self::Malformed { .. }
            | Self::ManifestSyntax(_)
            | Self::ManifestValue { .. }
            | Self::CriticalFeature(_)
            | Self::Target(_)
            | Self::PayloadDigest { .. }
            | Self::SeekTable
            | Self::Trailing
            | Self::Build(_) => Class::Final,
        }
    }
}
