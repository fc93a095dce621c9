//! Reading the front of an image, in the one order that is safe.
//!
//! ```text
//! ManifestFrame --verify(keys)-------> VerifiedManifest --read_index--> Header --chunks--> ChunkDecoder
//!               \-accept_unsigned()--/
//! ```
//! Nothing of the manifest is interpreted, and no byte of the index read, before a signature was
//! verified or someone wrote `accept_unsigned()`; only a [`Header`] gives chunks.

use std::io::Read;

use crate::update::digest::Sha256;

use super::{
    error::ImageError,
    frame::{
        FRAME_HEAD, INDEX_FRAME, MANIFEST_FRAME, SeekTable, read_array, read_head, read_u32,
        read_vec,
    },
    index::{ChunkIndex, Chunks},
    limits::{FORMAT_VERSION, MAX_MANIFEST, MAX_SIGNATURES_LEN},
    manifest::{self, Manifest},
    public_key::KeyId,
    signature::Signatures,
    trust::TrustStore,
};

/// First bytes of the manifest frame's content.
pub(crate) const IMAGE_MAGIC: &[u8; 8] = b"FWUPDIMG";
/// Magic, format version, length of the manifest, length of the signatures.
pub(crate) const MANIFEST_HEAD: u64 = 20;

const PART: &str = "the manifest frame";

/// The first frame: bytes and signatures, nothing of it believed yet.
#[derive(Debug, Clone)]
pub struct ManifestFrame {
    manifest: Vec<u8>,
    signatures: Signatures,
    len: u64,
}

impl ManifestFrame {
    /// Reads the first frame from the beginning of an image.
    ///
    /// # Errors
    /// When it is not there, too long, or of another format version.
    pub fn read(reader: &mut impl Read) -> Result<Self, ImageError> {
        let (magic, len) = read_head(reader, PART)?;
        if magic != MANIFEST_FRAME || u64::from(len) < MANIFEST_HEAD {
            return Err(ImageError::NotAnImage);
        }
        if &read_array::<8>(reader, PART)? != IMAGE_MAGIC {
            return Err(ImageError::NotAnImage);
        }
        let version = read_u32(reader, PART)?;
        if version != FORMAT_VERSION {
            return Err(ImageError::FormatVersion(version));
        }
        let manifest_len = read_u32(reader, PART)?;
        let signatures_len = read_u32(reader, PART)?;
        check_len("the manifest", manifest_len, MAX_MANIFEST)?;
        check_len("the signatures", signatures_len, MAX_SIGNATURES_LEN)?;
        if MANIFEST_HEAD + u64::from(manifest_len) + u64::from(signatures_len) != u64::from(len) {
            return Err(ImageError::malformed(PART, "its lengths do not add up"));
        }
        let manifest = read_vec(reader, manifest_len.into(), PART)?;
        let signatures = read_vec(reader, signatures_len.into(), PART)?;
        Ok(Self {
            manifest,
            signatures: Signatures::parse(&signatures)?,
            len: FRAME_HEAD + u64::from(len),
        })
    }

    /// The bytes that are signed. Not verified.
    #[must_use]
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.manifest
    }

    /// The signatures. Not verified.
    #[must_use]
    pub fn signatures(&self) -> &Signatures {
        &self.signatures
    }

    /// Goes on only if at least `threshold` different trusted keys signed the manifest.
    ///
    /// # Errors
    /// When they did not, or the manifest is one that this version cannot install.
    pub fn verify(
        &self,
        trust: &TrustStore,
        threshold: usize,
    ) -> Result<VerifiedManifest, ImageError> {
        let signed_by = trust.verify(&self.manifest, &self.signatures, threshold)?;
        self.accept(signed_by)
    }

    /// Goes on without any proof of where the image comes from: for `trust.unsigned = "allow"` and
    /// for tools that only look. The digests still hold for what the manifest says.
    ///
    /// # Errors
    /// When the manifest is one that this version cannot install.
    pub fn accept_unsigned(&self) -> Result<VerifiedManifest, ImageError> {
        self.accept(Vec::new())
    }

    fn accept(&self, signed_by: Vec<KeyId>) -> Result<VerifiedManifest, ImageError> {
        Ok(VerifiedManifest {
            manifest: manifest::parse(&self.manifest)?,
            signed_by,
            frame: self.clone(),
        })
    }
}

