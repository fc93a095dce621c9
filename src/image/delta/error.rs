//! What can be wrong with a static delta. On a device none of it ends an update: the image itself is fetched.

use std::io;

use crate::update::failure::{Class, Coded};

use super::DELTA_VERSION;

/// A static delta cannot be read, applied or made.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// The source of the delta failed.
    #[error("cannot read the delta")]
    Read(#[source] io::Error),
    /// Too short.
    #[error("the delta ends in the middle of {0}; upload it again")]
    Truncated(&'static str),
    /// Does not begin like one.
    #[error("this is not a delta made by `fwupdatectl image delta`")]
    NotADelta,
    /// Made for a newer reader.
    #[error(
        "the delta has format version {0}, this program reads version {DELTA_VERSION}; make it with an older fwupdatectl, or update fwupdated first"
    )]
    Version(u32),
    /// For other images.
    #[error(
        "the delta is for another {what}: it names {found}, here it is {expected}; make it again for this pair"
    )]
    OtherPair {
        /// `old payload` or `new image`.
        what: &'static str,
        /// SHA-256 in the delta.
        found: String,
        /// SHA-256 here.
        expected: String,
    },
    /// A length is beyond what any honest delta has.
    #[error(
        "the delta claims {size} for {what}, at most {limit} is allowed; it is damaged or hostile, make it again"
    )]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// As claimed.
        size: u64,
        /// The most allowed.
        limit: u64,
    },
    /// The table is not one.
    #[error("the table of the delta is damaged: {0}; make or upload it again")]
    Malformed(&'static str),
    /// A frame does not decompress to what its chunks need.
    #[error(
        "a patch of the delta does not decompress: {0}; the delta is damaged, or the old data was changed"
    )]
    Patch(&'static str),
}

impl DeltaError {
    pub(super) fn reading(what: &'static str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated(what),
            _ => Self::Read(error),
        }
    }
}

impl Coded for DeltaError {
    fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "delta-read",
            Self::Truncated(_) => "delta-truncated",
            Self::NotADelta => "delta-not-recognised",
            Self::Version(_) => "delta-format-version",
            Self::OtherPair { .. } => "delta-other-pair",
            Self::TooLarge { .. } => "delta-limit-exceeded",
            Self::Malformed(_) => "delta-malformed",
            Self::Patch(_) => "delta-patch",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Read(_) | Self::Truncated(_) => Class::Retry,
            Self::NotADelta
            | Self::Version(_)
            | Self::OtherPair { .. }
            | Self::TooLarge { .. }
            | Self::Malformed(_)
            | Self::Patch(_) => Class::Final,
        }
    }
}
