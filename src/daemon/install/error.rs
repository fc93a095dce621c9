//! Why an image cannot be installed, as far as no other area's error says it.

use crate::update::failure::{Class, Coded};

/// Errors of the installation itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// The header changed between check and download.
    #[error("{uri} changed since it was checked; start the update again")]
    Changed {
        /// Without secrets.
        uri: String,
    },
    /// A plain image without anything to trust it by.
    #[error(
        "{uri} has no manifest, the request names no digest, and there is no signature at {uri}.minisig; give \
         fwPackageSha256, sign it with `fwupdatectl image sign`, or build an image with `fwupdatectl image build`"
    )]
    PlainUnsigned {
        /// Without secrets.
        uri: String,
    },
    /// A plain image without a signature, on a device that takes them by nothing else.
    #[error(
        "{uri} has no manifest, and there is no signature at {uri}.minisig, without which this device installs no such \
         image, whatever digest the request names (trust.plain = \"signed\"); sign it with `fwupdatectl image sign`, or \
         build an image with `fwupdatectl image build`"
    )]
    PlainSignedOnly {
        /// Without secrets.
        uri: String,
    },
    /// The whole file's digest is not the request's.
    #[error("{uri} has the SHA-256 {found}, the request names {asked}; the slot stays disabled")]
    DigestMismatch {
        /// Without secrets.
        uri: String,
        /// Of the file.
        found: String,
        /// In the request.
        asked: String,
    },
    /// The file ends early, and the server says that is all.
    #[error("{uri} ends after {got} of {want} bytes; upload it again")]
    Truncated {
        /// Without secrets.
        uri: String,
        /// Bytes there.
        got: u64,
        /// Bytes the header promises.
        want: u64,
    },
    /// The slot does not hold what was written.
    #[error(
        "slot {slot} reads back as SHA-256 {found}, {wanted} was written: the medium is failing; the slot stays \
         disabled, replace the card"
    )]
    ReadBack {
        /// Its name.
        slot: String,
        /// On the medium.
        found: String,
        /// Written.
        wanted: String,
    },
    /// The slot does not hold what was written a moment ago.
    #[error(
        "the slot reads back other bytes at {place} of the image than were written: the medium is failing; the slot \
         stays disabled, replace the card"
    )]
    Forgotten {
        /// Offset in the image, bytes.
        place: u64,
    },
}

impl Coded for InstallError {
    fn code(&self) -> &'static str {
        match self {
            Self::Changed { .. } => "image-changed",
            Self::PlainUnsigned { .. } => "image-unsigned",
            Self::PlainSignedOnly { .. } => "plain-signature-required",
            Self::DigestMismatch { .. } => "digest-mismatch",
            Self::Truncated { .. } => "image-truncated",
            Self::ReadBack { .. } | Self::Forgotten { .. } => "slot-read-back-mismatch",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}