/// A manifest that was signed by trusted keys, or accepted without.
#[derive(Debug, Clone)]
pub struct VerifiedManifest {
    manifest: Manifest,
    signed_by: Vec<KeyId>,
    frame: ManifestFrame,
}

impl VerifiedManifest {
    /// What it says.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Trusted keys whose signatures were verified; empty after `accept_unsigned()`.
    #[must_use]
    pub fn signed_by(&self) -> &[KeyId] {
        &self.signed_by
    }

    /// Bytes of the file up to the first chunk: with the manifest frame, all that must be fetched
    /// before chunks can be chosen.
    #[must_use]
    pub fn payload_offset(&self) -> u64 {
        self.frame.len + FRAME_HEAD + self.manifest.index.size
    }

    /// Reads the second frame, where the first one ended, and checks it against the manifest.
    ///
    /// # Errors
    /// When it is not the index that was signed, or breaks a limit.
    pub fn read_index(self, reader: &mut impl Read) -> Result<Header, ImageError> {
        const PART: &str = "the chunk index";
        let (magic, len) = read_head(reader, PART)?;
        if magic != INDEX_FRAME || u64::from(len) != self.manifest.index.size {
            let why = "it is not where or as long as the manifest says";
            return Err(ImageError::malformed(PART, why));
        }
        // `manifest::parse` has checked this size.
        let bytes = read_vec(reader, self.manifest.index.size, PART)?;
        Ok(Header {
            index: ChunkIndex::parse(bytes, &self.manifest)?,
            digest: Sha256::of(&self.frame.manifest),
            verified: self,
        })
    }
}

/// All that is needed to install an image: manifest and index, both checked.
#[derive(Debug, Clone)]
pub struct Header {
    verified: VerifiedManifest,
    index: ChunkIndex,
    digest: Sha256,
}

impl Header {
    /// What the image is.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.verified.manifest
    }

    /// The signed bytes.
    #[must_use]
    pub fn manifest_bytes(&self) -> &[u8] {
        &self.verified.frame.manifest
    }

    /// SHA-256 of the signed bytes: two files with the same one hold the same image, whoever signed.
    #[must_use]
    pub fn digest(&self) -> Sha256 {
        self.digest
    }

    /// All signatures of the file.
    #[must_use]
    pub fn signatures(&self) -> &Signatures {
        &self.verified.frame.signatures
    }

    /// Trusted keys whose signatures were verified; empty after `accept_unsigned()`.
    #[must_use]
    pub fn signed_by(&self) -> &[KeyId] {
        &self.verified.signed_by
    }

    /// The chunk index.
    #[must_use]
    pub fn index(&self) -> &ChunkIndex {
        &self.index
    }

    /// All chunks in order, with their places in the raw image and in the file.
    pub fn chunks(&self) -> Chunks<'_> {
        self.index.chunks(self.payload_offset())
    }

    /// Where the first chunk's frame begins in the file, in bytes.
    #[must_use]
    pub fn payload_offset(&self) -> u64 {
        self.verified.payload_offset()
    }

    /// Length of the whole file, in bytes, seek table included.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.payload_offset() + self.index.frames_len() + self.seek_table().len()
    }

    pub(crate) fn seek_table(&self) -> SeekTable<'_> {
        SeekTable {
            manifest_frame: self.verified.frame.len,
            index_frame: FRAME_HEAD + self.index.as_bytes().len() as u64,
            index: &self.index,
        }
    }
}

fn check_len(what: &'static str, size: u32, limit: u32) -> Result<(), ImageError> {
    if size > limit {
        return Err(ImageError::TooLarge {
            what,
            size: size.into(),
            limit: limit.into(),
        });
    }
    Ok(())
}
